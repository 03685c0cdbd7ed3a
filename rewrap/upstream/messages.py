"""The members of OpenAI's messages that a translation needs: parts, images, files and tool calls.

Pure functions. A message of any form is read without an error; parts of an unknown form are left
out. Imports types and leaf files. Source: OpenAI's reference of chat completions.
"""

from collections.abc import Callable, Iterator, Sequence

import orjson

from rewrap.structs import struct
from rewrap.types import JSONObject, text_of
from rewrap.upstream.members import list_member, object_member, text_member

SYSTEM_ROLES = ("system", "developer")
TOOL_ROLES = ("tool", "function")
CarriesPart = Callable[[JSONObject], bool]


@struct(frozen=True, slots=True)
class Data:
    """The contents of a `data:` URL; `base64` is the text as it came."""

    media_type: str
    base64: str


@struct(frozen=True, slots=True)
class ToolCall:
    """One call in a message of the assistant. `signature` is Gemini's, if the client sent it back."""

    id: str
    name: str
    arguments: str
    signature: str = ""

    @property
    def arguments_object(self) -> JSONObject:
        """The arguments as an object. Models also write texts that are none: see `arguments`."""
        if not self.arguments.strip():
            return {}
        try:
            value = orjson.loads(self.arguments)
        except ValueError:
            value = self.arguments
        if isinstance(value, dict):
            return value
        return {"arguments": value}


# Messages.


def role_of(message: JSONObject) -> str:
    return text_member(message, "role") or "user"


def with_system_role(messages: Sequence[JSONObject]) -> list[JSONObject]:
    """The messages with `system` in place of `developer`, a role that only OpenAI's API knows."""
    return [system_message(message) for message in messages]


def system_message(message: JSONObject) -> JSONObject:
    if message.get("role") != "developer":
        return message
    return {**message, "role": "system"}


def dialog_of(messages: Sequence[JSONObject]) -> list[JSONObject]:
    """All messages but system ones. System texts that stand alone become the user's message."""
    dialog = [message for message in messages if role_of(message) not in SYSTEM_ROLES]
    if dialog or not messages:
        return dialog
    texts = [text_of(message.get("content")) for message in messages]
    return [{"role": "user", "content": "\n\n".join(texts)}]


# Parts of contents.


def parts_of(message: JSONObject) -> list[JSONObject]:
    """The content as a list of parts, without empty texts."""
    content = message.get("content")
    items = content if isinstance(content, list) else [content]
    parts = [as_part(item) for item in items]
    return [part for part in parts if part and not is_blank(part)]


def as_part(item: object) -> JSONObject:
    if isinstance(item, str):
        return {"type": "text", "text": item}
    if isinstance(item, dict):
        return item
    return {}


def is_blank(part: JSONObject) -> bool:
    return is_text(part) and not part["text"].strip()


def is_text(part: JSONObject) -> bool:
    return isinstance(part.get("text"), str)


def content_parts(messages: Sequence[JSONObject]) -> Iterator[JSONObject]:
    """The parts of all contents that are lists."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            yield from (part for part in content if isinstance(part, dict))


def part_types(messages: Sequence[JSONObject]) -> set[str]:
    """The types of content parts that are no texts."""
    if all(type(message.get("content")) is str for message in messages):
        return set()
    return {str(part.get("type")) for part in content_parts(messages) if not is_text(part)}


# Images, files and audio.


def image_url_of(part: JSONObject) -> str:
    """The URL in `{"type": "image_url", "image_url": {"url"}}`; "" in any other part."""
    if part.get("type") != "image_url":
        return ""
    # Some clients send the URL itself.
    return text_member(part, "image_url") or text_member(part.get("image_url"), "url")


def image_data_of(part: JSONObject) -> Data | None:
    """The image in a part with a `data:` URL."""
    return data_of(image_url_of(part))


def file_data_of(part: JSONObject) -> Data | None:
    """The file in `{"type": "file", "file": {"file_data"}}`, if it is in the request."""
    if part.get("type") != "file":
        return None
    return data_of(text_member(part.get("file"), "file_data"))


def audio_data_of(part: JSONObject) -> Data | None:
    """The audio in `{"type": "input_audio", "input_audio": {"data", "format"}}`."""
    audio = object_member(part, "input_audio")
    data = text_member(audio, "data")
    if part.get("type") != "input_audio" or not data:
        return None
    format = text_member(audio, "format") or "wav"
    return Data(f"audio/{format}", data)


def data_of(url: str) -> Data | None:
    """The contents of a `data:` URL in base64; None for other URLs."""
    head, comma, base64 = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return None
    media_type = head.removeprefix("data:").partition(";")[0]
    return Data(media_type or "text/plain", base64)


# Tools.


def tool_calls_of(message: JSONObject) -> list[ToolCall]:
    calls = list_member(message, "tool_calls")
    return [tool_call(call) for call in calls if object_member(call, "function")]


def tool_call(call: object) -> ToolCall:
    function = object_member(call, "function")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = orjson.dumps(arguments or {}).decode()
    # Google's own OpenAI API has the signature here.
    google = object_member(object_member(call, "extra_content"), "google")
    return ToolCall(
        text_member(call, "id"),
        text_member(function, "name"),
        arguments,
        text_member(google, "thought_signature"),
    )


def tool_names(messages: Sequence[JSONObject]) -> dict[str, str]:
    """The names of all tools that were called, by the id of the call."""
    names: dict[str, str] = {}
    for message in messages:
        for call in list_member(message, "tool_calls"):
            names[text_member(call, "id")] = text_member(object_member(call, "function"), "name")
    return names


def tool_name_of(message: JSONObject, names: dict[str, str]) -> str:
    """The name of the tool whose result a message is."""
    name = text_member(message, "name")
    return name or names.get(text_member(message, "tool_call_id"), "")


def offered_functions(payload: JSONObject) -> list[JSONObject]:
    """The `function` objects of the tools; tools of other types are left out."""
    tools = list_member(payload, "tools")
    return [function for tool in tools if (function := object_member(tool, "function"))]


def chosen_function(tool_choice: object) -> str:
    """The name in `{"type": "function", "function": {"name"}}`; "" for any other choice."""
    return text_member(object_member(tool_choice, "function"), "name")


# Formats of the reply.


def format_type(payload: JSONObject) -> str:
    """The type of the `response_format`: text, json_object, json_schema ...; "" without one."""
    return text_member(object_member(payload, "response_format"), "type")


def schema_of(payload: JSONObject) -> JSONObject | None:
    """The JSON schema of the `response_format`, if it has one."""
    wrapper = object_member(object_member(payload, "response_format"), "json_schema")
    schema = wrapper.get("schema")
    if isinstance(schema, dict):
        return schema
    return None
