"""Secrets never appear in a message."""

import time

import pytest
from arkbeam.base.redaction import MASK, also_mask, holds_credentials, redact, redact_uri, secrets_of
from hypothesis import given
from hypothesis import strategies as st

SECRET = "s3cr3tVALUE"
NAMES = [
    "sign",
    "key",
    "jwt",
    "pwd",
    "pass",
    "client_secret",
    "private_token",
    "sessionid",
    "wsSecret",
    "hdnts",
    "auth_key",
    "q-sign-time",
    "q-key-time",
    "q-sign-algorithm",
    "Client_Secret",
    "JWT",
    "X-Plex-Token",
    "oauth_signature",
    "apiKey",
    "x-orig-sign",
    "X%2DAmz%2DSignature",
    "%73ig",
    "user[password]",
    "wx_sign",
    "PHPSESSID",
    "sign[]",
    "userPwd",
    "Api%5FKey",
    "loginPass",
    "urlSign",
    "Pass%77ord",
    "a.key",
    "ak",
    "X-API-Key",
    "awsAccessKeyId",
]


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
        *(f"https://h/k?id=1&{name}={SECRET}" for name in NAMES),
        f"https://h/k;jsessionid={SECRET}?id=1",
        f"https://h/k#access_token={SECRET}&state=1",
        f"https://h/k#state=1&id_token={SECRET}",
        f"https://fetch/?url=https://h/k?jwt={SECRET}&x=1",
        f"https://fetch/?u=https%253A%252F%252Fh%252Fk%253Fsig%253D{SECRET}%2526id%253D1",
        f"https://fetch/?u=https%253A%252F%252Fuser%253A{SECRET}%2540h",
        f'{{"image": "https:\\/\\/u:{SECRET}@h\\/k?sign={SECRET}"}}',
        f"s3://AKIA:ab/{SECRET}+@bucket/k",
        f"S3A://AKIA:{SECRET}@bucket/k",
        f"s3://AKIA%3A{SECRET}%40bucket/k",
        f"s3://{SECRET}%40bucket/k",
        f"https://user:a#{SECRET}@host/",
        f"data:image/png;charset=utf-8;base64,iVBORw0K\n{SECRET}\n==",
        f"DATA:image/png;BASE64,{SECRET}",
        f"data:image/png; base64, {SECRET}",
    ],
)
def test_secret_is_masked(text: str) -> None:
    """Every known way of writing a credential into a URL or a header is masked."""
    assert SECRET not in redact(text)
    assert MASK in redact(text) or "…" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://h/k?id=1&design=2&key=images/1.png",
        "https://host:8080/a@b?x=1#signature=part",
        "the parameter `signature` is missing",
        "天很蓝，海很深",
        "bearer",
        "https://fetch/?url=https%3A%2F%2Fh%2Fa%40b&x=%40",
        "https://h/k?assign=1&keyword=red&passage=3&sort=key&compass=n",
        "the data: a, b",
        "abfss://container@account.dfs.core.windows.net/a.png",
    ],
)
def test_other_text_stays(text: str) -> None:
    """Text that is not a credential is unchanged."""
    assert redact(text) == text


def test_names_that_the_config_adds_are_masked() -> None:
    """A site's own signature parameter is masked as soon as it is known, and only under its own name."""
    url = f"https://h/k?our_proof_1={SECRET}&our_proof_2=seen"
    assert redact(url) == url
    also_mask(["our_proof_1"])
    assert redact(url) == f"https://h/k?our_proof_1={MASK}&our_proof_2=seen"


@pytest.mark.parametrize(
    "uri", [f"https://us%40er:{SECRET}%2F@h/k", f"https://h/k?id=1&sig={SECRET}%2F", f"https://h/k?sign={SECRET}/"]
)
def test_secrets_are_known_as_they_are_written_and_decoded(uri: str) -> None:
    """An error that quotes a password or a signature alone, encoded or not, does not show it."""
    for quoted in (f"{SECRET}%2F", f"{SECRET}/"):
        assert redact(f"no bucket '{quoted}'", secrets=secrets_of(uri)) == f"no bucket '{MASK}'"


@pytest.mark.parametrize(
    ("uri", "holds"),
    [
        ("s3://KEY:SECRET@bucket/x.png", True),
        ("S3a://KEY:SECRET@bucket/x.png", True),
        ("s3://KEY@bucket/x.png", True),
        ("s3://KEY:SEC/RET@bucket/x.png", True),
        ("s3://KEY%3ASECRET%40bucket/x.png", True),
        ("gs://u:p@bucket/x", True),
        ("oss://u:p@bucket/x", True),
        ("tos://u:p@bucket/x", True),
        ("abfss://container:SECRET@account/x", True),
        ("abfss://container@account.dfs.core.windows.net/x", False),
        ("s3://bucket/a@b:c.png", False),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint/a/x.png", False),
        ("hdfs://user@host:8020/x", False),
        ("https://u:p@h/x", False),
        ("/data/u:p@h", False),
    ],
)
def test_credentials_of_objects_are_recognised(uri: str, holds: bool) -> None:
    """An object store takes no user in a URI; an Azure URI names its container there."""
    assert holds_credentials(uri) is holds


def test_masking_takes_time_in_proportion_to_the_text() -> None:
    """Texts made to be slow are searched in well under a second."""
    start = time.process_time()
    for text in ("://a:b", "?a", "%25", "data:image/png;", "&a=b", "s3://a:", "?a%3d%26"):
        redact(text * (64_000 // len(text)))
    assert time.process_time() - start < 2


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
