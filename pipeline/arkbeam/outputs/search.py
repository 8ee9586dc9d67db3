"""Search an output: by words, by an image, or by one of its rows; and measure how good the answers are."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.ark.instructions import name_targets
from arkbeam.base.errors import ConfigError, StoreError
from arkbeam.base.records import Modality
from arkbeam.base.redaction import redact
from arkbeam.manifest.texts import json_values
from arkbeam.outputs.cache import Corpus, cache_folder, open_corpus
from arkbeam.outputs.evaluate import Judged, judge
from arkbeam.outputs.exact import FUSED_MAX, Mask, Ranking, fuse, load_usearch, search_dense, search_sparse
from arkbeam.outputs.published import Published, kept_names, open_output
from arkbeam.outputs.query import (
    Bill,
    Query,
    Service,
    SparseVector,
    Vector,
    Wording,
    choose_instructions,
    embed_queries,
)
from arkbeam.outputs.where import select_rows

QUERIES_AT_ONCE = 64
"""Queries of an evaluation that are searched in one pass over the matrix."""
_QUERIES = "queries"
_TARGET = name_targets([Modality.TEXT, Modality.IMAGE])


def name_contents(columns: Mapping[str, Any], *, has_media: bool) -> str | None:
    """Return what the rows of an output hold, in the vendor's words; None if this is unknown.

    Args:
        columns: `manifest.columns` of the output's config.
        has_media: True if at least one row has image tokens.
    """
    if not has_media:
        return "text"
    mapped = {modality for modality in Modality if columns.get(modality.value)}
    return name_targets(mapped) if mapped and not columns.get("input") else None


def search_arguments(note: Mapping[str, Any]) -> str:
    """Return what a search by words of an output needs after the words, quoted for a shell. `note`: its `run.json`."""
    config = note.get("config") or {}
    instructions = (config.get("model") or {}).get("instructions")
    if not isinstance(instructions, Mapping) or instructions.get("scenario") != "corpus":
        return ""
    columns = (config.get("manifest") or {}).get("columns") or {}
    has_media = note["all_runs"]["tokens"]["image"] > 0
    return "" if name_contents(columns, has_media=has_media) else f" --target-modality {shlex.quote(_TARGET)}"


class Mode(StrEnum):
    """Which vectors are compared. BOTH: both rankings, joined by reciprocal rank fusion."""

    DENSE = "dense"
    SPARSE = "sparse"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Found:
    """The rows that answer a query, best first, what the query cost, and how long the search alone took."""

    rows: list[dict[str, Any]]
    """`rank`, `score`, `id`, `manifest`, `row`, and the kept columns."""
    kept: list[str]
    mode: Mode
    searched: int
    """Number of rows that the condition left to search."""
    instructions: str | None
    bill: Bill
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Quality:
    """How good the first k answers are, as a mean over the queries."""

    recall: float
    ndcg: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Quality by mode. `missing`: relevant ids that are not in the output; they count as not found."""

    k: int
    queries: int
    missing: int
    quality: dict[str, Quality]
    instructions: str | None
    bill: Bill
    milliseconds: float


class Searcher:
    """An output that is open for searching."""

    def __init__(
        self, uri: str, chosen_folder: str | None = None, note_progress: Callable[[int], None] | None = None
    ) -> None:
        """Open the output, and make or update its cache. Raise ConfigError, StoreError."""
        load_usearch()  # before anything is read
        self.output: Published = open_output(uri)
        self._folder: Path = cache_folder(self.output.uri, chosen_folder)
        self.corpus: Corpus = open_corpus(self.output, self._folder, note_progress)
        self.rows: pa.Table = self.corpus.rows

    def like(self, name: str, *, mode: Mode, count: int, where: str | None = None) -> Found:
        """Find the rows that are nearest to a row of the output. Nothing is sent. Raise ConfigError for an unknown id."""
        number = pc.index(self.rows["id"], name).as_py()
        if number < 0:
            raise ConfigError(f"no row has the id {redact(name, 200)!r}")
        vector = Vector(self.corpus.vectors(np.array([number]))[0], self._sparse_of(number))
        self._check_mode(mode)
        if mode is not Mode.DENSE and vector.sparse is None:
            raise ConfigError(f"the row {redact(name, 200)!r} has no sparse vector: use --mode dense")
        mask = self._mask(where)
        mask = np.ones(self.corpus.count, np.bool_) if mask is None else mask
        mask[number] = False
        return self._find(vector, mode, count, mask, None, Bill())

    def ask(
        self, query: Query, service: Service, wording: Wording, *, mode: Mode, count: int, where: str | None = None
    ) -> Found:
        """Find the rows that are nearest to words or an image, whose vector is bought if it was not before."""
        self._check_mode(mode)
        if query.image is not None and mode is not Mode.DENSE:
            raise ConfigError("an image has no sparse vector: use --mode dense")
        mask = self._mask(where)
        (vector,), instructions, bill = self._embed([query], service, wording)
        return self._find(vector, mode, count, mask, instructions, bill)

    def evaluate(self, judged: Sequence[Judged], service: Service, wording: Wording, count: int) -> Evaluation:
        """Measure recall and nDCG of the first `count` answers, by dense and, if all queries are texts, sparse vectors and both."""
        texts = all(one.query.image is None for one in judged)
        modes = list(Mode) if self.corpus.has_sparse and texts else [Mode.DENSE]
        vectors, instructions, bill = self._embed([one.query for one in judged], service, wording)
        wanted = {name for one in judged for name in one.grades}
        names = self.rows["id"]
        present = set(pc.filter(names, pc.is_in(names, value_set=pa.array(sorted(wanted), pa.string()))).to_pylist())
        began_s, scores = time.perf_counter(), {mode: list[tuple[float, float]]() for mode in modes}
        for start in range(0, len(judged), QUERIES_AT_ONCE):
            chunk = slice(start, start + QUERIES_AT_ONCE)
            rankings = self._rank(vectors[chunk], modes, count, None)
            for one, by_mode in zip(judged[chunk], rankings, strict=True):
                for mode, ranking in by_mode.items():
                    ids = names.take(pa.array(ranking.head(count).numbers)).to_pylist()
                    scores[mode].append(judge(ids, one.grades, count))
        milliseconds = (time.perf_counter() - began_s) * 1000
        quality = {mode.value: Quality(*np.mean(values, axis=0).tolist()) for mode, values in scores.items()}
        return Evaluation(count, len(judged), len(wanted - present), quality, instructions, bill, milliseconds)

    def _embed(
        self, queries: Sequence[Query], service: Service, wording: Wording
    ) -> tuple[list[Vector], str | None, Bill]:
        """Return the vectors of queries, the instructions that were sent with them, and their cost.

        Texts get a sparse vector whenever the output has some, so that a query is bought once for all modes.
        """
        manifest = (self.output.note.get("config") or {}).get("manifest") or {}
        instructions = choose_instructions(
            service.model.instructions,
            wording,
            own_column=bool((manifest.get("columns") or {}).get("instructions")),
            holds=name_contents(
                manifest.get("columns") or {}, has_media=bool(pc.sum(self.rows["image_tokens"]).as_py())
            ),
        )
        folder = self._folder / _QUERIES
        sparse = self.corpus.has_sparse and all(query.text is not None for query in queries)
        vectors, bill = embed_queries(queries, service, instructions, sparse=sparse, folder=folder, model=self._model())
        if len(vectors[0].dense) != self.corpus.dimensions:
            raise ConfigError(
                f"the query's vector has {len(vectors[0].dense)} values, those of the output {self.corpus.dimensions}:"
                " they can't be compared"
            )
        return vectors, instructions, bill

    def _model(self) -> str | None:
        """Return the model that made all vectors. Raise StoreError if there are several."""
        models = pc.unique(self.rows["model"].drop_null()).to_pylist()
        if len(models) > 1:
            raise StoreError(
                f"the output has vectors of several models, which can't be compared: {', '.join(models[:5])}"
            )
        return str(models[0]) if models else None

    def _check_mode(self, mode: Mode) -> None:
        if mode is not Mode.DENSE and not self.corpus.has_sparse:
            raise ConfigError(f"--mode {mode.value}: the output has no sparse vectors (model.sparse)")

    def _mask(self, where: str | None) -> Mask | None:
        return None if where is None else select_rows(self.rows, where)

    def _find(
        self, vector: Vector, mode: Mode, count: int, mask: Mask | None, instructions: str | None, bill: Bill
    ) -> Found:
        began_s = time.perf_counter()
        ranking = self._rank([vector], [mode], count, mask)[0][mode].head(count)
        milliseconds = (time.perf_counter() - began_s) * 1000
        searched = self.corpus.count if mask is None else int(mask.sum())
        kept = kept_names(self.rows.column_names)
        return Found(self._describe(ranking, kept), kept, mode, searched, instructions, bill, milliseconds)

    def _rank(
        self, vectors: Sequence[Vector], modes: Sequence[Mode], count: int, mask: Mask | None
    ) -> list[dict[Mode, Ranking]]:
        """Rank the rows for each query, by each mode."""
        depth = max(count, FUSED_MAX) if Mode.BOTH in modes else count
        found = [dict[Mode, Ranking]() for _ in vectors]
        if list(modes) != [Mode.SPARSE]:
            queries = np.stack([vector.dense for vector in vectors])
            for rankings, dense in zip(found, search_dense(self.corpus, queries, depth, mask), strict=True):
                rankings[Mode.DENSE] = dense
        for rankings, vector in zip(found, vectors, strict=True):
            if list(modes) != [Mode.DENSE] and vector.sparse is not None:
                sparse = vector.sparse
                rankings[Mode.SPARSE] = search_sparse(self.corpus, sparse.indices, sparse.values, depth, mask)
                rankings[Mode.BOTH] = fuse(list(rankings.values()), depth)
        return found

    def _describe(self, ranking: Ranking, kept: list[str]) -> list[dict[str, Any]]:
        """Return the rows of a ranking with values that JSON has."""
        columns = ["id", "manifest", "row", *kept]
        rows = self.rows.select(columns).take(pa.array(ranking.numbers))
        values = {name: json_values(rows[name].combine_chunks()) if rows.num_rows else [] for name in columns}
        return [
            {"rank": rank + 1, "score": score, **{name: values[name][rank] for name in columns}}
            for rank, score in enumerate(ranking.scores.tolist())
        ]

    def _sparse_of(self, number: int) -> SparseVector | None:
        """Return the sparse vector of a row; None if it has no active index."""
        piece = next(one for one in reversed(self.corpus.pieces) if one.start <= number)
        inside = piece.postings.row == number - piece.start
        if not inside.any():
            return None
        return SparseVector(piece.postings.index[inside].astype(np.int64), piece.postings.value[inside])
