"""The log as operators read it: times, formats, levels, and ids that go through all parties."""

import asyncio
import json
import logging
import re
import sys
from typing import Any

import httpx
import pytest
from serving import ASKED, Process, started

from rewrap.config.settings import Settings
from rewrap.main import Rewrap, create_app
from rewrap.server.logs import JSONFormatter, OwnHandler, TextFormatter, set_up_log

CHAT = "/v1/chat/completions"
DATED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) .")
MEMBERS = {
    *("time", "level", "message", "request_id", "method", "path", "status", "model", "backend"),
    *("owner", "first_byte_seconds", "duration_seconds", "prompt_tokens", "completion_tokens"),
    "error",
}


def app_of(**settings: Any) -> Rewrap:
    return create_app(Settings(**{"store_url": "sqlite://"} | settings))


def client_of(app: Rewrap) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://proxy")


def lines_after(process: Process) -> list[str]:
    """All lines of a process, which is stopped for that."""
    assert process.stop() == 0
    return process.log.splitlines()


def failure(text: str) -> logging.LogRecord:
    """A record with a traceback."""
    try:
        raise RuntimeError(text)
    except RuntimeError:
        return logging.LogRecord("x", logging.ERROR, "", 0, "it failed", None, sys.exc_info())


def test_every_line_of_a_batch_has_a_time() -> None:
    with started(STORE_URL="sqlite://") as process, httpx.Client(base_url=process.url) as client:
        for _ in range(20):
            client.post(CHAT, json=ASKED)
        lines = lines_after(process)
    assert [line for line in lines if not DATED.match(line)] == []
    assert sum(CHAT in line for line in lines) == 20


def test_every_line_of_a_traceback_has_a_time() -> None:
    lines = TextFormatter().format(failure("one\ntwo")).splitlines()
    assert len(lines) > 4
    assert [line for line in lines if not DATED.match(line)] == []


def test_the_log_in_json_has_one_object_a_line() -> None:
    settings = {"STORE_URL": "sqlite://", "LOG_FORMAT": "json", "API_KEYS": "sk-one-two-three"}
    headers = {"authorization": "Bearer sk-one-two-three", "x-request-id": "from-the-client"}
    with started(**settings) as process, httpx.Client(base_url=process.url) as client:
        client.post(CHAT, json=ASKED, headers=headers)
        client.post(CHAT, json=ASKED | {"stream": True}, headers=headers)
        client.post(CHAT, content=b"{", headers=headers)
        client.get("/v1/models")
        lines = lines_after(process)
    objects = [json.loads(line) for line in lines]
    start, whole, streamed, wrong, no_key = objects
    assert start.keys() == {"time", "level", "message"}
    assert " on http://" in start["message"]
    for entry in objects[1:]:
        assert entry.keys() == MEMBERS
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])
        assert 0 < entry["first_byte_seconds"] <= entry["duration_seconds"] < 10
    for entry in (whole, streamed):
        assert (entry["method"], entry["path"], entry["status"]) == ("POST", CHAT, 200)
        assert (entry["model"], entry["backend"], entry["level"]) == ("m", "mock", "info")
        assert entry["request_id"] == "from-the-client"
        assert entry["prompt_tokens"] == 1
        assert entry["completion_tokens"] > 0
    assert re.fullmatch("key:[0-9a-f]{32}", whole["owner"])
    assert (wrong["status"], wrong["error"], wrong["model"]) == (400, "invalid_request_error", None)
    assert (no_key["status"], no_key["error"], no_key["owner"]) == (401, "no key", None)
    assert "sk-" not in "".join(lines)


def test_an_exception_in_json_stays_in_its_object() -> None:
    line = JSONFormatter().format(failure("one\ntwo \ud800"))
    entry = json.loads(line)
    assert "\n" not in line
    assert (entry["level"], entry["message"]) == ("error", "it failed")
    assert "RuntimeError: one\ntwo" in entry["exception"]


@pytest.mark.parametrize("level", ["info", "debug"])
def test_health_checks_are_logged_for_debugging_alone(level: str) -> None:
    settings = {"STORE_URL": "sqlite://", "LOG_LEVEL": level}
    with started(**settings) as process, httpx.Client(base_url=process.url) as client:
        for path in ("/health", "/livez", "/readyz", "/info"):
            assert client.get(path).status_code == 200
        lines = lines_after(process)
    quiet = [line for line in lines if re.search(r" GET /(health|livez|readyz) ", line)]
    assert len(quiet) == (3 if level == "debug" else 0)
    assert all(" DEBUG GET " in line for line in quiet)
    assert sum(" INFO GET /info 200 " in line for line in lines) == 1


@pytest.mark.anyio
async def test_another_programs_handlers_get_a_record_for_each_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = app_of()
    async with app.router.lifespan_context(app), client_of(app) as client:
        caplog.clear()
        await client.get("/info")
        await asyncio.sleep(0.02)
        await client.get("/v1/models")
    first, second = caplog.records
    assert (first.name, first.levelname) == ("rewrap", "INFO")
    assert first.getMessage().startswith("GET /info 200 ")
    assert second.created - first.created > 0.01


def test_the_handler_of_the_project_is_installed_once_and_takes_another_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    set_up_log("info", "text")
    set_up_log("info", "json")
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, OwnHandler)
    assert isinstance(handler.formatter, JSONFormatter)


# Ids of requests.


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a-b.c:1/2", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("two words", False),
        ("naïve", False),
        ("tab\there", False),
        ("", False),
    ],
)
async def test_the_clients_request_id_is_taken_over_if_it_is_short_and_printable(
    sent: str, kept: bool
) -> None:
    async with client_of(app_of()) as client:
        headers = [(b"x-request-id", sent.encode("latin-1"))]
        answers = [await client.post(CHAT, json=ASKED, headers=headers) for _ in range(2)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    if kept:
        assert ids == [sent, sent]
    else:
        assert all(re.fullmatch("req_[0-9a-f]{32}", id) for id in ids)
        assert ids[0] != ids[1]
