"""RECORD and REPLAY: what a file has, which file answers a request, and that the upstream is not needed."""

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from growth import LINEAR, growth
from hypothesis import given
from hypothesis import strategies as st
from serving import ASKED, ROOT, served
from shape_servers import shape_server
from upstreams import (
    FAULTS,
    JSON,
    KINDS,
    SSE,
    TEXT,
    Request,
    Upstream,
    chunked,
    closed_port,
    completion,
    make,
    send,
    sse,
    whole,
)

from rewrap.config.notes import ignored_notes
from rewrap.config.settings import Settings
from rewrap.main import create_app
from rewrap.types import APIError
from rewrap.upstream.pool import Transport
from rewrap.upstream.recording import exchange as files
from rewrap.upstream.recording.client import RecordingClient, ReplayClient
from rewrap.upstream.recording.credentials import (
    all_forms,
    pieces_without,
    recordable_path,
    request_credentials,
)
from rewrap.upstream.recording.exchange import Piece, RecordedExchange, toml_of
from rewrap.upstream.recording.library import Library
from rewrap.upstream.recording.matching import Matcher

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    with served(**settings) as url:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:
            yield client


async def chat(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=ASKED | more)


def user(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def same(body: bytes) -> bytes:
    """A body without ids and times."""
    body = re.sub(rb'"(id|system_fingerprint)":\s*"[^"]*"', rb'"\1": ""', body)
    return re.sub(rb'"created":\s*\d+', rb'"created": 0', body)


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def recordings(folder: Path) -> list[dict[str, Any]]:
    """The files as people read them, in the order of their names."""
    return [tomllib.loads(file.read_text()) for file in sorted(folder.glob("*.toml"))]


def nowhere(**settings: Any) -> dict[str, Any]:
    """The same settings, with an upstream that cannot be reached."""
    moved = dict(settings)
    for name in ("chat_url", "openai_api_base"):
        if name in settings:
            place = rf"http://\g<1>127.0.0.1:{closed_port()}"
            moved[name] = re.sub(r"^http://([^/@]*@)?[^/]+", place, settings[name])
    return moved


def openai_answers(request: Request, reader: Any, writer: Any) -> Any:
    return make("sse_openai" if request.sse else "openai_json", TEXT)(request, reader, writer)


@asynccontextmanager
async def upstream_of(kind: str) -> AsyncIterator[dict[str, Any]]:
    """The settings for a running upstream of a kind."""
    if kind == "openai":
        async with Upstream(openai_answers) as up:
            yield {"openai_api_base": up.url + "/v1"}
    elif kind == "ollama":
        async with shape_server("ollama") as up:
            yield {"chat_url": up.url + up.wire.whole, "chat_shape": "ollama"}
    else:
        async with Upstream(make(kind, TEXT)) as up:
            yield {"chat_url": up.url + "/chat"}


# The whole way


@pytest.mark.parametrize("kind", ["openai", "ollama", *KINDS])
async def test_a_replay_has_the_same_bytes_without_the_upstream(kind: str, tmp_path: Path) -> None:
    folder = str(tmp_path)
    async with upstream_of(kind) as settings:
        async with serving(record=folder, **settings) as client:
            json_answer = await chat(client)
            stream = await chat(client, stream=True)
            plain = await client.post("/ask", json=ASKED)
    assert json_answer.status_code == stream.status_code == plain.status_code == 200
    async with serving(replay=folder, **nowhere(**settings)) as client:
        json_again = await chat(client)
        stream_again = await chat(client, stream=True)
        plain_again = await client.post("/ask", json=ASKED)
    assert same(json_again.content) == same(json_answer.content)
    assert same(stream_again.content) == same(stream.content)
    if kind == "openai":  # a relay keeps the ids and times of the upstream
        assert json_again.content == json_answer.content
        assert stream_again.content == stream.content
    assert plain_again.content == plain.content
    assert stream_again.headers["content-type"] == stream.headers["content-type"]


async def test_an_edit_by_hand_is_served_at_once(tmp_path: Path) -> None:
    async with upstream_of("openai") as settings:
        async with serving(record=str(tmp_path), **settings) as client:
            await chat(client, stream=True)
    file = tmp_path / names_in(tmp_path)[0]
    async with serving(replay=str(tmp_path), **nowhere(**settings)) as client:
        assert "Grüße" in (await chat(client, stream=True)).text
        for word in ("Servus", "Moin"):
            file.write_text(re.sub("Grüße|Servus", word, file.read_text()))
            assert word in (await chat(client, stream=True)).text
        file.write_text("[request")
        assert "Moin" in (await chat(client, stream=True)).text
        file.unlink()
        assert (await chat(client, stream=True)).status_code == 404


async def test_a_new_file_is_found_and_an_edited_request_moves_its_answer(tmp_path: Path) -> None:
    write(tmp_path, "a", user("One"), "1")
    client = player(tmp_path)
    assert "no recording" in await answer_of(client, user("Two"))
    write(tmp_path, "b", user("Two"), "2")
    assert await answer_of(client, user("Two")) == "2"
    write(tmp_path, "a", user("Three"), "3")
    assert "no recording" in await answer_of(client, user("One"))
    assert await answer_of(client, user("Three")) == "3"


@pytest.mark.parametrize("name", ["429_retry_after", "500", "error_event", "cut_chunk"])
async def test_failures_keep_status_and_headers(name: str, tmp_path: Path) -> None:
    async with Upstream(FAULTS[name]) as up:
        settings = {"openai_api_base": up.url + "/v1"}
        async with serving(record=str(tmp_path), **settings) as client:
            before = await chat(client, stream=True)
    async with serving(replay=str(tmp_path), **nowhere(**settings)) as client:
        after = await chat(client, stream=True)
    assert after.status_code == before.status_code
    assert after.headers.get("retry-after") == before.headers.get("retry-after")
    assert same(after.content) == same(before.content)


async def test_an_upstream_that_was_away_is_away_in_a_replay(tmp_path: Path) -> None:
    settings = {"openai_api_base": f"http://127.0.0.1:{closed_port()}/v1"}
    async with serving(record=str(tmp_path), **settings) as client:
        before = await chat(client)
    assert recordings(tmp_path)[0]["response"]["end"] == "unreachable"
    async with serving(replay=str(tmp_path), **settings) as client:
        after = await chat(client)
    assert before.status_code == after.status_code == 502
    assert before.json() == after.json()


async def test_other_endpoints_of_an_upstream_are_replayed_too(tmp_path: Path) -> None:
    async def answer(request: Request, reader: Any, writer: Any) -> None:
        if request.path.endswith("/speech"):
            await send(writer, whole("audio/mpeg", b"\xff\xfb\x90" + bytes(range(256))))
        else:
            await send(writer, whole(JSON, b'{"object": "x", "bytes": %d}' % len(request.body)))

    async def ask(client: httpx.AsyncClient) -> list[bytes]:
        answers = [
            await client.post("/v1/audio/speech", json={"model": "tts", "input": "Hello"}),
            await client.get("/v1/files?limit=2"),
            await client.post("/v1/files", files={"file": ("a.txt", b"some text " * 20_000)}),
            await client.delete("/v1/files/file-1"),
            await client.post("/v1/embeddings", json={"model": "e", "input": ["a"]}),
        ]
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        return [answer.content for answer in answers]

    async with Upstream(answer) as up:
        settings = {"openai_api_base": up.url + "/v1"}
        async with serving(record=str(tmp_path), **settings) as client:
            before = await ask(client)
            assert (await client.head("/v1/files")).status_code == 405
    async with serving(replay=str(tmp_path), **nowhere(**settings)) as client:
        assert await ask(client) == before  # an upload has another boundary each time
        entries = (await client.get("/mock/requests")).json()["data"]
    assert (entries[0]["path"], entries[0]["model"]) == ("/v1/audio/speech", "tts")
    assert entries[0]["messages"] == [{"role": "user", "content": "Hello"}]


# What the client of upstreams sees: each piece, and each way to end


ENDLESS = [
    *("hang", "drip", "drip_json", "drip_mid", "pings_only", "blanks", "endless", "endless_json"),
    *("endless_head", "gzip_bomb", "slow_head", "keepalive_race", "redirect_307"),
]


async def read_all(client: Any, url: str, body: bytes) -> tuple[object, ...]:
    """The status, the pieces and the end of an answer."""
    loop = asyncio.get_running_loop()
    target = client.target("POST", url, {"content-type": "application/json"})
    pieces: list[bytes] = []
    try:
        reply = await client.ask(target, {}, body, loop.time() + 0.5)
    except httpx.HTTPError as error:
        return ("no head", type(error))
    try:
        while data := await reply.read():
            pieces.append(data)
        end: object = "end"
    except (httpx.HTTPError, TimeoutError) as error:
        end = type(error)
    finally:
        await reply.aclose()
    return (reply.status, reply.headers.get(b"content-type"), pieces, end)


def recorder(folder: Path) -> RecordingClient:
    return RecordingClient(Transport(), 5, Library(folder, Matcher(), overwrite=True), [])


def player(folder: Path, speed: float = 0.0, ignored: tuple[str, ...] = ()) -> ReplayClient:
    library = Library(folder, Matcher(ignored), overwrite=False)
    library.load()
    return ReplayClient(Transport(), 5, library, [], speed=speed, records_misses=False)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ENDLESS])
async def test_every_odd_answer_is_replayed_in_its_pieces_with_its_end(
    name: str, stream: bool, tmp_path: Path
) -> None:
    body = json.dumps(ASKED | {"stream": stream}).encode()
    async with Upstream(FAULTS[name]) as up:
        async with recorder(tmp_path) as client:
            before = await read_all(client, up.url + "/v1/chat/completions", body)
    after = await read_all(player(tmp_path), "http://other.example/v1/chat/completions", body)
    assert after == before


async def test_the_pieces_of_a_stream_keep_their_times(tmp_path: Path) -> None:
    async with Upstream(make("sse_text", TEXT, ["a", "b", "c", "d"], pause_s=0.05)) as up:
        async with recorder(tmp_path) as client:
            await read_all(client, up.url + "/chat", b"{}")
    pieces = recordings(tmp_path)[0]["response"]["pieces"]
    assert re.findall(r"data: (\S+)", "".join(piece["text"] for piece in pieces))[0] == "a"
    assert len(pieces) == 5
    assert all(40 <= piece["after_ms"] < 1000 for piece in pieces[1:])


async def test_the_speed_divides_the_recorded_times(tmp_path: Path) -> None:
    request = files.Request("POST", "/chat", b"{}")
    pieces = [Piece(0, b"a"), Piece(0.6, b"b")]
    (tmp_path / "a.toml").write_text(toml_of(RecordedExchange(request, 200, 0.3, pieces=pieces)))

    async def seconds(speed: float) -> float:
        loop = asyncio.get_running_loop()
        client = player(tmp_path, speed)
        started = loop.time()
        reply = await client.ask(client.target("POST", "http://a/chat", {}), {}, b"{}", started + 9)
        while await reply.read():
            pass
        return loop.time() - started

    assert 0.9 <= await seconds(1) < 1.6
    assert 0.3 <= await seconds(3) < 0.7
    assert await seconds(0) < 0.2


async def test_the_settings_set_the_speed_and_the_ignored_members(tmp_path: Path) -> None:
    body = ASKED | {"seed": 1}
    request = files.Request("POST", "/v1/chat/completions", json.dumps(body).encode())
    made = RecordedExchange(request, 200, 0.3, pieces=[Piece(0, completion("Hi", ASKED).encode())])
    (tmp_path / "a.toml").write_text(toml_of(made))
    settings: dict[str, Any] = nowhere(openai_api_base="http://a/v1") | {"replay": str(tmp_path)}
    async with serving(replay_speed=1.0, replay_ignore=("seed",), **settings) as client:
        answer = await chat(client, seed=2)
    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() >= 0.3
    async with serving(**settings) as client:
        assert (await chat(client, seed=2)).status_code == 404


async def test_a_wait_beyond_the_deadline_is_a_timeout(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        'request = {method = "POST", path = "/chat", body = "{}"}\n'
        'response = {status = 200, pieces = [{after_ms = 60000, text = "a"}]}'
    )
    answer = await read_all(player(tmp_path, speed=1), "http://a/chat", b"{}")
    assert answer == (200, None, [], httpx.ReadTimeout)


async def test_a_reader_that_leaves_is_recorded_as_such(tmp_path: Path) -> None:
    async with Upstream(make("sse_text", TEXT, ["a", "b", "c"], pause_s=0.05)) as up:
        async with recorder(tmp_path) as client:
            loop = asyncio.get_running_loop()
            target = client.target("POST", up.url + "/chat", {})
            reply = await client.ask(target, {}, b"{}", loop.time() + 5)
            await reply.read()
            await reply.aclose()
    (made,) = recordings(tmp_path)
    assert made["response"]["end"] == "left"
    assert len(made["response"]["pieces"]) == 1


async def test_the_rest_after_the_end_of_a_reply_is_not_missed(tmp_path: Path) -> None:
    async with Upstream(FAULTS["done_then_open"]) as up:
        async with serving(record=str(tmp_path), openai_api_base=up.url + "/v1") as client:
            assert (await chat(client, stream=True)).text.endswith("data: [DONE]\n\n")
    assert recordings(tmp_path)[0]["response"]["end"] == "complete"


async def test_an_answer_that_is_too_large_is_passed_on_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewrap.upstream.recording.client.MAX_EXCHANGE_BYTES", 1000)
    async with Upstream(make("json", "x" * 5000)) as up:
        async with recorder(tmp_path) as client:
            answer = await read_all(client, up.url + "/chat", b"{}")
    assert answer[-1] == "end"
    assert sum(map(len, answer[2])) > 5000  # type: ignore[arg-type, call-overload]
    assert names_in(tmp_path) == []


# Which recording answers


def write(folder: Path, name: str, body: object, answer: str, path: str = "/v1/x") -> None:
    request = files.Request("POST", path, json.dumps(body).encode())
    made = RecordedExchange(request, 200, pieces=[Piece(0, answer.encode())])
    (folder / f"{name}.toml").write_text(toml_of(made))


async def answer_of(client: ReplayClient, body: object, path: str = "/v1/x") -> str:
    """The text of the recording that answers; the message if there is none."""
    target = client.target("POST", f"http://localhost{path}", {})
    deadline = asyncio.get_running_loop().time() + 5
    try:
        reply = await client.ask(target, {}, json.dumps(body).encode(), deadline)
    except APIError as error:
        return error.message
    return (await reply.read()).decode()


def call(name: str, id: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "tool_calls": [{"id": id, "function": function}]}


def result(id: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": text}


async def test_ids_order_and_whole_floats_do_not_matter(tmp_path: Path) -> None:
    write(tmp_path, "a", {"model": "m", "temperature": 1, "session_id": "x", "id": 7}, "A")
    client = player(tmp_path)
    body = {"id": 8, "session_id": "y", "temperature": 1.0, "model": "m"}
    assert await answer_of(client, body) == "A"
    assert "temperature is 2" in await answer_of(client, body | {"temperature": 2})


async def test_named_members_and_paths_are_ignored(tmp_path: Path) -> None:
    recorded = {"seed": 1, "a": {"seed": 1, "run": 1}, "run": 1, "messages": [{"name": "x"}]}
    write(tmp_path, "a", recorded, "A")
    client = player(tmp_path, ignored=("seed", "a.run", "messages.name"))
    changed = {"seed": 2, "a": {"seed": 3, "run": 2}, "run": 1, "messages": [{"name": "y"}]}
    assert await answer_of(client, changed) == "A"
    assert "no recording" in await answer_of(client, changed | {"run": 2})


async def test_repeated_requests_are_a_sequence_whose_last_step_repeats(tmp_path: Path) -> None:
    for number in range(1, 12):  # a_10 comes after a_9
        write(tmp_path, f"a_{number}", user("Hello"), str(number))
    client = player(tmp_path)
    answers = [await answer_of(client, user("Hello")) for _ in range(13)]
    assert answers == [str(number) for number in [*range(1, 12), 11, 11]]
    client.library.reset()
    assert await answer_of(client, user("Hello")) == "1"


async def test_later_turns_may_differ_in_the_results_of_tools(tmp_path: Path) -> None:
    start = {"role": "user", "content": "What time is it?"}
    once = [start, call("clock", "call_1"), result("call_1", "12:00:00.123")]
    twice = [*once, call("clock", "call_2", zone="UTC"), result("call_2", "12:00:01")]
    write(tmp_path, "1", {"messages": [start]}, "first")
    write(tmp_path, "2", {"messages": once}, "second")
    write(tmp_path, "3", {"messages": twice}, "third")
    client = player(tmp_path)
    now = [start, call("clock", "call_x"), result("call_x", "18:30")]
    later = [*now, call("clock", "call_y", zone="UTC"), result("call_y", "18:31")]
    assert await answer_of(client, {"messages": [start]}) == "first"
    assert await answer_of(client, {"messages": now}) == "second"
    assert await answer_of(client, {"messages": later}) == "third"
    other = {"role": "user", "content": "What day is it?"}
    assert "no recording" in await answer_of(client, {"messages": [other]})
    assert "no recording" in await answer_of(client, {"messages": [other, *now[1:]]})
    assert "no recording" in await answer_of(client, {"messages": [*now, other]})


async def test_the_recording_with_the_most_equal_results_answers(tmp_path: Path) -> None:
    start = {"role": "user", "content": "Which is warmer?"}

    def turn(city: str, degrees: str) -> dict[str, Any]:
        return {"messages": [start, call("weather", "c", city=city), result("c", degrees)]}

    write(tmp_path, "1", turn("Oslo", "3"), "Oslo")
    write(tmp_path, "2", turn("Rome", "20"), "Rome")
    client = player(tmp_path)
    assert await answer_of(client, turn("Rome", "21")) == "Rome"
    assert await answer_of(client, turn("Oslo", "4")) == "Oslo"
    assert await answer_of(client, turn("Rome", "22")) == "Rome"


TURNS = {
    "anthropic": """{"messages": [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "clock"}]},
        {"role": "user", "content": [{"type": "tool_result", "content": "12:00"}]}]}""",
    "gemini": """{"contents": [
        {"role": "user", "parts": [{"text": "Time?"}]},
        {"role": "model", "parts": [{"functionCall": {"name": "clock"}}]},
        {"role": "user", "parts": [{"functionResponse": {"response": {"now": "12:00"}}}]}]}""",
    "responses": """{"input": [
        {"role": "user", "content": "Time?"},
        {"type": "function_call", "call_id": "c", "name": "clock"},
        {"type": "function_call_output", "call_id": "c", "output": "12:00"}]}""",
    "nested": """{"inputs": {"messages": [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": "12:00"},
        {"role": "user", "content": "And now?"}]}}""",
}


@pytest.mark.parametrize("name", TURNS)
async def test_results_of_tools_are_found_in_every_form_of_a_conversation(
    name: str, tmp_path: Path
) -> None:
    write(tmp_path, "a", json.loads(TURNS[name]), "A")
    client = player(tmp_path)
    later = TURNS[name].replace("12:00", "18:30")
    assert await answer_of(client, json.loads(later)) == "A"
    assert "Date?" in await answer_of(client, json.loads(later.replace("Time?", "Date?")))


async def test_ids_tell_equal_turns_of_two_conversations_apart(tmp_path: Path) -> None:
    for number in (1, 2):
        body = {"query": "Go on", "conversation_id": f"c{number}"}
        write(tmp_path, str(number), body, f"answer {number}")
    client = player(tmp_path)
    for number in (2, 1, 2):
        body = {"query": "Go on", "conversation_id": f"c{number}"}
        assert await answer_of(client, body) == f"answer {number}"


async def test_a_form_and_a_body_that_is_no_json_are_matched(tmp_path: Path) -> None:
    form = "application/x-www-form-urlencoded"
    for kind, body in ((form, b"q=Hi&n=1"), ("text/plain", b"Hi")):
        request = files.Request("POST", "/x", body, kind)
        made = RecordedExchange(request, 200, pieces=[Piece(0, kind.encode())])
        (tmp_path / f"{len(body)}.toml").write_text(toml_of(made))
    client = player(tmp_path)

    async def ask(body: bytes, content_type: str) -> bytes:
        target = client.target("POST", "http://a/x", {"Content-Type": content_type})
        deadline = asyncio.get_running_loop().time() + 5
        return await (await client.ask(target, {}, body, deadline)).read()

    assert await ask(b"n=1&q=Hi", form) == form.encode()
    assert await ask(b"Hi", "text/plain") == b"text/plain"


async def test_a_deep_request_is_compared_as_a_whole(tmp_path: Path) -> None:
    body = b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}"
    async with Upstream(make("json", "Hello")) as up:
        async with recorder(tmp_path) as client:
            before = await read_all(client, up.url + "/x", body)
    client = player(tmp_path)
    assert await read_all(client, "http://a/x", body) == before
    with pytest.raises(APIError, match="no recording"):
        await read_all(client, "http://a/x", body + b" ")


def test_the_facts_of_a_request_take_linear_time() -> None:
    def request(size: int) -> files.Request:
        messages = [user("x" * 50)["messages"][0], call("a", "b"), result("b", "c")] * size
        return files.Request("POST", "/v1/x", json.dumps({"messages": messages}).encode())

    assert growth(request, Matcher(("seed",)).facts, 300) < LINEAR


# A miss


async def test_a_miss_is_a_404_that_shows_the_nearest_recording(tmp_path: Path) -> None:
    async with upstream_of("openai") as settings:
        async with serving(record=str(tmp_path), **settings) as client:
            await chat(client, **user("What is the capital of France?"), temperature=0.5)
            await chat(client, **user("Something else"), stream=True)
    async with serving(replay=str(tmp_path), **nowhere(**settings)) as client:
        answer = await chat(client, **user("What is the capital of Spain?"), seed=4)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "recording_not_found")
    (name,) = [name for name in names_in(tmp_path) if "france" in name]
    assert error["message"] == (
        f"REPLAY has no recording of this request. Nearest is {name}: messages[0].content is "
        '"…the capital of Spain?", recorded is "…the capital of France?"; '
        "temperature is absent, recorded is 0.5; seed is 4, recorded is absent."
    )


def test_a_difference_is_short_and_printable() -> None:
    matcher = Matcher()

    def request(**members: object) -> files.Request:
        return files.Request("POST", "/v1/x", json.dumps(members).encode())

    long = "x" * 10**6
    text = matcher.difference(request(a=long + "A" * 999), request(a=long + "B" * 999))
    assert text.startswith('a is "…xxxxxxxxxxxxxxxBBB')
    assert len(text) < 200
    odd = matcher.difference(request(a="\u2028\x1b[1m"), request(a="\x7f\n"))
    assert odd.isprintable()
    many = {f"n{number}": number for number in range(10)}
    assert matcher.difference(request(a=1), request(a=1, **many)).endswith("; and 6 more")
    assert matcher.difference(request(**many), request(**many)) == ""


async def test_a_miss_goes_to_the_upstream_once_and_is_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    async with Upstream(openai_answers) as up:
        settings = {"openai_api_base": up.url + "/v1", "replay": str(folder)}
        async with serving(replay_miss="record", **settings) as client:
            first, again = await chat(client), await chat(client)
            other = await chat(client, **user("Other"))
        assert len(up.requests) == 2
    assert first.content == again.content
    assert other.status_code == 200
    async with serving(**nowhere(**settings)) as client:
        assert (await chat(client)).content == first.content
    async with serving(replay_miss="record", **nowhere(**settings)) as client:
        assert (await chat(client, **user("A third"))).status_code == 502
    assert len(list(folder.glob("*.toml"))) == 2  # today's failure is not tomorrow's answer


async def test_a_recorded_miss_never_replaces_another_recording(tmp_path: Path) -> None:
    library = Library(tmp_path, Matcher(), overwrite=False)
    facts = library.matcher.facts(files.Request("POST", "/v1/x", b'{"model": "m"}'))
    name = library.new_name(facts)
    library.save(name, RecordedExchange(files.Request("POST", "/v1/x", b"{}"), 200))
    again = Library(tmp_path, Matcher(), overwrite=False)
    assert again.new_name(facts) == name.replace(".toml", "_2.toml")
    assert Library(tmp_path, Matcher(), overwrite=True).new_name(facts) == name


# The files


async def test_a_file_is_made_to_be_read_and_has_the_same_name_in_the_next_run(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        async with upstream_of("openai") as settings:
            async with serving(record=str(tmp_path), **settings) as client:
                for _ in range(2):
                    await chat(client, model="gpt-4.1-mini", **user("Hello, world!"))
    name, again = names_in(tmp_path)
    assert re.fullmatch(r"gpt-4\.1-mini_hello-world_[0-9a-f]{8}_1\.toml", name)
    assert again == name.replace(".toml", "_2.toml")
    text = (tmp_path / name).read_text()
    assert '\n      "content": "Hello, world!"\n' in text
    assert "127.0.0.1" not in text
    made = recordings(tmp_path)[0]
    assert json.loads(made["request"]["body"])["model"] == "gpt-4.1-mini"
    assert made["response"]["headers"] == {"content-type": "application/json"}
    answer = "".join(piece["text"] for piece in made["response"]["pieces"])
    assert json.loads(answer)["choices"][0]["message"]["content"] == TEXT


async def test_an_agent_run_gives_one_file_for_each_call_in_one_thread(tmp_path: Path) -> None:
    function = {"name": "clock", "parameters": {"type": "object", "properties": {}}}

    async def agent(client: httpx.AsyncClient, now: str) -> str:
        """The text after a call of the tool. The upstream is a mock that calls a named tool."""
        messages: list[dict[str, Any]] = user("Ask the clock for the time.")["messages"]
        while True:
            tools = [{"type": "function", "function": function}]
            reply = await chat(client, messages=messages, tools=tools)
            message = reply.json()["choices"][0]["message"]
            messages.append(message)
            if not message.get("tool_calls"):
                return str(message["content"])
            messages += [result(made["id"], now) for made in message["tool_calls"]]

    with served() as mock:
        async with serving(record=str(tmp_path), openai_api_base=f"{mock}/v1") as client:
            before = await agent(client, "12:00")
    names = names_in(tmp_path)
    assert names == [names[0], names[0].replace("_1.toml", "_2.toml")]
    async with serving(replay=str(tmp_path), **nowhere(openai_api_base="http://a/v1")) as client:
        assert await agent(client, "18:30") == before
        entries = (await client.get("/mock/requests")).json()["data"]
    assert [entry["rule"] for entry in entries] == names
    assert entries[0]["difference"] is None
    assert '"18:30", recorded is "12:00"' in entries[1]["difference"]


QUOTES = ["'", "'''", '"', '"""', "\\", "\n", "\r\n", "a", "👋", "\u2028"]


@given(
    st.one_of(
        st.text(st.characters(codec="utf-8")), st.lists(st.sampled_from(QUOTES)).map("".join)
    ),
    st.binary(),
)
def test_every_text_and_all_bytes_survive_a_file(text: str, data: bytes) -> None:
    request = files.Request("POST", f"/v1/x?{text}", text.encode(), "text/plain")
    headers = {"content-type": "text/plain"}
    pieces = [Piece(0.0, b"x" + text.encode()), Piece(1.5, b"\xff" + data)]
    made = RecordedExchange(request, 200, 0.25, headers, True, pieces, "cut", 0.5)
    assert files.exchange_of(tomllib.loads(toml_of(made))) == made
    assert tomllib.loads(f"a = {files.multiline(text)}")["a"] == text
    assert tomllib.loads(f"a = {files.quoted(text)}")["a"] == text


GOOD_REQUEST = 'request = {method = "G", path = "/"}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1", "x: unknown field; known are request, response"),
        ("", "request: must be a table"),
        ("[request", "Expected ']'"),
        ("request = {}\nresponse = {}", "response.status is missing"),
        ("request = {}\nresponse = {status = 200}", "request.method: must be a string"),
        ("request = {}\nresponse = {status = 20}", "response.status: must be an integer"),
        ('request = {}\nresponse = {end = "x"}', "response.end: must be one of complete, cut"),
        (
            f'{GOOD_REQUEST}\nresponse = {{status = 200, headers = {{a = "\\n"}}}}',
            "response.headers.a: is no header",
        ),
        (
            f'{GOOD_REQUEST}\nresponse = {{status = 200, pieces = [{{base64 = "!"}}]}}',
            "response.pieces[0].base64: is not Base64",
        ),
        (
            f"{GOOD_REQUEST}\nresponse = {{status = 200, after_ms = -1}}",
            "response.after_ms: must be",
        ),
    ],
)
def test_a_mistake_in_a_file_stops_the_start_with_file_and_field(
    text: str, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        create_app(Settings(replay=str(tmp_path), chat_url="http://a.example/chat"))
    assert str(caught.value).startswith(f"REPLAY: {file}: ")
    assert "\n" not in str(caught.value)


def test_few_exchanges_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewrap.upstream.recording.library.CACHE_BYTES", 5_000)
    for number in range(20):
        write(tmp_path, str(number), {"n": number}, "x" * 1_000)
    library = player(tmp_path).library
    assert 0 < len(library.cache) <= 5
    assert library.cached_bytes == sum(size for _, size in library.cache.values()) <= 5_000
    assert library.exchange(library.recordings["0.toml"]).pieces[0].data == b"x" * 1_000


# Secrets

KEY = "canary-0123456789abcdef"
CLIENT_KEY = "sk-client-0123456789"
SECRETS = {
    "the key": KEY,
    "the key in Base64": base64.b64encode(KEY.encode()).decode().rstrip("="),
    "a password of the URL": "hunter2secret",
    "user and password": base64.b64encode(b"bob:hunter2secret").decode(),
    "a part of the query": "qkeysecret99",
    "a part of the path": "550e8400e29b41d4a716446655440000",
    "a header with a telling name": "tell-me-not",
    "a header with a key": "9f86d081884c7d65",
    "a cookie": "sessioncookie77",
    "a cookie of the upstream": "upstreamcookie88",
    "the client's key": CLIENT_KEY,
    "a key with a slash": "slash/in+key/12345",
}
RESEMBLING = "sk-other-0123456789 Bearer abcdefgh token=xyz /v1/chat/completions 127.0.0.1 blue"


async def test_no_secret_is_in_any_file_and_what_resembles_one_stays(tmp_path: Path) -> None:
    planted = " ".join(SECRETS.values())
    in_json = json.dumps(planted).replace("/", "\\/")

    async def answer(request: Request, reader: Any, writer: Any) -> None:
        cookies = f"set-cookie: s={SECRETS['a cookie of the upstream']}; Path=/; HttpOnly"
        headers = [cookies, f"x-request-id: {KEY}", f"etag: {planted}", f"x-internal: {planted}"]
        body = sse(
            [json.dumps({"reply": planted}), f'{{"reply": {in_json}}}', RESEMBLING, "[DONE]"]
        )
        data = b"".join(body)
        pieces = [data[at : at + 7] for at in range(0, len(data), 7)]  # secrets are split
        await send(writer, chunked(SSE, pieces, *headers))

    asked = {"model": planted, **user(f"{planted} {RESEMBLING}"), "user": planted}
    cookie = SECRETS["a cookie of the upstream"]  # is known when the request has been sent
    again = json.loads(json.dumps(asked).replace(cookie, "")) | {"stream": True}
    async with Upstream(answer) as up:
        path = f"/hook/{SECRETS['a part of the path']}/chat?key=qkeysecret99"
        settings: dict[str, Any] = {
            "chat_url": up.url.replace("http://", "http://bob:hunter2secret@") + path,
            "chat_key": KEY,
            "chat_headers": {
                "X-My-Secret": "tell-me-not",
                "X-Custom": "9f86d081884c7d65",
                "X-Team": "blue",
                "X-Other-Key": "slash/in+key/12345",
            },
            "forward_headers": ("cookie", "x-client-key"),
            "record": str(tmp_path / "recorded"),
        }
        headers = {"cookie": "lang=en; s=sessioncookie77", "x-client-key": CLIENT_KEY}
        async with serving(**settings) as client:
            for body in (asked, again):
                await client.post("/v1/chat/completions", json=body, headers=headers)
        assert planted in up.requests[0].body.decode()
        sent = up.requests[0].headers
        assert {KEY in sent["authorization"], "sessioncookie77" in sent["cookie"]} == {True}
        # The same for a relay, where the client's key goes to the upstream.
        async with serving(
            openai_api_base=up.url + "/v1", record=str(tmp_path / "relayed")
        ) as client:
            key = {"authorization": f"Bearer {CLIENT_KEY}"}
            relayed = {"model": "m", **user(f"{CLIENT_KEY} {RESEMBLING}"), "stream": True}
            await client.post("/v1/chat/completions", json=relayed, headers=key)
            await client.post(
                "/v1/embeddings", json={"model": "m", "input": CLIENT_KEY}, headers=key
            )
    found = sorted((tmp_path / "recorded").iterdir())
    assert len(found) == 2
    for file in found:
        content = file.read_text() + file.name
        shown = [name for name, secret in SECRETS.items() if secret in content]
        assert shown == []
        text = "".join(
            piece["text"] for piece in tomllib.loads(file.read_text())["response"]["pieces"]
        )
        assert RESEMBLING in text
        assert RESEMBLING in file.read_text().partition("[response]")[0]
        assert "/hook/***/chat?key=***" in content
    for file in (tmp_path / "relayed").iterdir():
        assert CLIENT_KEY not in file.read_text() + file.name
    settings |= {"record": "", "replay": str(tmp_path / "recorded")}
    async with serving(**nowhere(**settings)) as client:
        replayed = await client.post("/v1/chat/completions", json=again, headers=headers)
    assert replayed.status_code == 200, replayed.text


@pytest.mark.parametrize("key", ["ollama", "EMPTY", "dummy"])
def test_a_key_that_is_a_word_is_not_looked_for(key: str) -> None:
    assert all_forms([key]) == []


@given(st.lists(st.sampled_from([b"SECRET88", b"SEC", b"RET88", b"x", b"yz"])), st.integers(1, 9))
def test_a_secret_in_several_pieces_is_taken_out_and_the_others_stay(
    parts: list[bytes], size: int
) -> None:
    data = b"".join(parts)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    clean = pieces_without(pieces, [b"SECRET88"])
    assert b"".join(clean) == data.replace(b"SECRET88", b"***")
    assert len(clean) == len(pieces)
    first = data.find(b"SECRET88")
    untouched = len(pieces) if first < 0 else first // size
    assert clean[:untouched] == pieces[:untouched]
    last = data.rfind(b"SECRET88") + 8
    after = 0 if first < 0 else -(-last // size)
    assert clean[after:] == pieces[after:]


def test_names_of_models_stay_in_paths_and_keys_do_not() -> None:
    def path(url: str) -> str:
        return recordable_path(f"https://host.example:8443{url}")

    kept = "/v1beta/models/gemini-2.5-flash-lite-preview-06-17:generateContent"
    assert path(f"{kept}?key=abc&alt=sse") == f"{kept}?key=***&alt=sse"
    assert path("/openai/deployments/gpt4o2024prod/chat?api-version=2024-10-21") == (
        "/openai/deployments/gpt4o2024prod/chat?api-version=2024-10-21"
    )
    assert path("/webhook/550e8400-e29b-41d4-a716-446655440000/") == "/webhook/***"
    assert path("/services/T0123ABCD/B0123ABCD") == "/services/***/***"
    assert path("") == "/"
    assert "550e8400-e29b-41d4-a716-446655440000" in request_credentials(
        "https://a.example/webhook/550e8400-e29b-41d4-a716-446655440000", {}
    )


# The control routes


async def test_the_journal_has_the_request_of_the_client_and_the_recording(tmp_path: Path) -> None:
    async with upstream_of("ollama") as settings:
        async with serving(record=str(tmp_path), **settings) as client:
            assert (await client.get("/mock/requests")).status_code == 404
            await chat(client, user="u1")
    async with serving(replay=str(tmp_path), **nowhere(**settings)) as client:
        answered = await chat(client, user="u1")
        await chat(client, **user("Unknown"))
        first, second = (await client.get("/mock/requests")).json()["data"]
        assert (await client.post("/mock/rules", json=[])).status_code == 400
        assert (await client.post("/mock/reset")).status_code == 200
        assert (await client.get("/mock/requests")).json()["data"] == []
    assert first["id"] == answered.headers["x-request-id"]
    assert (first["api"], first["path"]) == ("chat", "/v1/chat/completions")
    assert (first["model"], first["lane"], first["status"]) == ("m", "u1", 200)
    assert ([first["rule"]], first["difference"]) == (names_in(tmp_path), None)
    assert first["messages"] == ASKED["messages"]
    assert (second["rule"], second["status"]) == (None, 404)
    assert "messages[0].content" in second["difference"]


async def test_a_reset_starts_the_sequences_again(tmp_path: Path) -> None:
    for text in ("one", "two"):
        body = completion(text, ASKED)
        write(tmp_path, text, {"model": "m", "input": "Hi"}, body, path="/v1/embeddings")
    async with serving(replay=str(tmp_path), **nowhere(openai_api_base="http://a/v1")) as client:

        async def ask() -> str:
            answer = await client.post("/v1/embeddings", json={"model": "m", "input": "Hi"})
            return str(answer.json()["choices"][0]["message"]["content"])

        assert [await ask() for _ in range(3)] == ["one", "two", "two"]
        await client.post("/mock/reset")
        assert await ask() == "one"


async def test_the_control_routes_need_a_key_where_keys_are_set(tmp_path: Path) -> None:
    write(tmp_path, "a", {}, "A")
    settings = {"openai_api_base": "http://a.example/v1", "api_keys": ("sk-server-1234",)}
    async with serving(replay=str(tmp_path), **settings) as client:
        assert (await client.get("/mock/requests")).status_code == 401


# The configuration


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"record": "DIR"}, "RECORD is set, and the mock answers"),
        ({"replay": "DIR"}, "REPLAY is set, and the mock answers"),
        ({"record": "DIR", "use_mock_api": True, "chat_url": "http://a/x"}, "RECORD is set, and"),
        (
            {"record": "DIR", "replay": "DIR", "chat_url": "http://a/x"},
            "RECORD and REPLAY are both",
        ),
        ({"record": "DIR", "workers": 2, "chat_url": "http://a/x"}, "WORKERS must be 1"),
        ({"replay": "DIR", "chat_url": "http://a/x"}, "DIR has no recordings"),
        ({"replay": "DIR/none", "chat_url": "http://a/x"}, "DIR/none: No such file"),
        ({"record": "DIR/file/sub", "chat_url": "http://a/x"}, "DIR/file/sub: "),
    ],
)
def test_a_configuration_that_cannot_work_stops_the_start(
    settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").touch()
    for name in ("record", "replay"):
        if name in settings:
            settings = settings | {name: settings[name].replace("DIR", str(folder))}
    with pytest.raises(ValueError, match=re.escape(reason.replace("DIR", str(folder)))) as caught:
        create_app(Settings(**settings))
    assert "\n" not in str(caught.value)


def test_settings_without_effect_are_named() -> None:
    notes = " ".join(ignored_notes(Settings(replay_miss="record", replay_ignore=("seed",))))
    assert "REPLAY_MISS has no effect" in notes
    assert "REPLAY_IGNORE has no effect" in notes
    assert ignored_notes(Settings(chat_url="http://a/x", replay="x", replay_speed=1.0)) == []


def test_without_the_settings_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; from rewrap.main import create_app; from rewrap.config.settings import Settings;"
        "create_app(Settings(chat_url='http://a.example/chat', store_url='sqlite://'));"
        "print([name for name in sys.modules if 'recording' in name or name == 'rewrap.mock.replay'])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"
