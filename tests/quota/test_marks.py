"""Marks of processes that share a quota, as files."""

from pathlib import Path

from arkbeam.quota.marks import (
    list_marks,
    new_mark_name,
    quota_folder,
    remove_mark,
    remove_marks_of_output,
    remove_marks_of_run,
    write_mark,
)
from arkbeam.store.layout import new_run_name


def test_a_mark_has_a_new_token_after_each_renewal(tmp_path: Path) -> None:
    """A listing alone shows that the process is alive, and a mark has at most two files."""
    folder = quota_folder(str(tmp_path), "ark-default")
    assert list_marks(folder) == {}
    tokens = []
    for number in range(12):
        write_mark(folder, "run.a", number, {"host": "h"})
        tokens.append(list_marks(folder)["run.a"])
        assert len(list(Path(folder).iterdir())) == min(2, number + 1)
    assert len(set(tokens)) == 12
    write_mark(folder, "run.b", 0, {})
    (Path(folder) / ".run.c.1.0123.tmp").write_bytes(b"")
    assert list_marks(folder) == {"run.a": "11", "run.b": "0"}
    remove_mark(folder, "run.a")
    remove_mark(folder, "run.a")
    assert list_marks(folder) == {"run.b": "0"}


def test_marks_of_dead_runs_of_an_output_are_removed(tmp_path: Path) -> None:
    """Marks of other outputs stay."""
    folder = quota_folder(str(tmp_path), "ark-default")
    names = [
        new_mark_name(new_run_name(key, 1.0, "89abcdef"), hexes)
        for key, hexes in (("0000000a", "1"), ("0000000a", "2"), ("0000000b", "1"))
    ]
    for name in names:
        write_mark(folder, name, 0, {})
        write_mark(folder, name, 1, {})
    remove_marks_of_output(folder, "0000000a")
    assert list_marks(folder) == {names[2]: "1"}


def test_marks_of_a_later_run_of_the_output_stay(tmp_path: Path) -> None:
    """A run that ends late, after another run has taken over its output, removes only its own marks."""
    folder = quota_folder(str(tmp_path), "ark-default")
    runs = [new_run_name("0000000a", second, "89abcdef") for second in (1.0, 2.0)]
    for run in runs:
        write_mark(folder, new_mark_name(run, "1"), 0, {})
        write_mark(folder, new_mark_name(run, "1"), 1, {})
    remove_marks_of_run(folder, runs[0])
    assert list_marks(folder) == {new_mark_name(runs[1], "1"): "1"}
