"""Which requests are rejected here: all that OpenAI would reject in front of the mock, few in front of an upstream."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from rewrap.config.settings import Settings
from rewrap.main import create_app
from rewrap.types import ChatRequest
from rewrap.upstream.models import model_cards

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
TOOL = {"type": "function", "function": {"name": "f"}}
COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    ],
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Upstream:
    """Answers every request with a completion, and keeps their bodies."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "listed"}]})
        self.bodies.append(request.content)
        return httpx.Response(200, json=COMPLETION)


def client(
    upstream: Upstream | None = None, backend: Any = None, **settings: Any
) -> httpx.AsyncClient:
    app = create_app(
        Settings(store_url="sqlite://", **settings),
        transport=httpx.MockTransport(upstream or Upstream()),
        backend=backend,
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


def answer_hi(request: ChatRequest) -> str:
    return "Hi"


MAKE: dict[str, Callable[[Upstream], httpx.AsyncClient]] = {
    "mock": lambda upstream: client(use_mock_api=True),
    "function": lambda upstream: client(backend=answer_hi),
    "chat": lambda upstream: client(upstream, chat_url="http://bot.internal/chat"),
    "relay": lambda upstream: client(upstream, openai_api_base="http://llm.internal/v1"),
}
TRANSLATED = "mock function chat"
ALL = "mock function chat relay"


def said(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


CASES: list[tuple[str, dict[str, Any]]] = [
    ("mock", {"max_tokens": -1}),
    ("mock", {"stop": ["a", "b", "c", "d", "e"]}),
    ("mock", {"temperature": 2.5, "top_p": 3, "presence_penalty": -9}),
    ("mock", {"top_logprobs": 25, "logprobs": True}),
    ("mock", {"top_logprobs": 3}),
    ("mock", {"n": 500}),
    ("mock", {"tool_choice": "any", "tools": [TOOL]}),
    ("mock", {"metadata": {"tags": ["a"]}}),
    ("mock", {"response_format": {"type": "regex", "pattern": "[a-z]+"}}),
    ("mock", said({"role": "assistant", "content": None}, {"role": "user", "content": "b"})),
    ("mock", said({"role": "user"})),
    ("mock", said({"role": "narrator", "content": "Once"})),
    ("mock", said({"role": "tool", "content": "Once"})),
    (TRANSLATED, {"temperature": "hot"}),
    (TRANSLATED, {"max_tokens": 1.5}),
    (TRANSLATED, {"stop": [1]}),
    (TRANSLATED, {"stream_options": 5}),
    (TRANSLATED, {"stream_options": {"include_usage": 5}}),
    (TRANSLATED, {"tools": {}}),
    (TRANSLATED, {"tools": [{"type": "function"}]}),
    (TRANSLATED, {"tool_choice": 5}),
    (TRANSLATED, {"response_format": {"type": []}}),
    (TRANSLATED, {"response_format": {"type": "json_schema"}}),
    (TRANSLATED, {"user": 5}),
    (TRANSLATED, said({"role": 7, "content": "x"})),
    (TRANSLATED, said({"content": "x"})),
    (TRANSLATED, said({"role": "user", "content": 5})),
    (TRANSLATED, said({"role": "user", "content": [5]})),
    (TRANSLATED, said({"role": "assistant", "content": "x", "tool_calls": [5]})),
    (TRANSLATED, said()),
    (ALL, {"messages": "x"}),
    (ALL, said(1)),
    (ALL, {"messages": None}),
    (ALL, {"stream": "yes"}),
    (ALL, {"store": "yes"}),
    (ALL, {"completion_id": 5}),
    (ALL, {"model": 5}),
    (ALL, {"model": "m" * 513}),
    ("", {"temperature": 0.5, "tools": [TOOL], "tool_choice": "auto", "top_k": [], "x": {}}),
]


@pytest.mark.parametrize("kind", list(MAKE))
@pytest.mark.parametrize(("rejected_by", "members"), CASES)
async def test_a_request_is_rejected_before_its_backend_gets_it(
    kind: str, rejected_by: str, members: dict[str, Any]
) -> None:
    upstream = Upstream()
    body = orjson.dumps(HELLO | members)
    answer = await MAKE[kind](upstream).post(CHAT, content=body)
    if kind in rejected_by.split():
        assert (answer.status_code, upstream.bodies) == (400, [])
        assert answer.json()["error"]["type"] == "invalid_request_error"
    else:
        assert answer.status_code == 200, answer.text
        if kind == "relay":
            assert upstream.bodies == [body]


async def test_every_surface_leaves_the_checks_to_the_upstream() -> None:
    for kind, status in (("mock", 400), ("relay", 200)):
        some = MAKE[kind](Upstream())
        for path, body in (
            (CHAT, HELLO),
            ("/openai/deployments/m/chat/completions", HELLO),
            ("/ask", HELLO),
            ("/v1/responses", {"input": "Hello"}),
            ("/v1/completions", {"prompt": "Hello"}),
        ):
            answer = await some.post(path, json={"model": "m"} | body | {"temperature": 2.5})
            assert answer.status_code == status, (kind, path, answer.text)


async def test_metadata_that_cannot_be_stored_are_rejected_in_front_of_a_relay() -> None:
    upstream = Upstream()
    some = MAKE["relay"](upstream)
    wrong = HELLO | {"metadata": {"k": 1}}
    assert (await some.post(CHAT, json=wrong)).status_code == 200
    answer = await some.post(CHAT, json=wrong | {"store": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata.k")
    assert len(upstream.bodies) == 1


async def test_the_model_decides_about_the_checks_and_fallbacks_make_them_closer(
    tmp_path: Path,
) -> None:
    (tmp_path / "c.toml").write_text(
        """
        [[backend]]
        name = "relay"
        kind = "openai"
        url = "http://llm.internal/v1"
        models = ["free"]
        [[backend]]
        name = "careful"
        kind = "openai"
        url = "http://llm.internal/v1"
        models = ["careful"]
        fallbacks = ["mock"]
        [[backend]]
        name = "mock"
        kind = "mock"
        models = ["mock-*"]
        """
    )
    some = client(Upstream(), config=str(tmp_path / "c.toml"))
    for model, status in (("free", 200), ("careful", 400), ("mock-1", 400), ("nobody", 404)):
        answer = await some.post(CHAT, json=HELLO | {"model": model, "temperature": 2.5})
        assert answer.status_code == status, model
    for model, owner in (("free", "relay"), ("mock-7", "mock")):
        answer = await some.get(f"/v1/models/{model}")
        assert (answer.status_code, answer.json()["id"]) == (200, model)
        assert answer.json()["owned_by"] == owner
    for model in ("nobody", "mock"):
        answer = await some.get(f"/v1/models/{model}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("kind", list(MAKE))
async def test_a_model_that_a_chat_is_served_for_has_a_card(kind: str) -> None:
    some = MAKE[kind](Upstream())
    for model in ("any", "org/any:7b", "m" * 512):
        answer = await some.get(f"/v1/models/{model}")
        assert (answer.status_code, answer.json()["id"]) == (200, model)
        assert answer.json()["object"] == "model"
        assert (await some.post(CHAT, json=HELLO | {"model": model})).status_code == 200
    answer = await some.get(f"/v1/models/{'m' * 513}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


# Lists of models.


@pytest.mark.parametrize(
    "value",
    [
        {"object": "list", "data": [{"id": "a", "object": "model"}, {"id": "b", "created": 5}]},
        {"models": [{"name": "a", "model": "a", "size": 7}, {"name": "b", "model": "b"}]},
        {"models": ["a", "b"]},
        {"models": [{"name": "a"}, {"name": "b"}], "nextPageToken": "x"},
        {"data": [{"name": "a"}, "b", {"name": "a"}]},
        {"data": [{"id": None, "name": "a"}, {"id": 5, "model": "b"}, {}, 7, "", None, {"id": ""}]},
        {"model_list": [{"model_name": "a"}, {"model_name": "b"}]},
        {"data": None, "models": [{"id": "a"}, {"id": "b"}]},
        ["a", "b"],
        [{"id": "a", "type": "chat"}, {"id": "b", "type": "chat"}],
    ],
)
def test_a_list_of_models_is_understood_in_every_form(value: Any) -> None:
    cards = model_cards(value)
    assert [card["id"] for card in cards] == ["a", "b"]
    for card in cards:
        assert card["object"] == "model"
        assert isinstance(card["owned_by"], str)


def test_members_of_a_card_are_kept_and_an_empty_list_is_one() -> None:
    assert model_cards({"models": [{"name": "a", "size": 7}]})[0]["size"] == 7
    assert model_cards({"data": []}) == model_cards([]) == []


@pytest.mark.parametrize("value", [{}, {"data": {}}, {"error": "x"}, "a", 5, None])
def test_an_answer_without_a_list_of_models_raises_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match="no list"):
        model_cards(value)


# Small print.


async def test_the_details_of_an_error_on_ask_are_a_string() -> None:
    async with MAKE["mock"](Upstream()) as some:
        for body in (b"{", b"{}", b"5", orjson.dumps(HELLO | {"n": 0})):
            answer = await some.post("/ask", content=body)
            assert answer.status_code == 400
            assert set(answer.json()) == {"role", "content", "error", "details"}
            assert answer.json()["details"]
            assert isinstance(answer.json()["details"], str)


@pytest.mark.parametrize("kind", ["mock", "function", "chat"])
async def test_a_system_fingerprint_is_never_null(kind: str) -> None:
    some = MAKE[kind](Upstream())
    options = {"stream_options": {"include_usage": True}}
    for members in ({}, {"store": True}, {"stream": True}, {"stream": True} | options):
        answer = await some.post(CHAT, json=HELLO | members)
        assert answer.status_code == 200
        assert "system_fingerprint" not in answer.text
    assert "system_fingerprint" not in (await some.get(CHAT)).text
