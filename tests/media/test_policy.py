"""How media get to the service: each scheme, modality and rule, the accepted extensions, and which addresses are public."""

import ipaddress
import itertools
import pickle

import pytest
from arkbeam.app.config import Config, describe_config, parse_config
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import Failure, Modality
from arkbeam.media import MediaInfo, MediaOptions, inspect, load_medium
from arkbeam.media.access import Access, find_access
from arkbeam.media.options import SIGN_LIFETIME_S_MAX, SIGN_LIFETIME_S_MIN
from arkbeam.media.uris import extension_of, is_public
from arkbeam.media.weburl import parse_url
from hypothesis import given
from hypothesis import strategies as st

from tests.media.outcomes import code_of

IMAGE, VIDEO = Modality.IMAGE, Modality.VIDEO
PASS, INLINE, SIGN = Access.PASS, Access.INLINE, Access.SIGN
SMALLEST = {
    "manifest": {"uris": "rows.jsonl"},
    "model": {"name": "doubao-embedding-vision-251215"},
    "store": {"uri": "store"},
    "output": {"uri": "out"},
}
# The default first, then the other possible accesses.
POSSIBLE = {
    "http": (PASS, INLINE),
    "https": (PASS, INLINE),
    "file": (INLINE,),
    "local": (INLINE,),
    "memory": (INLINE,),
    "hdfs": (INLINE,),
    "oss": (INLINE,),
    "tos": (SIGN, INLINE),
    "s3": (INLINE, SIGN),
    "s3a": (INLINE, SIGN),
    "gs": (INLINE, SIGN),
    "gcs": (INLINE, SIGN),
    "az": (INLINE, SIGN),
    "abfs": (INLINE, SIGN),
    "abfss": (INLINE, SIGN),
}


def _parse(access: object, **further: object) -> Config:
    return parse_config({**SMALLEST, "media": {"access": access, **further}})


def test_every_scheme_that_a_manifest_may_name_is_in_this_table() -> None:
    """A new scheme must be added here, so that its access is decided on purpose."""
    assert set(MediaOptions().schemes) | {"http", "https", "file", "local"} == set(POSSIBLE)


@pytest.mark.parametrize(("scheme", "modality", "access"), list(itertools.product(POSSIBLE, (IMAGE, VIDEO), Access)))
def test_each_scheme_modality_and_access(scheme: str, modality: Modality, access: Access) -> None:
    """A possible access is used, for one modality or for both; an impossible one is an error that names the possible ones."""
    uri, default = f"{scheme}://host/a.mp4", POSSIBLE[scheme][0]
    other = VIDEO if modality is IMAGE else IMAGE
    for wish in ({scheme: access.value}, {scheme: {modality.value: access.value}}):
        if access not in POSSIBLE[scheme]:
            with pytest.raises(ConfigError, match=rf"media\.access\.{scheme}.*{access.value}.*{default.value}"):
                _parse(wish)
            continue
        options = _parse(wish).media
        assert find_access(uri, modality, options.access) is access
        assert find_access(uri.upper(), modality, options.access) is access
        assert find_access(uri, other, options.access) is (access if wish[scheme] == access.value else default)


@pytest.mark.parametrize(("scheme", "modality"), list(itertools.product(POSSIBLE, (IMAGE, VIDEO))))
def test_defaults(scheme: str, modality: Modality) -> None:
    """Without rules: the default of each scheme; a path counts as a file; a data URI is passed on whatever the rules are."""
    assert find_access(f"{scheme}://host/a.mp4", modality, MediaOptions().access) is POSSIBLE[scheme][0]
    assert find_access("/a/b.mp4", modality, MediaOptions().access) is INLINE
    assert find_access("data:image/png;base64,AA", modality, {"https": INLINE}) is PASS


def test_a_rule_holds_for_all_names_of_a_storage() -> None:
    """A rule applies to the other names of the same storage, unless they have rules of their own."""
    options = _parse({"s3": "sign", "az": {"video": "sign"}, "abfs": "inline"}).media
    assert find_access("s3a://b/k", IMAGE, options.access) is SIGN
    assert find_access("abfss://b/k", VIDEO, options.access) is SIGN
    assert find_access("abfss://b/k", IMAGE, options.access) is INLINE
    assert find_access("abfs://b/k", VIDEO, options.access) is INLINE
    assert find_access("gs://b/k", VIDEO, options.access) is INLINE
    assert find_access("http://b/k", VIDEO, _parse({"https": "inline"}).media.access) is PASS


@pytest.mark.parametrize(
    ("access", "message"),
    [
        ({"ftp": "inline"}, r"media\.access\.ftp.*media\.schemes"),
        ({"data": "inline"}, r"media\.access\.data"),
        ({"HTTPS": "inline"}, r"media\.access\.HTTPS"),
        ({"s3": "presign"}, r"media\.access\.s3: .*'inline'.*'presign'"),
        ({"s3": {"audio": "inline"}}, r"media\.access\.s3\.audio: .*'image' or 'video'"),
        ({"s3": {"text": "inline"}}, r"media\.access\.s3\.text"),
        ({"s3": {"image": "fetch"}}, r"media\.access\.s3\.image: .*'fetch'"),
        ({"s3": ["inline"]}, r"media\.access\.s3"),
        ({"s3": None}, r"media\.access\.s3"),
        ("inline", r"media\.access: "),
    ],
)
def test_wishes_that_are_none(access: object, message: str) -> None:
    """Each error names its key, in one line."""
    with pytest.raises(ConfigError, match=message) as caught:
        _parse(access)
    assert "\n" not in str(caught.value)


def test_the_form_in_a_file_and_on_the_command_line() -> None:
    """Both forms can be mixed, `--set` overrides, `run.json` shows the result, and the options can be pickled for workers."""
    options = _parse({"https": "inline", "s3": {"image": "inline", "video": "sign"}}).media
    assert (find_access("s3://b/k", VIDEO, options.access), find_access("https://b/k", VIDEO, options.access)) == (
        SIGN,
        INLINE,
    )
    config = parse_config(SMALLEST, ["media.access.s3.video=sign", "media.access.https=inline"])
    assert config.media.access == {"s3": {"video": SIGN}, "https": INLINE}
    assert describe_config(config)["media"]["access"] == {"s3": {"video": "sign"}, "https": "inline"}
    assert pickle.loads(pickle.dumps(config.media)) == config.media


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("sign_lifetime_s", [SIGN_LIFETIME_S_MIN, SIGN_LIFETIME_S_MAX], [0, SIGN_LIFETIME_S_MIN - 1, 604_801]),
        ("http_timeout_s", [0.1, 300], [0, -1, float("nan")]),
    ],
)
def test_bounds_of_times(key: str, good: list[float], bad: list[float]) -> None:
    """A signed URL is valid for one hour to seven days; the time for http must be positive."""
    for value in good:
        assert getattr(_parse({}, **{key: value}).media, key) == value
    for value in bad:
        with pytest.raises(ConfigError, match=key):
            _parse({}, **{key: value})


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://h/a.mp4", None),
        ("https://h/a.avi?x=a.WMV", None),
        ("https://h/a.mov#t=1.5", None),
        ("https://h/watch?v=a.MP4", None),
        ("https://h/clip", None),
        ("https://h/v1.2", None),
        ("https://h/dir.webm/clip", None),
        ("https://h.webm", None),
        ("https://h/a.MP4", "media_extension"),
        ("https://h/a.Mov", "media_extension"),
        ("https://h/a.webm", "media_extension"),
        ("https://h/a.mkv?x=.mp4", "media_extension"),
        ("https://h/a%2EMP4", "media_extension"),
        ("https://h/a.3gp", "media_extension"),
    ],
)
def test_the_name_of_a_video_that_the_service_fetches(url: str, code: str | None) -> None:
    """`.mp4`, `.avi` and `.mov` in lower case, or no extension. For images and inlined media the name does not matter."""
    outcome = inspect(url, VIDEO, MediaOptions())
    assert (None if isinstance(outcome, MediaInfo) else code_of(outcome)) == code
    if isinstance(outcome, Failure):
        assert f".{extension_of(url)};" in outcome.message
        assert ".mp4, .avi, .mov" in outcome.message
        assert "media.access" in outcome.message
    assert inspect(url, IMAGE, MediaOptions()) == MediaInfo()


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("example.com", None),
        ("8.8.8.8", None),
        ("[2606:4700::1111]", None),
        ("127.0.0.1:8080", None),  # a stand-in for the service can fetch there
        ("10.0.0.1", "media_forbidden"),
        ("user:pw@169.254.169.254:80", "media_forbidden"),
        ("2852039166", "media_forbidden"),
        ("0xa9fea9fe", "media_forbidden"),
        ("[fd00::1]", "media_forbidden"),
        ("[::ffff:10.0.0.1]", "media_forbidden"),
        ("169.254.169.254.", "media_forbidden"),
        ("169.254.169.254.:80", "media_forbidden"),
        ("\uff11\uff16\uff19.254.169.254", "media_forbidden"),
        ("169\u3002254\u3002169\u3002254", "media_forbidden"),
        ("\u2460\u2465\u2468.254.169.254", "media_forbidden"),
        ("169%2e254%2E169.254", "media_forbidden"),
        ("%31%36%39.254.169.254", "media_forbidden"),
        ("0251.0376.0251.0376", "media_forbidden"),
        ("0xA9.254.43518", "media_forbidden"),
        ("169.254.43518", "media_forbidden"),
        ("10.1", "media_forbidden"),
        ("0", "media_forbidden"),
        ("[::ffff:a9fe:a9fe]", "media_forbidden"),
        ("[::169.254.169.254]", "media_forbidden"),
        ("[::ffff:0:169.254.169.254]", "media_forbidden"),
        ("[64:ff9b::169.254.169.254]", "media_forbidden"),
        ("[2002:a9fe:a9fe::]", "media_forbidden"),
        ("[FD00::1]", "media_forbidden"),
        ("a@b@10.0.0.1", "media_forbidden"),
        ("10.0.0.1#@example.com", "media_forbidden"),
        ("10.0.0.1?@example.com", "media_forbidden"),
        ("169.254.169.254\\@example.com", "media_bad_uri"),
        ("example.com\\@169.254.169.254", "media_bad_uri"),
        ("\\example.com", "media_bad_uri"),
        ("[fe80::1%25eth0]", "media_bad_uri"),
        ("[fe80::1%eth0]", "media_bad_uri"),
        ("1.2.3.4.5", "media_bad_uri"),
        ("256.0.0.1", "media_bad_uri"),
        ("example.com:99999", "media_bad_uri"),
        ("example%00.com", "media_bad_uri"),
        ("a|b.example", "media_bad_uri"),
        ("b\u00fccher.example", None),
        ("EXAMPLE.com.", None),
        ("a_b.example", None),
        ("user:pw@example.com", None),
        ("10.0.0.1.example.com", None),
        ("127.1:80", None),
        ("[::1]:80", None),
        ("[fd00::1", "media_bad_uri"),
    ],
)
def test_addresses_that_the_service_can_not_reach_are_not_passed_on(host: str, code: str | None) -> None:
    """The vendor's servers can't fetch a URL with a private address. Names are resolved by the service, so they are passed on."""
    outcome = inspect(f"http://{host}/a.png", IMAGE, MediaOptions())
    assert (None if isinstance(outcome, MediaInfo) else code_of(outcome)) == code
    if code == "media_forbidden":
        allowed = MediaOptions(allowed_hosts=("10.0.0.1", "169.254.169.254", "2852039166", "0xa9fea9fe", "fd00::1"))
        if host in ("10.0.0.1", "2852039166", "0xa9fea9fe", "169.254.169.254.", "169.254.43518", "10.1", "[fd00::1]"):
            assert inspect(f"http://{host}/a.png", IMAGE, allowed) == MediaInfo()


def test_what_passes_is_sent_as_it_is_spelt() -> None:
    """A URL that is passed on is sent without any change."""
    url = "HTTPS://Host.Example:443/a%20b.png?X-Amz-Signature=ab%3D&b=+#f"
    assert load_medium(url, IMAGE, None, MediaOptions()) == url


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("100.100.100.200", False),
        ("168.63.129.16", False),
        ("192.0.0.192", False),
        ("0.0.0.0", False),
        ("255.255.255.255", False),
        ("224.0.1.1", False),
        ("240.0.0.1", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("::ffff:169.254.169.254", False),
        ("::127.0.0.1", False),
        ("2002:a9fe:a9fe::1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2130706433", False),
        ("", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    """Special addresses of both versions, those inside IPv6 addresses, and text that is not an address are not public."""
    assert is_public(address) is public


@given(st.ip_addresses(v=4), st.sampled_from(["{0}", "{1}", "0x{1:x}", "[::ffff:{0}]", "{0}."]))
def test_an_address_is_the_same_however_it_is_written(address: ipaddress.IPv4Address, form: str) -> None:
    """Dotted, as one number, in hexadecimal, inside IPv6: a private address stays private."""
    literal = parse_url(f"http://{form.format(address, int(address))}/").address
    assert literal is not None
    assert is_public(literal) == is_public(str(address))


@given(st.text(max_size=40))
def test_hostile_hosts_raise_nothing(text: str) -> None:
    """No text raises an exception when it is parsed for an extension; any URL gives MediaInfo or a failure."""
    assert isinstance(extension_of(text), str)
    for uri in (f"http://{text}", f"https://h/{text}"):
        assert isinstance(inspect(uri, VIDEO, MediaOptions()), MediaInfo | Failure)
