"""openai for Python: AsyncOpenAI, and AzureOpenAI on Azure's paths."""

from features import (
    ADA,
    BASE,
    FAIL,
    GREETING,
    HELLO,
    KEY,
    MODEL,
    URL,
    WEATHER,
    WEATHER_SCHEMA,
    package_version,
    raises_refusal,
    raises_refusal_async,
    run,
    same,
)
from openai import AsyncOpenAI, AzureOpenAI
from pydantic import BaseModel

TOOL = {"type": "function", "name": "get_weather", "parameters": WEATHER_SCHEMA}
CHAT_TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": WEATHER_SCHEMA},
}


class Person(BaseModel):
    name: str
    age: int


def asking(text: str) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


def new_client() -> AsyncOpenAI:
    """One for each feature, as each has an event loop of its own."""
    return AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0)


async def text() -> None:
    async with new_client() as sdk:
        completion = await sdk.chat.completions.create(**asking(HELLO))
        same(completion.choices[0].message.content, GREETING)


async def stream() -> None:
    async with new_client() as sdk:
        chunks = await sdk.chat.completions.create(**asking(HELLO), stream=True)
        found = [chunk.choices[0].delta.content or "" async for chunk in chunks]
        same("".join(found), GREETING)
        async with sdk.chat.completions.stream(**asking(HELLO)) as events:
            final = await events.get_final_completion()
        same(final.choices[0].message.content, GREETING)


async def tools() -> None:
    async with new_client() as sdk:
        asked = asking(WEATHER) | {"tools": [CHAT_TOOL]}
        message = (await sdk.chat.completions.create(**asked)).choices[0].message
        same(message.tool_calls[0].function.arguments, '{"city":"Paris"}')


async def structured() -> None:
    async with new_client() as sdk:
        completion = await sdk.chat.completions.parse(**asking(ADA), response_format=Person)
        same(completion.choices[0].message.parsed, Person(name="Ada", age=36))


async def error() -> None:
    async with new_client() as sdk:
        await raises_refusal_async(lambda: sdk.chat.completions.create(**asking(FAIL)))


async def responses() -> None:
    async with new_client() as sdk:
        same((await sdk.responses.create(model=MODEL, input=HELLO)).output_text, GREETING)
        async with sdk.responses.stream(model=MODEL, input=WEATHER, tools=[TOOL]) as events:
            final = await events.get_final_response()
        same(final.output[0].arguments, '{"city":"Paris"}')


run(
    "openai (Python, async)",
    package_version("openai"),
    [text, stream, tools, structured, error, responses],
)

azure = AzureOpenAI(azure_endpoint=URL, api_version="2024-10-21", api_key=KEY, max_retries=0)


def azure_text() -> None:
    completion = azure.chat.completions.create(**asking(HELLO))
    same(completion.choices[0].message.content, GREETING)


def azure_stream() -> None:
    chunks = azure.chat.completions.create(**asking(HELLO), stream=True)
    same("".join(chunk.choices[0].delta.content or "" for chunk in chunks), GREETING)


def azure_tools() -> None:
    asked = asking(WEATHER) | {"tools": [CHAT_TOOL]}
    message = azure.chat.completions.create(**asked).choices[0].message
    same(message.tool_calls[0].function.arguments, '{"city":"Paris"}')


def azure_structured() -> None:
    completion = azure.chat.completions.parse(**asking(ADA), response_format=Person)
    same(completion.choices[0].message.parsed, Person(name="Ada", age=36))


def azure_error() -> None:
    raises_refusal(lambda: azure.chat.completions.create(**asking(FAIL)))


def azure_responses() -> None:
    same(azure.responses.create(model=MODEL, input=HELLO).output_text, GREETING)


AZURE = [azure_text, azure_stream, azure_tools, azure_structured, azure_error, azure_responses]
run("openai (Python, Azure)", package_version("openai"), AZURE)
