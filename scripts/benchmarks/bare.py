"""The loop that throughput is compared with: it sends encoded requests with WORKERS workers and decodes the replies.

    python -m scripts.benchmarks.bare httpx|ark BASE_URL COUNT WORKERS

`httpx` uses a plain `httpx.AsyncClient` over the aiohttp transport, `ark` this project's client. The module prints
{"seconds": …}: the wall time of the loop, without the encoding of the requests.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import httpx
from arkbeam.ark.client import ApiOptions, ArkClient, endpoint_url, new_client_request_id
from arkbeam.ark.wire import WireOptions, decode_reply, encode_request
from arkbeam.base.records import Modality, Part, Request
from httpx_aiohttp import AiohttpTransport

from scripts.benchmarks.runs import DIMENSIONS, MODEL
from scripts.benchmarks.texts import make_texts

Send = Callable[[bytes], Awaitable[object]]


def encode_bodies(count: int) -> list[bytes]:
    """Encode the requests of `count` texts."""
    options = WireOptions(MODEL, DIMENSIONS)
    return [encode_request(Request((Part(Modality.TEXT, text),)), options) for text in make_texts(count)]


async def open_httpx(base_url: str, stack: AsyncExitStack) -> Send:
    """Return a function that sends an encoded request with a plain httpx client and decodes the reply."""
    headers = {"Authorization": "Bearer stand-in", "Content-Type": "application/json"}
    client = await stack.enter_async_context(
        httpx.AsyncClient(transport=AiohttpTransport(), headers=headers, timeout=60.0)
    )
    url = endpoint_url(base_url)

    async def send(body: bytes) -> object:
        answer = await client.post(url, content=body)
        return decode_reply(answer.raise_for_status().content, dimensions=DIMENSIONS, sparse=False)

    return send


async def open_ark(base_url: str, workers: int, stack: AsyncExitStack) -> Send:
    """Return a function that sends an encoded request with this project's client, which decodes the reply."""
    client = ArkClient(ApiOptions(base_url=base_url), "stand-in", connections_max=workers)
    stack.push_async_callback(client.aclose)
    source = random.Random(0)

    async def send(body: bytes) -> object:
        name = new_client_request_id(time.time(), source)
        return await client.embed(
            body, modality=Modality.TEXT, client_request_id=name, dimensions=DIMENSIONS, sparse=False
        )

    return send


async def send_all(kind: str, base_url: str, bodies: list[bytes], workers: int) -> float:
    """Send all requests; return the wall time in seconds."""
    waiting: Iterator[bytes] = iter(bodies)
    async with AsyncExitStack() as stack:
        send = await (open_httpx(base_url, stack) if kind == "httpx" else open_ark(base_url, workers, stack))

        async def work() -> None:
            for body in waiting:
                await send(body)

        start_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())
        return time.perf_counter() - start_s


def main(kind: str, base_url: str, count: str, workers: str) -> None:
    """Run one loop and print its wall time."""
    seconds = asyncio.run(send_all(kind, base_url, encode_bodies(int(count)), int(workers)))
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
