"""A check for each parameter of a chat completion request.

A check takes the parameter's name and its value, which is never null: null counts as absent. It
raises APIError with OpenAI's message, param and code. The texts come from recordings of OpenAI's
API and from public reports. Imports types and leaf files.
"""

from collections.abc import Callable, Mapping
from math import inf

from rewrap.structs import struct
from rewrap.types import APIError, Checks, JSONObject, dumps

Check = Callable[[str, object], None]

ROLES = ("system", "assistant", "user", "function", "tool", "developer")
# Roles whose messages need no more than a text. A tuple: a role of the client may be unhashable.
PLAIN_ROLES = ("user", "assistant", "system", "developer")
CONTENT_SUBSTITUTES = (
    "tool_calls",
    "function_call",
    "refusal",
    "audio",
    "reasoning_content",
    "reasoning",
)
RESPONSE_FORMATS = ("text", "json_object", "json_schema", "grammar", "python")
MAX_MODEL_CHARACTERS = 512  # the name goes into logs, and into the indexes of the store
MAX_STOPS = 4
MAX_METADATA = 16
MAX_METADATA_KEY_CHARACTERS = 64
MAX_METADATA_VALUE_CHARACTERS = 512
MAX_QUOTED_CHARACTERS = 100
TYPE_NAMES: dict[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    list: "an array",
    dict: "an object",
}


# Errors.


def invalid(message: str, param: str | None, code: str | None) -> APIError:
    return APIError(400, message, param=param, code=code)


def missing(param: str) -> APIError:
    return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def type_name(value: object) -> str:
    """The type of a JSON value, in OpenAI's words."""
    if value == []:
        return "an empty array"
    return TYPE_NAMES.get(type(value), "null")


def wrong_type(param: str, expected: str, value: object) -> APIError:
    found = type_name(value)
    message = f"Invalid type for '{param}': expected {expected}, but got {found} instead."
    return invalid(message, param, "invalid_type")


def wrong_value(param: str, value: object, supported: tuple[str, ...]) -> APIError:
    *others, last = (f"'{name}'" for name in supported)
    quoted = str(value)[:MAX_QUOTED_CHARACTERS]
    message = f"Invalid value: '{quoted}'. Supported values are: {', '.join(others)}, and {last}."
    return invalid(message, param, "invalid_value")


def too_long(param: str, maximum: int, length: int) -> APIError:
    message = (
        f"Invalid '{param}': string too long. Expected a string with maximum length {maximum},"
        f" but got a string with length {length} instead."
    )
    return invalid(message, param, "string_above_max_length")


# Types and numbers.


@struct(frozen=True, slots=True)
class number:
    """A check for a number within bounds. A decimal may be written as an integer."""

    minimum: float
    maximum: float
    kind: type[int] | type[float] = float

    def __call__(self, param: str, value: object) -> None:
        integer = self.kind is int
        if type(value) is not int and (integer or type(value) is not float):
            raise wrong_type(param, TYPE_NAMES[self.kind], value)
        noun = "integer" if integer else "decimal"
        if value < self.minimum:
            reason = f"{noun} below minimum value. Expected a value >= {self.minimum}"
            code = f"{noun}_below_min_value"
        elif value > self.maximum:
            reason = f"{noun} above maximum value. Expected a value <= {self.maximum}"
            code = f"{noun}_above_max_value"
        else:
            return
        raise invalid(
            f"Invalid '{param}': {reason}, but got {self.kind(value)} instead.", param, code
        )


def typed(kind: type) -> Check:
    """A check for a type. A boolean is no integer."""

    def check(param: str, value: object) -> None:
        if type(value) is not kind:
            raise wrong_type(param, TYPE_NAMES[kind], value)

    return check


check_string = typed(str)
check_boolean = typed(bool)


def checked_object(value: object, param: str) -> JSONObject:
    """A value that has to be an object. Raises APIError."""
    if not isinstance(value, dict):
        raise wrong_type(param, "an object", value)
    return value


def object_rows(value: object, where: str) -> list[JSONObject]:
    """A value that has to be an array of objects. Raises APIError."""
    if not isinstance(value, list):
        raise wrong_type(where, "an array of objects", value)
    for position, row in enumerate(value):
        if not isinstance(row, dict):
            raise wrong_type(f"{where}[{position}]", "an object", row)
    return value


def checked_text_member(value: JSONObject, name: str, where: str) -> str:
    """A member that has to be a string; `where` names its object. Raises APIError."""
    text = value.get(name)
    if text is None:
        raise missing(f"{where}.{name}")
    if not isinstance(text, str):
        raise wrong_type(f"{where}.{name}", "a string", text)
    return text


# Messages.


def check_messages(param: str, messages: object, *, strict: bool = True) -> None:
    """Without `strict`, a role may be any text, and a content may be absent."""
    if not isinstance(messages, list):
        raise wrong_type(param, "an array of objects", messages)
    if not messages:
        message = (
            f"Invalid '{param}': empty array. Expected an array with minimum length 1,"
            " but got an empty array instead."
        )
        raise invalid(message, param, "empty_array")
    for position, message in enumerate(messages):
        # Written out for plain messages: 0.2 µs each, where a call and its path cost 0.6.
        if (
            type(message) is not dict
            or message.get("role") not in PLAIN_ROLES
            or type(message.get("content")) is not str
            or "tool_calls" in message
        ):
            check_message(f"{param}[{position}]", message, strict)


def check_message(where: str, value: object, strict: bool) -> None:
    message = checked_object(value, where)
    role = message.get("role")
    if role not in ROLES and (strict or not isinstance(role, str)):
        raise wrong_role(f"{where}.role", role)
    content = message.get("content")
    if content is None and strict:
        check_absent_content(f"{where}.content", message)
    elif content is not None and not isinstance(content, str):
        check_parts(f"{where}.content", content)
    if strict and role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise missing(f"{where}.tool_call_id")
    if message.get("tool_calls") is not None:
        object_rows(message["tool_calls"], f"{where}.tool_calls")


def wrong_role(param: str, role: object) -> APIError:
    if role is None:
        return missing(param)
    if not isinstance(role, str):
        return wrong_type(param, "a string", role)
    return wrong_value(param, role, ROLES)


def check_absent_content(param: str, message: JSONObject) -> None:
    """Content may be null only where another member stands for it."""
    if message["role"] == "assistant":
        for name in CONTENT_SUBSTITUTES:
            if message.get(name):
                return
    if "content" not in message:
        raise missing(param)
    if message["role"] != "function":
        raise wrong_type(param, "one of a string or array of objects", None)


def check_parts(param: str, content: object) -> None:
    if not isinstance(content, list):
        raise wrong_type(param, "one of a string or array of objects", content)
    for position, part in enumerate(content):
        if type(part) is dict and part.get("type") == "text" and type(part.get("text")) is str:
            continue
        check_part(f"{param}[{position}]", part)


def check_part(where: str, value: object) -> None:
    part = checked_object(value, where)
    if checked_text_member(part, "type", where) != "text":
        return
    if "text" not in part:
        raise missing(f"{where}.text")
    check_string(f"{where}.text", part["text"])


# Other parameters.


def check_model(param: str, value: object) -> None:
    if not isinstance(value, str):
        raise wrong_type(param, "a string", value)
    if len(value) > MAX_MODEL_CHARACTERS:
        raise too_long(param, MAX_MODEL_CHARACTERS, len(value))


def check_tools(param: str, value: object) -> None:
    for position, tool in enumerate(object_rows(value, param)):
        if not isinstance(tool.get("type"), str):
            raise missing(f"{param}[{position}].type")
        if tool["type"] == "function":
            check_function(f"{param}[{position}].function", tool.get("function"))


def check_function(where: str, function: object) -> None:
    if not isinstance(function, dict):
        raise missing(where)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise missing(f"{where}.name")


def check_tool_choice(param: str, value: object) -> None:
    check_tool_choice_type(param, value)
    if isinstance(value, str) and value not in ("none", "auto", "required"):
        raise wrong_value(param, value, ("none", "auto", "required"))


def check_tool_choice_type(param: str, value: object) -> None:
    if not isinstance(value, str | dict):
        raise wrong_type(param, "one of a string or an object", value)


def check_stop(param: str, value: object) -> None:
    check_texts(param, value)
    if isinstance(value, list) and len(value) > MAX_STOPS:
        message = (
            f"Invalid '{param}': array too long. Expected an array with maximum length {MAX_STOPS},"
            f" but got an array with length {len(value)} instead."
        )
        raise invalid(message, param, "array_above_max_length")


def check_texts(param: str, value: object) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        raise wrong_type(param, "one of a string or array of strings", value)
    for position, item in enumerate(value):
        if type(item) is not str:
            raise wrong_type(f"{param}[{position}]", "a string", item)


def check_format(param: str, value: object) -> None:
    """The members of a format that are translated. Its type may be any text."""
    format = checked_object(value, param)
    kind = checked_text_member(format, "type", param)
    if kind == "json_schema" and not isinstance(format.get("json_schema"), dict):
        raise missing(f"{param}.json_schema")


def check_response_format(param: str, value: object) -> None:
    format = checked_object(value, param)
    kind = format.get("type")
    if kind is None:
        raise missing(f"{param}.type")
    if kind not in RESPONSE_FORMATS:
        raise wrong_value(f"{param}.type", kind, ("json_object", "json_schema", "text"))
    if kind == "json_schema" and not isinstance(format.get("json_schema"), dict):
        raise missing(f"{param}.json_schema")


def check_metadata(param: str, value: object) -> None:
    metadata = checked_object(value, param)
    if len(metadata) > MAX_METADATA:
        message = (
            f"Invalid '{param}': too many properties. Expected an object with at most"
            f" {MAX_METADATA} properties, but got an object with {len(metadata)} properties"
            " instead."
        )
        raise invalid(message, param, "object_above_max_properties")
    for key, item in metadata.items():
        check_metadata_pair(param, key, item)


def check_metadata_pair(param: str, key: str, value: object) -> None:
    if len(key) > MAX_METADATA_KEY_CHARACTERS:
        message = (
            f"Invalid '{param}': key too long."
            f" Expected a key with maximum length {MAX_METADATA_KEY_CHARACTERS}."
        )
        raise invalid(message, param, "string_above_max_length")
    if not isinstance(value, str):
        raise wrong_type(f"{param}.{key}", "a string", value)
    if len(value) > MAX_METADATA_VALUE_CHARACTERS:
        raise too_long(f"{param}.{key}", MAX_METADATA_VALUE_CHARACTERS, len(value))


def check_stream_options(param: str, value: object) -> None:
    options = checked_object(value, param)
    for name in ("include_usage", "include_obfuscation"):
        if options.get(name) is not None:
            check_boolean(f"{param}.{name}", options[name])


def check_depth(value: object) -> None:
    """The depth check. orjson reads 1,024 levels of nesting and writes 254. Raises APIError."""
    dumps(value)


# In the order of their names: OpenAI reports the first that is wrong.
CHECKS: dict[str, Check] = {
    "completion_id": check_string,
    "frequency_penalty": number(-2, 2),
    "logprobs": check_boolean,
    "max_completion_tokens": number(0, 2**53, int),
    "max_tokens": number(0, 2**53, int),
    "metadata": check_metadata,
    "n": number(1, 128, int),
    "presence_penalty": number(-2, 2),
    "response_format": check_response_format,
    "seed": number(-(2**63), 2**63 - 1, int),
    "stop": check_stop,
    "store": check_boolean,
    "stream": check_boolean,
    "stream_options": check_stream_options,
    "temperature": number(0, 2),
    "tool_choice": check_tool_choice,
    "tools": check_tools,
    "top_logprobs": number(0, 20, int),
    "top_p": number(0, 1),
    "user": check_string,
}
# The members that shapes translate. The product behind a shape has ranges of its own.
TRANSLATION_CHECKS: dict[str, Check] = {
    "completion_id": check_string,
    "frequency_penalty": number(-inf, inf),
    "logprobs": check_boolean,
    "max_completion_tokens": number(-inf, inf, int),
    "max_tokens": number(-inf, inf, int),
    "n": number(-inf, inf, int),
    "presence_penalty": number(-inf, inf),
    "response_format": check_format,
    "seed": number(-inf, inf, int),
    "stop": check_texts,
    "store": check_boolean,
    "stream": check_boolean,
    "stream_options": check_stream_options,
    "temperature": number(-inf, inf),
    "tool_choice": check_tool_choice_type,
    "tools": check_tools,
    "top_logprobs": number(-inf, inf, int),
    "top_p": number(-inf, inf),
    "user": check_string,
}
# The members that this server uses itself.
ROUTING_CHECKS: dict[str, Check] = {
    "completion_id": check_string,
    "store": check_boolean,
    "stream": check_boolean,
}
PARAMETER_CHECKS: Mapping[Checks, Mapping[str, Check]] = {
    Checks.ROUTING: ROUTING_CHECKS,
    Checks.TRANSLATION: TRANSLATION_CHECKS,
    Checks.OPENAI: CHECKS,
}
