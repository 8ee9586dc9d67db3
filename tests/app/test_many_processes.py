"""Several runs at once on one account: they share its quota, by marks in the store or through Redis."""

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
    """The service that all runs of a test share."""
    return make_emulator(latency_ms=20)


@pytest.fixture
def make_run(server: Any, make_place: Any, tmp_path: Path) -> Callable[..., Any]:
    """Makes places with manifests and outputs of their own; the store they have in common."""

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
    """A store on a server that speaks S3, which runs find through the environment."""
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
    """By how much the requests of any row of seconds exceed what the quota allows in that time."""
    seconds = {one["second"]: one["received"] for one in stats["requests_by_second"]}
    counts = [seconds.get(second, 0) for second in range(min(seconds), max(seconds) + 1)]
    ends = range(len(counts) + 1)
    return max(sum(counts[low:high]) - PER_S * (high - low) for low in ends for high in ends if low < high)


def rate_of_last(stats: dict[str, Any], span_s: int) -> float:
    """Requests a second in the last whole seconds."""
    now = int(time.time())
    received = {one["second"]: one["received"] for one in stats["requests_by_second"]}
    return sum(received.get(second, 0) for second in range(now - span_s, now)) / span_s


def run_two(make_run: Any, start: Any, server: Any, settings: Any, held_s: float) -> None:
    """Let two runs send at the same time, and check what they did together."""
    places = [make_run(name, 180, settings) for name in ("first", "second")]
    runs = [start(*place.arguments("run")) for place in places]
    ended = [run.wait() for run in runs]
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    stats = server.stats
    assert (stats["paid"], stats["paid_distinct"]) == (360, 360)
    # A second is the server's own and may hold a little of its neighbours; each process has its slack.
    assert most_above(stats) <= PER_S * (2 * SLACK_S + held_s) + 2


def test_two_runs_share_the_quota_by_marks(make_run: Any, start: Any, server: Any, tmp_path: Path) -> None:
    """Together they keep to the quota from the start on, and leave no mark behind."""
    run_two(make_run, start, server, {}, 0.0)
    assert list((tmp_path / MARKS).iterdir()) == []


def test_two_runs_share_the_quota_on_an_object_store(make_run: Any, start: Any, server: Any, s3_store: str) -> None:
    """The same where listings are cached by the client, as s3fs does."""
    run_two(make_run, start, server, {"store.uri": s3_store}, 0.0)


def test_two_runs_share_the_quota_through_redis(make_run: Any, start: Any, server: Any, make_redis: Any) -> None:
    """The same by permits; the stores may differ then."""
    redis = make_redis("opens-it-7731")
    settings = {"quota.redis_url": redis.url, "quota.redis_password_env": "ARK_TEST_REDIS"}
    run_two(make_run, lambda *words: start(*words, ARK_TEST_REDIS="opens-it-7731"), server, settings, BLOCK_S + LATE_S)


def test_a_killed_run_leaves_its_share_to_the_other(make_run: Any, start: Any, server: Any, wait: Any) -> None:
    """After `kill -9` of one, the other gets from half of the quota to all of it; the killed one may come back at once."""
    other, killed = make_run("other", 1_500), make_run("killed", 1_000)
    runs = [start(*place.arguments("run", {"quota.unshared_s_max": 20})) for place in (other, killed)]
    wait(lambda: all((place.folder / "out").exists() for place in (other, killed)))
    wait(lambda: rate_of_last(server.stats, 3) > 0.9 * PER_S)
    wait(lambda: sum(1 for _ in (killed.folder.parent / MARKS).glob("*.5")) == 2)  # both have renewed for seconds
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
    """A run that can't renew its mark sends nothing after a lease; it goes on when it can, and else ends with 4."""
    run = make_run("first", 220)
    started = start(*run.arguments("run", {"quota.unshared_s_max": 30 if comes_back else 2}))
    server.wait_for("received", 20)
    marks, aside = tmp_path / MARKS, tmp_path / "aside"
    marks.rename(aside)
    marks.write_text("no folder")
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
    """Nothing is sent without it, and after `quota.unshared_s_max` the run ends with 4; what was paid is kept."""
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
    """It ends with 2 and names the variable, before anything is read."""
    settings = {"quota.redis_url": "redis://127.0.0.1:9", "quota.redis_password_env": "ARK_TEST_REDIS"}
    ended = call(*make_run("first", 3, settings).arguments("run"))
    assert ended.code == 2
    assert "ARK_TEST_REDIS is not set" in ended.err
    assert server.stats["received"] == 0
