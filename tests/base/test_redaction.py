"""Secrets never appear in a message."""

import pytest
from arkbeam.base.redaction import MASK, redact, redact_uri
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
    """Text that is not a credential is unchanged."""
    assert redact(text) == text


def test_parameters_beside_a_signature_stay() -> None:
    """Only the signature is masked: the other parameters still identify the file."""
    assert redact(f"https://h/k?id=1&sig={SECRET}&v=2 gone") == f"https://h/k?id=1&sig={MASK}&v=2 gone"


def test_a_redacted_uri_keeps_its_blanks() -> None:
    """The file can be found again by it; only secrets are masked."""
    assert redact_uri("s3://b/two  blanks\nand a line ") == "s3://b/two  blanks\nand a line "
    assert redact_uri(f"https://u:{SECRET}@h/a  b?sig={SECRET}") == f"https://{MASK}@h/a  b?sig={MASK}"


def test_given_secrets_are_masked() -> None:
    """Every occurrence of a secret that the caller passes is masked, unless it is too short."""
    assert redact(f"key {SECRET} is wrong", secrets=(SECRET, "", "k")) == f"key {MASK} is wrong"


def test_data_uri_keeps_its_type_alone() -> None:
    """Of a data URI, only the media type is shown."""
    assert redact("bad data:image/png;base64,iVBORw0KGgo= here") == "bad data:image/png;base64,… here"


def test_result_is_one_bounded_line() -> None:
    """Line breaks and control characters become spaces; a text that is cut ends with an ellipsis."""
    assert redact("a\r\n\tb\x00c") == "a b c"
    assert redact("x" * 501) == "x" * 499 + "…"
    assert redact("x" * 500) == "x" * 500
    assert redact("abc", 0) == "…"


def test_lone_surrogate_is_replaced() -> None:
    """The result can always be encoded as UTF-8."""
    assert redact("a\ud800b") == "a?b"


def test_secret_at_the_end_of_what_is_searched_is_not_shown() -> None:
    """A password that is cut by the search limit is dropped, even if masking made the text before it short."""
    text = "data:image/png;base64," + "A" * 65_000 + " https://user:" + SECRET * 100 + "@host/"
    assert SECRET not in redact(text)
    assert redact(text).startswith("data:image/png;base64,…")


@given(st.text(max_size=700), st.integers(1, 600))
def test_redacting_is_bounded_and_stable(text: str, chars_max: int) -> None:
    """The result is never longer than the bound, and redacting it again changes nothing."""
    once = redact(text, chars_max)
    assert len(once) <= chars_max
    assert redact(once, chars_max) == once
