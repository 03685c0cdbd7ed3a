"""The HTTP protocol of the server: uvicorn's on httptools, with bounds of size and time.

A request that it refuses gets OpenAI's envelope. Upgrades are ignored. Does not know the app.
"""

import asyncio
import logging
import os
import re
import socket
import struct
from secrets import token_hex
from typing import Any

import httptools
import orjson
from uvicorn._types import (
    ASGI3Application,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
)
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from rewrap.held_writes import HoldingTransport
from rewrap.server.context import CONNECTION, ClientConnection
from rewrap.server.signals import UNSENT_SECONDS
from rewrap.types import Headers

log = logging.getLogger("rewrap")

HEAD_BYTES = 64 * 2**10
NOT_HTTP = "This is not an HTTP request."
TOO_SLOW = "The rest of the request did not come in time."
TOO_LARGE = f"The head of the request is too large: this server takes {HEAD_BYTES} bytes at most."
CHUNKED = (b"transfer-encoding", b"chunked")
PROXY_HEADERS = frozenset([b"x-forwarded-for", b"x-forwarded-proto"])
UNSAFE = re.compile(rb"[^\t\r\n -~\x80-\xff]")  # in the head of an answer
NO_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
REFUSAL_HEAD = (
    b"content-type: application/json\r\n"
    b"content-length: %d\r\n"
    b"connection: close\r\n"
    b"x-content-type-options: nosniff\r\n"
    b"x-request-id: %b\r\n"
    b"\r\n"
)


class UnchunkedCycle(RequestResponseCycle):
    """A request of HTTP/1.0. Its answer has no chunks: without a length, it ends with the connection (RFC 9112, 6.1)."""

    until_close = False

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            names = [name.lower() for name, _ in message.get("headers", [])]
            if b"content-length" not in names:
                self.until_close = True
                self.chunked_encoding = False
        elif message["type"] == "http.response.body" and self.until_close:
            # uvicorn compares the body with its length.
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)

    async def run_asgi(self, app: ASGI3Application) -> None:
        async def checked_app(
            scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
        ) -> None:
            await app(scope, receive, send)
            if self.until_close and not self.response_complete:
                reset_at_close(self.transport)  # the client must not take a part for the whole

        await super().run_asgi(checked_app)


def reset_at_close(transport: asyncio.Transport) -> None:
    """Make the end of a connection a reset, which a client does not take for the end of an answer."""
    held = transport.get_extra_info("socket")
    if held is not None:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)


def end_answer(cycle: RequestResponseCycle) -> None:
    """What uvicorn does after the last byte of an answer."""
    cycle.response_complete = True
    cycle.message_event.set()
    if not cycle.keep_alive:  # a refusal or a stop came while it was sent
        cycle.transport.close()
    cycle.on_response()


class ChunkedAnswer:
    """The body of an answer in chunks: a ChunkWriter. With uvicorn's own way, a stream of 100 chunks costs 4 % more."""

    __slots__ = ("cycle", "flow", "transport")

    def __init__(self, cycle: RequestResponseCycle, transport: Any, flow: FlowControl) -> None:
        self.cycle = cycle
        self.transport = transport
        self.flow = flow

    def write(self, body: bytes) -> bool:
        """Write a chunk at once. False while the client reads too slowly, and after it has left."""
        if self.cycle.disconnected:
            return False
        self.transport.write_now(b"%x\r\n%b\r\n" % (len(body), body))
        return not self.flow.write_paused

    async def send(self, body: bytes, more: bool) -> None:
        """Send a chunk once the client has read most of the earlier ones. Without `more` it is the last one."""
        cycle = self.cycle
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        if cycle.disconnected:
            return
        data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        self.transport.write(data if more else data + b"0\r\n\r\n")
        if not more:
            end_answer(cycle)


class Protocol(HttpToolsProtocol):
    """One connection of a client.

    The head of a request may have HEAD_BYTES, and so may everything else that is not a body: trailers, extensions of
    chunks. A client has PATIENCE_SECONDS (twice that at most) to send the rest of a request, and to take any part of an
    answer. One timer per connection checks that; there is no timer per request.
    """

    # In an instance dictionary beside uvicorn's attributes, these would cost 2 kB a connection.
    __slots__ = (
        "client_connection",
        "heard",
        "overhead",
        "refused",
        "running",
        "slow_head",
        "timer",
        "unsent",
    )
    PATIENCE_SECONDS = 60.0

    def connection_made(self, transport: Any) -> None:
        holding: Any = HoldingTransport(transport, self.loop)
        super().connection_made(holding)
        self.client_connection = ClientConnection()
        self.client_connection.chunk_writer = self.chunk_writer
        self.client_connection.start_chunks = self.start_chunks
        self.client_connection.write_answer = self.write_answer
        self.overhead = 0  # bytes in a row that are not a body
        self.refused = False
        self.heard = False  # bytes came since the last check
        self.unsent = -1  # bytes of the write buffer at the last check
        self.slow_head: list[tuple[bytes, bytes]] | None = None  # unfinished at the last check
        # The request in progress. `cycle` is the newest one, which may wait behind it.
        self.running: RequestResponseCycle | None = None
        self.timer = self.loop.call_later(self.PATIENCE_SECONDS, self.check_progress)

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        super().connection_lost(exc)
        self.client_connection.lost = True
        # Cycles of references.
        self.client_connection.chunk_writer = None
        self.client_connection.start_chunks = None
        self.client_connection.write_answer = None
        if self.running is not None and not self.running.response_complete:
            self.running.disconnected = True
            self.running.message_event.set()
            if self.client_connection.on_lost is not None:
                self.client_connection.on_lost()

    def write_answer(self, status: int, headers: Headers, body: bytes) -> bool:
        """Write the whole answer of the running request. False if uvicorn has to send it: only it knows the special cases.

        `headers` have names in lower case, and the length of the body.
        """
        head = self.head_of_answer(status, headers)
        if not head:
            return False
        assert self.running is not None
        self.transport.write(head + body)
        end_answer(self.running)
        return True

    def start_chunks(self, status: int, headers: Headers) -> ChunkedAnswer | None:
        """Write the head of an answer in chunks. None if uvicorn has to send it.

        `headers` have names in lower case.
        """
        cycle = self.running
        if cycle is None or cycle.scope["http_version"] != "1.1":
            return None
        head = self.head_of_answer(status, [*headers, CHUNKED])
        if not head:
            return None
        cycle.chunked_encoding = True
        self.transport.write(head)
        return ChunkedAnswer(cycle, self.transport, self.flow)

    def head_of_answer(self, status: int, headers: Headers) -> bytes:
        """Begin the answer of the running request: its head, to be written now. Empty if it is a special case."""
        cycle = self.running
        if cycle is None or cycle.response_started or cycle.disconnected or cycle.more_body:
            return b""
        if not cycle.keep_alive or self.flow.write_paused or cycle.scope["method"] == "HEAD":
            return b""
        lines = [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
        head = STATUS_LINE[status] + b"".join(lines)
        if b"\r\nconnection: " in head:
            return b""
        if not len(lines) + 1 == head.count(b"\r") == head.count(b"\n") or UNSAFE.search(head):
            return b""
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        return head + b"\r\n"

    def chunk_writer(self) -> ChunkedAnswer | None:
        """A writer for the answer of the running request, if that has begun and comes in chunks."""
        cycle = self.running
        if cycle is None or not cycle.response_started or cycle.response_complete:
            return None
        if not cycle.chunked_encoding or cycle.scope["method"] == "HEAD":
            return None
        return ChunkedAnswer(cycle, self.transport, self.flow)

    # From the parser.

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self.heard = True
        self.overhead += len(data)
        while data and not self.refused:
            try:
                self.parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as upgrade:
                data = self.head_without_upgrade() + data[upgrade.args[0] :]
            except httptools.HttpParserError:
                self.refuse(400, NOT_HTTP)
        if self.overhead > HEAD_BYTES:
            self.refuse(431, TOO_LARGE)

    def on_headers_complete(self) -> None:
        if self.overhead > HEAD_BYTES and self.head_size() > HEAD_BYTES:
            self.refuse(431, TOO_LARGE)
            raise ValueError
        self.overhead = 0
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError
            return
        super().on_headers_complete()
        # uvicorn stops reading while a request waits behind another, and would not notice that the client leaves.
        if len(self.pipeline) == 1:
            self.flow.resume_reading()
        self.headers = []  # the scope has them, and trailers must not be added to it

    def head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def head_without_upgrade(self) -> bytes:
        """The head of a request for a new parser, without its upgrade.

        A parser that has seen an upgrade takes the body for the next request. Java asks for HTTP/2 with each request
        (`Upgrade: h2c`).
        """
        method = self.parser.get_method()
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join([*lines, b"", b""])

    def on_body(self, body: bytes) -> None:
        self.overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()
            self.cycle.more_body = False  # uvicorn skips this after an early answer
            if not self.pipeline:
                # A large body paused the reading, and the end of the connection would not be noticed.
                self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if cycle.scope["http_version"] < "1.1":
            cycle.__class__ = UnchunkedCycle
        scope: dict[str, object] = cycle.scope  # type: ignore[assignment]  # an extension of ours
        scope[CONNECTION] = self.client_connection
        self.running = cycle
        # Few requests have a header that uvicorn's middleware reads: to skip it saves 2 µs.
        if isinstance(app, ProxyHeadersMiddleware):
            if not any(name in PROXY_HEADERS for name, _ in cycle.scope["headers"]):
                app = app.app
        super()._start_asgi_task(cycle, app)

    # Refusals.

    def refuse(self, status: int, message: str) -> None:
        """Answer instead of the app, and close the connection. Requests that came before are answered first."""
        if self.refused:
            return
        self.refused = True
        if not self.finish_earlier_requests():
            self.send_refusal(status, message)

    def finish_earlier_requests(self) -> bool:
        """Make the last whole request the last of the connection. False if no request is in progress."""
        cycle = self.cycle
        if cycle is None:
            return False
        incomplete = cycle.more_body
        if incomplete:
            cycle.disconnected = True
            cycle.waiting_for_100_continue = False
            cycle.message_event.set()
        if self.pipeline:
            if incomplete:
                self.pipeline.popleft()
            last = self.pipeline[0][0] if self.pipeline else self.running
            assert last is not None
            last.keep_alive = False
            return True
        if incomplete and cycle.response_started:
            self.transport.close()
            return True
        if not incomplete and not cycle.response_complete:
            cycle.keep_alive = False
            return True
        return False

    def send_refusal(self, status: int, message: str) -> None:
        id = f"req_{token_hex(16)}"
        log.info("refused: %d %s id=%s", status, message, id)
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        body = orjson.dumps({"error": error})
        self.transport.write(STATUS_LINE[status] + REFUSAL_HEAD % (len(body), id.encode()) + body)
        # A socket that is closed with unread bytes is reset, and the client would lose the answer.
        self.transport.write_eof()
        self.timer.cancel()
        self.timer = self.loop.call_later(UNSENT_SECONDS, self.transport.abort)

    # The check of progress.

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unsent = -1

    def check_progress(self) -> None:
        """End the connection if no byte has come or gone since the last check, and one should have."""
        self.timer = self.loop.call_later(self.PATIENCE_SECONDS, self.check_progress)
        unsent = -1
        head = None
        if self.flow.write_paused or self.transport.is_closing():
            unsent = self.transport.get_write_buffer_size()
            if unsent == self.unsent:
                self.transport.abort()
        elif not self.expects_nothing():
            head = self.unfinished_head()
            if not self.heard or (head is not None and head is self.slow_head):
                self.end_silent_connection(head is not None)
        self.heard = False
        self.slow_head = head
        self.unsent = unsent

    def expects_nothing(self) -> bool:
        """Whether no byte is expected: the client waits for the server, or the connection is idle."""
        cycle = self.cycle
        if self.flow.read_paused:
            return True
        if self.timeout_keep_alive_task is not None and self.unfinished_head() is None:
            return True
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    def unfinished_head(self) -> list[tuple[bytes, bytes]] | None:
        """The headers so far of a request whose head has not ended. Each head has a list of its own."""
        if self.scope and self.headers is self.scope["headers"]:
            return self.headers
        return None

    def end_silent_connection(self, in_head: bool) -> None:
        if in_head or (self.cycle is not None and self.cycle.more_body):
            self.refuse(408, TOO_SLOW)
        else:
            self.transport.close()
