"""Reading an upstream's answer: whole, or in events of any framing, within bounds of time and size.

Does not know shapes or Deltas. Raises APIError (too large), TimeoutError, ValueError and httpx.HTTPError.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Protocol

import httpx
import orjson

from rewrap.eventloop import running_loop
from rewrap.memory import reserve
from rewrap.structs import struct
from rewrap.threads import apart
from rewrap.types import (
    APIError,
    ChatSession,
    Limits,
    Reply,
    ResponseInfo,
    Shape,
    UpstreamRejection,
)
from rewrap.upstream import lenient
from rewrap.upstream.errors import (
    START_BYTES,
    TOO_LARGE,
    bad_gateway,
    forwardable_headers,
    rejection_in_body,
)
from rewrap.upstream.framing import (
    Decoder,
    Event,
    NDJSONDecoder,
    SSEDecoder,
    TextDecoder,
    charset,
    framing,
    is_json,
    is_whole_json,
)

# Others have their turn after so much of one answer: 256 kB of tiny events, which one read may bring, take half a second.
EVENTS_PER_TURN = 256
DECODED_BYTES = 2**16
ERROR_SECONDS = 5.0  # to read the body of an error
ERROR_LIMITS = Limits(reply_bytes=65_536)


@struct(slots=True)
class Prepared:
    """A request as it goes to the upstream, and the facts that its answer needs."""

    url: str
    headers: dict[str, str]
    body: bytes
    dropped: list[str]  # client parameters that have no place in it
    stream: bool
    relay: bool
    stored: bool
    choices: int
    chat: ChatSession | None  # where the upstream assigns a session


@struct(slots=True)
class StreamedReply:
    """An answer in events: their decoder, and the bytes read so far."""

    decoder: Decoder
    first: bytes


@struct(slots=True)
class WholeReply:
    """An answer in one piece: a JSON value, or a text."""

    value: object


Opened = StreamedReply | WholeReply


@struct(slots=True)
class Answer:
    """A good answer on its way in, and the facts of its request that are needed until its end.

    The request itself is not kept: a long stream does not hold the conversation in memory.
    """

    reply: Reply
    limits: Limits
    failure_status: int
    deadline: float  # loop time by which an answer without a stream is whole
    stream: bool  # the client wants a stream
    relay: bool  # the client can take the upstream's own bytes
    stored: bool
    choices: int
    chat: ChatSession | None = None
    start: bytes | None = None  # of the body, or of a stream's last read; None: nothing was read

    @property
    def status(self) -> int:
        return self.reply.status

    def is_event_stream(self) -> bool:
        kind = self.reply.headers.get(b"content-type", b"")
        return kind.lower().startswith(b"text/event-stream")

    async def whole(self, first: bytes = b"") -> bytes:
        """The body to its end, after the `first` bytes."""
        body = await read_whole(self.reply, self.limits, self.deadline, self.failure_status, first)
        self.start = body[:START_BYTES]
        return body

    async def opened(self, known_framing: str, *, text_is_reply: bool) -> Opened:
        """Find out the framing of the answer; read it to its end if it comes in one piece."""
        reply = self.reply
        body = b""
        if not self.stream and is_whole_json(reply.headers):
            body = await self.whole()
            with suppress(ValueError):  # not JSON: its form is detected below
                return WholeReply(await apart(lenient.loads, body))

        async def more(started: bool) -> bytes:
            nonlocal body
            if body:
                data = body
                body = b""
                return data
            reply.deadline = self.next_deadline()
            data = await reply.read()
            reserve(len(data))
            return data

        kind, first = await framing(reply.headers, more, known_framing if self.stream else "auto")
        self.start = first[:START_BYTES]
        encoding = charset(reply.headers)
        if "text" in kind and not text_is_reply:
            raise ValueError("plain text")
        if kind == "text":
            return StreamedReply(TextDecoder(encoding), first)
        if kind == "sse":
            return StreamedReply(SSEDecoder(self.limits.event_bytes), first)
        if kind == "ndjson":
            return StreamedReply(NDJSONDecoder(self.limits.event_bytes), first)
        body = await self.whole(first)
        if encoding != "utf-8":
            body = body.decode(encoding, "replace").encode()
        return await apart(parsed, body, text=kind != "json")

    def next_deadline(self) -> float:
        """The loop time by which the next bytes have to come."""
        if not self.stream:
            return self.deadline
        return running_loop().time() + self.limits.stall

    async def events(self, opened: StreamedReply) -> AsyncGenerator[Event, None]:
        """The events of the answer. For a client without a stream they are bounded in time and size."""
        loop = running_loop()
        reply = self.reply
        remaining = float("inf") if self.stream else self.limits.reply_bytes
        count = 0
        data = opened.first or await reply.read()
        while True:
            remaining -= len(data)
            if remaining < 0:
                raise bad_gateway(TOO_LARGE, "too large", self.failure_status)
            if not self.stream and loop.time() > self.deadline:
                raise TimeoutError  # bytes that are there already are read without a wait
            if not data:
                for event in opened.decoder.close():
                    yield event
                return
            self.start = data[:START_BYTES]
            for start in range(0, len(data), DECODED_BYTES):
                for event in opened.decoder.feed(data[start : start + DECODED_BYTES]):
                    yield event
                    count += 1
                    if count % EVENTS_PER_TURN == 0:
                        await asyncio.sleep(0)
                if len(data) > DECODED_BYTES:
                    await asyncio.sleep(0)
            reply.deadline = self.next_deadline()
            data = await reply.read()


class Asker(Protocol):
    """A backend that asks an upstream."""

    async def good_answer(self, prepared: Prepared, info: ResponseInfo) -> Answer:
        """Send a request, and wait for the head of a good answer."""

    def failure(
        self, headers: Mapping[str, str], exc: BaseException, answer: Answer | None
    ) -> Exception | None:
        """The client's error for an exception; None to raise the exception itself."""


class Exchange:
    """A block with the good answer to one request. Failures inside become an APIError; the answer is closed with the block.

    A generator in place of this class costs 2 µs more.
    """

    __slots__ = ("answer", "asking", "failure", "headers")

    def __init__(self, backend: Asker, prepared: Prepared, info: ResponseInfo) -> None:
        self.asking = backend.good_answer(prepared, info)
        self.failure = backend.failure
        self.headers = prepared.headers
        self.answer: Answer | None = None

    async def __aenter__(self) -> Answer:
        try:
            self.answer = await self.asking
        except Exception as error:
            self.translate(error)
            raise
        return self.answer

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self.answer is not None
        try:
            if error is not None:
                self.translate(error)
        finally:
            await self.answer.reply.aclose()

    def translate(self, error: BaseException) -> None:
        """Raises the client's error for an exception; returns if there is none."""
        found = self.failure(self.headers, error, self.answer)
        if found is None:
            return
        if isinstance(error, UpstreamRejection):
            raise found from None
        raise found from error


async def read_whole(
    reply: Reply, limits: Limits, deadline: float, failure_status: int, first: bytes = b""
) -> bytes:
    """A body to its end, bounded by the size of a reply and by `deadline` (loop time).

    Memory is reserved for all but the `first` bytes. Raises APIError 503.
    """
    reply.deadline = deadline
    parts = [first]
    size = len(first)
    while True:
        if size > limits.reply_bytes:
            raise bad_gateway(TOO_LARGE, "too large", failure_status)
        data = await reply.read()
        if not data:
            return b"".join(parts)
        reserve(len(data))
        parts.append(data)
        size += len(data)


async def read_rejection(reply: Reply, shape: Shape) -> UpstreamRejection:
    """The error of an answer with a status other than 2xx, with its text if that can be read."""
    deadline = min(reply.deadline, running_loop().time() + ERROR_SECONDS)
    try:
        body = await read_whole(reply, ERROR_LIMITS, deadline, 502)
    except (httpx.HTTPError, TimeoutError, APIError, ValueError):
        body = b""
    try:
        rejection = shape.rejection(reply.status, orjson.loads(body))
    except ValueError:
        rejection = rejection_in_body(reply.status, body)
    rejection.headers = forwardable_headers(reply.headers)
    rejection.start = body[:START_BYTES]
    return rejection


def parsed(body: bytes, *, text: bool) -> Opened:
    """A JSON value, lines of JSON, or a text if that may be a reply. Raises ValueError."""
    try:
        return WholeReply(lenient.loads(body))
    except ValueError:
        lines = [line for line in body.split(b"\n") if line.strip()]
        if len(lines) > 1 and all(is_json(line) for line in lines):
            return StreamedReply(NDJSONDecoder(len(body) + 1), body)
        if text:
            return WholeReply(body.decode("utf-8", "replace"))
        raise
