"""What programs read: `--json`, `--log json`, `--quiet`, and output without colours."""

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
from arkbeam.app.messages import LogForm, Messages


@pytest.fixture
def mixed(place: Any) -> Any:
    """A place with three rows that can be sent, of which two are equal, and one that can't."""
    place.write_rows([{"id": "a", "text": "a"}, {"id": "b", "text": "b"}, {"id": "c", "text": "b"}, {"id": "d"}])
    return place


def test_plan_in_json(mixed: Any, call: Callable[..., Any]) -> None:
    """`plan --json` prints the counts and the estimate."""
    plan = json.loads(call(*mixed.arguments("plan", {}, "--json")).out)
    assert (plan["rows"], plan["unreadable"], plan["to_buy"], plan["duplicates"]) == (3, 1, 2, 1)
    assert plan["tokens"] == plan["text_tokens"] > 0
    assert plan["estimate"]["cost_cny"] > 0
    assert plan["estimate"]["binding"] in ("rpm", "tpm")


def test_run_in_json(mixed: Any, call: Callable[..., Any]) -> None:
    """`run --json` prints `run.json` alone; with `--log json` each line on stderr is a JSON object, also the last error."""
    arguments = mixed.arguments("run", {"model.instructions": None}, "--log", "json", "--json")
    ended = call(*arguments)
    assert (ended.code, json.loads(ended.out)) == (3, mixed.note)
    lines = [json.loads(line) for line in ended.err.splitlines()]
    assert [one["level"] for one in lines if "instructions" in one.get("message", "")] == ["note"]
    assert (lines[-1]["event"], lines[-1]["level"]) == ("message", "error")
    assert "1 rows failed, more than limits.failures_allowed" in lines[-1]["message"]
    shown = json.loads(call("inspect", str(mixed.output), "--json", "--rows", "1").out)
    assert shown["run"] == mixed.note
    assert shown["columns"]["dense"] == "float[1024]"
    assert [row["id"] for row in shown["rows"]] == ["a"]
    assert [(one["code"], one["rows"]) for one in shown["failures"]] == [("no_input", 1)]
    mixed.write_rows([])
    (error,) = (json.loads(line) for line in call(*arguments).err.splitlines() if '"error"' in line)
    assert (error["error"], error["exit_code"]) == ("ManifestError", 2)
    text = call(*mixed.arguments("run")).err
    assert "error ManifestError: " in text


def test_log_records_in_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning of a module is a JSON object too."""
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    Messages().set(LogForm.JSON, quiet=False)
    logging.getLogger("arkbeam.app.job").warning("run.json can't be read: %s", "no JSON")
    (logged,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (logged["event"], logged["level"], logged["logger"]) == ("log", "warning", "arkbeam.app.job")
    assert logged["message"] == "run.json can't be read: no JSON"


def test_quiet(mixed: Any, call: Callable[..., Any]) -> None:
    """`--quiet` prints nothing about a run that is in order, and says why one is not."""
    ended = call(*mixed.arguments("run", {"limits.failures_allowed": 1}, "--quiet"))
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    ended = call(*mixed.arguments("run", {}, "-q"))
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("1 rows failed")


def test_no_colour(start: Callable[..., Any]) -> None:
    """With NO_COLOR there is no colour, even if FORCE_COLOR says that the output is a terminal."""
    coloured, plain = (
        start("run", "missing.yaml", TERM="xterm-256color", FORCE_COLOR="1", **more).wait().err
        for more in ({}, {"NO_COLOR": "1"})
    )
    assert "\x1b[1;31m" in coloured
    assert "\x1b[1;31m" not in plain
