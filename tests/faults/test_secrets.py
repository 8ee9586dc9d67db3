"""Promise 11: keys, passwords and signatures are not written to files, outputs or logs."""

import json
import pickle
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from arkbeam.beam.pipeline import build_pipeline

from tests.places import find_words
from tests.warm import run_arkbeam_with_debug_logs

KEY = "sk-THE-SECRET-KEY-7f3a"
PASSWORD, SIGNATURE, TOKEN = "PASSWORD-91c2", "SIGNATURE-c0ffee", "TOKEN-5eed"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server for the folder `web` that accepts any password and any query."""
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


def test_the_key(place: Any, real_service: Any, start_cold: Any) -> None:
    """The key is sent to the service. No file and no printed line has it, even if the service quotes it in an error."""
    place.url = real_service.url
    real_service.rejected["two"] = f"no good for Bearer {KEY}"
    place.write_rows([{"id": "a", "text": "one"}, {"id": "b", "text": "two"}, "{bad"])
    ended = start_cold(*place.arguments("run", {"api.api_key_env": "MY_KEY"}), MY_KEY=KEY).wait()
    assert ended.code == 3
    assert real_service.authorizations == {f"Bearer {KEY}"}
    assert place.read("embeddings")["id"].to_pylist() == ["a"]
    assert {row["id"]: row["code"] for row in place.read("failures").to_pylist()}["b"] == "InvalidParameter"
    assert KEY not in ended.out + ended.err
    assert find_words(place.folder, [KEY]) == []


def test_passwords_and_signatures_of_manifests(place: Any, web: str, start: Any) -> None:
    """After a run, passwords and signatures of manifests and media are in no file and no printed line."""
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
    assert find_words(place.folder, words) == []
    assert place.read("embeddings")["id"].to_pylist() == ["good", "medium"]
    assert place.read("failures").num_rows == 2
    assert place.leftovers == []


def test_a_manifest_that_is_not_there(place: Any, web: str, start: Any) -> None:
    """The error for a missing manifest shows its URL without password and signature."""
    uri = f"http://user:{PASSWORD}@{web}/none.jsonl?X-Amz-Signature={SIGNATURE}"
    ended = start(*place.arguments("run", {"manifest.uris": [uri]})).wait()
    assert ended.code == 2
    assert "none.jsonl" in ended.err
    assert [word for word in (PASSWORD, SIGNATURE) if word in ended.out + ended.err] == []


@pytest.fixture
def run_with_debug_logs(start_function: Any) -> Callable[..., Any]:
    """Runs command lines with all loggers at DEBUG, and with their temporary files below the place's folder."""

    def run(place: Any, *arguments: str, **environment: str) -> Any:
        temporary = place.folder / "temporary"
        temporary.mkdir(exist_ok=True)
        return start_function(
            run_arkbeam_with_debug_logs, *arguments, TMPDIR=str(temporary), COLUMNS="400", **environment
        ).wait()

    return run


@pytest.fixture
def marked(place: Any, real_service: Any) -> Any:
    """A place with secrets in its rows, and a service that rejects some rows with a message that quotes the key."""
    place.url = real_service.url
    media = f"https://user:{PASSWORD}@media.example.com/a.jpg?X-Amz-Signature={SIGNATURE}&X-Amz-Security-Token={TOKEN}"
    real_service.rejected = {"two": f"no good for Bearer {KEY}, from {media}", media: f"can't fetch {media}"}
    rows = [
        {"id": "a", "text": "one"},
        {"id": "b", "text": "two"},
        {"id": "c", "image": [media, 5]},
        {"id": "d", "image": f"s3a://bucket/a.jpg?X-Amz-Signature={SIGNATURE}"},
        {"id": "e", "text": "three", "title": media},
        {"id": media, "text": f"{media} in a text"},
        "{bad " + media,
    ]
    place.write_rows(rows)
    place.settings |= {"api.api_key_env": "MY_KEY"}
    return place


WORDS = [KEY, PASSWORD, SIGNATURE, TOKEN]
USER_FILES = {"config.yaml", "rows.jsonl"}


def find_leaks(place: Any, ended: Any, words: list[str]) -> list[str]:
    """Return where the words are: in printed lines, and in files except the config and the manifest."""
    found = [f"{word} was printed: {line[:300]}" for word in words for line in (ended.out + ended.err).splitlines() if word in line]  # fmt: skip
    return found + [
        hit for hit in find_words(place.folder, words) if Path(hit.partition(" in ")[2]).name not in USER_FILES
    ]


@pytest.mark.parametrize("command", [("plan",), ("run",), ("run", "--publish-partial", "--retry-failed")])
def test_at_the_loudest(command: tuple[str, ...], marked: Any, run_with_debug_logs: Any) -> None:
    """With the debug logs of all libraries, no line and no file has a key, password or signature.

    The row with a signed URL as its id is left out, since ids are published unchanged.
    """
    rows = (marked.folder / "rows.jsonl").read_text().splitlines()
    (marked.folder / "rows.jsonl").write_text("\n".join(rows[:5] + rows[6:]) + "\n")
    ended = run_with_debug_logs(marked, *marked.arguments(command[0], {}, *command[1:]), MY_KEY=KEY)
    assert ended.code in (0, 3), ended.err[-2000:]
    assert "DEBUG" in ended.err
    assert find_leaks(marked, ended, WORDS) == []


def test_a_kept_column_is_the_users(marked: Any, run_with_debug_logs: Any) -> None:
    """Kept columns and ids are published unchanged; their secrets are in no other file and in no printed line."""
    ended = run_with_debug_logs(marked, *marked.arguments("run", {"manifest.keep": ["title"]}), MY_KEY=KEY)
    assert ended.code == 3, ended.err[-2000:]
    found = find_leaks(marked, ended, WORDS)
    assert found
    assert all("/embeddings/part-" in one for one in found), found


@pytest.mark.parametrize("broken", ["api.base_url=http://user:{p}@127.0.0.1:9/api", "store.uri=nope://user:{p}@h/?X-Amz-Signature={s}", "output.uri=nope://user:{p}@h/?token={s}", "manifest.uris=[nope://user:{p}@h/a.jsonl?sig={s}]", "manifest.uris={{x: 's3://user:{p}@h/?sig={s}'}}", "quota.rpm='https://user:{p}@h/?sig={s}'", "https://user:{p}@h/?sig={s}", "quota.redis_url=redis://:{p}@127.0.0.1:9/0", "manifest.uris=[http://user:{p}@127.0.0.1:9/a.jsonl?sig={s}]"])  # fmt: skip
@pytest.mark.parametrize("command", ["run", "plan"])
def test_errors_show_no_secret(broken: str, command: str, place: Any, call: Any) -> None:
    """Errors about configs with passwords and signatures do not show these."""
    place.write_texts(2)
    setting = broken.format(p=PASSWORD, s=SIGNATURE)
    ended = call(*place.arguments(command), "--set", setting)
    assert [word for word in WORDS if word in ended.out + ended.err] == []
    assert "Traceback" not in ended.err


def test_default_ids_hold_no_password(place: Any, web: str) -> None:
    """Default ids contain file names and hosts, without passwords and signatures."""
    (place.folder / "web" / "rows.jsonl").write_text('{"text": "one"}\n')
    other = web.replace("127.0.0.1", "localhost")
    uris = [f"http://user:{PASSWORD}@{host}/rows.jsonl?X-Amz-Signature={SIGNATURE}" for host in (web, other)]
    note = place.run({"manifest.uris": uris, "manifest.format": "jsonl"})
    assert note["published"] == 2
    assert find_words(place.output, WORDS) == []
    assert [word for word in WORDS if word in repr(place.read("embeddings")["id"].to_pylist())] == []


def test_the_job_graph_holds_no_key(marked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pickled pipeline, which a cluster receives, has the name of the key's variable and not the key."""
    monkeypatch.setenv("MY_KEY", KEY)
    job = marked.prepare()
    pipeline = beam.Pipeline(runner=FnApiRunner())
    build_pipeline(pipeline, job.spec)
    graph = pipeline.to_runner_api().SerializeToString()
    assert b"MY_KEY" in graph + pickle.dumps(job)
    assert [word for word in WORDS if word.encode() in graph or word.encode() in pickle.dumps(job)] == []


def test_a_killed_run(place: Any, make_emulator: Any, start: Any) -> None:
    """During a run and after `kill -9`, no file has the key."""
    emulator = make_emulator(latency_ms=300)
    place.url = emulator.url
    place.write_texts(60)
    running = start(*place.arguments("run", {"limits.requests_in_flight": 4, "api.api_key_env": "MY_KEY"}), MY_KEY=KEY)
    emulator.wait_for("received", 6)
    assert find_words(place.folder, [KEY]) == []
    running.process.kill()
    ended = running.wait()
    assert find_words(place.folder, [KEY]) == []
    assert KEY not in ended.out + ended.err
