"""Faults of the mock: how they are written, counted, put on the wire, and timed."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from rewrap.mock.answers import as_stream
from rewrap.mock.faults import Fault, FaultRate, FaultState, duration, faults_of, parse_faults
from rewrap.mock.faulty_send import CutConnection, FaultySend, split_character
from rewrap.mock.pace import Pace, broken_off, paced
from rewrap.types import APIError, Delta

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


JSON = orjson.dumps({"choices": [{"message": {"content": "Grüße aus Köln"}}]})
EVENTS = [b'data: {"n": %d, "text": "gr\xc3\xbcn"}\n\n' % n for n in range(6)]
STREAM = b"".join(EVENTS) + b"data: [DONE]\n\n"


# The text of faults.


def test_faults_are_separated_by_commas() -> None:
    made = parse_faults("slow=300ms, stall=2s@3,cut@0")
    assert [(f.kind, f.seconds, f.after) for f in made] == [
        ("slow", 0.3, 2),
        ("stall", 2.0, 3),
        ("cut", 0.0, 0),
    ]
    assert parse_faults("") == ()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("stall=2s", 2),
        ("stall=2", 2),
        ("stall=1.5", 1.5),
        ("stall=300ms", 0.3),
        ("stall=1m", 60),
        ("stall", 1),
        ("hang", 3600),
    ],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert parse_faults(text)[0].seconds == pytest.approx(seconds)


BAD_FAULTS = {
    "stal=2s": "unknown fault 'stal': did you mean 'stall'?",
    "rate_limt": "did you mean 'rate_limit'?",
    "stall=soon": "'soon' is not a duration",
    "stall=2h": "'2h' is not a duration",
    "hang=61m": "at most an hour",
    "stall=-1": "is not a duration",
    "200": "'200' is not a status from 400 to 599",
    "600": "is not a status from 400 to 599",
    "4290": "is not a fault",
    "fail": "needs an argument, such as fail=2:503",
    "fail=x:503": "'x' is not a count",
    "fail=2:200": "is not a status",
    "fail=2:nothing": "is not a status",
    "ratelimit": "needs an argument, such as ratelimit=3/10s",
    "ratelimit=3/never": "is not a duration",
    "cut=3": "cut takes no argument: '3'",
    "empty=x": "empty takes no argument",
    "content_type=a\r\nb": r"'a\r\nb' is not a content type",
    "content_type=\x00": "is not a content type",
    "=": "is not a fault",
    "cut@x": "is not a fault",
    "cut@9999999": "is not a fault",
}


@pytest.mark.parametrize("text", BAD_FAULTS)
def test_a_bad_fault_is_an_error_of_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(BAD_FAULTS[text])) as caught:
        parse_faults(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(APIError) as refused:
        faults_of({"x-mock-fault": text})
    assert refused.value.status == 400
    assert refused.value.message.startswith("Invalid 'x-mock-fault' header: ")


@given(st.text(max_size=200))
def test_any_text_is_faults_or_an_error(text: str) -> None:
    try:
        made = parse_faults(text)
    except ValueError:
        return
    assert all(isinstance(fault, Fault) for fault in made)


def test_without_the_header_there_is_no_fault() -> None:
    assert faults_of({}) == ()


# Faults before the answer.


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        ("429", 429, "rate_limit_exceeded"),
        ("500", 500, None),
        ("quota", 429, "insufficient_quota"),
        ("418", 418, None),
    ],
)
def test_a_status_or_a_name_is_an_error_of_openai(text: str, status: int, code: str | None) -> None:
    with pytest.raises(APIError) as caught:
        FaultState().admit(parse_faults(text), model="gpt-4o")
    assert (caught.value.status, caught.value.code) == (status, code)
    assert set(caught.value.body["error"]) == {"message", "type", "param", "code"}
    assert "{" not in caught.value.message


def statuses(
    state: FaultState, text: str, count: int, lane: str = "", scope: str = ""
) -> list[int]:
    found = []
    for _ in range(count):
        try:
            state.admit(parse_faults(text), lane=lane, scope=scope)
            found.append(200)
        except APIError as error:
            found.append(error.status)
    return found


def test_fail_twice_then_succeed() -> None:
    assert statuses(FaultState(), "fail=2:503", 5) == [503, 503, 200, 200, 200]
    assert statuses(FaultState(), "fail=1:rate_limit", 2) == [429, 200]
    assert statuses(FaultState(), "fail=1", 2) == [500, 200]
    assert statuses(FaultState(), "fail=0:500", 1) == [200]


def test_lanes_and_rules_fail_apart() -> None:
    state = FaultState()
    assert statuses(state, "fail=1:503", 2, lane="a") == [503, 200]
    assert statuses(state, "fail=1:503", 2, lane="b") == [503, 200]
    assert statuses(state, "fail=1:503", 2, lane="a", scope="rule") == [503, 200]
    assert statuses(state, "fail=2:503", 3, lane="a") == [503, 503, 200]
    state.reset()
    assert statuses(state, "fail=1:503", 2, lane="a") == [503, 200]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_limit_counts_down_and_then_is_429() -> None:
    clock = Clock()
    state = FaultState(clock)
    faults = parse_faults("ratelimit=3/10s")
    remaining = []
    for _ in range(3):
        headers = dict(state.admit(faults))
        assert headers[b"x-ratelimit-limit-requests"] == b"3"
        remaining.append(headers[b"x-ratelimit-remaining-requests"])
        clock.now += 1
    assert remaining == [b"2", b"1", b"0"]
    assert headers[b"x-ratelimit-reset-requests"] == b"8s"
    with pytest.raises(APIError) as caught:
        state.admit(faults)
    assert caught.value.status == 429
    answer = dict(caught.value.headers)
    assert answer[b"retry-after"] == b"7"
    assert answer[b"retry-after-ms"] == b"7000"
    assert answer[b"x-ratelimit-remaining-requests"] == b"0"
    assert dict(state.admit(faults, lane="other lane"))[b"x-ratelimit-remaining-requests"] == b"2"
    clock.now += 7
    assert dict(state.admit(faults))[b"x-ratelimit-remaining-requests"] == b"2"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.016, "16ms"),
        (59.369, "59.369s"),
        (66.499, "1m6.499s"),
        (60, "1m0s"),
        (8, "8s"),
        (0, "0ms"),
    ],
)
def test_durations_in_headers_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counted_lanes_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewrap.mock.faults.MAX_COUNTED", 50)
    state = FaultState()
    for number in range(500):
        statuses(state, "fail=1:503", 1, lane=str(number))
    assert len(state.counts) == 50


def test_a_rate_of_faults_is_the_same_for_a_seed() -> None:
    rate = FaultRate(0.05, parse_faults("429,500,cut"), seed=7)
    found = [rate.faults_for(number) for number in range(20_000)]
    assert found == [
        FaultRate(0.05, parse_faults("429,500,cut"), seed=7).faults_for(n) for n in range(20_000)
    ]
    assert found != [
        FaultRate(0.05, parse_faults("429,500,cut"), seed=8).faults_for(n) for n in range(20_000)
    ]
    kinds = [faults[0].source for faults in found if faults]
    assert 800 < len(kinds) < 1200
    assert {kind: kinds.count(kind) > 250 for kind in ("429", "500", "cut")} == dict.fromkeys(
        ("429", "500", "cut"), True
    )


def test_a_rate_of_zero_is_no_fault_and_of_one_is_always_one() -> None:
    faults = parse_faults("500")
    assert not any(FaultRate(0, faults).faults_for(n) for n in range(1000))
    assert all(FaultRate(1, faults).faults_for(n) for n in range(1000))
    assert FaultRate(1, ()).faults_for(1) == ()


# Faults on the wire, message by message.


def answer(
    body: bytes, content_type: bytes, *, length: bool = False, messages: int = 1
) -> list[dict[str, Any]]:
    """The ASGI messages of an answer; a stream of several messages has an event in each, and an empty one at its end."""
    headers = [(b"content-type", content_type)] + (
        [(b"content-length", b"%d" % len(body))] if length else []
    )
    parts = EVENTS if messages > 1 else [body]
    made: list[dict[str, Any]] = [
        {"type": "http.response.start", "status": 200, "headers": headers}
    ]
    made += [
        {"type": "http.response.body", "body": part, "more_body": not length} for part in parts
    ]
    return (
        made if length else [*made, {"type": "http.response.body", "body": b"", "more_body": False}]
    )


def json_answer() -> list[dict[str, Any]]:
    return answer(JSON, b"application/json", length=True)


def stream_answer(messages: int = 1) -> list[dict[str, Any]]:
    return answer(STREAM, b"text/event-stream; charset=utf-8", messages=messages)


class Wire:
    """What a server was given to send; `cut` where it had to cut the connection."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.cut: CutConnection | None = None

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def parts(self) -> list[bytes]:
        return [m["body"] for m in self.sent if m["type"] == "http.response.body" and m["body"]]

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def whole(self) -> bool:
        return not self.sent[-1].get("more_body", True)


async def on_the_wire(faults: str, messages: list[dict[str, Any]]) -> Wire:
    wire = Wire()
    send = FaultySend(parse_faults(faults), wire.send)
    try:
        for message in messages:
            await send(message)
    except CutConnection as error:
        wire.cut = error
        with pytest.raises(CutConnection):
            await send(messages[-1])
    return wire


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of faults, which take no time here."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    # Not asyncio's own: the server of other tests sleeps, too.
    for module in ("faulty_send", "pace"):
        monkeypatch.setattr(f"rewrap.mock.{module}.asyncio", SimpleNamespace(sleep=sleep))
    return found


@pytest.mark.parametrize("messages", [json_answer(), stream_answer(), stream_answer(6)])
async def test_without_faults_an_answer_is_unchanged(messages: list[dict[str, Any]]) -> None:
    assert (await on_the_wire("", messages)).sent == messages
    assert (
        await on_the_wire("fail=1:503, ratelimit=3/10s, error_event", messages)
    ).sent == messages


@pytest.mark.parametrize("messages", [1, 6])
async def test_a_stream_is_cut_behind_so_many_events(messages: int) -> None:
    wire = await on_the_wire("cut@3", stream_answer(messages))
    assert wire.body == b"".join(EVENTS[:3])
    assert wire.cut is not None
    assert not wire.cut.reset
    assert not wire.whole
    assert (await on_the_wire("cut", stream_answer(messages))).body == b"".join(EVENTS[:2])


async def test_a_json_answer_is_cut_in_its_middle() -> None:
    wire = await on_the_wire("cut", json_answer())
    assert wire.body == JSON[: (len(JSON) + 1) // 2]
    assert wire.headers[b"content-length"] == b"%d" % len(JSON)
    assert wire.cut is not None


@pytest.mark.parametrize("messages", [json_answer(), stream_answer()])
async def test_a_cut_at_the_start_sends_nothing(messages: list[dict[str, Any]]) -> None:
    wire = await on_the_wire("cut@0", messages)
    assert wire.sent == []
    assert wire.cut is not None


async def test_a_cut_behind_more_events_than_there_are_still_cuts() -> None:
    wire = await on_the_wire("cut@100", stream_answer())
    assert wire.cut is not None
    assert not wire.whole


async def test_a_reset_is_a_cut_that_says_so() -> None:
    wire = await on_the_wire("reset@1", stream_answer())
    assert wire.body == EVENTS[0]
    assert wire.cut is not None
    assert wire.cut.reset


async def test_a_stall_waits_in_mid_stream_and_goes_on(waits: list[float]) -> None:
    wire = await on_the_wire("stall=7s@2", stream_answer())
    assert wire.body == STREAM
    assert waits == [7.0]
    assert wire.whole


async def test_a_stall_of_a_json_answer_is_in_its_middle(waits: list[float]) -> None:
    wire = await on_the_wire("stall=7s", json_answer())
    assert wire.parts == [JSON[: (len(JSON) + 1) // 2], JSON[(len(JSON) + 1) // 2 :]]
    assert waits == [7.0]


async def test_a_stall_behind_more_events_than_there_are_comes_at_the_end(
    waits: list[float],
) -> None:
    assert (await on_the_wire("stall=7s@100", stream_answer())).whole
    assert waits == [7.0]


async def test_a_slow_start_waits_before_the_head(waits: list[float]) -> None:
    wire = Wire()
    send = FaultySend(parse_faults("slow=3s"), wire.send)
    await send(stream_answer()[0])
    assert waits == [3.0]
    assert wire.sent == []


async def test_a_hang_never_answers(waits: list[float]) -> None:
    wire = await on_the_wire("hang", json_answer())
    assert waits == [3600.0]
    assert wire.sent == []
    assert wire.cut is not None


async def test_malformed_json_has_its_length_and_does_not_parse() -> None:
    wire = await on_the_wire("malformed", json_answer())
    assert len(wire.body) == len(JSON)
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(wire.body)


@pytest.mark.parametrize("messages", [1, 6])
async def test_a_malformed_event_is_framed_well_and_does_not_parse(messages: int) -> None:
    wire = await on_the_wire("malformed@1", stream_answer(messages))
    events = wire.body.split(b"\n\n")
    assert [events[0], events[2]] == [EVENTS[0].strip(), EVENTS[2].strip()]
    assert events[1].startswith(b'data: {"n": 1')
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(events[1].removeprefix(b"data: "))
    assert wire.whole


async def test_a_chunk_comes_twice() -> None:
    wire = await on_the_wire("duplicate@2", stream_answer())
    assert wire.parts[:5] == [EVENTS[0], EVENTS[1], EVENTS[2], EVENTS[2], EVENTS[3]]
    wire = await on_the_wire("duplicate", json_answer())
    assert wire.body == JSON + JSON
    assert wire.headers[b"content-length"] == b"%d" % (2 * len(JSON))


@pytest.mark.parametrize("messages", [json_answer(), stream_answer(), stream_answer(6)])
async def test_split_cuts_characters_and_loses_no_byte(messages: list[dict[str, Any]]) -> None:
    wire = await on_the_wire("split", messages)
    assert wire.body == b"".join(m.get("body", b"") for m in messages)
    assert any(part.decode("utf-8", "ignore").encode() != part for part in wire.parts)
    assert wire.whole


@given(st.text())
def test_a_split_character_is_cut_inside(text: str) -> None:
    parts = split_character(text.encode())
    assert b"".join(parts) == text.encode()
    assert (len(parts) == 2) is not text.isascii()
    if len(parts) == 2:
        with pytest.raises(UnicodeDecodeError):
            parts[0].decode()


@pytest.mark.parametrize("messages", [json_answer(), stream_answer()])
async def test_a_wrong_content_type(messages: list[dict[str, Any]]) -> None:
    wire = await on_the_wire("content_type", messages)
    assert wire.headers[b"content-type"] == b"text/html"
    assert wire.body == b"".join(m.get("body", b"") for m in messages)
    wire = await on_the_wire("content_type=text/plain; charset=latin-1", messages)
    assert wire.headers[b"content-type"] == b"text/plain; charset=latin-1"


@pytest.mark.parametrize("messages", [json_answer(), stream_answer(), stream_answer(6)])
async def test_an_empty_body_ends_at_once(messages: list[dict[str, Any]]) -> None:
    wire = await on_the_wire("empty", messages)
    assert wire.sent[0]["status"] == 200
    assert wire.body == b""
    assert wire.whole
    assert len([m for m in wire.sent if m["type"] == "http.response.start"]) == 1
    assert wire.headers.get(b"content-length", b"0") == b"0"


async def test_several_faults_work_together(waits: list[float]) -> None:
    wire = await on_the_wire("slow=1s, stall=2s@1, duplicate@1, cut@3", stream_answer())
    assert wire.parts == [EVENTS[0], EVENTS[1], EVENTS[1], EVENTS[2]]
    assert waits == [1.0, 2.0]


async def test_an_error_answer_is_not_spoiled_but_delayed(waits: list[float]) -> None:
    messages = json_answer()
    messages[0]["status"] = 401
    wire = await on_the_wire("slow=1s, cut, malformed, empty", messages)
    assert wire.body == JSON
    assert waits == [1.0]
    assert wire.whole


# The same over a socket.


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that answers JSON or a stream, with the faults of the header; an edge that ends on a cut."""
    assert scope["type"] == "http"
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    faulty = FaultySend(faults_of(headers), send)
    messages = stream_answer(6) if scope["path"] == "/stream" else json_answer()
    try:
        for message in messages:
            await faulty(message)
    except CutConnection:
        return


@contextmanager
def serving() -> Iterator[str]:
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as address:
        yield address


async def fetched(
    url: str, path: str, fault: str, into: list[bytes] | None = None
) -> tuple[int, list[bytes]]:
    """The status of an answer, and the body as it is read."""
    parts = [] if into is None else into
    async with (
        httpx.AsyncClient(timeout=0.3) as client,
        client.stream("GET", url + path, headers={"x-mock-fault": fault}) as response,
    ):
        async for part in response.aiter_raw():
            parts.append(part)
    return response.status_code, parts


@pytest.mark.parametrize("path", ["/json", "/stream"])
async def test_a_client_sees_a_cut_as_a_broken_answer(url: str, path: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await fetched(url, path, "cut")


async def test_a_client_sees_a_late_head(url: str) -> None:
    with pytest.raises(httpx.ReadTimeout):
        async with httpx.AsyncClient(timeout=0.2) as client:
            await client.get(f"{url}/json", headers={"x-mock-fault": "slow=1s"})


async def test_a_client_sees_a_stall_in_mid_stream(url: str) -> None:
    parts: list[bytes] = []
    with pytest.raises(httpx.ReadTimeout):
        await fetched(url, "/stream", "stall=1s@2", into=parts)
    assert b"".join(parts) == EVENTS[0] + EVENTS[1]


async def test_a_client_sees_characters_in_two_reads(url: str) -> None:
    _, parts = await fetched(url, "/stream", "split")
    assert b"".join(parts) == b"".join(EVENTS)
    assert any(one.endswith(b"\xc3") and two.startswith(b"\xbc") for one, two in pairwise(parts))


@pytest.mark.parametrize("fault", ["empty", "duplicate", "malformed", "content_type"])
@pytest.mark.parametrize("path", ["/json", "/stream"])
async def test_a_spoiled_answer_keeps_to_http(url: str, path: str, fault: str) -> None:
    status, parts = await fetched(url, path, fault)
    assert status == 200
    assert (b"".join(parts) == b"") is (fault == "empty")


# Deltas and time.


async def collected(deltas: AsyncIterator[Delta]) -> list[Delta]:
    return [delta async for delta in deltas]


ANSWER = [Delta("one two three", whole=True), Delta(finish_reason="stop")]


async def test_a_pace_waits_for_the_first_byte_and_between_words(waits: list[float]) -> None:
    pace = Pace(first_byte_ms=300, words_per_second=20)
    made = await collected(paced(as_stream(ANSWER), pace))
    assert [d.content for d in made] == ["one ", "two ", "three", "", ""][: len(made)]
    assert made[-1].finish_reason == "stop"
    assert waits == [0.3, 0.05, 0.05, 0.05]


async def test_jitter_is_the_same_for_a_seed(waits: list[float]) -> None:
    pace = Pace(words_per_second=20, jitter_ms=40)
    runs = []
    for seed in (1, 1, 2):
        waits.clear()
        await collected(paced(as_stream(ANSWER), pace, seed))
        runs.append(list(waits))
    assert runs[0] == runs[1] != runs[2]
    assert all(0.05 <= wait <= 0.09 for wait in runs[0][1:])


async def test_no_pace_changes_nothing(waits: list[float]) -> None:
    assert await collected(paced(as_stream(ANSWER), Pace())) == ANSWER
    assert waits == []


def test_headers_change_the_pace() -> None:
    headers = {
        "x-mock-first-byte-ms": "300",
        "x-mock-words-per-second": "2.5",
        "x-mock-jitter-ms": "5",
    }
    assert Pace(words_per_second=9).with_headers(headers) == Pace(300, 2.5, 5)
    assert Pace(words_per_second=9).with_headers({}) == Pace(words_per_second=9)
    for value in ("x", "-1", "", "1e9", "99999999"):
        with pytest.raises(APIError, match="Invalid 'x-mock-words-per-second' header"):
            Pace().with_headers({"x-mock-words-per-second": value})


@pytest.mark.parametrize("after", [0, 1, 2, 3, 9])
async def test_an_error_event_comes_behind_so_many_words(after: int) -> None:
    seen: list[str] = []

    async def read() -> None:
        async for delta in broken_off(as_stream(ANSWER), parse_faults(f"error_event@{after}")):
            seen.append(delta.content)

    with pytest.raises(APIError) as caught:
        await read()
    assert seen == ["one ", "two ", "three"][:after]
    assert caught.value.status == 500


async def test_other_faults_leave_the_deltas_alone() -> None:
    assert await collected(broken_off(as_stream(ANSWER), parse_faults("cut"))) == ANSWER


async def test_a_client_that_leaves_closes_the_deltas_below() -> None:
    closed = []

    async def source() -> Any:
        try:
            for _ in range(100):
                yield Delta("a ")
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    deltas = broken_off(paced(source(), Pace()), ())
    assert (await anext(deltas)).content == "a "
    await deltas.aclose()
    assert closed == [True]
