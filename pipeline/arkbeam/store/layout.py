"""Paths in a store, and the names of runs and segments.

    <store>/segments/<run>/<segment>-<hash>.parquet   bought vectors: immutable, complete or absent
    <store>/multi/<run>/<segment>.parquet             per-token vectors of a segment
    <store>/events/<run>/<segment>-<hash>.parquet     paid attempts without a usable vector, and permanent rejections
    <store>/journals/<run>/<process>.<n>.log          requests and replies that are not yet in a segment or event file
    <store>/journals/<run>/<process>.open             mark of a journal that no other run has recovered
    <store>/index/<id>-<hash>.parquet                 cache of where each fingerprint is, for many segments at once
    <store>/replaced/<id>-<hash>.json                 which files compaction has replaced by which, while both are there
    <store>/damaged/<run>/                            segments that were damaged
    <store>/models/<key>.json                         the model that a name or endpoint resolved to
    <store>/quota/<account>/                          marks of the processes that share a quota, while they send
    <store>/media/<segment>.parquet                   cache of facts about media, by URI; may be deleted at any time
    <store>/runs/<run>/                               staged rows and notes of a run; removed when it ends

<hash> is the hash of the file's bytes, because Parquet's checksums cover the pages, but not their headers or the
footer.

The name of a run contains the key of its output (`store.outputs`), so that the cost of an output can be summed over all
of its runs.

What compaction writes has no run. Its segments, with the vectors of all outputs, are in `segments/gathered-full/` and
`segments/gathered-part/`; the latter are small enough to be compacted again. Its event files, one for each output, are in
`events/gathered-<key of the output>-events/`.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from arkbeam.base.errors import ConfigError
from arkbeam.base.files import list_files, list_folders
from arkbeam.base.uris import join

SUFFIX = ".parquet"
HASH_CHARS = 16
GATHERED_FULL = "gathered-full"
GATHERED_PART = "gathered-part"
_GATHERED = "gathered-"
_RANDOM = (1 << 22) - 1  # the random bits of a segment id
PLAN_SUFFIX = "-plan"
"""End of the name of a run that only plans."""
_RUN_NAME = re.compile(r"(?:\d{8}T\d{6}|salvaged)-([0-9a-f]{8})-\w+|gathered-([0-9a-f]{8})-events")
EXAMPLES = {
    "segments": "run/0-0.parquet",
    "multi": "run/0.parquet",
    "events": "run/0-0.parquet",
    "journals": "run/0.log",
    "index": "0-0.parquet",
    "replaced": "0-0.json",
    "damaged": "run/0-0.parquet",
    "models": "0.json",
    "quota": "account/0.0",
    "media": "0.parquet",
    "runs": "run/rows/000000/0000000000.parquet",
}
"""The folders of a store, and in each the path of a file such as they hold."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """The `store:` section of the config: where vectors are stored, and how often they are written."""

    uri: str
    """Folder of all vectors that were ever paid for: a path or a URI of any fsspec scheme. Keep it, and use one store
    for all outputs: a vector in it is never paid for again."""
    flush_rows: int = 256
    """Most results that a process holds before it writes them as a segment. A kill does not lose them: they are in the
    journal, on object stores except for those of the last two seconds."""
    flush_s: float = 10.0
    """Longest time in seconds that a process holds a result before it is written."""
    timeout_s: float = 300.0
    """Longest time in seconds for writing a segment; if it takes longer, the run stops and unwritten results are
    lost."""
    compact: Literal["auto", "off", False] = "auto"
    """Whether a run gathers small files of the store into large ones when it has ended: `auto`, if more than a fifth of the
    bytes is in small segments, for at most a minute; `off`: only `arkbeam store compact` does so."""
    grace_h: float = 24.0
    """Hours for which the small files stay after they were gathered, so that runs that use them can finish. They also
    stay while a run lasts that began before."""

    def __post_init__(self) -> None:
        if self.compact is False:  # YAML's off is not a string
            object.__setattr__(self, "compact", "off")
        if not self.grace_h >= 0:
            raise ConfigError(f"store.grace_h must be at least 0; it is {self.grace_h:g}")
        if self.flush_rows < 1 or not self.flush_s > 0 or not self.timeout_s > 0:
            raise ConfigError(
                "store.flush_rows must be at least 1, and store.flush_s and store.timeout_s must be above 0;"
                f" they are {self.flush_rows}, {self.flush_s:g} and {self.timeout_s:g}"
            )


def new_run_name(output_key: str, now_s: float, random_hex: str) -> str:
    """Return the name of a new run: its start in UTC, the key of its output, and 8 random hex digits."""
    started = datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%S")
    return f"{started}-{output_key}-{random_hex[:8]}"


def uri_key(output_uri: str) -> str:
    """Return 8 hex digits of the hash of an output's URI: the key of an output of an earlier version, and that of plans."""
    return hashlib.blake2b(output_uri.rstrip("/").encode(), digest_size=4).hexdigest()


def new_segment_id(now_s: float, random_bits: int, previous: int) -> int:
    """Return a 64-bit id that grows with time, above `previous`: 42 bits of milliseconds, then 22 random bits."""
    return max((int(now_s * 1000) << 22) | (random_bits & _RANDOM), previous + 1)


def id_in_place_of(segments: Iterable[int], random_bits: int) -> int:
    """Return an id for a segment that replaces others: of the millisecond of the first of them.

    So the vectors of a store keep their order, and the output that is cut along it keeps its parts.
    """
    return (min(segments) & ~_RANDOM) | (random_bits & _RANDOM)


def segment_ids() -> Iterator[int]:
    """Yield ids for the segments of this process, in increasing order."""
    previous = 0
    while True:
        previous = new_segment_id(time.time(), secrets.randbits(22), previous)
        yield previous


def segment_name(segment: int, content_hash: str = "") -> str:
    """Return the file name of a segment id, with the hash of the file's bytes if one is given."""
    return f"{segment:016x}-{content_hash}{SUFFIX}" if content_hash else f"{segment:016x}{SUFFIX}"


def segment_id(uri: str) -> int:
    """Return the segment id in a file name."""
    return int(uri.rpartition("/")[2].removesuffix(SUFFIX).partition("-")[0], 16)


def hash_in_name(uri: str) -> str:
    """Return the hash that a file's name contains; empty if it contains none."""
    return uri.rpartition("/")[2].removesuffix(SUFFIX).partition("-")[2]


def hash_content(data: bytes) -> str:
    """Return the first 64 bits of the SHA-256 of a file's bytes in hex. It takes 0.5 ms per MB with the CPU's instructions."""
    return hashlib.sha256(data).hexdigest()[:HASH_CHARS]


def hash_file(path: Path) -> str:
    """Return what `hash_content` returns for a local file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_CHARS]


def run_of(uri: str) -> str:
    """Return the run that wrote a segment or an event file: the name of its folder."""
    return uri.rsplit("/", 2)[1]


def is_gathered(run: str) -> bool:
    """True for the name of a folder in which compaction writes, False for that of a run."""
    return run.startswith(_GATHERED)


def gathered_events(key: str) -> str:
    """Return the name of the folder of the events that compaction has gathered from the runs of an output."""
    return f"{_GATHERED}{key}-events"


def salvaged_run(run: str) -> str:
    """Return the name under which attempts are recorded that are read from a damaged file in the folder of a run."""
    return run.replace(_GATHERED, "salvaged-", 1)


def key_of_run(run: str) -> str | None:
    """Return the key of the output in the name of a run, or of a folder of gathered events; None if it has none."""
    match = _RUN_NAME.fullmatch(run)
    return None if match is None else match[1] or match[2]


def start_of_run(run: str) -> float | None:
    """Return the Unix time in the name of a run; None if there is none."""
    try:
        return datetime.strptime(run.partition("-")[0], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def segments_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of a run's segments, or that of all runs."""
    return join(store_uri, "segments", run).rstrip("/")


def multi_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of the per-token vectors of a run's segments, or that of all runs."""
    return join(store_uri, "multi", run).rstrip("/")


def events_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of a run's events, or that of all runs."""
    return join(store_uri, "events", run).rstrip("/")


def journals_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of a run's journals, or that of all runs."""
    return join(store_uri, "journals", run).rstrip("/")


def media_folder(store_uri: str) -> str:
    """Return the folder of the media cache."""
    return join(store_uri, "media")


def damaged_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of a run's files that were set aside, or that of all runs."""
    return join(store_uri, "damaged", run).rstrip("/")


def models_folder(store_uri: str) -> str:
    """Return the folder of the records of models."""
    return join(store_uri, "models")


def index_folder(store_uri: str) -> str:
    """Return the folder of the index files."""
    return join(store_uri, "index")


def replaced_folder(store_uri: str) -> str:
    """Return the folder of the records of what compaction has replaced."""
    return join(store_uri, "replaced")


def run_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of the files that a run needs only until it ends, or that of all runs."""
    return join(store_uri, "runs", run).rstrip("/")


def list_parquet(folder: str) -> list[str]:
    """List the Parquet files below a folder, sorted by path. Runs of the same second have no order."""
    return list_files(folder, SUFFIX)


def runs_of_output(folder: str, output_key: str) -> list[str]:
    """List the runs of an output that have a folder below `folder`, which has one folder per run (of all outputs)."""
    marker = f"-{output_key}-"
    return [run for run in list_folders(folder) if marker in run]
