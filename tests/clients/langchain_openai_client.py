"""LangChain for Python: ChatOpenAI, by chat completions and by the Responses API."""

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
    get_weather,
    package_version,
    raises_refusal,
    run,
    same,
)
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def model(**options: object) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=BASE, api_key=KEY, max_retries=0, **options)


chat = model()
weather_tool = tool(get_weather)


def agent_loop(llm: ChatOpenAI) -> None:
    bound = llm.bind_tools([weather_tool])
    messages = [HumanMessage(WEATHER)]
    turn = bound.invoke(messages)
    same(turn.tool_calls[0]["args"], {"city": "Paris"})
    messages += [turn, weather_tool.invoke(turn.tool_calls[0])]
    same(bound.invoke(messages).text, FORECAST)


def text() -> None:
    same(chat.invoke(HELLO).content, GREETING)


def stream() -> None:
    same("".join(chunk.text for chunk in chat.stream(HELLO)), GREETING)


def tools() -> None:
    agent_loop(chat)


def structured() -> None:
    same(chat.with_structured_output(Person).invoke(ADA), Person(name="Ada", age=36))


def error() -> None:
    raises_refusal(lambda: chat.invoke(FAIL))
    raises_refusal(lambda: list(chat.stream(FAIL)))
    raises_refusal(lambda: list(chat.stream(BREAK)), BROKEN)


def responses() -> None:
    llm = model(use_responses_api=True)
    same(llm.invoke(HELLO).text, GREETING)
    same("".join(chunk.text for chunk in llm.stream(HELLO)), GREETING)
    agent_loop(llm)
    same(llm.with_structured_output(Person).invoke(ADA), Person(name="Ada", age=36))


features = [text, stream, tools, structured, error, responses]
run("LangChain (Python)", package_version("langchain-openai"), features)
