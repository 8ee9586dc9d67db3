"""Open a page in a headless Chromium, and see what a person would see: errors, requests, pictures.

Needs Debian's package `chromium`, or a `chromium` on PATH. It speaks the DevTools protocol over a loopback WebSocket.
"""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

START_S = 60.0
_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions"),
    *("--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-port=0", "--host-resolver-rules=MAP * ~NOTFOUND", "about:blank"),
)


@dataclass(frozen=True, slots=True)
class Screen:
    """A screen on which a page is shown: its size in CSS pixels, and whether the person prefers dark colours."""

    name: str
    width: int
    height: int
    dark: bool = False
    scale: float = 1.0


@dataclass(slots=True)
class Seen:
    """What a page did: messages on the console and exceptions, requests for anything but the page itself."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    """The value of the expression on each screen."""
    pictures: list[bytes] = field(default_factory=list)
    """A PNG of each screen."""


def find_chromium() -> str | None:
    """Return the path of Chromium; None if it is not installed."""
    return shutil.which("chromium")


def look(program: str, page: Path, screens: Sequence[Screen], expression: str = "null", selector: str = "") -> Seen:
    """Open a local page, and show it on each screen.

    Args:
        program: the path of Chromium.
        page: the page.
        screens: the screens, of each of which a picture is taken.
        expression: JavaScript that is evaluated on each screen, from outside the page.
        selector: the element at the top of the picture; empty: the top of the page.
    """
    with _start(program) as address:
        return asyncio.run(_look(address, page.resolve().as_uri(), screens, expression, selector))


async def _look(address: str, url: str, screens: Sequence[Screen], expression: str, selector: str) -> Seen:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(await _find_target(session, address), max_msg_size=0) as socket,
    ):
        tab = _Tab(socket, url)
        for domain in ("Page", "Network", "Runtime", "Log"):
            await tab.ask(f"{domain}.enable")
        await tab.ask("Page.navigate", url=url)
        await tab.wait_for("Page.loadEventFired")
        for screen in screens:
            await tab.show(screen, expression, selector)
        return tab.seen


@contextmanager
def _start(program: str) -> Iterator[str]:
    """Start Chromium; yield the address of its DevTools. Raise TimeoutError if it does not start."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [program, f"--user-data-dir={folder}", *_ARGUMENTS]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield _wait_for_address(Path(folder, "DevToolsActivePort"))
        finally:
            process.terminate()
            process.wait()


def _wait_for_address(file: Path) -> str:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        lines = file.read_text().splitlines() if file.exists() else []
        if len(lines) >= 2:
            return f"http://127.0.0.1:{lines[0]}"
        time.sleep(0.05)
    raise TimeoutError(f"Chromium did not start within {START_S:g} s")


async def _find_target(session: aiohttp.ClientSession, address: str) -> str:
    async with session.get(f"{address}/json/list") as answer:
        targets = await answer.json()
    return str(next(one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page"))


class _Tab:
    """One tab: sends commands, and notes the events that come between the answers."""

    def __init__(self, socket: "aiohttp.ClientWebSocketResponse", url: str) -> None:
        self.url = url
        self.seen = Seen()
        self._socket = socket
        self._number = 0

    async def ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send a command; return its result."""
        self._number += 1
        await self._socket.send_str(json.dumps({"id": self._number, "method": method, "params": arguments}))
        while True:
            message = await self._receive()
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return dict(message["result"])

    async def wait_for(self, event: str) -> None:
        """Wait for an event."""
        while (await self._receive()).get("method") != event:
            pass

    async def show(self, screen: Screen, expression: str, selector: str) -> None:
        """Show the page on a screen; add a picture and the value of the expression to what was seen."""
        size = {"width": screen.width, "height": screen.height, "deviceScaleFactor": screen.scale, "mobile": False}
        await self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = "dark" if screen.dark else "light"
        await self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.seen.values.append(await self._evaluate(expression))
        clip = {}
        if selector:
            top = await self._evaluate(
                f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().top + scrollY"
            )
            area = {"x": 0, "y": top, "width": screen.width, "height": screen.height, "scale": 1}
            clip = {"clip": area, "captureBeyondViewport": True}
        shot = await self.ask("Page.captureScreenshot", format="png", **clip)
        self.seen.pictures.append(base64.b64decode(shot["data"]))

    async def _evaluate(self, expression: str) -> Any:
        result = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self._socket.receive_str(timeout=START_S))
        match message.get("method"):
            case "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if url != self.url and not url.startswith("data:"):
                    self.seen.requests.append(url)
            case "Runtime.exceptionThrown" | "Log.entryAdded" | "Runtime.consoleAPICalled":
                self.seen.errors.append(json.dumps(message["params"])[:1_000])
        return message
