"""`arkbeam map`: a sample of an output as a table with x, y and neighbours, in the form that embedding-atlas opens."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arkbeam.base.files import writing
from arkbeam.outputs.neighbours import Neighbours, find_neighbours, lay_out, to_units
from arkbeam.outputs.originals import Source, read_originals
from arkbeam.outputs.published import Published
from arkbeam.outputs.sampling import read_sample
from arkbeam.outputs.summary import media_mask


@dataclass(frozen=True, slots=True)
class Written:
    """A map that was written: its file, its rows, how they were placed, and whether it has a column `text`."""

    uri: str
    rows: int
    method: str
    has_text: bool

    @property
    def command(self) -> tuple[str, ...]:
        """The words of the command that opens the map."""
        text = ("--text", "text") if self.has_text else ()
        return ("embedding-atlas", self.uri, "--x", "x", "--y", "y", "--neighbors", "neighbors", *text)


def write_map(output: Published, uri: str, points: int, source: Source | None) -> Written:
    """Write the map of at most `points` rows of an output to a Parquet file.

    Its columns: `id`, `manifest`, `row`, `kind` (`text`, or `media` for rows with an image or a video), `x` and `y` (0 to 1),
    `neighbors` (zero-based rows of this file, and their distances, 1 - cosine), `text` if the manifests can be read, and
    the first kept columns. Raise StoreError.
    """
    sample = read_sample(output, points)
    units = to_units(sample.vectors)
    layout = lay_out(units)
    names = ["id", "manifest", "row"]
    table = sample.rows.select(names)
    places = list(zip(table["manifest"].to_pylist(), table["row"].to_pylist(), strict=True))
    ids = dict(zip(places, table["id"].to_pylist(), strict=True))
    originals = read_originals(ids, source, pictures=False)
    columns = {
        **{name: table[name] for name in names},
        "kind": pa.array(np.where(media_mask(sample.rows), "media", "text")),
        "x": pa.array(layout.points[:, 0]),
        "y": pa.array(layout.points[:, 1]),
        "neighbors": _as_structs(find_neighbours(units)),
    }
    texts = [originals[place].text if place in originals else None for place in places]
    has_text = any(texts)
    if has_text:
        columns["text"] = pa.array(texts, pa.string())
    columns |= {name: sample.rows[name] for name in sample.kept if name not in columns}
    with writing(uri) as path:
        pq.write_table(pa.table(columns), path, compression="zstd")
    return Written(uri, len(units), layout.method, has_text)


def _as_structs(near: Neighbours) -> pa.StructArray:
    rows, count = near.ids.shape
    offsets = pa.array(np.arange(0, rows * count + 1, count) if count else np.zeros(rows + 1), pa.int32())
    ids = pa.ListArray.from_arrays(offsets, pa.array(near.ids.ravel()))
    distances = pa.ListArray.from_arrays(offsets, pa.array(1 - near.cosines.ravel().astype(np.float64)))
    return pa.StructArray.from_arrays([ids, distances], ["ids", "distances"])
