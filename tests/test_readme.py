"""The documentation is true: commands run, queries give the printed answers, tables agree with the code, links have targets."""

import importlib.util
import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
import yaml
from arkbeam.app.cli_options import ExitCode
from arkbeam.app.config import parse_config
from arkbeam.base import schema

from scripts.children import child_environment
from scripts.make_docs import CONFIG_PAGE, MEDIA_PAGE, make_config_table, make_emulator_table, read_table
from tests.places import Ended, Started
from tests.test_layers import ORDER
from tests.warm import Task, WarmProcess, run_arkbeam_in

ROOT = Path(__file__).parent.parent
CODE = ROOT / "pipeline" / "arkbeam"
README = ROOT / "README.md"
CHINESE = ROOT / "README.zh-CN.md"
OUTPUT_PAGE = CODE / "stages" / "publish" / "README.md"
QUOTA_PAGE = CODE / "quota" / "README.md"
LINES_MAX = 200
COLUMNS_MAX = 120

Table = list[list[str]]


@dataclass(frozen=True, slots=True)
class Page:
    """The parts of a Markdown file that are checked. `tables` include their heads; `blocks` are pairs of language and text."""

    text: str
    headings: list[tuple[int, str]]
    blocks: list[tuple[str, str]]
    tables: list[Table]
    links: list[str]


@cache
def read_page(path: Path) -> Page:
    """Parse a Markdown file."""
    text = path.read_text("utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    prose = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.S | re.M)
    headings = [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", prose, re.M)]
    tables = [
        [split_row(line) for line in table.splitlines() if not re.fullmatch(r"[|\- ]+", line)]
        for table in re.findall(r"(?:^\|.*\|\n)+", prose + "\n", re.M)
    ]
    links = re.findall(r"\[[^\]]*\]\(([^)]+)\)", re.sub(r"`[^`\n]*`", "", prose))
    return Page(text, headings, blocks, tables, links)


def split_row(line: str) -> list[str]:
    """Return the cells of a row of a table."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def find_table(path: Path, *head: str) -> Table:
    """Return the rows of the one table of a page whose head begins with these cells."""
    (found,) = [table for table in read_page(path).tables if table[0][: len(head)] == list(head)]
    return found[1:]


def quoted(cell: str) -> list[str]:
    """Return the texts in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def names_in(table: Table) -> list[str]:
    """Return the texts in backticks in the first column of a table."""
    return [name for row in table for name in quoted(row[0])]


FOLDERS = ("configs", "pipeline", "scripts", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
ORIGINAL = [
    page for page in PAGES if page != CHINESE
]  # its commands and queries are those of the README: a test below checks that


def commands_of(page: Path) -> list[str]:
    """Return the commands of a page, in order."""
    return [line for kind, text in read_page(page).blocks if kind == "sh" for line in text.splitlines()]


COMMANDS = sorted({line for page in ORIGINAL for line in commands_of(page)})
QUERIES = [
    pytest.param(*found, id=str(page.relative_to(ROOT)))
    for page in ORIGINAL
    for found in re.findall(r"```sql\n(.*?)```\n\n(\|.*?)\n\n", page.read_text("utf-8"), re.S)
]


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader of the README, who has typed its commands in a working directory, in order. `ended`: how each has ended."""

    folder: Path
    warm: WarmProcess
    ended: dict[str, Ended] = field(default_factory=dict)

    def run(self, command: str) -> Ended:
        """Run a command of `arkbeam` as a page writes it, with this checkout's code, unless it has run before."""
        if command not in self.ended:
            task = Task(run_arkbeam_in, (str(self.folder), *shlex.split(command)[1:]), child_environment())
            started = Started(lambda out, err: self.warm.fork(task, out, err))
            self.ended[command] = started.wait(100)
            started.close()
        return self.ended[command]


@pytest.fixture(scope="module")
def reader(warm: WarmProcess, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """The README's reader."""
    reader = Reader(tmp_path_factory.mktemp("readme"), warm)
    shutil.copytree(ROOT / "configs", reader.folder / "configs")
    for command in commands_of(README):
        if command.startswith("arkbeam "):
            reader.run(command)
    return reader


@pytest.fixture(scope="module")
def demo(reader: Reader) -> Path:
    """A working directory in which the README's demo has run."""
    return reader.folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_works(command: str, reader: Reader) -> None:
    """Commands of `arkbeam` exit with 0, those of the README in the order in which it has them; scripts are executable."""
    words = shlex.split(command)
    if words[0] == "arkbeam":
        ended = reader.run(command)
        assert ended.code == 0, ended.err
        assert ended.out.strip()
    elif words[:2] == [".venv/bin/python", "-m"]:
        assert importlib.util.find_spec(words[2])
    else:  # what the scripts do is tested in test_packaging and test_bench
        assert os.access(ROOT / words[0], os.X_OK)
        assert all((ROOT / word).exists() for word in words[1:] if "/" in word)


def test_each_step_names_the_next(reader: Reader) -> None:
    """From a folder to a search, each command prints the next one; a run ends with the path of its report."""
    init = reader.run("arkbeam init configs/demo/images").out
    run = reader.run("arkbeam run images.yaml --set api.base_url=emulator").out
    for line in ("arkbeam check images.yaml", "arkbeam run images.yaml --set api.base_url=emulator"):
        assert line in init
    assert "\nto search it: arkbeam search out/images 'WORDS'\n" in run
    (report,) = re.findall("^report: (.+)$", run, re.M)
    assert (reader.folder / report).read_bytes().startswith(b"<!DOCTYPE html>")


@pytest.mark.parametrize(("query", "answer"), QUERIES)
def test_every_query_of_the_readme_gives_its_answer(
    query: str, answer: str, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB gives the printed tables for the demo's output."""
    monkeypatch.chdir(demo)
    relation = duckdb.sql(query)
    assert relation is not None
    rows = [[str(cell) for cell in row] for row in relation.fetchall()]
    assert rows == [split_row(line) for line in answer.splitlines()[2:]]


def test_configuration_table_is_the_code() -> None:
    """The reference has every key of the config and every option of the emulator, with default and meaning."""
    assert read_table(CONFIG_PAGE, "config") == make_config_table()
    assert read_table(CONFIG_PAGE, "emulator") == make_emulator_table()


def test_example_configs_are_configs() -> None:
    """The config in the README is valid, also with each of the sections that other pages show."""
    shown = [yaml.safe_load(text) for page in ORIGINAL for kind, text in read_page(page).blocks if kind == "yaml"]
    (example,) = [one for one in shown if "manifest" in one]
    assert parse_config(example).model.dimensions == 1024
    assert len(shown) >= 4
    for section in shown:
        parse_config({**example, **section})


def test_exit_codes_are_the_code() -> None:
    """The README's table of exit codes has exactly the codes of the command line."""
    assert [int(code) for code, _ in find_table(README, "exit code", "meaning")] == [code.value for code in ExitCode]


def test_columns_are_the_schema() -> None:
    """The tables of columns have exactly the columns of the output."""
    embeddings = names_in(find_table(OUTPUT_PAGE, "column of `embeddings/`"))
    assert sorted(embeddings) == sorted([*schema.embeddings_schema(pa.struct([])).names, "manifest.keep"])
    assert names_in(find_table(OUTPUT_PAGE, "column of `failures/`")) == schema.FAILURES.names
    assert sorted(names_in(find_table(OUTPUT_PAGE, "column of `usage/`"))) == sorted(schema.USAGE.names)
    (multi,) = re.findall(r"^`multi/` has (.+?):", read_page(OUTPUT_PAGE).text, re.M)
    assert quoted(multi) == schema.MULTI_EMBEDDINGS.names


def test_keys_of_run_json_are_told(demo: Path) -> None:
    """The tables of keys have exactly the keys of `run.json` and of its `quota` section."""
    note = json.loads((demo / "out" / "demo" / "run.json").read_bytes())
    assert sorted(names_in(find_table(OUTPUT_PAGE, "key of `run.json`"))) == sorted(note)
    told = names_in(find_table(QUOTA_PAGE, "key of `run.json`"))
    assert sorted(told) == sorted(f"quota.{name}" for name in note["quota"])


def test_codes_of_media_are_the_code() -> None:
    """Each failure code on the pages about media and manifests is in the code."""
    code = "\n".join(path.read_text("utf-8") for path in CODE.rglob("*.py"))
    told = {
        *names_in(find_table(MEDIA_PAGE, "code")),
        *names_in(find_table(CODE / "manifest" / "README.md", "code")),
    }
    assert len(told) > 15
    assert sorted(name for name in told if f'"{name}"' not in code) == []


@pytest.mark.parametrize(
    "page", [README, ROOT / "pipeline" / "README.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_rooms_are_the_code(page: Path) -> None:
    """The table of rooms has the folders of the code, in the order of their imports."""
    rooms = list(dict.fromkeys(entry.partition(".")[0] for entry in ORDER))
    assert [f"{room}/" for room in rooms] == names_in([row[:1] for row in find_table(page, "room")])


def test_limits_of_the_promise_are_told() -> None:
    """The README has the limits: lost requests, URLs as identity, the sound of videos, access keys."""
    words = " ".join(read_page(README).text.split())
    for phrase in (
        "no idempotency",
        "identified by the URL",
        "ignores the sound of videos",
        "AK/SK, are not supported",
    ):
        assert phrase in words, phrase


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """The target of each link to a file or a heading exists."""
    for link in read_page(page).links:
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in {anchor_of(title) for _, title in read_page(target).headings}, link


def anchor_of(title: str) -> str:
    """Return the anchor of a heading on GitHub."""
    return re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).replace(" ", "-")


def test_readme_is_short() -> None:
    """The README has at most 200 lines in both languages, and at most 120 columns outside tables."""
    for page in (README, CHINESE):
        assert len(page.read_text("utf-8").splitlines()) <= LINES_MAX
    for line in README.read_text("utf-8").splitlines():
        assert len(line) <= COLUMNS_MAX or line.startswith("|"), line


def test_translation_has_the_same_headings_commands_and_tables() -> None:
    """The Chinese README has the headings, code, tables and links of the English one; only prose and comments differ."""
    ours, theirs = read_page(README), read_page(CHINESE)
    assert [level for level, _ in ours.headings] == [level for level, _ in theirs.headings]
    assert [kind for kind, _ in ours.blocks] == [kind for kind, _ in theirs.blocks]
    for (kind, text), (_, translated) in zip(ours.blocks, theirs.blocks, strict=True):
        if kind == "yaml":  # its comments are translated
            assert yaml.safe_load(text) == yaml.safe_load(translated)
        else:
            assert text == translated
    assert [shape_of(table) for table in ours.tables] == [shape_of(table) for table in theirs.tables]
    assert (ours.links[0], theirs.links[0]) == (CHINESE.name, README.name)
    assert ours.links[1:] == theirs.links[1:]


def shape_of(table: Table) -> list[list[list[str]]]:
    """Return what a translation must keep of a table: rows, columns, and the texts in backticks."""
    return [[sorted(quoted(cell)) for cell in row] for row in table]
