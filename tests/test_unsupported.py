"""Requests with parts that an upstream cannot take: an error, or a header that names them."""

import json
from typing import Any

import httpx
import pytest

from rewrap.config.settings import Settings
from rewrap.main import create_app

pytestmark = pytest.mark.anyio

ANSWERS = {
    "": {"reply": "ok"},
    "dify": {"answer": "ok"},
    "ollama": {"message": {"content": "ok"}, "done": True, "done_reason": "stop"},
    "cohere": {"message": {"content": [{"text": "ok"}]}, "finish_reason": "COMPLETE"},
    "anthropic": {"content": [{"type": "text", "text": "ok"}], "stop_reason": "end_turn"},
}
TOOLS = [{"type": "function", "function": {"name": "f"}}]
FORCED = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def content(**part: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "see"}, part]}]


LINK = content(type="image_url", image_url={"url": "https://h/cat.png"})
IMAGE = content(type="image_url", image_url={"url": "data:image/png;base64,AAAA"})
AUDIO = content(type="input_audio", input_audio={"data": "AAAA", "format": "wav"})
FILE = content(type="file", file={"file_id": "file-1"})


class App:
    """The app in front of a shape, and the bodies that its upstream received."""

    def __init__(self, shape: str, **settings: Any) -> None:
        self.sent: list[Any] = []
        self.shape = shape
        url = "http://bot/v1/x" if not shape else "http://bot"
        app = create_app(
            Settings(chat_url=url, chat_shape=shape, store_url="sqlite://", **settings),
            transport=httpx.MockTransport(self.upstream),
        )
        transport = httpx.ASGITransport(app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://proxy")

    def upstream(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(json.loads(request.content))
        return httpx.Response(200, json=ANSWERS[self.shape])

    async def ask(self, **payload: Any) -> httpx.Response:
        payload = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | payload
        return await self.client.post("/v1/chat/completions", json=payload)


CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("", {"messages": IMAGE}, "messages", "messages.image_url"),
    ("", {"messages": AUDIO}, "messages", "messages.input_audio"),
    ("dify", {"messages": FILE}, "messages", "messages.file"),
    ("dify", {"tools": TOOLS, "tool_choice": "required"}, "tool_choice", "tool_choice"),
    ("dify", {"response_format": SCHEMA}, "response_format", "response_format"),
    ("ollama", {"messages": LINK}, "messages", "messages.image_url"),
    ("ollama", {"tools": TOOLS, "tool_choice": FORCED}, "tool_choice", "tool_choice"),
    ("cohere", {"tools": TOOLS, "tool_choice": FORCED}, "tool_choice", "tool_choice"),
    ("cohere", {"messages": AUDIO}, "messages", "messages.input_audio"),
    ("anthropic", {"messages": FILE}, "messages", "messages.file"),
]


@pytest.mark.parametrize(("shape", "payload", "param", "name"), CASES)
async def test_a_part_that_changes_the_meaning_is_an_error_or_dropped(
    shape: str, payload: dict[str, Any], param: str, name: str
) -> None:
    app = App(shape)
    for stream in (False, True):
        answer = await app.ask(**payload, stream=stream)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == (param, "unsupported_parameter")
        assert "ON_UNSUPPORTED=drop" in error["message"]
    assert app.sent == []
    app = App(shape, on_unsupported="drop")
    answer = await app.ask(**payload)
    assert answer.status_code == 200
    assert name in answer.headers["x-dropped-params"].split(", ")


async def test_an_image_that_has_a_place_is_sent() -> None:
    for shape in ("ollama", "anthropic"):
        app = App(shape)
        answer = await app.ask(messages=IMAGE)
        assert answer.status_code == 200
        assert "x-dropped-params" not in answer.headers
        assert "AAAA" in json.dumps(app.sent)


async def test_tools_with_auto_are_dropped_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App("dify")
    for choice in ("auto", None, "none"):
        answer = await app.ask(tools=TOOLS, tool_choice=choice)
        assert answer.status_code == 200
        assert "tools" in answer.headers["x-dropped-params"]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["backend chat-url: the upstream has no place for tools: dropped"]


async def test_parameters_without_effect_on_the_meaning_are_dropped_with_a_header() -> None:
    answer = await App("dify").ask(seed=1, response_format={"type": "json_object"})
    assert answer.status_code == 200
    assert answer.headers["x-dropped-params"] == "seed, response_format"


async def test_an_unknown_url_gets_tools_and_formats_as_they_are() -> None:
    app = App("")
    more = {"tools": TOOLS, "tool_choice": FORCED, "response_format": SCHEMA}
    assert (await app.ask(**more)).status_code == 200
    assert app.sent[0].items() >= more.items()


@pytest.mark.parametrize("value", ["off", "drop it"])
def test_another_value_of_the_setting_stops_the_start(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ON_UNSUPPORTED", value)
    with pytest.raises(ValueError, match=r"^ON_UNSUPPORTED must be error or drop"):
        Settings.load("no.env")
