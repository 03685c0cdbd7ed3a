"""openai for Python in front of upstreams that answer errors in every form: the exception has their message."""

import os

from features import package_version, run
from openai import BadRequestError, OpenAI

sdk = OpenAI(base_url=f"{os.environ['BASE_URL']}/v1", api_key="sk-client-1234", max_retries=0)


def check(model: str, streamed: bool) -> None:
    asked = {"model": model, "stream": streamed}
    calls = {
        "chat": lambda: sdk.chat.completions.create(messages=MESSAGES, **asked),
        "responses": lambda: sdk.responses.create(input="Hi", **asked),
    }
    for name, call in calls.items():
        try:
            call()
        except BadRequestError as error:
            # The SDK puts the status before it, and a list of details names the place.
            if error.message.endswith(os.environ["ERRORS_MESSAGE"]):
                continue
            raise AssertionError(f"{model}, {name}: {error.message!r}") from error
        raise AssertionError(f"{model}, {name}: no exception")


MESSAGES = [{"role": "user", "content": "Hi"}]


def error() -> None:
    for model in os.environ["ERRORS_MODELS"].split(","):
        for streamed in (False, True):
            check(model, streamed)


run("openai (Python), forms of errors", package_version("openai"), [error])
