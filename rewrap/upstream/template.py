"""JSON templates, which have `{placeholders}` in their strings.

Imports the checks of shape tables, how a text is read as JSON, and leaf files.
"""

import re
from collections.abc import Callable, Collection, Mapping

import orjson

from rewrap.regex import regex
from rewrap.types import dumps
from rewrap.upstream.paths import json_value
from rewrap.upstream.tables import ShapeError

ABSENT = object()
Values = Mapping[str, object]
Fill = Callable[[Values], object]

PART = regex(
    r"(?P<literal>[^{}]+)|(?P<doubled>\{\{|\}\})"
    r"|\{ *(?P<name>[^{}|]+?) *(?:\|(?P<default>[^{}]*))?\}|(?P<single>[{}])"
)
PLACEHOLDER = regex(r"\{[^{}]*\}")
ANY_PARAMETER = "param."
SPREAD = "*"  # the name of a member whose own members are put in its place


class Template:
    """A template, compiled once. `names` are those of its placeholders.

    A placeholder that stands alone keeps the type of its value. An absent value leaves out its
    member, and an object or array that is empty then. With {"top_k": 5, "seed": None}:

        {"a": "{top_k}", "b": "k={top_k}, {seed|any} seed", "c": ["{seed}"]}
        {"a": 5, "b": "k=5, any seed"}
    """

    def __init__(self, tree: object, known: Collection[str], where: str) -> None:
        """Raises ShapeError for a template that cannot be filled or sent. It begins with `where`."""
        self.known = known
        self.names: set[str] = set()
        self.filler = self.compiled(tree, where)
        try:
            orjson.dumps(tree)
        except TypeError as error:
            raise ShapeError(f"{where}: {error}") from error

    def fill(self, values: Values) -> object:
        """The JSON value; ABSENT if nothing is left of it."""
        return self.filler(values)

    def compiled(self, tree: object, where: str) -> Fill:
        if isinstance(tree, Mapping):
            return self.compiled_object(tree, where)
        if isinstance(tree, list):
            items = [self.compiled(item, f"{where}[{i}]") for i, item in enumerate(tree)]
            return array_filler(items)
        if isinstance(tree, str):
            return self.compiled_text(tree, where)
        return lambda values: tree

    def compiled_object(self, tree: Mapping[str, object], where: str) -> Fill:
        members: dict[str, Fill] = {}
        for name, value in tree.items():
            if PLACEHOLDER.search(name):
                raise ShapeError(f"{where}: the name of a member is no template: {name!r}")
            members[name] = self.compiled(value, f"{where}.{name}")
        spread = members.pop(SPREAD, None)
        if spread is not None:
            return spread_filler(members, spread)
        return object_filler(members)

    def compiled_text(self, text: str, where: str) -> Fill:
        parts = [self.compiled_part(match, text, where) for match in PART.finditer(text)]
        if len(parts) == 1:
            return parts[0]

        def fill_text(values: Values) -> str:
            return "".join([text_form(part(values)) for part in parts])

        return fill_text

    def compiled_part(self, match: re.Match[str], text: str, where: str) -> Fill:
        if match["single"]:
            brace = match["single"]
            raise ShapeError(
                f"{where}: a single {brace!r} in {text!r}; two of them mean the character itself"
            )
        if not match["name"]:
            literal = match["literal"] or match["doubled"][:1]
            return lambda values: literal
        name = match["name"]
        if name not in self.known and not name.startswith(ANY_PARAMETER):
            known = ", ".join(sorted(self.known))
            raise ShapeError(f"{where}: no placeholder is called {{{name}}}; known are: {known}")
        name = name.removeprefix(ANY_PARAMETER)
        self.names.add(name)
        default = ABSENT
        if match["default"]:
            default = json_value(match["default"].strip())
        return value_filler(name, default)


def value_filler(name: str, default: object) -> Fill:
    def fill(values: Values) -> object:
        value = values.get(name)
        if value is None:
            return default
        return value

    return fill


def object_filler(members: Mapping[str, Fill]) -> Fill:
    def fill(values: Values) -> object:
        filled = {name: filler(values) for name, filler in members.items()}
        present = {name: value for name, value in filled.items() if value is not ABSENT}
        if not present and members:
            return ABSENT
        return present

    return fill


def spread_filler(members: Mapping[str, Fill], spread: Fill) -> Fill:
    """An object with the members of another one over its own."""
    own = object_filler(members)

    def fill(values: Values) -> object:
        filled = own(values)
        more = spread(values)
        if not isinstance(more, Mapping):
            return filled
        if not isinstance(filled, Mapping):
            return dict(more)
        return {**filled, **more}

    return fill


def array_filler(items: list[Fill]) -> Fill:
    def fill(values: Values) -> object:
        filled = [filler(values) for filler in items]
        present = [value for value in filled if value is not ABSENT]
        if not present and items:
            return ABSENT
        return present

    return fill


def text_form(value: object) -> str:
    """A value inside a text. Values that are no strings become JSON. Raises APIError."""
    if value is ABSENT:
        return ""
    if isinstance(value, str):
        return value
    return dumps(value).decode()
