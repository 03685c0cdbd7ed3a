"""The mock's reply without a rule: tool calls, structured output, or an echo of the prompt.

The same request has the same reply. A word counts as a token. Modules for schemas are imported when a request needs them.
"""

from dataclasses import field
from hashlib import blake2b

import orjson

from rewrap.mock.echo import cut, echoed_text
from rewrap.structs import struct
from rewrap.types import APIError, ChatRequest, Delta, JSONObject, text_of, words

# Parameters that ask for more than an echo.
SPECIAL = frozenset(
    [
        "tools",
        "functions",
        "response_format",
        "logprobs",
        "reasoning_effort",
        "include_reasoning",
        "modalities",
        "audio",
    ]
)
RESULT_ROLES = ("tool", "function")
REASONING_TOKENS = {"low": 64, "medium": 256, "high": 1024, "xhigh": 2048, "max": 4096}
REASONING = "The mock considers the request and answers without a model."
NO_AUDIO = "This model does not support audio output. Remove 'audio' from 'modalities'."
PIECE_CHARACTERS = 16  # of a tool call's arguments in a stream


@struct(slots=True)
class ReplyChoice:
    """One choice. `tokens` counts the words of the text, or of the arguments."""

    text: str = ""
    tokens: int = 0
    finish_reason: str = "stop"
    tool_calls: list[JSONObject] = field(default_factory=list)
    function_call: JSONObject | None = None
    reasoning: str = ""
    reasoning_tokens: int = 0
    top_logprobs: int | None = None  # None: the client wants no logprobs


def is_plain_echo(request: ChatRequest) -> bool:
    """Whether an echo answers the request."""
    if request.messages[-1].get("role") in RESULT_ROLES:
        return False
    return SPECIAL.isdisjoint(request.payload)


def reply_to(request: ChatRequest) -> ReplyChoice:
    """The reply to any request. Raises APIError in OpenAI's words."""
    payload = request.payload
    if "audio" in (payload.get("modalities") or []):
        raise APIError(400, NO_AUDIO, param="modalities", code="unsupported_value")
    reply = called(request) or ReplyChoice()
    if not reply.tool_calls and reply.function_call is None:
        text = structured_text(request) or text_after_tools(request) or echoed_text(request)
        result = cut(text, payload)
        reply.text = result.text
        reply.tokens = result.tokens
        reply.finish_reason = result.finish_reason
    effort = payload.get("reasoning_effort")
    reply.reasoning_tokens = REASONING_TOKENS.get(effort, 0) if isinstance(effort, str) else 0
    wants_reasoning = payload.get("include_reasoning") or request.api == "responses"
    if reply.reasoning_tokens and wants_reasoning:
        reply.reasoning = REASONING
    if payload.get("logprobs"):
        reply.top_logprobs = payload.get("top_logprobs") or 0
    return reply


# Tool calls.


def called(request: ChatRequest) -> ReplyChoice | None:
    """The reply that calls tools; None if the mock answers in text. Raises APIError."""
    payload = request.payload
    tools = payload.get("tools") or []
    functions = payload.get("functions") or []
    if not tools and not functions:
        return None
    from rewrap.mock.budget import SchemaError
    from rewrap.mock.tools import call_id, choose_calls, choose_function

    try:
        if payload.get("tool_choice") != "none":
            check_schemas(tools)
        if not tools:
            call = choose_function(request.messages, functions, payload.get("function_call"))
            if call is None:
                return None
            function = {"name": call.name, "arguments": call.arguments}
            tokens = len(call.arguments.split())
            return ReplyChoice(tokens=tokens, finish_reason="function_call", function_call=function)
        calls = choose_calls(
            request.messages,
            tools,
            payload.get("tool_choice"),
            payload.get("parallel_tool_calls") is not False,
        )
    except SchemaError as error:
        raise APIError(400, error.message, param=error.param, code=error.code) from None
    if not calls:
        return None
    seed = seed_of(request)
    reply = ReplyChoice(finish_reason="tool_calls")
    for position, call in enumerate(calls):
        document: JSONObject = {"id": call_id(position, seed), "type": call.type}
        content = {"name": call.name, "arguments": call.arguments}
        if call.type == "custom":
            content = {"name": call.name, "input": call.arguments}
        document[call.type] = content
        reply.tool_calls.append(document)
        reply.tokens += len(call.arguments.split())
    return reply


def check_schemas(tools: list[JSONObject]) -> None:
    """Refuse the schemas that OpenAI refuses, and more of them for strict functions. Raises SchemaError."""
    from rewrap.mock.strict import check_function_parameters, check_strict

    for position, tool in enumerate(tools):
        function = tool.get("function")
        if not isinstance(function, dict):
            continue
        name = function.get("name", "")
        schema = function.get("parameters")
        param = f"tools[{position}].function.parameters"
        if function.get("strict") is True:
            check_strict(schema, name, "function", param, "invalid_function_parameters")
        elif schema is not None:
            check_function_parameters(schema, name, param)


def seed_of(request: ChatRequest) -> str:
    """A short text that tells conversations and their turns apart, for ids of tool calls."""
    last = request.messages[-1]
    text = f"{len(request.messages)}:{text_of(last.get('content'))[:2000]}"
    return blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()


def text_after_tools(request: ChatRequest) -> str:
    """A text that contains the tools' results; "" if the last message is not one of them."""
    if request.messages[-1].get("role") == "user":
        return ""
    from rewrap.mock.tools import reply_after_tools

    results = reply_after_tools(request.messages)
    return f"The tools answered: {results}" if results else ""


# Structured output.


def structured_text(request: ChatRequest) -> str:
    """JSON text that is valid by the response format; "" if it is text. Raises APIError."""
    form = request.payload.get("response_format") or {}
    kind = form.get("type")
    if kind not in ("json_object", "json_schema"):
        return ""
    from rewrap.mock.budget import SchemaError
    from rewrap.mock.json_mode import json_object_for

    prompt = prompt_of(request)
    try:
        if kind == "json_schema":
            return dumped(schema_value(form.get("json_schema") or {}, prompt))
        others = [text_of(message.get("content")) for message in request.messages[:-1]]
        return dumped(json_object_for(prompt, "\n".join(others)))
    except SchemaError as error:
        param = error.param or "response_format"
        raise APIError(400, error.message, param=param, code=error.code) from None


def schema_value(form: JSONObject, prompt: str) -> object:
    """A value for `{"name", "schema", "strict"}`. Raises SchemaError."""
    from rewrap.mock.schema import value_for
    from rewrap.mock.strict import check_strict

    schema = form.get("schema")
    if form.get("strict") is True:
        check_strict(schema, form.get("name", ""))
    return value_for(schema if schema is not None else {}, prompt, fill=True)


def prompt_of(request: ChatRequest) -> str:
    for message in reversed(request.messages):
        if message.get("role") == "user":
            return text_of(message.get("content"))
    return ""


def dumped(value: object) -> str:
    return orjson.dumps(value).decode()


# Deltas.


def deltas_of_reply(reply: ReplyChoice, index: int) -> list[Delta]:
    """One choice as Deltas. Tool calls come in pieces, as OpenAI streams them."""
    deltas: list[Delta] = []
    if reply.reasoning:
        fields = {"reasoning_content": reply.reasoning, "reasoning": reply.reasoning}
        deltas.append(Delta(index=index, fields=fields))
    if reply.function_call is not None:
        deltas.append(Delta(index=index, fields={"function_call": reply.function_call}))
    for position, call in enumerate(reply.tool_calls):
        deltas += call_deltas(position, call, index)
    if reply.top_logprobs is None:
        if reply.text:
            deltas.append(Delta(reply.text, index=index, whole=True))
    else:
        for word in words(reply.text):
            logprobs = {"content": [token_of(word, reply.top_logprobs)], "refusal": None}
            deltas.append(Delta(word, index=index, logprobs=logprobs))
    deltas.append(Delta(finish_reason=reply.finish_reason, index=index))
    return deltas


def call_deltas(position: int, call: JSONObject, index: int) -> list[Delta]:
    """The pieces of one call: id and name first, then the arguments."""
    type = call["type"]
    member = "input" if type == "custom" else "arguments"
    text: str = call[type][member]
    head = {"index": position, **call, type: {"name": call[type]["name"], member: ""}}
    pieces: list[JSONObject] = [head]
    for start in range(0, len(text), PIECE_CHARACTERS):
        piece = {member: text[start : start + PIECE_CHARACTERS]}
        pieces.append({"index": position, type: piece})
    return [Delta(index=index, fields={"tool_calls": [piece]}) for piece in pieces]


def token_of(word: str, count: int) -> JSONObject:
    """A token with a made-up log probability, and `count` alternatives to it."""
    alternatives = [word, *(f"{word.strip()}{n}" for n in range(1, count))][:count]
    rows = [logprob_row(text, -0.05 - 0.5 * place) for place, text in enumerate(alternatives)]
    return logprob_row(word, -0.05) | {"top_logprobs": rows}


def logprob_row(text: str, logprob: float) -> JSONObject:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
