"""Responses in front of each kind of backend: the same text, calls and usage as by chat completions."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
import openai
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from serving import served
from tool_servers import CITIES, PRODUCTS, REPLY, tool_server

from rewrap.api.chat import completion
from rewrap.types import Delta, JSONObject, ResponseInfo

RULES = """
[[rule]]
when = { message = "Weather?", tools = "get_weather" }
then = { tool_calls = [
    { name = "get_weather", arguments = { city = "Paris" } },
    { name = "get_weather", arguments = { city = "Rome" } },
] }

[[rule]]
when = { tool_result = "get_weather" }
then = "Sunny in both."

[[rule]]
when = "Hi"
then = "Sunny in both."
"""
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA}
CHAT_TOOLS = [{"type": "function", "function": FUNCTION}]
TOOLS = [{"type": "function", **FUNCTION}]
INSTRUCTIONS = "Be brief."
OWN = ("mock", "native relay", "translating relay", "chat URL")


@dataclass(frozen=True)
class Reply:
    """The facts of a reply that both APIs have."""

    text: str
    calls: list[tuple[str, str, str]]  # id, name, arguments
    usage: tuple[int, int, int]  # prompt, completion, total
    finished: bool


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(scope="module", params=[*OWN, *PRODUCTS])
def client(
    request: pytest.FixtureRequest, portal: BlockingPortal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    rules = tmp_path_factory.mktemp("rules") / "rules.toml"
    rules.write_text(RULES)
    with ExitStack() as stack:
        url = backend_url(stack, request.param, portal, rules)
        http_client = stack.enter_context(httpx2.Client(trust_env=False, verify=False))
        yield openai.OpenAI(
            base_url=f"{url}/v1", api_key="k", http_client=http_client, max_retries=0
        )


def backend_url(stack: ExitStack, kind: str, portal: BlockingPortal, rules: Path) -> str:
    """A server of ours in front of a backend of a kind."""
    if kind in PRODUCTS:
        server = stack.enter_context(portal.wrap_async_context_manager(tool_server(kind)))
        return stack.enter_context(served(chat_url=server.url, chat_shape=kind))
    mock = stack.enter_context(served(mock_rules=str(rules)))
    settings: dict[str, dict[str, str]] = {
        "native relay": {"openai_api_base": f"{mock}/v1", "responses": "native"},
        "translating relay": {"openai_api_base": f"{mock}/v1", "responses": "translate"},
        "chat URL": {"chat_url": f"{mock}/v1/chat/completions"},
    }
    if kind == "mock":
        return mock
    return stack.enter_context(served(**settings[kind]))


def by_chat(client: openai.OpenAI, stream: bool, **asked: object) -> Reply:
    options: dict[str, object] = {"model": "m", **asked}
    if stream:
        options["stream_options"] = {"include_usage": True}
        with client.chat.completions.stream(**options) as events:  # type: ignore[arg-type]
            completion: ChatCompletion = events.get_final_completion()
    else:
        completion = client.chat.completions.create(**options)  # type: ignore[call-overload]
    [choice] = completion.choices
    usage = completion.usage
    assert usage is not None
    calls = [
        (call.id, call.function.name, call.function.arguments)
        for call in choice.message.tool_calls or []
        if call.type == "function"
    ]
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    finished = choice.finish_reason in ("stop", "tool_calls")
    return Reply(choice.message.content or "", calls, counts, finished)


def by_responses(client: openai.OpenAI, stream: bool, **asked: object) -> Reply:
    options: dict[str, object] = {"model": "m", **asked}
    if stream:
        with client.responses.stream(**options) as events:  # type: ignore[call-overload]
            response: Response = events.get_final_response()
    else:
        response = client.responses.create(**options)  # type: ignore[call-overload]
    usage = response.usage
    assert usage is not None
    calls = [
        (item.call_id, item.name, item.arguments)
        for item in response.output
        if item.type == "function_call"
    ]
    counts = (usage.input_tokens, usage.output_tokens, usage.total_tokens)
    return Reply(response.output_text, calls, counts, response.status == "completed")


def without_ids(reply: Reply) -> tuple[str, list[tuple[str, object]], tuple[int, int, int], bool]:
    """Ids of calls differ from one reply to the next, where the backend has none."""
    calls = [(name, json.loads(arguments)) for _, name, arguments in reply.calls]
    return reply.text, calls, reply.usage, reply.finished


streams = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@streams
def test_a_text_is_the_same(stream: bool, client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": "Hi"}]
    chat = by_chat(client, stream, messages=messages)
    response = by_responses(client, stream, instructions=INSTRUCTIONS, input="Hi")
    assert response == chat
    assert (response.text, response.finished) == (REPLY, True)
    assert response.usage[2] == response.usage[0] + response.usage[1] > 0


@streams
def test_calls_and_the_reply_to_their_results_are_the_same(
    stream: bool, client: openai.OpenAI
) -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "Weather?"}]
    chat = by_chat(client, stream, messages=messages, tools=CHAT_TOOLS)
    response = by_responses(client, stream, input="Weather?", tools=TOOLS)
    assert without_ids(response) == without_ids(chat)
    assert without_ids(response)[1] == [("get_weather", {"city": city}) for city in CITIES]
    turn = {"role": "assistant", "content": chat.text or None, "tool_calls": chat_calls(chat)}
    results = [{"role": "tool", "tool_call_id": id, "content": "sunny"} for id, _, _ in chat.calls]
    chat = by_chat(client, stream, messages=[*messages, turn, *results], tools=CHAT_TOOLS)
    items = [{"role": "user", "content": "Weather?"}, *response_items(response)]
    response = by_responses(client, stream, input=items, tools=TOOLS)
    assert response == chat
    assert response.text == REPLY


def chat_calls(reply: Reply) -> list[dict[str, object]]:
    return [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id, name, arguments in reply.calls
    ]


def response_items(reply: Reply) -> Iterator[dict[str, object]]:
    """The turn of the assistant, and the results of its calls."""
    if reply.text:
        yield {"role": "assistant", "content": reply.text}
    for id, name, arguments in reply.calls:
        yield {"type": "function_call", "call_id": id, "name": name, "arguments": arguments}
    for id, _, _ in reply.calls:
        yield {"type": "function_call_output", "call_id": id, "output": "sunny"}


@streams
def test_the_chain_of_previous_responses_gives_the_same_reply(
    stream: bool, client: openai.OpenAI
) -> None:
    first = client.responses.create(model="m", input="Weather?", tools=TOOLS)  # type: ignore[arg-type]
    outputs = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
        for item in first.output
        if item.type == "function_call"
    ]
    chained = by_responses(
        client, stream, input=outputs, tools=TOOLS, previous_response_id=first.id
    )
    assert (chained.text, chained.finished) == (REPLY, True)


def test_reasoning_and_arguments_count_where_a_backend_has_no_counts() -> None:
    fields: JSONObject = {
        "reasoning_content": "x" * 40,
        "reasoning": "x" * 40,
        "tool_calls": [{"function": {"name": "f", "arguments": '{"k":"1234567890123"}'}}],
    }
    deltas = [Delta("12345678", fields=fields), Delta(finish_reason="tool_calls")]
    usage = completion(ResponseInfo(prompt_bytes=40), deltas)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (10, (8 + 40 + 21 + 3) // 4)
