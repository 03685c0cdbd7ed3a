"""What a run of the tests has to tell beside passed and failed: lines at its end."""

import gc
from collections.abc import Iterator

import pytest

LINES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def told(pytestconfig: pytest.Config) -> list[str]:
    """Lines for the end of the run."""
    return pytestconfig.stash.setdefault(LINES, [])


@pytest.fixture
def collected() -> Iterator[None]:
    """What a test leaves to the garbage collector, as pymongo 4.20 does a socket if the server dies: no other should see it."""
    yield
    gc.collect()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(LINES, []):
        terminalreporter.write_line(line)
