"""The mock behind the app: tools, structured output, rules, faults, the journal and its control API, by real clients."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel
from serving import served

CHAT = "/v1/chat/completions"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as address:
        yield address


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, text: str, **parameters: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="m", messages=messages, **parameters)


# ---- Tools


def test_an_agent_loop_ends_by_itself(sdk: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "user", "content": 'get the weather of "Oslo" for 3 days, use get_weather'}
    ]
    steps = 0
    while steps < 5:
        steps += 1
        reply = sdk.chat.completions.create(model="m", messages=messages, tools=[WEATHER])
        message = reply.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            break
        (call,) = message.tool_calls
        assert reply.choices[0].finish_reason == "tool_calls"
        assert message.content is None
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"city": "Oslo", "days": 3}
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 degrees"})
    assert steps == 2
    assert "sunny, 21 degrees" in messages[-1]["content"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_tool_is_called_in_pieces_with_one_id(sdk: openai.OpenAI, stream: bool) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    with sdk.chat.completions.stream(
        model="m",
        messages=[{"role": "user", "content": "Hello"}],
        tools=[WEATHER],
        tool_choice=choice,
    ) as events:
        final = events.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert call.function.name == "get_weather"
    assert {"city", "days"} <= json.loads(call.function.arguments).keys()
    assert ask(sdk, "Hello", tools=[WEATHER]).choices[0].message.tool_calls is None


def test_two_tools_joined_by_and_give_two_calls(sdk: openai.OpenAI) -> None:
    time: Any = {
        "type": "function",
        "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}},
    }
    reply = ask(sdk, "get_weather and get_time, please", tools=[WEATHER, time])
    names = [call.function.name for call in reply.choices[0].message.tool_calls]
    assert names == ["get_weather", "get_time"]
    one = ask(sdk, "get_weather and get_time", tools=[WEATHER, time], parallel_tool_calls=False)
    assert len(one.choices[0].message.tool_calls) == 1


# ---- Structured output


class Step(BaseModel):
    title: str
    minutes: int
    children: "list[Step]"


class Card(BaseModel):
    kind: str
    score: float | None


class Plan(BaseModel):
    goal: str
    steps: list[Step]
    extra: Card | Step


def test_parse_fills_a_nested_recursive_model_with_a_union(sdk: openai.OpenAI) -> None:
    reply = sdk.chat.completions.parse(
        model="m", messages=[{"role": "user", "content": "Plan it"}], response_format=Plan
    )
    assert isinstance(reply.choices[0].message.parsed, Plan)


def test_json_mode_gives_an_object(sdk: openai.OpenAI) -> None:
    reply = ask(sdk, "Reply in JSON", response_format={"type": "json_object"})
    assert isinstance(json.loads(reply.choices[0].message.content), dict)


def test_a_schema_that_strict_mode_refuses_is_refused(sdk: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": schema, "strict": True},
    }
    with pytest.raises(openai.BadRequestError, match="additionalProperties"):
        ask(sdk, "Hello", response_format=form)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, 'type: "None"'),
        ({"type": "object"}, "object schema missing properties"),
        ({"type": "object", "properties": {"a": {"type": "array"}}}, "array schema missing items"),
    ],
)
def test_parameters_that_openai_refuses_are_refused(
    sdk: openai.OpenAI, parameters: dict[str, Any], reason: str
) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(openai.BadRequestError, match="Invalid schema for function 'f'") as caught:
        ask(sdk, "Hello", tools=[tool])
    assert reason in caught.value.message
    assert caught.value.code == "invalid_function_parameters"


def test_logprobs_have_a_row_for_each_word(sdk: openai.OpenAI) -> None:
    choice = ask(sdk, "Hello there", logprobs=True, top_logprobs=2).choices[0]
    tokens = [row.token for row in choice.logprobs.content]
    assert "".join(tokens) == choice.message.content
    assert all(len(row.top_logprobs) == 2 for row in choice.logprobs.content)


def test_reasoning_effort_counts_reasoning_tokens(sdk: openai.OpenAI) -> None:
    usage = ask(sdk, "Hello", reasoning_effort="high").usage
    assert usage.completion_tokens_details.reasoning_tokens > 0


def test_images_are_named_in_the_reply(sdk: openai.OpenAI) -> None:
    parts: Any = [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
    ]
    reply = sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": parts}])
    assert "[image_url]" in (reply.choices[0].message.content or "")


def test_audio_output_is_refused(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="audio"):
        ask(sdk, "Hello", modalities=["text", "audio"], audio={"voice": "x", "format": "wav"})


def test_the_responses_api_calls_tools_and_parses(sdk: openai.OpenAI) -> None:
    flat: Any = {"type": "function", "name": "get_weather", **WEATHER["function"], "strict": False}
    reply = sdk.responses.create(model="m", input="get_weather of 'Oslo'", tools=[flat])
    assert [item.type for item in reply.output] == ["function_call"]
    parsed = sdk.responses.parse(model="m", input="Plan it", text_format=Plan)
    assert isinstance(parsed.output_parsed, Plan)


# ---- Rules and faults

RULES = """
[[rule]]
name = "greeting"
when = { message = "hello" }
then = { text = "Hi from {model}!" }

[[rule]]
name = "twice then well"
when = { message = { contains = "flaky" } }
then = [{ error = "rate_limit" }, { error = "rate_limit" }, { text = "made it" }]

[[rule]]
name = "weather"
when = { tools = ["get_weather"] }
then = { tool_calls = [{ name = "get_weather", arguments = { city = "Bergen", days = 1 } }] }
"""


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[str]:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    with served(mock_rules=str(file)) as address:
        yield address


def client(url: str, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=retries)


def test_rules_answer_before_the_mock_does(scripted: str) -> None:
    with client(scripted) as sdk:
        assert ask(sdk, "hello").choices[0].message.content == "Hi from m!"
        assert "mock reply" in ask(sdk, "other").choices[0].message.content
        (call,) = ask(sdk, "anything", tools=[WEATHER]).choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Bergen", "days": 1}


def test_the_sdk_retries_what_a_sequence_then_lets_through(scripted: str) -> None:
    with client(scripted, retries=2) as sdk:
        assert ask(sdk, "a flaky one").choices[0].message.content == "made it"


def test_strict_mode_names_the_nearest_rule(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    with served(mock_rules=str(file), mock_strict=True) as url, client(url) as sdk:
        with pytest.raises(openai.NotFoundError, match="greeting"):
            ask(sdk, "hallo")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["429", "503", "overloaded"])
def test_a_header_makes_an_error(url: str, fault: str, stream: bool) -> None:
    with client(url) as sdk, pytest.raises(openai.APIStatusError) as raised:
        ask(sdk, "Hello", stream=stream, extra_headers={"x-mock-fault": fault})
    assert raised.value.status_code in (429, 503)


def test_fail_twice_then_succeed(url: str) -> None:
    headers = {"x-mock-fault": "fail=2:503", "x-mock-lane": "this test"}
    with httpx.Client(base_url=url, trust_env=False) as http:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
        statuses = [http.post(CHAT, json=body, headers=headers).status_code for _ in range(3)]
    assert statuses == [503, 503, 200]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["cut@1", "reset@1", "cut@0", "hang=0.05s"])
def test_a_cut_connection_is_seen_by_the_client(url: str, fault: str, stream: bool) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
    with httpx.Client(base_url=url, trust_env=False) as http, pytest.raises(httpx.TransportError):
        http.post(CHAT, json=body, headers={"x-mock-fault": fault})


def test_an_error_event_ends_a_stream(url: str) -> None:
    with client(url) as sdk, pytest.raises(openai.APIError):
        for _ in ask(sdk, "Hello", stream=True, extra_headers={"x-mock-fault": "error_event"}):
            pass


def test_a_seeded_rate_makes_the_same_faults() -> None:
    runs = []
    for _ in range(2):
        with served(mock_fault_rate=0.3, mock_faults=("500",), mock_seed=7) as url:
            body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
            with httpx.Client(base_url=url, trust_env=False) as http:
                runs.append([http.post(CHAT, json=body).status_code for _ in range(40)])
    assert runs[0] == runs[1]
    assert 3 < runs[0].count(500) < 25


# ---- The journal and control


def test_the_journal_lists_requests_and_is_controlled(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False) as http, client(url) as sdk:
        http.post("/mock/reset")
        ask(sdk, "remember me")
        rule = {"name": "added", "when": {"message": "ping"}, "then": {"text": "pong"}}
        assert http.post("/mock/rules", json={"rules": [rule]}).json() == {"added": 1}
        assert ask(sdk, "ping").choices[0].message.content == "pong"
        rows = http.get("/mock/requests").json()["data"]
        assert [row["rule"] for row in rows] == [None, "added"]
        assert rows[0]["messages"][0]["content"] == "remember me"
        assert {row["status"] for row in rows} == {200}
        assert http.get("/mock/requests", params={"rule": "added"}).json()["data"] == rows[1:]
        http.delete("/mock/requests")
        assert http.get("/mock/requests").json()["data"] == []
        http.post("/mock/reset")
        assert ask(sdk, "ping").choices[0].message.content != "pong"


def test_the_journal_holds_no_key(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False) as http, client(url) as sdk:
        ask(sdk, "Hello")
        assert "sk-test" not in http.get("/mock/requests").text


def test_control_needs_a_key_where_keys_are_set() -> None:
    with served(api_keys=("k1",)) as url, httpx.Client(base_url=url, trust_env=False) as http:
        assert http.get("/mock/requests").status_code == 401
        bearer = {"authorization": "Bearer k1"}
        assert http.get("/mock/requests", headers=bearer).status_code == 200


def test_control_is_off_in_front_of_an_upstream() -> None:
    with (
        served(openai_api_base="http://127.0.0.1:9/v1") as url,
        httpx.Client(base_url=url, trust_env=False) as http,
    ):
        assert http.get("/mock/requests").status_code == 404
