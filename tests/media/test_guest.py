"""A good guest on the web: how often each host is asked, what it may ask for, and which hosts may be asked at all."""

import io
import math
import threading
import time
from dataclasses import replace

import pytest
from arkbeam import __version__
from arkbeam.app.config import describe_config, parse_config
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import Failure, Inline, Modality
from arkbeam.media import MediaInfo, MediaOptions, hosts, http, inspect, inspect_many, load_medium
from arkbeam.media.access import Access
from arkbeam.media.hosts import HostPace, backoff_s, read_retry_after
from arkbeam.media.http import TRIES
from arkbeam.media.http_options import FromEnvironment, HttpOptions
from arkbeam.media.weburl import parse_allowed_hosts, parse_url
from PIL import Image

from tests.media.outcomes import code_of
from tests.media.raw import Request, reply, serve

IMAGE = Modality.IMAGE
OPTIONS = MediaOptions(access={"http": Access.INLINE}, allowed_hosts=("127.0.0.1",), http_timeout_s=10)
REFUSED = Failure("media_status", "the server replied 429")


def _picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 99, 199)).save(stream, "PNG")
    return stream.getvalue()


PICTURE = _picture()
GOOD = reply(200, PICTURE, {"ETag": '"1"'})


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        (None, None),
        ("", None),
        ("1", 1.0),
        (" 2.5 ", 2.5),
        ("0", None),
        ("-5", None),
        ("soon", None),
        ("1e3", None),
        ("٣", None),
        ("9" * 400, math.inf),
        ("Sun, 22 Nov 2026 20:00:07 GMT", 7.0),
        ("Sunday, 22-Nov-26 20:00:07 GMT", 7.0),
        ("Sun, 22 Nov 2026 19:00:00 GMT", None),
        ("Sun, 99 Nov 2026 19:00:00 GMT", None),
    ],
)
def test_retry_after_is_read(value: str | None, wait_s: float | None) -> None:
    """Seconds and dates count, negative numbers and other text do not; a date is compared with the server's clock."""
    date = "Sun, 22 Nov 2026 20:00:00 GMT"
    assert read_retry_after(value, date, 0.0) == wait_s
    if wait_s == 7.0:
        assert read_retry_after(value, None, 1_795_377_600.0) == wait_s


def test_waits_grow_and_differ() -> None:
    """Each wait is up to twice as long as the one before, with a random part, and bounded."""
    assert [backoff_s(tries, lambda: 1.0) for tries in (1, 2, 3, 99)] == [0.5, 1.0, 2.0, 30.0]
    assert backoff_s(2, lambda: 0.0) == 0.5


def _fail(pace: HostPace, now: float, *, refused: bool = True, asked_s: float | None = None) -> None:
    pace.fail(now, REFUSED, refused=refused, asked_s=asked_s, random=lambda: 1.0)


def test_a_host_that_refuses_is_asked_less_and_then_more_again() -> None:
    """The limit halves once a pause, not once a refusal, and rises slowly with proper replies, never above the limit."""
    pace = HostPace(8)
    for _ in range(8):
        _fail(pace, 10.0, asked_s=3)
    assert (pace.limit, pace.resumes_at) == (4, 13)
    _fail(pace, 13.0, asked_s=1)
    assert (pace.limit, pace.resumes_at) == (2, 14)
    for _ in range(200):
        pace.succeed()
    assert pace.limit == 8
    for now in range(100):
        _fail(pace, now * 100.0)
    assert pace.limit == 1


def test_single_errors_do_not_pause_a_host() -> None:
    """An error that may concern one URL pauses the host only if all that was sent at one time failed."""
    pace = HostPace(4)
    for _ in range(3):
        _fail(pace, 1.0, refused=False)
    assert pace.resumes_at == 0
    pace.succeed()
    for _ in range(4):
        _fail(pace, 2.0, refused=False)
    assert pace.resumes_at == 2.5


def test_a_host_is_down_after_a_while_without_a_reply_and_is_back_with_one() -> None:
    """Neither many failures in a moment nor few over a long time count; while it is down, one request at a time is sent."""
    pace = HostPace(8)
    for now in (0, 0, 0, 0, 0, 0, 0, 29):
        _fail(pace, now)
    assert not pace.is_down(29.0)
    assert pace.is_down(30.0)
    assert pace.has_room(30.0)
    pace.active = 1
    assert not pace.has_room(30.0)
    pace.succeed()
    assert not pace.is_down(30.0)


class _Limited:
    """Replies to so many requests in a window of time; 429 to all others."""

    def __init__(self, allowed: int, window_s: float, retry_after: str) -> None:
        self._allowed, self._window_s, self._retry_after = allowed, window_s, retry_after
        self._lock, self._window, self._count = threading.Lock(), -1, 0
        self.refused = 0

    def __call__(self, request: Request) -> bytes:
        with self._lock:
            window = int(time.monotonic() / self._window_s)
            self._window, self._count = window, self._count + 1 if window == self._window else 1
            if self._count <= self._allowed:
                return GOOD
            self.refused += 1
        return reply(429, b"", {"Retry-After": self._retry_after})


def test_a_host_with_a_rate_is_waited_for() -> None:
    """Of 80 images of a host that serves 30 a second, all are read, and few requests are refused."""
    server = _Limited(30, 1.0, "1")
    with serve(server) as web:
        looks = inspect_many([(web.url(f"/{number}.png"), IMAGE) for number in range(80)], OPTIONS)
    assert [look for look in looks.values() if isinstance(look, Failure)] == []
    assert 0 < server.refused < 40


def test_a_closed_port_is_no_reason_to_wait() -> None:
    """Rows of a host that accepts no connection fail at once, although they are many."""
    with serve(lambda r: GOOD) as web:
        pass
    start = time.monotonic()
    looks = inspect_many([(web.url(f"/{number}.png"), IMAGE) for number in range(100)], OPTIONS)
    assert {code_of(look) for look in looks.values()} == {"media_unreachable"}
    assert time.monotonic() - start < 5


def test_hosts_that_do_not_reply_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that accepts connections and says nothing costs the time of a few requests, not that of all."""
    monkeypatch.setattr(hosts, "DOWN_S", 0.2)
    end = threading.Event()
    with serve(lambda r: (end.wait(30), GOOD)[1]) as web:
        looks = inspect_many([(web.url(f"/{n}.png"), IMAGE) for n in range(100)], replace(OPTIONS, http_timeout_s=0.3))
        assert {code_of(look) for look in looks.values()} <= {"media_timeout", "media_unreachable"}
        assert len(web.requests) < 30
        end.set()


def test_reading_can_be_interrupted() -> None:
    """What is being read, waits for its turn, or waits as the server asks, ends at once."""
    with serve(lambda r: reply(429, b"", {"Retry-After": "50"})) as web:
        threading.Timer(0.5, http.interrupt).start()
        start = time.monotonic()
        looks = inspect_many([(web.url(f"/{number}.png"), IMAGE) for number in range(40)], OPTIONS)
        assert time.monotonic() - start < 3
        assert {code_of(look) for look in looks.values()} == {"media_unreachable"}
        assert all("interrupted" in str(look) for look in looks.values())


def test_hosts_take_turns() -> None:
    """The images of one host do not keep those of another host waiting, in whichever order the manifest has them."""

    def answer(request: Request) -> bytes:
        time.sleep(0.05)
        return GOOD

    def answer_at_once(request: Request) -> bytes:
        done.append(time.monotonic())
        return GOOD

    done: list[float] = []
    with serve(answer) as slow, serve(answer_at_once) as other:
        uris = [slow.url(f"/{number}.png") for number in range(160)] + [other.url(f"/{n}.png") for n in range(8)]
        start = time.monotonic()
        inspect_many([(uri, IMAGE) for uri in uris], OPTIONS)
        assert max(done) - start < (time.monotonic() - start) / 2


@pytest.mark.usefixtures("hurry")
def test_a_limit_of_requests_at_the_same_time() -> None:
    """A host gets at most `media.http.per_host` requests at once, and gets as many as that."""

    def answer(request: Request) -> bytes:
        time.sleep(0.02)
        return GOOD

    for options, most in ((OPTIONS, 8), (replace(OPTIONS, http=HttpOptions(per_host=2)), 2)):
        with serve(answer) as web:
            looks = inspect_many([(web.url(f"/{number}.png"), IMAGE) for number in range(40)], options)
            assert all(isinstance(look, MediaInfo) for look in looks.values())
            assert web.most_active == most


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(
    "status", [408, 425, 429, 500, 501, 502, 503, 504, 507, 520, 521, 522, 523, 524, 525, 526, 599]
)
def test_what_may_pass_is_tried_again(status: int) -> None:
    """After two such replies the picture is read; if there is no other reply, the row fails after some tries."""
    fails = [1, 2]
    with serve(lambda r: reply(status) if fails and fails.pop() else GOOD) as web:
        assert isinstance(inspect(web.url("/"), IMAGE, OPTIONS), MediaInfo)
        assert len(web.requests) == 3
    with serve(lambda r: reply(status)) as web:
        assert code_of(inspect(web.url("/"), IMAGE, OPTIONS)) == "media_status"
        assert len(web.requests) == TRIES


@pytest.mark.parametrize("status", [400, 401, 403, 405, 418, 451, 204, 304])
def test_what_will_not_pass_is_not_tried_again(status: int) -> None:
    """Another status is final."""
    with serve(lambda r: reply(status)) as web:
        assert code_of(inspect(web.url("/"), IMAGE, OPTIONS)) == "media_status"
        assert len(web.requests) == 1


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("retry_after", ["3600", "9" * 300, "Sun, 22 Nov 2099 20:00:00 GMT"])
def test_a_server_that_asks_for_too_long_is_not_waited_for(retry_after: str) -> None:
    """The row fails at once; the message gives both times and the key."""
    with serve(lambda r: reply(429, b"", {"Retry-After": retry_after})) as web:
        start = time.monotonic()
        outcome = inspect(web.url("/"), IMAGE, replace(OPTIONS, http=HttpOptions(wait_s=5)))
        assert time.monotonic() - start < 2
        assert code_of(outcome) == "media_status"
        assert "media.http.wait_s is 5" in str(outcome)
        assert len(web.requests) == 1


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("retry_after", ["-1", "0", "soon", ""])
def test_a_wait_that_is_none_is_chosen_here(retry_after: str) -> None:
    """A server that refuses for ever, without a usable time to wait, ends the row after a limited number of requests."""
    with serve(lambda r: reply(503, b"", {"Retry-After": retry_after})) as web:
        assert code_of(inspect(web.url("/"), IMAGE, OPTIONS)) == "media_status"
        assert TRIES <= len(web.requests) <= 20


def test_a_host_that_keeps_failing_is_asked_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a host has failed for a while, the other rows fail without a request, with what the host last replied."""
    monkeypatch.setattr(hosts, "BACKOFF_S", 0.05)
    monkeypatch.setattr(hosts, "DOWN_S", 0.5)
    broken = True
    with serve(lambda r: reply(502) if broken else GOOD) as web:
        uris = [(web.url(f"/{number}.png"), IMAGE) for number in range(100)]
        looks = inspect_many(uris, OPTIONS)
        assert {code_of(look) for look in looks.values()} == {"media_status"}
        assert all("502" in str(look) for look in looks.values())
        assert len(web.requests) < 60
        broken = False
        time.sleep(2.0)  # longer than the host rests
        for _ in range(2):  # the first one finds out that the host is back
            assert isinstance(inspect(web.url("/x.png"), IMAGE, OPTIONS), MediaInfo)


@pytest.mark.usefixtures("hurry")
def test_a_few_bad_urls_do_not_harm_the_good_ones_of_a_host() -> None:
    """Rows whose own URL always fails are the only ones to fail."""
    with serve(lambda r: reply(500 if "7" in r.target else 200, PICTURE, {"ETag": '"1"'})) as web:
        looks = inspect_many([(web.url(f"/{number}.png"), IMAGE) for number in range(60)], OPTIONS)
        failed = {uri for (uri, _), look in looks.items() if isinstance(look, Failure)}
        assert failed == {web.url(f"/{number}.png") for number in range(60) if "7" in str(number)}


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    """A secret in the environment."""
    monkeypatch.setenv("SITE_KEY", "s3cr3tVALUE")
    return "s3cr3tVALUE"


def test_headers_by_host(secret: str) -> None:
    """Each host gets its own headers, also after a redirect; by default we name ourselves."""
    options = replace(
        OPTIONS,
        allowed_hosts=("127.0.0.1", "localhost"),
        http=HttpOptions(
            headers={
                "*": {"User-Agent": "ours/1"},
                "LocalHost": {"Referer": "https://site.example/", "X-Api-Key": FromEnvironment("SITE_KEY")},
                "localhost:1": {"Referer": "another"},
            }
        ),
    )
    hop = ""
    with serve(lambda r: reply(302, b"", {"Location": hop}) if r.target == "/1" else GOOD) as web:
        hop = web.url("/2", "localhost")
        assert isinstance(inspect(web.url("/1"), IMAGE, options), MediaInfo)
        first, second = (request.headers for request in web.requests)
        assert (first["user-agent"], first.get("referer"), first.get("x-api-key")) == ("ours/1", None, None)
        assert (second["user-agent"], second["referer"], second["x-api-key"]) == (
            "ours/1",
            "https://site.example/",
            secret,
        )
        assert isinstance(inspect(web.url("/2"), IMAGE, OPTIONS), MediaInfo)
        assert web.requests[-1].headers["user-agent"].startswith(f"arkbeam/{__version__}")


def _parse(media: object) -> MediaOptions:
    needed = {"manifest": {"uris": "a.jsonl"}, "store": {"uri": "s"}, "output": {"uri": "o"}}
    config = parse_config({**needed, "model": {"name": "doubao-embedding-vision-251215"}, "media": media})
    assert "s3cr3tVALUE" not in str(describe_config(config)) + str(config)
    return config.media


def test_headers_in_a_config(secret: str) -> None:
    """The config holds the name of the variable; a variable that is not set is an error that names it and the header."""
    media = {"http": {"headers": {"127.0.0.1": {"Authorization": {"env": "SITE_KEY"}, "Referer": "https://h/"}}}}
    options = _parse(media).http
    assert options.headers_for(parse_url("http://127.1/x")) == {"Authorization": secret, "Referer": "https://h/"}
    missing = replace(OPTIONS, http=HttpOptions(headers={"127.0.0.1": {"Cookie": FromEnvironment("NOT_SET")}}))
    with pytest.raises(ConfigError, match=r"NOT_SET.*Cookie"):
        inspect("http://127.0.0.1:1/a.png", IMAGE, missing)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"h": {"Authorization": "Bearer s3cr3tVALUE"}}, "env: NAME"),
        ({"h": {"cookie": "a=s3cr3tVALUE"}}, "env: NAME"),
        ({"h": {"X-Auth-Token": "s3cr3tVALUE"}}, "env: NAME"),
        ({"*": {"X-Auth-Token": {"env": "SITE_KEY"}}}, "every host"),
        ({"h": {"Range": "bytes=0-1"}}, "can't be set"),
        ({"h": {"Accept-Encoding": "gzip"}}, "can't be set"),
        ({"h": {"A b": "c"}}, "name of a header"),
        ({"h": {"A": "b\r\nC: d"}}, "characters"),
        ({"h": {"A": "图"}}, "characters"),
        ({"https://h": {"A": "b"}}, "scheme"),
        ({"h/x": {"A": "b"}}, "path"),
        ({"h": "x"}, "media.http.headers.h"),
        ({"h": {"a": 5}}, "media.http.headers.h.a"),
    ],
)
def test_impossible_headers(headers: object, words: str) -> None:
    """Each is an error of the config that names the key and shows no secret."""
    with pytest.raises(ConfigError, match=words) as caught:
        _parse({"http": {"headers": headers}})
    assert "media.http.headers" in str(caught.value)
    assert "s3cr3tVALUE" not in str(caught.value)


@pytest.mark.parametrize(
    "http", [{"per_host": 0}, {"per_host": 65}, {"wait_s": -1}, {"wait_s": float("nan")}, {"x": 1}]
)
def test_impossible_limits(http: object) -> None:
    """Each is an error that names the key."""
    with pytest.raises(ConfigError, match=r"media\.http\."):
        _parse({"http": http})


@pytest.mark.parametrize(
    ("entry", "matches", "others"),
    [
        ("Host.Example", ["http://host.example/", "https://HOST.example.:8443/"], ["http://x.host.example/"]),
        ("host.example:81", ["http://host.example:81/"], ["http://host.example/"]),
        ("bücher.example:80", ["http://xn--bcher-kva.example/"], ["https://bücher.example/"]),
        ("10.0.0.1", ["http://10.1/", "http://0xa000001/"], ["http://10.0.0.2/"]),
        ("fd00::1", ["http://[fd00:0::1]:9/"], ["http://[fd00::2]/"]),
        ("[fd00::1]:80", ["http://[fd00::1]/"], ["https://[fd00::1]/"]),
        ("10.0.0.0/8", ["http://10.9.9.9/"], ["http://11.0.0.1/", "http://host.example/"]),
        ("fd00::/8", ["http://[fd12::1]/"], ["http://[fe80::1]/"]),
    ],
)
def test_hosts_that_are_allowed(entry: str, matches: list[str], others: list[str]) -> None:
    """A host, a host with a port, an address in any spelling, and a network."""
    allowed = parse_allowed_hosts((entry,))
    for url, wanted in [*((url, True) for url in matches), *((url, False) for url in others)]:
        parsed = parse_url(url)
        found = allowed.has_host(parsed) or (parsed.address is not None and allowed.has_address(parsed.address))
        assert found is wanted, url
    assert _parse({"allowed_hosts": [entry]}).allowed_hosts == (entry,)


def test_a_network_is_allowed_for_names_too() -> None:
    """A host whose name resolves to an address in an allowed network is read; its neighbours are not."""
    with serve(lambda r: GOOD) as web:
        for network, code in (("127.0.0.0/8", None), ("127.0.0.0/29", None), ("127.0.0.2/32", "media_forbidden")):
            outcome = inspect(web.url("/", "localhost"), IMAGE, replace(OPTIONS, allowed_hosts=(network,)))
            assert (None if isinstance(outcome, MediaInfo) else code_of(outcome)) == code


@pytest.mark.parametrize(
    "entry",
    [
        "",
        " h",
        "h h",
        "http://h",
        "h/x",
        "u@h",
        "*.h",
        "*",
        "h:0",
        "h:65536",
        "h:x",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "a?b",
        "a#b",
        "fe80::1%eth0",
        "[::1",
        "1.2.3.4.5",
        "h\\x",
        "10.0.0.0/8:80",
    ],
)
def test_entries_that_can_not_match_are_errors(entry: str) -> None:
    """An entry that allows nothing would only be noticed when rows fail."""
    with pytest.raises(ConfigError, match=r"media\.allowed_hosts"):
        _parse({"allowed_hosts": [entry]})


@pytest.mark.parametrize("name", ["ETag", "Last-Modified"])
def test_a_version_that_differs_with_each_answer(name: str) -> None:
    """The failure says what to set, and with this setting the picture is sent."""
    count = iter(range(100))
    with serve(lambda r: reply(200, PICTURE, {name: f'"{next(count)}"'})) as web:
        info = inspect(web.url("/"), IMAGE, OPTIONS)
        assert isinstance(info, MediaInfo)
        outcome = load_medium(web.url("/"), IMAGE, info.version, OPTIONS)
        assert code_of(outcome) == "media_changed"
        assert "media.identity: content" in str(outcome)
        content = replace(OPTIONS, identity="content")
        info = inspect(web.url("/"), IMAGE, content)
        assert isinstance(info, MediaInfo)
        assert load_medium(web.url("/"), IMAGE, info.version, content) == Inline("image/png", PICTURE)
