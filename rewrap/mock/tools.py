"""Which tools the mock calls, with which arguments, and its reply to their results.

Pure functions on decoded JSON. The current turn is the messages after the last user message.
Imports its own room and leaf files.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import orjson

from rewrap.mock.budget import JSON, NO_LIMIT, Budget, SchemaError, members, schemas
from rewrap.mock.patterns import text_for
from rewrap.mock.prompt import TOKEN, words_of_name
from rewrap.mock.schema import value_for
from rewrap.regex import regex

MAX_CALLS = 16
MAX_WORDS = 16  # of a tool's name
READ = 20_000  # characters of the user message in which tools are looked for
NEGATION = regex(r"\b(?:not|no|never|without|instead)\b", re.IGNORECASE)
JOINT = regex(r"\b(?:and|then)\b|[,;&+\n]", re.IGNORECASE)

Message: TypeAlias = dict[str, JSON]
Messages: TypeAlias = list[Message]


class Call(NamedTuple):
    """`arguments` is a JSON text, or the plain input for the type "custom"."""

    name: str
    arguments: str
    type: str = "function"


class Tool(NamedTuple):
    name: str
    type: str
    spec: dict[str, JSON]
    param: str


class Mention(NamedTuple):
    """A tool in the user's text, and where its name stands there."""

    tool: Tool
    start: int
    end: int


def choose_calls(
    messages: Messages,
    tools: list[dict[str, JSON]],
    tool_choice: JSON = None,
    parallel_tool_calls: bool = True,
) -> list[Call]:
    """The calls of the reply; empty where the mock answers in text.

    With "auto", the last user message has to name a tool, by its name or the words in it; several
    that are joined by "and" give several calls. Once a tool has answered in the current turn,
    "auto" makes no call, so that agents end by themselves. "required" and a named tool mean a call
    at each request, as with OpenAI: a client that repeats them has to end its loop itself. After
    a result, "required" prefers a tool that has not been called in this turn, the last one in the
    list first, as that is where libraries append the tool that ends the run.

    Raises SchemaError, with its `param`, where arguments cannot be made or the named tool is
    missing.
    """
    offered = parsed_tools(tools)
    mode, offered = narrowed(offered, tool_choice)
    if mode == "none" or not offered:
        return []
    # A call that is demanded is a library's way to a typed output: one without values is no use.
    fill = mode == "required"
    turn = turn_of(messages)
    text = user_text(messages)
    if any(is_tool_message(message) for message in turn):
        # Another call would be answered in turn: the agent would go on until its limit.
        if mode == "auto":
            return []
        called = {name for _, name in calls_of(turn)}
        unused = [tool for tool in offered if tool.name not in called]
        prompt = "\n".join([*results_of(turn), text])
        return [call_of((unused or offered)[-1], prompt, fill)]
    mentions = mentioned(offered, text[:READ])
    if not parallel_tool_calls:
        del mentions[1:]
    if mentions:
        parts = zip(mentions, texts_after(text, mentions), strict=True)
        return [call_of(mention.tool, part, fill) for mention, part in parts]
    if mode == "auto":
        return []
    return [call_of(offered[0], text, fill)]


def choose_function(
    messages: Messages, functions: list[dict[str, JSON]], function_call: JSON = None
) -> Call | None:
    """The call for the legacy parameters `functions` and `function_call`."""
    tools: list[dict[str, JSON]] = [{"type": "function", "function": f} for f in functions]
    choice = function_call
    if isinstance(function_call, dict):
        choice = {"type": "function", "function": function_call}
    calls = choose_calls(messages, tools, choice, parallel_tool_calls=False)
    if calls:
        return calls[0]
    return None


def reply_after_tools(messages: Messages) -> str | None:
    """A text that contains the tools' results; None where the last message is not one of them."""
    for message in reversed(messages):
        if is_tool_message(message):
            return "\n".join(results_of(turn_of(messages)))
        # Instructions may follow the results of a turn.
        if message.get("role") not in ("system", "developer"):
            return None
    return None


def call_id(position: int, seed: str) -> str:
    """An id such as OpenAI's for the call at a position: 24 hex digits from a short seed."""
    digest = hashlib.blake2b(f"{position}:{seed}".encode(), digest_size=12)
    return f"call_{digest.hexdigest()}"


def parsed_tools(tools: list[dict[str, JSON]]) -> list[Tool]:
    found: list[Tool] = []
    for index, tool in enumerate(tools):
        kind = str(tool.get("type", "function"))
        spec = members(tool, kind) or tool
        name = spec.get("name")
        param = f"tools[{index}]"
        if spec is not tool:
            param += f".{kind}"
        if kind in ("function", "custom") and isinstance(name, str):
            found.append(Tool(name, kind, spec, param))
    return found


def narrowed(offered: list[Tool], choice: JSON) -> tuple[str, list[Tool]]:
    """The mode, which is "none", "auto" or "required", and the tools that may be called."""
    if not isinstance(choice, dict):
        return str(choice or "auto"), offered
    kind = str(choice.get("type"))
    spec = members(choice, kind) or choice
    if kind == "allowed_tools":
        names = [name_of(tool) for tool in schemas(spec, "tools")]
        allowed = [tool for tool in offered if tool.name in names]
        return str(spec.get("mode", "auto")), allowed
    name = spec.get("name")
    chosen = [tool for tool in offered if tool.name == name]
    if not chosen:
        message = f"Tool choice '{name}' not found in 'tools' parameter."
        raise SchemaError(message, "tool_choice")
    return "required", chosen


def name_of(tool: JSON) -> JSON:
    if not isinstance(tool, dict):
        return None
    spec = members(tool, str(tool.get("type"))) or tool
    return spec.get("name")


def message_text(message: Message) -> str:
    """The text of a message, whose content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = [part for part in schemas(message, "content") if isinstance(part, dict)]
    texts = [part.get("text") for part in parts]
    return "\n".join(text for text in texts if isinstance(text, str))


def turn_of(messages: Messages) -> Messages:
    """The messages after the last user message."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].get("role") == "user":
            return messages[index + 1 :]
    return messages


def user_text(messages: Messages) -> str:
    for message in reversed(messages):
        if message.get("role") == "user":
            return message_text(message)
    return ""


def is_tool_message(message: Message) -> bool:
    return message.get("role") in ("tool", "function")


def calls_of(turn: Messages) -> list[tuple[str, str]]:
    """The id and the name of each call that the assistant made."""
    found: list[tuple[str, str]] = []
    for message in turn:
        for call in schemas(message, "tool_calls"):
            if isinstance(call, dict):
                found.append((str(call.get("id")), str(name_of(call))))
        legacy = members(message, "function_call")
        if legacy:
            found.append(("", str(legacy.get("name"))))
    return found


def results_of(turn: Messages) -> list[str]:
    """A line for each result after the last call: the tool's name and what it returned."""
    names = dict(calls_of(turn))
    lines: list[str] = []
    for message in turn:
        # Earlier results were answered by these calls.
        if message.get("role") == "assistant":
            lines = []
        if is_tool_message(message):
            known = names.get(str(message.get("tool_call_id")))
            name = message.get("name") or known or "The tool"
            lines.append(f"{name} returned: {message_text(message)}")
    return lines


def mentioned(offered: Iterable[Tool], text: str) -> list[Mention]:
    """The tools that the text names, in its order; only the first where no "and" joins them."""
    phrases: dict[tuple[str, ...], Tool] = {}
    for tool in offered:
        phrase = tuple(words_of_name(tool.name).split()[:MAX_WORDS])
        if phrase:
            phrases[phrase] = tool
    # The longest first: get_weather_forecast does not name get_weather.
    lengths = sorted({len(phrase) for phrase in phrases}, reverse=True)
    tokens = [*TOKEN.finditer(text)]
    words = [token[0].lower() for token in tokens]
    found: list[Mention] = []
    index = 0
    while index < len(words) and len(found) < MAX_CALLS:
        spans = (tuple(words[index : index + length]) for length in lengths)
        phrase = next((span for span in spans if span in phrases), ())
        if phrase:
            last = tokens[index + len(phrase) - 1]
            mention = Mention(phrases[phrase], tokens[index].start(), last.end())
            if not found or asks_for_both(text[found[-1].end : mention.start]):
                found.append(mention)
        index += len(phrase) or 1
    return found


def asks_for_both(between: str) -> bool:
    """Whether the text between two names of tools asks for both."""
    return JOINT.search(between) is not None and NEGATION.search(between) is None


def texts_after(text: str, mentions: list[Mention]) -> list[str]:
    """For each mention the text up to the next one, then the whole text."""
    if len(mentions) == 1:
        return [text]
    ends = [mention.start for mention in mentions[1:]] + [len(text)]
    starts = [mention.start for mention in mentions]
    spans = zip(starts, ends, strict=True)
    return [f"{text[start:end]}\n{text}" for start, end in spans]


def call_of(tool: Tool, prompt: str, fill: bool) -> Call:
    """The call of the tool with arguments filled from the prompt.

    With `fill`, an object that requires nothing has all its properties.
    """
    try:
        if tool.type == "custom":
            return Call(tool.name, input_by_grammar(tool.spec, prompt), "custom")
        parameters = tool.spec.get("parameters")
        if not parameters:
            return Call(tool.name, "{}")
        value = value_for(parameters, prompt, fill=fill)
    except SchemaError as error:
        message = f"Invalid schema for function '{tool.name}': {error.message}"
        param = f"{tool.param}.parameters"
        raise SchemaError(message, param, "invalid_function_parameters") from None
    return Call(tool.name, orjson.dumps(value).decode())


def input_by_grammar(spec: dict[str, JSON], prompt: str) -> str:
    """The prompt, or a text that matches the tool's grammar where that is a regular expression."""
    grammar = members(members(spec, "format"), "grammar") or members(spec, "format")
    definition = grammar.get("definition")
    if grammar.get("syntax") == "regex" and isinstance(definition, str):
        text = text_for(f"^(?:{definition})$", 0, NO_LIMIT, 0, Budget())
        return text or ""
    return prompt
