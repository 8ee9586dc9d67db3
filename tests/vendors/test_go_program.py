"""The contract page's Go program, with another base URL, against the emulator."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arkbeam.base.replies import Reply
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator

SOURCE = Path(__file__).parent / "go"
GO = shutil.which("go")
DOWNLOAD_S, BUILD_S, RUN_S = 300, 300, 60
# The vendor's module is 50 MB and takes 24 s of CPU to compile the first time; with optimisation 33 s.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(DOWNLOAD_S + BUILD_S + RUN_S),
    pytest.mark.skipif(GO is None, reason="Go is not installed: the contract page's Go program is not run"),
]


def run_go(*arguments: str, cache: Path, timeout_s: int) -> "subprocess.CompletedProcess[str]":
    """Run the go command in the program's folder. Modules and builds are cached in Go's default folders; in `cache` without HOME."""
    environment = dict(os.environ)
    if "HOME" not in environment:
        environment |= {"GOCACHE": str(cache / "build"), "GOPATH": str(cache / "path")}
    command = [str(GO), *arguments]
    return subprocess.run(
        command, cwd=SOURCE, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program. The tests are skipped if its modules are not in Go's cache and can't be downloaded."""
    folder = tmp_path_factory.mktemp("go")
    done = run_go("mod", "download", cache=folder, timeout_s=DOWNLOAD_S)
    if done.returncode and "checksum mismatch" not in done.stderr:
        pytest.skip(f"the modules of the contract page's Go program can't be downloaded: {done.stderr.strip()[-300:]}")
    done = run_go(
        "build", "-mod=readonly", "-gcflags=all=-N -l", "-o", str(folder / "page"), ".", cache=folder, timeout_s=BUILD_S
    )
    assert done.returncode == 0, done.stderr
    return folder / "page"


def run_program(program: Path, url: str, key: str) -> "subprocess.CompletedProcess[str]":
    """Run the program against a server."""
    environment = {**os.environ, "ARK_BASE_URL": url, "ARK_API_KEY": key}
    return subprocess.run([program], env=environment, capture_output=True, text=True, timeout=RUN_S, check=False)


def test_the_pages_program(
    program: Path, server_url: str, page_request: dict[str, Any], ask_with_ours: Callable[[dict[str, Any]], Reply]
) -> None:
    """The program prints the length, vector and usage that our own client gets for the same request."""
    done = run_program(program, server_url, "any")
    assert done.returncode == 0, done.stdout + done.stderr
    length, printed = done.stdout.splitlines()
    ours = ask_with_ours(page_request)
    assert int(length) == len(ours.dense) == 2048
    reply = json.loads(printed)
    assert (np.array(reply["data"]["embedding"], np.float32) == ours.dense).all()
    assert reply["usage"] == {
        "prompt_tokens": 528,
        "total_tokens": 528,
        "prompt_tokens_details": {"text_tokens": 31, "image_tokens": 497},
    }
    assert (reply["object"], reply["data"]["object"], reply["model"]) == ("list", "embedding", ours.model)


def test_the_pages_program_with_a_wrong_key(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor's Go client understands the server's error: the program prints it and exits with code 1."""
    monkeypatch.setenv("EMULATOR_KEY", "right")
    with start_emulator(EmulatorOptions(api_key_env="EMULATOR_KEY")) as url:
        done = run_program(program, url, "wrong")
    assert done.returncode == 1
    assert "AuthenticationError" in done.stdout
