"""The frame of a client program: it runs the features of one client, and prints a line of JSON for each.

A program reads `BASE_URL` (http://127.0.0.1:port, without `/v1`). It imports one client and the standard library.
"""

import asyncio
import inspect
import json
import os
import time
import traceback
from collections.abc import Callable, Iterable
from importlib.metadata import version

URL = os.environ["BASE_URL"]
BASE = f"{URL}/v1"
KEY = "sk-client-1234"
MODEL = "mock-model"

# rules.toml answers these.
HELLO = "Please say hello."
GREETING = "Hello from the mock."
WEATHER = "How is the weather in Paris?"
SUNNY = "sunny in Paris"
FORECAST = "The weather: sunny in Paris"
ADA = "Ada is 36 years old."
FAIL = "Please fail."
REFUSAL = "The backend refuses this."
BREAK = "Please break off."  # an error in the middle of a stream
BROKEN = "The server had an error while processing your request."
WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def same(found: object, expected: object) -> None:
    if found != expected:
        raise AssertionError(f"got {found!r}, expected {expected!r}")


def raises_refusal(call: Callable[[], object], message: str = REFUSAL) -> None:
    """The exception of a client contains the message of the backend."""
    try:
        call()
    except Exception as error:
        if message in str(error):
            return
        raise AssertionError(f"the exception has another message: {error!r}") from error
    raise AssertionError("no exception")


async def raises_refusal_async(call: Callable[[], object]) -> None:
    try:
        result = call()
        if inspect.isawaitable(result):
            await result
    except Exception as error:
        if REFUSAL in str(error):
            return
        raise AssertionError(f"the exception has another message: {error!r}") from error
    raise AssertionError("no exception")


def package_version(package: str) -> str:
    return f"{package} {version(package)}"


def run(client: str, version_text: str, features: Iterable[Callable[[], object]]) -> None:
    """Run each feature. The last word of a function's name is its column in the table."""
    for feature in features:
        start = time.monotonic()
        failure = ""
        try:
            result = feature()
            if inspect.isawaitable(result):
                asyncio.run(completed(result))
        except Exception:
            failure = traceback.format_exc()
        line = {
            "client": client,
            "version": version_text,
            "feature": feature.__name__.rsplit("_", 1)[-1],
            "failure": failure,
            "seconds": round(time.monotonic() - start, 2),
        }
        print(json.dumps(line), flush=True)


async def completed(result: object) -> None:
    await result  # type: ignore[misc]
