"""Columns that the manifests lack, in whole runs: nothing is bought for a wrong name, and rare columns are reported."""

from collections.abc import Callable
from typing import Any

import pytest
from arkbeam.base.errors import ConfigError

from tests.media.pictures import picture

MAPPED = {"manifest.columns": {"text": "text", "image": "photos"}}


def test_a_wrong_name_stops_the_run_before_anything_is_bought(
    place: Any, emulator: Any, call: Callable[..., Any]
) -> None:
    """`run` and `plan` exit with 2 and the same message. Nothing is sent, and no output is begun."""
    place.write_rows([{"text": "hello", "photo": "x.png"}])
    ended = [call(*place.arguments(command, MAPPED)) for command in ("run", "plan")]
    for one in ended:
        assert one.code == 2
        assert "no manifest has the column 'photos' (manifest.columns.image, did you mean 'photo'?)" in one.err
    assert len({one.err.splitlines()[-1] for one in ended}) == 1
    assert emulator.stats["received"] == 0
    assert not (place.output / "run.json").exists()
    assert place.leftovers == []


def test_a_wrong_name_does_not_touch_an_output(place: Any) -> None:
    """If all rows are owned and the name is wrong, the earlier output stays complete."""
    place.write_rows([{"text": "hello"}])
    place.run()
    before = place.note
    with pytest.raises(ConfigError, match="'price'"):
        place.run({"manifest.keep": ["price"]})
    assert (place.output / "_SUCCESS").exists()
    assert place.note == before


@pytest.mark.slow
def test_a_wrong_name_in_worker_processes(place: Any, emulator: Any) -> None:
    """The error is the same if worker processes find it."""
    place.write_rows([{"text": "hello", "photo": "x.png"}])
    beam = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    with pytest.raises(
        ConfigError, match=r"did you mean 'photo'\?\); columns found: 'text', 'photo'\. Nothing was sent"
    ):
        place.run(MAPPED, beam=beam)
    assert emulator.stats["received"] == 0


def test_a_column_that_some_manifests_lack(place: Any, call: Callable[..., Any]) -> None:
    """A note is in the summary, in `run.json` and in what `plan` and `inspect` print; the run is not stopped."""
    place.write_rows([{"text": "one", "[/odd]": 1}])
    place.write_rows([{"text": "two"}], "more.jsonl")
    settings = {"manifest.uris": [str(place.folder / "*.jsonl")], "manifest.keep": ["[/odd]"]}
    for arguments in (place.arguments("plan", settings), place.arguments("run", settings), ["inspect", "out"]):
        ended = call(*[str(place.output) if word == "out" else word for word in arguments])
        assert ended.code == 0
        shown = "".join(line.split("│")[2].strip() + " " for line in ended.out.splitlines() if line.count("│") == 3)
        assert "1 of 2 manifests do not have the column '[/odd]' (manifest.keep)" in shown
    (note,) = place.note["notes"]
    assert note["details"] == {"column": "[/odd]", "manifests_without": 1, "manifests": 2, "rows_without": 1, "rows": 2}


def test_rows_of_a_failure_table_do_not_show_all_columns(place: Any) -> None:
    """A failure table names one JSON row without a column that other rows have: no error, and neither note nor warning."""
    rows = [{"text": f"text {number}", "price": 1} for number in range(4)]
    place.write_rows([{"text": "one", "image": "late.png"}, *rows])
    settings = {"manifest.keep": ["price"]}
    assert place.run(settings)["failed"] == 1
    (place.folder / "late.png").write_bytes(picture("PNG"))
    again = {"manifest.uris": [str(place.output / "failures")], "output.uri": str(place.folder / "again")}
    note = place.run({**settings, **again, "limits.rows_min": 10})
    assert (note["rows"], note["published"], note["notes"]) == (1, 1, [])


def test_a_wrong_name_for_the_rows_of_a_failure_table(place: Any) -> None:
    """The header of a CSV manifest shows all columns, also if a failure table names only some rows."""
    (place.folder / "rows.csv").write_text("text,image\nhello,missing.png\n")
    place.run({"manifest.uris": [str(place.folder / "rows.csv")]})
    again = {"manifest.uris": [str(place.output / "failures")], "output.uri": str(place.folder / "again")}
    with pytest.raises(ConfigError, match=r"'Image' \(manifest.columns.image, did you mean 'image'\?\)"):
        place.run({**again, "manifest.columns": {"text": "text", "image": "Image"}})
