"""Settings of all tests: a clean environment, one Hypothesis profile, and a record of the tests that passed."""

import gc
import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.quick_beam import cache_lookups

# No deadline: the cores are shared, and no test measures the time of an example. In CI the examples are always the same.
settings.register_profile("arkbeam", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("arkbeam")

pytest_plugins = ["tests.places", "tests.s3", "tests.tos", "tests.web"]

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the user's keys, settings and proxies from the environment."""
    for name in list(os.environ):
        if name.upper() in PROXY_VARIABLES or name.startswith(("ARK_", "ARKBEAM_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module", autouse=True)
def garbage_collector() -> Iterator[None]:
    """Restore the garbage collector after each module: runs in this process change its thresholds and freeze objects."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


PASSED = pytest.StashKey[set[str]]()
LAST = "test_contract_table.py"


def pytest_configure(config: pytest.Config) -> None:
    """Start the record of the tests that passed, and make Beam faster."""
    config.stash[PASSED] = set()
    cache_lookups()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the check of the contract table after the tests that the table names."""
    items.sort(key=lambda item: item.path.name == LAST)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Record each test that passed, by file and name without parameters."""
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.passed:
        item.config.stash[PASSED].add(report.nodeid.partition("[")[0].removeprefix("tests/"))


@pytest.fixture
def passed(request: pytest.FixtureRequest) -> set[str]:
    """The tests that passed in this session so far, as `ark/test_wire.py::test_name`."""
    return request.config.stash[PASSED]
