"""One HTTP/1.1 connection to an upstream: an asyncio protocol with a parser in C.

Its owner sends a request, reads the answer to its end, and then sends the next one. Does not know pools: it calls its
owner's `release` and `forget`. Raises httpx's exceptions only.
"""

import asyncio
import socket
import zlib
from contextlib import suppress
from typing import Any, Protocol

import httptools
import httpx

from rewrap.held_writes import HoldingTransport
from rewrap.types import Sink

Origin = tuple[bool, str, int]  # TLS, host, port

HEAD_BYTES = 65_536  # of a head, and of everything else that is not a body: trailers, chunk sizes
BUFFER_BYTES = 262_144  # of unread body: the socket is not read until the reader has caught up
WRITE_BYTES = 262_144  # of a request body, given to the socket at a time
INFLATE_BYTES = 16_384  # inflated at a time: the bytes after a gzip's end are copied each time
LINGER_SECONDS = 1.0  # for the rest of an answer that nobody reads
GZIP = zlib.MAX_WBITS | 16
GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
COMPRESSED = (b"gzip", b"x-gzip", b"deflate")
UNCOMPRESSED = (b"identity", b"")
NO_BODY = (204, 304)  # statuses
SILENT = "The server was silent for too long."


class Owner(Protocol):
    """The pool of a connection."""

    loop: asyncio.AbstractEventLoop

    def release(self, connection: "Connection") -> None:
        """The connection is free again."""

    def forget(self, connection: "Connection") -> None:
        """The connection is closed."""


class Connection(asyncio.Protocol):
    """A connection, and the answer that arrives on it (a Reply).

    The flags of an exchange go through these states: answering, head_done, complete (maybe lingering before), not held.
    Then the connection is idle.
    """

    # fmt: off
    __slots__ = (
        "abandoned",
        "answering",
        "buffered",
        "chunks",
        "closed",
        "complete",
        "deadline",
        "drained",
        "error",
        "head_done",
        "headers",
        "held",
        "idle_since",
        "inflate",
        "linger_timer",
        "lingering",
        "loop",
        "lost_at",
        "on_body",
        "origin",
        "overhead",
        "owner",
        "parser",
        "paused",
        "reusable",
        "sent_at",
        "sink",
        "status",
        "tail",
        "timer",
        "transport",
        "until_close",
        "used",
        "waiter",
        "write_paused",
        "writes",
    )
    # fmt: on

    def __init__(self, owner: Owner, origin: Origin) -> None:
        self.owner = owner
        self.origin = origin
        self.loop = owner.loop
        self.transport: Any = None
        self.chunks: list[bytes] = []
        # The parser calls this for each part of a body. A method in Python costs a stream of 100 chunks 20 µs more.
        self.on_body = self.chunks.append
        self.parser = httptools.HttpResponseParser(self)
        self.closed = False
        self.abandoned = False  # given up before it was connected
        self.paused = False  # the socket is not read
        self.write_paused = False
        self.used = False  # it has carried an answer: only then is the keep-alive race possible
        self.idle_since = 0.0
        self.lost_at = 0.0  # loop time of its end
        self.deadline = 0.0  # loop time at which a pending read fails
        self.timer: asyncio.TimerHandle | None = None
        self.linger_timer: asyncio.TimerHandle | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.drained: asyncio.Future[None] | None = None
        self.sink: Sink | None = None  # takes the body from the socket's callback
        self.reset()

    def reset(self) -> None:
        """Prepare for the next exchange."""
        self.sent_at = float("inf")  # loop time of the last write of the request
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.chunks.clear()
        self.buffered = 0  # bytes in the chunks
        self.overhead = 0  # bytes since the last of the body
        self.answering = False
        self.head_done = False
        self.complete = False
        self.lingering = False  # the rest of the answer is discarded
        self.until_close = False  # the end of the connection ends the answer
        self.reusable = True
        self.held = True  # until its reader gives it back by aclose()
        self.error: httpx.RequestError | None = None
        self.inflate: Any = None
        self.tail: bytes | memoryview = b""  # compressed, and not read yet

    # From the socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.use(transport)
        if self.abandoned:
            self.transport.abort()

    def use(self, transport: Any) -> None:
        """Use a new transport: the first one, or the one with TLS."""
        self.transport = transport
        self.writes = HoldingTransport(transport, self.loop)

    def data_received(self, data: bytes) -> None:
        if not self.answering:  # not an answer to a request of ours
            self.abort()
            return
        self.overhead += len(data)
        failure: httpx.RequestError | None = None
        before = len(self.chunks)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            failure = httpx.RemoteProtocolError("The server switched protocols.")
        except httptools.HttpParserError as exc:
            failure = httpx.RemoteProtocolError(f"Not HTTP: {exc}")
        if len(self.chunks) > before:
            self.take_in(before)
        if failure is not None:
            self.fail(failure)
        if self.overhead > HEAD_BYTES and not self.complete:
            self.fail(httpx.RemoteProtocolError("The head of the answer is too large."))
        if self.sink is not None and self.goes_on():
            return
        self.wake()

    def take_in(self, before: int) -> None:
        """Count the new chunks, and discard them if no reader is left. `before`: how many there were."""
        self.overhead = 0
        if self.error is not None:
            del self.chunks[before:]
            return
        self.buffered += sum(map(len, self.chunks[before:]))
        # The end of the answer may have given the connection back in the same read.
        if self.lingering or not self.held:
            self.chunks.clear()
            if self.buffered > BUFFER_BYTES:
                self.abort()
        elif self.buffered > BUFFER_BYTES and not self.paused:
            self.paused = True
            self.transport.pause_reading()

    def goes_on(self) -> bool:
        """Give the bytes to the sink. False if the reader has to act: at the end, after a failure, or for a full sink."""
        if self.complete or self.error is not None or not self.chunks:
            return False
        assert self.sink is not None
        return self.sink(self.take_chunks())

    def on_message_begin(self) -> None:
        if self.complete:  # a second answer: nothing after it can be trusted
            raise ValueError

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_done:  # a trailer, or a header of a second answer
            return
        name = name.lower()
        if name in self.headers:
            value = self.headers[name] + b", " + value
        self.headers[name] = value

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status < 200:  # 100 and 103 come before the real head
            self.headers = {}
            return
        self.status = status
        self.head_done = True
        self.reusable = self.parser.should_keep_alive()
        coding = self.headers.get(b"transfer-encoding", b"").lower()
        framed = b"content-length" in self.headers or b"chunked" in coding
        self.until_close = not framed and status not in NO_BODY
        encoding = self.headers.get(b"content-encoding", b"").lower()
        if encoding in COMPRESSED:
            self.inflate = zlib.decompressobj(GZIP_OR_ZLIB)
        elif encoding not in UNCOMPRESSED:
            self.fail(httpx.DecodingError("The answer has an encoding that was not requested."))

    def on_message_complete(self) -> None:
        if not self.head_done:
            return
        self.complete = True
        self.answering = False
        if self.lingering and not self.held:
            self.owner.release(self)

    def eof_received(self) -> None:
        if self.until_close and self.head_done and not self.complete and self.error is None:
            self.complete = True
            self.answering = False
            self.reusable = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.lost_at = self.loop.time()
        if exc and self.answering and not self.transport.get_extra_info("sslcontext"):
            self.salvage()
        if self.answering and not self.complete and self.error is None:
            if exc:
                self.error = httpx.ReadError("The connection broke.")
            else:
                self.error = httpx.RemoteProtocolError("The answer was cut short.")
        self.wake()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.owner.forget(self)

    def salvage(self) -> None:
        """Read the bytes that the kernel still holds.

        A write that meets a reset hides an early answer (413) that came before it.
        """
        self.paused = True  # there is no socket left to pause
        held = self.transport.get_extra_info("socket")
        with suppress(OSError), socket.fromfd(held.fileno(), held.family, held.type) as copy:
            while data := copy.recv(BUFFER_BYTES):
                self.data_received(data)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self.wake()

    def fail(self, error: httpx.RequestError) -> None:
        if self.error is None and not self.complete:
            self.error = error
        self.abort()

    def abort(self) -> None:
        self.closed = True
        if self.transport is None:
            self.abandoned = True
        else:
            self.transport.abort()

    # To the reader.

    def wake(self) -> None:
        for future in (self.waiter, self.drained):
            if future is not None and not future.done():
                future.set_result(None)

    def arm(self) -> None:
        """Set the one timer for the deadline. A deadline that moves later costs nothing until the timer fires."""
        if self.timer is not None:
            if self.timer.when() <= self.deadline:
                return
            self.timer.cancel()
        self.timer = self.loop.call_at(self.deadline, self.expire)

    def expire(self) -> None:
        self.timer = None
        if not self.answering or self.lingering:
            return
        if self.waiter is None or self.waiter.done():
            return
        if self.loop.time() < self.deadline:
            self.arm()
        else:
            self.waiter.set_exception(httpx.ReadTimeout(SILENT))

    async def wait(self) -> None:
        """Wait until bytes come from the socket. Raises ReadTimeout at the deadline."""
        self.waiter = self.loop.create_future()
        self.arm()
        try:
            await self.waiter
        finally:
            self.waiter = None

    async def send(self, head: bytes, body: bytes) -> None:
        """Write a request. A body of more than WRITE_BYTES goes as fast as the server takes it. Raises WriteTimeout."""
        self.answering = True
        self.writes.write(head + body[:WRITE_BYTES])
        self.sent_at = self.loop.time()
        for start in range(WRITE_BYTES, len(body), WRITE_BYTES):
            while self.write_paused and not self.closed and not self.head_done:
                await self.drain()
            if self.transport.is_closing() or self.head_done:
                self.reusable = False  # an early answer, such as 413: the rest is not wanted
                return
            self.writes.write(body[start : start + WRITE_BYTES])
            self.sent_at = self.loop.time()

    async def drain(self) -> None:
        """Wait until the socket takes more, or an answer comes. Raises WriteTimeout at the deadline."""
        self.drained = self.loop.create_future()
        try:
            async with asyncio.timeout_at(self.deadline):
                await self.drained
        except TimeoutError:
            raise httpx.WriteTimeout("The server did not take the request in time.") from None

    async def head(self) -> None:
        """Wait for the head of the answer. Raises httpx.TransportError."""
        while not self.head_done and self.error is None:
            await self.wait()
        if self.error is not None and not (self.head_done and self.chunks):
            raise self.error

    async def read(self) -> bytes:
        """The body since the last call; b"" at its end. Raises httpx.TransportError, DecodingError."""
        while True:
            if self.chunks and not self.tail:
                data = self.take_chunks()
                if self.inflate is None:
                    return data
                self.tail = memoryview(data)
            if self.tail:
                data = self.unpack()
                if data:
                    return data
                if self.loop.time() >= self.deadline:  # compressed bytes may inflate to nothing
                    raise httpx.ReadTimeout(SILENT)
            elif self.error is not None:
                raise self.error
            elif self.complete:
                self.check_unpacked()
                return b""
            else:
                await self.wait()

    async def forward(self, sink: Sink) -> None:
        """Give the bytes of the body to `sink` as they come, until it returns False, the answer ends, or it breaks.

        `read` has the rest. The reader's task sleeps meanwhile: a chunk costs 20 µs less than by `read`. Raises ReadTimeout
        at the deadline.
        """
        if self.chunks or self.complete or self.error is not None or self.inflate is not None:
            return
        self.sink = sink
        try:
            await self.wait()
        finally:
            self.sink = None

    def take_chunks(self) -> bytes:
        data = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self.buffered = 0
        if self.paused:
            self.paused = False
            if not self.closed:
                self.transport.resume_reading()
        return data

    def unpack(self) -> bytes:
        """Inflate a bounded piece: a small bomb stays small. Raises DecodingError."""
        if self.inflate.eof:  # another gzip may follow, and nothing else (RFC 1952)
            self.inflate = zlib.decompressobj(GZIP)
        try:
            data: bytes = self.inflate.decompress(self.tail[:INFLATE_BYTES], BUFFER_BYTES)
        except zlib.error as exc:
            raise httpx.DecodingError("The answer's compression is broken.") from exc
        rest = self.inflate.unused_data or self.inflate.unconsumed_tail
        self.tail = self.tail[min(len(self.tail), INFLATE_BYTES) - len(rest) :]
        return data

    def check_unpacked(self) -> None:
        if self.inflate is not None and not self.inflate.eof:
            raise httpx.DecodingError("The answer's compression is cut short.")

    async def aclose(self) -> None:
        """Give the connection back, or close it if the answer has not ended."""
        if not self.held:
            return
        self.held = False
        if self.complete:
            self.owner.release(self)
        elif not self.lingering:
            self.abort()

    def linger(self) -> None:
        """Discard the rest of the answer, so that the connection can be reused."""
        if self.complete or self.closed or not self.reusable or self.inflate is not None:
            return
        self.lingering = True
        self.buffered = 0
        self.chunks.clear()
        self.linger_timer = self.loop.call_later(LINGER_SECONDS, self.abort)
        if self.paused:
            self.paused = False
            self.transport.resume_reading()
