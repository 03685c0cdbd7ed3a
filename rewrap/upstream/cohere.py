"""Requests in the form of Cohere's chat API, version 2: messages, tools, formats, thinking.

Pure functions. Source: docs.cohere.com/reference/chat.
"""

from rewrap.types import ChatRequest, JSONObject, text_of
from rewrap.upstream.messages import (
    TOOL_ROLES,
    format_type,
    image_url_of,
    is_text,
    offered_functions,
    parts_of,
    role_of,
    schema_of,
    tool_calls_of,
    with_system_role,
)

CHOICES = {"required": "REQUIRED", "any": "REQUIRED", "none": "NONE"}
NO_PARAMETERS: JSONObject = {"type": "object", "properties": {}}


def messages(request: ChatRequest) -> list[JSONObject]:
    """The messages in Cohere's form. A content is a list if it has images, else a string. Empty messages are left out."""
    converted = [cohere_message(message) for message in with_system_role(request.messages)]
    return [message for message in converted if len(message) > 1]


def cohere_message(message: JSONObject) -> JSONObject:
    role = role_of(message)
    if role in TOOL_ROLES:
        text = text_of(message.get("content"))
        return {"role": "tool", "tool_call_id": message.get("tool_call_id"), "content": text}
    result: JSONObject = {"role": role}
    parts = [part for part in parts_of(message) if is_text(part) or image_url_of(part)]
    if any(image_url_of(part) for part in parts):
        result["content"] = parts
    elif parts:
        result["content"] = text_of(parts)
    calls = tool_calls_of(message)
    if calls:
        result["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for call in calls
        ]
    return result


def tools(request: ChatRequest) -> list[JSONObject] | None:
    converted: list[JSONObject] = []
    for function in offered_functions(request.payload):
        members = {name: function[name] for name in ("name", "description") if function.get(name)}
        members["parameters"] = function.get("parameters") or NO_PARAMETERS
        converted.append({"type": "function", "function": members})
    return converted or None


def tool_choice(request: ChatRequest) -> str | None:
    """REQUIRED or NONE; Cohere's default is OpenAI's auto."""
    choice = request.payload.get("tool_choice")
    if not isinstance(choice, str) or not offered_functions(request.payload):
        return None
    return CHOICES.get(choice)


def response_format(request: ChatRequest) -> JSONObject | None:
    """`{"type": "json_object", "json_schema": schema}`."""
    if format_type(request.payload) not in ("json_object", "json_schema"):
        return None
    schema = schema_of(request.payload)
    if schema is None:
        return {"type": "json_object"}
    return {"type": "json_object", "json_schema": schema}


def thinking(request: ChatRequest) -> object:
    """The client's own `thinking`, or that of its `reasoning_effort`."""
    if request.payload.get("thinking") is not None:
        return request.payload["thinking"]
    effort = request.payload.get("reasoning_effort")
    if effort is None:
        return None
    if effort == "none":
        return {"type": "disabled"}
    return {"type": "enabled"}
