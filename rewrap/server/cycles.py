"""A request as the HTTP protocol sees it, and its answer in chunks. uvicorn calls a request and its answer a cycle.

Does not know the app.
"""

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from uvicorn._types import (
    ASGI3Application,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    HTTPScope,
    Scope,
)
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

NO_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)


class Cycle(RequestResponseCycle):
    """One request and its answer. The initial values are attributes of the class: they cost a request nothing."""

    logger = logging.getLogger("uvicorn.error")
    access_logger = logging.getLogger("uvicorn.access")
    access_log = False  # the app writes the access log
    disconnected = False
    waiting_for_100_continue = False
    more_body = True
    response_started = False
    response_complete = False
    chunked_encoding: bool | None = None
    expected_content_length = 0

    def __init__(
        self,
        scope: HTTPScope,
        transport: asyncio.Transport,
        flow: FlowControl,
        default_headers: list[tuple[bytes, bytes]],
        keep_alive: bool,
        on_response: Callable[..., None],
    ) -> None:
        self.scope = scope
        self.transport = transport
        self.flow = flow
        self.default_headers = default_headers
        self.keep_alive = keep_alive
        self.on_response = on_response
        self.message_event = asyncio.Event()
        # The part of the body that the app has not received yet. Most bodies come in one piece.
        self.first_part = b""
        self.more_parts = bytearray()

    def add_part(self, part: bytes) -> None:
        """A part of the body came."""
        if self.first_part:
            self.more_parts += part
        else:
            self.first_part = part
        self.message_event.set()

    def unreceived(self) -> int:
        """The bytes of the body that the app has not received yet."""
        return len(self.first_part) + len(self.more_parts)

    async def receive(self) -> ASGIReceiveEvent:
        """The next part of the body. A body that came in one part is not copied; uvicorn's method copies it twice."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            event = self.message_event
            self.flow.resume_reading()
            if not event.is_set():
                await event.wait()
            event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body = self.first_part
        self.first_part = b""
        if self.more_parts:
            body += self.more_parts
            self.more_parts = bytearray()
        return {"type": "http.request", "body": body, "more_body": self.more_body}


class UnchunkedCycle(Cycle):
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
