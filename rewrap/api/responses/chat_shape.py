"""A chat completions request, sent to /v1/responses, as a Responses request.

Pure functions: no HTTP, no store. The answer is a Response object.
"""

from rewrap.api.checks import check_messages, object_rows
from rewrap.api.responses.request import LOGPROBS
from rewrap.types import JSONObject

RENAMED = {"max_completion_tokens": "max_output_tokens", "max_tokens": "max_output_tokens"}
CONTENT_TYPES = {"text": "input_text", "file": "input_file"}
CHAT_ONLY = frozenset({
    "messages", "max_completion_tokens", "max_tokens", "response_format", "verbosity",
    "reasoning_effort", "logprobs", "stream_options",
})  # fmt: skip


def from_chat_shape(payload: JSONObject) -> JSONObject:
    """A chat completions request as a Responses request. Raises APIError."""
    messages = payload.get("messages")
    check_messages("messages", messages)
    kept = {name: value for name, value in payload.items() if name not in CHAT_ONLY}
    items: list[JSONObject] = []
    for message in object_rows(messages, "messages"):
        items += items_of_message(message)
    kept["input"] = items
    for name, new_name in RENAMED.items():
        if payload.get(name) is not None:
            kept.setdefault(new_name, payload[name])
    kept["tools"] = [flat_tool(tool) for tool in object_rows(payload.get("tools") or [], "tools")]
    if isinstance(payload.get("tool_choice"), dict):
        kept["tool_choice"] = flat_choice(payload["tool_choice"])
    kept["text"] = text_of_chat(payload)
    if payload.get("reasoning_effort") is not None:
        kept["reasoning"] = {"effort": payload["reasoning_effort"]}
    if payload.get("logprobs"):
        kept["include"] = [LOGPROBS]
    return kept


def items_of_message(message: JSONObject) -> list[JSONObject]:
    """One chat message as items: a tool's result, or a message and its calls."""
    content = input_content(message)
    if message.get("role") == "tool":
        call_id = message.get("tool_call_id")
        return [{"type": "function_call_output", "call_id": call_id, "output": content}]
    items: list[JSONObject] = []
    reasoning = message.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        part = {"type": "reasoning_text", "text": reasoning}
        items.append({"type": "reasoning", "summary": [], "content": [part]})
    calls = object_rows(message.get("tool_calls") or [], "messages.tool_calls")
    if content or not calls:
        items.append({"type": "message", "role": message.get("role"), "content": content})
    items += [item_of_call(call) for call in calls]
    return items


def input_content(message: JSONObject) -> str | list[JSONObject]:
    content = message.get("content")
    if isinstance(content, list):
        return [input_part(part) for part in object_rows(content, "messages.content")]
    if isinstance(message.get("refusal"), str):
        return [{"type": "refusal", "refusal": message["refusal"]}]
    return content or ""


def item_of_call(call: JSONObject) -> JSONObject:
    function = call.get("function")
    if not isinstance(function, dict):
        function = {}
    return {
        "type": "function_call",
        "call_id": call.get("id"),
        "name": function.get("name"),
        "arguments": function.get("arguments") or "{}",
    }


def input_part(part: JSONObject) -> JSONObject:
    """A content part of a chat message; the flat forms of images and audio are the same here."""
    kind = part.get("type")
    if kind == "file" and isinstance(part.get("file"), dict):
        return {"type": "input_file", **part["file"]}
    return {**part, "type": CONTENT_TYPES.get(str(kind), kind)}


def flat_tool(tool: JSONObject) -> JSONObject:
    """`{"type": "function", "function": {...}}` without the inner object."""
    kind = tool.get("type")
    nested = tool.get(kind) if isinstance(kind, str) else None
    if isinstance(nested, dict):
        return {"type": kind, **nested}
    return tool


def flat_choice(choice: JSONObject) -> JSONObject:
    flat = flat_tool(choice)
    if flat.get("type") == "allowed_tools" and isinstance(flat.get("tools"), list):
        tools = object_rows(flat["tools"], "tool_choice.allowed_tools.tools")
        return {**flat, "tools": [flat_tool(tool) for tool in tools]}
    return flat


def text_of_chat(payload: JSONObject) -> JSONObject:
    """`text` of the Responses API, from `response_format` and `verbosity`."""
    text: JSONObject = {}
    form = payload.get("response_format")
    if isinstance(form, dict):
        text["format"] = flat_tool(form)
    if payload.get("verbosity") is not None:
        text["verbosity"] = payload["verbosity"]
    return text
