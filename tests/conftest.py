"""What every test shares: a clean environment and one Hypothesis profile."""

import os

import pytest
from hypothesis import settings

# No deadline: the cores are shared, and how long a test takes is not what it tests. In CI the examples are the same each time.
settings.register_profile("arkbeam", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("arkbeam")

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes keys, settings and proxies of whoever runs the tests out of the environment."""
    for name in list(os.environ):
        if name.upper() in PROXY_VARIABLES or name.startswith(("ARK_", "ARKBEAM_")):
            monkeypatch.delenv(name)
