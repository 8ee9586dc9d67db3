"""A TCP proxy on loopback, in a process of its own. While the process is stopped (SIGSTOP), the server is unreachable.

    python -m scripts.engines.proxy PORT

It prints its own port. As on a network that is cut, clients get no error while it is stopped: connections hang, and what
was sent arrives when it goes on. It ends when its standard input is closed.
"""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

HOST = "127.0.0.1"
_BLOCK_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that runs."""

    process: "subprocess.Popen[bytes]"
    port: int

    def cut(self) -> None:
        """Make the server unreachable."""
        self.process.send_signal(signal.SIGSTOP)

    def mend(self) -> None:
        """Make the server reachable again."""
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def start_proxy(port: int) -> Iterator[Proxy]:
    """Run a proxy to a port of this machine inside the block."""
    command = [sys.executable, "-m", "scripts.engines.proxy", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield Proxy(process, int(process.stdout.readline()))
        finally:
            process.kill()  # it may be stopped


async def _serve(port: int) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back_reader, back_writer = await asyncio.open_connection(HOST, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, back_writer), _copy(back_reader, writer))

    server = await asyncio.start_server(connect, HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while block := await reader.read(_BLOCK_BYTES):
            writer.write(block)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
