"""Keys, passwords and signatures stay where they came from."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

KEY = "sk-THE-SECRET-KEY-7f3a"
PASSWORD, SIGNATURE, TOKEN = "PASSWORD-91c2", "SIGNATURE-c0ffee", "TOKEN-5eed"


def find(folder: Path, words: list[str]) -> list[str]:
    """Files below a folder whose bytes, or whose Parquet values, hold one of the words."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                columns = [name for name in table.column_names if name != "dense"]
                data += repr(table.select(columns).to_pylist()).encode() + str(table.schema).encode()
            found += [f"{word} in {path}" for word in words if word.encode() in data]
    return found


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server for the folder `web`, which takes any password and any query."""
    (tmp_path / "web").mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_key(place: Any, real_service: Any, start: Any) -> None:
    """The key goes to the service, and into no file and no line, also when the error that refuses a row quotes it."""
    place.url = real_service.url
    real_service.refused["two"] = f"no good for Bearer {KEY}"
    place.write_rows([{"id": "a", "text": "one"}, {"id": "b", "text": "two"}, "{bad"])
    ended = start(*place.arguments("run", {"api.api_key_env": "MY_KEY"}), MY_KEY=KEY).wait()
    assert ended.code == 3
    assert real_service.authorizations == {f"Bearer {KEY}"}
    assert place.read("embeddings")["id"].to_pylist() == ["a"]
    assert {row["id"]: row["code"] for row in place.read("failures").to_pylist()}["b"] == "InvalidParameter"
    assert KEY not in ended.out + ended.err
    assert find(place.folder, [KEY]) == []


def test_passwords_and_signatures_of_manifests(place: Any, web: str, start: Any, wait: Any, make_emulator: Any) -> None:
    """What opens a manifest or a medium is in no output, note or line; the run's staged rows may hold it, and are gone."""
    emulator = make_emulator(latency_ms=300)
    place.url = emulator.url
    media = f"https://user:{PASSWORD}@media.example.com/a.jpg?X-Amz-Signature={SIGNATURE}&X-Amz-Security-Token={TOKEN}"
    rows = [{"id": "good", "text": "one"}, {"id": "medium", "image": media}, {"id": "bad", "image": [media, 5]}]
    (place.folder / "web" / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + f'{{"image": "{media}\n'
    )
    uri = f"http://user:{PASSWORD}@{web}/rows.jsonl?X-Amz-Signature={SIGNATURE}"
    ended = start(*place.arguments("run", {"manifest.uris": [uri], "manifest.format": "jsonl"})).wait()
    assert ended.code == 3, ended.err
    words = [PASSWORD, SIGNATURE, TOKEN]
    assert [word for word in words if word in ended.out + ended.err] == []
    (place.folder / "config.yaml").unlink()
    (place.folder / "web" / "rows.jsonl").unlink()
    assert find(place.folder, words) == []
    assert place.read("embeddings")["id"].to_pylist() == ["good", "medium"]
    assert place.read("failures").num_rows == 2
    assert place.leftovers == []


def test_a_manifest_that_is_not_there(place: Any, web: str, start: Any) -> None:
    """The error for a missing manifest names it without its password and signature."""
    uri = f"http://user:{PASSWORD}@{web}/none.jsonl?X-Amz-Signature={SIGNATURE}"
    ended = start(*place.arguments("run", {"manifest.uris": [uri]})).wait()
    assert ended.code == 2
    assert "none.jsonl" in ended.err
    assert [word for word in (PASSWORD, SIGNATURE) if word in ended.out + ended.err] == []
