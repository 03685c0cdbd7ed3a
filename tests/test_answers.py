"""Answers of chat URLs in many forms, in memory and in pieces of any size."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewrap.api.chat import ChatRendering
from rewrap.config.settings import Settings
from rewrap.main import create_app
from rewrap.types import ChatRequest, Delta, ResponseInfo, words

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


Answer = tuple[str, list[bytes], bool]  # content type, pieces, whether its length is known
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
TEXT = "text/plain"
HTML = "text/html; charset=UTF-8"
JSON = "application/json"
SSE = "text/event-stream"


def sized(body: str | bytes, kind: str = JSON) -> Answer:
    """An answer with a content-length."""
    return kind, [body.encode() if isinstance(body, str) else body], True


def pieces(*parts: str | bytes, kind: str = JSON) -> Answer:
    """An answer in pieces, without a content-length."""
    return kind, [part.encode() if isinstance(part, str) else part for part in parts], False


REPLIES: dict[str, tuple[Answer, str]] = {
    # JSON on lines, whatever is known of its length and wherever it is cut
    "lines, length known": (sized('{"text":"a"}\n{"text":"b"}\n'), "ab"),
    "lines, length known, no last line end": (sized('{"text":"a"}\n{"text":"b"}', TEXT), "ab"),
    "lines, blank ones between": (sized('{"text":"a"}\n\n{"text":"b"}\n\n'), "ab"),
    "lines, line end in the next piece": (pieces('{"text":"a"}', '\n{"text":"b"}\n'), "ab"),
    "lines, cut in a line": (pieces('{"te', 'xt":"a"}\n{"text":"b"}\n'), "ab"),
    "lines, line ends alone": (pieces('{"text":"a"}', "\n", '{"text":"b"}', "\n", kind=TEXT), "ab"),
    # JSON of any type, in any pieces
    "PHP": (pieces('{"reply":"Hello ', 'world"}', kind=HTML), "Hello world"),
    "JSON as text": (pieces('{"reply":"Hello ', 'world"}', kind=TEXT), "Hello world"),
    "JSON of no type": (pieces('{"reply":"Hello ', 'world"}', kind=""), "Hello world"),
    "a JSON string as text": (pieces('"Hello ', 'world"', kind=TEXT), "Hello world"),
    "pretty JSON": (pieces('{\n  "reply":\n', '"Hello"\n}\n', kind=TEXT), "Hello"),
    "JSON after blanks": (pieces(" ", "\n", '{"reply":"Hi"}'), "Hi"),
    "JSON after a BOM": (sized(b'\xef\xbb\xbf{"reply":"Hi"}'), "Hi"),
    "JSON in Latin-1": (
        sized('{"reply":"Grüße"}'.encode("latin-1"), f"{JSON}; charset=iso-8859-1"),
        "Grüße",
    ),
    # texts that begin as something else does
    "blank first": (pieces("\n", "Hello", " there", kind=TEXT), "\nHello there"),
    "BOM": (sized(b"\xef\xbb\xbfHi", TEXT), "Hi"),
    "Latin-1": (pieces("Gr", "üße".encode("latin-1"), kind=f"{TEXT}; charset=iso-8859-1"), "Grüße"),
    "a page that was asked for": (
        sized("<!DOCTYPE html>\n<html></html>", TEXT),
        "<!DOCTYPE html>\n<html></html>",
    ),
    "HTML in pieces": (pieces("<div>", "hello", "</div>", kind=TEXT), "<div>hello</div>"),
    "id:": (sized("id: 42 is your number.", TEXT), "id: 42 is your number."),
    "data:": (pieces("data: ", "the plural of datum", kind=TEXT), "data: the plural of datum"),
    "dat": (pieces("dat", "um", kind=TEXT), "datum"),
    "a quotation": (
        pieces('"Yes"', " is what", " she said.", kind=TEXT),
        '"Yes" is what she said.',
    ),
    "a footnote": (pieces("[1", "] See there.", kind=TEXT), "[1] See there."),
    # events
    "events as text": (pieces("da", 'ta: {"text":"Hi"}\n\n', kind=TEXT), "Hi"),
    "events as JSON": (pieces('data: {"text":"Hel"}\n\n', 'data: {"text":"lo"}\n\n'), "Hello"),
    "events as text, a comment first": (
        pieces(": ping\n\n", 'data: {"text":"Hi"}\n\n', kind=TEXT),
        "Hi",
    ),
    "a greeting, then JSON": (
        pieces("data: Hello \n\n", 'data: {"text":"you"}\n\n', kind=SSE),
        "Hello you",
    ),
    "null, then JSON": (pieces("data: null\n\n", 'data: {"text":"Hi"}\n\n', kind=SSE), "Hi"),
    "bare tokens of JSON": (
        pieces("data: {\n\n", 'data: "a"\n\n', "data: : 1}\n\n", kind=SSE),
        '{"a": 1}',
    ),
    "bare tokens of Markdown": (pieces("data: [\n\n", "data: link](x)\n\n", kind=SSE), "[link](x)"),
    "bare tokens, a number first": (pieces("data: [1]\n\n", "data:  see\n\n", kind=SSE), "[1] see"),
    "events, of mixed line ends": (
        pieces('data: {"text":"a"}\r\n\ndata: {"text":"b"}\r\n\n', kind=SSE),
        "ab",
    ),
    "an event called text": (pieces('event: text\ndata: {"text":"Hi"}\n\n', kind=SSE), "Hi"),
    "digits": (pieces('data: {"text":"$"}\n\n', 'data: {"text":5}\n\n', kind=SSE), "$5"),
    # where the reply stands
    "an empty text beside it, last": (
        pieces(
            'data: {"content":"Hi","answer":""}\n\n',
            'data: {"content":"","answer":"Hi"}\n\n',
            kind=SSE,
        ),
        "Hi",
    ),
    "an empty text before it": (sized('{"response":"","text":"Hi"}'), "Hi"),
    "an envelope": (sized('{"code":200,"message":"success","data":{"reply":"Hi"}}'), "Hi"),
    "a conversation": (
        sized(
            '{"messages":[{"role":"assistant","content":"A"},{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}'
        ),
        "A",
    ),
    "a conversation of LangChain's": (
        sized(
            '{"output":{"messages":[{"type":"ai","content":"before"},{"type":"human","content":"Q"},{"type":"ai","content":"A"}]}}'
        ),
        "A",
    ),
    "OpenAI's newer form": (
        sized('{"output":[{"type":"message","content":[{"type":"output_text","text":"A"}]}]}'),
        "A",
    ),
    "two messages of a bot": (
        sized('[{"role":"assistant","text":"A"},{"role":"assistant","text":"B"}]'),
        "AB",
    ),
}


def client(answer: Answer, way: str = "chat_url", **more: Any) -> httpx.AsyncClient:
    kind, parts, whole = answer

    async def content() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    def upstream(request: httpx.Request) -> httpx.Response:
        length = {"content-length": str(sum(map(len, parts)))} if whole else {}
        return httpx.Response(200, headers={"content-type": kind} | length, content=content())

    settings = Settings(**{way: "http://bot/v1"} | more, store_url="sqlite://")
    app = create_app(settings, transport=httpx.MockTransport(upstream))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy")


async def reply(answer: Answer, stream: bool, way: str = "chat_url") -> str:
    response = await client(answer, way).post(
        "/v1/chat/completions", json=ASKED | {"stream": stream}
    )
    assert response.status_code == 200, response.text
    if not stream:
        return str(response.json()["choices"][0]["message"]["content"])
    assert response.text.endswith("data: [DONE]\n\n")
    events = [json.loads(event[6:]) for event in response.text.split("\n\n")[:-2]]
    return "".join(
        choice["delta"].get("content") or "" for event in events for choice in event["choices"]
    )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("size", [0, 1, 1000], ids=["as it is", "byte by byte", "at once"])
@pytest.mark.parametrize("name", REPLIES)
async def test_the_reply_is_found_in_pieces_of_any_size(name: str, size: int, stream: bool) -> None:
    (kind, parts, whole), text = REPLIES[name]
    if size:
        body = b"".join(parts)
        parts = [body[start : start + size] for start in range(0, len(body), size)]
    assert await reply((kind, parts, whole), stream) == text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (HTML, ["<", "html><body>Log in</body>"]),
        (HTML, ["\ufeff<!-- a -->", "<html>"]),
        ("", ["<!DOC", "TYPE html>"]),
        ("", ["<?xml version='1.0'?>"]),
        (HTML, ["<b>You are not logged in</b>"]),
        (TEXT, ["\n", "  "]),
        (f"{TEXT}; charset=x-nothing", ["Grüße"]),
        (f"{TEXT}; charset=hex", ["4772"]),
        (JSON, ['{"choices":[{"message":{"content":[1,null]}}]}']),
        (JSON, ['{"error":{"message":"no"},"choices":[{"index":0,"message":{"content":""}}]}']),
        (JSON, ['{"reply":' + "[" * 600 + "]" * 600 + "}"]),
        (
            JSON,
            [
                '{"reply":"x","usage":{"prompt_tokens":1,"completion_tokens":1,"x":'
                + "[" * 300
                + "]" * 300
                + "}}"
            ],
        ),
        (
            JSON,
            ['{"reply":"x","usage":{"prompt_tokens":18446744073709551615,"completion_tokens":1}}'],
        ),
        (SSE, ['data: {"text":"Hel']),
        (SSE, ["event: error\ndata: boom\n\n"]),
    ],
)
async def test_an_answer_without_a_reply_is_a_failure(
    kind: str, parts: list[str], stream: bool
) -> None:
    answer = (kind, [part.encode() for part in parts], False)
    response = await client(answer).post("/v1/chat/completions", json=ASKED | {"stream": stream})
    assert response.status_code == 502, response.text
    assert response.json()["error"]["code"] == "bad_gateway"


# Members beside the text


async def streamed(answer: Answer, way: str = "chat_url", **more: Any) -> list[dict[str, Any]]:
    """The choices of all chunks; the error is the last item if there is one."""
    settings = {name: more.pop(name) for name in list(more) if name == "chat_shape"}
    asked = ASKED | {"stream": True} | more
    response = await client(answer, way, **settings).post("/v1/chat/completions", json=asked)
    assert response.status_code == 200, response.text
    events = [
        json.loads(event[6:])
        for event in response.text.split("\n\n")
        if event.startswith("data: {")
    ]
    return [choice for event in events for choice in event.get("choices", [event])]


async def test_reasoning_has_two_names_and_appears_once() -> None:
    body = json.dumps({"choices": [{"message": {"content": "T", "reasoning_content": "why"}}]})
    found = [choice["delta"] for choice in await streamed(sized(body))]
    assert (
        "".join(delta.get("reasoning_content") or delta.get("reasoning") or "" for delta in found)
        == "why"
    )
    assert {"reasoning_content": "why", "reasoning": "why"} in found


async def test_reasoning_precedes_a_long_text_and_tool_calls_follow_it() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"content": "word " * 2000, "reasoning": "why", "tool_calls": [call]}
    said = sized(json.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}]}))
    found = [choice["delta"] for choice in await streamed(said)]
    names = [
        name
        for name in ("reasoning", "content", "tool_calls")
        for delta in found
        if delta.get(name)
    ]
    in_order = [
        name
        for delta in found
        for name in ("reasoning", "content", "tool_calls")
        if delta.get(name)
    ]
    assert in_order == names
    assert len({*names}) == 3


async def test_an_empty_finish_reason_becomes_stop() -> None:
    said = sized('{"choices":[{"message":{"content":"Hi"},"finish_reason":""}]}')
    assert [choice["finish_reason"] for choice in await streamed(said)][-1] == "stop"


@pytest.mark.parametrize("way", ["chat_url", "openai_api_base"])
async def test_a_stream_with_empty_finish_reasons_can_be_cut_short(
    way: str,
) -> None:
    half = pieces(
        'data: {"choices":[{"index":0,"delta":{"content":"half"},"finish_reason":""}]}\n\n',
        kind=SSE,
    )
    assert "error" in (await streamed(half, way))[-1]


HALF = [
    'data: {"choices":[{"index":0,"delta":{"content":"done"},"finish_reason":"stop"}]}\n\n',
    'data: {"choices":[{"index":1,"delta":{"content":"half"},"finish_reason":null}]}\n\n',
]


async def test_every_choice_has_to_end() -> None:
    for way in ("chat_url", "openai_api_base"):
        answer = await client(pieces(*HALF, kind=SSE), way).post(
            "/v1/chat/completions", json=ASKED | {"n": 2}
        )
        assert answer.status_code == 502
        assert "error" in (await streamed(pieces(*HALF, kind=SSE), way, n=2))[-1]
    ends = [
        c["finish_reason"] for c in await streamed(pieces(*HALF, "data: [DONE]\n\n", kind=SSE), n=2)
    ]
    assert [end for end in ends if end] == ["stop", "stop"]


def call(id: str | None, index: int | None, name: str | None, arguments: Any) -> dict[str, Any]:
    said = {"id": id, "index": index, "function": {"name": name, "arguments": arguments}}
    said["function"] = {k: v for k, v in said["function"].items() if v is not None}  # type: ignore[union-attr]
    return {k: v for k, v in said.items() if v is not None}


CALLS = {
    "as OpenAI": [[call("a", 0, "f", "")], [call(None, 0, None, '{"x"')], [call(None, 0, None, ":1}")], [call("b", 1, "g", "{}")]],
    "no index": [[call("a", None, "f", '{"x":1}')], [call("b", None, "g", "{}")]],
    "always 0": [[call("a", 0, "f", '{"x":1}')], [call("b", 0, "g", "{}")]],
    "the second one first": [[call("b", 1, "g", "{}")], [call("a", 0, "f", '{"x"')], [call("", 0, None, ":1}")]],
    "empty ids": [[call("", 0, "f", '{"x":1}')], [call("", 1, "g", "{}")]],
    "neither index nor id": [[call(None, None, "f", '{"x":1}')], [call(None, None, "g", "{}")]],
    "pieces without an index": [[call("a", None, "f", '{"x"')], [call(None, None, None, ":1}")], [call("b", None, "g", "{}")]],
    "the id in each piece": [[call("a", 0, "f", '{"x"')], [call("a", 0, None, ":1}")], [call("b", 1, "g", "{}")]],
    "the name in each piece": [[call("a", 0, "f", '{"x"')], [call("a", 0, "f", ":1}")], [call("b", 1, "g", "{}")]],
    "both at once": [[call("a", None, "f", '{"x":1}'), call("b", None, "g", "{}")]],
    "objects": [[call("a", 0, "f", {"x": 1}), call("b", 1, "g", {})]],
}  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"chat_shape": "openai"}], ids=["any shape", "openai"])
@pytest.mark.parametrize("finish", ["tool_calls", None])
@pytest.mark.parametrize("name", CALLS)
async def test_tool_calls_are_normalized_in_any_numbering(
    name: str, finish: str | None, settings: dict[str, Any]
) -> None:
    rows = [
        {"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None} for calls in CALLS[name]
    ]
    rows += [{"index": 0, "delta": {}, "finish_reason": finish}] * bool(finish)
    events = [f"data: {json.dumps({'choices': [row]})}\n\n" for row in rows]
    answer = pieces(*events, "data: [DONE]\n\n", kind=SSE)
    asked = ASKED | {"tools": [{"type": "function", "function": {"name": "f"}}]}
    whole = (await client(answer, **settings).post("/v1/chat/completions", json=asked)).json()[
        "choices"
    ][0]
    found: dict[int, list[Any]] = {}
    choices = await streamed(answer, **settings)
    for piece in (piece for choice in choices for piece in choice["delta"].get("tool_calls", [])):
        found.setdefault(piece["index"], []).append(piece)
    assert [whole["finish_reason"], choices[-1]["finish_reason"]] == ["tool_calls"] * 2
    for calls in (whole["message"]["tool_calls"], [rows[0] for _, rows in sorted(found.items())]):
        assert [call["function"]["name"][0] for call in calls] == ["f", "g"]
        assert all(call["id"] and call["type"] == "function" for call in calls)
    texts = [
        "".join(row["function"]["arguments"] for row in rows) for _, rows in sorted(found.items())
    ]
    for said in (texts, [call["function"]["arguments"] for call in whole["message"]["tool_calls"]]):
        assert [json.loads(text) for text in said] == [{"x": 1}, {}]


async def test_tool_calls_in_a_message_of_unknown_form_are_kept() -> None:
    said = sized(
        '{"message":{"content":"","tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]},"done":true}'
    )
    whole = (await client(said).post("/v1/chat/completions", json=ASKED)).json()["choices"][0]
    assert (whole["finish_reason"], whole["message"]["content"]) == ("tool_calls", None)
    assert whole["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert whole["message"]["tool_calls"][0]["id"]


async def test_malformed_tool_calls_are_a_failure() -> None:
    for calls in ('["f"]', '"f"', "[1]"):
        said = sized(f'{{"choices":[{{"message":{{"content":"x","tool_calls":{calls}}}}}]}}')
        for stream in (False, True):
            answer = await client(said).post(
                "/v1/chat/completions", json=ASKED | {"stream": stream}
            )
            assert answer.status_code == 502


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_logprobs_of_tokens_without_text_are_kept(stream: bool) -> None:
    tokens = [{"token": token, "logprob": -1, "bytes": [], "top_logprobs": []} for token in "abc"]
    said = [{"content": text, "refusal": None} for text in ("x", "", "y")]
    rows = [
        {"index": 0, "delta": delta, "logprobs": {"content": [token]}, "finish_reason": None}
        for delta, token in zip(said, tokens, strict=True)
    ]
    events = [f"data: {json.dumps({'choices': [row]})}\n\n" for row in rows]
    answer = pieces(*events, END, kind=SSE)
    if stream:
        choices = await streamed(answer, logprobs=True)
    else:
        whole = await client(answer).post("/v1/chat/completions", json=ASKED | {"logprobs": True})
        choices = whole.json()["choices"]
    assert [
        token for choice in choices for token in (choice["logprobs"] or {}).get("content", [])
    ] == tokens


async def test_pieces_of_a_field_are_joined_except_constant_members() -> None:
    rows = [{"index": 0, "type": "text", "format": "f-1", "text": text} for text in ("a", "b")]
    events = [
        f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'details': [row]}}]})}\n\n"
        for row in rows
    ]
    answer = await client(pieces(*events, END, kind=SSE)).post("/v1/chat/completions", json=ASKED)
    message = answer.json()["choices"][0]["message"]
    assert message["details"] == [{"index": 0, "type": "text", "format": "f-1", "text": "ab"}]


async def test_an_openai_upstream_gets_images_and_an_unknown_url_does_not() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    asked = ASKED | {"messages": [{"role": "user", "content": [image]}]}
    good = sized(
        json.dumps(
            {"choices": [{"index": 0, "message": {"content": "A cat"}, "finish_reason": "stop"}]}
        )
    )
    for way, status in (("chat_url", 400), ("openai_api_base", 200)):
        answer = await client(good, way).post("/v1/chat/completions", json=asked)
        assert answer.status_code == status
        assert "x-dropped-params" not in answer.headers


async def test_ask_gives_the_first_choice_only() -> None:
    rows = [(0, "one "), (1, "other "), (0, "two"), (1, "words")]
    events = [
        f'data: {{"choices":[{{"index":{at},"delta":{{"content":"{text}"}}}}]}}\n\n'
        for at, text in rows
    ]
    for way in ("chat_url", "openai_api_base"):
        answer = await client(pieces(*events, "data: [DONE]\n\n", kind=SSE), way).post(
            "/ask", json=ASKED | {"n": 2}
        )
        assert answer.text == "one two"


# Failures with status 200

FAILURES: list[dict[str, Any]] = [
    {"code": 40101, "message": "it broke", "data": None},
    {"code": -1, "message": "it broke"},
    {"code": "500", "msg": "it broke"},
    {"code": "INVALID_TOKEN", "message": "it broke"},
    {"status": 500, "message": "it broke"},
    {"status": "error", "message": "it broke"},
    {"status": "failed", "message": "it broke", "data": {}},
    {"success": False, "message": "it broke"},
    {"success": "false", "error_msg": "it broke"},
    {"ok": False, "msg": "it broke"},
    {"error_code": 110, "error_msg": "it broke"},
    {"errcode": 40001, "errmsg": "it broke"},
    {"errorCode": "E1", "errorMessage": "it broke"},
    {"isError": True, "message": "it broke"},
    {"type": "error", "message": "it broke"},
    {"errors": [{"message": "it broke"}]},
    {"error": "it broke"},
    {"error": {"message": "it broke"}, "choices": []},
]
REPLIES_WITH_CODES: list[dict[str, Any]] = [
    {"code": 0, "message": "Hi"},
    {"code": 200, "message": "success", "data": {"reply": "Hi"}},
    {"code": 1, "msg": "ok", "data": "Hi"},
    {"code": 40101, "reply": "Hi"},
    {"code": "00000", "result": "Hi"},
    {"status": "success", "response": "Hi"},
    {"status": "finished", "message": "Hi"},
    {"success": True, "message": "Hi"},
    {"error_code": 0, "result": "Hi"},
    {"error": None, "errors": [], "error_message": "", "answer": "Hi"},
    {"errors": ["a warning"], "answer": "Hi"},
    {"errno": 0, "errmsg": "ok", "text": "Hi"},
    {"type": "message", "content": "Hi"},
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("value", FAILURES, ids=json.dumps)
async def test_a_failure_with_status_200_is_an_error(value: dict[str, Any], stream: bool) -> None:
    answers = [sized(json.dumps(value)), pieces(f"data: {json.dumps(value)}\n\n", kind=SSE)]
    for answer in answers:
        response = await client(answer).post(
            "/v1/chat/completions", json=ASKED | {"stream": stream}
        )
        assert response.status_code >= 400, response.text
        assert "it broke" in response.json()["error"]["message"]


@pytest.mark.parametrize("value", REPLIES_WITH_CODES, ids=json.dumps)
async def test_a_reply_beside_a_code_of_success_is_the_reply(value: dict[str, Any]) -> None:
    assert await reply(sized(json.dumps(value)), False) == "Hi"
    assert await reply(pieces(f"data: {json.dumps(value)}\n\n", kind=SSE), True) == "Hi"


# Mistakes of upstreams that are repaired


def chunk_event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
    row = {"index": 0, "delta": delta, "finish_reason": finish, **more}
    return f"data: {json.dumps({'choices': [row]})}\n\n"


@pytest.mark.parametrize("settings", [{}, {"chat_shape": "openai"}], ids=["any shape", "openai"])
async def test_a_finish_reason_in_every_chunk_appears_once_at_the_end(
    settings: dict[str, Any],
) -> None:
    events = [chunk_event({"content": text}, "stop") for text in "abc"]
    choices = await streamed(pieces(*events, "data: [DONE]\n\n", kind=SSE), **settings)
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "abc"
    assert [choice["finish_reason"] for choice in choices[-2:]] == [None, "stop"]


@pytest.mark.parametrize("settings", [{}, {"chat_shape": "openai"}], ids=["any shape", "openai"])
@pytest.mark.parametrize("name", ["content", "reasoning"])
async def test_the_halves_of_a_character_in_two_events_are_joined(
    name: str, settings: dict[str, Any]
) -> None:
    texts = ["a\ud83d", "\ude00b\ud83d", "\ude00", "\udc00c\ud83d"]
    events = [chunk_event({name: text}) for text in texts]
    choices = await streamed(pieces(*events, END, kind=SSE), **settings)
    assert "".join(choice["delta"].get(name) or "" for choice in choices) == "a😀b😀�c�"


@pytest.mark.parametrize("settings", [{}, {"chat_shape": "openai"}], ids=["any shape", "openai"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_lone_surrogates_and_infinite_numbers_are_repaired(
    stream: bool, settings: dict[str, Any]
) -> None:
    token = {"token": "\udc00", "logprob": float("-inf"), "bytes": None, "top_logprobs": []}
    message = {"content": "a\udc00", "tool_calls": [call("c", 0, "f", '{"a":"\udc00"}')]}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": "stop",
        "logprobs": {"content": [token]},
    }
    answer = sized(json.dumps({"choices": [choice]}))
    response = await client(answer, **settings).post(
        "/v1/chat/completions", json=ASKED | {"stream": stream}
    )
    assert response.status_code == 200, response.text
    assert "a�" in response.text
    assert '"logprob":null' in response.text
    assert r"{\"a\":\"�\"}" in response.text
    events = [chunk_event({"content": "a"}, logprobs={"content": [token]}), END]
    response = await client(pieces(*events, kind=SSE), **settings).post(
        "/v1/chat/completions", json=ASKED | {"stream": stream, "logprobs": True}
    )
    assert '"token":"�","logprob":null' in response.text


@pytest.mark.parametrize("settings", [{}, {"chat_shape": "openai"}], ids=["any shape", "openai"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("arguments", [None, "", {}])
async def test_absent_arguments_of_a_tool_call_are_an_empty_object(
    arguments: Any, stream: bool, settings: dict[str, Any]
) -> None:
    rows = [call("a", 0, "f", arguments), call("b", 1, "g", '{"x":1}')]
    rows[0]["function"]["arguments"] = arguments
    choice = {"index": 0, "message": {"content": None, "tool_calls": rows}}
    events = [chunk_event({"tool_calls": rows}), chunk_event({}, "tool_calls"), "data: [DONE]\n\n"]
    for answer in (sized(json.dumps({"choices": [choice]})), pieces(*events, kind=SSE)):
        found: dict[int, str] = {}
        if stream:
            calls = [
                piece
                for choice in await streamed(answer, **settings)
                for piece in choice["delta"].get("tool_calls", [])
            ]
        else:
            whole = await client(answer, **settings).post("/v1/chat/completions", json=ASKED)
            calls = whole.json()["choices"][0]["message"]["tool_calls"]
        for position, piece in enumerate(calls):
            assert isinstance(piece["function"]["arguments"], str)
            index = piece["index"] if stream else position
            found[index] = found.get(index, "") + piece["function"]["arguments"]
        assert found == {0: "{}", 1: '{"x":1}'}


async def test_the_name_and_the_id_of_a_tool_call_are_in_its_first_piece_only() -> None:
    rows = [call("a", 0, "f", '{"x"'), call("a", 0, "f", ":1}")]
    events = [chunk_event({"tool_calls": [row]}) for row in rows]
    choices = await streamed(pieces(*events, END, kind=SSE))
    found = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert [(row.get("id"), row["function"].get("name")) for row in found] == [
        ("a", "f"),
        (None, None),
    ]


async def test_calls_of_custom_tools_keep_their_form() -> None:
    custom = {"id": "a", "type": "custom", "custom": {"name": "sql", "input": "select"}}
    body = json.dumps({"choices": [{"message": {"content": None, "tool_calls": [custom]}}]})
    whole = (await client(sized(body)).post("/v1/chat/completions", json=ASKED)).json()
    [found] = whole["choices"][0]["message"]["tool_calls"]
    assert {name: found[name] for name in custom} == custom
    assert "function" not in found


# Endless answers


async def endless(
    first: bytes,
    more: bytes,
    pause_s: float = 0.0,
    status: int = 200,
    kind: str = SSE,
    asked: dict[str, Any] | None = None,
    **limits: Any,
) -> httpx.Response:
    """The answer to a client, without a stream unless `asked` has one, for an endless upstream."""

    async def content() -> AsyncIterator[bytes]:
        yield first
        while True:
            if pause_s >= 0:
                await asyncio.sleep(pause_s)
            yield more

    def upstream(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers={"content-type": kind}, content=content())

    settings = Settings(chat_url="http://bot/v1", store_url="sqlite://", **limits)
    app = create_app(settings, transport=httpx.MockTransport(upstream))
    async with (
        asyncio.timeout(5),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://p") as some,
    ):
        return await some.post("/v1/chat/completions", json=ASKED | (asked or {}))


EVENT = b'data: {"text":"a"}\n\n'


async def test_a_gathered_stream_is_bounded_in_size() -> None:
    answer = await endless(EVENT, EVENT, max_reply_bytes=10_000)
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        502,
        "The chat backend's answer is too large.",
    )


async def test_a_gathered_stream_is_bounded_in_time() -> None:
    assert (await endless(EVENT, EVENT, 0.02, total_timeout_seconds=0.3)).status_code == 504


async def test_a_gathered_stream_without_pauses_is_bounded_in_time() -> None:
    limits = {"total_timeout_seconds": 0.3, "max_reply_bytes": 10_000_000}
    assert (await endless(EVENT, EVENT, -1, **limits)).status_code == 504


@pytest.mark.parametrize("kind", [JSON, TEXT, ""])
async def test_an_endless_answer_is_bounded_in_time_and_size(kind: str) -> None:
    answer = await endless(b'{"reply":"', b"a", 0.02, kind=kind, total_timeout_seconds=0.3)
    assert answer.status_code == 504
    answer = await endless(b'{"reply":"', b"a" * 1000, kind=kind, max_reply_bytes=100_000)
    assert answer.status_code == 502


async def test_an_endless_error_body_is_bounded_in_time() -> None:
    answer = await endless(b" ", b" ", 0.02, status=500, kind=JSON, total_timeout_seconds=0.3)
    assert answer.status_code == 502


async def test_an_event_of_many_empty_lines_is_bounded() -> None:
    answer = await endless(EVENT, b"data\n" * 1000, max_event_bytes=20_000)
    assert answer.status_code == 502


@pytest.mark.parametrize("more", [{"store": True}, {}], ids=["stored", "after hooks"])
async def test_a_recorded_stream_is_bounded_in_size(
    more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hooks_that_see.py").write_text("def after(chat, completion): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    hooks = {} if more else {"hooks": "hooks_that_see:after"}
    answer = await endless(
        EVENT, EVENT, asked={"stream": True} | more, max_reply_bytes=10_000, **hooks
    )
    assert (
        json.loads(answer.text.split("\n\n")[-2][6:])["error"]["message"]
        == "The chat backend's answer is too large."
    )


# In front of an OpenAI-compatible upstream


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_a_completion_without_text_passes_with_its_finish_reason(
    reason: str, stream: bool
) -> None:
    body = json.dumps(
        {"choices": [{"index": 0, "message": {"content": None}, "finish_reason": reason}]}
    )
    for way in ("chat_url", "openai_api_base"):
        answer = await client(sized(body), way).post(
            "/v1/chat/completions", json=ASKED | {"stream": stream}
        )
        assert answer.status_code == 200
        assert f'"{reason}"' in answer.text


async def test_plain_text_is_not_a_completion() -> None:
    for kind, text in ((TEXT, "Traceback: sk-1"), (HTML, "Hello"), (TEXT, '{"oops"')):
        for more in ({}, {"stream": True}):
            answer = await client(sized(text, kind), "openai_api_base").post(
                "/v1/chat/completions", json=ASKED | more
            )
            assert answer.status_code == 502


async def test_a_completion_with_an_error_is_an_error() -> None:
    body = '{"error":{"message":"bad key","code":429},"choices":[{"index":0,"message":{"content":""}}]}'
    answer = await client(sized(body), "openai_api_base").post("/v1/chat/completions", json=ASKED)
    assert answer.status_code == 429


GOOD = 'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
END = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("first", ["", GOOD], ids=["first", "later"])
@pytest.mark.parametrize(
    "event",
    [
        'event: error\ndata: {"message":"bad key LEAK"}\n\n',
        "event: error\ndata: LEAK\n\n",
        'data: {"choices":[{"ind LEAK\n\n',
    ],
)
async def test_a_relayed_event_that_is_no_chunk_is_a_failure(event: str, first: str) -> None:
    answer = pieces(first, event, END, kind=SSE)
    response = await client(answer, "openai_api_base").post(
        "/v1/chat/completions", json=ASKED | {"stream": True}
    )
    assert response.status_code == (200 if first else 502)
    assert "LEAK" not in response.text
    assert "[DONE]" not in response.text
    assert '"error"' in response.text


@pytest.mark.parametrize("event", ["data: <html>LEAK</html>\n\n", "data: LEAK\n\n"])
async def test_a_relayed_event_without_json_is_left_out(event: str) -> None:
    answer = pieces(GOOD, event, END, kind=SSE)
    response = await client(answer, "openai_api_base").post(
        "/v1/chat/completions", json=ASKED | {"stream": True}
    )
    assert response.text == GOOD + END


async def test_a_large_event_that_comes_in_many_reads_is_relayed_whole() -> None:
    for end in ("\n\n", "\r\n\r\n", "\r\r", "\r\n\n"):
        event = f'data: {{"choices":[{{"index":0,"delta":{{"content":"{"x" * 99}"}}}}]}}{end}'
        text = event * 3 + END
        plain = text.replace(end, "\n\n")
        for size in (1, 2, 3, 7, 100, 1000):
            cut = [text[start : start + size] for start in range(0, len(text), size)]
            answer = pieces(*cut, kind=SSE)
            response = await client(answer, "openai_api_base").post(
                "/v1/chat/completions", json=ASKED | {"stream": True}
            )
            assert response.text == plain


async def test_comments_pass_and_other_lines_become_one_data_line_an_event() -> None:
    text = f": ping\n\nid: 1\nretry: 3\n{GOOD}\n\n:\n\n{GOOD.replace('data: ', 'data:')}{END}"
    answer = pieces(text, kind=SSE)
    response = await client(answer, "openai_api_base").post(
        "/v1/chat/completions", json=ASKED | {"stream": True}
    )
    assert response.text == f": ping\n\n{GOOD}:\n\n{GOOD}{END}"


# A text that came whole


@given(st.text(st.sampled_from('ab  "\\é\u3000\n,💥{')) | st.text())
def test_a_text_that_came_whole_is_sent_word_by_word(text: str) -> None:
    rendering = ChatRendering(ChatRequest("m", [], {}), ResponseInfo("id", 1, "m"))
    events = rendering(Delta(text, whole=True)).split(b"\n\n")
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events if event]
    contents = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
    assert contents == ["", *words(text)]  # the first one has the role
