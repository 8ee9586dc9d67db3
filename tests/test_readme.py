"""The README is true: its commands run, its queries give the answers printed, its tables say what the code says."""

import ast
import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import duckdb
import pyarrow as pa
import pytest
import yaml
from arkbeam.app.cli import ExitCode
from arkbeam.app.config import Config, parse_config, section_of
from arkbeam.base.schema import embeddings_schema

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.strip().splitlines()]
QUERIES = re.findall(r"```sql\n(.*?)```\n\n(\|.*?)\n\n", README, re.S)


def describe_keys(section: type = Config, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Give each key of the config, its default as people write it, and what the field's docstring says."""
    docs = _field_docs(section)
    kinds = get_type_hints(section)
    for field in dataclasses.fields(section):
        inner = section_of(kinds[field.name])
        if inner is None or str in get_args(kinds[field.name]):
            yield prefix + field.name, _write_default(field), docs.get(field.name, "")
        if inner is not None:
            yield from describe_keys(inner, f"{prefix}{field.name}.")


def _field_docs(section: type) -> dict[str, str]:
    (node,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(node, ast.ClassDef)
    docs = {}
    for statement, following in zip(node.body, node.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            assert isinstance(following.value, ast.Constant)
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def _write_default(field: dataclasses.Field[Any]) -> str:
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


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the README's demo has run."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    run = run_command("arkbeam run configs/demo.yaml", folder)
    assert run.returncode == 0, run.stderr
    return folder


def run_command(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command of `arkbeam` as the README writes it, with this checkout's code."""
    words = [sys.executable, "-m", "arkbeam", *shlex.split(command)[1:]]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "pipeline")}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_works(command: str, demo: Path) -> None:
    """Commands of `arkbeam` end with code 0; scripts are there and can be run."""
    name = shlex.split(command)[0]
    if name == "arkbeam":
        ended = run_command(command, demo)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.strip()
    else:
        assert os.access(ROOT / name, os.X_OK)  # what the scripts do is tested in test_packaging and test_bench


@pytest.mark.parametrize(("query", "answer"), QUERIES)
def test_every_query_of_the_readme_gives_its_answer(
    query: str, answer: str, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The printed tables are what DuckDB answers over the demo's output."""
    monkeypatch.chdir(demo)
    rows = [[str(cell) for cell in row] for row in duckdb.sql(query).fetchall()]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in answer.strip().splitlines()]
    assert rows == lines[2:]


def test_configuration_table_is_the_code() -> None:
    """Every key of the config stands in the README with its default and meaning."""
    for key, default, meaning in describe_keys():
        if key.startswith("emulator."):
            assert f"`{key.removeprefix('emulator.')}`" in README, key
        else:
            assert f"| `{key}` | {default} | {meaning} |" in README, f"| `{key}` | {default} | {meaning} |"


def test_example_configs_are_configs() -> None:
    """The config that the README shows loads as it stands, and with each of the sections that it shows elsewhere."""
    example, *sections = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", README, re.S)]
    assert parse_config(example).model.dimensions == 1024
    assert len(sections) >= 2
    for section in sections:
        parse_config({**example, **section})


def test_exit_codes_are_the_code() -> None:
    """The README's table of exit codes has exactly the codes of the command line."""
    (table,) = re.findall(r"\| exit code \| meaning \|\n\|[-|]+\|\n(.*?)\n\n", README, re.S)
    assert [int(line.split("|")[1]) for line in table.splitlines()] == [code.value for code in ExitCode]


def test_columns_are_the_schema() -> None:
    """Every column of the output stands in the README, and no other."""
    (table,) = re.findall(r"\| column of `embeddings/`.*?\n\|[-|]+\|\n(.*?)\n\n", README, re.S)
    named = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(named) == sorted(embeddings_schema(8, pa.struct([])).names)


def test_limits_of_the_promise_are_told() -> None:
    """What can't be promised stands in the README: lost answers, URLs by name, the sound of videos, access keys."""
    for words in ("no idempotency", "identified by the URL", "ignores the sound of videos", "AK/SK, are not supported"):
        assert words in README.replace("\n", " "), words
