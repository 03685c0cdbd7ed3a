"""The conditions of rules: each looks at one fact of a request. `Facts` makes these views, once a request.

A condition either holds or can name the difference. Conditions on tool results look at the current turn alone, the
messages after the last user message: in the whole history, every later turn would match as well.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property

from rewrap.mock.patterns import Pattern
from rewrap.mock.tables import Table, nearest_name, strings
from rewrap.types import ChatRequest, JSONObject, text_of

APIS = ("chat", "responses", "completions", "embeddings", "moderations", "ask")
FORMATS = ("text", "json_object", "json_schema")
MAX_LANE = 200  # characters
SHOWN = 80  # characters of a value in a report
SECRET_HEADER = re.compile(r"auth|cookie|key|token|secret|password", re.IGNORECASE)

Captures = dict[str, str]  # the named groups of the regular expressions that matched


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A tool's answer in the conversation. `tool` is "" where no call has its id."""

    tool: str
    text: str


class Facts:
    """A request as conditions see it. Its views are computed when they are first needed.

    `messages` are those of a chat. Prompts of completions and inputs of embeddings come as one user message.
    `headers` have lower-case names.
    """

    def __init__(
        self,
        model: str,
        messages: list[JSONObject],
        payload: JSONObject,
        *,
        api: str = "chat",
        headers: Mapping[str, str] | None = None,
        lane: str = "",
    ) -> None:
        self.model = model
        self.messages = messages
        self.payload = payload
        self.api = api
        self.headers = headers or {}
        self.lane = lane or lane_of(self.headers, payload)

    @classmethod
    def of(
        cls, request: ChatRequest, api: str = "chat", headers: Mapping[str, str] | None = None
    ) -> "Facts":
        return cls(request.model, request.messages, request.payload, api=api, headers=headers)

    @cached_property
    def last_user(self) -> int:
        """The position of the last user message; -1 if there is none."""
        for position in range(len(self.messages) - 1, -1, -1):
            if self.messages[position].get("role") == "user":
                return position
        return -1

    @cached_property
    def message(self) -> str:
        """The text of the last user message."""
        if self.last_user < 0:
            return ""
        return text_of(self.messages[self.last_user].get("content"))

    @cached_property
    def current_turn(self) -> list[JSONObject]:
        return self.messages[self.last_user + 1 :]

    @cached_property
    def texts(self) -> list[str]:
        return [text_of(message.get("content")) for message in self.messages]

    @cached_property
    def system(self) -> str:
        found = [m for m in self.messages if m.get("role") in ("system", "developer")]
        return "\n".join(text_of(message.get("content")) for message in found)

    @cached_property
    def turn(self) -> int:
        """The number of the current user turn. User messages that follow each other are one turn.

        Assistant messages are not counted: there are several of them in a turn with tool calls.
        """
        return runs_of("user", self.messages)

    @cached_property
    def call(self) -> int:
        """The number of this request within the current turn: 1, and one more for each answer in it."""
        return runs_of("assistant", self.current_turn) + 1

    @cached_property
    def tools(self) -> dict[str, JSONObject]:
        """The functions offered, by name. Each has its JSON schema as `parameters`."""
        offered = [tool.get("function", tool) for tool in self.payload.get("tools") or []]
        offered += self.payload.get("functions") or []
        return {tool["name"]: tool for tool in offered if isinstance(tool.get("name"), str)}

    @cached_property
    def turn_results(self) -> list[ToolResult]:
        """The tool results of the current turn, in order."""
        names: dict[object, str] = {}
        results = []
        for message in self.current_turn:
            for call in message.get("tool_calls") or []:
                names[call.get("id")] = call.get("function", {}).get("name", "")
            if is_result(message):
                name = names.get(message.get("tool_call_id")) or message.get("name") or ""
                results.append(ToolResult(name, text_of(message.get("content"))))
        return results

    @cached_property
    def new_results(self) -> list[ToolResult]:
        """The tool results that this request brings: those that end the conversation."""
        count = 0
        for message in reversed(self.current_turn):
            if not is_result(message):
                break
            count += 1
        return self.turn_results[len(self.turn_results) - count :]

    @cached_property
    def response_format(self) -> tuple[str, str]:
        """The type and the name of the schema."""
        value = self.payload.get("response_format") or {}
        schema = value.get("json_schema") or {}
        return value.get("type", "text"), schema.get("name", "")

    @property
    def user(self) -> str:
        return str(self.payload.get("user") or "")


def is_result(message: JSONObject) -> bool:
    return message.get("role") in ("tool", "function")


def runs_of(role: str, messages: list[JSONObject]) -> int:
    """How many groups of adjacent messages have this role. System messages between them do not part a group."""
    count = 0
    previous = ""
    for message in messages:
        current = message.get("role", "")
        if current in ("system", "developer"):
            continue
        if current == role != previous:
            count += 1
        previous = current
    return count


def lane_of(headers: Mapping[str, str], payload: JSONObject, key: str = "") -> str:
    """The lane that a request is counted in: the header `x-mock-lane`, the `user`, a key's owner, or "", shared by all."""
    lane = headers.get("x-mock-lane") or payload.get("user") or key
    return str(lane)[:MAX_LANE]


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition. `holds` adds what it captures; `difference` tells why it does not hold; `names` are its captures."""

    name: str
    holds: Callable[[Facts, Captures], bool]
    difference: Callable[[Facts], str]
    names: tuple[str, ...] = ()


def condition(
    name: str, expected: str, holds: Callable[[Facts], bool], actual: Callable[[Facts], str]
) -> Condition:
    """A condition that captures nothing."""
    return Condition(
        name,
        lambda facts, captures: holds(facts),
        lambda facts: f"{name}: expected {expected}, got {actual(facts)}",
    )


@dataclass(frozen=True, slots=True)
class TextTest:
    """A test of a text: equal to one of `exact`, contains all of `contains`, and `pattern` is found in it."""

    exact: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    pattern: Pattern | None = None

    @classmethod
    def parse(cls, value: object, where: str) -> "TextTest":
        """`"text"`, `["one", "of these"]` or `{exact, contains, regex}`. Raises ValueError."""
        if not isinstance(value, dict):
            return cls(exact=strings(value, where))
        return cls.of(Table(value, where, TEXT_FIELDS))

    @classmethod
    def of(cls, table: Table) -> "TextTest":
        if not any(name in table for name in TEXT_FIELDS):
            raise ValueError(f"{table.where}: needs exact, contains or regex")
        pattern = None
        if "regex" in table:
            try:
                pattern = Pattern(table.text("regex"))
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
        captures.update({name: value or "" for name, value in found.groupdict().items()})
        return True

    def difference(self, text: str) -> str:
        """Why a text does not pass."""
        if self.exact and text not in self.exact:
            return exact_difference(self.exact, text)
        absent = [part for part in self.contains if part not in text]
        if absent:
            return f"expected a text that contains {shown(absent[0])}, got {shown(text)}"
        if self.pattern is None:
            return ""
        if self.pattern.is_costly(text):
            return f"the text of {len(text)} characters could keep {self.described()} busy for too long"
        return f"expected a match of {self.described()}, got {shown(text)}"

    def described(self) -> str:
        return f"/{self.pattern.source[:SHOWN]}/" if self.pattern else ""


TEXT_FIELDS = ("exact", "contains", "regex")


def exact_difference(expected: tuple[str, ...], text: str) -> str:
    """The two texts; of long ones that begin alike, from where they differ."""
    first = expected[0]
    same = common_prefix(first, text)
    if len(expected) > 1 or same < SHOWN // 2:
        return f"expected {' or '.join(map(shown, expected[:3]))}, got {shown(text)}"
    start = same - 20
    return f"from character {start} on, expected {shown(first[start:])}, got {shown(text[start:])}"


def common_prefix(one: str, other: str) -> int:
    """How many characters two texts begin with in common, by comparing halves: linear."""
    size = min(len(one), len(other))
    return bisect_left(range(size), True, key=lambda end: one[: end + 1] != other[: end + 1])


def shown(text: str) -> str:
    """A value for a report: quoted, on one line, bounded."""
    if len(text) > SHOWN:
        return ascii_free(text[:SHOWN])[:-1] + "…'"
    return ascii_free(text)


def ascii_free(text: str) -> str:
    """repr, always with single quotes."""
    return "'" + repr('"' + text)[2:-1] + "'"


# The parsers: from the value of a field of `when` to conditions. All raise ValueError.


def text_condition(name: str, value: object, where: str, of: Callable[[Facts], str]) -> Condition:
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
    """`{name = text test}`. Reports never show a header that may hold a secret."""
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{where}: must be a table of header names")
    return [header_condition(str(name), test, f"{where}.{name}") for name, test in value.items()]


def header_condition(name: str, value: object, where: str) -> Condition:
    header = name.lower()
    found = text_condition(f"header {header}", value, where, lambda f: f.headers.get(header, ""))
    if not SECRET_HEADER.search(header):
        return found
    reason = f"header {header}: not the expected value"
    return Condition(found.name, found.holds, lambda facts: reason, found.names)


def parse_model(value: object, where: str) -> Condition:
    """Names and globs: `*` is any text, `?` any character, brackets are themselves."""
    globs = strings(value, where)
    patterns = [re.compile(translate(glob.replace("[", "[[]"))) for glob in globs]
    return condition(
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
    return condition("api", " or ".join(names), lambda f: f.api in names, lambda f: f.api)


def parse_number(name: str, value: object, where: str, of: Callable[[Facts], int]) -> Condition:
    """An integer, or `{min, max}`."""
    if not isinstance(value, dict):
        value = {"min": value, "max": value}
    table = Table(value, where, ("min", "max"))
    low = table.integer("min", 1, 10**6, default=1)
    high = table.integer("max", 1, 10**6, default=10**6)
    expected = str(low)
    if low != high:
        expected = f"{low} to {high}" if "max" in table else f"{low} or more"
    return condition(name, expected, lambda f: low <= of(f) <= high, lambda f: str(of(f)))


def parse_tools(value: object, where: str) -> Condition:
    """The functions that must be offered, all of them; `[]`: none is."""
    names = strings(value, where)

    def holds(facts: Facts) -> bool:
        if not names:
            return not facts.tools
        return all(name in facts.tools for name in names)

    return condition("tools", listed(names), holds, lambda facts: listed(facts.tools))


def listed(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:10]) or "none"


def parse_tool_result(value: object, where: str) -> Condition:
    """`true`, `false`, a tool's name, or `{tool, exact, contains, regex}`: of the results that end the conversation."""
    if isinstance(value, bool):
        words = {True: "a tool result at the end", False: "no tool result at the end"}
        return condition(
            "tool_result",
            words[value],
            lambda facts: bool(facts.new_results) is value,
            lambda facts: words[bool(facts.new_results)],
        )
    if isinstance(value, str):
        value = {"tool": value}
    table = Table(value, where, ("tool", *TEXT_FIELDS))
    tool = table.text("tool")
    only_tool = not any(name in table for name in TEXT_FIELDS)
    if only_tool and not tool:
        raise ValueError(f"{where}: needs a tool, exact, contains or regex")
    test = TextTest() if only_tool else TextTest.of(table)

    def holds(facts: Facts, captures: Captures) -> bool:
        found = [result for result in facts.new_results if tool in ("", result.tool)]
        return any(test.holds(result.text, captures) for result in found)

    def difference(facts: Facts) -> str:
        results = facts.new_results
        found = [result for result in results if tool in ("", result.tool)]
        if not results:
            return "tool_result: the last message is not a tool result"
        if not found:
            return f"tool_result: expected {tool!r}, got {listed(r.tool for r in results)}"
        return f"tool_result: {test.difference(found[-1].text)}"

    return Condition("tool_result", holds, difference, test.names)


def parse_response_format(value: object, where: str) -> Condition:
    """`"text"`, `"json_object"`, `"json_schema"`, or `{type, name}` with the name of the schema."""
    if isinstance(value, str):
        value = {"type": value}
    table = Table(value, where, ("type", "name"))
    name = table.text("name")
    kind = table.choice("type", FORMATS) or "json_schema"
    return condition(
        "response_format",
        f"{kind} {name}".strip(),
        lambda facts: facts.response_format[0] == kind and name in ("", facts.response_format[1]),
        lambda facts: " ".join(facts.response_format).strip(),
    )


def parse_field(name: str, value: object, where: str) -> list[Condition]:
    """The conditions of one field of `when`, `nth` excepted. Raises ValueError."""
    if name in TEXTS:
        return [text_condition(name, value, where, TEXTS[name])]
    if name in NUMBERS:
        return [parse_number(name, value, where, NUMBERS[name])]
    if name == "header":
        return parse_header(value, where)
    return [OTHERS[name](value, where)]


TEXTS: dict[str, Callable[[Facts], str]] = {
    "message": lambda facts: facts.message,
    "system": lambda facts: facts.system,
    "user": lambda facts: facts.user,
    "lane": lambda facts: facts.lane,
}
NUMBERS: dict[str, Callable[[Facts], int]] = {
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
