"""A request of the Responses API as a chat completions request.

Pure functions: no HTTP, no store. The caller loads the history and the referenced items first.
Source: OpenAI's OpenAPI document 2.3.0 and the requests of its clients.
"""

from collections.abc import Callable, Iterable

from rewrap.api.checks import (
    Check,
    check_metadata,
    checked_text_member,
    invalid,
    missing,
    number,
    object_rows,
    typed,
    wrong_type,
    wrong_value,
)
from rewrap.api.responses.items import CALLS, OUTPUTS, Placed, chat_messages, item_type
from rewrap.api.responses.tools import ChatTools, ToolName
from rewrap.ids import random_hex
from rewrap.structs import struct
from rewrap.types import APIError, JSONObject, dumps, estimated_tokens, prompt_size

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED_REASONING = "reasoning.encrypted_content"
INCLUDABLE = (
    "code_interpreter_call.outputs", "computer_call_output.output.image_url",
    "file_search_call.results", "message.input_image.image_url",
    "web_search_call.action.sources", "web_search_call.results",
    LOGPROBS, ENCRYPTED_REASONING,
)  # fmt: skip
FORMATS = ("text", "json_object", "json_schema")

# Parameters that chat completions have under the same name. `prompt_cache_key` is not among them:
# it is a hint, and upstreams with strict checks reject it.
SAME_NAME = (
    "temperature", "top_p", "user", "safety_identifier", "service_tier", "frequency_penalty",
    "presence_penalty", "logit_bias", "seed", "stop",
)  # fmt: skip
# Members of the Response object that repeat the request, and their values without a request.
ECHOED: JSONObject = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "store": True,
    "temperature": 1,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1,
    "truncation": "disabled",
    "user": None,
}
UNSUPPORTED = {
    "background": "Responses are not run in the background here.",
    "conversation": "Conversations are not kept here. Use 'previous_response_id'.",
    "prompt": "Prompt templates are not kept here. Use 'instructions' and 'input'.",
}


@struct(frozen=True, slots=True)
class Translation:
    """The facts of a Responses request that its chat request cannot hold.

    `hex` identifies the response: its id is `resp_{hex}`, and all its items' ids contain `hex`.
    """

    hex: str
    echo: JSONObject  # members of the Response object that repeat the request
    items: list[JSONObject]  # the new input, references resolved
    tool_names: dict[str, ToolName]  # the client's tools by chat name
    dropped: tuple[str, ...] = ()  # parameters that no backend can take
    stored: bool = True
    logprobs: bool = False  # the client asked for them
    encrypted_reasoning: bool = False  # the client sends reasoning back
    reasoning_as_summary: bool = False


FindItem = Callable[[str], JSONObject | None]


def no_items(id: str) -> None:
    """A `find_item` that knows no item."""


def previous_id(payload: JSONObject) -> str | None:
    """The response whose items come before this request's. Raises APIError."""
    id = payload.get("previous_response_id")
    if id is not None:
        typed(str)("previous_response_id", id)
    return id


def references(payload: JSONObject) -> list[str]:
    """The ids of stored items that the input refers to. Raises APIError."""
    found = []
    for position, item in enumerate(new_items(payload)):
        where = f"input[{position}]"
        if item_type(item, where) == "item_reference":
            found.append(checked_text_member(item, "id", where))
    return found


def parse_responses(
    payload: JSONObject,
    history: Iterable[JSONObject] = (),
    *,
    find_item: FindItem = no_items,
    late_instructions: str = "keep",
    reasoning_as_summary: bool = False,
) -> tuple[JSONObject, Translation]:
    """The chat completions payload of a Responses request, and what leads back. Raises APIError.

    `history` has the input and output items of the chain of `previous_response_id`, oldest first.
    `find_item` gives the stored item with an id. `late_instructions` is as for `chat_messages`.
    Ranges of sampling parameters are left to the checks of chat completions.
    """
    check_parameters(payload)
    items = resolved(new_items(payload), find_item)
    placed = [Placed(item, "history") for item in history]
    placed += [Placed(item, f"input[{position}]") for position, item in enumerate(items)]
    instructions = payload.get("instructions") or ""
    messages = chat_messages(instructions, placed, late_instructions)
    if not messages:
        raise missing("input")
    tools = ChatTools()
    tools.add_all(payload.get("tools") or [])
    for item, where in placed:
        if item.get("type") == "additional_tools":
            tools.add_all(item.get("tools"), f"{where}.tools")
    chat = chat_payload(payload, messages, tools)
    include = payload.get("include") or []
    translation = Translation(
        hex=random_hex(),
        echo=echoed(payload),
        items=items,
        tool_names=tools.names,
        dropped=tuple(dict.fromkeys(tools.dropped)),
        stored=payload.get("store") is not False,
        logprobs=LOGPROBS in include,
        encrypted_reasoning=ENCRYPTED_REASONING in include,
        reasoning_as_summary=reasoning_as_summary,
    )
    return chat, translation


# Checks.


def check_parameters(payload: JSONObject) -> None:
    """Refuse what cannot be served, and check what is translated. null counts as absent."""
    for name, reason in UNSUPPORTED.items():
        if payload.get(name):
            message = f"Unsupported parameter: '{name}'. {reason}"
            raise invalid(message, name, "unsupported_parameter")
    for name, check in PARAMETERS.items():
        value = payload.get(name)
        if value is not None:
            check(name, value)
    if payload.get("input") is None and payload.get("previous_response_id") is None:
        raise missing("input")


def check_include(param: str, value: object) -> None:
    if not isinstance(value, list):
        raise wrong_type(param, "an array of strings", value)
    for position, name in enumerate(value):
        if name not in INCLUDABLE:
            raise wrong_value(f"{param}[{position}]", name, INCLUDABLE)


def check_reasoning(param: str, value: object) -> None:
    if not isinstance(value, dict):
        raise wrong_type(param, "an object", value)
    for name in ("effort", "summary", "generate_summary"):
        if value.get(name) is not None:
            checked_text_member(value, name, param)


def check_text(param: str, value: object) -> None:
    if not isinstance(value, dict):
        raise wrong_type(param, "an object", value)
    if value.get("verbosity") is not None:
        checked_text_member(value, "verbosity", param)
    form = value.get("format")
    if form is None:
        return
    if not isinstance(form, dict):
        raise wrong_type(f"{param}.format", "an object", form)
    kind = checked_text_member(form, "type", f"{param}.format")
    if kind not in FORMATS:
        raise wrong_value(f"{param}.format.type", kind, FORMATS)
    if kind == "json_schema":
        checked_text_member(form, "name", f"{param}.format")
        if not isinstance(form.get("schema"), dict):
            raise missing(f"{param}.format.schema")


def check_truncation(param: str, value: object) -> None:
    if value not in ("auto", "disabled"):
        raise wrong_value(param, value, ("auto", "disabled"))


def check_one(param: str, value: object) -> None:
    if value != 1:
        message = f"Unsupported parameter: '{param}'. A response has one choice."
        raise invalid(message, param, "unsupported_parameter")


PARAMETERS: dict[str, Check] = {
    "include": check_include,
    "instructions": typed(str),
    "max_output_tokens": number(1, 2**53, int),
    "max_tool_calls": number(0, 2**53, int),
    "metadata": check_metadata,
    "n": check_one,
    "parallel_tool_calls": typed(bool),
    "previous_response_id": typed(str),
    "prompt_cache_key": typed(str),
    "reasoning": check_reasoning,
    "safety_identifier": typed(str),
    "service_tier": typed(str),
    "store": typed(bool),
    "stream": typed(bool),
    "text": check_text,
    "top_logprobs": number(0, 20, int),
    "truncation": check_truncation,
    "user": typed(str),
}


# Input.


def new_items(payload: JSONObject) -> list[JSONObject]:
    """`input` as items; a string is one message of the user. Raises APIError."""
    value = payload.get("input")
    if value is None:
        return []
    if isinstance(value, str):
        part = {"type": "input_text", "text": value}
        return [{"type": "message", "role": "user", "content": [part]}]
    if not isinstance(value, list):
        raise wrong_type("input", "one of a string or array of objects", value)
    return object_rows(value, "input")


def resolved(items: list[JSONObject], find_item: FindItem) -> list[JSONObject]:
    """The items with each reference replaced by the stored item. Raises APIError."""
    found = []
    for position, item in enumerate(items):
        where = f"input[{position}]"
        if item_type(item, where) != "item_reference":
            found.append(item)
            continue
        id = checked_text_member(item, "id", where)
        stored = find_item(id)
        if stored is None:
            raise APIError(404, f"Item with id '{id[:100]}' not found.", param="input")
        found.append(stored)
    return found


def typed_items(items: list[JSONObject], hex: str) -> list[JSONObject]:
    """Input items as the API lists them: with a type, an id, a status, and parts for a text."""
    return [typed_item(item, hex, position) for position, item in enumerate(items)]


def typed_item(item: JSONObject, hex: str, position: int) -> JSONObject:
    kind = item_type(item, f"input[{position}]")
    row: JSONObject = {"id": f"{id_prefix(kind)}_{hex}i{position:x}", "type": kind}
    row |= {name: value for name, value in item.items() if value is not None and name != "id"}
    if isinstance(item.get("id"), str):
        row["id"] = item["id"]
    if kind == "message" and isinstance(item.get("content"), str):
        row["content"] = [text_part_of(item["role"], item["content"])]
    if kind == "message" or kind in CALLS or kind in OUTPUTS:
        row.setdefault("status", "completed")
    return row


def id_prefix(kind: str) -> str:
    """As at OpenAI: fc for a function_call."""
    if kind in ("message", "reasoning"):
        return {"message": "msg", "reasoning": "rs"}[kind]
    return "".join(word[:1] for word in kind.split("_"))


def text_part_of(role: str, text: str) -> JSONObject:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": []}
    return {"type": "input_text", "text": text}


# The chat request.


def chat_payload(payload: JSONObject, messages: list[JSONObject], tools: ChatTools) -> JSONObject:
    chat: JSONObject = {"messages": messages}
    if payload.get("model") is not None:
        chat["model"] = payload["model"]
    for name in SAME_NAME:
        if payload.get(name) is not None:
            chat[name] = payload[name]
    if payload.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = payload["max_output_tokens"]
    add_tools(chat, payload, tools)
    add_output_form(chat, payload)
    if LOGPROBS in (payload.get("include") or []):
        chat["logprobs"] = True
        chat["top_logprobs"] = payload.get("top_logprobs") or 0
    if payload.get("stream"):
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    return chat


def add_tools(chat: JSONObject, payload: JSONObject, tools: ChatTools) -> None:
    choice = tools.choice(payload.get("tool_choice"))  # it may remove tools
    if choice is not None:
        chat["tool_choice"] = choice
    if tools.tools:
        chat["tools"] = tools.tools
        if payload.get("parallel_tool_calls") is not None:
            chat["parallel_tool_calls"] = payload["parallel_tool_calls"]


def add_output_form(chat: JSONObject, payload: JSONObject) -> None:
    """`text` and `reasoning`."""
    text = payload.get("text") or {}
    form = text.get("format") or {"type": "text"}
    if form["type"] == "json_object":
        chat["response_format"] = {"type": "json_object"}
    elif form["type"] == "json_schema":
        names = ("name", "schema", "strict", "description")
        schema = {name: form[name] for name in names if form.get(name) is not None}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    effort = (payload.get("reasoning") or {}).get("effort")
    if effort is not None:
        chat["reasoning_effort"] = effort


def echoed(payload: JSONObject) -> JSONObject:
    """The members of the Response object that repeat the request, as the client sent them."""
    echo = dict(ECHOED)
    for name in ECHOED:
        if payload.get(name) is not None:
            echo[name] = payload[name]
    reasoning = payload.get("reasoning") or {}
    summary = reasoning.get("summary") or reasoning.get("generate_summary")
    echo["reasoning"] = {"effort": reasoning.get("effort"), "summary": summary}
    echo["service_tier"] = "default"
    text = payload.get("text") or {}
    echo["text"] = {**text, "format": text.get("format") or {"type": "text"}}
    return echo


def input_tokens(chat: JSONObject) -> JSONObject:
    """The answer of /v1/responses/input_tokens for a translated request: an estimate."""
    size = prompt_size(chat["messages"])
    for message in chat["messages"]:
        size += len(dumps(message.get("tool_calls", "")))
    size += len(dumps(chat.get("tools", "")))
    return {"object": "response.input_tokens", "input_tokens": estimated_tokens(size)}
