"""Placeholders such as `{anthropic.messages}`, which a product's own functions fill.

Each form names the members of a request that it takes, so that the others can be reported.
"""

from collections.abc import Callable, Collection

from rewrap.structs import struct
from rewrap.types import ChatRequest
from rewrap.upstream import anthropic, cohere, gemini, ollama, prompts
from rewrap.upstream.members import list_member
from rewrap.upstream.messages import (
    CarriesPart,
    chosen_function,
    content_parts,
    format_type,
    image_data_of,
    image_url_of,
    is_text,
    offered_functions,
    with_system_role,
)

Lost = Callable[[ChatRequest], list[str]]


def nothing_lost(request: ChatRequest) -> list[str]:
    return []


@struct(frozen=True, slots=True)
class PlaceholderForm:
    """A placeholder.

    `takes`: parameters, other placeholders that it stands for, and members of messages as
    `messages.NAME`. `lost` names those that it cannot take from one request.
    """

    value: Callable[[ChatRequest], object]
    takes: frozenset[str]
    lost: Lost = nothing_lost


def form(
    value: Callable[[ChatRequest], object], takes: str, lost: Lost = nothing_lost
) -> PlaceholderForm:
    return PlaceholderForm(value, frozenset(takes.split()), lost)


def lost_parts(carries: CarriesPart) -> Lost:
    """Reports the types of content parts that `carries` rejects."""

    def lost(request: ChatRequest) -> list[str]:
        parts = content_parts(request.messages)
        types = {str(part.get("type")) for part in parts if not is_text(part) and not carries(part)}
        return [f"messages.{type}" for type in sorted(types)]

    return lost


def lost_choice(known: Collection[str], *, function: bool) -> Lost:
    """Reports a `tool_choice` beside `known`. `function`: one function can be chosen."""

    def lost(request: ChatRequest) -> list[str]:
        choice = request.payload.get("tool_choice")
        if function and chosen_function(choice):
            return []
        if choice is None or (isinstance(choice, str) and choice in known):
            return []
        return ["tool_choice"]

    return lost


def lost_format(*known: str) -> Lost:
    """Reports a `response_format` of a type beside `known`."""

    def lost(request: ChatRequest) -> list[str]:
        if format_type(request.payload) in ("", "text", *known):
            return []
        return ["response_format"]

    return lost


def lost_tools(request: ChatRequest) -> list[str]:
    """Reports tools that are no functions."""
    tools = list_member(request.payload, "tools")
    if len(tools) == len(offered_functions(request.payload)):
        return []
    return ["tools"]


def has_image_data(part: dict[str, object]) -> bool:
    return image_data_of(part) is not None


def has_image(part: dict[str, object]) -> bool:
    return bool(image_url_of(part))


TOOL_MEMBERS = "messages.tool_calls messages.tool_call_id messages.name"
JSON_FORMATS = ("json_object", "json_schema")
lost_json_format = lost_format(*JSON_FORMATS)

FORMS: dict[str, PlaceholderForm] = {
    "openai.messages": form(
        lambda request: with_system_role(request.messages), "messages messages.*"
    ),
    "ollama.messages": form(
        ollama.messages, f"messages {TOOL_MEMBERS} messages.image_url", lost_parts(has_image_data)
    ),
    "ollama.images": form(ollama.images, "messages.image_url", lost_parts(has_image_data)),
    "ollama.tools": form(
        ollama.tools, "tools tool_choice", lost_choice(["auto", "none"], function=False)
    ),
    "ollama.format": form(ollama.format, "response_format", lost_json_format),
    "ollama.think": form(ollama.think, "think reasoning_effort"),
    "anthropic.messages": form(
        anthropic.messages,
        f"dialog {TOOL_MEMBERS} messages.image_url messages.file",
        lost_parts(lambda part: anthropic.block_of(part) is not None),
    ),
    "anthropic.tools": form(anthropic.tools, "tools", lost_tools),
    "anthropic.tool_choice": form(
        anthropic.tool_choice,
        "tool_choice parallel_tool_calls",
        lost_choice(anthropic.CHOICES, function=True),
    ),
    "anthropic.output_config": form(
        anthropic.output_config, "response_format reasoning_effort", lost_format("json_schema")
    ),
    "anthropic.thinking": form(anthropic.thinking, "thinking reasoning_effort"),
    "gemini.contents": form(
        gemini.contents,
        f"dialog {TOOL_MEMBERS} messages.image_url messages.file messages.input_audio",
        lost_parts(lambda part: gemini.part_of(part) is not None),
    ),
    "gemini.tools": form(gemini.tools, "tools", lost_tools),
    "gemini.tool_config": form(
        gemini.tool_config, "tool_choice", lost_choice(gemini.MODES, function=True)
    ),
    "gemini.response_type": form(gemini.response_type, "response_format", lost_json_format),
    "gemini.response_schema": form(gemini.response_schema, "response_format"),
    "gemini.response_json_schema": form(gemini.response_json_schema, "response_format"),
    "gemini.thinking_config": form(gemini.thinking_config, "reasoning_effort"),
    "cohere.messages": form(
        cohere.messages, f"messages {TOOL_MEMBERS} messages.image_url", lost_parts(has_image)
    ),
    "cohere.tools": form(cohere.tools, "tools", lost_tools),
    "cohere.tool_choice": form(
        cohere.tool_choice, "tool_choice", lost_choice(["auto", *cohere.CHOICES], function=False)
    ),
    "cohere.response_format": form(cohere.response_format, "response_format", lost_json_format),
    "cohere.thinking": form(cohere.thinking, "thinking reasoning_effort"),
    "tgi.inputs": form(
        prompts.tgi_inputs, "conversation messages.image_url", lost_parts(has_image)
    ),
    "tgi.grammar": form(
        prompts.tgi_grammar, "response_format", lost_format(*JSON_FORMATS, "regex")
    ),
    "llama.prompt": form(
        prompts.llama_prompt, "conversation messages.image_url", lost_parts(has_image_data)
    ),
    "json_schema": form(prompts.json_schema, "response_format", lost_json_format),
}
