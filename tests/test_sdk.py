"""The real `openai` package against a running server: what it sends is taken, what it gets it understands."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from anyio.from_thread import start_blocking_portal
from serving import served
from upstreams import (
    DONE,
    FAULTS,
    TEXT,
    Upstream,
    by_path,
    chunks,
    closed_port,
    dumps,
    only,
    sends,
    sse,
    whole,
)
from upstreams import openai as upstream_json

MESSAGES: Any = [{"role": "user", "content": "Hello, 世界 👋"}]
REPLY = "This is a mock reply to: Hello, 世界 👋"
ASKED: Any = {"model": "gpt-4o", "messages": MESSAGES}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def mock() -> Iterator[str]:
    """The mock's address."""
    with served() as url:
        yield url


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """All the upstreams, by path, outside of the test's thread."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Upstream(by_path)) as up,
    ):
        yield up


@pytest.fixture
def sdk(mock: str) -> Iterator[openai.OpenAI]:
    with client(mock) as sdk:
        yield sdk


def client(url: str, **options: Any) -> openai.OpenAI:
    given = {
        "base_url": f"{url}/v1",
        "api_key": "sk-client-1234",
        "max_retries": 0,
        "timeout": 10.0,
    } | options
    return openai.OpenAI(**given, http_client=httpx2.Client(trust_env=False, verify=False))


def async_client(url: str, **options: Any) -> openai.AsyncOpenAI:
    given = {
        "base_url": f"{url}/v1",
        "api_key": "sk-client-1234",
        "max_retries": 0,
        "timeout": 10.0,
    } | options
    return openai.AsyncOpenAI(
        **given, http_client=httpx2.AsyncClient(trust_env=False, verify=False)
    )


@pytest.fixture
def forwarding(upstream: Upstream, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    """The SDK at a server that asks the OpenAI-compatible upstream of the parameter: "good" or "fault/NAME"."""
    with served(openai_api_base=f"{upstream.url}/{request.param}/v1") as url, client(url) as sdk:
        yield sdk


def through(path: str) -> Any:
    return pytest.mark.parametrize("forwarding", [path], indirect=True)


def text_of(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


# ---- sync


def test_create_gives_a_completion(sdk: openai.OpenAI) -> None:
    completion = sdk.chat.completions.create(**ASKED)
    assert completion.choices[0].message.content == REPLY
    assert completion.choices[0].message.role == "assistant"
    assert (completion.object, completion.model, completion.choices[0].finish_reason) == (
        "chat.completion",
        "gpt-4o",
        "stop",
    )
    assert completion.usage is not None
    assert (
        completion.usage.total_tokens
        == completion.usage.prompt_tokens + completion.usage.completion_tokens
        > 0
    )
    assert completion._request_id is not None
    assert completion._request_id.startswith("req_")


def test_a_stream_has_the_role_first_and_the_finish_reason_last(
    sdk: openai.OpenAI,
) -> None:
    pieces = list(sdk.chat.completions.create(**ASKED, stream=True))
    assert text_of(pieces) == REPLY
    assert len(pieces) > len(REPLY.split())
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [p.choices[0].delta.role for p in pieces[1:]] == [None] * (len(pieces) - 1)
    assert [p.choices[0].finish_reason for p in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert len({(p.id, p.created, p.model, p.object) for p in pieces}) == 1
    assert all(p.usage is None for p in pieces)


def test_include_usage_adds_one_chunk_with_the_usage(sdk: openai.OpenAI) -> None:
    *others, last = sdk.chat.completions.create(
        **ASKED, stream=True, stream_options={"include_usage": True}
    )
    whole_usage = sdk.chat.completions.create(**ASKED).usage
    assert last.choices == []
    assert last.usage == whole_usage
    assert all(chunk.usage is None and chunk.choices for chunk in others)


def test_the_raw_response_has_the_request_id_of_the_parsed_one(sdk: openai.OpenAI) -> None:
    raw = sdk.chat.completions.with_raw_response.create(**ASKED)
    assert raw.status_code == 200
    assert raw.headers["content-type"] == "application/json"
    parsed = raw.parse()
    assert parsed._request_id == raw.request_id == raw.headers["x-request-id"]
    assert len(raw.headers["x-request-id"]) == len("req_") + 32


def test_the_raw_response_of_a_stream_is_server_sent_events(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.with_streaming_response.create(**ASKED, stream=True) as raw:
        assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert raw.headers["x-request-id"].startswith("req_")
        assert "content-length" not in raw.headers
        assert text_of(raw.parse()) == REPLY


def test_the_stream_helper_builds_the_completion_that_create_gives(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(
        **ASKED, n=2, stream_options={"include_usage": True}
    ) as stream:
        built = stream.get_final_completion()
    assert [choice.message.content for choice in built.choices] == [REPLY, REPLY]
    assert [choice.finish_reason for choice in built.choices] == ["stop", "stop"]
    assert built.usage == sdk.chat.completions.create(**ASKED, n=2).usage


def test_max_completion_tokens_and_stop_end_a_reply(sdk: openai.OpenAI) -> None:
    short = sdk.chat.completions.create(**ASKED, max_completion_tokens=3)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == (
        "This is a ",
        "length",
    )
    stopped = sdk.chat.completions.create(**ASKED, stop=[" mock"], n=2)
    assert [choice.message.content for choice in stopped.choices] == ["This is a", "This is a"]


def test_a_request_with_every_parameter_is_accepted(sdk: openai.OpenAI) -> None:
    tool: Any = {
        "type": "function",
        "function": {"name": "f", "parameters": {"foo": "bar"}, "strict": True},
    }
    completion = sdk.chat.completions.create(
        **ASKED,
        frequency_penalty=-2,
        presence_penalty=-2,
        function_call="none",
        functions=[{"name": "f", "parameters": {"foo": "bar"}}],
        logit_bias={"foo": 0},
        logprobs=True,
        top_logprobs=0,
        max_completion_tokens=0,
        max_tokens=0,
        metadata={"foo": "string"},
        modalities=["text"],
        n=1,
        parallel_tool_calls=True,
        prediction={"content": "string", "type": "content"},
        prompt_cache_key="k",
        reasoning_effort="none",
        response_format={"type": "text"},
        safety_identifier="s",
        seed=-9007199254740991,
        service_tier="auto",
        stop="\n",
        store=False,
        stream=False,
        stream_options={"include_usage": True},
        temperature=1,
        tool_choice="none",
        tools=[tool],
        top_p=1,
        user="user-1234",
        verbosity="low",
        web_search_options={"search_context_size": "low"},
    )
    assert completion.choices[0].message.role == "assistant"


def test_models_are_listed_and_retrieved(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["mock-gpt-model"]
    model = sdk.models.retrieve("mock-gpt-model")
    assert (model.id, model.object) == ("mock-gpt-model", "model")


def test_variants_of_the_base_url_are_served(mock: str) -> None:
    for path in ("", "/", "/v1/", "/v1/v1", "//v1", "/openai/v1"):
        with client(mock, base_url=mock + path) as sdk:
            assert sdk.chat.completions.create(**ASKED).choices[0].message.content == REPLY, path


# ---- errors


def test_a_bad_parameter_raises_bad_request_error(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(**ASKED, temperature=99)
    error = caught.value
    assert (error.param, error.code, error.type) == (
        "temperature",
        "decimal_above_max_value",
        "invalid_request_error",
    )
    assert "decimal above maximum value" in error.message
    assert error.request_id is not None
    assert error.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="m", messages=[], stream=True)
    assert caught.value.code == "empty_array"


def test_a_wrong_key_and_no_key_raise_authentication_error() -> None:
    with served(api_keys=("sk-good-key-12345678",)) as url:
        with client(url, api_key="sk-good-key-12345678") as sdk:
            assert sdk.chat.completions.create(**ASKED).choices[0].message.content == REPLY
        with client(url, api_key="sk-wrong-key-1234567") as sdk:
            for ask in (lambda: sdk.chat.completions.create(**ASKED, stream=True), sdk.models.list):
                with pytest.raises(openai.AuthenticationError) as caught:
                    ask()
                assert caught.value.code == "invalid_api_key"
                assert "wrong-key" not in caught.value.message
        with client(url) as sdk, pytest.raises(openai.AuthenticationError) as caught:
            sdk.models.list(extra_headers={"Authorization": openai.omit})
        assert "didn't provide an API key" in caught.value.message


def test_any_model_can_be_retrieved_as_any_model_can_be_used(sdk: openai.OpenAI) -> None:
    assert sdk.models.retrieve("any-model").id == "any-model"


def test_an_unknown_path_raises_not_found_error(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.audio.speech.create(input="x", model="m", voice="alloy")
    assert "Invalid URL (POST /v1/audio/speech)" in caught.value.message


@through("fault/404_model")
def test_a_model_unknown_to_the_upstream_raises_not_found_error(
    forwarding: openai.OpenAI,
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as caught:
            forwarding.chat.completions.create(**ASKED, stream=stream)
        assert caught.value.code == "model_not_found"


@through("fault/429_retry_after")
def test_an_upstreams_rate_limit_raises_rate_limit_error_with_retry_after(
    forwarding: openai.OpenAI,
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as caught:
            forwarding.chat.completions.create(**ASKED, stream=stream)
        assert caught.value.code == "rate_limit_exceeded"
        assert caught.value.response.headers["retry-after"] == "7"
        assert caught.value.response.headers["x-ratelimit-reset-requests"] == "7s"


@through("fault/500")
def test_an_upstream_that_fails_raises_internal_server_error(forwarding: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            forwarding.chat.completions.create(**ASKED, stream=stream)
        assert (caught.value.status_code, caught.value.code) == (502, "bad_gateway")
        assert "canary" not in str(caught.value.response.text)


def test_an_unreachable_upstream_raises_internal_server_error() -> None:
    with served(chat_url=f"http://127.0.0.1:{closed_port()}/chat") as url, client(url) as sdk:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                sdk.chat.completions.create(**ASKED, stream=stream)
            assert caught.value.status_code == 502


@through("fault/truncated_sse")
def test_a_truncated_stream_raises_in_the_sdk(forwarding: openai.OpenAI) -> None:
    got: list[Any] = []
    with pytest.raises(openai.APIError) as caught:
        got.extend(_each(forwarding.chat.completions.create(**ASKED, stream=True), got))
    assert caught.value.code == "bad_gateway"
    assert "".join(got) != ""
    assert TEXT.startswith("".join(got))


def _each(stream: Any, got: list[Any]) -> Iterator[str]:
    """Puts each text where it stays when the next step raises."""
    for chunk in stream:
        got.append(chunk.choices[0].delta.content or "")
    yield ""


@through("fault/error_event")
def test_an_error_event_of_the_upstream_raises_its_message_in_the_sdk(
    forwarding: openai.OpenAI,
) -> None:
    with pytest.raises(openai.APIError, match="The engine stopped"):
        list(forwarding.chat.completions.create(**ASKED, stream=True))


# ---- through an OpenAI-compatible upstream


@through("good")
def test_answers_of_an_openai_upstream_are_relayed(
    forwarding: openai.OpenAI, upstream: Upstream
) -> None:
    completion = forwarding.chat.completions.create(**ASKED)
    assert (completion.id, completion.choices[0].message.content) == ("chatcmpl-up", TEXT)
    assert completion.usage is not None
    assert completion.usage.total_tokens == 33
    streamed = list(
        forwarding.chat.completions.create(
            **ASKED, stream=True, stream_options={"include_usage": True}
        )
    )
    assert text_of(streamed) == TEXT
    assert streamed[-1].usage is not None
    assert streamed[-1].usage.total_tokens == 33
    assert [model.id for model in forwarding.models.list()] == ["upstream-model"]
    assert (
        upstream.requests[-1].headers["authorization"] == "Bearer sk-client-1234"
    )  # the server has no key of its own


def test_a_server_with_a_key_never_sends_the_clients_key_upstream(upstream: Upstream) -> None:
    with served(
        openai_api_base=f"{upstream.url}/good/v1", openai_api_key="sk-of-the-server"
    ) as url:
        with client(url) as sdk:
            for ask in (lambda: sdk.chat.completions.create(**ASKED), sdk.models.list):
                ask()
                sent = upstream.requests[-1]
                assert sent.headers["authorization"] == "Bearer sk-of-the-server"
                assert "sk-client" not in str(sent)


CALLS: list[Any] = [
    {"role": "assistant", "content": None},
    {
        "tool_calls": [
            {
                "index": 0,
                "id": "call_1",
                "type": "function",
                "function": {"name": "look", "arguments": ""},
            }
        ]
    },
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"at":'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": ' "世界"}'}}]},
    {
        "tool_calls": [
            {
                "index": 1,
                "id": "call_2",
                "type": "function",
                "function": {"name": "stop", "arguments": "{}"},
            }
        ]
    },
]
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {}}} for name in ("look", "stop")
]


def calling(asked: Any) -> list[str]:
    choices = [
        {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in CALLS
    ]
    choices.append({"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"})
    return [*(upstream_json("chat.completion.chunk", asked, [choice]) for choice in choices), DONE]


def called(asked: Any) -> str:
    functions = [
        {"name": "look", "arguments": '{"at": "世界"}'},
        {"name": "stop", "arguments": "{}"},
    ]
    calls = [
        {"id": f"call_{n}", "type": "function", "function": f} for n, f in enumerate(functions, 1)
    ]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    return upstream_json(
        "chat.completion", asked, [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
    )


with_calls = sends(
    lambda r: (
        whole("text/event-stream", b"".join(sse(calling(r.asked))))
        if r.sse
        else whole("application/json", called(r.asked).encode())
    )
)


@pytest.mark.parametrize("way", ["chat_url", "openai_api_base"])
def test_tool_calls_are_relayed_streamed_and_whole(way: str) -> None:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Upstream(with_calls)) as up,
    ):
        with served(
            **{way: up.url + ("/v1" if way == "openai_api_base" else "/v1/chat/completions")}
        ) as url:
            with client(url) as sdk:
                with sdk.chat.completions.stream(**ASKED, tools=TOOLS) as stream:
                    built = stream.get_final_completion()
                created = sdk.chat.completions.create(**ASKED, tools=TOOLS)
                first = next(iter(sdk.chat.completions.create(**ASKED, tools=TOOLS, stream=True)))
    for completion in (built, created):
        choice = completion.choices[0]
        assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
        assert [
            (call.id, call.function.name, call.function.arguments)
            for call in choice.message.tool_calls or []
        ] == [
            ("call_1", "look", '{"at": "世界"}'),
            ("call_2", "stop", "{}"),
        ]
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", None)
    assert up.requests[0].json()["tools"][0]["function"]["name"] == "look"


def test_unknown_members_are_relayed_both_ways() -> None:
    odd = only(json.loads(chunks(["x"], {})[1]) | {"odd": {"a": [1]}, "choices": [ODD_CHOICE]})
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Upstream(odd)) as up:
        with served(openai_api_base=f"{up.url}/v1") as url, client(url) as sdk:
            chunk, *_ = sdk.chat.completions.create(**ASKED, stream=True, extra_body={"top_k": 5})
    assert up.requests[0].json()["top_k"] == 5
    assert chunk.model_extra == {"odd": {"a": [1]}}
    assert dumps(chunk.choices[0].delta.model_extra) == '{"reasoning_content": "hm"}'


ODD_CHOICE = {
    "index": 0,
    "delta": {"content": "x", "reasoning_content": "hm"},
    "finish_reason": "stop",
}


# ---- async, and Azure


@pytest.mark.anyio
async def test_the_async_client_creates_streams_and_lists(mock: str) -> None:
    async with async_client(mock) as sdk:
        completion = await sdk.chat.completions.create(**ASKED)
        assert completion.choices[0].message.content == REPLY
        assert completion._request_id is not None
        stream = await sdk.chat.completions.create(
            **ASKED, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert text_of(chunks) == REPLY
        assert chunks[-1].usage == completion.usage
        raw = await sdk.chat.completions.with_raw_response.create(**ASKED)
        assert raw.request_id == raw.headers["x-request-id"] != completion._request_id
        assert [model.id async for model in sdk.models.list()] == ["mock-gpt-model"]
        assert (await sdk.models.retrieve("any-model")).id == "any-model"
        with pytest.raises(openai.BadRequestError):
            await sdk.chat.completions.create(**ASKED, n=0)


@pytest.mark.anyio
async def test_the_async_client_raises_for_truncated_and_failed_streams() -> None:
    async with Upstream(FAULTS["reset_mid"]) as up:
        with served(openai_api_base=f"{up.url}/v1") as url:
            async with async_client(url) as sdk:
                stream = await sdk.chat.completions.create(**ASKED, stream=True)
                with pytest.raises(openai.APIError, match=r"failed|broke off"):
                    async for _ in stream:
                        pass
                up.handler = FAULTS["html_200"]
                with pytest.raises(openai.InternalServerError):
                    await sdk.chat.completions.create(**ASKED)


def azure(url: str, **options: Any) -> openai.AzureOpenAI:
    common: Any = {"azure_endpoint": url, "api_version": "2024-10-21", "max_retries": 0} | options
    return openai.AzureOpenAI(**common, http_client=httpx2.Client(trust_env=False, verify=False))


def test_azure_clients_are_served_on_their_path_with_their_header() -> None:
    key = "0123456789abcdef0123456789abcdef"
    with served(api_keys=(key,)) as url:
        with azure(url, api_key=key) as sdk:
            completion = sdk.chat.completions.create(**ASKED)
            assert (completion.model, completion.choices[0].message.content) == ("gpt-4o", REPLY)
            assert text_of(sdk.chat.completions.create(**ASKED, stream=True)) == REPLY
        with azure(url, api_key=key, azure_deployment="my-model") as sdk:
            nameless: Any = {"model": None, "messages": MESSAGES}
            assert sdk.chat.completions.create(**nameless).model == "my-model"
        with azure(url, api_key="f" * 32) as sdk, pytest.raises(openai.AuthenticationError):
            sdk.chat.completions.create(**ASKED)
        with azure(url, azure_ad_token=key) as sdk:
            assert sdk.chat.completions.create(**ASKED).choices[0].message.content == REPLY
