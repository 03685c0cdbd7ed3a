"""The pytest plugin: the fixture and the marker `mock_openai`.

A run that does not use them imports nothing but this file, which imports nothing but pytest.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rewrap.main import Rewrap
    from rewrap.mock.script import Script
    from rewrap.testing.mock_openai import MockOpenAI, WatchedScript
    from rewrap.testing.server_thread import ServerThread

FIXTURE = "mock_openai"
MARKER = (
    "mock_openai(rules=None, strict=False): run the test against a mock of OpenAI's API, with the"
    " rules of a TOML file or folder beside the test, or of a list of rules; strict: a request"
    " that no rule matches fails the test"
)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
LOOPBACK = "127.0.0.1"
OPTIONS = {"rules", "strict"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test with the marker uses the fixture, so that it can never reach the real API by mistake."""
    if item.get_closest_marker(FIXTURE) is None:
        return
    names: list[str] = getattr(item, "fixturenames", [])
    if FIXTURE not in names:
        names.insert(0, FIXTURE)


class StrictCheck:
    """Fails a test whose requests no rule matched. Registered when the fixture is first used."""

    def __init__(self) -> None:
        self.mock: MockOpenAI | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        try:
            result = yield
        except BaseException:
            text = self.report()
            if text:
                item.add_report_section("call", FIXTURE, text)
            raise
        text = self.report()
        if text:
            pytest.fail(text, pytrace=False)
        return result

    def report(self) -> str:
        """The requests without a match, one a line."""
        if self.mock is None:
            return ""
        requests = self.mock.unmatched
        if not requests:
            return ""
        lines = [f"{len(requests)} requests to the mock matched no rule (strict):"]
        for request in requests:
            lines.append(f"  {request.api}, model {request.model}: {request.difference}")
        return "\n".join(lines)


@pytest.fixture(scope="session")
def _mock_openai_server(pytestconfig: pytest.Config) -> Iterator[tuple[ServerThread, StrictCheck]]:
    """The server that all tests of a session share, and the check of their requests."""
    from rewrap.testing.server_thread import ServerThread

    server = ServerThread()
    check = StrictCheck()
    pytestconfig.pluginmanager.register(check, "rewrap-strict-check")
    server.start()
    yield server, check
    server.stop()
    pytestconfig.pluginmanager.unregister(check)


@pytest.fixture
def mock_openai(
    request: pytest.FixtureRequest,
    _mock_openai_server: tuple[ServerThread, StrictCheck],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[MockOpenAI]:
    """A mock of OpenAI's API at OPENAI_BASE_URL, with a state of its own for each test."""
    from rewrap.testing.mock_openai import MockOpenAI, WatchedScript, rules_of

    server, check = _mock_openai_server
    options = marker_options(request)
    rules = rules_of(options.get("rules"), request.path.parent)
    script = WatchedScript(rules, strict=bool(options.get("strict")))
    server.use(app_of(script))

    def replay(folder: str | Path, upstream: str, key: str) -> None:
        server.use(replaying_app(request.path.parent / folder, upstream, key, script))

    mock = MockOpenAI(server.url, script, server.settle, replay)
    monkeypatch.setenv("OPENAI_BASE_URL", mock.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", mock.api_key)
    # LangChain reads this name first: a value from outside would lead to a real API.
    monkeypatch.delenv("OPENAI_API_BASE", raising=False)
    exempt_from_proxies(monkeypatch)
    check.mock = mock
    yield mock
    check.mock = None


def app_of(script: Script) -> Rewrap:
    """An app whose mock follows this script. The handlers of the log stay as pytest has them."""
    from rewrap.config.settings import Settings
    from rewrap.main import create_app
    from rewrap.mock.backend import Mock

    with handlers_kept():
        return create_app(
            Settings(log_level="error", store_url="sqlite://"), backend=Mock(script=script)
        )


def replaying_app(folder: Path, upstream: str, key: str, script: WatchedScript) -> Rewrap:
    """An app that answers from recordings, and records what is missing if there is an upstream."""
    from rewrap.config.settings import OPENAI_BASE, Settings
    from rewrap.main import create_app
    from rewrap.testing.mock_openai import WatchedJournal

    settings = Settings(
        log_level="error",
        store_url="sqlite://",
        openai_api_base=upstream or OPENAI_BASE,
        openai_api_key=key or "none",
        replay=str(folder),
        replay_miss="record" if upstream or key else "404",
    )
    with handlers_kept():
        app = create_app(settings)
    for backend in app.gateway.backends:
        getattr(backend, "client").keep_journal(WatchedJournal(script))  # noqa: B009
    return app


@contextmanager
def handlers_kept() -> Iterator[None]:
    """The root logger keeps the handlers that pytest gave it."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers


def marker_options(request: pytest.FixtureRequest) -> dict[str, object]:
    """The options of the test's markers; those of the test go before those of its class or module."""
    options: dict[str, object] = {}
    for marker in request.node.iter_markers(FIXTURE):
        if marker.args or not marker.kwargs.keys() <= OPTIONS:
            raise pytest.UsageError(f"the marker {FIXTURE} takes rules=... and strict=... only")
        options = marker.kwargs | options
    return options


def exempt_from_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that go through a proxy reach the mock without it."""
    if any(os.environ.get(name) for name in PROXIES):
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, LOOPBACK, prepend=",")
