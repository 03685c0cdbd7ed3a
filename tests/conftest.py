"""What a run of the tests has to tell beside passed and failed: lines at its end."""

import gc
import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

LINES = pytest.StashKey[list[str]]()

# Under nohup, the servers of the tests would ignore this signal, too.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def told(pytestconfig: pytest.Config) -> list[str]:
    """Lines for the end of the run."""
    return pytestconfig.stash.setdefault(LINES, [])


@pytest.fixture(scope="session", autouse=True)
def nothing_kept() -> Iterator[None]:
    """The chats that somebody has here are none of the tests' business."""
    here = [Path(name).absolute() for name in ("chat.db", "tests/chat.db")]
    before = [file.stat().st_mtime_ns if file.exists() else 0 for file in here]
    yield
    assert before == [file.stat().st_mtime_ns if file.exists() else 0 for file in here]


class Errors(logging.Handler):
    """What is logged as an error of ours: a traceback, a task that failed unheard."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


@pytest.fixture(autouse=True)
def no_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """A good 502 may hide a crash: where no test wants one (`logs_errors`), none is logged."""
    errors = Errors()
    logging.getLogger().addHandler(errors)
    yield
    logging.getLogger().removeHandler(errors)
    if not request.node.get_closest_marker("logs_errors"):
        assert errors.found == []


@pytest.fixture
def collected() -> Iterator[None]:
    """What a test leaves to the garbage collector, as pymongo 4.20 does a socket if the server dies: no other should see it."""
    yield
    gc.collect()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash.get(LINES, []):
        terminalreporter.write_line(line)
