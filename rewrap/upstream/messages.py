"""The members of OpenAI's messages that a translation needs: parts, images, files and tool calls.

Pure functions. Whatever a client sends is read without an error; parts of no known form are left
out. Imports types alone. Source: OpenAI's reference of chat completions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import orjson

from rewrap.types import JSONObject, text_of

SYSTEM_ROLES = ("system", "developer")
TOOL_ROLES = ("tool", "function")
CarriesPart = Callable[[JSONObject], bool]


@dataclass(frozen=True, slots=True)
class Data:
    """The contents of a `data:` URL; `base64` is the text as it came."""

    media_type: str
    base64: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call in a message of the assistant. `signature` is Gemini's, if it came back."""

    id: str
    name: str
    arguments: str
    signature: str = ""

    @property
    def arguments_object(self) -> JSONObject:
        """The arguments as an object. A text that is none stands under `arguments`."""
        if not self.arguments.strip():
            return {}
        try:
            value = orjson.loads(self.arguments)
        except ValueError:
            value = self.arguments
        return value if isinstance(value, dict) else {"arguments": value}


def with_system_role(messages: Sequence[JSONObject]) -> list[JSONObject]:
    """The messages with `system` in place of `developer`, a role that only OpenAI's API knows."""
    return [
        {**message, "role": "system"} if message.get("role") == "developer" else message
        for message in messages
    ]


def role_of(message: JSONObject) -> str:
    role = message.get("role")
    return role if isinstance(role, str) else "user"


def dialog_of(messages: Sequence[JSONObject]) -> list[JSONObject]:
    """All messages but system ones. System texts that stand alone become the user's message."""
    dialog = [message for message in messages if role_of(message) not in SYSTEM_ROLES]
    if dialog or not messages:
        return dialog
    return [{"role": "user", "content": system_text(messages)}]


def system_text(messages: Sequence[JSONObject]) -> str:
    texts = [
        text_of(message.get("content")) for message in messages if role_of(message) in SYSTEM_ROLES
    ]
    return "\n\n".join(texts)


def parts_of(message: JSONObject) -> list[JSONObject]:
    """The content as a list of parts, without empty texts."""
    content = message.get("content")
    items = content if isinstance(content, list) else [content]
    parts: list[JSONObject] = []
    for item in items:
        part = {"type": "text", "text": item} if isinstance(item, str) else item
        if not isinstance(part, dict):
            continue
        text = part.get("text")
        if not isinstance(text, str) or text.strip():
            parts.append(part)
    return parts


def is_text(part: JSONObject) -> bool:
    return isinstance(part.get("text"), str)


def image_url_of(part: JSONObject) -> str:
    """The URL in `{"type": "image_url", "image_url": {"url"}}`; "" in any other part."""
    if part.get("type") != "image_url":
        return ""
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    return url if isinstance(url, str) else ""


def image_data_of(part: JSONObject) -> Data | None:
    """The image in a part with a `data:` URL."""
    return data_of(image_url_of(part))


def file_data_of(part: JSONObject) -> Data | None:
    """The file in `{"type": "file", "file": {"file_data"}}`, if it is sent along."""
    file = part.get("file") if part.get("type") == "file" else None
    data = file.get("file_data") if isinstance(file, dict) else None
    return data_of(data) if isinstance(data, str) else None


def audio_data_of(part: JSONObject) -> Data | None:
    """The audio in `{"type": "input_audio", "input_audio": {"data", "format"}}`."""
    audio = part.get("input_audio") if part.get("type") == "input_audio" else None
    if not isinstance(audio, dict) or not isinstance(audio.get("data"), str):
        return None
    return Data(f"audio/{audio.get('format', 'wav')}", audio["data"])


def data_of(url: str) -> Data | None:
    """The contents of a `data:` URL in base64; None for other URLs."""
    head, comma, base64 = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return None
    media_type = head.removeprefix("data:").partition(";")[0]
    return Data(media_type or "text/plain", base64)


def tool_calls_of(message: JSONObject) -> list[ToolCall]:
    calls = message.get("tool_calls")
    found: list[ToolCall] = []
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            continue
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = orjson.dumps(arguments or {}).decode()
        id = call.get("id")
        name = function.get("name")
        found.append(
            ToolCall(
                id if isinstance(id, str) else "",
                name if isinstance(name, str) else "",
                arguments,
                signature_of(call),
            )
        )
    return found


def signature_of(call: JSONObject) -> str:
    """`extra_content.google.thought_signature`, as Google's OpenAI API has it."""
    extra = call.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return signature if isinstance(signature, str) else ""


def tool_names(messages: Sequence[JSONObject]) -> dict[str, str]:
    """The names of all tools that were called, by the id of the call."""
    return {
        call.id: call.name
        for message in messages
        if isinstance(message.get("tool_calls"), list)
        for call in tool_calls_of(message)
    }


def tool_name_of(message: JSONObject, names: dict[str, str]) -> str:
    """The name of the tool whose result a message is."""
    name = message.get("name")
    if isinstance(name, str) and name:
        return name
    return names.get(str(message.get("tool_call_id")), "")


def offered_functions(payload: JSONObject) -> list[JSONObject]:
    """The `function` objects of the tools; tools of other types are left out."""
    tools = payload.get("tools")
    if not isinstance(tools, list):
        return []
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    return [function for function in functions if isinstance(function, dict)]


def chosen_function(tool_choice: object) -> str:
    """The name in `{"type": "function", "function": {"name"}}`; "" for any other choice."""
    function = tool_choice.get("function") if isinstance(tool_choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def format_type(payload: JSONObject) -> str:
    """The type of the `response_format`: text, json_object, json_schema ...; "" without one."""
    response_format = payload.get("response_format")
    type = response_format.get("type") if isinstance(response_format, dict) else None
    return type if isinstance(type, str) else ""


def schema_of(payload: JSONObject) -> JSONObject | None:
    """The JSON schema of the `response_format`, if it has one."""
    response_format = payload.get("response_format")
    wrapper = response_format.get("json_schema") if isinstance(response_format, dict) else None
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    return schema if isinstance(schema, dict) else None


def content_parts(messages: Sequence[JSONObject]) -> Iterator[JSONObject]:
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            yield from (part for part in content if isinstance(part, dict))


def part_types(messages: Sequence[JSONObject]) -> set[str]:
    """The types of content parts that are no texts."""
    return {str(part.get("type")) for part in content_parts(messages) if not is_text(part)}
