"""Changed media of every format: a small run of `scripts/fuzz_media.py`."""

import itertools
import random

import pytest

from scripts import fuzz_media
from tests.media.pictures import picture


def test_changed_media_are_refused_or_decode() -> None:
    """None crashes, takes long, or gives other bytes at a second call; what is sent changed decodes."""
    report = fuzz_media.run(200, seed=random.randrange(1_000_000))
    assert [reason for reason, _ in report.faults] == []
    assert sum(report.outcomes.values()) >= 200


def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself can fail: bytes that differ from call to call are a fault."""
    calls = itertools.count()
    monkeypatch.setattr(fuzz_media, "prepare", lambda *_: (bytes([next(calls)]), None))
    report = fuzz_media.Report()
    fuzz_media.check(picture(), report)
    assert [reason for reason, _ in report.faults] == ["two calls gave different bytes"] * 2
