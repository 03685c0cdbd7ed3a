"""The openai package: structured outputs, retries and many streams at once, against the mock."""

import asyncio
from datetime import date
from enum import Enum
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field

from rewrap.testing.mock_openai import MockOpenAI

STREAMS = 64


class Status(Enum):
    OPEN = "open"
    PAID = "paid"


class Line(BaseModel):
    text: str
    quantity: int = Field(ge=1, le=20)
    price: float = Field(gt=0)


class Address(BaseModel):
    street: str
    zip: str = Field(pattern=r"^\d{5}$")


class Invoice(BaseModel):
    number: int
    status: Status
    due: date
    lines: list[Line] = Field(min_length=2, max_length=5)
    address: Address
    note: str | None


class Node(BaseModel):
    name: str
    children: list["Node"]


class Chain(BaseModel):
    value: int
    rest: "Chain | None"


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: float


class Square(BaseModel):
    kind: Literal["square"]
    side: float


class Drawing(BaseModel):
    shapes: list[Circle | Square] = Field(min_length=1)
    frame: Circle | Square
    label: int | str | None


MODELS = [Invoice, Node, Chain, Drawing]
PROMPT = "Invoice 4711 of 12 screws, due on 2027-03-04, to be paid."


@pytest.mark.parametrize("model", MODELS)
def test_parse_gives_a_valid_model(model: type[BaseModel], mock_openai: MockOpenAI) -> None:
    with openai.OpenAI() as client:
        answer = client.chat.completions.parse(
            model="gpt-4o",
            messages=[{"role": "user", "content": PROMPT}],
            response_format=model,
        )
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, model)
    assert model.model_validate(parsed.model_dump()) == parsed
    assert mock_openai.requests[0].facts.response_format == ("json_schema", model.__name__)


@pytest.mark.parametrize("model", MODELS)
def test_parse_of_responses_gives_a_valid_model(
    model: type[BaseModel], mock_openai: MockOpenAI
) -> None:
    with openai.OpenAI() as client:
        answer = client.responses.parse(model="gpt-4o", input=PROMPT, text_format=model)
    assert isinstance(answer.output_parsed, model)


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_of_structured_output_is_valid_at_its_end(
    model: type[BaseModel], mock_openai: MockOpenAI
) -> None:
    with openai.OpenAI() as client:
        with client.chat.completions.stream(
            model="gpt-4o",
            messages=[{"role": "user", "content": PROMPT}],
            response_format=model,
        ) as stream:
            final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, model)


def test_parsed_tools_have_valid_arguments(mock_openai: MockOpenAI) -> None:
    with openai.OpenAI() as client:
        answer = client.chat.completions.parse(
            model="gpt-4o",
            messages=[{"role": "user", "content": PROMPT}],
            tools=[openai.pydantic_function_tool(Invoice), openai.pydantic_function_tool(Node)],
            tool_choice="required",
        )
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Invoice)


def test_a_scripted_object_is_parsed(mock_openai: MockOpenAI) -> None:
    chain = {"value": 1, "rest": {"value": 2, "rest": None}}
    mock_openai.reply(json=chain, when={"response_format": {"name": "Chain"}})
    with openai.OpenAI() as client:
        answer = client.chat.completions.parse(
            model="gpt-4o", messages=[{"role": "user", "content": "x"}], response_format=Chain
        )
    parsed = answer.choices[0].message.parsed
    assert parsed is not None
    assert parsed.model_dump() == chain


def test_a_scripted_refusal_is_a_refusal(mock_openai: MockOpenAI) -> None:
    mock_openai.reply(refusal="I cannot do that.")
    with openai.OpenAI() as client:
        answer = client.chat.completions.parse(
            model="gpt-4o", messages=[{"role": "user", "content": "x"}], response_format=Chain
        )
    message = answer.choices[0].message
    assert (message.refusal, message.parsed) == ("I cannot do that.", None)


def test_retries_pass_a_429_that_ends(mock_openai: MockOpenAI) -> None:
    mock_openai.rule(
        [{"error": {"name": "rate_limit", "retry_after": 0.01}}, {"error": 503}, {"text": "Done."}]
    )
    with openai.OpenAI(max_retries=3) as client:
        answer = client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "x"}]
        )
    assert answer.choices[0].message.content == "Done."
    assert [request.status for request in mock_openai.requests] == [429, 503, 200]
    counts = [request.headers.get("x-stainless-retry-count") for request in mock_openai.requests]
    assert counts == ["0", "1", "2"]


def test_retries_end_with_the_error_if_it_does_not(mock_openai: MockOpenAI) -> None:
    mock_openai.fail(429, retry_after=0.01)
    with openai.OpenAI(max_retries=2) as client:
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": "x"}]
            )
    assert len(mock_openai.requests) == 3


def test_many_streams_at_once_keep_apart(mock_openai: MockOpenAI) -> None:
    mock_openai.reply("Stream {number} ends here.", when={"message": {"regex": r"(?P<number>\d+)"}})

    async def streamed(client: openai.AsyncOpenAI, number: int) -> str:
        chunks = await client.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": f"This is stream {number}"}],
            stream=True,
            extra_headers={"x-mock-words-per-second": "40"},
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def all_streams() -> list[str]:
        async with openai.AsyncOpenAI() as client:
            return await asyncio.gather(*(streamed(client, number) for number in range(STREAMS)))

    texts = asyncio.run(all_streams())
    assert texts == [f"Stream {number} ends here." for number in range(STREAMS)]
