"""A check for each field of a chat completion request, with OpenAI's messages, params and codes.

A check takes the field's name and its value (never null: that counts as absent) and raises APIError. What OpenAI answers
was read from recordings of its API and from people's reports: to correct a text, correct it here.
"""

from collections.abc import Callable
from typing import Any

from rewrap.types import APIError, JSONObject


def invalid(message: str, param: str | None, code: str | None) -> APIError:
    return APIError(400, message, param=param, code=code)


def missing(param: str) -> APIError:
    return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def type_name(value: Any) -> str:
    """The type of a JSON value, in OpenAI's words."""
    if isinstance(value, list) and not value:
        return "an empty array"
    return TYPE_NAMES.get(type(value), "null")


TYPE_NAMES: dict[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    list: "an array",
    dict: "an object",
}


def wrong_type(param: str, expected: str, value: Any) -> APIError:
    message = (
        f"Invalid type for '{param}': expected {expected}, but got {type_name(value)} instead."
    )
    return invalid(message, param, "invalid_type")


def wrong_value(param: str, value: Any, supported: tuple[str, ...]) -> APIError:
    *most, last = (f"'{name}'" for name in supported)
    message = (
        f"Invalid value: '{str(value)[:100]}'. Supported values are: {', '.join(most)}, and {last}."
    )
    return invalid(message, param, "invalid_value")


Check = Callable[[str, Any], None]


def number(low: float, high: float, kind: type = float) -> Check:
    """A check for a number within bounds; a decimal may be written as an integer."""
    noun = "integer" if kind is int else "decimal"

    def check(param: str, value: Any) -> None:
        if type(value) is not int and (kind is int or type(value) is not float):
            raise wrong_type(param, f"{'an' if kind is int else 'a'} {noun}", value)
        if not low <= value <= high:
            side, sign, bound = (
                ("below minimum", ">=", low) if value < low else ("above maximum", "<=", high)
            )
            message = f"Invalid '{param}': {noun} {side} value. Expected a value {sign} {bound}, but got {kind(value)} instead."
            raise invalid(
                message, param, f"{noun}_{side.replace('imum', '').replace(' ', '_')}_value"
            )

    return check


def typed(kind: type) -> Check:
    def check(param: str, value: Any) -> None:
        if type(value) is not kind:
            raise wrong_type(param, TYPE_NAMES[kind], value)

    return check


def check_messages(param: str, messages: Any) -> None:
    if not isinstance(messages, list):
        raise wrong_type(param, "an array of objects", messages)
    if not messages:
        message = f"Invalid '{param}': empty array. Expected an array with minimum length 1, but got an empty array instead."
        raise invalid(message, param, "empty_array")
    for position, message in enumerate(messages):
        if type(message) is not dict:
            raise wrong_type(f"{param}[{position}]", "an object", message)
        role, content = message.get("role"), message.get("content")
        if role not in ROLES if isinstance(role, str) else True:
            where = f"{param}[{position}].role"
            if role is None:
                raise missing(where)
            raise (
                wrong_value(where, role, ROLES)
                if isinstance(role, str)
                else wrong_type(where, "a string", role)
            )
        if type(content) is not str:
            check_content(f"{param}[{position}].content", content, message)
        if role == "tool" and type(message.get("tool_call_id")) is not str:
            raise missing(f"{param}[{position}].tool_call_id")
        if message.get("tool_calls") is not None:
            objects(f"{param}[{position}].tool_calls", message["tool_calls"])


ROLES = ("system", "assistant", "user", "function", "tool", "developer")
INSTEAD_OF_CONTENT = (
    "tool_calls",
    "function_call",
    "refusal",
    "audio",
    "reasoning_content",
    "reasoning",
)


def check_content(param: str, content: Any, message: dict[str, Any]) -> None:
    """A content that is no string: null where something else stands for it, or a list of parts."""
    if content is None:
        if message["role"] == "assistant" and any(message.get(name) for name in INSTEAD_OF_CONTENT):
            return
        if message["role"] == "function" and "content" in message:
            return
        if "content" not in message:
            raise missing(param)
    if type(content) is not list:
        raise wrong_type(param, "one of a string or array of objects", content)
    for position, part in enumerate(content):
        where = f"{param}[{position}]"
        if type(part) is not dict:
            raise wrong_type(where, "an object", part)
        if part.get("type") is None:
            raise missing(f"{where}.type")
        if type(part["type"]) is not str:
            raise wrong_type(f"{where}.type", "a string", part["type"])
        if part["type"] == "text" and type(part.get("text")) is not str:
            raise (
                wrong_type(f"{where}.text", "a string", part["text"])
                if "text" in part
                else missing(f"{where}.text")
            )


def objects(param: str, value: Any) -> None:
    if type(value) is not list:
        raise wrong_type(param, "an array of objects", value)
    for position, item in enumerate(value):
        if type(item) is not dict:
            raise wrong_type(f"{param}[{position}]", "an object", item)


def check_tools(param: str, tools: Any) -> None:
    objects(param, tools)
    for position, tool in enumerate(tools):
        if type(tool.get("type")) is not str:
            raise missing(f"{param}[{position}].type")
        if tool["type"] == "function":
            function = tool.get("function")
            if type(function) is not dict:
                raise missing(f"{param}[{position}].function")
            if type(function.get("name")) is not str or not function["name"]:
                raise missing(f"{param}[{position}].function.name")


def check_tool_choice(param: str, value: Any) -> None:
    if type(value) is str and value not in ("none", "auto", "required"):
        raise wrong_value(param, value, ("none", "auto", "required"))
    if type(value) not in (str, dict):
        raise wrong_type(param, "one of a string or an object", value)


def check_stop(param: str, value: Any) -> None:
    if type(value) is str:
        return
    if type(value) is not list:
        raise wrong_type(param, "one of a string or array of strings", value)
    if len(value) > 4:
        message = f"Invalid '{param}': array too long. Expected an array with maximum length 4, but got an array with length {len(value)} instead."
        raise invalid(message, param, "array_above_max_length")
    for position, item in enumerate(value):
        typed(str)(f"{param}[{position}]", item)


def check_response_format(param: str, value: Any) -> None:
    typed(dict)(param, value)
    kind = value.get("type")
    if kind is None:
        raise missing(f"{param}.type")
    if kind not in ("text", "json_object", "json_schema", "grammar", "python"):
        raise wrong_value(f"{param}.type", kind, ("json_object", "json_schema", "text"))
    if kind == "json_schema" and type(value.get("json_schema")) is not dict:
        raise missing(f"{param}.json_schema")


def check_metadata(param: str, value: Any) -> None:
    typed(dict)(param, value)
    if len(value) > 16:
        message = f"Invalid '{param}': too many properties. Expected an object with at most 16 properties, but got an object with {len(value)} properties instead."
        raise invalid(message, param, "object_above_max_properties")
    for key, item in value.items():
        if len(key) > 64:
            message = f"Invalid '{param}': key too long. Expected a key with maximum length 64."
            raise invalid(message, param, "string_above_max_length")
        typed(str)(f"{param}.{key}", item)
        if len(item) > 512:
            message = f"Invalid '{param}.{key}': string too long. Expected a string with maximum length 512, but got a string with length {len(item)} instead."
            raise invalid(message, f"{param}.{key}", "string_above_max_length")


def check_stream_options(param: str, value: Any) -> None:
    typed(dict)(param, value)
    for name in ("include_usage", "include_obfuscation"):
        if value.get(name) is not None:
            typed(bool)(f"{param}.{name}", value[name])


def check_model(param: str, value: Any) -> None:
    if type(value) is not str:
        raise wrong_type(param, "a string", value)
    if len(value) > 512:  # it stands in logs and in the store's indexes
        message = f"Invalid '{param}': string too long. Expected a string with maximum length 512, but got a string with length {len(value)} instead."
        raise invalid(message, param, "string_above_max_length")


CHECKS: dict[str, Check] = {  # by name: that is the order of the checks
    "completion_id": typed(str),
    "frequency_penalty": number(-2, 2),
    "logprobs": typed(bool),
    "max_completion_tokens": number(0, 2**53, int),
    "max_tokens": number(0, 2**53, int),
    "metadata": check_metadata,
    "n": number(1, 128, int),
    "presence_penalty": number(-2, 2),
    "response_format": check_response_format,
    "seed": number(-(2**63), 2**63 - 1, int),
    "stop": check_stop,
    "store": typed(bool),
    "stream": typed(bool),
    "stream_options": check_stream_options,
    "temperature": number(0, 2),
    "tool_choice": check_tool_choice,
    "tools": check_tools,
    "top_logprobs": number(0, 20, int),
    "top_p": number(0, 1),
    "user": typed(str),
}


def text_member(value: JSONObject, name: str, where: str) -> str:
    """A member that has to be a string; `where` names its object. Raises APIError."""
    text = value.get(name)
    if text is None:
        raise missing(f"{where}.{name}")
    if not isinstance(text, str):
        raise wrong_type(f"{where}.{name}", "a string", text)
    return text


def object_rows(value: object, where: str) -> list[JSONObject]:
    """A value that has to be an array of objects. Raises APIError."""
    objects(where, value)
    assert isinstance(value, list)
    return value
