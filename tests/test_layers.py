"""Which module may import which: the order of the rooms is the architecture, and these tests check the imports.

A room is a folder directly below `pipeline/arkbeam/`. A module imports from its own entry in ORDER and from those above it.
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
PACKAGE = "arkbeam"
SOURCE = ROOT / "pipeline" / PACKAGE

ORDER = (
    "base.errors",
    "base.records",
    "base.capabilities",
    "base.replies",
    "base.schema",
    "base.signing",
    "base.redaction",
    "base.words",
    "base.bad_rows",
    "base.faults",
    "base.parallel",
    "base.collector",
    "base.uris",
    "base.files",
    "decoding",
    "ark",
    "emulator",
    "media",
    "manifest",
    "store",
    "quota",
    "engine",
    "stages.spec",
    "stages.presence",
    "stages.inputs",
    "stages.meter",
    "stages.read",
    "stages.plan",
    "stages.counters",
    "stages.survey",
    "stages.embed",
    "stages.publish",
    "outputs",
    "beam",
    "app.output_uri",
    "app.program",
    "app.config",
    "app.run_note",
    "app.take_over",
    "app.holding",
    "app.service",
    "app.prepare",
    "app.job",
    "app.report",
    "app.store",
    "app.messages",
    "app.view",
    "app.bars",
    "app.find_run",
    "app.watching",
    "app.progress",
    "app.schema",
    "app.guess",
    "app.folder",
    "app.config_text",
    "app.init",
    "app.check",
    "app.probe",
    "app.cli_options",
    "app.cli_print",
    "app.terminal",
    "app.cli_setup",
    "app.cli_outputs",
    "app.cli_search",
    "app.cli_runs",
    "app.cli_store",
    "app.cli",
)

# Stricter than the order: the only entries that a room imports from. The emulator is a second implementation of the contract. It
# shares the table of models with the client, but no code that reads or writes requests and replies.
ONLY_FROM = {
    "emulator": ("base.errors", "base.records", "base.capabilities", "ark.models", "emulator"),
}

# Rooms that do not depend on the vendor, so that another provider can be added beside `ark`.
NEVER_FROM = {"store": ("ark",), "quota": ("ark",), "stages.plan": ("ark",)}

# The only rooms that import an entry. No run depends on the emulator: the config has its options, the command line starts it.
ONLY_BY = {"emulator": ("emulator", "app.config", "app.service", "app.cli")}

# Libraries that only some entries of ORDER may import.
LIBRARIES = {
    "ada_url": ("media",),
    "apache_beam": ("beam",),
    "httpx": ("ark", "media"),
    "httpx_aiohttp": ("ark", "media"),
    "aiohttp": ("ark", "media"),
    "jinja2": ("outputs",),
    "markupsafe": ("outputs",),
    "matplotlib": ("outputs",),
    "openTSNE": ("outputs",),
    "pydantic": ("app.config", "app.schema"),
    "rich": (
        "app.report",
        "app.store",
        "app.messages",
        "app.bars",
        "app.progress",
        "app.cli_print",
        "app.cli_setup",
        "app.cli_search",
        "app.cli_store",
    ),
    "redis": ("quota",),
    "typer": (
        "app.cli_options",
        "app.cli_setup",
        "app.cli_outputs",
        "app.cli_runs",
        "app.cli_search",
        "app.cli_store",
        "app.cli",
    ),
    "duckdb": ("outputs",),
    "usearch": ("outputs",),
    "starlette": ("emulator",),
    "uvicorn": ("emulator",),
}
STANDARD_LIBRARY_ONLY = ("base.errors", "base.records", "base.signing", "base.redaction", "base.words")


@dataclass(frozen=True, slots=True)
class Import:
    """One import. `place` is the entry of ORDER of the importing module, `target` the full dotted name of the imported one."""

    file: str
    line: int
    place: str
    target: str

    @property
    def top(self) -> str:
        """The first part of the imported name: a library, or this package."""
        return self.target.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.place or 'the package'} imports {self.target}"


def place_of(name: str) -> str:
    """Return the entry of ORDER of a module of this package; its own name if there is none.

    `name` is dotted, without the package.
    """
    return next((entry for entry in ORDER if name == entry or name.startswith(f"{entry}.")), name)


def module_name(path: Path, package: Path) -> str:
    """Return the dotted name of a module, without the package; `__main__` counts as `app.cli`."""
    parts = path.relative_to(package).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return "app.cli" if name == "__main__" else name


def read_imports(package: Path) -> Iterator[Import]:
    """Yield every import of every module below `package`, also those inside functions and type-checking blocks."""
    for path in sorted(package.rglob("*.py")):
        here = (PACKAGE, *path.relative_to(package).parent.parts)
        place = place_of(module_name(path, package))
        for node in ast.walk(ast.parse(path.read_bytes())):
            for target in imported_names(node, here, package):
                yield Import(str(path.relative_to(package.parent)), node.lineno, place, target)  # type: ignore[attr-defined]


def imported_names(node: ast.AST, here: tuple[str, ...], package: Path) -> list[str]:
    """Return the dotted names that a node imports; empty if it is not an import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = (*here[: len(here) - node.level + 1], *filter(None, [node.module])) if node.level else (node.module or "",)
    name = ".".join(base)
    full = (f"{name}.{alias.name}" for alias in node.names)
    return list(dict.fromkeys(candidate if is_module(candidate, package) else name for candidate in full))


def is_module(name: str, package: Path) -> bool:
    """True if the dotted name is that of a module or a folder of this package."""
    path = package.parent.joinpath(*name.split("."))
    return name.startswith(f"{PACKAGE}.") and (path.is_dir() or path.with_suffix(".py").is_file())


def find_breaches(package: Path) -> list[str]:
    """Return the imports that the rules above forbid, with the reasons."""
    return [f"{found} ({reason})" for found in read_imports(package) if (reason := why_forbidden(found))]


def why_forbidden(found: Import) -> str:
    """Return why an import is forbidden, or an empty string."""
    if found.top == PACKAGE:
        return why_forbidden_inside(found)
    if found.place in STANDARD_LIBRARY_ONLY and found.top not in sys.stdlib_module_names:
        return "this module imports only the standard library"
    if found.top in LIBRARIES and found.place not in LIBRARIES[found.top]:
        return f"{found.top} belongs to {', '.join(LIBRARIES[found.top])}"
    return ""


def why_forbidden_inside(found: Import) -> str:
    """Return why an import from this package is forbidden, or an empty string."""
    if found.target == PACKAGE:
        return ""
    if found.place not in ORDER:
        return "a package that holds entries of ORDER imports nothing, so that each can be imported alone"
    name = found.target.removeprefix(f"{PACKAGE}.")
    target = place_of(name)
    if target not in ORDER:
        return f"no {target} in ORDER"
    allowed = ONLY_FROM.get(found.place)
    if allowed and not any(name == entry or name.startswith(f"{entry}.") for entry in allowed):
        return f"{found.place} imports only from {', '.join(allowed)}"
    if target in NEVER_FROM.get(found.place, ()):
        return f"{found.place} imports nothing from {target}"
    importers = ONLY_BY.get(target)
    if importers and found.place not in importers:
        return f"{target} is imported only by {', '.join(importers)}"
    if ORDER.index(target) > ORDER.index(found.place):
        return f"{target} comes after {found.place}"
    return ""


def test_imports_follow_the_order_of_the_rooms() -> None:
    """No module imports from an entry below its own, or a library that only other entries may import."""
    breaches = find_breaches(SOURCE)
    assert not breaches, "\n".join(breaches)


def test_every_module_belongs_to_a_room() -> None:
    """Every module belongs to an entry of ORDER, except the `__init__` of packages with several entries."""
    names = {module_name(path, SOURCE) for path in SOURCE.rglob("*.py")}
    holders = {entry.partition(".")[0] for entry in ORDER if "." in entry}
    assert {place_of(name) for name in names} == {*ORDER, *holders, ""}


@pytest.mark.parametrize(
    ("file", "code", "reason"),
    [
        ("base/records.py", "from arkbeam.base.schema import KEYS", "schema comes after base.records"),
        ("base/records.py", "from arkbeam.base import files", "files comes after base.records"),
        ("ark/wire.py", "from arkbeam import media", "media comes after ark"),
        ("ark/wire.py", "from ..media import kinds", "media comes after ark"),
        ("store/index.py", "def f():\n    import arkbeam.engine.core", "engine comes after store"),
        ("base/records.py", "import numpy as np", "only the standard library"),
        ("store/index.py", "import httpx", "httpx belongs to ark, media"),
        ("stages/plan.py", "from apache_beam.utils import shared", "apache_beam belongs to beam"),
        ("stages/plan.py", "from arkbeam.stages.embed import feed", "stages.embed comes after stages.plan"),
        ("emulator/server.py", "from arkbeam.ark.wire import encode", "emulator imports only from"),
        ("emulator/server.py", "from arkbeam.ark import wire", "emulator imports only from"),
        ("store/index.py", "from arkbeam.ark.wire import encode", "store imports nothing from ark"),
        ("stages/plan.py", "from arkbeam.ark import models", "stages.plan imports nothing from ark"),
        ("ark/client.py", "from arkbeam.emulator import server", "emulator is imported only by"),
        ("app/job.py", "from arkbeam.emulator import server", "emulator is imported only by"),
        ("app/job.py", "from arkbeam.kitchen import knife", "no kitchen.knife in ORDER"),
        ("__init__.py", "from arkbeam.app.cli import main", "imports nothing"),
        ("base/__init__.py", "from arkbeam.base.files import join", "imports nothing"),
    ],
)
def test_breach_is_found(tmp_path: Path, file: str, code: str, reason: str) -> None:
    """Each rule finds the import that it forbids."""
    package = make_package(tmp_path, {file: code})
    (breach,) = find_breaches(package)
    assert reason in breach


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (
            "ark/client.py",
            "import httpx\nfrom arkbeam.ark.wire import encode\nfrom arkbeam.base import records\nfrom arkbeam import __version__",
        ),
        (
            "emulator/server.py",
            "from arkbeam.ark.models import MODELS\nfrom arkbeam.ark import models\nimport starlette",
        ),
        ("app/cli.py", "from arkbeam.emulator import server\nimport typer"),
        ("__main__.py", "from arkbeam.app.cli import main"),
        ("base/records.py", "import math\nfrom arkbeam.base.errors import ConfigError"),
    ],
)
def test_allowed_import_is_no_breach(tmp_path: Path, file: str, code: str) -> None:
    """Allowed imports are not reported."""
    assert find_breaches(make_package(tmp_path, {file: code})) == []


def make_package(folder: Path, files: dict[str, str]) -> Path:
    """Make a package of empty modules, with these files in it."""
    package = folder / PACKAGE
    empty = dict.fromkeys(
        (
            "ark/wire.py",
            "ark/models.py",
            "base/files.py",
            "base/records.py",
            "base/schema.py",
            "media/kinds.py",
            "engine/core.py",
            "emulator/server.py",
            "kitchen/knife.py",
            "stages/embed/feed.py",
        ),
        "",
    )
    for name, code in (empty | files).items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return package


# One letter of each is in brackets, so that the patterns do not match this file.
INDEX_PATTERNS = (
    r"[p]ypi\.(?:org|python)",
    r"python[h]osted\.",
    r"index[-]url",
    r"find[-]links",
    r"https?://[^\s\"'<>]+/[s]imple(?:[/\s\"']|$)",
)
MACHINE_PATTERNS = tuple(rf"(?<![\w.~/*}})-])/{name}/" for name in ("[w]ork", "[r]oot", "tmp/[w]", "opt/[w]heels"))


def machine_words() -> list[str]:
    """Return patterns for what is specific to this machine: the path of the checkout, and the hosts of its package index."""
    settings = [value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_"))]
    hosts = [host for value in settings for host in re.findall(r"https?://(?:[^\s/@]*@)?([^\s/:]+)", value)]
    return [re.escape(word) for word in (*hosts, str(ROOT)) if len(word) > 4]


def listed_files() -> list[Path]:
    """Return the files that git tracks or would add."""
    git = shutil.which("git")
    if not git:
        pytest.skip("git is missing")
    command = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_an_index_or_a_machine() -> None:
    """No file of the project has the address of a package index or a path of this machine."""
    pattern = re.compile("|".join((*INDEX_PATTERNS, *MACHINE_PATTERNS, *machine_words())), re.MULTILINE)
    hits = []
    for path in listed_files():
        for match in pattern.finditer(path.read_bytes().decode("utf-8", "replace")):
            hits.append(f"{path.relative_to(ROOT)}: {match.group()}")
    assert not hits, "\n".join(hits)


def test_patterns_find_an_index_and_a_machine_path() -> None:
    """The patterns match indexes and machine paths, and do not match ordinary paths and URLs."""
    pattern = re.compile("|".join((*INDEX_PATTERNS, *MACHINE_PATTERNS)))
    bad = ["--ex|tra-in|dex-url x", "https://mirror.example/py|pi/simp|le/", "see /wo|rk/main", "'/ro|ot/.cache'"]
    good = ["a framework/main", "s3://bucket/work/x", "out/work/y", "https://example.com/simpler", "$root/scripts"]
    assert [line for line in bad if not pattern.search(line.replace("|", ""))] == []
    assert [line for line in good if pattern.search(line)] == []
