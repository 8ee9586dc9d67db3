"""Find files by a pattern with wildcards: `*`, `?` and `[…]` within one name, `**` for any number of folders.

A hidden name starts with `.`, or with `_` and contains no `=`, as Spark has it: `_temporary` is hidden, the Hive folder
`_day=1` is not. A wildcard matches no hidden name. A part of the pattern that itself starts with `.` or `_` does.

Links to folders are followed. Each real folder is listed once for each position in the pattern, so the search ends
whatever the links are, and a file that can be reached in several ways is found once, by the way with the fewest links.
"""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fsspec.core import has_magic
from fsspec.utils import glob_translate

from arkbeam.base.errors import ManifestError
from arkbeam.base.redaction import redact
from arkbeam.base.uris import full_uri

_ANY_FOLDERS = "**"
Positions = frozenset[int]
"""How many parts of a pattern a path can have used up."""


def is_hidden(name: str) -> bool:
    """True if wildcards do not match the name of a file or folder."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


@dataclass(frozen=True)
class Pattern:
    """A path with wildcards: the folder above the first wildcard, and the parts below it."""

    root: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, path: str) -> "Pattern":
        """Split a path at its first wildcard."""
        names = path.split("/")
        fixed = next((index for index, name in enumerate(names) if has_magic(name)), len(names) - 1)
        return cls("/".join(names[:fixed]), tuple(names[fixed:]))

    @cached_property
    def start(self) -> Positions:
        """The positions of the root."""
        return self._with_skipped({0})

    def step(self, positions: Positions, name: str) -> Positions:
        """Return the positions after one more name of a path. They are empty if no path that goes on matches."""
        hidden = is_hidden(name)
        after = set()
        for position in positions:
            if position == len(self.parts):
                continue
            part = self.parts[position]
            if part == _ANY_FOLDERS:
                if not hidden:
                    after.add(position)
            elif not (hidden and part[:1] != name[:1]) and (part == name or self._regexes[position].match(name)):
                after.add(position + 1)
        return self._with_skipped(after)

    def is_end(self, positions: Positions) -> bool:
        """True if a file whose path ends here matches."""
        return len(self.parts) in positions

    def matches(self, names: Iterable[str], positions: Positions | None = None) -> bool:
        """True if a file with these names below the root, or below a folder with these positions, matches."""
        positions = self.start if positions is None else positions
        for name in names:
            positions = self.step(positions, name)
        return self.is_end(positions)

    @cached_property
    def _regexes(self) -> list[re.Pattern[str]]:
        return [re.compile(glob_translate(part)) for part in self.parts]

    def _with_skipped(self, positions: set[int]) -> Positions:
        """Add the positions behind each `**`, which may stand for no folder at all."""
        for position, part in enumerate(self.parts):
            if position in positions and part == _ANY_FOLDERS:
                positions.add(position + 1)
        return frozenset(positions)


@dataclass(slots=True)
class LocalSearch:
    """A search for local files."""

    pattern: Pattern
    seen: dict[str, set[int]] = field(default_factory=dict)
    """The folders that were listed, by real path, and the positions for which their files were wanted."""

    def find(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield each regular file that matches: its real path, its path, and its size and time.

        Raise OSError if a folder can't be listed, ManifestError if a link that matches leads nowhere.
        """
        folders = [(self.pattern.root or "/", self.root, self.pattern.start)]
        links: list[tuple[str, Positions]] = []
        while folders or links:
            if not folders:
                folders, links = [(path, os.path.realpath(path), at) for path, at in sorted(links, reverse=True)], []
            path, real, positions = folders.pop()
            positions -= self.seen.setdefault(real, set())
            if not positions:
                continue
            self.seen[real] |= positions
            for entry in _list_folder(path):
                after = self.pattern.step(positions, entry.name)
                if not after:
                    continue
                if _is_folder(entry):
                    after -= {len(self.pattern.parts)}
                    if entry.is_symlink():
                        links.append((entry.path, after))
                    else:
                        folders.append((entry.path, f"{real.rstrip('/')}/{entry.name}", after))
                elif self.pattern.is_end(after):
                    yield from _describe(entry, real)

    @property
    def root(self) -> str:
        """The real path of the folder where the search starts."""
        return os.path.realpath(self.pattern.root or "/")

    def would_find(self, real: str) -> bool:
        """True if the search would have found a file with this real path, had it existed."""
        names = real.split("/")
        return any(
            self.pattern.matches(names[depth:], frozenset(self.seen.get("/".join(names[:depth]) or "/", ())))
            for depth in range(1, len(names))
        )


def _list_folder(path: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself
            return False
        raise


def _describe(entry: "os.DirEntry[str]", folder: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    link = entry.is_symlink()
    try:
        status = os.stat(entry.path)
    except OSError as error:
        if link:
            raise ManifestError(
                f"manifest {redact(entry.path)} is a symbolic link that leads to no file: repair or remove it"
            ) from error
        raise
    if stat.S_ISREG(status.st_mode):
        real = os.path.realpath(entry.path) if link else f"{folder.rstrip('/')}/{entry.name}"
        yield real, entry.path, {"size": status.st_size, "mtime": status.st_mtime}


@dataclass(frozen=True, slots=True)
class RemoteSearch:
    """A search for files in any other storage."""

    filesystem: Any
    path: str
    pattern: Pattern

    def find(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield each file that matches: its URI, its path, and the storage's information about it."""
        for entry in self.filesystem.glob(self.path, detail=True).values():
            name = entry["name"]
            uri = full_uri(self.filesystem, name)
            # An object whose name ends with a slash stands for an empty folder.
            if entry["type"] != "directory" and not name.endswith("/") and self.would_find(uri):
                yield uri, name, entry

    @property
    def root(self) -> str:
        """The URI of the folder where the search starts."""
        return full_uri(self.filesystem, self.pattern.root)

    def would_find(self, uri: str) -> bool:
        """True if the search would have found a file with this URI, had it existed."""
        above = f"{self.root}/"
        return uri.startswith(above) and self.pattern.matches(uri.removeprefix(above).split("/"))
