"""What programs read: `--json`, `--log json`, `--quiet`, and output without colours."""

import json
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def mixed(place: Any) -> Any:
    """A place with three rows that can be sent, of which two are equal, and one that can't."""
    place.write_rows([{"id": "a", "text": "a"}, {"id": "b", "text": "b"}, {"id": "c", "text": "b"}, {"id": "d"}])
    return place


def test_run_in_json(mixed: Any, call: Callable[..., Any]) -> None:
    """`run --json` prints the content of `run.json` alone to stdout."""
    ended = call(*mixed.arguments("run", {"limits.failures_allowed": 1}, "--json"))
    assert (ended.code, json.loads(ended.out)) == (0, mixed.note)


def test_plan_in_json(mixed: Any, call: Callable[..., Any]) -> None:
    """`plan --json` prints the counts and the estimate."""
    plan = json.loads(call(*mixed.arguments("plan", {}, "--json")).out)
    assert (plan["rows"], plan["unreadable"], plan["to_buy"], plan["duplicates"]) == (3, 1, 2, 1)
    assert plan["tokens"] == plan["text_tokens"] > 0
    assert plan["estimate"]["cost_cny"] > 0
    assert plan["estimate"]["binding"] in ("rpm", "tpm")


def test_inspect_in_json(mixed: Any, call: Callable[..., Any]) -> None:
    """`inspect --json` prints the run, the columns, some rows and the failures by code."""
    mixed.run()
    shown = json.loads(call("inspect", str(mixed.output), "--json", "--rows", "1").out)
    assert shown["run"] == mixed.note
    assert shown["columns"]["dense"] == "float[1024]"
    assert [row["id"] for row in shown["rows"]] == ["a"]
    assert [(one["code"], one["rows"]) for one in shown["failures"]] == [("no_input", 1)]


def test_messages_in_json(mixed: Any, call: Callable[..., Any]) -> None:
    """With `--log json` each line on stderr is a JSON object: notes, warnings of modules, and the last error."""
    arguments = mixed.arguments("run", {"model.instructions": None}, "--log", "json", "--json")
    ended = call(*arguments)
    lines = [json.loads(line) for line in ended.err.splitlines()]
    assert ended.code == 3
    assert [one["level"] for one in lines if "instructions" in one.get("message", "")] == ["note"]
    assert (lines[-1]["event"], lines[-1]["level"]) == ("message", "error")
    assert "1 rows failed, more than limits.failures_allowed" in lines[-1]["message"]
    mixed.write_rows([])
    (error,) = (json.loads(line) for line in call(*arguments).err.splitlines() if '"error"' in line)
    assert (error["error"], error["exit_code"]) == ("ManifestError", 2)
    text = call(*mixed.arguments("run")).err
    assert "error ManifestError: " in text


def test_log_records_in_json(mixed: Any, start: Callable[..., Any]) -> None:
    """A warning of a module is a JSON object too."""
    mixed.run()
    (mixed.output / "run.json").write_text("no JSON")
    lines = start(*mixed.arguments("run", {}, "--log", "json")).wait().err.splitlines()
    logged = [one for one in map(json.loads, lines) if one["event"] == "log"]
    loggers = ["arkbeam.app.job", "arkbeam.stages.publish.earlier"]  # both read the note of the last run
    assert [(one["level"], one["logger"]) for one in logged] == [("warning", logger) for logger in loggers]
    assert "run.json can't be read" in logged[0]["message"]


def test_quiet(mixed: Any, call: Callable[..., Any]) -> None:
    """`--quiet` prints nothing about a run that is in order, and says why one is not."""
    ended = call(*mixed.arguments("run", {"limits.failures_allowed": 1}, "--quiet"))
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    ended = call(*mixed.arguments("run", {}, "-q"))
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("1 rows failed")


def test_no_colour(mixed: Any, start: Callable[..., Any]) -> None:
    """With NO_COLOR there is no colour, even if FORCE_COLOR says that the output is a terminal."""
    mixed.write_rows([])
    coloured, plain = (
        start(*mixed.arguments("run"), TERM="xterm-256color", FORCE_COLOR="1", **more).wait().err
        for more in ({}, {"NO_COLOR": "1"})
    )
    assert "\x1b[1;31m" in coloured
    assert "\x1b[1;31m" not in plain
