"""`rewrap probe`: its findings on local servers, and that the printed settings work; the examples."""

import asyncio
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import ASKED, ROOT, served
from shape_servers import WIRES, ShapeServer, has, shape_server, sse
from upstreams import (
    JSON,
    PLAIN,
    SSE,
    Request,
    Upstream,
    chunked,
    closed_port,
    dumps,
    hold,
    says,
    send,
    sends,
    whole,
)

from rewrap.config.backends_file import read_backends_file
from rewrap.config.settings import Settings
from rewrap.probe import probe_command
from rewrap.probe.attempts import WANTED
from rewrap.probe.field_hints import Field, request_of, wanted_fields
from rewrap.probe.reply_candidates import reply_path, texts
from rewrap.probe.report import backend_name, problem_of
from rewrap.probe.search import MAX_REQUESTS

BARE = set(WIRES) - {"flowise", "langflow", "n8n", "langserve", "cloudflare", "botpress", "triton"}
SECRETS = ["ourownkey123", "headervalue456"]  # nothing tells by their looks what they are
Speaks = Callable[..., AbstractContextManager[ShapeServer]]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and no setting in the environment."""
    monkeypatch.chdir(tmp_path)
    for spec in fields(Settings):
        monkeypatch.delenv(spec.name.upper(), raising=False)


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def speaks(portal: BlockingPortal) -> Speaks:
    """A server that speaks a shape, on a loop beside the test; `wire` changes how."""

    @contextmanager
    def server(name: str = "openai", **wire: Any) -> Iterator[ShapeServer]:
        with portal.wrap_async_context_manager(shape_server(name)) as shaped:
            shaped.wire = replace(shaped.wire, **wire)
            yield shaped

    return server


def probe(*argv: str) -> int:
    return probe_command([*argv])


@contextmanager
def pasted(told: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with exactly the settings that stand in what the probe told; secrets are put back."""
    given = told.replace("YOUR-KEY", SECRETS[0]).replace("YOUR-VALUE", SECRETS[1])
    if "Into backends.toml:\n" in given:
        file = given.split("Into backends.toml:\n")[1].split("Into .env:\n")[0]
        Path("backends.toml").write_text(file)
    Path(".env").write_text(given.split("Into .env:\n")[1])
    with served(**vars(Settings.load()) | {"log_level": "warning"}) as url:
        yield url


def replies(url: str) -> tuple[str, str]:
    """The text of a completion, and that of a stream."""
    with httpx.Client(trust_env=False, verify=False, timeout=10) as client:
        whole = client.post(f"{url}/v1/chat/completions", json=ASKED)
        plain = client.post(f"{url}/v1/chat/completions", json=ASKED | {"stream": True})
    *events, done = plain.text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]", plain.text
    choices = [
        choice for event in events for choice in json.loads(event.removeprefix("data: "))["choices"]
    ]
    return whole.json()["choices"][0]["message"]["content"], "".join(
        c["delta"].get("content") or "" for c in choices
    )


# ---- what it finds


@pytest.mark.parametrize("name", WIRES)
def test_the_lines_that_it_prints_work_when_pasted(
    name: str, speaks: Speaks, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with speaks(name) as up:
        assert probe(up.url + up.wire.whole) == 0
        assert len(up.requests) <= MAX_REQUESTS
        told = capsys.readouterr().out
        assert f"as {name if name != 'triton' else 'kserve'}:" in told
        assert (" streams: yes" in told) == bool(up.wire.stream)
        with pasted(told, monkeypatch) as url:
            assert replies(url) == (up.wire.text, up.wire.text)


@pytest.mark.parametrize("name", sorted(BARE))
def test_a_bare_address_is_enough_for_most(
    name: str, speaks: Speaks, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with speaks(name) as up:
        assert probe(up.url) == 0
        with pasted(capsys.readouterr().out, monkeypatch) as url:
            assert replies(url) == (up.wire.text, up.wire.text)


def test_the_path_above_is_enough_too(speaks: Speaks, capsys: pytest.CaptureFixture[str]) -> None:
    with speaks("dify") as up:
        assert probe(f"{up.url}/v1/") == 0
        assert f"CHAT_URL={up.url}/v1/chat-messages\nCHAT_SHAPE=dify\n" in capsys.readouterr().out
        assert len(up.requests) < 5


def test_an_openai_compatible_upstream_is_named_as_one(
    speaks: Speaks, capsys: pytest.CaptureFixture[str]
) -> None:
    with speaks("openai") as up:
        assert probe(up.url, "--model", "small", "--key", "sk-1234") == 0
        told = capsys.readouterr().out
        assert told.endswith(
            f"OPENAI_API_BASE={up.url}/v1\nOPENAI_API_KEY=YOUR-KEY\nOPENAI_MODEL=small\n"
        )
        assert {body["model"] for _, _, body in up.requests} == {"small"}


def test_a_chat_url_of_the_usual_kind_needs_no_shape(
    speaks: Speaks, capsys: pytest.CaptureFixture[str]
) -> None:
    with speaks(path="/ask", answer={"reply": "OK."}, stream=[]) as up:
        assert probe(f"{up.url}/ask") == 0
        told = capsys.readouterr().out
        assert told.startswith("A reply: OK.\n")
        assert told.endswith(f"CHAT_URL={up.url}/ask\n")
        assert len(up.requests) == 2, "the first that was asked, and one for a stream"


def test_the_command_prints_the_lines_and_exits_with_0(speaks: Speaks) -> None:
    with speaks("cohere") as up:
        command = [sys.executable, str(ROOT / "main.py"), "probe", up.url]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith(f"Into .env:\n\nCHAT_URL={up.url}\nCHAT_SHAPE=cohere\n")


DEEP = {
    "id": "x-1",
    "data": {"out": [{"words": "OK, then."}], "model": "m9", "trace_id": "OK"},
    "createdAt": "now",
}


@pytest.mark.parametrize(
    ("valid", "request_line"),
    [
        (has(messages=list, model=str), 'messages = "{messages}"'),
        (has(question=str), 'request = { question = "{prompt}" }\n'),
        (has(text_input=str), 'request = { text_input = "{conversation}" }\n'),
    ],
)
def test_a_reply_at_a_place_of_its_own_becomes_a_mapping(
    valid: Any,
    request_line: str,
    speaks: Speaks,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with speaks(path="/api/ask", valid=valid, answer=DEEP, stream=[]) as up:
        assert (
            probe(f"{up.url}/api/ask", "--key", SECRETS[0], "--header", f"X-Own: {SECRETS[1]}") == 0
        )
        told = capsys.readouterr().out
        assert 'reply = "data.out[0].words"' in told
        assert request_line in told
        with pasted(told, monkeypatch) as url:
            assert replies(url) == ("OK, then.", "OK, then.")
        _, headers, _ = up.requests[-1]
        assert (headers["authorization"], headers["x-own"]) == (f"Bearer {SECRETS[0]}", SECRETS[1])


def deep(words: str) -> dict[str, Any]:
    return {"id": "x-1", "data": {"out": [{"words": words}], "model": "m9"}}


SAME_PLACE = sse({"id": "x-1"}, deep("OK,"), deep(" then."), "[DONE]")
ELSEWHERE = sse(
    {"type": "start"},
    {"type": "piece", "delta_text": "OK,"},
    {"type": "piece", "delta_text": " then."},
)


@pytest.mark.parametrize(
    ("path", "valid", "asks", "stream", "line"),
    [
        (
            "/ask",
            has(messages=list),
            {"stream": True},
            SAME_PLACE,
            "stream = { request = { stream = true } }",
        ),
        (
            "/ask",
            has(question=str),
            {"stream": True},
            SAME_PLACE,
            "stream = { request = { stream = true } }",
        ),
        (
            "/api/v1/prediction/x",
            has(question=str, streaming=bool),
            {"streaming": True},
            SAME_PLACE,
            "stream = { request = { stream = true } }",
        ),
        ("/v1/chat/completions", has(messages=list), {"stream": True}, SAME_PLACE, "stream = {}"),
        (
            "/ask",
            has(query=str, response_mode=str),
            {"response_mode": "streaming"},
            ELSEWHERE,
            'stream = { request = { response_mode = "streaming", stream = true }, reply = "delta_text" }',
        ),
    ],
)
def test_a_mapping_streams_where_the_url_does(
    path: str,
    valid: Any,
    asks: dict[str, Any],
    stream: list[bytes],
    line: str,
    speaks: Speaks,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wire: dict[str, Any] = {
        "path": path,
        "valid": valid,
        "asks": lambda b, h: asks.items() <= b.items(),
    }
    with speaks(**wire, answer=DEEP, stream=stream) as up:
        assert probe(up.url + path) == 0
        told = capsys.readouterr().out
        assert " streams: yes\n" in told
        assert f'\nreply = "data.out[0].words"\n{line}\n' in told
        with pasted(told, monkeypatch) as url:
            assert replies(url) == ("OK, then.", "OK, then.")
        assert [asks.items() <= body.items() for _, _, body in up.requests[-2:]] == [False, True]


def test_a_mapping_for_a_url_that_takes_nothing_more_asks_for_no_stream(
    speaks: Speaks, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with speaks(path="/ask", valid=lambda b: b.keys() == {"model", "messages"}, answer=DEEP) as up:
        assert probe(f"{up.url}/ask") == 0
        told = capsys.readouterr().out
        assert " streams: no, a request for a stream fails: 400 " in told
        assert 'reply = "data.out[0].words"\n\n' in told
        with pasted(told, monkeypatch) as url:
            assert replies(url) == ("OK, then.", "OK, then.")


@pytest.mark.parametrize("last", [[], [{"type": "end", "full": "OK, then."}], ["[DONE]"]])
def test_a_url_that_always_streams_events_of_its_own_becomes_a_mapping(
    last: list[Any],
    portal: BlockingPortal,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with portal.wrap_async_context_manager(
        Upstream(sends(lambda r: chunked(SSE, [*ELSEWHERE, *sse(*last)])))
    ) as up:
        assert probe(f"{up.url}/x") == 0
        assert len(up.requests) <= MAX_REQUESTS
        told = capsys.readouterr().out
        assert 'reply = "delta_text"\n' in told
        assert " streams: yes\n" in told
        with pasted(told, monkeypatch) as url:
            assert replies(url) == ("OK, then.", "OK, then.")


@pytest.mark.parametrize("said", [{}, {"said": "Sure."}])
def test_what_was_sent_is_no_reply_when_it_comes_back(
    said: dict[str, str], portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    async def echo(request: Request, reader: Any, writer: Any) -> None:
        received = request.json() if request.body.startswith(b"{") else {}
        back = {"method": request.method, "received": received, "raw": request.body.decode()}
        await send(writer, whole(JSON, dumps(back | said).encode()))

    with portal.wrap_async_context_manager(Upstream(echo)) as up:
        assert probe(f"{up.url}/x") == (0 if said else 1)
    told = capsys.readouterr().out
    assert (
        told.count("A reply")
        == told.count("A reply: Sure.")
        == told.count('reply = "said"')
        == len(said)
    )


@pytest.mark.parametrize(
    "failed",
    [
        {"ok": False},
        {"success": False},
        {"status": "error"},
        {"status": "fail"},
        {"errors": ["x"]},
        {"errorMessage": "x"},
    ],
)
def test_an_error_with_status_200_is_no_reply(
    failed: dict[str, Any],
    portal: BlockingPortal,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(request: Request, reader: Any, writer: Any) -> None:
        bad, good = (
            failed | {"message": "missing field question"},
            {"ok": True, "errors": [], "answer": "OK."},
        )
        await send(
            writer, whole(JSON, dumps(good if "question" in request.json() else bad).encode())
        )

    with portal.wrap_async_context_manager(Upstream(answer)) as up:
        assert probe(f"{up.url}/x") == 0
        told = capsys.readouterr().out
        assert told.startswith("A reply: OK.\n")
        assert 'request = { question = "{prompt}" }' in told, "the error names the field"
        with pasted(told, monkeypatch) as url:
            assert replies(url) == ("OK.", "OK.")


@pytest.mark.parametrize(
    ("parts", "how"),
    [
        (whole(PLAIN, b"healthy"), "no, the reply comes whole"),
        (chunked(PLAIN, [b"healthy"]), "yes"),
    ],
)
def test_a_text_whose_length_was_known_is_no_stream(
    parts: list[bytes], how: str, portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    with portal.wrap_async_context_manager(Upstream(sends(lambda r: parts))) as up:
        assert probe(f"{up.url}/x") == 0
    assert f"  streams: {how}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": {"b": "Sure."}}, "a.b"),
        ({"a": {"b": "OK."}, "c": "something else"}, "a.b"),
        ({"a": "one", "b": "two"}, None),
        ({"id": "1", "error": "OK?", "x": 5}, None),
        ({"success": False, "info": "OK?"}, None),
        ([{"t": ["Hi"]}], "[0].t[0]"),
        ({"result": {"lines": ["You asked: OK.", "More?"]}, "agent": "hd 3"}, "result.lines[]"),
        ({"lines": ["one", 2]}, "lines[0]"),
        ({"lines": ["", "two"]}, "lines[]"),
        (["Good ", "day"], "[]"),
        ([{"t": ["Good ", "day"]}], "[0].t[]"),
        ({"lines": ["", ""]}, None),
        ({"a b": "OK", "a.b": "OK"}, None),
        ({"echo": "Say OK.", "said": "ok"}, "said"),
        ({}, None),
        ("Hi", "."),
    ],
)
def test_a_reply_is_found_where_it_alone_can_be(value: Any, path: str | None) -> None:
    assert reply_path(texts(json.dumps(value).encode(), b'"Say OK."', WANTED)) == path


def test_a_body_that_is_no_json_has_no_path() -> None:
    assert reply_path(texts(b"<html>", b"", WANTED)) is None
    assert reply_path(texts(b"[" * 900 + b'"x"' + b"]" * 900, b"", WANTED)) is None


def test_a_url_that_fails_when_it_is_asked_to_stream_says_so(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    async def answer(request: Request, reader: Any, writer: Any) -> None:
        bad, good = says(400, b'{"detail": "no streams"}'), says(200, b'{"reply": "OK"}')
        await (bad if request.sse else good)(request, reader, writer)

    with portal.wrap_async_context_manager(Upstream(answer)) as up:
        assert probe(f"{up.url}/x") == 0
    assert (
        'streams: no, a request for a stream fails: 400 application/json: {"detail": "no streams"}'
        in (capsys.readouterr().out)
    )


# ---- secrets


def test_no_secret_is_shown(speaks: Speaks, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = ["sk-theirs-abcdefgh", "eyJhbGciOiJIUzI1NiJ9.payload", "their-token-99"]
    answer = {"answer": f"OK {SECRETS[0]} {theirs[0]}", "saw": f"{SECRETS[1]}!", "jwt": theirs[1]}
    answer["access_token"] = theirs[2]
    with speaks("dify", answer=answer, path="/v1/chat-messages.*") as up:
        url = f"{up.url}/v1/chat-messages?api_key=query-secret-789".replace(
            "//", "//me:pass@word-1@"
        )
        assert (
            probe(url, "--key", SECRETS[0], "--header", f"Authorization: Bearer {SECRETS[1]}") == 0
        )
        told = capsys.readouterr().out
        assert "api_key=query-secret-789" in up.requests[0][0], "what was given went there"
    for secret in [*SECRETS, *theirs, "query-secret-789", "word-1"]:
        assert secret not in told
    assert "OK *** ***" in told
    assert 'CHAT_KEY=YOUR-KEY\nCHAT_HEADERS={"Authorization": "YOUR-VALUE"}\n' in told


def test_a_key_and_a_header_have_a_place_in_the_lines(
    speaks: Speaks, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with speaks("anthropic", headers=("x-api-key", "x-own", "anthropic-version")) as up:
        assert probe(up.url, "--key", SECRETS[0], "--header", f"X-Own:{SECRETS[1]}") == 0
        with pasted(capsys.readouterr().out, monkeypatch) as url:
            assert replies(url)[0] == "Hello world!"
        _, headers, _ = up.requests[-1]
        assert (headers["x-api-key"], headers["x-own"]) == (SECRETS[0], SECRETS[1])


def test_control_characters_of_an_answer_do_not_reach_the_terminal(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    with portal.wrap_async_context_manager(
        Upstream(says(200, b'{"reply": "OK \\u001b[2J\\r\\nCHAT_URL=x"}'))
    ) as up:
        assert probe(f"{up.url}/x") == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert told.startswith("A reply: OK  [2J  CHAT_URL=x\n")


# ---- nothing found


def answers(answer: Callable[[Request], tuple[int, object]]) -> Any:
    """A handler that answers with a status and JSON."""

    async def handle(request: Request, reader: Any, writer: Any) -> None:
        status, value = answer(request)
        await says(status, dumps(value).encode())(request, reader, writer)

    return handle


def test_each_answer_is_reported_once_and_the_most_telling_first(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(request: Request) -> tuple[int, object]:
        body = request.json() if request.body.startswith(b"{") else {}
        if "inputs" in body:
            return 422, {"oops": "x" * 5000}
        if "question" in body:
            return 500, {"oops": "y"}
        return 404, {"detail": f"nothing for {len(body)}"}

    with portal.wrap_async_context_manager(Upstream(answers(answer))) as up:
        assert probe(f"{up.url}/elsewhere") == 1
        assert 10 < len(up.requests) <= MAX_REQUESTS
        told = capsys.readouterr().out
        assert told.startswith(f"No reply in {len(up.requests)} requests. The answers:\n  422 ")
    lines = told.split("\n")
    answered = [line[2:5] for line in lines if line[:2] == "  " and line[2:5].isdigit()]
    assert answered[:2] == ["422", "500"]
    assert set(answered[2:]) == {"404"}
    assert len(set(lines[1:-1:2])) > 3
    assert max(map(len, lines)) < 400
    assert told.count("x" * 200) == 1
    assert "--body" in told


def test_an_answer_is_listed_with_what_was_sent(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(request: Request) -> tuple[int, object]:
        if request.method == "GET":
            return 405, {"e": "G"}
        if not request.body.startswith(b"{"):
            return 500, {"e": "F"}
        return 500, {"e": "J"}

    with portal.wrap_async_context_manager(Upstream(answers(answer))) as up:
        assert probe(f"{up.url}/x", "--key", SECRETS[0]) == 1
    told = capsys.readouterr().out
    assert '{"e": "F"}\n      to a mapping, sent form message=Say+OK.&prompt=Say+OK.' in told
    assert '{"e": "G"}\n      to a mapping, GET ?message=Say+OK.&prompt=Say+OK.' in told
    assert ', sent {"model":"gpt-4o-mini","messages":[{"role":"user",' in told
    assert SECRETS[0] not in told
    assert max(map(len, told.split("\n"))) < 400


def test_an_address_where_nobody_listens_is_asked_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe(f"http://127.0.0.1:{closed_port()}/x") == 1
    told = capsys.readouterr().out
    assert told == (
        "No reply in 1 request. The answers:\n  ConnectError\n      to any chat URL\n"
        "The URL cannot be reached.\n"
    )


@pytest.mark.parametrize(
    ("status", "options", "requests", "advice", "line"),
    [
        (401, [], 2, "The URL wants a key", "CHAT_KEY=YOUR-KEY"),
        (403, [], 2, "The URL wants a key", "CHAT_KEY=YOUR-KEY"),
        (401, ["--key", "sk-wrong"], len(WIRES) + 4, "No reply in", "CHAT_KEY=YOUR-KEY"),
        (429, [], 1, "The URL limits the rate", "CHAT_URL="),
    ],
)
def test_the_search_stops_where_more_requests_are_of_no_use(
    status: int,
    options: list[str],
    requests: int,
    advice: str,
    line: str,
    speaks: Speaks,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with speaks("openai") as up:
        up.mode = status  # type: ignore[assignment]
        assert probe(f"{up.url}/x", *options) == 1
        assert len(up.requests) == requests
        told = capsys.readouterr().out
        assert f"\n{advice}" in f"\n{told}"
        assert line in told.split("Into .env:")[1]


def test_an_address_that_is_not_there_is_asked_three_times(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    with portal.wrap_async_context_manager(Upstream(says(404, b'{"detail": "Not Found"}'))) as up:
        assert probe(f"{up.url}/x") == 1
        assert len(up.requests) == 3
    assert "Nothing answers at this path: give the path of the API.\n" in capsys.readouterr().out


@pytest.mark.parametrize("begun", [[], chunked(SSE, ELSEWHERE, end=b"")])
def test_a_url_that_is_too_slow_is_asked_twice(
    begun: list[bytes], portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    with portal.wrap_async_context_manager(Upstream(sends(lambda r: begun, hold))) as up:
        assert probe(f"{up.url}/x", "--timeout", "0.05") == 1
        assert len(up.requests) == 2
    assert "The URL is too slow: --timeout SECONDS allows more time.\n" in capsys.readouterr().out


def test_a_redirect_is_shown_and_not_followed(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    redirect = says(307, b"", "location: /elsewhere?token=abcdef")
    with portal.wrap_async_context_manager(Upstream(redirect)) as up:
        assert probe(f"{up.url}/x") == 1
        assert {request.path.partition("?")[0] for request in up.requests} == {"/x"}
    assert "\n  307 application/json to /elsewhere?token=***" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("text/html", b"<!doctype html><p>OK</p>"),
        ("application/json", b'{"status": "ok"}'),
        ("application/json", b"{"),
    ],
)
def test_a_page_or_a_status_is_no_reply(
    kind: str, data: bytes, portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    with portal.wrap_async_context_manager(Upstream(says(200, data, content_type=kind))) as up:
        assert probe(f"{up.url}/x") == 1
        assert len(up.requests) <= MAX_REQUESTS
    assert f"\n  200 {kind}: {data.decode()}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["ftp://x"],
        ["wss://x.example/chat"],
        ["x.example"],
        ["http://x:port"],
        ["http://x:99999"],
        ["http://x", "--header", "none"],
        ["http://x", "--body", "none"],
        ["http://x", "--method", "PUT"],
        ["http://x", "--method", "GET"],
    ],
)
def test_a_command_that_makes_no_sense_exits_with_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        probe(*argv)
    assert ended.value.code == 2
    assert "usage: rewrap probe" in capsys.readouterr().err


# ---- fields that errors name


HINTS: list[tuple[object, list[tuple[str, str, str]]]] = [
    # FastAPI and pydantic
    (
        {"detail": [{"type": "missing", "loc": ["body", "query"], "msg": "Field required"}]},
        [("query", "body", "")],
    ),
    (
        {"detail": [{"loc": ["body", "input", "text"], "msg": "field required"}]},
        [("input.text", "body", "")],
    ),
    (
        {"detail": [{"type": "list_type", "loc": ["body", "inputs"], "msg": "a valid list"}]},
        [("inputs", "body", "array")],
    ),
    (
        {"detail": [{"type": "missing", "loc": ["query", "q"], "msg": "Field required"}]},
        [("q", "query", "")],
    ),
    ({"detail": [{"type": "missing", "loc": ["header", "x-key"], "msg": "Field required"}]}, []),
    # Django REST framework, Flask-RESTful, ASP.NET
    ({"query": ["This field is required."]}, [("query", "", "")]),
    ({"message": ["This field is required."]}, [("message", "", "")]),
    (
        {"message": {"question": "Missing required parameter in the JSON body"}},
        [("question", "", "")],
    ),
    ({"errors": {"Query": ["The Query field is required."]}}, [("Query", "", "")]),
    # A path as the name of a member
    (
        {"status": "fail", "validation": {"payload.question": "cannot be blank"}},
        [("payload.question", "", "")],
    ),
    ({"errors": {"$.input.text": ["must be a string"]}}, [("input.text", "", "")]),
    ({"errors": {"input[text]": "is required"}}, [("input.text", "", "")]),
    ({"errors": {"lines[0]": "is required"}}, [("lines", "", "array")]),
    ({"errors": {"my field": "is required"}}, [("my field", "", "")]),
    # express-validator, zod, Ajv, NestJS
    (
        {"errors": [{"type": "field", "msg": "Invalid value", "path": "q", "location": "query"}]},
        [("q", "query", "")],
    ),
    (
        {"issues": [{"expected": "string", "received": "undefined", "path": ["text"]}]},
        [("text", "", "")],
    ),
    ({"error": "body must have required property 'msg'"}, [("msg", "", "")]),
    ({"message": ["text must be a string", "text should not be empty"]}, [("text", "", "")]),
    # Go, Rust, Spring, jsonschema, Python's KeyError
    (
        {
            "error": "Key: 'Req.Query' Error:Field validation for 'Query' failed on the 'required' tag"
        },
        [("Query", "", "")],
    ),
    ({"error": "missing field `user_input` at line 1 column 2"}, [("user_input", "", "")]),
    (
        {"message": "Required request parameter 'q' for method parameter is not present"},
        [("q", "", "")],
    ),
    ({"error": "'utterance' is a required property"}, [("utterance", "", "")]),
    ({"error": "'frage'"}, [("frage", "", "")]),
    ({"error": "KeyError: 'frage'"}, [("frage", "", "")]),
    # Sentences
    ({"fehler": "field 'frage' is required"}, [("frage", "", "")]),
    ({"error": "Missing required parameter: query"}, [("query", "", "")]),
    ({"error": "missing query parameter q"}, [("q", "query", "")]),
    ({"error": "No query provided"}, [("query", "", "")]),
    ({"error": "Please provide a question"}, [("question", "", "")]),
    ({"error": "The query field cannot be empty"}, [("query", "", "")]),
    ({"error": "messages must be an array"}, [("messages", "", "array")]),
    ({"error": "Missing form field: message"}, [("message", "form", "")]),
    ({"error": "prompt and user_id are required"}, [("prompt", "", ""), ("user_id", "", "")]),
    ("query is required", [("query", "", "")]),
    # A member with the name beside a text
    (
        {"errors": [{"field": "utterance_text", "reason": "is required"}]},
        [("utterance_text", "", "")],
    ),
    ({"error": {"param": "frage", "code": "MISSING"}}, [("frage", "", "")]),
    ({"violations": [{"property": "frage", "problem": "must be a string"}]}, [("frage", "", "")]),
    ({"data": {"error": {"key": "satz", "info": "cannot be blank"}}}, [("satz", "", "")]),
    ({"errors": [{"name": "satz", "errors": ["is required"]}]}, [("satz", "", "")]),
    ({"errors": [{"attribute": "input.text", "rule": "required"}]}, [("input.text", "", "")]),
    (
        {"errors": [{"parameter": "zeilen", "message": "expected a list"}]},
        [("zeilen", "", "array")],
    ),
    (
        {"errors": [{"property": "satz", "constraints": {"isString": "satz must be a string"}}]},
        [("satz", "", "")],
    ),
    ([{"instancePath": "/input/text", "message": "must be string"}], [("input.text", "", "")]),
    ({"error": {"code": "MissingField", "fieldName": "satz"}}, [("satz", "", "")]),
    ({"missing": ["satz", "user_id"]}, [("satz", "", ""), ("user_id", "", "")]),
    (
        {"status": 400, "path": "/api/ask", "message": "Required parameter 'satz' is missing"},
        [("satz", "", "")],
    ),
    ({"status": 400, "path": "/api/ask", "message": "A value is missing"}, []),
    ({"name": "ValidationError", "message": "satz is required"}, [("satz", "", "")]),
    # Paths
    ({"message": "input.text must be a string"}, [("input.text", "", "")]),
    ({"message": "'input.text' should be a string"}, [("input.text", "", "")]),
    ({"message": "input[text] is not a string"}, [("input.text", "", "")]),
    ({"message": "input['text'] cannot be empty"}, [("input.text", "", "")]),
    ({"message": "input/text can't be blank"}, [("input.text", "", "")]),
    ({"message": "/input/text is missing"}, [("input.text", "", "")]),
    ({"message": "$.input.text is required"}, [("input.text", "", "")]),
    ({"message": "input.text: expected a string"}, [("input.text", "", "")]),
    ({"message": "Expected a string at `$.input.text`"}, [("input.text", "", "")]),
    ({"message": "expected a string at input.text, but got null"}, [("input.text", "", "")]),
    ({"message": "body.satz: field required"}, [("satz", "", "")]),
    ({"message": "inputs[0].text is required"}, [("inputs", "", "array")]),
    ({"message": "satz must be a string, not an object"}, [("satz", "", "")]),
    ({"message": "application/json is required"}, []),
    ({"message": "https://chat.example.com/docs is required reading"}, []),
    # No fields
    ({"detail": "Not Found"}, []),
    ({"error": "Unauthorized"}, []),
    ({"error": "Missing API key"}, []),
    ({"message": "Cannot POST /ask"}, []),
    ({"error": "model 'gpt-4o-mini' not found"}, []),
    ({"error": "Unexpected end of JSON input"}, []),
    ({}, []),
    ([], []),
    (None, []),
]


@pytest.mark.parametrize(("error", "fields"), HINTS, ids=[dumps(error)[:60] for error, _ in HINTS])
def test_an_error_names_its_fields(error: object, fields: list[tuple[str, str, str]]) -> None:
    found = wanted_fields(error.encode() if isinstance(error, str) else dumps(error).encode())
    assert [(".".join(field.path), field.place, field.kind) for field in found] == fields


@given(
    st.recursive(
        st.none() | st.text(max_size=30),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=10), inner),
        max_leaves=20,
    )
)
@settings(max_examples=50)
def test_any_error_can_be_read(error: object) -> None:
    fields = wanted_fields(dumps(error).encode())
    assert len(fields) <= 8
    dumps(request_of({field.path: field for field in fields}))


def test_the_likeliest_field_gets_the_prompt_and_the_others_what_their_names_say() -> None:
    names = ["user_id", "text", "session_id", "model", "history", "temperature", "bot"]
    assert request_of({(name,): Field((name,)) for name in names}) == {
        "user_id": "{user|rewrap}",
        "text": "{prompt}",
        "session_id": "{session}",
        "model": "{model}",
        "history": "{history}",
        "temperature": "{temperature|0.7}",
        "bot": "{session}",
    }
    assert request_of({("a", "frage"): Field(("a", "frage"))}) == {"a": {"frage": "{prompt}"}}
    assert request_of({("inputs",): Field(("inputs",), kind="array")}) == {"inputs": ["{prompt}"]}


def test_a_url_whose_errors_name_its_fields_is_answered_in_a_few_requests(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: Request) -> tuple[int, object]:
        body = request.json()
        for name in ("frage", "sitzung"):
            if name not in body:
                return 400, {"fehler": f"field '{name}' is required"}
        return 200, {"id": "a1", "daten": {"antwort": "OK.", "titel": "Gruss"}}

    with portal.wrap_async_context_manager(Upstream(answers(answer))) as up:
        assert probe(f"{up.url}/bot") == 0
        assert len(up.requests) <= 6
        told = capsys.readouterr().out
        assert "\n    daten.antwort = OK.  <- the reply\n    daten.titel = Gruss\n" in told
        assert (
            'request = { frage = "{prompt}", sitzung = "{session}" }\nreply = "daten.antwort"\n'
            in told
        )
        with pasted(told, monkeypatch) as url:
            assert replies(url) == ("OK.", "OK.")


def named_error(name: str) -> tuple[int, object]:
    return 422, {"errors": [{"field": name, "reason": "is required"}]}


def fields_at(request: Request, place: str) -> dict[str, Any]:
    """The fields of a request in its body, its form or its query."""
    if place == "query":
        return dict(parse_qsl(request.path.partition("?")[2]))
    if place == "form":
        return {} if request.body.startswith(b"{") else dict(parse_qsl(request.body.decode()))
    return request.json() if request.body.startswith(b"{") else {}


@pytest.mark.parametrize(
    ("place", "name", "line"),
    [
        ("body", "utterance_text", 'request = { utterance_text = "{prompt}" }\n'),
        ("form", "utterance_text", 'form = { utterance_text = "{prompt}" }\n'),
        ("form", "input[satz]", 'form = { "input[satz]" = "{prompt}" }\n'),
        ("query", "utterance_text", 'query = { utterance_text = "{prompt}" }\nmethod = "GET"\n'),
        ("query", "input.satz", 'query = { "input.satz" = "{prompt}" }\nmethod = "GET"\n'),
    ],
)
def test_a_field_that_a_member_of_the_error_names_is_tried_in_each_place(
    place: str,
    name: str,
    line: str,
    portal: BlockingPortal,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(request: Request) -> tuple[int, object]:
        given = fields_at(request, place)
        return (200, {"v": {"worte": "OK."}}) if given.get(name) else named_error(name)

    with portal.wrap_async_context_manager(Upstream(answers(answer))) as up:
        assert probe(f"{up.url}/bot") == 0
        assert len(up.requests) <= 10
        told = capsys.readouterr().out
        assert line in told
        with pasted(told, monkeypatch) as url:
            assert replies(url) == ("OK.", "OK.")


@pytest.mark.parametrize(
    "messages",
    [
        ["input.text must be a string"],
        ["input is required", "input must be an object", "input.text is required"],
        ["/input/text cannot be blank"],
        [{"input.text": "cannot be blank"}],
    ],
)
def test_a_path_in_an_error_becomes_a_nested_body(
    messages: list[object],
    portal: BlockingPortal,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(request: Request) -> tuple[int, object]:
        given = request.json() if request.body.startswith(b"{") else {}
        place = given.get("input")
        if isinstance(place, dict) and isinstance(place.get("text"), str):
            return 200, {"v": {"worte": "OK."}}
        step = 2 if isinstance(place, dict) else int(place is not None)
        return 400, {"message": messages[min(step, len(messages) - 1)]}

    with portal.wrap_async_context_manager(Upstream(answers(answer))) as up:
        assert probe(f"{up.url}/bot") == 0
        assert len(up.requests) <= 10
        told = capsys.readouterr().out
        assert 'request = { input = { text = "{prompt}" } }\nreply = "v.worte"\n' in told
        with pasted(told, monkeypatch) as url:
            assert replies(url) == ("OK.", "OK.")


@pytest.mark.parametrize(
    ("error", "line", "request_line"),
    [
        (
            {"message": "input.text must be a string"},
            """The URL asks for `input.text`. Try: --body '{"input": {"text": "{prompt}"}}'""",
            'request = { input = { text = "{prompt}" } }',
        ),
        (
            {"validation": {"input.text": "cannot be blank"}},
            """The URL asks for `input.text`. Try: --body '{"input": {"text": "{prompt}"}}'""",
            'request = { input = { text = "{prompt}" } }',
        ),
        (
            {
                "errors": [
                    {"field": "satz", "reason": "is required"},
                    {"loc": ["bot"], "msg": "missing"},
                ]
            },
            """The URL asks for `satz` and `bot`. Try: --body '{"satz": "{prompt}", "bot": "{session}"}'""",
            'request = { satz = "{prompt}", bot = "{session}" }',
        ),
        (
            {"error": "missing form field: satz"},
            "The URL asks for `satz`. Try: --body 'satz={prompt}'",
            'form = { satz = "{prompt}" }',
        ),
        (
            {"error": "missing query parameter: satz"},
            "The URL asks for `satz`. Try: --method GET --body 'satz={prompt}'",
            'query = { satz = "{prompt}" }\nmethod = "GET"',
        ),
        (
            {"error": "it's not \u001b for 'satz' to be empty"},
            """The URL asks for `satz`. Try: --body '{"satz": "{prompt}"}'""",
            'request = { satz = "{prompt}" }',
        ),
    ],
)
def test_the_lines_to_complete_have_the_field_that_an_error_names(
    error: object,
    line: str,
    request_line: str,
    portal: BlockingPortal,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The error never goes away."""
    with portal.wrap_async_context_manager(Upstream(answers(lambda request: (400, error)))) as up:
        assert probe(f"{up.url}/bot") == 1
        assert len(up.requests) <= MAX_REQUESTS
    told = capsys.readouterr().out
    assert f"\n{line}\n" in told
    assert f"\n{request_line}\n" in told


def test_a_url_that_ignores_unknown_names_is_asked_by_all_usual_ones(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an error: it answers each request, but reads one name alone."""

    def answer(request: Request) -> tuple[int, object]:
        prompt = request.json().get("msg", "")
        return 200, {"answer": "OK." if prompt else "How can I help you?"}

    with portal.wrap_async_context_manager(Upstream(answers(answer))) as up:
        assert probe(f"{up.url}/bot") == 0
        assert len(up.requests) <= 10
        told = capsys.readouterr().out
        assert 'request = { msg = "{prompt}" }\nreply = "answer"\n' in told
        with pasted(told, monkeypatch) as url:
            assert replies(url) == ("OK.", "OK.")


def test_of_several_texts_the_likeliest_is_marked(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    value = {"note": {"alpha": "Some words", "beta": "word"}, "gamma": "x"}
    with portal.wrap_async_context_manager(Upstream(answers(lambda request: (200, value)))) as up:
        assert probe(f"{up.url}/bot") == 0
        assert len(up.requests) <= MAX_REQUESTS
    told = capsys.readouterr().out
    assert "    note.alpha = Some words  <- the reply\n" in told
    assert "    note.beta = word\n" in told
    assert "--reply PATH" in told
    assert 'reply = "note.alpha"\n' in told


# ---- arguments that describe the request


def asks_topic(request: Request) -> tuple[int, object]:
    """A service that takes a topic in the query of a GET or in a form, and repeats it in its answer."""
    query = request.path.partition("?")[2] if request.method == "GET" else request.body.decode()
    topic = dict(parse_qsl(query)).get("topic")
    if topic is None:
        return 400, {"error": "Parameter topic is missing"}
    return 200, {"topic": topic, "summary": f"About {topic}", "conv_token": "ct12345678"}


def test_a_text_that_repeats_the_prompt_of_a_query_or_a_form_is_no_reply(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    with portal.wrap_async_context_manager(Upstream(answers(asks_topic))) as up:
        assert probe(f"{up.url}/wiki") == 0
    told = capsys.readouterr().out
    assert "    summary = About Say OK.  <- the reply\n" in told
    assert 'reply = "summary"\n' in told
    assert "    conv_token = ***\n" in told
    assert "ct12345678" not in told


@pytest.mark.parametrize("path", ["summary", "topic"])
def test_a_reply_alone_changes_the_place_of_the_reply_and_the_request_is_found(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    with portal.wrap_async_context_manager(Upstream(answers(asks_topic))) as up:
        assert probe(f"{up.url}/wiki", "--reply", path) == 0
        assert len(up.requests) <= MAX_REQUESTS
    told = capsys.readouterr().out
    assert f'reply = "{path}"\n' in told
    assert "topic = " in told


def test_a_reply_alone_counts_where_another_text_is_found_at_once(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(request: Request) -> tuple[int, object]:
        return 200, {"reply": "OK.", "note": f"A note on {len(request.body)} bytes"}

    with portal.wrap_async_context_manager(Upstream(answers(answer))) as up:
        assert probe(f"{up.url}/bot", "--reply", "note") == 0
    told = capsys.readouterr().out
    assert 'reply = "note"\n' in told
    assert "A reply: A note on " in told


def test_a_reply_alone_that_is_nowhere_is_no_reply(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    with portal.wrap_async_context_manager(Upstream(answers(asks_topic))) as up:
        assert probe(f"{up.url}/wiki", "--reply", "odd.place") == 1
    assert "Nothing stands at odd.place. The texts of the answer:" in capsys.readouterr().out


def test_a_prompt_in_the_query_of_the_url_is_sent_by_get(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    with portal.wrap_async_context_manager(Upstream(answers(asks_topic))) as up:
        assert probe(f"{up.url}/wiki?topic={{prompt}}", "--reply", "summary") == 0
        assert {request.method for request in up.requests} == {"GET"}
    told = capsys.readouterr().out
    assert '\nmethod = "GET"\n' in told
    assert 'topic = "{prompt}"' in told


def test_a_body_and_a_reply_are_used_as_they_are(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: Request) -> tuple[int, object]:
        body = request.json()
        if body.get("x", {}).get("frage") is None:
            return 400, {"error": "nope"}
        return 200, {"a": "OK.", "b": f"You said {body['x']['frage']}"}

    with portal.wrap_async_context_manager(Upstream(answers(answer))) as up:
        body = '{"x": {"frage": "{prompt}"}, "fest": 5}'
        assert probe(f"{up.url}/bot", "--body", body, "--reply", "b") == 0
        assert len(up.requests) == 2
        told = capsys.readouterr().out
        assert 'request = { x = { frage = "{prompt}" }, fest = 5 }\nreply = "b"\n' in told
        with pasted(told, monkeypatch) as url:
            assert replies(url)[0] == "You said Hello"


def test_the_tables_of_two_urls_stand_in_one_file(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answers to its name, the first to all others."""

    def answer(request: Request) -> tuple[int, object]:
        return 200, {"daten": {"antwort": f"OK from {request.path}"}}

    tables: list[str] = []
    with portal.wrap_async_context_manager(Upstream(answers(answer))) as up:
        for path in ("/desk", "/talk"):
            assert probe(up.url + path, "--body", '{"frage": "{prompt}"}') == 0
            told = capsys.readouterr().out
            name = path.removeprefix("/")
            assert f'\nname = "{name}"\n' in told
            assert f'\nmodels = ["{name}", "*"]  # ' in told
            assert ': keep "*" in one backend only\n' in told
            tables.append(told.split("Into backends.toml:\n")[1].split("Into .env:\n")[0])
        file = "".join(tables)
        told = f"Into backends.toml:\n{file}Into .env:\nCONFIG=backends.toml\n"
        said: dict[str, str] = {}
        with pasted(told, monkeypatch) as url:
            for model in ("desk", "talk", "gpt-4o"):
                asked = ASKED | {"model": model}
                whole = httpx.post(f"{url}/v1/chat/completions", json=asked, trust_env=False)
                said[model] = whole.json()["choices"][0]["message"]["content"]
    assert said == {"desk": "OK from /desk", "talk": "OK from /talk", "gpt-4o": "OK from /desk"}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/api/desk", "desk"),
        ("/bot/form", "form"),
        ("/v3/run", "run"),
        ("/help-desk/v1/chat/completions", "help-desk"),
        ("/bots/support_2/generate", "support_2"),
        *[
            (f"/kiosk/{word}", "kiosk")
            for word in (
                "send",
                "ask",
                "run",
                "query",
                "talk",
                "stream",
                "message",
                "messages",
                "reply",
                "answer",
            )
        ],
        ("/v1/send", "send"),
        ("/api/v1/prediction/0f3c9a17-77aa-4e21-9c0d-5d1f6f0a2b11", "prediction"),
        ("/webhook/aGVsbG8gd29ybGQx4X", "webhook"),
        ("/api/chat", "chat"),
        ("/v1", "mine"),
        ("/", "mine"),
        ("/{model}/frage%20eins", "mine"),
        ("", "mine"),
    ],
)
def test_a_table_is_named_after_the_path(path: str, name: str) -> None:
    assert backend_name(f"https://chat.example.com:8443{path}?key=abc") == name


def test_a_body_alone_leads_to_the_place_of_the_reply(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    value = {"daten": {"antwort": "OK."}}
    with portal.wrap_async_context_manager(Upstream(answers(lambda request: (200, value)))) as up:
        assert probe(f"{up.url}/bot", "--body", '{"frage": "{prompt}"}') == 0
        assert [request.json()["frage"] for request in up.requests] == ["Say OK."] * 3
    assert 'reply = "daten.antwort"\n' in capsys.readouterr().out


def test_a_body_that_fails_is_reported_with_lines_to_complete(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    with portal.wrap_async_context_manager(Upstream(says(400, b'{"error": "nope"}'))) as up:
        assert probe(f"{up.url}/bot", "--body", '{"frage": "{prompt}"}', "--reply", "a.b") == 1
        assert len(up.requests) == 1
    told = capsys.readouterr().out
    assert 'request = { frage = "{prompt}" }\nreply = "a.b"\n' in told
    Path("backends.toml").write_text(told.split("Into backends.toml:\n")[1].split("Into .env")[0])
    assert read_backends_file("backends.toml", {})


def test_stream_asks_for_a_stream_only(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    def parts(request: Request) -> list[bytes]:
        return chunked(SSE, ELSEWHERE)

    with portal.wrap_async_context_manager(Upstream(sends(parts))) as up:
        body = '{"frage": "{prompt}", "stream": true}'
        assert probe(f"{up.url}/bot", "--body", body, "--stream") == 0
        assert all(request.json()["stream"] is True for request in up.requests)
    told = capsys.readouterr().out
    assert "  streams: yes\n" in told
    assert 'reply = "delta_text"\n' in told


def pieces(*words: str) -> list[bytes]:
    """Events that have a text at a path of their own."""
    events = [{"job": "j-991", "model": "m9"}]
    events += [{"seq": number, "piece": {"t": word}} for number, word in enumerate(words)]
    events += [{"toks": 5}, {}]
    names = ["open", *["tok"] * len(words), "tally", "bye"]
    pairs = zip(names, events, strict=True)
    return [f"event: {name}\ndata: {dumps(event)}\n\n".encode() for name, event in pairs]


def parts_of_pieces(request: Request) -> list[bytes]:
    prompt = request.json().get("input", {}).get("text", "")
    return chunked(SSE, pieces("Here ", "come", " ", "the pieces: ", prompt))


PIECES = '{"input": {"text": "{prompt}"}}'


def test_the_texts_of_events_are_joined_by_their_paths(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with portal.wrap_async_context_manager(Upstream(sends(parts_of_pieces))) as up:
        assert probe(f"{up.url}/bot", "--body", PIECES) == 0
        told = capsys.readouterr().out
        line = "    piece.t in 5 events: Here come the pieces: Say OK.  <- the reply\n"
        assert line in told
        assert "    model = m9\n" in told
        assert "  streams: yes\n" in told
        assert 'reply = "piece.t"\n' in told
        with pasted(told, monkeypatch) as url:
            assert replies(url) == ("Here come the pieces: Hello", "Here come the pieces: Hello")


def test_a_wrong_reply_lists_the_texts_and_marks_the_likeliest(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with portal.wrap_async_context_manager(Upstream(sends(parts_of_pieces))) as up:
        assert probe(f"{up.url}/bot", "--body", PIECES, "--reply", "piece.text") == 1
        told = capsys.readouterr().out
        assert "\nNothing stands at piece.text. The texts of the answer:\n" in told
        assert (
            "    piece.t in 5 events: Here come the pieces: Say OK.  <- the likeliest reply\n"
            in told
        )
        assert 'reply = "piece.t"\nstream = {}\n' in told
        with pasted(told, monkeypatch) as url:
            assert replies(url) == ("Here come the pieces: Hello", "Here come the pieces: Hello")


def test_a_wrong_reply_of_a_whole_answer_lists_the_texts(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    value = {"daten": {"antwort": "OK."}, "stand": "m9"}
    with portal.wrap_async_context_manager(Upstream(answers(lambda request: (200, value)))) as up:
        assert probe(f"{up.url}/bot", "--body", '{"f": "{prompt}"}', "--reply", "daten.wort") == 1
    told = capsys.readouterr().out
    assert "\nNothing stands at daten.wort. The texts of the answer:\n" in told
    assert "    daten.antwort = OK.  <- the likeliest reply\n    stand = m9\n" in told
    assert 'reply = "daten.antwort"\n' in told


@pytest.mark.parametrize(
    ("events", "path"),
    [
        ([{"state": {"t": "Good "}}, {"state": {"t": "day"}}], "state.t"),
        ([{"note": "Thinking"}, {"w": "Good "}, {"w": "day"}], "w"),
        ([{"w": "Good "}, {"w": "Say OK."}, {"w": "Say OK."}], "w"),
        ([{"id": "e 1"}, {"id": "e 2"}, {"w": "Good day"}], "w"),
        ([{"q": "Say OK."}, {"q": "Say OK."}, {"w": "Good day"}], "w"),
        ([{"tag": "x"}, {"tag": "x"}, {"w": "Good day"}], "w"),
    ],
)
def test_the_text_that_varies_over_the_events_is_the_reply(
    events: list[dict[str, Any]], path: str | None
) -> None:
    assert reply_path(texts(b"".join(sse(*events)), b'"Say OK."', WANTED)) == path


# ---- the lines are what the server takes


def spoken(parts: Callable[[Request], list[bytes]], place: str) -> Any:
    """A handler that names the field `satz` until it comes in its place."""

    async def handle(request: Request, reader: Any, writer: Any) -> None:
        if fields_at(request, place).get("satz"):
            await send(writer, parts(request))
        else:
            await answers(lambda request: named_error("satz"))(request, reader, writer)

    return handle


LINES = dumps({"a": {"lines": ["OK", "."]}}).encode()
PRINTED: dict[str, tuple[str, Callable[[Request], list[bytes]], tuple[str, ...], str]] = {
    "JSON": ("body", lambda r: whole(JSON, b'{"a": {"b": "OK."}}'), (), "OK."),
    "list of texts": ("body", lambda r: whole(JSON, LINES), (), "OK."),
    "list": ("body", lambda r: whole(JSON, b'[{"b": "OK."}]'), (), "OK."),
    "text": ("body", lambda r: whole(PLAIN, b"OK."), (), "OK."),
    "pieces": ("body", lambda r: chunked(PLAIN, [b"O", b"K."]), (), "OK."),
    "form, text": ("form", lambda r: whole(PLAIN, b"OK."), (), "OK."),
    "GET, text": ("query", lambda r: whole(PLAIN, b"OK."), (), "OK."),
    "GET, JSON": ("query", lambda r: whole(JSON, b'{"a": {"b": "OK."}}'), (), "OK."),
    "GET, events": ("query", lambda r: chunked(SSE, sse({"b": "O"}, {"b": "K."})), (), "OK."),
    "events": ("body", lambda r: chunked(SSE, sse({"b": "O"}, {"b": "K."})), (), "OK."),
    "events of text": ("body", lambda r: chunked(SSE, [b"data: O\n\ndata: K.\n\n"]), (), "OK."),
    "session": (
        "body",
        lambda r: whole(JSON, b'{"a": {"b": "OK."}, "chat_id": "c-12345"}'),
        ("--body", '{"satz": "{prompt}", "chat_id": "{session}"}'),
        "OK.",
    ),
    "key": ("body", lambda r: whole(PLAIN, b"OK."), ("--key", SECRETS[0]), "OK."),
    "to complete": ("body", lambda r: whole(JSON, b'{"status": "x"}'), (), ""),
    "to complete, form": ("form", lambda r: whole(JSON, b'{"status": "x"}'), (), ""),
    "to complete, GET": ("query", lambda r: whole(JSON, b'{"status": "x"}'), (), ""),
}


@pytest.mark.parametrize("kind", PRINTED)
def test_the_printed_table_is_one_that_the_server_takes(
    kind: str,
    portal: BlockingPortal,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, parts, options, reply = PRINTED[kind]
    with portal.wrap_async_context_manager(Upstream(spoken(parts, place))) as up:
        assert probe(f"{up.url}/bot", *options) == (0 if reply else 1)
        told = capsys.readouterr().out
        assert "The server does not take" not in told
        with pasted(told, monkeypatch) as url:
            if reply:
                assert replies(url) == (reply, reply)


def test_lines_that_the_server_refuses_are_told_with_the_reason() -> None:
    lines = ["[[backend]]", 'name = "b"', 'url = "http://bot.example"', "[backend.mapping]"]
    assert problem_of([*lines, 'reply = "a.b"']) == ""
    assert "cannot be read" in problem_of([*lines, 'reply = "a b"'])
    assert "mapping.reply: where is the text" in problem_of([*lines, 'method = "GET"'])
    assert "must be a" in problem_of([*lines[:2], "url = 5"])


# ---- the end of a stream


MARKERS = ["[END]", "[FIN]", "[DONE]", "done", "end of stream", "<EOS>"]


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--body", '{"satz": "{prompt}"}'),
        ("--body", '{"satz": "{prompt}"}', "--reply", "delta.txt"),
    ],
)
def test_a_bare_marker_at_the_end_of_events_is_no_reply(
    marker: str,
    options: tuple[str, ...],
    portal: BlockingPortal,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def parts(request: Request) -> list[bytes]:
        words = ["Feed ", "of ", fields_at(request, "body")["satz"]]
        events = sse(*[{"kind": "part", "delta": {"txt": word}} for word in words])
        return chunked(SSE, [*events, f"data: {marker}\n\n".encode()])

    with portal.wrap_async_context_manager(Upstream(spoken(parts, "body"))) as up:
        assert probe(f"{up.url}/feed", *options) == 0
        told = capsys.readouterr().out
        assert told.startswith("A reply: Feed of Say OK.\n")
        assert "    delta.txt in 3 events: Feed of Say OK.  <- the reply\n" in told
        assert "  streams: yes\n" in told
        assert 'reply = "delta.txt"\n' in told
        assert (f'done = ". = {marker}"' in told) or marker.startswith("[")
        with pasted(told, monkeypatch) as url:
            assert replies(url) == ("Feed of Hello", "Feed of Hello")


def test_a_bare_text_after_events_without_a_text_is_the_reply(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [*sse({"id": "e-1"}), b"data: Good day\n\n"]
    parts = chunked(SSE, events)
    with portal.wrap_async_context_manager(Upstream(spoken(lambda r: parts, "body"))) as up:
        assert probe(f"{up.url}/feed") == 0
    assert capsys.readouterr().out.startswith("A reply: Good day\n")


# ---- backends of a file


BACKENDS = """
[[backend]]
name = "good"
url = "URL/good"
models = ["good"]
mapping = { request = { q = "{prompt}" }, reply = "data.out[0].text" }

[[backend]]
name = "wrong"
url = "URL/wrong"
models = ["wrong"]
mapping = { request = { q = "{prompt}" }, reply = "data.out[0].words | other" }

[[backend]]
name = "mock"
kind = "mock"
"""


def test_check_shows_each_step_of_the_path_of_a_reply(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    value = {"id": 5, "data": {"out": [{"text": "OK."}]}}
    with portal.wrap_async_context_manager(Upstream(answers(lambda request: (200, value)))) as up:
        Path("backends.toml").write_text(BACKENDS.replace("URL", up.url))
        assert probe("--check", "backends.toml", "good") == 0
        good = capsys.readouterr().out
        assert probe("--check", "backends.toml") == 1
        told = capsys.readouterr().out
    assert good.startswith("backend 'good' (chat)\n  sent  POST http://127.0.0.1:")
    assert '/good {"q":"Say OK."}\n  got   200 application/json: {' in good
    assert good.endswith(
        "  path  data.out[0].text\n    data: an object with out\n    data.out: a list of 1\n"
        "    data.out[0]: an object with text\n    data.out[0].text: a text\n"
        "  reply: OK.\n  stream: no, the reply comes whole\n\n"
    )
    assert told.startswith(good[:20])
    wrong = told[told.index("backend 'wrong'") :]
    assert "    data.out[0]: an object with text\n    data.out[0].words: not there\n" in wrong
    assert "  path  other\n    other: not there\n  no reply: " in wrong
    assert wrong.endswith("backend 'mock' (mock)\n  answers by itself\n\n")


@pytest.mark.parametrize(
    "mapping",
    [
        'reply = "piece.t", stream = {}',
        'reply = "answer", stream = { reply = "piece.t" }',
    ],
)
def test_check_judges_a_path_by_all_events_of_a_stream(
    mapping: str, portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    with portal.wrap_async_context_manager(Upstream(sends(parts_of_pieces))) as up:
        Path("backends.toml").write_text(
            f'[[backend]]\nname = "b"\nurl = "{up.url}/b"\n'
            f'mapping = {{ request = {{ input = {{ text = "{{prompt}}" }} }}, {mapping} }}\n'
        )
        assert probe("--check", "backends.toml") == 0
    told = capsys.readouterr().out
    assert (
        "  path  piece.t\n    piece: in 5 of 8 events\n    piece.t: in 5 of 8 events\n"
        "  reply: Here come the pieces: Say OK.\n" in told
    )
    assert "not there" not in told


def test_check_of_a_path_that_no_event_has_says_so(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    with portal.wrap_async_context_manager(Upstream(sends(parts_of_pieces))) as up:
        Path("backends.toml").write_text(
            f'[[backend]]\nname = "b"\nurl = "{up.url}/b"\n'
            'mapping = { request = { input = { text = "{prompt}" } }, reply = "piece.x.y", stream = {} }\n'
        )
        assert probe("--check", "backends.toml") == 1
    told = capsys.readouterr().out
    assert "    piece: in 5 of 8 events\n    piece.x: in none of 8 events\n  no reply" in told


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--check", "none.toml"], "none.toml cannot be read"),
        (
            ["--check", "backends.toml", "other"],
            "has no backend 'other'; there are: good, wrong, mock",
        ),
    ],
)
def test_check_of_a_backend_that_is_not_there_exits_with_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("backends.toml").write_text(BACKENDS.replace("URL", "http://bot.example"))
    assert probe(*argv) == 2
    assert message in capsys.readouterr().out


# ---- the id of a chat in an answer


@pytest.mark.parametrize("name", ["conversation_id", "chat_ref", "threadId", "convo"])
def test_an_id_of_the_chat_in_the_answer_gets_advice(
    name: str, portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"talk": {"text": "Good day to you"}, "meta": {name: "c-12345"}}
    with portal.wrap_async_context_manager(Upstream(answers(lambda request: (200, answer)))) as up:
        assert probe(f"{up.url}/bot", "--body", '{"frage": "{prompt}"}') == 0
    told = capsys.readouterr().out
    assert f"  If {name} keeps the chat: remove the # before session and {name} below, " in told
    file = told.split("Into backends.toml:\n")[1].split("Into .env:\n")[0]
    assert "session" not in tomllib.loads(file)["backend"][0]["mapping"]
    active = re.sub("(?m)^# ", "", file)
    mapping = tomllib.loads(active)["backend"][0]["mapping"]
    assert mapping["session"] == {"from": f"meta.{name}"}
    assert mapping["request"] == {"frage": "{prompt}", name: "{session}"}
    Path("backends.toml").write_text(active)
    assert read_backends_file("backends.toml", {})


class Talk:
    """Gives each chat an id, and goes on with it if it gets it back."""

    def __init__(self, place: str = "body") -> None:
        self.place = place
        self.turns: dict[str, list[str]] = {}

    def answer(self, request: Request) -> tuple[int, object]:
        given = fields_at(request, self.place)
        if not isinstance(given.get("message"), str):
            return 400, {"error": "message is required"}
        handle = given.get("dialogue_handle")
        if handle not in self.turns:
            handle = f"dlg-{len(self.turns)}"
        turns = self.turns.setdefault(str(handle), [])
        turns.append(given["message"])
        return 200, {"worte": {"w": f"{len(turns)}: {turns[0]}"}, "dialogue_handle": handle}


def two_turns(url: str) -> str:
    """The reply to the second of two turns."""
    first = {"role": "user", "content": "one"}
    said = ""
    messages: list[dict[str, str]] = []
    for turn in (first, {"role": "user", "content": "two"}):
        messages.append(turn)
        body = {"model": "m", "messages": messages}
        whole = httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False)
        said = whole.json()["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": said})
    return said


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("body", []),
        ("form", []),
        ("query", []),
        ("body", ["--body", '{"message": "{prompt}", "dialogue_handle": "{session}"}']),
        ("form", ["--body", "message={prompt}&dialogue_handle={session}"]),
    ],
)
def test_an_id_that_was_seen_to_keep_the_chat_is_sent_with_the_next_turn(
    place: str,
    options: list[str],
    portal: BlockingPortal,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    talk = Talk(place)
    with portal.wrap_async_context_manager(Upstream(answers(talk.answer))) as up:
        assert probe(f"{up.url}/talk", *options) == 0
        assert len(up.requests) <= MAX_REQUESTS
        told = capsys.readouterr().out
        assert '\nsession = { from = "dialogue_handle" }\n' in told
        assert 'dialogue_handle = "{session}"' in told
        assert "\n# " not in told
        with pasted(told, monkeypatch) as url:
            assert two_turns(url) == "2: one"


def session_path(answer: object, sent: str = "Say OK.") -> str:
    """The path of the id of the chat; "" if no text looks like one."""
    found = texts(dumps(answer).encode(), dumps(sent).encode(), WANTED)
    best = max(found, key=lambda text: text.session)
    return best.path if best.session else ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sessionid", "1"),
        ("CHATID", "c-1"),
        ("chat_ref", "c-1"),
        ("threadId", "c-1"),
        ("threadID", "c-1"),
        ("dialogKey", "c-1"),
        ("context_token", "c-1"),
        ("current-thread-uuid", "c-1"),
        ("roomHandle", "c-1"),
        ("idSession", "c-1"),
        ("id_conversation", "c-1"),
        ("thread", "thread_8fk2"),
        ("convo", "5b0c7a3e-2f2d-4a5e-9a43-0d8f2a1c9b77"),
        ("chatSession", "xKqPzTwL"),
        ("dialogue", "a2V5PTE3/x+9=="),
        ("context", "projects/p1/sessions/s2"),
    ],
)
def test_a_name_of_a_chat_tells_its_id(name: str, value: str) -> None:
    assert session_path({"answer": "Good day to you", name: value}) == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "c-12345"),
        ("token", "c-12345"),
        ("userId", "u-12345"),
        ("message_id", "m-12345"),
        ("chat_message_id", "m-12345"),
        ("chat_model", "gpt-4o-mini"),
        ("chat_model_id", "gpt-4o-mini"),
        ("session_name", "visit-12345"),
        ("contextual_key", "c-12345"),
        ("webchat", "c-12345"),
        ("context_tokens", "c-12345"),
        ("chat_key", "the key of the chat"),
        ("chat_ref", "https://chat.example/c-12345"),
        # These name a chat, but their values are no ids.
        ("chat", "Good day"),
        ("chat", "Hello!"),
        ("chat", "Room12?"),
        ("context", "support"),
        ("session", "c-1"),
        ("thread", "1" * 129),
        ("room", "https://chat.example/rooms/12345"),
        ("conversation", "gpt-4o-mini"),
    ],
)
def test_other_texts_are_no_id_of_a_chat(name: str, value: str) -> None:
    assert session_path({"answer": "Good day to you", name: value}, "gpt-4o-mini") == ""


def test_of_several_ids_the_one_that_says_so_is_named() -> None:
    answer = {"thread": "thread_8fk2", "context_token": "c-1", "chat_id": "5", "say": "Good day"}
    assert session_path(answer) == "chat_id"
    del answer["chat_id"]
    assert session_path(answer) == "context_token"
    del answer["context_token"]
    assert session_path(answer) == "thread"


def test_the_id_of_a_chat_is_no_reply_and_a_reply_is_no_id(
    portal: BlockingPortal, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reply_path(texts(b'{"chat_ref": "c9f8", "antwort": "Hallo"}', b"", WANTED)) == "antwort"
    answer = {"chat": "Room12", "n": "x"}
    with portal.wrap_async_context_manager(Upstream(answers(lambda request: (200, answer)))) as up:
        assert probe(f"{up.url}/bot", "--body", '{"frage": "{prompt}"}', "--reply", "chat") == 0
    told = capsys.readouterr().out
    assert "    chat = Room12  <- the reply\n" in told
    assert "keeps the chat" not in told


# ---- the examples


def own_backend() -> None:
    from examples.own_backend import app

    async def replies() -> list[str]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            asked = [ASKED | {"stream": stream} for stream in (False, True)]
            return [(await client.post("/v1/chat/completions", json=one)).text for one in asked]

    whole, streamed = asyncio.run(replies())
    assert '"content":"olleH "' in whole
    assert '"content":"olleH "' in streamed
    assert streamed.endswith("data: [DONE]\n\n")


def backends_toml() -> None:
    keys = {"CLOUD_API_KEY": "k1", "DIFY_KEY": "k2"}
    tables = read_backends_file(str(ROOT / "examples" / "backends.toml"), keys)
    assert [(table.name, table.key) for table in tables] == [
        ("cloud", "k1"),
        ("bot", "k2"),
        ("mock", ""),
    ]


def redact() -> None:
    from examples.redact import before
    from rewrap.hooks import HookedChat

    messages = [{"role": "user", "content": "I am me@example.com"}]
    chat = HookedChat("m", messages, {}, False)
    before(chat)
    assert chat.messages == [{"role": "user", "content": "I am [e-mail]"}]


def websocket_backend() -> None:
    from websockets.asyncio.server import ServerConnection, serve

    from examples.websocket_backend import app

    received: list[dict[str, Any]] = []

    async def upstream(socket: ServerConnection) -> None:
        received.append(json.loads(await socket.recv()))
        for event in ({"text": "Hello "}, {"text": "there"}, {"done": True}):
            await socket.send(json.dumps(event))

    async def ask(stream: bool) -> str:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            asked = ASKED | {"stream": stream}
            return (await client.post("/v1/chat/completions", json=asked)).text

    async def replies(monkeypatch: pytest.MonkeyPatch) -> None:
        async with serve(upstream, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            monkeypatch.setenv("WS_URL", f"ws://127.0.0.1:{port}")
            assert '"content":"Hello there"' in await ask(False)
            streamed = await ask(True)
            assert '"content":"there"' in streamed
            assert streamed.endswith("data: [DONE]\n\n")
        assert '"type":"upstream_error"' in await ask(False)

    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(replies(monkeypatch))
    assert [message["prompt"] for message in received] == ["Hello"] * 2


EXAMPLES = {
    "own_backend.py": own_backend,
    "backends.toml": backends_toml,
    "redact.py": redact,
    "websocket_backend.py": websocket_backend,
}


@pytest.mark.parametrize(
    "name", sorted(p.name for p in (ROOT / "examples").iterdir() if p.is_file())
)
def test_each_example_runs_and_is_short(name: str) -> None:
    EXAMPLES[name]()
    assert len((ROOT / "examples" / name).read_text().splitlines()) <= 40
