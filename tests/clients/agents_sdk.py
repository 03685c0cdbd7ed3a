"""OpenAI Agents SDK: by chat completions and by the Responses API."""

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from features import (
    ADA,
    BASE,
    FAIL,
    FORECAST,
    GREETING,
    HELLO,
    KEY,
    MODEL,
    WEATHER,
    get_weather,
    package_version,
    raises_refusal_async,
    run,
    same,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)


class Person(BaseModel):
    name: str
    age: int


def agent(kind: type = OpenAIChatCompletionsModel, **options: object) -> Agent:
    """One for each feature, as each has an event loop of its own."""
    sdk = AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0)
    return Agent(name="agent", model=kind(MODEL, openai_client=sdk), **options)


async def answer(which: Agent, prompt: str) -> object:
    return (await Runner.run(which, prompt)).final_output


async def streamed(which: Agent) -> str:
    result = Runner.run_streamed(which, HELLO)
    pieces = []
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            pieces.append(event.data.delta)
    same(result.final_output, "".join(pieces))
    return "".join(pieces)


async def text() -> None:
    same(await answer(agent(), HELLO), GREETING)


async def stream() -> None:
    same(await streamed(agent()), GREETING)


async def tools() -> None:
    same(await answer(agent(tools=[function_tool(get_weather)]), WEATHER), FORECAST)


async def structured() -> None:
    same(await answer(agent(output_type=Person), ADA), Person(name="Ada", age=36))


async def error() -> None:
    await raises_refusal_async(lambda: answer(agent(), FAIL))
    await raises_refusal_async(lambda: answer(agent(OpenAIResponsesModel), FAIL))


async def responses() -> None:
    kind = OpenAIResponsesModel
    same(await answer(agent(kind), HELLO), GREETING)
    same(await streamed(agent(kind)), GREETING)
    same(await answer(agent(kind, tools=[function_tool(get_weather)]), WEATHER), FORECAST)
    same(await answer(agent(kind, output_type=Person), ADA), Person(name="Ada", age=36))


run(
    "Agents SDK",
    package_version("openai-agents"),
    [text, stream, tools, structured, error, responses],
)
