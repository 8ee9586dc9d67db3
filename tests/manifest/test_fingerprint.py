"""Fingerprints: pinned, injective, and independent of what does not change the vector."""

from urllib.parse import quote

import pytest
from arkbeam.base.records import Modality, Part, Request, ServiceKind, VideoSampling
from arkbeam.manifest.fingerprint import Fingerprinter, strip_signature
from arkbeam.media.identity import content_version, storage_version
from hypothesis import given
from hypothesis import strategies as st

COS = (
    "q-sign-algorithm=sha1&q-ak=AKID&q-sign-time=1;2&q-key-time=1;2&q-header-list=host&q-url-param-list=&q-signature=0a"
)
TEXT, IMAGE, VIDEO = Modality.TEXT, Modality.IMAGE, Modality.VIDEO
ARK = Fingerprinter(ServiceKind.ARK, "doubao-embedding-vision-251215", 2048)
PLAIN = Request((Part(TEXT, "天很蓝，海很深"),))
MULTI = Fingerprinter(ServiceKind.ARK, "doubao-embedding-vision-251215", 2048, multi=True)
SAMPLED = Request(
    (
        Part(VIDEO, "https://a.example/v.mp4", VideoSampling(0.5, 20_480, 64, 256, 8)),
        Part(VIDEO, "/d/v.mp4", VideoSampling(min_frames=5)),
    )
)
FULL = Request(
    (
        Part(TEXT, "blue"),
        Part(IMAGE, "https://a.example/i.png?id=1"),
        Part(IMAGE, "/d/a.png"),
        Part(VIDEO, "s3://b/v.mp4"),
    ),
    "Instruction:Compress the text and image into one word.\nQuery:",
)


@pytest.mark.parametrize(
    ("fingerprinter", "request_", "versions", "golden"),
    [
        (ARK, PLAIN, (None,), "a5f8412b7d2234adafa76e31f9295be8"),
        (ARK, Request(PLAIN.parts, sparse=True), (None,), "dc9de4dbbfbd31abd06a11a4f7100f08"),
        (ARK, Request(PLAIN.parts, ""), (None,), "aa60a70e650523218c9cc37448cf0771"),
        (ARK, FULL, (None, None, "12-34", "etag"), "e614ab7e1501cbb9e0cd037d4964d917"),
        (
            Fingerprinter(ServiceKind.STAND_IN, "doubao-embedding-vision-251215", 2048),
            PLAIN,
            (None,),
            "faebe87716ae6dad4591b85c776a1db2",
        ),
        (
            Fingerprinter(ServiceKind.ARK, "doubao-embedding-vision-251215", None),
            PLAIN,
            (None,),
            "a1bd6b23d0dc0d621a214cec03773c51",
        ),
        (Fingerprinter(ServiceKind.ARK, "ep-1", 1024), PLAIN, (None,), "01f25c8773889d4746bcd6ad0425fe60"),
        (MULTI, PLAIN, (None,), "10f5e6aefcd6f51a4ba0c19a858da473"),
        (ARK, SAMPLED, (None, "12-34"), "dfb52389a39733081ed3bda318d39d8b"),
    ],
)
def test_fingerprints_are_pinned(
    fingerprinter: Fingerprinter, request_: Request, versions: tuple[str | None, ...], golden: str
) -> None:
    """If these bytes change, every vector of every store is bought again."""
    assert fingerprinter.of_request(request_, versions).hex() == golden


def test_what_is_made_of_an_image_is_pinned() -> None:
    """A changed image has another fingerprint, and so has each different change; without a change the fingerprint stays."""
    versions = (None, None, "12-34", "etag")
    fit = (None, None, "1 1014x1014 image/jpeg", None)
    names = {
        ARK.of_request(FULL, versions, fits).hex()
        for fits in (
            (),
            (None,) * 4,
            fit,
            (None, "1 1014x1014 image/jpeg", None, None),
            (None, None, "1 64x48 image/png", None),
        )
    }
    assert len(names) == 4
    assert ARK.of_request(FULL, versions, (None,) * 4).hex() == "e614ab7e1501cbb9e0cd037d4964d917"
    assert ARK.of_request(FULL, versions, fit).hex() == "7a3b949d1809f28e2cc1cdde82f2ebba"


_strings = st.text(st.characters(codec="utf-8"), max_size=8)
_samplings = st.builds(
    VideoSampling, fps=st.none() | st.floats(0.2, 5), min_frames=st.none() | st.integers(5, 16)
).filter(VideoSampling.set_fields)
_parts = st.tuples(st.builds(Part, st.sampled_from(Modality), _strings, st.none() | _samplings), st.none() | _strings)
_worlds = st.tuples(
    st.sampled_from(ServiceKind),
    _strings,
    st.none() | st.integers(0, 99),
    st.lists(_parts, min_size=1, max_size=3),
    st.none() | _strings,
    st.booleans(),
    st.booleans(),
)


World = tuple[ServiceKind, str, int | None, list[tuple[Part, str | None]], str | None, bool, bool]


def _identify(world: World) -> bytes:
    service, model, dimensions, parts, instructions, sparse, multi = world
    request = Request(tuple(part for part, _ in parts), instructions, sparse)
    return Fingerprinter(service, model, dimensions, multi).of_request(request, [version for _, version in parts])


@given(_worlds, _worlds)
def test_equal_fingerprints_mean_equal_requests(left: World, right: World) -> None:
    """Two requests have the same fingerprint exactly if everything that is sent is equal."""
    assert (_identify(left) == _identify(right)) == (left == right)


@given(st.lists(_strings, min_size=1, max_size=3))
def test_where_one_part_ends_matters(texts: list[str]) -> None:
    """The same characters split into different parts are a different request."""
    world: World = (ServiceKind.ARK, "m", None, [(Part(TEXT, text), None) for text in texts], None, False, False)
    joined: World = (ServiceKind.ARK, "m", None, [(Part(TEXT, "".join(texts)), None)], None, False, False)
    assert (_identify(world) == _identify(joined)) == (len(texts) == 1)


@given(st.lists(st.tuples(_strings, st.none() | _strings, st.booleans()), max_size=6))
def test_the_short_cut_for_texts_gives_the_same(rows: list[tuple[str, str | None, bool]]) -> None:
    """`of_text` agrees with `of_request`, whatever was hashed before."""
    fingerprinter = Fingerprinter(ServiceKind.ARK, "m", 1024)
    for text, instructions, sparse in rows:
        request = Request((Part(TEXT, text),), instructions, sparse)
        assert fingerprinter.of_text(text, instructions, sparse) == fingerprinter.of_request(request, [None])


@pytest.mark.parametrize(
    ("signed", "bare"),
    [
        ("https://h/a.png?X-Amz-Algorithm=A&X-Amz-Credential=c&X-Amz-Date=d&X-Amz-Expires=9", "https://h/a.png"),
        ("https://h/a.png?X-Amz-SignedHeaders=host&X-Amz-Signature=s&X-Amz-Security-Token=t", "https://h/a.png"),
        ("https://h/a.png?id=1&X-Tos-Signature=s&X-Tos-Date=d", "https://h/a.png?id=1"),
        ("https://h/a.png?X-Goog-Signature=s&id=1#x", "https://h/a.png?id=1#x"),
        ("https://h/a.png?AWSAccessKeyId=k&Expires=1&Signature=s", "https://h/a.png"),
        ("HTTPS://h/a.png?OSSAccessKeyId=k&Expires=1&Signature=s&security-token=t", "HTTPS://h/a.png"),
        ("https://h/a.png?GoogleAccessId=k&Expires=1&Signature=s", "https://h/a.png"),
        ("https://h/a.png?x-oss-signature=s&x-oss-expires=3&x-oss-process=image%2Fresize", "https://h/a.png?x-oss-process=image%2Fresize"),
        ("https://h/a.png?Policy=p&Signature=s&Key-Pair-Id=k&w=1", "https://h/a.png?w=1"),
        ("https://h/a.png?w=1&x-expires=1700000000&x-signature=ab%3D", "https://h/a.png?w=1"),
        ("https://h/a.png?auth_key=1700000000-0-0-0123456789abcdef0123456789abcdef", "https://h/a.png"),
        (f"https://h/a.png?imageMogr2/thumbnail/9x&{COS}", "https://h/a.png?imageMogr2/thumbnail/9x"),
        (f"https://h/a.png?sign={quote(COS)}&x-cos-security-token=t&id=1", "https://h/a.png?id=1"),
        ("https://h/a.png?sv=2&sp=r&se=3&sr=b&sig=abc&id=1", "https://h/a.png?id=1"),
    ],
)  # fmt: skip
def test_signatures_are_no_part_of_a_picture(signed: str, bare: str) -> None:
    """A URL with a new signature points at the same picture."""
    assert strip_signature(signed) == bare
    first, second = (ARK.of_request(Request((Part(IMAGE, url),)), [None]) for url in (signed, bare))
    assert first == second


@pytest.mark.parametrize(
    "url",
    [
        "https://h/a.png?id=2",
        "https://h/a.png?",
        "https://h/a.png?x-tos-process=image/resize,w_100",
        "https://h/a.png?x-oss-process=image/resize",
        "https://h/a.png?versionId=3",
        "https://h/a.png?sp=1&st=2",
        "https://h/a.png?expires=1",
        "https://h/a.png?Policy=p",
        "https://h/a.png?x-expires=1700000000",
        "https://h/a.png?x-expires=large&x-signature=s",
        "https://h/a.png?x-expires=1700000000&x-signature=",
        "https://h/a.png?auth_key=17",
        "https://h/a.png?auth_key=1700000000-0-0-0123456789abcdef0123456789abcdef&auth_key=17",
        "https://h/a.png?sign=1&key=2&token=3",
        "https://h/a.png?q-sign-time=1&q-ak=2",
        "https://h/a.png?q-url-param-list=&q-sign-algorithm=sha1",
        "https://h/a.png#?Signature=1",
        "https://h/a?b=http://x/?Signature=1",
        "/data/a.png?Signature=1",
        "data:image/png;base64,AA?Signature=1",
    ],
)
def test_all_else_in_a_url_is_part_of_it(url: str) -> None:
    """Other parameters may name another picture, above all those that process a picture."""
    assert strip_signature(url) == url


def test_a_site_names_its_own_parameters() -> None:
    """`media.url_ignore_params` leaves out further parameters, by their exact names; all else stays."""
    url = "https://h/a.png?st=a&id=1&St=b&hash=c"
    assert strip_signature(url, ("st", "hash")) == "https://h/a.png?id=1&St=b"
    ours = Fingerprinter(ServiceKind.ARK, "doubao-embedding-vision-251215", 2048, ignored=("st",))
    urls = ("https://h/a.png?st=a", "https://h/a.png?st=b", "https://h/a.png")
    assert len({ours.of_request(Request((Part(IMAGE, url),)), [None]) for url in urls}) == 1
    assert len({ARK.of_request(Request((Part(IMAGE, url),)), [None]) for url in urls}) == 3


def test_a_text_that_looks_like_a_signed_url_is_text() -> None:
    """Signatures are removed from media only."""
    signed, bare = (ARK.of_text(f"https://h/a{query}", None, False) for query in ("?Signature=1", ""))
    assert signed != bare


def test_bytes_alone_identify_a_medium_that_is_known_by_its_content() -> None:
    """With a content hash, name and etag make no difference, but content and modality do; no media URI can imitate a hash."""
    versions = [content_version(bytes([number]) * 16, etag) for number, etag in ((1, "a"), (1, "b:c"), (2, "a"))]

    def of(modality: Modality, uri: str, version: str | None) -> str:
        return ARK.of_request(Request((Part(modality, uri),)), (version,)).hex()

    same = {of(IMAGE, uri, version) for uri in ("s3://b/1", "/d/2", "data:x") for version in versions[:2]}
    assert same == {"d9f77905d370c55d4d58c78e3911fbd4"}
    hostile = storage_version(versions[0])
    others = {of(IMAGE, "s3://b/1", versions[2]), of(VIDEO, "s3://b/1", versions[0]), of(IMAGE, "s3://b/1", hostile)}
    assert len(same | others) == 4
