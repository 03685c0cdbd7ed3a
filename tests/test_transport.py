"""The pool on real sockets, alone, on asyncio's loop and on uvloop; then behind the app, fault by fault."""

import asyncio
import gzip
import json
import random
import shutil
import socket
import ssl
import subprocess
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import uvicorn
from serving import ASKED, served
from upstreams import (
    DONE,
    EARLY,
    FAULTS,
    GOOD,
    JSON,
    LEAK,
    SSE,
    Handler,
    Request,
    Upstream,
    chunk,
    chunked,
    close,
    closed_port,
    head,
    hold,
    reset,
    sends,
    whole,
)

from rewrap.upstream import connection as connections
from rewrap.upstream.connection import BUFFER_BYTES, Connection
from rewrap.upstream.pool import RACE_SECONDS, Transport

pytestmark = pytest.mark.anyio
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@asynccontextmanager
async def pooled(**options: Any) -> AsyncIterator[Transport]:
    pool = Transport(**options)
    try:
        yield pool
    finally:
        await pool.aclose()


async def begin(pool: Transport, url: str, body: bytes = b"{}", seconds: float = 3.0) -> Connection:
    target = pool.target("POST", httpx.URL(url), {"x-test": "1"})
    return await pool.exchange(target, b"", body, asyncio.get_running_loop().time() + seconds)


async def rest(reply: Connection) -> bytes:
    parts = []
    try:
        while data := await reply.read():
            parts.append(data)
    finally:
        await reply.aclose()
    return b"".join(parts)


async def ask(
    pool: Transport, url: str, body: bytes = b"{}", seconds: float = 3.0
) -> tuple[int, bytes]:
    """A whole exchange: status and body."""
    reply = await begin(pool, url, body, seconds)
    return reply.status, await rest(reply)


def says(text: bytes, *headers: str) -> Handler:
    return sends(lambda r: whole(JSON, text, *headers))


@contextmanager
def fails(error: type[Exception], most_seconds: float = 1.0) -> Any:
    """This very kind of failure, and soon."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(error) as caught:
        yield caught
    assert type(caught.value) is error
    assert loop.time() - started < most_seconds


Server = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Server, host: str = "127.0.0.1", **options: Any) -> AsyncIterator[int]:
    """A server of bare connections; its port."""

    tasks: list[asyncio.Task[None]] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.transport.abort()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.create_task(one(reader, writer)))

    server = await asyncio.start_server(accepted, host, 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)


# ---- the pool


async def test_connections_are_used_again() -> None:
    async with Upstream(says(b"{}")) as up, pooled() as pool:
        for _ in range(5):
            assert await ask(pool, up.url) == (200, b"{}")
        assert (up.connections, len(up.requests)) == (1, 5)
        assert up.requests[0].headers["host"] == f"127.0.0.1:{up.port}"
        assert up.requests[0].headers["x-test"] == "1"


async def test_the_newest_idle_connection_is_used_first() -> None:
    async with Upstream(says(b"{}")) as up, pooled() as pool:
        replies = [await begin(pool, up.url) for _ in range(3)]
        for reply in (replies[1], replies[2], replies[0]):
            await rest(reply)
        for expected in (replies[0], replies[0]):
            reply = await begin(pool, up.url)
            assert reply is expected
            await rest(reply)
        both = [await begin(pool, up.url), await begin(pool, up.url)]
        assert both == [replies[0], replies[2]]
        for reply in both:
            await rest(reply)


async def test_idle_connections_are_closed_after_their_expiry() -> None:
    async with Upstream(says(b"{}")) as up, pooled(keepalive_expiry=0.1) as pool:
        await asyncio.gather(*(ask(pool, up.url) for _ in range(4)))
        assert (up.open, len(pool.connections)) == (4, 4)
        await up.until(lambda: up.open == 0, 0.4)
        assert not pool.connections
        assert not pool.idle
        await ask(pool, up.url)
        assert up.connections == 5


def test_idle_connections_are_kept_for_less_time_than_servers_keep_them() -> None:
    assert Transport().keepalive_expiry < uvicorn.Config("", log_config=None).timeout_keep_alive


async def test_an_expired_connection_is_not_used_even_before_it_is_swept() -> None:
    async with Upstream(says(b"{}")) as up, pooled() as pool:
        await ask(pool, up.url)
        pool.keepalive_expiry = 0.0
        await ask(pool, up.url)
        assert up.connections == 2


async def test_a_connection_that_the_server_closed_while_idle_is_not_used() -> None:
    async with Upstream(sends(lambda r: whole(JSON, b"{}"), close)) as up, pooled() as pool:
        for _ in range(3):
            await ask(pool, up.url)
            await up.until(lambda: up.open == 0)
            await asyncio.sleep(0.01)
        assert (up.connections, len(up.requests), len(pool.connections)) == (3, 3, 0)


async def test_there_are_never_more_connections_than_the_bound_and_all_get_their_turn() -> None:
    most = 0

    async def slow(request: Request, reader: Any, writer: Any) -> None:
        nonlocal most
        most = max(most, up.open)
        await asyncio.sleep(0.01)
        await says(request.body)(request, reader, writer)

    async with Upstream(slow) as up, pooled(max_connections=3) as pool:
        bodies = [b"%d" % n for n in range(30)]
        answers = await asyncio.gather(*(ask(pool, up.url, body) for body in bodies))
        assert answers == [(200, body) for body in bodies]
        assert (most, up.connections) == (3, 3)
        assert [r.body for r in up.requests][3:] == bodies[3:]  # first come, first served
        assert not pool.waiters


async def test_who_waits_too_long_for_a_place_is_told_so() -> None:
    async with (
        Upstream(FAULTS["hang"]) as up,
        pooled(max_connections=1, connect_timeout=0.1) as pool,
    ):
        first = asyncio.create_task(begin(pool, up.url))
        await up.wait_requests()
        with fails(httpx.PoolTimeout):
            await ask(pool, up.url)
        assert not pool.waiters
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        up.handler = says(b"{}")
        assert await ask(pool, up.url) == (200, b"{}")


async def test_a_full_pool_gives_an_idle_place_to_another_origin() -> None:
    async with (
        Upstream(says(b"1")) as one,
        Upstream(says(b"2")) as two,
        pooled(max_connections=2) as pool,
    ):
        await asyncio.gather(ask(pool, one.url), ask(pool, one.url))
        assert await ask(pool, two.url) == (200, b"2")
        await one.until(lambda: one.open == 1)
        assert len(pool.connections) == 2


async def test_a_waiter_that_leaves_hands_its_turn_on() -> None:
    async with Upstream(says(b"{}")) as up, pooled(max_connections=1) as pool:
        held = await begin(pool, up.url)
        waiting = [asyncio.create_task(ask(pool, up.url)) for _ in range(3)]
        await asyncio.sleep(0.01)
        await rest(held)  # the first one's turn, in the very moment in which it leaves
        waiting[0].cancel()
        assert await asyncio.gather(*waiting[1:]) == [(200, b"{}")] * 2
        assert waiting[0].cancelled()


# ---- the keep-alive race


async def test_the_keepalive_race_is_asked_once_more() -> None:
    async with Upstream(FAULTS["keepalive_race"]) as up, pooled() as pool:
        assert (await ask(pool, up.url))[0] == 200
        assert (await ask(pool, up.url))[0] == 200
        assert [r.nth for r in up.requests] == [0, 1, 0]


@pytest.mark.parametrize("then", [close, reset])
async def test_a_new_connection_that_closes_without_a_byte_is_not_asked_again(then: Any) -> None:
    async with Upstream(sends(lambda r: [], then)) as up, pooled() as pool:
        for count in (1, 2):
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await ask(pool, up.url)
            assert len(up.requests) == count


@pytest.mark.parametrize("then", [close, reset])
async def test_a_request_on_which_the_upstream_worked_is_not_sent_again(then: Any) -> None:
    async def answer(request: Request, reader: Any, writer: Any) -> None:
        if request.nth:
            await asyncio.sleep(3 * RACE_SECONDS)
            await sends(lambda r: [], then)(request, reader, writer)
        else:
            await says(b"{}")(request, reader, writer)

    async with Upstream(answer) as up, pooled() as pool:
        await ask(pool, up.url)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await ask(pool, up.url)
        assert [request.nth for request in up.requests] == [0, 1]


async def test_after_the_race_there_is_one_retry_and_no_more() -> None:
    answers = iter([whole(JSON, b"{}"), [], [], whole(JSON, b"late")])
    async with Upstream(
        lambda r, i, o: sends(
            lambda _: (part := next(answers)) and part, None if len(up.requests) == 1 else close
        )(r, i, o)
    ) as up:
        async with pooled() as pool:
            await ask(pool, up.url)
            with fails(httpx.RemoteProtocolError):
                await ask(pool, up.url)
            assert len(up.requests) == 3


async def test_of_many_connections_that_have_become_stale_one_is_tried() -> None:
    async with Upstream(FAULTS["keepalive_race"]) as up, pooled() as pool:
        assert [
            status for status, _ in await asyncio.gather(*(ask(pool, up.url) for _ in range(5)))
        ] == [200] * 5
        assert len(up.requests) == 5
        assert (await ask(pool, up.url))[0] == 200
        assert len(up.requests) == 7


@pytest.mark.parametrize(
    "beginning", [b"H", OK, OK + b"content-length: 5\r\n\r\n", OK + b"content-length: 5\r\n\r\nab"]
)
async def test_after_a_byte_of_an_answer_nothing_is_asked_again(beginning: bytes) -> None:
    async def answer(request: Request, reader: Any, writer: Any) -> None:
        if request.nth:
            await sends(lambda r: [beginning], close)(request, reader, writer)
        else:
            await says(b"{}")(request, reader, writer)

    async with Upstream(answer) as up, pooled() as pool:
        await ask(pool, up.url)
        with fails(httpx.RemoteProtocolError):
            await ask(pool, up.url)
        assert len(up.requests) == 2


async def test_a_silent_connection_is_not_asked_again() -> None:
    async def answer(request: Request, reader: Any, writer: Any) -> None:
        await (hold(writer) if request.nth else says(b"{}")(request, reader, writer))

    async with Upstream(answer) as up, pooled() as pool:
        await ask(pool, up.url)
        with fails(httpx.ReadTimeout):
            await ask(pool, up.url, seconds=0.1)
        assert len(up.requests) == 2


# ---- connecting


async def test_a_refused_connection_is_a_connect_error() -> None:
    async with pooled() as pool:
        with fails(httpx.ConnectError):
            await ask(pool, f"http://127.0.0.1:{closed_port()}/")
        assert not pool.connections


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_connect_that_takes_too_long_is_a_connect_timeout(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:  # never accepts
        url = f"{scheme}://127.0.0.1:{full.getsockname()[1]}/"
        crowd = [socket.socket() for _ in range(3 if scheme == "http" else 0)]
        for one in crowd:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        async with pooled(connect_timeout=0.2) as pool:
            with fails(httpx.ConnectTimeout):
                await ask(pool, url)
            assert not pool.connections
        for one in crowd:
            one.close()


async def test_ipv6_is_spoken() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = [
            line
            for line in (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            if line.startswith(b"host:")
        ]
        writer.write(b"".join(whole(JSON, host[0])))

    async with listening(serve, "::1") as port, pooled() as pool:
        assert await ask(pool, f"http://[::1]:{port}/") == (200, b"host: [::1]:%d" % port)


# ---- deadlines


async def test_the_head_must_come_before_the_deadline_however_it_drips() -> None:
    dripping = sends(lambda r: [bytes([byte]) for byte in OK * 9], pause_s=0.03)
    for handler in (FAULTS["hang"], dripping):
        async with Upstream(handler) as up, pooled() as pool:
            with fails(httpx.ReadTimeout, 0.5):
                await ask(pool, up.url, seconds=0.2)
            await up.until(lambda: up.open == 0, 0.2)
            assert not pool.connections


async def test_a_body_that_stalls_is_a_read_timeout() -> None:
    async with (
        Upstream(sends(lambda r: chunked(JSON, [b"some"])[:-1], hold)) as up,
        pooled() as pool,
    ):
        reply = await begin(pool, up.url)
        assert await reply.read() == b"some"
        reply.deadline = pool.loop.time() + 0.1
        with fails(httpx.ReadTimeout, 0.4):
            await reply.read()
        await reply.aclose()
        await up.wait_closed(timeout_s=0.2)


async def test_a_deadline_that_is_moved_on_is_not_reached() -> None:
    async with (
        Upstream(sends(lambda r: chunked(JSON, [b"a"] * 10), pause_s=0.03)) as up,
        pooled() as pool,
    ):
        reply = await begin(pool, up.url, seconds=0.15)
        got = b""
        while data := await reply.read():
            got += data
            reply.deadline = pool.loop.time() + 0.15
        assert got == b"a" * 10
        await reply.aclose()


async def test_a_request_that_the_server_does_not_take_is_a_write_timeout() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hold(writer)

    async with listening(serve, limit=1024) as port, pooled() as pool:
        with fails(httpx.WriteTimeout):
            await ask(pool, f"http://127.0.0.1:{port}/", b"x" * 30_000_000, seconds=0.3)
        assert not any(not c.closed for c in pool.connections)


# ---- answers


async def test_an_endless_head_is_refused() -> None:
    async with Upstream(FAULTS["endless_head"]) as up, pooled() as pool:
        with fails(httpx.RemoteProtocolError, 1.0):
            await ask(pool, up.url)


async def test_endless_early_hints_are_refused() -> None:
    async with Upstream(sends(lambda r: [EARLY * 100] * 1000)) as up, pooled() as pool:
        with fails(httpx.RemoteProtocolError, 1.0):
            await ask(pool, up.url)


CHUNKED_BODY = "transfer-encoding: chunked"
EMPTY_BLOCKS = b"\x00\x00\x00\xff\xff"  # stored, with nothing in it
GZIP = "content-encoding: gzip"
ANSWERS: dict[
    str, tuple[list[bytes], tuple[int, bytes], bool]
] = {  # the bytes, what they mean, used again
    "length": ([OK + b"content-length: 2\r\n\r\nok"], (200, b"ok"), True),
    "no body": ([OK + b"content-length: 0\r\n\r\n"], (200, b""), True),
    "204": ([b"HTTP/1.1 204 No Content\r\n\r\n"], (204, b""), True),
    "304": ([b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"], (304, b""), True),
    "chunked": (
        [OK + b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\n\r\n"],
        (200, b"ok"),
        True,
    ),
    "trailers": (
        [OK + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\nx-b: 2\r\n\r\n"],
        (200, b"ok"),
        True,
    ),
    "100": (
        [b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 2\r\n\r\nok"],
        (200, b"ok"),
        True,
    ),
    "103s": (
        [
            EARLY,
            b"HTTP/1.1 103 Early Hints\r\ncontent-length: 9\r\n\r\n",
            OK + b"content-length: 2\r\n\r\nok",
        ],
        (200, b"ok"),
        True,
    ),
    "connection: close": (
        [OK + b"connection: close\r\ncontent-length: 2\r\n\r\nok"],
        (200, b"ok"),
        False,
    ),
    "HTTP/1.0": ([b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"], (200, b"ok"), False),
    "until close": ([OK + b"content-type: a/b\r\n\r\no", b"k"], (200, b"ok"), False),
    "identity until close": (
        [OK + b"transfer-encoding: identity\r\n\r\no", b"k"],
        (200, b"ok"),
        False,
    ),
    "gzip": (
        [b"".join(whole(JSON, gzip.compress(b"ok", mtime=0), "content-encoding: gzip"))],
        (200, b"ok"),
        True,
    ),
    "deflate": (
        [b"".join(whole(JSON, zlib.compress(b"ok"), "content-encoding: deflate"))],
        (200, b"ok"),
        True,
    ),
    "two gzips": (
        [b"".join(whole(JSON, gzip.compress(b"o", mtime=0) + gzip.compress(b"k", mtime=0), GZIP))],
        (200, b"ok"),
        True,
    ),
    "gzips byte by byte": (
        [
            head(JSON, "content-length: 42", GZIP),
            *(
                bytes([byte])
                for byte in gzip.compress(b"o", mtime=0) + gzip.compress(b"k", mtime=0)
            ),
        ],
        (200, b"ok"),
        True,
    ),
    "byte by byte": (
        [bytes([byte]) for byte in OK + b"content-length: 2\r\n\r\nok"],
        (200, b"ok"),
        True,
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_every_form_of_an_answer_is_understood(name: str) -> None:
    parts, expected, again = ANSWERS[name]
    async with (
        Upstream(sends(lambda r: parts, close if name.endswith("until close") else None)) as up,
        pooled() as pool,
    ):
        for _ in range(3):
            reply = await begin(pool, up.url)
            assert b"link" not in reply.headers  # of a head before the head
            assert (reply.status, await rest(reply)) == expected
        assert up.connections == (1 if again else 3)


CHUNKED = OK + b"transfer-encoding: chunked\r\n"
BROKEN: dict[str, bytes] = {
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 7\r\n\r\nok-----",
    "length and chunks": CHUNKED + b"content-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "a list of lengths": OK + b"content-length: 2, 7\r\n\r\nok-----",
    "a negative length": OK + b"content-length: -2\r\n\r\nok",
    "cut short": OK + b"content-length: 9\r\n\r\nok",
    "a cut chunk": CHUNKED + b"\r\n9\r\nok",
    "no last chunk": CHUNKED + b"\r\n2\r\nok\r\n",
    "no size": CHUNKED + b"\r\nzz\r\nok\r\n0\r\n\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "a switch": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    "a bad header": OK + b"x y: z\r\nno colon\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_answers_are_protocol_errors(name: str) -> None:
    async with Upstream(sends(lambda r: [BROKEN[name]], close)) as up, pooled() as pool:
        with fails(httpx.RemoteProtocolError):
            await ask(pool, up.url)
        await up.until(lambda: up.open == 0, 0.2)
        up.handler = says(b"{}")
        assert await ask(pool, up.url) == (200, b"{}")


@pytest.mark.parametrize(
    "extra",
    [OK + b"content-length: 6\r\n\r\nforged", OK + b"x-a: ", b"HTT", b"garbage", b"\r\n" * 9],
)
@pytest.mark.parametrize("pause", [0, 0.02])
async def test_more_than_the_answer_is_never_the_next_answer(extra: bytes, pause: float) -> None:
    good = OK + b"content-length: 4\r\n\r\ngood"
    parts = [good, extra] if pause else [good + extra]
    async with Upstream(sends(lambda r: parts, pause_s=pause)) as up, pooled() as pool:
        for _ in range(3):
            assert await ask(pool, up.url) == (200, b"good")
            await asyncio.sleep(2 * pause)
        assert up.connections == 3 or (extra.isspace() and not pause)
        assert len(up.requests) == 3


@pytest.mark.parametrize(
    ("data", "coding"),
    [
        (gzip.compress(b"a" * 99, mtime=0)[:-9], "gzip"),
        (gzip.compress(b"a", mtime=0) + gzip.compress(b"b", mtime=0)[:-1], "gzip"),
        (gzip.compress(b"a", mtime=0) + b"\x1f", "gzip"),
        (gzip.compress(b"a", mtime=0) + b"junk", "gzip"),
        (zlib.compress(b"a") + b"junk", "deflate"),
        (b"not gzip", "gzip"),
        (b"x", "br"),
        (b"x" * 100_000, "br"),
        (b"x", "gzip, br"),
    ],
)
async def test_compression_that_is_broken_or_was_not_asked_for_is_a_decoding_error(
    data: bytes, coding: str
) -> None:
    async with Upstream(says(data, f"content-encoding: {coding}")) as up, pooled() as pool:
        with fails(httpx.DecodingError):
            reply = await begin(pool, up.url)
            assert coding in ("gzip", "deflate")  # of any other it is known by the head
            await rest(reply)
        assert all(c.closed for c in pool.connections if c not in pool.idle.get(c.origin, []))


async def test_a_gzip_bomb_comes_in_bounded_pieces() -> None:
    async with Upstream(FAULTS["gzip_bomb"]) as up, pooled() as pool:
        reply = await begin(pool, up.url, seconds=60)  # the bomb takes a while to make
        for _ in range(50):
            assert 0 < len(await reply.read()) <= BUFFER_BYTES
        assert len(reply.tail) <= 2 * BUFFER_BYTES
        await reply.aclose()
        await up.until(lambda: up.open == 0, 0.2)


async def test_a_bomb_that_is_read_slowly_is_not_gathered() -> None:
    zeros = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    first, again = (zeros.compress(bytes(2**20)) + zeros.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    bomb = first + again * 4000  # 4 MB
    async with (
        Upstream(sends(lambda r: [head(JSON, CHUNKED_BODY, GZIP), chunk(bomb)], hold)) as up,
        pooled() as pool,
    ):
        reply = await begin(pool, up.url)
        for _ in range(200):
            assert 0 < len(await reply.read()) <= BUFFER_BYTES
            await asyncio.sleep(0)
        assert len(reply.tail) + reply.buffered <= 4 * BUFFER_BYTES
        await reply.aclose()


async def test_what_follows_a_compressed_answer_is_refused_and_not_gathered() -> None:
    junk = chunk(b"junk" * 25_000)
    parts = [head(JSON, CHUNKED_BODY, GZIP), chunk(gzip.compress(b"ok", mtime=0)), *[junk] * 1000]
    async with Upstream(sends(lambda r: parts)) as up, pooled() as pool:
        reply = await begin(pool, up.url)
        assert await reply.read() == b"ok"
        with fails(httpx.DecodingError):
            await reply.read()
        await reply.aclose()
        await up.until(lambda: up.open == 0, 0.2)


@pytest.mark.parametrize("nothing", [gzip.compress(b"", mtime=0), EMPTY_BLOCKS])
async def test_compression_that_comes_to_nothing_ends_at_the_deadline(nothing: bytes) -> None:
    begins = gzip.compress(b"", mtime=0)[:10] if nothing is EMPTY_BLOCKS else b""
    piece = chunk(nothing * (60_000 // len(nothing)))

    async def pour(request: Request, reader: Any, writer: Any) -> None:
        writer.write(head(JSON, CHUNKED_BODY, GZIP) + (begins and chunk(begins)))
        while True:
            writer.write(piece)
            await writer.drain()

    async with Upstream(pour) as up, pooled() as pool:
        reply = await begin(pool, up.url)
        reply.deadline = pool.loop.time() + 0.2
        async with asyncio.timeout(5):
            with fails(httpx.ReadTimeout):
                await reply.read()
        await reply.aclose()


async def test_an_answer_comes_no_faster_than_it_is_read() -> None:
    sent = 0

    async def pour(request: Request, reader: Any, writer: Any) -> None:
        nonlocal sent
        writer.write(head(JSON, "content-length: 100000000"))
        for _ in range(1000):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    async with Upstream(pour) as up, pooled() as pool:
        reply = await begin(pool, up.url)
        await asyncio.sleep(0.2)
        assert reply.buffered < 4 * BUFFER_BYTES
        assert sent < 20_000_000  # what the sockets of two ends hold
        assert len(await rest(reply)) == 100_000_000
        assert await ask(pool, up.url) == (200, b"x" * 100_000_000)
        assert up.connections == 1


# ---- requests


async def test_a_large_request_goes_no_faster_than_it_is_taken() -> None:
    gate = asyncio.Event()
    body = bytes(range(256)) * 100_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await gate.wait()
        same = await reader.readexactly(len(body)) == body
        writer.write(b"".join(whole(JSON, b"%d" % same)))
        await writer.drain()
        await reader.read()

    async with listening(serve) as port, pooled() as pool:
        asking = asyncio.create_task(ask(pool, f"http://127.0.0.1:{port}/", body))
        await asyncio.sleep(0.1)
        (connection,) = pool.connections
        assert connection.transport.get_write_buffer_size() < 1_000_000
        gate.set()
        assert await asking == (200, b"1")
        assert pool.idle[connection.origin] == [connection]


async def test_an_early_answer_ends_a_large_request() -> None:
    taken = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"".join(whole(JSON, b"too large", status=413)))
        while data := await reader.read(100_000):
            taken += len(data)
            await asyncio.sleep(0.001)

    async with listening(serve, limit=100_000) as port, pooled() as pool:
        assert await ask(pool, f"http://127.0.0.1:{port}/", b"x" * 50_000_000) == (
            413,
            b"too large",
        )
        await asyncio.sleep(0.05)
        assert not pool.connections  # half a request was sent on it
    assert taken < 40_000_000


async def test_an_early_answer_is_not_waited_for_where_the_server_takes_no_more() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(b"".join(whole(JSON, b"too large", status=413)))
        await asyncio.sleep(5)

    async with listening(serve, limit=1000) as port, pooled() as pool:
        async with asyncio.timeout(1):
            assert await ask(pool, f"http://127.0.0.1:{port}/", b"x" * 50_000_000) == (
                413,
                b"too large",
            )


async def test_a_connection_that_was_held_back_is_not_used_again() -> None:
    size = BUFFER_BYTES + 10_000
    async with Upstream(says(b"x" * size)) as up, pooled() as pool:
        reply = await begin(pool, up.url)
        async with asyncio.timeout(3):
            while not reply.complete:  # more of it has come than is taken before somebody reads
                if reply.paused:
                    reply.transport.resume_reading()
                await asyncio.sleep(0.01)
        reply.paused = True
        reply.transport.pause_reading()
        await reply.aclose()
        up.handler = says(b"good")
        assert await ask(pool, up.url) == (200, b"good")


@pytest.mark.parametrize("pause", [0, 0.003])
async def test_an_early_answer_counts_although_the_server_closes_at_once(
    pause: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel resets the connection, as not all of the request was read: a write may hear of it before any read."""

    def refuse(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                one, _ = server.accept()
                with one:
                    one.recv(65536)
                    one.sendall(b"".join(whole(JSON, b"too large", status=413)))

    async def others() -> None:
        while True:
            time.sleep(pause)  # noqa: ASYNC251  # the loop is busy: answer and reset come before it looks
            await asyncio.sleep(0)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=refuse, args=[server], daemon=True)
        thread.start()
        busy = asyncio.create_task(others())
        async with pooled() as pool:
            for _ in range(50):
                answer = await ask(
                    pool, f"http://127.0.0.1:{server.getsockname()[1]}/", b"x" * 5_000_000
                )
                assert answer == (413, b"too large")
        busy.cancel()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert not caplog.records  # asyncio warns of writes to what is closed


async def test_a_header_with_a_line_break_is_not_sent() -> None:
    with pytest.raises(httpx.LocalProtocolError):
        Transport().target("POST", httpx.URL("http://h/"), {"x": "a\r\nx-injected: 1"})


# ---- cancellation


async def test_a_cancelled_request_closes_its_connection_at_once() -> None:
    async with Upstream(FAULTS["hang"]) as up, pooled() as pool:
        for _ in range(3):
            asking = asyncio.create_task(ask(pool, up.url))
            await up.wait_requests(len(up.requests) + 1)
            cancelled_at = pool.loop.time()
            asking.cancel()
            assert await up.wait_closed(up.requests[-1]) - cancelled_at < 0.1
            assert asking.cancelled()
        assert not pool.connections


async def test_an_answer_that_is_closed_before_its_end_closes_its_connection_at_once() -> None:
    async with Upstream(FAULTS["endless"]) as up, pooled() as pool:
        reply = await begin(pool, up.url, b'{"stream": true}')
        await reply.read()
        closed_at = pool.loop.time()
        await reply.aclose()
        assert await up.wait_closed() - closed_at < 0.1
        assert not pool.connections


async def test_requests_cancelled_at_any_moment_never_poison_the_pool() -> None:
    dice = random.Random(7)

    async def slow(request: Request, reader: Any, writer: Any) -> None:
        await asyncio.sleep(dice.random() * 0.01)
        await says(request.body)(request, reader, writer)

    async def impatient(n: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(dice.random() * 0.03):
                assert await ask(pool, up.url, b"%d" % n) == (200, b"%d" % n)

    async with Upstream(slow) as up, pooled(max_connections=20) as pool:
        for _ in range(5):
            await asyncio.gather(*(impatient(n) for n in range(100)))
            assert len(pool.connections) <= 20
        answers = await asyncio.gather(*(ask(pool, up.url, b"%d" % n) for n in range(60)))
        assert answers == [(200, b"%d" % n) for n in range(60)]
        await up.until(lambda: up.open == len(pool.connections) <= 20)
        assert not pool.waiters
        assert sorted(map(id, pool.connections)) == sorted(
            id(c) for idle in pool.idle.values() for c in idle
        )


# ---- the end of an answer that nobody reads

TWO_ENDS = [head(SSE, "transfer-encoding: chunked") + chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n"]


async def test_the_unread_end_of_an_answer_may_come_late_and_its_connection_is_used_again() -> None:
    async with Upstream(sends(lambda r: TWO_ENDS, pause_s=0.02)) as up, pooled() as pool:
        for _ in range(3):
            reply = await begin(pool, up.url)
            assert await reply.read() == b"data: [DONE]\n\n"
            reply.linger()
            await reply.aclose()
            await asyncio.sleep(0.05)
        assert up.connections == 1


async def test_a_connection_is_given_back_once_even_if_its_end_comes_between_linger_and_close() -> (
    None
):
    async with Upstream(sends(lambda r: TWO_ENDS, pause_s=0.02)) as up, pooled() as pool:
        reply = await begin(pool, up.url)
        await reply.read()
        reply.linger()
        await asyncio.sleep(
            0.05
        )  # a client that reads slowly: the answer's end comes before its reader's
        other = await begin(pool, up.url)
        assert other is not reply
        await reply.aclose()
        await reply.aclose()
        assert pool.idle[reply.origin] == [reply]
        assert await rest(other) == b"data: [DONE]\n\n"
        assert {id(await begin(pool, up.url)) for _ in range(3)} >= {id(reply), id(other)}


async def test_an_answer_that_does_not_end_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.1)
    async with Upstream(sends(lambda r: TWO_ENDS[:1], hold)) as up, pooled() as pool:
        reply = await begin(pool, up.url)
        await reply.read()
        reply.linger()
        await reply.aclose()
        await up.until(lambda: up.open == 0, 0.4)
        assert not pool.connections


async def test_an_unread_rest_of_which_the_end_comes_in_the_same_read_does_not_stop_the_next_answer() -> (
    None
):
    """The end gives the connection back before its last bytes are counted."""
    most = connections.BUFFER_BYTES - 100
    first = [TWO_ENDS[0], chunk(b"x" * most), chunk(b"x" * 1_000) + b"0\r\n\r\n"]
    answers = iter([first, [TWO_ENDS[0] + TWO_ENDS[1]]])
    async with (
        Upstream(sends(lambda r: next(answers), pause_s=0.05)) as up,
        pooled() as pool,
    ):
        reply = await begin(pool, up.url)
        assert await reply.read() == b"data: [DONE]\n\n"
        reply.linger()
        await reply.aclose()
        await asyncio.sleep(0.3)
        for idle in pool.idle.values():
            assert not any(connection.paused or connection.chunks for connection in idle)
        assert await rest(await begin(pool, up.url)) == b"data: [DONE]\n\n"


async def test_an_unread_flood_is_cut_off() -> None:
    flood = sends(lambda r: [TWO_ENDS[0], *[chunk(b"x" * 10_000)] * 10_000])
    async with Upstream(flood) as up, pooled() as pool:
        reply = await begin(pool, up.url)
        await reply.read()
        reply.linger()
        await reply.aclose()
        await up.until(lambda: up.open == 0, 0.5)


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for "localhost" that vouches for itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command.split(), *files], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


@asynccontextmanager
async def secure(certificate: tuple[Path, Path], serve: Server) -> AsyncIterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    async with listening(serve, ssl=context) as port:
        yield port


async def echo(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heads: Any = None
) -> None:
    while True:
        asked = (await reader.readuntil(b"\r\n\r\n")).lower()
        if heads is not None:
            heads.append(asked)
        body = await reader.readexactly(
            int(asked.partition(b"content-length: ")[2].split(b"\r\n")[0])
        )
        writer.write(b"".join(whole(JSON, body)))
        await writer.drain()


@pytest.fixture
def trusted(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))


@pytest.mark.usefixtures("trusted")
async def test_https_is_spoken_and_its_connections_are_used_again(
    certificate: tuple[Path, Path],
) -> None:
    accepted = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        await echo(reader, writer)

    async with secure(certificate, counted) as port, pooled() as pool:
        for body in (b"{}", b"x" * 3_000_000, b"{}"):
            assert await ask(pool, f"https://localhost:{port}/", body) == (200, body)
        assert accepted == 1


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    async with secure(certificate, echo) as port, pooled() as pool:
        with fails(httpx.ConnectError):
            await ask(pool, f"https://localhost:{port}/")
        assert not pool.connections


@pytest.mark.usefixtures("trusted")
async def test_a_certificate_for_another_name_is_refused(certificate: tuple[Path, Path]) -> None:
    async with secure(certificate, echo) as port, pooled() as pool:
        with fails(httpx.ConnectError):
            await ask(pool, f"https://127.0.0.1:{port}/")


async def test_plain_http_at_a_tls_port_and_tls_at_a_plain_one_are_errors(
    certificate: tuple[Path, Path],
) -> None:
    async with secure(certificate, echo) as port, Upstream(says(b"{}")) as up, pooled() as pool:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await ask(pool, f"http://localhost:{port}/")
        up.handler = sends(lambda r: [])
        pool.connect_timeout = 0.2
        with pytest.raises((httpx.ConnectError, httpx.ConnectTimeout)):
            await ask(pool, f"https://127.0.0.1:{up.port}/")


@pytest.mark.usefixtures("trusted")
async def test_a_cancelled_request_closes_a_tls_connection_at_once(
    certificate: tuple[Path, Path],
) -> None:
    ended = asyncio.Event()
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        with suppress(ConnectionError, ssl.SSLError):
            await reader.read()
        ended.set()

    async with secure(certificate, silent) as port, pooled() as pool:
        asking = asyncio.create_task(ask(pool, f"https://localhost:{port}/"))
        async with asyncio.timeout(2):
            await asked.wait()
        asking.cancel()
        async with asyncio.timeout(0.2):
            await ended.wait()
        await asyncio.gather(asking, return_exceptions=True)
        assert not pool.connections


# ---- by way of a proxy


class Proxy:
    """An HTTP proxy: tunnels for CONNECT, other requests sent on with their path alone. `seen`: the heads that came.

    `says` is the answer to CONNECT, if it is not to be a tunnel.
    """

    def __init__(self, says: bytes | None = None, then: Any = None) -> None:
        self.says, self.then, self.seen = says, then, list[str]()
        self.accepted = self.open = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        try:
            await self.serve(reader, writer)
        finally:
            self.open -= 1

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await self.head(reader)
        method, where, _ = head.split(" ", 2)
        if self.says is not None:
            writer.write(self.says)
            if self.then is not None:
                await self.then(writer)
            await reader.read()  # until the client leaves
            return
        url = httpx.URL(f"https://{where}" if method == "CONNECT" else where)
        there, to = await asyncio.open_connection(url.host, url.port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\nvia: 1.1 here\r\n\r\n")
            ways = [self.pour(reader, to), self.pour(there, writer)]
        else:
            ways = [self.forward(head, reader, to), self.pour(there, writer)]
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            to.transport.abort()

    async def head(self, reader: asyncio.StreamReader) -> str:
        self.seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
        return self.seen[-1]

    async def forward(
        self, head: str, reader: asyncio.StreamReader, to: asyncio.StreamWriter
    ) -> None:
        while True:
            first, *lines = head.split("\r\n")
            method, url, version = first.split(" ")
            lines = [line for line in lines if not line.startswith("proxy-")]
            to.write(
                "\r\n".join(
                    [f"{method} {httpx.URL(url).raw_path.decode()} {version}", *lines]
                ).encode()
            )
            to.write(
                await reader.readexactly(
                    int(head.partition("content-length: ")[2].split("\r\n")[0])
                )
            )
            head = await self.head(reader)

    async def pour(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def proxied(
    proxy: Proxy, user: str = "", tls: Any = None, **options: Any
) -> AsyncIterator[Transport]:
    """A pool whose way is by the proxy; `tls`: its certificate, where TLS is spoken to it, too."""
    async with secure(tls, proxy) if tls else listening(proxy) as port:
        async with pooled(
            proxy=f"{'https' if tls else 'http'}://{user}localhost:{port}", **options
        ) as pool:
            yield pool


BY_TLS = pytest.mark.parametrize("tls", [False, True], ids=["http proxy", "https proxy"])
USER, BASIC = "me:p%40ssw0rd@", "proxy-authorization: Basic bWU6cEBzc3cwcmQ="


@pytest.mark.usefixtures("trusted")
@BY_TLS
@pytest.mark.parametrize("user", ["", USER])
async def test_http_goes_to_the_proxy_as_whole_urls_and_its_connections_are_used_again(
    certificate: tuple[Path, Path], user: str, tls: bool
) -> None:
    proxy = Proxy()
    async with Upstream(lambda r, i, o: says(r.body)(r, i, o)) as up:
        async with proxied(proxy, user, tls and certificate) as pool:
            for body in (b"{}", b"x" * 3_000_000, b"{}"):
                assert await ask(pool, f"{up.url}/a%20b?c=d", body) == (200, body)
        assert (proxy.accepted, up.connections) == (1, 1)
        assert [(r.path, r.headers["host"]) for r in up.requests] == [
            ("/a%20b?c=d", f"127.0.0.1:{up.port}")
        ] * 3
        for head in proxy.seen:
            assert head.startswith(
                f"POST {up.url}/a%20b?c=d HTTP/1.1\r\nhost: 127.0.0.1:{up.port}\r\n"
            )
            assert (BASIC in head) == bool(user)


@pytest.mark.usefixtures("trusted")
@BY_TLS
@pytest.mark.parametrize("user", ["", USER])
async def test_https_goes_through_a_tunnel_that_is_used_again(
    certificate: tuple[Path, Path], user: str, tls: bool
) -> None:
    proxy, inside = Proxy(), list[bytes]()
    async with (
        secure(certificate, partial(echo, heads=inside)) as to,
        proxied(proxy, user, tls and certificate) as pool,
    ):
        for body in (b"{}", b"x" * 3_000_000, b"{}"):
            assert await ask(pool, f"https://localhost:{to}/a?b=c", body) == (200, body)
    secret = f"{BASIC}\r\n" if user else ""
    assert proxy.seen == [
        f"CONNECT localhost:{to} HTTP/1.1\r\nhost: localhost:{to}\r\n{secret}\r\n"
    ]
    assert len(inside) == 3
    for asked in inside:
        assert asked.startswith(b"post /a?b=c http/1.1\r\nhost: localhost:%d\r\n" % to)
        assert b"proxy" not in asked


async def test_an_ipv6_address_stands_in_brackets_for_the_proxy() -> None:
    proxy = Proxy(b"".join(whole(JSON, b"", status=502)))
    async with proxied(proxy) as pool:
        with fails(httpx.ConnectError):
            await ask(pool, "https://[::1]/")
        assert proxy.seen == ["CONNECT [::1]:443 HTTP/1.1\r\nhost: [::1]:443\r\n\r\n"]


NO_TUNNEL: dict[str, tuple[bytes, Any]] = {
    "407": (b"".join(whole(JSON, b"who?", "proxy-authenticate: Basic", status=407)), None),
    "502": (b"".join(whole(JSON, b"gone", "connection: close", status=502)), close),
    "a redirect": (b"".join(whole(JSON, b"", "location: /", status=302)), None),
    "garbage": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", None),
    "an endless head": (OK + b"x-a: b\r\n" * 10_000, None),
    "a switch": (BROKEN["a switch"], None),
    "more than the head": (OK + b"\r\nmore", None),
    "a body": (OK + b"content-length: 4\r\n\r\nmore", None),
    "the end": (b"", close),
    "a reset": (b"", reset),
    "half a head": (OK, close),
    "a head and the end": (OK + b"\r\n", close),
    "a head and a reset": (OK + b"\r\n", reset),
}


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("name", NO_TUNNEL)
async def test_a_proxy_that_makes_no_tunnel_is_a_connect_error(
    certificate: tuple[Path, Path], name: str
) -> None:
    proxy = Proxy(*NO_TUNNEL[name])
    async with secure(certificate, echo) as to, proxied(proxy, USER) as pool:
        with fails(httpx.ConnectError) as caught:
            await ask(pool, f"https://localhost:{to}/")
        exc: BaseException | None = caught.value
        while exc:
            assert "ssw0rd" not in repr(exc)
            exc = exc.__cause__ or exc.__context__
        assert not pool.connections
        assert proxy.accepted == 1
        proxy.says = None
        assert await ask(pool, f"https://localhost:{to}/") == (200, b"{}")


@pytest.mark.parametrize("said", [b"", OK, OK + b"\r\n", OK + b"content-length: 0\r\n\r\n"])
async def test_a_proxy_that_says_nothing_more_is_a_connect_timeout(said: bytes) -> None:
    proxy = Proxy(said)
    async with proxied(proxy, connect_timeout=0.2) as pool:
        with fails(httpx.ConnectTimeout):
            await ask(pool, "https://localhost/")
        assert not pool.connections
        await asyncio.sleep(0.05)
        assert not proxy.open


async def test_a_proxy_that_is_not_there_is_a_connect_error() -> None:
    async with pooled(proxy=f"http://127.0.0.1:{closed_port()}") as pool:
        for scheme in ("http", "https"):
            with fails(httpx.ConnectError):
                await ask(pool, f"{scheme}://localhost/")


@pytest.mark.usefixtures("trusted")
@BY_TLS
async def test_a_tunnel_does_not_vouch_for_a_name(
    certificate: tuple[Path, Path], tls: bool
) -> None:
    loop = asyncio.get_running_loop()
    told = loop.get_exception_handler()
    async with secure(certificate, echo) as to, proxied(Proxy(), "", tls and certificate) as pool:
        loop.set_exception_handler(
            lambda *_: None
        )  # asyncio of 3.11 stumbles over TLS within TLS that fails
        with fails(httpx.ConnectError):
            await ask(pool, f"https://127.0.0.1:{to}/")
        assert not pool.connections
    loop.set_exception_handler(told)


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("then", [close, reset])
@pytest.mark.parametrize("asked", [False, True])
@BY_TLS
async def test_an_end_behind_tls_is_noticed_at_once(
    certificate: tuple[Path, Path], asked: bool, then: Any, tls: bool
) -> None:
    async def ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asked:
            await reader.readuntil(b"\r\n\r\n")
        await then(writer)

    async with listening(ends) as plain, secure(certificate, ends) as to:
        async with pooled() as straight, proxied(Proxy(), "", tls and certificate) as pool:
            for _ in range(5):
                for way, url in (
                    (straight, f"https://localhost:{to}/"),
                    (pool, f"https://localhost:{to}/"),
                    (pool, f"http://localhost:{plain}/"),
                ):
                    with pytest.raises(
                        (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError)
                    ):
                        await ask(way, url)
            assert not pool.connections


@pytest.mark.usefixtures("trusted")
@BY_TLS
async def test_tunnels_cancelled_at_any_moment_never_poison_the_pool(
    certificate: tuple[Path, Path], tls: bool
) -> None:
    dice, proxy = random.Random(7), Proxy()

    async def impatient(n: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(dice.random() * 0.2):
                assert await ask(pool, url, b"%d" % n) == (200, b"%d" % n)

    async with (
        secure(certificate, echo) as to,
        proxied(proxy, "", tls and certificate, max_connections=20) as pool,
    ):
        url = f"https://localhost:{to}/"
        for _ in range(4):
            await asyncio.gather(*(impatient(n) for n in range(100)))
            assert len(pool.connections) <= 20
        answers = await asyncio.gather(*(ask(pool, url, b"%d" % n) for n in range(60)))
        assert answers == [(200, b"%d" % n) for n in range(60)]
        await asyncio.sleep(0.05)
        assert proxy.open == len(pool.connections) <= 20
        assert not pool.waiters


# ---- fault by fault, behind the app

LIMITS: dict[str, Any] = {
    "first_byte_timeout_seconds": 2.0,
    "stall_timeout_seconds": 0.4,
    "total_timeout_seconds": 2.5,
    "max_reply_bytes": 20_000_000,
    "max_event_bytes": 1_000_000,
}
SILENT = ("hang", "drip", "drip_json", "slow_head")
# A stream may go on as long as its upstream sends anything. The client of such a one leaves.
ALIVE = ("blanks", "drip", "drip_json", "drip_mid", "pings_only")
LEAVE_SECONDS = 1.5


def check_error(error: dict[str, Any]) -> None:
    """OpenAI's members; an upstream's own error may have fewer or others."""
    assert set(error) & {"message", "type", "param", "code"}


def text_of(response: httpx.Response, stream: bool) -> str | None:
    """The reply; None for a failure, which must look like one."""
    assert LEAK not in str(response.headers)
    private = {"set-cookie", "x-internal", "x-injected", "keep-alive", "www-authenticate"}
    assert not private & set(response.headers)
    if response.status_code != 200:
        assert response.status_code in (400, 403, 404, 413, 422, 429, 502, 503, 504)
        check_error(response.json()["error"])
        return None
    if not stream:
        return str(response.json()["choices"][0]["message"]["content"])
    body = response.text.replace("\r\n", "\n").replace("\r", "\n")
    assert body.endswith("\n\n")
    lines = (
        [line[5:].strip() for line in event.split("\n") if line.startswith("data:")]
        for event in body.split("\n\n")
    )
    *datas, last = ["\n".join(data) for data in lines if data]
    if last != DONE:
        check_error(json.loads(last)["error"])
        return None
    choices = [choice for data in datas for choice in json.loads(data)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("anyio_backend", ["uvloop"], indirect=True)
@pytest.mark.parametrize(
    "name", sorted(set(FAULTS) - {"endless", "deep_json"})
)  # no end; deeper than a JSON parser reads
async def test_no_fault_hangs_or_leaks_or_spoils_the_next_request(name: str) -> None:
    limits = LIMITS | (
        {"first_byte_timeout_seconds": 0.4, "total_timeout_seconds": 0.4} if name in SILENT else {}
    )

    async def answer(url: str, stream: bool) -> str | None:
        leaves = stream and name in ALIVE
        body = ASKED | {"stream": stream}
        try:
            async with asyncio.timeout(LEAVE_SECONDS if leaves else None):
                response = await client.post(f"{url}/v1/chat/completions", json=body)
        except TimeoutError:
            return None
        return text_of(response, stream)

    async def sweep() -> list[str | None]:
        ways = [(url, stream) for url in (one, two) for stream in (False, True)]
        return await asyncio.gather(*(answer(*way) for way in ways))

    async with Upstream(FAULTS[name]) as up:
        with (
            served(chat_url=f"{up.url}/chat", **limits) as one,
            served(openai_api_base=f"{up.url}/v1", **limits) as two,
        ):
            async with httpx.AsyncClient(trust_env=False, verify=False, timeout=8) as client:
                for _ in range(2 if name == "keepalive_race" else 1):
                    texts = await sweep()
                if name in GOOD:
                    # Only HTTP ends a JSON answer.
                    whole = None if name == "done_then_open" else GOOD[name]
                    assert texts == [GOOD[name], GOOD[name], whole, GOOD[name]]
                up.handler = FAULTS["good"]
                assert await sweep() == [GOOD["good"]] * 4
        await up.until(lambda: up.open == 0)


# ---- event loops


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # what the first loop has left open
@pytest.mark.usefixtures("collected")
def test_each_event_loop_has_connections_of_its_own_and_the_pool_closes_and_opens_again() -> None:
    pool = Transport(max_connections=1, keepalive_expiry=0.05)

    async def twice() -> None:
        async with Upstream(says(b"{}")) as up:
            for _ in range(2):
                assert await ask(pool, up.url) == (200, b"{}")
            assert up.connections == 1

    async def swept() -> None:
        async with Upstream(says(b"{}")) as up:
            assert await ask(pool, up.url) == (200, b"{}")
            await pool.aclose()
            assert await ask(pool, up.url) == (200, b"{}")
            async with asyncio.timeout(3):
                while pool.connections:
                    await asyncio.sleep(0.01)

    for run in (twice, twice, swept, swept):
        asyncio.run(run())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.usefixtures("collected")
async def test_a_connection_that_ends_when_another_event_loop_has_the_pool_is_not_kept() -> None:
    async with Upstream(says(b"{}")) as up, pooled() as pool:
        reply = await begin(pool, up.url)
        with served() as url:
            await asyncio.to_thread(asyncio.run, ask(pool, f"{url}/v1/models"))
        assert await rest(reply) == b"{}"
        assert reply.closed
        assert await ask(pool, up.url) == (200, b"{}")
