"""The key of an output: random and kept in its folder, or that of an earlier version."""

from pathlib import Path

import pytest
from arkbeam.base.errors import OutputInUse, StoreError
from arkbeam.store.layout import PLAN_SUFFIX, new_run_name, uri_key
from arkbeam.store.outputs import OUTPUT_NOTE, find_output_key, keep_output_key

KEY = "0123abcd"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The folder of an output, which does not exist yet."""
    return tmp_path / "out"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The folder of a store, which does not exist yet."""
    return tmp_path / "store"


def test_a_new_output_gets_the_key_of_its_first_run(output: Path, store: Path) -> None:
    """It has no key at first; the key that is kept stays, also if the folder is moved."""
    assert find_output_key(str(output), str(store)) is None
    keep_output_key(str(output), KEY)
    keep_output_key(str(output), KEY)
    moved = output.rename(output.with_name("moved"))
    assert find_output_key(str(moved), str(store)) == KEY


@pytest.mark.parametrize("name", ["run.json", "_SUCCESS"])
def test_an_output_of_an_earlier_version_keeps_its_key(output: Path, store: Path, name: str) -> None:
    """What an earlier version published shows whose output it is."""
    output.mkdir()
    (output / name).touch()
    assert find_output_key(str(output), str(store)) == uri_key(str(output))


@pytest.mark.parametrize("folder", ["runs", "journals", "segments", "events", "damaged"])
def test_runs_of_an_earlier_version_that_published_nothing_are_found(output: Path, store: Path, folder: str) -> None:
    """A run that was killed before it published has left its results in the store; a plan has not."""
    run = new_run_name(uri_key(str(output)), 1e9, "00000000")
    (store / folder / f"{run}{PLAN_SUFFIX}").mkdir(parents=True)
    assert find_output_key(str(output), str(store)) is None
    (store / folder / run).mkdir()
    assert find_output_key(str(output), str(store)) == uri_key(str(output))


def test_of_two_first_runs_one_chooses_the_key(output: Path) -> None:
    """The other one finds another key and has to begin again."""
    keep_output_key(str(output), KEY)
    with pytest.raises(OutputInUse, match="run again"):
        keep_output_key(str(output), "9876fedc")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"key": "../x"}'])
def test_a_damaged_note_is_an_error(output: Path, store: Path, data: bytes) -> None:
    """A new key would hide what the output has cost."""
    output.mkdir()
    (output / OUTPUT_NOTE).write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        find_output_key(str(output), str(store))
