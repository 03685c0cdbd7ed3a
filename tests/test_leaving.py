"""A client that leaves ends the upstream's work at once, wherever it was; and however many leave, the next one is served."""

import asyncio
import json
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from serving import ASKED, Process, served, started
from upstreams import FAULTS, JSON, TEXT, Handler, Upstream, chunk, hold, make, sends

from rewrap.server.protocol import Protocol

pytestmark = pytest.mark.anyio

AT_ONCE = 0.2  # seconds, on a machine that does other things, too; alone it is a few milliseconds
CHAT, ASK = "/v1/chat/completions", "/ask"
WAYS = {"chat_url": "/chat", "openai_api_base": "/v1"}
GATE = asyncio.Event  # one that is never set


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Client:
    """A request on a bare socket, whose sender may leave at any moment."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def ask(cls, url: str, path: str = CHAT, stream: bool = True, cut: int = 0) -> "Client":
        """Send a request; all of it but the last `cut` bytes."""
        host, _, port = url.removeprefix("http://").partition(":")
        client = cls(*await asyncio.open_connection(host, int(port)))
        body = json.dumps(ASKED | {"stream": stream}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        client.writer.write((head + body)[: -cut or None])
        return client

    async def read_until(self, mark: bytes) -> None:
        async with asyncio.timeout(3):
            await self.reader.readuntil(mark)

    def leave(self, rudely: bool = False) -> float:
        """Close the connection, with a reset where `rudely`; when that was."""
        if rudely:
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger
            )
            self.writer.transport.abort()
        else:
            self.writer.close()
        return asyncio.get_running_loop().time()


@asynccontextmanager
async def forwarding(
    handler: Handler, way: str, **settings: Any
) -> AsyncIterator[tuple[Upstream, str]]:
    async with Upstream(handler) as up:
        with served(**{way: up.url + WAYS[way]}, **settings) as url:
            yield up, url


async def served_again(up: Upstream, url: str) -> None:
    """The next request is served, and no connection stays open for those that left."""
    up.handler = FAULTS["good"]
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=5) as client:
        response = await client.post(url + CHAT, json=ASKED)
    assert response.json()["choices"][0]["message"]["content"] == TEXT
    await up.until(lambda: up.open <= 1)


@pytest.mark.parametrize("rudely", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("path", [CHAT, ASK])
@pytest.mark.parametrize("way", WAYS)
async def test_leaving_in_mid_stream_closes_the_upstream_at_once(
    way: str, path: str, rudely: bool
) -> None:
    async with forwarding(make("sse_openai", TEXT, gate=GATE()), way) as (up, url):
        client = await Client.ask(url, path)
        await client.read_until(TEXT[:4].encode())
        left_at = client.leave(rudely)
        assert await up.wait_closed() - left_at < AT_ONCE
        await served_again(up, url)


@pytest.mark.parametrize("rudely", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(("path", "stream"), [(CHAT, True), (CHAT, False), (ASK, True)])
@pytest.mark.parametrize("way", WAYS)
async def test_leaving_before_the_first_byte_closes_the_upstream_at_once(
    way: str, path: str, stream: bool, rudely: bool
) -> None:
    async with forwarding(FAULTS["hang"], way) as (up, url):
        client = await Client.ask(url, path, stream)
        await up.wait_requests()
        left_at = client.leave(rudely)
        assert await up.wait_closed() - left_at < AT_ONCE
        await served_again(up, url)


@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["at once", "later"])
@pytest.mark.parametrize("begun", [False, True])
async def test_leaving_with_another_request_behind_it_closes_the_upstream_at_once(
    begun: bool, pause: float
) -> None:
    handler = make("sse_openai", TEXT, gate=GATE()) if begun else FAULTS["hang"]
    async with forwarding(handler, "openai_api_base") as (up, url):
        client = await Client.ask(url)
        await asyncio.sleep(pause)
        client.writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await up.wait_requests()
        await asyncio.sleep(0.05)
        left_at = client.leave()
        assert await up.wait_closed() - left_at < AT_ONCE
        await served_again(up, url)


@pytest.mark.parametrize("handler", ["head", "half"])
@pytest.mark.parametrize("way", WAYS)
async def test_leaving_while_a_json_answer_comes_in_closes_the_upstream_at_once(
    way: str, handler: str
) -> None:
    begun = sends(
        lambda r: [*FIRST_HALF, *([chunk(b'{"choices": [{"mess')] if handler == "half" else [])],
        hold,
    )
    async with forwarding(begun, way) as (up, url):
        client = await Client.ask(url, stream=False)
        await up.wait_requests()
        await asyncio.sleep(0.05)
        left_at = client.leave()
        assert await up.wait_closed() - left_at < AT_ONCE
        await served_again(up, url)


FIRST_HALF = [
    f"HTTP/1.1 200 OK\r\ncontent-type: {JSON}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
]


@pytest.mark.parametrize("kind", ["sse_json", "sse_text", "ndjson", "plain_text"])
async def test_leaving_any_kind_of_stream_closes_the_upstream_at_once(kind: str) -> None:
    async with forwarding(make(kind, TEXT, gate=GATE()), "chat_url") as (up, url):
        client = await Client.ask(url)
        await client.read_until(TEXT[:4].encode())
        left_at = client.leave()
        assert await up.wait_closed() - left_at < AT_ONCE


@pytest.mark.parametrize("path", [CHAT, ASK])
@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_does_not_read_stops_the_upstream_and_leaving_ends_it(
    way: str, path: str
) -> None:
    sent = 0

    async def pour(request: Any, reader: Any, writer: Any) -> None:
        nonlocal sent
        event = json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 10_000}}]})
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        while True:
            writer.write(f"data: {event}\n\n".encode())
            await writer.drain()
            sent += len(event)

    async with forwarding(pour, way) as (up, url):
        client = await Client.ask(url, path)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        before = -1
        async with asyncio.timeout(5):
            while sent > before:
                before = sent
                await asyncio.sleep(0.15)
        assert 0 < sent < 30_000_000  # what sockets hold
        left_at = client.leave(rudely=True)
        assert await up.wait_closed() - left_at < AT_ONCE


async def flood(request: Any, reader: Any, writer: Any) -> None:
    event = json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 10_000}}]})
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    while True:
        writer.write(f"data: {event}\n\n".encode())
        await writer.drain()


@pytest.mark.parametrize("path", [CHAT, ASK])
async def test_who_takes_nothing_of_a_stream_for_long_has_left(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Protocol, "PATIENCE_SECONDS", 0.2)
    async with forwarding(flood, "openai_api_base") as (up, url):
        client = await Client.ask(url, path)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await up.wait_closed()
        client.leave()


async def test_who_takes_nothing_of_a_whole_answer_for_long_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Protocol, "PATIENCE_SECONDS", 0.2)
    async with forwarding(FAULTS["body_10mb"], "openai_api_base") as (_, url):
        client = await Client.ask(url, stream=False)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(1)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.reader.readexactly(10_000_000)
        client.leave()


@pytest.mark.parametrize("stream", [False, True])
async def test_who_takes_an_answer_slowly_gets_all_of_it(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Protocol, "PATIENCE_SECONDS", 0.3)
    async with forwarding(FAULTS["body_10mb"], "openai_api_base") as (_, url):
        client = await Client.ask(url, stream=stream)
        said = b""
        async with asyncio.timeout(20):
            while b'"stop"' not in said[-2000:]:
                piece = await client.reader.read(500_000)
                assert piece, "cut"
                said += piece
                await asyncio.sleep(0.02)
        assert said.count(b"x") > 9_000_000
        client.leave()


async def test_leaving_while_all_connections_are_busy_takes_no_place() -> None:
    async with forwarding(FAULTS["hang"], "chat_url", max_connections=1) as (up, url):
        first = await Client.ask(url)
        await up.wait_requests()
        crowd = [await Client.ask(url, stream=bool(n % 2)) for n in range(20)]
        await asyncio.sleep(0.05)
        for client in crowd:
            client.leave(rudely=True)
        await asyncio.sleep(0.05)
        first.leave()
        await up.wait_closed()
        await served_again(up, url)
        assert (len(up.requests), up.connections) == (2, 2)


async def test_leaving_in_the_middle_of_a_request_asks_nobody_and_logs_no_traceback() -> None:
    async with Upstream(FAULTS["good"]) as up:
        with started(CHAT_URL=f"{up.url}/chat") as process:
            for cut in (5, 30):
                for rudely in (False, True):
                    client = await Client.ask(process.url, cut=cut)
                    await asyncio.sleep(0.05)
                    client.leave(rudely)
            await asyncio.sleep(0.2)
            assert not up.requests
            await served_again(up, process.url)
            process.stop()
            assert "Traceback" not in process.log
            assert process.log.count(" 499 ") == 4


async def test_who_left_is_499_in_the_log_with_the_time_it_took() -> None:
    async with Upstream(FAULTS["hang"]) as up:
        with started(CHAT_URL=f"{up.url}/chat") as process:
            client = await Client.ask(process.url)
            await up.wait_requests()
            client.leave()
            await up.wait_closed()
            process.stop()
            (line,) = [line for line in process.log.splitlines() if " 499 " in line]
            assert f"POST {CHAT} 499" in line
            assert "Traceback" not in process.log


# ---- in masses


async def gives_up(url: str, after_s: float, rudely: bool) -> None:
    """A client that asks, reads what comes, and is gone after a while."""
    client = await Client.ask(url, stream=bool(random.getrandbits(1)))
    try:
        async with asyncio.timeout(after_s):
            await client.reader.read(-1)
    except (TimeoutError, ConnectionError):
        pass
    finally:
        client.leave(rudely)


async def settled(process: Process, most: int) -> int:
    """How many descriptors, sockets and all, the process has open once they are no more than `most`, or in a second."""
    for _ in range(20):
        if len(process.descriptors()) <= most:
            break
        await asyncio.sleep(0.05)
    return len(process.descriptors())


async def masses(way: str, waves: int, crowds: int) -> None:
    """Waves of 250 that give up after 2 to 150 ms, crowds of 300 that leave in one moment; then 30 must be served."""
    dice = random.Random(2000)
    async with Upstream(make("sse_openai", TEXT, pause_s=0.02)) as up:
        with started(**{way.upper(): up.url + WAYS[way]}) as process:
            async with httpx.AsyncClient(trust_env=False, verify=False) as client:
                await client.get(process.url)
            await asyncio.sleep(0.2)  # its own connection has ended
            before = len(process.descriptors())
            for _ in range(waves):
                delays = [dice.uniform(0.002, 0.15) for _ in range(250)]
                await asyncio.gather(*(gives_up(process.url, s, rudely=s > 0.07) for s in delays))
            for _ in range(crowds):
                seen = len(up.requests)
                crowd = await asyncio.gather(
                    *(Client.ask(process.url, stream=bool(n % 2)) for n in range(300))
                )
                await up.wait_requests(seen + 150)
                left_at = [client.leave(rudely=True) for client in crowd][-1]
                await up.until(
                    lambda seen=seen: all(r.closed_at or r.answered for r in up.requests[seen:]), 2
                )
                assert max(r.closed_at or 0 for r in up.requests) - left_at < 1.0  # all 300 of them
            await good_ones(process.url, 30)
            await up.until(lambda: up.open == 0, 8)  # the idle ones expire
            assert await settled(process, before) == before
            assert "Traceback" not in process.log
            assert process.stop() == 0


async def test_after_masses_that_left_everybody_is_served_and_nothing_stays_open() -> None:
    await asyncio.gather(masses("openai_api_base", 8, 3), masses("chat_url", 2, 1))


async def good_ones(url: str, count: int) -> None:
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=5) as client:
        asking = (client.post(url + ASK, json=ASKED) for _ in range(count))
        answers = await asyncio.gather(*asking)
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, TEXT)] * count
