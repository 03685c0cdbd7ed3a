"""The vocabulary of the project. Imports nothing of the project."""

import re
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

Headers = list[tuple[bytes, bytes]]


class APIError(Exception):
    """A failure as a client sees it: OpenAI's envelope, `{"error": {"message", "type", "param", "code"}}`, and its status.

    `reason` is for the log alone.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Headers | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.param, self.code = (
            status,
            message,
            type,
            param,
            code,
        )
        self.headers = headers or []
        self.reason = reason or code or type

    @property
    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


@dataclass(slots=True)
class ChatRequest:
    """One request for a completion: what was asked for, and what backends tell about their answer on the way."""

    model: str
    messages: list[dict[str, Any]]
    payload: dict[str, Any]  # everything that the client sent, checked
    body: bytes = b""  # the same as it came; empty where it was changed since
    stream: bool = False
    include_usage: bool = False
    relay: bool = False  # the rendering takes an upstream's own bytes as they are (Delta.raw)
    authorization: str = ""  # the client's own, where it may go on to the upstream
    id: str = ""
    created: int = 0
    until: float = 0.0  # loop time by which an answer that is no stream must be whole
    backend: str = ""
    dropped: list[str] = field(
        default_factory=list
    )  # what of the request had no place in this, as the client calls it
    usage: dict[str, Any] | None = None
    headers: Headers = field(default_factory=list)  # for the answer to the client
    stored: bool = (
        False  # it is kept here: its id is ours, and that of the stored chat which goes on
    )
    new_messages: list[dict[str, Any]] | None = (
        None  # of a stored chat that goes on: without what was said before
    )
    completion: dict[str, Any] | None = (
        None  # once it is finished, where hooks or the store have asked for it
    )


@dataclass(slots=True)
class Delta:
    """The next piece of a reply. The last one of each choice has its `finish_reason`."""

    content: str = ""
    finish_reason: str | None = None
    index: int = 0  # of the choice
    whole: bool = (
        False  # the text did not come in pieces: streamed renderings give it out word by word
    )
    fields: dict[str, Any] | None = (
        None  # what else the message has: tool_calls, reasoning_content, refusal ...
    )
    logprobs: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    raw: bytes = (
        b""  # instead of all that: whole events, or a whole completion, as the upstream sent them
    )


Deltas = AsyncGenerator[Delta, None]


class UpstreamRejection(Exception):
    """What an upstream says instead of a reply: a status, and its own words, from which secrets are yet to be taken."""

    def __init__(self, status: int, message: str = "", **known: str) -> None:
        super().__init__(status)
        self.status, self.message, self.known = status, message, known
        self.headers: Headers = []


class Backend(Protocol):
    """Who answers. `stream` raises APIError, before the first Delta or after it; closing it ends the upstream's work."""

    name: str

    def stream(self, chat: ChatRequest) -> Deltas: ...

    async def models(self, authorization: str) -> list[dict[str, Any]]: ...


def model_card(id: str, **known: Any) -> dict[str, Any]:
    """A model as `GET /v1/models` lists it."""
    return {
        "id": id,
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "rewrap",
        "permission": [],
    } | known


def words(text: str) -> list[str]:
    """Split after each run of whitespace; "".join(words(text)) == text, always."""
    return WORD.findall(text)


def portions(text: str, size: int = 4096) -> Iterator[str]:
    """Split between words into pieces of about `size` characters: what one send to a client may hold."""
    start = 0
    while len(text) - start > size:
        gap = GAP.search(text, start + size)
        if gap is None:
            break
        yield text[start : gap.start()]
        start = gap.start()
    yield text[start:]


WORD = re.compile(r"\s*\S+\s*|\s+")
GAP = re.compile(r"(?<=\s)(?=\S)")


def text_of(content: Any) -> str:
    """A message's content as one string: the text parts of a list, a line each; null is "".

    Parts that are no text (images, audio) have no place in it: a shape names them (`dropped`).
    """
    if isinstance(content, list):
        texts = (part.get("text") if isinstance(part, dict) else part for part in content)
        return "\n".join(text for text in texts if isinstance(text, str))
    return content or ""


def size_of(text: str) -> int:
    """In bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def estimated_tokens(size: int) -> int:
    """A guess for upstreams that do not count: a token for four bytes of UTF-8.

    That is about right for English, and for Chinese or Japanese (three bytes a character) it is 0.75 a character.
    """
    return -(-size // 4)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """OpenAI's `usage` object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


class Reply(Protocol):
    """An upstream's answer while it comes in. `headers` have lower-case names; `deadline` is in loop time."""

    status: int
    headers: dict[bytes, bytes]
    deadline: float

    async def read(self) -> bytes: ...  # what has come since; b"" at the end
    def linger(self) -> None: ...  # all that is wanted has come: the rest may go by unread
    async def aclose(
        self,
    ) -> None: ...  # at its end the connection is kept; before it, closed at once


@dataclass(frozen=True, slots=True)
class Limits:
    """How long, in seconds, and how large, in bytes, an upstream's answer may be."""

    first_byte: float = 120.0  # until the first event, or the head of a JSON answer
    stall: float = 60.0  # until the next whole event, or any more of a JSON answer
    total: float = 600.0  # for a whole JSON answer
    reply_bytes: int = 64 * 2**20
    event_bytes: int = 8 * 2**20


class Reader(Protocol):
    """One streamed reply. `done`: nothing more is to come; `complete`: it may end here, or else it was cut short;
    `finish`: why it ends, if that is yet to be said."""

    @property
    def done(self) -> bool: ...
    @property
    def complete(self) -> bool: ...
    @property
    def finish(self) -> str: ...

    def __call__(self, name: str, data: bytes) -> list[Delta]: ...  # of one event


class Shape(Protocol):
    """How an endpoint is spoken to: where the prompt goes, where the text is. Raises Refused, or ValueError for no reply."""

    framing: str  # json, sse, ndjson or text; auto: found out from the answer

    def url(self, url: str, chat: ChatRequest) -> str: ...
    def headers(self, key: str, stream: bool) -> dict[str, str]: ...
    def request(self, chat: ChatRequest) -> Any: ...  # the JSON to send
    def dropped(
        self, chat: ChatRequest
    ) -> list[str]: ...  # what the client sent that does not go along
    def answer(self, value: Any) -> list[Delta]: ...  # a whole JSON answer
    def reader(self) -> Reader: ...
    def refusal(
        self, status: int, value: Any
    ) -> UpstreamRejection: ...  # the JSON that came with a status other than 2xx


def dumps(value: Any) -> bytes:
    """JSON for an upstream. Raises APIError: orjson reads 1,024 levels, and writes 254."""
    try:
        return orjson.dumps(value)
    except TypeError:
        raise APIError(400, "The request is nested too deeply.") from None


def no_such_model(model: str) -> APIError:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return APIError(404, message, code="model_not_found")
