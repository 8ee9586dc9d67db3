"""Where things lie in a store, and the names of runs and segments.

    <store>/segments/<run>/<segment>.parquet   vectors as they were bought: immutable, complete or absent
    <store>/events/<run>/<segment>.parquet     paid attempts without a vector, and refusals for good
    <store>/journals/<run>/<process>.log       attempts not yet in one of the above (local stores only)
    <store>/runs/<run>/                        a run's staged rows and notes; removed when it ends

A run's name holds the key of its output, so that what an output has paid for can be summed over all of its runs.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.errors import ConfigError
from pipeline.files import join, list_files, list_folders

SUFFIX = ".parquet"


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """The `store:` section of the config: where bought vectors are kept, and how often they are written out."""

    uri: str
    """Folder of all vectors that were ever paid for: keep it, share it between outputs."""
    flush_rows: int = 256
    """Results that a process holds before it writes them; a kill costs at most these and what is in flight."""
    flush_s: float = 10.0
    """For how long at most it holds them."""

    def __post_init__(self) -> None:
        if self.flush_rows < 1 or not self.flush_s > 0:
            raise ConfigError("store.flush_rows must be at least 1 and store.flush_s above 0")


def new_run_name(output_uri: str, now_s: float, random_hex: str) -> str:
    """Name a run: its start in UTC, the key of its output, a random part."""
    started = datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%S")
    return f"{started}-{output_key(output_uri)}-{random_hex[:8]}"


def output_key(output_uri: str) -> str:
    """Return the eight hex digits that stand for an output in the names of its runs."""
    return hashlib.blake2b(output_uri.rstrip("/").encode(), digest_size=4).hexdigest()


def new_segment_id(now_s: float, random_bits: int, previous: int) -> int:
    """Return a 64-bit id that grows with time: 42 bits of milliseconds and 22 random ones, above `previous` of this process."""
    return max((int(now_s * 1000) << 22) | (random_bits & ((1 << 22) - 1)), previous + 1)


def segment_name(segment: int) -> str:
    """Return the file name of a segment id."""
    return f"{segment:016x}{SUFFIX}"


def segment_id(uri: str) -> int:
    """Return the segment id in a file name."""
    return int(uri.rpartition("/")[2].removesuffix(SUFFIX), 16)


def run_of(uri: str) -> str:
    """Return the run that wrote a segment or an event file."""
    return uri.rsplit("/", 2)[1]


def segments_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of a run's segments, or of all."""
    return join(store_uri, "segments", run).rstrip("/")


def events_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of a run's events, or of all."""
    return join(store_uri, "events", run).rstrip("/")


def journals_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of a run's journals, or of all."""
    return join(store_uri, "journals", run).rstrip("/")


def run_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of what a run needs only while it lasts, or of all runs."""
    return join(store_uri, "runs", run).rstrip("/")


def list_parquet(folder: str) -> list[str]:
    """List the Parquet files below a folder, oldest run first."""
    return list_files(folder, SUFFIX)


def runs_of_output(folder: str, output_uri: str) -> list[str]:
    """List the runs of one output that have something in a folder of segments, events, journals or runs."""
    marker = f"-{output_key(output_uri)}-"
    return [run for run in list_folders(folder) if marker in run]
