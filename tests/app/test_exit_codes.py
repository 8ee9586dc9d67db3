"""Exit codes of runs, and the messages that are printed with them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from arkbeam.app.terminal import exit_code
from arkbeam.quota.options import LimitsOptions

from tests.warm import limit_files

NOWHERE = "http://127.0.0.1:9/api/v3"
BAD = ["{broken", "[]"]


def good(count: int) -> list[dict[str, str]]:
    """Return rows that the service accepts."""
    return [{"id": f"id-{number}", "text": f"text {number}"} for number in range(count)]


@pytest.mark.parametrize(("allowed", "code"), [(2, 0), (1, 3), ("2%", 0), ("1.9%", 3), ("0%", 3), ("100%", 0)])
def test_failures_allowed(allowed: int | str, code: int) -> None:
    """Two failure rows of 100 exit with 0 if `limits.failures_allowed`, a number or a share, allows them, otherwise with 3."""
    limits = LimitsOptions(failures_allowed=allowed)
    assert exit_code({"rows": 100, "failed": 2, "stopped": None}, limits) == code


@pytest.mark.parametrize(("rows", "allowed", "code"), [([*good(98), *BAD], "2%", 0), ([*good(3), BAD[0]], 0, 3)])
def test_failures_of_a_run(
    place: Any, call: Callable[..., Any], rows: list[Any], allowed: int | str, code: int
) -> None:
    """A run publishes its output with any number of failures; with more than allowed it exits with 3 and names the key."""
    place.write_rows(rows)
    ended = call(*place.arguments("run", {"limits.failures_allowed": allowed}))
    assert ended.code == code
    assert (place.output / "_SUCCESS").exists()
    assert ("limits.failures_allowed" in ended.err) == (code == 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quota.rmp": 5}, "quota.rmp: did you mean quota.rpm?"),
        ({"limts.attempts_max": 5}, "limts: did you mean limits"),
        ({"quota.rpm": "many"}, "quota.rpm"),
        ({"quota.rpm": 0}, "quota.rpm"),
        ({"manifest.uris": ["nowhere.jsonl"]}, "nowhere.jsonl"),
        ({"manifest.uris": ["nowhere/*.jsonl"]}, "nowhere/*.jsonl"),
        ({"manifest.uris": []}, "manifest.uris"),
        ({"manifest.keep": ["dense"]}, "manifest.keep"),
        ({"model.name": "ep-20250101-abcde"}, "model.like"),
        ({"model.dimensions": 1000}, "1000"),
        ({"model.name": "doubao-embedding-vision-250615", "model.instructions": "x"}, "instructions"),
        ({"model.name": "doubao-embedding-vision-250328", "model.dimensions": None, "model.sparse": True}, "sparse"),
        ({"limits.failures_allowed": "some"}, "limits.failures_allowed"),
        ({"api.api_key_env": "ARK_API_KEY"}, "ARK_API_KEY"),
        ({"api.base_url": "https://u:pw@ark.example.invalid/api/v3"}, "api.base_url"),
        ({"output": {}}, "output.uri"),
    ],
)
def test_bad_config(make_place: Any, call: Callable[..., Any], settings: dict[str, Any], words: str) -> None:
    """A wrong config exits with 2 and a message that names the key or value, before anything is sent or written."""
    place = make_place(NOWHERE)  # sending a request to this URL would end with 4
    place.settings["api.api_key_env"] = "HOME"
    place.write_rows(good(3))
    ended = call(*place.arguments("run", settings))
    assert ended.code == 2
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert "pw" not in ended.err
    assert not place.output.exists()
    assert not place.store.exists()


def test_no_config(place: Any, call: Callable[..., Any]) -> None:
    """A missing config, and a config that is not a mapping, exit with 2."""
    ended = call("run", str(place.folder / "none.yaml"))
    assert (ended.code, "none.yaml" in ended.err) == (2, True)
    (place.folder / "list.yaml").write_text("[1]")
    assert call("plan", str(place.folder / "list.yaml")).code == 2


def test_a_damaged_manifest(place: Any, call: Callable[..., Any], emulator: Any) -> None:
    """A manifest that is found to be damaged while it is read exits with 2 and a message, before anything is sent."""
    (place.folder / "bad.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x00\x01\x02")
    ended = call(*place.arguments("run", {"manifest.uris": [str(place.folder / "bad.jsonl.gz")]}))
    assert ended.code == 2
    assert "bad.jsonl.gz can't be read" in ended.err
    assert "Traceback" not in ended.err
    assert "while running" not in ended.err
    assert emulator.stats["received"] == 0
    assert place.leftovers == []


def test_publish_partial(make_emulator: Any, make_place: Any, call: Callable[..., Any]) -> None:
    """With --publish-partial a stopped run publishes the vectors that it has; the other rows are failures, and it still exits with 4."""
    emulator = make_emulator(stop_after=10, stop_code="QuotaExceeded")
    place = make_place(emulator.url)
    place.write_rows([*good(30), BAD[0]])
    ended = call(*place.arguments("run", {}, "--publish-partial"))
    assert ended.code == 4
    assert (place.output / "_SUCCESS").exists()
    note, failures = place.note, place.read("failures")
    assert (note["rows"], note["published"], note["failed"]) == (31, 10, 21)
    assert note["stopped"]["code"] == "QuotaExceeded"
    assert emulator.stats["refused"] <= 16
    assert sorted(set(failures["code"].to_pylist())) == ["bad_json", "not_bought"]
    ids = place.read("embeddings")["id"].to_pylist() + failures["id"].to_pylist()
    assert sorted(ids) == sorted([*(f"id-{number}" for number in range(30)), "rows.jsonl:30"])


def test_output_below_a_file(place: Any, emulator: Any, call: Callable[..., Any]) -> None:
    """If the output or the store can't be created, the run exits with 1 and names the path; nothing is sent."""
    place.write_rows(good(3))
    (place.folder / "file").write_text("not a folder")
    for key in ("output.uri", "store.uri"):
        ended = call(*place.arguments("run", {key: str(place.folder / "file" / "below")}))
        assert ended.code == 1
        assert str(place.folder / "file" / "below") in ended.err
        assert "Traceback" not in ended.err
    assert emulator.stats["received"] == 0


def test_a_full_disk(place: Any, emulator: Any, start: Callable[..., Any], assert_bill: Any) -> None:
    """If the disk is full, the run exits with 1 and a message; with free space again the same command continues."""
    place.write_rows(good(10))
    place.run()
    place.write_rows(good(400))
    settings = {"store.flush_rows": 128}
    ended = start(*place.arguments("run", settings), before=partial(limit_files, 100_000)).wait()
    assert ended.code == 1
    assert "cannot write" in ended.err
    assert "Traceback" not in ended.err
    assert (place.output / "_SUCCESS").exists()
    assert place.note["published"] == 10
    place.run(settings)
    assert place.note["published"] == 400
    stats = emulator.stats
    assert stats["paid_distinct"] == 400
    assert_bill(place, stats)
    assert place.leftovers == []
