"""Framing: bytes in any pieces give the same events, and the cost of an answer is linear in its size."""

import asyncio
import codecs
import re
from collections.abc import Callable
from itertools import product
from typing import Any, ClassVar

import pytest
from growth import LINEAR, growth

from rewrap.types import Limits
from rewrap.upstream import relay
from rewrap.upstream.answers import Answer, StreamedReply
from rewrap.upstream.framing import (
    NDJSONDecoder,
    SSEDecoder,
    TextDecoder,
    charset,
    framing,
    is_plain_events,
)
from rewrap.upstream.relay import RelayStream, first_suspect

BOM = codecs.BOM_UTF8
MOST = 10**8
JSON, PLAIN, PAGE = b"application/json", b"text/plain", b"text/html"


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def events(decoder: Any, data: bytes, size: int) -> list[tuple[str, bytes]]:
    found = [event for piece in pieces(data, size) for event in decoder.feed(piece)]
    return [*found, *decoder.close()]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_bom_in_any_number_of_reads_is_no_part_of_the_first_event(size: int) -> None:
    sse = BOM + b'data: {"a": 1}\n\ndata: 2\n\n'
    assert events(SSEDecoder(MOST), sse, size) == [("", b'{"a": 1}'), ("", b"2")]
    ndjson = BOM + b'{"a": 1}\n{"b": 2}'
    assert events(NDJSONDecoder(MOST), ndjson, size) == [("", b'{"a": 1}'), ("", b'{"b": 2}')]
    text = events(TextDecoder(), BOM + "déjà vu".encode(), size)
    assert b"".join(data for _, data in text) == "déjà vu".encode()


def test_a_bom_elsewhere_is_kept() -> None:
    sse = b"data: 1\n\ndata: " + BOM + b"2\n\n"
    assert events(SSEDecoder(MOST), sse, 1) == [("", b"1"), ("", BOM + b"2")]


async def detect(type: bytes, parts: list[bytes]) -> tuple[str, bytes, int]:
    """The framing, the bytes, and how many parts were read."""
    rest = iter(parts)
    reads = 0

    async def read(started: bool) -> bytes:
        nonlocal reads
        reads += 1
        return next(rest, b"")

    kind, first = await framing({b"content-type": type}, read)
    return kind, first, reads


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("type", "data", "kind"),
    [
        (PLAIN, b"data: x\n\n", "sse"),
        (PLAIN, b": a comment\n\ndata: x\n\n", "sse"),
        (PLAIN, b"data and more", "text"),
        (PLAIN, b'{"a": 1}\n{"b": 2}\n', "ndjson"),
        (PLAIN, b"  Hello", "text"),
        (JSON, b' \n {"a": 1}', "json"),
        (PLAIN, b'{"a": 1}', "json or text"),
        (PAGE, b"<b>bold</b>", "a page"),
        (PLAIN, b"", "empty"),
        (JSON, b"  \n ", "empty"),
    ],
)
def test_the_framing_does_not_depend_on_the_reads(
    type: bytes, data: bytes, kind: str, size: int
) -> None:
    for start in (b"", BOM):
        answer = detect(type, pieces(start + data, size))
        if kind in ("a page", "empty"):
            with pytest.raises(ValueError, match=kind):
                asyncio.run(answer)
            continue
        found, first, _ = asyncio.run(answer)
        assert found == kind
        assert data.startswith(first)


def test_a_stream_is_detected_with_its_first_event() -> None:
    parts = [b"id: 1\n", b"event: a\n", b"data: x\n\n", b"data: y\n\n"]
    assert asyncio.run(detect(PLAIN, parts))[2] <= 3


@pytest.mark.parametrize("name", ["utf8mb4", "hex", "rot13", "undefined", "base64"])
def test_an_unknown_charset_is_a_failure_of_the_answer(name: str) -> None:
    with pytest.raises(ValueError, match="unknown charset"):
        charset({b"content-type": b"text/plain; charset=" + name.encode()})


def test_known_charsets_have_their_python_names() -> None:
    assert charset({b"content-type": b'text/plain; charset="ISO-8859-1"'}) == "iso8859-1"
    assert charset({b"content-type": b"text/plain"}) == "utf-8"


# Plain events pass without a look at each of them.

TOKENS = [
    b"data: {",
    b"}",
    b"\n",
    b"\n\n",
    b"\r",
    b'"error"',
    b"}\n\ndata: {",
    b"data: [DONE]\n\n",
    b": comment\n\n",
]
WORD = b'data: {"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
ERROR = b'data: {"error":{"message":"Too hot."}}\n\n'


def relay_stream() -> RelayStream:
    return RelayStream(MOST, 502, one_choice=True, alias=None)


def test_plain_events_are_lines_of_objects_and_a_done_without_a_carriage_return() -> None:
    pattern = re.compile(rb"(?:data: \{[^\r\n]*\}\n\n)*(?:data: \[DONE\]\n\n)?")
    plain = 0
    for length in range(6):
        for tokens in product(TOKENS, repeat=length):
            data = b"".join(tokens)
            found = pattern.fullmatch(data) is not None
            assert is_plain_events(data) == found, data
            plain += found
    assert plain > 20


def test_what_comes_before_the_first_suspect_is_plain_and_whole() -> None:
    suspects = 0
    for tokens in product([WORD, ERROR, WORD], repeat=4):
        for end in (b"", b"data: [DONE]\n\n"):
            data = b"".join(tokens) + end
            start = first_suspect(data)
            assert data[:start] == WORD * (start // len(WORD))
            assert data[start:].startswith((ERROR, b"data: [DONE]")) or start == len(data)
            suspects += start < len(data)
    assert suspects > 50


def test_the_events_before_the_end_of_a_stream_are_not_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[bytes] = []

    class CountingDecoder(SSEDecoder):
        def feed(self, data: bytes) -> Any:
            parsed.append(data)
            return super().feed(data)

    monkeypatch.setattr(relay, "SSEDecoder", CountingDecoder)
    stream = relay_stream()
    assert stream.feed(WORD * 100 + END) == WORD * 100 + END
    assert parsed == []
    assert stream.done


def test_an_error_ends_the_stream_after_the_events_before_it() -> None:
    stream = relay_stream()
    assert stream.feed(WORD * 3 + ERROR + WORD + END) == WORD * 3
    assert stream.failure is not None
    assert stream.failure.message == "Too hot."
    assert not stream.done


# Growth: a quadratic loop would cost a hundred times as much for ten times the input.

SIZE = 3_000
DECODERS: dict[str, Callable[[], Any]] = {
    "ndjson": lambda: NDJSONDecoder(MOST),
    "sse": lambda: SSEDecoder(MOST),
    "text": TextDecoder,
}


def grows_linearly(make: Callable[[int], Any], work: Callable[[Any], object]) -> bool:
    return growth(make, work, SIZE) < LINEAR


@pytest.mark.parametrize("unit", [b"a", b"\n", b"\r", b"data: x\n", b": c\n\n", b"data:x\n\n"])
@pytest.mark.parametrize("name", DECODERS)
def test_decoding_is_linear_in_the_answer(name: str, unit: bytes) -> None:
    def work(data: bytes) -> object:
        return events(DECODERS[name](), data, 1)

    assert grows_linearly(lambda size: unit * (size // len(unit)), work)


@pytest.mark.parametrize(
    ("type", "start", "unit"),
    [
        (JSON, b"", b" "),
        (JSON, b"", b"\n"),
        (PLAIN, b"data:", b"a"),
        (PLAIN, b"", b"id: 1\n"),
        (PLAIN, b'"', b"a"),
        (PLAIN, b'"', b"\\"),
        (PLAIN, b"{", b" "),
        (PLAIN, b"[", b"["),
        (JSON, b'{"a":"', b"a"),
    ],
)
def test_detection_is_linear_in_the_start_of_the_answer(
    type: bytes, start: bytes, unit: bytes
) -> None:
    def parts(size: int) -> list[bytes]:
        return [*pieces(start + unit * (size // len(unit)), 1), b'{"a": 1}']

    assert grows_linearly(parts, lambda data: asyncio.run(detect(type, data)))


# One read may hold many events: others have their turn in between.

MANY = 20_000


@pytest.mark.parametrize("event", [b": x\n\n", b'data:{"a": 1}\n\n', b'data: {"a": 1}\r\n\r\n'])
def test_a_relay_rewrites_a_part_of_a_large_read_at_a_time(event: bytes) -> None:
    stream = RelayStream(MOST, 502, one_choice=True, alias=None)
    stream.started = True
    passed = [stream.feed(event * MANY)]
    while stream.rest:
        passed.append(stream.feed(b""))
    assert max(map(len, passed)) < 2 * relay.REWRITTEN_BYTES
    assert b"".join(passed).count(b"\n\n") == MANY


def test_nothing_follows_the_end_of_a_stream_in_a_large_read() -> None:
    stream = RelayStream(MOST, 502, one_choice=True, alias=None)
    stream.started = True
    stream.feed(b"data:[DONE]\n\n" + b": x\n\n" * MANY)
    assert stream.done
    assert not stream.rest


@pytest.mark.anyio
async def test_a_large_read_of_small_events_lets_others_have_their_turn() -> None:
    class OneRead:
        """A reply whose bytes come in one read."""

        deadline = 0.0
        parts: ClassVar[list[bytes]] = [b"data: a\n\n" * MANY, b""]

        async def read(self) -> bytes:
            return self.parts.pop(0)

    reply: Any = OneRead()
    answer = Answer(reply, Limits(), 502, 0.0, stream=True, relay=False, stored=False, choices=1)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    found = [event async for event in answer.events(StreamedReply(SSEDecoder(MOST), b""))]
    task.cancel()
    assert found == [("", b"a")] * MANY
    assert turns > MANY / 1000
