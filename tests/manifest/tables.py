"""Read a manifest given as bytes, and show what became of each of its rows."""

import json
from dataclasses import dataclass
from typing import Any

import fsspec
from arkbeam.ark.models import ModelOptions
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.records import ServiceKind
from arkbeam.manifest.options import CsvOptions, ManifestOptions, ReadContext
from arkbeam.manifest.read import read_shard
from arkbeam.manifest.shards import cut_shards, list_manifests

CONTEXT = ReadContext(ServiceKind.ARK, ModelSpec.of(ModelOptions("doubao-embedding-vision-251215", 1024)))


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a row that is not blank: its cells, or the code and message of its failure, and its text."""

    number: int
    cells: Any
    original: str
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of a manifest, and how many of them are blank."""

    rows: list[Row]
    blank: int

    @property
    def good(self) -> list[Any]:
        """The cells of the rows that can be sent."""
        return [row.cells for row in self.rows if not row.code]

    @property
    def bad(self) -> list[tuple[int, str]]:
        """Number and code of the failures."""
        return [(row.number, row.code) for row in self.rows if row.code]


def read_rows(data: bytes | str, name: str = "m.csv", shard_bytes: int = 2**30, **options: Any) -> Rows:
    """Read a manifest of this name; keyword arguments are options of the manifest, those in `csv` of its CSV files."""
    fsspec.filesystem("memory").pipe_file(f"/tables/{name}", data.encode() if isinstance(data, str) else data)
    if isinstance(options.get("csv"), dict):
        options["csv"] = CsvOptions(**options["csv"])
    chosen = ManifestOptions(f"memory://tables/{name}", **options)
    rows: list[Row] = []
    count = 0
    for shard in cut_shards(list_manifests(chosen), shard_bytes):
        first = count
        for chunk in read_shard(shard, chosen, CONTEXT):
            rows += [
                Row(first + row["row"], json.loads(row["original"]), row["original"])
                for row in chunk.staged.to_pylist()
            ]
            rows += [
                Row(first + row["row"], None, row["original"], row["code"], row["message"])
                for row in chunk.unreadable.to_pylist()
            ]
            count += chunk.rows
    return Rows(sorted(rows, key=lambda row: row.number), count - len(rows))
