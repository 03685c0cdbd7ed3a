"""How the app is served: uvicorn, told once what is right here, and a gentle end at SIGTERM.

Does not know the app: `graceful` takes what drains it by a callable.
"""

import asyncio
import gc
import logging
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing import parent_process
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger("rewrap")

ENDS = (signal.SIGTERM, signal.SIGINT)
UNSENT_SECONDS = 1.0  # at least, for what a client has yet to read when everything is answered
BAD_REQUEST = (
    b'{"error":{"message":"This is not an HTTP request.","type":"invalid_request_error","param":null,"code":null}}'
)
UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class Corked(asyncio.Transport):
    """A transport that lets the head of an answer wait for its body: one system call for both, 8 µs less a request.

    It waits until the next turn of the loop at most, and 100 Continue not at all.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.transport, self.loop, self.head = transport, loop, b""
        for name in ("is_closing", "pause_reading", "resume_reading", "get_extra_info", "abort", "set_protocol"):
            setattr(self, name, getattr(transport, name))

    def write(self, data: Any) -> None:
        if self.head:
            head, self.head = self.head, b""
            self.transport.write(head + data)
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1") and data.endswith(b"\r\n\r\n"):
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
    """uvicorn's on httptools, with OpenAI's envelope where a request cannot be parsed, and deaf to upgrades.

    Java asks for HTTP/2 with each request (`Upgrade: h2c`), and httptools would then drop the request's body.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(Corked(transport, self.loop))

    def data_received(self, data: bytes) -> None:
        if b"pgrade" in data and (self.cycle is None or self.cycle.response_complete):  # a request begins
            end = data.find(b"\r\n\r\n")
            data = UPGRADE.sub(b"\r\nx-grade:", data[:end]) + data[end:] if end > 0 else data
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(BAD_REQUEST) + BAD_REQUEST)
        self.transport.close()


def run(
    app: Any, *, host: str, port: int, workers: int, forwarded_allow_ips: str, announce: Callable[[str], None]
) -> None:
    """Serve until a signal. `app` is the app, or "module:name" where there are workers; `announce` gets the address."""
    # They wait until somebody hears them, in `graceful`: before, they would end this with -15, or not at all as PID 1.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    # /ask is cut on purpose where it cannot be finished, and says so in its own line.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "without completing" not in record.getMessage())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))  # each stream is two descriptors
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
        sock = socket.create_server((host, port), family=family, backlog=config.backlog, dualstack_ipv6=both)
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
    sys.exit(0)


def serve_by_workers(config: uvicorn.Config, sock: Any) -> None:
    """Processes that share the socket; one that dies is replaced. Exits with uvicorn's code where they cannot start."""
    from uvicorn.supervisors.multiprocess import Multiprocess

    class Supervisor(Multiprocess):
        def join_all(self) -> None:
            """Wait for the workers, and hand a second signal on: uvicorn's would hear no more."""
            while living := [process for process in self.processes if process.process.is_alive()]:
                if self.signal_queue:
                    self.signal_queue.clear()
                    for process in living:
                        process.process.terminate()
                time.sleep(0.05)

    supervisor = Supervisor(config, sockets=[sock])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        sys.exit(STARTUP_FAILURE)


@asynccontextmanager
async def graceful(drain: Callable[[], Awaitable[None]], grace_seconds: float = 0.0) -> AsyncIterator[None]:
    """At SIGTERM or SIGINT let `drain` end what is open, then let uvicorn stop, with exit code 0. A second signal is at once.

    uvicorn alone closes its socket first, waits without end for who does not read, and raises the signal again at its end,
    which is exit code 143. `grace_seconds` from the signal on is what a client has to read what was sent.
    """
    loop = asyncio.get_running_loop()
    previous: dict[int, Any] = {}
    stops: list[asyncio.Task[None]] = []

    def cut(server: Any) -> None:
        server.should_exit = True
        for connection in list(server.server_state.connections):  # their requests end as those of clients that left
            connection.transport.abort()

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

    for number in ENDS:
        handler = signal.getsignal(number)
        if isinstance(getattr(handler, "__self__", None), uvicorn.Server):  # not in tests, nor other servers
            previous[number] = handler
            signal.signal(number, on_signal)
    if previous:
        # What was made at the start stays: no collection need walk it. A full one stopped everybody for 20 ms, and all of
        # them together were 9 % of the CPU.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 50)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
    if previous and parent_process():  # Ctrl-C reaches all of a terminal: workers wait for their parent's word
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    for task in stops:
        task.cancel()
