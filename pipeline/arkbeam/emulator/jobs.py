"""From a body to a job: parsed, its loopback media fetched, counted and checked. Much work goes to threads."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from arkbeam.base.capabilities import Capabilities
from arkbeam.base.records import Usage
from arkbeam.emulator.contract import hash_content, parse_request
from arkbeam.emulator.download import is_loopback
from arkbeam.emulator.media import see_part
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.parts import EmbeddingRequest, TextPart
from arkbeam.emulator.replies import refuse
from arkbeam.emulator.usage import count_usage

_INLINE_BYTES_MAX = 20_000
"""Larger bodies are worked on in a thread, so that they don't hold up the others."""

_DOWNLOADS_MAX = 32

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Job:
    """A request that keeps to the contract: what it costs, the hash of what it means, and whether it is much work."""

    request: EmbeddingRequest
    usage: Usage
    content_hash: bytes
    large: bool


async def run(
    large: bool, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Do what is much work in a thread, and the rest at once."""
    return await asyncio.to_thread(work, *args, **kwargs) if large else work(*args, **kwargs)


class JobReader:
    """Makes jobs of bodies, for one server."""

    def __init__(self, options: EmulatorOptions) -> None:
        """Prepare without starting a thread."""
        self._options = options
        self._downloads = ThreadPoolExecutor(_DOWNLOADS_MAX, "download")  # each waits: they must not hold up other work

    async def read(self, body: bytes) -> Job:
        """Read a request, fetch what is behind its loopback URLs, and check it. Raises Refused."""
        large = len(body) > _INLINE_BYTES_MAX
        request, caps = await run(large, parse_request, body, self._options.endpoints)
        if any(not isinstance(part, TextPart) and is_loopback(part.url) for part in request.parts):
            request, large = await self._fetch(request), True
        return await run(large, self._check, request, caps, large)

    async def _fetch(self, request: EmbeddingRequest) -> EmbeddingRequest:
        loop = asyncio.get_running_loop()
        looks = [
            loop.run_in_executor(self._downloads, see_part, part, f"input[{index}]")
            for index, part in enumerate(request.parts)
        ]
        return replace(request, parts=tuple(await asyncio.gather(*looks)))

    def _check(self, request: EmbeddingRequest, caps: Capabilities, large: bool) -> Job:
        usage = count_usage(request, caps.context_tokens)
        if (usage.total_tokens or 0) > caps.context_tokens:
            raise refuse("OutofContextError", "input", f"more than {caps.context_tokens}")
        poison = self._options.poison
        if poison and any(isinstance(part, TextPart) and poison in part.text for part in request.parts):
            raise refuse("SensitiveContentDetected", "input")
        return Job(request, usage, hash_content(request), large)
