"""The parts of `scripts/flink scale`: large manifests that are mostly owned, or only planned, here with few rows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks.runs import Ended
from scripts.engines import scaling


@pytest.fixture(autouse=True)
def in_this_process(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in this process, which is faster than another one."""

    def run_child(command: Sequence[str], _: Path) -> Ended:
        ended = call(*command[command.index("arkbeam") + 1 :])
        assert ended.code == 0, ended.err
        return Ended(1.0, 1.0, 10**6, ended.out)

    monkeypatch.setattr(scaling, "run_child", run_child)


def test_owned_rows_are_published(tmp_path: Path) -> None:
    """Only the new rows are paid for; an output with other rows is not equal."""
    first, output = scaling.run_rows("in_process", tmp_path / "a", 60, 10, None)
    assert first[:3] == ["60", "10", "-"]
    assert scaling.run_rows("in_process", tmp_path / "b", 60, 10, output)[0][:3] == ["60", "10", "yes"]
    assert scaling.run_rows("in_process", tmp_path / "c", 59, 10, output)[0][:3] == ["59", "10", "no"]


def test_rows_are_planned(tmp_path: Path) -> None:
    """With an empty store every row is to be sent."""
    assert scaling.plan_rows("in_process", tmp_path, 60)[:2] == ["60", "60"]
