"""Tools of the Responses API as chat completions tools, and the names that lead back.

Pure functions: no HTTP, no store. Source: OpenAI's OpenAPI document 2.3.0 and the requests of its
clients.
"""

import logging
from functools import cache
from hashlib import sha256

from rewrap.api.checks import (
    checked_text_member,
    invalid,
    missing,
    object_rows,
    wrong_type,
    wrong_value,
)
from rewrap.regex import regex
from rewrap.structs import struct
from rewrap.types import APIError, JSONObject

log = logging.getLogger("rewrap")

# Codex lists some of these in every request, whether or not the server has them.
LEFT_OUT = frozenset({
    "image_generation", "tool_search", "web_search", "web_search_2025_08_26",
    "web_search_preview", "web_search_preview_2025_03_11",
})  # fmt: skip
SUPPORTED = ("function", "custom", "namespace")
MODES = ("none", "auto", "required")
MAX_NAME = 64  # characters of a function's name in chat completions
UNSAFE = regex(r"[^A-Za-z0-9_-]")
CUSTOM_PARAMETERS: JSONObject = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


@struct(frozen=True, slots=True)
class ToolName:
    """A tool as the client declared it: `kind` is function or custom."""

    kind: str
    name: str
    namespace: str = ""


def chat_name(name: str, namespace: str = "") -> str:
    """The name of a tool in chat completions, which have no namespaces.

    It depends on the two names alone, so that a call in the history gets the same one.
    """
    if not namespace:
        return name
    separator = "" if namespace.endswith("__") else "__"
    joined = f"{namespace}{separator}{name}"
    safe = UNSAFE.sub("_", joined)
    if safe == joined and len(safe) <= MAX_NAME:
        return safe
    digest = sha256(f"{namespace}\0{name}".encode(errors="replace")).hexdigest()[:8]
    return f"{safe[: MAX_NAME - 9]}_{digest}"


def function_tool(tool: JSONObject, where: str) -> JSONObject:
    """The `function` of a chat tool. An absent `strict` stays absent: only OpenAI defaults it."""
    parameters = tool.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise wrong_type(f"{where}.parameters", "an object", parameters)
    function: JSONObject = {"parameters": parameters}
    if isinstance(tool.get("description"), str):
        function["description"] = tool["description"]
    if isinstance(tool.get("strict"), bool):
        function["strict"] = tool["strict"]
    return function


def custom_tool(tool: JSONObject, where: str) -> JSONObject:
    """A tool whose input is plain text: a function with one string. Its grammar becomes prose."""
    lines = []
    if isinstance(tool.get("description"), str):
        lines.append(tool["description"])
    form = tool.get("format")
    if isinstance(form, dict) and form.get("type") == "grammar":
        syntax = checked_text_member(form, "syntax", f"{where}.format")
        definition = checked_text_member(form, "definition", f"{where}.format")
        lines.append(f"The input has to match this {syntax} grammar:\n{definition}")
    return {"description": "\n\n".join(lines), "parameters": CUSTOM_PARAMETERS}


BUILDERS = {"function": function_tool, "custom": custom_tool}


class ChatTools:
    """The tools of one request. `names` leads from each chat name back to the client's tool."""

    def __init__(self) -> None:
        self.tools: list[JSONObject] = []
        self.names: dict[str, ToolName] = {}
        self.dropped: list[str] = []

    def add_all(self, tools: object, where: str = "tools", namespace: str = "") -> None:
        """Translate a list of tools. Raises APIError, which names the tool."""
        for position, tool in enumerate(object_rows(tools, where)):
            self.add(tool, f"{where}[{position}]", namespace)

    def add(self, tool: JSONObject, where: str, namespace: str = "") -> None:
        kind = checked_text_member(tool, "type", where)
        if kind in LEFT_OUT:
            log_left_out(kind)
            self.dropped.append(f"tools.{kind}")
            return
        if kind == "namespace" and not namespace:
            group = checked_text_member(tool, "name", where)
            self.add_all(tool.get("tools"), f"{where}.tools", group)
            return
        build = BUILDERS.get(kind)
        if build is None:
            raise unsupported_tool(kind, f"{where}.type")
        name = checked_text_member(tool, "name", where)
        if not name:
            raise missing(f"{where}.name")
        self.declare(ToolName(kind, name, namespace), build(tool, where), where)

    def declare(self, tool: ToolName, function: JSONObject, where: str) -> None:
        name = chat_name(tool.name, tool.namespace)
        if name in self.names:
            raise invalid(f"Duplicate tool name: '{name}'.", f"{where}.name", "invalid_value")
        self.names[name] = tool
        self.tools.append({"type": "function", "function": {"name": name, **function}})

    def choice(self, value: object) -> object:
        """The chat `tool_choice`; None leaves it out. `allowed_tools` removes the other tools."""
        if value is None:
            return None
        if isinstance(value, str):
            return self.mode(value)
        if not isinstance(value, dict):
            raise wrong_type("tool_choice", "one of a string or an object", value)
        kind = checked_text_member(value, "type", "tool_choice")
        if kind == "allowed_tools":
            return self.allowed(value)
        if kind not in BUILDERS:
            raise unsupported_choice(kind)
        return {"type": "function", "function": {"name": self.find(value, "tool_choice")}}

    def mode(self, mode: str) -> str | None:
        if mode not in MODES:
            raise wrong_value("tool_choice", mode, MODES)
        if self.tools:
            return mode
        if mode == "required":
            raise no_tools()
        return None  # upstreams reject a tool_choice without tools

    def allowed(self, value: JSONObject) -> str | None:
        """Few upstreams know `allowed_tools`: the other tools are left out instead."""
        mode = value.get("mode", "auto")
        if mode not in ("auto", "required"):
            raise wrong_value("tool_choice.mode", mode, ("auto", "required"))
        kept: set[str] = set()
        for position, row in enumerate(object_rows(value.get("tools"), "tool_choice.tools")):
            where = f"tool_choice.tools[{position}]"
            kind = checked_text_member(row, "type", where)
            if kind in BUILDERS:
                kept.add(self.find(row, where))
            elif kind not in LEFT_OUT:
                raise unsupported_choice(kind)
        self.tools = [tool for tool in self.tools if tool["function"]["name"] in kept]
        return self.mode(mode)

    def find(self, row: JSONObject, where: str) -> str:
        """The chat name of the tool that a choice names."""
        name = checked_text_member(row, "name", where)
        namespace = row.get("namespace")
        found = chat_name(name, namespace if isinstance(namespace, str) else "")
        if found not in self.names:
            raise invalid(f"Tool choice '{name}' not found in 'tools' parameter.", where, None)
        return found


@cache
def log_left_out(kind: str) -> None:
    """Once per type and process: some clients list these tools in every request."""
    log.info("tools of type %s are left out: no backend has them", kind)


def unsupported_tool(kind: str, where: str) -> APIError:
    names = ", ".join(f"'{name}'" for name in SUPPORTED)
    message = f"Tools of type '{kind[:100]}' are not supported here. Supported types are: {names}."
    return invalid(message, where, "unsupported_value")


def unsupported_choice(kind: str) -> APIError:
    message = f"A tool of type '{kind[:100]}' cannot be called here."
    return invalid(message, "tool_choice", "unsupported_value")


def no_tools() -> APIError:
    message = "A tool call is required, but none of the tools in 'tools' can be called here."
    return invalid(message, "tool_choice", "unsupported_value")
