"""Publish: files are compared with the manifests' lines, and the commit is killed at every step."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.app.config import parse_config
from arkbeam.app.prepare import Job, prepare_job
from arkbeam.app.report import summary_table
from arkbeam.app.view import Rates, describe_progress
from arkbeam.base import schema
from arkbeam.base.capabilities import cost_cny
from arkbeam.base.errors import StoreError
from arkbeam.base.records import Failure, Usage
from arkbeam.base.replies import Reply, Sparse
from arkbeam.engine.outcomes import Counts, RunReport, Status, Stop, StopKind
from arkbeam.manifest.staging import request_from_json
from arkbeam.quota.use import FoundLimits, QuotaUse
from arkbeam.stages.plan import NOT_BOUGHT, PlanTotals, plan_bucket, settle_bucket
from arkbeam.stages.publish import commit as commit_module
from arkbeam.stages.publish import embeddings, failures, parts
from arkbeam.stages.publish.commit import SUCCESS, Commit, begin_commit, describe_run, end_run, finish_commit
from arkbeam.stages.publish.cuts import count_rows, cut_rows, find_marks, number_parts
from arkbeam.stages.publish.earlier import RUN_NOTE, Earlier, PartFile
from arkbeam.stages.publish.embeddings import publish_parts
from arkbeam.stages.publish.failures import write_failures_part
from arkbeam.stages.publish.parts import Manifests, assign_parts, count_by, part_numbers
from arkbeam.stages.publish.usage import (
    UsagePart,
    count_own_outcomes,
    count_paid_twice,
    list_usage_sources,
    publish_usage_part,
)
from arkbeam.stages.read import ShardSummary, open_index, stage_shard
from arkbeam.store.claim import MARK_NAME
from arkbeam.store.events import Event, EventKind, write_events
from arkbeam.store.layout import list_parquet, new_run_name, segment_id, segments_folder, uri_key
from arkbeam.store.run_files import note_uri, read_rows_at
from arkbeam.store.segments import Attempt, Bought, read_index, segment_table, write_segment
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

DIMENSIONS = 1024
OLD_SECONDS = 1_743_575_029


def _vector(text: str) -> Any:
    """Return the vector of a text in these tests; only the first values differ between texts."""
    values = np.zeros(DIMENSIONS, np.float32)
    values[:4] = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=4).digest(), np.uint8)
    values[4] = 1.0
    return values


def _bought(fingerprint: bytes, text: str, number: int, **usage: Any) -> Bought:
    sparse = Sparse(np.array([number], np.uint32), np.array([0.5], np.float32)) if number % 2 else None
    reply = Reply(
        id=f"request-{number}",
        model="doubao-embedding-vision-251215",
        created=OLD_SECONDS + number,
        dense=_vector(text),
        sparse=sparse,
        norm=np.float32(np.linalg.norm(_vector(text))),
        usage=usage.get("usage", Usage(10 + number, 10 + number, 10, number)),
        usage_flaw=None,
        stand_in=True,
    )
    return Bought(Attempt(fingerprint, f"client-{number}", 1, 1.0), reply)


@dataclass
class Run:
    """Staged manifests, a store with vectors, and the expected content of every line."""

    job: Job
    summaries: list[ShardSummary]
    keys: pa.Table
    texts: dict[bytes, str]
    lines: dict[tuple[str, int], dict[str, Any] | None]
    """The row by manifest and physical line; None if the line can't be read. Blank lines are left out."""

    @property
    def manifests(self) -> Manifests:
        """The manifests and first rows of the shards."""
        return Manifests.of(self.summaries)

    @property
    def unreadable(self) -> list[int]:
        """The shards with unreadable rows."""
        return [summary.number for summary in self.summaries if summary.unreadable]

    def fill_store(self, chance: random.Random, share: float, segments: int = 3) -> None:
        """Write segments; each has the vectors of about this share of the texts."""
        numbers = count()
        for segment in range(1, segments + 1):
            wanted = [name for name in self.texts if chance.random() < share] or [next(iter(self.texts))]
            chance.shuffle(wanted)
            bought = [_bought(name, self.texts[name], next(numbers)) for name in wanted]
            spec = self.job.spec
            write_segment(spec.store.uri, spec.run.name, segment, segment_table(bought, DIMENSIONS))

    def segments(self) -> dict[int, str]:
        """Return the URIs of the store's segments by id."""
        return {segment_id(uri): uri for uri in list_parquet(segments_folder(self.job.spec.store.uri))}

    def publish(self, refs: pa.Table, segments: Mapping[int, str] | None = None, part: int = 0) -> PartFile:
        """Write a part of `embeddings/` of an output that holds nothing."""
        held = self.segments() if segments is None else segments
        (file,) = publish_parts(part, refs, held, self.manifests, self.job.spec, Earlier())
        return file

    def refs(self) -> pa.Table:
        """Return the REFS of all rows whose vector the store has."""
        return plan_bucket([self.keys], [read_index(uri) for uri in self.segments().values()], []).owned


def _write_lines(path: Path, chance: random.Random, rows: int, texts: int, cell: Callable[[], Any]) -> list[Any]:
    """Write a manifest with duplicates, blank and broken lines; return the row of each line, "" for a blank one."""
    said: list[Any] = []
    with path.open("wb") as file:
        for number in range(rows):
            kind = chance.random()
            if kind < 0.1:
                said.append("")
                file.write(b"\n")
            elif kind < 0.2:
                said.append(None)
                file.write(b'{"text": broken %d\n' % number)
            else:
                row = {"text": f"文本 {chance.randrange(texts)}", "price": cell()}
                if chance.random() < 0.5:
                    row["id"] = f"id-{number}"
                said.append(row)
                file.write(orjson.dumps(row) + b"\n")
    return said


def _stage(folder: Path, seed: int = 0, rows: int = 40) -> Run:
    """Stage two manifests of several shards each; their kept columns have different types."""
    chance = random.Random(seed)
    (folder / "in").mkdir()
    manifests = {
        str(folder / "in/a.jsonl"): _write_lines(folder / "in/a.jsonl", chance, rows, 15, lambda: chance.randrange(9)),
        str(folder / "in/b.jsonl"): _write_lines(folder / "in/b.jsonl", chance, rows, 15, lambda: chance.choice("xyz")),
    }
    raw = {
        "manifest": {"uris": f"{folder}/in/*.jsonl", "keep": ["price", "nowhere"], "shard_bytes_max": 600},
        "model": {"name": "doubao-embedding-vision-251215", "dimensions": DIMENSIONS},
        "api": {"base_url": "emulator"},
        "store": {"uri": f"{folder}/store"},
        "output": {"uri": f"{folder}/out"},
    }
    job = prepare_job(parse_config(raw), base_url="http://127.0.0.1:1/api/v3")
    (folder / "out").mkdir()
    (folder / "out" / MARK_NAME).write_bytes(orjson.dumps({"run": job.spec.run.name}))  # the claim that a job has
    summaries, keys, texts = [], [], {}
    for shard in job.shards:
        *tables, summary = stage_shard(shard, job.spec)
        assert isinstance(summary, ShardSummary)
        summaries.append(summary)
        keys += [table for table in tables if isinstance(table, pa.Table)]
        everything = np.arange(summary.staged, dtype=np.uint32)
        for table in read_rows_at(
            job.spec.store.uri, job.spec.run.name, shard.number, everything, ["fingerprint", "request"]
        ):
            for name, request in zip(*(column.to_pylist() for column in table.columns), strict=True):
                texts[name] = request_from_json(request).request.parts[0].value
    lines = {(uri, at): row for uri, said in manifests.items() for at, row in enumerate(said) if row != ""}
    return Run(job, summaries, schema.concat(keys, schema.KEYS), texts, lines)


def _read(run: Run, file: PartFile) -> pa.Table:
    """Read a published file, and check its size, rows and hash."""
    path = Path(run.job.spec.run.output_uri) / file.path
    table = pq.read_table(path)
    assert (file.rows, file.bytes) == (table.num_rows, path.stat().st_size)
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    return table


@settings(max_examples=12)
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 16_384]))
def test_each_row_has_the_vector_of_its_own_text(
    tmp_path_factory: pytest.TempPathFactory, seed: int, slice_rows: int
) -> None:
    """Id, manifest, row, vector and kept columns of each line are right for any shards, segments and slices."""
    run = _stage(tmp_path_factory.mktemp("run"), seed)
    run.fill_store(random.Random(seed), 0.6)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embeddings, "PART_ROWS", slice_rows)
        table = _read(run, run.publish(run.refs(), part=4))
    owned = {run.texts[name] for uri in run.segments().values() for name in read_index(uri)["fingerprint"].to_pylist()}
    expected = {place: row for place, row in run.lines.items() if row is not None and row["text"] in owned}
    published = {(row["manifest"], row["row"]): row for row in table.to_pylist()}
    assert table.num_rows == len(published)
    assert set(published) == set(expected)
    for (manifest, number), row in published.items():
        line = expected[manifest, number]
        assert row["id"] == line.get("id", f"{Path(manifest).name}:{number}")
        assert row["dense"] == _vector(line["text"]).tolist()
        assert run.texts[row["fingerprint"]] == line["text"]
        assert (row["price"], row["nowhere"]) == (str(line["price"]), None)
        request = int(row["request_id"].removeprefix("request-"))
        assert row["sparse"] == ({"indices": [request], "values": [0.5]} if request % 2 else None)
        assert (row["prompt_tokens"], row["image_tokens"]) == (10 + request, request)


def test_a_part_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    """The same rows in another order give the same part, byte for byte."""
    run = _stage(tmp_path)
    run.fill_store(random.Random(1), 0.9)
    refs = run.refs()
    first = run.publish(refs)
    shuffled = refs.take(pa.array(np.random.default_rng(1).permutation(refs.num_rows)))
    assert run.publish(shuffled) == first


def test_a_row_without_its_own_vector_is_never_published(tmp_path: Path) -> None:
    """A ref to the row of another fingerprint, to a row beyond the segment or to no segment ends the run."""
    run = _stage(tmp_path)
    run.fill_store(random.Random(1), 1.0, segments=1)
    refs = run.refs()
    wrong_row = refs["segment_row"].to_numpy().copy()
    wrong_row[0] = (wrong_row[0] + 1) % len(run.texts)
    for name, values in (
        ("segment_row", wrong_row),
        ("segment_row", np.full(refs.num_rows, 10**6, np.uint32)),
        ("segment", np.full(refs.num_rows, 77, np.uint64)),
    ):
        index = refs.column_names.index(name)
        wrong = refs.set_column(index, refs.schema.field(name), pa.array(values))
        with pytest.raises(StoreError, match="run again"):
            run.publish(wrong)
    assert not list(Path(run.job.spec.run.output_uri).rglob("*.parquet"))


def test_a_damaged_segment_does_not_block_the_output_for_ever(tmp_path: Path) -> None:
    """A segment that Publish finds damaged is moved to `damaged/`, so that the next run can succeed."""
    run = _stage(tmp_path)
    run.fill_store(random.Random(1), 1.0, segments=1)
    refs = run.refs()
    path = Path(run.segments()[1])
    metadata = pq.read_metadata(path).row_group(0)
    dense = next(metadata.column(at) for at in range(9) if metadata.column(at).path_in_schema.startswith("dense"))
    data = bytearray(path.read_bytes())
    data[dense.data_page_offset + dense.total_compressed_size - 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"damaged.* set aside as .*run again"):
        run.publish(refs, {1: str(path)})
    assert run.segments() == {}
    assert (Path(run.job.spec.store.uri) / "damaged" / run.job.spec.run.name / path.name).read_bytes() == data


def _settle(run: Run, rejected: Mapping[str, tuple[str, str]]) -> tuple[pa.Table, pa.Table]:
    """Return the REFS of owned rows, and FAILED rows of all others."""
    rows = [(name, *rejected[text]) for name, text in run.texts.items() if text in rejected]
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema.REJECTED, strict=True)], schema.REJECTED)
    waiting = run.keys.select(["fingerprint", "shard", "ordinal"])
    return settle_bucket([waiting], [read_index(uri) for uri in run.segments().values()], [table])


@pytest.mark.parametrize("slice_rows", [1, 4, 16_384])
def test_each_failed_row_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slice_rows: int) -> None:
    """Unreadable rows and rows without a vector have manifest, row, id, reason and the original line."""
    run = _stage(tmp_path, rows=60)
    reasons = {"文本 3": ("SensitiveContentDetected", "no"), "文本 4": ("OutofContextError", "long")}
    _, failed = _settle(run, reasons)
    monkeypatch.setattr(failures, "PART_ROWS", slice_rows)
    table = _read(run, write_failures_part(2, failed, run.unreadable, run.manifests, run.job.spec, Earlier()))
    assert table.schema.remove_metadata() == schema.FAILURES
    found = {(row["manifest"], row["row"]): row for row in table.to_pylist()}
    assert table.num_rows == len(found)
    assert set(found) == set(run.lines)  # nothing is owned here
    for (manifest, number), line in run.lines.items():
        row = found[manifest, number]
        if line is None:
            assert row["original"] == f'{{"text": broken {number}'
            assert (row["id"], row["code"]) == (f"{Path(manifest).name}:{number}", "bad_json")
            continue
        assert row["id"] == line.get("id", f"{Path(manifest).name}:{number}")
        assert orjson.loads(row["original"])["text"] == line["text"]
        assert (row["code"], row["message"]) == reasons.get(
            line["text"], (NOT_BOUGHT, "the run ended before this row was sent")
        )


@given(st.dictionaries(st.integers(0, 2**64 - 1), st.integers(1, 50), max_size=30), st.integers(1, 60))
def test_parts_are_numbered_without_gaps(counts: dict[int, int], rows_max: int) -> None:
    """Parts are numbered from 0 in the order of keys; each is as full as `rows_max` allows."""
    numbered = assign_parts(counts, rows_max)
    assert numbered == assign_parts(dict(reversed(counts.items())), rows_max)
    assert set(numbered) == set(counts)
    in_order = [numbered[key] for key in sorted(counts)]
    assert in_order == sorted(in_order)
    assert sorted(set(in_order)) == list(range(len(set(in_order))))
    sizes = {part: [counts[key] for key in sorted(counts) if numbered[key] == part] for part in in_order}
    for part, size in sizes.items():
        assert sum(size) <= rows_max or len(size) == 1
        assert part + 1 not in sizes or sum(size) + sizes[part + 1][0] > rows_max


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_rows_find_their_part_by_their_key(keys: list[int]) -> None:
    """Rows get the part of their key, in any order of rows."""
    table = pa.table({"segment": pa.array(keys, pa.uint64())})
    counts = count_by(table, "segment")
    assert counts == {key: keys.count(key) for key in set(keys)}
    assigned = assign_parts(counts, 7)
    assert part_numbers(table, "segment", assigned).tolist() == [assigned[key] for key in keys]


def test_rows_are_numbered_through_a_manifests_shards() -> None:
    """A shard's rows are numbered after the lines of the shards before it in the same manifest, blank lines included."""
    shards = [("a", 5), ("a", 0), ("b", 3), ("b", 4), ("a", 7)]
    summaries = [ShardSummary(n, uri, uri, lines, 0, 0, ()) for n, (uri, lines) in enumerate(shards)]
    assert Manifests.of(reversed(summaries)).first_rows == {0: 0, 1: 5, 2: 0, 3: 3, 4: 5}


def _pay(run: Run) -> dict[str, tuple[int | None, int | None, str, str]]:
    """Write attempts of several runs to a store; return text tokens, image tokens, outcome and run of those of this output."""
    spec = run.job.spec
    names = list(run.texts)
    dead = new_run_name(spec.run.output_key, OLD_SECONDS, "0" * 8)
    other = new_run_name(uri_key("other"), OLD_SECONDS, "1" * 8)
    ids = count(1)

    def event(kind: EventKind, name: bytes, client_id: str, usage: Usage = Usage()) -> Event:
        return Event(kind, Attempt(name, client_id, 1, 1.0), Failure("x", "x"), usage)

    for owner, first in ((spec.run.name, 0), (dead, 3), (other, 5)):
        bought = [_bought(name, run.texts[name], first + at) for at, name in enumerate(names[first : first + 2])]
        write_segment(spec.store.uri, owner, next(ids), segment_table(bought, DIMENSIONS))
    write_events(
        spec.store.uri,
        spec.run.name,
        next(ids),
        [event(EventKind.UNUSABLE, names[0], "nan", Usage(5, 5, 2, 3)), event(EventKind.REJECTED, names[7], "no")],
    )
    lost = [
        event(EventKind.LOST, names[1], "lost-then-bought"),
        event(EventKind.LOST, names[5], "lost-then-bought-by-another"),
        event(EventKind.LOST, names[8], "lost-for-ever"),
        event(EventKind.LOST, names[9], "lost-but-counted", Usage(7, 7, 7, 0)),
    ]
    write_events(spec.store.uri, dead, next(ids), lost)
    write_events(spec.store.uri, other, next(ids), [event(EventKind.UNUSABLE, names[0], "theirs", Usage(9, 9, 9, 0))])
    return {
        **{f"client-{number}": (10, number, "ok", spec.run.name) for number in (0, 1)},
        **{f"client-{number}": (10, number, "ok", dead) for number in (3, 4)},
        "nan": (2, 3, "unusable", spec.run.name),
        "lost-then-bought": (10, 1, "lost", dead),
        "lost-then-bought-by-another": (10, 5, "lost", dead),
        "lost-for-ever": (None, None, "lost", dead),
        "lost-but-counted": (7, 0, "lost", dead),
    }


def test_usage_is_what_this_output_paid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`usage/` has the paid attempts of this output's runs; lost ones have the tokens of a later reply to the same request."""
    folder = tmp_path / "events"  # the store can be in any folder
    folder.mkdir()
    run = _stage(folder)
    spec = run.job.spec
    paid = _pay(run)
    for name, size in (("FILE_BYTES_MIN", 2**20), ("PART_BYTES", 2**21), ("PART_BYTES_MIN", 2**20)):
        monkeypatch.setattr(f"arkbeam.stages.publish.usage.{name}", size)
    sources = list_usage_sources(spec.store.uri, spec.run.output_key)
    assert [number for number, _ in sources] == list(range(len(sources)))
    assert len(sources) == 4  # two for segments and two for events
    written = [publish_usage_part(part, files, spec, Earlier()) for part, files in sources]
    rows = [row for part in written for row in _read(run, part.file).to_pylist()]
    found = {row["client_request_id"]: row for row in rows}
    assert len(found) == len(rows)
    got = {name: (row["text_tokens"], row["image_tokens"], row["outcome"], row["run"]) for name, row in found.items()}
    assert got == paid
    for name, (text, image, _, _) in paid.items():
        cost = None if text is None or image is None else pytest.approx(cost_cny(text, image, spec.model.capabilities))
        assert found[name]["cost_cny"] == cost
    _check_totals(written, paid, spec.run.name)
    assert count_paid_twice(written, spec, Earlier()) == 2  # names[0] was unusable once, names[1] lost once


def _check_totals(
    written: Sequence[UsagePart], paid: Mapping[str, tuple[int | None, int | None, str, str]], run: str
) -> None:
    for runs, totals in (({run}, [part.this_run for part in written]), (None, [part.all_runs for part in written])):
        mine = [(text or 0, image or 0) for text, image, _, owner in paid.values() if runs is None or owner in runs]
        assert sum(one.attempts for one in totals) == len(mine)
        assert sum(one.text_tokens for one in totals) == sum(text for text, _ in mine)
        assert sum(one.image_tokens for one in totals) == sum(image for _, image in mine)


def test_a_run_that_paid_nothing_has_an_empty_usage_file(tmp_path: Path) -> None:
    """`usage/` then has one file with the schema and no rows."""
    run = _stage(tmp_path)
    ((part, files),) = list_usage_sources(run.job.spec.store.uri, run.job.spec.run.output_key)
    written = publish_usage_part(part, files, run.job.spec, Earlier())
    assert _read(run, written.file).schema.names == schema.USAGE.names
    assert (written.file.rows, count_paid_twice([written], run.job.spec, Earlier())) == (0, 0)


class Killed(BaseException):
    """Ends a publication like a kill: it is not an Exception, so the code under test does not handle it."""


@dataclass
class Steps:
    """Counts the file operations of a publication, and raises Killed before or after one of them."""

    fatal: int
    after: bool
    done: int = 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Count the calls of a function."""

        def call(*arguments: Any, **named: Any) -> Any:
            self.check(after=False)
            result = function(*arguments, **named)
            self.check(after=True)
            return result

        return call

    def wrap_block(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Count the blocks of a context manager: Killed is raised at the end of a block, inside or after it."""

        @contextmanager
        def block(*arguments: Any, **named: Any) -> Iterator[Any]:
            with function(*arguments, **named) as given:
                yield given
                self.check(after=False)
            self.check(after=True)

        return block

    def check(self, *, after: bool) -> None:
        """Raise Killed at the chosen operation."""
        if self.done == self.fatal and after == self.after:
            raise Killed
        self.done += after


def _cut(refs: pa.Table, rows_max: int) -> list[tuple[int, pa.Table]]:
    marks = find_marks(refs, every=2)
    numbered = number_parts(refs, cut_rows(marks, count_rows(refs, marks), rows_max))
    return [(part, refs.filter(pa.array(numbered == part))) for part in np.unique(numbered).tolist()]


def _split(table: pa.Table, key: str, rows_max: int) -> list[tuple[int, pa.Table]]:
    numbered = part_numbers(table, key, assign_parts(count_by(table, key), rows_max))
    return [(part, table.filter(pa.array(numbered == part))) for part in np.unique(numbered).tolist()]


def _publish(run: Run, rows_max: int, extra: int = 0) -> dict[str, Any]:
    """Publish as the Beam transforms do, in parts of about `rows_max` rows; the plan counts `extra` rows too many."""
    spec = run.job.spec
    refs, failed = _settle(run, {})
    earlier = begin_commit(spec, PlanTotals())
    published = [
        file
        for part, rows in _cut(refs, rows_max)
        for file in publish_parts(part, rows, run.segments(), run.manifests, spec, earlier)
    ]
    failure_parts = [
        write_failures_part(part, rows, [] if part else run.unreadable, run.manifests, spec, earlier)
        for part, rows in _split(failed, "shard", rows_max) or [(0, failed)]
    ]
    used = [
        publish_usage_part(part, files, spec, earlier)
        for part, files in list_usage_sources(spec.store.uri, spec.run.output_key)
    ]
    return finish_commit(replace(_commit(run, published, failure_parts, used, extra), earlier=earlier), spec)


def _commit(
    run: Run, published: Sequence[PartFile], failed: Sequence[PartFile], used: Sequence[UsagePart], extra: int = 0
) -> Commit:
    unreadable = sum(summary.unreadable for summary in run.summaries)
    totals = PlanTotals(rows=run.keys.num_rows + extra, unreadable=unreadable)
    return Commit(totals, RunReport(Counts(), QuotaUse(1, 1)), published, failed, used, Earlier())


def _is_complete(output: Path) -> bool:
    """True if the parts are those in `run.json`, with the same hashes."""
    files = {file["path"]: file for file in orjson.loads((output / RUN_NOTE).read_bytes())["files"]}
    found = {str(path.relative_to(output)): path for path in output.glob("*/*.parquet")}
    return set(files) == set(found) and all(
        hashlib.sha256(found[name].read_bytes()).hexdigest() == file["sha256"] for name, file in files.items()
    )


def _published(run: Run) -> set[tuple[Any, ...]]:
    """Return the published rows, each with the text of its vector."""
    table = pq.read_table(Path(run.job.spec.run.output_uri) / "embeddings")
    rows = table.select(["manifest", "row", "id", "fingerprint", "request_id"]).to_pylist()
    dense = [vector[:4] for vector in table["dense"].to_pylist()]
    found = {(*row.values(), *vector) for row, vector in zip(rows, dense, strict=True)}
    assert len(found) == len(rows)
    return found


def test_a_limit_that_was_found_is_told(tmp_path: Path) -> None:
    """A limit that was found below the configured one is in `run.json`, the summary and the progress."""
    run = _stage(tmp_path, rows=3)
    spec = run.job.spec
    commit = _commit(run, [], [], [])
    for found in (FoundLimits(rpm=412), FoundLimits()):
        note = describe_run(replace(commit, report=replace(commit.report, found=found)), spec)
        assert (note["quota"]["found_rpm"], note["quota"]["found_tpm"]) == (found.rpm, None)
        console = Console(file=StringIO(), width=200)
        console.print(summary_table(note))
        status = Status(Counts(), 0, 0.0, spec.rate_limits.rpm, spec.rate_limits.tpm, 1.0, None, found)
        line = describe_progress(status, Rates(), spec)
        words = f"the service allows about 412 requests/min; the config says {spec.rate_limits.rpm:,}"
        for told in (line, console.file.getvalue()):  # type: ignore[attr-defined]
            assert (words in told) == (found.rpm is not None)


@dataclass
class Two:
    """Two contents of one output, and functions that publish each."""

    first: Callable[[], dict[str, Any]]
    second: Callable[[], dict[str, Any]]

    @classmethod
    def without_kept_parts(cls, run: Run) -> "Two":
        """The same rows in parts of another size."""
        return cls(lambda: _publish(run, rows_max=5), lambda: _publish(run, rows_max=1_000))

    @classmethod
    def with_kept_parts(cls, run: Run) -> "Two":
        """The second content has the vectors of one more segment; most parts are the same."""
        last = Path(run.segments()[3])
        aside = last.with_suffix(".aside")

        def publish(source: Path, target: Path) -> dict[str, Any]:
            if source.exists():
                source.rename(target)
            return _publish(run, rows_max=5)

        return cls(lambda: publish(last, aside), lambda: publish(aside, last))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_commit_may_be_killed_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool, keeps: bool
) -> None:
    """After a kill at any file operation there is no `_SUCCESS` or the output is complete; a repeat completes it.

    This is so whether the output has parts that are kept or not.
    """
    run = _stage(tmp_path, rows=25)
    run.fill_store(random.Random(2), 0.4)
    output = Path(run.job.spec.run.output_uri)
    two = Two.with_kept_parts(run) if keeps else Two.without_kept_parts(run)
    two.first()
    kept = [file["kept"] for file in two.second()["files"] if file["path"].startswith("embeddings/")]
    assert (True in kept, False in kept) == (keeps, True)
    expected = _published(run)
    two.first()
    other = _published(run)
    assert (other == expected) is not keeps
    finished, partial = False, 0
    for fatal in range(100):
        steps = Steps(fatal, after)
        with monkeypatch.context() as patched:
            for name in ("remove_file", "remove_files", "write_bytes", "remove_leftovers"):
                patched.setattr(commit_module, name, steps.wrap(getattr(commit_module, name)))
            patched.setattr(parts, "writing", steps.wrap_block(parts.writing))  # type: ignore[attr-defined]
            try:
                two.second()
                finished = True
            except Killed:
                pass
        partial += not (output / SUCCESS).exists()
        if (output / SUCCESS).exists():
            assert _is_complete(output)
            assert _published(run) in (expected, other)
        if finished:
            break
        two.first()
        assert (output / SUCCESS).exists()
        assert _is_complete(output)
        assert _published(run) == other
    assert finished
    assert partial >= 5


def test_parts_of_an_earlier_output_are_removed(tmp_path: Path) -> None:
    """Parts of the earlier output and leftovers of killed writers are removed; other files stay."""
    run = _stage(tmp_path)
    run.fill_store(random.Random(1), 0.4)
    output = Path(run.job.spec.run.output_uri)
    many = _publish(run, rows_max=5)
    (output / "embeddings/.part-00000.parquet.0a0b0c0d.tmp").touch()
    (output / "notes.parquet").touch()
    (output / "embeddings/README").touch()
    few = _publish(run, rows_max=10**6)
    assert len(few["files"]) < len(many["files"])
    left = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert left == {file["path"] for file in few["files"]} | {
        SUCCESS,
        RUN_NOTE,
        MARK_NAME,
        "notes.parquet",
        "embeddings/README",
    }
    assert orjson.loads((output / RUN_NOTE).read_bytes()) == orjson.loads(orjson.dumps(few))


def _remove(path: Path) -> None:
    path.unlink()


def _change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize("harm", [_remove, _change])
def test_a_kept_part_that_is_harmed_during_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None]
) -> None:
    """A kept part that vanishes or changes after the commit began ends the run; the next run writes it again."""
    run = _stage(tmp_path)
    run.fill_store(random.Random(1), 0.5)
    note = _publish(run, rows_max=5)
    output = Path(run.job.spec.run.output_uri)
    path = output / next(file["path"] for file in note["files"] if file["path"].startswith("embeddings/"))
    data = path.read_bytes()

    def clean(*arguments: Any) -> list[PartFile]:
        harm(path)
        return remove_others(*arguments)

    remove_others = commit_module._remove_others
    with monkeypatch.context() as patched:
        patched.setattr(commit_module, "_remove_others", clean)
        with pytest.raises(StoreError, match=rf"{path.name} was (removed|changed) during the run.*run again"):
            _publish(run, rows_max=5)
    assert not (output / SUCCESS).exists()
    after = _publish(run, rows_max=5)
    assert path.read_bytes() == data
    assert {file["path"]: file["kept"] for file in after["files"]} == {
        file["path"]: output / file["path"] != path for file in note["files"]
    }


def test_a_new_part_that_vanishes_during_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output is not marked complete without one of its parts; a part that only the listing lacks is there."""
    run = _stage(tmp_path)
    run.fill_store(random.Random(1), 0.5)
    output = Path(run.job.spec.run.output_uri)
    list_parts = commit_module.list_parts  # type: ignore[attr-defined]

    def lag(*arguments: Any) -> dict[str, Any]:
        listed = list_parts(*arguments)
        listed.pop(max(path for path in listed if path.startswith("embeddings/")))
        return dict(listed)

    with monkeypatch.context() as patched:
        patched.setattr(commit_module, "list_parts", lag)
        _publish(run, rows_max=5)
    assert _is_complete(output)
    remove_others = commit_module._remove_others

    def clean(*arguments: Any) -> list[PartFile]:
        for path in (output / "embeddings").iterdir():
            path.unlink()
        return remove_others(*arguments)

    (output / RUN_NOTE).unlink()  # so that no part is kept
    with monkeypatch.context() as patched:
        patched.setattr(commit_module, "_remove_others", clean)
        with pytest.raises(StoreError, match="was removed during the run"):
            _publish(run, rows_max=5)
    assert not (output / SUCCESS).exists()


def test_usage_that_needs_a_damaged_segment(tmp_path: Path) -> None:
    """A segment with the tokens of a lost request that is damaged is set aside, so that the next run is not blocked."""
    run = _stage(tmp_path)
    spec, names = run.job.spec, list(run.texts)
    bought = segment_table([_bought(names[0], run.texts[names[0]], 1)], DIMENSIONS)
    other = new_run_name(uri_key("other"), OLD_SECONDS, "1" * 8)
    path = Path(write_segment(spec.store.uri, other, 1, bought))
    lost = Event(EventKind.LOST, Attempt(names[0], "lost", 1, 1.0), Failure("x", "x"), Usage())
    write_events(spec.store.uri, spec.run.name, 2, [lost])
    open_index(spec)  # it holds the segment, which is damaged only then
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes(20))
    (source,) = list_usage_sources(spec.store.uri, spec.run.output_key)
    with pytest.raises(StoreError, match=r"set aside as .*run again"):
        publish_usage_part(*source, spec, Earlier())
    assert run.segments() == {}


def test_a_kept_part_of_usage_that_is_damaged(tmp_path: Path) -> None:
    """If requests that were paid twice can't be counted because a kept part is damaged, the error says what repairs it."""
    run = _stage(tmp_path)
    spec = run.job.spec
    _pay(run)
    sources = list_usage_sources(spec.store.uri, spec.run.output_key)
    written = [publish_usage_part(part, files, spec, Earlier()) for part, files in sources]
    kept = [replace(written[0], fingerprints=None), *written[1:]]
    assert count_paid_twice(kept, spec, Earlier()) == 2
    (Path(spec.run.output_uri) / written[0].file.path).write_bytes(bytes(200))
    with pytest.raises(StoreError, match="run again with --verify"):
        count_paid_twice(kept, spec, Earlier())


def test_paid_requests_of_several_processes_are_those_in_usage(tmp_path: Path) -> None:
    """In a run with several processes, `requests_sent` has all paid requests, whoever recorded them.

    This is so as well if the commit is repeated, after the first one has written `run.json`.
    """
    run = _stage(tmp_path)
    _pay(run)
    assert count_own_outcomes(run.job.spec) == {"ok": 2, "unusable": 1}
    for many, sent in ((False, 0), (True, 3)):
        run.job = replace(run.job, spec=replace(run.job.spec, many_processes=many))
        note = _publish(run, rows_max=50)
        assert (note["requests_paid"], note["requests_sent"], note["unusable"]) == (3, sent, sent // 3)


@pytest.mark.parametrize("extra", [-1, 1])
def test_rows_that_do_not_add_up_are_not_published(tmp_path: Path, extra: int) -> None:
    """If the output has one row too many or too few, there is no `_SUCCESS`, and the error has the counts."""
    run = _stage(tmp_path)
    run.fill_store(random.Random(1), 0.5)
    note = _publish(run, rows_max=50)
    assert note["rows"] == note["published"] + note["failed"] == len(run.lines)
    with pytest.raises(StoreError, match=f"{note['rows'] + extra} rows read, {note['published']} published"):
        _publish(run, rows_max=50, extra=extra)
    assert not (Path(run.job.spec.run.output_uri) / SUCCESS).exists()


STOP = Stop(StopKind.SERVICE, "AccountOverdueError", "pay first")


@pytest.mark.parametrize("partial", [False, True])
def test_a_run_that_stopped_leaves_the_output_alone_unless_told_otherwise(tmp_path: Path, partial: bool) -> None:
    """A stopped run publishes only with `publish_partial`; its note in the store says in both cases why it stopped."""
    run = _stage(tmp_path)
    spec = replace(run.job.spec, publish_partial=partial)
    everything = PartFile("failures/part-00000.parquet", len(run.lines), 1, "0")
    (Path(spec.run.output_uri) / "failures").mkdir()
    (Path(spec.run.output_uri) / everything.path).write_bytes(b"x")
    stopped = _commit(run, [], [everything], [])
    end_run(replace(stopped, report=replace(stopped.report, stop=STOP)), spec)
    assert (Path(spec.run.output_uri) / SUCCESS).exists() is partial
    note = orjson.loads(Path(note_uri(spec.store.uri, spec.run.name, "result")).read_bytes())
    assert note["stopped"] == {"kind": "service", "code": "AccountOverdueError", "message": "pay first"}


def test_the_run_note_says_what_people_ask_for(tmp_path: Path) -> None:
    """`run.json` has the documented keys, with the totals of this run and of all runs."""
    run = _stage(tmp_path)
    _pay(run)
    note = _publish(run, rows_max=50)
    promised = {
        "rows", "published", "failed", "owned", "duplicates", "requests_paid", "requests_sent", "refused", "retries",
        "tokens", "cost_cny", "elapsed_s", "quota", "files", "config",
    }  # fmt: skip
    assert promised <= set(note)
    assert set(note["tokens"]) == {"prompt", "total", "text", "image"}
    assert {"rpm", "tpm", "utilisation", "binding"} <= set(note["quota"])
    assert all({"path", "rows", "bytes", "sha256", "digest", "version", "kept"} <= set(file) for file in note["files"])
    assert (note["requests_paid"], note["all_runs"]["requests_paid"]) == (3, 9)
    assert note["tokens"]["text"] == 10 + 10 + 2
