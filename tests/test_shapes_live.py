"""Every shape through the whole app, over real sockets; then several backends at once."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from serving import ASKED, ROOT, served
from shape_servers import WIRES, ShapeServer, shape_server
from upstreams import closed_port

from rewrap.config.backends_file import read_backends_file
from rewrap.config.settings import Settings
from rewrap.main import create_app

STREAMED = [name for name, wire in WIRES.items() if wire.stream]
CLOSES = (
    "kserve",
    "triton",
    "promptflow",
    "rasa",
    "langserve",
)  # their streams end with the connection
SILENT = ("rasa", "botpress")  # their failures have no message
MESSAGE = "it broke"  # of an upstream's errors
USAGE = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def through(
    name: str, **settings: Any
) -> AsyncIterator[tuple[ShapeServer, httpx.AsyncClient]]:
    """A server with a shape, and a client of the app in front of it."""
    async with shape_server(name) as up:
        with served(chat_url=up.url + up.wire.whole, chat_shape=name, **settings) as url:
            async with httpx.AsyncClient(
                base_url=url, trust_env=False, verify=False, timeout=10
            ) as client:
                yield up, client


async def ask(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=ASKED | more)


def events(body: str) -> list[Any]:
    """The data of each event, parsed unless it is [DONE]."""
    assert body.endswith("\n\n")
    data = [event.removeprefix("data: ") for event in body[:-2].split("\n\n")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def said(chunks: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks
        for choice in chunk.get("choices", ())
    )


# Each shape


@pytest.mark.anyio
@pytest.mark.parametrize("name", WIRES)
async def test_a_whole_answer_becomes_a_completion(name: str) -> None:
    async with through(name) as (up, client):
        answer = await ask(client)
    assert answer.status_code == 200
    completion = answer.json()
    assert (completion["object"], completion["model"]) == ("chat.completion", ASKED["model"])
    assert completion["choices"][0]["message"]["content"] == up.wire.text
    assert completion["choices"][0]["finish_reason"] == (up.wire.finish or "stop")
    if up.wire.usage and name != "tgi":  # its whole answers do not count the prompt
        assert {key: completion["usage"][key] for key in USAGE} == USAGE
    assert completion["usage"]["total_tokens"] > 0
    assert "x-dropped-params" not in answer.headers


@pytest.mark.anyio
@pytest.mark.parametrize("name", STREAMED)
async def test_the_first_piece_arrives_while_the_upstream_is_open(name: str) -> None:
    async with through(name) as (up, client):
        up.gate.clear()
        asked = ASKED | {"stream": True, "stream_options": {"include_usage": True}}
        async with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            assert answer.status_code == 200
            body = ""
            async for text in answer.aiter_text():
                body += text
                if "Hello" in body and not up.gate.is_set():
                    assert "world" not in body
                    up.gate.set()
    *chunks, counted, done = events(body)
    assert done == "[DONE]"
    assert said(chunks) == up.wire.text
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] == (up.wire.finish or "stop")
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (
        len(chunks) - 1
    )
    if up.wire.usage:
        assert {key: counted["usage"][key] for key in USAGE} == USAGE


@pytest.mark.anyio
@pytest.mark.parametrize("name", [name for name in WIRES if name not in STREAMED])
async def test_a_product_without_streams_is_streamed_word_by_word(name: str) -> None:
    async with through(name) as (_, client):
        *chunks, done = events((await ask(client, stream=True)).text)
    assert done == "[DONE]"
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == [
        "",
        "Hello ",
        "world!",
        None,
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", WIRES)
async def test_an_http_error_keeps_its_message(name: str, stream: bool) -> None:
    async with through(name) as (up, client):
        up.mode = 422  # type: ignore[assignment]
        refused = await ask(client, stream=stream)
        up.mode = 500  # type: ignore[assignment]
        failed = await ask(client, stream=stream)
    assert (refused.status_code, refused.json()["error"]["message"]) == (422, MESSAGE)
    assert (failed.status_code, failed.json()["error"]["message"]) == (502, MESSAGE)


@pytest.mark.anyio
@pytest.mark.parametrize("name", [name for name, wire in WIRES.items() if wire.failed is not None])
async def test_an_error_with_http_200_has_an_error_status(name: str) -> None:
    async with through(name) as (up, client):
        up.mode, up.streaming = "error", False
        answer = await ask(client)
    overloaded = up.wire.error_status == 529
    assert answer.status_code == (503 if overloaded else 502)
    assert answer.json()["error"]["code"] == ("unavailable" if overloaded else "bad_gateway")
    assert (MESSAGE in answer.text) == (name not in SILENT)


@pytest.mark.anyio
@pytest.mark.parametrize("name", [name for name in STREAMED if WIRES[name].broken])
async def test_an_error_after_the_first_piece_is_an_event(name: str) -> None:
    async with through(name) as (up, client):
        up.mode = "error"
        answer = await ask(client, stream=True)
    *chunks, last = events(answer.text)
    assert answer.status_code == 200
    assert said(chunks) == "Hello"
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert "[DONE]" not in answer.text


@pytest.mark.anyio
@pytest.mark.parametrize("name", [name for name in STREAMED if WIRES[name].broken])
async def test_an_error_before_the_first_piece_has_its_status(name: str) -> None:
    async with through(name) as (up, client):
        up.wire = replace(up.wire, stream=up.wire.broken, first=len(up.wire.broken) - 1)
        answer = await ask(client, stream=True)
    wanted = {400: 400, 503: 503, 529: 503}.get(up.wire.error_status or 0, 502)
    assert (answer.status_code, "error" in answer.json()) == (wanted, True)


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["cut", "short"])
@pytest.mark.parametrize("name", STREAMED)
async def test_a_broken_stream_never_looks_complete(name: str, mode: str) -> None:
    async with through(name) as (up, client):
        up.mode = mode
        answer = await ask(client, stream=True)
    *chunks, last = events(answer.text)
    if mode == "short" and name in CLOSES:
        assert (said(chunks), last) == ("Hello", "[DONE]")
    else:
        assert last["error"]["code"] == "bad_gateway"
        assert said(chunks) == "Hello"
        assert "[DONE]" not in answer.text


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name", ["ollama", "anthropic", "openai", "cohere", "dify", "flowise", "langflow", "llama.cpp"]
)
async def test_the_last_event_ends_a_stream_whose_connection_stays_open(name: str) -> None:
    async with through(name) as (up, client):
        up.gate.clear()
        up.wire = replace(up.wire, stream=[*up.wire.stream, b"\n\n"], first=len(up.wire.stream) - 1)
        *chunks, last = events((await ask(client, stream=True)).text)
        up.gate.set()
    assert (said(chunks), last) == ("Hello world!", "[DONE]")


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["ollama", "dify"])
async def test_ask_answers_through_a_shape(name: str) -> None:
    async with through(name) as (_, client):
        answer = await client.post("/ask", json={"messages": ASKED["messages"]})
    assert (answer.status_code, answer.text) == (200, "Hello world!")


@pytest.mark.anyio
@pytest.mark.parametrize("name", [name for name in STREAMED if not WIRES[name].stream_path])
async def test_a_whole_answer_to_a_stream_request_is_streamed(name: str) -> None:
    async with through(name) as (up, client):
        up.wire = replace(up.wire, stream=[])
        answer = await ask(client, stream=True)
    assert answer.status_code == 200, answer.text
    assert said(events(answer.text)[:-1]) == up.wire.text
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.anyio
async def test_a_finish_reason_in_every_event_appears_once() -> None:
    rows = [
        {"candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": "STOP"}]}
        for text in "abc"
    ]
    async with through("gemini") as (up, client):
        up.wire = replace(
            up.wire, stream=[b"data: %b\n\n" % json.dumps(row).encode() for row in rows]
        )
        chunks = events((await ask(client, stream=True)).text)[:-1]
    assert said(chunks) == "abc"
    assert [choice["finish_reason"] for c in chunks for choice in c["choices"]] == [None] * 4 + [
        "stop"
    ]


@pytest.mark.anyio
async def test_reasoning_has_both_names() -> None:
    async with through("anthropic") as (_, client):
        whole = (await ask(client)).json()["choices"][0]["message"]
        *chunks, _ = events((await ask(client, stream=True)).text)
    assert (whole["reasoning_content"], whole["reasoning"]) == ("hm", "hm")
    for name in ("reasoning_content", "reasoning"):
        assert "".join(c["choices"][0]["delta"].get(name, "") for c in chunks) == "hm"


@pytest.mark.anyio
async def test_the_configured_key_is_sent_and_the_clients_key_is_not() -> None:
    for settings in ({"chat_key": "k-1"}, {}):
        async with through("anthropic", **settings) as (up, client):
            client.headers["authorization"] = "Bearer sk-of-the-client"
            assert (await ask(client)).status_code == 200
        _, headers, _ = up.requests[0]
        assert (headers.get("x-api-key"), headers.get("authorization")) == (
            settings.get("chat_key"),
            None,
        )


@pytest.mark.anyio
async def test_a_model_that_cannot_stand_in_the_url_is_a_client_error() -> None:
    async with shape_server("gemini") as up:
        with served(chat_url=up.url, chat_shape="gemini") as url:
            async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as client:
                bad, good = (
                    await ask(client, model="../admin"),
                    await ask(client, model="gemini-pro"),
                )
    assert (bad.status_code, good.status_code) == (400, 200)
    assert [target for target, _, _ in up.requests] == ["/v1beta/models/gemini-pro:generateContent"]


def test_an_incomplete_url_stops_the_start() -> None:
    with pytest.raises(
        ValueError,
        match=r"^CHAT_URL: flowise: the URL must be whole, with its own flow: /api/v1/prediction/",
    ):
        create_app(Settings(chat_url="http://127.0.0.1:1", chat_shape="flowise"))


@pytest.mark.parametrize("name", ["ollamma", "OpenAI"])
def test_an_unknown_shape_stops_the_start(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"^CHAT_SHAPE: no shape is called '{name}'; known are: anthropic, "
    ):
        create_app(Settings(chat_url="http://127.0.0.1:1", chat_shape=name))


# The openai SDK through shapes


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(params=["ollama", "anthropic", "dify"])
def shaped(
    request: pytest.FixtureRequest, portal: BlockingPortal
) -> Iterator[tuple[ShapeServer, openai.OpenAI]]:
    with portal.wrap_async_context_manager(shape_server(request.param)) as up:
        with (
            served(chat_url=up.url, chat_shape=request.param, chat_key="sk-of-the-server") as url,
            sdk(url) as client,
        ):
            yield up, client


def sdk(url: str) -> openai.OpenAI:
    http_client = httpx2.Client(trust_env=False, verify=False)
    options: dict[str, Any] = {"api_key": "sk-of-the-client", "max_retries": 0, "timeout": 10.0}
    return openai.OpenAI(base_url=f"{url}/v1", http_client=http_client, **options)


def create(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**ASKED | more)


def test_the_sdk_gets_a_completion_with_usage(shaped: tuple[ShapeServer, openai.OpenAI]) -> None:
    completion = create(shaped[1])
    assert completion.choices[0].message.content == "Hello world!"
    assert {key: getattr(completion.usage, key) for key in USAGE} == USAGE


def test_the_sdk_streams_and_gets_usage(shaped: tuple[ShapeServer, openai.OpenAI]) -> None:
    *chunks, last = create(shaped[1], stream=True, stream_options={"include_usage": True})
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello world!"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert {key: getattr(last.usage, key) for key in USAGE} == USAGE


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "kind", "seen"),
    [
        (400, openai.BadRequestError, 400),
        (401, openai.InternalServerError, 502),  # the key of the server is wrong
        (403, openai.PermissionDeniedError, 403),
        (404, openai.NotFoundError, 404),
        (422, openai.UnprocessableEntityError, 422),
        (429, openai.RateLimitError, 429),
        (500, openai.InternalServerError, 502),
        (503, openai.InternalServerError, 503),
        (529, openai.InternalServerError, 503),
    ],
)
def test_the_sdk_raises_the_error_of_the_upstreams_status(
    status: int,
    kind: type[openai.APIStatusError],
    seen: int,
    stream: bool,
    shaped: tuple[ShapeServer, openai.OpenAI],
) -> None:
    up, client = shaped
    up.mode = status  # type: ignore[assignment]
    with pytest.raises(kind) as raised:
        create(client, stream=stream)
    assert type(raised.value) is kind
    assert raised.value.status_code == seen
    assert (MESSAGE in str(raised.value)) == (status != 401)
    headers = raised.value.response.headers
    assert headers.get("retry-after") == ("7" if status == 429 else None)
    assert headers.get("x-should-retry") == ("false" if status == 401 else None)


@pytest.mark.parametrize("shaped", ["ollama", "anthropic"], indirect=True)
def test_the_sdk_raises_on_an_error_with_http_200(
    shaped: tuple[ShapeServer, openai.OpenAI],
) -> None:
    up, client = shaped
    up.mode = "error"
    with pytest.raises(openai.InternalServerError) as raised:
        create(client)
    assert raised.value.status_code == (503 if up.wire.error_status == 529 else 502)


def test_the_sdk_raises_in_mid_stream(shaped: tuple[ShapeServer, openai.OpenAI]) -> None:
    up, client = shaped
    up.mode = "error"
    got: list[str] = []
    with pytest.raises(openai.APIError) as raised:
        got.extend(chunk.choices[0].delta.content or "" for chunk in create(client, stream=True))
    assert "".join(got) == "Hello"
    assert not isinstance(raised.value, openai.APIStatusError), "the status was sent before"


@pytest.mark.parametrize("shaped", ["dify"], indirect=True)
def test_an_error_in_the_first_event_is_an_http_error(
    shaped: tuple[ShapeServer, openai.OpenAI],
) -> None:
    up, client = shaped
    up.wire = replace(up.wire, stream=up.wire.broken, first=0)
    with pytest.raises(openai.BadRequestError, match=MESSAGE):
        create(client, stream=True)


@pytest.mark.parametrize("stream", [False, True])
def test_dropped_parameters_are_in_a_header(
    stream: bool, shaped: tuple[ShapeServer, openai.OpenAI]
) -> None:
    up, client = shaped
    asked: Any = ASKED | {"logit_bias": {"1": 1}, "seed": 7, "user": "bob", "stream": stream}
    raw = client.chat.completions.with_raw_response.create(**asked)
    wanted = {
        "/api/chat": "logit_bias",
        "/v1/messages": "logit_bias, seed",
        "/v1/chat-messages": "logit_bias, seed",
    }
    assert raw.headers["x-dropped-params"] == wanted[up.wire.path]
    sent = up.requests[-1][2]
    assert "logit_bias" not in json.dumps(sent)
    assert ("seed" in json.dumps(sent)) == (up.wire.path == "/api/chat")


@pytest.mark.anyio
async def test_names_of_dropped_parameters_cannot_break_the_headers() -> None:
    more = {"a\r\nx-evil: 1": 1, "ü\u2028": 2} | {
        f"member_{number}": number for number in range(5000)
    }
    async with through("dify") as (_, client):
        answer = await ask(client, **more)
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    assert answer.headers["x-dropped-params"].startswith("a??x-evil: 1, ??, member_0, ")
    assert len(answer.headers["x-dropped-params"]) <= 1000


# Several backends


EXAMPLE = ROOT / "examples" / "backends.toml"


@contextmanager
def several(
    portal: BlockingPortal, text: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **cloud: Any
) -> Iterator[tuple[ShapeServer, ShapeServer, str]]:
    """The example file with local servers: the cloud's, the bot's, and the URL of the app."""
    monkeypatch.setenv("CLOUD_API_KEY", "sk-cloud-1234")
    monkeypatch.setenv("DIFY_KEY", "app-dify-1234")
    with portal.wrap_async_context_manager(shape_server("openai")) as up:
        with portal.wrap_async_context_manager(shape_server("dify")) as bot:
            up.wire = replace(up.wire, **cloud)
            text = text.replace("https://api.example.com", up.url).replace(
                "https://dify.example.com", bot.url
            )
            (folder / "backends.toml").write_text(text)
            with served(config=str(folder / "backends.toml")) as url:
                yield up, bot, url


@pytest.fixture
def example(
    portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[ShapeServer, ShapeServer, openai.OpenAI]]:
    with (
        several(portal, EXAMPLE.read_text(), monkeypatch, tmp_path) as (up, bot, url),
        sdk(url) as client,
    ):
        yield up, bot, client


Example = tuple[ShapeServer, ShapeServer, openai.OpenAI]


def test_the_name_of_the_model_picks_the_backend(example: Example) -> None:
    up, bot, client = example
    for model, counts in (
        ("gpt-4o", (1, 0)),
        ("gpt-4o-mini", (2, 0)),
        ("bot", (2, 1)),
        ("gpt-4", (2, 1)),
    ):
        completion = create(client, model=model)
        assert (len(up.requests), len(bot.requests)) == counts, model
        assert completion.model in (model, None)  # None: that upstream gives no name
    assert completion.choices[0].message.content == "This is a mock reply to: Hello"


def test_each_backend_gets_its_own_key_and_model_name(example: Example) -> None:
    up, bot, client = example
    create(client, model="gpt-4o")
    create(client, model="bot")
    assert up.requests[0][0] == "/v1/chat/completions"
    assert up.requests[0][1]["authorization"] == "Bearer sk-cloud-1234"
    assert up.requests[0][2]["model"] == "small-2026"
    assert bot.requests[0][1]["authorization"] == "Bearer app-dify-1234"


@pytest.mark.parametrize("stream", [False, True])
def test_parameters_and_roles_are_renamed_and_dropped(stream: bool, example: Example) -> None:
    up, _, client = example
    messages: Any = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "hi"},
    ]
    more: Any = {"max_tokens": 5, "logit_bias": {"1": 1}, "temperature": 0.5, "stream": stream}
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-4o", messages=messages, **more
    )
    body = up.requests[0][2]
    assert body["messages"] == [{"role": "system", "content": "Be kind."}, messages[1]]
    assert (body["max_completion_tokens"], body["temperature"]) == (5, 0.5)
    assert not {"max_tokens", "logit_bias"} & body.keys()
    assert raw.headers["x-dropped-params"] == "logit_bias"


def test_a_default_replaces_an_absent_parameter(
    portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = EXAMPLE.read_text().replace(
        "params = { ", "params = { defaults = { temperature = 0.2, seed = 7 }, "
    )
    with several(portal, text, monkeypatch, tmp_path) as (up, _, url), sdk(url) as client:
        create(client, model="gpt-4o", temperature=1, seed=None)
    assert (up.requests[0][2]["temperature"], up.requests[0][2]["seed"]) == (1, 7)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_a_fallback_answers_for_a_backend_that_fails(
    status: int, stream: bool, example: Example
) -> None:
    up, bot, client = example
    up.mode = status  # type: ignore[assignment]
    answer = create(client, model="gpt-4o", stream=stream)
    texts = (
        [c.choices[0].delta.content or "" for c in answer]
        if stream
        else [answer.choices[0].message.content]
    )
    assert "".join(texts) == "Hello world!"
    assert (len(up.requests), len(bot.requests)) == (1, 1)


def test_a_fallback_answers_for_a_backend_that_cannot_be_reached(
    portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = EXAMPLE.read_text().replace(
        "https://api.example.com", f"http://127.0.0.1:{closed_port()}"
    )
    with several(portal, text, monkeypatch, tmp_path) as (_, bot, url), sdk(url) as client:
        assert create(client, model="gpt-4o").choices[0].message.content == "Hello world!"
        assert len(bot.requests) == 1
        bot.mode = 429  # type: ignore[assignment]
        with pytest.raises(openai.RateLimitError) as raised:
            create(client, model="gpt-4o")
    assert raised.value.response.headers["retry-after"] == "7", (
        "the failure of the last backend is passed on"
    )


@pytest.mark.parametrize("status", [401, 403])
def test_a_rejected_key_of_the_client_is_a_client_error(
    status: int, portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = EXAMPLE.read_text().replace('key_env = "CLOUD_API_KEY"\n', "")
    with several(portal, text, monkeypatch, tmp_path) as (up, bot, url), sdk(url) as client:
        up.mode = status  # type: ignore[assignment]
        with pytest.raises(openai.APIStatusError, match=MESSAGE) as raised:
            create(client, model="gpt-4o")
    assert (raised.value.status_code, bot.requests) == (status, [])
    assert up.requests[0][1]["authorization"] == "Bearer sk-of-the-client"


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_client_error_has_no_fallback(status: int, example: Example) -> None:
    up, bot, client = example
    up.mode = status  # type: ignore[assignment]
    with pytest.raises(openai.APIStatusError) as raised:
        create(client, model="gpt-4o")
    assert (raised.value.status_code, bot.requests) == (status, [])


def test_a_failure_after_the_first_piece_has_no_fallback(example: Example) -> None:
    up, bot, client = example
    up.mode = "error"
    with pytest.raises(openai.APIError):
        list(create(client, model="gpt-4o", stream=True))
    assert bot.requests == []


def test_all_models_are_listed(example: Example) -> None:
    _, _, client = example
    rows = {model.id: model.owned_by for model in client.models.list()}
    assert rows == {"gpt-4o": "cloud", "bot": "bot", "mock-gpt-model": "rewrap"}
    assert client.models.retrieve("bot").id == "bot"
    assert client.models.retrieve("anything").id == "anything"


def test_a_model_without_a_backend_is_404(
    portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = EXAMPLE.read_text().replace('models = ["*"]', 'models = ["mock", "mock-?"]')
    with several(portal, text, monkeypatch, tmp_path) as (_, _, url), sdk(url) as client:
        assert create(client, model="mock-1").choices
        with pytest.raises(
            openai.NotFoundError, match="The model `mock-10` does not exist"
        ) as raised:
            create(client, model="mock-10")
    assert raised.value.code == "model_not_found"


def test_an_exact_name_wins_over_a_pattern_and_a_longer_pattern_over_a_shorter(
    portal: BlockingPortal, tmp_path: Path
) -> None:
    rows = {"any": ["*"], "long": ["gpt-4o-*"], "short": ["gpt-*"], "exact": ["gpt-4o-mini"]}
    tables = [
        f'[[backend]]\nname = "{name}"\nkind = "mock"\nmodels = {json.dumps(m)}'
        for name, m in rows.items()
    ]
    (tmp_path / "c.toml").write_text("\n".join(tables))
    backend: Any = create_app(Settings(config=str(tmp_path / "c.toml"))).gateway.backend
    wanted = {"gpt-4o-mini": "exact", "gpt-4o-max": "long", "gpt-5": "short", "x": "any"}
    assert {model: backend.pick(model).name for model in wanted} == wanted


def test_a_custom_mapping_is_a_backend(
    portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mapping = 'mapping = { request = { query = "{prompt}", inputs = {}, user = "me", response_mode = "blocking" }, '
    text = EXAMPLE.read_text().replace('shape = "dify"', mapping + 'reply = "answer" }')
    with several(portal, text, monkeypatch, tmp_path) as (_, bot, url), sdk(url) as client:
        assert create(client, model="bot").choices[0].message.content == "Hello world!"
    assert bot.requests[0][2]["query"] == "Hello"


MOCK = '[[backend]]\nname = "a"\nkind = "mock"\n'
CHAT = '[[backend]]\nname = "a"\nurl = "http://x"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[x", r"c\.toml is not TOML: "),
        ("", r"c\.toml must have \[\[backend\]\] tables"),
        ("backend = 5", r"must have \[\[backend\]\] tables"),
        (MOCK + "[other]\n", r"must have \[\[backend\]\] tables, and nothing beside"),
        (MOCK + "colour = 1", r"backend 1: colour is not known"),
        ('[[backend]]\nkind = "mock"', r"backend 1: it has no name"),
        (
            '[[backend]]\nname = "a"\nkind = "magic"',
            r"backend 1: kind must be one of openai, chat, mock",
        ),
        ('[[backend]]\nname = "a"', r"backend 1: url must begin with http"),
        (CHAT.replace("http://x", "http://"), r"backend 1: url must .*name a host"),
        (CHAT + "models = 5", r"backend 1: models must be a list"),
        (CHAT + "models = [5]", r"backend 1: models must hold strings"),
        (CHAT + "headers = { a = 1 }", r"backend 1: headers must hold strings"),
        (CHAT + 'headers = { "a b" = "1" }', r"backend 1: headers: 'a b'"),
        (CHAT + 'headers = { a = "1\\n2" }', r"backend 1: headers: 'a'"),
        (CHAT + 'headers = { a = "世" }', r"backend 1: headers: 'a'"),
        (
            CHAT + "stall_timeout_seconds = -1",
            r"backend 1: stall_timeout_seconds must be from 0 to 1e9",
        ),
        (CHAT + 'stall_timeout_seconds = "5"', r"backend 1: stall_timeout_seconds must be a float"),
        (
            CHAT + "stall_timeout_seconds = true",
            r"backend 1: stall_timeout_seconds must be a float",
        ),
        (
            CHAT + 'key_env = "NO_SUCH_KEY"',
            r"backend 1: key_env: the variable NO_SUCH_KEY is not set",
        ),
        (CHAT + 'key = "sk-in-the-file"', r"backend 1: key is not known"),
        (CHAT + 'shape = "dify"\nmapping = { reply = "x" }', r"backend 1: shape and mapping"),
        (CHAT + 'shape = "defy"', r"backend 'a': shape: no shape is called 'defy'"),
        (CHAT + 'shape = "flowise"', r"backend 'a': flowise: the URL must be whole"),
        (CHAT + 'mapping = { reply = "a[" }', r"backend 'a': mapping\.reply: 'a\['"),
        (
            CHAT + 'mapping = { request = { q = "{promt}" }, reply = "." }',
            r"mapping\.request\.q: .*\{promt\}",
        ),
        (
            CHAT + 'mapping = { request = { q = "{prompt}" } }',
            r"backend 'a': mapping\.reply: where is the text",
        ),
        (CHAT + "mapping = {}", r"backend 1: mapping is empty"),
        (
            CHAT + 'mapping = { reply = ".", path = "/\\u0007" }',
            r"backend 'a': Invalid non-printable",
        ),
        (
            CHAT + 'mapping = { reply = ".", path = "/{bot}" }',
            r"backend 'a': mapping: the URL must be whole",
        ),
        (
            CHAT + 'mapping = { reply = ".", stream = { path = "/{bot}" } }',
            r"backend 'a': mapping: the URL must be",
        ),
        (
            CHAT + 'mapping = { reply = ".", stream = { path = "/\\u0007" } }',
            r"backend 'a': Invalid non-printable",
        ),
        (
            CHAT + 'mapping = { reply = ".", stream = { path = "/{" } }',
            r"backend 'a': mapping: path: a single '\{'",
        ),
        (
            CHAT + 'mapping = { reply = ".", headers = "x" }',
            r"backend 'a': mapping\.headers: a table of strings",
        ),
        (MOCK + 'shape = "dify"', r"backend 1: shape is for the kind chat alone"),
        (CHAT + 'kind = "openai"\nshape = "dify"', r"backend 1: shape is for the kind chat alone"),
        (
            CHAT + 'kind = "openai"\nmapping = { reply = "." }',
            r"backend 1: mapping is for the kind chat alone",
        ),
        (CHAT + "words_per_second = 5", r"backend 1: words_per_second is for the kind mock alone"),
        (CHAT.replace("http://x", "http://[::1/x"), r"backend 1: url must "),
        (CHAT.replace("http://x", "http://h/a\\nb"), r"backend 1: url must "),
        (
            CHAT.replace("http://x", "http://h:99999"),
            r"backend 1: url must .* port from 1 to 65535",
        ),
        (CHAT.replace("http://x", "http://h:0"), r"backend 1: url must .* port from 1 to 65535"),
        (
            CHAT + "stall_timeout_seconds = nan",
            r"backend 1: stall_timeout_seconds must be from 0 to 1e9",
        ),
        (
            CHAT + "stall_timeout_seconds = inf",
            r"backend 1: stall_timeout_seconds must be from 0 to 1e9",
        ),
        (
            CHAT + 'key_env = "BAD_KEY"',
            r"backend 1: key_env: the variable BAD_KEY holds no key that can be sent",
        ),
        (
            CHAT + "params = { rename = { model = 'm' } }",
            r"backend 1: params: model cannot be renamed",
        ),
        (
            CHAT + "params = { rename = { x = 'messages' } }",
            r"backend 1: params: messages cannot be renamed",
        ),
        (
            CHAT + "params = { drop = ['seed', 'messages'] }",
            r"backend 1: params: messages cannot be",
        ),
        (CHAT + "params = { defaults = { model = 'm' } }", r"backend 1: params: model cannot be"),
        (
            CHAT + "params = { defaults = { seed = 99999999999999999999 } }",
            r"params: defaults: Integer exceeds 64-bit",
        ),
        ("x = " + "9" * 5000, r"c\.toml is not TOML: "),
        ("x = " + "[" * 5000, r"c\.toml is not TOML: "),
        (
            CHAT + "params = { remane = { a = 'b' } }",
            r"backend 1: params may have rename, defaults, drop, roles",
        ),
        (
            CHAT + "params = { rename = 'x' }",
            r"backend 1: params: rename must be a dict of strings",
        ),
        (CHAT + "params = { drop = 'seed' }", r"backend 1: params: drop must be a list of strings"),
        (CHAT + "params = { drop = [1] }", r"backend 1: params: drop"),
        (CHAT + "params = { roles = { a = 1 } }", r"backend 1: params: roles"),
        (CHAT + "params = { defaults = 5 }", r"backend 1: params: defaults"),
        (CHAT + "params = { defaults = { x = 1 }, drop = 5 }", r"backend 1: params: drop"),
        (MOCK + MOCK, r"two backends have the name 'a'"),
        (MOCK + "fallbacks = ['b']", r"backend 'a': fallbacks: there is no other backend 'b'"),
        (MOCK + "fallbacks = ['a']", r"backend 'a': fallbacks: there is no other backend 'a'"),
    ],
)
def test_a_wrong_file_stops_the_start_with_one_line(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_KEY", "sk-in-the-file\nx")
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        create_app(Settings(config=str(tmp_path / "c.toml")))
    assert str(raised.value).startswith(f"CONFIG: {tmp_path}")
    assert "\n" not in str(raised.value)
    assert "sk-in-the-file" not in str(raised.value)


def test_a_file_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(MOCK, encoding="utf-8-sig")
    assert [table.name for table in read_backends_file(str(tmp_path / "c.toml"), {})] == ["a"]


@pytest.mark.parametrize("name", ["none.toml", "", "latin.toml"])
def test_an_unreadable_file_is_reported(name: str, tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'[[backend]]\nname = "\xe9"')
    with pytest.raises(
        ValueError, match=r"^CONFIG: .*cannot be read: (No such file|Is a directory|not UTF-8)"
    ):
        read_backends_file(str(tmp_path / name), {})


def test_a_key_is_not_in_the_repr_of_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"CLOUD_API_KEY": "sk-cloud-1234", "DIFY_KEY": "app-dify-1234"}
    assert "1234" not in repr(read_backends_file(str(EXAMPLE), keys))
