"""JSON of upstreams, with the mistakes that some of them make. Imports nothing of the project."""

import json
import math
import re

import orjson

SURROGATE = re.compile("[\ud800-\udfff]")


def loads(data: bytes | str) -> object:
    """A JSON value. Raises ValueError.

    NaN and infinite numbers become null, and lone surrogates become U+FFFD. The usual case costs no more than orjson.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        if isinstance(data, bytes):
            data = data.decode()
        try:
            value = json.loads(data)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        return repaired(value)


def repaired(value: object) -> object:
    """A value that JSON can hold. Works through a list of containers, so that its depth does not matter."""
    root = [value]
    pending: list[list[object] | dict[str, object]] = [root]
    while pending:
        container = pending.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            item = repaired_scalar(container[key])  # type: ignore[index]
            container[key] = item  # type: ignore[index]
            if isinstance(item, (list, dict)):
                pending.append(item)
        if isinstance(container, dict):
            repair_names(container)
    return root[0]


def repaired_scalar(item: object) -> object:
    if isinstance(item, str):
        return SURROGATE.sub("\ufffd", item)
    if isinstance(item, float) and not math.isfinite(item):
        return None
    return item


def repair_names(members: dict[str, object]) -> None:
    for name in [name for name in members if SURROGATE.search(name)]:
        members[SURROGATE.sub("\ufffd", name)] = members.pop(name)
