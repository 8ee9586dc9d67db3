"""The media cache: stored, loaded once, merged, and never a reason to stop a run."""

from itertools import count
from pathlib import Path

import pytest
from arkbeam.base.files import list_files
from arkbeam.media import MediaInfo
from arkbeam.media.cache import CachedMedia
from arkbeam.store import media_cache as media
from arkbeam.store.layout import media_folder
from arkbeam.store.media_cache import StoredMediaCache, compact_media, read_media

INFO = MediaInfo("v1", "image/png", (30, 20), 100)


def key(number: int) -> bytes:
    """Return a key that looks like a hash."""
    return number.to_bytes(16, "little")


def files(store: Path) -> list[str]:
    """Return the files of the media cache."""
    return list_files(media_folder(str(store)), ".parquet")


def test_what_is_learned_is_known_to_the_next_process(tmp_path: Path) -> None:
    """Entries are read back unchanged, and nothing is written without new entries."""
    cache = StoredMediaCache(str(tmp_path), count(1))
    assert cache.load().find([key(1)]) == [None]
    cache.add({key(1): ("v1", INFO)})
    cache.flush()
    cache.flush()
    assert len(files(tmp_path)) == 1
    assert StoredMediaCache(str(tmp_path), count(9)).load().find([key(1), key(2)]) == [("v1", INFO), None]


def test_much_is_written_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of unwritten entries is limited."""
    monkeypatch.setattr(media, "NEW_MAX", 3)
    cache = StoredMediaCache(str(tmp_path), count(1))
    for number in range(7):
        cache.add({key(number): ("v1", INFO)})
    assert len(files(tmp_path)) == 2


def test_many_files_become_one_that_knows_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge keeps the newest entry of every key, and happens only if there are many files."""
    monkeypatch.setattr(media, "FILES_MAX", 3)
    for number in range(5):
        assert compact_media(str(tmp_path)) == (number == 4)
        cache = StoredMediaCache(str(tmp_path), count(100 * (number + 1)))
        cache.add({key(0): (f"v{number}", INFO), key(number + 1): ("v", INFO)})
        cache.flush()
    assert len(files(tmp_path)) == 2
    monkeypatch.setattr(media, "FILES_MAX", 1)
    assert compact_media(str(tmp_path))
    (left,) = files(tmp_path)
    known = CachedMedia(read_media([left]))
    assert known.find([key(number) for number in range(7)]) == [("v4", INFO), *[("v", INFO)] * 5, None]


def test_memory_is_bounded_by_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit of entries, the oldest are dropped."""
    monkeypatch.setattr(media, "ENTRIES_MAX", 2)
    for number in range(3):
        cache = StoredMediaCache(str(tmp_path), count(number + 1))
        cache.add({key(number): ("v", INFO)})
        cache.flush()
    assert CachedMedia(read_media(files(tmp_path))).find([key(n) for n in range(3)]) == [None, *[("v", INFO)] * 2]


def test_damaged_files_are_left_out_and_go_when_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged cache file does not stop the run, and a merge removes it, so that the warning ends."""
    cache = StoredMediaCache(str(tmp_path), count(1))
    cache.add({key(1): ("v1", INFO)})
    cache.flush()
    for number in (7, 8):
        Path(media_folder(str(tmp_path)), f"{number:016x}.parquet").write_bytes(b"PAR1")
    assert CachedMedia(read_media(files(tmp_path))).find([key(1)]) == [("v1", INFO)]
    assert caplog.text.count("a file of the media cache is skipped") == 2
    monkeypatch.setattr(media, "FILES_MAX", 1)
    assert compact_media(str(tmp_path))
    assert len(files(tmp_path)) == 1


def test_a_store_that_can_not_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The failure is logged, and the new entries are dropped."""
    Path(tmp_path, "media").write_bytes(b"a file where the folder should be")
    cache = StoredMediaCache(str(tmp_path), count(1))
    cache.add({key(1): ("v1", INFO)})
    cache.flush()
    assert "are not stored" in caplog.text
