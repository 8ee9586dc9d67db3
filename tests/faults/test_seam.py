"""Named faults happen only if ARKBEAM_FAULTS in the environment names them, as its entries say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from arkbeam.base import faults
from arkbeam.base.errors import ConfigError
from arkbeam.base.faults import Injector, flip_bit

from scripts.children import ROOT, child_environment

IMPORT = """
import {module}
from arkbeam.base import faults, files
print(faults.hit is faults.do_nothing, files.faults.hit.__name__)
"""


@pytest.mark.parametrize(
    ("module", "wanted", "said"),
    [
        ("arkbeam.app.job", "", "True do_nothing"),
        ("arkbeam.base.files", "store.flush:kill:1", "False hit"),
    ],
)
def test_nothing_is_loaded_unless_it_is_asked_for(module: str, wanted: str, said: str) -> None:
    """Without ARKBEAM_FAULTS each point calls a function that does nothing; with it, the function that injects the faults."""
    environment = child_environment(**{faults.VARIABLE: wanted})
    command = [sys.executable, "-c", IMPORT.format(module=module)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said


def test_a_point_acts_at_the_hit_that_is_named() -> None:
    """A fault happens at one hit, or from one hit on, and only for paths that match."""
    injector = Injector.parse("a:eio:2;b@*/segments/*:enospc:2+")
    injector.hit("a")
    with pytest.raises(OSError, match=os.strerror(5)):
        injector.hit("a")
    injector.hit("a")
    for path in ("/x/events/1", "/x/segments/1"):
        injector.hit("b", path)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            injector.hit("b", "/x/segments/2")
    injector.hit("b", "/x/events/2")


def test_files_are_damaged_as_told(tmp_path: Path) -> None:
    """A file is cut to a length, or one of its bits is flipped."""
    path = tmp_path / "x"
    path.write_bytes(b"\0" * 10)
    Injector.parse("a:flip=3:1;a:truncate=5:2").hit("a", str(path))
    assert path.read_bytes() == b"\0\0\0\1\0\0\0\0\0\0"
    flip_bit(str(path), 79)
    assert path.read_bytes()[9] == 0x80


@pytest.mark.parametrize("entry", ["a", "a:kill", "a:kill:x", "a:explode:1", "a:sleep=x:1"])
def test_what_can_not_be_understood_is_refused(entry: str) -> None:
    """An entry that can't be parsed is an error; otherwise a test with a typing error would test nothing."""
    with pytest.raises(ConfigError, match="ARKBEAM_FAULTS"):
        Injector.parse(entry)
