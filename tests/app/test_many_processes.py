"""Concurrent runs of one account share its quota, by marks in the store or through Redis."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from arkbeam.quota.permits import BLOCK_S, LATE_S
from arkbeam.quota.rate import SLACK_S

pytestmark = pytest.mark.slow  # a lease takes three seconds

RPM = 2_400
PER_S = RPM / 60
EMPTY: Mapping[str, Any] = MappingProxyType({})
UNPACED = {"quota.rpm": 10**7}
MARKS = "store/quota/stand-in-default-doubao-embedding-vision"


@pytest.fixture
def server(make_emulator: Any) -> Any:
    """The emulator that all runs of a test use."""
    return make_emulator(latency_ms=20)


@pytest.fixture
def make_run(server: Any, make_place: Any, tmp_path: Path) -> Callable[..., Any]:
    """Makes places with their own manifest and output, and one store for all."""

    def make(name: str, rows: int, settings: Mapping[str, Any] = EMPTY) -> Any:
        place = make_place(server.url)
        place.folder = tmp_path / name
        place.folder.mkdir()
        place.settings = {"quota.rpm": RPM, "quota.headroom": 1.0, "store.uri": str(tmp_path / "store"), **settings}
        place.write_rows([{"text": f"{name} {number}"} for number in range(rows)])
        return place

    return make


@pytest.fixture
def s3_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a store on an S3 server, which the environment configures for all runs; afterwards no mark must remain."""
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir("bucket")
    yield "s3://bucket/store"
    files.invalidate_cache()
    assert files.find("bucket/store/quota") == []
    server.stop()


def most_above(stats: dict[str, Any]) -> float:
    """Return by how much, at most, the requests of consecutive seconds exceed the quota of that time."""
    seconds = {one["second"]: one["received"] for one in stats["requests_by_second"]}
    counts = [seconds.get(second, 0) for second in range(min(seconds), max(seconds) + 1)]
    ends = range(len(counts) + 1)
    return max(sum(counts[low:high]) - PER_S * (high - low) for low in ends for high in ends if low < high)


def rate_of_last(stats: dict[str, Any], span_s: int) -> float:
    """Return the requests per second in the last whole seconds."""
    now = int(time.time())
    received = {one["second"]: one["received"] for one in stats["requests_by_second"]}
    return sum(received.get(second, 0) for second in range(now - span_s, now)) / span_s


def run_two(make_run: Any, start: Any, server: Any, settings: Any, held_s: float) -> None:
    """Start two runs at once; check that they exit with 0 and together keep the quota. `held_s`: permits that they may hold."""
    places = [make_run(name, 180, settings) for name in ("first", "second")]
    runs = [start(*place.arguments("run")) for place in places]
    ended = [run.wait() for run in runs]
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    stats = server.stats
    assert (stats["paid"], stats["paid_distinct"]) == (360, 360)
    # Each process has its slack; 2 requests for those that the server counts in the next or previous second.
    assert most_above(stats) <= PER_S * (2 * SLACK_S + held_s) + 2


def test_two_runs_share_the_quota_by_marks(make_run: Any, start: Any, server: Any, tmp_path: Path) -> None:
    """Together they keep the quota from the first second on, and no mark remains."""
    run_two(make_run, start, server, {}, 0.0)
    assert list((tmp_path / MARKS).iterdir()) == []


def test_two_runs_share_the_quota_on_an_object_store(make_run: Any, start: Any, server: Any, s3_store: str) -> None:
    """They also share it on an object store, although s3fs caches listings."""
    run_two(make_run, start, server, {"store.uri": s3_store}, 0.0)


def test_two_runs_share_the_quota_through_redis(make_run: Any, start: Any, server: Any, make_redis: Any) -> None:
    """They also share it by permits from Redis."""
    redis = make_redis("opens-it-7731")
    settings = {"quota.redis_url": redis.url, "quota.redis_password_env": "ARK_TEST_REDIS"}
    run_two(make_run, lambda *words: start(*words, ARK_TEST_REDIS="opens-it-7731"), server, settings, BLOCK_S + LATE_S)


def test_a_killed_run_leaves_its_share_to_the_other(make_run: Any, start: Any, server: Any, wait: Any) -> None:
    """If one run is killed, the other then uses the whole quota instead of half of it."""
    other, killed = make_run("other", 1_500), make_run("killed", 1_000)
    runs = [start(*place.arguments("run", {"quota.unshared_s_max": 20})) for place in (other, killed)]
    wait(lambda: all((place.folder / "out").exists() for place in (other, killed)))
    wait(lambda: rate_of_last(server.stats, 3) > 0.9 * PER_S)
    wait(
        lambda: sum(1 for _ in (killed.folder.parent / MARKS).glob("*.5")) == 2
    )  # both have renewed their marks five times
    runs[1].process.kill()
    runs[1].process.wait()
    wait(lambda: rate_of_last(server.stats, 2) < 0.7 * PER_S)
    wait(lambda: rate_of_last(server.stats, 2) > 0.9 * PER_S)
    runs[0].process.kill()
    assert most_above(server.stats) <= PER_S * 2 * SLACK_S + 2


@pytest.mark.parametrize("comes_back", [True, False])
def test_marks_that_can_not_be_written(
    make_run: Any, start: Any, server: Any, tmp_path: Path, wait: Any, comes_back: bool
) -> None:
    """A run that can't renew its mark sends nothing after a lease. It continues when it can, and otherwise exits with 4."""
    run = make_run("first", 220)
    started = start(*run.arguments("run", {"quota.unshared_s_max": 30 if comes_back else 2}))
    server.wait_for("received", 20)
    marks, aside = tmp_path / MARKS, tmp_path / "aside"
    marks.rename(aside)
    marks.write_text("not a folder")
    if comes_back:
        wait(lambda: rate_of_last(server.stats, 2) > 0)
        wait(lambda: rate_of_last(server.stats, 2) == 0)
        assert server.stats["received"] < 220
        marks.unlink()
    ended = started.wait()
    assert "cannot renew or list the marks that share the quota" in ended.err
    stats = server.stats
    if comes_back:
        assert (ended.code, stats["paid"]) == (0, 220)
        return
    assert ended.code == 4
    assert "quota_not_shared" in ended.err
    assert "run the same command again" in ended.err
    marks.unlink()
    assert run.run(UNPACED)["owned"] == stats["paid"] < 220


def test_redis_that_dies_ends_the_run(make_run: Any, start: Any, server: Any, make_redis: Any) -> None:
    """Without Redis nothing is sent. After `quota.unshared_s_max` the run exits with 4; paid vectors are kept."""
    redis = make_redis()
    run = make_run("first", 220, {"quota.redis_url": redis.url, "quota.unshared_s_max": 1})
    started = start(*run.arguments("run"))
    server.wait_for("received", 20)
    redis.kill()
    ended = started.wait()
    assert ended.code == 4
    assert "quota.redis_url" in ended.err
    paid = server.stats["paid"]
    assert paid < 220
    note = run.run({"quota.redis_url": None} | UNPACED)
    assert (note["owned"], note["published"]) == (paid, 220)


def test_a_password_that_is_not_there(make_run: Any, call: Any, server: Any) -> None:
    """If the variable with the password is not set, the run exits with 2 and names the variable; nothing is sent."""
    settings = {"quota.redis_url": "redis://127.0.0.1:9", "quota.redis_password_env": "ARK_TEST_REDIS"}
    ended = call(*make_run("first", 3, settings).arguments("run"))
    assert ended.code == 2
    assert "ARK_TEST_REDIS is not set" in ended.err
    assert server.stats["received"] == 0
