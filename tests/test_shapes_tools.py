"""Agents, images and JSON schemas through shapes, with OpenAI's SDK and strict servers."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from serving import served
from tool_servers import CITIES, PRODUCTS, REPLY, SCHEMA_REPLY, SIGNATURE, ToolServer, tool_server

PNG = "iVBORw0KGgo="
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA},
}
FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "city", "strict": True, "schema": SCHEMA},
}
Served = tuple[ToolServer, openai.OpenAI]


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(params=PRODUCTS)
def product(request: pytest.FixtureRequest, portal: BlockingPortal) -> Iterator[Served]:
    with portal.wrap_async_context_manager(tool_server(request.param)) as server:
        with served(chat_url=server.url, chat_shape=request.param) as url:
            http_client = httpx2.Client(trust_env=False, verify=False)
            with openai.OpenAI(
                base_url=f"{url}/v1", api_key="k", http_client=http_client, max_retries=0
            ) as client:
                yield server, client


def create(client: openai.OpenAI, stream: bool, **payload: Any) -> Any:
    """The completion; a stream is put together by the SDK."""
    payload = {"model": "m", **payload}
    if not stream:
        return client.chat.completions.create(**payload)
    with client.chat.completions.stream(**payload) as events:
        for _ in events:
            pass
        return events.get_final_completion()


def check(server: ToolServer) -> None:
    assert server.problems == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_an_agent_calls_tools_and_gets_the_final_text(
    stream: bool, image: bool, product: Served
) -> None:
    server, client = product
    question = [{"type": "text", "text": "Weather?"}, *([IMAGE] if image else [])]
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": question if image else "Weather?"},
    ]
    first = create(client, stream, messages=messages, tools=[TOOL], tool_choice="auto")
    check(server)
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather"] * 2
    assert [json.loads(call.function.arguments)["city"] for call in calls] == [*CITIES]
    assert len({call.id for call in calls}) == 2
    messages.append(choice.message.model_dump(exclude_none=True))
    for call in calls:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'})
    messages.append({"role": "user", "content": "Thanks."})
    second = create(client, stream, messages=messages, tools=[TOOL])
    check(server)
    assert second.choices[0].message.content == REPLY
    assert second.choices[0].finish_reason == "stop"
    sent = json.dumps(server.requests[-1])
    assert (PNG in sent) == image
    assert "clear" in sent


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_json_schema_reaches_the_product(stream: bool, product: Served) -> None:
    server, client = product
    messages = [{"role": "user", "content": "Which city?"}]
    completion = create(client, stream, messages=messages, response_format=FORMAT)
    check(server)
    assert completion.choices[0].message.content == SCHEMA_REPLY
    assert '"required": ["city"]' in json.dumps(server.requests[0])


@pytest.mark.parametrize("product", ["ollama", "gemini", "cohere"], indirect=True)
def test_a_json_object_reaches_the_product(product: Served) -> None:
    server, client = product
    messages = [{"role": "user", "content": "JSON!"}]
    create(client, False, messages=messages, response_format={"type": "json_object"})
    check(server)
    assert "json" in json.dumps(server.requests[0]).lower().replace("json!", "")


def test_reasoning_effort_and_the_choice_of_a_tool_reach_the_product(product: Served) -> None:
    server, client = product
    messages = [{"role": "user", "content": "Weather?"}]
    choices: list[Any] = ["none"]
    if server.name != "ollama":
        choices.append("required")
    if server.name in ("anthropic", "gemini"):
        choices.append({"type": "function", "function": {"name": "get_weather"}})
    for choice in choices:
        for effort in ("none", "low", "high"):
            create(
                client,
                False,
                messages=messages,
                tools=[TOOL],
                tool_choice=choice,
                reasoning_effort=effort,
            )
            check(server)


def test_turns_without_text_and_turns_in_a_row_are_no_problem(product: Served) -> None:
    server, client = product
    messages: Any = [
        {"role": "user", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": " "}, {"type": "text", "text": "a"}]},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": "e"},
    ]
    create(client, False, messages=messages)
    check(server)
    sent = json.dumps(server.requests[0])
    assert all(f'{text}"' in sent for text in "abcde")


@pytest.mark.parametrize("product", ["gemini"], indirect=True)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_thought_signature_goes_back_to_gemini(stream: bool, product: Served) -> None:
    server, client = product
    messages: list[Any] = [{"role": "user", "content": "Weather?"}]
    first = create(client, stream, messages=messages, tools=[TOOL])
    message = first.choices[0].message
    assert message.reasoning == "Hm."
    messages.append(message.model_dump(exclude_none=True))
    for call in message.tool_calls:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "clear"})
    create(client, stream, messages=messages, tools=[TOOL])
    check(server)
    parts = server.requests[-1]["contents"][1]["parts"]
    assert [part.get("thoughtSignature") for part in parts if "functionCall" in part] == [
        SIGNATURE,
        None,
    ]
    results = server.requests[-1]["contents"][2]["parts"]
    assert results[0]["functionResponse"]["response"] == {"result": "clear"}
