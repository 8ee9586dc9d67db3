"""Outputs for the tests of what is done with them: made once, and copied by each test that changes one."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.emulator.options import EmulatorOptions

from tests.places import Place, run_emulator
from tests.warm import WarmProcess

TEXTS = [
    f"{size} {colour} {thing}"
    for size in ("small", "large")
    for colour in ("red", "blue", "green")
    for thing in ("kite", "boat", "lamp", "drum")
]


def rows_of(texts: list[str]) -> list[dict[str, Any]]:
    """Return manifest rows: an id, the text, and columns to keep."""
    return [
        {"id": f"id-{n:02d}", "text": text, "title": text.upper(), "price": n / 4, "tags": text.split()}
        for n, text in enumerate(texts)
    ]


SETTINGS = {
    "model.sparse": True,
    "manifest.keep": ["title", "price", "tags"],
    "emulator.poison": "poison",
}


@pytest.fixture(scope="session")
def finished(warm: WarmProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished output of 24 rows with sparse vectors, and one failure."""
    folder = tmp_path_factory.mktemp("finished")
    with run_emulator(warm, EmulatorOptions(poison="poison")) as emulator:
        place = Place(folder, emulator.url, dict(SETTINGS))
        place.write_rows([*rows_of(TEXTS), {"id": "bad", "text": "poison"}])
        place.run()
    change_part(place.output, "embeddings/part-00000", lambda table: table.sort_by("id"))  # not by arrival
    return place.output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished output."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def find_part(output: Path, start: str) -> Path:
    """Return the part whose path in the output begins like this: its name ends with a hash of its bytes."""
    (found,) = output.glob(f"{start}*")
    return found


def change_part(output: Path, start: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the table of a part, and what run.json says about the file, so that only the values are wrong."""
    file = find_part(output, start)
    pq.write_table(change(pq.read_table(file)), file)
    note = json.loads((output / "run.json").read_bytes())
    data = file.read_bytes()
    for entry in note["files"]:
        if entry["path"].startswith(start):
            rows = pq.read_metadata(file).num_rows
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "rows": rows}
    (output / "run.json").write_text(json.dumps(note))
