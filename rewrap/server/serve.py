"""How the app is served: uvicorn, told once what is right here, and a gentle end at SIGTERM.

Does not know the app: `graceful` takes what drains it by a callable.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing import parent_process
from secrets import token_hex
from typing import Any

import httptools
import orjson
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

log = logging.getLogger("rewrap")

ENDS = (signal.SIGTERM, signal.SIGINT)
UNSENT_SECONDS = 1.0  # at least, for what a client has yet to read when everything is answered
HEAD_BYTES = 64 * 2**10
NO_HTTP = 400, "This is not an HTTP request."
TOO_SLOW = 408, "The rest of the request did not come in time."
TOO_LARGE = (
    431,
    f"The head of the request is too large: this server takes {HEAD_BYTES} bytes at most.",
)


class HeadCoalescingTransport:
    """A transport that lets the head of an answer wait for its body: one system call for both, 8 µs less a request.

    It waits until the next turn of the loop at most, and 100 Continue not at all.
    """

    __slots__ = ("head", "is_closing", "loop", "transport")

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.transport, self.loop, self.head = transport, loop, b""
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def write(self, data: Any) -> None:
        if self.head:
            head, self.head = self.head, b""
            self.transport.write(head + data)
        elif (
            data.startswith(b"HTTP/1.1 ")
            and not data.startswith(b"HTTP/1.1 1")
            and data.endswith(b"\r\n\r\n")
        ):
            self.head = data
            self.loop.call_soon(self.flush)
        else:
            self.transport.write(data)

    def flush(self) -> None:
        if self.head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self.transport.close()


class Protocol(HttpToolsProtocol):
    """uvicorn's on httptools, with bounds in size and time, OpenAI's envelope where it refuses, and deaf to upgrades.

    A head may have HEAD_BYTES, and so may what else is no body: trailers, extensions of chunks. Who is slower than
    PATIENCE_SECONDS (twice that at most) to send the rest of a request, or to take any more of an answer, is let go: that
    is one timer a connection, and none a request.
    """

    # Beside uvicorn's own, in its dictionary, these would cost 2 kB a connection.
    __slots__ = ("heard", "overhead", "refused", "running", "slow_head", "timer", "unsent")
    PATIENCE_SECONDS = 60.0

    def connection_made(self, transport: Any) -> None:
        corked: Any = HeadCoalescingTransport(transport, self.loop)
        super().connection_made(corked)
        self.overhead = 0  # bytes in a row that are no body
        self.refused = self.heard = False
        self.unsent = -1  # at the last look
        self.slow_head: Any = None
        self.running: Any = (
            None  # what is being answered; `cycle` is the newest request, which may wait behind it
        )
        self.timer = self.loop.call_later(self.PATIENCE_SECONDS, self.look)

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        super().connection_lost(exc)
        if self.running is not None and not self.running.response_complete:
            self.running.disconnected = True
            self.running.message_event.set()

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
                self.refuse(*NO_HTTP)
        if self.overhead > HEAD_BYTES:
            self.refuse(*TOO_LARGE)

    def on_headers_complete(self) -> None:
        if (
            self.overhead > HEAD_BYTES
            and len(self.url) + sum(len(n) + len(v) for n, v in self.headers) > HEAD_BYTES
        ):
            self.refuse(*TOO_LARGE)
            raise ValueError
        self.overhead = 0
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            if len(self.pipeline) == 1:  # one may wait: who leaves meanwhile is still to be noticed
                self.flow.resume_reading()
            self.headers = []  # the scope has them; what a trailer says is not among them
        elif self.parser.get_method() == b"CONNECT":
            raise ValueError

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def head_without_upgrade(self) -> bytes:
        """What a parser that is new is told instead: one that has seen an upgrade takes the body for the next request.

        Java asks for HTTP/2 with each request (`Upgrade: h2c`).
        """
        first = b"%b %b HTTP/%b" % (
            self.parser.get_method(),
            self.url,
            self.parser.get_http_version().encode(),
        )
        lines = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join([first, *lines, b"", b""])

    def on_body(self, body: bytes) -> None:
        self.overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()
            self.cycle.more_body = False  # where it has been answered already, too

    def refuse(self, status: int, message: str) -> None:
        """Answer instead of the app, and close; where the request before it is yet to be answered, close after that."""
        if self.refused:
            return
        self.refused = True
        cycle = self.cycle
        begun = cycle is not None and cycle.more_body
        if begun:
            cycle.disconnected, cycle.waiting_for_100_continue = True, False
            cycle.message_event.set()
        if self.pipeline:  # what is being answered, and what waits and is whole, are the last
            if begun:
                self.pipeline.popleft()
            last = self.pipeline[0][0] if self.pipeline else self.running
            last.keep_alive = False
            return
        if begun and cycle.response_started:
            self.transport.close()
            return
        if cycle is not None and not begun and not cycle.response_complete:
            cycle.keep_alive = False
            return
        id = f"req_{token_hex(16)}"
        log.info("refused: %d %s id=%s", status, message, id)
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        body = orjson.dumps({"error": error})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\nx-request-id: %b\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head % (len(body), id.encode()) + body)
        self.transport.write_eof()  # closed with bytes unread, the connection would be reset, and the answer lost
        self.timer.cancel()
        self.timer = self.loop.call_later(UNSENT_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unsent = -1

    def look(self) -> None:
        """Has anything come, or gone, since the last look?"""
        self.timer = self.loop.call_later(self.PATIENCE_SECONDS, self.look)
        cycle, unsent = self.cycle, -1
        head: Any = None
        if self.flow.write_paused or self.transport.is_closing():
            unsent = self.transport.get_write_buffer_size()
            if unsent == self.unsent:
                self.transport.abort()
        elif not (
            self.flow.read_paused or (cycle and not cycle.response_complete and not cycle.more_body)
        ):
            # We are not at work for it.
            head = self.headers if self.scope and self.headers is self.scope["headers"] else None
            if not self.heard or (head is not None and head is self.slow_head):
                if head is not None or (cycle and cycle.more_body):
                    self.refuse(*TOO_SLOW)
                else:
                    self.transport.close()
        self.heard, self.slow_head, self.unsent = False, head, unsent


def serve_app(
    app: Any,
    *,
    host: str,
    port: int,
    workers: int,
    forwarded_allow_ips: str,
    announce: Callable[[str], None],
) -> None:
    """Serve until a signal. `app` is the app, or "module:name" where there are workers; `announce` gets the address."""
    # They wait until somebody hears them, in `graceful`: before, they would end this with -15, or not at all as PID 1.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    # /ask is cut on purpose where it cannot be finished, and says so in its own line.
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: "without completing" not in record.getMessage()
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard)
    )  # each stream is two descriptors
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        workers=workers,
        http=Protocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        forwarded_allow_ips=forwarded_allow_ips,
        ws="none",  # with `websockets` installed, a bad handshake would hang
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:  # who connects as soon as the start line is out waits, and is not refused
        both = host == "::" and socket.has_dualstack_ipv6()  # all addresses, of IPv4 too
        sock = socket.create_server(
            (host, port), family=family, backlog=config.backlog, dualstack_ipv6=both
        )
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        sys.exit(f"rewrap: HOST {host}, PORT {port}: {reason}")
    sock.set_inheritable(True)  # by the workers
    name = f"[{host}]" if ":" in host else host
    announce(f"http://{name}:{sock.getsockname()[1]}")
    if workers > 1:
        serve_by_workers(config, sock)
    else:
        uvicorn.Server(config).run(sockets=[sock])
    try:
        if sys.stderr:
            sys.stderr.flush()
    except OSError:  # nobody reads the log any more: Python would try again, and exit with 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    sys.exit(0)


def serve_by_workers(config: uvicorn.Config, sock: Any) -> None:
    """Processes that share the socket; one that dies is replaced. Exits with uvicorn's code where they cannot start."""
    from uvicorn.supervisors.multiprocess import Multiprocess

    class Supervisor(Multiprocess):
        second = False

        def handle_signals(self) -> None:
            """Twice a second: two may have come since."""
            self.second = len(self.signal_queue) > 1
            super().handle_signals()

        def join_all(self) -> None:
            """Wait for the workers, and hand a second signal on: uvicorn's would hear no more."""
            while living := [process for process in self.processes if process.process.is_alive()]:
                time.sleep(0.05)  # two at the same moment would be one
                if self.second or self.signal_queue:
                    self.second = False
                    self.signal_queue.clear()
                    for process in living:
                        process.process.terminate()

    supervisor = Supervisor(config, sockets=[sock])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        sys.exit(STARTUP_FAILURE)


@asynccontextmanager
async def graceful(
    drain: Callable[[], Awaitable[None]], grace_seconds: float = 0.0
) -> AsyncIterator[None]:
    """At SIGTERM or SIGINT let `drain` end what is open, then let uvicorn stop, with exit code 0. A second signal is at once.

    uvicorn alone closes its socket first, waits without end for who does not read, and raises the signal again at its end,
    which is exit code 143. `grace_seconds` from the signal on is what a client has to read what was sent.
    """
    loop = asyncio.get_running_loop()
    previous: dict[int, Any] = {}
    stops: list[asyncio.Task[None]] = []

    def cut(server: Any) -> None:
        server.should_exit = True
        for connection in list(
            server.server_state.connections
        ):  # their requests end as those of clients that left
            connection.transport.abort()
        loop.call_later(0.1, cancel, server)

    def cancel(server: Any) -> None:
        for task in list(server.server_state.tasks):  # what did not end with its connection
            task.cancel()

    async def stop(server: Any) -> None:
        end = loop.time() + grace_seconds
        await drain()
        server.should_exit = True
        await asyncio.sleep(max(end - loop.time(), UNSENT_SECONDS))
        cut(server)

    def begin(server: Any) -> None:
        if stops:
            cut(server)
        else:
            stops.append(loop.create_task(stop(server)))

    def on_signal(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(begin, previous[number].__self__)

    def on_orphaned(server: Any, sentinel: int) -> None:
        loop.remove_reader(sentinel)
        if not stops:
            begin(server)

    for number in ENDS:
        handler = signal.getsignal(number)
        if isinstance(
            getattr(handler, "__self__", None), uvicorn.Server
        ):  # not in tests, nor other servers
            previous[number] = handler
            signal.signal(number, on_signal)
    if previous:
        # What was made at the start stays: no collection need walk it. A full one stopped everybody for 20 ms, and all of
        # them together were 9 % of the CPU.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 50)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
    if previous and (parent := parent_process()):
        # Ctrl-C reaches all of a terminal: workers wait for their parent's word, or its end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop.add_reader(
            parent.sentinel, on_orphaned, previous[signal.SIGTERM].__self__, parent.sentinel
        )
    yield
    for task in stops:
        task.cancel()
