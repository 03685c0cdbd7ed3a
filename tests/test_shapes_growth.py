"""The work of shapes grows with the size of its input, and not with its square."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from growth import LINEAR, growth

from rewrap.types import ChatRequest, Delta, ResponseInfo, Shape
from rewrap.upstream import lenient
from rewrap.upstream.auto import AutoShape
from rewrap.upstream.deltas import DeltaNormalizer
from rewrap.upstream.failures import failure_in
from rewrap.upstream.shapes import known_shapes, shape_from
from rewrap.upstream.unsupported import check_supported

SIZE = 800
SHAPES: dict[str, Shape] = {"auto": AutoShape(), **known_shapes()}
# One shape for each way to write a conversation.
WAYS = ["auto", "ollama", "tgi", "promptflow", "cohere", "anthropic", "gemini"]

Message = dict[str, Any]


def user(content: Any = "a") -> Message:
    return {"role": "user", "content": content}


def calling(number: int) -> list[Message]:
    function = {"name": f"f{number}", "arguments": '{"a":1}'}
    call = {"id": f"c{number}", "type": "function", "function": function}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"c{number}", "content": "x"},
    ]


def flat(groups: Iterable[list[Message]]) -> list[Message]:
    return [message for group in groups for message in group]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CONVERSATIONS: dict[str, Callable[[int], list[Message]]] = {
    "user messages in a row": lambda n: [user()] * n,
    "turns": lambda n: [user(), {"role": "assistant", "content": "b"}] * n,
    "system messages": lambda n: [{"role": "system", "content": "s"}] * n + [user()],
    "tool calls": lambda n: flat(calling(number) for number in range(n)),
    "parts": lambda n: [user([{"type": "text", "text": "a"}] * n)],
    "images": lambda n: [user([IMAGE] * n)],
    "unknown parts": lambda n: [user([{"type": f"t{number}"} for number in range(n)])],
    "members": lambda n: [user() | {f"m{number}": 1 for number in range(n)}],
}


def request(messages: list[Message], **payload: Any) -> ChatRequest:
    return ChatRequest("m", messages, {"messages": messages, "user": "u", **payload})


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_a_request_is_translated_in_linear_time(name: str, conversation: str) -> None:
    shape = SHAPES[name]

    def work(asked: ChatRequest) -> None:
        shape.payload(asked)
        shape.dropped(asked)

    assert growth(lambda n: request(CONVERSATIONS[conversation](n)), work, SIZE) < LINEAR


def test_many_dropped_names_are_checked_in_linear_time() -> None:
    def made(size: int) -> tuple[ChatRequest, list[str]]:
        names = [f"p{number}" for number in range(size)]
        parts = [{"type": "text", "text": "a"}] * size
        return request([user(parts)], **dict.fromkeys(names, 1)), names

    assert growth(made, lambda asked: check_supported(*asked), SIZE * 10) < LINEAR


def chunk(delta: dict[str, Any], index: int = 0) -> Any:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": None}]}


def piece(**members: Any) -> dict[str, Any]:
    return {"tool_calls": [{"function": {"arguments": "x"}, **members}]}


def named_call(number: int) -> dict[str, Any]:
    return piece(id=f"c{number}", function={"name": "f", "arguments": "{}"})


def anthropic_piece() -> Any:
    delta = {"type": "input_json_delta", "partial_json": "x"}
    return {"type": "content_block_delta", "index": 0, "delta": delta}


STREAMS: dict[str, tuple[Shape, Callable[[int], Any]]] = {
    "texts": (SHAPES["auto"], lambda n: {"text": "a"}),
    "chunks": (SHAPES["auto"], lambda n: chunk({"content": "a"})),
    "choices": (SHAPES["auto"], lambda n: chunk({"content": "a"}, n)),
    "calls by id": (SHAPES["auto"], lambda n: chunk(named_call(n))),
    "pieces of one call": (SHAPES["auto"], lambda n: chunk(piece(index=0))),
    "calls with a high index": (SHAPES["auto"], lambda n: chunk(piece(index=999), n)),
    "halves": (SHAPES["auto"], lambda n: chunk({"content": "\ud83d", "reasoning": "\ud83d"})),
    "openai": (SHAPES["openai"], lambda n: chunk({"content": "a"})),
    "anthropic": (SHAPES["anthropic"], lambda n: anthropic_piece()),
    "cumulative": (
        shape_from({"reply": "t", "stream": {"mode": "last"}}, "mine"),
        lambda n: {"t": "abc"},
    ),
    "messages": (
        shape_from({"reply": "t", "stream": {"mode": "message"}}, "mine"),
        lambda n: {"t": "abc"},
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_read_in_linear_time(name: str) -> None:
    shape, event = STREAMS[name]

    def events(size: int) -> list[bytes]:
        return [json.dumps(event(number)).encode() for number in range(size)]

    def work(stream: list[bytes]) -> list[Delta]:
        reader = shape.reader()
        normalized = DeltaNormalizer(ResponseInfo())
        deltas = [delta for data in stream for delta in normalized(reader("", data))]
        return deltas + list(normalized.end())

    assert growth(events, work, SIZE) < LINEAR


ANSWERS: dict[str, tuple[Shape, Callable[[int], Any]]] = {
    "a list of texts": (SHAPES["auto"], lambda n: {"data": ["a"] * n}),
    "a conversation": (SHAPES["auto"], lambda n: [{"role": "assistant", "text": "a"}] * n),
    "members": (SHAPES["auto"], lambda n: {f"m{k}": "x" for k in range(n)} | {"reply": "a"}),
    "choices": (
        SHAPES["auto"],
        lambda n: {"choices": [{"message": {"content": "a"}} for _ in range(n)]},
    ),
    "tool calls": (
        SHAPES["ollama"],
        lambda n: {"message": {"tool_calls": [{"function": {"name": "f"}}] * n}},
    ),
    "parts": (
        SHAPES["gemini"],
        lambda n: {"candidates": [{"content": {"parts": [{"text": "a"}] * n}}]},
    ),
    "blocks": (
        SHAPES["anthropic"],
        lambda n: {"content": [{"type": "tool_use", "name": "f", "input": {}}] * n},
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_whole_answer_is_read_in_linear_time(name: str) -> None:
    shape, value = ANSWERS[name]

    def work(answer: Any) -> list[Delta]:
        normalized = DeltaNormalizer(ResponseInfo())
        return list(normalized(shape.answer(answer))) + list(normalized.end())

    assert growth(value, work, SIZE) < LINEAR


@pytest.mark.parametrize(
    "value",
    [
        lambda n: {f"error_{k}": "" for k in range(n)},
        lambda n: {"code": "x" * n, "message": "a"},
        lambda n: {"error_code": "x" * n},
        lambda n: {"code": 500, "data": [{"items": [1] * n}]},
    ],
    ids=["members", "a code", "an error code", "items"],
)
def test_a_failure_is_found_in_linear_time(value: Callable[[int], Any]) -> None:
    assert growth(value, failure_in, SIZE * 20) < LINEAR


def test_json_is_repaired_in_linear_time() -> None:
    def text(size: int) -> str:
        return "[" + r'{"a":"\ud800","b":NaN},' * size + "1]"

    assert growth(text, lenient.loads, SIZE) < LINEAR
