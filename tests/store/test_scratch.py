"""The local folder for the files of a run."""

import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
from arkbeam.store.scratch import has_room, scratch_folder


def test_folders_of_killed_runs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is removed at the end of its run, or by the next run if its own was killed; that of a living run stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder("first") as folder:
        (Path(folder) / "rows").touch()
        killed = Path(f"{folder}-killed")
        shutil.copytree(folder, killed)  # its mark, and a lock that nobody holds
        with scratch_folder("second") as other:
            assert Path(folder) != Path(other)
            assert (Path(folder) / "rows").exists()
            assert not killed.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_small_disk_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Staged rows stay in the store if the disk does not surely hold them."""
    disk = namedtuple("disk", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(3 * 1024**3))
    assert has_room(512 * 1024**2)
    assert not has_room(1024**3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(1024**3 - 1))
    assert not has_room(1)
