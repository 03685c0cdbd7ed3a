"""Requests in the form of Anthropic's Messages API: blocks, tools, structured outputs, thinking.

Pure functions. Turns alternate between user and assistant, and empty texts are left out: the API
rejects them. Source: docs.anthropic.com, api/messages.
"""

from rewrap.regex import regex
from rewrap.types import ChatRequest, JSONObject
from rewrap.upstream.messages import (
    TOOL_ROLES,
    Data,
    chosen_function,
    dialog_of,
    file_data_of,
    image_data_of,
    image_url_of,
    is_text,
    offered_functions,
    parts_of,
    role_of,
    schema_of,
    tool_calls_of,
)

NOT_IN_ID = regex(r"[^a-zA-Z0-9_-]")
CHOICES = {"auto": "auto", "required": "any", "any": "any", "none": "none"}
EFFORTS = {"minimal": "low"}
NO_PARAMETERS: JSONObject = {"type": "object", "properties": {}}


def messages(request: ChatRequest) -> list[JSONObject]:
    """`{"role": "user" or "assistant", "content": "text" or [blocks]}`, in alternation."""
    turns: list[JSONObject] = []
    for message in dialog_of(request.messages):
        role = "assistant" if role_of(message) == "assistant" else "user"
        blocks = blocks_of(message)
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    for turn in turns:
        turn["content"] = plain_content(turn["content"])
    return without_final_blanks(turns)


def blocks_of(message: JSONObject) -> list[JSONObject]:
    blocks = [block for part in parts_of(message) if (block := block_of(part))]
    if role_of(message) in TOOL_ROLES:
        result: JSONObject = {"type": "tool_result", "tool_use_id": tool_id(tool_call_id(message))}
        if blocks:
            result["content"] = plain_content(blocks)
        return [result]
    calls = [
        {
            "type": "tool_use",
            "id": tool_id(call.id),
            "name": call.name,
            "input": call.arguments_object,
        }
        for call in tool_calls_of(message)
    ]
    return blocks + calls


def block_of(part: JSONObject) -> JSONObject | None:
    """The block of one part: a text, an image or a document."""
    if is_text(part):
        return {"type": "text", "text": part["text"]}
    image = image_data_of(part)
    if image is not None:
        return {"type": "image", "source": base64_source(image)}
    if image_url_of(part).startswith("http"):
        return {"type": "image", "source": {"type": "url", "url": image_url_of(part)}}
    file = file_data_of(part)
    if file is not None and file.media_type == "application/pdf":
        return {"type": "document", "source": base64_source(file)}
    return None


def base64_source(data: Data) -> JSONObject:
    return {"type": "base64", "media_type": data.media_type, "data": data.base64}


def plain_content(blocks: list[JSONObject]) -> object:
    """A single text as a string, which every server with this API reads; else the blocks."""
    if len(blocks) == 1 and blocks[0]["type"] == "text":
        return blocks[0]["text"]
    return blocks


def without_final_blanks(turns: list[JSONObject]) -> list[JSONObject]:
    """A reply that is to be continued must not end with white space."""
    if turns and turns[-1]["role"] == "assistant" and isinstance(turns[-1]["content"], str):
        turns[-1]["content"] = turns[-1]["content"].rstrip()
    return turns


def tool_call_id(message: JSONObject) -> str:
    return str(message.get("tool_call_id") or message.get("name") or "")


def tool_id(id: str) -> str:
    """An id in the characters that the API allows. Ids of other providers may have more."""
    return NOT_IN_ID.sub("_", id) or "call"


def tools(request: ChatRequest) -> list[JSONObject] | None:
    """`{"name", "description", "input_schema"}`."""
    converted: list[JSONObject] = []
    for function in offered_functions(request.payload):
        tool = {"name": function.get("name"), "description": function.get("description")}
        tool = {name: value for name, value in tool.items() if value}
        tool["input_schema"] = function.get("parameters") or NO_PARAMETERS
        if function.get("strict") is True:
            tool["strict"] = True
        converted.append(tool)
    return converted or None


def tool_choice(request: ChatRequest) -> JSONObject | None:
    """`{"type": "auto", "any", "none" or "tool"}`."""
    payload = request.payload
    if not offered_functions(payload):
        return None
    choice: JSONObject = {}
    name = chosen_function(payload.get("tool_choice"))
    if name:
        choice = {"type": "tool", "name": name}
    elif isinstance(payload.get("tool_choice"), str):
        choice = {"type": CHOICES.get(payload["tool_choice"], "auto")}
    if payload.get("parallel_tool_calls") is False and choice.get("type") != "none":
        choice = {"type": "auto"} | choice | {"disable_parallel_tool_use": True}
    return choice or None


def output_config(request: ChatRequest) -> JSONObject | None:
    """The JSON schema of the reply, and the effort of thinking."""
    config: JSONObject = {}
    schema = schema_of(request.payload)
    if schema is not None:
        config["format"] = {"type": "json_schema", "schema": schema}
    effort = request.payload.get("reasoning_effort")
    if isinstance(effort, str) and effort != "none":
        config["effort"] = EFFORTS.get(effort, effort)
    return config or None


def thinking(request: ChatRequest) -> object:
    """The client's own `thinking`; adaptive with any `reasoning_effort` but none."""
    if request.payload.get("thinking") is not None:
        return request.payload["thinking"]
    if request.payload.get("reasoning_effort") in (None, "none"):
        return None
    return {"type": "adaptive"}
