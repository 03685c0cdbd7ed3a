"""The vocabulary of the project: requests, replies, errors, and the protocols between the rooms.

Every room (a folder of rewrap/) may import this file. It imports leaf files (single files of rewrap/) alone.
"""

import math
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    MutableMapping,
)
from contextlib import AbstractAsyncContextManager
from enum import Enum
from types import MappingProxyType
from typing import Any, Protocol

import orjson

from rewrap.structs import ReadOnly, struct

Headers = list[tuple[bytes, bytes]]
JSONObject = dict[str, Any]  # a decoded JSON object


# Errors.


class APIError(Exception):
    """A failure in OpenAI's envelope: `{"error": {"message", "type", "param", "code"}}` and a status.

    `reason` goes to the log only. `error` replaces the four members: an upstream's own error object.
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
        error: JSONObject | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error = error
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers or []
        self.reason = reason or code or type
        self.explanation = ""  # for a client on the same machine

    def explained(self) -> "APIError":
        """The same error, with the explanation in its message."""
        stop = "" if self.message.endswith((".", "!", "?")) else "."
        self.message = f"{self.message}{stop} {self.explanation}"
        self.explanation = ""
        if self.error is not None:
            self.error = self.error | {"message": self.message}
        return self

    @property
    def body(self) -> JSONObject:
        error = self.error or {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


class UpstreamRejection(Exception):
    """An upstream's error answer: its status, and its error object with all members. Secrets are still in it."""

    def __init__(self, status: int, message: str = "", error: JSONObject | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.error: JSONObject = dict(error or {})
        if message:
            self.error["message"] = message
        self.headers: Headers = []
        self.start: bytes | None = None  # of the body; None: it was not read

    @property
    def message(self) -> str:
        text = self.error.get("message")
        return text if isinstance(text, str) else ""

    @property
    def is_clear(self) -> bool:
        """Whether the upstream says itself what is wrong."""
        return bool(self.message)

    @property
    def reason(self) -> str:
        """For the access log."""
        return f"upstream: {self.status or 'an error with status 200'}"


class NoReplyFound(UpstreamRejection):
    """A good answer in which a shape finds no reply. The message is the shape's."""

    is_clear = False
    reason = "no reply found"


class NoEndpoint(Exception):
    """The upstream lacks an endpoint."""


def no_such_model(model: str) -> APIError:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return APIError(404, message, code="model_not_found")


class CutConnection(Exception):
    """The connection has to be closed now, without the rest of the answer; with a TCP reset if `reset` is set."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__("reset" if reset else "cut")
        self.reset = reset


# A request, and what becomes known while it is answered.

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]  # ASGI's


# Headers of the client that belong to its key.
CLIENT_HEADERS = (
    "openai-organization",
    "openai-project",
    "openai-beta",
    "http-referer",
    "x-title",
    "idempotency-key",
    "user-agent",
)
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


Sink = Callable[[bytes], bool]  # takes bytes now; False if it wants no more for the moment


@struct(frozen=True, init=False)
class ChatRequest(ReadOnly):
    """A checked request for a chat completion. It never changes: `dataclasses.replace` makes another.

    `payload` is the whole JSON object that the client sent. `body` has the same bytes as they came, and is empty where
    the request differs from them.
    """

    model: str
    messages: list[JSONObject]
    payload: JSONObject
    body: bytes
    stream: bool
    include_usage: bool
    relay: bool  # the rendering takes an upstream's own bytes (Delta.raw)
    client_headers: Mapping[str, str]  # headers of the client that may go to the upstream
    stored: bool  # the reply is stored here, under an id of this server
    api: str  # the surface: chat, ask, responses or completions
    session: str  # names the conversation for an upstream that keeps one
    owner: str  # of the client: its stored chats and its sessions are its own
    unsupported: tuple[str, ...]  # members of the body that a chat request cannot hold

    def __init__(
        self,
        model: str,
        messages: list[JSONObject],
        payload: JSONObject,
        body: bytes = b"",
        stream: bool = False,
        include_usage: bool = False,
        relay: bool = False,
        client_headers: Mapping[str, str] = NO_HEADERS,
        stored: bool = False,
        api: str = "chat",
        session: str = "",
        owner: str = "",
        unsupported: tuple[str, ...] = (),
    ) -> None:
        # The generated method sets each attribute by a call: 1 µs more.
        attributes = {
            "model": model,
            "messages": messages,
            "payload": payload,
            "body": body,
            "stream": stream,
            "include_usage": include_usage,
            "relay": relay,
            "client_headers": client_headers,
            "stored": stored,
            "api": api,
            "session": session,
            "owner": owner,
            "unsupported": unsupported,
        }
        object.__setattr__(self, "__dict__", attributes)


@struct(init=False)
class ResponseInfo:
    """The facts about one reply. The endpoint, the server, the recorder and the backend set them when they know them.

    The initial values are attributes of the class: they cost a request nothing.
    """

    id: str
    created: int  # Unix time, seconds
    model: str
    backend: str
    request_id: str
    headers: Headers  # for the answer to the client
    dropped: list[str]  # parameters that the upstream cannot take
    prompt_bytes: int = 0  # UTF-8 of all messages, for an estimate of tokens
    on_status: Callable[[int], None] | None = None  # called with the status of the answer
    # Spoils the answer on its way: the mock's faults.
    wrap_send: Callable[[Send], Send] | None = None
    usage: JSONObject | None = None
    accepted: bool = True  # a ping may start the answer with status 200; False until a relay knows its upstream's status
    deadline: float = 0.0  # loop time by which an answer without a stream is whole
    # Sends bytes of a stream that has begun straight to the client's socket.
    write: Sink | None = None
    completion: JSONObject | None = None  # the finished reply, where a hook or the store needs it

    def __init__(
        self,
        id: str = "",
        created: int = 0,
        model: str = "",
        backend: str = "",
        request_id: str = "",
        **others: object,
    ) -> None:
        self.id = id
        self.created = created
        self.model = model
        self.backend = backend
        self.request_id = request_id
        self.headers = []
        self.dropped = []
        for name, value in others.items():
            setattr(self, name, value)


@struct(frozen=True, slots=True)
class PassedRequest:
    """A request that goes to an OpenAI-compatible upstream as it is."""

    method: str
    path: str  # decoded, below the upstream's /v1
    query: bytes
    headers: Mapping[bytes, bytes]  # all of the client's: only some of them go on
    client_headers: Mapping[str, str]  # those that belong to the client's key
    body: bytes | AsyncIterator[bytes] = b""
    model: str = ""  # of an Azure path


@struct(frozen=True, slots=True)
class PassedReply:
    """The answer to a PassedRequest: `headers` are those that the client gets."""

    status: int
    headers: Headers
    reply: "Reply"
    stall: float  # seconds of silence at which it fails
    backend: str
    model: str  # "" if the request names none


PassedAnswer = Callable[[PassedRequest], AbstractAsyncContextManager[PassedReply]]


@struct(slots=True)
class Delta:
    """The next piece of a reply. The last one of each choice has its `finish_reason`."""

    content: str = ""
    finish_reason: str | None = None
    index: int = 0  # of the choice
    whole: bool = False  # the text did not come in pieces: streams send it word by word
    fields: JSONObject | None = None  # other members of the message: tool_calls, refusal ...
    logprobs: JSONObject | None = None
    usage: JSONObject | None = None
    raw: bytes = b""  # an upstream's own bytes instead: whole events, or a whole completion


Deltas = AsyncGenerator[Delta, None]


# Protocols.


class Checks(Enum):
    """How closely a client's request is checked before its backend gets it."""

    ROUTING = "routing"  # the members that this server uses: the upstream checks the others
    TRANSLATION = "translation"  # and the types of the members that shapes translate
    OPENAI = "openai"  # all that OpenAI checks

    def or_closer(self, other: "Checks") -> "Checks":
        order = list(Checks)
        return max(self, other, key=order.index)


ChecksOf = Callable[[str], Checks]  # by the model


class Backend(Protocol):
    """Answers requests. Closing the Deltas ends the upstream's work.

    A backend may have two more methods. `checks(model)` gives the Checks of its requests. `whole(request, info)` gives all
    Deltas of the reply to a request without a stream, and reserves memory for them (rewrap/memory.py): it is faster than
    `stream`, which is a generator.
    """

    name: str

    def stream(self, request: ChatRequest, info: ResponseInfo) -> Deltas:
        """The reply in pieces. Raises APIError, before the first Delta or after it."""

    async def models(self, client_headers: Mapping[str, str]) -> list[JSONObject]:
        """Model cards, as `GET /v1/models` lists them. Raises APIError."""


Whole = Callable[[ChatRequest, ResponseInfo], Coroutine[None, None, list[Delta]]]


def checks_of(backend: Backend) -> ChecksOf:
    """The checks of a backend's requests: those for a translation, unless it has its own."""
    checks: ChecksOf = getattr(backend, "checks", lambda model: Checks.TRANSLATION)
    return checks


class Rendering(Protocol):
    """One API's form of a reply. `headers` are those of a stream."""

    headers: Headers

    def __call__(self, delta: Delta) -> bytes:
        """The bytes of one Delta in a stream."""

    def end(self) -> bytes:
        """The last bytes of a stream."""

    def ping(self) -> bytes:
        """The bytes that keep a silent stream alive; b"" if this form has none."""

    def failure(self, error: APIError) -> bytes | None:
        """The last bytes of a stream that fails. None: the connection is cut instead."""

    def document(self, deltas: list[Delta]) -> JSONObject:
        """The JSON answer to a request without a stream."""


class Reply(Protocol):
    """An upstream's answer while it arrives. `headers` have lower-case names."""

    status: int
    headers: dict[bytes, bytes]
    deadline: float  # loop time at which a pending read fails

    async def read(self) -> bytes:
        """The next bytes; b"" at the end. Raises TimeoutError at the deadline."""

    def linger(self) -> None:
        """Discard the rest, so that the connection can be reused."""

    async def aclose(self) -> None:
        """Close. The connection is kept if the answer was read to its end."""


class Reader(Protocol):
    """Translates the events of one streamed reply into Deltas."""

    @property
    def done(self) -> bool:
        """No more events follow."""

    @property
    def complete(self) -> bool:
        """The reply may end here. Otherwise an end is a truncation."""

    @property
    def finish(self) -> str:
        """The finish_reason, if no Delta has it yet."""

    def __call__(self, name: str, data: bytes) -> list[Delta]:
        """The Deltas of one event. Raises UpstreamRejection; ValueError if it is not an event of a reply."""


@struct(frozen=True, slots=True)
class Outgoing:
    """One request to an upstream, beside its constant headers."""

    url: str
    headers: dict[str, str]
    body: bytes


class ChatSession(Protocol):
    """The session that an upstream assigns to one chat, while a reply of it is read."""

    def observe(self, value: object, text: str) -> None:
        """Note an answer, or an event of it, and the text that it adds to the reply."""

    def close(self) -> None:
        """Keep the session for the next turn of the chat."""


class Shape(Protocol):
    """How an upstream is asked, and where its answers have the reply."""

    framing: str  # json, sse, ndjson or text; auto: found out from the answer
    method: str
    content_type: str  # of the body; "" without one

    def check(self, url: str) -> None:
        """Raises ValueError if no request can be sent to `url`."""

    def headers(self, key: str, stream: bool) -> dict[str, str]:
        """The constant headers of all requests, with the key in the product's place."""

    def prepare(self, url: str, request: ChatRequest) -> Outgoing:
        """One request. Raises APIError."""

    def dropped(self, request: ChatRequest) -> list[str]:
        """The parts of a request that are not sent."""

    def chat(self, request: ChatRequest) -> ChatSession | None:
        """The session of a request's chat, if the endpoint assigns one."""

    def answer(self, value: object, chat: ChatSession | None = None) -> list[Delta]:
        """The Deltas of a whole JSON answer. Raises UpstreamRejection; ValueError if there is no reply."""

    def reader(self, chat: ChatSession | None = None) -> Reader:
        """A reader for one streamed reply."""

    def rejection(self, status: int, value: object) -> UpstreamRejection:
        """The error in the JSON that came with a status other than 2xx."""


@struct(frozen=True, slots=True)
class Limits:
    """Bounds of an upstream's answer: times in seconds, sizes in bytes."""

    first_byte: float = 600.0  # until the head of a stream
    stall: float = 300.0  # until the next bytes of a stream
    total: float = 600.0  # for a whole answer without a stream
    request: float = 600.0  # for a whole answer with all fallbacks
    reply_bytes: int = 64 * 2**20
    event_bytes: int = 8 * 2**20


# JSON, texts and tokens.


def dumps(value: object) -> bytes:
    """JSON bytes. Raises APIError: orjson reads 1,024 levels of nesting and writes 254."""
    try:
        return orjson.dumps(value)
    except TypeError:
        raise APIError(400, "The request is nested too deeply.") from None


def model_card(id: str, **members: object) -> JSONObject:
    """A model as `GET /v1/models` lists it."""
    card: JSONObject = {
        "id": id,
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "rewrap",
        "permission": [],
    }
    return card | members


def usage(prompt_tokens: int, completion_tokens: int) -> JSONObject:
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


def text_of(content: object) -> str:
    """A message's content as one string: the text parts of a list, one a line; null is "".

    Other parts (images, audio) are left out. A shape names them in `dropped`.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") if isinstance(part, dict) else part for part in content)
    return "\n".join(text for text in texts if isinstance(text, str))


SIZED_CHARACTERS = 2**18


def size_of(text: str) -> int:
    """The bytes of UTF-8 in a text."""
    if text.isascii():
        return len(text)
    if len(text) <= SIZED_CHARACTERS:
        return len(text.encode())
    starts = range(0, len(text), SIZED_CHARACTERS)  # in steps: each holds up all threads
    return sum([len(text[start : start + SIZED_CHARACTERS].encode()) for start in starts])


def prompt_size(messages: list[JSONObject]) -> int:
    """The bytes of UTF-8 in the texts of all messages."""
    return sum([size_of(text_of(message.get("content"))) for message in messages])


def estimated_tokens(size: int) -> int:
    """Tokens in `size` bytes of UTF-8, for upstreams that do not count: four bytes a token.

    That is about right for English. For Chinese and Japanese (three bytes a character) it is 0.75 tokens a character.
    """
    return -(-size // 4)


def duration(seconds: float) -> str:
    """OpenAI's form of a duration: `16ms`, `59.369s`, `1m6.499s`."""
    # Rounded up: a client that waits so long has waited long enough.
    whole = math.ceil(seconds * 1000 - 1e-6)
    minutes, milliseconds = divmod(whole, 60_000)
    if minutes:
        return f"{minutes}m{milliseconds / 1000:g}s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    return f"{milliseconds / 1000:g}s"


WORD = re.compile(r"\s*\S+\s*|\s+")
GAP = re.compile(r"(?<=\s)(?=\S)")
PORTION_CHARACTERS = 4096
SEARCHED_CHARACTERS = 2**16


def words(text: str) -> list[str]:
    """Split after each run of whitespace. `"".join(words(text)) == text`."""
    return WORD.findall(text)


def portions(text: str, size: int = PORTION_CHARACTERS) -> Iterator[str]:
    """Split between words into pieces of about `size` characters, which one send to a client may hold."""
    start = 0
    while len(text) - start > size:
        gap = next_gap(text, start + size)
        yield text[start:gap]
        start = gap
    yield text[start:]


def next_gap(text: str, start: int) -> int:
    """The start of the next word, or the end. Searched in steps: each holds up all threads."""
    for step in range(start, len(text), SEARCHED_CHARACTERS):
        gap = GAP.search(text, step, step + SEARCHED_CHARACTERS)
        if gap is not None:
            return gap.start()
    return len(text)


def in_portions(delta: Delta) -> list[Delta]:
    """A whole text in pieces that one send may hold.

    Fields come before the text, tool calls and the end after it.
    """
    if len(delta.content) <= PORTION_CHARACTERS or delta.logprobs is not None:
        return [delta]
    found: list[Delta] = []
    fields = dict(delta.fields or {})
    tool_calls = fields.pop("tool_calls", None)
    if fields:
        found.append(Delta(index=delta.index, fields=fields))
    *texts, last = portions(delta.content)
    for text in texts:
        found.append(Delta(text, index=delta.index, whole=True))
    delta.content = last
    delta.fields = {"tool_calls": tool_calls} if tool_calls else None
    found.append(delta)
    return found
