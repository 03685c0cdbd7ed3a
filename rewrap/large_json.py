"""JSON of large bodies, decoded and encoded in pieces.

orjson holds the interpreter's lock while it decodes. A body of 30 MB would stop every thread of the process for 0.1 s, and one of a
million objects for 0.5 s. Here regular expressions find the commas between values in windows of WINDOW_BYTES, and orjson decodes
what is between them: no step takes longer than some 10 ms. Linear in the size of the body. Imports leaf files alone.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import orjson

from rewrap.regex import regex

LARGE_BYTES = 2**20  # a smaller body takes 2 ms
WINDOW_BYTES = 2**17
TEXT_BYTES = 2**20  # of a string that is decoded at a time
COUNT_BYTES = 2**16  # looked through at a time: copies of so much stay in a processor's cache
TEXT_CHARACTERS = 2**18  # of a string that is encoded at a time
SLICE_ITEMS = 500  # of a long list that are encoded at a time
SPLIT_DEPTH = 5  # payload, messages, message, content, part
MAX_DEPTH = 250  # orjson writes 254 levels
MAX_VALUES = 1_000_000  # a million objects take 250 MB, and 0.1 s to free
NESTED_PATTERNS = 8  # levels of nesting that one match may span
# orjson is taken to decode so much in a millisecond (950,000 bytes of text were measured), and may take so many at once.
BYTES_PER_MILLISECOND = 700_000
VALUES_PER_MILLISECOND = 5_000
MILLISECONDS = 20

# Possessive quantifiers: no text makes these patterns go back. The end of a window bounds each match.
SPACE = rb"[ \t\r\n]*+"
STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
SCALAR = rb'[^"\[\]{},:\s\\]++'


def container(levels: int) -> bytes:
    """A pattern of an array or object with so many levels, not checked for its commas and colons."""
    inside = rb'[^"\[\]{}]++|' + STRING
    if levels > 1:
        inside += rb"|" + container(levels - 1)
    return rb"[\[{](?:%b)*+[\]}]" % inside


CONTAINER = container(NESTED_PATTERNS)
VALUE = rb"(?:%b|%b|%b)" % (STRING, SCALAR, CONTAINER)

WHOLE = regex(CONTAINER, re.DOTALL)
ITEMS = regex(rb"(?:%b%b%b,)++" % (SPACE, VALUE, SPACE), re.DOTALL)
MEMBERS = regex(rb"(?:%b%b%b:%b%b%b,)++" % (SPACE, STRING, SPACE, SPACE, VALUE, SPACE), re.DOTALL)
# Whole characters of a string. A pair of surrogates is one character.
CHARACTERS = regex(
    rb'(?:[^"\\]++|\\u(?![dD][89abAB])[0-9a-fA-F]{4}'
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\[^u])*+",
    re.DOTALL,
)
SPACES = regex(SPACE)
NUMBER_OR_NAME = regex(SCALAR)


class ValueCount(NamedTuple):
    """About how many values a body has, and how many of them are objects."""

    values: int
    objects: int


def count_values(body: bytes) -> ValueCount:
    """Count the commas and brackets outside of strings. The body need not be valid."""
    values = 0
    objects = 0
    in_string = False
    start = 0
    while start < len(body):
        window = body[start : start + COUNT_BYTES]
        backslashes = len(window) - len(window.rstrip(b"\\"))
        if backslashes % 2:  # the last one belongs to the next byte
            window = body[start : start + COUNT_BYTES + 1]
        start += len(window)
        if b"\\" in window:
            window = window.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = window.split(b'"')
        outside = b"".join(parts[in_string::2])
        in_string ^= len(parts) % 2 == 0
        opened = outside.count(b"{")
        objects += opened
        values += opened + outside.count(b",") + outside.count(b"[")
    return ValueCount(values, objects)


def loads_large(body: bytes, values: int | None = None) -> object:
    """The value of a body, as `orjson.loads` gives it. A large one should be decoded in a thread. Raises ValueError.

    `values`: how many there are, if they were counted before. To count them takes a third of the time.
    """
    if len(body) <= LARGE_BYTES:
        return orjson.loads(body)
    if values is None:
        values = count_values(body).values
    cost = len(body) / BYTES_PER_MILLISECOND + values / VALUES_PER_MILLISECOND
    if cost <= MILLISECONDS:
        return orjson.loads(body)
    return in_pieces(body)


def in_pieces(body: bytes) -> object:
    decoder = LargeDecoder(body)
    value, end = decoder.value(decoder.after_space(0), 0)
    if decoder.after_space(end) != len(body):
        raise ValueError("more than one value")
    return value


class LargeDecoder:
    """Decodes one body. Each method takes a position, and returns a value and the position after it.

    They raise ValueError.
    """

    def __init__(self, body: bytes) -> None:
        self.body = body

    def after_space(self, position: int) -> int:
        match = SPACES.match(self.body, position)
        assert match is not None  # it matches nothing, too
        return match.end()

    def byte(self, position: int) -> bytes:
        """The byte at a position; b"" at the end."""
        return self.body[position : position + 1]

    def value(self, position: int, depth: int) -> tuple[object, int]:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        match = WHOLE.match(self.body, position, position + WINDOW_BYTES)
        if match is not None:
            return orjson.loads(match[0]), match.end()
        first = self.byte(position)
        if first == b"[":
            return self.array(position + 1, depth)
        if first == b"{":
            return self.object(position + 1, depth)
        if first == b'"':
            return self.string(position + 1)
        match = NUMBER_OR_NAME.match(self.body, position)
        if match is None:
            raise ValueError("no value")
        return orjson.loads(match[0]), match.end()

    def array(self, position: int, depth: int) -> tuple[list[object], int]:
        items: list[object] = []
        position = self.after_space(position)
        if self.byte(position) == b"]":
            return items, position + 1
        while True:
            match = ITEMS.match(self.body, position, position + WINDOW_BYTES)
            if match is not None:  # the last byte is a comma
                items += orjson.loads(b"[%b]" % match[0][:-1])
                position = match.end()
                continue
            item, position = self.value(self.after_space(position), depth + 1)
            items.append(item)
            position, ended = self.separator(position, b"]")
            if ended:
                return items, position

    def object(self, position: int, depth: int) -> tuple[dict[str, object], int]:
        members: dict[str, object] = {}
        position = self.after_space(position)
        if self.byte(position) == b"}":
            return members, position + 1
        while True:
            match = MEMBERS.match(self.body, position, position + WINDOW_BYTES)
            if match is not None:
                members |= orjson.loads(b"{%b}" % match[0][:-1])
                position = match.end()
                continue
            name, position = self.name(self.after_space(position))
            value, position = self.value(self.after_space(position), depth + 1)
            members[name] = value
            position, ended = self.separator(position, b"}")
            if ended:
                return members, position

    def name(self, position: int) -> tuple[str, int]:
        """The name of a member, up to its colon."""
        if self.byte(position) != b'"':
            raise ValueError("no name")
        name, position = self.string(position + 1)
        position = self.after_space(position)
        if self.byte(position) != b":":
            raise ValueError("no colon")
        return name, position + 1

    def separator(self, position: int, closing: bytes) -> tuple[int, bool]:
        """The position after a comma or a closing bracket, and whether it is the bracket."""
        position = self.after_space(position)
        found = self.byte(position)
        if found == closing:
            return position + 1, True
        if found != b",":
            raise ValueError("no comma")
        return position + 1, False

    def string(self, position: int) -> tuple[str, int]:
        """A string after its quotation mark."""
        parts: list[str] = []
        while True:
            match = CHARACTERS.match(self.body, position, position + TEXT_BYTES)
            assert match is not None  # it matches nothing, too
            end = match.end()
            closed = self.byte(end) == b'"'
            if not closed:
                end = self.character_start(end)
                if end <= position:
                    raise ValueError("no end of a string")
            parts.append(orjson.loads(b'"%b"' % self.body[position:end]))
            if closed:
                return "".join(parts), end + 1
            position = end

    def character_start(self, position: int) -> int:
        """The position, or that of the character of UTF-8 that it is in the middle of."""
        for back in range(4):
            byte = self.byte(position - back)
            if not byte or byte[0] & 0xC0 != 0x80:
                return position - back
        return position


# Encoding.


def dumps_large(value: object) -> bytes:
    """The JSON of a large value, as `orjson.dumps` writes it. Raises TypeError."""
    return b"".join(encoded_pieces(value, 0))


def encoded_pieces(value: object, depth: int) -> Iterator[bytes]:
    """Large strings and long lists are encoded in pieces, down to the parts of a message."""
    if isinstance(value, str) and len(value) > TEXT_CHARACTERS:
        yield from string_pieces(value)
    elif isinstance(value, dict) and depth < SPLIT_DEPTH:
        yield from object_pieces(value, depth)
    elif isinstance(value, list) and len(value) > SLICE_ITEMS:
        yield from list_pieces(value)
    elif isinstance(value, list) and depth < SPLIT_DEPTH:
        yield b"["
        for position, item in enumerate(value):
            if position:
                yield b","
            yield from encoded_pieces(item, depth + 1)
        yield b"]"
    else:
        yield orjson.dumps(value)


def string_pieces(text: str) -> Iterator[bytes]:
    yield b'"'
    for start in range(0, len(text), TEXT_CHARACTERS):
        yield orjson.dumps(text[start : start + TEXT_CHARACTERS])[1:-1]
    yield b'"'


def object_pieces(members: dict[str, object], depth: int) -> Iterator[bytes]:
    yield b"{"
    separator = b""
    for name, value in members.items():
        yield separator + orjson.dumps(name) + b":"
        yield from encoded_pieces(value, depth + 1)
        separator = b","
    yield b"}"


def list_pieces(items: list[object]) -> Iterator[bytes]:
    separator = b"["
    for start in range(0, len(items), SLICE_ITEMS):
        yield separator
        yield orjson.dumps(items[start : start + SLICE_ITEMS])[1:-1]
        separator = b","
    yield b"]"
