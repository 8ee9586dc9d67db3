"""Which segments were read whole and found as they were written, so that each is verified once and not on every run.

A record is 8 bytes a segment. One that is damaged or gone costs another verification, nothing else.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from arkbeam.base.files import join, list_files, read_bytes, remove_file, write_bytes

_SUFFIX = ".ids"
_RECORDS_MAX = 32  # more are put together


def read_verified(store_uri: str, merged_name: str) -> npt.NDArray[np.uint64]:
    """Return the ids of all segments that are verified; put many records together into one of this name."""
    uris = list_files(_folder(store_uri), _SUFFIX)
    records = [_decode(read_bytes(uri)) for uri in uris]
    ids = np.unique(np.concatenate([np.empty(0, np.uint64), *records]))
    if len(uris) > _RECORDS_MAX:
        note_verified(store_uri, merged_name, ids.tolist())
        for uri in uris:
            if not uri.endswith(f"/{merged_name}{_SUFFIX}"):
                remove_file(uri)
    return ids


def note_verified(store_uri: str, name: str, ids: Iterable[int]) -> None:
    """Note segments as verified; whoever writes the same name again has the same segments or more."""
    array = np.fromiter(ids, np.dtype("<u8"))
    if len(array):
        write_bytes(join(_folder(store_uri), f"{name}{_SUFFIX}"), array.tobytes(), durable=False)


def _folder(store_uri: str) -> str:
    return join(store_uri, "verified")


def _decode(data: bytes) -> npt.NDArray[np.uint64]:
    """Read whole ids. A record that was cut short has fewer; one with a bit flipped names a segment that there is not."""
    return np.frombuffer(data[: len(data) // 8 * 8], np.dtype("<u8"))
