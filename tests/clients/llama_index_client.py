"""LlamaIndex: OpenAILike, and OpenAIResponses of its OpenAI package."""

from features import (
    ADA,
    BASE,
    FAIL,
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
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


COMMON = {"model": MODEL, "api_base": BASE, "api_key": KEY, "max_retries": 0}
chat = OpenAILike(
    is_chat_model=True,
    is_function_calling_model=True,
    should_use_structured_outputs=True,
    **COMMON,
)
weather_tool = FunctionTool.from_defaults(get_weather)


def text() -> None:
    same(chat.complete(HELLO).text, GREETING)


def stream() -> None:
    same("".join(piece.delta or "" for piece in chat.stream_complete(HELLO)), GREETING)


def tools() -> None:
    result = chat.predict_and_call([weather_tool], user_msg=WEATHER)
    same(result.response, get_weather("Paris"))


def structured() -> None:
    found = chat.structured_predict(Person, PromptTemplate(ADA))
    same(found, Person(name="Ada", age=36))


def error() -> None:
    raises_refusal(lambda: chat.complete(FAIL))
    raises_refusal(lambda: list(chat.stream_complete(FAIL)))


def responses() -> None:
    llm = OpenAIResponses(context_window=8000, **COMMON)
    same(llm.complete(HELLO).text, GREETING)
    same("".join(piece.delta or "" for piece in llm.stream_complete(HELLO)), GREETING)


features = [text, stream, tools, structured, error, responses]
run("LlamaIndex", package_version("llama-index-llms-openai-like"), features)
