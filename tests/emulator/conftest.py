"""An emulator in memory, and small media to send to it."""

import asyncio
import base64
import io
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from arkbeam.emulator.app import EMBEDDINGS_PATH, STATS_PATH, make_app
from arkbeam.emulator.options import EmulatorOptions
from PIL import Image


class Server:
    """One application, called over ASGI; its clock stands still unless a test changes it."""

    def __init__(self, options: EmulatorOptions) -> None:
        self.now_s = 1_743_575_029.461
        self.raise_exceptions = True
        self._app = make_app(options, clock=lambda: self.now_s)

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send one request and return the response."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=self.raise_exceptions)
            async with httpx.AsyncClient(transport=transport, base_url="http://stand-in") as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(send())

    def embed(self, *, key: str = "any", **fields: Any) -> httpx.Response:
        """Post a body with these fields; the default `input` is a short text."""
        body = {"model": "doubao-embedding-vision-251215", "input": [{"type": "text", "text": "hello"}], **fields}
        return self.request("POST", EMBEDDINGS_PATH, json=body, headers={"Authorization": f"Bearer {key}"})

    def stats(self) -> dict[str, Any]:
        """Read the server's counts."""
        return self.request("GET", STATS_PATH).json()


@pytest.fixture
def make_server() -> Callable[[EmulatorOptions], Server]:
    """Make a server with given options."""
    return Server


@pytest.fixture
def server() -> Server:
    """A server with the default options."""
    return Server(EmulatorOptions())


@pytest.fixture
def image_uri() -> Callable[..., str]:
    """Make a data URI of an image of one colour, or of what a function draws."""

    def make(
        colour: tuple[int, int, int] = (255, 0, 0),
        size: tuple[int, int] = (64, 48),
        draw: Callable[[Image.Image], None] = lambda picture: None,
    ) -> str:
        picture = Image.new("RGB", size, colour)
        draw(picture)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    return make
