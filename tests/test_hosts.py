"""Before a request is one: foreign Hosts, websockets, what is no HTTP, and bodies that are too large. On bare sockets."""

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from commands import running
from serving import ASKED, served
from upstreams import FAULTS, TEXT, Upstream

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
        self.headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines if line}

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
    lines = [f"POST {path} HTTP/1.1", f"host: {host}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


# ---- Hosts

OURS = ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:1", "[::1]", "[::1]:8000", "localhost:"]
FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil.example#localhost",
]
FOREIGN += ["localhost@evil.example", "evil.example:80:127.0.0.1", "", "0.0.0.0", "[::2]", "127.0.0.1, evil.example"]


async def test_a_loopback_refuses_foreign_hosts() -> None:
    with served() as url:
        async with wire(url) as way:
            for host in OURS:
                assert (await way.answer(post(host=host))).status == 200, host
            for host in FOREIGN:
                for sent in (post(host=host), get("/v1/models", f"host: {host}"), get("/docs", f"host: {host}")):
                    refused = await way.answer(sent)
                    assert refused.status == 403, host
                    refused.error()
            refused = await way.answer(get("/v1/models", "x-forwarded-host: localhost", "host: evil.example"))
            assert refused.status == 403
            assert (await way.answer(get("/health", "host: evil.example"))).status == 200  # load balancers ask so


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
            assert (await way.answer(get("http://localhost/v1/models", "host: evil.example"))).status == 403
            assert (await way.answer(get("http://evil.example/v1/models", "host: localhost"))).status == 200


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


# ---- upgrades

HANDSHAKE = ["host: localhost", "connection: Upgrade", "upgrade: websocket", "sec-websocket-version: 13"]


@pytest.mark.parametrize("path", ["/", "/ws", CHAT, "/v1/models"])
@pytest.mark.parametrize("key", ["sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-key: bad"])
async def test_a_websocket_handshake_gets_a_plain_answer(path: str, key: str) -> None:
    with served() as url:
        async with wire(url) as way:
            answer = await way.answer(get(path, *HANDSHAKE, key))
            assert answer.status == {"/": 200, "/ws": 404, CHAT: 200, "/v1/models": 200}[path]
            json.loads(answer.body)
        async with wire(url) as way:  # a bad version, half of the headers
            assert (await way.answer(get(path, *HANDSHAKE[:3], "sec-websocket-version: 99"))).status < 500


async def test_java_which_asks_for_http_2_with_each_request_is_served() -> None:
    upgrade = ["connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__"]
    async with Upstream(FAULTS["good"]) as up:
        async with running(CHAT_URL=f"{up.url}/chat") as process, wire(process.url) as way:
            for _ in range(3):
                answer = await way.answer(post(*upgrade))
                assert json.loads(answer.body)["choices"][0]["message"]["content"] == TEXT
            assert "WARNING" not in process.log, process.log


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
        assert "Traceback" not in process.log, process.log


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
            way.writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".encode())
            for _ in range(20):
                way.writer.write(b"2710\r\n" + b" " * 10_000 + b"\r\n")  # never the last one
            assert (await way.answer()).error()
        for size, status in ((MOST, 200), (MOST + 1, 413)):
            body = BODY + b" " * (size - len(BODY))
            async with wire(url) as way:
                sent = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".encode()
                assert (await way.answer(sent + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))).status == status
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
                lines = ["host: localhost", f"authorization: Bearer {key}", f"content-length: {10**9}"]
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
