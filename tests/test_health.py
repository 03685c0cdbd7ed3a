"""Health checks: /livez and /readyz, for every state of the server, its store and its backends."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import running
from serving import ASKED

from rewrap.api.openapi import document
from rewrap.config.settings import Settings
from rewrap.main import Rewrap, create_app
from rewrap.storage.base import PING_SECONDS
from rewrap.upstream import traffic

CHAT = "/v1/chat/completions"
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def app_of(**settings: Any) -> Rewrap:
    return create_app(Settings(**{"store_url": "sqlite://"} | settings))


def client_of(app: Rewrap) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://proxy")


async def test_a_server_with_keys_answers_health_checks_without_one_and_for_any_host() -> None:
    async with client_of(app_of(api_keys=("sk-one",))) as client:
        live = await client.get("/livez", headers={"host": "10.1.2.3:8000"})
        ready = await client.get("/readyz", headers={"host": "10.1.2.3:8000"})
    assert (live.status_code, live.json()) == (200, {"status": "live"})
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "store": True, "backends": {"mock": True}}


async def test_a_store_whose_folder_is_missing_is_not_ready_and_no_file_is_made(
    tmp_path: Path,
) -> None:
    store = tmp_path / "folder" / "chat.db"
    app = app_of(store_url=f"sqlite:///{store}")
    async with client_of(app) as client:
        missing = await client.get("/readyz")
        store.parent.mkdir()
        app.gateway.store.asked_at -= PING_SECONDS
        there = await client.get("/readyz")
    assert (missing.status_code, missing.json()["status"]) == (503, "not ready")
    assert missing.json()["store"] is False
    assert there.status_code == 200
    assert not store.exists()


async def test_a_store_whose_file_was_deleted_is_not_ready(tmp_path: Path) -> None:
    store = tmp_path / "chat.db"
    app = app_of(store_url=f"sqlite:///{store}")
    async with app.router.lifespan_context(app), client_of(app) as client:
        await client.post(CHAT, json=ASKED | {"store": True})
        before = await client.get("/readyz")
        store.unlink()
        app.gateway.store.asked_at -= PING_SECONDS
        after = await client.get("/readyz")
    assert (before.status_code, after.status_code) == (200, 503)


async def test_the_store_is_asked_once_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    pings = 0

    async def ping() -> None:
        nonlocal pings
        pings += 1

    app = app_of()
    monkeypatch.setattr(app.gateway.store, "ping", ping)
    async with client_of(app) as client:
        for _ in range(10):
            assert (await client.get("/readyz")).status_code == 200
    assert pings == 1


async def test_a_store_that_is_silent_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ping() -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr("rewrap.storage.base.PING_TIMEOUT_SECONDS", 0.05)
    app = app_of()
    monkeypatch.setattr(app.gateway.store, "ping", ping)
    async with client_of(app) as client:
        assert (await client.get("/readyz")).json()["store"] is False


async def test_a_server_that_stops_lives_and_is_not_ready() -> None:
    async with running(MOCK_WORDS_PER_SECOND="3", GRACE_SECONDS="20") as process:
        async with httpx.AsyncClient(base_url=process.url) as client:
            asked = ASKED | {"stream": True}
            async with client.stream("POST", CHAT, json=asked) as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                process.signal()
                async with asyncio.timeout(5):
                    while (await client.get("/readyz")).status_code != 503:
                        await asyncio.sleep(0.02)
                live = await client.get("/livez")
                rest = [line async for line in lines]
        assert live.status_code == 200
        assert rest[-2] == "data: [DONE]"
        assert await process.exit_code(10) == 0


def test_health_checks_have_no_403_in_the_document() -> None:
    paths = document("1")["paths"]
    for path in ("/health", "/livez", "/readyz"):
        assert "403" not in paths[path]["get"]["responses"]


async def test_an_upstream_that_cannot_be_reached_is_not_ready_until_it_answers_or_time_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = True

    def answer(request: httpx.Request) -> httpx.Response:
        if away:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={"reply": "Hello"})

    settings = Settings(store_url="sqlite://", chat_url="http://upstream/chat")
    app = create_app(settings, transport=httpx.MockTransport(answer))
    async with client_of(app) as client:
        assert (await client.get("/readyz")).status_code == 200  # no traffic yet
        assert (await client.post(CHAT, json=ASKED)).status_code == 502
        unready = await client.get("/readyz")
        assert (unready.status_code, unready.json()["backends"]) == (503, {"chat-url": False})
        assert (await client.get("/livez")).status_code == 200
        away = False
        assert (await client.post(CHAT, json=ASKED)).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        away = True
        assert (await client.post(CHAT, json=ASKED)).status_code == 502
        assert (await client.get("/readyz")).status_code == 503
        monkeypatch.setattr(traffic, "FORGET_SECONDS", 0.0)
        assert (await client.get("/readyz")).status_code == 200
