"""Fixtures for whole runs: a folder with a config, emulators, and the command line in this process or in another one."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.app import cli
from arkbeam.app.config import load_config
from arkbeam.app.job import plan_job, run_job
from arkbeam.app.prepare import Job, prepare_job
from arkbeam.emulator.app import API_PATH, STATS_PATH
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import base_url, listen
from arkbeam.emulator.vectors import embed
from arkbeam.stages.plan import PlanTotals
from arkbeam.store.claim import claim_output

from scripts.children import ROOT, arkbeam_command, child_environment, read_output, spawn
from tests.warm import Child, Task, WarmProcess, run_arkbeam, serve_emulator

MODEL = "doubao-embedding-vision-251215"
DIMENSIONS = 1024
WAIT_S = 60.0
REQUEST_TOKENS = 7
_no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Ended:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Emulator:
    """An emulator in another process."""

    url: str

    @property
    def stats(self) -> dict[str, Any]:
        """The counts since the server started."""
        with _no_proxy.open(self.url.removesuffix(API_PATH) + STATS_PATH, timeout=WAIT_S) as answer:
            return dict(json.load(answer))

    def wait_for(self, name: str, count: int) -> None:
        """Wait until the named count is at least a number."""
        wait_until(lambda: self.stats[name] >= count)


@dataclass(slots=True)
class Place:
    """A folder with manifests, a config, a store and an output, and methods to run the job there.

    Settings are dotted keys of the config and their values, as in `{"store.flush_rows": 2}`.
    """

    folder: Path
    url: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        """The store's folder."""
        return self.folder / "store"

    @property
    def output(self) -> Path:
        """The output's folder."""
        return self.folder / "out"

    @property
    def note(self) -> dict[str, Any]:
        """The content of `run.json`."""
        return json.loads((self.output / "run.json").read_bytes())

    def write_rows(self, rows: Sequence[Any], name: str = "rows.jsonl") -> Path:
        """Write a JSONL manifest; a row that is a string is written as it is."""
        path = self.folder / name
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return path

    def write_texts(self, count: int) -> None:
        """Write a manifest of different texts, with ids."""
        self.write_rows([{"id": f"id-{number}", "text": f"row number {number}"} for number in range(count)])

    def write_config(self) -> Path:
        """Write the config of all runs of this place; return its path."""
        config = {
            "manifest": {"uris": [str(self.folder / "rows.jsonl")]},
            "model": {"name": MODEL, "dimensions": DIMENSIONS},
            "api": {"base_url": self.url},
            "quota": {"rpm": 10_000_000, "tpm": 10_000_000_000},
            "limits": {"requests_in_flight": 16},
            "store": {"uri": str(self.store)},
            "output": {"uri": str(self.output), "report": False},
        }
        path = self.folder / "config.yaml"
        path.write_text(json.dumps(config), "utf-8")  # JSON is YAML
        return path

    def set_arguments(self, settings: Mapping[str, Any]) -> list[str]:
        """Return the settings of the place and these as `key=value`; these take precedence."""
        return [f"{key}={json.dumps(value)}" for key, value in {**self.settings, **settings}.items()]

    def prepare(self, settings: Mapping[str, Any] = {}, **options: Any) -> Job:
        """Prepare the job in this process."""
        return prepare_job(load_config(str(self.write_config()), self.set_arguments(settings)), **options)

    def run(self, settings: Mapping[str, Any] = {}, *, beam: Sequence[str] = (), **options: Any) -> dict[str, Any]:
        """Run the job in this process; return the content of `run.json`."""
        return run_job(self.prepare(settings, **options), beam)

    def plan(self, settings: Mapping[str, Any] = {}, **options: Any) -> PlanTotals:
        """Plan in this process."""
        return plan_job(self.prepare(settings, **options))

    def arguments(self, command: str, settings: Mapping[str, Any] = {}, *further: str) -> list[str]:
        """Return the arguments of `run` or `plan`."""
        sets = [word for setting in self.set_arguments(settings) for word in ("--set", setting)]
        return [command, str(self.write_config()), *sets, *further]

    def read(self, name: str) -> pa.Table:
        """Read `embeddings`, `failures` or `usage` of the output."""
        return self.read_from(self.output, name)

    def read_from(self, output: str | Path, name: str) -> pa.Table:
        """Read one of these tables of another output."""
        return pq.read_table(Path(output) / name)

    @property
    def leftovers(self) -> list[str]:
        """Files that no ended run should leave: of runs, journals and the quota, temporary files, and the mark of the output."""
        temporary = [path for name in ("runs", "journals", "quota/*") for path in self.store.glob(f"{name}/*")]
        return sorted(map(str, [*temporary, *self.folder.rglob("*.tmp"), *self.output.glob(".running.json")]))


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmProcess]:
    """The process that forks emulators and command lines."""
    process = WarmProcess()
    yield process
    process.close()


@contextmanager
def run_emulator(warm: WarmProcess, options: EmulatorOptions) -> Iterator[Emulator]:
    """Run an emulator in its own process inside the block. The socket listens before the process has started."""
    with listen(0) as listener, tempfile.TemporaryFile() as output:
        url = base_url(listener)
        task = Task(serve_emulator, (options,), child_environment())
        process = warm.fork(task, output, output, listener.fileno())
        listener.close()  # so that connections fail, and do not wait, after the emulator has ended
        try:
            yield Emulator(url)
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def make_emulator(warm: WarmProcess) -> Iterator[Callable[..., Emulator]]:
    """Starts emulators with given options; they end with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(run_emulator(warm, EmulatorOptions(**options)))


@pytest.fixture
def emulator(make_emulator: Callable[..., Emulator]) -> Emulator:
    """An emulator without quota, latency or faults."""
    return make_emulator()


@pytest.fixture
def make_place(tmp_path: Path) -> Callable[[str], Place]:
    """Makes a place in the test's folder, for the server with a URL."""
    return lambda url: Place(tmp_path, url)


@pytest.fixture
def place(make_place: Callable[[str], Place], emulator: Emulator) -> Place:
    """A place for the emulator without faults."""
    return make_place(emulator.url)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs a command line in this process; returns its exit code and output."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(cli, "_leave", leave)
        monkeypatch.setattr(sys, "argv", ["arkbeam", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ending:
            cli.main()
        printed = capfd.readouterr()
        return Ended(int(ending.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets runs in this process claim outputs on object stores in 0.25 s instead of 2.5 s."""
    monkeypatch.setattr("arkbeam.app.holding.claim_output", partial(claim_output, lease_s=1.0))


def published_vectors(table: pa.Table) -> np.ndarray:
    """Return the dense vectors of a table of `embeddings/` that has rows, as a matrix [rows, dimensions]."""
    return table["dense"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)


def find_words(folder: Path, words: list[str]) -> list[str]:
    """Return `WORD in PATH` for each file below a folder with one of the words in its bytes or its Parquet values."""
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


class Started:
    """A process that was started for the test, and what it has printed."""

    def __init__(self, start: Callable[[IO[bytes], IO[bytes]], "Child | subprocess.Popen[bytes]"]) -> None:
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self.process = start(self._out, self._err)

    @property
    def out(self) -> str:
        """The standard output so far."""
        return read_output(self._out)

    @property
    def err(self) -> str:
        """The standard error so far."""
        return read_output(self._err)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = WAIT_S) -> Ended:
        """Wait until the process ends."""
        return Ended(self.process.wait(timeout_s), self.out, self.err)

    def close(self) -> None:
        """Kill the process if it still runs."""
        self.process.kill()
        self.process.wait()
        self._out.close()
        self._err.close()


@pytest.fixture
def start_function(warm: WarmProcess) -> Iterator[Callable[..., Started]]:
    """Calls module-level functions, each in its own process; those that still run at the end of the test are killed."""
    with ExitStack() as stack:

        def run(
            function: Callable[..., None], *arguments: Any, before: Callable[[], None] | None = None, **environment: str
        ) -> Started:
            task = Task(function, arguments, child_environment(**environment), before)
            started = Started(lambda out, err: warm.fork(task, out, err))
            stack.callback(started.close)
            return started

        yield run


@pytest.fixture
def start(start_function: Callable[..., Started]) -> Callable[..., Started]:
    """Starts command lines in forked processes, without new imports; `before` is called first, to set limits."""
    return partial(start_function, run_arkbeam)


@pytest.fixture
def start_cold() -> Iterator[Callable[..., Started]]:
    """Starts command lines as a shell does: `python -m arkbeam`, with all imports, and without changes to Beam."""
    with ExitStack() as stack:

        def run(*arguments: str, **environment: str) -> Started:
            command = arkbeam_command(*arguments)
            started = Started(lambda out, err: spawn(command, ROOT, out.fileno(), err.fileno(), environment))
            stack.callback(started.close)
            return started

        yield run


@dataclass(slots=True)
class RealService:
    """A server that does not identify itself as a stand-in, as the vendor's. Its vectors are the emulator's, negated."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each request came, in seconds of the monotonic clock."""
    authorizations: set[str] = field(default_factory=set)
    headers: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    """Texts that are rejected with status 400, and the message for each."""
    failing: dict[str, int] = field(default_factory=dict)
    """Texts that are answered with status 500, and how often they still are."""

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status and the reply for a request."""
        self.requests.append(body)
        text = body["input"][0]["text"]
        if text in self.rejected:
            return 400, {"error": {"code": "InvalidParameter", "message": self.rejected[text]}}
        if self.failing.get(text, 0) > 0:
            self.failing[text] -= 1
            return 500, {"error": {"code": "InternalServiceError", "message": "try again later"}}
        usage = {"prompt_tokens": REQUEST_TOKENS, "total_tokens": REQUEST_TOKENS}
        details = {"text_tokens": REQUEST_TOKENS, "image_tokens": 0}
        data = {"object": "embedding", "embedding": (-embed([("text", text)], dimensions=DIMENSIONS)).tolist()}
        usage_all = {**usage, "prompt_tokens_details": details}
        return 200, {"id": f"02{len(self.requests)}", "model": body["model"], "data": data, "usage": usage_all}


@pytest.fixture
def real_service() -> Iterator[RealService]:
    """A real service on loopback."""
    service = RealService()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply(404, {"error": {"code": "NotFound", "message": "no such path"}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            service.authorizations.add(self.headers["Authorization"])
            service.times.append(time.monotonic())
            self.reply(*service.answer(body), service.headers)

        def reply(self, status: int, document: Any, headers: Mapping[str, str] = {}) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_port}{API_PATH}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield service
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass(slots=True)
class RedisServer:
    """A Redis server that the test started; it stores nothing on disk."""

    process: "subprocess.Popen[bytes]"
    port: int
    password: str = ""

    @property
    def url(self) -> str:
        """The URL for `quota.redis_url`, without the password."""
        return f"redis://127.0.0.1:{self.port}/0"

    def kill(self) -> None:
        """Kill the server."""
        self.process.kill()
        self.process.wait()

    def ask(self, *words: str) -> str:
        """Send a command that has a one-line reply; return the reply."""
        command = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(f"*{len(words)}\r\n{command}".encode())
            return connection.makefile().readline().strip()


@pytest.fixture
def make_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts Redis servers on free loopback ports; skips the test if Redis is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    with ExitStack() as stack:

        def make(password: str = "") -> RedisServer:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(tmp_path)]
            secret = ["--requirepass", password] if password else []
            process = subprocess.Popen([program, *options, *secret], stdout=subprocess.DEVNULL)
            server = RedisServer(process, port, password)
            stack.callback(server.kill)
            wait_until(lambda: _listens(port))
            return server

        yield make


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def wait() -> Callable[..., None]:
    """Waits until a condition is true, and fails after a minute."""
    return wait_until


def wait_until(holds: Callable[[], bool], every_s: float = 0.02) -> None:
    """Wait until a condition is true; fail after a minute."""
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s, "the condition did not become true in time"
        time.sleep(every_s)


@pytest.fixture
def assert_vectors() -> Callable[..., None]:
    """Checks each published vector against the one computed from the row's content."""

    def check(table: pa.Table, parts_of: Callable[[dict[str, Any]], Sequence[tuple[str, str]]], **options: Any) -> None:
        dense = published_vectors(table)
        dimensions = dense.shape[1]
        rows = table.drop_columns(["dense", "sparse"]).to_pylist()
        for row, vector in zip(rows, dense, strict=True):
            expected = embed(parts_of(row), dimensions=dimensions, **options)
            assert np.array_equal(vector, expected), f"{row['id']} has a wrong vector"

    return check


@pytest.fixture
def assert_bill() -> Callable[..., None]:
    """Checks that `usage/` equals the emulator's bill, in requests and in tokens of each kind.

    `above`: at most so many requests may be in `usage/` but not in the bill. They were about to be sent when the process was killed.
    """

    def check(place: Place, stats: Mapping[str, Any], *, above: int = 0) -> None:
        usage = place.read("usage")
        extra = usage.num_rows - stats["paid"]
        assert 0 <= extra <= above
        assert usage["client_request_id"].null_count == 0
        assert len(set(usage["client_request_id"].to_pylist())) == usage.num_rows
        for name, tokens in stats["tokens"].items():
            counts = usage[f"{name}_tokens"].drop_null().to_pylist()
            assert tokens <= sum(counts) <= tokens + extra * max(counts), name

    return check
