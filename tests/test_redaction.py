"""Secrets of the configuration do not reach a client, in any form, through errors or headers."""

from base64 import b64encode
from typing import Any

import httpx
import pytest
from growth import LINEAR, growth

from rewrap.config.settings import Settings
from rewrap.main import create_app
from rewrap.redaction import loggable, redacted

pytestmark = pytest.mark.anyio
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
KEY = "canary-0123456789"
OURS: dict[str, Any] = {
    "chat_url": "http://bob:hunter2secret@bot.internal:9000/own-path/chat?key=qkeysecret99",
    "chat_headers": {
        "Authorization": f"Bearer {KEY}",
        "Cookie": "session=sessioncookie77; lang=en",
    },
}
TOLD = {
    "a key": KEY,
    "in base64": b64encode(KEY.encode()).decode(),
    "a password": "hunter2secret",
    "user and password": b64encode(b"bob:hunter2secret").decode(),
    "part of a query": "qkeysecret99",
    "the path": "/own-path/chat?key=qkeysecret99",
    "the host": "bot.internal:9000",
    "part of a cookie": "sessioncookie77",
    "somebody else's key": "sk-0123456789abcdef",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def asked(answer: httpx.Response) -> httpx.Response:
    app = create_app(
        Settings(**OURS, store_url="sqlite://"),
        transport=httpx.MockTransport(lambda request: answer),
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://proxy"
    ) as some:
        return await some.post("/v1/chat/completions", json=ASKED)


@pytest.mark.parametrize("field", ["message", "type", "param", "code"])
@pytest.mark.parametrize("what", TOLD)
async def test_an_upstream_error_reaches_the_client_without_secrets(what: str, field: str) -> None:
    error = {"message": "m", field: f"too long for {TOLD[what]}, sorry"}
    answer = await asked(httpx.Response(400, json={"error": error}))
    assert answer.status_code == 400
    assert TOLD[what] not in answer.text
    assert answer.json()["error"][field].replace("=", "") == "too long for ***, sorry"


async def test_an_upstream_error_without_secrets_is_unchanged() -> None:
    error = {
        "message": "This model's maximum context length is 10 tokens.",
        "type": "t",
        "param": "messages",
        "code": "c",
    }
    assert (await asked(httpx.Response(400, json={"error": error}))).json()["error"] == error


@pytest.mark.parametrize("status", [200, 429])
async def test_only_rate_limit_headers_of_an_upstream_reach_the_client(status: int) -> None:
    known = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-reset-tokens": "1m6.5s",
        "openai-processing-ms": "7",
    }
    odd = {
        "x-ratelimit-key": KEY,
        "retry-after-debug": KEY,
        "x-ratelimit-limit-tokens": f"key {KEY!r}",
        "x-own": "1",
    }
    more = {"retry-after": "7"} if status == 429 else {}
    answer = await asked(httpx.Response(status, json={"reply": "x"}, headers=known | odd | more))
    assert answer.status_code == status
    assert {
        name: value for name, value in answer.headers.items() if name in known | odd | more
    } == known | more


PIECES = [
    " ", "Bearer ", "Bearer", "key-", "sk-", "key_a", "https://", "http://x ", "token", "token:",
    "token: ", "secret=\\\\", "secret\\\\", "password='", "api_key : Bearer ", "api-", "authorization\n",
    "Bearer  '", "p-", "/", "\\", '"', "sk-0123456789 ", "canary-012345678",
]  # fmt: skip


@pytest.mark.parametrize("head", ["", "token:", "Bearer ", "secret\\"])
@pytest.mark.parametrize("piece", PIECES)
def test_the_cost_of_redaction_is_linear(piece: str, head: str) -> None:
    def text(size: int) -> str:
        return head + piece * (size // len(piece))

    assert growth(text, lambda text: redacted(text, [KEY]), 10_000) < LINEAR
    # Beyond 100 kB a body is not logged.
    assert (
        growth(lambda size: text(size).encode(), lambda body: loggable(body, [KEY]), 9_000) < LINEAR
    )
