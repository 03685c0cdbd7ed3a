"""Framing: an upstream's answer as JSON, server-sent events, NDJSON or plain text, detected if no header names it.

The decoders take bytes as they come: `feed(bytes)` and `close()` give pairs of event name and data. Imports leaf files
alone. Raises ValueError for an answer in none of these forms, and for an event that is too large.
"""

import codecs
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import orjson

from rewrap.regex import regex

Event = tuple[str, bytes]
# The next bytes, b"" at the end. The argument: bytes other than blanks have come.
Read = Callable[[bool], Awaitable[bytes]]

BOM = codecs.BOM_UTF8
TEXT = "\n"  # the name of a piece of plain text: no event can have it
LOOK_BYTES = 65_536  # enough to decide on a framing
MAX_LINE_LOOKS = 64
TAG_BYTES = 64  # enough to recognize a page
FIELD_STARTS = (b"data:", b"event:")
FIELD = re.compile(rb"(?:data|event|id|retry|):")
SSE = regex(rb"(?:\A|[\r\n])(?:data|event):[^\r\n]*[\r\n]|\A:[^\r\n]*(?:\r\n\r\n|\n\n|\r\r)")
NO_JSON = regex(rb'\{\s*[^"}\s]|\[\s*[^\[{"\]\s]|"(?:[^"\\]|\\.)*"\s*\S', re.DOTALL)
MARKUP = regex(
    rb"<(?:!--|\?xml|(?:!doctype|html|head|body|meta|title|center|h1|p|div)\b)", re.IGNORECASE
)
NDJSON_TYPES = frozenset(
    [
        b"application/x-ndjson",
        b"application/ndjson",
        b"application/jsonl",
        b"application/x-jsonlines",
        b"application/jsonlines",
        b"application/json-seq",
        b"application/stream+json",
    ]
)
TEXT_TYPES = frozenset(
    [b"", b"text/plain", b"text/html", b"text/markdown", b"application/octet-stream"]
)
JSON_TYPES = frozenset(
    [
        b"application/json",
        b"application/json; charset=utf-8",
        b"application/json;charset=utf-8",
    ]
)
CHARSET = re.compile(rb"charset=[\"']?([\w.:-]+)", re.IGNORECASE)


class Decoder(Protocol):
    """Cuts bytes into events."""

    def feed(self, data: bytes) -> Iterable[Event]:
        """The events that are complete now. Raises ValueError."""

    def close(self) -> Iterable[Event]:
        """The last event, at the end of the answer. Raises ValueError."""


# Detection.


def is_whole_json(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the headers promise JSON in UTF-8 in one piece. To decode it at once saves 8 µs of detection."""
    return b"content-length" in headers and headers.get(b"content-type", b"").lower() in JSON_TYPES


async def framing(
    headers: Mapping[bytes, bytes], read: Read, known: str = "auto"
) -> tuple[str, bytes]:
    """The framing ("json", "json or text", "sse", "ndjson" or "text"), and the bytes that were read to find it.

    An answer in pieces is decided with the first of them, if that leaves no doubt. Raises ValueError for any other answer.
    """
    type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    whole = b"content-length" in headers
    if known != "auto":
        # A JSON type with a length shows that the upstream does not stream although it was asked to.
        unstreamed = type.endswith(b"/json") and (whole or known == "sse")
        if not unstreamed:
            return known, b""
    if type == b"text/event-stream":
        return "sse", b""
    if type in NDJSON_TYPES:
        return "ndjson", b""
    if not type.endswith(b"json") and type not in TEXT_TYPES:
        raise ValueError("neither JSON nor text")
    return await detected(read, type, whole)


async def detected(read: Read, type: bytes, whole: bool) -> tuple[str, bytes]:
    """The framing by the first bytes, and these bytes. Raises ValueError."""
    look = FirstLook()
    data = await without_bom(read)
    while True:
        ended = not data
        look.add(data)
        if look.start and (ended or look.is_due(data)):
            enough = ended or len(look.start) > LOOK_BYTES
            kind = kind_of(look.start, type, whole, enough=enough)
            if kind:
                return kind, bytes(look.blanks + look.start)
        if ended:
            raise ValueError("empty answer")
        data = await read(bool(look.start))


async def without_bom(read: Read) -> bytes:
    """The first bytes of an answer, without a BOM that may come in several reads."""
    first = b""
    while BOM.startswith(first):
        data = await read(False)
        if not data:
            break
        first += data
    return first.removeprefix(BOM)


class FirstLook:
    """The start of an answer. It is examined again when it has grown by a quarter: all looks together stay linear."""

    def __init__(self) -> None:
        self.blanks = bytearray()  # before the start; the first LOOK_BYTES of them
        self.start = bytearray()
        self.next_size = 1
        self.looks = 0

    def add(self, data: bytes) -> None:
        if self.start:
            self.start += data
            return
        start = data.lstrip()
        room = LOOK_BYTES - len(self.blanks)
        self.blanks += data[: min(len(data) - len(start), room)]
        self.start += start

    def is_due(self, data: bytes) -> bool:
        """Whether to look now. The end of a line often decides; a few of them do not wait for more."""
        line_ended = b"\n" in data and self.looks < MAX_LINE_LOOKS
        if len(self.start) < self.next_size and not line_ended:
            return False
        self.looks += 1
        self.next_size = len(self.start) + max(1, len(self.start) // 4)
        return True


def kind_of(start: bytes | bytearray, type: bytes, whole: bool, *, enough: bool) -> str:
    """The framing of an answer with this start; "" if more bytes are needed.

    `whole`: the length of the answer is known. `enough`: no more bytes come.
    """
    is_json_type = type.endswith(b"json")
    if FIELD.match(start):
        if SSE.search(start) and (not whole or b"\n\n" in start):
            return "sse"
        if not enough:
            return ""
    elif not enough and any(field.startswith(start) for field in FIELD_STARTS):
        return ""
    if is_json_type or start[:1] in b'{["':
        return json_kind(start, is_json_type, whole, enough=enough)
    if type != b"text/plain" and start.startswith(b"<"):
        if len(start) < TAG_BYTES and not enough:
            return ""
        if type == b"text/html" or MARKUP.match(start):
            raise ValueError("a page for people")
    return "text"


def json_kind(start: bytes | bytearray, is_json_type: bool, whole: bool, *, enough: bool) -> str:
    """The framing of an answer that may be JSON; "" if more bytes are needed."""
    line, newline, _ = start.partition(b"\n")
    # Flask and others end one JSON value with a newline, but they send its length.
    if newline and not whole and is_json(line):
        return "ndjson"
    if not is_json_type and NO_JSON.match(start):
        return "text"
    if not (whole or newline or enough):
        return ""
    return "json" if is_json_type else "json or text"


def charset(headers: Mapping[bytes, bytes]) -> str:
    """The encoding of a text by its content type; UTF-8 if it names none. Raises ValueError for an unknown one."""
    match = CHARSET.search(headers.get(b"content-type", b""))
    if match is None:
        return "utf-8"
    name = match[1].decode()
    try:
        b"a".decode(name, "replace")  # fails for codecs that are not text encodings, such as hex
        return codecs.lookup(name).name
    except (LookupError, UnicodeError):
        raise ValueError("unknown charset") from None


def is_json(line: bytes | bytearray) -> bool:
    try:
        return isinstance(orjson.loads(line), (dict, str))
    except ValueError:
        return False


# Decoders.


class NDJSONDecoder:
    """NDJSON: one JSON value on each line."""

    def __init__(self, event_bytes: int, rest: bytes = b"") -> None:
        self.event_bytes = event_bytes
        self.rest = [rest] if rest else []  # of an unfinished line
        self.size = len(rest)
        self.started = False

    def lines(self, data: bytes) -> list[bytes]:
        """The lines that are complete now. Raises ValueError."""
        if b"\n" not in data:
            self.rest.append(data)
            self.size += len(data)
            if self.size > self.event_bytes:
                raise ValueError("event too large")
            return []
        *lines, rest = b"".join([*self.rest, data]).split(b"\n")
        if not self.started:
            self.started = True
            lines[0] = lines[0].removeprefix(BOM)
        self.rest = [rest]
        self.size = len(rest)
        return lines

    def feed(self, data: bytes) -> Iterable[Event]:
        return [("", line) for line in self.lines(data) if line.strip(b"\r\n\t \x1e")]

    def close(self) -> Iterable[Event]:
        return self.feed(b"\n") if self.rest else []


class SSEDecoder(NDJSONDecoder):
    """Server-sent events by the standard: CR, LF and CRLF, comments, several data lines, no blank line at the end.

    Splits at no other characters: U+2028 and U+0085, which `str.splitlines` takes for line ends, are legal in JSON.
    """

    def __init__(self, event_bytes: int) -> None:
        super().__init__(event_bytes)
        self.name = ""
        self.data: list[bytes] = []
        self.data_size = 0
        self.after_cr = False  # a LF that comes next belongs to this CR

    def feed(self, data: bytes) -> list[Event]:
        events = []
        for line in self.lines(self.with_line_feeds(data)):
            if not line:
                # The standard drops an event without data. LangServe ends with one: it counts by its name.
                if self.data or self.name:
                    events.append((self.name, b"\n".join(self.data)))
                self.name = ""
                self.data = []
                self.data_size = 0
            elif line.startswith(b"data:") or line == b"data":
                self.data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self.data_size += len(line)
                if self.data_size > self.event_bytes:
                    raise ValueError("event too large")
            elif line.startswith(b"event:"):
                self.name = line[6:].strip().decode("utf-8", "replace")
        return events

    def with_line_feeds(self, data: bytes) -> bytes:
        """The same with LF as the only line end."""
        if self.after_cr and data:
            data = data.removeprefix(b"\n")
            self.after_cr = False
        if b"\r" not in data:
            return data
        self.after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def close(self) -> list[Event]:
        return self.feed(b"\n\n")


class TextDecoder:
    """Plain text. A character that is split between two reads comes whole."""

    def __init__(self, encoding: str = "utf-8") -> None:
        without_bom = "utf-8-sig" if encoding == "utf-8" else encoding
        self.decoder = codecs.getincrementaldecoder(without_bom)("replace")

    def feed(self, data: bytes) -> Iterable[Event]:
        text = self.decoder.decode(data)
        return [(TEXT, text.encode())] if text else []

    def close(self) -> Iterable[Event]:
        rest = self.decoder.decode(b"", final=True)
        return [(TEXT, rest.encode())] if rest else []


# A stream of events that is not parsed.

# At the start of a line only: in the text of a reply, line breaks are escaped.
DONE = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\]")
# An event that ends a stream of JSON: [DONE], or what others send in its place, such as [END].
END_MARKER = regex(r"\[[A-Z_]{2,20}\]")
EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")
# `.` is faster than a set without \r and \n: by 3 µs for 100 events. The possessive `*+` never backtracks.
PLAIN_EVENTS = re.compile(rb"(?:data: \{.*\}\n\n)*+(?:data: \[DONE\]\n\n)?")


def last_event_end(data: bytes, start: int = 0) -> int:
    """The end of the last whole event, with any line ends; 0 if no event ends after `start`."""
    end = 0
    for match in EVENT_END.finditer(data, start):
        end = match.end()
    return end


def is_plain_events(data: bytes) -> bool:
    """Whether each event is one line with a JSON object, as almost all are; the last one may be `data: [DONE]`."""
    return b"\r" not in data and PLAIN_EVENTS.fullmatch(data) is not None
