"""A local folder of pictures, videos and texts as a manifest: one row for each file, found by content, not by name."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from arkbeam.app.schema import SCHEMA_NAME
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import Modality
from arkbeam.manifest.shards import FORMATS, split_endings
from arkbeam.manifest.text import guess_encoding
from arkbeam.media import MediaOptions, detect_kind

FILES_MAX = 1_000_000
TEXT_BYTES_MAX = 256 * 1024
TEXT_ENDINGS = frozenset({".txt", ".md", ".markdown", ".rst", ".text"})
_HEAD_BYTES = 64
_EXAMPLES = 3
_UNUSUAL_MAX = 16
_IMAGE_BYTES_MAX = MediaOptions().image_bytes_max
_OURS = (SCHEMA_NAME, ".map.parquet")  # the ends of names that arkbeam gives: of the schema, and of maps
_WRITTEN = ({"embeddings", "run.json"}, {"segments", "models"})  # what an output, and a store, has


@dataclass(slots=True)
class Contents:
    """What a folder has: files by what they are, manifests, and files that are left out, with examples."""

    kinds: Counter[str] = field(default_factory=Counter)
    """Number of files that are an `image`, a `video` or a `text`."""
    unusual: list[str] = field(default_factory=list)
    """Paths of some images that the API does not accept as they are: by format (HEIC, AVIF) or by size."""
    manifests: dict[str, int] = field(default_factory=dict)
    """Bytes of each file whose name ends as a manifest's does, by path."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Other files, by the reason."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    files: int = 0
    cut: bool = False
    """True if the folder has more files than are looked at."""

    def leave_out(self, path: str, reason: str) -> None:
        """Count a file that is not a row."""
        self.left_out[reason] += 1
        if len(shown := self.examples.setdefault(reason, [])) < _EXAMPLES:
            shown.append(path)


def scan(folder: str, contents: Contents, files_max: int = FILES_MAX) -> Iterator[dict[str, str]]:
    """Yield a row for each picture, video and text below a folder, in the order of their paths; count all in `contents`.

    A row has `id`, the path below the folder; and `image` or `video`, the absolute path, or `text`, the content. Hidden
    names, which begin with a dot, and links to places outside the folder are left out. Raise ConfigError if the folder
    can't be read, or is an output or a store.
    """
    root = os.path.realpath(folder)
    try:
        names = os.listdir(root)
    except OSError as error:
        raise ConfigError(f"cannot read the folder {folder}: {error.strerror}") from None
    if _is_ours(names):
        raise ConfigError(f"{folder} is an output or a store of arkbeam: name the folder of your own files")
    for path in _walk(root):
        if contents.files >= files_max:
            contents.cut = True
            return
        contents.files += 1
        row = _make_row(path, root, contents)
        if row is not None:
            yield row


def _walk(root: str) -> Iterator[str]:
    """Yield the files below a folder, sorted within each folder, without those that arkbeam has written.

    Links to folders are not followed.
    """
    waiting = [root]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda one: one.name)
        except OSError:
            continue  # a folder that may not be listed, or that was removed meanwhile
        if _is_ours(entry.name for entry in found):
            continue
        for entry in found:
            if entry.is_file() and not entry.name.endswith(_OURS):
                yield entry.path
        waiting += [entry.path for entry in reversed(found) if entry.is_dir(follow_symlinks=False)]


def _is_ours(names: Iterable[str]) -> bool:
    """True for the names in an output or in a store."""
    present = set(names)
    return any(ours <= present for ours in _WRITTEN)


def _make_row(path: str, root: str, contents: Contents) -> dict[str, str] | None:
    name = os.path.relpath(path, root)
    try:
        name.encode()
    except UnicodeEncodeError:
        contents.leave_out(ascii(name), "names that are not valid UTF-8")
        return None
    if not os.path.realpath(path).startswith(f"{root}{os.sep}"):
        contents.leave_out(name, "links to places outside the folder")
        return None
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
            kind = detect_kind(head)
            if kind is None and split_endings(name)[1] in TEXT_ENDINGS and 0 < size <= TEXT_BYTES_MAX:
                head += file.read()
    except OSError as error:
        contents.leave_out(name, f"files that can't be read ({error.strerror})")
        return None
    if kind is not None:
        contents.kinds[kind.modality.value] += 1
        is_usual = kind.accepted and (kind.modality is not Modality.IMAGE or size < _IMAGE_BYTES_MAX)
        if not is_usual and len(contents.unusual) < _UNUSUAL_MAX:
            contents.unusual.append(path)
        return {"id": name, kind.modality.value: path}
    return _make_text_row(name, path, head, size, contents)


def _make_text_row(name: str, path: str, data: bytes, size: int, contents: Contents) -> dict[str, str] | None:
    ending = split_endings(name)[1]
    if ending in FORMATS:
        contents.manifests[path] = size
        return None
    if ending not in TEXT_ENDINGS:
        contents.leave_out(name, f"files of other kinds ({ending[:10] or 'no ending'})")
    elif size > TEXT_BYTES_MAX:
        contents.leave_out(name, f"texts of more than {TEXT_BYTES_MAX:,} bytes")
    elif (text := _decode(data)) is None:
        contents.leave_out(name, "texts of an unknown encoding")
    elif not text.strip():
        contents.leave_out(name, "empty texts")
    else:
        contents.kinds["text"] += 1
        return {"id": name, "text": text}
    return None


def _decode(data: bytes) -> str | None:
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        likely = guess_encoding(data)
        return data.decode(likely, "replace") if likely is not None else None


def write_manifest(folder: str, target: Path, contents: Contents, files_max: int = FILES_MAX) -> int:
    """Write a folder's rows to a JSONL file; return their number. The file appears whole, or not at all."""
    rows = 0
    temporary = target.with_name(f".{target.name}.tmp")  # hidden: it may be in the folder
    try:
        with temporary.open("wb") as file:
            for row in scan(folder, contents, files_max):
                file.write(orjson.dumps(row) + b"\n")
                rows += 1
        if rows:
            temporary.replace(target)
        return rows
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
