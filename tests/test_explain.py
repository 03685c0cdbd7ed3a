"""A failure that the upstream does not explain says what the upstream answered, and what to do next."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from serving import ASKED

from rewrap.config.settings import Settings
from rewrap.main import create_app
from rewrap.upstream import explain
from rewrap.upstream.errors import START_BYTES
from rewrap.upstream.explain import excerpt

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
KEY = "9f3c2a77d1e84b0ab6558c41e0d2aa10"
EVENTS = {"content-type": "text/event-stream"}
HERE = ("127.0.0.1", 50_000)
ELSEWHERE = ("203.0.113.5", 50_000)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Breaks(httpx.AsyncByteStream):
    """A body that breaks off after its first bytes."""

    def __init__(self, start: bytes) -> None:
        self.start = start

    async def __aiter__(self) -> Any:
        yield self.start
        raise httpx.ReadError("broken")


async def asked(
    answer: httpx.Response,
    *,
    times: int = 1,
    payload: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    address: tuple[str, int] = HERE,
    **settings: Any,
) -> Any:
    """The error that the client gets."""
    transport = httpx.MockTransport(lambda request: answer)
    known = {"store_url": "sqlite://", "chat_url": "http://bot/ask", "chat_key": KEY}
    app = create_app(Settings(**known | settings), transport=transport)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=address), base_url="http://127.0.0.1"
    ) as client:
        for _ in range(times):
            response = await client.post(CHAT, json=ASKED | (payload or {}), headers=headers)
    await asyncio.sleep(0.15)  # until the access log is written
    return response.json()["error"]


def explanations(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "try: " in record.getMessage()]


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rewrap")


@pytest.mark.parametrize("status", [200, 400, 422])
async def test_the_answer_and_the_next_step_are_in_the_error_and_the_log(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    error = await asked(httpx.Response(status, json={"fehler": "field 'frage' is required"}))
    answer = (
        f"backend chat-url answered {status}, " + '{"fehler":"field \'frage\' is required"}'
        " (try: rewrap probe URL)"
    )
    assert error["message"].endswith(f". The {answer}")
    assert explanations(caplog) == [answer]


class Pieces(httpx.AsyncByteStream):
    """A body that comes in these reads."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> Any:
        for piece in self.pieces:
            yield piece


async def test_of_a_stream_the_event_that_fails_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "backends.toml"
    file.write_text(
        '[[backend]]\nname = "bot"\nurl = "http://bot/ask"\nmapping = { reply = "t" }\n'
    )
    stream = Pieces(b'data: {"t": "good"}\n\n', b"data: <oops>\n\n")
    answer = httpx.Response(200, headers=EVENTS, stream=stream)
    error = await asked(answer, chat_url="", chat_key="", config=str(file))
    assert "data: <oops>" in error["message"]
    assert "good" not in error["message"]


@pytest.mark.parametrize(
    ("address", "headers"),
    [(ELSEWHERE, {}), (HERE, {"x-forwarded-for": "203.0.113.5"}), (HERE, {"forwarded": "for=x"})],
    ids=["another machine", "a proxy", "a proxy with RFC 7239"],
)
async def test_clients_of_other_machines_do_not_see_the_answer(
    address: tuple[str, int], headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    error = await asked(httpx.Response(200, json={"odd": 1}), address=address, headers=headers)
    assert "odd" not in str(error)
    assert len(explanations(caplog)) == 1


SECRETIVE = {
    "as it is": orjson.dumps({"seen": KEY}),
    "in a text": f"no route for {KEY}".encode(),
    "escaped": b'{"seen": "' + "".join(f"\\u{ord(char):04x}" for char in KEY).encode() + b'"',
    "in UTF-16": f'{{"seen": "{KEY}"'.encode("utf-16-le"),
    "after blanks": b"\n" * 760 + orjson.dumps({"seen": KEY}),
    "at the cut": b'{"a":"' + b"sk-12345678 " * (START_BYTES // 12) + KEY.encode(),
    "a token of another": b'{"access_token": "eyJhbGciOiJIUzI1NiJ9.e30.abc"}',
    "a path": rb'{"seen": "no route \/hooks\/T0kenABC12345\/ask"',
}


@pytest.mark.parametrize("form", SECRETIVE)
@pytest.mark.parametrize("status", [200, 400])
async def test_secrets_are_not_shown(
    form: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    answer = httpx.Response(
        status, content=SECRETIVE[form], headers={"content-type": "application/json"}
    )
    error = await asked(answer, chat_url="http://bot/hooks/T0kenABC12345/ask")
    seen = error["message"] + caplog.text  # other members of an error are the upstream's own
    for length in (32, 16):
        assert KEY[:length] not in seen
    assert "eyJ" not in seen
    assert "T0kenABC12345" not in seen


@pytest.mark.parametrize("size", [START_BYTES - 1, START_BYTES, START_BYTES + 1])
def test_half_a_secret_at_the_cut_is_not_shown(size: int) -> None:
    for shift in range(32):
        body = b'{"a":"' + b"sk-12345678 " * (size // 12 - 1)
        body = (body + b" " * shift + KEY.encode())[:size]
        assert KEY[:6] not in excerpt(body[:START_BYTES], [KEY])


async def test_headers_of_the_client_that_went_along_are_not_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = await asked(
        httpx.Response(400, json={"seen": "hunter2hunter2"}),
        headers={"x-user-token": "hunter2hunter2"},
        forward_headers=["x-user-token"],
    )
    assert "hunter2" not in error["message"] + caplog.text


async def test_a_traceback_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    error = await asked(
        httpx.Response(500, json={"odd": "x Traceback (most recent call last) y.py"})
    )
    assert '"odd":"x ' in error["message"]
    assert "Traceback" not in error["message"] + caplog.text
    assert "y.py" not in error["message"] + caplog.text


async def test_the_message_of_an_upstream_needs_no_explanation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = await asked(httpx.Response(400, json={"error": {"message": "Too hot."}}))
    assert error["message"] == "Too hot."
    assert explanations(caplog) == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "start", [b'{"reply": "The account', b'data: {"reply": "The account"}\n\n']
)
async def test_a_connection_that_breaks_is_not_the_fault_of_the_answer(
    start: bytes, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    headers = EVENTS if start.startswith(b"data") else {"content-type": "application/json"}
    transport = httpx.MockTransport(
        lambda request: httpx.Response(200, headers=headers, stream=Breaks(start))
    )
    app = create_app(
        Settings(store_url="sqlite://", chat_url="http://bot/ask"), transport=transport
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://127.0.0.1"
    ) as client:
        response = await client.post(CHAT, json=ASKED | {"stream": stream})
    assert "try: " not in response.text
    assert explanations(caplog) == []


async def test_an_error_without_a_message_in_a_relayed_stream_is_shown() -> None:
    events = b'data: {"error":{"code":500}}\n\n'
    error = await asked(
        httpx.Response(200, content=events, headers=EVENTS),
        payload={"stream": True},
        chat_url="",
        chat_key="",
        openai_api_base="http://bot/v1",
    )
    assert 'backend openai answered 200, {"code":500}' in error["message"]


async def test_a_kind_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asked(httpx.Response(400, json={"odd": 1}), times=3)
    assert len(explanations(caplog)) == 1
    monkeypatch.setattr(explain, "SILENT_SECONDS", 0.0)
    await asked(httpx.Response(400, json={"odd": 1}), times=3)
    assert len(explanations(caplog)) == 4


async def test_a_200_without_a_reply_is_not_called_an_error_of_the_upstream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await asked(httpx.Response(200, json={"odd": 1}), chat_shape="rasa")
    lines = [line for line in caplog.messages if "POST /v1/chat" in line]
    assert len(lines) == 1
    assert "error=no reply found" in lines[0]
    assert "upstream: " not in lines[0]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_without_a_reply_is_explained(stream: bool) -> None:
    answer = httpx.Response(200, content=b'data: {"odd": {}}\n\n', headers=EVENTS)
    error = await asked(answer, payload={"stream": stream})
    assert 'answered 200, data: {"odd": {}}' in error["message"]


async def test_a_web_page_is_named_as_one() -> None:
    page = b"\xef\xbb\xbf<h1>Welcome</h1>"
    error = await asked(httpx.Response(404, content=page))
    assert "answered 404, a web page (try" in error["message"]


async def test_nothing_is_said_of_a_body_that_was_not_read() -> None:
    script = httpx.Response(200, content=b"{}", headers={"content-type": "application/javascript"})
    error = await asked(script)
    assert "The backend chat-url answered 200 (try" in error["message"]


async def test_the_path_that_finds_nothing_is_named(tmp_path: Path) -> None:
    config = tmp_path / "backends.toml"
    config.write_text(
        '[[backend]]\nname = "mine"\nurl = "http://bot/ask"\nmapping = { reply = "data.text" }\n'
    )
    error = await asked(
        httpx.Response(200, json={"data": {}}), chat_url="", chat_key="", config=str(config)
    )
    assert "has no text at 'data.text'. The backend mine answered 200" in error["message"]
