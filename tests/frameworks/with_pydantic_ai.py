"""pydantic-ai: tools, and its three ways to a typed output, against the mock."""

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelRetry, NativeOutput, PromptedOutput, ToolOutput, UsageLimits
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel

from rewrap.testing.mock_openai import MockOpenAI


class City(BaseModel):
    """A city."""

    name: str
    inhabitants: int = Field(gt=0)
    districts: list[str] = Field(min_length=1)


class Failure(BaseModel):
    """The reason why there is no city."""

    reason: str


LIMITS = UsageLimits(request_limit=5)
OUTPUTS = {
    "tool": ToolOutput(City),
    "native": NativeOutput(City),
    "prompted": PromptedOutput(City),
}


@pytest.fixture
def model(mock_openai: MockOpenAI) -> OpenAIChatModel:
    return OpenAIChatModel("gpt-4o")


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_typed_output_is_valid(kind: str, model: OpenAIChatModel) -> None:
    agent = Agent(model, output_type=OUTPUTS[kind])
    output = agent.run_sync("Bern has 130000 inhabitants", usage_limits=LIMITS).output
    assert isinstance(output, City)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_typed_output_comes_after_a_tool(
    kind: str, model: OpenAIChatModel, mock_openai: MockOpenAI
) -> None:
    agent = Agent(model, output_type=OUTPUTS[kind])
    called = []

    @agent.tool_plain
    def look_up(name: str) -> str:
        called.append(name)
        return "130000 inhabitants"

    result = agent.run_sync("Please look up 'Bern'", usage_limits=LIMITS)
    assert isinstance(result.output, City)
    assert called == ["Bern"]
    assert len(mock_openai.requests) == 2


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_stream_ends_with_a_valid_output(kind: str, model: OpenAIChatModel) -> None:
    agent = Agent(model, output_type=OUTPUTS[kind])
    result = agent.run_stream_sync("Bern has 130000 inhabitants", usage_limits=LIMITS)
    assert isinstance(result.get_output(), City)


@pytest.mark.parametrize("wrap", [ToolOutput, NativeOutput, PromptedOutput])
def test_one_of_several_outputs_is_valid(wrap: type, model: OpenAIChatModel) -> None:
    output: object = wrap([City, Failure])
    if wrap is ToolOutput:
        output = [City, Failure]
    agent = Agent(model, output_type=output)
    assert isinstance(agent.run_sync("A city, please", usage_limits=LIMITS).output, (City, Failure))


def test_a_text_comes_after_tools(model: OpenAIChatModel, mock_openai: MockOpenAI) -> None:
    agent = Agent(model, instructions="Be brief.")

    @agent.tool_plain
    def roll_dice() -> int:
        return 4

    result = agent.run_sync("Please roll dice", usage_limits=LIMITS)
    assert "4" in result.output
    mock_openai.assert_asked(tool_result="roll_dice", system={"contains": "brief"}, times=1)


def test_a_tool_that_asks_for_a_retry_ends_as_well(model: OpenAIChatModel) -> None:
    agent = Agent(model)
    called = []

    @agent.tool_plain(retries=3)
    def roll_dice() -> int:
        called.append(1)
        if len(called) == 1:
            raise ModelRetry("Roll again.")
        return 4

    agent.run_sync("Please roll dice", usage_limits=LIMITS)


def test_the_responses_api_gives_the_same(mock_openai: MockOpenAI) -> None:
    agent = Agent(OpenAIResponsesModel("gpt-4o"), output_type=NativeOutput(City))
    assert isinstance(agent.run_sync("Bern", usage_limits=LIMITS).output, City)
    assert mock_openai.requests[0].api == "responses"


def test_a_conversation_goes_on(model: OpenAIChatModel, mock_openai: MockOpenAI) -> None:
    mock_openai.reply("first", when={"turn": 1})
    mock_openai.reply("second", when={"turn": 2})
    agent = Agent(model)
    first = agent.run_sync("Hello")
    second = agent.run_sync("And now?", message_history=first.all_messages())
    assert (first.output, second.output) == ("first", "second")
