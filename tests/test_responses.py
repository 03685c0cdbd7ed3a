"""The Responses API: requests as chat requests, replies as Response objects and events, and what is stored."""

import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import httpx2
import openai
import orjson
import pytest
from growth import LINEAR, growth
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request

from rewrap.api.requests import looks_like_chat, looks_like_responses
from rewrap.api.responses import tools as responses_tools
from rewrap.api.responses.chat_shape import from_chat_shape
from rewrap.api.responses.items import seal, unseal
from rewrap.api.responses.rendering import ResponseEvents
from rewrap.api.responses.request import (
    Translation,
    input_tokens,
    parse_responses,
    references,
)
from rewrap.api.responses.routes import ResponseRoutes
from rewrap.api.responses.stored import ItemPage, StoredResponses, item_page, replay
from rewrap.api.responses.tools import chat_name
from rewrap.api.stored import JSONResponse
from rewrap.storage.base import StoreDown
from rewrap.storage.sqlite import SQLiteStore
from rewrap.types import APIError, ChatRequest, Delta, Deltas, JSONObject, ResponseInfo, prompt_size

HELLO: JSONObject = {"model": "m", "input": "Hello"}
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits files."}
MCP = {"type": "namespace", "name": "mcp__files", "description": "d", "tools": [WEATHER]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def rendering(payload: JSONObject, **options: Any) -> ResponseEvents:
    chat, translation = parse_responses(payload, **options)
    return rendering_of(chat, translation)


def rendering_of(chat: JSONObject, translation: Translation) -> ResponseEvents:
    request = ChatRequest(chat.get("model", ""), chat["messages"], chat)
    info = ResponseInfo(created=1_800_000_000, prompt_bytes=prompt_size(request.messages))
    return ResponseEvents(translation, request, info)


def streamed(deltas: list[Delta], payload: JSONObject = HELLO, **options: Any) -> bytes:
    events = rendering(payload, **options)
    return b"".join(map(events, deltas)) + events.end()


def decoded(stream: bytes) -> list[JSONObject]:
    """The events of a stream; each has its `event:` line, its number and one line of data."""
    found = []
    for number, block in enumerate(stream.decode().removesuffix("\n\n").split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        found.append(event)
    return found


def names(stream: bytes) -> list[str]:
    return [event["type"].removeprefix("response.") for event in decoded(stream)]


def call(index: int, arguments: str, name: str = "", id: str = "") -> JSONObject:
    """A piece of a tool call, as ToolCallNormalizer gives it."""
    function: JSONObject = {"arguments": arguments}
    if not name:
        return {"index": index, "function": function}
    function["name"] = name
    return {"index": index, "id": id, "type": "function", "function": function}


def calls(*pieces: JSONObject) -> Delta:
    return Delta(fields={"tool_calls": list(pieces)})


def reasoning(text: str) -> Delta:
    return Delta(fields={"reasoning_content": text, "reasoning": text})


END = Delta(finish_reason="stop")
BEGIN = ["created", "in_progress"]
TEXT_OPEN = ["output_item.added", "content_part.added"]
TEXT_CLOSE = ["output_text.done", "content_part.done", "output_item.done"]
CALL = [
    "output_item.added",
    "function_call_arguments.delta",
    "function_call_arguments.done",
    "output_item.done",
]


def check_invariants(events: list[JSONObject]) -> JSONObject:
    """The rules that the clients' readers depend on. Gives the last response."""
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    opened: dict[str, JSONObject] = {}
    texts: dict[str, str] = {}
    closed = []
    for event in events[2:-1]:
        if event["type"] == "response.output_item.added":
            item = event["item"]
            assert event["output_index"] == len(opened)
            assert item["id"] not in opened
            assert item["status"] == "in_progress"
            assert not item.get("content")
            assert not item.get("summary")
            assert not item.get("arguments")
            opened[item["id"]] = item
            texts[item["id"]] = ""
        elif event["type"] == "response.output_item.done":
            assert event["item"]["id"] == list(opened)[event["output_index"]]
            closed.append(event["item"])
        else:
            assert list(opened)[event["output_index"]] == event["item_id"]
            assert event["item_id"] not in [item["id"] for item in closed]
        if event["type"].endswith(".delta"):
            assert event["delta"]
            texts[event["item_id"]] += event["delta"]
        for member in ("text", "arguments", "input", "refusal"):
            if event["type"].endswith(".done") and member in event:
                assert event[member] == texts[event["item_id"]]
    last = events[-1]
    response: JSONObject = last["response"]
    assert last["type"] == f"response.{response['status']}"
    if response["status"] != "failed":
        assert response["output"] == closed
        assert len(closed) == len(opened)
    return response


# The order of events.


def test_a_text_is_opened_sent_and_closed_in_order() -> None:
    stream = streamed([Delta("Hel"), Delta(""), Delta("lo"), END])
    deltas = ["output_text.delta"] * 2
    assert names(stream) == [*BEGIN, *TEXT_OPEN, *deltas, *TEXT_CLOSE, "completed"]
    events = decoded(stream)
    message = events[2]["item"]
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    id = message["id"]
    opened = {"id": id, "type": "message", "status": "in_progress", "role": "assistant"}
    assert message == opened | {"content": []}
    place = {"item_id": id, "output_index": 0, "content_index": 0}
    assert without_number(events[3]) == {
        "type": "response.content_part.added",
        **place,
        "part": part,
    }
    assert without_number(events[4]) == {
        "type": "response.output_text.delta",
        **place,
        "delta": "Hel",
        "logprobs": [],
    }
    assert without_number(events[6]) == {
        "type": "response.output_text.done",
        **place,
        "text": "Hello",
        "logprobs": [],
    }
    whole = part | {"text": "Hello"}
    assert events[7]["part"] == whole
    closed = opened | {"status": "completed", "content": [whole]}
    assert events[8]["item"] == closed
    assert events[9]["response"]["output"] == [closed]


def without_number(event: JSONObject) -> JSONObject:
    return {name: value for name, value in event.items() if name != "sequence_number"}


def test_a_stream_begins_with_an_empty_response_in_progress() -> None:
    for event in decoded(streamed([Delta("Hi"), END]))[:2]:
        assert event["response"]["status"] == "in_progress"
        assert event["response"]["output"] == []
        assert event["response"]["usage"] is None


def test_a_stream_has_no_done_marker() -> None:
    assert b"[DONE]" not in streamed([Delta("Hi"), END])


def test_a_whole_text_leaves_word_by_word_in_one_write() -> None:
    events = rendering(HELLO)
    first = events(Delta("one two three", "stop", whole=True))
    deltas = [event["delta"] for event in decoded(first) if event["type"].endswith(".delta")]
    assert deltas == ["one ", "two ", "three"]
    assert decoded(first + events.end())[-1]["response"]["output"][0]["content"][0]["text"] == (
        "one two three"
    )


def test_calls_of_tools_are_blocks_one_after_the_other() -> None:
    deltas = [
        Delta("Let me see."),
        calls(call(0, "", "weather", "call_1")),
        calls(call(0, '{"a":')),
        calls(call(0, "1}")),
        calls(call(1, '{"b":2}', "weather", "call_2")),
        Delta(finish_reason="tool_calls"),
    ]
    stream = streamed(deltas, HELLO | {"tools": [WEATHER]})
    first = [CALL[0], CALL[1], *CALL[1:]]
    text = [*TEXT_OPEN, "output_text.delta", *TEXT_CLOSE]
    assert names(stream) == [*BEGIN, *text, *first, *CALL, "completed"]
    response = check_invariants(decoded(stream))
    assert [item["type"] for item in response["output"]] == [
        "message",
        "function_call",
        "function_call",
    ]
    item = response["output"][1]
    assert item == {
        "id": item["id"],
        "type": "function_call",
        "status": "completed",
        "call_id": "call_1",
        "name": "weather",
        "arguments": '{"a":1}',
    }
    assert item["id"] != item["call_id"]
    done = [event for event in decoded(stream) if event["type"].endswith("arguments.done")]
    assert [event["name"] for event in done] == ["weather", "weather"]


def test_a_call_that_interleaves_with_another_waits_for_its_end() -> None:
    deltas = [
        calls(call(0, '{"a":', "weather", "call_1"), call(1, '{"b":', "weather", "call_2")),
        calls(call(1, "2}"), call(0, "1}")),
        Delta(finish_reason="tool_calls"),
    ]
    stream = streamed(deltas, HELLO | {"tools": [WEATHER]})
    assert names(stream) == [*BEGIN, CALL[0], CALL[1], *CALL[1:], *CALL, "completed"]
    response = check_invariants(decoded(stream))
    assert [item["arguments"] for item in response["output"]] == ['{"a":1}', '{"b":2}']


def test_calls_keep_their_order_when_one_of_them_waits() -> None:
    deltas = [
        calls(call(0, '{"a":', "w", "call_1"), call(1, "{}", "w", "call_2"), call(0, "1}")),
        calls(call(2, "{}", "w", "call_3")),
        END,
    ]
    response = check_invariants(decoded(streamed(deltas)))
    assert [item["call_id"] for item in response["output"]] == ["call_1", "call_2", "call_3"]


def test_text_after_a_call_is_a_message_of_its_own() -> None:
    deltas = [calls(call(0, "{}", "weather", "call_1")), Delta("Done."), END]
    response = check_invariants(decoded(streamed(deltas)))
    assert [item["type"] for item in response["output"]] == ["function_call", "message"]


def test_text_between_the_pieces_of_a_call_loses_nothing() -> None:
    deltas = [calls(call(0, '{"a"', "w", "c")), Delta("so"), calls(call(0, ":1}")), Delta("!"), END]
    response = check_invariants(decoded(streamed(deltas)))
    assert response["output"][0]["arguments"] == '{"a":1}'
    assert response["output"][1]["content"][0]["text"] == "so!"


def test_empty_arguments_become_an_empty_object() -> None:
    deltas = [calls(call(0, "", "now", "call_1")), END]
    stream = streamed(deltas)
    assert names(stream) == [*BEGIN, *CALL, "completed"]
    assert check_invariants(decoded(stream))["output"][0]["arguments"] == "{}"


def test_a_missing_or_repeated_call_id_is_replaced() -> None:
    deltas = [
        calls(call(0, "{}", "w", "c"), call(1, "{}", "w", "c"), call(2, "{}", "w", "")),
        END,
    ]
    ids = [item["call_id"] for item in check_invariants(decoded(streamed(deltas)))["output"]]
    assert ids[0] == "c"
    assert len(set(ids)) == 3
    assert all(id.startswith("call_") for id in ids[1:])


def test_a_custom_tool_gets_plain_text_in_one_delta() -> None:
    deltas = [
        calls(call(0, '{"input":"*** Begin', "apply_patch", "call_1")),
        calls(call(0, '\\n+ä"}')),
        Delta(finish_reason="tool_calls"),
    ]
    stream = streamed(deltas, HELLO | {"tools": [PATCH]})
    assert names(stream)[2:] == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
        "completed",
    ]
    item = check_invariants(decoded(stream))["output"][0]
    assert item["type"] == "custom_tool_call"
    assert item["name"] == "apply_patch"
    assert item["input"] == "*** Begin\n+ä"
    assert "arguments" not in item


@pytest.mark.parametrize("arguments", ["plain", '{"other":1}', "[1]", '{"input":'])
def test_a_custom_tool_with_other_arguments_gets_them_as_they_are(arguments: str) -> None:
    deltas = [calls(call(0, arguments, "apply_patch", "call_1")), END]
    response = check_invariants(decoded(streamed(deltas, HELLO | {"tools": [PATCH]})))
    assert response["output"][0]["input"] == arguments


def test_a_namespaced_call_has_its_namespace_and_its_own_name() -> None:
    name = chat_name("weather", "mcp__files")
    deltas = [calls(call(0, "{}", name, "call_1")), END]
    events = decoded(streamed(deltas, HELLO | {"tools": [MCP]}))
    item = check_invariants(events)["output"][0]
    assert (item["namespace"], item["name"]) == ("mcp__files", "weather")
    assert events[2]["item"]["namespace"] == "mcp__files"


def test_reasoning_is_an_item_before_the_text() -> None:
    stream = streamed([reasoning("Hm"), reasoning("m."), Delta("Hi"), END])
    assert names(stream) == [
        *BEGIN,
        *TEXT_OPEN,
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        *TEXT_OPEN,
        "output_text.delta",
        *TEXT_CLOSE,
        "completed",
    ]
    events = decoded(stream)
    assert events[2]["item"]["summary"] == []
    assert events[2]["item"]["content"] == []
    assert events[3]["part"] == {"type": "reasoning_text", "text": ""}
    item = check_invariants(events)["output"][0]
    assert item["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert item["summary"] == []
    assert item["encrypted_content"] is None


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_read_under_either_name(name: str) -> None:
    response = check_invariants(decoded(streamed([Delta(fields={name: "Hm"}), END])))
    assert response["output"][0]["content"][0]["text"] == "Hm"


def test_a_second_choice_is_left_out() -> None:
    deltas = [Delta("Hi"), Delta("Ho", index=1), Delta(finish_reason="length", index=1), END]
    response = check_invariants(decoded(streamed(deltas)))
    assert response["output"][0]["content"][0]["text"] == "Hi"
    assert response["status"] == "completed"


def test_reasoning_can_be_sent_as_a_summary() -> None:
    deltas = [reasoning("Hm"), Delta("Hi"), END]
    stream = streamed(deltas, reasoning_as_summary=True)
    assert names(stream)[2:8] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    events = decoded(stream)
    assert events[4]["summary_index"] == 0
    item = check_invariants(events)["output"][0]
    assert item["summary"] == [{"type": "summary_text", "text": "Hm"}]
    assert item["content"] == []


def test_reasoning_comes_back_with_the_next_request() -> None:
    payload = HELLO | {"include": ["reasoning.encrypted_content"]}
    response = check_invariants(decoded(streamed([reasoning("Hm"), Delta("Hi"), END], payload)))
    kept = {name: response["output"][0][name] for name in ("type", "encrypted_content")}
    items = [kept | {"summary": []}, response["output"][1]]
    chat, _ = parse_responses({"model": "m", "input": items})
    assert chat["messages"] == [
        {"role": "assistant", "content": "Hi", "reasoning_content": "Hm"},
    ]


def test_a_refusal_is_a_part_of_a_completed_message() -> None:
    stream = streamed([Delta(fields={"refusal": "I can"}), Delta(fields={"refusal": "not."}), END])
    assert names(stream)[2:] == [
        *TEXT_OPEN,
        "refusal.delta",
        "refusal.delta",
        "refusal.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    response = check_invariants(decoded(stream))
    assert response["output"][0]["content"] == [{"type": "refusal", "refusal": "I cannot."}]


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("length", "max_output_tokens"), ("content_filter", "content_filter")],
)
def test_a_reply_that_is_cut_is_incomplete(finish: str, reason: str) -> None:
    stream = streamed([reasoning("Hm"), Delta("Hel"), Delta(finish_reason=finish)])
    assert names(stream)[-4:] == [*TEXT_CLOSE, "incomplete"]
    response = check_invariants(decoded(stream))
    assert response["incomplete_details"] == {"reason": reason}
    assert response["completed_at"] is None
    assert response["usage"]["output_tokens"] > 0
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]


def test_a_call_that_is_cut_is_incomplete() -> None:
    deltas = [calls(call(0, '{"a":', "w", "c")), Delta(finish_reason="length")]
    response = check_invariants(decoded(streamed(deltas)))
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["arguments"] == '{"a":'


def test_a_failure_closes_nothing_and_says_why() -> None:
    events = rendering(HELLO)
    stream = events(Delta("Hel"))
    stream += events.failure(APIError(504, "Too slow.", type="upstream_error", code="timeout"))
    assert names(stream) == [*BEGIN, *TEXT_OPEN, "output_text.delta", "failed"]
    response = check_invariants(decoded(stream))
    assert response["error"] == {"code": "server_error", "message": "Too slow."}
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "Hel"


def test_a_failure_before_the_first_event_begins_the_stream() -> None:
    stream = rendering(HELLO).failure(APIError(502, "Broken."))
    assert names(stream) == [*BEGIN, "failed"]


def test_a_failure_of_the_store_after_the_last_delta_is_a_failed_response() -> None:
    events = rendering(HELLO)
    stream = events(Delta("Hi", "stop"))
    assert events.document([])["status"] == "completed"
    stream += events.failure(APIError(503, "The store cannot be reached."))
    assert names(stream)[-4:] == [*TEXT_CLOSE, "failed"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (APIError(400, "m", code="context_length_exceeded"), "context_length_exceeded"),
        (APIError(429, "m", code="insufficient_quota"), "insufficient_quota"),
        (APIError(429, "m", code="tokens"), "rate_limit_exceeded"),
        (APIError(500, "m"), "server_error"),
    ],
)
def test_codes_that_clients_act_on_are_kept(error: APIError, code: str) -> None:
    stream = rendering(HELLO).failure(error)
    assert decoded(stream)[-1]["response"]["error"]["code"] == code


def test_a_stream_without_output_and_without_an_end_has_failed() -> None:
    response = check_invariants(decoded(streamed([])))
    assert response["status"] == "failed"
    assert response["error"]["code"] == "server_error"
    with pytest.raises(APIError) as caught:
        rendering(HELLO).document([])
    assert caught.value.status == 502


def test_an_empty_reply_with_an_end_has_no_items() -> None:
    response = check_invariants(decoded(streamed([END])))
    assert response["status"] == "completed"
    assert response["output"] == []


def test_a_keep_alive_is_numbered_and_never_the_first_event() -> None:
    events = rendering(HELLO)
    assert events.ping() == b""
    stream = events(Delta("Hi"))
    ping = events.ping()
    number = len(decoded(stream))
    assert ping == b'data: {"type":"keepalive","sequence_number":%d}\n\n' % number
    after = events(Delta("!"))
    assert json.loads(after.split(b"data: ")[1])["sequence_number"] == number + 1


def test_logprobs_are_sent_only_if_they_were_included() -> None:
    row = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105]}
    delta = Delta("Hi", logprobs={"content": [row]})
    payload = HELLO | {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    events = decoded(streamed([delta, delta, END], payload))
    expected = row | {"top_logprobs": []}
    assert [event["logprobs"] for event in events if event["type"].endswith("text.delta")] == [
        [expected],
        [expected],
    ]
    part = check_invariants(events)["output"][0]["content"][0]
    assert part["logprobs"] == [expected, expected]
    plain = check_invariants(decoded(streamed([delta, END])))["output"][0]["content"][0]
    assert plain["logprobs"] == []


def test_a_text_that_waits_opens_without_its_logprobs() -> None:
    row = {"token": "so", "logprob": -0.1, "bytes": None, "top_logprobs": []}
    text = Delta("so", logprobs={"content": [row]})
    deltas = [calls(call(0, '{"a"', "w", "c")), text, calls(call(0, ":1}")), END]
    payload = HELLO | {"include": ["message.output_text.logprobs"]}
    events = decoded(streamed(deltas, payload))
    (opened,) = [event for event in events if event["type"] == "response.content_part.added"]
    assert opened["part"]["logprobs"] == []
    part = check_invariants(events)["output"][1]["content"][0]
    assert part["logprobs"] == [row]


def test_a_reply_above_the_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewrap.api.responses.rendering.MAX_REPLY_BYTES", 10_000)
    events = rendering(HELLO)
    sent: list[bytes] = []

    def send_text() -> None:
        for _ in range(1000):
            sent.append(events(Delta("x" * 100)))

    with pytest.raises(APIError, match="too large") as caught:
        send_text()
    response = check_invariants(decoded(b"".join(sent) + events.failure(caught.value)))
    assert 1_000 < len(response["output"][0]["content"][0]["text"]) < 10_000


def test_many_small_items_count_for_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewrap.api.responses.rendering.MAX_REPLY_BYTES", 10_000)
    with pytest.raises(APIError, match="too large"):
        streamed([reasoning("x"), Delta("y")] * 10)


def test_a_text_that_is_no_unicode_leaves_a_stream_that_can_fail() -> None:
    for text in ("\ud800", "a \ud800"):
        for whole in (False, True):
            events = rendering(HELLO)
            stream = events(Delta("Hi "))
            with pytest.raises(ValueError, match="surrogates"):
                events(Delta(text, whole=whole))
            stream += events.failure(APIError(500, "m"))
            assert check_invariants(decoded(stream))["output"][0]["content"][0]["text"] == "Hi "


def test_a_reply_that_a_hook_changed_is_the_changed_one() -> None:
    events = rendering(HELLO)
    message = {
        "role": "assistant",
        "content": "Changed.",
        "refusal": None,
        "tool_calls": [chat_call("call_1")],
    }
    events.info.completion = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    response = events.document([Delta("Original", "stop")])
    assert response["output"][0]["content"][0]["text"] == "Changed."
    assert response["output"][1]["call_id"] == "call_1"


# The Response object.

MEMBERS = {
    "id", "object", "created_at", "completed_at", "status", "background", "error",
    "incomplete_details", "instructions", "max_output_tokens", "max_tool_calls", "metadata",
    "model", "output", "parallel_tool_calls", "previous_response_id", "prompt_cache_key",
    "reasoning", "safety_identifier", "service_tier", "store", "temperature", "text",
    "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user", "usage",
}  # fmt: skip


def test_every_member_is_there_also_where_there_is_nothing_to_say() -> None:
    response = rendering(HELLO).document([Delta("Hi", "stop")])
    assert set(response) == MEMBERS
    assert response["id"].startswith("resp_")
    assert response["created_at"] == 1_800_000_000
    assert abs(response["completed_at"] - time.time()) < 10
    assert response["tool_choice"] == "auto"
    assert response["text"] == {"format": {"type": "text"}}
    Response.model_validate(response, strict=True)
    assert Response.model_validate(response).output_text == "Hi"


def test_the_request_is_repeated_as_it_came() -> None:
    payload = HELLO | {
        "instructions": "Be brief.",
        "tools": [WEATHER, {"type": "web_search"}],
        "tool_choice": {"type": "function", "name": "weather"},
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "max_output_tokens": 5,
        "store": False,
        "prompt_cache_key": "k",
        "user": "u",
    }
    response = rendering(payload).document([Delta("Hi", "stop")])
    for name in set(payload) - {"input", "text"}:
        assert response[name] == payload[name]
    assert response["text"] == {"verbosity": "low", "format": {"type": "text"}}


def test_usage_has_the_upstreams_numbers() -> None:
    events = rendering(HELLO)
    events.info.usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 7, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    assert events.document([Delta("Hi", "stop")])["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 7, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 15,
    }


def test_usage_is_estimated_where_the_upstream_does_not_count() -> None:
    usage = rendering(HELLO).document([Delta("x" * 40, "stop")])["usage"]
    assert usage["input_tokens"] == 2
    assert usage["output_tokens"] == 10
    assert usage["total_tokens"] == 12


PIECES = st.one_of(
    st.text(max_size=5).map(Delta),
    st.text(min_size=1, max_size=5).map(reasoning),
    st.text(max_size=20).map(lambda text: Delta(text, whole=True)),
    st.text(min_size=1, max_size=5).map(lambda text: Delta(fields={"refusal": text})),
    st.builds(
        lambda index, text, name: calls(call(index, text, name, f"call_{index}")),
        st.integers(0, 3),
        st.sampled_from(["{}", "", '{"a":', "1}", '{"input":"x"}']),
        st.sampled_from(["weather", "apply_patch"]),
    ),
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=12), st.sampled_from(["stop", "length"]), st.booleans())
def test_any_reply_is_the_same_as_a_stream_and_as_an_object(
    deltas: list[Delta], finish: str, as_summary: bool
) -> None:
    payload = HELLO | {"tools": [WEATHER, PATCH]}
    deltas = [*deltas, Delta(finish_reason=finish)]
    events = rendering(payload, reasoning_as_summary=as_summary)
    stream = b"".join(map(events, deltas)) + events.end()
    response = check_invariants(decoded(stream))
    document = rendering(payload, reasoning_as_summary=as_summary).document(deltas)
    assert [without_id(item) for item in response["output"]] == [
        without_id(item) for item in document["output"]
    ]
    text = "".join(delta.content for delta in deltas)
    parts = [part for item in response["output"] for part in item.get("content", [])]
    assert "".join(part["text"] for part in parts if part["type"] == "output_text") == text
    assert decoded(replay(response))[-1]["response"] == response


def without_id(item: JSONObject) -> JSONObject:
    return {name: value for name, value in item.items() if name != "id"}


# Requests.


def messages(*items: JSONObject, **members: Any) -> list[JSONObject]:
    chat, _ = parse_responses({"model": "m", "input": list(items), **members})
    found: list[JSONObject] = chat["messages"]
    return found


def user(text: str) -> JSONObject:
    return {"role": "user", "content": text}


def assistant(text: str) -> JSONObject:
    return {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text}],
    }


def function_call(call_id: str, **members: Any) -> JSONObject:
    return {
        "type": "function_call",
        "call_id": call_id,
        "name": "w",
        "arguments": "{}",
        **members,
    }


def output(call_id: str, value: Any = "ok") -> JSONObject:
    return {"type": "function_call_output", "call_id": call_id, "output": value}


def chat_call(call_id: str, name: str = "w", arguments: str = "{}") -> JSONObject:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def tool(call_id: str, content: str = "ok") -> JSONObject:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def refused(payload: JSONObject, **options: Any) -> APIError:
    with pytest.raises(APIError) as caught:
        parse_responses({"model": "m", "input": "Hello", **payload}, **options)
    return caught.value


def test_a_string_is_one_message_of_the_user() -> None:
    chat, translation = parse_responses(HELLO)
    assert chat == {"model": "m", "messages": [user("Hello")]}
    assert translation.stored


def test_instructions_and_leading_system_messages_are_joined() -> None:
    items: list[JSONObject] = [
        {"role": "developer", "content": "Two."},
        {"role": "system", "content": [{"type": "input_text", "text": "Three."}]},
        user("Hi"),
    ]
    assert messages(*items, instructions="One.") == [
        {"role": "system", "content": "One.\n\nTwo.\n\nThree."},
        user("Hi"),
    ]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("keep", [user("Hi"), {"role": "system", "content": "Late."}]),
        ("hoist", [{"role": "system", "content": "Late."}, user("Hi")]),
        ("user", [user("Hi"), user("Late.")]),
    ],
)
def test_later_system_messages_go_where_the_setting_says(
    setting: str, expected: list[JSONObject]
) -> None:
    items = [user("Hi"), {"role": "developer", "content": "Late."}]
    chat, _ = parse_responses({"input": items}, late_instructions=setting)
    assert chat["messages"] == expected


def test_parts_become_chat_parts() -> None:
    parts = [
        {"type": "input_text", "text": "See"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "original"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"},
    ]
    assert messages({"role": "user", "content": parts})[0]["content"] == [
        {"type": "text", "text": "See"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "high"}},
        {
            "type": "file",
            "file": {"file_data": "data:application/pdf;base64,AA", "filename": "a.pdf"},
        },
    ]


def test_calls_and_outputs_become_one_turn_in_the_order_of_the_calls() -> None:
    items = [
        user("Hi"),
        assistant("I look."),
        function_call("a"),
        function_call("b"),
        output("b", "B"),
        output("a", "A"),
        assistant("Done."),
    ]
    assert messages(*items) == [
        user("Hi"),
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [chat_call("a"), chat_call("b")],
        },
        tool("a", "A"),
        tool("b", "B"),
        {"role": "assistant", "content": "Done."},
    ]


def test_a_message_between_calls_and_outputs_joins_the_calls() -> None:
    items = [function_call("a"), assistant("One."), assistant("Two."), output("a")]
    assert messages(*items) == [
        {"role": "assistant", "content": "One.\n\nTwo.", "tool_calls": [chat_call("a")]},
        tool("a"),
    ]


def test_an_output_goes_to_its_call_although_a_message_stands_between() -> None:
    items = [function_call("a"), user("Wait."), output("a")]
    assert messages(*items) == [
        {"role": "assistant", "content": None, "tool_calls": [chat_call("a")]},
        tool("a"),
        user("Wait."),
    ]


def test_a_call_id_may_come_again_in_a_later_turn() -> None:
    items = [function_call("a"), output("a", "1"), user("Again"), function_call("a")]
    found = messages(*items, output("a", "2"))
    assert [message["content"] for message in found if message["role"] == "tool"] == ["1", "2"]


def test_reasoning_goes_to_the_next_assistant_message() -> None:
    items: list[JSONObject] = [
        user("Hi"),
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "A"}]},
        function_call("a"),
        output("a"),
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "B"}]},
        assistant("Done."),
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "lost"}]},
        user("And?"),
        assistant("So."),
    ]
    found = messages(*items)
    assert found[1]["reasoning_content"] == "A"
    assert found[3] == {"role": "assistant", "content": "Done.", "reasoning_content": "B"}
    assert found[4:] == [user("And?"), {"role": "assistant", "content": "So."}]


def test_reasoning_text_is_preferred_to_the_sealed_one_and_that_to_the_summary() -> None:
    content = [{"type": "reasoning_text", "text": "content"}]
    summary = [{"type": "summary_text", "text": "summary"}]
    item = {"type": "reasoning", "content": content, "summary": summary}
    sealed = {"encrypted_content": seal("sealed ä")}
    foreign = {"encrypted_content": "gAAAAA=="}
    without = {"type": "reasoning", "summary": summary}
    for reasoning_item, expected in [
        (item | sealed, "content"),
        (without | sealed, "sealed ä"),
        (without | foreign, "summary"),
    ]:
        assert messages(reasoning_item, assistant("x"))[0]["reasoning_content"] == expected


@pytest.mark.parametrize("value", [None, 7, "", "rewrap1.", "rewrap1.ä", "rewrap1._w==", "x"])
def test_a_foreign_or_broken_seal_is_ignored(value: object) -> None:
    assert unseal(value) == ""


def test_a_list_of_outputs_is_text_and_its_images_follow_the_last_output() -> None:
    image = {"type": "input_image", "image_url": "https://x/y.png"}
    parts = [{"type": "input_text", "text": "1"}, image, {"type": "input_text", "text": "2"}]
    items = [function_call("a"), function_call("b"), output("a", parts), output("b", "")]
    assert messages(*items)[1:] == [
        tool("a", "1\n2"),
        tool("b", ""),
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}],
        },
    ]


def test_custom_shell_and_namespaced_calls_become_function_calls() -> None:
    items: list[JSONObject] = [
        {"type": "custom_tool_call", "call_id": "a", "name": "apply_patch", "input": 'x"'},
        {"type": "custom_tool_call_output", "call_id": "a", "output": "ok"},
        {
            "type": "local_shell_call",
            "id": "lsh_1",
            "call_id": "b",
            "action": {"type": "exec", "command": ["ls"]},
        },
        {"type": "local_shell_call_output", "id": "lsh_1", "output": "ok"},
        function_call("c", namespace="mcp__files", name="read"),
        output("c"),
    ]
    found = messages(*items)
    assert [message["tool_calls"][0] for message in found[::2]] == [
        chat_call("a", "apply_patch", '{"input":"x\\""}'),
        chat_call("b", "local_shell", '{"type":"exec","command":["ls"]}'),
        chat_call("c", "mcp__files__read"),
    ]
    assert found[1::2] == [tool("a"), tool("b"), tool("c")]


def test_a_call_without_arguments_is_sent_with_an_empty_object() -> None:
    found = messages(function_call("a", arguments=""), output("a"))
    assert found[0]["tool_calls"] == [chat_call("a", arguments="{}")]


def test_a_system_message_with_an_image_stays_a_message() -> None:
    image = {"type": "input_image", "image_url": "https://x/y.png"}
    found = messages({"role": "system", "content": [image]}, user("Hi"), instructions="One.")
    assert found[0] == {"role": "system", "content": "One."}
    assert found[1]["role"] == "system"
    assert found[1]["content"][0]["type"] == "image_url"


def test_hosted_calls_are_left_out() -> None:
    items: list[JSONObject] = [
        user("Hi"),
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        assistant("Found."),
    ]
    assert messages(*items) == [user("Hi"), {"role": "assistant", "content": "Found."}]


def test_an_output_without_a_call_is_refused() -> None:
    error = refused({"input": [user("Hi"), output("call_9")]})
    assert error.status == 400
    assert error.message == ("No tool call found for function call output with call_id call_9.")
    assert (error.type, error.param, error.code) == ("invalid_request_error", "input", None)


def test_a_call_without_an_output_is_refused() -> None:
    error = refused({"input": [function_call("call_9"), user("Hi")]})
    assert error.message == "No tool output found for function call call_9."
    assert (error.param, error.code) == ("input", None)
    custom = {"type": "custom_tool_call", "call_id": "c", "name": "p", "input": ""}
    assert refused({"input": [custom]}).message == "No tool output found for custom tool call c."


def test_a_second_output_for_one_call_is_refused() -> None:
    error = refused({"input": [function_call("a"), output("a"), output("a")]})
    assert "No tool call found" in error.message


def test_references_are_replaced_by_the_stored_items() -> None:
    payload = {"input": [user("Hi"), {"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}]}
    assert references(payload) == ["msg_1", "msg_1"]
    chat, translation = parse_responses(payload, find_item={"msg_1": assistant("Yes.")}.get)
    assert chat["messages"][1] == {"role": "assistant", "content": "Yes."}
    assert translation.items[1] == assistant("Yes.")
    error = refused(payload)
    assert (error.status, error.message) == (404, "Item with id 'msg_1' not found.")


def test_the_history_comes_before_the_input_and_instructions_before_all() -> None:
    history = [user("1"), assistant("2")]
    payload = {"input": "3", "instructions": "Be brief.", "previous_response_id": "resp_1"}
    chat, translation = parse_responses(payload, history)
    assert [message["content"] for message in chat["messages"]] == ["Be brief.", "1", "2", "3"]
    assert len(translation.items) == 1


@pytest.mark.parametrize(
    ("payload", "param", "code"),
    [
        ({"background": True}, "background", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "missing_required_parameter"),
        ({"input": 7}, "input", "invalid_type"),
        ({"input": [7]}, "input[0]", "invalid_type"),
        ({"input": [{}]}, "input[0].type", "missing_required_parameter"),
        ({"input": [{"type": 7}]}, "input[0].type", "invalid_type"),
        ({"input": [{"type": "odd"}]}, "input[0].type", "invalid_value"),
        ({"input": [{"type": "compaction"}]}, "input[0].type", "invalid_value"),
        ({"input": [{"role": "robot", "content": ""}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"role": "user", "content": 1}]}, "input[0].content", "invalid_type"),
        (
            {"input": [{"role": "user", "content": [{"type": "odd"}]}]},
            "input[0].content[0].type",
            "invalid_value",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content[0].text",
            "missing_required_parameter",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
            "unsupported_parameter",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "f"}]}]},
            "input[0].content[0].file_url",
            "unsupported_parameter",
        ),
        (
            {"input": [{"role": "assistant", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "invalid_value",
        ),
        ({"input": [function_call("a", name=None)]}, "input[0].name", "missing_required_parameter"),
        ({"input": [function_call("a", arguments={})]}, "input[0].arguments", "invalid_type"),
        ({"input": [output("a", None)]}, "input[0].output", "missing_required_parameter"),
        ({"input": [output("a", 7)]}, "input[0].output", "invalid_type"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id", "missing_required_parameter"),
        ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"include": ["odd"]}, "include[0]", "invalid_value"),
        ({"include": "odd"}, "include", "invalid_type"),
        ({"truncation": "odd"}, "truncation", "invalid_value"),
        ({"metadata": {"a": 7}}, "metadata.a", "invalid_type"),
        ({"text": {"format": {"type": "odd"}}}, "text.format.type", "invalid_value"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        ({"text": 7}, "text", "invalid_type"),
        ({"reasoning": "high"}, "reasoning", "invalid_type"),
        ({"reasoning": {"effort": 7}}, "reasoning.effort", "invalid_type"),
        ({"previous_response_id": 7}, "previous_response_id", "invalid_type"),
        ({"tools": {}}, "tools", None),
        ({"tools": [7]}, "tools[0]", "invalid_type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"tools": [WEATHER, {"type": "file_search"}]}, "tools[1].type", "unsupported_value"),
        ({"tools": [{"type": "mcp"}]}, "tools[0].type", "unsupported_value"),
        ({"tools": [{"type": "local_shell"}]}, "tools[0].type", "unsupported_value"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name", "invalid_value"),
        (
            {"tools": [MCP | {"tools": [{"type": "mcp"}]}]},
            "tools[0].tools[0].type",
            "unsupported_value",
        ),
        ({"tools": [MCP | {"tools": [MCP]}]}, "tools[0].tools[0].type", "unsupported_value"),
        (
            {"tools": [WEATHER | {"parameters": 7}]},
            "tools[0].parameters",
            "invalid_type",
        ),
        ({"tool_choice": "odd"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_value"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "unsupported_value"),
        ({"tool_choice": {"type": "function", "name": "odd"}}, "tool_choice", None),
        (
            {"tools": [{"type": "web_search"}], "tool_choice": "required"},
            "tool_choice",
            "unsupported_value",
        ),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "odd"}],
                },
            },
            "tool_choice.tools[0]",
            None,
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    payload: JSONObject, param: str, code: str | None
) -> None:
    if payload == {"tools": {}}:  # an empty value counts as absent
        parse_responses(HELLO | payload)
        return
    error = refused(payload)
    assert error.status == 400
    assert error.type == "invalid_request_error"
    assert (error.param, error.code) == (param, code)


def test_null_counts_as_absent() -> None:
    absent = ["tools", "tool_choice", "text", "reasoning", "include", "metadata", "store", "stream"]
    absent += ["instructions", "background", "truncation", "max_output_tokens", "user"]
    chat, _ = parse_responses(HELLO | dict.fromkeys(absent))
    assert chat == {"model": "m", "messages": [user("Hello")]}


def test_parameters_get_their_names_in_chat_completions() -> None:
    schema = {"name": "n", "schema": {"type": "object"}, "strict": True}
    chat, _ = parse_responses(
        HELLO
        | {
            "max_output_tokens": 5,
            "text": {"format": {"type": "json_schema", **schema}, "verbosity": "low"},
            "reasoning": {"effort": "high", "summary": "auto"},
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 3,
            "temperature": 0.5,
            "parallel_tool_calls": True,
            "stream": True,
            "store": True,
            "metadata": {"a": "b"},
            "prompt_cache_key": "k",
            "client_metadata": {"x": 1},
        }
    )
    assert chat == {
        "model": "m",
        "messages": [user("Hello")],
        "max_completion_tokens": 5,
        "response_format": {"type": "json_schema", "json_schema": schema},
        "verbosity": "low",
        "reasoning_effort": "high",
        "logprobs": True,
        "top_logprobs": 3,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_tools_are_nested_and_namespaces_flattened() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: X"}
    tools = [WEATHER | {"description": "d", "strict": None}, PATCH | {"format": grammar}, MCP]
    chat, translation = parse_responses(HELLO | {"tools": tools})
    functions = [tool["function"] for tool in chat["tools"]]
    assert functions[0] == {
        "name": "weather",
        "parameters": {"type": "object"},
        "description": "d",
    }
    assert functions[1]["name"] == "apply_patch"
    assert functions[1]["parameters"]["required"] == ["input"]
    assert "start: X" in functions[1]["description"]
    assert functions[2]["name"] == "mcp__files__weather"
    assert list(translation.tool_names) == ["weather", "apply_patch", "mcp__files__weather"]


def test_additional_tools_in_the_input_are_tools() -> None:
    item = {"type": "additional_tools", "role": "developer", "tools": [WEATHER]}
    chat, _ = parse_responses({"input": [item, user("Hi")]})
    assert chat["tools"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize(
    ("name", "namespace"),
    [("read", "mcp.files"), ("read_" * 20, "mcp__files"), ("lesen/ä", "mcp__files")],
)
def test_a_chat_name_is_short_plain_and_always_the_same(name: str, namespace: str) -> None:
    found = chat_name(name, namespace)
    assert len(found) <= 64
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert found == chat_name(name, namespace)
    assert found != chat_name(f"{name}x", namespace)


def test_chat_names_of_different_tools_differ() -> None:
    assert chat_name("read", "mcp.files") != chat_name("read", "mcp_files")
    assert chat_name("read", "mcp_files") == "mcp_files__read"
    assert chat_name("read", "mcp_files__") == "mcp_files__read"
    assert chat_name("read.it") == "read.it"


def test_hosted_tools_are_left_out_with_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    responses_tools.log_left_out.cache_clear()
    caplog.set_level(logging.INFO, "rewrap")
    for _ in range(2):
        chat, translation = parse_responses(HELLO | {"tools": [{"type": "web_search"}, WEATHER]})
    assert len(chat["tools"]) == 1
    assert translation.dropped == ("tools.web_search",)
    assert [record.message for record in caplog.records] == [
        "tools of type web_search are left out: no backend has them"
    ]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        (
            {"type": "function", "name": "weather"},
            {"type": "function", "function": {"name": "weather"}},
        ),
        (
            {"type": "custom", "name": "apply_patch"},
            {"type": "function", "function": {"name": "apply_patch"}},
        ),
        (
            {"type": "function", "name": "weather", "namespace": "mcp__files"},
            {"type": "function", "function": {"name": "mcp__files__weather"}},
        ),
    ],
)
def test_tool_choice_in_all_its_forms(choice: Any, expected: Any) -> None:
    chat, _ = parse_responses(HELLO | {"tools": [WEATHER, PATCH, MCP], "tool_choice": choice})
    assert chat["tool_choice"] == expected
    assert len(chat["tools"]) == 3


def test_allowed_tools_leaves_out_the_others() -> None:
    allowed = [{"type": "custom", "name": "apply_patch"}, {"type": "web_search"}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": allowed}
    chat, _ = parse_responses(HELLO | {"tools": [WEATHER, PATCH], "tool_choice": choice})
    assert chat["tool_choice"] == "required"
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["apply_patch"]


def test_parallel_tool_calls_go_along_with_tools() -> None:
    chat, _ = parse_responses(HELLO | {"tools": [WEATHER], "parallel_tool_calls": False})
    assert chat["parallel_tool_calls"] is False


def test_without_tools_there_is_no_tool_choice() -> None:
    chat, _ = parse_responses(
        HELLO
        | {"tools": [{"type": "web_search"}], "tool_choice": "auto", "parallel_tool_calls": True}
    )
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(chat)


def test_input_tokens_grow_with_messages_and_tools() -> None:
    chat, _ = parse_responses(HELLO)
    with_tools, _ = parse_responses(HELLO | {"tools": [WEATHER]})
    small = input_tokens(chat)
    assert small["object"] == "response.input_tokens"
    assert 0 < small["input_tokens"] < input_tokens(with_tools)["input_tokens"]


# Bodies in the other API's form.


def test_bodies_are_told_apart() -> None:
    assert looks_like_responses({"input": "x"})
    assert not looks_like_responses({"input": "x", "messages": []})
    assert looks_like_chat({"messages": []})
    assert not looks_like_chat({"input": "x", "messages": []})


def test_a_chat_body_becomes_the_same_chat_request_again() -> None:
    schema = {"name": "n", "schema": {"type": "object"}}
    function = {"name": "w", "parameters": {"type": "object"}}
    image = {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}
    payload = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, image]},
            {
                "role": "assistant",
                "content": "I look.",
                "reasoning_content": "Hm",
                "tool_calls": [chat_call("a")],
            },
            tool("a"),
            {"role": "assistant", "content": None, "refusal": "No."},
            user("Why?"),
        ],
        "max_tokens": 5,
        "temperature": 0.5,
        "response_format": {"type": "json_schema", "json_schema": schema},
        "reasoning_effort": "low",
        "verbosity": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "w"}},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    chat, _ = parse_responses(from_chat_shape(payload))
    renamed = {name: value for name, value in payload.items() if name != "max_tokens"}
    assert chat == renamed | {"max_completion_tokens": 5}


def test_allowed_tools_of_a_chat_body_are_understood() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
    allowed = {"mode": "required", "tools": tools[:1]}
    payload = {
        "messages": [user("Hi")],
        "tools": tools,
        "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed},
    }
    chat, _ = parse_responses(from_chat_shape(payload))
    assert chat["tool_choice"] == "required"
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["a"]


@pytest.mark.parametrize(
    "payload",
    [
        {"messages": "x"},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]},
        {"messages": [user("x")], "tools": 7},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": 7}]}]},
    ],
)
def test_a_chat_body_that_cannot_be_served_is_refused(payload: JSONObject) -> None:
    with pytest.raises(APIError) as caught:
        parse_responses(from_chat_shape(payload))
    assert caught.value.status == 400


# Growth.


def many_calls(count: int) -> list[JSONObject]:
    return [function_call(f"c{n}") for n in range(count)] + [output(f"c{n}") for n in range(count)]


GROWING: dict[str, Callable[[int], list[JSONObject]]] = {
    "turns": lambda n: [user("x"), assistant("y")] * n,
    "calls": many_calls,
    "messages that join one call": lambda n: [
        function_call("a"),
        *[assistant("y" * 50)] * n,
        output("a"),
    ],
    "reasoning for one call": lambda n: [
        *[{"type": "reasoning", "summary": [{"type": "summary_text", "text": "y" * 50}]}] * n,
        function_call("a"),
        output("a"),
    ],
    "calls with one id": lambda n: [function_call("a"), output("a")] * n,
    "system messages": lambda n: [{"role": "system", "content": "y" * 50}] * n,
}


@pytest.mark.parametrize("kind", GROWING)
def test_requests_cost_in_proportion_to_their_items(kind: str) -> None:
    assert growth(lambda n: {"input": GROWING[kind](n)}, parse_responses, 1_000) < LINEAR


REPLIES: dict[str, Callable[[int], list[Delta]]] = {
    "texts": lambda n: [Delta("hello " * 50)] * n,
    "one call in pieces": lambda n: [
        calls(call(0, '{"a":"', "w", "c")),
        *[calls(call(0, "hello " * 50))] * n,
    ],
    "calls": lambda n: [calls(call(i, '{"a":1}', "w", f"c{i}")) for i in range(n)],
    "calls that never end": lambda n: [
        calls(call(i, '{"a":"' + "x" * 50, "w", f"c{i}")) for i in range(n)
    ],
    "items": lambda n: [reasoning("x"), Delta("y")] * n,
    "one large text": lambda n: [Delta("hello " * n, whole=True)],
}


@pytest.mark.parametrize("kind", REPLIES)
def test_streams_cost_in_proportion_to_their_deltas(kind: str) -> None:
    assert growth(lambda n: [*REPLIES[kind](n), END], streamed, 500) < LINEAR


# The stored responses.


@pytest.fixture
async def stored() -> AsyncIterator[StoredResponses]:
    store = SQLiteStore("", 0.0)
    yield StoredResponses(store)
    await store.close()


async def answered(
    stored: StoredResponses, payload: JSONObject, deltas: list[Delta], owner: str = "user:a"
) -> JSONObject:
    """A request, answered and stored."""
    history = await stored.history(owner, payload)
    chat, translation = parse_responses(payload, history.items, find_item=history.referenced.get)
    response = rendering_of(chat, translation).document([*deltas, END])
    await stored.keep(owner, response, translation)
    return response


async def sent(
    stored: StoredResponses, payload: JSONObject, owner: str = "user:a"
) -> list[JSONObject]:
    """The messages that a request would send."""
    history = await stored.history(owner, payload)
    chat, _ = parse_responses(payload, history.items, find_item=history.referenced.get)
    found: list[JSONObject] = chat["messages"]
    return found


@pytest.mark.anyio
async def test_a_stored_response_is_given_back_to_its_owner_alone(stored: StoredResponses) -> None:
    response = await answered(stored, HELLO, [Delta("Hi")])
    assert await stored.response("user:a", response["id"]) == response
    for owner, id in [("user:b", response["id"]), ("user:a", "resp_0")]:
        with pytest.raises(APIError) as caught:
            await stored.response(owner, id)
        assert caught.value.status == 404
        assert caught.value.body["error"] == {
            "message": f"Response with id '{id}' not found.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [True, False])
async def test_a_response_is_stored_before_its_end_is_sent(
    stored: StoredResponses, stream: bool
) -> None:
    async def reply() -> Deltas:
        yield Delta("H")
        yield Delta("i", "stop")

    events = rendering(HELLO)
    deltas = stored.record("user:a", reply(), events)
    if stream:
        sent = b"".join([events(delta) async for delta in deltas])
        kept = await stored.response("user:a", events.fixed["id"])
        assert decoded(sent + events.end())[-1]["response"] == kept
    else:
        found = [delta async for delta in deltas]
        kept = await stored.response("user:a", events.fixed["id"])
        assert events.document(found) == kept
    assert kept["output"][0]["content"][0]["text"] == "Hi"


@pytest.mark.anyio
async def test_a_reply_that_breaks_off_is_not_stored(stored: StoredResponses) -> None:
    async def reply() -> Deltas:
        yield Delta("H")
        raise APIError(502, "Broken.")

    events = rendering(HELLO)
    with pytest.raises(APIError, match="Broken"):
        b"".join([events(delta) async for delta in stored.record("user:a", reply(), events)])
    with pytest.raises(APIError, match="not found"):
        await stored.response("user:a", events.fixed["id"])


@pytest.mark.anyio
async def test_a_store_that_is_down_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(*args: object, **options: object) -> None:
        raise StoreDown("down")

    store = SQLiteStore("", 0.0)
    stored = StoredResponses(store)
    for name in ("get_response", "put_response", "delete_response"):
        monkeypatch.setattr(store, name, down)
    _, translation = parse_responses(HELLO)
    response = rendering(HELLO).document([Delta("Hi", "stop")])
    for work in (
        stored.response("", "resp_1"),
        stored.delete("", "resp_1"),
        stored.history("", {"input": "x", "previous_response_id": "resp_1"}),
        stored.referenced("", [f"msg_{0:032x}0000"]),
        stored.keep("", response, translation),
    ):
        with pytest.raises(APIError) as caught:
            await work
        assert caught.value.status == 503


@pytest.mark.anyio
async def test_stored_responses_are_not_among_the_stored_completions() -> None:
    store = SQLiteStore("", 0.0)
    response = await answered(StoredResponses(store), HELLO, [Delta("Hi")])
    assert (await store.list("user:a")).ids == []
    assert await store.get("user:a", response["id"]) is None
    await store.close()


@pytest.mark.anyio
async def test_a_deleted_response_is_gone(stored: StoredResponses) -> None:
    id = (await answered(stored, HELLO, [Delta("Hi")]))["id"]
    assert await stored.delete("user:a", id) == {"id": id, "object": "response", "deleted": True}
    for action in (stored.response, stored.delete, stored.cancel_error):
        with pytest.raises(APIError) as caught:
            await action("user:a", id)
        assert caught.value.status == 404


@pytest.mark.anyio
async def test_the_routes_of_stored_responses(stored: StoredResponses) -> None:
    first = await answered(stored, HELLO, [Delta("Hi")])
    path = f"/responses/{first['id']}"
    async with routes(stored) as client:
        assert (await client.get(path)).json() == first
        stream = await client.get(path, params={"stream": "true", "starting_after": "1"})
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.content == replay(first, 1)
        odd = await client.get(path, params={"stream": "true", "starting_after": "x"})
        assert odd.status_code == 400
        items = (await client.get(f"{path}/input_items", params={"limit": "1"})).json()
        assert items["data"][0]["content"][0]["text"] == "Hello"
        cancelled = await client.post(f"{path}/cancel")
        assert cancelled.status_code == 400
        assert cancelled.json()["error"]["message"] == "Cannot cancel a synchronous response."
        counted = await client.post("/responses/input_tokens", json=HELLO)
        chained = HELLO | {"previous_response_id": first["id"]}
        longer = await client.post("/responses/input_tokens", json=chained)
        assert 0 < counted.json()["input_tokens"] < longer.json()["input_tokens"]
        assert (await client.post("/responses/compact", json=HELLO)).status_code == 400
        assert (await client.delete(path)).json()["deleted"] is True
        for request in (client.get(path), client.delete(path), client.post(f"{path}/cancel")):
            assert (await request).status_code == 404


def routes(stored: StoredResponses) -> httpx.AsyncClient:
    """A client of the routes, as the owner user:a."""

    async def owner(request: Request) -> str:
        return "user:a"

    async def body(request: Request) -> bytes:
        return await request.body()

    async def error(request: Request, exc: Exception) -> JSONResponse:
        assert isinstance(exc, APIError)
        return JSONResponse(exc.body, exc.status)

    app = Starlette(
        routes=ResponseRoutes(lambda: stored, owner, body).routes(),
        exception_handlers={APIError: error},
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.anyio
async def test_a_chain_keeps_calls_outputs_and_reasoning(stored: StoredResponses) -> None:
    tools = {"tools": [WEATHER]}
    first = await answered(
        stored,
        HELLO | tools | {"instructions": "not inherited"},
        [reasoning("Hm"), calls(call(0, '{"a":1}', "weather", "call_1"))],
    )
    second_request = {
        "model": "m",
        "input": [output("call_1", "sunny")],
        "previous_response_id": first["id"],
    }
    second = await answered(stored, second_request | tools, [Delta("It is sunny.")])
    assert second["previous_response_id"] == first["id"]
    third = {"input": "Thanks", "previous_response_id": second["id"]}
    assert await sent(stored, third) == [
        user("Hello"),
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Hm",
            "tool_calls": [chat_call("call_1", "weather", '{"a":1}')],
        },
        tool("call_1", "sunny"),
        {"role": "assistant", "content": "It is sunny."},
        user("Thanks"),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("case", ["unknown", "another owner", "deleted", "failed"])
async def test_a_chain_needs_the_previous_response(stored: StoredResponses, case: str) -> None:
    first = await answered(stored, HELLO, [Delta("Hi")])
    id = first["id"]
    owner = "user:b" if case == "another owner" else "user:a"
    if case == "unknown":
        id = "resp_unknown"
    if case == "deleted":
        await stored.delete("user:a", id)
    if case == "failed":
        _, translation = parse_responses(HELLO)
        await stored.keep("user:a", first | {"status": "failed"}, translation)
    with pytest.raises(APIError) as caught:
        await stored.history(owner, {"input": "x", "previous_response_id": id})
    assert caught.value.status == 400
    assert caught.value.body["error"] == {
        "message": f"Previous response with id '{id}' not found.",
        "type": "invalid_request_error",
        "param": "previous_response_id",
        "code": "previous_response_not_found",
    }


@pytest.mark.anyio
async def test_items_are_found_by_their_ids(stored: StoredResponses) -> None:
    response = await answered(stored, HELLO, [reasoning("Hm"), Delta("Hi")])
    page = await stored.input_items("user:a", response["id"], ItemPage())
    ids = [page["data"][0]["id"], *[item["id"] for item in response["output"]]]
    payload = {"input": [*[{"type": "item_reference", "id": id} for id in ids], user("And?")]}
    assert await sent(stored, payload) == [
        user("Hello"),
        {"role": "assistant", "content": "Hi", "reasoning_content": "Hm"},
        user("And?"),
    ]
    with pytest.raises(APIError, match="not found"):
        await sent(stored, payload, owner="user:b")


@pytest.mark.anyio
async def test_a_history_has_a_bound() -> None:
    store = SQLiteStore("", 0.0)
    stored = StoredResponses(store, max_history_bytes=5000)
    first = await answered(stored, {"input": "x" * 3000}, [Delta("Hi")])
    request = {"input": "x" * 3000, "previous_response_id": first["id"]}
    second = await answered(stored, request, [Delta("Hi")])
    with pytest.raises(APIError) as caught:
        await stored.history("user:a", {"input": "y", "previous_response_id": second["id"]})
    assert caught.value.code == "context_length_exceeded"
    ids = [item["id"] for response in (first, second) for item in response["output"]]
    items = [{"type": "item_reference", "id": id} for id in ids]
    with pytest.raises(APIError) as caught:
        await stored.history("user:a", {"input": items})
    assert caught.value.code == "context_length_exceeded"
    await store.close()


@pytest.mark.anyio
async def test_references_lead_to_a_bounded_number_of_responses(
    stored: StoredResponses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewrap.api.responses.stored.MAX_REFERENCED", 2)
    ids = [f"msg_{number:032x}0000" for number in range(3)]
    assert await stored.referenced("user:a", ids[:2]) == {}
    with pytest.raises(APIError, match="too large"):
        await stored.referenced("user:a", ids)


@pytest.mark.anyio
async def test_input_items_are_listed_newest_first_with_those_of_the_chain(
    stored: StoredResponses,
) -> None:
    first = await answered(stored, HELLO, [Delta("Hi")])
    request = {
        "input": [{"role": "user", "content": "And?"}, user("Well?")],
        "previous_response_id": first["id"],
    }
    second = await answered(stored, request, [Delta("So.")])
    page = await stored.input_items("user:a", second["id"], ItemPage())
    assert [item["content"][0]["text"] for item in page["data"]] == ["Well?", "And?", "Hi", "Hello"]
    newest = page["data"][0]
    assert newest == {
        "id": newest["id"],
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_text", "text": "Well?"}],
    }
    assert page["object"] == "list"
    assert (page["first_id"], page["last_id"]) == (newest["id"], page["data"][-1]["id"])
    assert page["has_more"] is False
    seen = []
    after = ""
    for _ in range(4):
        part = await stored.input_items("user:a", second["id"], ItemPage(1, "asc", after))
        seen.append(part["data"][0]["content"][0]["text"])
        assert part["has_more"] is (len(seen) < 4)
        after = part["last_id"]
    assert seen == ["Hello", "Hi", "And?", "Well?"]
    empty = await stored.input_items("user:a", second["id"], ItemPage(1, "asc", after))
    assert empty == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    with pytest.raises(APIError) as caught:
        await stored.input_items("user:a", second["id"], ItemPage(after="odd"))
    assert caught.value.status == 404
    await stored.delete("user:a", first["id"])
    rest = await stored.input_items("user:a", second["id"], ItemPage())
    assert len(rest["data"]) == 2


def test_a_page_has_defaults_and_limits() -> None:
    assert item_page({}) == ItemPage(20, "desc", "")
    assert item_page({"limit": "100", "order": "asc", "after": "x"}) == ItemPage(100, "asc", "x")
    for query in ({"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"limit": "²"}, {"order": "x"}):
        with pytest.raises(APIError) as caught:
            item_page(query)
        assert caught.value.status == 400


@pytest.mark.anyio
async def test_an_odd_item_id_of_a_client_is_replaced(stored: StoredResponses) -> None:
    request = {
        "input": [{"role": "user", "content": "x", "id": {"a": 1}}, user("y") | {"id": "my"}]
    }
    response = await answered(stored, request, [Delta("Hi")])
    page = await stored.input_items("user:a", response["id"], ItemPage(order="asc"))
    assert page["data"][0]["id"].startswith("msg_")
    assert page["data"][1]["id"] == "my"


@pytest.mark.anyio
async def test_input_that_is_nested_too_deeply_is_refused_before_it_is_stored(
    stored: StoredResponses,
) -> None:
    deep: JSONObject = {}
    for _ in range(300):
        deep = {"a": deep}
    _, translation = parse_responses({"input": [user("x") | {"extra": deep}]})
    response = rendering(HELLO).document([Delta("Hi", "stop")])
    with pytest.raises(APIError, match="nested too deeply"):
        await stored.keep("user:a", response, translation)


def test_a_stored_response_is_replayed_as_a_stream() -> None:
    include = ["reasoning.encrypted_content", "message.output_text.logprobs"]
    payload = HELLO | {"tools": [WEATHER, PATCH, MCP], "include": include}
    row = {"token": "d", "logprob": -0.1, "bytes": None, "top_logprobs": []}
    deltas = [
        reasoning("Hm"),
        Delta("a b c", whole=True),
        Delta("d", logprobs={"content": [row]}),
        calls(
            call(0, "{}", "weather", "call_1"),
            call(1, '{"input":"{\\"input\\":1}"}', "apply_patch", "call_2"),
            call(2, "{}", "mcp__files__weather", "call_3"),
        ),
        END,
    ]
    live = streamed(deltas, payload)
    response = check_invariants(decoded(live))
    again = replay(response)
    assert check_invariants(decoded(again)) == response
    done = [event for event in decoded(again) if event["type"] == "response.output_text.done"]
    assert done[0]["logprobs"] == [row]
    merged = [name for name in names(live) if not name.endswith("text.delta")]
    assert [name for name in names(again) if not name.endswith("text.delta")] == merged


def test_a_replay_can_begin_later_and_always_has_its_end() -> None:
    response = check_invariants(decoded(streamed([Delta("Hi"), END])))
    everything = replay(response)
    count = len(decoded(everything))
    for after in (0, 3, count - 2):
        assert everything.endswith(replay(response, after))
        first = json.loads(replay(response, after).split(b"\n")[1].removeprefix(b"data: "))
        assert first["sequence_number"] == after + 1
    late = replay(response, 1000)
    event = json.loads(late.split(b"\n")[1].removeprefix(b"data: "))
    assert (event["type"], event["sequence_number"]) == ("response.completed", 1001)


# The openai package.


class Answer(BaseModel):
    colour: str


Script = list[Delta] | APIError


def sdk(script: Script, **options: Any) -> openai.OpenAI:
    """The openai package at a server that answers every request with the same Deltas."""
    replies: dict[str, JSONObject] = {}

    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            response = replies[request.url.path.rpartition("/")[2]]
            return httpx2.Response(200, headers=dict(SSE), content=replay(response))
        payload = orjson.loads(request.content)
        events = rendering(payload, **options)
        deltas = script if isinstance(script, list) else [Delta("Hel")]
        if not payload.get("stream"):
            response = events.document(deltas)
            replies[response["id"]] = response
            return httpx2.Response(200, json=response)
        stream = b"".join(map(events, deltas))
        stream += events.ping()
        stream += events.end() if isinstance(script, list) else events.failure(script)
        return httpx2.Response(200, headers=dict(SSE), content=stream)

    transport = httpx2.MockTransport(handle)
    return openai.OpenAI(
        api_key="sk-x", base_url="http://test/v1", http_client=httpx2.Client(transport=transport)
    )


SSE = [("content-type", "text/event-stream; charset=utf-8")]
EVERYTHING = [
    reasoning("Hm"),
    Delta('{"colour":'),
    Delta('"red"}'),
    calls(call(0, '{"a":', "weather", "call_1")),
    calls(call(0, "1}")),
    calls(call(1, '{"input":"x"}', "apply_patch", "call_2")),
    Delta(finish_reason="tool_calls"),
]
REQUEST: dict[str, Any] = {
    "model": "m",
    "input": "Hello",
    "tools": [WEATHER | {"strict": True}, PATCH],
}


@pytest.mark.parametrize("as_summary", [False, True])
def test_the_openai_package_accumulates_a_stream(as_summary: bool) -> None:
    with sdk(EVERYTHING, reasoning_as_summary=as_summary) as client:
        with client.responses.stream(**REQUEST) as stream:
            types = [event.type for event in stream]
            final = stream.get_final_response()
    assert types[0] == "response.created"
    assert types[-1] == "response.completed"
    assert final.output_text == '{"colour":"red"}'
    assert [item.type for item in final.output] == [
        "reasoning",
        "message",
        "function_call",
        "custom_tool_call",
    ]
    assert final.usage is not None
    assert final.usage.total_tokens > 0


def test_the_openai_package_parses_structured_output() -> None:
    with sdk([Delta('{"colour":"red"}', "stop")]) as client:
        response = client.responses.parse(model="m", input="Hello", text_format=Answer)
        assert response.output_parsed == Answer(colour="red")
        with client.responses.stream(model="m", input="Hello", text_format=Answer) as stream:
            assert stream.get_final_response().output_parsed == Answer(colour="red")


def test_the_openai_package_reads_an_object_and_a_raw_stream() -> None:
    with sdk(EVERYTHING) as client:
        response = client.responses.create(**REQUEST)
        assert response.output_text == '{"colour":"red"}'
        events = list(client.responses.create(**REQUEST, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_the_openai_package_streams_a_stored_response() -> None:
    with sdk(EVERYTHING) as client:
        response = client.responses.create(**REQUEST)
        with client.responses.stream(response_id=response.id, starting_after=3) as stream:
            assert next(iter(stream)).sequence_number == 4
            final = stream.get_final_response()
    assert final.output_text == response.output_text
    assert final.id == response.id


def test_the_openai_package_sees_why_a_response_failed() -> None:
    with sdk(APIError(429, "Slow down.")) as client:
        events = list(client.responses.create(model="m", input="Hello", stream=True))
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.message == "Slow down."


def test_each_event_is_valid_for_the_openai_package() -> None:
    from openai.types.responses import ResponseStreamEvent
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in decoded(streamed(EVERYTHING, REQUEST)):
        adapter.validate_python(event)
