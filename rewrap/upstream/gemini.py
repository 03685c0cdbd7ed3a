"""Requests in the form of Gemini's generateContent: parts, function calls, schemas, thinking.

Pure functions. Source: ai.google.dev/api/generate-content, docs/function-calling and
docs/thought-signatures.
"""

from mimetypes import guess_type
from urllib.parse import urlsplit

import orjson

from rewrap.types import ChatRequest, JSONObject, text_of
from rewrap.upstream.messages import (
    TOOL_ROLES,
    Data,
    ToolCall,
    audio_data_of,
    chosen_function,
    dialog_of,
    file_data_of,
    format_type,
    image_data_of,
    image_url_of,
    is_text,
    offered_functions,
    parts_of,
    role_of,
    schema_of,
    tool_calls_of,
    tool_name_of,
    tool_names,
)

# Stands for the signature of a call that another model made, or that a client did not send back.
NO_SIGNATURE = "skip_thought_signature_validator"
MADE_HERE = "call_"  # ids of calls that Gemini gave no id
MODES = {"auto": "AUTO", "required": "ANY", "any": "ANY", "none": "NONE"}
THINKING_TOKENS = {
    "none": 0,
    "minimal": 1024,
    "low": 1024,
    "medium": 8192,
    "high": 24_576,
    "xhigh": 24_576,
}
# The members of a schema that `responseSchema` takes; a schema with others goes as JSON schema.
SCHEMA_NAMES = frozenset(
    """
    type format title description nullable enum maxItems minItems properties required minProperties
    maxProperties minLength maxLength pattern example anyOf propertyOrdering default items minimum
    maximum
    """.split()  # noqa: SIM905
)
NO_EFFECT_NAMES = frozenset(["additionalProperties", "$schema", "strict"])


def contents(request: ChatRequest) -> list[JSONObject]:
    """`{"role": "user" or "model", "parts": [...]}`, in alternation."""
    names = tool_names(request.messages)
    turns: list[JSONObject] = []
    for message in dialog_of(request.messages):
        role = "model" if role_of(message) == "assistant" else "user"
        parts = message_parts(message, names)
        if not parts:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["parts"] += parts
        else:
            turns.append({"role": role, "parts": parts})
    return turns


def message_parts(message: JSONObject, names: dict[str, str]) -> list[JSONObject]:
    if role_of(message) in TOOL_ROLES:
        return [function_response(message, names)]
    parts = [part for item in parts_of(message) if (part := part_of(item))]
    calls = tool_calls_of(message)
    return parts + [function_call(call, first=call is calls[0]) for call in calls]


def part_of(part: JSONObject) -> JSONObject | None:
    """A text, inline data, or a link to an image."""
    if is_text(part):
        return {"text": part["text"]}
    data = image_data_of(part) or file_data_of(part) or audio_data_of(part)
    if data is not None:
        return inline_data(data)
    url = image_url_of(part)
    if not url.startswith(("http", "gs:")):
        return None
    file = {"fileUri": url}
    media_type = guess_type(urlsplit(url).path)[0]
    if media_type:
        file["mimeType"] = media_type
    return {"fileData": file}


def inline_data(data: Data) -> JSONObject:
    return {"inlineData": {"mimeType": data.media_type, "data": data.base64}}


def function_call(call: ToolCall, *, first: bool) -> JSONObject:
    """A call of an earlier turn. The first one of a turn needs a signature."""
    function: JSONObject = {"name": call.name, "args": call.arguments_object}
    if call.id and not call.id.startswith(MADE_HERE):
        function["id"] = call.id
    part: JSONObject = {"functionCall": function}
    if call.signature or first:
        part["thoughtSignature"] = call.signature or NO_SIGNATURE
    return part


def function_response(message: JSONObject, names: dict[str, str]) -> JSONObject:
    """The result of a call. It has to be an object: other results stand under `result`."""
    text = text_of(message.get("content"))
    try:
        response = orjson.loads(text)
    except ValueError:
        response = text
    if not isinstance(response, dict):
        response = {"result": response}
    function: JSONObject = {"name": tool_name_of(message, names), "response": response}
    id = message.get("tool_call_id")
    if isinstance(id, str) and id and not id.startswith(MADE_HERE):
        function["id"] = id
    return {"functionResponse": function}


def tools(request: ChatRequest) -> list[JSONObject] | None:
    """`[{"functionDeclarations": [{"name", "description", "parameters"}]}]`."""
    declarations: list[JSONObject] = []
    for function in offered_functions(request.payload):
        declaration = {
            name: function[name] for name in ("name", "description") if function.get(name)
        }
        parameters = function.get("parameters")
        if isinstance(parameters, dict) and parameters.get("properties"):
            simple = simple_schema(parameters)
            name = "parametersJsonSchema" if simple is None else "parameters"
            declaration[name] = simple or parameters
        declarations.append(declaration)
    if not declarations:
        return None
    return [{"functionDeclarations": declarations}]


def tool_config(request: ChatRequest) -> JSONObject | None:
    """`{"functionCallingConfig": {"mode", "allowedFunctionNames"}}`."""
    if not offered_functions(request.payload):
        return None
    choice = request.payload.get("tool_choice")
    name = chosen_function(choice)
    if name:
        config: JSONObject = {"mode": "ANY", "allowedFunctionNames": [name]}
    elif isinstance(choice, str) and choice in MODES:
        config = {"mode": MODES[choice]}
    else:
        return None
    return {"functionCallingConfig": config}


def response_type(request: ChatRequest) -> str | None:
    """The media type of the reply, if it is to be JSON."""
    if format_type(request.payload) in ("json_object", "json_schema"):
        return "application/json"
    return None


def response_schema(request: ChatRequest) -> JSONObject | None:
    schema = schema_of(request.payload)
    if schema is None:
        return None
    return simple_schema(schema)


def response_json_schema(request: ChatRequest) -> JSONObject | None:
    """The schema, if `response_schema` cannot hold it."""
    schema = schema_of(request.payload)
    if schema is None or simple_schema(schema) is not None:
        return None
    return schema


def simple_schema(schema: JSONObject, depth: int = 50) -> JSONObject | None:
    """The schema without members that have no effect; None if `responseSchema` cannot hold it."""
    result: JSONObject = {}
    for name, value in schema.items():
        if (name in NO_EFFECT_NAMES and value in (False, True)) or name == "$schema":
            continue
        if (
            name not in SCHEMA_NAMES
            or depth == 0
            or (name == "type" and not isinstance(value, str))
        ):
            return None
        result[name] = simple_member(name, value, depth - 1)
        if result[name] is None and value is not None:
            return None
    return result


def simple_member(name: str, value: object, depth: int) -> object:
    """A member of a schema with the schemas inside; None if one of them is not simple."""
    if name == "items" and isinstance(value, dict):
        return simple_schema(value, depth)
    if name == "properties" and isinstance(value, dict):
        inner = {key: simple_schema(member, depth) for key, member in value.items()}
        if None in inner.values():
            return None
        return inner
    if name == "anyOf" and isinstance(value, list):
        schemas = [simple_schema(member, depth) for member in value]
        if None in schemas:
            return None
        return schemas
    return value


def thinking_config(request: ChatRequest) -> JSONObject | None:
    """`{"thinkingBudget", "includeThoughts"}`, as Google maps OpenAI's efforts."""
    tokens = THINKING_TOKENS.get(str(request.payload.get("reasoning_effort")))
    if tokens is None:
        return None
    return {"thinkingBudget": tokens, "includeThoughts": tokens > 0}
