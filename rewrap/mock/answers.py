"""What a rule answers: the steps of its `then`, filled in from a request, and the Deltas that they become.

A step and an answer are the same immutable dataclass: a step has `{placeholders}` in its texts, an answer has values.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import orjson

from rewrap.mock.conditions import Captures, Facts
from rewrap.mock.errors import ErrorAnswer, parse_error
from rewrap.mock.faults import PACE_FIELDS, Fault, Pace, parse_faults
from rewrap.mock.tables import Table, nearest_name
from rewrap.types import APIError, ChatRequest, Delta, Deltas, JSONObject

PLACEHOLDER = re.compile(r"\{\{|\{([A-Za-z_]\w*)(?::(int|float))?\}", re.ASCII)
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")
CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
PIECE = 24  # characters of a call's arguments in one Delta
MAX_PIECES = 64

# The reason why a value does not fit a JSON schema; "" or None where it does.
Check = Callable[[JSONObject, object], str | None]
# Arguments for a call that has none: from the tool's schema and the text of the last user message.
Fill = Callable[[JSONObject, str], object]

# Fields of the request for placeholders, beside the captures of the rule.
VALUES: dict[str, Callable[[Facts], str]] = {
    "model": lambda facts: facts.model,
    "message": lambda facts: facts.message,
    "user": lambda facts: facts.user,
    "system": lambda facts: facts.system,
    "turn": lambda facts: str(facts.turn),
    "call": lambda facts: str(facts.call),
    "api": lambda facts: facts.api,
    "lane": lambda facts: facts.lane,
    "tool": lambda facts: facts.new_results[-1].tool if facts.new_results else "",
    "tool_result": lambda facts: "\n".join(result.text for result in facts.new_results),
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call. `arguments`: a table, a text that is sent as it is, or None: made from the tool's schema."""

    name: str
    arguments: object = None
    id: str = ""
    check: bool = True  # that the tool is offered and that the arguments fit its schema


@dataclass(frozen=True, slots=True)
class Answer:
    """What a rule answers a request with. Without content, the mock's own answer gets what else is set here."""

    text: str | None = None
    pieces: tuple[str, ...] = ()  # of the text, as a stream has them
    json: object = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    refusal: str = ""
    finish_reason: str = ""
    usage: JSONObject | None = None  # OpenAI's object, with what the rule gives
    model: str = ""
    id: str = ""
    embedding: tuple[float, ...] = ()
    flagged: tuple[str, ...] = ()  # categories of a moderation
    error: ErrorAnswer | None = None
    faults: tuple[Fault, ...] = ()
    pace: Pace = field(default_factory=Pace)
    backend: str = ""  # that the request is passed on to
    rule: str = ""
    step: int = 0

    @property
    def has_content(self) -> bool:
        return bool(
            self.text is not None
            or self.pieces
            or self.json is not None
            or self.tool_calls
            or self.reasoning
            or self.refusal
        )

    def filled(self, facts: Facts, captures: Captures) -> "Answer":
        """This step with the values of a request."""
        fill = Filler(facts, captures)
        error = self.error
        if error is not None:
            error = replace(error, message=fill.text(error.message))
        return replace(
            self,
            text=None if self.text is None else fill.text(self.text),
            pieces=tuple(fill.text(piece) for piece in self.pieces),
            json=fill.value(self.json),
            tool_calls=tuple(
                replace(call, arguments=fill.value(call.arguments), id=fill.text(call.id))
                for call in self.tool_calls
            ),
            reasoning=fill.text(self.reasoning),
            refusal=fill.text(self.refusal),
            error=error,
        )


class Filler:
    """Fills placeholders: `{name}` is a capture or a field of the request, `{{` a brace."""

    def __init__(self, facts: Facts, captures: Captures) -> None:
        self.facts = facts
        self.captures = captures

    def lookup(self, name: str) -> str:
        if name in self.captures:
            return self.captures[name]
        # A group of a regex in an alternative that was not tried captured nothing.
        return VALUES[name](self.facts) if name in VALUES else ""

    def text(self, template: str) -> str:
        if "{" not in template:
            return template
        return PLACEHOLDER.sub(self.replaced, template)

    def replaced(self, found: re.Match[str]) -> str:
        return "{" if found[1] is None else self.lookup(found[1])

    def value(self, template: object) -> object:
        """JSON with its texts filled. A text that is one placeholder with `:int` or `:float` becomes a number."""
        if isinstance(template, dict):
            return {self.text(name): self.value(item) for name, item in template.items()}
        if isinstance(template, list):
            return [self.value(item) for item in template]
        if not isinstance(template, str):
            return template
        whole = PLACEHOLDER.fullmatch(template)
        if whole and whole[2]:
            return number_of(self.lookup(whole[1]), whole[2])
        return self.text(template)


def number_of(text: str, kind: str) -> object:
    """A number that JSON can carry; the text itself where it is none."""
    try:
        number = int(text) if kind == "int" else float(text)
    except ValueError:
        return text
    return number if abs(number) < 2**63 and math.isfinite(number) else text


def check_placeholders(value: object, names: Iterable[str], where: str) -> None:
    """Raises ValueError for a placeholder in a text of `value` that is neither a capture nor a field of the request."""
    if isinstance(value, dict):
        for name, item in value.items():
            check_placeholders(name, names, where)
            check_placeholders(item, names, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_placeholders(item, names, where)
    elif isinstance(value, str):
        known = [*names, *VALUES]
        for found in PLACEHOLDER.finditer(value):
            name = found[1]
            if name is not None and name not in known:
                hint = nearest_name(name, known)
                raise ValueError(
                    f"{where}: unknown placeholder {{{name}}}: {hint} ({{{{ is a brace)"
                )


FIELDS = (
    "text",
    "pieces",
    "json",
    "tool",
    "arguments",
    "tool_calls",
    "reasoning",
    "refusal",
    "finish_reason",
    "usage",
    "model",
    "id",
    "embedding",
    "flagged",
    "error",
    "fault",
    *PACE_FIELDS,
    "backend",
)
TEXT_SOURCES = ("text", "pieces", "json")
# An error, a backend, an embedding or a moderation is the whole answer.
ALONE = ("error", "backend", "embedding", "flagged")
CONTENT = (*TEXT_SOURCES, "tool", "tool_calls", "reasoning", "refusal")


def parse_step(
    value: object, where: str, names: Iterable[str], *, rule: str = "", step: int = 0
) -> Answer:
    """One step of `then`; a string is its text. `names` are the captures of the rule. Raises ValueError."""
    if isinstance(value, str):
        value = {"text": value}
    table = Table(value, where, FIELDS)
    check_contradictions(table)
    for name in ("text", "pieces", "json", "arguments", "tool_calls", "reasoning", "refusal"):
        check_placeholders(table.get(name), names, table.place(name))
    error = None
    if "error" in table:
        error = parse_error(table.get("error"), table.place("error"))
        check_placeholders(error.message, names, table.place("error"))
    return Answer(
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
        pace=Pace(
            first_byte_ms=table.number("first_byte_ms", 3_600_000),
            words_per_second=table.number("words_per_second", 1e6),
            jitter_ms=table.number("jitter_ms", 3_600_000),
        ),
        backend=table.text("backend"),
        rule=rule,
        step=step,
    )


def check_contradictions(table: Table) -> None:
    if not table.members:
        raise ValueError(f"{table.where}: is empty")
    texts = [name for name in TEXT_SOURCES if name in table]
    alone = [name for name in ALONE if name in table]
    content = [name for name in CONTENT if name in table]
    if len(texts) > 1 or len(alone) > 1:
        raise ValueError(f"{table.where}: {' and '.join(texts or alone)} exclude each other")
    if alone and content:
        raise ValueError(f"{table.where}: {alone[0]} and {content[0]} exclude each other")
    if "arguments" in table and "tool" not in table:
        raise ValueError(f"{table.place('arguments')}: needs a tool")
    if "tool" in table and "tool_calls" in table:
        raise ValueError(f"{table.where}: tool and tool_calls exclude each other")


def parse_json(table: Table, name: str) -> object:
    value = table.get(name)
    try:
        orjson.dumps(value)
    except TypeError as error:
        raise ValueError(f"{table.place(name)}: {error}") from None
    return value


def parse_tool_calls(table: Table) -> tuple[ToolCall, ...]:
    if "tool" in table:
        if not table.text("tool"):
            raise ValueError(f"{table.place('tool')}: must be a name")
        return (ToolCall(table.text("tool"), parse_json(table, "arguments")),)
    if "tool_calls" not in table:
        return ()
    where = table.place("tool_calls")
    rows = table.get("tool_calls")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{where}: must be a list of tables")
    return tuple(parse_tool_call(row, f"{where}[{position}]") for position, row in enumerate(rows))


def parse_tool_call(value: object, where: str) -> ToolCall:
    call = Table(value, where, ("name", "arguments", "id", "check"))
    if not call.text("name"):
        raise ValueError(f"{where}: needs a name")
    check = call.flag("check") if "check" in call else True
    return ToolCall(call.text("name"), parse_json(call, "arguments"), call.text("id"), check)


def parse_usage(table: Table) -> JSONObject | None:
    """OpenAI's usage object, with those members that the rule gives."""
    if "usage" not in table:
        return None
    counts = Table(table.get("usage"), table.place("usage"), USAGE)
    usage: JSONObject = {}
    for name in USAGE[:3]:
        if name in counts:
            usage[name] = counts.integer(name, 0, 10**12)
    if "cached_tokens" in counts:
        cached = counts.integer("cached_tokens", 0, 10**12)
        usage["prompt_tokens_details"] = {"cached_tokens": cached, "audio_tokens": 0}
    if "reasoning_tokens" in counts:
        reasoning = counts.integer("reasoning_tokens", 0, 10**12)
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    if "prompt_tokens" in usage and "completion_tokens" in usage:
        usage.setdefault("total_tokens", usage["prompt_tokens"] + usage["completion_tokens"])
    return usage


def parse_embedding(table: Table) -> tuple[float, ...]:
    if "embedding" not in table:
        return ()
    numbers = table.get("embedding")
    if not isinstance(numbers, list) or not numbers:
        raise ValueError(f"{table.place('embedding')}: must be a list of numbers")
    for number in numbers:
        if (
            not isinstance(number, (int, float))
            or isinstance(number, bool)
            or not math.isfinite(number)
        ):
            raise ValueError(f"{table.place('embedding')}: must be a list of numbers")
    return tuple(float(number) for number in numbers)


def parse_flagged(table: Table) -> tuple[str, ...]:
    """Categories of a moderation; true is violence."""
    if table.get("flagged") is True:
        return ("violence",)
    names = table.strings("flagged")
    for name in names:
        if name not in CATEGORIES:
            raise ValueError(
                f"{table.place('flagged')}: {name!r}: {nearest_name(name, CATEGORIES)}"
            )
    return names


def parse_fault_field(table: Table) -> tuple[Fault, ...]:
    try:
        return parse_faults(table.text("fault"))
    except ValueError as error:
        raise ValueError(f"{table.place('fault')}: {error}") from None


def deltas_of(
    answer: Answer, request: ChatRequest, check: Check | None = None, fill: Fill | None = None
) -> list[Delta]:
    """The Deltas of an answer with content, for each choice. Raises APIError where the answer is an error, or where a
    tool call does not fit the tools offered (400: clients do not try that again).
    """
    if answer.error:
        raise answer.error.error()
    facts = Facts.of(request)
    calls = [(call, arguments_of(answer, call, facts, check, fill)) for call in answer.tool_calls]
    text = answer.text or ""
    if answer.json is not None:
        text = orjson.dumps(answer.json).decode()
    finish_reason = answer.finish_reason or ("tool_calls" if calls else "stop")
    deltas = []
    for index in range(request.payload.get("n") or 1):
        if answer.reasoning:
            names = ("reasoning_content", "reasoning")  # clients read either
            deltas.append(Delta(index=index, fields=dict.fromkeys(names, answer.reasoning)))
        if answer.refusal:
            deltas.append(Delta(index=index, fields={"refusal": answer.refusal}))
        if text:
            deltas.append(Delta(text, index=index, whole=True))
        deltas += [Delta(piece, index=index) for piece in answer.pieces]
        for position, (call, arguments) in enumerate(calls):
            call_id = call.id or made_id(answer, facts, index, position)
            deltas += call_deltas(call, arguments, call_id, index, position)
        deltas.append(Delta(finish_reason=finish_reason, index=index))
    deltas[-1].usage = answer.usage
    return deltas


def arguments_of(
    answer: Answer, call: ToolCall, facts: Facts, check: Check | None, fill: Fill | None
) -> str:
    """The arguments of a call as JSON text. Raises APIError where they do not fit the schema offered."""
    tool = facts.tools.get(call.name)
    if tool is None and call.check:
        offered = ", ".join(list(facts.tools)[:20]) or "none"
        raise misfit(answer, f"the tool {call.name!r} is not offered (offered: {offered})")
    schema = (tool or {}).get("parameters") or {"type": "object"}
    arguments = call.arguments
    if isinstance(arguments, str):
        return arguments
    if arguments is None:
        arguments = fill(schema, facts.message) if fill else {}
    reason = check(schema, arguments) if check and call.check else ""
    if reason:
        raise misfit(answer, f"the arguments for {call.name!r} do not fit its schema: {reason}")
    return orjson.dumps(arguments).decode()


def misfit(answer: Answer, reason: str) -> APIError:
    message = f"The mock's rule {answer.rule!r} cannot answer: {reason}."
    return APIError(400, message, param="tools", code="mock_rule_misfit")


def made_id(answer: Answer, facts: Facts, index: int, position: int) -> str:
    """The id of a call: the same for the same request, another one for each call of a conversation."""
    parts = (answer.rule, answer.step, len(facts.messages), index, position, facts.message[:1000])
    return f"call_{blake2b(repr(parts).encode(), digest_size=12).hexdigest()}"


def call_deltas(
    call: ToolCall, arguments: str, call_id: str, index: int, position: int
) -> list[Delta]:
    """Id and name in the first piece, then the arguments in pieces."""
    first = {"name": call.name, "arguments": ""}
    pieces: list[JSONObject] = [{"id": call_id, "type": "function", "function": first}]
    size = max(PIECE, -(-len(arguments) // MAX_PIECES))
    for start in range(0, len(arguments), size):
        pieces.append({"function": {"arguments": arguments[start : start + size]}})
    return [
        Delta(index=index, fields={"tool_calls": [{"index": position, **piece}]})
        for piece in pieces
    ]


async def as_stream(deltas: Iterable[Delta]) -> Deltas:
    for delta in deltas:
        yield delta
