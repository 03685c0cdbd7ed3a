"""Requests in the form of Ollama's API: messages with images and tool calls, formats, thinking.

Pure functions. Source: github.com/ollama/ollama, docs/api.md.
"""

from rewrap.types import ChatRequest, JSONObject, text_of
from rewrap.upstream.messages import (
    TOOL_ROLES,
    content_parts,
    format_type,
    image_data_of,
    offered_functions,
    parts_of,
    role_of,
    schema_of,
    tool_calls_of,
    tool_name_of,
    tool_names,
    with_system_role,
)

EFFORTS = {"none": False, "minimal": "low", "xhigh": "high"}


def messages(request: ChatRequest) -> list[JSONObject]:
    """`{"role", "content", "images": ["base64"], "tool_calls", "tool_name"}`."""
    names = tool_names(request.messages)
    converted: list[JSONObject] = []
    for message in with_system_role(request.messages):
        result = ollama_message(message)
        if result["role"] == "tool":
            result["tool_name"] = tool_name_of(message, names)
        if result["content"] or len(result) > 2:
            converted.append(result)
    return converted


def ollama_message(message: JSONObject) -> JSONObject:
    role = role_of(message)
    result: JSONObject = {
        "role": "tool" if role in TOOL_ROLES else role,
        "content": text_of(message.get("content")),
    }
    found = [image_data_of(part) for part in parts_of(message)]
    data = [image.base64 for image in found if image is not None]
    if data:
        result["images"] = data
    calls = tool_calls_of(message)
    if calls:
        result["tool_calls"] = [
            {"function": {"name": call.name, "arguments": call.arguments_object}} for call in calls
        ]
    return result


def images(request: ChatRequest) -> list[str] | None:
    """All images of the conversation in base64, for /api/generate."""
    found = [image_data_of(part) for part in content_parts(request.messages)]
    return [image.base64 for image in found if image is not None] or None


def tools(request: ChatRequest) -> object:
    """Ollama has no `tool_choice`: without tools, none is called."""
    functions = offered_functions(request.payload)
    if request.payload.get("tool_choice") == "none" or not functions:
        return None
    return [{"type": "function", "function": function} for function in functions]


def format(request: ChatRequest) -> object:
    """`"json"`, or a JSON schema."""
    if format_type(request.payload) == "json_object":
        return "json"
    return schema_of(request.payload)


def think(request: ChatRequest) -> object:
    """true, false, or a level. `think` of the client wins over `reasoning_effort`."""
    value = request.payload.get("think")
    if value is not None:
        return value
    effort = request.payload.get("reasoning_effort")
    return EFFORTS.get(str(effort), effort)
