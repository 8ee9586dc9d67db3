"""Fixtures of the tests with the vendor's clients: a server, and our own client to compare with."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from arkbeam.ark.client import ApiOptions, ArkClient
from arkbeam.ark.wire import WireOptions, encode_request
from arkbeam.base.capabilities import EncodingFormat, MultiEmbedding
from arkbeam.base.records import Modality, Part, Request
from arkbeam.base.replies import Reply
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator

GOLDEN = Path(__file__).parent.parent / "ark" / "golden"


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The base URL of an emulator in another process."""
    with start_emulator(EmulatorOptions()) as url:
        yield url


@pytest.fixture(scope="session")
def page_request() -> dict[str, Any]:
    """The request of the contract page's example, from our golden file."""
    request: dict[str, Any] = json.loads((GOLDEN / "request_contract_example.json").read_bytes())
    return request


@pytest.fixture(scope="session")
def page_reply() -> bytes:
    """The reply of the contract page's example, with its shortened list filled up to 2,048 values."""
    return (GOLDEN / "reply_contract_example.json").read_bytes()


def ask(url: str, body: dict[str, Any]) -> Reply:
    """Send the request of a body with our own client and return the decoded reply."""
    parts = tuple(
        Part(Modality(item["type"].removesuffix("_url")), item.get("text") or item[item["type"]]["url"])
        for item in body["input"]
    )
    sparse = body.get("sparse_embedding") == {"type": "enabled"}
    multi: MultiEmbedding = "plain" if body.get("multi_embedding") == {"type": "enabled"} else "off"
    request = Request(parts, body.get("instructions"), sparse)
    options = WireOptions(body["model"], body.get("dimensions"), EncodingFormat.BASE64, multi)

    async def embed() -> Reply:
        client = ArkClient(ApiOptions(base_url=url), "any", connections_max=1)
        try:
            return await client.embed(
                encode_request(request, options),
                modality=request.modality,
                client_request_id="ours",
                dimensions=options.dimensions or 2048,
                sparse=sparse,
                multi=multi == "plain",
            )
        finally:
            await client.aclose()

    return asyncio.run(embed())


@pytest.fixture
def ask_with_ours(server_url: str) -> Callable[[dict[str, Any]], Reply]:
    """Sends a request body to the server with our own client; returns the decoded reply."""
    return lambda body: ask(server_url, body)
