"""The OpenAI Agents SDK in chat mode: its agent loops end by themselves, and their values validate."""

import agents
import openai
import pytest
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool
from pydantic import BaseModel

from rewrap.testing.mock_openai import MockOpenAI

agents.set_tracing_disabled(True)


class Report(BaseModel):
    city: str
    degrees: int
    windy: bool


@function_tool
def get_weather(city: str, days: int) -> str:
    """The weather of a city."""
    return f"{city} has sun for {days} days"


@function_tool
def get_time(zone: str) -> str:
    """The time of a zone."""
    return f"noon in {zone}"


@pytest.fixture
def model(mock_openai: MockOpenAI) -> OpenAIChatCompletionsModel:
    return OpenAIChatCompletionsModel("gpt-4o", openai_client=openai.AsyncOpenAI())


def test_an_agent_calls_a_tool_and_ends(
    model: OpenAIChatCompletionsModel, mock_openai: MockOpenAI
) -> None:
    agent = Agent("Weather", instructions="Be brief.", model=model, tools=[get_weather, get_time])
    result = Runner.run_sync(agent, "Use get_weather for 'Rome' and 3 days", max_turns=5)
    assert "Rome has sun for 3 days" in result.final_output
    assert len(mock_openai.requests) == 2
    mock_openai.assert_asked(tool_result="get_weather", system={"contains": "brief"})


def test_an_agent_calls_two_tools_at_once(
    model: OpenAIChatCompletionsModel, mock_openai: MockOpenAI
) -> None:
    agent = Agent("Weather", model=model, tools=[get_weather, get_time])
    result = Runner.run_sync(agent, "Use get_weather and get_time", max_turns=5)
    assert "has sun for" in result.final_output
    assert "noon in" in result.final_output
    assert len(mock_openai.requests) == 2


def test_a_required_tool_is_called_once(
    model: OpenAIChatCompletionsModel, mock_openai: MockOpenAI
) -> None:
    settings = ModelSettings(tool_choice="required")
    agent = Agent("Weather", model=model, tools=[get_weather], model_settings=settings)
    result = Runner.run_sync(agent, "Hello", max_turns=5)
    assert "has sun for" in result.final_output


def test_an_agent_gives_a_typed_output_after_a_tool(
    model: OpenAIChatCompletionsModel, mock_openai: MockOpenAI
) -> None:
    agent = Agent("Weather", model=model, tools=[get_weather], output_type=Report)
    result = Runner.run_sync(agent, "Call get_weather for Rome", max_turns=5)
    assert isinstance(result.final_output, Report)
    assert len(mock_openai.requests) == 2


def test_an_agent_hands_over_to_another(
    model: OpenAIChatCompletionsModel, mock_openai: MockOpenAI
) -> None:
    expert = Agent("Expert", model=model, tools=[get_weather])
    triage = Agent("Triage", model=model, handoffs=[expert])
    result = Runner.run_sync(triage, "Please transfer to expert", max_turns=5)
    assert result.last_agent is expert


def test_a_streamed_agent_ends(model: OpenAIChatCompletionsModel, mock_openai: MockOpenAI) -> None:
    import asyncio

    async def run() -> str:
        agent = Agent("Weather", model=model, tools=[get_weather])
        result = Runner.run_streamed(agent, "Use get_weather for 'Oslo' and 2 days", max_turns=5)
        async for _ in result.stream_events():
            pass
        return str(result.final_output)

    assert "Oslo has sun for 2 days" in asyncio.run(run())


def test_rules_script_an_agent(model: OpenAIChatCompletionsModel, mock_openai: MockOpenAI) -> None:
    mock_openai.reply(tool="get_weather", arguments={"city": "Bern", "days": 1})
    mock_openai.reply("It is: {tool_result}.", when={"tool_result": "get_weather"})
    agent = Agent("Weather", model=model, tools=[get_weather])
    result = Runner.run_sync(agent, "How is it in Bern?", max_turns=5)
    assert result.final_output == "It is: Bern has sun for 1 days."


def test_rules_script_an_endless_agent(
    model: OpenAIChatCompletionsModel, mock_openai: MockOpenAI
) -> None:
    mock_openai.rule(
        {"tool": "get_weather", "arguments": {"city": "Bern", "days": 1}}, on_tool_result=True
    )
    agent = Agent("Weather", model=model, tools=[get_weather])
    with pytest.raises(agents.MaxTurnsExceeded):
        Runner.run_sync(agent, "How is it in Bern?", max_turns=4)
    assert len(mock_openai.requests) == 4
