"""Write the tables of the documentation that repeat the code.

    .venv/bin/python -m scripts.make_docs            the tables of the config
    .venv/bin/python -m scripts.make_docs --media    the table of odd media as well, from a run of the whole job

A table is between `<!-- table: NAME -->` and `<!-- end -->`. Tests compare each table with the code.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from arkbeam.app.config import Config, section_of
from arkbeam.app.schema import field_docs
from arkbeam.emulator.options import EmulatorOptions

ROOT = Path(__file__).resolve().parent.parent
CONFIG_PAGE = ROOT / "configs" / "README.md"
OUTPUT_PAGE = ROOT / "pipeline" / "arkbeam" / "stages" / "publish" / "README.md"
MEDIA_PAGE = ROOT / "pipeline" / "arkbeam" / "media" / "README.md"


def make_config_table() -> str:
    """Return the table of all keys of a config except those of the emulator."""
    return _make_table(row for row in describe_keys(Config) if not row[0].startswith("emulator."))


def make_emulator_table() -> str:
    """Return the table of the emulator's keys."""
    return _make_table(describe_keys(EmulatorOptions))


def make_media_table() -> str:
    """Return the table of odd media, from runs of the whole job."""
    from arkbeam.emulator.serve import start_emulator  # noqa: PLC0415 - needs the packages of the tests

    from tests.media.test_odd import run_odd_media  # noqa: PLC0415
    from tests.places import Emulator, Place  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder, start_emulator(EmulatorOptions()) as url:
        return run_odd_media(Place(Path(folder), url), Emulator(url))


def describe_keys(section: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield each key of a config section with its default, as it is written in YAML, and the docstring of its field."""
    docs = field_docs(section)
    kinds = get_type_hints(section)
    for field in dataclasses.fields(section):
        inner = section_of(kinds[field.name])
        if inner is None or str in get_args(kinds[field.name]):  # a key that takes a string or a section
            yield prefix + field.name, _write_default(field), docs.get(field.name, "")
        if inner is not None:
            yield from describe_keys(inner, f"{prefix}{field.name}.")


def read_table(page: Path, name: str) -> str:
    """Return the table `name` of a page. Raise ValueError if the page has no such table."""
    _, table, _ = _split_page(page, name)
    return table.strip()


def write_table(page: Path, name: str, table: str) -> None:
    """Replace the table `name` of a page. Raise ValueError if the page has no such table."""
    before, _, after = _split_page(page, name)
    page.write_text(f"{before}\n{table}\n{after}", "utf-8")


def _split_page(page: Path, name: str) -> tuple[str, str, str]:
    begin, end = f"<!-- table: {name} -->", "<!-- end -->"
    before, found, rest = page.read_text("utf-8").partition(begin)
    table, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no {begin} that is followed by {end}")
    return before + begin, table, end + after


def _make_table(rows: Iterator[tuple[str, str, str]]) -> str:
    lines = [f"| `{key}` | {default} | {meaning.replace('|', chr(92) + '|')} |" for key, default, meaning in rows]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *lines])


def _write_default(field: "dataclasses.Field[Any]") -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    if value in (None, (), {}):
        return ""
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    """Write the tables to the pages."""
    parser = argparse.ArgumentParser(
        prog="scripts.make_docs", description="Write the tables of the documentation that repeat the code."
    )
    parser.add_argument("--media", action="store_true", help="write the table of odd media as well; runs the whole job")
    arguments = parser.parse_args()
    write_table(CONFIG_PAGE, "config", make_config_table())
    write_table(CONFIG_PAGE, "emulator", make_emulator_table())
    if arguments.media:
        write_table(MEDIA_PAGE, "odd media", make_media_table())


if __name__ == "__main__":
    main()
