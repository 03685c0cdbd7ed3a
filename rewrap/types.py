"""Draft of the shared types, until the new layout brings them."""

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

JSONObject = dict[str, Any]  # a decoded JSON object


class APIError(Exception):
    """A failure as a client sees it: OpenAI's envelope and its status. `reason` is for the log."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: list[tuple[bytes, bytes]] | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers or []
        self.reason = reason or code or type

    @property
    def body(self) -> JSONObject:
        names = ("message", "type", "param", "code")
        return {"error": {name: getattr(self, name) for name in names}}


@dataclass(slots=True)
class ResponseInfo:
    id: str = ""
    created: int = 0
    backend: str = ""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    usage: JSONObject | None = None
    dropped: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str
    messages: list[JSONObject]
    payload: JSONObject
    body: bytes = b""
    stream: bool = False
    include_usage: bool = False
    relay: bool = False
    authorization: str = ""
    stored: bool = False
    info: ResponseInfo = field(default_factory=ResponseInfo)


@dataclass(slots=True)
class Delta:
    content: str = ""
    finish_reason: str | None = None
    index: int = 0
    whole: bool = False
    fields: JSONObject | None = None
    logprobs: JSONObject | None = None
    usage: JSONObject | None = None
    raw: bytes = b""


Deltas = AsyncGenerator[Delta, None]

WORD = re.compile(r"\s*\S+\s*|\s+")


def words(text: str) -> list[str]:
    """Split after each run of whitespace; "".join(words(text)) == text, always."""
    return WORD.findall(text)


def text_of(content: object) -> str:
    """A message's content as one string: the text parts of a list, a line each; null is ""."""
    if isinstance(content, list):
        texts = (part.get("text") if isinstance(part, dict) else part for part in content)
        return "\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""
