"""What a run has already bought, or had rejected, read from the store once in each process and then followed."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.parallel import in_parallel
from arkbeam.base.schema import concat
from arkbeam.stages.spec import RunSpec
from arkbeam.store.events import read_rejected
from arkbeam.store.layout import events_folder, list_parquet, segments_folder
from arkbeam.store.model_record import read_model
from arkbeam.store.segments import read_index

_results: dict[str, "OwnResults"] = {}  # by run
_results_lock = threading.Lock()


@dataclass(slots=True)
class OwnResults:
    """The results of a run in the store. A file is read once; each look lists the run's two folders."""

    spec: RunSpec
    _index: dict[str, pa.Table] = field(default_factory=dict)
    _rejected: dict[str, pa.Table] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, fingerprints: pa.Array) -> tuple[pa.Table, pa.Table]:
        """Return the INDEX and the REJECTED rows of fingerprints that have a result in the store. Raise StoreError."""
        store_uri, run = self.spec.store.uri, self.spec.run.name
        # Not `spec.model_owned`: an earlier attempt may have set the resolved model.
        model = read_model(store_uri, self.spec.run.service, self.spec.model.name).resolved
        with self._lock:
            _follow(segments_folder(store_uri, run), self._index, lambda uri: read_index(uri, model))
            _follow(events_folder(store_uri, run), self._rejected, read_rejected)
            index, rejected = list(self._index.values()), list(self._rejected.values())
        return _only(concat(index, schema.INDEX), fingerprints), _only(concat(rejected, schema.REJECTED), fingerprints)


def open_own_results(spec: RunSpec) -> OwnResults:
    """Return this process's results of the run."""
    with _results_lock:
        if spec.run.name not in _results:
            _results.clear()  # a process has one run at a time
            _results[spec.run.name] = OwnResults(spec)
        return _results[spec.run.name]


def forget_own_results(run: str) -> None:
    """Release the memory of a run that has ended."""
    with _results_lock:
        _results.pop(run, None)


def _follow(folder: str, tables: dict[str, pa.Table], read: Callable[[str], pa.Table]) -> None:
    new = [uri for uri in list_parquet(folder) if uri not in tables]
    tables.update(zip(new, in_parallel(read, new), strict=True))


def _only(table: pa.Table, fingerprints: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table["fingerprint"], value_set=fingerprints))
