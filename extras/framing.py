"""How an upstream's answer is cut into events: JSON, server-sent events, NDJSON, or plain text, found out where it is not said.

Events, Lines and Pieces take bytes as they come: `feed(bytes)` and `close()` give (event name, data). Imports nothing of ours.
Raises ValueError for what is none of these, and for an event larger than it may be.
"""

import codecs
import re
from collections.abc import Iterable
from typing import Protocol

import orjson

Event = tuple[str, bytes]


class Readable(Protocol):
    headers: dict[bytes, bytes]

    async def read(self) -> bytes: ...


async def framing(reply: Readable, known: str = "auto") -> tuple[str, bytes]:
    """ "json", "sse", "ndjson" or "text", and the bytes that were read to find out. Raises ValueError for anything else."""
    if known != "auto":
        return known, b""
    said = reply.headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if said == b"text/event-stream":
        return "sse", b""
    if said in NDJSON:
        return "ndjson", b""
    first = await reply.read()
    start = first.lstrip()
    if not start:
        raise ValueError("empty answer")
    if not said.endswith(b"json") and said not in TEXTS:
        raise ValueError("neither JSON nor text")
    whole = b"content-length" in reply.headers
    if start[:1] in b'{["' or said.endswith(b"json"):
        # Flask and others end one JSON value with a line break: it is a stream only if its length was not known.
        line, newline, _ = start.partition(b"\n")
        if newline and not whole and is_json(line):
            return "ndjson", first
        if said.endswith(b"json") or is_json(first):
            return "json", first
        if whole:
            return "json or text", first
    if MARKUP.match(start):
        raise ValueError("a page for people")
    return ("sse" if start.startswith((b"data:", b"event:", b"id:", b": ")) else "text"), first


MARKUP = re.compile(rb"<(?:!doctype|html|head|body|title|center|h1|p|div)\b", re.IGNORECASE)
NDJSON = frozenset([b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/x-jsonlines"])
NDJSON |= {b"application/stream+json", b"application/jsonlines", b"application/json-seq"}
TEXTS = frozenset([b"", b"text/plain", b"text/html", b"text/markdown", b"application/octet-stream"])


def is_json(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), (dict, str))
    except ValueError:
        return False


class Lines:
    """NDJSON: a JSON value a line."""

    def __init__(self, event_bytes: int, rest: bytes = b"") -> None:
        self.event_bytes = event_bytes
        self.rest = [rest] if rest else []
        self.size = len(rest)

    def lines(self, data: bytes) -> list[bytes]:
        """The lines that are whole now."""
        if b"\n" not in data:
            self.rest.append(data)
            self.size += len(data)
            if self.size > self.event_bytes:
                raise ValueError("event too large")
            return []
        *lines, rest = b"".join([*self.rest, data]).split(b"\n")
        self.rest, self.size = [rest], len(rest)
        return lines

    def feed(self, data: bytes) -> Iterable[Event]:
        return [("", line) for line in self.lines(data) if line.strip(b"\r\n\t \x1e")]

    def close(self) -> Iterable[Event]:
        return self.feed(b"\n") if self.rest else []


class Events(Lines):
    """Server-sent events by the standard: CR, LF and CRLF, comments, several data lines, a last one without a blank line.

    Splits on nothing else: U+2028 and U+0085, which `str.splitlines` takes for line ends, are legal in JSON.
    """

    def __init__(self, event_bytes: int) -> None:
        super().__init__(event_bytes)
        self.name = ""
        self.data: list[bytes] = []
        self.data_size = 0
        self.after_cr = self.begun = False

    def feed(self, data: bytes) -> list[Event]:
        if not self.begun:
            self.begun = True
            data = data.removeprefix(codecs.BOM_UTF8)
        if self.after_cr and data.startswith(b"\n"):
            data = data[1:]
        if b"\r" in data:
            self.after_cr = data.endswith(b"\r")  # its LF may be in the next read
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        elif data:
            self.after_cr = False
        events = []
        for line in self.lines(data):
            if not line:
                if self.data or self.name:  # the standard drops an event without data: LangServe ends with one
                    events.append((self.name, b"\n".join(self.data)))
                self.name, self.data, self.data_size = "", [], 0
            elif line.startswith(b"data:"):
                self.data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self.data_size += len(line)
                if self.data_size > self.event_bytes:
                    raise ValueError("event too large")
            elif line.startswith(b"event:"):
                self.name = line[6:].strip().decode("utf-8", "replace")
            elif line == b"data":
                self.data.append(b"")
        return events

    def close(self) -> list[Event]:
        return self.feed(b"\n\n")


class Pieces:
    """Plain text, as it comes; a character that is split between two reads is given out whole."""

    def __init__(self, event_bytes: int) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> Iterable[Event]:
        text = self.decoder.decode(data)
        return [("text", text.encode())] if text else []

    def close(self) -> Iterable[Event]:
        rest = self.decoder.decode(b"", final=True)
        return [("text", rest.encode())] if rest else []
