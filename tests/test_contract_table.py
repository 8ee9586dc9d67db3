"""The table of the contract: every statement names a module that implements it, and tests that exist and pass."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CODE = TESTS.parent / "pipeline" / "arkbeam"
PAGE = (CODE / "ark" / "README.md").read_text("utf-8")
(TABLE,) = re.findall(r"\| the contract says \| implemented in \| shown by \|\n\|[-|]+\|\n(.*?)\n\n", PAGE + "\n", re.S)
ROWS = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in TABLE.splitlines()]
NAMED = sorted({name for row in ROWS for name in re.findall(r"`([\w/]+\.py::\w+)`", row[2])})


def test_table_has_no_empty_cell() -> None:
    """Every statement names the modules that implement it, which exist, and at least one test."""
    assert len(ROWS) >= 30
    for row in ROWS:
        assert all(row), row
        assert "::" in row[2], row
        for module in re.findall(r"`([a-z0-9_]+/[a-z0-9_/]+)`", row[1]):
            assert (CODE / f"{module}.py").is_file(), module


@pytest.mark.parametrize("name", NAMED)
def test_named_test_is_there_and_ran(name: str, passed: set[str], request: pytest.FixtureRequest) -> None:
    """A test that the table names exists, and has passed if it was selected for this run."""
    file, _, function = name.partition("::")
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    selected = {item.nodeid.partition("[")[0].removeprefix("tests/") for item in request.session.items}
    if name in selected:
        assert name in passed
