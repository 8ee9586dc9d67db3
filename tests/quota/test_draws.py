"""Shares of a budget, drawn at once by several processes through files."""

import threading
from pathlib import Path

import pytest
from arkbeam.base.errors import StoreError
from arkbeam.quota import draws
from arkbeam.quota.budget import UNLIMITED, Cost
from arkbeam.quota.draws import Draws


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses to milliseconds."""
    monkeypatch.setattr(draws, "PAUSE_S", 0.002)


def open_draws(folder: Path, name: str, tokens: int = 1_000) -> Draws:
    """The draws of one process from a budget of tokens."""
    return Draws(str(folder), "run", name, Cost(tokens, UNLIMITED), 2)


def test_the_dead_keep_what_they_drew(tmp_path: Path) -> None:
    """What a process drew and did not give back is not available to the others; what it gives back is."""
    dead, alive = open_draws(tmp_path, "dead"), open_draws(tmp_path, "alive")
    assert dead.draw(Cost(900, 0)) == Cost(900, UNLIMITED // 8)
    assert alive.draw(Cost(101, 0)) is None
    more = alive.draw(Cost(100, 0))
    assert more is not None
    assert more.tokens == 100
    dead.give_back(Cost(400, 0))
    assert alive.draw(Cost(401, 0)) is None
    assert alive.draw(Cost(400, 0)) is not None


def test_many_at_once(tmp_path: Path) -> None:
    """Threads that draw until nothing is left draw nearly all of the budget, and not more."""
    drawn: list[int] = []

    def take(name: str) -> None:
        mine = open_draws(tmp_path, name)
        while (more := mine.draw(Cost(3, 0))) is not None:
            drawn.append(more.tokens)

    threads = [threading.Thread(target=take, args=(f"process-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 900 <= sum(drawn) <= 1_000


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    """Nothing is granted while a file cannot be read."""
    mine = open_draws(tmp_path, "mine")
    assert mine.draw(Cost(1, 0)) is not None
    (tmp_path / "runs" / "run" / "budget" / "other").write_text("many")
    with pytest.raises(StoreError, match="other is damaged"):
        mine.draw(Cost(1, 0))
