"""The specification of rewrap, read top to bottom: the app in memory, upstreams mocked by respx, seconds in all.

What needs real sockets (the OpenAI SDK, chat URLs on the wire, clients that leave) lies in tests/.
"""

import ast
import asyncio
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
from conftest import no_errors  # noqa: F401  # for each test here, too

from rewrap.backends import ChatURL
from rewrap.config.settings import Settings, known_variables, variables
from rewrap.main import Rewrap, create_app
from rewrap.server.keys import sign
from rewrap.types import words

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parent
CHAT = "/v1/chat/completions"
CHAT_URL = "http://bot.internal:9000/secret-path/chat"
API_BASE = "http://llm.internal:8080/v1"
ASKED = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Greet the world, please."}]}
HARD = 'Grüße,  "世界"! 👋🏽\r\n\n\t one\u2028two\u0085three </script> [DONE]\ndata: x '
Answer = (
    httpx.Response
    | Exception
    | Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# How the tests speak to the app, and the app to its upstreams.


def rewrap(upstream: respx.MockRouter | None = None, **settings: Any) -> Rewrap:
    """The app with these settings; any way to an upstream that is not mocked fails."""
    router = upstream or respx.MockRouter()
    return create_app(
        Settings(**({"store_url": "sqlite://"} | settings)),
        transport=httpx.MockTransport(router.async_handler),
    )


def client(app: Rewrap | None = None, **settings: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app or rewrap(**settings), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://proxy")


def mocked(url: str, answer: Answer) -> tuple[respx.MockRouter, respx.Route]:
    router = respx.MockRouter()
    good = isinstance(answer, httpx.Response)
    return router, router.post(url).mock(**{"return_value" if good else "side_effect": answer})


def chat_url(answer: Answer, **settings: Any) -> tuple[httpx.AsyncClient, respx.Route]:
    """A client of the app in front of a chat URL that answers so, and the route with the evidence."""
    router, route = mocked(CHAT_URL, answer)
    return client(rewrap(router, chat_url=CHAT_URL, **settings)), route


def openai(answer: Answer, **settings: Any) -> tuple[httpx.AsyncClient, respx.Route]:
    """The same in front of an OpenAI-compatible upstream."""
    router, route = mocked(f"{API_BASE}/chat/completions", answer)
    return client(rewrap(router, openai_api_base=API_BASE, **settings)), route


def streamed(
    *pieces: bytes | Exception, kind: str = "text/event-stream", pause: float = 0
) -> httpx.Response:
    """An upstream's answer in these pieces; an exception breaks it off there."""

    async def content() -> AsyncIterator[bytes]:
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece
            await asyncio.sleep(pause)

    return httpx.Response(200, headers={"content-type": kind}, content=content())


def data(value: Any) -> bytes:
    return (
        b"data: "
        + (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
        + b"\n\n"
    )


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """A chunk as an OpenAI-compatible upstream sends it."""
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return {
        "id": "chatcmpl-up",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "up",
        "choices": choices,
    }


def openai_object(
    message: dict[str, Any], finish_reason: str = "stop", **more: Any
) -> dict[str, Any]:
    choices = [
        {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish_reason}
    ]
    return {
        "id": "chatcmpl-up",
        "object": "chat.completion",
        "created": 7,
        "model": "up",
        "choices": choices,
    } | more


def envelope(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer: all four members, nothing else."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    return four_members(body["error"])


def four_members(error: dict[str, Any]) -> dict[str, Any]:
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert all(error[name] is None or isinstance(error[name], str) for name in ("param", "code"))
    return error


def every_event(answer: httpx.Response) -> list[str]:
    """The data of each event: one `data:` line each, one blank line after it; comments aside."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.text.endswith("\n\n")
    events = [
        event
        for event in answer.text.removesuffix("\n\n").split("\n\n")
        if not event.startswith(":")
    ]
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [event.removeprefix("data: ") for event in events]


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream that has come to its good end."""
    *events, done = every_event(answer)
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def failure(answer: httpx.Response) -> dict[str, Any]:
    """The error at the end of a stream that had begun, and has no [DONE]."""
    *events, last = every_event(answer)
    assert "[DONE]" not in events
    return four_members(json.loads(last)["error"])


def text(answer: httpx.Response, index: int = 0) -> str:
    """The reply's text, of a completion or of chunks."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        choices = [choice for each in chunks(answer) for choice in each["choices"]]
        return "".join(c["delta"].get("content") or "" for c in choices if c["index"] == index)
    assert answer.status_code == 200, answer.text
    content = answer.json()["choices"][index]["message"]["content"]
    assert isinstance(content, str)
    return content


def deltas(answer: httpx.Response, name: str) -> list[Any]:
    """What the chunks' deltas have under a name."""
    found = [choice["delta"] for each in chunks(answer) for choice in each["choices"]]
    return [delta[name] for delta in found if name in delta]


class Wire:
    """One request to the app, message by message (httpx.ASGITransport gathers them first)."""

    def __init__(self, app: Rewrap, path: str, payload: Any) -> None:
        self.body = json.dumps(payload).encode()
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        names = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
        }
        self.task = asyncio.create_task(app({**names, "headers": []}, self.receive, self.sent.put))

    async def receive(self) -> dict[str, Any]:
        if self.body is None:
            await asyncio.Event().wait()  # the client stays
        body, self.body = self.body, None
        return {"type": "http.request", "body": body}

    async def until(self, said: bytes) -> bytes:
        """What came until the app has said this."""
        got = b""
        async with asyncio.timeout(2):
            while said not in got:
                got += (await self.sent.get()).get("body", b"")
        return got

    async def rest(self) -> list[Any]:
        """The messages that were still to come."""
        async with asyncio.timeout(2):
            await self.task
        return [self.sent.get_nowait() for _ in range(self.sent.qsize())]


# Surfaces.


@pytest.mark.parametrize(
    "path", ["/models", "/v1/models", "//v1/models", "/v1//models", "/v1/v1/models", "/v1/models/"]
)
async def test_models_are_listed_under_every_spelling_of_the_path(path: str) -> None:
    answer = await client().get(f"http://proxy{path}")
    assert answer.status_code == 200
    body = answer.json()
    assert body["object"] == "list"
    (model,) = body["data"]
    assert set(model) == {"id", "object", "created", "owned_by", "permission"}
    assert (model["id"], model["object"], model["permission"]) == ("mock-gpt-model", "model", [])
    assert isinstance(model["created"], int)


async def test_one_model_is_found_by_its_id() -> None:
    found = await client().get("/v1/models/mock-gpt-model")
    assert found.json() == (await client().get("/v1/models")).json()["data"][0]


async def test_a_backend_serves_any_model_name_and_has_a_card_for_it() -> None:
    found = await client().get("/v1/models/any/name")
    assert found.status_code == 200
    assert found.json() == {
        "id": "any/name",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "mock",
        "permission": [],
    }


async def test_a_model_that_no_backend_serves_is_404(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[[backend]]\nname = "a"\nkind = "mock"\nmodels = ["a-*"]')
    unknown = await client(config=str(tmp_path / "c.toml")).get("/v1/models/no/such")
    assert unknown.status_code == 404
    error = envelope(unknown)
    assert error["message"] == "The model `no/such` does not exist or you do not have access to it."
    assert error["code"] == "model_not_found"


async def test_an_upstreams_models_are_asked_for_once_and_kept() -> None:
    router = respx.MockRouter()
    listed = {
        "data": [{"id": "llama", "object": "model", "created": 5, "owned_by": "meta", "extra": 1}]
    }
    route = router.get(f"{API_BASE}/models").respond(json=listed)
    app = rewrap(router, openai_api_base=API_BASE, openai_api_key="sk-server")
    for _ in range(2):
        (model,) = (await client(app).get("/v1/models")).json()["data"]
        assert model == listed["data"][0] | {"permission": []}
    assert route.call_count == 1
    assert route.calls.last.request.headers["authorization"] == "Bearer sk-server"
    assert (await client(app).get("/v1/models/llama")).json()["owned_by"] == "meta"


@pytest.mark.parametrize(
    "answer", [httpx.Response(500), httpx.Response(200, text="<html>"), httpx.ConnectError("")]
)
async def test_an_upstream_that_cannot_list_its_models_has_the_default_one(
    answer: httpx.Response | Exception,
) -> None:
    router = respx.MockRouter()
    good = isinstance(answer, httpx.Response)
    router.get(f"{API_BASE}/models").mock(**{"return_value" if good else "side_effect": answer})
    app = rewrap(router, openai_api_base=API_BASE, openai_model="llama")
    listed = await client(app).get("/v1/models")
    assert [model["id"] for model in listed.json()["data"]] == ["llama"]


@pytest.mark.parametrize("status", [404, 405])
async def test_an_upstream_that_has_no_list_of_models_has_an_empty_one(status: int) -> None:
    router = respx.MockRouter()
    router.get(f"{API_BASE}/models").mock(return_value=httpx.Response(status))
    some = client(rewrap(router, openai_api_base=API_BASE))
    assert (await some.get("/v1/models")).json() == {"object": "list", "data": []}
    assert (await some.get("/v1/models/x")).json()["id"] == "x"


SPELLINGS = ["/v1", "", "//v1", "/v1/", "/v1/v1", "/openai/v1", "/openai", "/"]


@pytest.mark.parametrize("prefix", SPELLINGS)
@pytest.mark.parametrize("ending", ["", "/"])
async def test_chats_are_completed_under_every_spelling_of_the_path(
    prefix: str, ending: str
) -> None:
    answer = await client().post(f"http://proxy{prefix}/chat/completions{ending}", json=ASKED)
    assert "Greet the world, please." in text(answer)


async def test_an_azure_path_names_the_model() -> None:
    path = "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"
    answer = await client().post(path, json=ASKED | {"model": None}, headers={"api-key": "x"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "my-gpt"


async def test_azure_paths_without_a_deployment_are_served() -> None:
    version = "?api-version=2025-04-01-preview"
    answer = await client().post(f"/openai/responses{version}", json={"model": "m", "input": "Hi"})
    assert answer.json()["object"] == "response", answer.text
    assert (await client().get(f"/openai/models{version}")).json()["object"] == "list"


async def test_a_completion_has_openais_form() -> None:
    answer = await client().post(CHAT, json=ASKED)
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert re.fullmatch(r"chatcmpl-\w{10,}", body.pop("id"))
    assert isinstance(body.pop("created"), int)
    usage = body.pop("usage")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0, "audio_tokens": 0}
    assert set(usage["completion_tokens_details"]) == {
        "reasoning_tokens",
        "audio_tokens",
        "accepted_prediction_tokens",
        "rejected_prediction_tokens",
    }
    message = body["choices"][0]["message"]
    assert isinstance(message.pop("content"), str)
    assert message == {"role": "assistant", "refusal": None, "annotations": []}
    assert body == {
        "object": "chat.completion",
        "model": "gpt-4o",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "service_tier": "default",
    }


@pytest.mark.parametrize("prefix", SPELLINGS)
async def test_ask_answers_with_the_text_alone(prefix: str) -> None:
    answer = await client().post(f"http://proxy{prefix}/ask", json={"messages": ASKED["messages"]})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-vercel-ai-data-stream"] == "v1"
    assert answer.text == text(await client().post(CHAT, json=ASKED))


async def test_ask_takes_messages_as_the_ai_sdk_sends_them() -> None:
    parts = [
        {"type": "step-start"},
        {"type": "text", "text": "Greet the world, "},
        {"type": "text", "text": "please."},
    ]
    plain = (await client().post("/ask", json=ASKED)).text
    for message in (
        {"id": "1", "role": "user", "parts": parts},
        {"role": "user", "content": "", "parts": parts},
    ):
        answer = await client().post(
            "/ask", json={"id": "c", "trigger": "submit-message", "messages": [message]}
        )
        assert answer.text == plain


async def test_ask_takes_what_is_no_message_of_the_ai_sdk_for_none_and_names_the_parts_that_do_not_go_along() -> (
    None
):
    parts = [
        {"type": "step-start"},
        {"type": "text", "text": "Greet the world, please."},
        {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AA=="},
        {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AA=="},
        {"type": "x\r\nset-cookie: a=b"},
        {"type": 5},
    ]
    messages = [
        {"role": "data", "content": "x", "data": {"a": 1}},
        {"id": "1", "role": "user", "parts": parts},
    ]
    some, route = chat_url(httpx.Response(200, json={"reply": "Hi"}))
    answer = await some.post("/ask", json={"messages": messages})
    assert answer.text == "Hi"
    assert answer.headers["x-dropped-params"] == "messages.file, messages.x??set-cookie: a=b"
    assert "set-cookie" not in answer.headers
    assert json.loads(route.calls.last.request.content)["messages"] == ASKED["messages"]
    assert (await client().post("/ask", json={"messages": messages[:1]})).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"messages": []}',
        b'{"messages": "x"}',
        b'{"messages": [{"role": "x", "content": ""}]}',
    ],
)
async def test_ask_says_what_is_wrong_in_a_form_of_its_own(body: bytes) -> None:
    answer = await client(invalid_request_status=422).post("/ask", content=body)
    assert answer.status_code == 400
    said = answer.json()
    assert set(said) == {"role", "content", "error", "details"}
    assert (said["role"], said["error"]) == ("assistant", "invalid_request_error")
    assert said["content"]


async def test_ask_survives_what_is_nested_too_deeply() -> None:
    deep = b"[" * 300 + b"]" * 300
    body = b'{"messages": [{"role": "user", "content": "x", "deep": %b}]}' % deep
    assert (await client().post("/ask", content=body)).status_code in (200, 400)


async def test_health_is_told_to_anybody() -> None:
    for path in ("/", "/health"):
        answer = await client(api_keys=("k",)).get(path)
        assert answer.status_code == 200
        assert answer.json()["status"] == "ok"


async def test_info_tells_who_answers_and_the_theme_but_no_secret() -> None:
    router = respx.MockRouter()
    secrets = {"chat_headers": {"Authorization": "Bearer sk-upstream"}, "api_keys": ("sk-client",)}
    answer = await client(rewrap(router, chat_url=CHAT_URL, openai_model="bot-1", **secrets)).get(
        "/info"
    )
    assert answer.status_code == 200
    body = answer.json()
    assert body["name"] == "rewrap"
    assert re.fullmatch(r"\d+\.\d+\.\d+", body["version"])
    assert (body["backends"], body["models"]) == (["chat-url"], ["bot-1"])
    assert body["theme"]["name"] == "Ocean Professional"
    assert (body["theme"]["primary"], body["theme"]["accent"]) == ("#2563EB", "#F59E0B")
    assert not re.search("internal|secret-path|sk-upstream|sk-client", answer.text)


async def test_info_names_each_of_several_backends(tmp_path: Path) -> None:
    tables = [
        f'[[backend]]\nname = "{name}"\nkind = "mock"\nmodels = ["{name}"]\n'
        for name in ("one", "two")
    ]
    (tmp_path / "c.toml").write_text("".join(tables))
    answer = await client(config=str(tmp_path / "c.toml")).get("/info")
    assert answer.json()["backends"] == ["one", "two"]


async def test_docs_say_what_to_use_in_place_of_websockets() -> None:
    answer = await client().get("/docs/websocket")
    assert answer.status_code == 200
    assert "no websocket" in answer.text
    assert "/v1/chat/completions" in answer.text


EVERY_KIND = [
    ("GET", "/", b""),
    ("GET", "/v1/models", b""),
    ("POST", CHAT, json.dumps(ASKED).encode()),
    ("POST", CHAT, json.dumps(ASKED | {"stream": True}).encode()),
    ("POST", "/ask", json.dumps(ASKED).encode()),
    ("POST", CHAT, b"{"),
    ("POST", CHAT, b" " * 3000),
    ("POST", "/v1/models", b""),
    ("GET", "/v1/nothing", b""),
    ("OPTIONS", CHAT, b""),
]


@pytest.mark.parametrize(("method", "path", "body"), EVERY_KIND)
async def test_every_answer_has_a_request_id_of_its_own(
    method: str, path: str, body: bytes
) -> None:
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    some = client(allow_origins=("https://a.example",), max_body_bytes=2000)
    headers = preflight if method == "OPTIONS" else {"x-request-id": "two words"}
    answers = [await some.request(method, path, content=body, headers=headers) for _ in range(2)]
    ids = [answer.headers.get_list("x-request-id") for answer in answers]
    assert all(len(each) == 1 and re.fullmatch(r"req_[0-9a-f]{32}", each[0]) for each in ids)
    assert ids[0] != ids[1]


# The mock.


async def test_the_mock_gives_the_same_answer_for_the_same_request() -> None:
    first, second = [await client().post(CHAT, json=ASKED) for _ in range(2)]
    assert text(first) == text(second)
    assert first.json()["id"] != second.json()["id"]
    other = ASKED | {"messages": [*ASKED["messages"], {"role": "user", "content": "And the moon."}]}
    assert "And the moon." in text(await client().post(CHAT, json=other))


async def test_the_mock_stops_before_a_stop_word() -> None:
    whole = text(await client().post(CHAT, json=ASKED))
    for stop in ("world", ["moon", "world", "please"]):
        answer = await client().post(CHAT, json=ASKED | {"stop": stop})
        assert text(answer) == whole.split("world")[0]
        assert answer.json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_mock_ends_at_max_tokens_and_says_so(name: str, stream: bool) -> None:
    whole = text(await client().post(CHAT, json=ASKED))
    asked = ASKED | {name: 3, "stream": stream, "stream_options": {"include_usage": True}}
    answer = await client().post(CHAT, json=asked)
    assert text(answer) == "".join(words(whole)[:3])
    rows = chunks(answer) if stream else [answer.json()]
    assert [c["finish_reason"] for row in rows for c in row["choices"] if c["finish_reason"]] == [
        "length"
    ]
    assert rows[-1]["usage"]["completion_tokens"] == 3
    roomy = await client().post(CHAT, json=ASKED | {name: 1000})
    assert (text(roomy), roomy.json()["choices"][0]["finish_reason"]) == (whole, "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_mock_gives_n_choices_and_counts_them_all(stream: bool) -> None:
    one = await client().post(CHAT, json=ASKED)
    asked = ASKED | {"n": 3, "stream": stream, "stream_options": {"include_usage": True}}
    three = await client().post(CHAT, json=asked)
    assert [text(three, index) for index in range(3)] == [text(one)] * 3
    row = chunks(three)[-1] if stream else three.json()
    told, once = row["usage"], one.json()["usage"]
    assert told["completion_tokens"] == 3 * once["completion_tokens"]
    assert told["prompt_tokens"] == once["prompt_tokens"]


async def test_ask_sends_on_all_but_what_is_the_pages_own() -> None:
    some, route = chat_url(httpx.Response(200, json={"reply": "Hi"}))
    asked = ASKED | {"reasoning_effort": "high", "top_k": 3, "stream": False}
    of_the_page = {"id": "c", "trigger": "submit-message", "messageId": "m", "data": {"x": 1}}
    answer = await some.post("/ask", json=asked | of_the_page)
    assert answer.headers["x-dropped-params"] == "data"
    sent = json.loads(route.calls.last.request.content)
    assert sent == asked | {"stream": True}


async def test_what_clients_make_up_is_remembered_within_bounds() -> None:
    app = rewrap()
    for number in range(1000):
        assert (
            await client(app).get(f"http://localhost:{number + 1}/v1/models")
        ).status_code == 200
    assert len(app.edge.hosts.known) <= 100
    router = respx.MockRouter()
    router.post(url__regex=".*").respond(
        200, json={"candidates": [{"content": {"parts": [{"text": "Hi"}]}}]}
    )
    app = rewrap(
        router, chat_url="http://up.test/v1beta/models/{model}:generateContent", chat_shape="gemini"
    )
    for number in range(400):
        assert (
            await client(app).post(CHAT, json=ASKED | {"model": f"m-{number}"})
        ).status_code == 200
    assert isinstance(app.gateway.backend, ChatURL)
    assert len(app.gateway.backend.target.kept) <= 256


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/files"])
async def test_an_unknown_api_names_the_supported_ones(path: str) -> None:
    error = envelope(await client().post(path, json={}))
    assert error["message"].startswith(
        f"Invalid URL (POST {path}). This server has chat completions"
    )
    assert (
        envelope(await client().post("/v1/nothing"))["message"] == "Invalid URL (POST /v1/nothing)"
    )


async def test_the_key_of_an_azure_client_goes_to_an_upstream_as_others_do() -> None:
    some, route = openai(httpx.Response(200, json=openai_object({"content": "Hi"})))
    assert (await some.post(CHAT, json=ASKED, headers={"api-key": "sk-azure"})).status_code == 200
    assert route.calls.last.request.headers["authorization"] == "Bearer sk-azure"
    some, route = openai(
        httpx.Response(200, json=openai_object({"content": "Hi"})), api_keys=("sk-azure",)
    )
    assert (await some.post(CHAT, json=ASKED, headers={"api-key": "sk-azure"})).status_code == 200
    assert "authorization" not in route.calls.last.request.headers


async def test_info_asks_nobody_with_a_clients_key() -> None:
    router = respx.MockRouter()
    listed = router.get(f"{API_BASE}/models").respond(json={"data": []})
    answer = await client(rewrap(router, openai_api_base=API_BASE)).get(
        "/info", headers={"authorization": "Bearer sk-1"}
    )
    assert answer.status_code == 200
    assert "authorization" not in listed.calls.last.request.headers


async def test_the_mock_does_not_repeat_a_long_prompt_without_end() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "word " * 2**17}], "n": 128}
    answer = await client(rewrap()).post(CHAT, json=asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


async def test_the_mock_speaks_word_by_word_as_fast_as_it_is_told() -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    wire = Wire(rewrap(mock_words_per_second=100), "/ask", ASKED)
    bodies = [m["body"] for m in await wire.rest() if m.get("body")]
    assert [body.decode() for body in bodies] == words("".join(body.decode() for body in bodies))
    assert 0.8 * len(bodies) / 100 < loop.time() - begun < 1
    assert len(bodies) > 5


async def test_words_joined_are_the_text() -> None:
    for sample in ("", " ", "a", " a  b\n\nc ", HARD, "\u2028", "x" * 10_000):
        assert "".join(words(sample)) == sample


# The stream.


async def test_a_stream_is_exact() -> None:
    answer = await client().post(CHAT, json=ASKED | {"stream": True})
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-length" not in answer.headers
    first, *most, last = rows = chunks(answer)
    (same,) = {
        tuple((name, value) for name, value in row.items() if name != "choices") for row in rows
    }
    frame = dict(same)
    assert re.fullmatch(r"chatcmpl-\w{10,}", frame.pop("id"))
    assert isinstance(frame.pop("created"), int)
    assert frame == {
        "object": "chat.completion.chunk",
        "model": "gpt-4o",
        "service_tier": "default",
    }
    plain = {"index": 0, "logprobs": None, "finish_reason": None}
    assert first["choices"] == [
        plain | {"delta": {"role": "assistant", "content": "", "refusal": None}}
    ]
    reply = text(await client().post(CHAT, json=ASKED))
    assert [row["choices"] for row in most] == [
        [plain | {"delta": {"content": word}}] for word in words(reply)
    ]
    assert last["choices"] == [plain | {"delta": {}, "finish_reason": "stop"}]


async def test_usage_comes_in_a_last_chunk_and_only_when_asked_for() -> None:
    without = chunks(await client().post(CHAT, json=ASKED | {"stream": True, "stream_options": {}}))
    assert not any("usage" in row for row in without)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *most, last = chunks(await client().post(CHAT, json=ASKED | options))
    assert all(row["usage"] is None for row in most)
    assert last["choices"] == []
    assert last["usage"] == (await client().post(CHAT, json=ASKED)).json()["usage"]


async def test_a_stream_of_two_choices_has_a_role_and_a_finish_for_each() -> None:
    options = {"stream": True, "n": 2, "stream_options": {"include_usage": True}}
    *rows, last = chunks(await client().post(CHAT, json=ASKED | options))
    assert last["usage"]
    assert all(len(row["choices"]) == 1 for row in rows)
    for index in range(2):
        own = [row["choices"][0] for row in rows if row["choices"][0]["index"] == index]
        assert [c["delta"].get("role") for c in own] == ["assistant"] + [None] * (len(own) - 1)
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["stop"]
        assert own[-1]["delta"] == {}


async def test_no_stream_is_sent_to_who_does_not_ask_for_one() -> None:
    for asked in (
        {},
        {"stream": False},
        {"stream": None},
        {"stream_options": {"include_usage": True}},
    ):
        answer = await client().post(CHAT, json=ASKED | asked)
        assert answer.json()["object"] == "chat.completion"


# Validation, with OpenAI's messages, params and codes.

ROLES = "Supported values are: 'system', 'assistant', 'user', 'function', 'tool', and 'developer'."
GONE = object()


def said(**message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"} | message]}


def wrong_type(param: str, expected: str, got: str) -> tuple[str, str, str]:
    return (
        f"Invalid type for '{param}': expected {expected}, but got {got} instead.",
        param,
        "invalid_type",
    )


def missing(param: str) -> tuple[str, str, str]:
    return f"Missing required parameter: '{param}'.", param, "missing_required_parameter"


def beyond(param: str, noun: str, bound: str, got: str) -> tuple[str, str, str]:
    above = bound.startswith("<")
    side, code = ("above maximum", "above_max") if above else ("below minimum", "below_min")
    message = (
        f"Invalid '{param}': {noun} {side} value. Expected a value {bound}, but got {got} instead."
    )
    return message, param, f"{noun}_{code}_value"


NO_MODEL = ("you must provide a model parameter", None, None)
EMPTY = "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead."
TOP = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
CONTENT = "one of a string or array of objects"
WRONG: list[tuple[dict[str, Any], tuple[str | None, str | None, str | None]]] = [
    ({"model": GONE}, NO_MODEL),
    ({"model": ""}, NO_MODEL),
    ({"model": None}, NO_MODEL),
    ({"model": 5}, wrong_type("model", "a string", "an integer")),
    ({"model": "x" * 513}, (None, "model", "string_above_max_length")),
    ({"messages": GONE}, missing("messages")),
    ({"messages": None}, missing("messages")),
    ({"messages": []}, (EMPTY, "messages", "empty_array")),
    ({"messages": "Hi"}, wrong_type("messages", "an array of objects", "a string")),
    ({"messages": {}}, wrong_type("messages", "an array of objects", "an object")),
    ({"messages": ["Hi"]}, wrong_type("messages[0]", "an object", "a string")),
    (said(role="X"), (f"Invalid value: 'X'. {ROLES}", "messages[0].role", "invalid_value")),
    ({"messages": [{"content": "Hi"}]}, missing("messages[0].role")),
    (said(role=None), missing("messages[0].role")),
    (said(role=1), wrong_type("messages[0].role", "a string", "an integer")),
    ({"messages": [{"role": "user"}]}, missing("messages[0].content")),
    (said(content=None), wrong_type("messages[0].content", CONTENT, "null")),
    (said(content=5), wrong_type("messages[0].content", CONTENT, "an integer")),
    (said(content={}), wrong_type("messages[0].content", CONTENT, "an object")),
    (said(content=["Hi"]), wrong_type("messages[0].content[0]", "an object", "a string")),
    (said(content=[{"text": "Hi"}]), missing("messages[0].content[0].type")),
    (said(content=[{"type": "text"}]), missing("messages[0].content[0].text")),
    (
        said(content=[{"type": "text", "text": 1}]),
        wrong_type("messages[0].content[0].text", "a string", "an integer"),
    ),
    (
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "bad", "content": "Hi"}]},
        (f"Invalid value: 'bad'. {ROLES}", "messages[1].role", "invalid_value"),
    ),
    (said(role="assistant", content=None), wrong_type("messages[0].content", CONTENT, "null")),
    (
        said(role="assistant", content=None, tool_calls="x"),
        wrong_type("messages[0].tool_calls", "an array of objects", "a string"),
    ),
    (said(role="tool"), missing("messages[0].tool_call_id")),
    ({"temperature": "hot"}, wrong_type("temperature", "a decimal", "a string")),
    ({"temperature": True}, wrong_type("temperature", "a decimal", "a boolean")),
    ({"temperature": [1]}, wrong_type("temperature", "a decimal", "an array")),
    ({"temperature": 99}, beyond("temperature", "decimal", "<= 2", "99.0")),
    ({"temperature": -0.1}, beyond("temperature", "decimal", ">= 0", "-0.1")),
    ({"top_p": "x"}, wrong_type("top_p", "a decimal", "a string")),
    ({"top_p": 1.5}, beyond("top_p", "decimal", "<= 1", "1.5")),
    ({"top_p": -1}, beyond("top_p", "decimal", ">= 0", "-1.0")),
    ({"presence_penalty": 3}, beyond("presence_penalty", "decimal", "<= 2", "3.0")),
    ({"presence_penalty": {}}, wrong_type("presence_penalty", "a decimal", "an object")),
    ({"frequency_penalty": -3}, beyond("frequency_penalty", "decimal", ">= -2", "-3.0")),
    ({"n": 0}, beyond("n", "integer", ">= 1", "0")),
    ({"n": 1000}, beyond("n", "integer", "<= 128", "1000")),
    ({"n": "2"}, wrong_type("n", "an integer", "a string")),
    ({"n": 1.5}, wrong_type("n", "an integer", "a decimal")),
    ({"n": True}, wrong_type("n", "an integer", "a boolean")),
    ({"max_tokens": -1}, beyond("max_tokens", "integer", ">= 0", "-1")),
    ({"max_tokens": "9"}, wrong_type("max_tokens", "an integer", "a string")),
    ({"max_completion_tokens": -1}, beyond("max_completion_tokens", "integer", ">= 0", "-1")),
    (
        {"max_completion_tokens": 2.5},
        wrong_type("max_completion_tokens", "an integer", "a decimal"),
    ),
    ({"stop": 5}, wrong_type("stop", "one of a string or array of strings", "an integer")),
    ({"stop": [5]}, wrong_type("stop[0]", "a string", "an integer")),
    ({"stop": ["a", "b", "c", "d", "e"]}, (None, "stop", "array_above_max_length")),
    ({"logprobs": 1}, wrong_type("logprobs", "a boolean", "an integer")),
    ({"top_logprobs": 3}, (TOP, "top_logprobs", None)),
    ({"top_logprobs": 3, "logprobs": False}, (TOP, "top_logprobs", None)),
    ({"top_logprobs": 21, "logprobs": True}, beyond("top_logprobs", "integer", "<= 20", "21")),
    ({"stream": "yes"}, wrong_type("stream", "a boolean", "a string")),
    (
        {"stream": True, "stream_options": True},
        wrong_type("stream_options", "an object", "a boolean"),
    ),
    (
        {"stream": True, "stream_options": {"include_usage": 1}},
        wrong_type("stream_options.include_usage", "a boolean", "an integer"),
    ),
    ({"tools": {}}, wrong_type("tools", "an array of objects", "an object")),
    ({"tools": ["x"]}, wrong_type("tools[0]", "an object", "a string")),
    ({"tools": [{"function": {"name": "f"}}]}, missing("tools[0].type")),
    ({"tools": [{"type": "function"}]}, missing("tools[0].function")),
    ({"tools": [{"type": "function", "function": {}}]}, missing("tools[0].function.name")),
    (
        {"tool_choice": "maybe"},
        (
            "Invalid value: 'maybe'. Supported values are: 'none', 'auto', and 'required'.",
            "tool_choice",
            "invalid_value",
        ),
    ),
    ({"tool_choice": 1}, (None, "tool_choice", "invalid_type")),
    ({"response_format": "json"}, wrong_type("response_format", "an object", "a string")),
    ({"response_format": {}}, missing("response_format.type")),
    ({"response_format": {"type": "xml"}}, (None, "response_format.type", "invalid_value")),
    ({"response_format": {"type": "json_schema"}}, missing("response_format.json_schema")),
    ({"seed": "x"}, wrong_type("seed", "an integer", "a string")),
    ({"seed": 1.5}, wrong_type("seed", "an integer", "a decimal")),
    ({"user": 5}, wrong_type("user", "a string", "an integer")),
    ({"metadata": "x"}, wrong_type("metadata", "an object", "a string")),
    ({"metadata": {"a": 1}}, wrong_type("metadata.a", "a string", "an integer")),
    (
        {"metadata": {str(k): "v" for k in range(17)}},
        (None, "metadata", "object_above_max_properties"),
    ),
    ({"metadata": {"k" * 65: "v"}}, (None, "metadata", "string_above_max_length")),
    ({"metadata": {"k": "v" * 513}}, (None, "metadata.k", "string_above_max_length")),
    ({"store": "yes"}, wrong_type("store", "a boolean", "a string")),
]


def changed(change: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (ASKED | change).items() if value is not GONE}


@pytest.mark.parametrize(
    ("change", "told"), WRONG, ids=[f"{list(c)[-1]}-{i}" for i, (c, _) in enumerate(WRONG)]
)
async def test_what_is_wrong_is_said_as_openai_says_it(
    change: dict[str, Any], told: tuple[str | None, ...]
) -> None:
    answer = await client(rewrap(require_model=True)).post(CHAT, json=changed(change))
    assert answer.status_code == 400
    message, param, code = told
    error = envelope(answer)
    assert error == {
        "message": error["message"]
        if message is None
        else message,  # None: what OpenAI says was never recorded
        "type": "invalid_request_error",
        "param": param,
        "code": code,
    }


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"model": NaN}', b"Hi", b"[" * 5000, b'{"a": "\\ud800"}']
)
async def test_a_body_that_is_no_json_is_said_to_be_none(body: bytes) -> None:
    answer = await client().post(CHAT, content=body)
    assert answer.status_code == 400
    error = envelope(answer)
    assert error["message"].startswith("We could not parse the JSON body of your request. (HINT: ")
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, None)


@pytest.mark.parametrize("body", [b"[]", b"null", b'"Hi"', b"5"])
async def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    answer = await client().post(CHAT, content=body)
    assert answer.status_code == 400
    assert envelope(answer)["type"] == "invalid_request_error"


async def test_the_model_is_checked_first_then_the_messages_then_the_rest_by_name() -> None:
    wrong: dict[str, Any] = {"user": 5, "temperature": 9, "n": 0, "messages": [], "model": ""}
    for param, mend in [
        (None, "model"),
        ("messages", "messages"),
        ("n", "n"),
        ("temperature", ""),
        ("user", ""),
    ]:
        answer = await client(rewrap(require_model=True)).post(CHAT, json=wrong)
        assert envelope(answer)["param"] == param
        wrong = (
            wrong | {mend: ASKED[mend]}
            if mend in ASKED
            else {k: v for k, v in wrong.items() if k != param}
        )


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TURNS: list[list[dict[str, Any]]] = [
    [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hi", "name": "ann"},
    ],
    [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": ""},
    ],
    [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}],
        }
    ],
    [
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "input_audio", "input_audio": {}}],
        }
    ],
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ],
    [
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ],
    [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}],
    [
        {"role": "function", "name": "f", "content": None},
        {"role": "function", "name": "f", "content": "1"},
    ],
    [
        {"role": "function", "name": "f", "content": "1"},
        {"role": "assistant", "content": None, "refusal": "No."},
    ],
]


@pytest.mark.parametrize("messages", TURNS)
async def test_conversations_as_clients_send_them_are_taken(messages: list[dict[str, Any]]) -> None:
    for settings, url in (
        ({"chat_url": CHAT_URL, "on_unsupported": "drop"}, CHAT_URL),
        ({"openai_api_base": API_BASE}, f"{API_BASE}/chat/completions"),
    ):
        router, _ = mocked(url, httpx.Response(200, json=openai_object({"content": "Yes."})))
        answer = await client(rewrap(router, **settings)).post(
            CHAT, json=ASKED | {"messages": messages}
        )
        assert text(answer) == "Yes."
    assert text(await client().post(CHAT, json=ASKED | {"messages": messages}))


EVERYTHING: dict[str, Any] = {
    "messages": [{"role": "developer", "content": "string", "name": "name"}],
    "model": "gpt-5.4",
    "audio": {"format": "wav", "voice": "string"},
    "frequency_penalty": -2,
    "function_call": "none",
    "functions": [{"name": "name", "description": "description", "parameters": {"foo": "bar"}}],
    "logit_bias": {"foo": 0},
    "logprobs": True,
    "max_completion_tokens": 0,
    "max_tokens": 0,
    "metadata": {"foo": "string"},
    "modalities": ["text"],
    "moderation": {"model": "model"},
    "n": 1,
    "parallel_tool_calls": True,
    "prediction": {"content": "string", "type": "content"},
    "presence_penalty": -2,
    "prompt_cache_key": "prompt-cache-key-1234",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "in-memory",
    "reasoning_effort": "none",
    "response_format": {"type": "text"},
    "safety_identifier": "safety-identifier-1234",
    "seed": -9007199254740991,
    "service_tier": "auto",
    "stop": "\n",
    "store": True,
    "stream": False,
    "stream_options": {"include_obfuscation": True, "include_usage": True},
    "temperature": 1,
    "tool_choice": "none",
    "tools": [
        {
            "function": {
                "name": "name",
                "description": "description",
                "parameters": {"foo": "bar"},
                "strict": True,
            },
            "type": "function",
        }
    ],
    "top_logprobs": 0,
    "top_p": 1,
    "user": "user-1234",
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low", "user_location": None},
}


@pytest.mark.parametrize("stream", [False, True])
async def test_everything_at_once_is_taken(stream: bool) -> None:
    answer = await client().post(CHAT, json=EVERYTHING | {"stream": stream})
    assert text(answer)
    for make in (chat_url, openai):
        some, _ = make(httpx.Response(200, json=openai_object({"content": "Yes."})))
        assert text(await some.post(CHAT, json=EVERYTHING | {"stream": stream})) == "Yes."


async def test_null_counts_as_absent() -> None:
    nothing = {name: None for name in EVERYTHING if name not in ("model", "messages")}
    assert text(await client().post(CHAT, json=ASKED | nothing))


# Errors: a status, and all four members, on every path.


async def test_an_unknown_url_is_404() -> None:
    for method in ("GET", "POST"):
        answer = await client(api_keys=("k",)).request(method, "/v1/foo")
        assert answer.status_code == 404
        assert envelope(answer) == {
            "message": f"Invalid URL ({method} /v1/foo)",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("POST", "/v1/models", "GET"), ("PUT", CHAT, "POST"), ("PUT", "/models/x", "GET")],
)
async def test_a_wrong_method_is_405_and_the_right_ones_are_told(
    method: str, path: str, allowed: str
) -> None:
    answer = await client().request(method, path)
    assert answer.status_code == 405
    assert allowed in answer.headers["allow"]
    assert envelope(answer) == {
        "message": f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different HTTP method?)",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


async def test_a_request_that_is_too_large_is_413_whether_it_tells_its_length_or_not() -> None:
    some = client(max_body_bytes=1000)
    read = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b" " * 100

    for content in (b" " * 1001, parts()):
        answer = await some.post(CHAT, content=content)
        assert answer.status_code == 413
        assert envelope(answer)["type"] == "invalid_request_error"
    assert read < 15
    body = json.dumps(ASKED).encode()
    assert (await some.post(CHAT, content=body.ljust(1000))).status_code == 200


async def test_invalid_requests_are_422_where_it_is_set() -> None:
    some = client(invalid_request_status=422, api_keys=("k",))
    key = {"authorization": "Bearer k"}
    answer = await some.post(CHAT, json=ASKED | {"n": 0}, headers=key)
    assert answer.status_code == 422
    assert envelope(answer)["code"] == "integer_below_min_value"
    assert (await some.post(CHAT, content=b"{", headers=key)).status_code == 422
    assert (await some.post(CHAT, json=ASKED)).status_code == 401
    assert (await some.get("/v1/foo")).status_code == 404


@pytest.mark.logs_errors
async def test_an_error_of_our_own_is_500_and_tells_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    some, _ = chat_url(RuntimeError("sk-boom"))
    for path in (CHAT, "/ask"):
        answer = await some.post(path, json=ASKED)
        assert answer.status_code == 500
        assert "boom" not in answer.text
    error = envelope(await some.post(CHAT, json=ASKED))
    assert error["type"] == "server_error"
    assert "Traceback" in caplog.text or any(record.exc_info for record in caplog.records)


# Keys.

TALKS = [
    ("POST", CHAT),
    ("POST", "/chat/completions"),
    ("POST", "/ask"),
    ("GET", "/v1/models"),
    ("GET", "/models/x"),
]


@pytest.mark.parametrize(("method", "path"), TALKS)
async def test_where_something_talks_a_key_is_asked_for_before_the_payload_is_read(
    method: str, path: str
) -> None:
    async def unread() -> AsyncIterator[bytes]:
        pytest.fail("the payload was read")
        yield b""

    some = client(api_keys=("sk-right-0123456789",))
    for headers in (
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Basic c2s="},
    ):
        answer = await some.request(
            method, path, content=unread() if method == "POST" else None, headers=headers
        )
        assert answer.status_code == 401
        if path != "/ask":
            error = envelope(answer)
            assert error["message"].startswith(
                "You didn't provide an API key. You need to provide your API key in an"
            )
            assert (error["type"], error["param"], error["code"]) == (
                "invalid_request_error",
                None,
                None,
            )
    answer = await some.request(
        method, path, headers={"authorization": "Bearer sk-wrong-0123456789"}
    )
    assert answer.status_code == 401
    assert "sk-wrong-0123456789" not in answer.text
    if path != "/ask":
        error = envelope(answer)
        assert error["message"].startswith("Incorrect API key provided: ")
        assert (error["type"], error["param"], error["code"]) == (
            "invalid_request_error",
            None,
            "invalid_api_key",
        )


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-two"},
        {"authorization": "bearer sk-two"},
        {"authorization": "BEARER  sk-two "},
        {"api-key": "sk-one"},
    ],
)
async def test_any_of_the_keys_opens_in_either_header(headers: dict[str, str]) -> None:
    some = client(api_keys=("sk-one", "sk-two"))
    assert (await some.post(CHAT, json=ASKED, headers=headers)).status_code == 200
    assert (await some.get("/v1/models", headers=headers)).status_code == 200


async def test_each_change_of_one_character_of_a_key_is_refused() -> None:
    key = "sk-abcdef"
    some = client(api_keys=(key,))
    wrong = [f"{key[:i]}{c}{key[i + 1 :]}" for i in range(len(key)) for c in ("", "X")] + [
        key + "X",
        key.upper(),
    ]
    for each in wrong:
        assert (
            await some.get("/v1/models", headers={"authorization": f"Bearer {each}"})
        ).status_code == 401


async def test_without_keys_none_is_asked_for() -> None:
    for headers in ({}, {"authorization": "Bearer anything"}):
        assert (await client().post(CHAT, json=ASKED, headers=headers)).status_code == 200


# CORS.

PAGE = {"origin": "https://app.example"}
PREFLIGHT = PAGE | {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


@pytest.mark.parametrize(("method", "path", "body"), EVERY_KIND[:-1])
async def test_a_page_of_an_allowed_origin_may_read_every_answer(
    method: str, path: str, body: bytes
) -> None:
    some = client(allow_origins=("https://app.example", "https://b.example"), max_body_bytes=2000)
    answer = await some.request(method, path, content=body, headers=PAGE)
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert "retry-after" in answer.headers["access-control-expose-headers"]
    assert "Origin" in answer.headers["vary"]
    other = await some.request(
        method, path, content=body, headers={"origin": "https://evil.example"}
    )
    assert "access-control-allow-origin" not in other.headers


async def test_errors_of_keys_and_upstreams_may_be_read_too() -> None:
    some, _ = chat_url(
        httpx.ConnectError(""), allow_origins=("https://app.example",), api_keys=("k",)
    )
    for headers, status in ((PAGE, 401), (PAGE | {"authorization": "Bearer k"}, 502)):
        answer = await some.post(CHAT, json=ASKED, headers=headers)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://app.example"


async def test_a_preflight_is_answered_without_a_key() -> None:
    some = client(allow_origins=("https://app.example",), api_keys=("k",))
    for path in (CHAT, "/ask", "//v1/chat/completions"):
        answer = await some.options(f"http://proxy{path}", headers=PREFLIGHT)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]


async def test_a_preflight_of_another_origin_is_refused() -> None:
    answer = await client(allow_origins=("https://b.example",)).options(CHAT, headers=PREFLIGHT)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers
    envelope(answer)


@pytest.mark.parametrize("origins", [("*",), ("*", "https://app.example")])
@pytest.mark.parametrize("cookie", [{}, {"cookie": "session=1"}])
async def test_any_origin_and_credentials_never_come_together(
    origins: tuple[str, ...], cookie: dict[str, str]
) -> None:
    some = client(allow_origins=origins)
    for answer in (
        await some.post(CHAT, json=ASKED, headers=PAGE | cookie),
        await some.options(CHAT, headers=PREFLIGHT | cookie),
    ):
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] in ("*", "https://app.example")
        assert "access-control-allow-credentials" not in answer.headers


async def test_a_star_in_an_origin_stands_for_names_and_ports() -> None:
    some = client(
        allow_origins=("https://*.app.example", "http://localhost:*", "https://one.example")
    )
    for origin, may in {
        "https://a.app.example": True,
        "https://a.b.app.example": True,
        "http://localhost:3000": True,
        "https://one.example": True,
        "https://app.example": False,
        "https://evil-app.example": False,
        "https://a.appxexample": False,
        "https://a.app.example.evil.com": False,
        "https://evil.com/.app.example": False,
    }.items():
        answer = await some.post(CHAT, json=ASKED, headers={"origin": origin})
        assert answer.headers.get("access-control-allow-origin") == (origin if may else None), (
            origin
        )


async def test_without_origins_no_page_may_read() -> None:
    answer = await client().post(CHAT, json=ASKED, headers=PAGE)
    assert not [name for name in answer.headers if name.startswith("access-control")]


# A chat URL.


async def test_a_user_in_the_chat_url_is_sent_as_basic_authorization() -> None:
    router = respx.MockRouter()
    route = router.post("http://chat.test/ask").respond(200, json={"reply": "Hi"})
    some = client(rewrap(router, chat_url="http://me:p%40ss@chat.test/ask"))
    assert text(await some.post(CHAT, json=ASKED)) == "Hi"
    assert route.calls.last.request.headers["authorization"] == "Basic bWU6cEBzcw=="


def test_the_keys_that_a_file_of_backends_names_may_stand_in_the_env_file(
    env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("BOT_KEY=from-the-file\nOTHER=from-the-file\n")
    env.setenv("OTHER", "from-the-environment")
    found = variables(str(tmp_path / ".env"))
    assert (found["BOT_KEY"], found["OTHER"]) == ("from-the-file", "from-the-environment")


async def test_a_chat_url_is_asked_for_what_the_client_asked() -> None:
    headers = {"X-Bot-Key": "sk-bot", "Authorization": "Bearer sk-bot"}
    settings: dict[str, Any] = {"chat_headers": headers, "on_unsupported": "drop"}
    some, route = chat_url(httpx.Response(200, json={"reply": "Hi"}), **settings)
    parts = [
        {"type": "text", "text": "one"},
        {"type": "image_url", "image_url": {"url": "u"}},
        {"type": "text", "text": "two"},
    ]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    asked = {
        "model": "gpt-4o",
        "messages": messages,
        "temperature": 0.5,
        "top_p": None,
        "my_field": {"a": [1]},
    }
    answer = await some.post(
        CHAT, json=asked, headers={"authorization": "Bearer sk-client", "api-key": "sk-client"}
    )
    assert text(answer) == "Hi"
    assert answer.json()["model"] == "gpt-4o"
    sent = route.calls.last.request
    assert json.loads(sent.content) == {
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one\ntwo"},
        ],
        "temperature": 0.5,
        "my_field": {"a": [1]},
    }
    assert sent.headers["content-type"] == "application/json"
    assert (sent.headers["x-bot-key"], sent.headers["authorization"]) == ("sk-bot", "Bearer sk-bot")
    assert "sk-client" not in str(sent.headers.raw)


async def test_the_clients_key_never_goes_to_a_chat_url() -> None:
    some, route = chat_url(httpx.Response(200, json={"reply": "Hi"}))
    await some.post(
        CHAT, json=ASKED, headers={"authorization": "Bearer sk-client", "api-key": "sk-client"}
    )
    assert "sk-client" not in str(route.calls.last.request.headers.raw)


async def test_a_request_that_names_no_model_gets_the_default_one() -> None:
    some, route = chat_url(httpx.Response(200, json={"reply": "Hi"}), openai_model="bot-1")
    answer = await some.post(CHAT, json={"messages": ASKED["messages"]})
    assert (
        answer.json()["model"] == json.loads(route.calls.last.request.content)["model"] == "bot-1"
    )


NAMES = [
    "reply",
    "response",
    "answer",
    "message",
    "output",
    "text",
    "content",
    "generated_text",
    "result",
]
REPLIES: list[Any] = [{name: HARD} for name in NAMES]
REPLIES += [
    {"status": "ok", "id": 7, wrapper: {name: HARD}}
    for wrapper in ("data", "result")
    for name in NAMES
]
REPLIES += [
    HARD,
    [HARD],
    [{"generated_text": HARD}],
    {"error": None, "reply": HARD},
    {"message": {"role": "assistant", "content": HARD}},
    {"content": [{"type": "text", "text": HARD}]},
    {"choices": [{"text": HARD}]},
    {"choices": [{"message": {"content": HARD}}]},
    openai_object({"content": HARD}),
]


@pytest.mark.parametrize("reply", REPLIES, ids=range(len(REPLIES)))
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
async def test_the_reply_is_found_in_whatever_json_comes_back(reply: Any, kind: str) -> None:
    content = json.dumps(reply, ensure_ascii=False).encode()
    some, _ = chat_url(
        lambda request: httpx.Response(200, headers={"content-type": kind}, content=content)
    )
    assert text(await some.post(CHAT, json=ASKED)) == HARD
    stream = await some.post(CHAT, json=ASKED | {"stream": True})
    assert text(stream) == HARD
    assert [piece for piece in deltas(stream, "content") if piece] == words(HARD)
    assert (await some.post("/ask", json=ASKED)).content == HARD.encode()


PLAIN = [
    HARD,
    "x",
    '"Hello," she said.',
    "[1] is the source.",
    "{braces} are fine.",
    "<think>Hm.</think>Hello.",
]


@pytest.mark.parametrize("reply", PLAIN)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_plain_text_is_the_reply(reply: str, stream: bool) -> None:
    some, _ = chat_url(httpx.Response(200, text=reply))
    assert text(await some.post(CHAT, json=ASKED | {"stream": stream})) == reply


def cut(content: bytes, size: int = 7) -> list[bytes]:
    return [content[at : at + size] for at in range(0, len(content), size)]


PIECES = [HARD[at : at + 5] for at in range(0, len(HARD), 5)]
LINES = {
    "sse-json": (b"".join(data({"reply": piece}) for piece in PIECES), "text/event-stream"),
    "sse-json-done": (
        b"".join(map(data, [*({"text": piece} for piece in PIECES), "[DONE]"])),
        "text/event-stream",
    ),
    "sse-strings": (b"".join(data(json.dumps(piece)) for piece in PIECES), "text/event-stream"),
    "sse-openai": (
        b"".join(
            map(
                data,
                [*(chunk({"content": piece}) for piece in PIECES), chunk({}, "stop"), "[DONE]"],
            )
        ),
        "text/event-stream",
    ),
    "ndjson": (
        b"".join(json.dumps({"response": piece}).encode() + b"\n" for piece in PIECES),
        "application/x-ndjson",
    ),
    "text": (HARD.encode(), "text/plain; charset=utf-8"),
}


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_an_answer_in_pieces_is_joined_the_same_in_every_form(kind: str, size: int) -> None:
    content, media = LINES[kind]
    some, _ = chat_url(lambda request: streamed(*cut(content, size), kind=media))
    assert text(await some.post(CHAT, json=ASKED)) == HARD
    assert text(await some.post(CHAT, json=ASKED | {"stream": True})) == HARD
    assert (await some.post("/ask", json=ASKED)).text == HARD


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_events_are_read_by_the_standard(end: bytes) -> None:
    lines = [
        b": ping",
        b"",
        b"event: message",
        b"data:Bare",
        b"",
        b"data:  text,",
        b"data: 2 lines.",
        b"",
        b"id: 9",
        b"data: End",
    ]
    some, _ = chat_url(lambda request: streamed(*cut(end.join(lines), 3)))
    assert text(await some.post(CHAT, json=ASKED)) == "Bare text,\n2 lines.End"


PIECEWISE = {
    "sse-json": ([data({"reply": "One "}), data({"reply": "two."})], "text/event-stream"),
    "sse-text": ([data("One "), data("two.")], "text/event-stream"),
    "sse-openai": (
        [data(chunk({"content": "One "})), data(chunk({"content": "two."}, "stop"))],
        "text/event-stream",
    ),
    "ndjson": ([b'{"reply": "One "}\n', b'{"reply": "two."}\n'], "application/x-ndjson"),
    "ndjson-as-json": ([b'{"reply": "One "}\n', b'{"reply": "two."}\n'], "application/json"),
    "text": ([b"One ", b"two."], "text/plain"),
}


@pytest.mark.parametrize("kind", PIECEWISE)
@pytest.mark.parametrize("path", [CHAT, "/ask"])
async def test_a_piece_reaches_the_client_while_the_upstream_is_still_at_it(
    kind: str, path: str
) -> None:
    (one, two), media = PIECEWISE[kind]
    gate = asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        yield one
        await gate.wait()
        yield two

    router, _ = mocked(
        CHAT_URL, httpx.Response(200, headers={"content-type": media}, content=content())
    )
    wire = Wire(rewrap(router, chat_url=CHAT_URL), path, ASKED | {"stream": True})
    assert b"two." not in await wire.until(b"One ")
    gate.set()
    rest = await wire.rest()
    assert b"two." in b"".join(message.get("body", b"") for message in rest)
    assert not rest[-1].get("more_body")


async def test_an_upstreams_own_count_of_tokens_is_told_and_an_estimate_otherwise() -> None:
    counts = {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33}
    counted, _ = chat_url(httpx.Response(200, json=openai_object({"content": "Hi"}, usage=counts)))
    uncounted, _ = chat_url(httpx.Response(200, json={"reply": "Hi there, world."}))
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    for some in (counted, uncounted):
        usage = (await some.post(CHAT, json=ASKED)).json()["usage"]
        assert chunks(await some.post(CHAT, json=ASKED | asked))[-1]["usage"] == usage
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert (usage["prompt_tokens"] == 11) is (some is counted)
        assert 2 <= usage["completion_tokens"] <= 22


TOOL_MESSAGE = {"content": None, "tool_calls": [CALL, CALL | {"id": "call_2"}]}


async def test_tool_calls_of_a_chat_url_go_through() -> None:
    some, route = chat_url(httpx.Response(200, json=openai_object(TOOL_MESSAGE, "tool_calls")))
    tools = [{"type": "function", "function": {"name": "f"}}]
    whole = (await some.post(CHAT, json=ASKED | {"tools": tools})).json()["choices"][0]
    assert json.loads(route.calls.last.request.content)["tools"] == tools
    assert (whole["finish_reason"], whole["message"]["content"]) == ("tool_calls", None)
    assert whole["message"]["tool_calls"] == TOOL_MESSAGE["tool_calls"]
    stream = await some.post(CHAT, json=ASKED | {"tools": tools, "stream": True})
    first, *_, last = [row["choices"][0] for row in chunks(stream)]
    assert (first["delta"]["role"], first["delta"]["content"]) == ("assistant", None)
    assert (last["delta"], last["finish_reason"]) == ({}, "tool_calls")
    rows = [row for calls in deltas(stream, "tool_calls") for row in calls]
    assert rows == [{"index": 0} | CALL, {"index": 1} | CALL | {"id": "call_2"}]


async def test_streamed_tool_calls_are_put_together_for_who_waits_for_json() -> None:
    begin = {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "f", "arguments": ""},
    }
    pieces = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"lo', 'ng": 1}')]
    rows = [chunk({"role": "assistant", "content": None})] + [
        chunk({"tool_calls": [row]}) for row in (begin, *pieces)
    ]
    content = b"".join(map(data, [*rows, chunk({}, "tool_calls"), "[DONE]"]))
    some, _ = chat_url(lambda request: streamed(content))
    choice = (await some.post(CHAT, json=ASKED)).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert (call["id"], call["function"]) == ("call_1", {"name": "f", "arguments": '{"long": 1}'})
    stream = await some.post(CHAT, json=ASKED | {"stream": True})
    assert deltas(stream, "tool_calls") == [[begin], [pieces[0]], [pieces[1]]]


async def test_reasoning_of_a_chat_url_goes_through_before_the_text() -> None:
    message = {"content": "Yes.", "reasoning_content": "Hm."}
    some, _ = chat_url(httpx.Response(200, json=openai_object(message)))
    whole = (await some.post(CHAT, json=ASKED)).json()["choices"][0]["message"]
    assert (whole["content"], whole["reasoning_content"]) == ("Yes.", "Hm.")
    stream = await some.post(CHAT, json=ASKED | {"stream": True})
    assert (text(stream), deltas(stream, "reasoning_content")) == ("Yes.", ["Hm."])
    assert stream.text.index("Hm.") < stream.text.index("Yes.")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("store", [False, True])
async def test_a_reply_that_is_nested_too_deeply_is_a_failure_of_the_upstream(
    stream: bool, store: bool
) -> None:
    body = b'{"reply": "Hi", "figure": {"data": %b}}' % (b"[" * 250 + b"]" * 250)
    some, _ = chat_url(
        httpx.Response(200, content=body, headers={"content-type": "application/json"})
    )
    answer = await some.post(CHAT, json=ASKED | {"stream": stream, "store": store})
    assert answer.status_code == 502
    assert envelope(answer)["code"] == "bad_gateway"


@pytest.mark.parametrize("make", [chat_url, openai])
async def test_what_is_stored_here_is_not_stored_a_second_time_there(make: Any) -> None:
    some, route = make(httpx.Response(200, json=openai_object({"content": "Hi"})))
    kept = {"metadata": {"a": "b"}, "user": "me"}
    for store in (True, False):
        assert (await some.post(CHAT, json=ASKED | kept | {"store": store})).status_code == 200
        sent = json.loads(route.calls.last.request.content)
        assert (sent["user"], "metadata" in sent) == ("me", not store)
        assert not sent.get("store")


async def test_on_an_open_server_a_stored_chat_belongs_to_the_key_that_was_sent() -> None:
    some = client(rewrap())
    mine, theirs = {"authorization": "Bearer mine"}, {"authorization": "Bearer theirs"}
    id = (await some.post(CHAT, json=ASKED | {"store": True}, headers=mine)).json()["id"]
    assert (await some.get(f"{CHAT}/{id}", headers=mine)).status_code == 200
    for others in (theirs, {}):
        assert (await some.get(f"{CHAT}/{id}", headers=others)).status_code == 404


async def test_logprobs_of_a_chat_url_go_through_once() -> None:
    logprobs = {
        "content": [{"token": "Yes", "logprob": -0.1, "bytes": None, "top_logprobs": []}],
        "refusal": None,
    }
    body = openai_object({"content": "Yes and no."})
    body["choices"][0]["logprobs"] = logprobs
    some, _ = chat_url(httpx.Response(200, json=body))
    assert (await some.post(CHAT, json=ASKED)).json()["choices"][0]["logprobs"] == logprobs
    rows = chunks(await some.post(CHAT, json=ASKED | {"stream": True}))
    assert [row["choices"][0]["logprobs"] for row in rows if row["choices"][0]["logprobs"]] == [
        logprobs
    ]


async def test_an_answer_of_a_megabyte_is_the_same_in_every_form() -> None:
    reply = (HARD + "世界" * 200 + " ") * 840
    assert len(reply.encode()) > 2**20
    some, _ = chat_url(httpx.Response(200, json={"reply": reply}))
    assert text(await some.post(CHAT, json=ASKED)) == reply
    assert (await some.post("/ask", json=ASKED)).content == reply.encode()
    answer = await some.post(CHAT, json=ASKED | {"stream": True})
    assert text(answer) == reply


# An OpenAI-compatible upstream.

ODD_JSON = b'{ "id":"x",  "choices":[{"message":{"content":"Gr\\u00fc\xc3\x9fe","reasoning":"Hm."}}],"my":[1.0,1e2]}\n'
ODD_SSE = [
    b': hello\n\ndata: {"id":"x", "choices":[{"index":0,"delta":{"role":"assistant","reasoning":"H\xc3\xbc"}}],"my":1}\n\n',
    b'event: message\ndata:{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c"}]},"logprobs":{"content":[]}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"a\xe2\x80\xa8b"},"finish_reason":null}],"obfuscation":"xyz","error":null}\n\n',
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\ndata: [DONE]\n\n',
]


async def test_a_request_and_its_answer_pass_through_byte_for_byte() -> None:
    some, route = openai(
        httpx.Response(200, headers={"content-type": "application/json"}, content=ODD_JSON)
    )
    body = b' {"messages":[{"role":"user","content":"Hi \\u00fc"}] ,"model":"m","temperature":1e0,"my":{"k":[null]}}'
    answer = await some.post(CHAT, content=body)
    assert answer.status_code == 200
    assert answer.content == ODD_JSON
    assert route.calls.last.request.content == body


PLAIN_SSE = [
    b': hello\n\ndata: {"id":"x", "choices":[{"index":0,"delta":{"role":"assistant","reasoning":"H\xc3\xbc"}}],"my":1}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c"}]},"logprobs":{"content":[]}}]}\n\n',
    *ODD_SSE[2:],
]


@pytest.mark.parametrize("size", [1, 50, 10_000])
async def test_a_stream_passes_through_byte_for_byte(size: int) -> None:
    content = b"".join(PLAIN_SSE)
    some, _ = openai(streamed(*cut(content, size)))
    answer = await some.post(CHAT, json=ASKED | {"stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.content == content


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 50, 10_000])
async def test_an_odd_framing_is_rewritten_to_one_data_line_an_event(size: int, end: bytes) -> None:
    odd = b"".join(ODD_SSE).replace(b'"my":1}', b'\ndata: "my":1}')
    odd = odd.replace(b"data: [DONE]", b"id: 7\ndata:[DONE]") + b"data: after the end\n\n"
    some, _ = openai(streamed(*cut(odd.replace(b"\n", end), size)))
    answer = await some.post(CHAT, json=ASKED | {"stream": True})
    *events, last = answer.content.split(b"\n\n")
    assert last == b""
    assert [line for line in events if b"\n" in line or b"\r" in line] == []
    chunks = [event.removeprefix(b"data: ") for event in events if event.startswith(b"data: {")]
    expected = [
        event for event in b"".join(PLAIN_SSE).split(b"\n\n") if event.startswith(b"data: {")
    ]
    assert [json.loads(found) for found in chunks] == [json.loads(event[6:]) for event in expected]
    assert events[0] == b": hello"
    assert events[-1] == b"data: [DONE]"


@pytest.mark.parametrize(
    "odd", [b"data: null\n\n", b"data: ping\n\n", b"event: ping\n\n", b"retry: 5\n\n"]
)
async def test_events_without_an_object_do_not_end_a_relayed_stream(odd: bytes) -> None:
    some, _ = openai(streamed(odd, PLAIN_SSE[0], odd, *PLAIN_SSE[1:]))
    answer = await some.post(CHAT, json=ASKED | {"stream": True})
    assert answer.content == b"".join(PLAIN_SSE)


@pytest.mark.parametrize("stream", [False, True])
async def test_behind_an_alias_the_models_name_alone_is_another(
    stream: bool, tmp_path: Path
) -> None:
    config = tmp_path / "backends.toml"
    config.write_text(
        f'[[backend]]\nname = "a"\nkind = "openai"\nurl = "{API_BASE}"\nmodel = "small-2026"\n'
    )
    spoken = r'"object":"x", "model" : "small-2026-01-\"01", "my":[1.0,1e2], '
    said = r'"message":{"content":"\"model\": \"small-2026\""}'
    body = f'{{{spoken}"choices":[{{"index":0,{said},"finish_reason":"stop"}}]}}'
    if stream:
        body = f"data: {body.replace('message', 'delta')}\n\ndata: [DONE]\n\n"
    kind = "text/event-stream" if stream else "application/json"
    content = [body[:40].encode(), body[40:].encode()]
    router, route = mocked(f"{API_BASE}/chat/completions", streamed(*content, kind=kind))
    some = client(rewrap(router, config=str(config)))
    answer = await some.post(CHAT, json=ASKED | {"model": r"my \d\g<0>", "stream": stream})
    assert answer.text == body.replace(r'"model" : "small-2026-01-\"01"', r'"model":"my \\d\\g<0>"')
    assert json.loads(route.calls.last.request.content)["model"] == "small-2026"


async def test_an_event_passes_through_while_the_upstream_is_still_at_it() -> None:
    gate = asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        yield data(chunk({"content": "One "})) + b'data: {"half'
        await gate.wait()
        yield b'": 1}\n\n' + data(chunk({}, "stop")) + data("[DONE]")

    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=content())
    router, _ = mocked(f"{API_BASE}/chat/completions", answer)
    wire = Wire(rewrap(router, openai_api_base=API_BASE), CHAT, ASKED | {"stream": True})
    assert b"half" not in await wire.until(b"One ")
    gate.set()
    assert b"[DONE]" in b"".join(message.get("body", b"") for message in await wire.rest())


async def test_ask_in_front_of_an_openai_upstream_is_text() -> None:
    some, _ = openai(lambda request: streamed(*ODD_SSE))
    assert (await some.post("/ask", json=ASKED)).text == "a\u2028b"


async def test_a_stream_is_made_of_an_upstreams_json_and_json_of_its_stream() -> None:
    some, _ = openai(httpx.Response(200, json=openai_object({"content": "One two."})))
    assert text(await some.post(CHAT, json=ASKED | {"stream": True})) == "One two."
    rows = [
        chunk({"role": "assistant"}),
        chunk({"content": "One "}),
        chunk({"content": "two."}),
        chunk({}, "stop"),
    ]
    some, _ = openai(streamed(b"".join(map(data, [*rows, "[DONE]"]))))
    assert text(await some.post(CHAT, json=ASKED)) == "One two."


async def test_what_is_no_completion_is_not_passed_off_as_one() -> None:
    some, _ = openai(httpx.Response(200, json={"message": "Please log in."}))
    answer = await some.post(CHAT, json=ASKED)
    assert answer.status_code == 502


async def test_the_default_model_is_put_in_where_none_is_named() -> None:
    some, route = openai(httpx.Response(200, content=ODD_JSON), openai_model="llama")
    await some.post(CHAT, json={"messages": ASKED["messages"], "my": 1})
    assert json.loads(route.calls.last.request.content) == ASKED | {"model": "llama", "my": 1}
    await some.post(CHAT, json=ASKED)
    assert json.loads(route.calls.last.request.content)["model"] == "gpt-4o"


KEYS = [
    ({}, "Bearer sk-client"),
    ({"openai_api_key": "sk-server"}, "Bearer sk-server"),
    ({"api_keys": ("sk-client",)}, None),
]
KEYS += [({"api_keys": ("sk-client",), "openai_api_key": "sk-server"}, "Bearer sk-server")]


@pytest.mark.parametrize(("settings", "sent"), KEYS)
async def test_the_clients_key_goes_along_only_where_the_server_has_none(
    settings: Any, sent: str | None
) -> None:
    router, route = mocked(f"{API_BASE}/chat/completions", httpx.Response(200, content=ODD_JSON))
    models = router.get(f"{API_BASE}/models").respond(json={"data": [{"id": "m"}]})
    some = client(rewrap(router, openai_api_base=API_BASE, **settings))
    for call in (some.post(CHAT, json=ASKED, headers={"authorization": "Bearer sk-client"}),):
        assert (await call).status_code == 200
    assert (
        await some.get("/v1/models", headers={"authorization": "Bearer sk-client"})
    ).status_code == 200
    for request in (route.calls.last.request, models.calls.last.request):
        assert request.headers.get("authorization") == sent


async def test_what_one_clients_key_may_see_is_not_shown_to_the_next() -> None:
    router = respx.MockRouter()
    route = router.get(f"{API_BASE}/models").mock(
        side_effect=lambda request: httpx.Response(
            200, json={"data": [{"id": request.headers["authorization"]}]}
        )
    )
    some = client(rewrap(router, openai_api_base=API_BASE))
    for key in ("Bearer a", "Bearer b"):
        listed = (await some.get("/v1/models", headers={"authorization": key})).json()["data"]
        assert [model["id"] for model in listed] == [key]
    assert route.call_count == 2


async def test_of_an_upstreams_headers_only_those_that_clients_use_go_on() -> None:
    headers = {
        "openai-processing-ms": "12",
        "x-ratelimit-remaining-requests": "9",
        "set-cookie": "a=b",
        "server": "gunicorn",
        "x-request-id": "req_theirs",
        "access-control-allow-origin": "*",
        "x-internal": "1",
    }
    for make in (chat_url, openai):
        some, _ = make(httpx.Response(200, headers=headers, json=openai_object({"content": "Hi"})))
        for stream in (False, True):
            answer = await some.post(CHAT, json=ASKED | {"stream": stream})
            assert answer.headers["openai-processing-ms"] == "12"
            assert answer.headers["x-ratelimit-remaining-requests"] == "9"
            assert not {"set-cookie", "server", "access-control-allow-origin", "x-internal"} & set(
                answer.headers
            )
            assert "req_theirs" not in answer.headers["x-request-id"]


# Upstreams that fail.

LEAK = "sk-upstream-0123456789 at http://bot.internal/ Traceback (most recent call last)"
FAILURES: dict[str, tuple[httpx.Response | Exception, int]] = {
    "500": (httpx.Response(500), 502),
    "401": (httpx.Response(401, json={"error": {"message": LEAK, "code": "invalid_api_key"}}), 502),
    "redirect": (httpx.Response(307, headers={"location": "https://elsewhere.example/"}), 502),
    "not-json": (
        httpx.Response(200, headers={"content-type": "application/json"}, text=f"<html>{LEAK}"),
        502,
    ),
    "html": (httpx.Response(200, headers={"content-type": "text/html"}, text=f"<html>{LEAK}"), 502),
    "cut-json": (
        httpx.Response(200, headers={"content-type": "application/json"}, text='{"reply": "Hi'),
        502,
    ),
    "empty": (httpx.Response(200), 502),
    "no-reply": (httpx.Response(200, json={"status": LEAK}), 502),
    "no-choices": (httpx.Response(200, json={"choices": []}), 502),
    "null": (httpx.Response(200, json={"reply": None}), 502),
    "wrong-type": (httpx.Response(200, json={"reply": 42}), 502),
    "wrong-choices": (
        httpx.Response(200, json={"choices": [{"message": {"content": {"a": 1}}}]}),
        502,
    ),
    "number": (httpx.Response(200, json=42), 502),
    "refused": (httpx.ConnectError(LEAK), 502),
    "closed": (httpx.RemoteProtocolError(LEAK), 502),
    "time-out": (httpx.ReadTimeout(LEAK), 504),
}


@pytest.mark.parametrize("make", [chat_url, openai])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", FAILURES)
async def test_an_upstreams_failure_before_the_first_byte_has_its_own_status(
    case: str, stream: bool, make: Any
) -> None:
    failed, status = FAILURES[case]
    headers = (
        {"chat_headers": {"Authorization": "Bearer sk-upstream-0123456789"}}
        if make is chat_url
        else {}
    )
    key = {"openai_api_key": "sk-upstream-0123456789"} if make is openai else {}
    some, route = make(failed, **headers, **key)
    answer = await some.post(CHAT, json=ASKED | {"stream": stream})
    assert answer.status_code == status
    error = envelope(answer)
    assert error["code"] == ("timeout" if status == 504 else "bad_gateway")
    assert not re.search(r"sk-|internal|elsewhere|Traceback|html|Error\b|httpx", answer.text)
    assert route.call_count == 1
    asked = await some.post("/ask", json=ASKED)
    assert asked.status_code == 500
    assert set(asked.json()) == {"role", "content", "error", "details"}
    assert asked.json()["content"] == error["message"]


@pytest.mark.parametrize("make", [chat_url, openai])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_upstreams_failure_is_500_where_it_is_set(stream: bool, make: Any) -> None:
    for failed in (
        httpx.Response(500),
        httpx.ConnectError(""),
        httpx.Response(200, json={}),
        streamed(data({"error": {"message": "x"}})),
    ):
        some, _ = make(failed, upstream_failure_status=500)
        answer = await some.post(CHAT, json=ASKED | {"stream": stream})
        assert answer.status_code == 500
        envelope(answer)


UPSTREAM_ERROR = {
    "message": "This is too long.",
    "type": "some_error",
    "param": ["messages", 3],
    "code": 4711,
    "metadata": {"provider": "p", "raw": [1, "x"]},
    "innererror": {"code": "ResponsibleAI"},
}


@pytest.mark.parametrize("make", [chat_url, openai])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 402, 403, 404, 409, 413, 415, 418, 422, 429, 451, 503])
async def test_an_upstreams_error_keeps_its_status_and_every_member(
    status: int, stream: bool, make: Any
) -> None:
    headers = {"retry-after": "7", "set-cookie": "a=b"}
    some, _ = make(httpx.Response(status, headers=headers, json={"error": UPSTREAM_ERROR}))
    answer = await some.post(CHAT, json=ASKED | {"stream": stream})
    assert answer.status_code == status
    assert answer.json()["error"] == UPSTREAM_ERROR
    assert answer.headers["retry-after"] == "7"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("make", [chat_url, openai])
@pytest.mark.parametrize(
    "body",
    [
        {"error": "WHY"},
        {"error": "WHY", "request_id": "r"},
        [{"error": {"code": 400, "message": "WHY", "status": "INVALID_ARGUMENT"}}],
        {"detail": "WHY"},
        {"detail": [{"loc": ["body", 0], "msg": "WHY", "type": "enum"}]},
        {"message": "WHY", "request_id": "r"},
        {"object": "error", "message": "WHY", "type": "BadRequestError", "code": 400},
        {"errors": [{"code": 7, "message": "WHY"}], "success": False},
        "WHY",
        b"WHY",
    ],
)
async def test_an_error_in_any_form_is_brought_into_the_envelope(body: Any, make: Any) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    some, _ = make(httpx.Response(400, content=content))
    answer = await some.post(CHAT, json=ASKED)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "WHY" in error["message"]
    assert {"message", "type", "param", "code"} <= error.keys()


@pytest.mark.parametrize("make", [chat_url, openai])
async def test_the_size_of_an_upstreams_error_is_bounded(make: Any) -> None:
    error = {"message": "m" * 100_000, "type": "t", "more": ["x" * 30_000] * 3}
    some, _ = make(httpx.Response(400, json={"error": error}))
    answer = await some.post(CHAT, json=ASKED)
    assert answer.status_code == 400
    assert len(answer.content) < 20_000


@pytest.mark.parametrize(("make", "status"), [(chat_url, 502), (openai, 500)])
async def test_a_5xx_with_a_message_keeps_its_status_in_a_relay_alone(
    make: Any, status: int
) -> None:
    some, _ = make(httpx.Response(500, json={"error": {"message": "Out of memory."}}))
    answer = await some.post(CHAT, json=ASKED)
    assert answer.status_code == status
    assert envelope(answer)["message"] == "Out of memory."


@pytest.mark.parametrize("make", [chat_url, openai])
@pytest.mark.parametrize("status", [500, 501, 505])
async def test_a_page_instead_of_an_error_is_502(status: int, make: Any) -> None:
    some, _ = make(httpx.Response(status, html=f"<html>{LEAK}</html>"))
    answer = await some.post(CHAT, json=ASKED)
    assert (answer.status_code, envelope(answer)["code"]) == (502, "bad_gateway")
    assert "sk-" not in answer.text


@pytest.mark.parametrize("make", [chat_url, openai])
async def test_a_redirect_to_another_path_says_so(make: Any) -> None:
    some, route = make(httpx.Response(308, headers={"location": "https://elsewhere.internal/"}))
    answer = await some.post(CHAT, json=ASKED)
    assert answer.status_code == 502
    assert "redirects to another path" in envelope(answer)["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert route.call_count == 1


@pytest.mark.parametrize("make", [chat_url, openai])
@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_redirect_that_adds_a_last_slash_is_followed(
    status: int, stream: bool, make: Any
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/"):
            return httpx.Response(status, headers={"location": f"{request.url.path}/"})
        assert request.headers["content-type"] == "application/json"
        return httpx.Response(200, json=openai_object({"content": "Hi"}))

    router = respx.MockRouter()
    route = router.post(path__regex=".*").mock(side_effect=answer)
    setting = {"chat_url": CHAT_URL} if make is chat_url else {"openai_api_base": API_BASE}
    some = client(rewrap(router, **setting))
    got = await some.post(CHAT, json=ASKED | {"stream": stream})
    assert got.status_code == 200
    assert "Hi" in got.text
    assert route.call_count == 2


@pytest.mark.parametrize("make", [chat_url, openai])
async def test_a_401_for_the_servers_own_key_is_502(make: Any) -> None:
    own = {"chat_key": "sk-own-0123"} if make is chat_url else {"openai_api_key": "sk-own-0123"}
    some, _ = make(httpx.Response(401, json={"error": {"message": "Bad key sk-own-0123"}}), **own)
    answer = await some.post(CHAT, json=ASKED)
    assert (answer.status_code, envelope(answer)["code"]) == (502, "bad_gateway")
    assert "Bad key" not in answer.text


@pytest.mark.parametrize("make", [chat_url, openai])
async def test_why_there_is_no_more_quota_is_for_the_client_to_know(make: Any) -> None:
    some, _ = make(
        httpx.Response(429, json={"error": {"message": "Pay.", "code": "insufficient_quota"}})
    )
    assert envelope(await some.post(CHAT, json=ASKED))["code"] == "insufficient_quota"


@pytest.mark.parametrize("make", [chat_url, openai])
@pytest.mark.parametrize(
    ("code", "status"), [("context_length_exceeded", 400), ("rate_limit_exceeded", 429)]
)
async def test_an_error_that_comes_with_200_has_the_status_of_its_code(
    code: str, status: int, make: Any
) -> None:
    error = {"error": {"message": "No.", "type": "some_error", "param": None, "code": code}}
    for failed, stream in ((httpx.Response(200, json=error), False), (streamed(data(error)), True)):
        some, _ = make(failed)
        answer = await some.post(CHAT, json=ASKED | {"stream": stream})
        assert (answer.status_code, envelope(answer)["code"]) == (status, code)


@pytest.mark.parametrize("make", [chat_url, openai])
async def test_an_upstreams_words_go_on_without_our_secrets(make: Any) -> None:
    own = (
        {"chat_headers": {"X-Bot-Key": "hunter2hunter2"}}
        if make is chat_url
        else {"openai_api_key": "hunter2hunter2"}
    )
    told = f"Too long for hunter2hunter2 at {CHAT_URL} or {API_BASE}, host bot.internal:9000, llm.internal:8080."
    some, _ = make(httpx.Response(400, json={"error": {"message": told}}), **own)
    message = envelope(await some.post(CHAT, json=ASKED))["message"]
    assert message.startswith("Too long for ")
    assert "hunter2" not in message
    assert ("bot.internal" if make is chat_url else "llm.internal") not in message


async def test_a_refused_key_is_told_to_the_client_whose_it_was() -> None:
    refusal = httpx.Response(
        401, json={"error": {"message": "Incorrect API key provided: sk-client-0123456789."}}
    )
    some, _ = openai(refusal)
    answer = await some.post(
        CHAT, json=ASKED, headers={"authorization": "Bearer sk-client-0123456789"}
    )
    assert answer.status_code == 401
    assert envelope(answer)["message"].startswith("Incorrect API key provided")
    assert "sk-client-0123456789" not in answer.text


BEGUN = data(chunk({"role": "assistant", "content": ""})) + data(chunk({"content": "One "}))
ENDINGS = {
    "reset": [BEGUN, httpx.ReadError(LEAK)],
    "cut": [BEGUN],
    "cut-in-an-event": [BEGUN, b'data: {"choices":[{"index":0,"delta":{"content":"tw'],
    "error-event": [
        BEGUN,
        data({"error": {"message": LEAK, "type": "server_error", "code": None}}),
        data("[DONE]"),
    ],
    "not-json": [BEGUN, b"data: {oops}\n\n", data("[DONE]")],
}


@pytest.mark.parametrize("make", [chat_url, openai])
@pytest.mark.parametrize("ending", [e for e in ENDINGS if e != "not-json"])
async def test_a_failure_after_the_first_byte_is_an_event_and_no_done(
    ending: str, make: Any
) -> None:
    some, _ = make(lambda request: streamed(*ENDINGS[ending]))
    answer = await some.post(CHAT, json=ASKED | {"stream": True})
    error = failure(answer)
    assert "One " in answer.text
    assert '"tw' not in answer.text
    assert '"finish_reason":"stop"' not in answer.text
    assert not re.search("sk-|internal|Traceback", error["message"])
    whole = await some.post(CHAT, json=ASKED)
    assert whole.status_code == 502
    envelope(whole)


async def test_an_event_that_is_no_json_among_chunks_is_a_failure() -> None:
    some, _ = chat_url(streamed(*ENDINGS["not-json"]))
    failure(await some.post(CHAT, json=ASKED | {"stream": True}))


@pytest.mark.parametrize("make", [chat_url, openai])
async def test_an_error_in_the_first_event_has_a_status(make: Any) -> None:
    some, _ = make(streamed(data({"error": {"message": LEAK}})))
    answer = await some.post(CHAT, json=ASKED | {"stream": True})
    assert answer.status_code == 502
    assert not re.search("sk-|internal|Traceback", envelope(answer)["message"])


async def test_a_stream_without_done_that_has_finished_is_whole() -> None:
    content = BEGUN + data(chunk({}, "stop"))
    for make in (chat_url, openai):
        some, _ = make(streamed(content))
        assert text(await some.post(CHAT, json=ASKED | {"stream": True})) == "One "


async def test_half_an_ask_is_never_taken_for_the_whole() -> None:
    router, _ = mocked(CHAT_URL, streamed(b"One ", httpx.ReadError(""), kind="text/plain"))
    messages = await Wire(rewrap(router, chat_url=CHAT_URL), "/ask", ASKED).rest()
    assert b"".join(message.get("body", b"") for message in messages) == b"One "
    assert messages[-1]["more_body"]  # it does not end: the server cuts the connection


@pytest.mark.parametrize("make", [chat_url, openai])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_upstream_without_a_head_is_too_slow(stream: bool, make: Any) -> None:
    async def silent(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(5)
        return httpx.Response(200)

    limit = "first_byte_timeout_seconds" if stream else "total_timeout_seconds"
    some, _ = make(silent, **{limit: 0.05})
    answer = await some.post(CHAT, json=ASKED | {"stream": stream})
    assert answer.status_code == 504
    assert envelope(answer)["code"] == "timeout"


@pytest.mark.parametrize("make", [chat_url, openai])
async def test_a_whole_answer_is_bounded_by_the_total_time_alone(make: Any) -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.2)
        return httpx.Response(200, json=openai_object({"content": "Done."}))

    some, _ = make(slow, first_byte_timeout_seconds=0.05, stall_timeout_seconds=0.05)
    assert text(await some.post(CHAT, json=ASKED)) == "Done."


@pytest.mark.parametrize("make", [chat_url, openai])
async def test_pings_keep_a_silent_stream_alive(make: Any) -> None:
    pings = [b": ping\n\n"] * 20
    end = [data(chunk({"content": "Hi"}, "stop")), data("[DONE]")]
    for pieces in ([*pings, BEGUN, *end], [BEGUN, *pings, *end]):
        some, _ = make(
            streamed(*pieces, pause=0.02), stall_timeout_seconds=0.2, first_byte_timeout_seconds=0.2
        )
        answer = await some.post(CHAT, json=ASKED | {"stream": True})
        assert answer.text.endswith("data: [DONE]\n\n")
        assert "error" not in answer.text


async def test_a_stream_that_waits_for_a_chat_url_in_one_piece_is_pinged() -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.5)
        return httpx.Response(200, json={"reply": "Done."})

    some, _ = chat_url(slow, sse_ping_seconds=0.1)
    answer = await some.post(CHAT, json=ASKED | {"stream": True})
    assert answer.text.startswith(": ping\n\n: ping\n\n")
    assert '"content":"Done."' in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    off, _ = chat_url(slow, sse_ping_seconds=0)
    assert "ping" not in (await off.post(CHAT, json=ASKED | {"stream": True})).text


async def test_a_failure_after_a_ping_is_an_event() -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.4)
        return httpx.Response(400, json={"error": {"message": "Too long."}})

    some, _ = chat_url(slow, sse_ping_seconds=0.1)
    answer = await some.post(CHAT, json=ASKED | {"stream": True})
    assert answer.status_code == 200
    assert failure(answer)["message"] == "Too long."


async def test_a_relay_is_not_pinged_before_the_upstream_accepts_the_request() -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.4)
        return httpx.Response(400, json={"error": {"message": "Too long."}})

    some, _ = openai(slow, sse_ping_seconds=0.1)
    assert (await some.post(CHAT, json=ASKED | {"stream": True})).status_code == 400
    silent = streamed(BEGUN, b"", data(chunk({}, "stop")), data("[DONE]"), pause=0.2)
    some, _ = openai(silent, sse_ping_seconds=0.1)
    assert ": ping\n\n" in (await some.post(CHAT, json=ASKED | {"stream": True})).text


@pytest.mark.parametrize("make", [chat_url, openai])
async def test_a_stream_that_is_silent_for_too_long_fails(make: Any) -> None:
    some, _ = make(streamed(BEGUN, b"", pause=5), stall_timeout_seconds=0.1)
    assert failure(await some.post(CHAT, json=ASKED | {"stream": True}))["code"] == "timeout"


@pytest.mark.parametrize("make", [chat_url, openai])
async def test_an_answer_that_drips_ends_at_the_total_time(make: Any) -> None:
    body = json.dumps(openai_object({"content": "x" * 200})).encode()
    some, _ = make(
        streamed(*cut(body, 2), kind="application/json", pause=0.02), total_timeout_seconds=0.1
    )
    answer = await some.post(CHAT, json=ASKED)
    assert answer.status_code == 504
    assert envelope(answer)["code"] == "timeout"


@pytest.mark.parametrize("make", [chat_url, openai])
async def test_an_answer_or_an_event_that_is_too_large_is_a_failure(make: Any) -> None:
    huge = openai_object({"content": "x" * 5000})
    some, _ = make(httpx.Response(200, json=huge), max_reply_bytes=2000)
    assert (await some.post(CHAT, json=ASKED)).status_code == 502
    event = data(chunk({"content": "x" * 5000}))
    some, _ = make(streamed(BEGUN, *cut(event, 500)), max_event_bytes=2000)
    failure(await some.post(CHAT, json=ASKED | {"stream": True}))


async def test_what_can_be_read_but_not_written_is_a_bad_request() -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "deep": %b}' % (
        b"[" * 300 + b"]" * 300
    )
    some, _ = chat_url(httpx.Response(200, json={"reply": "Hi"}))
    answer = await some.post(CHAT, content=body)
    assert answer.status_code == 400
    envelope(answer)


@pytest.mark.parametrize("padding", [b"", b" " * 3000])
async def test_a_chat_url_gets_each_member_once(padding: bytes) -> None:
    some, route = chat_url(httpx.Response(200, json={"reply": "Hi"}))
    body = b'{"messages":[{"role":"user","content":["a"],"content":"b"}],%b"user":"a","user":"b","model":"m"}'
    await some.post(CHAT, content=body % padding)
    sent = json.loads(route.calls.last.request.content, object_pairs_hook=list)
    assert sorted(name for name, _ in sent) == ["messages", "model", "user"]
    assert dict(sent)["messages"] == [[("role", "user"), ("content", "b")]]


# Settings.


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without any of our settings."""
    for name in known_variables():
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


NO_FILE = "/nonexistent/.env"
BAD = [
    ("PORT", "abc"),
    ("PORT", "99999"),
    ("PORT", "-1"),
    ("PORT", "8000.5"),
    ("WORKERS", "0"),
    ("USE_MOCK_API", "maybe"),
    ("LOG_LEVEL", "loud"),
    ("MOCK_WORDS_PER_SECOND", "-1"),
    ("MOCK_WORDS_PER_SECOND", "nan"),
    ("CHAT_URL", "bot.example/chat"),
    ("CHAT_URL", "ftp://bot.example/chat"),
    ("CHAT_URL", "http://"),
    ("CHAT_URL", "http://bot:port/chat"),
    ("CHAT_URL", "http://[::1/x"),
    ("CHAT_URL", "http://bot.example/a\nb"),
    ("CHAT_URL", "http://bot.example:99999/chat"),
    ("CHAT_URL", "http://bot.example:0/chat"),
    ("CHAT_URL", "http://bot..example/chat"),
    ("CHAT_URL", "http://{host}/chat"),
    ("OPENAI_API_BASE", "http://bot.example:99999/v1"),
    ("CHAT_URL", "http://bot/chat # my bot"),
    ("ALLOW_ORIGINS", "app.example"),
    ("ALLOW_ORIGINS", "https://*"),
    ("ALLOW_ORIGINS", "http://*:3000"),
    ("ALLOW_ORIGINS", "https://app.example/page"),
    ("ALLOW_ORIGINS", "https://a.example https://b.example"),
    ("OPENAI_API_BASE", "localhost:8080/v1"),
    ("CHAT_KEY", "hunter2\nhunter2"),
    ("CHAT_KEY", "hunter2é€"),
    ("OPENAI_API_KEY", "hunter2\nhunter2"),
    ("UPSTREAM_PROXY", "proxy:3128"),
    ("CHAT_HEADERS", "Authorization: Bearer x"),
    ("CHAT_HEADERS", "[]"),
    ("CHAT_HEADERS", '{"X-Key": 5}'),
    ("CHAT_HEADERS", '{"X-Key": "a\\r\\nX-Evil: b"}'),
    ("CHAT_HEADERS", '{"X Key": "a"}'),
    ("CHAT_HEADERS", '{"X-Key": "\u2603"}'),
    ("API_KEYS", ","),
    ("INVALID_REQUEST_STATUS", "418"),
    ("UPSTREAM_FAILURE_STATUS", "404"),
    ("MAX_BODY_BYTES", "0"),
    ("MAX_BODY_BYTES", "1MB"),
    ("CONNECT_TIMEOUT_SECONDS", "0"),
    ("FIRST_BYTE_TIMEOUT_SECONDS", "-1"),
    ("STALL_TIMEOUT_SECONDS", "nan"),
    ("STALL_TIMEOUT_SECONDS", "inf"),
    ("MOCK_WORDS_PER_SECOND", "inf"),
    ("STORE_MAX_AGE_DAYS", "inf"),
    ("STORE_MAX_AGE_DAYS", "1e300"),
    ("MAX_BODY_BYTES", "9" * 400),
    ("TOTAL_TIMEOUT_SECONDS", "soon"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_setting_is_named_in_one_line(env: pytest.MonkeyPatch, name: str, value: str) -> None:
    env.setenv(name, value)
    with pytest.raises(ValueError, match=name) as caught:
        Settings.load(NO_FILE)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


GOOD_URLS = [
    "HTTP://Bot",
    "http://my_bot:65535/x",
    "http://localhost.",
    "https://münchen.de/ü x",
    "http://[::1]:80/x",
]
GOOD_URLS += [
    "http://user:p@ss:word@bot/",
    "http://bot/%7Bmodel%7D?k=%7Bv%7D#f",
    "http://127.0.0.1:/",
    "http://[fe80::1%lo]/",
]


@pytest.mark.parametrize("url", [*GOOD_URLS, "https://xn--ls8h.example/"])
def test_a_url_that_can_be_asked_is_taken(env: pytest.MonkeyPatch, url: str) -> None:
    env.setenv("CHAT_URL", url)
    assert create_app(Settings.load(NO_FILE)).gateway.backend.name == "chat-url"


REVOKED = sign("a secret", "eve")
AT_ODDS = [
    ({"chat_shape": "ollama"}, "CHAT_SHAPE is set, and CHAT_URL is not"),
    ({"chat_key": "hunter2"}, "CHAT_KEY is set, and CHAT_URL is not"),
    ({"chat_headers": {"X-Key": "hunter2"}}, "CHAT_HEADERS is set, and CHAT_URL is not"),
    (
        {"chat_shape": "ollama", "openai_api_base": API_BASE},
        "CHAT_SHAPE is set, and CHAT_URL is not",
    ),
    ({"chat_url": "http://[::1/x"}, "CHAT_URL: "),
    ({"chat_url": CHAT_URL, "chat_key": "hunter2\n"}, "CHAT_URL: "),
    ({"chat_url": CHAT_URL, "chat_headers": {"X-Key": "hunter2€"}}, "CHAT_URL: "),
    ({"chat_url": f"{CHAT_URL}/{{bot}}", "chat_shape": "dify"}, "CHAT_URL: "),
    ({"openai_api_base": API_BASE, "openai_api_key": "hunter2\n"}, "OPENAI_API_BASE: "),
    ({"revoked_keys": ("0" * 16, "alice")}, "REVOKED_KEYS: entry 2 is neither"),
    ({"revoked_keys": (REVOKED[:-1],)}, "REVOKED_KEYS: entry 1 is neither"),
    ({"revoked_keys": (f"{REVOKED}  # 'eve'",)}, "REVOKED_KEYS: entry 1 is neither"),
]


@pytest.mark.parametrize(("settings", "says"), AT_ODDS)
def test_settings_that_cannot_be_stop_the_start_with_one_line(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=f"^{says}") as caught:
        create_app(Settings(**settings))
    assert "\n" not in str(caught.value)
    assert not [secret for secret in ("hunter2", REVOKED[-20:-1]) if secret in str(caught.value)]


def test_what_is_for_a_chat_url_may_stand_beside_the_mock_and_a_file_of_backends() -> None:
    aside: dict[str, Any] = {"chat_shape": "ollama", "chat_key": "k", "chat_headers": {"X": "y"}}
    assert create_app(Settings(use_mock_api=True, **aside)).gateway.backend.name == "mock"
    with pytest.raises(ValueError, match=r"^CONFIG: /none cannot be read"):
        create_app(Settings(config="/none", **aside))


async def test_a_key_is_revoked_by_its_id_or_whole() -> None:
    good = sign("a secret", "ada")
    for entry in (REVOKED, REVOKED.split(".")[0][-16:], REVOKED.split(".")[0][-16:].upper()):
        some = client(rewrap(secret_key=("a secret",), revoked_keys=(entry,)))
        answers = [
            await some.post(CHAT, json=ASKED, headers={"api-key": key}) for key in (REVOKED, good)
        ]
        assert [answer.status_code for answer in answers] == [401, 200]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "abc"),
        ("CHAT_URL", "http://[::1/x"),
        ("CHAT_SHAPE", "ollama"),
        ("REVOKED_KEYS", "x"),
    ],
)
def test_a_bad_setting_stops_the_start_with_one_line(name: str, value: str) -> None:
    run = subprocess.run(
        [sys.executable, "main.py"],
        cwd=ROOT,
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert run.returncode != 0
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"rewrap: {name}")


def test_without_settings_the_mock_serves_on_loopback_without_keys(env: pytest.MonkeyPatch) -> None:
    settings = Settings.load(NO_FILE)
    assert settings == Settings()
    assert (settings.host, settings.port, settings.api_keys) == ("127.0.0.1", 8000, ())
    assert (settings.invalid_request_status, settings.upstream_failure_status) == (400, 502)


def test_settings_come_from_the_env_file_and_the_environment_wins(
    env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "# a comment\nPORT=9001\nHOST = 0.0.0.0\nAPI_KEYS=a, b,\nUSE_MOCK_API=Yes\nLOG_LEVEL=DEBUG\nOPENAI_MODEL=\n"
        'CHAT_HEADERS={"Authorization": "Bearer x"}\nSTALL_TIMEOUT_SECONDS=1.5\nCHAT_URL="http://bot.example/chat"\n'
    )
    env.setenv("PORT", "9002")
    settings = Settings.load(str(file))
    assert (settings.port, settings.host, settings.api_keys, settings.use_mock_api) == (
        9002,
        "0.0.0.0",
        ("a", "b"),
        True,
    )
    assert (settings.log_level, settings.openai_model, settings.stall_timeout_seconds) == (
        "debug",
        "",
        1.5,
    )
    assert (settings.chat_headers, settings.chat_url) == (
        {"Authorization": "Bearer x"},
        "http://bot.example/chat",
    )


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("\ufeffCHAT_SHAPE=x", "x"),  # as Notepad writes it
        ("export CHAT_SHAPE=x", "x"),
        ("  export  CHAT_SHAPE = x  ", "x"),
        ("CHAT_SHAPE=x # my bot", "x"),
        ("CHAT_SHAPE=x\t#my bot", "x"),
        ("CHAT_SHAPE= # none", ""),
        ("CHAT_SHAPE=x#1", "x#1"),
        ("CHAT_SHAPE=#1", "#1"),
        ("CHAT_SHAPE='x # 1'", "x # 1"),
        ('CHAT_SHAPE="x # 1" # it\'s "mine"', "x # 1"),
        ("CHAT_SHAPE=it's # don't", "it's"),
        ('CHAT_SHAPE="x', '"x'),
        ("CHAT_SHAPE=a=b", "a=b"),
        ("#CHAT_SHAPE=x", None),
        ("CHAT_SHAPE", None),
        ("CHAT_SHAPE=x\u2028y", "x\u2028y"),
    ],
)
def test_lines_of_the_env_file_mean_what_they_do_elsewhere(
    env: pytest.MonkeyPatch, tmp_path: Path, line: str, value: str | None
) -> None:
    (tmp_path / ".env").write_text(f"{line}\r\nPORT=9001\n", encoding="utf-8", newline="")
    settings, found = Settings.load(str(tmp_path / ".env")), variables(str(tmp_path / ".env"))
    assert (settings.chat_shape, settings.port) == (value or "", 9001)
    assert (found.get("CHAT_SHAPE"), found["PORT"]) == (value, "9001")


@pytest.mark.parametrize("end", ["", " # mine", ' # {"not": "this"'])
def test_headers_in_the_env_file_may_have_a_hash(
    env: pytest.MonkeyPatch, tmp_path: Path, end: str
) -> None:
    (tmp_path / ".env").write_text('CHAT_HEADERS={"X-A": "b # c", "X-D": "e"}' + end)
    assert Settings.load(str(tmp_path / ".env")).chat_headers == {"X-A": "b # c", "X-D": "e"}


def test_an_env_file_that_cannot_be_read_is_named_in_one_line(
    env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"OPENAI_MODEL=caf\xe9\n")
    for load in (Settings.load, variables):
        with pytest.raises(ValueError, match=r"\.env: not UTF-8$"):
            load(str(file))


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("http://localhost:3000/", "http://localhost:3000"),
        ("HTTPS://App.Example", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("http://app.example:80/", "http://app.example"),
        ("https://app.example:80", "https://app.example:80"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("null", "null"),
        ("*", "*"),
    ],
)
def test_an_origin_is_taken_as_browsers_write_it(
    env: pytest.MonkeyPatch, given: str, origin: str
) -> None:
    env.setenv("ALLOW_ORIGINS", f"https://a.example,{given}")
    assert Settings.load(NO_FILE).allow_origins == ("https://a.example", origin)


def test_allowed_origin_goes_by_both_names(env: pytest.MonkeyPatch) -> None:
    env.setenv("ALLOWED_ORIGIN", "https://old.example")
    assert Settings.load(NO_FILE).allow_origins == ("https://old.example",)
    env.setenv("ALLOW_ORIGINS", "https://a.example, https://b.example")
    assert Settings.load(NO_FILE).allow_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize("name", ["API_KEYS", "SECRET_KEY", "PORT"])
def test_a_setting_that_is_not_utf_8_is_named(env: pytest.MonkeyPatch, name: str) -> None:
    env.setenv(name, "\udcff1")
    with pytest.raises(ValueError, match=f"^{name} is not UTF-8$"):
        Settings.load(NO_FILE)


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "backend"),
    [
        ({}, "mock"),
        ({"openai_api_key": "sk-lies-in-the-shell"}, "mock"),
        ({"chat_url": CHAT_URL}, "chat-url"),
        ({"openai_api_base": API_BASE}, "openai"),
        ({"chat_url": CHAT_URL, "use_mock_api": True}, "mock"),
        ({"openai_api_base": API_BASE, "use_mock_api": True}, "mock"),
    ],
)
async def test_who_answers_is_who_was_named(settings: dict[str, Any], backend: str) -> None:
    router = respx.MockRouter()
    router.get(f"{API_BASE}/models").respond(json={"data": []})
    answer = await client(rewrap(router, **settings)).get("/info")
    assert answer.json()["backends"] == [backend]


async def test_the_start_says_in_one_line_who_answers(caplog: pytest.LogCaptureFixture) -> None:
    url = "http://user:sk-pass@bot.internal:9000/hooks/5f0c1f2e-sk-77aa-0a1b2c3d/chat?key=sk-query"
    app = rewrap(chat_url=url, chat_headers={"X": "sk-header"})
    async with app.router.lifespan_context(app):
        pass
    (line,) = caplog.messages
    assert "chat-url" in line
    assert "bot.internal:9000/hooks/***/chat" in line
    assert "sk-" not in line


# The log.


async def logged(
    caplog: pytest.LogCaptureFixture, app: Rewrap, *requests: tuple[str, str, Any]
) -> list[httpx.Response]:
    """The answers; what is logged in the meantime is in caplog, without the line of the start."""
    async with app.router.lifespan_context(app):
        caplog.clear()
        some = client(app)
        return [
            await some.request(method, f"http://proxy{path}", json=body)
            for method, path, body in requests
        ]


def access_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for message in caplog.messages for line in message.split("\n")]


@pytest.mark.parametrize("way", ["chat_url", "openai_api_base"])
@pytest.mark.parametrize("apart", [False, True], ids=["in one read", "in a read each"])
async def test_an_upstreams_tokens_are_logged(
    way: str, apart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    counts = {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33}
    events = [
        data(chunk({"content": "Hi"})),
        data(chunk({}, "stop")),
        data({"choices": [], "usage": counts}),
    ]
    events = [*events, data("[DONE]")] if apart else [b"".join([*events, data("[DONE]")])]

    def answers(request: httpx.Request) -> httpx.Response:
        if json.loads(request.content)["stream"]:
            return streamed(*events)
        return httpx.Response(200, json=openai_object({"content": "Hi"}, usage=counts))

    router = respx.MockRouter()
    router.post(url__regex=".*").mock(side_effect=answers)
    app = rewrap(router, **{way: API_BASE})
    await logged(
        caplog, app, *(("POST", CHAT, ASKED | {"stream": stream}) for stream in (False, True))
    )
    assert [" tokens=11+22 " in line for line in access_lines(caplog)] == [True, True], caplog.text


async def test_a_request_is_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    requests = [
        ("POST", CHAT, ASKED),
        ("POST", CHAT, ASKED | {"stream": True}),
        ("GET", "/v1/nothing", None),
    ]
    requests += [("POST", "/ask", ASKED), ("POST", CHAT, ASKED | {"n": 0})]
    answers = await logged(caplog, rewrap(), *requests)
    lines = access_lines(caplog)
    assert len(lines) == len(answers)
    for line, answer, (method, path, _) in zip(lines, answers, requests, strict=True):
        assert line.startswith(f"{method} {path} {answer.status_code} ")
        assert f"id={answer.headers['x-request-id']}" in line
        assert re.search(r" first_byte=\d+\.\d+ms total=\d+\.\d+ms", line)
        assert "Greet" not in line
    counts = answers[0].json()["usage"]
    for line in lines[:2]:
        assert (
            f" model=gpt-4o backend=mock tokens={counts['prompt_tokens']}+{counts['completion_tokens']}"
            in line
        )
    assert "backend=mock" in lines[3]
    assert "model" not in lines[2]


async def test_a_failure_is_logged_with_its_reason_and_without_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    router, _ = mocked(CHAT_URL, httpx.Response(500, text=LEAK))
    app = rewrap(router, chat_url=CHAT_URL, chat_headers={"X": "sk-upstream-0123456789"})
    await logged(caplog, app, ("POST", CHAT, ASKED))
    reason, line = access_lines(caplog)
    assert "the upstream answered 500" in reason
    assert " 502 " in line
    assert re.search(r" error=\S.*\b500\b", line)
    assert "sk-" not in caplog.text


async def test_payloads_are_logged_at_debug_alone_with_keys_masked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = [
        "sk-abcdefghijkl",
        "my-own-key",
        "AIzaSyA-0123456789",
        "hunter2hunter2",
        "plain-upstream-key",
    ]
    content = f"Greet {keys[0]}, {keys[1]}, {keys[4]} and Authorization: Bearer {keys[2]}."
    asked = {"model": "m", "messages": [{"role": "user", "content": content}], "api_key": keys[3]}
    body = json.dumps(asked).encode()
    for level in ("info", "debug"):
        app = rewrap(log_level=level, api_keys=(keys[1],), openai_api_key=keys[4])
        async with app.router.lifespan_context(app):
            caplog.clear()
            await client(app).post(
                CHAT, content=body, headers={"authorization": f"Bearer {keys[1]}"}
            )
        assert ("Greet" in caplog.text) is (level == "debug")
        assert [key for key in keys if key in caplog.text] == []


@pytest.mark.parametrize("depth", [0, 1, 2])
async def test_keys_in_the_arguments_of_tools_are_masked(
    caplog: pytest.LogCaptureFixture, depth: int
) -> None:
    told: Any = {
        "api_key": "SECRET123456",
        "password": "hunter2222",
        "Authorization": "Bearer abc.def",
        "city": "Rome",
    }
    for _ in range(depth):
        told = json.dumps({"arguments": json.dumps(told)})
    app = rewrap(log_level="debug")
    async with app.router.lifespan_context(app):
        await client(app).post(CHAT, json=ASKED | {"x": told})
    assert "Rome" in caplog.text
    assert [key for key in ("SECRET123456", "hunter2222", "abc.def") if key in caplog.text] == []


async def test_control_characters_are_escaped_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    forged = "x\r\nPOST /forged 200\x1b[31m\u2028\u0085"
    asked = {"model": forged, "messages": [{"role": "user", "content": forged}]}
    raw = json.dumps(asked, ensure_ascii=False).replace("\\u001b", "\x7f").encode() + b"\n\r\n"
    app = rewrap(log_level="debug")
    async with app.router.lifespan_context(app):
        caplog.clear()
        some = client(app)
        for request in (
            some.post(CHAT, content=raw),
            some.get("/v1/%0D%0Aforged%1B[31m%E2%80%A8"),
            some.get("/%00%FF"),
        ):
            assert (await request).status_code in (200, 404)
    lines = access_lines(caplog)
    assert len(lines) == 4  # one payload, three requests
    assert all(line.isprintable() and line.isascii() for line in lines)


# The documents, and which way imports run.

ENV_EXAMPLE, README = ROOT / ".env.example", ROOT / "README.md"
SETTINGS_PAGE = ROOT / "docs" / "settings.md"


def documented(word: str, document: str) -> bool:
    return bool(re.search(rf"(?<![\w/}}]){re.escape(word)}(?![\w/{{])", document))


@pytest.mark.parametrize("file", [SETTINGS_PAGE, ENV_EXAMPLE], ids=["settings.md", ".env.example"])
def test_every_setting_is_documented(file: Path) -> None:
    document = file.read_text()
    names = [spec.name.upper() for spec in fields(Settings)]
    assert [name for name in names if not documented(name, document)] == []


def test_the_example_of_settings_is_one(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As it stands it loads; each setting in a comment loads too, and no name in it is unknown."""
    Settings.load(str(ENV_EXAMPLE))
    named = re.findall(r"^#? ?([A-Z][A-Z_]+)=", ENV_EXAMPLE.read_text(), re.MULTILINE)
    assert set(named) <= set(known_variables())
    file = tmp_path / ".env"
    file.write_text(
        re.sub(r"^# ?(?=[A-Z][A-Z_]+=)", "", ENV_EXAMPLE.read_text(), flags=re.MULTILINE)
    )
    Settings.load(str(file))


def test_every_route_is_documented() -> None:
    document = README.read_text()
    paths = {re.sub(r":\w+}", "}", route.path) for route in rewrap().routes}  # type: ignore[attr-defined]
    missing = [
        path
        for path in paths
        if not documented(path, document) and not documented(f"/v1{path}", document)
    ]
    assert missing == []


ROOMS = ("api", "server", "upstream", "mock", "storage", "config", "web", "testing")
DOORS = ("__init__", "__main__", "cli", "probe", "pytest_plugin")  # they start the app or a command
ALSO_ALLOWED = {
    "api": {"storage"},
    "testing": {"mock", "server"},
}  # rooms that a room may import beside itself


def imports_of(file: Path) -> set[str]:
    """The project's modules that a file imports anywhere in it, by name: "rewrap.api.chat"."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if is_module(name)} or {module}
    return {name for name in found if name.split(".")[0] in ("rewrap", "main", "backends")}


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def is_leaf(name: str) -> bool:
    """Whether a module is a file of its own in rewrap/, and not a door."""
    parts = name.split(".")
    if parts == ["rewrap"]:
        return True  # its version
    return len(parts) == 2 and parts[1] not in (*ROOMS, *DOORS, "main", "backends")


def test_imports_run_one_way() -> None:
    for room in ROOMS:
        allowed = {room} | ALSO_ALLOWED.get(room, set())
        for file in (ROOT / "rewrap" / room).rglob("*.py"):
            for name in imports_of(file):
                inside = name.split(".")[1:2] and name.split(".")[1] in allowed
                assert inside or is_leaf(name), f"{room}/{file.name} imports {name}"
    for file in (ROOT / "rewrap").glob("*.py"):
        if file.stem not in DOORS:
            for name in imports_of(file):
                assert is_leaf(name), f"{file.name} imports {name}"


# Functions of one product each, named as the placeholders that they fill: `{anthropic.messages}`.
PRODUCTS = ("anthropic", "cohere", "gemini", "ollama")


def test_no_two_definitions_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    files = [ROOT / "main.py", ROOT / "backends.py", *(ROOT / "rewrap").rglob("*.py")]
    for file in files:
        if file.stem in PRODUCTS:
            continue
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                places.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    del places["__getattr__"]  # Python's own name
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_backends_import_neither_the_server_nor_the_apis() -> None:
    for name in imports_of(ROOT / "backends.py"):
        room = name.split(".")[1]
        assert room in ("upstream", "config", "mock") or is_leaf(name), name
    assert "starlette" not in (ROOT / "backends.py").read_text().replace("never Starlette", "")


def test_no_file_wraps_streams_in_base_http_middleware() -> None:
    for file in [ROOT / "main.py", *(ROOT / "rewrap").rglob("*.py")]:
        assert "BaseHTTPMiddleware" not in file.read_text(), file.name


def test_the_log_of_the_app_is_its_own() -> None:
    rewrap(log_level="debug")
    assert logging.getLogger("rewrap").level == logging.DEBUG
    assert logging.getLogger().level != logging.DEBUG
