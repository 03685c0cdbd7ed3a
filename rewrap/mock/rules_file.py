"""Reading rules: from a TOML file, from a folder of them, or from tables that came another way.

    [[rule]]
    name = "weather"
    when = { message = { regex = "weather in (?P<city>.+)" }, tools = "get_weather" }
    then = { tool = "get_weather", arguments = { city = "{city}" } }

A mistake is a ValueError of one line that names file, rule and field. rules.py matches the rules.
"""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rewrap.mock.answers import RuleAnswer
from rewrap.mock.conditions import CONDITIONS, Condition, parse_condition
from rewrap.mock.steps import parse_step
from rewrap.mock.tables import CheckedTable, strings

RULE_FIELDS = ("name", "when", "then", "times", "priority", "ends", "on_tool_result")
WHEN_FIELDS = (*CONDITIONS, "nth")
MAX_RULES = 100_000
MAX_STEPS = 1_000
MAX_COUNT = 10**6
MAX_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A rule, checked. No two rules are equal: each counts its own uses."""

    label: str  # its name or its place, for the journal and for reports
    conditions: tuple[Condition, ...]
    exact: tuple[str, ...]  # the last user messages that it can match; () is any
    nth: int  # 0: every time
    steps: tuple[RuleAnswer, ...]
    times: int  # 0: without end
    priority: int
    ends: bool  # after the last step; otherwise the last step repeats
    on_tool_result: bool

    @property
    def counts(self) -> bool:
        """Whether its answer depends on the requests before."""
        return bool(self.nth or self.times or self.ends or len(self.steps) > 1)


def read_rules(files: Iterable[Path]) -> list[Rule]:
    """The rules of these files, in order. Raises ValueError."""
    rules: list[Rule] = []
    for file in files:
        rules += parse_rules(read_rule_tables(file), str(file))
        if len(rules) > MAX_RULES:
            raise ValueError(f"{file}: there are more than {MAX_RULES} rules")
    return rules


def rule_files(path: Path) -> list[Path]:
    """The file itself, or the TOML files of a folder in the order of names. Raises ValueError."""
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.toml"))
    if not files:
        raise ValueError(f"{path}: the folder has no .toml file")
    return files


def read_rule_tables(file: Path) -> object:
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
        raise ValueError(f"{file}: is not TOML: {one_line(error)}") from None
    rows = CheckedTable(tables, str(file), ("rule",)).get("rule")
    if isinstance(rows, dict):
        raise ValueError(f"{file}: rules are [[rule]] tables, with two brackets")
    return rows or []


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def parse_rules(rows: object, source: str) -> list[Rule]:
    """The rules of a list of tables. `source` begins all messages. Raises ValueError."""
    if not isinstance(rows, list):
        raise ValueError(f"{source}: must be a list of rules")
    if len(rows) > MAX_RULES:
        raise ValueError(f"{source}: there are more than {MAX_RULES} rules")
    return [parse_rule(row, f"{source}: rule {number}") for number, row in enumerate(rows, 1)]


def parse_rule(value: object, where: str) -> Rule:
    """One rule. Raises ValueError: its place and name, then the reason."""
    label = where
    if isinstance(value, dict) and value.get("name"):
        label = str(value["name"])
        where = f"{where} {label[:80]!r}"
    try:
        return checked_rule(CheckedTable(value, "rule", RULE_FIELDS), label)
    except RecursionError:
        raise ValueError(f"{where}: is nested too deeply") from None
    except ValueError as error:
        reason = one_line(error).removeprefix("rule.").removeprefix("rule: ")
        raise ValueError(f"{where}: {reason}") from None


def checked_rule(table: CheckedTable, label: str) -> Rule:
    when = table.get("when") or {}
    if isinstance(when, str):
        when = {"message": when}
    fields = CheckedTable(when, "when", WHEN_FIELDS)
    conditions: list[Condition] = []
    for name, value in fields.members.items():
        if name != "nth":
            conditions += parse_condition(name, value, f"when.{name}")
    table.text("name")
    return Rule(
        label=label,
        conditions=tuple(conditions),
        exact=exact_messages(fields),
        nth=fields.integer("nth", 1, MAX_COUNT),
        steps=parse_steps(table, conditions, label),
        times=table.integer("times", 1, MAX_COUNT),
        priority=table.integer("priority", -MAX_COUNT, MAX_COUNT),
        ends=table.flag("ends"),
        on_tool_result=parse_on_tool_result(table, fields),
    )


def exact_messages(when: CheckedTable) -> tuple[str, ...]:
    message = when.get("message")
    if isinstance(message, dict):
        message = message.get("exact")
    if message is None:
        return ()
    return strings(message, "when.message")


def parse_steps(
    table: CheckedTable, conditions: list[Condition], label: str
) -> tuple[RuleAnswer, ...]:
    """The steps of `then`, numbered from 0."""
    value = table.get("then")
    if value is None:
        raise ValueError("then is missing")
    rows = [value]
    if isinstance(value, list):
        rows = value
    if not 0 < len(rows) <= MAX_STEPS:
        raise ValueError(f"then: must have 1 to {MAX_STEPS} steps")
    names = [name for condition in conditions for name in condition.names]
    steps = []
    for position, row in enumerate(rows):
        where = f"then[{position}]" if len(rows) > 1 else "then"
        steps.append(parse_step(row, where, names, label, position))
    return tuple(steps)


def parse_on_tool_result(table: CheckedTable, when: CheckedTable) -> bool:
    """Whether a step may call a tool again whose result the request brings.

    The rule says so itself, or by a condition that only such a request fulfils.
    """
    if "on_tool_result" in table:
        return table.flag("on_tool_result")
    call = when.get("call")
    if isinstance(call, dict):
        call = call.get("min")
    is_later_call = isinstance(call, int) and call > 1
    return is_later_call or when.get("tool_result") not in (None, False)
