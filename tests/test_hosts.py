"""Before a request is one: foreign Hosts, upgrades, what is no HTTP, what is too large or never ends. On bare sockets."""

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from commands import running
from serving import ASKED, served, started
from upstreams import FAULTS, TEXT, Upstream, make

from rewrap.server.protocol import HEAD_BYTES, Protocol

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
BODY = json.dumps(ASKED).encode()
AT_ONCE = 1.0  # seconds


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Answer:
    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.decode().split("\r\n")
        self.status, self.body = int(first.split()[1]), body
        self.headers = {
            line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines if line
        }

    def error(self) -> dict[str, Any]:
        """Its envelope."""
        assert self.headers["content-type"] == "application/json"
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error, dict)
        return error


class Wire:
    """A connection to the server, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self, sent: bytes = b"") -> Answer:
        """Send these bytes; the next answer, soon."""
        self.writer.write(sent)
        async with asyncio.timeout(AT_ONCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
            answer = Answer(head, b"")
            answer.body = await self.reader.readexactly(int(answer.headers["content-length"]))
        return answer


@asynccontextmanager
async def wire(url: str) -> AsyncIterator[Wire]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", *headers, "", ""]).encode()


def post(*headers: str, body: bytes = BODY, host: str = "localhost", path: str = CHAT) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        f"host: {host}",
        f"content-length: {len(body)}",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


# ---- Hosts

OURS = [
    "host.docker.internal:8000",
    "host.containers.internal",
    "app.localhost",
    "127.0.0.1",
    "127.0.0.1:8000",
    "localhost",
    "LocalHost:1",
    "[::1]",
    "[::1]:8000",
    "localhost:",
]
FOREIGN = [
    "docker.internal.evil.example",
    "evil.internal",
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil.example#localhost",
]
FOREIGN += [
    "localhost@evil.example",
    "evil.example:80:127.0.0.1",
    "",
    "0.0.0.0",
    "[::2]",
    "127.0.0.1, evil.example",
]


async def test_a_loopback_refuses_foreign_hosts() -> None:
    with served() as url:
        async with wire(url) as way:
            for host in OURS:
                assert (await way.answer(post(host=host))).status == 200, host
            for host in FOREIGN:
                for sent in (
                    post(host=host),
                    get("/v1/models", f"host: {host}"),
                    get("/docs", f"host: {host}"),
                ):
                    refused = await way.answer(sent)
                    assert refused.status == 403, host
                    refused.error()
            refused = await way.answer(
                get("/v1/models", "x-forwarded-host: localhost", "host: evil.example")
            )
            assert refused.status == 403
            assert (
                await way.answer(get("/health", "host: evil.example"))
            ).status == 200  # load balancers ask so


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no socket takes IPv4 and IPv6 here")
async def test_all_addresses_of_ipv6_are_those_of_ipv4_too() -> None:
    async with running(HOST="::") as process:
        port = int(re.findall(r" on http://\[::\]:(\d+)", process.log)[0])
        for host in ("127.0.0.1", "[::1]"):
            async with wire(f"http://{host}:{port}") as way:
                assert (await way.answer(post())).status == 200
                assert (await way.answer(post(host="evil.example"))).status == 403


async def test_of_two_hosts_none_that_is_foreign_gets_by() -> None:
    with served() as url:
        for hosts in (["localhost", "evil.example"], ["evil.example", "localhost"]):
            async with wire(url) as way:
                answer = await way.answer(get("/v1/models", *(f"host: {host}" for host in hosts)))
                assert answer.status in (400, 403), hosts
        async with wire(url) as way:
            way.writer.write(b"GET /v1/models HTTP/1.0\r\n\r\n")
            assert (await way.answer()).status == 403  # none at all


async def test_an_absolute_uri_decides_nothing() -> None:
    with served() as url:
        async with wire(url) as way:
            assert (
                await way.answer(get("http://localhost/v1/models", "host: evil.example"))
            ).status == 403
            assert (
                await way.answer(get("http://evil.example/v1/models", "host: localhost"))
            ).status == 200


async def test_allowed_hosts_are_served_and_no_others() -> None:
    with served(allowed_hosts=("chat.example",)) as url:
        async with wire(url) as way:
            for host in ("chat.example", "chat.example:443", "CHAT.example", "localhost"):
                assert (await way.answer(post(host=host))).status == 200, host
            for host in ("evil.example", "chat.example.evil.example", "www.chat.example"):
                assert (await way.answer(post(host=host))).status == 403, host
    with served(allowed_hosts=("*",)) as url:
        async with wire(url) as way:
            assert (await way.answer(post(host="anything.example"))).status == 200


async def test_allowed_hosts_may_be_written_as_they_are_in_a_url() -> None:
    names = ("Chat.Example", "api.example:8000", "fd00::1", "[fd00::2]:8000")
    hosts = [
        "chat.example",
        "CHAT.EXAMPLE:1",
        "api.example",
        "API.example:8000",
        "[fd00::1]:8000",
        "[FD00::2]",
    ]
    with served(allowed_hosts=names) as url:
        async with wire(url) as way:
            for host in hosts:
                assert (await way.answer(post(host=host))).status == 200, host
            for host in ("example", "api.example.evil", "[fd00::3]", "fd00::1", "[fd00::1]x"):
                assert (await way.answer(post(host=host))).status == 403, host


@pytest.mark.parametrize("address", ["127.0.0.2", "127.1.2.3"])
async def test_every_loopback_is_one(address: str) -> None:
    with started(HOST=address) as process:
        async with wire(process.url) as way:
            for host in (address, f"{address}:8000", "localhost", "127.9.9.9"):
                assert (await way.answer(post(host=host))).status == 200, host
            for host in (
                "evil.example",
                f"{address}.evil.example",
                "128.0.0.1",
                "127.0.0.02",
                "[::ffff:8.8.8.8]",
            ):
                assert (await way.answer(post(host=host))).status == 403, host


async def test_a_page_of_a_foreign_host_gets_no_leave_either() -> None:
    """A preflight, which CORS answers."""
    asked = ["origin: https://page.example", "access-control-request-method: POST"]
    with served(allow_origins=("*",)) as url:
        async with wire(url) as way:
            for host, status in (("localhost", 200), ("evil.example", 403)):
                lines = [f"OPTIONS {CHAT} HTTP/1.1", f"host: {host}", *asked, "", ""]
                answer = await way.answer("\r\n".join(lines).encode())
                assert answer.status == status
                assert ("access-control-allow-methods" in answer.headers) == (status == 200)
                assert answer.headers["x-request-id"].startswith("req_")


# ---- upgrades

HANDSHAKE = [
    "host: localhost",
    "connection: Upgrade",
    "upgrade: websocket",
    "sec-websocket-version: 13",
]


@pytest.mark.parametrize("path", ["/", "/ws", CHAT, "/v1/models"])
@pytest.mark.parametrize(
    "key", ["sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-key: bad"]
)
async def test_a_websocket_handshake_gets_a_plain_answer(path: str, key: str) -> None:
    with served() as url:
        async with wire(url) as way:
            answer = await way.answer(get(path, *HANDSHAKE, key))
            assert answer.status == {"/": 200, "/ws": 404, CHAT: 200, "/v1/models": 200}[path]
            json.loads(answer.body)
        async with wire(url) as way:  # a bad version, half of the headers
            assert (
                await way.answer(get(path, *HANDSHAKE[:3], "sec-websocket-version: 99"))
            ).status < 500


async def test_java_which_asks_for_http_2_with_each_request_is_served() -> None:
    upgrade = [
        "connection: Upgrade, HTTP2-Settings",
        "upgrade: h2c",
        "http2-settings: AAMAAABkAAQAAP__",
    ]
    async with Upstream(FAULTS["good"]) as up:
        async with running(CHAT_URL=f"{up.url}/chat") as process, wire(process.url) as way:
            for _ in range(3):
                answer = await way.answer(post(*upgrade))
                assert json.loads(answer.body)["choices"][0]["message"]["content"] == TEXT
            assert "WARNING" not in process.log, process.log


UPGRADE = ["connection: Upgrade", "upgrade: h2c"]
SMUGGLED = get("/smuggled", "host: localhost")
LAST = get("/health", "host: localhost", "connection: close")


def in_chunks(body: bytes, *headers: str) -> bytes:
    lines = [
        f"POST {CHAT} HTTP/1.1",
        "host: localhost",
        "transfer-encoding: chunked",
        *headers,
        "",
        "",
    ]
    chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    return "\r\n".join(lines).encode() + chunk + b"0\r\n\r\n"


async def statuses(way: Wire) -> list[int]:
    """Of all answers until the connection ends."""
    async with asyncio.timeout(10):
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", await way.reader.read())]


@pytest.mark.parametrize("body", [BODY, SMUGGLED, b""], ids=["good", "a request", "none"])
@pytest.mark.parametrize(
    "make",
    [lambda body: post(*UPGRADE, body=body), lambda body: in_chunks(body, *UPGRADE)],
    ids=["length", "chunks"],
)
async def test_an_upgrade_in_two_segments_neither_loses_its_body_nor_makes_a_request_of_it(
    make: Callable[[bytes], bytes], body: bytes
) -> None:
    sent = make(body)
    with served() as url:
        async with AsyncExitStack() as stack:
            cuts = range(1, sent.index(b"\r\n\r\n") + 6)
            ways = [await stack.enter_async_context(wire(url)) for _ in cuts]
            for cut, way in zip(cuts, ways, strict=True):
                way.writer.write(sent[:cut])
            await asyncio.sleep(0.3)
            for cut, way in zip(cuts, ways, strict=True):
                way.writer.write(sent[cut:] + LAST)
            for cut, way in zip(cuts, ways, strict=True):
                assert await statuses(way) == [200 if body == BODY else 400, 200], sent[:cut]


async def test_upgrades_in_a_row_are_all_served() -> None:
    with served() as url:
        async with wire(url) as way:
            way.writer.write(
                (post(*UPGRADE) + in_chunks(BODY, *UPGRADE)) * 3
                + post(*UPGRADE, body=SMUGGLED)
                + LAST
            )
            assert await statuses(way) == [200] * 6 + [400, 200]
        async with wire(url) as way:
            assert (
                await way.answer(b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost:80\r\n\r\n")
            ).status == 400


# ---- what is no HTTP

NO_HTTP = {
    "not HTTP": b"hello there\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + b"\0" * 100,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\ncontent-length: 7\r\n\r\n{}",
    "length and chunks": b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bad length": b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: two\r\n\r\n{}",
    "a bad chunk": b"POST /ask HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nhost: localhost\r\nnonsense\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nhost: localhost\r\nx-a : b\r\n\r\n",
    "a zero byte": b"GET / HTTP/1.1\r\nhost: localhost\r\nx-a: \0\r\n\r\n",
}


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_is_no_http_has_the_envelope_too(workers: str) -> None:
    async with running(WORKERS=workers) as process:
        for name, sent in NO_HTTP.items():
            async with wire(process.url) as way:
                async with asyncio.timeout(10):  # two workers take a moment to start
                    way.writer.write(sent)
                    head = await way.reader.readuntil(b"\r\n\r\n")
                answer = Answer(head.strip(), await way.reader.read())
                assert answer.status == 400, name
                assert answer.headers["connection"] == "close", name
                answer.error()
                async with asyncio.timeout(5):
                    while answer.headers["x-request-id"] not in process.log:
                        await asyncio.sleep(0.01)
        assert "Traceback" not in process.log, process.log


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
@pytest.mark.parametrize("last", [False, True])
async def test_a_head_is_answered_without_a_body(path: str, last: bool) -> None:
    with served() as url:
        async with wire(url) as way:
            for _ in range(1 if last else 2):
                way.writer.write(
                    get(path, "host: localhost", *["connection: close"] * last).replace(
                        b"GET", b"HEAD"
                    )
                )
                async with asyncio.timeout(AT_ONCE):
                    head = await way.reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
            if last:
                assert await way.reader.read() == b""
            else:
                assert (await way.answer(get("/health", "host: localhost"))).status == 200


async def test_a_stream_is_not_spoilt_by_what_comes_behind_a_request_that_waits() -> None:
    with served(mock_words_per_second=20) as url:
        async with wire(url) as way:
            way.writer.write(
                post(body=json.dumps(ASKED | {"stream": True}).encode())
                + get("/health", "host: localhost")
            )
            said = await way.reader.readuntil(b"data: ")
            way.writer.write(b"no HTTP\r\n\r\n")
            async with asyncio.timeout(10):
                said += await way.reader.read()
            assert b"data: [DONE]\n\n\r\n0\r\n\r\n" in said
            assert (
                said.count(b"HTTP/1.1 200 ") == 2
            )  # the one that waited is whole, and answered, too


async def test_a_body_that_breaks_while_it_is_waited_for_leaves_no_traceback() -> None:
    async with running() as process:
        async with wire(process.url) as way:
            sent = post("expect: 100-continue", "transfer-encoding: chunked", body=b"zz\r\n")
            way.writer.write(sent.replace(b"content-length: 4\r\n", b""))
            way.writer.write_eof()
            async with asyncio.timeout(5):
                assert b" 400 " in await way.reader.read()
        process.signal()
        await process.exit_code(10)
    assert "Traceback" not in process.log, process.log


async def test_a_stream_is_not_spoilt_by_what_is_sent_meanwhile_but_is_the_last() -> None:
    with served(mock_words_per_second=20) as url:
        for more in (b"no HTTP\r\n\r\n", get("/", "host: localhost", "x: " + "y" * 2 * HEAD_BYTES)):
            async with wire(url) as way:
                way.writer.write(post(body=json.dumps(ASKED | {"stream": True}).encode()))
                said = await way.reader.readuntil(b"data: ")
                way.writer.write(more + LAST)
                async with asyncio.timeout(10):
                    said += await way.reader.read()
                assert said.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
                assert said.count(b"HTTP/1.1 ") == 1
        async with wire(
            url
        ) as way:  # two are yet to be answered: nobody knows whose answer 400 would be
            way.writer.write(post() + CHUNKS + b"no chunk\r\n")
            async with asyncio.timeout(10):
                assert b"HTTP/1.1 400" not in await way.reader.read()


# ---- heads that are too large

LINES = [f"x-{n}: {'y' * 990}" for n in range(HEAD_BYTES // 1000)]
CHUNKS = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".encode()
TOO_LARGE = {
    "many lines": get("/health", "host: localhost", *LINES, *LINES[:2]),
    "a long line": get("/health", "host: localhost", "x: " + "y" * HEAD_BYTES),
    "a long name": get("/health", "host: localhost", "y" * HEAD_BYTES + ": x"),
    "a long path": get("/" + "y" * HEAD_BYTES, "host: localhost"),
    "a body after it": post("x: " + "y" * HEAD_BYTES),
    "an upgrade": post(*UPGRADE, "x: " + "y" * HEAD_BYTES),
    "a chunk extension": CHUNKS + b"2;" + b"y" * 10 * HEAD_BYTES + b"\r\n{}\r\n0\r\n\r\n",
    "many trailers": CHUNKS + b"2\r\n{}\r\n0\r\n" + b"x: y\r\n" * 2 * HEAD_BYTES + b"\r\n",
    "a long trailer": CHUNKS + b"2\r\n{}\r\n0\r\nx: " + b"y" * 10 * HEAD_BYTES,
}


@pytest.mark.parametrize("size", [1_000_000, 1000], ids=["at once", "in pieces"])
@pytest.mark.parametrize("name", TOO_LARGE)
async def test_a_head_that_is_too_large_is_431(name: str, size: int) -> None:
    sent = TOO_LARGE[name]
    with served() as url:
        async with wire(url) as way:
            assert (await way.answer(post())).status == 200
            for at in range(0, len(sent), size):
                way.writer.write(sent[at : at + size])
                await asyncio.sleep(0)
            answer = await way.answer()
            assert (answer.status, answer.headers["connection"]) == (431, "close")
            assert "too large" in answer.error()["message"]
            assert answer.headers["x-request-id"].startswith("req_")
            assert await way.reader.read() == b""


async def test_a_head_that_is_just_not_too_large_is_served_whatever_stands_beside_it() -> None:
    large, body = get("/health", "host: localhost", *LINES[:-1]), BODY + b" " * 2 * HEAD_BYTES
    with served() as url:
        async with wire(url) as way:
            for sent in (
                large,
                post(*LINES[:-1], body=body),
                post(*LINES[:-1], *UPGRADE, body=body),
                large * 3,
            ):
                for _ in range(3 if sent == large * 3 else 1):
                    assert (await way.answer(sent)).status == 200
                    sent = b""


async def test_a_head_without_end_does_not_fill_the_memory() -> None:
    async with running() as process:
        async with wire(process.url) as way:
            await way.answer(get("/health", "host: localhost"))
        before = process.memory()
        async with wire(process.url) as way:
            way.writer.write(b"GET / HTTP/1.1\r\n")
            try:
                for _ in range(300):
                    way.writer.write(b"x: " + b"y" * 100_000 + b"\r\n")
                    await way.writer.drain()
            except ConnectionError:
                pass
        assert process.memory() - before < 10_000_000
        assert "Traceback" not in process.log


async def test_a_trailer_is_no_header() -> None:
    body = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
    with served(api_keys=("a-key-of-ours",)) as url:
        async with wire(url) as way:
            assert (
                await way.answer(CHUNKS + body + b"authorization: Bearer a-key-of-ours\r\n\r\n")
            ).status == 401
            head = CHUNKS[:-2] + b"authorization: Bearer a-key-of-ours\r\n\r\n"
            assert (
                await way.answer(head + body + b"authorization: Bearer another\r\n\r\n")
            ).status == 200


# ---- requests that never end


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Protocol, "PATIENCE_SECONDS", 0.25)


HALVES = {
    "half a head": post()[:20],
    "half a body": post()[:-9],
    "half of chunks": CHUNKS + b"20\r\n{",
    "half a second request": LAST.replace(b"close", b"keep-alive") + post()[:20],
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", HALVES)
async def test_half_a_request_is_408(name: str) -> None:
    with served() as url:
        async with wire(url) as way:
            way.writer.write(HALVES[name])
            if "second" in name:
                assert (await way.answer()).status == 200
            async with asyncio.timeout(5):
                head, body = (await way.reader.read()).split(b"\r\n\r\n")
            answer = Answer(head, body)
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert answer.headers["x-request-id"].startswith("req_")
            answer.error()


@pytest.mark.usefixtures("impatient")
async def test_a_head_in_drops_is_408_and_who_says_nothing_at_all_hears_nothing() -> None:
    with served() as url:
        async with wire(url) as way, wire(url) as silent, asyncio.timeout(5):
            reading = asyncio.create_task(way.reader.read())
            way.writer.write(b"GET /")
            while not reading.done():
                await asyncio.sleep(0.02)
                way.writer.write(b"y")
            assert reading.result().startswith(b"HTTP/1.1 408 ")
            assert await silent.reader.read() == b""


@pytest.mark.usefixtures("impatient")
async def test_a_body_in_drops_and_an_upstream_that_takes_its_time_are_waited_for() -> None:
    async with Upstream(make("json", TEXT, pause_s=1)) as up:
        with served(chat_url=f"{up.url}/chat") as url:
            async with wire(url) as way:
                way.writer.write(post()[:-12])
                for byte in post()[-12:]:
                    await asyncio.sleep(0.08)
                    way.writer.write(bytes([byte]))
                async with asyncio.timeout(10):
                    head = await way.reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")


# ---- HTTP/1.0, and idle connections


def old_post(stream: bool, path: str = CHAT) -> bytes:
    """A request of HTTP/1.0."""
    body = json.dumps(ASKED | {"stream": stream}).encode()
    return post(body=body, path=path).replace(b"HTTP/1.1", b"HTTP/1.0", 1)


async def test_an_http_1_0_client_gets_a_stream_without_chunks_that_ends_with_the_connection() -> (
    None
):
    with served() as url:
        async with wire(url) as way, asyncio.timeout(5):
            way.writer.write(old_post(stream=True))
            head, body = (await way.reader.read()).split(b"\r\n\r\n", 1)
    headers = Answer(head, b"").headers
    assert "transfer-encoding" not in headers
    assert "content-length" not in headers
    assert headers["connection"] == "close"
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_an_http_1_0_client_gets_a_json_answer_with_its_length() -> None:
    with served() as url:
        async with wire(url) as way:
            answer = await way.answer(old_post(stream=False))
            assert json.loads(answer.body)["object"] == "chat.completion"
            assert answer.headers["connection"] == "close"
            assert await way.reader.read() == b""


async def test_a_stream_that_breaks_is_reset_for_an_http_1_0_client() -> None:
    async with Upstream(FAULTS["cut_chunk"]) as up:
        with served(chat_url=f"{up.url}/chat") as url:
            async with wire(url) as way, asyncio.timeout(5):
                way.writer.write(old_post(stream=True, path="/ask"))
                with pytest.raises(ConnectionResetError):
                    await way.reader.read()


async def test_an_idle_connection_is_kept_for_keep_alive_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Protocol, "PATIENCE_SECONDS", 0.1)
    with served(keep_alive_seconds=0.6) as url:
        async with wire(url) as way:
            for pause in (0.0, 0.4, 0.4):  # longer than the patience with a request
                await asyncio.sleep(pause)
                assert (await way.answer(get("/health", "host: localhost"))).status == 200
            async with asyncio.timeout(2):
                assert await way.reader.read() == b""


async def test_the_process_keeps_idle_connections_for_keep_alive_seconds() -> None:
    async with running(KEEP_ALIVE_SECONDS="0.5") as process, wire(process.url) as way:
        assert (await way.answer(get("/health", "host: localhost"))).status == 200
        started = time.monotonic()
        async with asyncio.timeout(4):
            assert await way.reader.read() == b""
        assert time.monotonic() - started > 0.3


# ---- bodies that are too large

MOST = 100_000


async def test_413_comes_before_the_body_is_read() -> None:
    with served(max_body_bytes=MOST) as url:
        for path in (CHAT, "/ask"):
            async with wire(url) as way:
                head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {MOST + 1}\r\n"
                refused = await way.answer(f"{head}\r\n".encode())  # not a byte of the body
                assert refused.status == 413
                assert path == "/ask" or "too large" in refused.error()["message"]
        async with wire(url) as way:  # curl waits for a word first
            assert (await way.answer(f"{head}expect: 100-continue\r\n\r\n".encode())).status == 413


async def test_a_body_in_chunks_is_413_as_soon_as_it_is_too_large() -> None:
    with served(max_body_bytes=MOST) as url:
        async with wire(url) as way:
            way.writer.write(
                f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".encode()
            )
            for _ in range(20):
                way.writer.write(b"2710\r\n" + b" " * 10_000 + b"\r\n")  # never the last one
            assert (await way.answer()).error()
        for size, status in ((MOST, 200), (MOST + 1, 413)):
            body = BODY + b" " * (size - len(BODY))
            async with wire(url) as way:
                sent = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".encode()
                assert (
                    await way.answer(sent + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
                ).status == status
                assert (await way.answer(post())).status == 200 if status == 200 else True
            async with wire(url) as way:
                assert (await way.answer(post(body=body))).status == status


async def test_an_upload_that_nobody_wants_does_not_fill_the_memory() -> None:
    async with running(MAX_BODY_BYTES=str(MOST), API_KEYS="a-key-of-ours") as process:
        async with wire(process.url) as way:
            await way.answer(get("/health", "host: localhost"))
        before = process.memory()
        for key in ("a-key-of-ours", "another"):
            async with wire(process.url) as way:
                lines = [
                    "host: localhost",
                    f"authorization: Bearer {key}",
                    f"content-length: {10**9}",
                ]
                way.writer.write("\r\n".join([f"POST {CHAT} HTTP/1.1", *lines, "", ""]).encode())
                end = time.monotonic() + 1
                try:
                    while time.monotonic() < end:
                        way.writer.write(b" " * 100_000)
                        await way.writer.drain()
                except ConnectionError:
                    pass
        assert process.memory() - before < 10_000_000
        assert "Traceback" not in process.log
