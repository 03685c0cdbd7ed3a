"""Pieces of streamed fields put together, in time linear in their size. Imports types alone."""

from rewrap.types import JSONObject

# Texts that each piece repeats.
CONSTANT = frozenset(["id", "type", "role", "name", "format", "channel"])


class Texts(list[str]):
    """The pieces of one text."""


class Rows(dict[int, JSONObject]):
    """The items of one list, by their `index`."""


def merge(into: JSONObject, more: JSONObject) -> None:
    """Add pieces: texts are joined, lists by their items' `index`, objects by name. `merged` gives the result."""
    for name, value in more.items():
        old = into.get(name)
        if isinstance(value, str):
            if isinstance(old, Texts) and name not in CONSTANT:
                old.append(value)
            else:
                into[name] = Texts([value])
        elif isinstance(value, dict):
            if not isinstance(old, dict):
                old = into[name] = {}
            merge(old, value)
        elif isinstance(value, list) and all(is_indexed(item) for item in value):
            if not isinstance(old, Rows):
                old = into[name] = Rows()
            for item in value:
                merge(old.setdefault(item["index"], {}), item)
        elif isinstance(value, list) and isinstance(old, list):
            old.extend(value)
        elif isinstance(value, list):
            into[name] = list(value)
        elif value is not None or name not in into:
            into[name] = value


def is_indexed(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("index"), int)


def merged(value: object) -> object:
    """What `merge` has put together, as JSON."""
    if isinstance(value, Texts):
        return "".join(value)
    if isinstance(value, Rows):
        return [merged(row) for row in value.values()]
    if isinstance(value, dict):
        return {name: merged(member) for name, member in value.items()}
    return value
