"""Items of the Responses API as chat messages, in one pass over the items.

Pure functions: no HTTP, no store. Source: OpenAI's OpenAPI document 2.3.0 and recorded traffic.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rewrap.api.checks import (
    checked_text_member,
    invalid,
    missing,
    object_rows,
    wrong_type,
    wrong_value,
)
from rewrap.api.responses.tools import chat_name
from rewrap.types import APIError, JSONObject, dumps, text_of

ROLES = ("user", "assistant", "system", "developer")
PART_TYPES = ("input_text", "input_image", "input_file", "input_audio", "output_text", "refusal")
TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
CALLS = frozenset({"function_call", "custom_tool_call", "local_shell_call"})
OUTPUTS = frozenset(f"{name}_output" for name in CALLS)
# Calls that a hosted service made and answered. The assistant's text after them has the result.
HOSTED = frozenset({
    "code_interpreter_call", "computer_call", "computer_call_output", "file_search_call",
    "image_generation_call", "mcp_approval_request", "mcp_approval_response", "mcp_call",
    "mcp_list_tools", "tool_search_call", "tool_search_output", "web_search_call",
})  # fmt: skip
SEAL = "rewrap1."  # begins the `encrypted_content` of this server


class Placed(NamedTuple):
    """An item and its place in the request, for error messages."""

    item: JSONObject
    where: str


class ToolOutput(NamedTuple):
    """The result of a tool call: its text, and the parts that no tool message can hold."""

    text: str
    files: list[JSONObject]
    kind: str


def item_type(item: JSONObject, where: str) -> str:
    """The type of an item. It may be absent from messages and from references. Raises APIError."""
    kind = item.get("type")
    if isinstance(kind, str):
        return kind
    if kind is not None:
        raise wrong_type(f"{where}.type", "a string", kind)
    if "role" in item:
        return "message"
    if isinstance(item.get("id"), str):
        return "item_reference"
    raise missing(f"{where}.type")


def seal(reasoning: str) -> str:
    """Reasoning as `encrypted_content`: opaque to clients, not secret."""
    return SEAL + urlsafe_b64encode(reasoning.encode()).decode()


def unseal(content: object) -> str:
    """The reasoning in an `encrypted_content` of this server; "" for a foreign one."""
    if not isinstance(content, str) or not content.startswith(SEAL):
        return ""
    try:
        return urlsafe_b64decode(content.removeprefix(SEAL)).decode()
    except ValueError:
        return ""


# Parts of a message.


def text_part(part: JSONObject, where: str) -> JSONObject:
    return {"type": "text", "text": checked_text_member(part, "text", where)}


def image_part(part: JSONObject, where: str) -> JSONObject:
    if part.get("image_url") is None and part.get("file_id") is not None:
        raise no_file_store(f"{where}.file_id")
    detail = part.get("detail")
    url = part.get("image_url")
    if isinstance(url, dict):  # the form of chat completions
        detail = url.get("detail", detail)
        url = url.get("url")
    image: JSONObject = {"url": checked_text_member({"image_url": url}, "image_url", where)}
    if isinstance(detail, str):
        image["detail"] = "high" if detail == "original" else detail
    return {"type": "image_url", "image_url": image}


def file_part(part: JSONObject, where: str) -> JSONObject:
    for name in ("file_id", "file_url"):
        if part.get(name) is not None:
            raise no_file_store(f"{where}.{name}")
    file = {"file_data": checked_text_member(part, "file_data", where)}
    if isinstance(part.get("filename"), str):
        file["filename"] = part["filename"]
    return {"type": "file", "file": file}


def audio_part(part: JSONObject, where: str) -> JSONObject:
    audio = part.get("input_audio")
    if not isinstance(audio, dict):
        raise missing(f"{where}.input_audio")
    return {"type": "input_audio", "input_audio": audio}


def no_file_store(where: str) -> APIError:
    message = f"'{where}' is not supported here: send the data itself."
    return invalid(message, where, "unsupported_parameter")


PARTS: dict[str, Callable[[JSONObject, str], JSONObject]] = {
    "input_text": text_part,
    "output_text": text_part,
    "text": text_part,
    "input_image": image_part,
    "image_url": image_part,
    "input_file": file_part,
    "input_audio": audio_part,
}


def chat_parts(parts: object, where: str) -> list[JSONObject]:
    """Parts as chat completions have them. Raises APIError."""
    found = []
    for position, part in enumerate(object_rows(parts, where)):
        place = f"{where}[{position}]"
        kind = checked_text_member(part, "type", place)
        convert = PARTS.get(kind)
        if convert is None:
            raise wrong_value(f"{place}.type", kind, PART_TYPES)
        found.append(convert(part, place))
    return found


def chat_content(content: object, where: str) -> str | list[JSONObject]:
    """The content of a message. One text becomes a string, which every upstream takes."""
    if isinstance(content, str):
        return content
    if content is None:
        raise missing(where)
    parts = chat_parts(content, where)
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts


def assistant_content(content: object, where: str) -> tuple[str, str]:
    """The text and the refusal of an assistant message. Raises APIError."""
    if isinstance(content, str):
        return content, ""
    if content is None:
        raise missing(where)
    texts = []
    refusals = []
    for position, part in enumerate(object_rows(content, where)):
        place = f"{where}[{position}]"
        kind = checked_text_member(part, "type", place)
        if kind == "refusal":
            refusals.append(checked_text_member(part, "refusal", place))
        elif kind in TEXT_PARTS:
            texts.append(checked_text_member(part, "text", place))
        else:
            raise wrong_value(f"{place}.type", kind, PART_TYPES)
    return "".join(texts), "".join(refusals)


def reasoning_text(item: JSONObject) -> str:
    """The text of a reasoning item: `content`, else what this server sealed, else the summary."""
    for parts in (item.get("content"), unseal(item.get("encrypted_content")), item.get("summary")):
        text = text_of(parts)
        if text:
            return text
    return ""


# Calls of tools and their outputs.


def call_id_of(item: JSONObject, where: str) -> str:
    """What pairs a call with its output. Shell calls may have an `id` only."""
    if item.get("call_id") is None and item["type"].startswith("local_shell_call"):
        return checked_text_member(item, "id", where)
    return checked_text_member(item, "call_id", where)


def chat_call(item: JSONObject, where: str) -> JSONObject:
    """A call as an entry of `tool_calls`. Raises APIError."""
    kind = item["type"]
    if kind == "local_shell_call":
        name = "local_shell"
        arguments = dumps(item.get("action") or {}).decode()
    elif kind == "custom_tool_call":
        name = checked_text_member(item, "name", where)
        arguments = dumps({"input": checked_text_member(item, "input", where)}).decode()
    else:
        name = checked_text_member(item, "name", where)
        arguments = checked_text_member(item, "arguments", where) or "{}"
    namespace = item.get("namespace")
    if isinstance(namespace, str):
        name = chat_name(name, namespace)
    function = {"name": name, "arguments": arguments}
    return {"id": call_id_of(item, where), "type": "function", "function": function}


def tool_output(item: JSONObject, where: str) -> ToolOutput:
    """The output of a call. Raises APIError."""
    output = item.get("output")
    if output is None:
        raise missing(f"{where}.output")
    if isinstance(output, str):
        return ToolOutput(output, [], item["type"])
    parts = chat_parts(output, f"{where}.output")
    files = [part for part in parts if part["type"] != "text"]
    return ToolOutput(text_of(parts), files, item["type"])


def call_noun(kind: str) -> str:
    """OpenAI's name for a kind of call, in its error messages."""
    if kind.startswith("custom"):
        return "custom tool call"
    return "function call"


def no_output(kind: str, call_id: str) -> APIError:
    message = f"No tool output found for {call_noun(kind)} {call_id[:100]}."
    return invalid(message, "input", None)


def no_call(kind: str, call_id: str) -> APIError:
    noun = call_noun(kind)
    message = f"No tool call found for {noun} output with call_id {call_id[:100]}."
    return invalid(message, "input", None)


class MessageBuilder:
    """Chat messages made from items.

    Chat completions want one assistant message with all calls of a turn, and the tool messages
    right after it, in the order of the calls. So an assistant message stays open while calls
    follow, and the outputs of all calls are collected first. Texts are joined once, at its end.
    """

    def __init__(self, late_instructions: str) -> None:
        self.late_instructions = late_instructions
        self.instructions: list[str] = []
        self.messages: list[JSONObject] = []
        self.outputs: dict[str, deque[ToolOutput]] = {}
        # The open assistant message:
        self.texts: list[str] = []
        self.refusals: list[str] = []
        self.calls: list[Placed] = []
        self.reasoning: list[str] = []
        # Reasoning belongs to the assistant message or the call after it:
        self.pending_reasoning: list[str] = []

    def collect_output(self, item: JSONObject, where: str) -> None:
        """Note the output of a call, before the items are walked. Raises APIError."""
        found = tool_output(item, where)
        self.outputs.setdefault(call_id_of(item, where), deque()).append(found)

    def add(self, item: JSONObject, where: str) -> None:
        """The next item. Raises APIError."""
        kind = item_type(item, where)
        if kind == "message":
            self.add_message(item, where)
        elif kind in CALLS:
            self.take_reasoning()
            self.calls.append(Placed(item, where))
        elif kind in OUTPUTS:
            self.close()
        elif kind == "reasoning":
            self.pending_reasoning.append(reasoning_text(item))
        elif kind not in HOSTED and kind != "additional_tools":
            message = f"Invalid value: '{kind[:100]}'. Items of this type are not supported here."
            raise invalid(message, f"{where}.type", "invalid_value")

    def add_message(self, item: JSONObject, where: str) -> None:
        role = checked_text_member(item, "role", where)
        if role not in ROLES:
            raise wrong_value(f"{where}.role", role, ROLES)
        if role == "assistant":
            self.add_assistant(item, where)
            return
        self.close()
        self.pending_reasoning.clear()
        content = chat_content(item.get("content"), f"{where}.content")
        if role == "user":
            self.messages.append({"role": "user", "content": content})
        else:
            self.add_instructions(content)

    def add_instructions(self, content: str | list[JSONObject]) -> None:
        """Many chat templates take one system message, at the start: join those that are there."""
        parts = content if isinstance(content, list) else []
        only_text = all(part["type"] == "text" for part in parts)
        at_start = not self.messages or self.late_instructions == "hoist"
        if only_text and at_start:
            self.instructions.append(text_of(content))
            return
        role = "user" if self.late_instructions == "user" else "system"
        self.messages.append({"role": role, "content": content})

    def add_assistant(self, item: JSONObject, where: str) -> None:
        """A message joins the open calls. Otherwise it opens a message that calls may join."""
        text, refusal = assistant_content(item.get("content"), f"{where}.content")
        if not text and not refusal:
            return
        if not self.calls:
            self.close()
        self.take_reasoning()
        if text:
            self.texts.append(text)
        if refusal:
            self.refusals.append(refusal)

    def take_reasoning(self) -> None:
        self.reasoning += self.pending_reasoning
        self.pending_reasoning.clear()

    def close(self) -> None:
        """End the open assistant message: the outputs of its calls follow. Raises APIError."""
        if not self.texts and not self.refusals and not self.calls:
            return
        self.messages.append(self.assistant_message())
        files: list[JSONObject] = []
        for item, where in self.calls:
            call_id = call_id_of(item, where)
            output = self.take_output(item, call_id)
            message = {"role": "tool", "tool_call_id": call_id, "content": output.text}
            self.messages.append(message)
            files += output.files
        if files:  # tool messages hold text alone
            self.messages.append({"role": "user", "content": files})
        for pieces in (self.texts, self.refusals, self.calls, self.reasoning):
            pieces.clear()

    def assistant_message(self) -> JSONObject:
        message: JSONObject = {"role": "assistant", "content": None}
        if self.texts:
            message["content"] = "\n\n".join(self.texts)
        if self.refusals:
            message["refusal"] = "\n\n".join(self.refusals)
        reasoning = "\n\n".join(filter(None, self.reasoning))
        if reasoning:
            message["reasoning_content"] = reasoning
        if self.calls:
            message["tool_calls"] = [chat_call(item, where) for item, where in self.calls]
        return message

    def take_output(self, item: JSONObject, call_id: str) -> ToolOutput:
        """The next output for a call. Some clients use a call id again in a later turn."""
        found = self.outputs.get(call_id)
        if not found and item["type"] == "local_shell_call":
            found = self.outputs.get(str(item.get("id")))
        if not found:
            raise no_output(item["type"], call_id)
        return found.popleft()

    def result(self) -> list[JSONObject]:
        """The messages. Raises APIError for an output without a call."""
        self.close()
        for call_id, outputs in self.outputs.items():
            if outputs:
                raise no_call(outputs[0].kind, call_id)
        if not self.instructions:
            return self.messages
        system = {"role": "system", "content": "\n\n".join(self.instructions)}
        return [system, *self.messages]


def chat_messages(
    instructions: str, items: Iterable[Placed], late_instructions: str = "keep"
) -> list[JSONObject]:
    """The messages of a conversation; `instructions` come first.

    `late_instructions` is for system messages after the first turn, which many templates reject:
    "keep" them, "hoist" them to the start, or send them as "user" messages. Raises APIError.
    """
    conversation = MessageBuilder(late_instructions)
    placed = list(items)
    for item, where in placed:
        if item_type(item, where) in OUTPUTS:
            conversation.collect_output(item, where)
    if instructions:
        conversation.instructions.append(instructions)
    for item, where in placed:
        conversation.add(item, where)
    return conversation.result()
