"""How the app is served: uvicorn, told once what is right here, and a gentle end at SIGTERM.

Does not know the app: `graceful` takes what it drains by two callables.
"""

import asyncio
import logging
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

log = logging.getLogger("rewrap")

BAD_REQUEST = (
    b'{"error":{"message":"This is not an HTTP request.","type":"invalid_request_error","param":null,"code":null}}'
)


def http_protocol() -> Any:
    """uvicorn's protocol on httptools, with OpenAI's envelope where a request cannot be parsed; "auto" without httptools."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "auto"

    class Protocol(HttpToolsProtocol):
        def send_400_response(self, msg: str) -> None:
            head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(head + b"content-length: %d\r\n\r\n" % len(BAD_REQUEST) + BAD_REQUEST)
            self.transport.close()

    return Protocol


def run(
    app: Any, *, host: str, port: int, workers: int, forwarded_allow_ips: str, announce: Callable[[str], None]
) -> None:
    """Serve until a signal. `app` is the app, or "module:name" where there are workers; `announce` gets the address."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))  # each stream is two descriptors
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        workers=workers,
        http=http_protocol() if workers == 1 else "auto",
        log_level="warning",
        access_log=False,
        server_header=False,
        forwarded_allow_ips=forwarded_allow_ips,
        ws="none",  # with `websockets` installed, a bad handshake would hang
    )
    sock = config.bind_socket()
    sock.listen(config.backlog)  # who connects as soon as the start line is out waits, and is not refused
    name = f"[{host}]" if ":" in host else host
    announce(f"http://{name}:{sock.getsockname()[1]}")
    if workers > 1:
        from uvicorn.supervisors.multiprocess import Multiprocess

        Multiprocess(config, sockets=[sock]).run()
    else:
        uvicorn.Server(config).run(sockets=[sock])
    sys.exit(0)


@asynccontextmanager
async def graceful(drain: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """At SIGTERM or SIGINT let `drain` end what is open, then let uvicorn stop, with exit code 0. A second signal is at once.

    uvicorn alone closes its socket first and raises the signal again at its end, which is exit code 143.
    """
    loop = asyncio.get_running_loop()
    previous: dict[int, Any] = {}
    drains: list[asyncio.Future[None]] = []

    async def stop(server: Any) -> None:
        await drain()
        server.should_exit = True

    def begin(server: Any) -> None:
        if drains:
            server.should_exit = server.force_exit = True
        else:
            drains.append(asyncio.ensure_future(stop(server)))

    def on_signal(number: int, frame: Any) -> None:
        server = previous[number].__self__
        loop.call_soon_threadsafe(begin, server)

    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if isinstance(getattr(handler, "__self__", None), uvicorn.Server):  # not in tests, nor other servers
            previous[number] = handler
            signal.signal(number, on_signal)
    yield
