"""LiteLLM as a client."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it is fetched from the network

import litellm
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
    WEATHER_SCHEMA,
    get_weather,
    package_version,
    raises_refusal,
    run,
    same,
)
from pydantic import BaseModel

COMMON = {"model": f"openai/{MODEL}", "api_base": BASE, "api_key": KEY, "num_retries": 0}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": WEATHER_SCHEMA},
}


class Person(BaseModel):
    name: str
    age: int


def ask(text: str, **options: object) -> object:
    messages = [{"role": "user", "content": text}]
    return litellm.completion(**{"messages": messages} | COMMON | options)


def text() -> None:
    same(ask(HELLO).choices[0].message.content, GREETING)


def stream() -> None:
    chunks = ask(HELLO, stream=True)
    same("".join(chunk.choices[0].delta.content or "" for chunk in chunks), GREETING)


def tools() -> None:
    turn = ask(WEATHER, tools=[TOOL]).choices[0].message
    [call] = turn.tool_calls
    same(json.loads(call.function.arguments), {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "content": get_weather("Paris")}
    messages = [{"role": "user", "content": WEATHER}, turn.model_dump(), result]
    same(ask("", messages=messages, tools=[TOOL]).choices[0].message.content, FORECAST)


def structured() -> None:
    found = ask(ADA, response_format=Person).choices[0].message.content
    same(Person.model_validate_json(found), Person(name="Ada", age=36))


def error() -> None:
    raises_refusal(lambda: ask(FAIL))
    raises_refusal(lambda: list(ask(FAIL, stream=True)))


def responses() -> None:
    answer = litellm.responses(input=HELLO, **COMMON)
    same(answer.output[0].content[0].text, GREETING)
    events = litellm.responses(input=HELLO, stream=True, **COMMON)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    same("".join(deltas), GREETING)


run("LiteLLM", package_version("litellm"), [text, stream, tools, structured, error, responses])
