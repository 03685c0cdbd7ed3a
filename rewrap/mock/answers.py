"""The answers of rules: filled in from a request, and turned into Deltas.

A step of a rule and an answer are the same frozen struct: the texts of a step have
`{placeholders}`, those of an answer have values. steps.py reads steps.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import field, replace
from hashlib import blake2b

import orjson

from rewrap.mock.conditions import Captures
from rewrap.mock.echo import cut
from rewrap.mock.errors import ErrorAnswer
from rewrap.mock.facts import Facts, as_object
from rewrap.mock.faults import Fault
from rewrap.mock.pace import Pace
from rewrap.regex import regex
from rewrap.structs import struct
from rewrap.types import APIError, ChatRequest, Delta, Deltas, JSONObject

PLACEHOLDER = regex(r"\{\{|\{([A-Za-z_]\w*)(?::(int|float))?\}", re.ASCII)
MAX_INTEGER = 2**63
PIECE = 24  # characters of a call's arguments in one Delta
MAX_PIECES = 64  # of the arguments of one call
HASHED = 1_000  # characters of the message that the id of a call depends on

# The reason why a value does not fit a JSON schema; "" or None where it does.
MemberCheck = Callable[[JSONObject, object], str | None]
# The arguments of a call that has none: from the tool's schema and the last user message.
Fill = Callable[[JSONObject, str], object]

# The fields of a request that placeholders can name, beside the captures of the rule.
VALUES: dict[str, Callable[[Facts], str]] = {
    "model": lambda facts: facts.model,
    "message": lambda facts: facts.message,
    "user": lambda facts: facts.user,
    "system": lambda facts: facts.system,
    "turn": lambda facts: str(facts.turn),
    "call": lambda facts: str(facts.call),
    "api": lambda facts: facts.api,
    "lane": lambda facts: facts.lane,
    "tool": lambda facts: facts.new_tool,
    "tool_result": lambda facts: facts.new_text,
}


@struct(frozen=True, slots=True)
class RuleToolCall:
    """A call of a tool.

    `arguments` are JSON, or a text that is sent as it is; None: they are made from the tool's
    schema. `check`: the tool has to be offered, and the arguments have to fit its schema.
    """

    name: str
    arguments: object = None
    id: str = ""
    check: bool = True


@struct(frozen=True, slots=True)
class RuleAnswer:
    """The answer of a rule. Without content, the mock's own answer takes over the other members."""

    text: str | None = None
    pieces: tuple[str, ...] = ()  # of the text, each a chunk of a stream
    json: object = None
    tool_calls: tuple[RuleToolCall, ...] = ()
    reasoning: str = ""
    refusal: str = ""
    finish_reason: str = ""
    usage: JSONObject | None = None  # OpenAI's object, with the members that the rule gives
    model: str = ""
    id: str = ""
    embedding: tuple[float, ...] = ()
    flagged: tuple[str, ...] = ()  # categories of a moderation
    error: ErrorAnswer | None = None
    faults: tuple[Fault, ...] = ()
    pace: Pace = field(default_factory=Pace)
    backend: str = ""  # the name of the backend that the request is passed on to
    rule: str = ""
    step: int = 0
    is_template: bool = False  # has placeholders

    @property
    def has_content(self) -> bool:
        """Whether `answer_deltas` has something to send."""
        parts = (self.pieces, self.tool_calls, self.reasoning, self.refusal)
        return self.text is not None or self.json is not None or any(parts)

    def filled(self, facts: Facts, captures: Captures) -> "RuleAnswer":
        """This step with the values of a request."""
        if not self.is_template:  # the copy below is a third of the cost of a match
            return self
        fill = TextFiller(facts, captures)
        text = self.text
        if text is not None:
            text = fill.text(text)
        error = self.error
        if error is not None:
            error = replace(error, message=fill.text(error.message))
        return replace(
            self,
            text=text,
            error=error,
            tool_calls=tuple(fill.call(call) for call in self.tool_calls),
            pieces=tuple(fill.text(piece) for piece in self.pieces),
            json=fill.value(self.json),
            reasoning=fill.text(self.reasoning),
            refusal=fill.text(self.refusal),
        )


class TextFiller:
    """Fills placeholders: `{name}` is a capture or a field of the request, `{{` is a brace."""

    def __init__(self, facts: Facts, captures: Captures) -> None:
        self.facts = facts
        self.captures = captures

    def lookup(self, name: str) -> str:
        if name in self.captures:
            return self.captures[name]
        return VALUES[name](self.facts)

    def text(self, template: str) -> str:
        if "{" not in template:
            return template
        return PLACEHOLDER.sub(self.replacement, template)

    def replacement(self, found: re.Match[str]) -> str:
        name = found[1]
        if name is None:
            return "{"
        return self.lookup(name)

    def value(self, template: object) -> object:
        """JSON with its texts filled. A text that is `{name:int}` or `{name:float}` is a number."""
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

    def call(self, call: RuleToolCall) -> RuleToolCall:
        arguments = self.value(call.arguments)
        return replace(call, arguments=arguments, id=self.text(call.id))


def number_of(text: str, kind: str) -> object:
    """A number that JSON can carry, or the text itself where it is none."""
    convert = {"int": int, "float": float}[kind]
    try:
        number = convert(text)
    except ValueError:
        return text
    if math.isnan(number) or abs(number) >= MAX_INTEGER:
        return text
    return number


def placeholders(value: object) -> list[str]:
    """The names in the placeholders of all texts of a value; "" for an escaped brace."""
    if isinstance(value, str):
        return [found[1] or "" for found in PLACEHOLDER.finditer(value)]
    if isinstance(value, list):
        return [name for item in value for name in placeholders(item)]
    if isinstance(value, dict):
        return placeholders([*value.keys(), *value.values()])
    return []


def answer_deltas(
    answer: RuleAnswer,
    request: ChatRequest,
    check: MemberCheck | None = None,
    fill: Fill | None = None,
) -> list[Delta]:
    """The Deltas of an answer that has content or is an error, for each choice.

    Raises APIError: the answer's own error, or 400 where a tool call does not fit the tools that
    are offered. (Clients would try a 500 again.)
    """
    if answer.error:
        raise answer.error.error()
    facts = Facts.of(request)
    arguments = [arguments_of(answer, call, facts, check, fill) for call in answer.tool_calls]
    kept = cut(text_of_answer(answer), request.payload)
    default = "tool_calls" if answer.tool_calls else kept.finish_reason
    deltas: list[Delta] = []
    for index in range(request.payload.get("n") or 1):
        deltas += message_deltas(answer, kept.text, index)
        for position, call in enumerate(answer.tool_calls):
            call_id = call.id or made_id(answer, facts, index, position)
            for piece in call_pieces(call.name, call_id, arguments[position]):
                fields = {"tool_calls": [{"index": position, **piece}]}
                deltas.append(Delta(index=index, fields=fields))
        deltas.append(Delta(finish_reason=answer.finish_reason or default, index=index))
    deltas[-1].usage = answer.usage
    return deltas


def text_of_answer(answer: RuleAnswer) -> str:
    if answer.json is not None:
        return orjson.dumps(answer.json).decode()
    return answer.text or "".join(answer.pieces)


def message_deltas(answer: RuleAnswer, text: str, index: int) -> list[Delta]:
    """Reasoning, refusal and text of one choice. `text` is what `stop` and `max_tokens` left of it."""
    deltas = []
    if answer.reasoning:
        fields = {"reasoning_content": answer.reasoning, "reasoning": answer.reasoning}
        deltas.append(Delta(index=index, fields=fields))
    if answer.refusal:
        deltas.append(Delta(index=index, fields={"refusal": answer.refusal}))
    if text and not answer.pieces:
        deltas.append(Delta(text, index=index, whole=True))
    left = len(text)
    for piece in answer.pieces:
        if left > 0:
            deltas.append(Delta(piece[:left], index=index))
        left -= len(piece)
    return deltas


def arguments_of(
    answer: RuleAnswer,
    call: RuleToolCall,
    facts: Facts,
    check: MemberCheck | None,
    fill: Fill | None,
) -> str:
    """The arguments of a call as JSON text. Raises APIError where they do not fit the schema."""
    tool = facts.tools.get(call.name)
    if tool is None and call.check:
        offered = ", ".join(list(facts.tools)[:20]) or "none"
        raise misfit(answer, f"the tool {call.name!r} is not offered (offered: {offered})")
    schema: JSONObject = {"type": "object"}
    if tool is not None:
        schema = as_object(tool.get("parameters")) or schema
    arguments = call.arguments
    if isinstance(arguments, str):
        return arguments  # wrong JSON may be the point of a test
    if arguments is None:
        arguments = fill(schema, facts.message) if fill else {}
    if check and call.check:
        reason = check(schema, arguments)
        if reason:
            raise misfit(answer, f"the arguments of {call.name!r} do not fit its schema: {reason}")
    return orjson.dumps(arguments).decode()


def misfit(answer: RuleAnswer, reason: str) -> APIError:
    message = f"The mock's rule {answer.rule!r} cannot answer: {reason}."
    return APIError(400, message, param="tools", code="mock_rule_misfit")


def made_id(answer: RuleAnswer, facts: Facts, index: int, position: int) -> str:
    """The id of a call: the same for the same request, and unique within a conversation."""
    place = (answer.rule, answer.step, len(facts.messages), index, position)
    text = repr((*place, facts.message[:HASHED]))
    digest = blake2b(text.encode(), digest_size=12)
    return f"call_{digest.hexdigest()}"


def call_pieces(name: str, call_id: str, arguments: str) -> list[JSONObject]:
    """A call as a stream has it: id and name in the first piece, then the arguments in pieces."""
    function = {"name": name, "arguments": ""}
    pieces: list[JSONObject] = [{"id": call_id, "type": "function", "function": function}]
    size = max(PIECE, math.ceil(len(arguments) / MAX_PIECES))
    for start in range(0, len(arguments), size):
        piece = arguments[start : start + size]
        pieces.append({"function": {"arguments": piece}})
    return pieces


async def as_stream(deltas: Iterable[Delta]) -> Deltas:
    for delta in deltas:
        yield delta
