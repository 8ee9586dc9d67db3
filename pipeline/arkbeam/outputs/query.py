"""Get the vectors of queries from the service that made the vectors of the output, through the code of a run.

The queries are a small manifest: they are read as one, sent by the engine, and stored in a store of their own in the folder
of the cache. A query that was asked before is found there by its fingerprint and costs nothing.
"""

import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from arkbeam.ark.client import ApiOptions
from arkbeam.ark.instructions import InstructionOptions, build_instructions
from arkbeam.ark.models import ModelOptions
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.capabilities import cost_cny
from arkbeam.base.errors import ArkbeamError, ConfigError
from arkbeam.base.files import list_folders, remove_folder, temporary_folder
from arkbeam.base.records import ServiceKind
from arkbeam.engine.outcomes import RunReport, Sink
from arkbeam.engine.registry import close_engine
from arkbeam.manifest.options import ColumnMap, ManifestOptions, ReadContext
from arkbeam.manifest.read import read_shard
from arkbeam.manifest.shards import cut_shards, list_manifests
from arkbeam.manifest.staging import request_from_json
from arkbeam.media import MediaOptions, local_path, make_absolute
from arkbeam.outputs.cache import Matrix
from arkbeam.quota.budget import NO_BUDGET
from arkbeam.quota.options import LimitsOptions, QuotaOptions
from arkbeam.stages.embed.feed import MEDIA_THREADS, Feed, StagedRow, Unsendable
from arkbeam.stages.embed.process import check_secrets, open_engine
from arkbeam.stages.spec import RunIdentity, RunSpec
from arkbeam.store.layout import (
    StoreOptions,
    journals_folder,
    list_parquet,
    new_run_name,
    run_folder,
    segment_id,
    segments_folder,
    uri_key,
)
from arkbeam.store.lookup import open_store_index
from arkbeam.store.model_record import ModelRecord, write_model
from arkbeam.store.segments import dense_values, read_columns

DEFAULT_TASK = "根据这个问题，找到能回答这个问题的相应文本或图片"
"""The task in the instructions of a query, as the vendor's own search service words it: find what answers the question."""
RUNS_MAX = 1_000
"""Most searches whose bought vectors are kept; with more, the older half is removed."""
_RPM_MIN, _TPM_MIN = 60, 16_000
_CORPUS = re.compile(r"Instruction:Compress the ([a-z ]+) into one word\.\nQuery:")


class QueryFailed(ArkbeamError):
    """The service gave no vector for a query."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Service:
    """Who makes the vectors, as the config in `run.json` says."""

    kind: ServiceKind
    model: ModelOptions
    media: MediaOptions
    api: ApiOptions
    connect: Callable[[], AbstractContextManager[str]]
    """Yields the URL of the API; it may start an emulator. Called only if a vector has to be bought."""
    quota: QuotaOptions
    limits: LimitsOptions


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for: words, or an image (a path or a URL)."""

    text: str | None = None
    image: str | None = None


@dataclass(frozen=True, slots=True)
class SparseVector:
    """Active indices of a sparse vector and their values."""

    indices: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Vector:
    """The vectors of a query. `sparse` is None if it was not asked for."""

    dense: Matrix
    sparse: SparseVector | None


@dataclass(frozen=True, slots=True)
class Bill:
    """What queries cost. `known`: queries whose vectors were bought before."""

    requests: int = 0
    tokens: int = 0
    cost_cny: float = 0.0
    known: int = 0


@dataclass(frozen=True, slots=True)
class Wording:
    """What the command line says about the instructions of queries: the whole text, or parts of the vendor's template."""

    text: str | None = None
    task: str | None = None
    target_modality: str | None = None


def choose_instructions(
    corpus: str | InstructionOptions | None, wording: Wording, *, own_column: bool, holds: str | None
) -> str | None:
    """Return the instructions of a query that match those of the rows; None: none are sent.

    Args:
        corpus: `model.instructions` of the output.
        wording: what the command line says.
        own_column: True if rows may have instructions of their own.
        holds: what the rows hold, as the vendor's template for queries names it; None: it is not known.

    Raise ConfigError if there is no match, with what to do.
    """
    if wording.text is not None:
        return wording.text
    if own_column:
        raise ConfigError(
            "the rows of this output may have instructions of their own (manifest.columns.instructions): say with"
            " --instructions what is sent with the query"
        )
    written = _CORPUS.fullmatch(corpus) if isinstance(corpus, str) else None
    if written or (isinstance(corpus, InstructionOptions) and corpus.scenario == "corpus"):
        target = wording.target_modality or (written[1] if written else holds)
        if target is None:
            raise ConfigError(
                "the config of the output does not say what its rows hold, which the vendor's template for queries names:"
                " say it with --target-modality, such as image, or 'text/image/text and image'"
            )
        built = build_instructions(InstructionOptions("query", target, wording.task or DEFAULT_TASK), ())
        return built if isinstance(built, str) else None
    if wording.task is not None or wording.target_modality is not None:
        raise ConfigError(
            "--task and --target-modality are for outputs with the vendor's instructions for a corpus; the rows of this one"
            f" have {'other' if corpus else 'no'} instructions, and the query gets the same"
        )
    if isinstance(corpus, InstructionOptions):
        if corpus.scenario == "query":
            raise ConfigError(
                "the rows of this output were embedded as queries (model.instructions.scenario: query), and queries are"
                " compared with a corpus: search the output of the corpus, or pass --instructions"
            )
        same = build_instructions(corpus, ())
        return same if isinstance(same, str) else None
    return corpus


def embed_queries(
    queries: Sequence[Query],
    service: Service,
    instructions: str | None,
    *,
    sparse: bool,
    folder: Path,
    model: str | None,
) -> tuple[list[Vector], Bill]:
    """Return the vectors of queries, in order, and what they cost.

    Args:
        queries: at least one.
        service: who makes the vectors.
        instructions: sent with each query.
        sparse: ask for sparse vectors as well.
        folder: a store of queries on this machine.
        model: the model that answered when the output was made; another one is an error. None: it is not known.

    Raise ConfigError for a query that can't be sent, QueryFailed if the service gives no vector.
    """
    options = replace(service.model, instructions=instructions, sparse=sparse, multi_embedding="off")
    with temporary_folder() as work:
        spec = _make_spec(queries, replace(service, model=options), str(folder), work)
        rows = _read_queries(spec)
        known = _find_known([row.fingerprint for row in rows], spec, model)
        missing = list({row.fingerprint: row for row in rows if row.fingerprint not in known}.values())
        bill = Bill(known=sum(row.fingerprint in known for row in rows))
        if missing:
            with service.connect() as url:
                bought, report = _buy(missing, replace(spec, api=replace(spec.api, base_url=url)), model)
            known |= bought
            counts, capabilities = report.counts, spec.model.capabilities
            cost = cost_cny(counts.text_tokens, counts.image_tokens, capabilities)
            bill = replace(bill, requests=counts.sent, tokens=counts.total_tokens, cost_cny=cost)
    return [_cut(known[row.fingerprint], spec.model.dimensions_published) for row in rows], bill


def _make_spec(queries: Sequence[Query], service: Service, store_uri: str, work: Path) -> RunSpec:
    """Write the manifest of the queries, and make the spec of a run over it."""
    images = [one.image and make_absolute(one.image, os.getcwd()) for one in queries]
    rows = zip(queries, images, strict=True)
    lines = [orjson.dumps({"id": str(n), "text": one.text, "image": image}) for n, (one, image) in enumerate(rows)]
    path = work / "queries.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    columns = ColumnMap(id="id", text="text", image="image")
    roots = tuple({str(Path(image).parent) for image in images if image and local_path(image) is not None})
    model, now_s = ModelSpec.of(service.model), time.time()
    name = new_run_name(uri_key(store_uri), now_s, secrets.token_hex(4))
    return RunSpec(
        run=RunIdentity(name, now_s, service.kind, store_uri),
        model=model,
        manifest=ManifestOptions(uris=(str(path),), columns=columns),
        media=replace(service.media, allowed_roots=roots or (str(work),)),
        api=service.api,
        quota=_spare_quota(service.quota, model, service.kind),
        budget=NO_BUDGET,
        limits=service.limits,
        store=StoreOptions(uri=store_uri),
        config={},
        buckets=1,
    )


def _spare_quota(quota: QuotaOptions, model: ModelSpec, kind: ServiceKind) -> QuotaOptions:
    """Leave the quota to the runs, of which a search knows nothing: use what they leave free, but at least a trickle.

    The quota of a stand-in costs nothing. No Redis is asked: its address in `run.json` may come from someone else.
    """
    alone = replace(quota, redis_url=None, redis_password_env=None)
    if kind is ServiceKind.STAND_IN:
        return alone
    rpm, tpm = quota.rate_limits(model.capabilities)
    free = 1.0 - quota.headroom
    rpm, tpm = min(rpm, max(_RPM_MIN, int(rpm * free))), min(tpm, max(_TPM_MIN, int(tpm * free)))
    return replace(alone, rpm=rpm, tpm=tpm, headroom=1.0)


def _read_queries(spec: RunSpec) -> list[StagedRow]:
    """Read the queries as rows of a manifest. Raise ConfigError for one that can't be sent."""
    context = ReadContext(model=spec.model, media=spec.media, service=spec.run.service)
    manifests = list_manifests(spec.manifest, [])
    rows = []
    for shard in cut_shards(manifests, spec.manifest.shard_bytes_max):
        for chunk in read_shard(shard, spec.manifest, context):
            for row in chunk.unreadable.to_pylist():
                raise ConfigError(f"query {int(row['row']) + 1} can't be sent ({row['code']}): {row['message']}")
            text, image = (chunk.keys[name].to_pylist() for name in ("text_tokens", "image_tokens"))
            staged = zip(
                chunk.keys["fingerprint"].to_pylist(), chunk.staged["request"].to_pylist(), text, image, strict=True
            )
            rows += [
                StagedRow(name, request_from_json(body), texts + images, images) for name, body, texts, images in staged
            ]
    return rows


def _find_known(fingerprints: Sequence[bytes], spec: RunSpec, model: str | None) -> dict[bytes, Vector]:
    """Return the vectors that were bought before, of the output's model."""
    index = open_store_index(spec.store.uri).complete(spec.store.uri)
    found = index.find(pa.array(fingerprints, pa.binary(16)), model).index
    segments = set(found["segment"].to_pylist())
    uris = [uri for uri in list_parquet(segments_folder(spec.store.uri)) if segment_id(uri) in segments]
    wanted = set(fingerprints)
    return {name: vector for name, vector in _read_vectors(uris).items() if name in wanted}


def _read_vectors(uris: Sequence[str]) -> dict[bytes, Vector]:
    vectors = {}
    for uri in uris:
        table = read_columns(uri, ["fingerprint", "dense", "sparse"])
        dense = dense_values(table["dense"])
        sparse = table["sparse"].to_pylist()
        for row, name in enumerate(table["fingerprint"].to_pylist()):
            vectors[name] = Vector(dense[row], _sparse(sparse[row]))
    return vectors


def _sparse(value: dict[str, Any] | None) -> SparseVector | None:
    if value is None:
        return None
    return SparseVector(np.array(value["indices"], np.int64), np.array(value["values"], np.float32))


def _buy(rows: Sequence[StagedRow], spec: RunSpec, model: str | None) -> tuple[dict[bytes, Vector], RunReport]:
    """Send the queries. Raise QueryFailed if not all of them get a vector."""
    check_secrets(spec)
    _forget_old(spec.store.uri)
    write_model(spec.store.uri, spec.run.service, ModelRecord(spec.model.name, model))
    sink = Sink()
    try:
        engine = open_engine(spec)
        with engine.taking_part(), ThreadPoolExecutor(MEDIA_THREADS, thread_name_prefix="arkbeam-media") as pool:
            feed = Feed(spec, engine, pool)
            for batch in chain(feed.add(iter(rows)), feed.flush()):
                if isinstance(batch, Unsendable):
                    raise ConfigError(f"a query can't be sent ({batch.failure.code}): {batch.failure.message}")
                if not engine.submit(batch, sink):
                    break
            engine.settle(sink)
        report = engine.finish(sink)
        _, failed = sink.collect()
    finally:
        close_engine(spec.run.name)
        for folder in (run_folder, journals_folder):
            remove_folder(folder(spec.store.uri, spec.run.name))
    _raise_failure(report, failed, model)
    return _read_vectors(list_parquet(segments_folder(spec.store.uri, spec.run.name))), report


def _raise_failure(report: RunReport, failed: pa.Table, model: str | None) -> None:
    paid = f"; {report.counts.total_tokens:,} tokens were paid for" if report.counts.total_tokens else ""
    if report.stop is not None and report.stop.code == "model_changed":
        raise QueryFailed(
            f"the vectors of this output are of {model}, but the service answers with another model: vectors of two models"
            f" can't be compared; run the output again with --accept-model-change, or use --like{paid}"
        )
    if report.stop is not None:
        raise QueryFailed(f"the query has no vector ({report.stop.code}): {report.stop.message}{paid}")
    if failed.num_rows:
        first = failed.slice(0, 1).to_pylist()[0]
        raise QueryFailed(f"the query has no vector ({first['code']}): {first['message']}{paid}")


def _forget_old(store_uri: str) -> None:
    """Remove the older half of the bought vectors if there are many: looking one up should stay fast."""
    runs = list_folders(segments_folder(store_uri))
    for run in runs[: len(runs) // 2] if len(runs) > RUNS_MAX else []:
        remove_folder(segments_folder(store_uri, run))


def _cut(vector: Vector, dimensions: int) -> Vector:
    """Cut a vector as those of the output were cut when they were published; its length makes no difference to a cosine."""
    return replace(vector, dense=vector.dense[:dimensions])
