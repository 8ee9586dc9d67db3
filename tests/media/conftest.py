"""Fixtures for tests that fetch media from web servers."""

import pytest
from arkbeam.media import hosts


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits that no server asks for."""
    monkeypatch.setattr(hosts, "BACKOFF_S", 0.01)
