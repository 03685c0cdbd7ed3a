"""The reply to `response_format: {"type": "json_object"}`, where no schema is declared.

Libraries without structured outputs write the schema, an example or the keys into the prompt.
Imports its own room and leaf files.
"""

import json
import re
from collections.abc import Iterator

from rewrap.mock.budget import JSON, Schema, SchemaError
from rewrap.mock.schema import value_for
from rewrap.regex import regex

READ = 200_000  # characters of the instructions that are searched
ATTEMPTS = 50
REPLY = 200  # characters
KEYS = regex(r"\b(?:keys?|fields?|properties|attributes)\b", re.IGNORECASE)
QUOTED = regex(r"[`'\"“]([A-Za-z_]\w{0,63})[`'\"”]")


def json_object_for(prompt: str, instructions: str = "") -> dict[str, JSON]:
    """A JSON object for the prompt: the same for the same arguments.

    It follows what the instructions (the other messages) or the prompt describe: a JSON Schema,
    quoted names in a sentence about keys or fields, or an example object. Otherwise it is
    `{"reply": <the beginning of the prompt>}`.
    """
    text = f"{instructions}\n{prompt}"[-READ:]
    found = [*objects_in(text)]
    for candidate in found:
        if is_schema(candidate):
            value = from_schema(candidate, prompt)
            if isinstance(value, dict):
                return value
    keys = keys_in(text)
    if keys:
        value = from_schema({"type": "object", "required": keys}, QUOTED.sub(r"\1", prompt))
        if isinstance(value, dict):
            return value
    for candidate in found:
        if candidate:
            return candidate
    return {"reply": prompt.strip()[:REPLY]}


def is_schema(candidate: Schema) -> bool:
    described = ("properties", "$defs", "$ref", "anyOf", "additionalProperties")
    return any(isinstance(candidate.get(keyword), dict | list | str) for keyword in described)


def from_schema(schema: JSON, prompt: str) -> JSON:
    try:
        return value_for(schema, prompt, fill=True)
    except SchemaError:
        return None


def objects_in(text: str) -> Iterator[Schema]:
    """The JSON objects that stand in the text, those inside others left out."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    # Each attempt may read the text to its end.
    for _ in range(ATTEMPTS):
        if start < 0:
            return
        end = start + 1
        try:
            value, end = decoder.raw_decode(text, start)
            yield value
        except (ValueError, RecursionError):
            pass
        start = text.find("{", end)


def keys_in(text: str) -> list[JSON]:
    """Quoted names in lines that speak of keys or fields."""
    lines = [line for line in text.splitlines() if KEYS.search(line)]
    found = [name for line in lines for name in QUOTED.findall(line)]
    return [*dict.fromkeys(found)][:ATTEMPTS]
