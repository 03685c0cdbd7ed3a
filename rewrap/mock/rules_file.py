"""Reading rules: from a TOML file, a folder of them, or tables that came another way. Each is checked whole.

    [[rule]]
    name = "weather"
    when = { message = { regex = "weather in (?P<city>.+)" }, tools = "get_weather" }
    then = { tool = "get_weather", arguments = { city = "{city}" } }

Every mistake is a ValueError of one line that names file, rule and field. Does not match rules: rules.py does.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewrap.mock.answers import Answer, parse_step
from rewrap.mock.conditions import CONDITIONS, Condition, parse_field
from rewrap.mock.tables import Table, strings
from rewrap.types import JSONObject

RULE_FIELDS = ("name", "when", "then", "times", "priority", "ends", "on_tool_result")
WHEN_FIELDS = (*CONDITIONS, "nth")
MAX_RULES = 100_000
MAX_STEPS = 1_000
MAX_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A rule, checked. Two rules are never equal: each counts its own uses."""

    label: str  # for journal and reports: the name, or the place
    conditions: tuple[Condition, ...]
    exact: tuple[str, ...]  # the last user messages that it can match; () for any
    nth: int  # 0: every time
    steps: tuple[Answer, ...]
    times: int  # 0: without end
    priority: int
    ends: bool  # after the last step; else that one repeats
    on_tool_result: bool

    @property
    def counts(self) -> bool:
        """Whether its answer depends on the requests before."""
        return bool(self.nth or self.times or self.ends or len(self.steps) > 1)


def parse_rule(value: object, where: str) -> Rule:
    """One rule. `where` is its place, for messages. Raises ValueError."""
    if isinstance(value, dict) and isinstance(value.get("name"), str) and value["name"]:
        where = f"{where} {value['name'][:60]!r}"
    try:
        return checked_rule(Table(value, "rule", RULE_FIELDS), where)
    except ValueError as error:
        reason = str(error).removeprefix("rule.").removeprefix("rule: ")
        raise ValueError(f"{where}: {' '.join(reason.split())}") from None


def checked_rule(table: Table, where: str) -> Rule:
    when = table.get("when")
    if when is None:
        when = {}
    if isinstance(when, str):
        when = {"message": when}
    fields = Table(when, "when", WHEN_FIELDS)
    conditions: list[Condition] = []
    for name, value in fields.members.items():
        if name != "nth":
            conditions += parse_field(name, value, f"when.{name}")
    message = fields.get("message")
    exact = message.get("exact") if isinstance(message, dict) else message
    label = table.text("name") or where
    return Rule(
        label=label,
        conditions=tuple(conditions),
        exact=strings(exact, "when.message") if exact is not None else (),
        nth=fields.integer("nth", 1, 10**6),
        steps=parse_steps(table, conditions, label),
        times=table.integer("times", 1, 10**6),
        priority=table.integer("priority", -(10**6), 10**6),
        ends=table.flag("ends"),
        on_tool_result=parse_on_tool_result(table, fields),
    )


def parse_steps(table: Table, conditions: list[Condition], label: str) -> tuple[Answer, ...]:
    """The steps of `then`. They are numbered from 0."""
    value = table.get("then")
    if value is None:
        raise ValueError("then is missing")
    rows = value if isinstance(value, list) else [value]
    if not 0 < len(rows) <= MAX_STEPS:
        raise ValueError(f"then: must have 1 to {MAX_STEPS} steps")
    names = [name for condition in conditions for name in condition.names]
    steps = []
    for position, row in enumerate(rows):
        where = f"then[{position}]" if len(rows) > 1 else "then"
        steps.append(parse_step(row, where, names, rule=label, step=position))
    return tuple(steps)


def parse_on_tool_result(table: Table, when: Table) -> bool:
    """Whether a step that calls a tool may answer the result of that tool: where the rule says so, in one of three ways."""
    if "on_tool_result" in table:
        return table.flag("on_tool_result")
    call = when.get("call")
    lowest = call.get("min", 1) if isinstance(call, dict) else call
    later_call = isinstance(lowest, int) and lowest > 1
    return later_call or when.get("tool_result") not in (None, False)


def parse_rules(rows: object, source: str) -> list[Rule]:
    """The rules of a list of tables. Raises ValueError."""
    if not isinstance(rows, list):
        raise ValueError(f"{source}: must be a list of rules")
    if len(rows) > MAX_RULES:
        raise ValueError(f"{source}: has more than {MAX_RULES} rules")
    return [parse_rule(row, f"{source}: rule {number}") for number, row in enumerate(rows, 1)]


def rule_files(path: Path) -> list[Path]:
    """The file itself, or the TOML files of a folder in the order of their names. Raises ValueError."""
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.toml"))
    if not files:
        raise ValueError(f"{path}: the folder has no .toml file")
    return files


def read_rules(files: Sequence[Path]) -> list[Rule]:
    """The rules of these files, in order. Raises ValueError."""
    rules = []
    for file in files:
        rules += parse_rules(read_tables(file), str(file))
    if len(rules) > MAX_RULES:
        raise ValueError(f"{files[-1]}: there are more than {MAX_RULES} rules")
    return rules


def read_tables(file: Path) -> list[JSONObject]:
    """The `[[rule]]` tables of a file. Raises ValueError."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not UTF-8") from None
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{file}: is larger than {MAX_FILE_BYTES} bytes")
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError is a ValueError
        raise ValueError(f"{file}: is not TOML: {' '.join(str(error).split())}") from None
    try:
        rows = Table(tables, str(file), ("rule",)).get("rule")
    except ValueError as error:
        raise ValueError(f"{error} (rules are [[rule]] tables)") from None
    if rows is None:
        return []
    if not isinstance(rows, list):
        raise ValueError(f"{file}: rules are [[rule]] tables, with two brackets")
    return rows
