"""The HTTP protocol of the server: uvicorn's on httptools, with bounds of size and time.

A request that it refuses gets OpenAI's envelope. Upgrades are ignored. Does not know the app.
"""

import asyncio
import logging
from secrets import token_hex
from typing import Any
from urllib.parse import unquote

import httptools
import orjson
from uvicorn._types import ASGI3Application
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from rewrap.held_writes import HoldingTransport
from rewrap.server.context import CONNECTION, ClientConnection
from rewrap.server.cycles import ChunkedAnswer, Cycle, UnchunkedCycle, end_answer
from rewrap.server.signals import UNSENT_SECONDS
from rewrap.types import Headers

log = logging.getLogger("rewrap")

HEAD_BYTES = 64 * 2**10
NOT_HTTP = "This is not an HTTP request."
TOO_SLOW = "The rest of the request did not come in time."
TOO_LARGE = f"The head of the request is too large: this server takes {HEAD_BYTES} bytes at most."
CHUNKED = (b"transfer-encoding", b"chunked")
PROXY_HEADERS = frozenset([b"x-forwarded-for", b"x-forwarded-proto"])
NOTED_HEADERS = PROXY_HEADERS | {b"expect"}
# The bytes that a header of an answer may have.
EVERY_BYTE = bytes(range(256))
SAFE = b"\t" + bytes(code for code in range(0x20, 0x100) if code != 0x7F)
REFUSAL_HEAD = (
    b"content-type: application/json\r\n"
    b"content-length: %d\r\n"
    b"connection: close\r\n"
    b"x-content-type-options: nosniff\r\n"
    b"x-request-id: %b\r\n"
    b"\r\n"
)


class Protocol(HttpToolsProtocol):
    """One connection of a client.

    The head of a request may have HEAD_BYTES, and so may everything else that is not a body: trailers, extensions of
    chunks. A client has PATIENCE_SECONDS (twice that at most) to send the rest of a request, and to take any part of an
    answer. One timer per connection checks that, and another one how long it is idle; there is no timer per request.

    It overrides uvicorn's parser callbacks, so that a request costs 8 % fewer instructions. uvicorn's limits of concurrency
    and of requests have no effect.
    """

    # In an instance dictionary beside uvicorn's attributes, these would cost 2 kB a connection.
    __slots__ = (
        "behind_proxy",
        "client_connection",
        "direct_app",
        "heard",
        "idle_since",
        "idle_timer",
        "overhead",
        "refused",
        "running",
        "slow_head",
        "timer",
        "unsent",
    )
    PATIENCE_SECONDS = 60.0
    cycle: Cycle

    def connection_made(self, transport: Any) -> None:
        holding: Any = HoldingTransport(transport, self.loop)
        super().connection_made(holding)
        self.client_connection = ClientConnection()
        self.client_connection.chunk_writer = self.chunk_writer
        self.client_connection.start_chunks = self.start_chunks
        self.client_connection.write_answer = self.write_answer
        self.direct_app: ASGI3Application = self.app  # for requests without PROXY_HEADERS
        if isinstance(self.app, ProxyHeadersMiddleware):
            self.direct_app = self.app.app
        self.behind_proxy = False  # the request has PROXY_HEADERS
        # Loop time of the end of the last answer; 0: a request is in progress, or none came yet.
        self.idle_since = 0.0
        self.idle_timer: asyncio.TimerHandle | None = None
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
        if self.idle_timer is not None:
            self.idle_timer.cancel()
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
        lines = list(map(b": ".join, (*cycle.default_headers, *headers)))
        head = STATUS_LINE[status] + b"\r\n".join(lines) + b"\r\n\r\n"
        if b"\r\nconnection: " in head:
            return b""
        # Without the safe bytes, the ends of the lines alone may remain. A regular expression costs 2 µs more.
        if head.translate(EVERY_BYTE, SAFE) != b"\r\n" * (len(lines) + 2):
            return b""
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        return head

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
        self.idle_since = 0.0
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

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers.append((name, value))
        if name in NOTED_HEADERS:
            if name != b"expect":
                self.behind_proxy = True
            elif value.lower() == b"100-continue":
                self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        if self.overhead > HEAD_BYTES and self.head_size() > HEAD_BYTES:
            self.refuse(431, TOO_LARGE)
            raise ValueError
        self.overhead = 0
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError
            return
        app = self.app if self.behind_proxy else self.direct_app
        self.behind_proxy = False
        earlier = self.cycle
        self.cycle = self.new_cycle()
        self.headers = []  # the scope has them, and trailers must not be added to it
        if earlier is None or earlier.response_complete:
            self._start_asgi_task(self.cycle, app)
        else:
            self.pipeline.appendleft((self.cycle, app))
            # With one request that waits, reading goes on: else nobody would notice that the client leaves.
            if len(self.pipeline) > 1:
                self.flow.pause_reading()

    def new_cycle(self) -> Cycle:
        """The request whose head has ended."""
        parser = self.parser
        scope = self.scope
        version = parser.get_http_version()
        url = httptools.parse_url(self.url)
        raw_path: bytes = url.path
        path = raw_path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = self.root_path + path
        scope["raw_path"] = self.root_path.encode("ascii") + raw_path
        scope["query_string"] = url.query or b""
        cycle_class = UnchunkedCycle if version < "1.1" else Cycle
        cycle = cycle_class(
            scope,
            self.transport,
            self.flow,
            self.server_state.default_headers,
            version >= "1.1" and parser.should_keep_alive(),
            self.on_response_complete,
        )
        if self.expect_100_continue:
            cycle.waiting_for_100_continue = True
        return cycle

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
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.add_part(body)
            if cycle.unreceived() > HIGH_WATER_LIMIT:
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        cycle = self.cycle
        cycle.more_body = False
        cycle.message_event.set()
        if not self.pipeline:
            # A large body paused the reading, and the end of the connection would not be noticed.
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        scope: dict[str, object] = cycle.scope  # type: ignore[assignment]  # an extension of ours
        scope[CONNECTION] = self.client_connection
        self.running = cycle
        task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_response_complete(self) -> None:
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self.idle_since = self.loop.time()
        if self.idle_timer is None:
            self.idle_timer = self.loop.call_later(self.timeout_keep_alive, self.check_idle)

    def check_idle(self) -> None:
        """Close a connection that has been idle for too long; look again later if it was used meanwhile.

        A timer for each answer would cost 1.5 µs.
        """
        self.idle_timer = None
        if not self.idle_since:
            return
        left = self.idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.idle_timer = self.loop.call_later(left, self.check_idle)
        elif not self.transport.is_closing():
            self.transport.close()

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
        if self.idle_since and self.unfinished_head() is None:
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
