"""Checks of the tables that describe shapes. Imports leaf files alone."""

from collections.abc import Mapping

from rewrap.regex import regex
from rewrap.urls import is_header

Table = Mapping[str, object]

# Paths; all settings of an answer; those of a stream; those of a shape.
PATHS = {"reply", "reasoning", "tool_calls", "logprobs", "finish", "usage", "error", "status"}
ANSWER = PATHS | {"statuses", "fails", "join", "reasons"}
REQUEST = {"path", "headers", "request", "query", "form"}
EVENTS = {"framing", "keep", "mode", "done", "ends", "final"}
STREAM = ANSWER | EVENTS | REQUEST
CONVERSATION = {"message", "roles", "turn"}
SHAPE = ANSWER | CONVERSATION | REQUEST
SHAPE |= {"about", "like", "method", "key", "omit", "session", "stream"}
COUNTS = {"prompt", "completion", "total", "cached", "reasoning"}
CALLS = {"each", "when", "id", "name", "arguments", "signature"}

TEXTS = {"about", "like", "method", "path", "key", "join"}
TABLES: dict[str, type] = {
    "headers": str,
    "roles": str,
    "statuses": int,
    "reasons": str,
    "message": object,
    "turn": object,
    "omit": object,
    "query": object,
    "form": object,
    "session": object,
}
# Settings whose texts have no placeholders.
PLAIN = {"key", "join", "roles", "statuses", "reasons", "omit", "session"}
PLACEHOLDER = regex(r"\{\w[\w.]*(?:\|[^{}]*)?\}")
CONTENTS = {str: " of strings", int: " of integers", object: ""}


class ShapeError(ValueError):
    """A shape, template, path or URL that cannot be used. The text says where."""


def checked_table(table: object, known: set[str], where: str) -> Table:
    """A table that has known settings only, each of its type.

    Paths and templates are checked when they are compiled.

    Raises ShapeError. Its text does not repeat a value that may be a secret.
    """
    if not isinstance(table, Mapping):
        raise ShapeError(f"{where.rstrip('.')}: a table is expected, not {table!r}")
    unknown = sorted(table.keys() - known)
    if unknown:
        names = ", ".join(sorted(known))
        raise ShapeError(f"{where}{unknown[0]}: no such setting; known are: {names}")
    for name, value in table.items():
        check_setting(name, value, where)
    key_header = text_in(table, "key", "authorization")
    for name, value in [*table_in(table, "headers").items(), (key_header, "")]:
        if not is_header(name, value):
            raise ShapeError(f"{where.rstrip('.')}: {name!r} is no header that can be sent")
    return table


def check_setting(name: str, value: object, where: str) -> None:
    """Raises ShapeError for a value of the wrong type, or for a placeholder that is not filled."""
    if name in PLAIN:
        match = PLACEHOLDER.search(str(value))
        if match is not None:
            raise ShapeError(f"{where}{name}: no value is filled in for {match[0]} here")
    if name in TEXTS and not isinstance(value, str):
        raise ShapeError(f"{where}{name}: a string is expected, not {value!r}")
    kind = TABLES.get(name)
    if kind is None:
        return
    if not isinstance(value, Mapping) or not all(isinstance(one, kind) for one in value.values()):
        raise ShapeError(f"{where}{name}: a table{CONTENTS[kind]} is expected")


def text_in(table: Table, name: str, default: str = "") -> str:
    """A string of a checked table."""
    value = table.get(name, default)
    assert isinstance(value, str)
    return value


def table_in(table: Table, name: str) -> Table:
    """A table inside a checked table; an empty one if it is absent."""
    value = table.get(name, {})
    assert isinstance(value, Mapping)
    return value


def merged_tables(below: object, above: object) -> object:
    """Two tables as one. A member of both is that of `above`."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    members = {name: merged_tables(below.get(name), value) for name, value in above.items()}
    return {**below, **members}


def check_constant(headers: Mapping[str, str]) -> None:
    """Raises ValueError for a placeholder: only the headers of a mapping may have one."""
    for name, text in headers.items():
        match = PLACEHOLDER.search(text)
        if match is not None:
            raise ValueError(
                f"headers: {name}: no value for {match[0]}: use the headers of a mapping"
            )
