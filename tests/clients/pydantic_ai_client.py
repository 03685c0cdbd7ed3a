"""pydantic-ai: OpenAIChatModel and OpenAIResponsesModel."""

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
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Person(BaseModel):
    name: str
    age: int


def agent(kind: type = OpenAIChatModel, **options: object) -> Agent:
    """One for each feature, as each has an event loop of its own."""
    return Agent(kind(MODEL, provider=OpenAIProvider(base_url=BASE, api_key=KEY)), **options)


async def streamed(which: Agent) -> str:
    async with which.run_stream(HELLO) as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
    return "".join(pieces)


async def text() -> None:
    same((await agent().run(HELLO)).output, GREETING)


async def stream() -> None:
    same(await streamed(agent()), GREETING)


async def tools() -> None:
    same((await agent(tools=[get_weather]).run(WEATHER)).output, FORECAST)


async def structured() -> None:
    for output in (Person, NativeOutput(Person)):  # as a tool, and as a JSON schema
        same((await agent(output_type=output).run(ADA)).output, Person(name="Ada", age=36))


async def error() -> None:
    await raises_refusal_async(lambda: agent().run(FAIL))


async def responses() -> None:
    kind = OpenAIResponsesModel
    same((await agent(kind).run(HELLO)).output, GREETING)
    same(await streamed(agent(kind)), GREETING)
    same((await agent(kind, tools=[get_weather]).run(WEATHER)).output, FORECAST)
    found = await agent(kind, output_type=NativeOutput(Person)).run(ADA)
    same(found.output, Person(name="Ada", age=36))


run(
    "pydantic-ai",
    package_version("pydantic-ai-slim"),
    [text, stream, tools, structured, error, responses],
)
