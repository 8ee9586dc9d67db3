"""What a store holds and what it has cost: the numbers of `arkbeam store stats`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base.errors import StoreError
from arkbeam.base.files import Listed, list_versions
from arkbeam.base.parallel import in_parallel
from arkbeam.base.uris import join, reads_in_flight
from arkbeam.store.compaction import SMALL_BYTES, read_state
from arkbeam.store.index_merge import cut_prefixes
from arkbeam.store.layout import GATHERED_FULL, SUFFIX, index_folder, is_gathered, key_of_run, run_of
from arkbeam.store.listing import is_event_file, source_name
from arkbeam.store.lookup import StoreIndex, open_store_index
from arkbeam.store.segments import read_columns

_OTHER_FOLDERS = ("multi", "journals", "damaged", "media", "runs", "verified")
_ENTRIES_AT_ONCE = 1_000_000


@dataclass(frozen=True, slots=True)
class Files:
    """A number of files, and their bytes."""

    files: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, listed: Sequence[Listed]) -> "Files":
        """Count files."""
        return cls(len(listed), sum(one.size for one in listed))


@dataclass(slots=True)
class ModelStats:
    """Of one model, or of requests without a known model: vectors in the store, and what was paid for."""

    vectors: int = 0
    requests: int = 0
    text_tokens: int = 0
    image_tokens: int = 0


@dataclass(slots=True)
class StoreStats:
    """What a store holds. Files that compaction has replaced are only in `replaced`."""

    segments: Files = Files()
    small: Files = Files()
    """Segments that compaction may gather: below 64 MB, or not gathered yet."""
    events: Files = Files()
    replaced: Files = Files()
    """Old files that are removed after their grace period."""
    index: Files = Files()
    covered: int = 0
    """Segments and event files that an index file covers."""
    others: dict[str, Files] = field(default_factory=dict)
    """By folder: files that are neither segments, events nor index."""
    vectors: int = 0
    rejected: int = 0
    """Permanent rejections."""
    outputs: int = 0
    """Outputs whose runs have bought something."""
    models: dict[str, ModelStats] = field(default_factory=dict)
    unreadable: int = 0
    """Files whose cost can't be read."""


def read_stats(store_uri: str) -> StoreStats:
    """Read the numbers of a store; nothing is changed. Raise StoreError if it can't be listed.

    Segments that no index file covers are read as a whole, and so are those that are not gathered, for their cost.
    """
    state, stats = read_state(store_uri), StoreStats()
    current = state.current
    segments = [one for name, one in current.items() if not is_event_file(name)]
    stats.segments = Files.of(segments)
    stats.small = Files.of([one for one in segments if run_of(one.uri) != GATHERED_FULL and one.size < SMALL_BYTES])
    stats.events = Files.of([one for name, one in current.items() if is_event_file(name)])
    stats.replaced = Files.of([state.listed[name] for name in state.listed.keys() - current.keys()])
    stats.index = Files.of(list_versions(index_folder(store_uri), SUFFIX))
    for folder in _OTHER_FOLDERS:
        stats.others[folder] = Files.of(list_versions(join(store_uri, folder)))
    index = open_store_index(store_uri)
    stats.covered = len(current) - len(index.uncovered)
    for name, count in _count_models(index.complete(store_uri)).items():
        if name is None:
            stats.rejected = count
        else:
            _model(stats, name).vectors = count
            stats.vectors += count
    stats.outputs = len({key for one in current.values() if (key := key_of_run(run_of(one.uri))) is not None})
    for costs in in_parallel(_try_to_read_costs, current.values(), reads_in_flight(store_uri)):
        _add_costs(stats, costs)
    return stats


def _count_models(index: StoreIndex) -> Counter[str | None]:
    """Count vectors by the name of their model, empty if it is not known; None counts the rejections."""
    found: Counter[str | None] = Counter()
    for covering in index.covering:
        for low, high in cut_prefixes(1 + covering.file.rows // _ENTRIES_AT_ONCE):
            table = covering.file.read_between(low, high, covering.counts)
            rejected = pc.is_valid(table["code"])
            found[None] += int(pc.sum(rejected).as_py() or 0)
            models = table.filter(pc.invert(rejected))["model"].cast(pa.string()).fill_null("")
            found.update({pair["values"]: pair["counts"] for pair in models.value_counts().to_pylist()})
    return found


def _try_to_read_costs(file: Listed) -> pa.Table | None:
    """Return model and tokens of the paid attempts in a file; None if it can't be read."""
    is_event, names = is_event_file(source_name(file.uri)), ["model", "text_tokens", "image_tokens"]
    if is_gathered(run_of(file.uri)) and not is_event:
        return pa.table({})  # its costs are in gathered events
    try:
        table = read_columns(file.uri, [*names, "paid"] if is_event else names)
    except StoreError:
        return None
    return table.filter(table["paid"]) if is_event else table


def _add_costs(stats: StoreStats, costs: pa.Table | None) -> None:
    if costs is None:
        stats.unreadable += 1
    elif costs.num_rows:
        costs = costs.set_column(costs.column_names.index("model"), "model", costs["model"].fill_null(""))
        sums = [("text_tokens", "sum"), ("image_tokens", "sum"), ("model", "count")]
        for row in costs.select(["model", "text_tokens", "image_tokens"]).group_by("model").aggregate(sums).to_pylist():
            model = _model(stats, row["model"])
            model.requests += row["model_count"]
            model.text_tokens += row["text_tokens_sum"] or 0
            model.image_tokens += row["image_tokens_sum"] or 0


def _model(stats: StoreStats, name: str) -> ModelStats:
    return stats.models.setdefault(name, ModelStats())
