"""Secrets never reach a message."""

import pytest
from arkbeam.base.redaction import MASK, redact
from hypothesis import given
from hypothesis import strategies as st

SECRET = "s3cr3tVALUE"


@pytest.mark.parametrize(
    "text",
    [
        f"https://b.s3.amazonaws.com/k.png?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
        f"https://b.tos-cn-beijing.volces.com/k.png?x-tos-signature={SECRET}",
        f"https://storage.googleapis.com/b/k?X-Goog-Signature={SECRET}&GoogleAccessId={SECRET}",
        f"https://b.oss-cn-beijing.aliyuncs.com/k?OSSAccessKeyId={SECRET}&Expires=1&Signature={SECRET}%2B%3D",
        f"https://a.blob.core.windows.net/c/k?sv=2020&sig={SECRET}",
        f"https://d.cloudfront.net/k?Policy={SECRET}&Key-Pair-Id={SECRET}&Signature={SECRET}",
        f"https://b.cos.myqcloud.com/k?q-ak={SECRET}&q-signature={SECRET}&x-cos-security-token={SECRET}",
        f"https://h/k?a=1&amp;token={SECRET}",
        f"https://fetch/?url=https%3A%2F%2Fh%2Fk%3FX-Amz-Signature%3D{SECRET}%26id%3D1",
        f"https://fetch/?url=https%3A%2F%2Fuser%3A{SECRET}%40h%2Fk&id=1",
        f'{{"url": "https://h/k?id=1\\u0026sig={SECRET}"}}',
        f"ftp://user:{SECRET}@host/path",
        f"https://user:p@{SECRET}@host/path",
        f"redis://:{SECRET}@host:6379/0",
        f"Authorization: Bearer {SECRET}",
        f"authorization: basic {SECRET}=",
        f"https://h/k?api_key={SECRET}",
        f"https://h/k?access-token={SECRET}",
    ],
)
def test_secret_is_masked(text: str) -> None:
    """Every known way of writing a credential into a URL or a header is masked."""
    assert SECRET not in redact(text)
    assert MASK in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://h/k?id=1&design=2&key=images/1.png",
        "https://host:8080/a@b?x=1#signature=part",
        "the parameter `signature` is missing",
        "天很蓝，海很深",
        "bearer",
        "https://fetch/?url=https%3A%2F%2Fh%2Fa%40b&x=%40",
    ],
)
def test_other_text_stays(text: str) -> None:
    """What is no credential is left as it is."""
    assert redact(text) == text


def test_parameters_beside_a_signature_stay() -> None:
    """What tells two pictures apart is still there once the signature is masked."""
    assert redact(f"https://h/k?id=1&sig={SECRET}&v=2 gone") == f"https://h/k?id=1&sig={MASK}&v=2 gone"


def test_given_secrets_are_masked() -> None:
    """A string that the caller knows to be secret is masked wherever it stands, unless it is too short to be one."""
    assert redact(f"key {SECRET} is wrong", secrets=(SECRET, "", "k")) == f"key {MASK} is wrong"


def test_data_uri_keeps_its_type_alone() -> None:
    """A data URI shows what it is, not what is in it."""
    assert redact("bad data:image/png;base64,iVBORw0KGgo= here") == "bad data:image/png;base64,… here"


def test_result_is_one_bounded_line() -> None:
    """Line breaks and control characters are folded, and length is bounded with a sign that it was cut."""
    assert redact("a\r\n\tb\x00c") == "a b c"
    assert redact("x" * 501) == "x" * 499 + "…"
    assert redact("x" * 500) == "x" * 500
    assert redact("abc", 0) == "…"


def test_lone_surrogate_is_replaced() -> None:
    """The result can be written as UTF-8 whatever came in."""
    assert redact("a\ud800b") == "a?b"


def test_secret_at_the_end_of_what_is_searched_is_not_shown() -> None:
    """A password cut in half by the bound on the search is dropped, even if masking made the text before it short."""
    text = "data:image/png;base64," + "A" * 65_000 + " https://user:" + SECRET * 100 + "@host/"
    assert SECRET not in redact(text)
    assert redact(text).startswith("data:image/png;base64,…")


@given(st.text(max_size=700), st.integers(1, 600))
def test_redacting_is_bounded_and_stable(text: str, chars_max: int) -> None:
    """Any text comes out within the bound, and redacting again changes nothing."""
    once = redact(text, chars_max)
    assert len(once) <= chars_max
    assert redact(once, chars_max) == once
