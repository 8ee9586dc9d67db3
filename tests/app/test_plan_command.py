"""`plan` prints what a run would do, and changes nothing."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from arkbeam.quota.options import RateLimits
from arkbeam.stages.plan import estimate

ROWS = [
    {"id": "a", "text": "one"},
    {"id": "b", "text": "two"},
    {"id": "c", "text": "one"},
    "broken",
    {"id": "d", "text": "three three three"},
]


def list_files(folder: Path) -> dict[Path, bytes]:
    """Return all files below a folder with their content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_before_and_after_a_run(place: Any, emulator: Any) -> None:
    """The plan's counts are those of the next run; after it everything is owned. A plan sends nothing and writes nothing."""
    place.write_rows(ROWS)
    totals = place.plan()
    assert (totals.rows, totals.unreadable, totals.distinct, totals.duplicates) == (4, 1, 3, 1)
    assert (totals.owned, totals.to_buy) == (0, 3)
    assert emulator.stats["received"] == 0
    assert list_files(place.store) == {}
    assert not place.output.exists()

    note = place.run()
    assert note["requests_sent"] == totals.to_buy
    assert totals.tokens == pytest.approx(note["tokens"]["total"], rel=0.5)
    before = list_files(place.folder)
    totals = place.plan()
    assert (totals.rows, totals.owned, totals.to_buy, totals.tokens) == (4, 4, 0, 0)
    assert emulator.stats["received"] == 3
    assert list_files(place.folder) == before
    assert place.leftovers == []


def test_refused_before(make_emulator: Any, make_place: Any) -> None:
    """A rejected request is not to be bought, except with `retry_failed`."""
    place = make_place(make_emulator(poison="three").url)
    place.write_rows(ROWS)
    place.run({"limits.failures_allowed": 2})
    for retry_failed, expected in ((False, (1, 0)), (True, (0, 1))):
        totals = place.plan(retry_failed=retry_failed)
        assert (totals.rejected, totals.to_buy) == expected


@pytest.mark.parametrize(("rpm", "tpm", "binding"), [(60, 10_000_000, "rpm"), (1_000_000, 600, "tpm")])
def test_the_table(place: Any, emulator: Any, call: Callable[..., Any], rpm: int, tpm: int, binding: str) -> None:
    """The command prints counts, tokens, cost, the time at the quota and the binding limit, and exits with 0."""
    place.write_rows([{"text": f"this is text number {number}"} for number in range(120)])
    settings = {"quota.rpm": rpm, "quota.tpm": tpm, "quota.headroom": 0.5}
    ended = call(*place.arguments("plan", settings))
    assert ended.code == 0
    totals = place.plan(settings)
    expected = estimate(totals, place.prepare().spec.model.capabilities, RateLimits(rpm, tpm), headroom=0.5)
    assert expected.minutes == max(120 / (rpm * 0.5), totals.tokens / (tpm * 0.5))
    lines = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in ended.out.splitlines() if "│" in line}
    assert (lines["rows"], lines["distinct"], lines["to send"]) == ("120", "120", "120 requests")
    assert f"{totals.tokens:,}" in lines["tokens"]
    assert f"{expected.cost_cny:.4f} CNY" in lines["cost"]
    assert lines["binding limit"] == binding == expected.binding
    assert lines["time"].startswith("at least ")
    assert emulator.stats["received"] == 0


def test_no_server_is_needed(place: Any, call: Callable[..., Any]) -> None:
    """A plan for the built-in emulator does not start it, and a plan for the real service needs no key."""
    place.write_rows(ROWS)
    for base_url in ("emulator", "https://ark.example.invalid/api/v3"):
        assert call(*place.arguments("plan", {"api.base_url": base_url})).code == 0


def test_vendors_limits_are_the_default(place: Any) -> None:
    """Without `quota` in the config, the limits of the model are used."""
    place.write_rows(ROWS)
    spec = place.prepare({"quota": {}}).spec
    assert spec.rate_limits == (spec.model.capabilities.rpm, spec.model.capabilities.tpm)


def test_what_a_killed_plan_leaves(place: Any, start: Callable[..., Any]) -> None:
    """The next run of the output removes the staged rows of a plan that was killed."""
    place.write_rows(ROWS)
    ended = start(*place.arguments("plan"), ARKBEAM_FAULTS="plan.bucket:kill:1").wait()
    assert ended.code == -signal.SIGKILL
    assert any("-plan/rows/" in str(path) for path in place.store.rglob("*.parquet"))
    place.run()
    assert place.leftovers == []
