"""The pool of connections to upstreams, and the transport for httpx that uses it.

httpx's own pool costs milliseconds of CPU per request under load, and does not recover from a burst of cancelled
requests (encode/httpcore#1093). Here the pool of an origin is a list, the newest idle connection is taken first, and a
cancelled request aborts its connection at once. The entry is `Transport.exchange`: httpx's Request and Response cost
more than all the rest.

A request goes out once. It is sent again, on a new connection, only if an upstream cannot have seen it: a reused connection
closed within 100 ms of the send, without a byte of an answer. That is the race between a request and the end of an idle
connection. An upstream that works for longer and then closes is not asked twice.

Speaks HTTP/1.1 for requests whose body is in memory, directly or through a proxy. Does not do HTTP/2, HEAD, upgrades,
redirects, cookies, `Expect`, streamed request bodies, or a race of IPv6 against IPv4 (addresses are tried in the
resolver's order).

Raises httpx's exceptions only: ConnectError, ConnectTimeout, PoolTimeout, ReadError, ReadTimeout, WriteError,
WriteTimeout, RemoteProtocolError, DecodingError.
"""

import asyncio
import ssl
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import httptools
import httpx

from rewrap.eventloop import running_loop
from rewrap.upstream.connection import Connection, Origin
from rewrap.upstream.resolver import Resolver

# The origin of requests, and the head that they share, without Content-Length and the blank line.
Target = tuple[Origin, bytes]

RACE_SECONDS = 0.1
FRAMING = {"content-length", "transfer-encoding", "connection"}
BUSY = "All connections are busy."
UNREACHABLE = "The server cannot be reached."
TOO_SLOW = "The server could not be reached in time."
# Errors of a connection attempt. asyncio of Python 3.11 raises TypeError if TLS within TLS fails.
CONNECT_ERRORS = (OSError, httpx.TransportError, TypeError)


def origin_of(url: httpx.URL) -> Origin:
    tls = url.scheme == "https"
    return tls, url.raw_host.decode("ascii"), url.port or (443 if tls else 80)


class Transport(httpx.AsyncBaseTransport):
    """A pool of at most `max_connections`, to any number of origins.

    `connect_timeout` is in seconds, for name look-up, TCP and TLS together; the wait for a place in the pool has the
    same. `keepalive_expiry` is in seconds: below the 5 s after which uvicorn and Node close an idle connection.
    `dns_seconds` is how long the addresses of a name are cached.
    `proxy` is a URL. It gets whole URLs, and for those with https:// it makes tunnels (CONNECT).
    """

    loop: asyncio.AbstractEventLoop
    resolver: Resolver

    def __init__(
        self,
        max_connections: int = 2000,
        connect_timeout: float = 5.0,
        keepalive_expiry: float = 4.0,
        proxy: str = "",
        dns_seconds: float = 30.0,
    ) -> None:
        self.max_connections = max_connections
        self.connect_timeout = connect_timeout
        self.keepalive_expiry = keepalive_expiry
        self.dns_seconds = dns_seconds
        self.proxy: Origin | None = None
        self.credentials = b""  # a header line for the proxy
        if proxy:
            address = httpx.URL(proxy)
            self.proxy = origin_of(address)
            if address.userinfo:
                user = b64encode(f"{address.username}:{address.password}".encode())
                self.credentials = b"proxy-authorization: Basic %b\r\n" % user
        self.sweeper: asyncio.TimerHandle | None = None
        self.running_in: asyncio.AbstractEventLoop | None = None
        self.clear()

    def clear(self) -> None:
        self.idle: dict[Origin, list[Connection]] = {}  # oldest first; closed ones are skipped
        self.connections: set[Connection] = set()
        self.waiters: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    # Requests.

    def target(self, method: str, url: httpx.URL, headers: Mapping[str, str]) -> Target:
        """The constant part of requests to a URL. Raises httpx.LocalProtocolError for headers that cannot be sent."""
        netloc = url.netloc.decode("ascii")
        path = url.raw_path.decode("ascii")
        through_proxy = self.proxy is not None and url.scheme == "http"
        if through_proxy:
            path = f"http://{netloc}{path}"
        fields = {"host": netloc}  # the caller may set another
        for name, value in headers.items():
            fields[name.lower()] = value
        for name in FRAMING & fields.keys():
            raise httpx.LocalProtocolError(f"The header {name} is for this program to send.")
        lines = [f"{method} {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        if any("\r" in line or "\n" in line or "\0" in line for line in lines):
            raise httpx.LocalProtocolError("A header has a line break in it.")
        head = "".join(f"{line}\r\n" for line in lines).encode("latin-1")
        if through_proxy:
            head += self.credentials
        return origin_of(url), head

    async def exchange(
        self, target: Target, extra: bytes, body: bytes, deadline: float
    ) -> Connection:
        """Send a request and wait for the head of its answer, until `deadline` (loop time).

        `extra` is more header lines, each with its CRLF. The answer is the connection itself, which the caller has to
        close by `aclose`.
        """
        origin, shared = target
        head = b"%bcontent-length: %d\r\n%b\r\n" % (shared, len(body), extra)
        connection = await self.acquire(origin)
        while True:
            connection.reset()
            connection.deadline = deadline
            try:
                await connection.send(head, body)
                await connection.head()
                return connection
            except (httpx.ReadError, httpx.RemoteProtocolError):
                connection.abort()
                if not is_keepalive_race(connection):
                    raise
            except BaseException:
                connection.abort()
                raise
            connection = await self.connected(origin)

    # The pool.

    async def acquire(self, origin: Origin) -> Connection:
        """The newest idle connection to `origin`, or a new one."""
        if self.running_in is not running_loop():
            self.move()
        return self.take_idle(origin) or await self.connected(origin, may_reuse=True)

    def take_idle(self, origin: Origin) -> Connection | None:
        idle = self.idle.get(origin)
        while idle:
            connection = idle.pop()
            age = self.loop.time() - connection.idle_since
            if not connection.closed and age < self.keepalive_expiry:
                return connection
            connection.abort()
        return None

    async def connected(self, origin: Origin, *, may_reuse: bool = False) -> Connection:
        """A new connection; waits for its turn if the pool is full, and may take one that becomes idle then.

        Raises PoolTimeout, ConnectTimeout, ConnectError.
        """
        started = self.loop.time()
        with connect_errors():
            async with asyncio.timeout(self.connect_timeout):
                # Before a place in the pool is taken: a name server that is silent for one origin holds none.
                addresses = await self.resolver.addresses((self.proxy or origin)[1])
        remaining = self.connect_timeout - (self.loop.time() - started)
        deadline = 0.0
        while len(self.connections) >= self.max_connections and not self.evict():
            first = not deadline
            if first:
                deadline = self.loop.time() + self.connect_timeout
            await self.wait_for_slot(deadline, first)
            idle = self.take_idle(origin) if may_reuse else None
            if idle is not None:
                return idle
        connection = Connection(self, origin)
        self.connections.add(connection)
        try:
            with connect_errors():
                async with asyncio.timeout(remaining):
                    await self.connect(connection, addresses)
        except BaseException:
            # A cancelled attempt may have made its connection already: abort() closes it then, too.
            connection.abort()
            self.forget(connection)
            raise
        return connection

    def move(self) -> None:
        """Use the running event loop: the first one, or a test's own. Connections of another loop are useless there."""
        if self.sweeper is not None:
            self.sweeper.cancel()
            self.sweeper = None
        self.loop = running_loop()
        self.running_in = self.loop
        self.resolver = Resolver(self.loop, self.dns_seconds)
        self.clear()

    async def connect(self, connection: Connection, addresses: list[str]) -> None:
        """Connect to the origin, through the proxy if there is one. Raises OSError, httpx.TransportError."""
        await self.open(connection, self.proxy or connection.origin, addresses)
        tls, host, _ = connection.origin
        if self.proxy is not None and tls:
            await self.open_tunnel(connection)
            transport = await self.loop.start_tls(
                connection.transport, connection, self.ssl_context, server_hostname=host
            )
            connection.use(transport)

    async def open(self, connection: Connection, origin: Origin, addresses: list[str]) -> None:
        """Connect to the first address that can be reached. Raises OSError."""
        tls, host, port = origin
        context = self.ssl_context if tls else None
        server_hostname = host if tls else None
        failure = OSError("The name has no address.")
        for address in addresses:
            try:
                await self.loop.create_connection(
                    lambda: connection,
                    address,
                    port,
                    ssl=context,
                    server_hostname=server_hostname,
                )
                return
            except ssl.SSLError:
                raise
            except OSError as error:
                failure = error
        self.resolver.forget(host)  # its addresses may have changed
        raise failure

    async def open_tunnel(self, connection: Connection) -> None:
        """Ask the proxy for a tunnel to the connection's origin. Raises ConnectionError, httpx.TransportError."""
        _, host, port = connection.origin
        name = f"[{host}]" if ":" in host else host
        address = f"{name}:{port}".encode("ascii")
        connection.deadline = self.loop.time() + self.connect_timeout
        request = b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n"
        await connection.send(request % (address, address, self.credentials), b"")
        await connection.head()
        opened = 200 <= connection.status < 300
        if not opened or connection.chunks or connection.transport.is_closing():
            raise ConnectionError("The proxy made no tunnel.")
        connection.reset()
        # The first parser has not finished the proxy's answer.
        connection.parser = httptools.HttpResponseParser(connection)

    @cached_property
    def ssl_context(self) -> ssl.SSLContext:
        context = httpx.create_ssl_context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    def evict(self) -> bool:
        """Close the connection with the longest idle time, to free its place. False if none is idle."""
        oldest: Connection | None = None
        for idle in self.idle.values():
            while idle and idle[0].closed:
                idle.pop(0)
            if idle and (oldest is None or idle[0].idle_since < oldest.idle_since):
                oldest = idle[0]
        if oldest is None:
            return False
        self.idle[oldest.origin].pop(0)
        self.connections.discard(oldest)
        oldest.abort()
        return True

    async def wait_for_slot(self, deadline: float, first: bool) -> None:
        """Wait until a connection is free or closed: first come, first served. Raises PoolTimeout.

        A request that waited and found its place taken (`first` is false) goes to the front.
        """
        waiter: asyncio.Future[None] = self.loop.create_future()
        self.waiters[waiter] = None
        self.waiters.move_to_end(waiter, last=first)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException as exc:
            if waiter.done() and not waiter.cancelled():
                self.wake_next()  # it had its turn, and cannot use it
            else:
                self.waiters.pop(waiter, None)
            if isinstance(exc, TimeoutError):
                raise httpx.PoolTimeout(BUSY) from None
            raise

    def release(self, connection: Connection) -> None:
        """Put a connection back into the pool, or close it if it cannot be reused."""
        reusable = connection.reusable and not connection.closed and not connection.paused
        if not reusable or connection.loop is not self.loop:
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
        """Free the place of a closed connection."""
        self.connections.discard(connection)
        self.wake_next()

    def wake_next(self) -> None:
        while self.waiters:
            waiter, _ = self.waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(None)
                return

    def sweep(self) -> None:
        """Close connections that have been idle for too long."""
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
        """Close all connections. The next request opens new ones."""
        if self.running_in is not running_loop():
            self.move()
        if self.sweeper is not None:
            self.sweeper.cancel()
            self.sweeper = None
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)  # lets the sockets close


@contextmanager
def connect_errors() -> Iterator[None]:
    """Translate the errors of a connection attempt to httpx's."""
    try:
        yield
    except TimeoutError as error:
        raise httpx.ConnectTimeout(TOO_SLOW) from error
    except CONNECT_ERRORS as error:
        raise httpx.ConnectError(UNREACHABLE) from error


def is_keepalive_race(connection: Connection) -> bool:
    """Whether the server closed an idle connection while a request was on its way, and so never saw the request."""
    if not connection.used or connection.status or connection.overhead:
        return False
    return connection.lost_at - connection.sent_at <= RACE_SECONDS
