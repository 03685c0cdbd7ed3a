"""Requests and answers of /v1/embeddings. Makes no vectors itself.

Source: OpenAI's OpenAPI document 2.3.0. The openai packages ask for base64 when the caller names no
format, and the Node package cannot read a list then.
"""

import sys
from array import array
from base64 import b64encode
from collections.abc import Iterable

from rewrap.api.checks import (
    check_model,
    invalid,
    missing,
    number,
    typed,
    wrong_type,
    wrong_value,
)
from rewrap.structs import struct
from rewrap.types import APIError, JSONObject, estimated_tokens, size_of

MAX_INPUTS = 2048
MAX_DIMENSIONS = 4096
MAX_INPUT_TOKENS = 8192
MAX_TOTAL_TOKENS = 300_000
EXPECTED = "one of a string, array of strings or array of tokens"

EmbeddingInput = str | list[int]  # a text, or its token ids


@struct(frozen=True, slots=True)
class EmbeddingRequest:
    """A checked request. `dimensions` 0: the model's own number."""

    model: str
    inputs: list[EmbeddingInput]
    dimensions: int
    base64: bool
    tokens: int  # an estimate


def parse_embeddings(payload: JSONObject, default_model: str = "") -> EmbeddingRequest:
    """A request with OpenAI's limits. Raises APIError."""
    model = payload.get("model") or default_model
    if not model:
        raise invalid("you must provide a model parameter", None, None)
    check_model("model", model)
    encoding = payload.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise wrong_value("encoding_format", encoding, ("float", "base64"))
    dimensions = payload.get("dimensions")
    if dimensions is not None:
        number(1, MAX_DIMENSIONS, int)("dimensions", dimensions)
    if payload.get("user") is not None:
        typed(str)("user", payload["user"])
    inputs = parse_inputs(payload.get("input"))
    tokens = [tokens_of(text) for text in inputs]
    for position, count in enumerate(tokens):
        if count > MAX_INPUT_TOKENS:
            raise too_many_tokens(f"input[{position}]", count, MAX_INPUT_TOKENS)
    total = sum(tokens)
    if total > MAX_TOTAL_TOKENS:
        raise too_many_tokens("input", total, MAX_TOTAL_TOKENS)
    return EmbeddingRequest(model, inputs, dimensions or 0, encoding == "base64", total)


def parse_inputs(value: object) -> list[EmbeddingInput]:
    """The inputs; a list of integers is one input. Raises APIError."""
    if value is None:
        raise missing("input")
    if isinstance(value, str):
        return [checked_input("input", value)]
    if not isinstance(value, list):
        raise wrong_type("input", EXPECTED, value)
    if not value:
        message = "Invalid 'input': empty array. Expected an array with minimum length 1."
        raise invalid(message, "input", "empty_array")
    if type(value[0]) is int:
        return [checked_input("input", value)]
    if len(value) > MAX_INPUTS:
        message = (
            f"Invalid 'input': array too long. Expected an array with maximum length {MAX_INPUTS}, "
            f"but got an array with length {len(value)} instead."
        )
        raise invalid(message, "input", "array_above_max_length")
    return [checked_input(f"input[{position}]", row) for position, row in enumerate(value)]


def checked_input(param: str, value: object) -> EmbeddingInput:
    if isinstance(value, str) and value:
        return value
    if value in ("", []):
        noun = "string" if value == "" else "array"
        raise invalid(
            f"Invalid '{param}': input cannot be an empty {noun}.", param, "invalid_value"
        )
    if not isinstance(value, list):
        raise wrong_type(param, EXPECTED, value)
    if not all(type(token) is int and token >= 0 for token in value):
        raise wrong_type(param, "an array of token ids", value)
    return value


def tokens_of(value: EmbeddingInput) -> int:
    if isinstance(value, str):
        return estimated_tokens(size_of(value))
    return len(value)


def too_many_tokens(param: str, count: int, maximum: int) -> APIError:
    message = f"Invalid '{param}': maximum context length is {maximum} tokens, but got {count}."
    return invalid(message, param, "context_length_exceeded")


def embedding_list(
    request: EmbeddingRequest, vectors: Iterable[list[float]], tokens: int | None = None
) -> JSONObject:
    """The answer to a request; `tokens` as the upstream counted them."""
    count = request.tokens if tokens is None else tokens
    data = [
        {"object": "embedding", "index": index, "embedding": encoded_vector(vector, request.base64)}
        for index, vector in enumerate(vectors)
    ]
    return {
        "object": "list",
        "data": data,
        "model": request.model,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def encoded_vector(vector: list[float], base64: bool) -> str | list[float]:
    """A list, or little-endian float32 in base64."""
    if not base64:
        return vector
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return b64encode(numbers.tobytes()).decode()
