"""openai for Python: OpenAI."""

from features import (
    ADA,
    BASE,
    BREAK,
    BROKEN,
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
from openai import OpenAI
from pydantic import BaseModel

sdk = OpenAI(base_url=BASE, api_key=KEY, max_retries=0)
CHAT_TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": WEATHER_SCHEMA, "strict": True},
}
TOOL = {"type": "function", "name": "get_weather", "parameters": WEATHER_SCHEMA, "strict": True}


class Person(BaseModel):
    name: str
    age: int


def asking(text: str) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


def text() -> None:
    completion = sdk.chat.completions.create(**asking(HELLO))
    same(completion.choices[0].message.content, GREETING)


def stream() -> None:
    chunks = list(sdk.chat.completions.create(**asking(HELLO), stream=True))
    same("".join(chunk.choices[0].delta.content or "" for chunk in chunks), GREETING)
    with sdk.chat.completions.stream(**asking(HELLO)) as events:
        same("".join(e.delta for e in events if e.type == "content.delta"), GREETING)
        same(events.get_final_completion().choices[0].message.content, GREETING)


def tools() -> None:
    for streamed in (False, True):
        asked = asking(WEATHER) | {"tools": [CHAT_TOOL]}
        if streamed:
            with sdk.chat.completions.stream(**asked) as events:
                message = events.get_final_completion().choices[0].message
        else:
            message = sdk.chat.completions.create(**asked).choices[0].message
        [call] = message.tool_calls
        same(call.function.arguments, '{"city":"Paris"}')
        result = {"role": "tool", "tool_call_id": call.id, "content": get_weather("Paris")}
        turn = message.model_dump(include={"role", "content"}) | {
            "tool_calls": [call.model_dump(include={"id", "type", "function"})]
        }
        asked["messages"] = [*asked["messages"], turn, result]
        same(sdk.chat.completions.create(**asked).choices[0].message.content, FORECAST)


def structured() -> None:
    completion = sdk.chat.completions.parse(**asking(ADA), response_format=Person)
    same(completion.choices[0].message.parsed, Person(name="Ada", age=36))
    with sdk.chat.completions.stream(**asking(ADA), response_format=Person) as events:
        parsed = events.get_final_completion().choices[0].message.parsed
    same(parsed, Person(name="Ada", age=36))


def error() -> None:
    raises_refusal(lambda: sdk.chat.completions.create(**asking(FAIL)))
    raises_refusal(lambda: sdk.chat.completions.create(**asking(FAIL), stream=True))
    raises_refusal(lambda: sdk.responses.create(model=MODEL, input=FAIL))
    broken = sdk.chat.completions.create(**asking(BREAK), stream=True)
    raises_refusal(lambda: list(broken), BROKEN)
    last = list(sdk.responses.create(model=MODEL, input=BREAK, stream=True))[-1]
    same((last.type, BROKEN in last.response.error.message), ("response.failed", True))


def responses() -> None:
    first = sdk.responses.create(model=MODEL, input=HELLO)
    same(first.output_text, GREETING)
    with sdk.responses.stream(model=MODEL, input=HELLO) as events:
        same(events.get_final_response().output_text, GREETING)
    call = sdk.responses.create(model=MODEL, input=WEATHER, tools=[TOOL])
    output = {
        "type": "function_call_output",
        "call_id": call.output[0].call_id,
        "output": get_weather("Paris"),
    }
    asked = {"model": MODEL, "input": [output], "tools": [TOOL]}
    last = sdk.responses.create(**asked, previous_response_id=call.id)
    same(last.output_text, FORECAST)
    parsed = sdk.responses.parse(model=MODEL, input=ADA, text_format=Person)
    same(parsed.output_parsed, Person(name="Ada", age=36))
    same(sdk.responses.retrieve(first.id).output_text, GREETING)


run(
    "openai (Python)",
    package_version("openai"),
    [text, stream, tools, structured, error, responses],
)
