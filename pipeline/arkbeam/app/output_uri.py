"""Names in `output.uri` that a run replaces when it starts, and the outputs that such a URI stands for.

    {run_date}   date of the start in UTC, such as 2026-11-26
    {run_id}     start in UTC and random digits, such as 20261126T013000-5f0e9a2c

The name of a run is its `{run_id}` with the key of its output in the middle (`store.layout.new_run_name`). The key is a
hash of the output's URI, so the whole name can't be a part of that URI.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from arkbeam.base.errors import ConfigError
from arkbeam.base.redaction import redact
from arkbeam.base.uris import join

NAMES = {"run_date": r"\d{4}-\d{2}-\d{2}", "run_id": r"\d{8}T\d{6}-[0-9a-f]{8}"}
"""The names, and what stands for each in a URI."""
_IN_BRACES = re.compile(r"\{([\w .-]*)\}")


def check_names(uri: str) -> None:
    """Raise ConfigError, which names the nearest name, if `output.uri` has another name in braces."""
    for name in _IN_BRACES.findall(uri):
        if name not in NAMES:
            near = (*difflib.get_close_matches(name, NAMES, n=1, cutoff=0.3), "run_date")[0]
            raise ConfigError(f"output.uri: unknown name {{{redact(name, 100)}}}: did you mean {{{near}}}?")


def check_store(store_uri: str) -> None:
    """Raise ConfigError if `store.uri` has such a name: each run would have a new store, and buy everything again."""
    for name in _IN_BRACES.findall(store_uri):
        if name in NAMES:
            raise ConfigError(
                f"store.uri: {{{name}}} is for output.uri only: with a new store, every vector would be bought again"
            )


def has_names(uri: str) -> bool:
    """True if a URI stands for several outputs."""
    return any(name in NAMES for name in _IN_BRACES.findall(uri))


def resolve(uri: str, started_s: float, random_hex: str) -> str:
    """Return `output.uri` with the names replaced, for a run that starts at a Unix time."""
    started = datetime.fromtimestamp(started_s, UTC)
    values = {"run_date": f"{started:%Y-%m-%d}", "run_id": f"{started:%Y%m%dT%H%M%S}-{random_hex[:8]}"}
    return _IN_BRACES.sub(lambda found: values.get(found[1], found[0]), uri)


def stands_for(uri: str, output_uri: str) -> bool:
    """True if `output_uri` is the URI, or can result from the names in it."""
    return _pattern(uri.rstrip("/")).fullmatch(output_uri.rstrip("/")) is not None


def find_outputs(uri: str, list_folders: Callable[[str], Sequence[str]]) -> Iterator[str]:
    """Yield the outputs that exist and that a URI stands for, the newest one first. A URI without names is yielded itself.

    `list_folders` returns the names of the folders in a folder.
    """
    done, _, rest = uri.rstrip("/").partition("{")
    done, _, begun = done.rpartition("/")
    yield from _find(done, [] if not has_names(uri) else f"{begun}{{{rest}".split("/"), uri, list_folders)


def _find(base: str, segments: Sequence[str], uri: str, list_folders: Callable[[str], Sequence[str]]) -> Iterator[str]:
    if not segments:
        yield base if has_names(uri) else uri.rstrip("/")
        return
    first, *rest = segments
    names = [first]
    if has_names(first):
        pattern = _pattern(first)
        found = [match for name in list_folders(base or "/") if (match := pattern.fullmatch(name))]
        names = [match[0] for match in sorted(found, key=lambda match: match.groups(), reverse=True)]
    for name in names:
        yield from _find(join(base, name), rest, uri, list_folders)


def _pattern(text: str) -> re.Pattern[str]:
    """Return a pattern with a group for each name."""
    pieces = _IN_BRACES.split(text)  # at odd positions: what is in braces
    words = (
        f"({NAMES[piece]})" if at % 2 and piece in NAMES else re.escape(f"{{{piece}}}" if at % 2 else piece)
        for at, piece in enumerate(pieces)
    )
    return re.compile("".join(words))
