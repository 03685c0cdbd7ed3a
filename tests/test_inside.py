"""The app inside other programs: an event loop for each test, a second start, below a prefix, mounted in another app."""

import asyncio
import gc
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import UVICORN, running
from serving import ASKED, served
from starlette.applications import Starlette
from starlette.routing import Mount

from rewrap.config.settings import Settings
from rewrap.main import Rewrap, create_app
from rewrap.types import ChatRequest

CHAT = "/v1/chat/completions"


def app_of(**settings: Any) -> Rewrap:
    return create_app(Settings(**{"store_url": "sqlite://"} | settings))


async def asked(app: Any, path: str = CHAT, method: str = "POST", **request: Any) -> httpx.Response:
    transport = httpx.ASGITransport(
        app, raise_app_exceptions=False, root_path=request.pop("root_path", "")
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        return await client.request(
            method, path, **{"json": ASKED if method == "POST" else None} | request
        )


# ---- Loops


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # what the first loop has left open
@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("kind", ["mock", "upstream"])
def test_an_app_serves_in_one_event_loop_after_the_other(kind: str) -> None:
    with served() as url:
        app = (
            app_of(chat_url=f"{url}/ask")
            if kind == "upstream"
            else app_of(mock_words_per_second=1e6)
        )
        for _ in range(3):
            answer = asyncio.run(asked(app))
            assert answer.status_code == 200, answer.text


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.usefixtures("collected")
def test_lines_that_waited_when_their_loop_ended_are_logged_by_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = app_of()
    asyncio.run(asked(app))

    async def again() -> None:
        await asked(app)
        while app.edge.access_log.lines:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(again(), 5))
    assert [line.split()[1] for message in caplog.messages for line in message.split("\n")] == [
        CHAT,
        CHAT,
    ]


@pytest.mark.parametrize("kind", ["mock", "upstream"])
def test_an_app_starts_again_after_its_end(kind: str, tmp_path: Path) -> None:
    async def start(drained: bool) -> None:
        async with app.router.lifespan_context(app):
            for _ in range(2):
                answer = await asked(app)
                assert answer.status_code == 200, answer.text
            if drained:
                await app.edge.drain()
                assert (await asked(app)).status_code == 503

    with served() as url:
        store = {"store_url": f"sqlite:///{tmp_path}/chat.db"}
        app = app_of(chat_url=f"{url}/ask", **store) if kind == "upstream" else app_of(**store)
        for drained in (False, True, False):
            asyncio.run(start(drained))


# ---- Memory


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["mock", "upstream"])
def test_no_request_stays_in_memory_until_the_garbage_is_collected(kind: str, stream: bool) -> None:
    def chats() -> list[ChatRequest]:
        return [found for found in gc.get_objects() if isinstance(found, ChatRequest)]

    async def ask() -> int:
        async with app.router.lifespan_context(app):
            for _ in range(3):
                await asked(app, json=ASKED | {"stream": stream})
                await asyncio.sleep(0)
            return len(chats())

    with served() as url:
        app = app_of(chat_url=f"{url}/ask") if kind == "upstream" else app_of()
        gc.collect()
        before = len(chats())
        gc.disable()
        try:
            assert asyncio.run(ask()) == before
        finally:
            gc.enable()


# ---- Prefixes

BOTH = ["sh", "-c", 'exec "$@" 1>&2', "sh", *UVICORN]  # its access log goes to stdout


@pytest.mark.parametrize(
    "path", ["/llm/v1/models", "/llm/models", "/llm//v1/models/", "/llm/v1/v1/models"]
)
@pytest.mark.parametrize("inner", ["", "/llm"])  # what a proxy has taken off, or left
@pytest.mark.anyio
async def test_below_a_prefix_every_spelling_of_a_path_is_served(path: str, inner: str) -> None:
    answer = await asked(app_of(), f"{inner}{path}", "GET", root_path="/llm")
    assert answer.status_code == 200, answer.text
    chat = await asked(app_of(), f"{inner}/llm{CHAT}", root_path="/llm/")
    assert chat.status_code == 200, chat.text


@pytest.mark.parametrize("prefix", ["/llm", "/v1", "/chat", "/models", "/a/b"])
@pytest.mark.anyio
async def test_mounted_in_another_app_all_routes_are_served(prefix: str) -> None:
    outer = Starlette(routes=[Mount(prefix, app_of())])
    for path in ("/v1/chat/completions", "/chat/completions", "/ask", "/v1/ask"):
        answer = await asked(outer, f"{prefix}{path}")
        assert answer.status_code == 200, (path, answer.text)
    for path in (
        "/",
        "/health",
        "/v1/models",
        "/models",
        "/v1/models/mock-gpt-model",
        "/info",
        "/openapi.json",
    ):
        answer = await asked(outer, f"{prefix}{path}", "GET")
        assert answer.status_code == 200, (path, answer.text)
    assert (await asked(outer, f"{prefix}/v1/nothing", "GET")).status_code == 404


@pytest.mark.anyio
async def test_uvicorn_serves_below_a_root_path_and_one_line_a_request_is_logged() -> None:
    async with running([*BOTH, "--root-path", "/llm"]) as process, httpx.AsyncClient() as client:
        for path in ("/v1/models", "/llm/v1/models"):
            assert (await client.get(process.url + path)).status_code == 200
        process.signal()
        await process.exit_code(10)
    lines = [line for line in process.lines if "/models" in line]
    assert len(lines) == 2, process.log
    assert all("GET /llm/" in line and " id=req_" in line for line in lines)


@pytest.mark.anyio
async def test_where_ours_are_off_uvicorns_lines_name_the_path_as_it_came() -> None:
    async with running(BOTH, LOG_LEVEL="warning") as process, httpx.AsyncClient() as client:
        assert (await client.get(f"{process.url}/v1/models")).status_code == 200
        process.signal()
        await process.exit_code(10)
    lines = [line for line in process.lines if "/models" in line]
    assert ["GET /v1/models HTTP/1.1" in line for line in lines] == [True], process.log


def test_mounted_the_other_apps_access_log_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    access = logging.getLogger("uvicorn.access")
    monkeypatch.setattr(access, "disabled", False)
    assert (
        asyncio.run(asked(Starlette(routes=[Mount("/llm", app_of())]), f"/llm{CHAT}")).status_code
        == 200
    )
    assert not access.disabled


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
