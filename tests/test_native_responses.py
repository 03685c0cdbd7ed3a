"""/v1/responses at an upstream that has it, and at one that has not: over real sockets."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import openai
import pytest
from serving import served
from upstreams import Handler, Reader, Request, Upstream, Writer, chunked, send, sse, whole

from rewrap.types import APIError
from rewrap.upstream.native_responses import NativeStream

JSON = "application/json"
SSE = "text/event-stream"
RESPONSE = {"id": "resp_up", "object": "response", "status": "in_progress", "output": []}
CREATED = {"type": "response.created", "sequence_number": 0, "response": RESPONSE, "unknown": 1}
DELTA = {"type": "response.output_text.delta", "sequence_number": 7, "delta": "Grüße"}
COMPLETED = {
    "type": "response.completed",
    "sequence_number": 8,
    "response": RESPONSE | {"status": "completed"},
}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def events(*values: Any) -> list[bytes]:
    return sse([json.dumps(value) for value in values])


def answers(*pieces: bytes, content_type: str = SSE) -> Handler:
    async def answer(request: Request, reader: Reader, writer: Writer) -> None:
        await send(writer, chunked(content_type, pieces))

    return answer


async def post(url: str, path: str, **body: Any) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.post(url + path, json=body)


@pytest.mark.anyio
async def test_a_request_and_its_events_pass_byte_for_byte() -> None:
    pieces = events(CREATED, DELTA, COMPLETED)
    async with Upstream(answers(*pieces)) as upstream:
        with served(openai_api_base=f"{upstream.url}/v1", openai_api_key="sk-own-key") as url:
            body = {"model": "m", "input": "Hi", "stream": True, "new_member": {"a": [1]}}
            answer = await post(url, "/v1/responses", **body)
    assert answer.content == b"".join(pieces)
    assert upstream.requests[-1].path == "/v1/responses"
    assert upstream.requests[-1].json() == body
    assert upstream.requests[-1].headers["authorization"] == "Bearer sk-own-key"


@pytest.mark.anyio
@pytest.mark.parametrize("tail", [b"", b'data: {"type": "response.out'], ids=["whole", "cut"])
async def test_a_stream_without_an_end_gets_one(tail: bytes) -> None:
    pieces = [*events(CREATED, DELTA), *filter(None, [tail])]
    async with Upstream(answers(*pieces)) as upstream:
        with served(openai_api_base=f"{upstream.url}/v1") as url:
            answer = await post(url, "/v1/responses", model="m", input="Hi", stream=True)
    assert answer.content.startswith(b"".join(pieces[:2]) + b"event: response.failed\n")
    last = json.loads(answer.text.rstrip().rpartition("data: ")[2])
    assert last["sequence_number"] == 8
    assert last["response"]["id"] == "resp_up"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["message"] == "The chat backend broke off."


@pytest.mark.anyio
async def test_an_empty_stream_is_a_502() -> None:
    async with Upstream(answers()) as upstream:
        with served(openai_api_base=f"{upstream.url}/v1", responses="native") as url:
            answer = await post(url, "/v1/responses", model="m", input="Hi", stream=True)
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == "The chat backend gave no reply."


@pytest.mark.parametrize("size", [1, 3, 50, 10_000])
def test_events_of_any_cut_pass_whole(size: int) -> None:
    data = b"".join(events(CREATED, DELTA, COMPLETED))
    stream = NativeStream(10_000, 502)
    passed = [stream.feed(data[at : at + size]) for at in range(0, len(data), size)]
    assert b"".join(passed) == data
    assert all(part.endswith(b"\n\n") for part in passed if part)
    assert stream.ended
    assert stream.finish() == b""


def test_an_event_has_a_bound() -> None:
    stream = NativeStream(100, 502)
    with pytest.raises(APIError):
        stream.feed(b"data: " + b"x" * 200)


def only_chat(request: Request) -> bool:
    return request.path.endswith("/chat/completions")


@pytest.mark.anyio
@pytest.mark.parametrize("status", [404, 405, 501])
async def test_an_upstream_without_the_endpoint_is_asked_for_it_once(status: int) -> None:
    completion = {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]}

    async def answer(request: Request, reader: Reader, writer: Writer) -> None:
        if only_chat(request):
            await send(writer, whole(JSON, json.dumps(completion).encode()))
        else:
            await send(writer, whole(JSON, b'{"detail": "Not Found"}', status=status))

    async with Upstream(answer) as upstream:
        with served(openai_api_base=f"{upstream.url}/v1") as url:
            for _ in range(3):
                found = await post(url, "/v1/responses", model="m", input="Hi")
                assert found.json()["output"][0]["content"][0]["text"] == "Hello"
    paths = [request.path for request in upstream.requests]
    assert paths == ["/v1/responses", *["/v1/chat/completions"] * 3]


@pytest.mark.anyio
async def test_an_unknown_model_does_not_mean_that_the_endpoint_is_missing() -> None:
    error = {"message": "The model `m` does not exist", "code": "model_not_found"}

    async def answer(request: Request, reader: Reader, writer: Writer) -> None:
        await send(writer, whole(JSON, json.dumps({"error": error}).encode(), status=404))

    async with Upstream(answer) as upstream:
        with served(openai_api_base=f"{upstream.url}/v1") as url:
            found = await post(url, "/v1/responses", model="m", input="Hi")
            assert found.status_code == 404
            await post(url, "/v1/responses", model="m", input="Hi")
    assert [request.path for request in upstream.requests] == ["/v1/responses"] * 2


@contextmanager
def front(kind: str) -> Iterator[str]:
    """A server of each kind of backend, which end at the mock."""
    with ExitStack() as stack:
        mock = stack.enter_context(served())
        options: dict[str, Any] = {
            "mock": {},
            "relay, native": {"openai_api_base": f"{mock}/v1", "responses": "native"},
            "relay, auto": {"openai_api_base": f"{mock}/v1"},
            "relay, translated": {"openai_api_base": f"{mock}/v1", "responses": "translate"},
            "any URL": {"chat_url": f"{mock}/v1/chat/completions"},
        }[kind]
        yield stack.enter_context(served(**options))


FRONTS = ["mock", "relay, native", "relay, auto", "relay, translated", "any URL"]


@pytest.mark.parametrize("kind", FRONTS)
def test_responses_have_the_text_calls_and_usage_of_a_chat(kind: str) -> None:
    messages: Any = [{"role": "user", "content": "Tell me about Paris"}]
    with front(kind) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        chat = client.chat.completions.create(model="m", messages=messages)
        response = client.responses.create(model="m", input=messages)
        assert response.output_text == chat.choices[0].message.content
        assert response.usage is not None
        assert chat.usage is not None
        assert response.usage.input_tokens == chat.usage.prompt_tokens
        assert response.usage.output_tokens == chat.usage.completion_tokens
        with client.responses.stream(model="m", input=messages) as stream:
            text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
            assert text == chat.choices[0].message.content
            stored = stream.get_final_response()
        assert client.responses.retrieve(stored.id).output_text == text
        later = client.responses.create(model="m", input="More", previous_response_id=stored.id)
        assert later.previous_response_id == stored.id
        client.responses.delete(stored.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(stored.id)


@pytest.mark.parametrize("kind", FRONTS)
def test_routes_without_an_id_are_served_here(kind: str) -> None:
    body = {"model": "m", "input": "Hi"}
    with front(kind) as url:
        counted = httpx.post(f"{url}/v1/responses/input_tokens", json=body)
        assert counted.json()["object"] == "response.input_tokens"
        assert httpx.post(f"{url}/v1/responses/compact", json=body).status_code == 400


@pytest.mark.parametrize("kind", FRONTS)
def test_responses_have_the_calls_of_a_chat(kind: str) -> None:
    question: Any = [{"role": "user", "content": "Weather in Paris?"}]
    with front(kind) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        chat = client.chat.completions.create(
            model="m",
            messages=question,
            tools=[TOOL],
            tool_choice="required",  # type: ignore[list-item]
        )
        response = client.responses.create(
            model="m",
            input=question,
            tools=[{"type": "function", **TOOL["function"]}],  # type: ignore[dict-item,list-item]
            tool_choice="required",
        )
    calls = [
        (call.function.name, json.loads(call.function.arguments))  # type: ignore[union-attr]
        for call in chat.choices[0].message.tool_calls or []
    ]
    made = [
        (item.name, json.loads(item.arguments))
        for item in response.output
        if item.type == "function_call"
    ]
    assert calls == made
