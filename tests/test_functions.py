"""Functions as backends: async and plain, returned and yielded, in every form of a piece."""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from rewrap.config.settings import Settings
from rewrap.main import create_app
from rewrap.types import APIError, ChatRequest, Delta, ResponseInfo
from rewrap.upstream.callable import CallableBackend

pytestmark = pytest.mark.anyio

Function = Callable[[ChatRequest], object]
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def client(function: Function, **settings: Any) -> httpx.AsyncClient:
    app = create_app(Settings(store_url="sqlite://", **settings), backend=function)
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://proxy")


async def ask(function: Function, stream: bool = False, **settings: Any) -> httpx.Response:
    async with client(function, **settings) as some:
        return await some.post("/v1/chat/completions", json=ASKED | {"stream": stream})


def deltas(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    events = [json.loads(event[6:]) for event in answer.text.split("\n\n")[:-2]]
    return [event["choices"][0]["delta"] for event in events if event["choices"]]


def each_form(*pieces: object) -> dict[str, Function]:
    """Functions that yield these pieces, or return the only one."""

    async def async_generator(request: ChatRequest) -> AsyncIterator[object]:
        for piece in pieces:
            yield piece

    def generator(request: ChatRequest) -> Iterator[object]:
        yield from pieces

    async def async_function(request: ChatRequest) -> object:
        return pieces[0] if len(pieces) == 1 else list(pieces)

    def function(request: ChatRequest) -> object:
        return pieces[0] if len(pieces) == 1 else list(pieces)

    class Callable:
        async def __call__(self, request: ChatRequest) -> object:
            return await async_function(request)

    made: list[Any] = [async_generator, generator, async_function, function, Callable()]
    return {getattr(each, "__name__", "object"): each for each in made}


FORMS = list(each_form(""))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "pieces",
    [
        ["Hello there"],
        ["Hello", " there"],
        [{"content": "Hello there"}],
        [Delta("Hello there")],
        ["Hel", {"content": "lo "}, Delta("there")],
    ],
    ids=["text", "texts", "dict", "delta", "mixed"],
)
async def test_pieces_of_each_form_make_a_reply(pieces: list[Any], form: str, stream: bool) -> None:
    answer = await ask(each_form(*pieces)[form], stream)
    if stream:
        assert "".join(delta.get("content") or "" for delta in deltas(answer)) == "Hello there"
        return
    choice = answer.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello there", "stop")


@pytest.mark.parametrize("form", FORMS)
async def test_a_dict_may_have_every_member(form: str) -> None:
    piece = {
        "content": "Hi",
        "reasoning": "hm",
        "tool_calls": [CALL],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        "finish_reason": "length",
    }
    answer = (await ask(each_form(piece)[form])).json()
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Hi", "hm")
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert answer["usage"]["total_tokens"] == 7
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_tool_calls_without_a_finish_reason_end_with_tool_calls() -> None:
    for form, function in each_form({"tool_calls": [CALL]}).items():
        choice = (await ask(function)).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls", form


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (5, "expected text, a dict with content, .* or a Delta, not int"),
        (None, "not NoneType"),
        (b"Hi", "not bytes"),
        ({"text": "Hi"}, "text is not known"),
        ({"content": 5}, "content must be a string, not int"),
        ({"usage": 5}, "usage must be a dict, not int"),
        ({"usage": {}}, "usage needs prompt_tokens"),
        ({"tool_calls": ["f"]}, "a tool call is no object"),
    ],
)
async def test_any_other_piece_is_a_clear_error(piece: object, message: str, form: str) -> None:
    function = each_form(piece)[form]
    for stream in (False, True):
        answer = await ask(function, stream)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (500, "function_backend")
        assert re.search(message, error["message"]), error["message"]


@pytest.mark.parametrize("form", ["async_function", "function", "generator", "async_generator"])
async def test_a_function_may_raise_an_api_error(form: str) -> None:
    error = APIError(418, "No tea.", code="teapot")

    async def async_function(request: ChatRequest) -> str:
        raise error

    def function(request: ChatRequest) -> str:
        raise error

    def generator(request: ChatRequest) -> Iterator[str]:
        raise error
        yield ""

    async def async_generator(request: ChatRequest) -> AsyncIterator[str]:
        raise error
        yield ""

    for stream in (False, True):
        answer = await ask(locals()[form], stream)
        assert answer.status_code == 418
        assert answer.json()["error"]["code"] == "teapot"


def test_a_function_without_an_argument_stops_the_start() -> None:
    with pytest.raises(ValueError, match=r"^backend <lambda>: it must take a ChatRequest"):
        create_app(Settings(), backend=lambda: "Hi")  # type: ignore[arg-type, misc]


async def test_a_plain_function_runs_beside_the_event_loop() -> None:
    names: list[str] = []

    def function(request: ChatRequest) -> Iterator[str]:
        names.append(threading.current_thread().name)
        yield "a"
        names.append(threading.current_thread().name)

    assert (await ask(function)).status_code == 200
    assert names == ["function"] * 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("form", FORMS)
async def test_a_function_that_takes_too_long_is_a_504(form: str, stream: bool) -> None:
    release = threading.Event()

    async def slow_async() -> None:
        await asyncio.sleep(30)

    def slow() -> None:
        release.wait(30)

    async def async_generator(request: ChatRequest) -> AsyncIterator[str]:
        await slow_async()
        yield "a"

    def generator(request: ChatRequest) -> Iterator[str]:
        slow()
        yield "a"

    async def async_function(request: ChatRequest) -> str:
        await slow_async()
        return "a"

    def function(request: ChatRequest) -> str:
        slow()
        return "a"

    class Slow:
        async def __call__(self, request: ChatRequest) -> str:
            await slow_async()
            return "a"

    made: dict[str, Any] = {**locals(), "object": Slow()}
    limits = {"first_byte_timeout_seconds": 0.1, "total_timeout_seconds": 0.1}
    answer = await ask(made[form], stream, **limits)
    release.set()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


async def test_a_stream_that_stalls_ends_with_an_error_event() -> None:
    async def function(request: ChatRequest) -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(30)

    answer = await ask(function, True, stall_timeout_seconds=0.1)
    assert answer.status_code == 200
    assert '"code":"timeout"' in answer.text
    assert "[DONE]" not in answer.text


@pytest.mark.parametrize("form", ["generator", "async_generator"])
async def test_a_generator_is_closed_with_its_reader(form: str) -> None:
    closed = threading.Event()

    def generator(request: ChatRequest) -> Iterator[str]:
        try:
            while True:
                yield "a"
        finally:
            closed.set()

    async def async_generator(request: ChatRequest) -> AsyncIterator[str]:
        try:
            while True:
                yield "a"
        finally:
            closed.set()

    backend = CallableBackend(locals()[form])
    stream = backend.stream(ChatRequest("m", [], {}, stream=True), ResponseInfo())
    assert (await anext(stream)).content == "a"
    await stream.aclose()
    assert closed.wait(5)
