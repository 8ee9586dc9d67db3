"""The key of an output: 8 hex digits in the names of its runs, by which a run finds what earlier runs of its output left.

A key is random and kept in the output's folder, so that outputs of two machines with the same path do not meet in a store
that they share. Outputs of earlier versions have a hash of their URI as their key, and keep it.
"""

import re

import orjson

from arkbeam.base.errors import OutputInUse, StoreError
from arkbeam.base.files import exists, read_if_exists, write_bytes
from arkbeam.base.redaction import redact_uri
from arkbeam.base.uris import join
from arkbeam.store.layout import (
    PLAN_SUFFIX,
    damaged_folder,
    events_folder,
    journals_folder,
    run_folder,
    runs_of_output,
    segments_folder,
    uri_key,
)

OUTPUT_NOTE = ".arkbeam-output.json"
_PUBLISHED = ("run.json", "_SUCCESS")
_KEY = re.compile(r"[0-9a-f]{8}")


def find_output_key(output_uri: str, store_uri: str) -> str | None:
    """Return the key of an output; None if the output is new, and its first run chooses the key (`keep_output_key`).

    An output without a note is one of an earlier version if it holds what a run publishes, or if the store holds something
    of a run with the hash of its URI: such a run may have been killed before it published. Raise StoreError.
    """
    key = _read_key(output_uri)
    if key is not None:
        return key
    earlier = uri_key(output_uri)
    if any(exists(join(output_uri, name)) for name in _PUBLISHED) or _has_runs(store_uri, earlier):
        return earlier
    return None


def keep_output_key(output_uri: str, key: str) -> None:
    """Keep the key of an output in its folder. Only the holder of the claim on the output may call this.

    Raise OutputInUse if another first run of the output has chosen another key meanwhile; StoreError.
    """
    kept = _read_key(output_uri)
    if kept is None:
        write_bytes(join(output_uri, OUTPUT_NOTE), orjson.dumps({"key": key}))
    elif kept != key:
        raise OutputInUse(
            f"another run has begun and ended the first run of {redact_uri(output_uri)} while this one started: run again"
        )


def _read_key(output_uri: str) -> str | None:
    uri = join(output_uri, OUTPUT_NOTE)
    data = read_if_exists(uri)
    if data is None:
        return None
    try:
        key = str(orjson.loads(data)["key"])
    except (ValueError, KeyError, TypeError):
        key = ""
    if not _KEY.fullmatch(key):
        raise StoreError(
            f'{redact_uri(uri)} is damaged: write {{"key": "…"}} into it, with the 8 hex digits in the middle of `run` in'
            " run.json"
        )
    return key


def _has_runs(store_uri: str, key: str) -> bool:
    folders = (run_folder, journals_folder, segments_folder, events_folder, damaged_folder)
    return any(not run.endswith(PLAN_SUFFIX) for folder in folders for run in runs_of_output(folder(store_uri), key))
