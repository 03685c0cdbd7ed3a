"""JSON of upstreams, with the mistakes that some of them make. Imports one leaf file."""

import json
import math

import orjson

from rewrap import large_json
from rewrap.regex import regex

SURROGATE = regex("[\ud800-\udfff]")


def loads(data: bytes | str, *, keep_halves: bool = False) -> object:
    """A JSON value. Raises ValueError.

    NaN and infinite numbers become null, and lone surrogates become U+FFFD. The usual case costs no more than orjson.
    `keep_halves` keeps lone surrogates: in a stream, the other half may be in the next event.
    """
    try:
        return large_json.loads_large(data) if isinstance(data, bytes) else orjson.loads(data)
    except ValueError:
        if isinstance(data, bytes):
            data = data.decode()
        try:
            value = json.loads(data)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        return repaired(value, keep_halves=keep_halves)


def repaired(value: object, *, keep_halves: bool = False) -> object:
    """A value that JSON can hold. Works through a list of containers, so that its depth does not matter."""
    root = [value]
    pending: list[list[object] | dict[str, object]] = [root]
    while pending:
        container = pending.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            item = repaired_scalar(container[key], keep_halves)  # type: ignore[index]
            container[key] = item  # type: ignore[index]
            if isinstance(item, (list, dict)):
                pending.append(item)
        if isinstance(container, dict):
            repair_names(container)
    return root[0]


def repaired_scalar(item: object, keep_halves: bool) -> object:
    if isinstance(item, str) and not keep_halves:
        return SURROGATE.sub("\ufffd", item)
    if isinstance(item, float) and not math.isfinite(item):
        return None
    return item


def repair_names(members: dict[str, object]) -> None:
    for name in [name for name in members if SURROGATE.search(name)]:
        members[SURROGATE.sub("\ufffd", name)] = members.pop(name)
