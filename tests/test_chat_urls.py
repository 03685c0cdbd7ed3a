"""Chat URLs of each kind as real local servers: pieces at once, whole texts, failures."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from serving import ASKED, served
from upstreams import (
    DONE,
    FAULTS,
    KINDS,
    LEAK,
    TEXT,
    Handler,
    Upstream,
    closed_port,
    lf,
    make,
    only,
)

from rewrap.config.settings import Settings
from rewrap.main import create_app

pytestmark = pytest.mark.anyio

STREAMS = ["sse_json", "sse_json_text", "sse_openai", "sse_text", "ndjson", "plain_text"]
ODD = (
    "👋🏽 世界 \u2028\u2029\u0085 a\r\n\r\nb\n c  \t[DONE] data: {} \\u0041 \"quoted\" 'x' é 🇦🇹 end"
)
LONG = (("Überlänge-世界-👋-\u2028-" * 5 + "and so on.\r\n") * 12_000)[: 10**6]
WAYS = ["chat_url", "openai_api_base"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def asked_at(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False, timeout=20) as client:
        yield client


@asynccontextmanager
async def forwarding(
    handler: Handler, way: str = "chat_url", **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server whose upstream is `handler`."""
    async with Upstream(handler) as up:
        with served(**{way: up.url + ("/chat" if way == "chat_url" else "/v1")}, **settings) as url:
            async with asked_at(url) as client:
                yield client


def events(body: str) -> list[str]:
    """The data of each event. Blank lines alone separate events."""
    assert body.endswith("\n\n")
    assert all(event.startswith("data: ") for event in body[:-2].split("\n\n"))
    return [event.removeprefix("data: ") for event in body[:-2].split("\n\n")]


def said(body: str) -> str:
    """The text of a complete stream."""
    *chunks, done = events(body)
    assert done == DONE
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert choices[-1]["finish_reason"] == "stop"
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def chat(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=ASKED | more)


async def test_streams_reuse_their_connection() -> None:
    for way, path in (("chat_url", "/chat"), ("openai_api_base", "/v1")):
        async with Upstream(make("sse_openai", TEXT, pause_s=0.01)) as up:
            with served(**{way: up.url + path}) as url:
                async with asked_at(url) as client:
                    for _ in range(5):
                        assert said((await chat(client, stream=True)).text) == TEXT
                        await asyncio.sleep(0.3)  # HTTP ends after the events
            assert up.connections == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_connect_timeout_is_a_504(way: str) -> None:
    with socket.socket() as full:  # its queue is full: no connection is accepted or refused
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        others = [socket.socket() for _ in range(4)]
        try:
            for other in others:
                other.setblocking(False)
                other.connect_ex(("127.0.0.1", port))
            with served(**{way: f"http://127.0.0.1:{port}/v1"}, connect_timeout_seconds=0.3) as url:
                async with asked_at(url) as client, asyncio.timeout(3):
                    check_envelope(await chat(client), 504, "timeout")
        finally:
            for other in others:
                other.close()


# ---- the text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [TEXT, ODD, LONG], ids=["text", "odd", "1MB"])
async def test_json_stream_and_ask_have_the_same_text(kind: str, text: str) -> None:
    expected = lf(text) if kind == "sse_text" else text
    async with forwarding(make(kind, text)) as client:
        whole, streamed = await chat(client), await chat(client, stream=True)
        plain = await client.post("/ask", json={"messages": ASKED["messages"]})
    assert [r.status_code for r in (whole, streamed, plain)] == [200, 200, 200]
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert plain.headers["content-type"] == "text/plain; charset=utf-8"
    assert plain.headers["x-vercel-ai-data-stream"] == "v1"
    assert whole.json()["choices"][0]["message"]["content"] == expected
    assert said(streamed.content.decode()) == expected
    assert plain.content.decode() == expected


async def test_an_openai_upstream_has_the_same_text_in_json_stream_and_ask() -> None:
    def answer(request: Any, reader: Any, writer: Any) -> Any:
        return make("sse_openai" if request.sse else "openai_json", ODD + LONG)(
            request, reader, writer
        )

    async with forwarding(answer, "openai_api_base") as client:
        whole, streamed = await chat(client), await chat(client, stream=True)
        plain = await client.post("/ask", json=ASKED)
    assert whole.json()["choices"][0]["message"]["content"] == ODD + LONG
    assert said(streamed.content.decode()) == ODD + LONG
    assert plain.content.decode() == ODD + LONG


@pytest.mark.parametrize("kind", ["json", "json_string", "openai_json"])
async def test_an_answer_in_one_piece_is_streamed_word_by_word(kind: str) -> None:
    async with forwarding(make(kind, "Hello there,\n  world ")) as client:
        chunks = events((await chat(client, stream=True)).text)
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert [delta.get("content") for delta in deltas[1:]] == [
        "Hello ",
        "there,\n  ",
        "world ",
        None,
    ]


async def test_an_event_of_many_lines_is_read_in_linear_time() -> None:
    text = "a\n" * 200_000
    async with forwarding(make("sse_text", text, [text])) as client:
        async with asyncio.timeout(5):
            assert (await chat(client)).json()["choices"][0]["message"]["content"] == text


# ---- at once


async def first_text(response: httpx.Response, pieces: AsyncIterator[bytes]) -> str:
    """Read until some text has arrived, in whole events."""
    body = b""
    async with asyncio.timeout(2):
        async for piece in pieces:
            body += piece
            if response.headers["content-type"].startswith("text/plain"):
                return body.decode()
            if body.endswith(b"\n\n"):
                choices = [json.loads(event)["choices"][0] for event in events(body.decode())]
                if text := "".join(choice["delta"].get("content") or "" for choice in choices):
                    return text
    raise AssertionError("no text before the end")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/ask"])
@pytest.mark.parametrize("kind", STREAMS)
async def test_the_first_piece_arrives_while_the_upstream_is_still_open(
    kind: str, path: str
) -> None:
    gate = asyncio.Event()
    async with forwarding(make(kind, "", ["One ", "two ", "three."], gate=gate)) as client:
        async with client.stream("POST", path, json=ASKED | {"stream": True}) as response:
            pieces = response.aiter_raw()
            assert await first_text(response, pieces) == "One "
            gate.set()
            rest = b"".join([piece async for piece in pieces]).decode()
    if path == "/ask":
        assert rest == "two three."
    else:
        assert (
            "".join(
                json.loads(e)["choices"][0]["delta"].get("content", "") for e in events(rest)[:-1]
            )
            == "two three."
        )


async def test_the_first_chunk_of_an_openai_upstream_arrives_while_it_is_still_open() -> None:
    gate = asyncio.Event()
    answer = make("sse_openai", "", ["One ", "two."], gate=gate)
    async with forwarding(answer, "openai_api_base") as client:
        async with client.stream(
            "POST", "/v1/chat/completions", json=ASKED | {"stream": True}
        ) as response:
            pieces = response.aiter_raw()
            assert await first_text(response, pieces) == "One "
            gate.set()
            assert b"".join([piece async for piece in pieces]).endswith(b"data: [DONE]\n\n")


# ---- the error cases

BAD_REPLY = {
    "chat_url": {"reply": {"deep": 5}},
    "openai_api_base": {"choices": [{"message": {"content": 5}}]},
}
CASES: dict[str, tuple[int, str]] = {
    "500": (502, "bad_gateway"),
    "not JSON": (502, "bad_gateway"),
    "no reply": (502, "bad_gateway"),
    "wrong type": (502, "bad_gateway"),
    "refused": (502, "bad_gateway"),
    "time-out": (504, "timeout"),
}


def bad(case: str, way: str) -> Handler:
    if case == "wrong type":
        return only(BAD_REPLY[way])
    named = {
        "500": "500",
        "not JSON": "html_200",
        "no reply": "no_choices",
        "time-out": "hang",
        "refused": "hang",
    }
    return FAULTS[named[case]]


def check_envelope(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("upstream_error", None, code)
    assert error["message"].startswith("The chat backend")
    assert LEAK not in response.text


def check_own_error(response: httpx.Response) -> None:
    """The upstream's own error is in the answer, with its message."""
    assert response.status_code == 502
    assert LEAK in response.json()["error"]["message"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("case", CASES)
async def test_each_failure_has_its_status_and_the_envelope(
    case: str, stream: bool, way: str
) -> None:
    async with Upstream(bad(case, way)) as up:
        port = closed_port() if case == "refused" else up.port
        base = f"http://127.0.0.1:{port}/" + ("chat" if way == "chat_url" else "v1")
        times = {"first_byte_timeout_seconds": 0.15, "total_timeout_seconds": 0.15}
        with served(**{way: base}, **times) as url:
            async with asked_at(url) as client:
                response = await chat(client, stream=stream)
                plain = await client.post("/ask", json=ASKED)
    check_envelope(response, *CASES[case])
    assert str(port) not in response.text
    assert plain.status_code == 500
    assert set(plain.json()) == {"role", "content", "error", "details"}
    assert plain.json()["role"] == "assistant"
    assert plain.json()["error"] == "upstream_error"
    assert LEAK not in plain.text


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "name", ["wrong_type", "empty_200", "204", "empty_choices", "null_content"]
)
async def test_an_answer_without_content_is_a_failure(name: str, stream: bool, way: str) -> None:
    if (name, way) == ("null_content", "openai_api_base"):
        return  # it has a reason to end, so it is the upstream's answer
    async with forwarding(FAULTS[name], way) as client:
        check_envelope(await chat(client, stream=stream), 502, "bad_gateway")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_error_with_status_200_is_the_upstreams_error(stream: bool, way: str) -> None:
    async with forwarding(FAULTS["error_in_200"], way) as client:
        check_own_error(await chat(client, stream=stream))


@pytest.mark.parametrize("way", WAYS)
async def test_the_failure_status_is_a_setting(way: str) -> None:
    async with forwarding(FAULTS["500"], way, upstream_failure_status=500) as client:
        for stream in (False, True):
            check_envelope(await chat(client, stream=stream), 500, "bad_gateway")


# ---- broken off


def check_broken_off(body: str) -> str:
    """Check the error at the end of a stream; the text before it."""
    *chunks, last = events(body)
    assert DONE not in chunks
    error = json.loads(last)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert LEAK not in "".join(chunks)
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert [choice["finish_reason"] for choice in choices] == [None] * len(choices)
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name", ["truncated_sse", "reset_mid", "cut_chunk", "cut_event", "error_event"]
)
async def test_a_broken_stream_ends_with_an_error_event_and_no_done(name: str, way: str) -> None:
    # a form without an end of its own is cut short only if HTTP is
    path = "/v1/chat/completions" if name == "truncated_sse" and way == "chat_url" else "/chat"
    async with Upstream(FAULTS[name]) as up:
        with served(**{way: up.url + (path if way == "chat_url" else "/v1")}) as url:
            async with asked_at(url) as client:
                response = await chat(client, stream=True)
                assert response.status_code == 200
                text = check_broken_off(response.text)
                assert TEXT.startswith(text)
                assert text or name == "error_event" or way == "openai_api_base"
                with pytest.raises(httpx.RemoteProtocolError):  # /ask cuts the connection
                    await client.post("/ask", json=ASKED)


@pytest.mark.parametrize("kind", ["sse_json", "ndjson", "plain_text"])
async def test_a_broken_stream_of_any_framing_ends_with_an_error_event(kind: str) -> None:
    async def answer(request: Any, reader: Any, writer: Any) -> None:
        gate = asyncio.Event()
        task = asyncio.create_task(make(kind, TEXT, gate=gate)(request, reader, writer))
        await asyncio.sleep(0.1)
        task.cancel()
        writer.close()

    async with forwarding(answer) as client:
        text = check_broken_off((await chat(client, stream=True)).text)
        assert text
        assert TEXT.startswith(text)
        check_envelope(await chat(client), 502, "bad_gateway")


@pytest.mark.parametrize("way", WAYS)
async def test_a_silent_stream_ends_at_the_stall_timeout(way: str) -> None:
    answer = make("sse_openai", TEXT, gate=asyncio.Event())
    async with forwarding(answer, way, stall_timeout_seconds=0.15) as client:
        response = await chat(client, stream=True)
        assert check_broken_off(response.text)
        assert '"code":"timeout"' in response.text


@pytest.mark.parametrize("way", WAYS)
async def test_bytes_that_never_become_an_event_end_by_their_size(way: str) -> None:
    async with forwarding(FAULTS["drip"], way, max_event_bytes=3) as client:
        async with asyncio.timeout(2):
            check_envelope(await chat(client, stream=True), 502, "bad_gateway")


@pytest.mark.parametrize("way", WAYS)
async def test_a_slow_json_answer_ends_at_the_total_timeout(way: str) -> None:
    async with forwarding(FAULTS["drip_json"], way, total_timeout_seconds=0.3) as client:
        async with asyncio.timeout(2):
            check_envelope(await chat(client), 504, "timeout")


async def test_a_configured_host_header_replaces_that_of_the_url() -> None:
    async with Upstream(FAULTS["good"]) as up:
        with served(
            chat_url=f"{up.url}/chat", chat_headers={"Host": "bot.example", "X-Own": "1"}
        ) as url:
            async with asked_at(url) as client:
                assert (await chat(client, stream=False)).status_code == 200
        head = up.requests[0].headers
    assert (head["host"], head["x-own"]) == ("bot.example", "1")


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "Connection"])
def test_a_configured_framing_header_stops_the_start(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"^CHAT_URL: The header {name.lower()} is for this program to send"
    ):
        create_app(Settings(chat_url="http://bot/chat", chat_headers={name: "1"}))
