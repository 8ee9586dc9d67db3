"""Who may import whom: the order of the rooms is the architecture, and this test reads it from the imports.

A room is a module or a folder directly below `pipeline/`. It imports from rooms above it in ROOMS and from itself.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "pipeline"

ROOMS = (
    "errors",
    "records",
    "schema",
    "redaction",
    "faults",
    "files",
    "ark",
    "emulator",
    "media",
    "manifest",
    "pacing",
    "store",
    "sharing",
    "engine",
    "spec",
    "reading",
    "planning",
    "embedding",
    "publishing",
    "config",
    "transforms",
    "job",
    "report",
    "progress",
    "cli",
)

# Stricter than the order: the emulator is a second reading of the contract, so it shares no code with the client.
ONLY_FROM = {"emulator": ("pipeline.errors", "pipeline.records", "pipeline.ark.models", "pipeline.emulator")}

# And no run depends on it: the config holds its options, the command line starts it.
ONLY_BY = {"emulator": {"emulator", "config", "cli"}}

# Libraries that give a room its meaning, and the rooms that may use them.
HOMES = {
    "apache_beam": {"transforms", "job", "cli"},
    "httpx": {"ark", "media"},
    "httpx_aiohttp": {"ark", "media"},
    "aiohttp": {"ark", "media"},
    "pydantic": {"config"},
    "rich": {"report", "progress", "cli"},
    "redis": {"sharing"},
    "typer": {"cli"},
    "starlette": {"emulator"},
    "uvicorn": {"emulator"},
}
STANDARD_LIBRARY_ONLY = {"errors", "records", "redaction"}


@dataclass(frozen=True, slots=True)
class Import:
    """One import, as a dotted name that is complete for modules (`from pipeline import schema` is `pipeline.schema`)."""

    file: str
    line: int
    room: str
    target: str

    @property
    def top(self) -> str:
        """The first part of the name: the library, or this package."""
        return self.target.partition(".")[0]

    @property
    def target_room(self) -> str:
        """The room that is imported, empty for the package itself."""
        return [*self.target.split("."), ""][1]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.room} imports {self.target}"


def room_of(path: Path, package: Path) -> str:
    """The room a file lives in; the package's own two files are the entry, which is the command line's."""
    first = path.relative_to(package).parts[0].removesuffix(".py")
    return {"__main__": "cli", "__init__": "__init__"}.get(first, first)


def read_imports(package: Path) -> Iterator[Import]:
    """Every import of every module below `package`, those inside functions and type-checking blocks too."""
    for path in sorted(package.rglob("*.py")):
        here = (PACKAGE, *path.relative_to(package).parent.parts)
        for node in ast.walk(ast.parse(path.read_bytes())):
            for target in imported_names(node, here, package):
                yield Import(str(path.relative_to(package.parent)), node.lineno, room_of(path, package), target)  # type: ignore[attr-defined]


def imported_names(node: ast.AST, here: tuple[str, ...], package: Path) -> list[str]:
    """The dotted names that a node imports; empty when it is no import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = (*here[: len(here) - node.level + 1], *filter(None, [node.module])) if node.level else (node.module or "",)
    name = ".".join(base)
    full = (f"{name}.{alias.name}" for alias in node.names)
    return list(dict.fromkeys(candidate if is_module(candidate, package) else name for candidate in full))


def is_module(name: str, package: Path) -> bool:
    """True when the dotted name is a module or a folder of this package."""
    path = package.parent.joinpath(*name.split("."))
    return name.startswith(f"{PACKAGE}.") and (path.is_dir() or path.with_suffix(".py").is_file())


def find_breaches(package: Path) -> list[str]:
    """Every import that the rules above forbid."""
    return [f"{found} ({reason})" for found in read_imports(package) if (reason := why_forbidden(found))]


def why_forbidden(found: Import) -> str:
    """Why an import is forbidden, or an empty string."""
    if found.top == PACKAGE:
        return why_forbidden_inside(found)
    if found.room in STANDARD_LIBRARY_ONLY and found.top not in sys.stdlib_module_names:
        return "this room imports the standard library alone"
    if found.top in HOMES and found.room not in HOMES[found.top]:
        return f"{found.top} belongs to {', '.join(sorted(HOMES[found.top]))}"
    return ""


def why_forbidden_inside(found: Import) -> str:
    """The same, for an import from this package."""
    if not found.target_room or found.room == "cli":
        return ""
    if found.room == "__init__":
        return "the package imports nothing, so that any room can be imported alone"
    if found.target_room not in ROOMS or found.room not in ROOMS:
        return "no such room in ROOMS"
    allowed = ONLY_FROM.get(found.room)
    if allowed and not any(found.target == name or found.target.startswith(f"{name}.") for name in allowed):
        return f"{found.room} imports from {', '.join(allowed)} alone"
    importers = ONLY_BY.get(found.target_room)
    if importers and found.room not in importers:
        return f"{found.target_room} is imported by {', '.join(sorted(importers))} alone"
    if ROOMS.index(found.target_room) > ROOMS.index(found.room):
        return f"{found.target_room} comes after {found.room}"
    return ""


def test_imports_follow_the_order_of_the_rooms() -> None:
    """No module imports from a room below its own, nor a library that belongs to another room."""
    breaches = find_breaches(ROOT / PACKAGE)
    assert not breaches, "\n".join(breaches)


def test_every_module_belongs_to_a_room() -> None:
    """What lies directly below the package is in ROOMS, so that nothing escapes the order."""
    rooms = {room_of(path, ROOT / PACKAGE) for path in (ROOT / PACKAGE).rglob("*.py")}
    assert rooms <= {*ROOMS, "__init__"}


@pytest.mark.parametrize(
    ("file", "code", "reason"),
    [
        ("records.py", "from pipeline.schema import KEYS", "schema comes after records"),
        ("ark/wire.py", "from pipeline import media", "media comes after ark"),
        ("ark/wire.py", "from ..media import kinds", "media comes after ark"),
        ("store/index.py", "def f():\n    import pipeline.engine.core", "engine comes after store"),
        ("records.py", "import numpy as np", "standard library alone"),
        ("store/index.py", "import httpx", "httpx belongs to ark, media"),
        ("planning.py", "from apache_beam.utils import shared", "apache_beam belongs to cli, job, transforms"),
        ("emulator/server.py", "from pipeline.ark.wire import encode", "emulator imports from"),
        ("emulator/server.py", "from pipeline.ark import wire", "emulator imports from"),
        ("ark/client.py", "from pipeline.emulator import server", "emulator is imported by"),
        ("job.py", "from pipeline.emulator import server", "emulator is imported by"),
        ("job.py", "from pipeline.kitchen import knife", "no such room"),
        ("__init__.py", "from pipeline.cli import main", "imports nothing"),
    ],
)
def test_breach_is_found(tmp_path: Path, file: str, code: str, reason: str) -> None:
    """Each rule catches the import it forbids."""
    package = make_package(tmp_path, {file: code})
    (breach,) = find_breaches(package)
    assert reason in breach


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (
            "ark/client.py",
            "import httpx\nfrom pipeline.ark.wire import encode\nfrom pipeline import records, __version__",
        ),
        (
            "emulator/server.py",
            "from pipeline.ark.models import MODELS\nfrom pipeline.ark import models\nimport starlette",
        ),
        ("cli.py", "from pipeline.emulator import server\nimport typer, rich, apache_beam"),
        ("__main__.py", "from pipeline.cli import main"),
        ("records.py", "import math\nfrom pipeline.errors import ConfigError"),
    ],
)
def test_allowed_import_is_no_breach(tmp_path: Path, file: str, code: str) -> None:
    """What the rules allow is let through."""
    assert find_breaches(make_package(tmp_path, {file: code})) == []


def make_package(folder: Path, files: dict[str, str]) -> Path:
    """A package of empty modules with some of them filled."""
    package = folder / PACKAGE
    empty = dict.fromkeys(
        ("ark/wire.py", "ark/models.py", "media/kinds.py", "engine/core.py", "emulator/server.py"), ""
    )
    for name, code in (empty | files).items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return package


# One letter of each is in brackets, so that this file does not hold what it looks for.
INDEX_PATTERNS = (
    r"[p]ypi\.(?:org|python)",
    r"python[h]osted\.",
    r"index[-]url",
    r"find[-]links",
    r"https?://[^\s\"'<>]+/[s]imple(?:[/\s\"']|$)",
)
MACHINE_PATTERNS = tuple(rf"(?<![\w.~/*}})-])/{name}/" for name in ("[w]ork", "[r]oot", "tmp/[w]", "opt/[w]heels"))


def machine_words() -> list[str]:
    """What only this machine knows: where the checkout lies, and the hosts that its pip asks."""
    settings = [value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_"))]
    hosts = [host for value in settings for host in re.findall(r"https?://(?:[^\s/@]*@)?([^\s/:]+)", value)]
    return [re.escape(word) for word in (*hosts, str(ROOT)) if len(word) > 4]


def listed_files() -> list[Path]:
    """Every file that git tracks or would add."""
    git = shutil.which("git")
    if not git:
        pytest.skip("git is missing")
    command = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_an_index_or_a_machine() -> None:
    """No file of the project holds the address of a package index or a path of the machine it was written on."""
    pattern = re.compile("|".join((*INDEX_PATTERNS, *MACHINE_PATTERNS, *machine_words())), re.MULTILINE)
    hits = []
    for path in listed_files():
        for match in pattern.finditer(path.read_bytes().decode("utf-8", "replace")):
            hits.append(f"{path.relative_to(ROOT)}: {match.group()}")
    assert not hits, "\n".join(hits)


def test_patterns_find_an_index_and_a_machine_path() -> None:
    """The search finds what it is for, and leaves ordinary paths and URLs alone."""
    pattern = re.compile("|".join((*INDEX_PATTERNS, *MACHINE_PATTERNS)))
    bad = ["--ex|tra-in|dex-url x", "https://mirror.example/py|pi/simp|le/", "see /wo|rk/main", "'/ro|ot/.cache'"]
    good = ["a framework/main", "s3://bucket/work/x", "out/work/y", "https://example.com/simpler", "$root/scripts"]
    assert [line for line in bad if not pattern.search(line.replace("|", ""))] == []
    assert [line for line in good if pattern.search(line)] == []
