"""Promise 5: after an error that concerns the whole account, the run stops, keeps what it paid for and says what to do."""

from collections.abc import Callable
from typing import Any

import pytest

IN_FLIGHT = 8


def good(count: int) -> list[dict[str, str]]:
    """Return rows that the service accepts."""
    return [{"id": f"id-{number}", "text": f"text {number}"} for number in range(count)]


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("AuthenticationError", "check the API key in the environment variable that api.api_key_env names"),
        ("AccountOverdueError", "pay the overdue balance of the account"),
        ("InvalidEndpointOrModel.NotFound", "check model.name"),
        ("QuotaExceeded", "raise the quota of the account in the Ark console or wait until it resets"),
    ],
)
def test_stop_in_mid_run(
    make_emulator: Any, make_place: Any, call: Callable[..., Any], figures: Any, code: str, advice: str
) -> None:
    """The run keeps what it paid for, leaves the earlier output unchanged and exits with 4; the next run continues."""
    stopping = make_emulator(stop_after=60, stop_code=code, latency_ms=5)
    place = make_place(stopping.url)
    place.write_rows(good(20))
    assert call(*place.arguments("run")).code == 0
    earlier = {path: path.read_bytes() for path in place.output.rglob("*") if path.is_file()}

    place.write_rows(good(300))
    ended = call(*place.arguments("run", {"limits.requests_in_flight": IN_FLIGHT}))
    assert ended.code == 4
    assert code in ended.err
    assert advice in ended.err
    assert "run the same command again to continue" in ended.err
    assert "40 paid" in ended.out
    stats = stopping.stats
    assert stats["paid"] == 60
    assert stats["refused"] <= IN_FLIGHT
    figures(f"promise 5: {code}: {stats['refused']} sent after it, of at most {IN_FLIGHT} in flight")
    assert {path: path.read_bytes() for path in place.output.rglob("*") if path.is_file()} == earlier
    assert place.leftovers == []

    place.url = make_emulator().url
    note = place.run()
    assert (note["published"], note["owned"], note["requests_sent"]) == (300, 60, 240)
    assert place.read("usage").num_rows == 300
