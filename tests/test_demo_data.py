"""The demo's data: its content, and that it is what scripts/make_demo.py makes."""

import csv
import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "configs" / "demo"
NOT_A_PICTURE = "no-picture.png"
JPEG_TOLERANCE = 24  # of 255: encoders of other Pillow versions round differently


def load_make_demo() -> ModuleType:
    """Import scripts/make_demo.py from its path."""
    spec = importlib.util.spec_from_file_location("make_demo", ROOT / "scripts" / "make_demo.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    """The files that the script makes."""
    return load_make_demo().demo_files()


def read_rows() -> list[dict[str, Any]]:
    """Return the lines of the manifest that are valid JSON."""
    rows = []
    for line in (FOLDER / "manifest.jsonl").read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def good_rows() -> list[dict[str, Any]]:
    """Return the rows that become vectors."""
    return [row for row in read_rows() if not row["id"].startswith("bad-")]


def test_script_makes_the_same_bytes_each_time(made: dict[str, bytes]) -> None:
    """Two runs of the script write identical files."""
    assert load_make_demo().demo_files() == made


@pytest.mark.parametrize("name", ["manifest.jsonl", "more.csv", f"images/{NOT_A_PICTURE}"])
def test_kept_file_is_what_the_script_makes(made: dict[str, bytes], name: str) -> None:
    """These files in the checkout are the script's output, byte for byte."""
    assert (FOLDER / name).read_bytes() == made[name]


def test_kept_images_are_what_the_script_makes(made: dict[str, bytes], tmp_path: Path) -> None:
    """The pictures in the checkout are exactly those of the script; their pixels may differ by the encoder's rounding."""
    kept = {f"images/{path.name}" for path in (FOLDER / "images").iterdir()}
    assert kept == {name for name in made if name.startswith("images/")}
    for name in kept - {f"images/{NOT_A_PICTURE}"}:
        fresh = tmp_path / Path(name).name
        fresh.write_bytes(made[name])
        difference = np.abs(pixels(FOLDER / name).astype(int) - pixels(fresh).astype(int)).max()
        assert difference <= (JPEG_TOLERANCE if name.endswith(".jpg") else 0), name


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """Return a picture as an array of height x width x 3 bytes."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_demo_holds_what_it_promises() -> None:
    """The manifest has 333 rows, with the numbers of each kind that the demo shows."""
    assert len((FOLDER / "manifest.jsonl").read_text("utf-8").splitlines()) == 333
    shapes = Counter("+".join(c for c in ("text", "image", "video") if c in row) for row in good_rows())
    assert shapes == {"text": 260, "image": 44, "text+image": 22, "video": 1, "text+video": 1}
    texts = Counter(row["text"] for row in good_rows() if "text" in row)
    assert sum(texts.values()) - len(texts) == 20
    languages = Counter(row["lang"] for row in good_rows() if "text" in row)
    assert min(languages["en"], languages["zh"]) > 100


def test_ids_are_unique() -> None:
    """Ids are unique, also of rows with the same text."""
    ids = [row["id"] for row in read_rows()]
    assert len(set(ids)) == len(ids)


def test_kept_columns_have_one_type_each() -> None:
    """Title and lang are strings, price a float, tags a list of strings, on every good row."""
    for row in good_rows():
        assert isinstance(row["title"], str)
        assert row["lang"] in {"en", "zh"}
        assert isinstance(row["price"], float)
        assert row["tags"]
        assert all(isinstance(tag, str) for tag in row["tags"])


def test_five_bad_rows_are_bad_in_five_ways() -> None:
    """A line that is not JSON, a row without input, a missing file, a file that is not a picture, a text of a wrong type."""
    lines = (FOLDER / "manifest.jsonl").read_text("utf-8").splitlines()
    bad = {row["id"]: row for row in read_rows() if row["id"].startswith("bad-")}
    assert len(lines) - len(read_rows()) == 1
    assert set(bad) == {"bad-empty", "bad-missing", "bad-picture", "bad-type"}
    assert not {"text", "image", "video"} & set(bad["bad-empty"])
    assert not (FOLDER / bad["bad-missing"]["image"]).exists()
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(FOLDER / bad["bad-picture"]["image"])
    assert not isinstance(bad["bad-type"]["text"], str | list)


def test_images_are_small_and_distinct() -> None:
    """Every picture can be opened, has the format of its extension and sides of 32 to 128 pixels, and all look different."""
    looks = set()
    images = [path for path in (FOLDER / "images").iterdir() if path.name != NOT_A_PICTURE]
    assert len(images) == 44
    for path in images:
        with Image.open(path) as picture:
            assert picture.format == {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[path.suffix]
            assert all(32 <= side <= 128 for side in picture.size)
            looks.add(picture.convert("RGB").resize((16, 16)).tobytes())
    assert len(looks) == len(images)


def test_media_of_good_rows_exist() -> None:
    """Every path in a good row is that of a file."""
    for row in good_rows():
        for column in ("image", "video"):
            assert column not in row or (FOLDER / row[column]).is_file()


def test_video_is_a_whole_mp4() -> None:
    """The boxes of the video fill the file exactly, and those that a player needs are there."""
    content = (FOLDER / "videos" / "lantern.mp4").read_bytes()
    boxes, at = [], 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        assert size >= 8
        boxes.append(content[at + 4 : at + 8])
        at += size
    assert at == len(content)
    assert boxes[0] == b"ftyp"
    assert {b"moov", b"mdat"} <= set(boxes)


def test_second_manifest_has_texts_in_both_languages() -> None:
    """The CSV has twenty rows in two languages, with ids that the other manifest does not have."""
    with (FOLDER / "more.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["id"] for row in rows}) == 20
    assert not {row["id"] for row in rows} & {row["id"] for row in read_rows()}
    assert {row["lang"] for row in rows} == {"en", "zh"}
    assert all(row["text"] for row in rows)


def test_demo_is_small_enough_for_git() -> None:
    """All files together are smaller than 500 kB."""
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 500_000


def test_config_fits_the_data() -> None:
    """The demo's config names files that exist, columns that the manifest has, and allows the five bad rows."""
    config = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text("utf-8"))
    columns = {name for row in good_rows() for name in row}
    assert all((ROOT / uri).is_file() for uri in config["manifest"]["uris"])
    assert set(config["manifest"]["columns"].values()) | set(config["manifest"]["keep"]) == columns
    assert config["limits"]["failures_allowed"] == 5
    assert config["model"]["instructions"].endswith("\nQuery:")
