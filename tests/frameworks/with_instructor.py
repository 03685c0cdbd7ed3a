"""instructor in its modes of tools and JSON, against the mock."""

import instructor
import openai
import pytest
from pydantic import BaseModel, Field, field_validator

from rewrap.testing.mock_openai import MockOpenAI


class Item(BaseModel):
    name: str
    price: float = Field(ge=0)


class Order(BaseModel):
    """An order of a shop."""

    number: int
    items: list[Item] = Field(min_length=1)
    customer: str | None = None


class Even(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("the number must be even")
        return value


MODES = [
    instructor.Mode.TOOLS,
    instructor.Mode.JSON,
    instructor.Mode.JSON_SCHEMA,
]
PROMPT = [{"role": "user", "content": "Order 17: tea for 4.50"}]


def client_of(mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(), mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_the_model_is_valid_at_once(mode: instructor.Mode, mock_openai: MockOpenAI) -> None:
    order = client_of(mode).create(
        model="gpt-4o", messages=PROMPT, response_model=Order, max_retries=0
    )
    assert isinstance(order, Order)
    assert len(mock_openai.requests) == 1


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON])
def test_a_list_of_models_is_valid(mode: instructor.Mode, mock_openai: MockOpenAI) -> None:
    orders = client_of(mode).create(
        model="gpt-4o", messages=PROMPT, response_model=list[Order], max_retries=0
    )
    assert all(isinstance(order, Order) for order in orders)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON])
def test_partial_models_end_with_a_valid_one(
    mode: instructor.Mode, mock_openai: MockOpenAI
) -> None:
    parts = list(
        client_of(mode).create_partial(
            model="gpt-4o", messages=PROMPT, response_model=Order, max_retries=0
        )
    )
    assert Order.model_validate(parts[-1].model_dump())


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON])
def test_items_of_a_stream_are_valid(mode: instructor.Mode, mock_openai: MockOpenAI) -> None:
    items = list(
        client_of(mode).create_iterable(
            model="gpt-4o", messages=PROMPT, response_model=Item, max_retries=0
        )
    )
    assert items
    assert all(isinstance(item, Item) for item in items)


def test_a_validator_makes_it_ask_again(mock_openai: MockOpenAI) -> None:
    mock_openai.rule(
        [
            {"tool": "Even", "arguments": {"number": 3}},
            {"tool": "Even", "arguments": {"number": 4}},
        ],
        on_tool_result=True,
    )
    answer = client_of(instructor.Mode.TOOLS).create(
        model="gpt-4o", messages=PROMPT, response_model=Even, max_retries=2
    )
    assert answer.number == 4
    mock_openai.assert_asked(any_message={"contains": "must be even"}, times=1)
