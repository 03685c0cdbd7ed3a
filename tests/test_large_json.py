"""Large JSON is decoded and encoded in pieces, and the result is orjson's."""

import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from growth import LINEAR, growth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewrap import large_json
from rewrap.large_json import ValueCount, count_values, dumps_large, in_pieces

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TEXTS, inner, max_size=6),
    max_leaves=40,
)
EXAMPLES = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few bytes: each value is cut somewhere."""
    monkeypatch.setattr(large_json, "WINDOW_BYTES", 16)
    monkeypatch.setattr(large_json, "TEXT_BYTES", 13)
    monkeypatch.setattr(large_json, "TEXT_CHARACTERS", 3)
    monkeypatch.setattr(large_json, "SLICE_ITEMS", 2)
    monkeypatch.setattr(large_json, "COUNT_BYTES", 5)


def spaced(body: bytes) -> bytes:
    """The same JSON with blanks around its brackets, and escapes where they may be."""
    value = orjson.loads(body)
    import json

    return json.dumps(value, indent=1, ensure_ascii=True).encode()


@EXAMPLES
@given(value=VALUES)
def test_pieces_decode_to_the_same_value(value: Any) -> None:
    body = orjson.dumps(value)
    assert in_pieces(body) == orjson.loads(body)
    assert in_pieces(spaced(body)) == orjson.loads(body)


@EXAMPLES
@given(value=VALUES)
def test_pieces_encode_to_the_same_bytes(value: Any) -> None:
    assert dumps_large(value) == orjson.dumps(value)


def outcome(decode: Callable[[bytes], object], body: bytes) -> object:
    """The value, or that there is none."""
    try:
        return orjson.dumps(decode(body))
    except ValueError:
        return "refused"
    except TypeError:  # nested too deeply to write
        return "refused"


BROKEN = [
    b"",
    b" ",
    b"[",
    b"]",
    b"{",
    b"[1,]",
    b"[,1]",
    b"[1,,2]",
    b"[1 2]",
    b"[1}",
    b'{"a":1,}',
    b'{"a" 1}',
    b'{"a":}',
    b"{1:2}",
    b'{"a":1]',
    b'{"a":1 "b":2}',
    b'"',
    b'"abc',
    b'"\\',
    b'"\\"',
    b'"\\u12"',
    b'"\\x"',
    b'"\\ud800"',
    b'"\\ud800\\u0041"',
    b'"\xff"',
    b'"\xc3"',
    b'"a\nb"',
    b"[1] [2]",
    b"[1]x",
    b"nul",
    b"+1",
    b"01",
    b"NaN",
    b'["a", "b" , {"c": [true, false, null, -1.5e3, "\\u00e9\\ud83d\\ude00"]}, []]',
    b'{"a":1,"a":2}',
    "\ufeff[1]".encode(),
    b"[" * 300 + b"]" * 300,
    b"[" * 5000,
]


@pytest.mark.parametrize("body", BROKEN, ids=lambda body: repr(body[:40]))
def test_pieces_refuse_what_orjson_refuses(body: bytes) -> None:
    assert outcome(in_pieces, body) == outcome(orjson.loads, body)
    nested = b'{"long":"' + b"x" * 50 + b'","in":' + body + b"}"
    assert outcome(in_pieces, nested) == outcome(orjson.loads, nested)


@EXAMPLES
@given(body=st.binary(max_size=40) | st.text('[]{}",:\\u12ad .e-tn\n', max_size=40).map(str.encode))
def test_any_bytes_have_the_same_outcome(body: bytes) -> None:
    assert outcome(in_pieces, body) == outcome(orjson.loads, body)


def outside_of_strings(body: bytes) -> bytes:
    return re.sub(rb'"(?:[^"\\]|\\.)*"', b"", body, flags=re.DOTALL)


@EXAMPLES
@given(value=VALUES)
def test_values_are_counted_outside_of_strings(value: Any) -> None:
    for body in (orjson.dumps(value), spaced(orjson.dumps(value))):
        rest = outside_of_strings(body)
        objects = rest.count(b"{")
        assert count_values(body) == ValueCount(
            rest.count(b",") + rest.count(b"[") + objects, objects
        )


UNITS = {
    "messages": (b'{"messages":[', b'{"role":"user","content":"a, b"},', b"1]}"),
    "parts": (b'{"messages":[', b'{"content":[{"type":"text","text":"a\\n"}]},', b"1]}"),
    "empty lists": (b"[", b"[],", b"1]"),
    "deep lists": (b"[", b"[" * 9 + b"1" + b"]" * 9 + b",", b"1]"),
    "numbers": (b"[", b"1,", b"1]"),
    "text": (b'["', b"hello, world ", b'"]'),
    "escapes": (b'["', b"\\n\\u00e9", b'"]'),
    "backslashes": (b'["', b"\\\\", b'"]'),
    "quotation marks": (b'["', b'\\"', b'"]'),
    "blanks": (b"[", b" ", b"1]"),
    "an open string": (b'["', b"x", b""),
    "open lists": (b"", b"[", b""),
    "open names": (b"", b'{"a":', b""),
}


@pytest.mark.parametrize("name", UNITS)
def test_the_cost_is_linear_in_the_body(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    start, unit, end = UNITS[name]

    def body(size: int) -> bytes:
        return start + unit * (size // len(unit)) + end

    def work(data: bytes) -> object:
        return count_values(data), outcome(in_pieces, data)

    assert growth(body, work, 200_000) < LINEAR
