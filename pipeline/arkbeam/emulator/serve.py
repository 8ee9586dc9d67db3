"""Run the emulator: in this process, or in another process for the duration of a `with` block."""

import asyncio
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import orjson
import uvicorn
from starlette.types import Scope
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from arkbeam.base.errors import ArkbeamError
from arkbeam.emulator.app import API_PATH, STATS_PATH, make_app
from arkbeam.emulator.options import EmulatorOptions, write_options
from arkbeam.emulator.vectors import embed

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 30.0
KEEP_ALIVE_S = 65
_BACKLOG = 2_048
_PARENT_POLL_S = 0.25
_OUTPUT_CHARS_MAX = 2_000

_Address = tuple[str, int]


def serve(
    options: EmulatorOptions, port: int, *, listener: socket.socket | None = None, parent_pid: int | None = None
) -> None:
    """Print the banner and serve on a loopback port until interrupted; port 0 selects a free port.

    `listener`: a listening socket that is used instead of `port`. `parent_pid`: exit when that process is no longer the
    parent.
    """
    listener = listen(port) if listener is None else listener
    transports: dict[_Address, asyncio.Transport] = {}
    app = make_app(options, reset_connection=lambda scope: _reset_connection(transports, scope))
    embed([("text", "warm-up")])
    if parent_pid is not None:
        threading.Thread(target=_end_with_parent, args=(parent_pid,), daemon=True).start()
    config = uvicorn.Config(
        app,
        http=_remembering_protocol(transports),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    sys.stdout.write(make_banner(options, base_url(listener)) + "\n")
    sys.stdout.flush()
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def listen(port: int) -> socket.socket:
    """Open a listening socket on the loopback interface; port 0 selects a free port. Raise ArkbeamError."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ArkbeamError(f"the emulator can't listen on {LOOPBACK}:{port}: {error.strerror}") from error
    return listener


def base_url(listener: socket.socket) -> str:
    """Return the base URL of the API on a listening socket."""
    return f"http://{LOOPBACK}:{listener.getsockname()[1]}{API_PATH}"


def make_banner(options: EmulatorOptions, url: str) -> str:
    """Return the text that is printed at the start: a warning, the URLs, and the options that are not defaults."""
    changed = {key: value for key, value in write_options(options).items() if value != _DEFAULTS[key]}
    if "faults" in changed:
        changed["faults"] = {fault: share for fault, share in changed["faults"].items() if share}
    return (
        "arkbeam emulator: a STAND-IN for the Ark multimodal embeddings API. Its vectors are made up.\n"
        f"base_url {url}   stats {url.removesuffix(API_PATH)}{STATS_PATH}\n"
        f"options  {orjson.dumps(changed).decode() if changed else 'defaults: no quota, no latency, no faults'}"
    )


_DEFAULTS = write_options(EmulatorOptions())


@contextmanager
def start_emulator(options: EmulatorOptions, port: int = 0) -> Iterator[str]:
    """Run a server in another process, yield its base URL when it answers, and kill it at the end of the block.

    The server has its own session, so that Ctrl-C in a terminal reaches only the client. It exits when this process
    ends, even if this process is killed. Raise ArkbeamError, with the output of the server, if it does not start.
    """
    with tempfile.TemporaryFile() as output, listen(port) as listener:
        url = base_url(listener)
        process = _spawn(options, listener, output)
        listener.close()  # only the child keeps it: if the child dies, connections are refused instead of waiting
        try:
            _wait_until_up(url.removesuffix(API_PATH), process, output)
            yield url
        finally:
            process.kill()
            process.wait()


def _spawn(options: EmulatorOptions, listener: socket.socket, output: IO[bytes]) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "arkbeam.emulator", "--options", orjson.dumps(write_options(options)).decode()]
    command += ["--fd", str(listener.fileno()), "--parent-pid", str(os.getpid())]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        pass_fds=[listener.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def _wait_until_up(root_url: str, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy can't reach this machine's loopback
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with opener.open(root_url + "/", timeout=1.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
    output.seek(0)
    said = output.read().decode(errors="replace")[-_OUTPUT_CHARS_MAX:].strip()
    raise ArkbeamError(f"the emulator did not start (exit code {process.poll()}): {said or 'no output'}")


def _end_with_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_PARENT_POLL_S)
    os._exit(0)


def _remembering_protocol(transports: dict[_Address, asyncio.Transport]) -> type[asyncio.Protocol]:
    """Return a subclass of uvicorn's HTTP protocol that stores each connection's transport by the client's address.

    The fault `reset` needs the transport: ASGI has no way to reset a connection.
    """
    base: Any = AutoHTTPProtocol

    class RememberingProtocol(base):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if self.client is not None:
                transports[self.client] = transport

        def connection_lost(self, exc: Exception | None) -> None:
            if self.client is not None:
                transports.pop(self.client, None)
            super().connection_lost(exc)

    return RememberingProtocol


def _reset_connection(transports: dict[_Address, asyncio.Transport], scope: Scope) -> None:
    transport = transports.get(tuple(scope["client"]))
    if transport is None:
        return  # the client has already disconnected
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends RST, not FIN
    transport.abort()
