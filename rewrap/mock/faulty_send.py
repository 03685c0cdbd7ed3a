"""Faults on the wire: an ASGI `send` that spoils an answer on its way, whatever API it is of.

An answer is sent in chunks: the events of a stream, or the two halves of another body, so that a
fault can come between them. Knows ASGI messages, but no server: the edge turns CutConnection into
the end of the connection.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping

from starlette.types import Message, Send

from rewrap.mock.faults import Fault
from rewrap.regex import regex
from rewrap.types import CutConnection

# The kinds that are realised here. The others end a request before its answer, or are Deltas.
DELAYS = ("slow", "hang", "stall")
ENDS = ("cut", "reset", "empty")
SPOILS = ("malformed", "duplicate", "content_type", "split")
ON_THE_WIRE = (*DELAYS, *ENDS, *SPOILS)
SPLIT_SECONDS = 0.005  # between the parts of a character: else they arrive in one read
EVENT = regex(rb".+?(?:\n\n|\Z)", re.DOTALL)
LEAD_BYTE = regex(rb"[\xc2-\xf4]")  # of a character that UTF-8 writes in several bytes


class FaultySend:
    """Stands in for an ASGI `send`. Answers that are errors are delayed, but not spoiled."""

    def __init__(self, faults: Iterable[Fault], send: Send) -> None:
        self.faults = {fault.kind: fault for fault in faults if fault.kind in ON_THE_WIRE}
        self.send = send
        self.start: Message | None = None  # held back: the first chunk decides on its length
        self.is_stream = False
        self.is_json = False
        self.sent = 0  # chunks
        self.ended = False
        self.cut: CutConnection | None = None

    async def __call__(self, message: Message) -> None:
        """Send a message with its faults. Raises CutConnection, then and from then on."""
        if self.cut:
            raise self.cut
        if not self.faults:
            await self.send(message)
        elif message["type"] == "http.response.start":
            await self.begin(message)
        elif message["type"] == "http.response.body" and not self.ended:
            await self.body(message)

    async def begin(self, message: Message) -> None:
        if "hang" in self.faults:
            await asyncio.sleep(self.faults["hang"].seconds)
            raise self.cut_off(reset=False)
        if "slow" in self.faults:
            await asyncio.sleep(self.faults["slow"].seconds)
        if message["status"] != 200:
            self.faults = {}
            await self.send(message)
            return
        content_type = dict(message.get("headers", ())).get(b"content-type", b"")
        self.is_stream = content_type.startswith(b"text/event-stream")
        self.is_json = content_type.startswith(b"application/json")
        self.start = message

    async def body(self, message: Message) -> None:
        data: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if "empty" in self.faults:
            data = b""
            more = False
        elif not self.is_stream:
            data = self.spoiled_body(data)
        if self.start:
            await self.pass_place(data)
            length = None if more else len(data)
            await self.send(spoiled_head(self.start, self.faults, length))
            self.start = None
        for chunk in self.chunks(data):
            await self.pass_place(chunk)
            await self.send_chunk(chunk)
        if not more:
            await self.finish()

    def spoiled_body(self, data: bytes) -> bytes:
        """A body that is no stream: JSON that does not parse, of the same length, or doubled."""
        if "malformed" in self.faults and self.is_json and data:
            data = data[:-1] + b","
        if "duplicate" in self.faults:
            data += data
        return data

    def chunks(self, data: bytes) -> list[bytes]:
        if self.is_stream:
            return EVENT.findall(data)
        middle = (len(data) + 1) // 2
        return [half for half in (data[:middle], data[middle:]) if half]

    async def pass_place(self, chunk: bytes) -> None:
        """Stall or cut, if the place for that is before this chunk."""
        for kind in ("stall", "cut", "reset"):
            fault = self.faults.get(kind)
            if fault is None or not chunk or self.place(fault) != self.sent:
                continue
            if kind != "stall":
                raise self.cut_off(kind == "reset")
            await self.stall()

    def place(self, fault: Fault) -> int:
        if self.is_stream:
            return fault.after
        return min(fault.after, 1)

    async def stall(self) -> None:
        """Wait, once."""
        fault = self.faults.pop("stall", None)
        if fault is not None:
            await asyncio.sleep(fault.seconds)

    def cut_off(self, reset: bool) -> CutConnection:
        self.cut = CutConnection(reset=reset)
        return self.cut

    async def send_chunk(self, chunk: bytes) -> None:
        times = 1
        if self.is_stream and self.is_here("malformed"):
            chunk = malformed_event(chunk)
        if self.is_stream and self.is_here("duplicate"):
            times = 2
        self.sent += 1
        for _ in range(times):
            await self.send_parts(chunk)

    def is_here(self, kind: str) -> bool:
        return kind in self.faults and self.faults[kind].after == self.sent

    async def send_parts(self, chunk: bytes) -> None:
        parts = [chunk]
        if "split" in self.faults:
            parts = split_character(chunk)
        for part in parts:
            await self.send({"type": "http.response.body", "body": part, "more_body": True})
            if len(parts) > 1:
                await asyncio.sleep(SPLIT_SECONDS)

    async def finish(self) -> None:
        """End the answer. A stall or a cut behind more chunks than there are has its place here."""
        await self.stall()
        for kind in ("cut", "reset"):
            if kind in self.faults:
                raise self.cut_off(kind == "reset")
        self.ended = True
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def spoiled_head(start: Message, faults: Mapping[str, Fault], length: int | None) -> Message:
    """The head of an answer, with the content type and the length that its faults lead to."""
    headers = []
    for name, value in start.get("headers", ()):
        if name == b"content-length" and length is not None:
            value = b"%d" % length
        if name == b"content-type" and "content_type" in faults:
            value = faults["content_type"].text.encode()
        headers.append((name, value))
    return {**start, "headers": headers}


def malformed_event(event: bytes) -> bytes:
    """An event whose data ends in the middle."""
    start = event.find(b"data: ") + len(b"data: ")
    end = len(event.rstrip(b"\n"))
    return event[: (start + end + 1) // 2] + b"\n\n"


def split_character(data: bytes) -> list[bytes]:
    """Two parts, cut inside the first character of several bytes, if there is one."""
    found = LEAD_BYTE.search(data)
    if found is None:
        return [data]
    return [data[: found.end()], data[found.end() :]]
