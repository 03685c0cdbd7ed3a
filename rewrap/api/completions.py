"""The legacy completions API in front of chat backends: each prompt is one message of the user.

Imports no backend. Source: OpenAI's OpenAPI document 2.3.0. A chat template wraps the prompt, so a
translated backend cannot continue it, fill in its middle or repeat it.
"""

from collections.abc import Callable
from contextlib import aclosing
from copy import copy

import orjson

from rewrap.api.chat import EVENT_STREAM, complete_usage
from rewrap.api.checks import (
    Check,
    check_stop,
    check_stream_options,
    invalid,
    missing,
    number,
    typed,
    wrong_type,
)
from rewrap.ids import random_hex
from rewrap.structs import struct
from rewrap.types import (
    APIError,
    ChatRequest,
    Delta,
    Deltas,
    JSONObject,
    ResponseInfo,
    size_of,
    usage,
    words,
)

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 128
SAME_NAME = (
    "model", "frequency_penalty", "logit_bias", "max_tokens", "n", "presence_penalty", "seed",
    "stop", "stream", "stream_options", "temperature", "top_p", "user",
)  # fmt: skip
LOGPROB_LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
FINISH_REASONS = ("stop", "length", "content_filter")
CHECKS: dict[str, Check] = {
    "best_of": number(0, 20, int),
    "echo": typed(bool),
    "logprobs": number(0, 5, int),
    "max_tokens": number(0, 2**53, int),
    "n": number(1, 128, int),
    "stop": check_stop,
    "stream": typed(bool),
    "stream_options": check_stream_options,
    "suffix": typed(str),
}


@struct(frozen=True, slots=True)
class CompletionRequest:
    """A legacy request: one chat payload for each prompt."""

    prompts: list[str]
    payloads: list[JSONObject]
    n: int = 1  # choices of each prompt
    echo: bool = False  # the choices begin with the prompt
    include_usage: bool = False  # in the stream


def parse_completion(payload: JSONObject, *, mock: bool = False) -> CompletionRequest:
    """Chat payloads for a legacy request. Raises APIError.

    Only the mock repeats a prompt, fills in, takes token ids, and picks the best of several.
    """
    for name, check in CHECKS.items():
        if payload.get(name) is not None:
            check(name, payload[name])
    n = payload.get("n") or 1
    check_best_of(payload, n)
    if not mock:
        refuse_untranslatable(payload)
    prompts = parse_prompts(payload.get("prompt"), mock)
    common = {name: payload[name] for name in SAME_NAME if payload.get(name) is not None}
    common.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
    if payload.get("logprobs") is not None:
        common |= {"logprobs": True, "top_logprobs": payload["logprobs"]}
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return CompletionRequest(
        prompts,
        [{**common, "messages": conversation} for conversation in messages],
        n,
        echo=payload.get("echo") is True,
        include_usage=bool((payload.get("stream_options") or {}).get("include_usage")),
    )


def check_best_of(payload: JSONObject, n: int) -> None:
    best_of = payload.get("best_of")
    if not best_of:
        return
    if best_of < n:
        raise invalid("'best_of' must be at least 'n'.", "best_of", "invalid_value")
    if payload.get("stream") and best_of > 1:
        raise invalid("'best_of' cannot be used with 'stream'.", "best_of", "invalid_value")


def refuse_untranslatable(payload: JSONObject) -> None:
    refused = {
        "suffix": bool(payload.get("suffix")),
        "echo": payload.get("echo") is True,
        "best_of": (payload.get("best_of") or 1) > 1,
    }
    for name, is_used in refused.items():
        if is_used:
            raise unsupported(name, f"'{name}' needs a completions model; this is a chat backend.")


def unsupported(param: str, message: str) -> APIError:
    return invalid(message, param, "unsupported_parameter")


def parse_prompts(value: object, mock: bool) -> list[str]:
    """The prompts as texts. Token ids become words, which is what the mock counts as tokens."""
    if value is None:
        raise missing("prompt")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise wrong_type("prompt", "one of a string, array of strings or array of tokens", value)
    if is_tokens(value):
        value = [value]
    if len(value) > MAX_PROMPTS:
        message = f"Invalid 'prompt': expected at most {MAX_PROMPTS} prompts, but got {len(value)}."
        raise invalid(message, "prompt", "array_above_max_length")
    return [prompt_text(prompt, f"prompt[{n}]", mock) for n, prompt in enumerate(value)]


def prompt_text(prompt: object, where: str, mock: bool) -> str:
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not is_tokens(prompt):
        raise wrong_type(where, "one of a string or array of tokens", prompt)
    if not mock:
        raise unsupported("prompt", "Token ids cannot be sent to a chat backend: send text.")
    return " ".join(map(str, prompt))


def is_tokens(value: list[object]) -> bool:
    return bool(value) and all(type(token) is int for token in value)


async def all_prompts(
    request: CompletionRequest,
    info: ResponseInfo,
    stream: Callable[[int, ResponseInfo], Deltas],
) -> Deltas:
    """The Deltas of all prompts, one prompt after the other; `index` counts over all choices.

    `stream(position, info)` starts the chat of one prompt. `info` has the facts of the first reply,
    and the usage of all.
    """
    for position in range(len(request.prompts)):
        part = info
        if position:
            part = copy(info)
            part.headers = []
            part.dropped = []
            part.usage = None
            part.prompt_bytes = 0
        size = 0
        async with aclosing(stream(position, part)) as deltas:
            async for delta in deltas:
                delta.index += position * request.n
                size += size_of(delta.content)
                yield delta
        complete_usage(part, size)
        if position:
            info.usage = sum_of(info.usage, part.usage)


def sum_of(one: JSONObject | None, other: JSONObject | None) -> JSONObject:
    counts = (one or {}, other or {})
    return usage(
        sum([count.get("prompt_tokens", 0) for count in counts]),
        sum([count.get("completion_tokens", 0) for count in counts]),
    )


class CompletionRendering:
    """The rendering of a legacy request: `text_completion` chunks, or one object."""

    headers = EVENT_STREAM

    def __init__(
        self, completion: CompletionRequest, request: ChatRequest, info: ResponseInfo
    ) -> None:
        self.completion = completion
        self.info = info
        self.size = 0  # bytes of all replies
        self.offsets: dict[int, int] = {}  # characters of each choice so far
        self.fixed: JSONObject = {
            "id": f"cmpl-{random_hex()}",
            "object": "text_completion",
            "created": info.created,
            "model": request.model,
        }
        self.head = b"data: " + orjson.dumps(self.fixed)[:-1] + b',"choices":['
        self.tail = b"]}\n\n"
        if completion.include_usage:
            self.tail = b'],"usage":null}\n\n'

    def __call__(self, delta: Delta) -> bytes:
        chunks = [self.head + orjson.dumps(row) + self.tail for row in self.rows(delta)]
        return b"".join(chunks)

    def end(self) -> bytes:
        complete_usage(self.info, self.size)
        done = b"data: [DONE]\n\n"
        if not self.completion.include_usage:
            return done
        return self.head + b'],"usage":' + orjson.dumps(self.info.usage) + b"}\n\n" + done

    def ping(self) -> bytes:
        return b": ping\n\n"

    def failure(self, error: APIError) -> bytes:
        """The SDKs raise on an event with an `error`."""
        return b"data: " + orjson.dumps(error.body) + b"\n\n"

    def document(self, deltas: list[Delta]) -> JSONObject:
        """The `text_completion` object."""
        choices: dict[int, JSONObject] = {}
        texts: dict[int, list[str]] = {}
        for delta in deltas:
            for row in self.rows(delta):
                texts.setdefault(row["index"], []).append(row["text"])
                choice = choices.setdefault(row["index"], row)
                if choice is not row:
                    extend(choice, row)
        for index, choice in choices.items():
            choice["text"] = "".join(texts[index])
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        rows = [choices[index] for index in sorted(choices)]
        complete_usage(self.info, self.size)
        return {**self.fixed, "choices": rows, "usage": self.info.usage}

    def rows(self, delta: Delta) -> list[JSONObject]:
        """The entries of `choices` that a Delta makes, each for a chunk of its own."""
        index = delta.index
        rows = []
        if index not in self.offsets:
            self.offsets[index] = 0
            if self.completion.echo:
                prompt = self.completion.prompts[index // self.completion.n]
                rows.append(self.row(index, prompt))
        if delta.content or delta.logprobs:
            self.size += size_of(delta.content)
            logprobs = legacy_logprobs(delta, self.offsets[index])
            texts = [delta.content]
            if delta.whole and logprobs is None:
                texts = words(delta.content)
            rows += [self.row(index, text, logprobs) for text in texts]
        if delta.finish_reason:
            rows.append(self.row(index, "") | {"finish_reason": finish_reason(delta)})
        return rows

    def row(self, index: int, text: str, logprobs: JSONObject | None = None) -> JSONObject:
        self.offsets[index] += len(text)
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": None}


def legacy_logprobs(delta: Delta, offset: int) -> JSONObject | None:
    """Four parallel lists, where chat completions have one list of objects."""
    if not delta.logprobs:
        return None
    lists: dict[str, list[object]] = {name: [] for name in LOGPROB_LISTS}
    for row in delta.logprobs.get("content") or []:
        top = row.get("top_logprobs") or []
        lists["tokens"].append(row["token"])
        lists["token_logprobs"].append(row["logprob"])
        lists["top_logprobs"].append({entry["token"]: entry["logprob"] for entry in top})
        lists["text_offset"].append(offset)
        offset += len(row["token"])
    return lists


def extend(choice: JSONObject, row: JSONObject) -> None:
    """Put the next entry of a choice to the earlier ones, but for its text."""
    choice["finish_reason"] = row["finish_reason"]
    if choice["logprobs"] is None:
        choice["logprobs"] = row["logprobs"]
    elif row["logprobs"] is not None:
        for name in LOGPROB_LISTS:
            choice["logprobs"][name] += row["logprobs"][name]


def finish_reason(delta: Delta) -> str:
    """This API knows three; calls of tools end a reply like its own end."""
    if delta.finish_reason in FINISH_REASONS:
        return str(delta.finish_reason)
    return "stop"
