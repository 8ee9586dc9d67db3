"""Where things lie in a store, and the names of runs and segments.

    <store>/segments/<run>/<segment>-<hash>.parquet   vectors as they were bought: immutable, complete or absent
    <store>/multi/<run>/<segment>.parquet             the vectors of tokens of a segment
    <store>/events/<run>/<segment>-<hash>.parquet     paid attempts without a vector, and refusals for good
    <store>/journals/<run>/<process>.log              attempts not yet in one of the above (local stores only)
    <store>/verified/<name>.ids                       segments that were read whole and found as they were written
    <store>/damaged/<run>/                            files that were not
    <store>/quota/<account>/                          marks of the processes that share a quota, while they send
    <store>/media/<segment>.parquet                   what was found out about media, by URI: may be deleted at any time
    <store>/runs/<run>/                               a run's staged rows and notes; removed when it ends

<hash> is of the file's bytes: Parquet's checksums cover pages, but neither their headers nor the footer.

A run's name holds the key of its output, so that what an output has paid for can be summed over all of its runs.
"""

import hashlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from arkbeam.base.errors import ConfigError
from arkbeam.base.files import join, list_files, list_folders

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
    timeout_s: float = 300.0
    """A store that takes longer to write a segment ends the run; what is waiting then is lost."""

    def __post_init__(self) -> None:
        if self.flush_rows < 1 or not self.flush_s > 0 or not self.timeout_s > 0:
            raise ConfigError("store.flush_rows must be at least 1, store.flush_s and store.timeout_s above 0")


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


def segment_ids() -> Iterator[int]:
    """Give ids for this process's segments, ever larger."""
    previous = 0
    while True:
        previous = new_segment_id(time.time(), secrets.randbits(22), previous)
        yield previous


def segment_name(segment: int, content_hash: str = "") -> str:
    """Return the file name of a segment id, with the hash of its bytes where it carries one."""
    return f"{segment:016x}-{content_hash}{SUFFIX}" if content_hash else f"{segment:016x}{SUFFIX}"


def segment_id(uri: str) -> int:
    """Return the segment id in a file name."""
    return int(uri.rpartition("/")[2].removesuffix(SUFFIX).partition("-")[0], 16)


def hash_in_name(uri: str) -> str:
    """Return the hash that a file's name says its bytes have; empty when it says none."""
    return uri.rpartition("/")[2].removesuffix(SUFFIX).partition("-")[2]


def hash_content(data: bytes) -> str:
    """Return 64 bits of SHA-256 over a file's bytes, in hex (0.5 ms a MB, with the CPU's own instructions)."""
    return hashlib.sha256(data).hexdigest()[:16]


def run_of(uri: str) -> str:
    """Return the run that wrote a segment or an event file."""
    return uri.rsplit("/", 2)[1]


def segments_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of a run's segments, or of all."""
    return join(store_uri, "segments", run).rstrip("/")


def multi_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of the vectors of tokens of a run's segments, or of all."""
    return join(store_uri, "multi", run).rstrip("/")


def events_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of a run's events, or of all."""
    return join(store_uri, "events", run).rstrip("/")


def journals_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of a run's journals, or of all."""
    return join(store_uri, "journals", run).rstrip("/")


def media_folder(store_uri: str) -> str:
    """Return the folder of what is known of media."""
    return join(store_uri, "media")


def damaged_folder(store_uri: str, run: str = "") -> str:
    """Return the folder of a run's files that were set aside, or of all."""
    return join(store_uri, "damaged", run).rstrip("/")


def verified_folder(store_uri: str) -> str:
    """Return the folder of the records of verified segments."""
    return join(store_uri, "verified")


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
