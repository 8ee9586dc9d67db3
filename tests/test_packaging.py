"""Packaging and the scripts: what they install on a fresh machine, and that they install nothing twice."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import arkbeam
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
SCRIPTS = ("scripts/run", "scripts/test", "scripts/compat", "scripts/flink", ".ci/run")
EXTRAS = {"emulator", "redis", "s3", "gcs", "tos", "dataflow", "video", "heif", "map", "search"}
GROUPS = {"test", "dev"}
NOT_FOUND = 2
DOCUMENTS = ("LICENSE", "README.md", "README.zh-CN.md", "CHANGELOG.md", "CONTRIBUTING.md")
INSTALLED_BY_TEST = ["install pip>=25.1", "install dev test check out[emulator,heif,map,redis,s3,search,tos,video]"]


def read_pyproject() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def read_project() -> dict[str, Any]:
    """Return the `project` table of pyproject.toml."""
    project: dict[str, Any] = read_pyproject()["project"]
    return project


def read_requirements() -> list[Requirement]:
    """Return all requirements of the package, its extras and the dependency groups, except those on the package itself."""
    project, groups = read_project(), read_pyproject()["dependency-groups"]
    parts = [project["dependencies"], *project["optional-dependencies"].values(), *groups.values()]
    return [found for part in parts for line in part if (found := Requirement(line)).name != project["name"]]


def read_constraints() -> dict[str, Version]:
    """Return the pinned versions by canonical name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    return {canonicalize_name(name): Version(version) for name, version in pins.items()}


def test_names_stay() -> None:
    """The names of distribution, command, extras and dependency groups are pinned."""
    project = read_project()
    assert project["name"] == "arkbeam"
    assert project["scripts"] == {"arkbeam": "arkbeam.app.cli:main"}
    assert set(project["optional-dependencies"]) == EXTRAS
    assert set(read_pyproject()["dependency-groups"]) == GROUPS


def test_wheel_holds_the_package_alone(tmp_path: Path) -> None:
    """The wheel has the package `arkbeam` with all its modules, the template of the report and `py.typed`, no other package, and the licence."""
    wheel = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    names = zipfile.ZipFile(next(wheel.build(directory=str(tmp_path), versions=["standard"]))).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    files = [path for path in (ROOT / "pipeline/arkbeam").rglob("*.*") if path.suffix in (".py", ".html", ".css")]
    modules = {path.relative_to(ROOT / "pipeline").as_posix() for path in files}
    assert {name.partition("/")[0] for name in inside} == {"arkbeam"}
    assert modules | {"arkbeam/py.typed"} <= inside
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_sdist_holds_what_a_reader_needs(tmp_path: Path) -> None:
    """The source distribution has the licence, the documents in both languages, and the tests with their data."""
    sdist = pytest.importorskip("hatchling.builders.sdist").SdistBuilder(str(ROOT))
    with tarfile.open(next(sdist.build(directory=str(tmp_path), versions=["standard"]))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*DOCUMENTS, "pyproject.toml", "constraints.txt", "scripts/test", "tests/test_packaging.py"} <= names
    assert not [name for name in names if name.startswith((".venv", "out/"))]


def test_license_is_named() -> None:
    """The licence has its SPDX identifier; its text and the documents exist and are in the source distribution."""
    project = read_project()
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
    include = read_pyproject()["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {f"/{name}" for name in DOCUMENTS} <= set(include)
    assert [name for name in DOCUMENTS if not (ROOT / name).is_file()] == []


def test_version_is_a_version() -> None:
    """The package's version is a valid version in its normal form."""
    assert str(Version(arkbeam.__version__)) == arkbeam.__version__


@pytest.mark.parametrize("requirement", read_requirements(), ids=str)
def test_requirement_has_a_lower_bound_that_the_pin_meets(requirement: Requirement) -> None:
    """Each requirement has a lower bound, and the pinned version meets it."""
    assert {specifier.operator for specifier in requirement.specifier} == {">="}
    assert read_constraints()[canonicalize_name(requirement.name)] in requirement.specifier


def test_constraints_are_exact_versions_alone() -> None:
    """Every line pins one distribution; there is no address, path or editable install."""
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line), line


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_can_be_run(name: str) -> None:
    """The scripts are executable and have valid syntax."""
    assert os.access(ROOT / name, os.X_OK)
    subprocess.run(["sh", "-n", ROOT / name], check=True)


def test_module_runs_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m arkbeam` exits with the command's exit code."""
    cli = type(sys)("arkbeam.app.cli")
    cli.main = lambda: sys.exit(3)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "arkbeam.app.cli", cli)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("arkbeam", run_name="__main__")
    assert end.value.code == 3


# A shell script in place of Python: it passes every version check, copies itself into the venv, and logs the calls of pip, of
# the checks and of the command. With it the scripts are tested without a network.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
"-c "*print*) echo "${FAKE_VERSION:-3.12}" ;;
"-m venv --clear "*)
    for folder in "$@"; do :; done
    rm -rf "$folder" && mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python" && cp "$0" "$folder/bin/arkbeam" ;;
"-m pip --version") ;;
"-m pip install "*)
    did=install
    for word in "$@"; do
        case "$word" in
        -* | pip | install | */constraints.txt) ;;
        *) did="$did ${word##*/}" ;;
        esac
    done
    echo "$did" >>"$FAKE_LOG"
    exit "${FAKE_PIP_EXIT:-0}" ;;
"run "*) echo "$PWD: $*" >>"$FAKE_LOG" ;;
"-m "*) shift; echo "check $*" >>"$FAKE_LOG"; [ "$1" != "${FAKE_FAILING_CHECK:-}" ] ;;
esac
"""


class Checkout:
    """A copy of the scripts in a folder, and the fake Python that they find on PATH."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "check out"
        self.log = folder / "log"
        self.bin = folder / "bin"
        for name in (*SCRIPTS, "scripts/_env.sh", "pyproject.toml", "constraints.txt"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        self.bin.mkdir()
        self.add_python("python3")

    def add_python(self, name: str) -> Path:
        """Put the fake on PATH under a name."""
        path = self.bin / name
        path.write_text(FAKE_PYTHON)
        path.chmod(0o755)
        return path

    def run(
        self, script: str, *arguments: str, cwd: Path | None = None, **variables: str
    ) -> tuple[int, list[str], str]:
        """Run a script; return its exit code, the calls of the fake, and its stderr."""
        self.log.write_text("")
        # Only what the scripts need is on PATH, so that the machine's own Pythons are not found.
        for tool in ("sh", "cat", "cksum", "dirname", "mkdir", "cp", "rm", "tr"):
            link = self.bin / tool
            if not link.exists():
                link.symlink_to(shutil.which(tool) or tool)
        environment = {"PATH": str(self.bin), "FAKE_LOG": str(self.log), **variables}
        done = subprocess.run(
            [self.root / script, *arguments],
            cwd=cwd or self.root.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, self.log.read_text().splitlines(), done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A fresh checkout with a blank in its path."""
    return Checkout(tmp_path)


def test_run_installs_and_runs_the_demo(checkout: Checkout) -> None:
    """Without a config the script runs the demo in the checkout's root, after an installation that it announces."""
    code, did, said = checkout.run("scripts/run", "--set", "quota.rpm=600")
    assert code == 0
    assert did == ["install check out[emulator,search]", f"{checkout.root}: run configs/demo.yaml --set quota.rpm=600"]
    assert "creating .venv" in said
    assert "installing arkbeam[emulator,search]" in said


def test_run_takes_a_config_relative_to_the_caller(checkout: Checkout, tmp_path: Path) -> None:
    """A config is passed on as given, and the command runs in the caller's folder."""
    _, did, _ = checkout.run("scripts/run", "my.yaml", "--", "--direct_num_workers=2", cwd=tmp_path)
    assert did[-1] == f"{tmp_path}: run my.yaml -- --direct_num_workers=2"


def test_second_run_installs_nothing(checkout: Checkout) -> None:
    """A second run installs nothing, and the script prints nothing."""
    checkout.run("scripts/run")
    _, did, said = checkout.run("scripts/run")
    assert [line for line in did if line.startswith("install")] == []
    assert said == ""


def test_run_has_nothing_to_install_after_test(checkout: Checkout) -> None:
    """`scripts/test` installs all that `scripts/run` needs."""
    checkout.run("scripts/test")
    _, did, _ = checkout.run("scripts/run")
    assert [line for line in did if line.startswith("install")] == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed(checkout: Checkout, name: str) -> None:
    """After a change in either file, the next run installs again."""
    checkout.run("scripts/run")
    with (checkout.root / name).open("a") as file:
        file.write("# changed\n")
    _, did, _ = checkout.run("scripts/run")
    assert did[0] == "install check out[emulator,search]"


def test_failed_installation_is_tried_again(checkout: Checkout) -> None:
    """If pip fails, the script ends and the next run tries the installation again."""
    code, did, _ = checkout.run("scripts/run", FAKE_PIP_EXIT="1")
    assert code != 0
    assert did == ["install check out[emulator,search]"]
    _, did, _ = checkout.run("scripts/run")
    assert did[0] == "install check out[emulator,search]"


def test_named_python_has_an_environment_of_its_own(checkout: Checkout) -> None:
    """With PYTHON the packages are installed into .venv-VERSION, and .venv is unchanged."""
    checkout.run("scripts/run")
    other = str(checkout.add_python("other"))
    _, did, said = checkout.run("scripts/run", PYTHON=other, FAKE_VERSION="3.13")
    assert did[0] == "install check out[emulator,search]"
    assert "creating .venv-3.13" in said
    assert checkout.run("scripts/run", PYTHON=other, FAKE_VERSION="3.13")[1:] == (did[1:], "")
    assert checkout.run("scripts/run")[1:] == (did[1:], "")


def test_tests_run_on_a_named_version(checkout: Checkout) -> None:
    """`scripts/test --python 3.13` uses python3.13 and .venv-3.13; a version that is not installed is an error."""
    checkout.add_python("python3.13")
    _, did, said = checkout.run("scripts/test", "--python", "3.13", "tests/ark", FAKE_VERSION="3.13")
    assert did[:2] == INSTALLED_BY_TEST
    assert did[-1] == "check pytest --durations=10 tests/ark"
    assert "creating .venv-3.13" in said
    assert not (checkout.root / ".venv").exists()
    code, did, said = checkout.run("scripts/test", "--python", "3.14")
    assert (code, did) == (NOT_FOUND, [])
    assert "PYTHON=python3.14 is not a Python 3.11 or newer" in said


def test_help_of_test_installs_nothing(checkout: Checkout) -> None:
    """`scripts/test --help` prints its options and does nothing else."""
    code, did, _ = checkout.run("scripts/test", "--help")
    assert (code, did) == (0, [])
    done = subprocess.run([ROOT / "scripts/test", "--help"], capture_output=True, text=True, check=True)
    assert [word for word in ("--cov", "--python 3.13", "PYTHON=", "ARKBEAM_PROMISES") if word not in done.stdout] == []


def test_coverage_is_measured_and_shown(checkout: Checkout) -> None:
    """`scripts/test --cov` runs the tests with coverage, combines the data of all processes, and prints a report."""
    did = checkout.run("scripts/test", "--cov", "tests/ark")[1]
    assert [line.removeprefix("check coverage ") for line in did if line.startswith("check coverage")] == [
        "erase",
        "run --module pytest --durations=10 tests/ark",
        "combine --quiet",
        "report",
    ]


def test_missing_python_is_said(checkout: Checkout) -> None:
    """Without a Python 3.11 or newer, on PATH or in PYTHON, the script exits with 2 and a message."""
    (checkout.bin / "python3").unlink()
    code, did, said = checkout.run("scripts/run")
    assert (code, did) == (NOT_FOUND, [])
    assert "no Python 3.11 or newer on PATH" in said
    code, did, said = checkout.run("scripts/run", PYTHON="python9")
    assert (code, did) == (NOT_FOUND, [])
    assert "PYTHON=python9 is not a Python 3.11 or newer" in said


@pytest.mark.parametrize("script", ["scripts/test", ".ci/run"])
def test_all_checks_run_though_one_fails(checkout: Checkout, script: str) -> None:
    """Format, lint, types and tests all run; if one fails, the exit code is 1 and the last line names it."""
    code, did, said = checkout.run(script, FAKE_FAILING_CHECK="mypy")
    assert code == 1
    assert did[:2] == INSTALLED_BY_TEST
    checks = sorted(line.split()[1] for line in did[2:])
    assert checks == ["mypy", "pytest", "pytest", "ruff", "ruff"]
    assert said.endswith("failed: types\n")
    assert checkout.run(script)[0] == 0
    assert checkout.run(script, FAKE_FAILING_CHECK="pytest")[2].endswith("failed: tests background-tests\n")
    assert sum(line.startswith("check pytest") for line in checkout.run(script, "tests/ark")[1]) == 1


def test_every_test_is_in_one_of_the_two_processes(checkout: Checkout) -> None:
    """The paths that one test process ignores are those that the other runs."""
    did = [line.split()[3:] for line in checkout.run("scripts/test")[1] if line.startswith("check pytest")]
    left_out, run = sorted(did, key=lambda words: not words[0].startswith("--ignore"))
    assert [word.removeprefix("--ignore=") for word in left_out] == run
    assert [path for path in run if not (ROOT / path).exists()] == []
