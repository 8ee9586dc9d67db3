"""Find a run by its name, its output or its config; and its result, if it has ended.

The note `running` of a run is in its folder in the store until that is removed. The result is in the same folder, and in
`run.json` of the output, if the run has published it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from arkbeam.app.config import load_config
from arkbeam.app.output_uri import find_outputs, stands_for
from arkbeam.app.run_note import RunNote, read_newest_notes, read_run_note
from arkbeam.base.errors import ConfigError
from arkbeam.base.files import list_folders, read_if_exists
from arkbeam.base.redaction import redact_uri
from arkbeam.base.uris import absolute, lower_scheme
from arkbeam.outputs.published import open_output
from arkbeam.stages.publish.earlier import RUN_NOTE
from arkbeam.store.layout import run_folder, start_of_run
from arkbeam.store.run_files import note_uri

OUTPUTS_MAX = 64  # newest outputs of one URI whose run.json is read
_NAME = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}(-\w+)?")


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run. `note` is None if its folder has been removed, `result` if it has not ended, as far as is known."""

    name: str
    store_uri: str
    output_uri: str
    note: RunNote | None
    result: dict[str, Any] | None


def find_run(what: str, *, store: str | None, config: str | None = None, settings: Sequence[str] = ()) -> FoundRun:
    """Find the run that `what` names: its name or its id, its output, or a config, for the newest run of its output.

    `store` and `config` say where the store is; `settings` override keys of the config. Raise ConfigError if there is no
    such run, or if the store is not known; StoreError.
    """
    path = config if config is not None else what if Path(what).is_file() else None
    loaded = None if path is None else load_config(path, settings)
    output_uri = None if loaded is None else absolute(loaded.output.uri)
    store_uri = absolute(lower_scheme(store)) if store else absolute(loaded.store.uri) if loaded else None
    if _NAME.fullmatch(what):
        return _find_by_name(what, store_uri, output_uri)
    if output_uri is None or path != what:
        output_uri = absolute(lower_scheme(what))
    return _find_newest(output_uri, store_uri)


def read_result(run: FoundRun) -> dict[str, Any] | None:
    """Return the result of a run; None if it has not ended. Raise StoreError."""
    data = read_if_exists(note_uri(run.store_uri, run.name, "result"))
    if data is not None:
        result: dict[str, Any] = orjson.loads(data)
        return result
    published = _read_published(run.output_uri)
    return published if published is not None and published["run"] == run.name else None


def _find_by_name(name: str, store_uri: str | None, output_uri: str | None) -> FoundRun:
    if store_uri is None:
        raise ConfigError(f"to find run {name}, give its store: --store URI, or --config CONFIG")
    run = name if name.count("-") > 1 else _find_by_id(name, store_uri)
    note = None if run is None else read_run_note(store_uri, run)
    if note is not None:
        return _with_result(note, store_uri)
    for uri in islice(find_outputs(output_uri, list_folders) if output_uri else [], OUTPUTS_MAX):
        published = _read_published(uri)
        if published is not None and _is_named(published["run"], name):
            return FoundRun(published["run"], store_uri, uri, None, published)
    raise ConfigError(
        f"run {name} has no files in {redact_uri(store_uri)}: it has never been there, or it has ended; then run.json of its"
        " output has its result, and `arkbeam status OUTPUT` shows it"
    )


def _with_result(note: RunNote, store_uri: str) -> FoundRun:
    run = FoundRun(note.run, store_uri, note.output, note, None)
    return replace(run, result=read_result(run))


def _find_by_id(run_id: str, store_uri: str) -> str | None:
    names = list_folders(run_folder(store_uri))
    return next((name for name in names if _is_named(name, run_id)), None)


def _is_named(run: str, name: str) -> bool:
    """True if a name, or the id `<start>-<digits>`, is that of a run."""
    return name in (run, "-".join(run.split("-")[::2]))


def _find_newest(output_uri: str, store_uri: str | None) -> FoundRun:
    """Return the newest run of an output, or of the outputs that a URI with names stands for."""
    outputs = islice(find_outputs(output_uri, list_folders), OUTPUTS_MAX)
    published = next(((uri, note) for uri in outputs if (note := _read_published(uri)) is not None), None)
    if store_uri is None:
        if published is None:
            raise ConfigError(
                f"{redact_uri(output_uri)} has no {RUN_NOTE}, so its store is not known: give --store URI or --config CONFIG"
            )
        store_uri = absolute(published[1]["config"]["store"]["uri"])
    latest = _find_newest_note(output_uri, store_uri)
    if latest is not None and (published is None or _start_of(latest.run) >= _start_of(published[1]["run"])):
        return _with_result(latest, store_uri)
    if published is None:
        raise ConfigError(
            f"{redact_uri(store_uri)} has no run of {redact_uri(output_uri)}: none has begun, or the last one has ended"
            " without an output"
        )
    uri, result = published
    return FoundRun(result["run"], store_uri, uri, None, result)


def _find_newest_note(output_uri: str, store_uri: str) -> RunNote | None:
    notes = read_newest_notes(store_uri, list_folders(run_folder(store_uri)))
    return next((note for note in notes if stands_for(output_uri, note.output)), None)


def _start_of(run: str) -> float:
    return start_of_run(run) or 0.0


def _read_published(output_uri: str) -> dict[str, Any] | None:
    """Return `run.json` of a complete output; None if there is none. Raise StoreError if it is damaged."""
    try:
        return dict(open_output(output_uri).note)
    except ConfigError:
        return None
