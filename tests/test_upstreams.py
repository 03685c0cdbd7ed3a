"""The upstreams of the tests do on the wire what their names say, and see who leaves, and when."""

import asyncio
import json
import os
import re
import signal
import socket
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
import upstreams
from upstreams import (
    BIG,
    DONE,
    FAULTS,
    FORCED_SSE,
    GOOD,
    KINDS,
    TEXT,
    Upstream,
    closed_port,
    lf,
    make,
)

pytestmark = pytest.mark.anyio
HARD = "a\r\n\n  b \u2028\u0085 世界 👋🏽 [DONE] data: x\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def ask(
    up: Upstream, path: str = "/chat", stream: bool = False
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request on the wire, and its connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", up.port)
    data = json.dumps({"stream": stream, "model": "m"}).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        f"host: u:{up.port}",
        "authorization: Bearer sk-1",
        f"content-length: {len(data)}",
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode() + data)
    await up.wait_requests(len(up.requests) + 1)
    return reader, writer


async def raw(
    up: Upstream, path: str = "/chat", stream: bool = False, timeout_s: float = 0.3
) -> tuple[bytes, str]:
    """An answer's first MB, and how it ended: "closed", "reset", or still "open" when nothing came for a while."""
    reader, writer = await ask(up, path, stream)
    got, end = b"", "open"
    try:
        async with asyncio.timeout(timeout_s):
            while len(got) < 10**6:
                part = await reader.read(2**16)
                if not part:
                    end = "closed"
                    break
                got += part
    except ConnectionResetError:
        end = "reset"
    except TimeoutError:
        pass
    writer.transport.abort()
    return got, end


def said(content_type: str, data: bytes) -> str:
    """The reply in an answer, read as the standards say."""
    text = data.decode()
    if "event-stream" in content_type:
        fields = re.findall(r"^data: ?(.*)((?:\ndata: ?.*)*)", re.sub("\r\n?", "\n", text), re.M)
        events = [first + re.sub("\ndata: ?", "\n", more) for first, more in fields]
        return "".join(reply(event) for event in events if event != DONE)
    if "ndjson" in content_type:
        return "".join(reply(line) for line in text.split("\n") if line)
    return reply(text) if "json" in content_type else text


def reply(text: str) -> str:
    try:
        value: Any = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, str):
        return value
    choices = [
        choice.get("delta") or choice.get("message") or {} for choice in value.get("choices", [])
    ]
    return (
        value.get("reply")
        or value.get("text")
        or "".join(choice.get("content", "") for choice in choices)
    )


def client_of_tests() -> httpx.AsyncClient:
    return httpx.AsyncClient(
        trust_env=False, verify=False
    )  # reading the certificates takes longer than a test


async def post(url: str, stream: bool = False) -> httpx.Response:
    async with client_of_tests() as client:
        return await client.post(url, json={"stream": stream}, timeout=10)


async def test_a_fault_that_is_legal_gives_its_text() -> None:
    paths = ["v1/chat/completions", "chat"]
    asked = [
        (name, path, stream)
        for name in GOOD.keys() - {"done_then_open"}
        for path in paths
        for stream in (0, 1)
    ]
    async with Upstream(upstreams.by_path) as up:
        answers = await asyncio.gather(
            *(post(f"{up.url}/fault/{n}/{path}", bool(stream)) for n, path, stream in asked)
        )
    for (name, path, stream), answer in zip(asked, answers, strict=True):
        kind = answer.headers["content-type"]
        assert (name, said(kind, answer.content)) == (name, GOOD[name])
        assert ("event-stream" in kind) == bool(
            stream or (name in FORCED_SSE and path == "chat")
        ), (name, path)


WIRE = {
    "hang": ("", "open"),
    "slow_head": ("^H[TP]*$", "open"),
    "drip_mid": (r'data: [^\n]*"\r\n(1\r\na\r\n)+$', "open"),
    "pings_only": (r"\r\n\r\n(8\r\n: ping\n\n\r\n)+$", "open"),
    "blanks": (r"application/json\r\n[^\n]*\r\n\r\n(1\r\n\n\r\n)+$", "open"),
    "drip": (r'data: {[^\n]*"\r\n(1\r\na\r\n)+$', "open"),
    "drip_json": (r'application/json\r\n[^\n]*\r\n\r\n[^\n]*\n{[^\n]*"\r\n(1\r\na\r\n)+$', "open"),
    "reset": ("^$", "reset"),
    "reset_mid": ("data: ", "reset"),
    "cut_chunk": (r"data: [^\n]*[^}\n]$", "closed"),
    "cut_event": (r"data: [^\n]*\r\n0\r\n\r\n$", "open"),
    "truncated_json": (r"content-length: 9999\r\n\r\n{[^}]+$", "closed"),
    "truncated_json_clean": (r"content-length: ..\r\n\r\n{[^}]+$", "open"),
    "truncated_sse": (r"data: (?!(?s:.)*DONE)(?s:.)*}\n\n\r\n0\r\n\r\n$", "open"),
    "endless": ("(data: .*\n\n\r\n.*\r\n){100}", "open"),
    "endless_json": ("a{9999}", "open"),
    "endless_head": ("(x-more: and more\r\n){9999}", "open"),
    "huge_event": ("data: (?s:.)*a{9999}", "open"),
    "two_lengths": ("content-length: [^7]+\r\ncontent-length: 7\r\n", "closed"),
    "bad_chunk_size": ("\r\nzz\r\n", "closed"),
    "header_injection": ("[^\r]\nx-injected: yes\r\n", "open"),
    "trailers": ("\r\n0\r\nx-sum: 1\r\n\r\n$", "open"),
    "early_hints": ("^HTTP/1.1 103 .*\r\n.*\r\n\r\nHTTP/1.1 200 ", "open"),
    "hundred_continue": ("^HTTP/1.1 100 .*\r\n\r\nHTTP/1.1 200 ", "open"),
    "close_delimited": (r"^HTTP/1.1 200 OK\r\n[^\r]*\r\n\r\n", "closed"),
    "http10": ("^HTTP/1.0 200 OK\r\n", "closed"),
    "429_retry_after": ("^HTTP/1.1 429 (?s:.)*retry-after: 7\r\n", "open"),
    "503_retry_after": ("^HTTP/1.1 503 (?s:.)*retry-after: 3\r\n", "open"),
    "401_repeats_key": ("^HTTP/1.1 401 (?s:.)*Bearer sk-1", "open"),
    "redirect": (r"^HTTP/1.1 302 (?s:.)*location: http://localhost:\d+/stolen\r\n", "open"),
    "204": ("^HTTP/1.1 204 No Content\r\n\r\n$", "open"),
    "empty_200": ("content-length: 0\r\n\r\n$", "open"),
    "crlf": (r"data: [^\n]*}\r\n\r\n\r\n", "open"),
    "done_then_open": (r"data: \[DONE\]\n\n\r\n$", "open"),
    "set_cookie": ("\nset-cookie: (?s:.)*\naccess-control-allow-origin: ", "open"),
    "cr": (r"data: [^\n]*}\r\r\r\n", "open"),
    "comments": ("\n: ping\n\n: ping\nid: 7\nretry: 3000\ndata: ", "open"),
    "no_space": ("\ndata:{", "open"),
    "many_data_lines": (r"data: {\ndata:  \"reply\": .*\ndata: }\n\n", "open"),
    "no_last_blank": (r"data: \[DONE\]\r\n0\r\n\r\n$", "open"),
    "error_event": ('data: {"reply".*\n(?s:.)*data: {"error": .*\n\n\r\n0\r\n\r\n$', "open"),
    "surrogate": (r"\\ud800\"", "open"),
    "nan_json": ('"extra": NaN}$', "open"),
    "deep_json": (r"\[{2000}\]{2000}}$", "open"),
    "null_content": ('"reply": null}$', "open"),
}


async def test_a_fault_is_on_the_wire_what_its_name_says() -> None:
    async with Upstream(upstreams.by_path) as up:
        answers = await asyncio.gather(
            *(raw(up, f"/fault/{name}/chat", timeout_s=0.7) for name in WIRE)
        )
    for (name, (pattern, end)), (data, ended) in zip(WIRE.items(), answers, strict=True):
        assert (name, ended) == (name, end)
        assert re.search(pattern, data.decode()), (name, data[:500], data[-100:])


async def test_the_large_ones_are_large_and_the_binary_ones_are_no_text() -> None:
    async with Upstream(upstreams.by_path) as up:
        big = await post(f"{up.url}/fault/body_10mb/chat")
        bomb, _ = await raw(up, "/fault/gzip_bomb/chat")
        bad, _ = await raw(up, "/fault/invalid_utf8/chat")
    assert said("json", big.content) == BIG
    assert len(bomb) < 300_000
    inflate, size, data = zlib.decompressobj(31), 0, bomb.partition(b"\r\n\r\n")[2]
    while data and not inflate.eof:
        size += len(inflate.decompress(data, 2**20))
        data = inflate.unconsumed_tail
    assert inflate.eof
    assert size > 250 * 10**6
    with pytest.raises(UnicodeDecodeError):
        bad.decode()


async def test_split_utf8_and_crlf_apart_are_split_where_they_say() -> None:
    async with Upstream(FAULTS["crlf_apart"]) as up:
        data, _ = await raw(up, stream=True)
        assert data.count(b"}\r\r\n") > 5  # a chunk ends between the CR and the LF
    async with Upstream(FAULTS["split_utf8"]) as up, asyncio.timeout(2):
        reader, writer = await ask(up, stream=True)
        await reader.readuntil(b"\xf0\r\n")
        with pytest.raises(TimeoutError):  # the rest of the character is not there yet
            await asyncio.wait_for(reader.read(1), 0.01)
        writer.transport.abort()


async def test_keepalive_race_closes_on_the_second_request_without_a_byte() -> None:
    async with Upstream(FAULTS["keepalive_race"]) as up, client_of_tests() as client:
        assert (await client.post(up.url + "/chat", json={})).status_code == 200
        with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
            await client.post(up.url + "/chat", json={})
        assert (up.connections, [request.nth for request in up.requests]) == (1, [0, 1])


async def test_nobody_listens_at_a_closed_port() -> None:
    with pytest.raises(httpx.ConnectError):
        await post(f"http://127.0.0.1:{closed_port()}")


@pytest.mark.parametrize("with_reset", [False, True])
@pytest.mark.parametrize(
    "name", ["hang", "slow_head", "drip", "endless", "endless_head", "huge_event", "done_then_open"]
)
async def test_closed_at_is_when_the_client_left(name: str, with_reset: bool) -> None:
    async with Upstream(FAULTS[name]) as up:
        _, writer = await ask(up, stream=True)
        await asyncio.sleep(0.05)
        assert up.open == 1
        assert up.requests[0].closed_at is None
        if with_reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        left = asyncio.get_running_loop().time()
        writer.transport.abort()
        assert 0 <= await up.wait_closed() - left < 0.1
        await up.until(lambda: up.open == 0)
        assert not up.requests[0].answered


async def test_who_leaves_after_the_answer_has_not_left_it() -> None:
    async with Upstream(FAULTS["good"]) as up:
        await post(up.url + "/chat")
        await up.until(lambda: up.open == 0)
        assert up.requests[0].answered
        assert up.requests[0].closed_at is None
        with pytest.raises(TimeoutError):
            await up.wait_closed(timeout_s=0.01)


async def test_requests_are_kept_as_evidence() -> None:
    async def body() -> Any:
        yield b'{"a":'
        yield b" 1}"

    async with Upstream(FAULTS["good"]) as up, client_of_tests() as client:
        await client.post(up.url + "/chat?q=1", content=body(), headers={"X-One": "1"})
        request = up.requests[0]
    assert (request.method, request.path, request.headers["x-one"]) == ("POST", "/chat?q=1", "1")
    assert (request.body, request.json()) == (b'{"a": 1}', {"a": 1})


@pytest.mark.parametrize("kind", KINDS)
async def test_the_gate_holds_the_end_of_each_kind(kind: str) -> None:
    gate, data = asyncio.Event(), b""
    async with Upstream(make(kind, HARD, gate=gate)) as up, client_of_tests() as client:
        async with client.stream("POST", up.url + "/chat", json={}) as answer:
            async for part in answer.aiter_bytes():
                data += part
                if b"a" in part and not gate.is_set():
                    await asyncio.sleep(0.02)
                    assert not up.requests[0].answered
                    gate.set()
    assert gate.is_set()
    assert said(answer.headers["content-type"], data) == (lf(HARD) if kind == "sse_text" else HARD)


async def test_pieces_and_the_pause_between_them_are_the_tests_to_choose() -> None:
    async with Upstream(make("plain_text", "one two", ["one ", "two"], pause_s=0.05)) as up:
        loop, seen = asyncio.get_running_loop(), list[tuple[bytes, float]]()
        async with client_of_tests() as client, client.stream("GET", up.url) as answer:
            async for part in answer.aiter_bytes():
                seen.append((part, loop.time()))
    assert [part for part, _ in seen] == [b"one ", b"two"]
    assert seen[1][1] - seen[0][1] > 0.04


async def test_a_handler_that_raises_fails_the_test() -> None:
    async def wrong(*_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with Upstream(wrong) as up:
            await raw(up)


async def test_nothing_is_left_of_any_fault() -> None:
    """Each fault is asked by a client that reads nothing, and the server ends while that one is still there."""
    before, tasks = os.listdir("/proc/self/fd"), asyncio.all_tasks()
    for name in FAULTS.keys() - {"gzip_bomb"}:
        async with Upstream(FAULTS[name]) as up:
            _, writer = await ask(up)
            _, second = await ask(up, stream=True)
        writer.transport.abort()
        second.transport.abort()
    await asyncio.sleep(0.01)
    assert os.listdir("/proc/self/fd") == before
    assert asyncio.all_tasks() == tasks


async def test_one_process_serves_them_all_by_path() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(Path(upstreams.__file__)), "0", stdout=-1, stderr=-1
    )
    assert process.stdout
    assert process.stderr
    url = f"http://127.0.0.1:{int(await process.stdout.readline())}"
    for path, status in {
        "/good/v1/chat/completions": 200,
        "/fault/403/chat": 403,
        "/fault/no/chat": 404,
    }.items():
        assert (await post(url + path)).status_code == status
    for kind in KINDS:
        answer = await post(f"{url}/good/{kind}/chat")
        assert said(answer.headers["content-type"], answer.content) == TEXT
    with pytest.raises(httpx.ReadTimeout):
        async with client_of_tests() as client:
            await client.post(f"{url}/fault/hang/chat", json={}, timeout=0.1)
    left = asyncio.get_running_loop().time()
    async with client_of_tests() as client:
        evidence = (await client.get(f"{url}/evidence")).json()
    assert evidence["connections"] == len(evidence["requests"]) == 4 + len(KINDS)
    assert evidence["open"] == 0
    assert abs(evidence["requests"][-1]["closed_at"] - left) < 0.1
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    assert await process.stderr.read() == b""
    process._transport.close()  # type: ignore[attr-defined]
