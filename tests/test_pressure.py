"""Nothing piles up in a real process: slow readers, long streams, large answers given out word by word, large uploads."""

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from commands import COUNTED, Command, running
from serving import ASKED
from upstreams import (
    FAULTS,
    JSON,
    PLAIN,
    SSE,
    TEXT,
    Handler,
    Request,
    Upstream,
    chunk,
    dumps,
    head,
    send,
    whole,
)

pytestmark = pytest.mark.anyio

MB = 2**20
CHAT, ASK = "/v1/chat/completions", "/ask"
TOTAL = 200 * MB
WORDS = "word " * 13_000  # 65 kB


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Pour:
    """An upstream that sends TOTAL bytes as fast as they are taken: events, or pieces of plain text."""

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, request: Request, reader: Any, writer: Any) -> None:
        if request.asked["messages"][0]["content"] == "good":
            await send(writer, whole(PLAIN, TEXT.encode()))
            return
        event = dumps(
            {"choices": [{"index": 0, "delta": {"content": WORDS}, "finish_reason": None}]}
        )
        piece = chunk(f"data: {event}\n\n".encode() if request.openai else WORDS.encode())
        writer.write(head(SSE if request.openai else PLAIN, "transfer-encoding: chunked"))
        while self.sent < TOTAL:
            writer.write(piece)
            await writer.drain()
            self.sent += len(piece)
        end = dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        await send(
            writer,
            [chunk(f"data: {end}\n\ndata: [DONE]\n\n".encode()), b"0\r\n\r\n"]
            if request.openai
            else [b"0\r\n\r\n"],
        )


def request(path: str = CHAT, what: str = "pour", **more: Any) -> bytes:
    body = json.dumps(
        ASKED | {"messages": [{"role": "user", "content": what}], "stream": True} | more
    ).encode()
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )


@asynccontextmanager
async def asking(process: Command, sent: bytes) -> AsyncIterator[Callable[[int], Any]]:
    """Send a request; what is given receives up to so many bytes, with no more buffer than the kernel's least."""
    host, port = process.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await loop.sock_connect(sock, (host, int(port)))
        await loop.sock_sendall(sock, sent)
        yield lambda size: loop.sock_recv(sock, size)


class Peak:
    """The most memory that a process has had since, in bytes more than at first."""

    def __init__(self, process: Command) -> None:
        self.process, self.first = process, process.memory()
        self.most = 0
        self.task = asyncio.create_task(self.watch())

    async def watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(0.02)

    def look(self) -> int:
        self.most = max(self.most, self.process.memory() - self.first)
        return self.most

    def stop(self) -> int:
        self.task.cancel()
        return self.look()


@asynccontextmanager
async def pressed(
    handler: Handler, way: str, **environment: str
) -> AsyncIterator[tuple[Command, Peak, Upstream]]:
    """A process that has warmed up, and the watch on its memory."""
    async with Upstream(handler) as up:
        path = "/v1" if way == "OPENAI_API_BASE" else "/chat"
        async with running(**{way: up.url + path}, **environment) as process:
            async with httpx.AsyncClient(
                base_url=process.url, trust_env=False, verify=False
            ) as client:
                for _ in range(3):
                    await client.post(
                        ASK, json=ASKED | {"messages": [{"role": "user", "content": "good"}]}
                    )
            peak = Peak(process)
            yield process, peak, up
            peak.task.cancel()


FORMS = [("OPENAI_API_BASE", CHAT), ("OPENAI_API_BASE", ASK), ("CHAT_URL", CHAT), ("CHAT_URL", ASK)]


async def read_slowly(way: str, path: str) -> None:
    pour = Pour()
    async with pressed(pour, way) as (process, peak, up):
        async with asking(process, request(path)) as receive:
            end = time.monotonic() + 3
            while time.monotonic() < end:
                assert await receive(10_000)
                await asyncio.sleep(0.1)  # 100 kB a second
        assert peak.stop() < 10 * MB, (way, path, peak.most)
        assert pour.sent < 40 * MB  # what the kernel holds for three pairs of sockets
        await up.wait_closed()


async def test_a_client_that_reads_slowly_does_not_fill_the_memory() -> None:
    await asyncio.gather(*(read_slowly(way, path) for way, path in FORMS))


@pytest.mark.parametrize(("way", "path"), FORMS)
async def test_a_long_stream_does_not_fill_the_memory(way: str, path: str) -> None:
    async with pressed(Pour(), way) as (process, peak, _):
        got, last = 0, b""
        async with asking(process, request(path)) as receive:
            while not last.endswith(b"0\r\n\r\n"):
                data = await receive(MB)
                assert data, "cut off"
                got += len(data)
                last = (last + data)[-100:]
        assert got > TOTAL - MB
        assert peak.stop() < 10 * MB, peak.most


async def test_a_large_answer_that_is_given_out_word_by_word_is_held_once_not_as_its_chunks() -> (
    None
):
    size = 20 * MB
    answer = json.dumps({"reply": "word " * (size // 5)}).encode()  # as chunks: 800 MB
    handler: Handler = lambda r, i, o: send(o, whole(JSON, answer))  # noqa: E731
    async with pressed(handler, "CHAT_URL") as (process, peak, _):
        async with asking(process, request()) as receive:
            end = time.monotonic() + 2
            while time.monotonic() < end:
                assert await receive(10_000)
                await asyncio.sleep(0.1)
            print(f"memory at most: {peak.look() / size:.1f} times the answer")
            assert peak.most < 5 * size


async def test_a_large_upload_waits_for_a_slow_upstream() -> None:
    size, taken, ended = 30 * MB, 0, asyncio.Event()

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        while not reader.at_eof() and not ended.is_set():
            taken += len(await reader.read(10_000))
            await asyncio.sleep(0.01)  # a megabyte a second
        writer.transport.abort()

    async with await asyncio.start_server(slowly, "127.0.0.1", 0) as upstream:
        url = f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}/chat"
        async with running(CHAT_URL=url) as process:
            async with httpx.AsyncClient(
                base_url=process.url, trust_env=False, verify=False
            ) as client:
                await client.get("/health")
                before = len(process.descriptors())
                peak = Peak(process)
                async with asking(process, request(what="x" * size)):
                    end, slowest = time.monotonic() + 2, 0.0
                    while time.monotonic() < end:
                        started = time.monotonic()
                        await client.get("/health")
                        slowest = max(slowest, time.monotonic() - started)
                        await asyncio.sleep(0.05)
                assert peak.stop() < 4.5 * size, (
                    peak.most / size
                )  # bytes, parts, text, and bytes to send
                assert slowest < 0.5, slowest
                assert 0 < taken < size / 2
                await asyncio.sleep(0.3)
                assert (
                    len(process.descriptors()) == before
                )  # the client has left, and the upstream is let go
        ended.set()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("way", ["mock", "CHAT_URL", "OPENAI_API_BASE"])
async def test_of_requests_that_have_ended_nothing_is_kept(way: str) -> None:
    async with Upstream(FAULTS["good"]) as up:
        settings = {"CHAT_URL": f"{up.url}/chat", "OPENAI_API_BASE": f"{up.url}/v1"}
        env = {way: settings[way]} if way in settings else {}
        async with running([sys.executable, "-c", COUNTED], **env) as process:
            async with httpx.AsyncClient(
                base_url=process.url, trust_env=False, verify=False
            ) as client:

                async def ask(times: int) -> int:
                    for number in range(times):
                        said = [
                            {"role": "user", "content": f"{number:06}" * 33_000}
                        ]  # 200 kB, each its own
                        answer = await client.post(
                            CHAT, json=ASKED | {"messages": said, "stream": number % 2 == 0}
                        )
                        assert answer.status_code == 200
                    return (await process.counts())["memory"]

                before = await ask(60)  # the mock's journal is full, and the heap has its size
                assert await ask(100) - before < 5 * MB
