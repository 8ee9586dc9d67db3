"""The commands as users see them: help, progress, inspect, the emulator, options for Beam."""

import json
import re
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from arkbeam import __version__


def test_version(start_cold: Callable[..., Any]) -> None:
    """`--version` prints name and version."""
    ended = start_cold("--version").wait()
    assert (ended.code, ended.out) == (0, f"arkbeam {__version__}\n")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["--help"], ["run", "plan", "emulator", "inspect", "--version"]),
        (["run", "--help"], ["CONFIG", "--set", "BEAM OPTIONS", "--retry-failed", "--publish-partial", "130"]),
        (["plan", "--help"], ["CONFIG", "--set", "--retry-failed"]),
        (["emulator", "--help"], ["--port", "--set"]),
        (["inspect", "--help"], ["OUTPUT", "--rows"]),
        (["store", "compact", "--help"], ["STORE", "--grace-h", "--json"]),
    ],
)
def test_help(call: Callable[..., Any], command: list[str], words: list[str]) -> None:
    """`--help` of every command names its arguments and options."""
    ended = call(*command)
    assert ended.code == 0
    assert [word for word in words if word not in ended.out] == []


@pytest.mark.parametrize("arguments", [["run"], ["fly"], ["run", "x.yaml", "--fast"], ["inspect", "nowhere"]])
def test_wrong_use(call: Callable[..., Any], arguments: list[str]) -> None:
    """An invalid command line exits with 2 and prints why."""
    ended = call(*arguments)
    assert ended.code == 2
    assert ended.err


def test_summary(place: Any, start: Callable[..., Any]) -> None:
    """Without a terminal the output is plain text; the summary has the counts and the output's folder."""
    place.write_texts(150)
    ended = start(*place.arguments("run")).wait()
    assert ended.code == 0
    assert "\x1b" not in ended.out + ended.err
    assert "150 sent, 150 paid, 0 refused" in ended.out
    assert f"output: {place.output}" in ended.out


def test_inspect(make_emulator: Any, make_place: Any, call: Callable[..., Any]) -> None:
    """`inspect` shows counts, tokens, cost, every column with its type, a few rows, and failures by code."""
    place = make_place(make_emulator(poison="poison").url)
    place.write_rows([*({"id": f"id-{n}", "text": f"t {n}"} for n in range(4)), {"text": "poison"}, "{", "{", "[]"])
    place.run()
    ended = call("inspect", str(place.output), "--rows", "3")
    assert ended.code == 0
    table, note = place.read("embeddings"), place.note
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in ended.out.splitlines()]
    first = {row[0]: row[1:] for row in cells if row}
    assert first["rows"] == ["8"]
    assert first["published"] == ["4"]
    assert first["failed"] == ["4"]
    assert f"{note['tokens']['total']:,}" in first["tokens"][0]
    assert f"{note['cost_cny']:.4f} CNY" in first["cost"][0]
    assert first.keys() >= set(table.column_names)
    assert first["dense"][0] == "float[1024]"
    assert first["id"][1:] == table["id"].to_pylist()[:3]
    codes = {code: count for code, count, *_ in (row for row in cells if len(row) == 3)}
    assert codes["bad_json"] == "2"
    assert codes["SensitiveContentDetected"] == "1"
    assert "→ correct the line: it is not valid JSON" in ended.out


def test_inspect_half_an_output(place: Any, call: Callable[..., Any]) -> None:
    """`inspect` of an output without `_SUCCESS` exits with 2."""
    place.write_texts(1)
    place.run()
    (place.output / "_SUCCESS").unlink()
    ended = call("inspect", str(place.output))
    assert (ended.code, "_SUCCESS" in ended.err) == (2, True)


def test_the_emulator_command(start: Callable[..., Any], make_place: Any, wait: Any) -> None:
    """`emulator --port 0` prints its URL, serves with the given options, and exits with 0 on Ctrl-C."""
    emulator = start("emulator", "--port", "0", "--set", "rpm=3", "--set", "faults.nan=0.0")
    wait(lambda: emulator.out.count("\n") == 3)
    banner = emulator.out.splitlines()
    assert "STAND-IN" in banner[0]
    assert '"rpm":3' in banner[2]
    _, url, *_ = banner[1].split()
    place = make_place(url)
    place.write_texts(3)
    assert place.run()["published"] == 3
    body = {"model": "doubao-embedding-vision-251215", "input": [{"type": "text", "text": "one more"}]}
    answer = httpx.post(
        f"{url}/embeddings/multimodal", json=body, headers={"Authorization": "Bearer k"}, trust_env=False
    )
    assert answer.status_code == 429
    emulator.send(signal.SIGINT)
    ended = emulator.wait()
    assert (ended.code, ended.err) == (0, "")


def test_an_option_that_the_emulator_does_not_have(call: Callable[..., Any]) -> None:
    """An unknown option of the emulator exits with 2 and a message with the most similar option."""
    ended = call("emulator", "--set", "rmp=3")
    assert (ended.code, "did you mean rpm?" in ended.err) == (2, True)


def test_the_built_in_emulator(place: Any, call: Callable[..., Any]) -> None:
    """`api.base_url: emulator` starts an emulator during the run, with the options of the config's `emulator` section."""
    place.write_texts(6)
    ended = call(*place.arguments("run", {"api.base_url": "emulator", "emulator.stop_after": 4}))
    assert ended.code == 4
    ended = call(*place.arguments("run", {"api.base_url": "emulator"}))
    assert (ended.code, place.note["owned"], place.note["requests_sent"]) == (0, 4, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [(["stray"], "'stray'"), (["--", "--direct_num_wrokers=2"], "--direct_num_wrokers"), (["--", "x=1"], "'x=1'")],
)
def test_options_that_beam_does_not_have(place: Any, emulator: Any, call: Any, options: list[str], words: str) -> None:
    """Arguments that Beam would ignore silently exit with 2, and nothing is sent."""
    place.write_texts(2)
    ended = call(*place.arguments("run", {}, *options))
    assert ended.code == 2
    assert words in ended.err
    assert emulator.stats["received"] == 0


def test_several_processes(
    make_emulator: Any, make_place: Any, start: Callable[..., Any], assert_vectors: Any, assert_bill: Any
) -> None:
    """Options after `--` are passed to Beam: with two worker processes the output and the progress are as with one.

    Messages of Beam are not printed between those of the run.
    """
    emulator = make_emulator(latency_ms=200)
    place = make_place(emulator.url)
    place.write_texts(600)
    settings = {"manifest.shard_bytes_max": 5_000}
    beam = ["--", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    ended = start(*place.arguments("run", settings, "--log", "json", *beam)).wait()
    assert ended.code == 0, ended.err
    assert ended.err.count("Logging handler created") == 2
    assert "harness" not in ended.err
    progress = [json.loads(line) for line in ended.err.splitlines() if line.startswith('{"event":"progress"')]
    last = [one for one in progress if one["phase"] == "embedding"][-1]
    assert 0 < last["requests_expected"] <= 600  # notes are up to two seconds old
    assert 0 <= last["bought"] <= last["rows_read"] <= 600
    assert place.note["published"] == emulator.stats["paid"] == emulator.stats["paid_distinct"] == 600
    assert_vectors(place.read("embeddings"), lambda row: [("text", f"row number {row['id'].removeprefix('id-')}")])
    assert_bill(place, emulator.stats)
    assert place.leftovers == []


def test_an_error_in_another_process(place: Any, emulator: Any, start: Callable[..., Any]) -> None:
    """One of our errors in a worker process gives the same exit code and message as in the main process."""
    (place.folder / "bad.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x00\x01\x02")
    beam = ["--", "--direct_running_mode=multi_processing", "--direct_num_workers=1"]
    ended = start(*place.arguments("run", {"manifest.uris": [str(place.folder / "bad.jsonl.gz")]}, *beam)).wait()
    assert ended.code == 2
    assert re.search(r"^error ManifestError: manifest \S+bad.jsonl.gz can't be read: .*", ended.err, re.MULTILINE)
    assert emulator.stats["received"] == 0
