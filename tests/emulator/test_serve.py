"""The server in its own process, over real sockets."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from arkbeam.base.errors import ArkbeamError
from arkbeam.emulator.app import API_PATH
from arkbeam.emulator.options import EmulatorOptions, FaultShares, read_options
from arkbeam.emulator.serve import listen, make_banner, start_emulator

BODY = {"model": "doubao-embedding-vision-251215", "input": [{"type": "text", "text": "hello"}]}
HEADERS = {"Authorization": "Bearer k"}
WAIT_S = 20.0


def post(url: str, timeout_s: float = WAIT_S) -> httpx.Response:
    """Ask for one embedding on a new connection."""
    return httpx.post(f"{url}/embeddings/multimodal", json=BODY, headers=HEADERS, timeout=timeout_s)


def stats(url: str) -> dict[str, Any]:
    """Read the server's counts."""
    return httpx.get(url.removesuffix(API_PATH) + "/emulator/stats").json()


def wait_until(happened: Callable[[], bool]) -> bool:
    """Wait for a condition, for a bounded time."""
    deadline_s = time.monotonic() + WAIT_S
    while not happened() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return happened()


def is_open(url: str) -> bool:
    """Return True if a server accepts connections there."""
    try:
        httpx.get(url.removesuffix(API_PATH) + "/", timeout=WAIT_S)
    except httpx.TransportError:
        return False
    return True


def test_a_server_for_the_length_of_a_block() -> None:
    """Inside the block a process answers on loopback and keeps the connection; afterwards nothing listens there."""
    with start_emulator(EmulatorOptions()) as url:
        assert url.startswith("http://127.0.0.1:")
        with httpx.Client(base_url=url, headers=HEADERS) as client:
            answers = [client.post("/embeddings/multimodal", json=BODY) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert len({answer.json()["id"] for answer in answers}) == 3
        assert answers[0].headers["x-arkbeam-stand-in"] == "1"
        assert "connection" not in answers[0].headers
        assert stats(url)["paid"] == 3
    assert not is_open(url)


def test_a_block_that_fails() -> None:
    """An exception in the block is raised unchanged, and the server is stopped."""
    with pytest.raises(KeyError, match="mine"), start_emulator(EmulatorOptions()) as url:
        raise KeyError("mine")
    assert not is_open(url)


def test_a_server_that_cannot_start() -> None:
    """If the server does not start, an ArkbeamError has its output."""
    options = EmulatorOptions(api_key_env="STAND_IN_KEY_THAT_IS_NOT_SET")
    with pytest.raises(ArkbeamError, match="STAND_IN_KEY_THAT_IS_NOT_SET"), start_emulator(options):
        pytest.fail("it has started")


def test_a_port_that_is_taken() -> None:
    """A port in use is an ArkbeamError with the port."""
    with listen(0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ArkbeamError, match=str(port)):
            listen(port)


def test_the_server_ends_with_its_parent() -> None:
    """If the process that started a server is killed, the server exits too."""
    program = (
        "import os, signal\n"
        "from arkbeam.emulator.options import EmulatorOptions\n"
        "from arkbeam.emulator.serve import start_emulator\n"
        "with start_emulator(EmulatorOptions()) as url:\n"
        "    print(url, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert parent.returncode == -signal.SIGKILL
    url = parent.stdout.strip()
    assert url.startswith("http://127.0.0.1:")
    assert wait_until(lambda: not is_open(url))


def test_ctrl_c_reaches_the_client_alone() -> None:
    """A signal to the client's process group, as from Ctrl-C, does not stop the server."""
    program = (
        "import os, signal, urllib.request\n"
        "from arkbeam.emulator.options import EmulatorOptions\n"
        "from arkbeam.emulator.serve import start_emulator\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "with start_emulator(EmulatorOptions(latency_ms=500)) as url:\n"
        "    os.killpg(0, signal.SIGINT)\n"
        "    body, headers = os.environ['BODY'].encode(), {'Authorization': 'Bearer k'}\n"
        "    request = urllib.request.Request(url + '/embeddings/multimodal', body, headers)\n"
        "    print([urllib.request.urlopen(request).status for _ in range(2)])\n"
    )
    environment = {**os.environ, "BODY": json.dumps(BODY)}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert (ended.stdout, ended.stderr) == ("[200, 200]\n", "")


def test_the_command() -> None:
    """`python -m arkbeam.emulator` prints that it is a stand-in and its URL, and ends on SIGINT."""
    command = [sys.executable, "-m", "arkbeam.emulator", "--options", json.dumps({"rpm": 7})]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert "STAND-IN" in lines[0]
        assert lines[2].strip() == 'options  {"rpm":7}'
        assert post(lines[1].split()[1]).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0
        assert process.stderr.read() == ""


def test_a_wrong_option_on_the_command_line() -> None:
    """An invalid option ends the command with exit code 2 and one line."""
    command = [sys.executable, "-m", "arkbeam.emulator", "--options", '{"rmp": 7}']
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "emulator: unknown emulator options: rmp\n")


def test_the_banner() -> None:
    """The banner has the options that differ from the defaults, or says that there are none."""
    url = "http://127.0.0.1:1/api/v3"
    assert "no quota" in make_banner(read_options({}), url)
    told = make_banner(EmulatorOptions(tpm=9, faults=FaultShares(nan=0.5)), url).splitlines()
    assert told[1:] == [
        "base_url http://127.0.0.1:1/api/v3   stats http://127.0.0.1:1/emulator/stats",
        'options  {"tpm":9,"faults":{"nan":0.5}}',
    ]


def test_latency_and_requests_in_flight() -> None:
    """Requests wait concurrently, and an accepted request is billed although its client has disconnected."""
    with start_emulator(EmulatorOptions(latency_ms=400, jitter_ms=50)) as url:
        with ThreadPoolExecutor(4) as pool:
            assert {answer.status_code for answer in pool.map(post, [url] * 4)} == {200}
        assert stats(url)["in_flight_max"] == 4
        with pytest.raises(httpx.ReadTimeout):
            post(url, timeout_s=0.1)
        assert stats(url)["paid"] == 5
        assert wait_until(lambda: stats(url)["in_flight"] == 0)


def test_reset() -> None:
    """A reset closes the connection with RST before any byte of the response, and is not billed."""
    with start_emulator(EmulatorOptions(faults=FaultShares(reset=1.0))) as url:
        port = int(url.split(":")[2].split("/")[0])
        body = json.dumps(BODY).encode()
        head = f"POST {API_PATH}/embeddings/multimodal HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n"
        with socket.create_connection(("127.0.0.1", port), WAIT_S) as client:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        counted = stats(url)
        assert (counted["faulted"], counted["paid"], counted["in_flight"]) == (1, 0, 0)


def test_hang() -> None:
    """A hanging request gets no response and ends when the client disconnects; it is not billed."""
    with start_emulator(EmulatorOptions(faults=FaultShares(hang=1.0))) as url:
        with pytest.raises(httpx.ReadTimeout):
            post(url, timeout_s=0.3)
        assert wait_until(lambda: stats(url)["in_flight"] == 0)
        assert (stats(url)["faulted"], stats(url)["paid"]) == (1, 0)


def test_truncated() -> None:
    """A truncated response starts as a 200 and ends half-way with the connection; it is billed."""
    with start_emulator(EmulatorOptions(faults=FaultShares(truncated=1.0))) as url:
        with pytest.raises(httpx.RemoteProtocolError, match=r"incomplete|without sending complete"):
            post(url)
        assert (stats(url)["faulted"], stats(url)["paid"]) == (1, 1)


def test_a_body_beyond_the_limit_over_a_socket() -> None:
    """A client that sends too much gets a response instead of a broken connection, and the server keeps running."""
    with start_emulator(EmulatorOptions()) as url:
        answer = httpx.post(f"{url}/embeddings/multimodal", content=bytes(64_000_001), headers=HEADERS, timeout=WAIT_S)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "InvalidParameter")
        assert post(url).status_code == 200


def test_quota_is_kept_under_load() -> None:
    """Of many concurrent requests exactly the quota is billed."""

    async def flood(url: str) -> list[int]:
        async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=WAIT_S) as client:
            answers = await asyncio.gather(*(client.post("/embeddings/multimodal", json=BODY) for _ in range(40)))
        return [answer.status_code for answer in answers]

    with start_emulator(EmulatorOptions(rpm=25, latency_ms=20)) as url:
        statuses = asyncio.run(flood(url))
        assert (statuses.count(200), statuses.count(429)) == (25, 15)
        counted = stats(url)
    assert (counted["paid"], counted["refused"]) == (25, 15)
    assert sum(second["received"] for second in counted["requests_by_second"]) == 40
