"""Paths into JSON values, and conditions on events.

Both are texts in the tables that describe shapes.

Imports the checks of these tables and leaf files.
"""

import re
from collections.abc import Callable, Sequence

import orjson

from rewrap.regex import regex
from rewrap.structs import struct
from rewrap.upstream.tables import ShapeError


@struct(frozen=True, slots=True)
class Each:
    """A step into the items of a list: all, or those whose member `name` is as the filter wants."""

    name: str = ""
    negated: bool = False
    value: object = None  # None: any that is not empty

    def accepts(self, item: object) -> bool:
        if not self.name:
            return True
        found = member(item, self.name)
        if self.value is None:
            return bool(found) != self.negated
        return (found == self.value) != self.negated


Path = tuple[str | int | Each, ...]
EventCondition = Callable[[str, object], bool]  # (name of the SSE event, its data) -> fulfilled?

# `[0]`, `[]`, `[name]`, `[!name]`, `[name=value]` or a name. A dot stands before a name, except at
# the start.
STEP = regex(
    r"\[(?P<index>-?\d+)\]|\[(?P<negated>!?)(?P<filter>[\w-]*)(?:=(?P<value>[^\]\s]+))?\]"
    r"|(?:\A|(?!\A)\.)(?P<name>[^\s.\[\]{}]+)"
)
EXAMPLE_PATH = "choices[0].message.content"


def parse_paths(text: object, where: str) -> list[Path]:
    """Compile alternatives such as `a.b[0].c[] | d[-1] | .`.

    Raises ShapeError, which begins with `where`.
    """
    return [parse_path(path, where) for path in alternatives(text, where)]


def alternatives(text: object, where: str) -> list[str]:
    if not isinstance(text, str):
        raise ShapeError(f"{where}: a string such as {EXAMPLE_PATH!r} is expected, not {text!r}")
    return [path.strip() for path in text.split("|")]


def parse_path(text: str, where: str) -> Path:
    """Compile one path. `.` is the value itself. Raises ShapeError."""
    if text == ".":
        return ()
    steps: list[str | int | Each] = []
    position = 0
    while position < len(text) or not text:
        match = STEP.match(text, position)
        if match is None:
            rest = text[position:]
            raise ShapeError(
                f"{where}: {text!r} cannot be read at {rest!r}; a path is like {EXAMPLE_PATH}"
            )
        steps.append(step_of(match))
        position = match.end()
    return tuple(steps)


def step_of(match: re.Match[str]) -> str | int | Each:
    if match["name"]:
        return match["name"]
    if match["index"]:
        return int(match["index"])
    value: object = None
    if match["value"] is not None:
        value = json_value(match["value"])
    return Each(match["filter"], bool(match["negated"]), value)


def find(value: object, path: Path) -> object:
    """The value at a path; None if there is none.

    A `[]` gives the list of all values that it leads to.
    """
    for position, step in enumerate(path):
        if isinstance(step, Each):
            return find_in_items(value, step, path[position + 1 :])
        value = member(value, step)
    return value


def find_in_items(value: object, each: Each, rest: Path) -> list[object] | None:
    """All values at `rest` in the items of a list, in one flat list; None if there are none."""
    nested = any(isinstance(step, Each) for step in rest)
    if not isinstance(value, list):
        return None
    found: list[object] = []
    for item in value:
        if not each.accepts(item):
            continue
        inner = find(item, rest)
        if nested and isinstance(inner, list):
            found += inner
        elif inner is not None:
            found.append(inner)
    return found or None


def member(value: object, step: str | int) -> object:
    if isinstance(step, str):
        if isinstance(value, dict):
            return value.get(step)
        return None
    if isinstance(value, list) and -len(value) <= step < len(value):
        return value[step]
    return None


def first(value: object, paths: Sequence[Path]) -> object:
    """The value at the first path that leads to one; None if none does."""
    for path in paths:
        found = find(value, path)
        if found is not None:
            return found
    return None


def text_at(value: object, paths: Sequence[Path], join: str = "") -> str | None:
    """The first text that is not empty, or else an empty one; None if there is no text."""
    empty: str | None = None
    for path in paths:
        text = as_text(find(value, path), join)
        if text:
            return text
        if text is not None:
            empty = text
    return empty


def as_text(value: object, join: str) -> str | None:
    """A string, a number, or a list of strings as one text; None for other values.

    Numbers count because some upstreams stream the digits of a text as JSON numbers.
    """
    if isinstance(value, str):
        return value
    if type(value) in (int, float):
        return orjson.dumps(value).decode()
    if isinstance(value, list):
        texts = [item for item in value if isinstance(item, str)]
        if len(texts) == len(value):
            return join.join(texts)
    return None


def parse_event_condition(text: object, where: str) -> EventCondition:
    """Compile `path`, `path=value`, `@event` or `[DONE]`; with `|` between several, one of them
    has to hold.
    """
    tests = [one_condition(part, where) for part in alternatives(text, where)]
    return lambda event, data: any(test(event, data) for test in tests)


def one_condition(text: str, where: str) -> EventCondition:
    if text == "[DONE]":
        return lambda event, data: data == text
    if text.startswith("@"):
        return lambda event, data: event == text[1:]
    left, equals, right = (part.strip() for part in text.partition("="))
    path = parse_path(left, where)
    if not equals:
        return lambda event, data: bool(find(data, path))
    wanted = json_value(right)
    return lambda event, data: find(data, path) == wanted


def json_value(text: str) -> object:
    """The JSON value in a text; the text itself if it is not JSON."""
    try:
        value: object = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return value
