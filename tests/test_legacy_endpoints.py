"""Legacy completions through chat, embeddings, and moderations: requests, answers, and the mock's vectors."""

import json
import math
import struct
import time
import timeit
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewrap.api.completions import (
    CompletionRendering,
    CompletionRequest,
    all_prompts,
    parse_completion,
)
from rewrap.api.embeddings import embedding_list, parse_embeddings
from rewrap.api.moderations import CATEGORIES, moderation
from rewrap.mock.embedding import embed
from rewrap.types import (
    APIError,
    ChatRequest,
    Delta,
    Deltas,
    JSONObject,
    ResponseInfo,
    prompt_size,
    usage,
)

ASKED: JSONObject = {"model": "m", "prompt": "Say hi"}
END = Delta(finish_reason="stop")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def refusal(
    parse: Callable[[JSONObject], object], payload: JSONObject
) -> tuple[str | None, str | None]:
    """The param and code of the 400 that a payload gets."""
    with pytest.raises(APIError) as caught:
        parse(payload)
    assert caught.value.status == 400
    assert caught.value.type == "invalid_request_error"
    return caught.value.param, caught.value.code


# Legacy completions.


def rendering(payload: JSONObject, *, mock: bool = False) -> CompletionRendering:
    completion = parse_completion(payload, mock=mock)
    chat = completion.payloads[0]
    request = ChatRequest(chat["model"], chat["messages"], chat)
    info = ResponseInfo(created=1_800_000_000, prompt_bytes=prompt_size(request.messages))
    return CompletionRendering(completion, request, info)


def decoded(stream: bytes) -> list[JSONObject]:
    """The chunks of a stream, whose end is [DONE]."""
    assert stream.endswith(b"data: [DONE]\n\n")
    blocks = stream.decode().removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def streamed(
    deltas: list[Delta], payload: JSONObject = ASKED, *, mock: bool = False
) -> list[JSONObject]:
    chunks = rendering(payload, mock=mock)
    return decoded(b"".join(map(chunks, deltas)) + chunks.end())


def test_a_prompt_is_a_message_of_the_user() -> None:
    request = parse_completion(ASKED | {"temperature": 0.5, "logprobs": 2, "best_of": None})
    assert request.payloads == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Say hi"}],
            "max_tokens": 16,
            "temperature": 0.5,
            "logprobs": True,
            "top_logprobs": 2,
        }
    ]


def test_each_prompt_of_a_list_is_a_chat_of_its_own() -> None:
    request = parse_completion(ASKED | {"prompt": ["a", "b"], "max_tokens": 5})
    assert [payload["messages"][0]["content"] for payload in request.payloads] == ["a", "b"]
    assert [payload["max_tokens"] for payload in request.payloads] == [5, 5]


@pytest.mark.parametrize(
    ("payload", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": 7}, "prompt", "invalid_type"),
        ({"prompt": []}, "prompt", "invalid_type"),
        ({"prompt": [7, "a"]}, "prompt[0]", "invalid_type"),
        ({"prompt": ["a", 7]}, "prompt[1]", "invalid_type"),
        ({"prompt": [True]}, "prompt[0]", "invalid_type"),
        ({"prompt": ["a"] * 129}, "prompt", "array_above_max_length"),
        ({"prompt": [1, 2]}, "prompt", "unsupported_parameter"),
        ({"prompt": [[1], [2]]}, "prompt", "unsupported_parameter"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"best_of": 1, "n": 2}, "best_of", "invalid_value"),
        ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"logprobs": 6}, "logprobs", "integer_above_max_value"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
        ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
    ],
)
def test_a_completion_that_cannot_be_served_is_refused_by_name(
    payload: JSONObject, param: str, code: str
) -> None:
    assert refusal(parse_completion, ASKED | payload) == (param, code)


def test_what_has_no_effect_is_accepted() -> None:
    parse_completion(ASKED | {"echo": False, "suffix": "", "best_of": 1, "stream": True})


def test_the_mock_takes_token_ids_suffix_echo_and_best_of() -> None:
    payload = {"prompt": [[1, 2], [3]], "echo": True, "suffix": "x", "best_of": 3, "n": 2}
    request = parse_completion(ASKED | payload, mock=True)
    assert request.prompts == ["1 2", "3"]
    assert request.n == 2
    assert parse_completion(ASKED | {"prompt": [1, 2]}, mock=True).prompts == ["1 2"]


def test_a_completion_is_one_object() -> None:
    answer = rendering(ASKED).document(
        [Delta("Hi"), Delta(" there"), Delta(finish_reason="length")]
    )
    assert answer == {
        "id": answer["id"],
        "object": "text_completion",
        "created": answer["created"],
        "model": "m",
        "choices": [{"text": "Hi there", "index": 0, "logprobs": None, "finish_reason": "length"}],
        "usage": usage(2, 2),
    }
    assert answer["id"].startswith("cmpl-")


def test_a_completion_stream_has_text_chunks_and_a_finish() -> None:
    chunks = streamed([Delta("one two", whole=True), END])
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["one ", "two", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


def test_a_completion_stream_has_usage_if_it_was_asked_for() -> None:
    payload = ASKED | {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = streamed([Delta("Hi"), END], payload)
    assert [chunk["usage"] for chunk in chunks] == [None, None]
    assert last["choices"] == []
    assert last["usage"] == usage(2, 1)


def test_the_echo_of_a_prompt_comes_first() -> None:
    payload = ASKED | {"echo": True}
    assert rendering(payload, mock=True).document([Delta(" Hi", "stop")])["choices"][0]["text"] == (
        "Say hi Hi"
    )
    chunks = streamed([Delta(" Hi"), END], payload, mock=True)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Say hi", " Hi", ""]


def test_a_call_of_a_tool_ends_a_completion_with_stop() -> None:
    answer = rendering(ASKED).document([Delta("x"), Delta(finish_reason="tool_calls")])
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_reply_without_a_reason_to_end_has_stopped() -> None:
    assert rendering(ASKED).document([Delta("x")])["choices"][0]["finish_reason"] == "stop"


def test_logprobs_are_four_parallel_lists() -> None:
    row = {"token": "Hi", "logprob": -0.5, "top_logprobs": [{"token": "Ho", "logprob": -0.7}]}
    deltas = [
        Delta("Hi", logprobs={"content": [row]}),
        Delta("Hi", logprobs={"content": [row]}),
        END,
    ]
    expected = {
        "tokens": ["Hi", "Hi"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"Ho": -0.7}, {"Ho": -0.7}],
        "text_offset": [0, 2],
    }
    choice = rendering(ASKED | {"logprobs": 1}).document(deltas)["choices"][0]
    assert choice["text"] == "HiHi"
    assert choice["logprobs"] == expected
    chunks = streamed(deltas, ASKED | {"logprobs": 1})
    offsets = [chunk["choices"][0]["logprobs"] for chunk in chunks[:2]]
    assert [entry["text_offset"] for entry in offsets] == [[0], [2]]


@pytest.mark.anyio
async def test_the_choices_of_all_prompts_are_numbered_through() -> None:
    completion = parse_completion(ASKED | {"prompt": ["a", "b"], "n": 2})
    started: list[int] = []

    async def stream(position: int, info: ResponseInfo) -> Deltas:
        started.append(position)
        info.headers.append((b"x-prompt", b"%d" % position))
        if position:
            info.usage = usage(10, 20)
        else:
            info.prompt_bytes = 4
        for index in range(2):
            yield Delta(f"{completion.prompts[position]}{index}", "stop", index)

    chat = completion.payloads[0]
    info = ResponseInfo()
    answer = CompletionRendering(completion, ChatRequest("m", chat["messages"], chat), info)
    deltas = [delta async for delta in all_prompts(completion, info, stream)]
    document = answer.document(deltas)
    assert started == [0, 1]
    assert info.headers == [(b"x-prompt", b"0")]
    texts = [(choice["index"], choice["text"]) for choice in document["choices"]]
    assert texts == [(0, "a0"), (1, "a1"), (2, "b0"), (3, "b1")]
    assert document["usage"] == usage(1 + 10, 1 + 20)


@pytest.mark.anyio
async def test_one_prompt_keeps_the_usage_of_its_upstream() -> None:
    counts = usage(1, 2) | {"more": 3}

    async def stream(position: int, info: ResponseInfo) -> Deltas:
        info.usage = counts
        yield END

    info = ResponseInfo()
    assert [delta async for delta in all_prompts(parse_completion(ASKED), info, stream)] == [END]
    assert info.usage == counts


def test_a_failure_is_an_event_with_an_error() -> None:
    error = APIError(502, "Broken.", type="upstream_error")
    data = rendering(ASKED).failure(error).removeprefix(b"data: ")
    assert orjson.loads(data) == error.body


def test_the_openai_package_reads_completions() -> None:
    deltas = [Delta("one two", whole=True), END]

    def handle(request: httpx2.Request) -> httpx2.Response:
        payload = orjson.loads(request.content)
        answer = rendering(payload)
        if not payload.get("stream"):
            return httpx2.Response(200, json=answer.document(deltas))
        stream = b"".join(map(answer, deltas)) + answer.end()
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream)

    with sdk(handle) as client:
        whole = client.completions.create(model="m", prompt="Say hi")
        chunks = list(client.completions.create(model="m", prompt="Say hi", stream=True))
    assert whole.choices[0].text == "one two"
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one two"


def sdk(handle: Callable[[httpx2.Request], httpx2.Response]) -> openai.OpenAI:
    client = httpx2.Client(transport=httpx2.MockTransport(handle))
    return openai.OpenAI(api_key="sk-x", base_url="http://test/v1", http_client=client)


# Embeddings.


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("text", 1),
        (["a", "b"], 2),
        ([1, 2, 3], 1),
        ([[1], [2, 3]], 2),
        (" ", 1),
        (["a"] * 2048, 2048),
    ],
)
def test_each_form_of_input_is_accepted(value: object, count: int) -> None:
    assert len(parse_embeddings({"model": "m", "input": value}).inputs) == count


@pytest.mark.parametrize(
    ("payload", "param", "code"),
    [
        ({"model": ""}, None, None),
        ({"model": 7}, "model", "invalid_type"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "empty_array"),
        ({"input": ["a", ""]}, "input[1]", "invalid_value"),
        ({"input": [[1], []]}, "input[1]", "invalid_value"),
        ({"input": 7}, "input", "invalid_type"),
        ({"input": {}}, "input", "invalid_type"),
        ({"input": [1, "a"]}, "input", "invalid_type"),
        ({"input": [[1, -1]]}, "input[0]", "invalid_type"),
        ({"input": [None]}, "input[0]", "invalid_type"),
        ({"input": ["a"] * 2049}, "input", "array_above_max_length"),
        ({"input": [[1] * 8193]}, "input[0]", "context_length_exceeded"),
        ({"input": ["a" * 4 * 8193]}, "input[0]", "context_length_exceeded"),
        ({"input": ["a" * 4 * 8192] * 37}, "input", "context_length_exceeded"),
        ({"dimensions": 0}, "dimensions", "integer_below_min_value"),
        ({"dimensions": 5000}, "dimensions", "integer_above_max_value"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"user": 7}, "user", "invalid_type"),
    ],
)
def test_embeddings_have_openais_limits(
    payload: JSONObject, param: str | None, code: str | None
) -> None:
    assert refusal(parse_embeddings, {"model": "m", "input": "x", **payload}) == (param, code)


def test_embeddings_are_listed_in_the_order_of_the_inputs() -> None:
    request = parse_embeddings({"model": "m", "input": ["a b c d", "e"], "dimensions": 2})
    answer = embedding_list(request, [[1.0, 0.0], [0.0, 1.0]])
    assert answer == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, 0.0]},
            {"object": "embedding", "index": 1, "embedding": [0.0, 1.0]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    assert embedding_list(request, [], 7)["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


def test_base64_is_little_endian_float32() -> None:
    payload = {"model": "m", "input": "x", "encoding_format": "base64"}
    text = embedding_list(parse_embeddings(payload), [[0.5, -1.0]])["data"][0]["embedding"]
    assert struct.unpack("<2f", b64decode(text)) == (0.5, -1.0)


@pytest.mark.parametrize("encoding", ["float", None])
def test_the_openai_package_reads_embeddings(encoding: Any) -> None:
    asked: list[JSONObject] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(orjson.loads(request.content))
        parsed = parse_embeddings(asked[0])
        vectors = [embed(value, parsed.dimensions) for value in parsed.inputs]
        return httpx2.Response(200, json=embedding_list(parsed, vectors))

    options = {} if encoding is None else {"encoding_format": encoding}
    with sdk(handle) as client:
        answer = client.embeddings.create(
            model="m", input=["red", "blue"], dimensions=256, **options
        )
    assert asked[0]["encoding_format"] == (encoding or "base64")
    assert answer.data[1].embedding == pytest.approx(embed("blue", 256), abs=1e-7)


def near(one: str, other: str, dimensions: int = 0) -> float:
    """The cosine of two texts' vectors."""
    pairs = zip(embed(one, dimensions), embed(other, dimensions), strict=True)
    return sum(a * b for a, b in pairs)


@settings(deadline=None)
@given(st.one_of(st.text(max_size=50), st.lists(st.integers(0, 200_000), max_size=20)))
def test_every_text_has_a_vector_of_length_one(value: str | list[int]) -> None:
    for dimensions in (0, 1, 7, 8, 256, 3072):
        vector = embed(value, dimensions)
        assert len(vector) == (dimensions or 1536)
        assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-6)
        assert vector == embed(value, dimensions)


def test_vectors_are_the_same_on_every_machine() -> None:
    assert embed("Hello", 8) == embed("hello", 8)
    assert embed("Hello", 4) == [0.577350269, 0.577350269, -0.577350269, 0.0]


@pytest.mark.parametrize("dimensions", [0, 256, 64])
def test_like_texts_are_nearer_than_unlike_ones(dimensions: int) -> None:
    text = "How do I reset my password?"
    assert near(text, "how do i reset my password", dimensions) == pytest.approx(1.0, abs=1e-6)
    like = near(text, "I forgot my password, how can I reset it?", dimensions)
    unlike = near(text, "Quarterly revenue grew by 12 percent", dimensions)
    assert like > 0.6
    assert abs(unlike) < 0.1
    assert near("苹果很好吃", "苹果不好吃", dimensions) > near("苹果很好吃", "天气预报", dimensions)


def test_fewer_dimensions_are_the_beginning_at_length_one() -> None:
    whole = embed("The quick brown fox")
    length = math.hypot(*whole[:256])
    assert embed("The quick brown fox", 256) == pytest.approx(
        [number / length for number in whole[:256]], abs=1e-6
    )


def test_vectors_cost_in_proportion_to_the_text() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"

    def text(words: int) -> str:
        numbers = [n * 7919 for n in range(words)]
        return " ".join("".join(letters[n // 26**k % 26] for k in range(5)) for n in numbers)

    def seconds(value: str) -> float:
        return min(timeit.repeat(lambda: embed(value), timer=time.process_time, number=1, repeat=3))

    small = text(1_000)
    large = text(10_000)
    assert min(seconds(large) / seconds(small) for _ in range(3)) < 15


# Moderations.


def judge(text: str) -> set[str]:
    return {"violence"} if "kill" in text else set()


def test_a_moderation_has_thirteen_categories_and_nothing_is_flagged() -> None:
    answer = moderation({"input": "Hello"}, judge)
    assert answer["id"].startswith("modr-")
    assert answer["model"] == "omni-moderation-latest"
    (result,) = answer["results"]
    assert result["flagged"] is False
    for name in ("categories", "category_scores", "category_applied_input_types"):
        assert list(result[name]) == list(CATEGORIES)
        assert len(result[name]) == 13
    assert not any(result["categories"].values())
    assert set(map(tuple, result["category_applied_input_types"].values())) == {("text",)}


def test_each_text_has_a_result_of_its_own() -> None:
    answer = moderation({"input": ["Hello", "kill"], "model": "m"}, judge)
    assert answer["model"] == "m"
    assert [result["flagged"] for result in answer["results"]] == [False, True]
    flagged = answer["results"][1]
    assert [name for name, value in flagged["categories"].items() if value] == ["violence"]
    assert flagged["category_scores"]["violence"] > 0.9 > flagged["category_scores"]["hate"]


def test_a_list_of_parts_has_one_result() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    parts = [{"type": "text", "text": "kill"}, image]
    (result,) = moderation({"input": parts}, judge)["results"]
    assert result["flagged"] is True
    assert result["category_applied_input_types"]["violence"] == ["text", "image"]
    assert result["category_applied_input_types"]["hate"] == ["text"]


@pytest.mark.parametrize(
    ("value", "param", "code"),
    [
        (None, "input", "missing_required_parameter"),
        (7, "input", "invalid_type"),
        ([], "input", "invalid_type"),
        ([7], "input[0]", "invalid_type"),
        (["a", {}], "input[0]", "invalid_type"),
        ([{"type": "text"}], "input[0].text", "missing_required_parameter"),
        ([{"type": "odd"}], "input[0].type", "invalid_value"),
    ],
)
def test_a_moderation_that_cannot_be_served_is_refused(
    value: object, param: str, code: str
) -> None:
    assert refusal(lambda payload: moderation(payload, judge), {"input": value}) == (param, code)


def test_the_openai_package_reads_moderations() -> None:
    def handle(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json=moderation(orjson.loads(request.content), judge))

    with sdk(handle) as client:
        result = client.moderations.create(input="kill").results[0]
    assert result.flagged
    assert result.categories.violence
    assert not result.categories.self_harm_instructions


def test_a_plan_is_a_plain_value() -> None:
    assert parse_completion(ASKED) == CompletionRequest(
        ["Say hi"],
        [{"model": "m", "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 16}],
    )
