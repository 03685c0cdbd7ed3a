"""Owners: sessions of upstreams, lists of models and stored chats of one client are no other's."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import ASKED
from upstreams import JSON, Upstream, says, sends, whole

from rewrap.config.settings import Settings
from rewrap.ids import owner_id, random_hex, session_name
from rewrap.main import create_app

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
RASA = {"chat_shape": "rasa"}
ALICE, MALLORY = "key-of-alice-1", "key-of-mallory"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def client(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(store_url="sqlite://", **settings))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http


def rasa() -> Upstream:
    answer = json.dumps([{"recipient_id": "x", "text": "hi"}]).encode()
    return Upstream(sends(lambda request: whole(JSON, answer)))


async def session(http: httpx.AsyncClient, up: Upstream, key: str = "", **more: Any) -> str:
    """The session that the upstream gets."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = await http.post(CHAT, json=ASKED | more, headers=headers)
    assert answer.status_code == 200, answer.text
    sender: str = up.requests[-1].json()["sender"]
    return sender


@pytest.mark.parametrize("name", ["session_id", "conversation_id", "session", "user"])
async def test_two_owners_share_no_session_whatever_they_name_it(name: str) -> None:
    async with rasa() as up:
        url = f"{up.url}/webhooks/rest/webhook"
        async with client(chat_url=url, api_keys=(ALICE, MALLORY), **RASA) as http:
            alice = await session(http, up, ALICE, **{name: "alice"})
            assert await session(http, up, ALICE, **{name: "alice"}) == alice
            assert alice not in (await session(http, up, MALLORY, **{name: "alice"}), "alice")
            # Who knows the derived name cannot ask for it either.
            assert await session(http, up, MALLORY, **{name: alice}) != alice


async def test_nobody_joins_the_session_of_a_stored_chat() -> None:
    async with rasa() as up:
        url = f"{up.url}/webhooks/rest/webhook"
        async with client(chat_url=url, api_keys=(ALICE, MALLORY), **RASA) as http:
            headers = {"authorization": f"Bearer {ALICE}"}
            stored = (await http.post(CHAT, json=ASKED | {"store": True}, headers=headers)).json()
            first = up.requests[-1].json()["sender"]
            assert await session(http, up, ALICE, completion_id=stored["id"]) == first
            assert await session(http, up, MALLORY, session_id=stored["id"]) != first


async def test_on_an_open_server_without_keys_the_name_is_the_session() -> None:
    async with rasa() as up:
        async with client(chat_url=f"{up.url}/webhooks/rest/webhook", **RASA) as http:
            assert await session(http, up, user="bob") == "bob"


def test_the_name_of_a_session_depends_on_owner_and_name() -> None:
    names = {session_name(owner, name) for owner in ("a", "ab", "b") for name in ("c", "bc", "")}
    assert len(names) == 9
    assert all(len(name) == 32 for name in names)
    assert session_name("a", "\ud800") != session_name("a", "\ud801")


def test_ids_are_never_the_same() -> None:
    ids = [random_hex() for _ in range(10_000)]
    assert len(set(ids)) == 10_000
    assert all(len(id) == 32 and int(id, 16) >= 0 for id in ids)


async def test_every_credential_is_an_owner_of_its_own_on_an_open_server() -> None:
    credentials = [
        {"authorization": "Bearer one"},
        {"authorization": "Bearer two"},
        {"authorization": "Basic b25lOg=="},
        {"authorization": "Basic dHdvOg=="},
        {"api-key": "three"},
        {},
    ]
    async with client(use_mock_api=True) as http:
        for position, headers in enumerate(credentials):
            answer = await http.post(CHAT, json=ASKED | {"store": True}, headers=headers)
            assert answer.status_code == 200
            listed = (await http.get(CHAT, headers=headers)).json()["data"]
            assert [row["id"] for row in listed] == [answer.json()["id"]], position


def test_the_owner_of_a_credential_hides_it() -> None:
    for identity in ("open:Basic b25lOg==", "key:sk-secret"):
        assert identity.partition(":")[2] not in owner_id(identity)


# ---- lists of models


def models(*names: str) -> bytes:
    return json.dumps({"data": [{"id": name} for name in names]}).encode()


async def test_the_public_list_and_a_clients_own_are_kept_apart() -> None:
    async def answer(request: Any, reader: Any, writer: Any) -> None:
        key = request.headers.get("authorization", "")
        if key == "Bearer wrong":
            await says(401, b'{"error": {"message": "Wrong key."}}')(request, reader, writer)
            return
        await says(200, models(key or "public"))(request, reader, writer)

    async def listed(http: httpx.AsyncClient, key: str = "") -> Any:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        found = await http.get("/v1/models", headers=headers)
        return [card["id"] for card in found.json().get("data", [])] or found.status_code

    async with Upstream(answer) as up:
        async with client(openai_api_base=f"{up.url}/v1") as http:
            for _ in range(2):
                assert await listed(http) == ["public"]
                assert await listed(http, "one") == ["Bearer one"]
                assert await listed(http, "two") == ["Bearer two"]
                assert await listed(http, "wrong") == 401
            assert len(up.requests) == 3 + 2  # each list once, and no failure is kept


# ---- members that decide the route

ROUTES = """
[[backend]]
name = "cheap"
url = "{url}/v1"
kind = "openai"
models = ["cheap"]
[[backend]]
name = "dear"
url = "{url}/v1"
kind = "openai"
models = ["dear"]
"""


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"model":"dear","messages":[{"role":"user","content":"x"}],"model":"cheap"}', 400),
        (b'{"mod\\u0065l":"dear","messages":[{"role":"user","content":"x"}],"model":"cheap"}', 400),
        (b'{"model":"dear","messages":[{"role":"user","content":"x"}],"\\u006dodel":"cheap"}', 400),
        (b'{"model":"cheap","messages":[{"role":"user","content":"the \\"model\\""}]}', 200),
        (b'{"model":"cheap","messages":[{"role":"user","content":"a"}],"x":{"model":"y"}}', 200),
        (b'{"model":"cheap","messages":[{"role":"user","content":"\\u0067"}]}', 200),
    ],
)
async def test_a_body_that_names_two_models_is_refused_where_they_decide_the_backend(
    body: bytes, status: int, tmp_path: Path
) -> None:
    completion = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "cheap",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
        ],
    }
    async with Upstream(sends(lambda request: whole(JSON, json.dumps(completion).encode()))) as up:
        file = tmp_path / "backends.toml"
        file.write_text(ROUTES.format(url=up.url))
        async with client(config=str(file)) as http:
            answer = await http.post(CHAT, content=body)
            assert answer.status_code == status, answer.text
            assert len(up.requests) == (status == 200)
