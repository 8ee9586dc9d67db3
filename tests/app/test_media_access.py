"""Media in whole runs: what may be read, that secrets are written nowhere, and signed URLs that the service fetches."""

import io
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import fsspec
import fsspec.config
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from tests.places import find_words
from tests.web import Web

SECRET = "SECRET-5a1f9c"


def _picture(colour: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, colour)).save(stream, "PNG")
    return stream.getvalue()


def _codes(place: Any) -> dict[str, str]:
    return {row["id"]: row["code"] for row in place.read("failures").to_pylist()}


@pytest.mark.parametrize("access", ["pass", "inline"])
def test_who_may_read_what(access: str, place: Any, serve_web: Callable[..., Web]) -> None:
    """A cloud metadata address and a system file become failure rows, also through a redirect and a symbolic link."""
    web = serve_web({"a.png": _picture()})
    (place.folder / "link.png").symlink_to("/etc/passwd")
    (place.folder / "good.png").write_bytes(_picture())
    metadata = "http://169.254.169.254/latest/meta-data/iam"
    rows = [
        {"id": "metadata", "image": metadata},
        {"id": "passwd", "image": "file:///etc/passwd"},
        {"id": "symlink", "image": "link.png"},
        {"id": "good", "image": "good.png"},
        {"id": "allowed", "image": web.url("good/a.png")},
    ]
    if access == "inline":  # otherwise the service is redirected, and not this process
        rows.append({"id": "redirect", "image": web.url(f"to?url={quote(metadata, safe='')}")})
    place.write_rows(rows)
    place.run({"media.access": {"http": access}, "media.allowed_hosts": ["127.0.0.1"]})
    forbidden = {row["id"] for row in rows} - {"good", "allowed"}
    assert _codes(place) == dict.fromkeys(forbidden, "media_forbidden")
    # inline: one request for the redirect, and two for the good picture, to inspect and to send it. pass: one by the service.
    assert len(web.requests) == (3 if access == "inline" else 1)
    assert place.read("embeddings")["id"].to_pylist() == ["good", "allowed"]
    messages = {row["id"]: row["message"] for row in place.read("failures").to_pylist()}
    assert "169.254.169.254" in messages["metadata"]
    assert "media.allowed_roots" in messages["passwd"]
    assert "root:" not in "".join(messages.values())


@pytest.mark.slow
def test_http_is_inlined_once_and_known_by_its_version(place: Any, serve_web: Callable[..., Web]) -> None:
    """Different pictures have different vectors; a second run buys nothing; a picture that was replaced is bought again."""
    web = serve_web({"a.png": _picture(), "b.png": _picture(99)})
    place.write_rows([{"id": name, "image": web.url(f"good/{name}.png")} for name in "ab"])
    settings = {"media.access": {"http": {"image": "inline"}}, "media.allowed_hosts": ["127.0.0.1"]}
    first = place.run(settings)
    assert (first["rows"], first["published"]) == (2, 2)
    vectors = place.read("embeddings")["dense"].to_pylist()
    assert vectors[0] != vectors[1]
    assert place.run(settings)["requests_paid"] == 0
    web.files["b.png"] = _picture(7)
    assert place.run(settings)["requests_paid"] == 1


def test_secrets_in_uris_stay_out_of_everything(
    place: Any, serve_web: Callable[..., Web], caplog: pytest.LogCaptureFixture
) -> None:
    """Secrets in the URIs of media, accepted or failed, are in no log, failure, store or output."""
    caplog.set_level(logging.DEBUG)
    web = serve_web({"a.png": _picture(), "text.png": b"text"})
    sign = f"X-Amz-Signature={SECRET}&X-Tos-Security-Token={SECRET}&token={SECRET}&sig={SECRET}"
    user = f"user:{SECRET}@"

    def url(path: str, host: str = "127.0.0.1") -> str:
        return web.url(path, host, user) + ("&" if "?" in path else "?") + sign

    place.write_rows(
        [
            {"id": "passed", "image": f"https://{user}media.example/a.png?{sign}"},
            {"id": "inlined", "image": url("good/a.png")},
            {"id": "missing", "image": url("status/404")},
            {"id": "denied", "image": url("status/403")},
            {"id": "no picture", "image": url("good/text.png")},
            {"id": "broken", "image": url("short/a.png")},
            {"id": "private", "image": url("good/a.png", "127.0.0.2")},
            {"id": "redirected", "image": url(f"to?url={quote(url('good/a.png', 'localhost'), safe='')}")},
            {"id": "extension", "video": url("good/a.webm", "media.example").replace("http:", "https:")},
            {"id": "bucket", "image": f"ftp://{user}host/a.png?{sign}"},
            {"id": "refused", "image": f"https://{user}media.example/no picture?{sign}"},
        ]
    )
    place.run({"media.access": {"http": "inline"}, "media.allowed_hosts": ["127.0.0.1"], "limits.failures_allowed": 9})
    assert place.read("embeddings")["id"].to_pylist() == ["passed", "inlined"]
    assert _codes(place) == {
        "missing": "media_missing",
        "denied": "media_status",
        "no picture": "media_not_image",
        "broken": "media_unreachable",
        "private": "media_forbidden",
        "redirected": "media_forbidden",
        "extension": "media_extension",
        "bucket": "media_forbidden",
        "refused": "media_bad_uri",
    }
    (place.folder / "rows.jsonl").unlink()
    assert find_words(place.folder, [SECRET]) == []
    assert place.leftovers == []
    logged = [record for record in caplog.records if not record.name.startswith("apache_beam")]
    assert SECRET not in "".join(record.getMessage() for record in logged)


@pytest.mark.slow
def test_signed_urls_are_fetched_by_the_service(
    place: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A signed S3 picture has the same vector and fingerprint as an inlined one; no signature is written to a file."""
    caplog.set_level(logging.INFO)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        keys = {"key": "AKIAMARKED", "secret": SECRET, "client_kwargs": {"region_name": "eu-west-1"}}
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}", **keys})
        files = fsspec.filesystem("s3")
        files.mkdir("signed")
        for colour in range(3):
            files.pipe_file(f"signed/{colour}.png", _picture(colour * 80))
        files.pipe_file("signed/wrong.jpg", _picture())
        names = ["0.png", "1.png", "2.png", "wrong.jpg", "none.png"]
        place.write_rows([{"id": name, "image": f"s3://signed/{name}"} for name in names])
        signed = place.run({"media.access": {"s3": "sign"}, "limits.failures_allowed": 2})
        assert signed["requests_paid"] == 3
        assert _codes(place) == {"wrong.jpg": "media_extension", "none.png": "media_missing"}
        by_url = {row["id"]: (row["dense"], row["fingerprint"]) for row in place.read("embeddings").to_pylist()}
        (place.folder / "rows.jsonl").rename(place.folder / "again.jsonl")
        place.settings = {"manifest.uris": [str(place.folder / "again.jsonl")]}
        # Inlined, the picture with the wrong extension is accepted and bought; the others are owned.
        assert place.run({"limits.failures_allowed": 2})["requests_paid"] == 1
        by_bytes = {row["id"]: (row["dense"], row["fingerprint"]) for row in place.read("embeddings").to_pylist()}
        assert {name: by_bytes[name] for name in by_url} == by_url
        files.clear_instance_cache()
    finally:
        moto.stop()
    assert find_words(place.folder, [SECRET, "AKIAMARKED", "Signature="]) == []
    assert "AKIAMARKED" not in "".join(
        record.getMessage() for record in caplog.records if record.name.startswith("arkbeam")
    )
