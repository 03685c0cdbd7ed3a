"""A failure that the upstream does not explain says what the upstream answered, and what to do next."""

import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import ASKED

from rewrap.config.settings import Settings
from rewrap.main import create_app
from rewrap.upstream import explain

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
KEY = "sk-a-key-of-the-server"
EVENTS = {"content-type": "text/event-stream"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def asked(
    answer: httpx.Response, times: int = 1, stream: bool = False, **settings: Any
) -> Any:
    """The error that the client gets."""
    transport = httpx.MockTransport(lambda request: answer)
    known = {"store_url": "sqlite://", "chat_url": "http://bot/ask", "chat_key": KEY}
    app = create_app(Settings(**known | settings), transport=transport)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://127.0.0.1"
    ) as client:
        for _ in range(times):
            response = await client.post(CHAT, json=ASKED | {"stream": stream})
    return response.json()["error"]


def explanations(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "try: " in record.getMessage()]


@pytest.mark.parametrize("status", [200, 400, 422])
async def test_the_answer_and_the_next_step_are_in_the_error_and_the_log(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rewrap")
    error = await asked(httpx.Response(status, json={"fehler": "field 'frage' is required"}))
    answer = f"backend chat-url answered {status}, " + '{"fehler":"field \'frage\' is required"}'
    assert answer in error["message"]
    assert error["message"].endswith("(try: rewrap probe URL)")
    assert explanations(caplog) == [f"{answer} (try: rewrap probe URL)"]


async def test_a_public_server_keeps_the_answer_in_its_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "rewrap")
    error = await asked(httpx.Response(200, json={"odd": 1}), host="0.0.0.0")
    assert "odd" not in str(error)
    assert len(explanations(caplog)) == 1


async def test_keys_and_pages_are_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rewrap")
    error = await asked(httpx.Response(400, json={"seen": KEY}))
    assert KEY not in str(error) + caplog.text
    assert '"seen":"***"' in error["message"]
    error = await asked(httpx.Response(500, html="<h1>Traceback (most recent call last)</h1>"))
    assert "Traceback" not in str(error) + caplog.text


async def test_the_message_of_an_upstream_needs_no_explanation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "rewrap")
    error = await asked(httpx.Response(400, json={"error": {"message": "Too hot."}}))
    assert error["message"] == "Too hot."
    assert explanations(caplog) == []


async def test_a_kind_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "rewrap")
    await asked(httpx.Response(400, json={"odd": 1}), times=3)
    assert len(explanations(caplog)) == 1
    monkeypatch.setattr(explain, "SILENT_SECONDS", 0.0)
    await asked(httpx.Response(400, json={"odd": 1}), times=3)
    assert len(explanations(caplog)) == 4


async def test_a_200_without_a_reply_is_not_called_an_error_of_the_upstream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "rewrap")
    await asked(
        httpx.Response(200, json={"odd": 1}),
        config="",
        chat_shape="rasa",
    )
    assert "upstream: 502" not in caplog.text


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_without_a_reply_is_explained(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rewrap")
    answer = httpx.Response(200, content=b'data: {"odd": {}}\n\n', headers=EVENTS)
    error = await asked(answer, stream=stream)
    assert 'answered 200, data: {"odd": {}}' in error["message"]


async def test_a_web_page_is_named_as_one() -> None:
    error = await asked(httpx.Response(200, html="<h1>Welcome</h1>"))
    assert "answered 200, a web page or an empty body" in error["message"]


async def test_the_path_that_finds_nothing_is_named(tmp_path: Path) -> None:
    config = tmp_path / "backends.toml"
    config.write_text(
        '[[backend]]\nname = "mine"\nurl = "http://bot/ask"\nmapping = { reply = "data.text" }\n'
    )
    error = await asked(httpx.Response(200, json={"data": {}}), chat_url="", config=str(config))
    assert "the upstream's answer has no text at 'data.text'" in error["message"]
    assert 'backend mine answered 200, {"data":{}}' in error["message"]
