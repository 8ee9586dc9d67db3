"""Check an output against its `run.json`: files, hashes, counts, schemas, and the values of vectors; every id is there once.

Each part is read once, a few row groups at a time. What is compared across parts goes to files on this machine
(`outputs.buckets`), so that memory does not grow with the output.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arkbeam.base.errors import StoreError
from arkbeam.base.files import exists, list_files, temporary_folder
from arkbeam.base.parallel import in_parallel
from arkbeam.base.redaction import redact
from arkbeam.base.uris import absolute, join
from arkbeam.outputs.buckets import Buckets, Keys, hash_texts, mix, repeats
from arkbeam.outputs.checks import Fault, check_rows, check_schema, hash_file
from arkbeam.outputs.published import Published, gather_rows, local_part, read_batches, read_output
from arkbeam.stages.publish import embeddings, failures, usage
from arkbeam.stages.publish.commit import PART_FOLDERS, SUCCESS
from arkbeam.stages.publish.earlier import RUN_NOTE, PartFile

FAULTS_MAX = 10
"""Most faults that a report has; the others are only counted."""
_RECORD = np.dtype([("key", np.uint64), ("part", np.uint32), ("at", np.uint32)])


@dataclass(slots=True)
class Report:
    """What a check found: the first faults, how many there are of each kind, and what was read."""

    uri: str
    rows: int
    published: int
    failed: int
    files: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def is_sound(self) -> bool:
        """True if no fault was found."""
        return not self.counts

    def add(self, *faults: Fault) -> None:
        """Count faults, and keep the first ones."""
        for fault in faults:
            self.count(fault.code, 1)
        self.faults += faults[: FAULTS_MAX - len(self.faults)]

    def count(self, code: str, faults: int) -> None:
        """Count faults without keeping them."""
        if faults:
            self.counts[code] = self.counts.get(code, 0) + faults


@dataclass(frozen=True, slots=True)
class _Part:
    """What was read of one part. `ids` and `places` are keys, one for each row: of the id, and of manifest and row."""

    faults: list[Fault]
    rows: int = 0
    bytes: int = 0
    kept: "pa.Schema | None" = None
    ids: Keys = field(default_factory=lambda: np.empty(0, np.uint64))
    places: Keys = field(default_factory=lambda: np.empty(0, np.uint64))


def verify_output(
    uri: str, *, repeated_ids_ok: bool = False, note_progress: Callable[[int], None] | None = None
) -> Report:
    """Check an output; `note_progress` is called with the number of parts that were read.

    With `repeated_ids_ok`, an id that two rows of the manifest have is no fault. Raise ConfigError if there is no
    output, StoreError if the storage fails or a run replaces the output meanwhile.
    """
    uri = absolute(uri)
    try:
        output = read_output(uri)
    except StoreError as error:
        return _damaged_note(uri, error)
    report = Report(uri, int(output.note["rows"]), int(output.note["published"]), int(output.note["failed"]))
    if not exists(join(uri, SUCCESS)):
        report.add(Fault("incomplete", SUCCESS, f"there is no {SUCCESS}: a run did not finish; run it again"))
    with temporary_folder() as folder:
        ids, places = (Buckets(folder, name, _RECORD) for name in ("ids", "places"))
        _check_parts(output, report, ids, places, note_progress or (lambda _: None))
        _check_once(output, report, places, "row_repeated", "the row of a manifest is there")
        if not repeated_ids_ok:
            _check_once(output, report, ids, "id_repeated", "the id is there")
    report.add(*_check_counts(output), *_find_others(output))
    if read_output(uri).note != output.note:
        raise StoreError(f"a run has replaced {redact(uri)} while it was checked: check it again")
    return report


def _damaged_note(uri: str, error: StoreError) -> Report:
    report = Report(uri, 0, 0, 0)
    report.add(Fault("run_note", RUN_NOTE, str(error)))
    return report


def _check_parts(
    output: Published, report: Report, ids: Buckets, places: Buckets, note_progress: Callable[[int], None]
) -> None:
    """Check each part, and gather the keys of the rows of `embeddings/` and `failures/`."""
    kept: pa.Schema | None = None
    for number, part in enumerate(in_parallel(partial(_check_part, output), output.files, output.in_flight)):
        file = output.files[number]
        report.files, report.bytes = report.files + 1, report.bytes + part.bytes
        report.add(*part.faults)
        if part.kept is not None:
            kept = kept or part.kept
            if part.kept != kept:
                report.add(Fault("schema", file.path, "its kept columns are not those of the parts before it"))
        at = np.arange(len(part.ids))
        ids.add(key=part.ids, part=number, at=at)
        places.add(key=part.places, part=number, at=at)
        note_progress(report.files)


def _check_part(output: Published, file: PartFile) -> _Part:
    with local_part(output, file) as path:
        if path is None:
            return _Part([Fault("missing", file.path, f"{RUN_NOTE} names it, but there is no such file")])
        size, digest = hash_file(path)
        if (size, digest) != (file.bytes, file.sha256):
            differ = "other bytes than" if size == file.bytes else f"{size:,} bytes instead of the {file.bytes:,} of"
            return _Part([Fault("hash", file.path, f"it has {differ} the file that was published")], bytes=size)
        try:
            return _read_part(output, file, path)
        except (pa.ArrowException, OSError, ValueError, StoreError) as error:
            words = f"it can't be read: {type(error).__name__}: {redact(str(error), 200)}"
            return _Part([Fault("unreadable", file.path, words)], bytes=size)


def _read_part(output: Published, file: PartFile, path: Path) -> _Part:
    """Check the schema and all rows of a part whose bytes are right."""
    folder = file.path.partition("/")[0]
    keyed = folder in (embeddings.FOLDER, failures.FOLDER)
    with pq.ParquetFile(path, page_checksum_verification=True) as reader:
        faults = [Fault("schema", file.path, words) for words in check_schema(folder, reader.schema_arrow)]
        rows = reader.metadata.num_rows
        if rows != file.rows:
            faults.append(Fault("rows", file.path, f"it has {rows:,} rows; {RUN_NOTE} says {file.rows:,}"))
        if faults:
            return _Part(faults, rows, file.bytes)
        kept = reader.schema_arrow if folder == embeddings.FOLDER else None
        ids, places, found = [], [], dict[str, Fault]()
        for start, table in read_batches(reader):
            for fault in check_rows(folder, file.path, start, table, output.note):
                found.setdefault(fault.code, fault)
            if keyed:
                ids.append(hash_texts(table["id"]))
                places.append(mix(hash_texts(table["manifest"]), hash_texts(table["row"])))
    none = np.empty(0, np.uint64)
    bare = None if kept is None else kept.remove_metadata()
    return _Part(
        list(found.values()), rows, file.bytes, bare, np.concatenate([none, *ids]), np.concatenate([none, *places])
    )


def _check_once(output: Published, report: Report, keys: Buckets, code: str, words: str) -> None:
    """Add a fault for each key that several rows have; the first ones with the names of the rows."""
    for records in keys.read_all():
        first = np.flatnonzero(repeats(records["key"]) == 1) - 1
        shown = first[: FAULTS_MAX - len(report.faults)]
        for position in shown.tolist():
            one, other = records[position], records[position + 1]
            where = [f"{output.files[record['part']].path} row {record['at']}" for record in (one, other)]
            report.add(Fault(code, where[0], f"{words} more than once, also in {where[1]}: {_name_row(output, one)}"))
        report.count(code, len(first) - len(shown))


def _name_row(output: Published, record: Any) -> str:
    """Return id, manifest and row of a record, for a message."""
    found = gather_rows(
        output, output.files, np.array([record["part"]]), np.array([record["at"]]), ["id", "manifest", "row"]
    )
    row = found.to_pylist()[0]
    return redact(f"id {row['id']!r}, row {row['row']} of {row['manifest']}", 300)


def _check_counts(output: Published) -> Iterator[Fault]:
    note = output.note
    sums = {folder: sum(file.rows for file in output.parts(folder)) for folder in PART_FOLDERS}
    expected = {"published": sums[embeddings.FOLDER], "failed": sums[failures.FOLDER]}
    for name, found in expected.items():
        if note[name] != found:
            yield Fault("count", RUN_NOTE, f"{name} is {note[name]:,}, but the files have {found:,} rows")
    if note["rows"] != note["published"] + note["failed"]:
        counts = f"{note['rows']:,} rows, {note['published']:,} published, {note['failed']:,} failed"
        yield Fault("count", RUN_NOTE, f"the numbers do not add up: {counts}")
    paid = (note.get("all_runs") or {}).get("requests_paid")
    if paid is not None and paid != sums[usage.FOLDER]:
        yield Fault(
            "count", RUN_NOTE, f"all_runs.requests_paid is {paid:,}, but usage/ has {sums[usage.FOLDER]:,} rows"
        )
    if output.parts(embeddings.MULTI_FOLDER) and sums[embeddings.MULTI_FOLDER] != sums[embeddings.FOLDER]:
        yield Fault(
            "count",
            RUN_NOTE,
            f"multi/ has {sums[embeddings.MULTI_FOLDER]:,} rows, embeddings/ {sums[embeddings.FOLDER]:,}",
        )


def _find_others(output: Published) -> Iterator[Fault]:
    """Yield a fault for each file in the folders of the parts that is no part of the output: readers would read it."""
    known = {file.path for file in output.files}
    for folder in PART_FOLDERS:
        for uri in list_files(join(output.uri, folder), ".parquet"):
            path = f"{folder}/{uri.rpartition(f'/{folder}/')[2]}"
            if path not in known:
                yield Fault("stray", path, f"{RUN_NOTE} does not name it: no part of the output, but readers read it")
