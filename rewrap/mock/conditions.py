"""The conditions of rules. A condition holds for the facts of a request, or names the difference.

The functions `parse_…` read the value of a field of `when`; they raise ValueError. Imports facts,
patterns and tables.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from fnmatch import translate

from rewrap.mock.facts import Facts
from rewrap.mock.safe_regex import SafePattern
from rewrap.mock.tables import CheckedTable, nearest_name, strings
from rewrap.regex import regex
from rewrap.structs import struct

APIS = ("chat", "responses", "completions", "embeddings", "moderations", "ask")
FORMATS = ("text", "json_object", "json_schema")
TEXT_FIELDS = ("exact", "contains", "regex")
SECRET_HEADER = regex(r"auth|cookie|key|token|secret|password")
SHOWN = 80  # characters of a value in a report
HEADER = "header "  # before the name of a header, in the name of a condition
CONTEXT = 20  # characters before the first difference of two texts
MAX_NUMBER = 10**6

Captures = dict[str, str]  # the named groups of the regular expressions that matched
TextOf = Callable[[Facts], str]
NumberOf = Callable[[Facts], int]


@struct(frozen=True, slots=True)
class Condition:
    """One condition. `holds` adds its captures, which `names` lists, to those there are.

    `difference` tells, in one line, why it does not hold.
    """

    name: str
    holds: Callable[[Facts, Captures], bool]
    difference: TextOf
    names: tuple[str, ...] = ()


def plain_condition(
    name: str, expected: str, holds: Callable[[Facts], bool], actual: TextOf
) -> Condition:
    """A condition that captures nothing."""
    return Condition(
        name,
        lambda facts, captures: holds(facts),
        lambda facts: f"{name}: expected {expected}, got {actual(facts)}",
    )


@struct(frozen=True, slots=True)
class TextTest:
    """A test of a text: it is one of `exact`, contains all of `contains`, and `pattern` matches."""

    exact: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    pattern: SafePattern | None = None

    @classmethod
    def parse(cls, value: object, where: str) -> "TextTest":
        """`"text"`, `["one", "of these"]` or `{exact, contains, regex}`."""
        if not isinstance(value, dict):
            return cls(exact=strings(value, where))
        return cls.of(CheckedTable(value, where, TEXT_FIELDS))

    @classmethod
    def of(cls, table: CheckedTable) -> "TextTest":
        if not table.has(TEXT_FIELDS):
            raise ValueError(f"{table.where}: needs exact, contains or regex")
        pattern = None
        if "regex" in table:
            try:
                pattern = SafePattern(table.text("regex"))
            except ValueError as error:
                raise ValueError(f"{table.where}: {error}") from None
        return cls(table.strings("exact"), table.strings("contains"), pattern)

    @property
    def names(self) -> tuple[str, ...]:
        return self.pattern.names if self.pattern else ()

    def holds(self, text: str, captures: Captures) -> bool:
        if self.exact and text not in self.exact:
            return False
        if not all(part in text for part in self.contains):
            return False
        if self.pattern is None:
            return True
        found = self.pattern.search(text)
        if found is None:
            return False
        for name, value in found.groupdict().items():
            captures[name] = value or ""
        return True

    def difference(self, text: str) -> str:
        if self.exact and text not in self.exact:
            return exact_difference(self.exact, text)
        for part in self.contains:
            if part not in text:
                return f"expected a text that contains {shown(part)}, got {shown(text)}"
        if self.pattern is None:
            return ""
        regex = f"/{self.pattern.source[:SHOWN]}/"
        if self.pattern.is_costly(text):
            return f"{regex} could take too long for this text of {len(text)} characters"
        return f"expected a match of {regex}, got {shown(text)}"


def exact_difference(expected: tuple[str, ...], text: str) -> str:
    """The two texts. Of long ones that begin alike, the parts from where they differ."""
    first = expected[0]
    size = min(len(first), len(text))

    def differs(end: int) -> bool:
        return first[: end + 1] != text[: end + 1]

    # By halves: 16 ms for a megabyte, where a loop over the characters takes 0.7 s.
    same = bisect_left(range(size), True, key=differs)
    if len(expected) > 1 or same < SHOWN // 2:
        return f"expected {' or '.join(map(shown, expected[:3]))}, got {shown(text)}"
    start = same - CONTEXT
    return f"from character {start}, expected {shown(first[start:])}, got {shown(text[start:])}"


def shown(text: str) -> str:
    """A value for a report: quoted, on one line, bounded."""
    # With a " in front, repr quotes by ' and escapes that in the text.
    quoted = repr('"' + text[:SHOWN])[2:-1]
    if len(text) > SHOWN:
        quoted += "…"
    return f"'{quoted}'"


def listed_names(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:10]) or "none"


def parse_text(name: str, value: object, where: str, of: TextOf) -> Condition:
    test = TextTest.parse(value, where)
    return Condition(
        name,
        lambda facts, captures: test.holds(of(facts), captures),
        lambda facts: f"{name}: {test.difference(of(facts))}",
        test.names,
    )


def parse_any_message(value: object, where: str) -> Condition:
    test = TextTest.parse(value, where)
    return Condition(
        "any_message",
        lambda facts, captures: any(test.holds(text, captures) for text in facts.texts),
        lambda facts: f"any_message: none of the {len(facts.texts)} messages matches",
        test.names,
    )


def parse_header(value: object, where: str) -> list[Condition]:
    """`{name = text test}`."""
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{where}: must be a table of header names")
    return [parse_one_header(str(name), test, f"{where}.{name}") for name, test in value.items()]


def parse_one_header(name: str, value: object, where: str) -> Condition:
    header = name.lower()

    def text_of_header(facts: Facts) -> str:
        return facts.headers.get(header, "")

    found = parse_text(f"{HEADER}{header}", value, where, text_of_header)
    if not SECRET_HEADER.search(header):
        return found
    # A report goes to clients and into the journal: it never shows a secret.
    difference = f"{HEADER}{header}: not the expected value"
    return Condition(found.name, found.holds, lambda facts: difference, found.names)


def parse_model(value: object, where: str) -> Condition:
    """Names and globs: `*` is any text, `?` any character; brackets are themselves."""
    globs = strings(value, where)
    escaped = [glob.replace("[", "[[]") for glob in globs]
    patterns = [re.compile(translate(glob)) for glob in escaped]
    return plain_condition(
        "model",
        " or ".join(map(shown, globs)),
        lambda facts: any(pattern.match(facts.model) for pattern in patterns),
        lambda facts: shown(facts.model),
    )


def parse_api(value: object, where: str) -> Condition:
    names = strings(value, where)
    for name in names:
        if name not in APIS:
            raise ValueError(f"{where}: {name!r}: {nearest_name(name, APIS)}")
    return plain_condition(
        "api",
        " or ".join(names),
        lambda facts: facts.api in names,
        lambda facts: facts.api,
    )


def parse_number(name: str, value: object, where: str, of: NumberOf) -> Condition:
    """An integer, or `{min, max}`."""
    if not isinstance(value, dict):
        value = {"min": value, "max": value}
    table = CheckedTable(value, where, ("min", "max"))
    low = table.integer("min", 1, MAX_NUMBER, default=1)
    high = table.integer("max", 1, MAX_NUMBER, default=MAX_NUMBER)
    expected = f"{low} to {high}"
    if low == high:
        expected = str(low)
    elif "max" not in table:
        expected = f"{low} or more"
    return plain_condition(
        name,
        expected,
        lambda facts: low <= of(facts) <= high,
        lambda facts: str(of(facts)),
    )


def parse_tools(value: object, where: str) -> Condition:
    """The functions that must be offered, all of them; `[]`: none must be."""
    names = set(strings(value, where))

    def holds(facts: Facts) -> bool:
        if not names:
            return not facts.tools
        return names <= facts.tools.keys()

    expected = listed_names(sorted(names))
    return plain_condition("tools", expected, holds, lambda facts: listed_names(facts.tools))


def parse_tool_result(value: object, where: str) -> Condition:
    """`true`, `false`, a tool's name, or `{tool, exact, contains, regex}`."""
    if isinstance(value, bool):
        return plain_condition(
            "tool_result",
            "one at the end" if value else "none at the end",
            lambda facts: bool(facts.new_results) is value,
            lambda facts: listed_names(result.tool for result in facts.new_results),
        )
    if isinstance(value, str):
        value = {"tool": value}
    table = CheckedTable(value, where, ("tool", *TEXT_FIELDS))
    tool = table.text("tool")
    if not tool and not table.has(TEXT_FIELDS):
        raise ValueError(f"{where}: needs a tool, exact, contains or regex")
    test = TextTest()
    if table.has(TEXT_FIELDS):
        test = TextTest.of(table)
    return tool_result_condition(tool, test)


def tool_result_condition(tool: str, test: TextTest) -> Condition:
    """A result of `tool` ("" is any) passes the test, among those that end the conversation."""

    def texts(facts: Facts) -> list[str]:
        return [result.text for result in facts.new_results if tool in ("", result.tool)]

    def holds(facts: Facts, captures: Captures) -> bool:
        return any(test.holds(text, captures) for text in texts(facts))

    def difference(facts: Facts) -> str:
        if not facts.new_results:
            return "tool_result: the last message is not a tool result"
        if not texts(facts):
            found = listed_names(result.tool for result in facts.new_results)
            return f"tool_result: expected {shown(tool)}, got {found}"
        return f"tool_result: {test.difference(texts(facts)[-1])}"

    return Condition("tool_result", holds, difference, test.names)


def parse_response_format(value: object, where: str) -> Condition:
    """`"text"`, `"json_object"`, `"json_schema"`, or `{type, name}` with the name of the schema."""
    if isinstance(value, str):
        value = {"type": value}
    table = CheckedTable(value, where, ("type", "name"))
    name = table.text("name")
    kind = table.choice("type", FORMATS) or "json_schema"

    def holds(facts: Facts) -> bool:
        found_kind, found_name = facts.response_format
        return found_kind == kind and name in ("", found_name)

    return plain_condition(
        "response_format",
        f"{kind} {name}".strip(),
        holds,
        lambda facts: " ".join(facts.response_format).strip(),
    )


TEXTS: dict[str, TextOf] = {
    "message": lambda facts: facts.message,
    "system": lambda facts: facts.system,
    "user": lambda facts: facts.user,
    "lane": lambda facts: facts.lane,
}
NUMBERS: dict[str, NumberOf] = {
    "turn": lambda facts: facts.turn,
    "call": lambda facts: facts.call,
}
OTHERS: dict[str, Callable[[object, str], Condition]] = {
    "model": parse_model,
    "api": parse_api,
    "any_message": parse_any_message,
    "tools": parse_tools,
    "tool_result": parse_tool_result,
    "response_format": parse_response_format,
}
CONDITIONS = (*TEXTS, *NUMBERS, *OTHERS, "header")


def parse_condition(name: str, value: object, where: str) -> list[Condition]:
    """The conditions that one field of `when` stands for."""
    if name in TEXTS:
        return [parse_text(name, value, where, TEXTS[name])]
    if name in NUMBERS:
        return [parse_number(name, value, where, NUMBERS[name])]
    if name == "header":
        return parse_header(value, where)
    return [OTHERS[name](value, where)]
