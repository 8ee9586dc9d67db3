"""The parts of `scripts/flink faults`: a server that can't be reached for a while, and what is counted of attempts."""

import socket
import threading
from collections.abc import Iterator

import pytest

from scripts.engines.proxy import start_proxy
from scripts.engines.trials import Attempts


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets, on one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                while data := connection.recv(100):
                    connection.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)


def test_a_server_that_is_cut_off_does_not_answer(echo: int) -> None:
    """While the proxy is cut, a connection hangs without an error; afterwards, what was sent arrives."""
    with start_proxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 10) as client:
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        proxy.cut()
        client.sendall(b"two")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(100)
        proxy.mend()
        client.settimeout(10)
        assert client.recv(100) == b"two"


def test_attempts_are_counted_by_their_files() -> None:
    """An attempt is repeated if it is not the first at its block, and handed over if it ends after a newer one began."""
    first, second = "run/blocks/000000-000000/", "run/blocks/000000-000001/"
    done = (f"{second}000001.a", f"{second}000001.a.ended", f"{second}000002.b")
    names = (*done, f"{first}000001.a", f"{first}000002.b", f"{first}000002.b.ended")
    counted = Attempts(names)
    assert (counted.blocks, counted.repeated, counted.handed_over) == (2, 2, 0)
    assert Attempts((*names, f"{first}000001.a.ended")).handed_over == 1
