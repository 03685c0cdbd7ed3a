"""Reading the steps of a rule: the value of `then`, checked.

All functions raise ValueError, with the place of the mistake. rules_file.py reads whole rules.
"""

import math
from collections.abc import Iterable

import orjson

from rewrap.mock.answers import VALUES, RuleAnswer, RuleToolCall, placeholders
from rewrap.mock.errors import ErrorAnswer, parse_error
from rewrap.mock.faults import Fault, parse_faults
from rewrap.mock.pace import PACE_FIELDS, Pace
from rewrap.mock.tables import CheckedTable, nearest_name
from rewrap.types import JSONObject

TEXTS = ("text", "pieces", "json")
CONTENT = (*TEXTS, "tool", "tool_calls", "reasoning", "refusal")
ALONE = ("error", "backend", "embedding", "flagged")  # each is the whole answer
FILLED = (*CONTENT, "arguments")  # have placeholders
MEMBERS = ("arguments", "finish_reason", "usage", "model", "id", "fault", *PACE_FIELDS)
STEP_FIELDS = (*CONTENT, *ALONE, *MEMBERS)
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")
COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
DETAILS = ("cached_tokens", "reasoning_tokens")
# The categories of OpenAI's moderations.
CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening"),
    *("illicit", "illicit/violent", "sexual", "sexual/minors", "violence", "violence/graphic"),
    *("self-harm", "self-harm/instructions", "self-harm/intent"),
)
MAX_TOKENS = 10**12
MAX_MILLISECONDS = 3_600_000
MAX_WORDS_PER_SECOND = 1e6


def parse_step(value: object, where: str, names: Iterable[str], rule: str, step: int) -> RuleAnswer:
    """One step; a string is its text. `names` are the captures of the rule."""
    if isinstance(value, str):
        value = {"text": value}
    table = CheckedTable(value, where, STEP_FIELDS)
    check_contradictions(table)
    error = parse_error_field(table)
    filled = {name: table.get(name) for name in FILLED}
    if error is not None:
        filled["error"] = error.message
    found = [has_placeholders(filled[name], names, table.place(name)) for name in filled]
    return RuleAnswer(
        text=table.text("text") if "text" in table else None,
        pieces=table.strings("pieces"),
        json=parse_json(table, "json"),
        tool_calls=parse_tool_calls(table),
        reasoning=table.text("reasoning"),
        refusal=table.text("refusal"),
        finish_reason=table.choice("finish_reason", FINISH_REASONS),
        usage=parse_usage(table),
        model=table.text("model"),
        id=table.text("id"),
        embedding=parse_embedding(table),
        flagged=parse_flagged(table),
        error=error,
        faults=parse_fault_field(table),
        pace=parse_pace(table),
        backend=table.text("backend"),
        rule=rule,
        step=step,
        is_template=any(found),
    )


def has_placeholders(value: object, names: Iterable[str], where: str) -> bool:
    """Whether the texts of a value have any; each has to name a capture or a field of VALUES."""
    known = [*names, *VALUES]
    found = placeholders(value)
    for name in found:
        if name and name not in known:
            hint = nearest_name(name, known)
            raise ValueError(f"{where}: unknown placeholder {{{name}}}: {hint}")
    return bool(found)


def check_contradictions(table: CheckedTable) -> None:
    if not table.members:
        raise ValueError(f"{table.where}: is empty")
    if "arguments" in table and "tool" not in table:
        raise ValueError(f"{table.place('arguments')}: needs a tool")
    alone = table.has(ALONE)
    both = [table.has(TEXTS), table.has(("tool", "tool_calls")), alone]
    if alone:
        both.append(alone + table.has(CONTENT))
    for names in both:
        if len(names) > 1:
            raise ValueError(f"{table.where}: {names[0]} and {names[1]} exclude each other")


def parse_json(table: CheckedTable, name: str) -> object:
    value = table.get(name)
    try:
        orjson.dumps(value)
    except TypeError as error:
        raise ValueError(f"{table.place(name)}: {error}") from None
    return value


def parse_tool_calls(table: CheckedTable) -> tuple[RuleToolCall, ...]:
    """The calls of `tool` with `arguments`, or of `tool_calls`."""
    if "tool" in table:
        name = table.text("tool")
        if not name:
            raise ValueError(f"{table.place('tool')}: needs a name")
        return (RuleToolCall(name, parse_json(table, "arguments")),)
    rows = table.get("tool_calls")
    if rows is None:
        return ()
    where = table.place("tool_calls")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{where}: must be a list of tables")
    return tuple(parse_tool_call(row, f"{where}[{position}]") for position, row in enumerate(rows))


def parse_tool_call(value: object, where: str) -> RuleToolCall:
    call = CheckedTable(value, where, ("name", "arguments", "id", "check"))
    if not call.text("name"):
        raise ValueError(f"{where}: needs a name")
    return RuleToolCall(
        name=call.text("name"),
        arguments=parse_json(call, "arguments"),
        id=call.text("id"),
        check=call.flag("check", default=True),
    )


def parse_usage(table: CheckedTable) -> JSONObject | None:
    """OpenAI's usage object, with those members that the rule gives."""
    if "usage" not in table:
        return None
    where = table.place("usage")
    given = CheckedTable(table.get("usage"), where, (*COUNTS, *DETAILS))
    counts = {name: given.integer(name, 0, MAX_TOKENS) for name in given.members}
    usage: JSONObject = {name: counts[name] for name in given.has(COUNTS)}
    if "prompt_tokens" in usage and "completion_tokens" in usage:
        usage.setdefault("total_tokens", usage["prompt_tokens"] + usage["completion_tokens"])
    if "cached_tokens" in counts:
        cached = {"cached_tokens": counts["cached_tokens"], "audio_tokens": 0}
        usage["prompt_tokens_details"] = cached
    if "reasoning_tokens" in counts:
        usage["completion_tokens_details"] = {"reasoning_tokens": counts["reasoning_tokens"]}
    return usage


def parse_embedding(table: CheckedTable) -> tuple[float, ...]:
    numbers = table.get("embedding")
    if numbers is None:
        return ()
    if not isinstance(numbers, list) or not numbers or not all(map(is_number, numbers)):
        raise ValueError(f"{table.place('embedding')}: must be a list of numbers")
    return tuple(float(number) for number in numbers)


def is_number(value: object) -> bool:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return numeric and abs(value) < math.inf  # type: ignore[arg-type]


def parse_flagged(table: CheckedTable) -> tuple[str, ...]:
    """The categories that are flagged; `true` is violence."""
    if table.get("flagged") is True:
        return ("violence",)
    names = table.strings("flagged")
    for name in names:
        if name not in CATEGORIES:
            hint = nearest_name(name, CATEGORIES)
            raise ValueError(f"{table.place('flagged')}: {name!r}: {hint}")
    return names


def parse_error_field(table: CheckedTable) -> ErrorAnswer | None:
    if "error" not in table:
        return None
    return parse_error(table.get("error"), table.place("error"))


def parse_fault_field(table: CheckedTable) -> tuple[Fault, ...]:
    try:
        return parse_faults(table.text("fault"))
    except ValueError as error:
        raise ValueError(f"{table.place('fault')}: {error}") from None


def parse_pace(table: CheckedTable) -> Pace:
    return Pace(
        first_byte_ms=table.number("first_byte_ms", MAX_MILLISECONDS),
        words_per_second=table.number("words_per_second", MAX_WORDS_PER_SECOND),
        jitter_ms=table.number("jitter_ms", MAX_MILLISECONDS),
    )
