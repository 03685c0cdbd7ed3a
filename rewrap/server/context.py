"""One HTTP request on its way: its headers, body, answer, and the watch for a client that leaves.

Does not know routes, keys or chats. Imports types and leaf files.
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import TracebackType
from typing import Protocol

from starlette.types import Message, Receive, Scope, Send

from rewrap.ids import random_hex
from rewrap.large_json import LARGE_BYTES, MAX_VALUES, count_values
from rewrap.memory import decoded_size, reserve_body
from rewrap.server.bodies import body_too_large, check_encoding, inflated, too_many_values
from rewrap.threads import apart
from rewrap.types import APIError, Headers, ResponseInfo, Sink

API_VERSION = (b"openai-version", b"2020-10-01")  # of OpenAI's API: the only one so far
REQUEST_ID = re.compile(rb"[!-~]{1,128}")
LOG_CHARACTERS = 200  # of a path or a model
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
CONNECTION = "rewrap.connection"  # of a scope: the ClientConnection
NO_GATE: AbstractContextManager[None] = nullcontext()


class ClientLeft(Exception):
    """The client closed the connection before its request was complete."""


class ChunkWriter(Protocol):
    """Writes the body of an answer in chunks that has begun."""

    def write(self, body: bytes) -> bool:
        """Write a chunk at once. False while the client reads too slowly, and after it has left."""

    async def send(self, body: bytes, more: bool) -> None:
        """Send a chunk once the client has read most of the earlier ones. Without `more` it is the last one."""


class ClientConnection:
    """A connection as its requests see it. This project's HTTP protocol keeps it up to date."""

    __slots__ = ("chunk_writer", "lost", "on_lost", "start_chunks", "write_answer")

    def __init__(self) -> None:
        self.lost = False
        # Writes a whole answer at once; False if it cannot, and has written nothing.
        self.write_answer: Callable[[int, Headers, bytes], bool] | None = None
        # Begins an answer in chunks; None if it cannot, and has written nothing.
        self.start_chunks: Callable[[int, Headers], ChunkWriter | None] | None = None
        # Makes a writer for the answer in progress; None if that has no chunks.
        self.chunk_writer: Callable[[], ChunkWriter | None] | None = None
        self.on_lost: Callable[[], None] | None = None  # called when the client has left


class RequestContext:
    """The state of one HTTP request.

    `left` and `ending` say why its work was cancelled: the client left, or the server stops. The initial values are attributes
    of the class: that saves 1 µs a request.
    """

    values: int | None = None  # in the JSON of the body, if it is large and they were counted
    sends_directly = True  # nothing wraps the sending
    chunk_writer: ChunkWriter | None = None  # of an answer that `start_stream` began
    first_byte = 0.0
    status = 0
    streams = False  # the answer is a stream
    sends = 0  # bodies sent, for the heartbeat
    error = ""
    identity = ""  # of the client, once it is admitted; it may contain a key
    key = ""  # the client's key, once it is verified
    info: ResponseInfo | None = None
    extra_headers: Sequence[tuple[bytes, bytes]] = ()  # for any answer to this request
    admitted = False  # a request for the API, not for a page
    left = False
    ending = False
    active_watch: "DisconnectWatch | None" = None
    body_gate = NO_GATE
    holds_request = True  # the parsed request is kept until the end of the answer

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.raw_send = send
        self.loop = loop
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_headers = headers
        self.send_start: Send = self.send  # through CORS, if it is on
        self.id = request_id(headers.get(b"x-request-id"))
        self.started = time.perf_counter()
        # Whether a body is still to come: then its receiver notices that the client leaves.
        self.has_body = b"content-length" in headers or b"transfer-encoding" in headers

    # The request.

    def header(self, name: bytes) -> str:
        """The last value of a header; "" if there is none."""
        value = self.request_headers.get(name)
        return value.decode("latin-1") if value else ""

    def address(self) -> str:
        client = self.scope.get("client")
        return str(client[0]) if client else ""

    async def body(self, max_bytes: int) -> bytes:
        """The whole body, without its compression. Its memory counts for the request of this task.

        Raises APIError 413, 415, 503; ClientLeft if it breaks off.
        """
        compressed = False
        if b"content-encoding" in self.request_headers:
            encoding = self.header(b"content-encoding").lower()
            compressed = check_encoding(encoding)
        length = self.request_headers.get(b"content-length", b"")
        declared = int(length) if length.isdigit() else 0
        if declared > max_bytes:
            raise body_too_large(max_bytes)
        reserve_body(declared)
        first = await self.next_message()
        body: bytes = first.get("body", b"")
        if first.get("more_body", False):
            with self.body_gate:
                body = await self.rest_of_body(body, max_bytes, declared)
        elif len(body) > max_bytes:
            raise body_too_large(max_bytes)
        self.has_body = False
        if compressed:
            body = await inflated(body, encoding, max_bytes)
        if len(body) > LARGE_BYTES:
            await self.reserve_decoded(body)
        return body

    async def reserve_decoded(self, body: bytes) -> None:
        """Reserve the memory of a body's JSON, beside the body. Raises APIError 413, 503."""
        found = await apart(count_values, body)
        if found.values > MAX_VALUES:
            raise too_many_values()
        self.values = found.values
        reserve_body(decoded_size(body, found))

    async def rest_of_body(self, first: bytes, max_bytes: int, declared: int) -> bytes:
        """A body that comes in parts. `declared` bytes of it are reserved already."""
        parts = [first]
        size = len(first)
        counted = declared
        more = True
        while more:
            message = await self.next_message()
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                raise body_too_large(max_bytes)
            if size > counted:  # in chunks: its length is not known
                reserve_body(size - counted)
                counted = size
            more = message.get("more_body", False)
        return await apart(b"".join, parts)

    async def next_message(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        return message

    # The client's leaving.

    def watch(self) -> "DisconnectWatch":
        """A block in which the client's leaving cancels the current task."""
        return DisconnectWatch(self)

    def end(self) -> None:
        """The server stops: cancel the work of a watched request."""
        if self.active_watch is not None and not self.left:
            self.ending = True
            self.active_watch.cancel_work()

    def cancellation(self) -> APIError | None:
        """The error for a cancelled request; None if the client left. Raises CancelledError for another cause."""
        if not self.left and not self.ending:
            raise asyncio.CancelledError
        task = asyncio.current_task(self.loop)
        if task is not None:
            task.uncancel()
        return stopping() if self.ending else None

    # The answer.

    async def send(self, message: Message) -> None:
        """Send a message. The head of the answer gets the request's id and the extra headers."""
        if message["type"] == "http.response.start":
            message["headers"] = self.begun(message["status"], message.get("headers", ()))
        await self.raw_send(message)

    def begun(self, status: int, headers: Headers) -> Headers:
        """Note that the answer begins. Returns its headers with the request's id and the extra ones."""
        self.status = status
        self.first_byte = time.perf_counter()
        found = list(headers)
        if self.extra_headers:  # the limits of this server replace those of the upstream
            names = {b"x-request-id", NO_SNIFFING[0], *dict(self.extra_headers)}
            found = [header for header in found if header[0] not in names]
            found += self.extra_headers
        if self.admitted:
            self.add_api_headers(found)
        found.append((b"x-request-id", self.id.encode()))
        found.append(NO_SNIFFING)
        return found

    def use(self, wrap: Callable[[Send], Send] | None) -> None:
        """Send the rest of the answer through a wrapper."""
        if wrap is not None:
            self.raw_send = wrap(self.raw_send)
            self.sends_directly = False

    def add_api_headers(self, headers: Headers) -> None:
        """Add OpenAI's headers of every answer, but for those that the upstream has sent."""
        names = dict(headers)
        if b"openai-processing-ms" not in names:
            milliseconds = (self.first_byte - self.started) * 1e3
            headers.append((b"openai-processing-ms", b"%d" % milliseconds))
        if b"openai-version" not in names:
            headers.append(API_VERSION)

    async def start_stream(self, headers: Headers) -> None:
        """Send the head of an answer in parts."""
        connection: ClientConnection | None = self.scope.get(CONNECTION)
        if self.sends_directly and connection is not None and connection.start_chunks is not None:
            self.chunk_writer = connection.start_chunks(200, self.begun(200, headers))
            if self.chunk_writer is not None:
                return
        await self.send_start({"type": "http.response.start", "status": 200, "headers": headers})

    async def send_body(self, body: bytes, *, more: bool) -> None:
        if self.chunk_writer is not None and self.sends_directly:
            await self.chunk_writer.send(body, more)
            return
        await self.raw_send({"type": "http.response.body", "body": body, "more_body": more})

    def direct_writer(self) -> Sink | None:
        """A function that writes a part of the answer's body at once; None if the server has no such way.

        It returns False while the client reads too slowly: then the next part has to go through `send_body`, which waits.
        """
        connection: ClientConnection | None = self.scope.get(CONNECTION)
        if connection is None or connection.chunk_writer is None:
            return None
        writer = self.chunk_writer or connection.chunk_writer()
        if writer is None:
            return None
        write = writer.write

        def write_now(body: bytes) -> bool:
            self.sends += 1
            return write(body)

        return write_now

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer. In one write, if the server has a way for it: that saves 3 µs."""
        headers = [*headers, (b"content-length", b"%d" % len(body))]
        connection: ClientConnection | None = self.scope.get(CONNECTION)
        if self.sends_directly and connection is not None and connection.write_answer is not None:
            if connection.write_answer(status, self.begun(status, headers), body):
                return
        await self.send_start({"type": "http.response.start", "status": status, "headers": headers})
        await self.raw_send({"type": "http.response.body", "body": body})

    def final_status(self) -> int:
        """The status for the log: 499 if the client left."""
        return 499 if self.left else self.status


class DisconnectWatch:
    """A `with` block: while it runs, the client's leaving cancels the current task.

    This project's own HTTP protocol calls back, which costs 0.5 µs. With other servers, and while a body is still to come, a task
    waits for the disconnect message (6 µs).
    """

    __slots__ = ("connection", "context", "task", "work")

    def __init__(self, context: RequestContext) -> None:
        self.context = context
        self.work: asyncio.Task[object] | None = None
        self.task: asyncio.Task[None] | None = None
        self.connection: ClientConnection | None = None

    def __enter__(self) -> None:
        context = self.context
        if context.active_watch is not None:  # the block around this one watches already
            return
        self.work = asyncio.current_task(context.loop)
        context.active_watch = self
        connection: ClientConnection | None = context.scope.get(CONNECTION)
        if connection is None or context.has_body:
            self.task = context.loop.create_task(self.wait())
            return
        self.connection = connection
        connection.on_lost = self.client_left
        if connection.lost:
            self.client_left()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.context.active_watch is not self:
            return
        self.context.active_watch = None
        if self.connection is not None:
            self.connection.on_lost = None
        elif self.task is not None:
            self.task.cancel()

    async def wait(self) -> None:
        while (await self.context.receive())["type"] != "http.disconnect":
            pass
        self.client_left()

    def client_left(self) -> None:
        context = self.context
        if context.active_watch is self and not context.ending:
            context.left = True
            self.cancel_work()

    def cancel_work(self) -> None:
        if self.work is not None:
            self.work.cancel()


def request_id(sent: bytes | None) -> str:
    """The id that the client or a proxy sent, if it is short and printable; else a new one."""
    if sent is not None and REQUEST_ID.fullmatch(sent):
        return sent.decode("ascii")
    return f"req_{random_hex()}"


def stopping() -> APIError:
    headers = [(b"retry-after", b"1"), (b"connection", b"close")]
    return APIError(
        503, "The server is stopping.", type="server_error", headers=headers, reason="stopping"
    )


def printable(text: str) -> str:
    """Text for a log line: bounded, control characters escaped, so that no client can forge a line."""
    return escaped_path(text[:LOG_CHARACTERS])


@lru_cache(256)  # a server has few paths and models: 0.2 µs less for each text
def escaped_path(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return ascii(text)[1:-1]
