"""LangChain: bound tools, and structured output in its three modes, against the mock."""

from typing import Literal

import pytest
from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

from rewrap.testing.mock_openai import MockOpenAI


class Person(BaseModel):
    """A person."""

    name: str = Field(description="The full name")
    age: int = Field(ge=0, le=150)
    role: Literal["admin", "guest"]
    tags: list[str]


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sun in {city}"


TOOLS = {"multiply": multiply, "get_weather": get_weather}


@pytest.fixture
def chat(mock_openai: MockOpenAI) -> ChatOpenAI:
    return ChatOpenAI(model="gpt-4o")


def looped(chat: ChatOpenAI, text: str, limit: int = 5) -> BaseMessage:
    """The agent loop of LangChain's documentation."""
    bound = chat.bind_tools(list(TOOLS.values()))
    messages: list[BaseMessage] = [HumanMessage(text)]
    for _ in range(limit):
        answer = bound.invoke(messages)
        messages.append(answer)
        if not answer.tool_calls:
            return answer
        for call in answer.tool_calls:
            result = TOOLS[call["name"]].invoke(call)
            assert isinstance(result, ToolMessage)
            messages.append(result)
    raise AssertionError("the loop did not end")


def test_a_loop_with_bound_tools_ends(chat: ChatOpenAI, mock_openai: MockOpenAI) -> None:
    assert "42" in looped(chat, "multiply 6 by 7").text
    assert len(mock_openai.requests) == 2


def test_two_tools_are_called_at_once(chat: ChatOpenAI, mock_openai: MockOpenAI) -> None:
    answer = looped(chat, "multiply 6 by 7, and get weather for 'Rome'")
    assert "42" in answer.text
    assert "sun in Rome" in answer.text


def test_a_named_tool_is_called(chat: ChatOpenAI) -> None:
    bound = chat.bind_tools(list(TOOLS.values()), tool_choice="get_weather")
    (call,) = bound.invoke("Hello").tool_calls
    assert call["name"] == "get_weather"


def test_a_streamed_call_is_whole(chat: ChatOpenAI) -> None:
    bound = chat.bind_tools(list(TOOLS.values()))
    chunks = list(bound.stream("multiply 12 by 3"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert [call["args"] for call in whole.tool_calls] == [{"a": 12, "b": 3}]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_a_valid_model(method: str, chat: ChatOpenAI) -> None:
    person = chat.with_structured_output(Person, method=method).invoke("Ann is 31 and an admin")
    assert isinstance(person, Person)
    assert (person.age, person.role) == (31, "admin")


def test_structured_output_in_json_mode_follows_the_prompt(chat: ChatOpenAI) -> None:
    schema = Person.model_json_schema()
    person = chat.with_structured_output(Person, method="json_mode").invoke(
        f"Answer in JSON by this schema: {schema}. Ann is 31 and an admin".replace("'", '"')
    )
    assert isinstance(person, Person)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_dict_as_schema_gives_a_dict(method: str, chat: ChatOpenAI) -> None:
    schema = Person.model_json_schema()
    structured = chat.with_structured_output(schema, method=method, strict=False)
    assert Person.model_validate(structured.invoke("Ann is 31 and an admin"))


def test_strict_structured_output_is_valid(chat: ChatOpenAI) -> None:
    structured = chat.with_structured_output(Person, method="function_calling", strict=True)
    assert isinstance(structured.invoke("Ann is 31"), Person)


def test_structured_output_keeps_the_raw_message(chat: ChatOpenAI) -> None:
    result = chat.with_structured_output(Person, include_raw=True).invoke("Ann is 31")
    assert result["parsing_error"] is None
    assert isinstance(result["parsed"], Person)


def test_embeddings_are_ranked_by_words(mock_openai: MockOpenAI) -> None:
    embeddings = OpenAIEmbeddings(model="text-embedding-3-small", check_embedding_ctx_length=False)
    one, other, far = embeddings.embed_documents(["a red apple", "one red apple", "42 trains"])

    def product(left: list[float], right: list[float]) -> float:
        return sum(a * b for a, b in zip(left, right, strict=True))

    assert product(one, other) > product(one, far)
