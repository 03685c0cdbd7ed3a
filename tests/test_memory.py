"""The budget of memory: what does not fit is refused before it is read, and everything is given back."""

import asyncio
import ctypes
import json
import socket
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import httpx
import orjson
import pytest
from commands import Command, running
from serving import ASKED, served
from upstreams import FAULTS, JSON, Upstream, sends, whole

from rewrap import memory
from rewrap.config.settings import Settings
from rewrap.large_json import count_values
from rewrap.main import create_app
from rewrap.memory import MemoryBudget, decoded_size, default_budget, reserve, reserve_body
from rewrap.types import APIError

pytestmark = pytest.mark.anyio

T = TypeVar("T")
CHAT = "/v1/chat/completions"
MB = 2**20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# ---- the budget


def test_reservations_share_a_budget_and_give_it_back() -> None:
    budget = MemoryBudget(100)
    with budget.reservation() as first:
        first.grow(60)
        with budget.reservation():
            reserve(40)
            with pytest.raises(APIError) as refused:
                reserve(1)
            assert refused.value.status == 503
            assert dict(refused.value.headers)[b"retry-after"] == b"1"
        assert budget.used == 60
        first.release()
        assert budget.used == 0
        reserve(100)
    assert budget.used == 0


def test_a_body_that_can_never_fit_is_413() -> None:
    budget = MemoryBudget(100)
    with budget.reservation(), pytest.raises(APIError) as refused:
        reserve_body(101)
    assert refused.value.status == 413


def test_without_a_request_nothing_is_counted() -> None:
    reserve(10**18)
    reserve_body(10**18)
    assert memory.reserved() == 0


EVENTS = b"".join([b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * 30_000)] * 100)


@pytest.mark.parametrize("store", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/event-stream", EVENTS + b"data: [DONE]\n\n"),
        ("application/json", json.dumps({"reply": "x" * 3_000_000}).encode()),
    ],
    ids=["events", "json"],
)
async def test_a_reply_that_is_gathered_counts_once(
    monkeypatch: pytest.MonkeyPatch, kind: str, body: bytes, store: bool
) -> None:
    sizes: list[int] = []
    release = memory.Reservation.release

    def noted(reservation: memory.Reservation) -> None:
        sizes.append(reservation.size)
        release(reservation)

    monkeypatch.setattr(memory.Reservation, "release", noted)
    upstream = httpx.MockTransport(
        lambda request: httpx.Response(200, headers={"content-type": kind}, content=body)
    )
    app = create_app(Settings(chat_url="http://up.example/", store_url="sqlite://"), upstream)
    transport = httpx.ASGITransport(app)
    async with app.gateway.opened(), httpx.AsyncClient(transport=transport) as client:
        answer = await client.post(f"http://localhost{CHAT}", json=ASKED | {"store": store})
    assert answer.status_code == 200
    # Beside the body, what is stored is gathered twice: before it is written, and for the answer.
    assert 3_000_000 <= max(sizes) < (10_000_000 if store else 3_100_000)


async def test_tasks_count_apart() -> None:
    budget = MemoryBudget(100)

    async def use(size: int) -> int:
        with budget.reservation():
            reserve(size)
            await asyncio.sleep(0)
            return memory.reserved()

    assert await asyncio.gather(use(10), use(20)) == [10, 20]


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b",".join([b"[]"] * 100_000) + b"]",
        b"[" + b",".join([b'{"a":1000}'] * 50_000) + b"]",
        b"[" + b",".join([b"123456"] * 100_000) + b"]",
        b"[" + b",".join([b'"abcdef"'] * 100_000) + b"]",
        orjson.dumps({"text": "a" * 500_000 + "\U0001f600"}),
        orjson.dumps({"text": "日本" * 200_000}),
        b'{"text":"\\ud83d\\ude00' + b"a" * 500_000 + b'"}',
    ],
    ids=lambda body: repr(body[:20]),
)
def test_the_decoded_size_is_an_upper_bound(body: bytes) -> None:
    import tracemalloc

    tracemalloc.start()
    value = orjson.loads(body)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert value
    assert taken <= decoded_size(body, count_values(body))


def test_the_default_is_a_quarter_of_the_container_or_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = memory.machine_memory()
    assert machine > 2**28
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_FILES", (str(limit), str(tmp_path / "none")))
    assert default_budget(1) == machine // 4
    limit.write_text("max\n")
    assert default_budget(1) == machine // 4
    limit.write_text(f"{512 * MB}\n")
    assert default_budget(1) == 128 * MB
    assert default_budget(4) == 32 * MB


# ---- bodies that arrive


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


def head(length: int, *more: str) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "host: localhost", f"content-length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


async def status(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(5):
        return int((await reader.readline()).split()[1])


async def test_what_does_not_fit_is_503_before_it_is_read() -> None:
    with served(max_memory_bytes=300_000) as url:
        async with connected(url) as (reader, writer), connected(url) as (other, refused):
            writer.write(head(200_000) + b" " * 100_000)
            await asyncio.sleep(0.1)
            refused.write(head(200_000))  # not a byte of the body
            async with asyncio.timeout(5):
                answer = await other.readuntil(b"\r\n\r\n")
            assert b" 503 " in answer
            assert b"retry-after: 1" in answer
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                assert (await client.post(CHAT, json=ASKED)).status_code == 200
        await asyncio.sleep(0.3)  # the server notices that the first one has left
        async with connected(url) as (reader, writer):
            writer.write(head(200_000) + json.dumps(ASKED).encode().ljust(200_000))
            assert await status(reader) == 200


async def test_a_body_in_chunks_is_counted_as_it_comes() -> None:
    with served(max_memory_bytes=300_000, max_body_bytes=10**6) as url:
        async with connected(url) as (reader, writer):
            lines = [f"POST {CHAT} HTTP/1.1", "host: localhost", "transfer-encoding: chunked"]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            for _ in range(40):
                writer.write(b"2710\r\n" + b" " * 10_000 + b"\r\n")
            assert await status(reader) == 413
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            assert (await client.post(CHAT, json=ASKED)).status_code == 200


async def test_what_waits_for_an_upstream_is_counted_until_its_answer() -> None:
    gate = asyncio.Event()

    async def slow(request: Any, reader: Any, writer: Any) -> None:
        await gate.wait()
        await FAULTS["good"](request, reader, writer)

    async with Upstream(slow) as up:
        with served(chat_url=f"{up.url}/chat", max_memory_bytes=400_000) as url:
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                large = ASKED | {"user": "x" * 200_000}
                for stream in (False, True):
                    body = large | {"stream": stream}
                    first = asyncio.create_task(client.post(CHAT, json=body))
                    await asyncio.sleep(0.2)
                    assert (await client.post(CHAT, json=body)).status_code == 503
                    gate.set()
                    assert (await first).status_code == 200
                    assert (await client.post(CHAT, json=body)).status_code == 200
                    gate.clear()


async def test_a_long_stream_holds_no_place_for_its_request() -> None:
    gate = asyncio.Event()
    async with Upstream(lambda *args: slow_stream(gate, *args)) as up:
        with served(openai_api_base=f"{up.url}/v1", max_memory_bytes=400_000) as url:
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                body = ASKED | {"user": "x" * 200_000, "stream": True}
                async with client.stream("POST", CHAT, json=body) as first:
                    await anext(first.aiter_raw())
                    async with client.stream("POST", CHAT, json=body) as second:
                        assert (first.status_code, second.status_code) == (200, 200)
                        gate.set()


async def slow_stream(gate: asyncio.Event, request: Any, reader: Any, writer: Any) -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + event)
    await writer.drain()
    await gate.wait()
    writer.write(b"data: [DONE]\n\n")
    writer.close()


async def test_a_gathered_reply_counts() -> None:
    large = orjson.dumps({"reply": "x" * 500_000})
    async with Upstream(sends(lambda request: whole(JSON, large))) as up:
        with served(chat_url=f"{up.url}/chat", max_memory_bytes=400_000) as url:
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                answer = await client.post(CHAT, json=ASKED)
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "1"
        with served(chat_url=f"{up.url}/chat", max_memory_bytes=10**7) as url:
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                assert (await client.post(CHAT, json=ASKED)).status_code == 200


async def test_more_bodies_than_places_are_not_read() -> None:
    """Bodies in parts have MAX_CONCURRENT_REQUESTS places of their own."""
    with served(max_concurrent_requests=2) as url:
        async with connected(url) as (_, one), connected(url) as (_, two):
            for writer in (one, two):
                writer.write(head(200_000) + b" " * 100_000)
            await asyncio.sleep(0.2)
            async with connected(url) as (reader, writer):
                writer.write(head(200_000) + b" " * 100_000)
                assert await status(reader) == 503
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                assert (await client.post(CHAT, json=ASKED)).status_code == 200
        await asyncio.sleep(0.1)
        async with connected(url) as (reader, writer):
            writer.write(head(200_000) + json.dumps(ASKED).encode().ljust(200_000))
            assert await status(reader) == 200


def peak_bytes(process: Command) -> int:
    """The most memory that a process has had."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


# ---- compressed bodies


def compressed(data: bytes, bits: int) -> bytes:
    packer = zlib.compressobj(wbits=bits)
    return packer.compress(data) + packer.flush()


GZIP, ZLIB, RAW = 31, 15, -15
GOOD = json.dumps(ASKED).encode()


async def encoded(url: str, encoding: str, body: bytes) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        headers = {"content-encoding": encoding, "content-type": "application/json"}
        return await client.post(CHAT, content=body, headers=headers)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", compressed(GOOD, GZIP)),
        ("x-gzip", compressed(GOOD, GZIP)),
        ("GZip", compressed(GOOD, GZIP)),
        ("deflate", compressed(GOOD, ZLIB)),
        ("deflate", compressed(GOOD, RAW)),
        ("identity", GOOD),
        ("gzip", compressed(GOOD.ljust(10**6), GZIP)),
    ],
)
async def test_a_compressed_body_is_read(encoding: str, body: bytes) -> None:
    with served() as url:
        answer = await encoded(url, encoding, body)
        assert answer.status_code == 200, answer.text
        assert "Hello" in answer.text


@pytest.mark.parametrize(
    ("encoding", "body", "expected"),
    [
        ("br", GOOD, 415),
        ("zstd", GOOD, 415),
        ("gzip, gzip", compressed(compressed(GOOD, GZIP), GZIP), 415),
        ("gzip", GOOD, 400),
        ("gzip", compressed(GOOD, GZIP)[:-9], 400),
        ("gzip", compressed(GOOD, GZIP) + b"more", 400),
        ("gzip", compressed(GOOD, GZIP) * 2, 400),
        ("gzip", b"", 400),
        ("deflate", b"\x78\x9cbroken", 400),
        ("gzip", compressed(bytes(10**7), GZIP), 413),
        ("deflate", compressed(bytes(10**7), RAW), 413),
    ],
)
async def test_a_compressed_body_that_cannot_be_read_is_refused(
    encoding: str, body: bytes, expected: int
) -> None:
    with served(max_body_bytes=10**6) as url:
        answer = await encoded(url, encoding, body)
        assert answer.status_code == expected, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        if expected == 415:
            assert answer.headers["accept-encoding"] == "gzip, deflate"


async def test_a_bomb_in_a_request_fills_no_memory() -> None:
    bomb = compressed(bytes(300 * MB), GZIP)
    async with running(USE_MOCK_API="true") as process:
        await encoded(process.url, "gzip", compressed(GOOD, GZIP))
        before = process.memory()
        answers = await asyncio.gather(*(encoded(process.url, "gzip", bomb) for _ in range(3)))
        assert {answer.status_code for answer in answers} == {413}
        assert (
            peak_bytes(process) - before < 150 * MB
        )  # three times MAX_BODY_BYTES, and less than one bomb


# ---- many at the same time

CLIENTS = 1000
BODY_BYTES = MB


async def send_slowly(url: str, seconds: float) -> int:
    """A body of 1 MB in 20 parts; the status of its answer."""
    body = json.dumps(ASKED | {"user": "x"}).encode().ljust(BODY_BYTES)
    async with connected(url) as (reader, writer):
        writer.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, 65536
        )
        writer.write(head(len(body)))
        for start in range(0, len(body), len(body) // 20 + 1):
            writer.write(body[start : start + len(body) // 20 + 1])
            await writer.drain()
            await asyncio.sleep(seconds / 20)
        async with asyncio.timeout(120):
            return int((await reader.readline()).split()[1])


# A process of its own: the senders keep this one busy.
PINGER = """
import http.client, select, sys, time
connection = http.client.HTTPConnection(sys.argv[1], timeout=60)
longest = 0.0
while not select.select([sys.stdin], [], [], 0.01)[0]:
    started = time.monotonic()
    connection.request("GET", "/health")
    assert connection.getresponse().read()
    longest = max(longest, time.monotonic() - started)
print(longest)
"""


async def longest_wait(url: str, work: Awaitable[T]) -> tuple[float, T]:
    """The longest time that /health took while the work ran, in seconds; and its result."""
    address = url.removeprefix("http://")
    pipe = asyncio.subprocess.PIPE
    pinger = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PINGER, address, stdin=pipe, stdout=pipe
    )
    result = await work
    printed, _ = await pinger.communicate(b"end\n")
    return float(printed), result


async def test_a_thousand_slow_bodies_stay_within_the_budget_and_nobody_waits_for_them(
    told: list[str],
) -> None:
    budget = 1400 * MB
    settings = {"USE_MOCK_API": "true", "MAX_MEMORY_BYTES": str(budget)}
    async with running(**settings) as process:
        quiet, _ = await longest_wait(process.url, asyncio.sleep(1))
        sending = (send_slowly(process.url, 8.0) for _ in range(CLIENTS))
        busy, statuses = await longest_wait(process.url, asyncio.gather(*sending))
        peak = peak_bytes(process)
        told.append(
            f"{CLIENTS} slow bodies of 1 MB: /health waited {busy * 1000:.0f} ms at most"
            f" ({quiet * 1000:.0f} ms idle), {peak // MB} MB of memory at most"
        )
        assert statuses == [200] * CLIENTS
        assert peak < budget
        assert busy < 100 * quiet


# ---- the heap of the process


def trimmed(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.01) -> list[float]:
    """The times at which free memory is given back to the system."""
    times: list[float] = []
    monkeypatch.setattr(memory, "TRIM_SECONDS", seconds)
    monkeypatch.setattr(memory, "trim_heap", lambda: times.append(time.monotonic()))
    return times


async def test_free_memory_goes_back_to_the_system_after_a_large_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = trimmed(monkeypatch)
    budget = MemoryBudget(100 * MB)
    for _ in range(3):  # one timer for all of them
        with budget.reservation():
            reserve(MB)
    await asyncio.sleep(0.1)
    assert len(times) == 1
    with budget.reservation():
        reserve(1000)
    await asyncio.sleep(0.1)
    assert len(times) == 1


async def test_free_memory_is_kept_while_large_requests_are_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = trimmed(monkeypatch)
    budget = MemoryBudget(100 * MB)
    with budget.reservation():
        reserve(MB)
    with budget.reservation():
        reserve(17 * MB)
        await asyncio.sleep(0.1)
        assert not times
    await asyncio.sleep(0.1)
    assert len(times) == 1


def test_a_second_event_loop_has_a_timer_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    times = trimmed(monkeypatch)
    budget = MemoryBudget(100 * MB)

    async def use(seconds: float) -> None:
        with budget.reservation():
            reserve(MB)
        await asyncio.sleep(seconds)

    asyncio.run(use(0))
    assert not times
    asyncio.run(use(0.1))
    assert len(times) == 1


def test_the_heap_is_trimmed_by_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=calls.append))
    memory.trim_heap()
    assert calls == [0]


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_other_systems_trim_their_heap_themselves(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: object) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    memory.trim_heap()
