"""The places of text, reasons, counts and errors in an answer, or in an event of a stream.

One table describes them. Takes JSON values, gives Deltas and UpstreamRejections. Does no I/O.
"""

from collections.abc import Mapping, Sequence

import orjson

from rewrap.regex import regex
from rewrap.types import Delta, JSONObject, UpstreamRejection
from rewrap.upstream.paths import (
    EventCondition,
    Path,
    first,
    parse_event_condition,
    parse_paths,
    text_at,
)
from rewrap.upstream.tables import (
    CALLS,
    COUNTS,
    ShapeError,
    Table,
    checked_table,
    table_in,
    text_in,
)

# The ends of a reply by other names. Any other name is "stop".
FINISH_REASONS = [
    ("length", regex("length|.*max_tokens|limit|.*_exceeded")),
    ("tool_calls", regex("tool_calls?|tool_use|function_call")),
    (
        "content_filter",
        regex("content_filter|.*safety|recitation|blocklist|prohibited.*|spii|refusal|.*toxic"),
    ),
]
REASONS = ("stop", "length", "tool_calls", "content_filter", "error")
FIGURES = ("figure", "figures")
ERROR_PATHS = "error.message | error"
REJECTION_PATHS = parse_paths(
    "errors[0].message | detail | detail[].msg | message | [0].error.message", ""
)


class ReplyPaths:
    """The compiled paths of one table."""

    def __init__(self, table: Table, where: str) -> None:
        """`where` ends with a dot: the settings' names follow it in errors. Raises ShapeError."""
        self.table = table
        self.where = where
        self.reply = self.paths("reply", ".")
        self.reasoning = self.paths("reasoning")
        self.finish = self.paths("finish")
        self.error = self.paths("error", ERROR_PATHS)
        self.status = self.paths("status")
        self.tool_calls = CallPaths(table.get("tool_calls"), f"{where}tool_calls")
        self.logprobs = self.paths("logprobs")
        self.statuses = table_in(table, "statuses")
        self.reasons = reasons_in(table, where)
        self.join = text_in(table, "join")
        self.fails = None
        if "fails" in table:
            self.fails = parse_event_condition(table["fails"], f"{where}fails")
        self.usage: Sequence[Path] = []
        self.sums: dict[str, list[list[Path]]] = {}
        if isinstance(table.get("usage"), Mapping):
            self.sums = self.sum_paths(table_in(table, "usage"))
        else:
            self.usage = self.paths("usage")

    def paths(self, name: str, default: str | None = None) -> list[Path]:
        text = self.table.get(name, default)
        if text is None:
            return []
        return parse_paths(text, self.where + name)

    def sum_paths(self, usage: Table) -> dict[str, list[list[Path]]]:
        """`{ prompt = "a + b" }` as the paths of each term."""
        checked_table(usage, COUNTS, f"{self.where}usage.")
        return {
            name: [parse_paths(term, f"{self.where}usage.{name}") for term in str(text).split("+")]
            for name, text in usage.items()
        }

    def failure(self, event: str, data: object) -> UpstreamRejection | None:
        """The error in an answer with status 200, or in an event of a stream; None if it is no
        error.
        """
        found = first(data, self.error)
        failed = found
        if self.fails is not None:
            failed = self.fails(event, data)
        if not failed:
            return None
        text = text_at(data, self.error, "; ")
        if not text:
            text = f"error: {orjson.dumps(found).decode()}"
        return UpstreamRejection(self.error_status(data), text)

    def error_status(self, data: object) -> int:
        """The HTTP status in an error; 502 if it has none."""
        status = first(data, self.status)
        if isinstance(status, str | int):
            status = self.statuses.get(str(status), status)
        if type(status) is int and 400 <= status < 600:
            return status
        return 502

    def counts(self, data: object) -> JSONObject:
        """The token counts here, under OpenAI's names. A sum has the terms that are present."""
        usage = first(data, self.usage)
        if isinstance(usage, dict):
            return {
                name: value
                for name, value in usage.items()
                if "tokens" in name and isinstance(value, int | dict)
            }
        counts: JSONObject = {}
        for name, terms in self.sums.items():
            values = [first(data, term) for term in terms]
            numbers = [value for value in values if type(value) is int]
            if numbers:
                counts[f"{name}_tokens"] = sum(numbers)
        for detail, side in (("cached_tokens", "prompt"), ("reasoning_tokens", "completion")):
            if detail in counts:
                counts[f"{side}_tokens_details"] = {detail: counts.pop(detail)}
        return counts

    def finish_reason(self, data: object) -> str:
        """OpenAI's name for the reason to end; "" if there is none here.

        Raises UpstreamRejection for an end that is a failure.
        """
        reason = first(data, self.finish)
        if not reason:
            return ""
        name = str(reason).lower()
        if self.reasons.get(name) == "error":
            text = text_at(data, self.error, "; ") or f"the upstream ended the reply: {reason}"
            raise UpstreamRejection(502, text)
        if name in self.reasons:
            return self.reasons[name]
        for ours, pattern in FINISH_REASONS:
            if pattern.fullmatch(name):
                return ours
        return "stop"

    def delta(self, data: object, text: str, usage: JSONObject, *, with_reasoning: bool) -> Delta:
        """A Delta with this text, and with all other members that stand here, except the reason
        to end.
        """
        fields: JSONObject = {}
        if with_reasoning:
            reasoning = text_at(data, self.reasoning)
            if reasoning:  # clients read one name or the other
                fields = {"reasoning_content": reasoning, "reasoning": reasoning}
        tool_calls = self.tool_calls.find("", data)
        if tool_calls:
            fields["tool_calls"] = tool_calls
        if isinstance(data, dict):
            fields |= {name: data[name] for name in FIGURES if data.get(name)}
        delta = Delta(text, fields=fields or None, usage=with_total(usage) or None)
        logprobs = first(data, self.logprobs)
        if isinstance(logprobs, dict):
            delta.logprobs = logprobs
        return delta


class CallPaths:
    """The places of tool calls: a path to calls in OpenAI's form, or a path for each member.

    `each` leads to a list with a call in each item; without it, the value itself may be a call, or
    a piece of one. `when` is the condition of a value with calls.
    """

    def __init__(self, setting: object, where: str) -> None:
        """Raises ShapeError."""
        self.calls: list[Path] = []
        self.members: dict[str, list[Path]] = {}
        self.each: list[Path] = [()]
        self.when: EventCondition | None = None
        if isinstance(setting, Mapping):
            checked_table(setting, CALLS, f"{where}.")
            paths = {name: text for name, text in setting.items() if name != "when"}
            self.members = {name: parse_paths(paths[name], f"{where}.{name}") for name in paths}
            self.each = self.members.pop("each", self.each)
            if "when" in setting:
                self.when = parse_event_condition(setting["when"], f"{where}.when")
        elif setting is not None:
            self.calls = parse_paths(setting, where)

    def find(self, event: str, data: object) -> list[object]:
        """The tool calls, or pieces of them, in OpenAI's form."""
        if not self.members:
            calls = first(data, self.calls)
            return calls if isinstance(calls, list) else []
        if self.when is not None and not self.when(event, data):
            return []
        items = first(data, self.each)
        if not isinstance(items, list):
            items = [items]
        return [call for item in items if (call := self.call(item))]

    def call(self, item: object) -> JSONObject:
        """One call; {} if the item has none."""
        values = {name: first(item, paths) for name, paths in self.members.items()}
        names = ("name", "arguments")
        function = {name: values[name] for name in names if values.get(name) is not None}
        call: JSONObject = {"function": function} if function else {}
        if values.get("id") is not None:
            call["id"] = values["id"]
        if call and values.get("signature") is not None:
            call["extra_content"] = {"google": {"thought_signature": values["signature"]}}
        return call


def reasons_in(table: Table, where: str) -> dict[str, str]:
    """The setting `reasons`, by lower-case names. Raises ShapeError."""
    reasons: dict[str, str] = {}
    for name, ours in table_in(table, "reasons").items():
        if ours not in REASONS:
            known = ", ".join(REASONS)
            raise ShapeError(f"{where}reasons.{name}: no reason {ours!r} is known, but {known}")
        reasons[name.lower()] = str(ours)
    return reasons


def with_total(usage: JSONObject) -> JSONObject:
    """Token counts with their sum, if both counts are known."""
    if "total_tokens" in usage or not {"prompt_tokens", "completion_tokens"} <= usage.keys():
        return dict(usage)
    return usage | {"total_tokens": usage["prompt_tokens"] + usage["completion_tokens"]}
