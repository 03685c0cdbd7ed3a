"""How an upstream's answer is cut into events: JSON, server-sent events, NDJSON, or plain text, found out where it is not said.

Events, Lines and Pieces take bytes as they come: `feed(bytes)` and `close()` give (event name, data). Imports nothing of ours.
Raises ValueError for what is none of these, and for an event larger than it may be.
"""

import codecs
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import orjson

Event = tuple[str, bytes]


class Decoder(Protocol):
    """Cuts bytes into events."""

    def feed(self, data: bytes) -> Iterable[Event]:
        """The events that are whole now. Raises ValueError."""

    def close(self) -> Iterable[Event]:
        """The last event, which nothing ended. Raises ValueError."""


Read = Callable[
    [bool], Awaitable[bytes]
]  # the next bytes, b"" at the end; is anything but blanks there already?


async def framing(
    headers: Mapping[bytes, bytes], read: Read, known: str = "auto"
) -> tuple[str, bytes]:
    """ "json", "json or text", "sse", "ndjson" or "text", and the bytes that were read to find out.

    What comes in pieces is decided with the first of them, if that leaves no doubt. Raises ValueError for anything else.
    """
    said = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    whole = b"content-length" in headers
    if known != "auto" and not (
        said.endswith(b"/json") and (whole or known == "sse")
    ):  # asked for a stream, it is none
        return known, b""
    if said == b"text/event-stream":
        return "sse", b""
    if said in NDJSON:
        return "ndjson", b""
    if not said.endswith(b"json") and said not in TEXTS:
        raise ValueError("neither JSON nor text")
    first, ended = b"", False
    while not ended:
        more = await read(bool(first.strip()))
        first, ended = first + more, not more
        start = first.removeprefix(codecs.BOM_UTF8).lstrip()
        begun = start and (ended or not codecs.BOM_UTF8.startswith(first))
        if begun and (kind := kind_of(start, said, whole, ended or len(start) > LOOK_BYTES)):
            return kind, first.removeprefix(codecs.BOM_UTF8)
    raise ValueError("empty answer")


def kind_of(start: bytes, said: bytes, whole: bool, enough: bool) -> str:
    """The framing of what begins so; "" where more has to come, unless this is `enough`. `whole`: its length is known."""
    json, line, newline = said.endswith(b"json"), *start.partition(b"\n")[:2]
    if FIELD.match(start):
        if SSE.search(start) and (not whole or b"\n\n" in start):
            return "sse"
        if not enough:
            return ""
    elif not enough and any(field.startswith(start) for field in (b"data:", b"event:")):
        return ""
    if json or start[:1] in b'{["':
        if (
            newline and not whole and is_json(line)
        ):  # Flask and others end one JSON value so, but they know its length
            return "ndjson"
        if not json and NO_JSON.match(start):
            return "text"
        return ("json" if json else "json or text") if whole or newline or enough else ""
    if said != b"text/plain" and start.startswith(b"<"):
        if len(start) < 64 and not enough:
            return ""
        if said == b"text/html" or MARKUP.match(start):
            raise ValueError("a page for people")
    return "text"


LOOK_BYTES = 65_536
FIELD = re.compile(rb"(?:data|event|id|retry|):")
SSE = re.compile(rb"(?:\A|[\r\n])(?:data|event):[^\r\n]*[\r\n]|\A:[^\r\n]*(?:\r\n\r\n|\n\n|\r\r)")
NO_JSON = re.compile(rb'\{\s*[^"}\s]|\[\s*[^\[{"\]\s]|"(?:[^"\\]|\\.)*"\s*\S', re.DOTALL)
MARKUP = re.compile(
    rb"<(?:!--|\?xml|(?:!doctype|html|head|body|meta|title|center|h1|p|div)\b)", re.IGNORECASE
)
NDJSON = frozenset(
    [
        b"application/x-ndjson",
        b"application/ndjson",
        b"application/jsonl",
        b"application/x-jsonlines",
    ]
)
NDJSON |= {b"application/stream+json", b"application/jsonlines", b"application/json-seq"}
TEXTS = frozenset([b"", b"text/plain", b"text/html", b"text/markdown", b"application/octet-stream"])
CHARSET = re.compile(rb"charset=[\"']?([\w.:-]+)", re.IGNORECASE)


def charset(headers: Mapping[bytes, bytes]) -> str:
    """The encoding of a text, as its content type says; UTF-8 where it says none that is known."""
    found = CHARSET.search(headers.get(b"content-type", b""))
    try:
        return codecs.lookup(found[1].decode()).name if found else "utf-8"
    except LookupError:
        return "utf-8"


def is_json(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), (dict, str))
    except ValueError:
        return False


class NDJSONDecoder:
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


class SSEDecoder(NDJSONDecoder):
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
            data, self.after_cr = data[1:], False
        if b"\r" in data:
            self.after_cr = data.endswith(b"\r")  # its LF may be in the next read
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        elif data:
            self.after_cr = False
        events = []
        for line in self.lines(data):
            if not line:
                if (
                    self.data or self.name
                ):  # the standard drops an event without data: LangServe ends with one
                    events.append((self.name, b"\n".join(self.data)))
                self.name, self.data, self.data_size = "", [], 0
            elif line.startswith(b"data:") or line == b"data":
                self.data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self.data_size += len(line)
                if self.data_size > self.event_bytes:
                    raise ValueError("event too large")
            elif line.startswith(b"event:"):
                self.name = line[6:].strip().decode("utf-8", "replace")
        return events

    def close(self) -> list[Event]:
        return self.feed(b"\n\n")


# At the start of a line alone: in the text of a reply, line breaks are escaped.
DONE = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\]")
EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")


def last_event_end(data: bytes, start: int = 0) -> int:
    """Where the last whole event ends, whichever line ends it uses; 0 if none does from `start` on."""
    end = 0
    for match in EVENT_END.finditer(data, start):
        end = match.end()
    return end


def is_plain_events(data: bytes) -> bool:
    """Whether these are events as almost all are: one line with a JSON object, or [DONE]. Of one, 0.3 µs; of many, 0.2 each."""
    one = (
        data.find(b"\n") == len(data) - 2
        and data.startswith(b"data: {")
        and data.endswith(b"}\n\n")
    )
    return one or PLAIN_EVENTS.fullmatch(data) is not None


PLAIN_EVENTS = re.compile(rb"(?:data: ?(?:\{[^\n]*\}|\[DONE\])\n\n)+")


TEXT = "\n"  # the name of a piece of plain text: no event can have it


class TextDecoder:
    """Plain text, as it comes; a character that is split between two reads is given out whole."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.decoder = codecs.getincrementaldecoder(encoding)("replace")

    def feed(self, data: bytes) -> Iterable[Event]:
        text = self.decoder.decode(data)
        return [(TEXT, text.encode())] if text else []

    def close(self) -> Iterable[Event]:
        rest = self.decoder.decode(b"", final=True)
        return [(TEXT, rest.encode())] if rest else []
