"""A process of a run checks, at its first use, that it is set up as the submitter is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from arkbeam.base.errors import ConfigError
from arkbeam.base.files import write_bytes
from arkbeam.stages.presence import check_process, read_error
from arkbeam.stages.spec import RunSpec
from arkbeam.store.run_files import note_uri


@pytest.fixture
def spec(place: Any) -> RunSpec:
    """A run with several processes."""
    place.write_texts(1)
    return replace(place.prepare().spec, many_processes=True)


def lack(_: RunSpec) -> None:
    """Fail as a process without the key."""
    raise ConfigError("ARK_API_KEY is not set")


def test_a_store_that_is_not_shared(spec: RunSpec, tmp_path: Path) -> None:
    """The error names the store and what to do; the process writes nothing into its own folder of that name."""
    with pytest.raises(ConfigError, match=r"set store\.uri to a place that is the same"):
        check_process(spec, lambda _: None)
    assert not (tmp_path / "store").exists()


def test_what_a_process_lacks_is_noted(spec: RunSpec) -> None:
    """Each try fails, and the submitter finds the message in the store."""
    write_bytes(note_uri(spec.store.uri, spec.run.name, "running"), b'{"many_processes": true}')
    assert read_error(spec) is None
    for _ in range(2):
        with pytest.raises(ConfigError):
            check_process(spec, lack)
    assert "ARK_API_KEY is not set" in str(read_error(spec))


def test_a_process_is_checked_once(spec: RunSpec) -> None:
    """Afterwards nothing is read."""
    write_bytes(note_uri(spec.store.uri, spec.run.name, "running"), b'{"many_processes": true}')
    checked: list[RunSpec] = []
    for _ in range(3):
        check_process(spec, checked.append)
    assert checked == [spec]
