"""Files and objects are complete or absent, and every storage error is a StoreError."""

import os
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from arkbeam.base.errors import ConfigError, StoreError
from arkbeam.base.files import (
    _remove_old_folders,
    _time_of,
    exists,
    list_files,
    list_folders,
    list_times,
    list_versions,
    move_file,
    put_file,
    read_bytes,
    read_if_exists,
    remove_file,
    remove_files,
    remove_folder,
    remove_leftovers,
    temporary_folder,
    write_bytes,
    writing,
)
from arkbeam.base.uris import absolute, file_url_path, find_filesystem, is_chained, is_local, join, storage_errors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on disk and one in memory: both must behave the same."""
    return str(tmp_path) if request.param == "local" else f"memory://files-test/{uuid.uuid4().hex}"


def _names(folder: str, suffix: str = "") -> list[str]:
    """List the files below a folder by their paths in it."""
    base = fsspec.core.url_to_fs(folder)[1]
    return [fsspec.core.url_to_fs(uri)[1].removeprefix(base) for uri in list_files(folder, suffix)]


def test_what_is_written_can_be_read(folder: str) -> None:
    """Missing folders are created; a second write replaces the first."""
    uri = join(folder, "a", "b", "c.bin")
    for data in (b"first", b"", b"second \0"):
        write_bytes(uri, data)
        assert read_bytes(uri) == data
    assert exists(uri)
    assert _names(folder) == ["/a/b/c.bin"]


def test_a_missing_file_can_be_asked_for(folder: str) -> None:
    """`read_if_exists` returns None for a missing file, and the bytes of any other, or the first of them, also if it is empty."""
    uri = join(folder, "a.bin")
    assert read_if_exists(uri) is read_if_exists(uri, 4) is None
    for data in (b"", b"something"):
        write_bytes(uri, data)
        assert read_if_exists(uri) == data
        assert [read_if_exists(uri, most) for most in (4, 100)] == [data[:4], data]


def test_a_listing_has_versions(folder: str) -> None:
    """A file that is written again has another version, even if its size stays; a missing folder has no files."""
    assert list_versions(join(folder, "none")) == []
    for name in ("b/2.bin", "1.bin", "3.txt"):
        write_bytes(join(folder, name), b"1234")
    before = list_versions(folder, ".bin")
    assert [one.uri for one in before] == list_files(folder, ".bin")
    assert {one.size for one in before} == {4}
    assert list_versions(folder, ".bin") == before
    write_bytes(before[0].uri, b"5678")
    after = list_versions(folder, ".bin")
    assert after[0].version != before[0].version
    assert after[1] == before[1]


def test_a_listing_has_times(folder: str) -> None:
    """A time is that of the last write, in Unix time; a missing folder has no files."""
    assert list_times(join(folder, "none")) == {}
    begun_s = time.time()
    write_bytes(join(folder, "a.json"), b"1")
    write_bytes(join(folder, "b"), b"1")
    ((uri, time_s),) = list_times(folder, ".json").items()
    assert uri == list_files(folder, ".json")[0]
    assert begun_s - 1 <= time_s <= time.time() + 1


@pytest.mark.parametrize("found", [1e9, "2001-09-09T01:46:40Z", datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)])
def test_times_of_all_storages(found: object) -> None:
    """Storages name a time in several forms; one that names none has 0."""
    assert _time_of({"LastModified": found, "size": 1}) == 1e9
    assert _time_of({"size": 1}) == 0


def test_temporary_folders_of_dead_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that has not changed for a day is removed by the next process; one with a newer file stays."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _remove_old_folders.cache_clear()
    old, used = (tmp_path / f"arkbeam-tmp-{name}" for name in ("old", "used"))
    for folder in (old, used):
        folder.mkdir()
        (folder / "file").touch()
    for path in (old / "file", old, used):
        os.utime(path, (1e9, 1e9))
    with temporary_folder() as mine:
        assert set(tmp_path.iterdir()) == {used, mine}
    assert set(tmp_path.iterdir()) == {used}


def test_a_local_file_is_moved_to_a_uri(folder: str, tmp_path: Path) -> None:
    """The file is put whole; several files can be removed at once, missing ones too."""
    local = tmp_path / "local.bin"
    local.write_bytes(b"content")
    uri = join(folder, "a/put.bin")
    put_file(local, uri)
    assert read_bytes(uri) == b"content"
    remove_files([uri, join(folder, "none")])
    assert not exists(uri)


def test_a_file_that_is_written_in_pieces_is_put_at_once(folder: str) -> None:
    """Until the end of the block, the new file does not exist and the old one is unchanged."""
    uri = join(folder, "a/x.bin")
    write_bytes(uri, b"old")
    with writing(uri) as path:
        path.write_bytes(b"new")
        assert read_bytes(uri) == b"old"
        assert _names(folder, ".bin") == ["/a/x.bin"]
    assert read_bytes(uri) == b"new"


@pytest.mark.parametrize("error", [ConfigError("ours"), ValueError("foreign"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [b"old", None])
def test_a_writer_that_fails_changes_nothing(folder: str, error: BaseException, before: bytes | None) -> None:
    """The old file stays (or there is none), no temporary file is left, and our own exceptions are not wrapped."""
    uri = join(folder, "x.bin")
    if before is not None:
        write_bytes(uri, before)
    expected: type[BaseException] = StoreError if isinstance(error, ValueError) else type(error)

    def fail() -> None:
        with writing(uri) as path:
            path.write_bytes(b"half")
            raise error

    with pytest.raises(expected):
        fail()
    assert _names(folder) == (["/x.bin"] if before is not None else [])
    assert before is None or read_bytes(uri) == before


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full in the middle of a small write, the old file is not damaged."""
    uri = str(tmp_path / "x")
    write_bytes(uri, b"old")

    def fail(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(StoreError, match="No space left"):
        write_bytes(uri, b"newer")
    assert _names(str(tmp_path)) == ["/x"]
    assert read_bytes(uri) == b"old"


def test_what_is_missing_is_missing(folder: str) -> None:
    """A missing folder is empty and a missing file can be removed; reading or moving it is an error."""
    for uri in (folder, join(folder, "a/b")):
        assert not exists(join(uri, "none"))
        assert list_files(join(uri, "none")) == []
        assert list_folders(join(uri, "none")) == []
        remove_file(join(uri, "none"))
        remove_folder(join(uri, "none"))
        remove_leftovers(join(uri, "none"))
        with pytest.raises(StoreError, match="none"):
            read_bytes(join(uri, "none"))
        with pytest.raises(StoreError, match="none"):
            move_file(join(uri, "none"), join(uri, "other"))


def test_lists_are_sorted_and_deep(folder: str) -> None:
    """Files of all levels and folders of one level are sorted by name, also those written since the last call."""
    for name in ("b/2.parquet", "a/9.parquet", "a/c/1.parquet", "a/note.json"):
        write_bytes(join(folder, name), b"x")
    assert _names(folder, ".parquet") == ["/a/9.parquet", "/a/c/1.parquet", "/b/2.parquet"]
    assert list_folders(folder) == ["a", "b"]
    assert [read_bytes(uri) for uri in list_files(folder)] == [b"x"] * 4
    write_bytes(join(folder, "0/x"), b"x")
    assert list_folders(folder) == ["0", "a", "b"]


def test_files_and_folders_are_removed_and_moved(folder: str) -> None:
    """Removing a file removes only it, removing a folder its contents too; a moved file has only its new path."""
    for name in ("a/1", "a/2", "a/b/3", "c/4"):
        write_bytes(join(folder, name), name.encode())
    remove_file(join(folder, "a/1"))
    move_file(join(folder, "c/4"), join(folder, "new/d/4"))
    assert _names(folder) == ["/a/2", "/a/b/3", "/new/d/4"]
    assert read_bytes(join(folder, "new/d/4")) == b"c/4"
    remove_folder(join(folder, "a"))
    assert _names(folder) == ["/new/d/4"]


def test_a_folder_that_cannot_be_read_is_not_empty(tmp_path: Path) -> None:
    """An unreadable folder is an error. If it counted as empty, everything would be paid for again."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(StoreError, match="loop"):
        list_files(str(loop))
    write_bytes(str(tmp_path / "file"), b"")
    with pytest.raises(StoreError, match="file"):
        list_files(str(tmp_path / "file"))


def test_a_folder_that_goes_while_it_is_listed_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run may remove a folder during the listing: the other files are still listed."""
    for name in ("a/1", "b/2", "c/3"):
        write_bytes(str(tmp_path / name), b"")
    scan = os.scandir

    def scan_late(path: str) -> Any:
        if str(path).endswith("/b"):
            remove_folder(str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_late)
    assert _names(str(tmp_path)) == ["/a/1", "/c/3"]


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    """A temporary file of a killed writer is recognised by its name and removed; other files stay."""
    with writing(str(tmp_path / "a/x.parquet")) as path:
        path.write_bytes(b"half")
        os.link(path, path.with_name(path.name.replace("x.parquet", "y.parquet")))  # a kill leaves such a file
    write_bytes(str(tmp_path / "a/x.parquet"), b"whole")
    assert len(_names(str(tmp_path))) == 2
    remove_leftovers(str(tmp_path))
    assert _names(str(tmp_path)) == ["/a/x.parquet"]


@pytest.mark.parametrize(
    "call",
    [
        exists,
        list_files,
        list_folders,
        list_times,
        read_bytes,
        remove_file,
        remove_folder,
        lambda uri: write_bytes(uri, b""),
        lambda uri: move_file(uri, uri + "2"),
        lambda uri: writing(uri).__enter__(),
    ],
)
def test_backends_raise_store_errors(monkeypatch: pytest.MonkeyPatch, call: Callable[[str], object]) -> None:
    """Any exception of a storage library becomes a StoreError with the URI and the cause, without secrets."""
    with pytest.raises(StoreError, match="Protocol not known"):
        call("no-such-scheme://bucket/key")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("403 for https://u:hunter2@host/k?X-Amz-Signature=abcdef123456")

    memory = type(fsspec.filesystem("memory"))
    for name in ("find", "ls", "cat_file", "rm_file", "pipe_file", "mv", "put_file", "invalidate_cache"):
        monkeypatch.setattr(memory, name, fail)
    monkeypatch.setattr("tempfile.TemporaryDirectory", fail)
    with pytest.raises(StoreError, match="RuntimeError: 403") as caught:
        call("memory://bucket/key?X-Tos-Signature=secretsecret")
    for secret in ("hunter2", "abcdef123456", "secretsecret"):
        assert secret not in str(caught.value)


def test_storage_errors_let_ours_and_interrupts_pass() -> None:
    """Our own exceptions and interrupts are not wrapped in a StoreError."""
    for error in (ConfigError("x"), KeyboardInterrupt(), SystemExit()):
        with pytest.raises(type(error)), storage_errors("read", "x"):
            raise error


def test_local_paths_are_told_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path becomes absolute, since workers have other working directories; other URIs are unchanged."""
    monkeypatch.chdir(tmp_path)
    assert absolute("a/b/") == f"{tmp_path}/a/b"
    assert absolute(f"file://{tmp_path}/a") == f"{tmp_path}/a"
    assert absolute("memory://a/b/") == "memory://a/b"
    assert [is_local(uri) for uri in ("a", "/a", "file:///a", "memory://a")] == [True, True, True, False]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=4))
def test_the_last_write_wins(folder: str, contents: list[bytes]) -> None:
    """Reading returns exactly the bytes of the last write."""
    for data in contents:
        write_bytes(join(folder, "x"), data)
    assert read_bytes(join(folder, "x")) == contents[-1]


def test_a_file_url_is_decoded(tmp_path: Path) -> None:
    """A store at `file:///…/my%20store` is `my store`, unless a folder from an earlier version has the name as it stands."""
    assert absolute(f"file://{tmp_path}/my%20store") == f"{tmp_path}/my store"
    assert absolute(f"file://localhost{tmp_path}/a%C3%A9/") == f"{tmp_path}/aé"
    assert absolute(f"{tmp_path}/my%20store") == f"{tmp_path}/my%20store"
    (tmp_path / "my%20store").mkdir()
    assert absolute(f"file://{tmp_path}/my%20store") == f"{tmp_path}/my%20store"
    (tmp_path / "my store").mkdir()
    assert absolute(f"file://{tmp_path}/my%20store") == f"{tmp_path}/my store"
    assert file_url_path("file:///a%FFb") == "/a%FFb"


@pytest.mark.parametrize("name", ["a::b", "zip::c", "file:d", "~e", " f ", "g?h#i", "http:j"])
def test_local_names_are_literal(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fsspec takes for a chain, a scheme or a home folder is the name of a file."""
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    for uri in (name, f"./{name}", str(tmp_path / name)):
        assert read_bytes(uri) == b"x"
        assert absolute(uri) == str(tmp_path / name)


@pytest.mark.parametrize(
    ("uri", "chained"),
    [
        ("simplecache::s3://b/x", True),
        ("zip://a.jsonl::s3://b/a.zip", True),
        ("zip://a.jsonl::/data/a.zip", True),
        ("s3://b/a::b.jsonl", False),
        ("a::b.jsonl", False),
        ("/data/a::b://c", False),
        ("s3://b/x", False),
    ],
)
def test_a_chain_is_told_from_a_name(uri: str, chained: bool) -> None:
    """`::` makes a chain only between URIs."""
    assert is_chained(uri) == chained


def test_a_uri_means_what_it_means_to_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from local names with special characters, filesystem and path are those of fsspec's own function."""
    monkeypatch.chdir(tmp_path)
    for uri in ("a/b", "./a", ".", "/", "/a/", "~/a", "../a", "file:///a/b", "file:/a", "local:///a", "memory://a/b/"):
        filesystem, path = fsspec.core.url_to_fs(uri)
        assert find_filesystem(uri) == (filesystem, path), uri
