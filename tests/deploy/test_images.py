"""The images of `configs/deploy/Dockerfile`: what they copy, install and start, and how the API key gets into them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from scripts.engines.install import FLINK_JOB_SERVER

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "configs" / "deploy"
WITH_KEY = DEPLOY / "with_key.py"
KEY = "a-key-of-the-tests"
STAGES = {
    "build",
    "base",
    "launcher",
    "worker",
    "jars",
    "flink",
    "beam",
    "dataflow",
    "template-launcher",
    "dataflow-launcher",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the Dockerfile: the image that it starts from, and its instructions with their arguments."""

    source: str
    steps: list[tuple[str, str]]

    def arguments(self, instruction: str) -> list[str]:
        """Return the arguments of each of these instructions."""
        return [rest for name, rest in self.steps if name == instruction]


def read_stages() -> tuple[dict[str, str], dict[str, Stage]]:
    """Return the defaults of the arguments before the first stage, and the stages."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    defaults, stages, steps = {}, {}, []
    for line in filter(None, "\n".join(lines).replace("\\\n", " ").splitlines()):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            source, name = rest.split(" AS ")
            steps = []
            stages[name] = Stage(source, steps)
        elif stages:
            steps.append((instruction, " ".join(rest.split())))
        else:
            name, _, value = rest.partition("=")
            defaults[name] = value
    return defaults, stages


DEFAULTS, IMAGES = read_stages()


def chain(name: str) -> list[Stage]:
    """Return a stage and those that it is built on, itself first."""
    stage = IMAGES[name]
    return [stage, *(chain(stage.source) if stage.source in IMAGES else [])]


def test_what_is_copied_exists() -> None:
    """Each source of a COPY is in the repository, and Docker is sent it; each `--from` names an earlier stage."""
    assert set(IMAGES) == STAGES
    sent = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines() if line[0] == "!"]
    seen: set[str] = set()
    for name, stage in IMAGES.items():
        for copied in stage.arguments("COPY"):
            words = copied.split()
            if words[0].startswith("--from="):
                assert words[0].removeprefix("--from=") in seen, copied
                continue
            for source in words[:-1]:
                assert (ROOT / source).exists(), copied
                assert any(fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in sent), copied
        seen.add(name)


def test_versions_are_those_of_the_project() -> None:
    """Beam's version is the pinned one, the extras exist, and the Flink runner is the one that the tests run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert f"apache-beam=={DEFAULTS['BEAM']}" in pins
    assert f"Programming Language :: Python :: {DEFAULTS['PYTHON']}" in project["classifiers"]
    (extras,) = IMAGES["build"].arguments("ARG")
    assert set(extras.removeprefix("EXTRAS=").split(",")) <= set(project["optional-dependencies"])
    pom = (DEPLOY / "flink" / "pom.xml").read_text("utf-8")
    found = re.findall(r"<groupId>(.+)</groupId>\s*<artifactId>(.+)</artifactId>\s*<version>(.+)</version>", pom)
    assert ":".join(found[1]) in FLINK_JOB_SERVER.artifacts
    assert FLINK_JOB_SERVER.main in (DEPLOY / "flink" / "job_server.sh").read_text("utf-8")


def test_everything_is_installed_by_the_constraints() -> None:
    """Each `pip install` of the images is pinned, what builds the package too."""
    installs = [step for run in IMAGES["build"].arguments("RUN") for step in run.split(" && ") if " install " in step]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in step for step in installs)
    assert "--build-constraint constraints.txt" in installs[-1]


@pytest.mark.parametrize("name", ["launcher", "worker", "flink"])
def test_user_is_not_root(name: str) -> None:
    """The images for machines and for Kubernetes run as a user with a number, as `runAsNonRoot` needs."""
    users = [user for stage in reversed(chain(name)) for user in stage.arguments("USER")]
    assert users[-1].isdigit()
    assert users[-1] != "0"


@pytest.mark.parametrize("name", ["launcher", "worker", "dataflow", "dataflow-launcher"])
def test_python_images_start_with_the_key_and_without_the_metadata_probe(name: str) -> None:
    """The images that need the key get it when they start, and no new process waits for the address of EC2's metadata."""
    environment = " ".join(part for stage in chain(name) for part in stage.arguments("ENV"))
    assert "AWS_EC2_METADATA_DISABLED=true" in environment
    (entry,) = IMAGES[name].arguments("ENTRYPOINT")
    assert entry.startswith('["with-key", ')
    assert os.access(WITH_KEY, os.X_OK)


def test_pool_of_the_image_starts(tmp_path: Path) -> None:
    """The module that the image `worker` starts needs no other file of scripts/."""
    (copied,) = IMAGES["worker"].arguments("COPY")
    folder = tmp_path / "scripts" / "engines"
    folder.mkdir(parents=True)
    for source in copied.split()[:-1]:
        shutil.copy(ROOT / source, folder)
    command = [sys.executable, "-P", "-m", "scripts.engines.pool", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "--serve" in done.stdout
    assert '"-P", "-m", "scripts.engines.pool"]' in IMAGES["worker"].arguments("ENTRYPOINT")[0]


def start_with_key(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `with_key.py` with these variables and no others."""
    command = [sys.executable, str(WITH_KEY), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_key_comes_from_variable_or_file(tmp_path: Path) -> None:
    """The program gets the key of the variable, else that of the file without its line end, also under another name."""
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert f"ARK_API_KEY={KEY}\n" in start_with_key("/usr/bin/env", ARKBEAM_KEY_FILE=str(file)).stdout
    named = start_with_key("/usr/bin/env", ARKBEAM_KEY_FILE=str(file), ARKBEAM_KEY_ENV="OTHER").stdout
    assert f"OTHER={KEY}\n" in named
    assert "ARK_API_KEY" not in named
    both = start_with_key("/usr/bin/env", ARKBEAM_KEY_FILE=str(file), ARK_API_KEY="first").stdout
    assert "ARK_API_KEY=first\n" in both
    assert "ARK_API_KEY" not in start_with_key("/usr/bin/env").stdout


def test_key_comes_from_the_secret_manager(tmp_path: Path) -> None:
    """The named version of a secret is read with Google's client."""
    folder = tmp_path / "google" / "cloud"
    folder.mkdir(parents=True)
    (folder / "secretmanager.py").write_text(
        "from types import SimpleNamespace as N\n"
        "class SecretManagerServiceClient:\n"
        "    def access_secret_version(self, *, name, timeout):\n"
        "        return N(payload=N(data=f'key of {name}\\n'.encode()))\n"
    )
    done = start_with_key(
        "/usr/bin/env", ARKBEAM_KEY_SECRET="projects/p/secrets/s/versions/1", PYTHONPATH=str(tmp_path)
    )
    assert "ARK_API_KEY=key of projects/p/secrets/s/versions/1\n" in done.stdout


def test_what_can_not_start_is_said(tmp_path: Path) -> None:
    """A key that can't be read is exit code 2 and one line; a program that does not exist is 127; its own code is kept."""
    missing = start_with_key("/usr/bin/env", ARKBEAM_KEY_FILE=str(tmp_path / "none"))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert re.fullmatch(r"with-key: the API key can't be read: FileNotFoundError: .+\n", missing.stderr)
    assert start_with_key(str(tmp_path / "none")).returncode == 127
    assert start_with_key("/bin/sh", "-c", "exit 5").returncode == 5
