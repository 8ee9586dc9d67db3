"""`arkbeam check --probe`: send one row of the manifest, as a run does, and show what came back.

The vector is kept in the store, so a later run of the output does not buy it again, and counts it in `usage/`.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from arkbeam.app.check import SampledRows
from arkbeam.app.holding import claiming, forget_run
from arkbeam.engine.outcomes import Sink
from arkbeam.manifest.staging import request_from_json
from arkbeam.stages.embed.feed import StagedRow, Unsendable, encode_row
from arkbeam.stages.embed.process import check_secrets, open_engine
from arkbeam.stages.meter import forget_work
from arkbeam.stages.read import open_index
from arkbeam.stages.spec import RunSpec
from arkbeam.store.layout import list_parquet, segments_folder
from arkbeam.store.model_record import read_model
from arkbeam.store.segments import dense_values, read_columns


@dataclass(frozen=True, slots=True)
class Probed:
    """What one request showed; `failure` if it gave no vector."""

    failure: str | None = None
    is_sent: bool = True
    dimensions: int = 0
    norm: float = 0.0
    model: str = ""
    tokens: int | None = None
    tokens_estimated: int = 0
    latency_ms: float = 0.0

    @property
    def text(self) -> str:
        """One line for people."""
        if self.failure is not None:
            return self.failure
        return (
            f"{self.dimensions:,} dimensions, norm {self.norm:.4f}, model {self.model}, {self.tokens or 0:,} tokens"
            f" ({self.tokens_estimated:,} estimated), {self.latency_ms:,.0f} ms; the vector is in the store"
        )


def probe(spec: RunSpec, rows: SampledRows) -> Probed:
    """Send the first sampled row whose vector is not in the store.

    Raise ConfigError if the key is missing, OutputInUse if a run writes the output, StoreError.
    """
    model = read_model(spec.store.uri, spec.run.service, spec.model.name)
    spec = replace(spec, model_owned=model.resolved)
    check_secrets(spec)
    with claiming(spec):
        try:
            found = open_index(spec).find(rows.keys["fingerprint"], spec.model_owned)
            known = {*found.index["fingerprint"].to_pylist(), *found.rejected["fingerprint"].to_pylist()}
            for at, fingerprint in enumerate(rows.keys["fingerprint"].to_pylist()):
                if fingerprint not in known:
                    key = rows.keys.slice(at, 1).to_pylist()[0]
                    return _send(fingerprint, rows.staged["request"][at].as_py(), key, spec)
            return Probed("nothing was sent: the vectors of all rows that were read are in the store", is_sent=False)
        finally:
            forget_run(spec)
            forget_work(spec.run.name)


def _send(fingerprint: bytes, request: bytes, key: dict[str, Any], spec: RunSpec) -> Probed:
    tokens = key["text_tokens"] + key["image_tokens"]
    row = StagedRow(fingerprint, request_from_json(request), tokens, key["image_tokens"])
    item = encode_row(row, spec)
    if isinstance(item, Unsendable):
        return Probed(f"the row can't be sent: {item.failure.message}")
    engine, sink = open_engine(spec), Sink()
    with engine.taking_part():
        if engine.submit([item], sink):
            engine.settle(sink)
    report = engine.finish(sink)
    _, rejected = sink.collect()
    if report.stop is not None:
        return Probed(f"{report.stop.code}: {report.stop.message}")
    if rejected.num_rows:
        return Probed(f"{rejected['code'][0].as_py()}: {rejected['message'][0].as_py()}")
    (uri,) = list_parquet(segments_folder(spec.store.uri, spec.run.name))
    table = read_columns(uri, ["dense", "model", "total_tokens", "latency_ms"])
    vector = dense_values(table["dense"])[0]
    return Probed(
        dimensions=len(vector),
        norm=float(np.linalg.norm(vector)),
        model=table["model"][0].as_py() or "",
        tokens=table["total_tokens"][0].as_py(),
        tokens_estimated=tokens,
        latency_ms=table["latency_ms"][0].as_py(),
    )
