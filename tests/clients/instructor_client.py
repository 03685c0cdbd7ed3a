"""instructor: its modes for tools, JSON schemas and the Responses API, over openai 2."""

import instructor
from features import ADA, BASE, FAIL, KEY, MODEL, package_version, raises_refusal, run, same
from openai import OpenAI
from pydantic import BaseModel

sdk = OpenAI(base_url=BASE, api_key=KEY, max_retries=0)

ADA_DOCUMENT = {"name": "Ada", "age": 36}


class Person(BaseModel):
    name: str
    age: int


def asking(text: str) -> dict[str, object]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "response_model": Person,
        "max_retries": 0,
    }


def patched(mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(sdk, mode=mode)


def stream() -> None:
    client = patched(instructor.Mode.TOOLS)
    last = list(client.create_partial(**asking(ADA)))[-1]
    same(last.model_dump(), ADA_DOCUMENT)


def tools() -> None:
    found = patched(instructor.Mode.TOOLS).create(**asking(ADA))
    same(found.model_dump(), ADA_DOCUMENT)


def structured() -> None:
    client = patched(instructor.Mode.JSON_SCHEMA)
    same(client.create(**asking(ADA)).model_dump(), ADA_DOCUMENT)


def error() -> None:
    raises_refusal(lambda: patched(instructor.Mode.TOOLS).create(**asking(FAIL)))


def responses() -> None:
    client = patched(instructor.Mode.RESPONSES_TOOLS)
    same(client.create(**asking(ADA)).model_dump(), ADA_DOCUMENT)


run("instructor", package_version("instructor"), [stream, tools, structured, error, responses])
