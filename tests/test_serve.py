"""The start of the server: the version of uvicorn, and systems that lack what only Unix has."""

import ast
import asyncio
import importlib.metadata
import inspect
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from serving import ASKED, ROOT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState
from uvicorn.supervisors.multiprocess import Multiprocess

from rewrap.server import cycles, protocol, signals, uvicorn_internals, workers

MAIN = str(ROOT / "main.py")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def overridden(child: type, parent: type) -> set[str]:
    return {name for name in vars(child) if name in dir(parent) and not name.startswith("__")}


def attributes_of(code: ModuleType | type | Callable[..., object], *variables: str) -> set[str]:
    """The attributes of these variables that the source names, such as {"x"} for `cycle.x`."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(code))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in variables:
            found.add(node.attr)
    return found


def test_every_internal_of_uvicorn_that_the_project_uses_is_listed_in_one_place() -> None:
    protocol_class = protocol.Protocol
    used = attributes_of(protocol_class, "self") - set(vars(protocol_class))
    assert used == uvicorn_internals.PROTOCOL_ATTRIBUTES
    used = attributes_of(protocol_class, "cycle", "last", "self.cycle", "self.running")
    used |= attributes_of(cycles, "cycle", "self.cycle")
    assert used - {"add_part", "unreceived"} <= (
        uvicorn_internals.CYCLE_ATTRIBUTES | uvicorn_internals.CYCLE_METHODS
    )
    methods = overridden(cycles.Cycle, RequestResponseCycle)
    methods |= overridden(cycles.UnchunkedCycle, RequestResponseCycle)
    assert methods == uvicorn_internals.CYCLE_METHODS
    methods = overridden(protocol.Protocol, HttpToolsProtocol)
    assert methods == uvicorn_internals.PROTOCOL_METHODS
    assert overridden(workers.Supervisor, Multiprocess) == uvicorn_internals.SUPERVISOR_METHODS
    server = attributes_of(signals, "self.server")
    assert server == uvicorn_internals.SERVER_ATTRIBUTES


def test_the_installed_uvicorn_has_every_listed_internal() -> None:
    uvicorn_internals.check_version()
    config = uvicorn.Config(lambda: None, log_config=None)
    instance = HttpToolsProtocol(config, ServerState(), {}, asyncio.new_event_loop())
    instance.loop.close()
    instance.on_message_begin()  # sets `url`
    assert set(dir(instance)) >= uvicorn_internals.PROTOCOL_METHODS
    assert set(dir(instance)) >= uvicorn_internals.PROTOCOL_ATTRIBUTES
    assert set(dir(Multiprocess)) >= uvicorn_internals.SUPERVISOR_METHODS
    assert set(dir(uvicorn.Server(config))) >= uvicorn_internals.SERVER_ATTRIBUTES


def test_a_request_has_all_attributes_that_uvicorns_has() -> None:
    unused = {"body"}
    expected = attributes_of(RequestResponseCycle, "self") - set(vars(RequestResponseCycle))
    assert expected - unused == uvicorn_internals.CYCLE_ATTRIBUTES
    scope: Any = {}
    transport: Any = None
    flow: Any = None
    cycle = cycles.Cycle(scope, transport, flow, [], True, lambda: None)
    assert set(dir(cycle)) >= uvicorn_internals.CYCLE_ATTRIBUTES


def test_the_package_requires_the_version_that_the_start_checks() -> None:
    requirements = (ROOT / "pyproject.toml").read_text()
    assert f'"uvicorn>={uvicorn_internals.VERSION},' in requirements
    installed = importlib.metadata.version("uvicorn")
    assert installed.startswith(f"{uvicorn_internals.VERSION}.")


# A program that runs before main.py in the same process.
RUN = "import runpy, sys; sys.argv = [{main!r}]; runpy.run_path({main!r}, run_name='__main__')"
NEWER = "import uvicorn; uvicorn.__version__ = '0.60.1'"
# Windows has none of these, macOS has not all of them, and uvloop may be missing anywhere.
WITHOUT_UNIX = """
import asyncio, os, signal, sys
sys.modules["resource"] = sys.modules["uvloop"] = None
del signal.pthread_sigmask, signal.SIG_BLOCK, signal.SIG_UNBLOCK, signal.SIGHUP, signal.SIGUSR1
del os.fchmod, os.fork
def missing(self, *args): raise NotImplementedError
asyncio.SelectorEventLoop.add_signal_handler = missing
asyncio.SelectorEventLoop.remove_signal_handler = missing
"""


def start(before: str, tmp_path: Path) -> "subprocess.Popen[str]":
    """`python main.py` on a free port, after a program of its own."""
    program = f"{before}\n{RUN.format(main=MAIN)}"
    settings = {"PORT": "0", "STORE_URL": "sqlite://", "USE_MOCK_API": "true"}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=settings | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_another_version_of_uvicorn_stops_the_start_with_one_line(tmp_path: Path) -> None:
    process = start(NEWER, tmp_path)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 1
    assert log.count("\n") == 1
    assert "uvicorn 0.60.1 is installed, and this version needs uvicorn 0.54" in log


@pytest.mark.parametrize("before", ["", WITHOUT_UNIX], ids=["unix", "without unix"])
def test_one_process_serves_where_the_system_is_not_unix(before: str, tmp_path: Path) -> None:
    process = start(before, tmp_path)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert " on http://127.0.0.1:" in line, line + process.stderr.read()
        url = line.split(" on ")[1].split(": ")[0]
        answer = httpx.post(f"{url}/v1/chat/completions", json=ASKED, trust_env=False)
        assert answer.status_code == 200
    finally:
        process.terminate()
        _, rest = process.communicate(timeout=20)
    assert (process.returncode, "Traceback" in rest) == (0, False)


# What a configuration does not use costs it no time at the start, and no memory.
OPTIONAL = (
    "prometheus_client",
    "pymongo",
    "pytest",
    "redis",
    "rewrap.mock.formats",
    "rewrap.mock.replay",
    "rewrap.mock.schema",
    "rewrap.mock.tools",
    "rewrap.probe",
    "rewrap.pytest_plugin",
    "rewrap.server.metrics",
    "rewrap.server.workers",
    "rewrap.storage.mongo",
    "rewrap.testing",
    "rewrap.upstream.recording",
    "sqlite3",
)
BY_THEIR_REQUESTS = ("rewrap.api.responses.surface", "rewrap.api.responses.items", "html.parser")
OF_OTHER_BACKENDS = ("rewrap.mock.backend", "rewrap.mock.script", "rewrap.upstream.shapes")
LOADED = """
import sys
from rewrap.main import load_app
load_app()
import rewrap.server.serve, rewrap.server.protocol
print(*sys.modules, sep="\\n")
"""


@pytest.mark.parametrize(
    "settings",
    [
        {"USE_MOCK_API": "true"},
        {"OPENAI_API_BASE": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "sk-x"},
        {"CHAT_URL": "http://127.0.0.1:9/chat"},
    ],
    ids=["mock", "relay", "chat URL"],
)
def test_the_start_loads_no_module_of_a_feature_that_is_off(
    settings: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=tmp_path,
        env=settings | {"PYTHONPATH": str(ROOT), "STORE_URL": "sqlite://"},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = done.stdout.split()
    assert "rewrap.backends" in loaded
    optional = [*OPTIONAL, *BY_THEIR_REQUESTS]
    if "USE_MOCK_API" not in settings:
        optional += OF_OTHER_BACKENDS
    found = {name for name in loaded for unused in optional if f"{name}.".startswith(f"{unused}.")}
    assert not found


# A whole answer goes out in one write.


class Cycle(SimpleNamespace):
    """What `write_answer` needs of uvicorn's request."""

    def __init__(self, **changes: object) -> None:
        facts: dict[str, object] = {
            "response_started": False,
            "response_complete": False,
            "disconnected": False,
            "more_body": False,
            "keep_alive": True,
            "waiting_for_100_continue": True,
            "scope": {"method": "POST", "http_version": "1.1"},
            "chunked_encoding": None,
            "default_headers": [(b"date", b"now")],
            "message_event": asyncio.Event(),
            "answered": 0,
        }
        super().__init__(**facts | changes)

    def on_response(self) -> None:
        self.answered += 1


def answering(cycle: Cycle, *, write_paused: bool = False) -> tuple[protocol.Protocol, list[bytes]]:
    """A protocol with this request, and what it writes."""
    writes: list[bytes] = []
    found = protocol.Protocol.__new__(protocol.Protocol)
    found.running = cycle  # type: ignore[assignment]
    found.flow = SimpleNamespace(write_paused=write_paused)  # type: ignore[assignment]
    found.transport = SimpleNamespace(write=writes.append, write_now=writes.append)  # type: ignore[assignment]
    return found, writes


@pytest.mark.anyio
async def test_many_small_parts_of_a_body_take_no_more_memory_than_their_bytes() -> None:
    scope: Any = {}
    flow: Any = SimpleNamespace(resume_reading=lambda: None)
    cycle = cycles.Cycle(scope, SimpleNamespace(), flow, [], True, lambda: None)  # type: ignore[arg-type]
    parts = [b"%02d" % (number % 100) for number in range(30_000)]
    tracemalloc.start()
    for part in parts:
        cycle.add_part(part)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cycle.unreceived() == 60_000
    assert grown < 120_000
    assert await cycle.receive() == {
        "type": "http.request",
        "body": b"".join(parts),
        "more_body": True,
    }
    assert cycle.unreceived() == 0


def test_a_whole_answer_is_one_write() -> None:
    cycle = Cycle()
    answering_protocol, writes = answering(cycle)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    assert answering_protocol.write_answer(200, headers, b"{}")
    head = b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-type: application/json\r\ncontent-length: 2"
    assert writes == [head + b"\r\n\r\n{}"]
    assert cycle.response_started
    assert cycle.response_complete
    assert not cycle.waiting_for_100_continue
    assert cycle.message_event.is_set()
    assert cycle.answered == 1


@pytest.mark.anyio
async def test_an_answer_in_chunks_has_one_head_and_an_end() -> None:
    cycle = Cycle()
    answering_protocol, writes = answering(cycle)
    answer = answering_protocol.start_chunks(200, [(b"content-type", b"text/plain")])
    assert answer is not None
    assert cycle.response_started
    assert answer.write(b"a" * 16)
    await answer.send(b"b", more=True)
    await answer.send(b"", more=True)
    assert not cycle.response_complete
    await answer.send(b"c", more=False)
    head = b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = b"10\r\n" + b"a" * 16 + b"\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"
    assert b"".join(writes) == head + chunks
    assert cycle.response_complete
    assert cycle.answered == 1


@pytest.mark.anyio
async def test_a_connection_that_is_to_end_is_closed_after_the_last_chunk() -> None:
    cycle = Cycle()
    answering_protocol, writes = answering(cycle)
    answer = answering_protocol.start_chunks(200, [])
    assert answer is not None
    cycle.keep_alive = False  # by a refusal, or by a stop
    closed: list[bytes] = []
    cycle.transport = SimpleNamespace(close=lambda: closed.extend(writes))
    await answer.send(b"a", more=False)
    assert b"".join(closed).endswith(b"1\r\na\r\n0\r\n\r\n")
    assert cycle.answered == 1


@pytest.mark.anyio
async def test_a_client_that_left_gets_no_more_chunks() -> None:
    cycle = Cycle()
    answering_protocol, writes = answering(cycle)
    answer = answering_protocol.start_chunks(200, [])
    assert answer is not None
    writes.clear()
    cycle.disconnected = True
    assert not answer.write(b"a")
    await answer.send(b"b", more=False)
    assert not writes
    assert not cycle.answered


def test_uvicorn_sends_a_stream_of_http_1_0() -> None:
    cycle = Cycle(scope={"method": "POST", "http_version": "1.0"})
    answering_protocol, writes = answering(cycle)
    assert answering_protocol.start_chunks(200, []) is None
    assert not writes


@pytest.mark.parametrize(
    ("cycle", "header", "write_paused"),
    [
        (Cycle(response_started=True), b"x", False),
        (Cycle(disconnected=True), b"x", False),
        (Cycle(more_body=True), b"x", False),
        (Cycle(keep_alive=False), b"x", False),
        (Cycle(scope={"method": "HEAD", "http_version": "1.1"}), b"x", False),
        (Cycle(), b"a\r\nset-cookie: b", False),
        (Cycle(), b"a\nb", False),
        (Cycle(), b"a\x00b", False),
        (Cycle(), b"x", True),
    ],
    ids=["begun", "left", "body", "last", "HEAD", "CR LF", "LF", "NUL", "full"],
)
def test_uvicorn_sends_an_answer_that_needs_more_than_one_write(
    cycle: Cycle, header: bytes, write_paused: bool
) -> None:
    answering_protocol, writes = answering(cycle, write_paused=write_paused)
    assert not answering_protocol.write_answer(200, [(b"x-a", header)], b"{}")
    closing = [(b"connection", b"close"), (b"content-length", b"2")]
    assert not answering_protocol.write_answer(503, closing, b"{}")
    assert answering_protocol.start_chunks(200, [(b"x-a", header)]) is None
    assert answering_protocol.start_chunks(503, closing) is None
    assert not writes
    assert not cycle.answered
