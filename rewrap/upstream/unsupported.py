"""Requests that an upstream cannot answer as they are meant: an error instead of a wrong reply.

Imports types and the readers of messages.
"""

import logging
from collections.abc import Sequence

from rewrap.types import APIError, ChatRequest
from rewrap.upstream.messages import format_type, part_types

log = logging.getLogger("rewrap")

CHOICES = ("tool_choice", "function_call")
FREE_CHOICES = (None, "auto", "none", {"type": "auto"}, {"type": "none"})
SILENT_PARTS = frozenset(["refusal", "reasoning", "thinking"])  # of the assistant's own messages
SETTING = "ON_UNSUPPORTED=drop"


class DroppedParts:
    """What a backend does with the parts of requests that have no place: an error or silence, by ON_UNSUPPORTED."""

    def __init__(self, backend: str, on_unsupported: str) -> None:
        self.backend = backend
        self.on_unsupported = on_unsupported
        self.warned = False  # that tools are dropped

    def __call__(self, request: ChatRequest, names: list[str]) -> list[str]:
        """The same names. Raises APIError 400 if they change the meaning of the request."""
        if names and self.on_unsupported == "error":
            check_supported(request, names)
        if "tools" in names and not self.warned:
            self.warned = True
            log.warning("backend %s: the upstream has no place for tools: dropped", self.backend)
        return names


def check_supported(request: ChatRequest, dropped: Sequence[str]) -> None:
    """Raises APIError 400 if one of the `dropped` names changes the meaning of the request.

    These are parts of messages such as images and files, a `tool_choice` other than auto and none,
    and a JSON schema. Other parameters are dropped with a header.
    """
    parts = sorted(meaningful_parts(request).intersection(dropped))
    if parts:
        type = parts[0].removeprefix("messages.")
        raise cannot_take(f"messages with `{type}` parts", "messages")
    payload = request.payload
    for name in CHOICES:
        if name in dropped and payload.get(name) not in FREE_CHOICES:
            raise cannot_take(f"this `{name}`", name)
    has_schema = format_type(payload) == "json_schema"
    if has_schema and "response_format" in dropped:
        raise cannot_take("a JSON schema as `response_format`", "response_format")


def meaningful_parts(request: ChatRequest) -> set[str]:
    """The types of content parts, as `messages.TYPE`, without texts."""
    return {f"messages.{type}" for type in part_types(request.messages) - SILENT_PARTS}


def cannot_take(subject: str, param: str) -> APIError:
    message = f"The chat backend cannot take {subject}. Set {SETTING} to send requests without it."
    return APIError(400, message, param=param, code="unsupported_parameter")
