"""The way to the upstream: a keep-alive pool for httpx, made of asyncio protocols and a parser in C.

httpx's own pool costs milliseconds of CPU a request under load, and never recovers from a burst of cancelled ones
(encode/httpcore#1093). Here the pool of an origin is a list, its newest idle connection taken first, and a request
that is cancelled aborts its connection on the spot. The way in is `Transport.exchange`: httpx's Request and Response
cost more than the rest of the way.

Speaks HTTP/1.1 for requests whose body is at hand, straight or by way of a proxy. It does not do: HTTP/2, HEAD,
upgrades, redirects, cookies, `Expect`, streamed request bodies, racing IPv6 against IPv4 (addresses are tried in the
resolver's order).

Raises httpx's exceptions only: ConnectError, ConnectTimeout, PoolTimeout, ReadError, ReadTimeout, WriteError,
WriteTimeout, RemoteProtocolError, DecodingError.
"""

import asyncio
import socket
import ssl
import zlib
from base64 import b64encode
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

import httptools
import httpx

from rewrap.eventloop import running_loop

Origin = tuple[bool, str, int]  # TLS, host, port
Target = tuple[
    Origin, bytes
]  # where requests go, and the head they share but for Content-Length and the blank line

FRAMING = {"content-length", "transfer-encoding", "connection"}
HEAD_BYTES = 65_536  # of a response head, or of what else is no body: trailers, chunk sizes
BUFFER_BYTES = (
    262_144  # unread body at which the socket is read no further until the reader has caught up
)
WRITE_BYTES = 262_144  # of a request body given to the socket at a time
INFLATE_BYTES = 16_384  # inflated at a time: what follows the end of a gzip is copied for each
LINGER_SECONDS = 1.0  # for the rest of an answer that nobody reads, before its connection is closed


class Connection(asyncio.Protocol):
    """One connection to an origin; its owner sends a request, reads the answer to its end, and sends the next one."""

    __slots__ = ("abandoned", "answering", "buffered", "chunks", "closed", "complete", "deadline", "drained", "error", "head_done", "headers", "held", "idle_since", "inflate", "linger_timer", "lingering", "loop", "origin", "overhead", "parser", "paused", "pool", "reusable", "status", "tail", "timer", "transport", "until_close", "used", "waiter", "write_paused")  # fmt: skip

    def __init__(self, pool: "Transport", origin: Origin) -> None:
        self.pool, self.origin = pool, origin
        self.loop = pool.loop
        self.transport: Any = None
        self.parser = httptools.HttpResponseParser(self)
        self.closed = self.abandoned = self.paused = self.write_paused = False
        self.used = False  # whether it has carried an answer: only then can the keep-alive race be why it closed
        self.idle_since = 0.0
        self.deadline = 0.0  # loop time by which the reader must have got something
        self.timer: asyncio.TimerHandle | None = None
        self.linger_timer: asyncio.TimerHandle | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.drained: asyncio.Future[None] | None = None
        self.reset()

    def reset(self) -> None:
        """For one exchange: answering, then head_done, then complete (perhaps lingering before), then not held, then idle."""
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.chunks: list[bytes] = []
        self.buffered = 0
        self.overhead = 0  # bytes since the last of the body
        self.answering = self.head_done = self.complete = self.lingering = self.until_close = False
        self.reusable = self.held = True  # held: until its reader gives it back by aclose()
        self.error: httpx.RequestError | None = None
        self.inflate: Any = None
        self.tail: bytes | memoryview = b""  # compressed, and not yet read

    # From the socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        if self.abandoned:
            transport.abort()  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if (
            not self.answering
        ):  # bytes that nobody asked for: whatever they are, they are not our next answer
            self.abort()
            return
        self.overhead += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(httpx.RemoteProtocolError("The server switched protocols."))
        except httptools.HttpParserError as exc:
            self.fail(httpx.RemoteProtocolError(f"Not HTTP: {exc}"))
        if self.overhead > HEAD_BYTES and not self.complete:
            self.fail(httpx.RemoteProtocolError("The head of the answer is too large."))
        self.wake()

    def on_message_begin(self) -> None:
        if (
            self.complete
        ):  # more than the answer: nobody can tell what would come before the next one
            raise ValueError

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_done:  # later ones are trailers, or of an answer that nobody asked for
            name = name.lower()
            self.headers[name] = (
                self.headers[name] + b", " + value if name in self.headers else value
            )

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status < 200:  # 100 and 103 come before the real head
            self.headers = {}
            return
        self.status, self.head_done = status, True
        self.reusable = self.parser.should_keep_alive()
        framed = (
            b"content-length" in self.headers
            or b"chunked" in self.headers.get(b"transfer-encoding", b"").lower()
        )
        self.until_close = not framed and status not in (204, 304)
        if (coding := self.headers.get(b"content-encoding", b"identity").lower()) in (
            b"gzip",
            b"x-gzip",
            b"deflate",
        ):
            self.inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        elif coding not in (b"identity", b""):
            self.fail(httpx.DecodingError("The answer is in an encoding that was not asked for."))

    def on_body(self, data: bytes) -> None:
        self.overhead = 0
        if self.error is not None:
            return
        if self.lingering:
            self.buffered += len(data)
            if self.buffered > BUFFER_BYTES:
                self.abort()
            return
        self.chunks.append(data)
        self.buffered += len(data)
        if self.buffered > BUFFER_BYTES and not self.paused:
            self.paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if not self.head_done:
            return
        self.complete, self.answering = True, False
        if self.lingering and not self.held:
            self.pool.release(self)

    def eof_received(self) -> None:
        if self.until_close and self.head_done and not self.complete and self.error is None:
            self.complete, self.reusable, self.answering = True, False, False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if exc and self.answering and not self.transport.get_extra_info("sslcontext"):
            self.salvage()
        if self.answering and not self.complete and self.error is None:
            self.error = (
                httpx.ReadError("The connection broke.")
                if exc
                else httpx.RemoteProtocolError("Cut short.")
            )
        self.wake()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.pool.forget(self)

    def salvage(self) -> None:
        """Read what the kernel still holds: a write that met the reset hides the early answer (413) before it."""
        self.paused = True  # there is no socket to pause any more
        held = self.transport.get_extra_info("socket")
        with suppress(OSError), socket.fromfd(held.fileno(), held.family, held.type) as left:
            while data := left.recv(BUFFER_BYTES):
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
        """Keep the one timer no later than the deadline; a deadline that moved on costs nothing until it fires."""
        if self.timer is not None:
            if self.timer.when() <= self.deadline:
                return
            self.timer.cancel()
        self.timer = self.loop.call_at(self.deadline, self.expire)

    def expire(self) -> None:
        self.timer = None
        if (
            self.answering
            and not self.lingering
            and self.waiter is not None
            and not self.waiter.done()
        ):
            if self.loop.time() < self.deadline:
                self.arm()
            else:
                self.waiter.set_exception(httpx.ReadTimeout("The server was silent for too long."))

    async def wait(self) -> None:
        """Until something has come from the socket. Raises ReadTimeout at the deadline."""
        self.waiter = self.loop.create_future()
        self.arm()
        try:
            await self.waiter
        finally:
            self.waiter = None

    async def send(self, head: bytes, body: bytes) -> None:
        """Write a request; a body of more than WRITE_BYTES goes as fast as the server takes it."""
        self.answering = True
        self.transport.write(head + body[:WRITE_BYTES])
        for start in range(WRITE_BYTES, len(body), WRITE_BYTES):
            while self.write_paused and not self.closed and not self.head_done:
                self.drained = self.loop.create_future()
                try:
                    async with asyncio.timeout_at(self.deadline):
                        await self.drained
                except TimeoutError:
                    raise httpx.WriteTimeout(
                        "The server did not take the request in time."
                    ) from None
            if (
                self.transport.is_closing() or self.head_done
            ):  # an early answer, such as 413: the rest is not wanted
                self.reusable = False
                return
            self.transport.write(body[start : start + WRITE_BYTES])

    async def head(self) -> None:
        while not self.head_done and self.error is None:
            await self.wait()
        if self.error is not None and not (self.head_done and self.chunks):
            raise self.error

    async def read(self) -> bytes:
        """What has come of the body since the last call; b"" at its end. Raises httpx.TransportError."""
        while True:
            if self.chunks and not self.tail:
                data = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
                self.chunks = []
                self.buffered = 0
                if self.paused:
                    self.paused = False
                    if not self.closed:
                        self.transport.resume_reading()
                if self.inflate is None:
                    return data
                self.tail = memoryview(data)
            if self.tail:
                if data := self.unpack():
                    return data
                if self.loop.time() >= self.deadline:  # what comes to nothing is silence, too
                    raise httpx.ReadTimeout("The server was silent for too long.")
            elif self.error is not None:
                raise self.error
            elif self.complete:
                if self.inflate is not None and not self.inflate.eof:
                    raise httpx.DecodingError("The answer's compression is cut short.")
                return b""
            else:
                await self.wait()

    def unpack(self) -> bytes:
        """Inflate a bounded piece at a time, so that a small bomb stays small. Raises DecodingError."""
        if self.inflate.eof:  # by RFC 1952 a gzip may follow the other, and nothing else may
            self.inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            out: bytes = self.inflate.decompress(self.tail[:INFLATE_BYTES], BUFFER_BYTES)
        except zlib.error as exc:
            raise httpx.DecodingError("The answer's compression is broken.") from exc
        left = self.inflate.unused_data or self.inflate.unconsumed_tail
        self.tail = self.tail[min(len(self.tail), INFLATE_BYTES) - len(left) :]
        return out

    async def aclose(self) -> None:
        """Give the connection back, or close it where the answer is not at its end."""
        if not self.held:
            return
        self.held = False
        if self.complete:
            self.pool.release(self)
        elif not self.lingering:
            self.abort()

    def linger(self) -> None:
        """What was wanted has come: let the rest of the answer arrive unread, to use the connection again."""
        if self.complete or self.closed or not self.reusable or self.inflate is not None:
            return
        self.lingering, self.buffered, self.chunks = True, 0, []
        self.linger_timer = self.loop.call_later(LINGER_SECONDS, self.abort)
        if self.paused:
            self.paused = False
            self.transport.resume_reading()


def origin_of(url: httpx.URL) -> Origin:
    tls = url.scheme == "https"
    return tls, url.raw_host.decode("ascii"), url.port or (443 if tls else 80)


class Transport(httpx.AsyncBaseTransport):
    """A pool of at most `max_connections`, to any number of origins.

    `connect_timeout` is in seconds, name look-up, TCP and TLS together; so is the wait for a place in the pool.
    `keepalive_expiry` is in seconds: below the 5 s after which uvicorn and Node close an idle connection.
    `proxy` is a URL: asked for whole URLs, and for tunnels (CONNECT) where those begin with https://.
    """

    def __init__(
        self,
        max_connections: int = 2000,
        connect_timeout: float = 5.0,
        keepalive_expiry: float = 4.0,
        proxy: str = "",
    ) -> None:
        self.max_connections = max_connections
        self.connect_timeout = connect_timeout
        self.keepalive_expiry = keepalive_expiry
        self.idle: dict[Origin, list[Connection]] = {}
        self.connections: set[Connection] = set()
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.sweeper: asyncio.TimerHandle | None = None
        via = httpx.URL(proxy)
        self.proxy = origin_of(via) if proxy else None
        user = b64encode(f"{via.username}:{via.password}".encode())
        self.credentials = b"proxy-authorization: Basic %b\r\n" % user if via.userinfo else b""
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]  # known at the first request

    def target(self, method: str, url: httpx.URL, headers: Mapping[str, str]) -> Target:
        netloc, path = url.netloc.decode("ascii"), url.raw_path.decode("ascii")
        direct = url.scheme == "https" or self.proxy is None
        fields = {"host": netloc} | {
            name.lower(): value for name, value in headers.items()
        }  # a Host of one's own is the one
        if own := fields.keys() & FRAMING:
            raise httpx.LocalProtocolError(f"The header {own.pop()} is for this program to send.")
        lines = [f"{method} {path if direct else f'http://{netloc}{path}'} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        if any("\r" in line or "\n" in line or "\0" in line for line in lines):
            raise httpx.LocalProtocolError("A header has a line break in it.")
        head = (
            "\r\n".join(lines).encode("latin-1") + b"\r\n" + (b"" if direct else self.credentials)
        )
        return origin_of(url), head

    async def exchange(
        self, target: Target, extra: bytes, body: bytes, deadline: float
    ) -> Connection:
        """Send a request and wait for the head of its answer, until `deadline` (loop time).

        `extra` is more header lines, each with its CRLF. The answer is the connection itself: `status`, `headers`
        (lower-case names), `read()`, `deadline` to move on, and `aclose()` to call in any case.
        """
        origin, shared = target
        head = b"%bcontent-length: %d\r\n%b\r\n" % (shared, len(body), extra)
        connection = await self.acquire(origin, fresh=False)
        while True:
            connection.reset()
            connection.deadline = deadline
            try:
                await connection.send(head, body)
                await connection.head()
                return connection
            except (httpx.ReadError, httpx.RemoteProtocolError):
                # The keep-alive race: a connection that had served before was closed while this request was on
                # its way, and not a byte of an answer came. It was not seen by the server: ask once more.
                again = connection.used and not connection.status and not connection.overhead
                connection.abort()
                if not again:
                    raise
            except BaseException:
                connection.abort()
                raise
            connection = await self.acquire(origin, fresh=True)

    async def acquire(self, origin: Origin, *, fresh: bool) -> Connection:
        """The newest idle connection to `origin`, or a new one; waits for its turn where the pool is full."""
        if self.loop is not running_loop():
            self.move()
        deadline = 0.0
        while True:
            idle = self.idle.get(origin)
            while idle and not fresh:
                connection = idle.pop()
                if (
                    not connection.closed
                    and self.loop.time() - connection.idle_since < self.keepalive_expiry
                ):
                    return connection
                connection.abort()
            if len(self.connections) < self.max_connections or self.evict():
                break
            first, deadline = not deadline, deadline or self.loop.time() + self.connect_timeout
            await self.turn(deadline, first)
        connection = Connection(self, origin)
        self.connections.add(connection)
        try:
            async with asyncio.timeout(self.connect_timeout):
                await self.connect(connection)
        except BaseException as exc:
            # A connect that ends just as it is cancelled has made its connection: abort() closes it then, too.
            connection.abort()
            self.forget(connection)
            if isinstance(exc, TimeoutError):
                raise httpx.ConnectTimeout("The server could not be reached in time.") from exc
            # asyncio of Python 3.11 fails with a TypeError where TLS within TLS does.
            if isinstance(exc, (OSError, httpx.TransportError, TypeError)):
                raise httpx.ConnectError("The server cannot be reached.") from exc
            raise
        return connection

    def move(self) -> None:
        """To the running loop, the first one, or a test's own: in it, another's connections are of no use."""
        if self.sweeper is not None:
            self.sweeper.cancel()
        self.loop, self.sweeper = running_loop(), None
        self.idle, self.connections, self.waiters = {}, set(), deque()

    async def connect(self, connection: Connection) -> None:
        tls, host, port = connection.origin
        first_tls, first_host, first_port = self.proxy or connection.origin
        context = self.ssl_context if first_tls else None
        await self.loop.create_connection(lambda: connection, first_host, first_port, ssl=context)
        if self.proxy is None or not tls:
            return
        where = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode("ascii")
        connection.deadline = self.loop.time() + self.connect_timeout
        await connection.send(
            b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (where, where, self.credentials), b""
        )
        await connection.head()
        if (
            not 200 <= connection.status < 300
            or connection.chunks
            or connection.transport.is_closing()
        ):
            raise ConnectionError("The proxy made no tunnel.")
        connection.reset()
        connection.parser = httptools.HttpResponseParser(
            connection
        )  # the other is still at the proxy's answer
        outer, context = connection.transport, self.ssl_context
        connection.transport = await self.loop.start_tls(
            outer, connection, context, server_hostname=host
        )

    @cached_property
    def ssl_context(self) -> ssl.SSLContext:
        context = httpx.create_ssl_context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    def evict(self) -> bool:
        """Close the connection that has been idle for longest, to have its place."""
        oldest = min(
            (idle[0] for idle in self.idle.values() if idle),
            key=lambda c: c.idle_since,
            default=None,
        )
        if oldest is None:
            return False
        self.idle[oldest.origin].remove(oldest)
        self.connections.discard(oldest)
        oldest.abort()
        return True

    async def turn(self, deadline: float, first: bool) -> None:
        """Wait until a connection is free or gone: first come, first served. Raises PoolTimeout."""
        waiter: asyncio.Future[None] = self.loop.create_future()
        self.waiters.append(waiter) if first else self.waiters.appendleft(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException as exc:
            if waiter.done() and not waiter.cancelled():
                self.wake_next()  # it had its turn, and cannot use it
            elif waiter in self.waiters:
                self.waiters.remove(waiter)
            if isinstance(exc, TimeoutError):
                raise httpx.PoolTimeout("All connections are busy.") from None
            raise

    def release(self, connection: Connection) -> None:
        """Back into the pool."""
        if (
            connection.closed
            or connection.paused
            or not connection.reusable
            or connection.loop is not self.loop
        ):
            connection.abort()
            return
        connection.used = True
        if connection.linger_timer is not None:
            connection.linger_timer.cancel()
            connection.linger_timer = None
        connection.lingering = False
        connection.idle_since = self.loop.time()
        self.idle.setdefault(connection.origin, []).append(connection)
        if self.sweeper is None:
            self.sweeper = self.loop.call_later(self.keepalive_expiry, self.sweep)
        if self.waiters:
            self.wake_next()

    def forget(self, connection: Connection) -> None:
        """It is closed: its place is free."""
        self.connections.discard(connection)
        idle = self.idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)
        self.wake_next()

    def wake_next(self) -> None:
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def sweep(self) -> None:
        """Close what has been idle for too long."""
        self.sweeper = None
        limit = self.loop.time() - self.keepalive_expiry
        for origin, idle in list(self.idle.items()):
            while idle and idle[0].idle_since <= limit:
                idle.pop(0).abort()
            if not idle:
                del self.idle[origin]
        if self.idle:
            self.sweeper = self.loop.call_later(self.keepalive_expiry / 2, self.sweep)

    async def aclose(self) -> None:
        """Close what is open; the next request opens it anew."""
        if self.loop is not running_loop():
            self.move()
        if self.sweeper is not None:
            self.sweeper.cancel()
            self.sweeper = None
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)  # lets the sockets close
