"""Promise 4: with many failing requests, each row is published with its own vector or fails with the true reason.

With ARKBEAM_PROMISES=all in the environment there are 20,000 rows, otherwise 1,000. `scripts/bench faults` measures the time.
"""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest
from arkbeam.emulator.options import FaultShares

ROWS = 20_000 if os.environ.get("ARKBEAM_PROMISES") == "all" else 1_000
SHARES = FaultShares(
    overload_429=0.10, error_500=0.05, reset_paid=0.03, hang_paid=0.01, truncated=0.01, wrong_length=0.01, nan=0.01
)
REASONS = {"connection_lost", "timeout", "wrong_length", "not_finite", "cut_off"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_faults_of_every_kind(make_emulator: Any, make_place: Any, assert_vectors: Any, figures: Any) -> None:
    """With faults in 22 % of the replies, each row is published with its own vector; `usage/` has each paid request.

    A row fails only if as many of its requests were lost, or answered unusably, as the limits allow.
    """
    emulator = make_emulator(faults=SHARES, seed=3)
    place = make_place(emulator.url)
    place.write_texts(ROWS)
    note = place.run({"limits.failures_allowed": "1%", "limits.requests_in_flight": 64, "api.timeout_text_s": 2.0})
    stats = emulator.stats
    assert note["published"] + note["failed"] == ROWS
    assert note["failed"] <= max(3, ROWS // 2_000)
    assert note["requests_sent"] == stats["received"]
    assert note["requests_paid"] == stats["paid"] == note["published"] + note["unusable"] + note["lost"]
    assert min(note["refused"], note["unusable"], note["lost"], note["retries"] - note["refused"]) > 0
    table, failures = place.read("embeddings"), place.read("failures")
    assert sorted([*table["row"].to_pylist(), *failures["row"].to_pylist()]) == list(range(ROWS))
    assert_vectors(table, lambda row: [("text", f"row number {row['id'].removeprefix('id-')}")])
    codes = Counter(failures["code"].to_pylist())
    assert set(codes) <= REASONS
    outcomes = Counter(place.read("usage")["outcome"].to_pylist())
    assert sum(outcomes.values()) == stats["paid"]
    assert place.leftovers == []
    figures(
        f"promise 4: {ROWS:,} rows, {stats['received']:,} requests, {stats['faulted']:,} faults, {stats['refused']:,} refused: "
        f"{note['published']:,} published, {note['failed']} failed {dict(codes)}, usage {dict(outcomes)}"
    )


def test_an_answer_that_is_lost(make_emulator: Any, make_place: Any) -> None:
    """A client can't know if a lost request was billed, so `usage/` counts it: `usage/` equals the bill or is above it by the lost ones."""
    for name, above in (("reset_paid", 0), ("reset", 1)):
        emulator = make_emulator(faults=FaultShares(**{name: 0.1}), seed=5)
        place = make_place(emulator.url)
        place.settings |= {"store.uri": str(place.folder / name), "output.uri": str(place.folder / f"out-{name}")}
        place.write_texts(60)
        note = place.run({"limits.failures_allowed": 5})
        lost, stats = note["lost"], emulator.stats
        assert lost > 2
        assert note["requests_paid"] == stats["paid"] + lost * above == note["published"] + lost
        usage = pq.read_table(place.folder / f"out-{name}" / "usage")
        assert usage["outcome"].to_pylist().count("lost") == lost
        if note["failed"] == 0:
            assert (note["tokens"] == stats["tokens"]) is (name == "reset_paid")


def test_a_reply_that_is_never_usable(make_emulator: Any, make_place: Any, assert_bill: Any) -> None:
    """A row with only unusable replies is paid three times and fails; the next run tries it again."""
    emulator = make_emulator(faults=FaultShares(nan=1.0))
    place = make_place(emulator.url)
    place.write_texts(2)
    note = place.run()
    assert (note["published"], note["failed"], note["requests_paid"], note["unusable"]) == (0, 2, 6, 6)
    assert set(place.read("usage")["outcome"].to_pylist()) == {"unusable"}
    assert_bill(place, emulator.stats)
    place.url = make_emulator().url
    note = place.run()
    assert (note["published"], note["requests_sent"], note["all_runs"]["requests_paid"]) == (2, 2, 8)


def test_a_poison_row(make_emulator: Any, make_place: Any, call: Callable[..., Any]) -> None:
    """All rows of a rejected request fail. The request is sent again only with --retry-failed."""
    emulator = make_emulator(poison="poison")
    text = "a text with poison in it"
    place = make_place(emulator.url)
    place.write_rows([{"id": "a", "text": "good"}, {"id": "b", "text": text}, {"id": "c", "text": text}])
    assert call(*place.arguments("run")).code == 3
    failures = place.read("failures").to_pylist()
    assert [row["id"] for row in failures] == ["b", "c"]
    assert {row["code"] for row in failures} == {"SensitiveContentDetected"}
    assert [row["original"] for row in failures] == [f'{{"id": "{name}", "text": "{text}"}}' for name in "bc"]
    assert emulator.stats["received"] == 2

    assert call(*place.arguments("run")).code == 3
    assert emulator.stats["received"] == 2
    assert place.read("failures").to_pylist() == failures

    place.url = make_emulator().url
    assert call(*place.arguments("run", {}, "--retry-failed")).code == 0
    assert (place.note["requests_sent"], place.note["published"]) == (1, 3)


def test_a_service_that_is_down(place: Any, call: Callable[..., Any]) -> None:
    """If several consecutive rows fail after all their attempts, the run stops early and exits with 4."""
    place.write_texts(40)
    place.url = "http://127.0.0.1:9/api/v3"
    settings = {"limits.attempts_max": 1, "limits.rows_failed_in_a_row_max": 5, "limits.requests_in_flight": 2}
    place.settings |= {"api.api_key_env": "HOME"}
    ended = call(*place.arguments("run", settings))
    assert ended.code == 4
    assert "rows in a row failed" in ended.err
    assert place.leftovers == []


def test_a_quota_is_kept(make_emulator: Any, make_place: Any) -> None:
    """If the configured quota is that of the server, no request is refused."""
    emulator = make_emulator(rpm=1_200)
    place = make_place(emulator.url)
    place.write_texts(30)
    note = place.run({"quota.rpm": 1_200})
    assert (note["refused"], emulator.stats["refused"], note["published"]) == (0, 0, 30)
    assert note["quota"]["binding"] == "rpm"
    assert 0.5 < note["quota"]["utilisation"] <= 1.12  # 30 requests take 1.4 s, of which the pacer may make up 0.2 s
