"""Backends: each one turns a Chat into a stream of Deltas. The mock, any chat URL, an OpenAI-compatible upstream.

Knows httpx and what upstreams say on the wire; never imports Starlette or main.py, and of the folder beside it calls, framing and redaction alone.
A backend does not know which API shape is served: that is a rendering's business (extras/renderings.py).
"""

import asyncio
import logging
import re
import threading
import time
from base64 import b64encode
from codecs import BOM_UTF8
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import httpx
import orjson

from extras.calls import Calls
from extras.framing import (
    DONE,
    EVENT_END,
    Events,
    Lines,
    Pieces,
    charset,
    framing,
    is_json,
    is_plain_events,
    last_event_end,
)
from extras.redaction import redacted, secrets_in

Headers = list[tuple[bytes, bytes]]
log = logging.getLogger("rewrap")


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
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code
        self.headers = headers or []
        self.reason = reason or code or type

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


@dataclass(slots=True)
class Chat:
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
    dropped: list[str] = field(default_factory=list)  # what of the request had no place in this, as the client calls it
    usage: dict[str, Any] | None = None
    headers: Headers = field(default_factory=list)  # for the answer to the client
    stored: bool = False  # it is kept here: its id is ours, and that of the stored chat which goes on
    new_messages: list[dict[str, Any]] | None = None  # of a stored chat that goes on: without what was said before
    completion: dict[str, Any] | None = None  # once it is finished, where hooks or the store have asked for it


@dataclass(slots=True)
class Delta:
    """The next piece of a reply. The last one of each choice has its `finish_reason`."""

    content: str = ""
    finish_reason: str | None = None
    index: int = 0  # of the choice
    whole: bool = False  # the text did not come in pieces: streamed renderings give it out word by word
    fields: dict[str, Any] | None = None  # what else the message has: tool_calls, reasoning_content, refusal ...
    logprobs: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    raw: bytes = b""  # instead of all that: whole events, or a whole completion, as the upstream sent them


Deltas = AsyncGenerator[Delta, None]


class Refused(Exception):
    """What an upstream says instead of a reply: a status, and its own words, from which secrets are yet to be taken."""

    def __init__(self, status: int, message: str = "", **known: str) -> None:
        super().__init__(status)
        self.status, self.message, self.known = status, message, known
        self.headers: Headers = []


class Backend(Protocol):
    """Who answers. `stream` raises APIError, before the first Delta or after it; closing it ends the upstream's work."""

    name: str

    def stream(self, chat: Chat) -> Deltas: ...

    async def models(self, authorization: str) -> list[dict[str, Any]]: ...


class Loop(threading.local):
    """Each thread's running event loop, the last that it asked for."""

    known: asyncio.AbstractEventLoop | None = None


LOOP = Loop()


def running_loop() -> asyncio.AbstractEventLoop:
    """asyncio's, without its question to the system (which process is this?) that costs 4 µs before Python 3.12."""
    if LOOP.known is None or not LOOP.known.is_running():
        LOOP.known = asyncio.get_running_loop()
    return LOOP.known


def model_card(id: str, **known: Any) -> dict[str, Any]:
    """A model as `GET /v1/models` lists it."""
    return {"id": id, "object": "model", "created": 1_700_000_000, "owned_by": "rewrap", "permission": []} | known


# Texts, words and tokens.


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


def count_words(text: str) -> int:
    return few_words(text) if len(text) < 4096 else len(text.split())


@lru_cache(256)
def few_words(text: str) -> int:
    """System prompts and load tests say the same again and again: 6 µs of a request."""
    return len(text.split())


class Mock:
    """Answers by itself from the conversation: the same answer for the same request, offline.

    A word is a token here, so `max_tokens` and `usage` can be foretold. `words_per_second` 0 is at once.
    """

    model = "mock-gpt-model"

    def __init__(self, words_per_second: float = 0.0, name: str = "mock", reply_bytes: int = 64 * 2**20) -> None:
        self.words_per_second, self.name, self.reply_bytes = words_per_second, name, reply_bytes

    async def models(self, authorization: str) -> list[dict[str, Any]]:
        return [model_card(self.model)]

    async def stream(self, chat: Chat) -> Deltas:
        text, count, finish_reason = self.reply(chat)
        choices = chat.payload.get("n") or 1
        if choices > 1 and choices * len(text) > self.reply_bytes:
            raise APIError(400, "The mock's reply is too large: it repeats the prompt 'n' times.", param="n")
        prompt_tokens = sum([count_words(text_of(message.get("content"))) for message in chat.messages])
        chat.usage = usage(prompt_tokens, count * choices)
        for index in range(choices):
            if self.words_per_second:
                for word in words(text):
                    await asyncio.sleep(1 / self.words_per_second)
                    yield Delta(word, index=index)
                yield Delta(finish_reason=finish_reason, index=index)
            else:
                *most, last = portions(text) if len(text) > 4096 else (text,)
                for portion in most:
                    yield Delta(portion, index=index, whole=True)
                yield Delta(last, finish_reason, index, whole=True)

    def reply(self, chat: Chat) -> tuple[str, int, str]:
        """The text, how many words it has, and why it ends."""
        prompt = next((m.get("content") for m in reversed(chat.messages) if m.get("role") == "user"), None)
        text = "This is a mock reply." if prompt is None else f"This is a mock reply to: {text_of(prompt)}"
        stops = chat.payload.get("stop") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.split(stop, 1)[0] if stop else text
        limit = chat.payload.get("max_completion_tokens") or chat.payload.get("max_tokens") or -1
        parts = text.split(None, limit)
        if limit < 0 or len(parts) <= limit:
            return text, len(parts), "stop"
        return text[: -len(parts[-1])], limit, "length"


# The way out: httpx, and the one place where its failures become ours.


class Reply(Protocol):
    """An upstream's answer while it comes in. `headers` have lower-case names; `deadline` is in loop time."""

    status: int
    headers: dict[bytes, bytes]
    deadline: float

    async def read(self) -> bytes: ...  # what has come since; b"" at the end
    def linger(self) -> None: ...  # all that is wanted has come: the rest may go by unread
    async def aclose(self) -> None: ...  # at its end the connection is kept; before it, closed at once


class HTTPXReply:
    """A Reply by any httpx transport: a mock in tests, httpx's own for the probe."""

    def __init__(self, response: httpx.Response, deadline: float) -> None:
        self.status = response.status_code
        self.headers = {name.lower(): value for name, value in response.headers.raw}
        self.deadline = deadline
        self.response = response
        self.pieces = response.aiter_bytes()

    async def read(self) -> bytes:
        async with asyncio.timeout_at(self.deadline):
            async for piece in self.pieces:
                if piece:
                    return piece
            return b""

    def linger(self) -> None:
        pass

    async def aclose(self) -> None:
        await self.response.aclose()


class Client(httpx.AsyncClient):
    """httpx's client; where its transport has a shorter way (`exchange`, see extras/transport.py), requests take it.

    Measured: httpx's Request, Response and client are 130 µs of CPU a request; the shorter way is 25.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, connect_timeout: float) -> None:
        timeout = httpx.Timeout(None, connect=connect_timeout, pool=connect_timeout)
        super().__init__(transport=transport, timeout=timeout, trust_env=False, follow_redirects=False)
        self.direct: Any = transport if hasattr(transport, "exchange") else None

    def target(self, method: str, url: str, headers: Mapping[str, str]) -> Any:
        """What is the same for all requests to a URL, made once."""
        headers = {"accept-encoding": "identity", "user-agent": "rewrap"} | {k.lower(): v for k, v in headers.items()}
        if (user := httpx.URL(url).userinfo) and "authorization" not in headers:
            headers["authorization"] = f"Basic {b64encode(unquote_to_bytes(user)).decode()}"
        if self.direct:
            return self.direct.target(method, httpx.URL(url), headers)
        return method, url, headers

    async def ask(self, target: Any, extra: Mapping[str, str], body: bytes, deadline: float) -> Reply:
        if self.direct:
            lines = "".join(f"{name}: {value}\r\n" for name, value in extra.items()) if extra else ""
            reply: Reply = await self.direct.exchange(target, lines.encode("latin-1"), body, deadline)
            return reply
        method, url, headers = target
        request = self.build_request(method, url, headers=headers | dict(extra), content=body)
        async with asyncio.timeout_at(deadline):
            return HTTPXReply(await self.send(request, stream=True), deadline)


UPSTREAM_ERRORS = (httpx.HTTPError, TimeoutError, ValueError)


def upstream_error(exc: Exception, failure_status: int = 502) -> APIError:
    """The one place where an upstream's failure, one of UPSTREAM_ERRORS, becomes an APIError of ours.

    Its own words may hold secrets: the client gets ours, and the log the name of the exception.
    """
    if isinstance(exc, httpx.PoolTimeout):
        again = [(b"retry-after", b"1")]
        return APIError(503, "All connections to the chat backend are busy.", type="server_error", headers=again)
    if isinstance(exc, (httpx.TimeoutException, TimeoutError)):
        return APIError(504, TOO_SLOW, type="upstream_error", code="timeout", reason=type(exc).__name__)
    return unusable(FAILED, type(exc).__name__, failure_status)


def unusable(message: str, reason: str, failure_status: int = 502) -> APIError:
    return APIError(failure_status, message, type="upstream_error", code="bad_gateway", reason=reason)


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

    def url(self, url: str, chat: Chat) -> str: ...
    def headers(self, key: str, stream: bool) -> dict[str, str]: ...
    def request(self, chat: Chat) -> Any: ...  # the JSON to send
    def dropped(self, chat: Chat) -> list[str]: ...  # what the client sent that does not go along
    def answer(self, value: Any) -> list[Delta]: ...  # a whole JSON answer
    def reader(self) -> Reader: ...
    def refusal(self, status: int, value: Any) -> Refused: ...  # the JSON that came with a status other than 2xx


@dataclass(frozen=True, slots=True)
class Params:
    """What an upstream wants otherwise: names of parameters, values of absent ones, what it does not take, names of roles."""

    rename: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    model: str = ""  # the upstream's own name of the model

    def applied(self, chat: Chat) -> tuple[Chat, list[str]]:
        """The chat as this upstream takes it, and the names of what was dropped."""
        if not (self.rename or self.defaults or self.drop or self.roles or self.model):
            return chat, []
        given = {name: value for name, value in chat.payload.items() if value is not None}
        dropped = [name for name in self.drop if given.pop(name, None) is not None]
        payload = {name: value for name, value in given.items() if name not in self.rename}
        for name, to in self.rename.items():
            if name in given and payload.setdefault(to, given[name]) != given[name]:
                dropped.append(name)  # both were given, and they differ: the upstream's own name counts
        dropped += [name for name in self.drop if payload.pop(name, None) is not None]
        for name, value in self.defaults.items():
            if payload.get(name) is None:
                payload[name] = value
        messages = [{**m, "role": self.roles.get(m["role"], m["role"])} for m in chat.messages]
        model = self.model or chat.model
        return replace(chat, payload=payload, messages=messages, model=model, body=b""), dropped


class ChatURL:
    """Any chat URL: asks it in its shape, and finds the reply in whatever comes back.

    Sends    {"model", "messages": [{"role", "content": "a string"}], and what else was asked for and is set}
    Expects  JSON with the reply somewhere near the top, a JSON string, or plain text; SSE of JSON or text, NDJSON,
             or text in pieces, which are given on as they come

    Raises APIError: 502 when it cannot be reached, breaks off, or says nothing usable; 504 when it is silent for too long;
    429, 503 and what concerns the request (400, 404, 413, 422) as they come.
    """

    text = True  # plain text may be a reply

    def __init__(
        self,
        client: Client,
        url: str,
        shape: Shape,
        *,
        name: str = "chat-url",
        key: str = "",
        headers: Mapping[str, str] | None = None,
        model: str = "",
        params: Params | None = None,
        limits: Limits | None = None,
        failure_status: int = 502,
    ) -> None:
        self.client, self.url, self.shape, self.name, self.key, self.model = client, url, shape, name, key, model
        self.params, self.limits = params or Params(), limits or Limits()
        self.failure_status = failure_status
        self.own_headers = {name.lower(): value for name, value in (headers or {}).items()}
        self.targets: dict[tuple[str, bool], Any] = {}
        self.secrets = secrets_in(url, key, self.own_headers)
        # An address that is not whole stops the start, and so does a header that cannot be sent.
        self.target(shape.url(url, Chat("m", [], {"user": "u"})), False)

    def target(self, url: str, stream: bool) -> Any:
        """Where a request goes, and the headers that all of them share: made once."""
        if (target := self.targets.get((url, stream))) is None:
            accept = "text/event-stream, application/json, */*" if stream else "application/json, */*"
            headers = {"content-type": "application/json", "accept": accept} | self.shape.headers(self.key, stream)
            target = self.client.target("POST", url, headers | self.own_headers)
            if len(self.targets) < 256:  # a model's name may stand in the URL, and names are the clients' to choose
                self.targets[url, stream] = target
        return target

    async def models(self, authorization: str) -> list[dict[str, Any]]:
        return [model_card(self.model or self.name)]

    def body(self, chat: Chat) -> bytes:
        return dumps(self.shape.request(chat))

    def dropped(self, chat: Chat) -> list[str]:
        return self.shape.dropped(chat)

    def credentials(self, chat: Chat) -> dict[str, str]:
        return {}

    async def stream(self, chat: Chat) -> Deltas:
        async with self.answer(chat) as reply, aclosing(self.read(reply, chat)) as deltas:
            async for delta in deltas:
                yield delta

    @asynccontextmanager
    async def answer(self, chat: Chat) -> AsyncIterator[Reply]:
        """The upstream's answer, if it is a good one; closed with the block. What fails in it is an APIError."""
        asked, dropped = self.params.applied(chat)
        body = self.body(asked)
        credentials = self.credentials(chat)
        reply = None
        try:
            target = self.target(self.shape.url(self.url, asked), asked.stream)
            now, limits = running_loop().time(), self.limits
            chat.until = now + limits.total
            deadline = now + (limits.first_byte if chat.stream else min(limits.first_byte, limits.total))
            reply = await self.client.ask(target, credentials, body, deadline)
            if not 200 <= reply.status < 300:
                raise await self.refusal(reply)
            if dropped := chat.dropped + dropped + self.dropped(asked):
                names = UNPRINTABLE.sub("?", ", ".join(dropped))[:1000]  # they are the client's
                chat.headers.append((b"x-dropped-params", names.encode()))
            chat.headers += passed_on(reply.headers)
            chat.body = asked.body = body = b""  # of no more use: a long stream need not hold it
            yield reply
        except Refused as refused:
            raise self.failure(refused, own_key=not credentials) from None
        except UPSTREAM_ERRORS as exc:
            raise upstream_error(exc, self.failure_status) from exc
        except (AttributeError, LookupError, TypeError, RecursionError) as exc:
            log.exception("%s: an answer that nobody has thought of", self.name)
            raise unusable(FAILED, type(exc).__name__, self.failure_status) from exc
        finally:
            if reply is not None:
                await reply.aclose()

    async def opened(self, reply: Reply, chat: Chat) -> tuple[Any, bytes]:
        """What cuts a good answer into events, and the bytes for it to begin with; or a JSON value, or a text, that is whole."""

        async def more(begun: bool) -> bytes:
            if begun:
                reply.deadline = min(chat.until, running_loop().time() + self.limits.stall)
            return await reply.read()

        kind, first = await framing(reply.headers, more, self.shape.framing if chat.stream else "auto")
        encoding = charset(reply.headers)
        if "text" in kind and not self.text:
            raise ValueError("plain text")
        if kind == "text":
            return Pieces(self.limits.event_bytes, encoding), first
        if kind in ("sse", "ndjson"):
            return (Events if kind == "sse" else Lines)(self.limits.event_bytes), first
        body = await self.whole(reply, first, chat.until)
        body = body if encoding == "utf-8" else body.decode(encoding, "replace").encode()
        return self.parsed(body, text=kind != "json"), b""

    async def read(self, reply: Reply, chat: Chat) -> Deltas:
        """The Deltas of a good answer, whatever its framing."""
        events, first = await self.opened(reply, chat)
        calls = Calls()
        if not isinstance(events, (Lines, Pieces)):
            for delta in self.checked(self.shape.answer(events), chat, events, calls):
                yield delta
            return
        loop = running_loop()
        read = self.shape.reader()
        started, finished = set[int](), set[int]()  # choices
        # What is gathered for an answer that is no stream has an end in time and in size.
        until, left = (float("inf"), float("inf")) if chat.stream else (chat.until, self.limits.reply_bytes)
        data = first or await reply.read()
        while True:
            left -= len(data)
            if left < 0:
                raise unusable(TOO_LARGE, "too large", self.failure_status)
            if loop.time() > until:  # what comes faster than it is read never waits, and so never waits too long
                raise TimeoutError
            for name, event in events.feed(data) if data else events.close():
                for delta in self.checked(read(name, event), chat, None, calls):
                    started.add(delta.index)
                    if delta.finish_reason:
                        finished.add(delta.index)
                    yield delta
                reply.deadline = min(until, loop.time() + self.limits.stall)
                if read.done:
                    break
            if read.done or not data:
                break
            data = await reply.read()
        reply.linger()
        ended = bool(finished) and started <= finished
        if not read.done and not ended and not read.complete:
            raise unusable("The chat backend broke off.", "cut short", self.failure_status)
        if not started and not read.finish:
            raise unusable("The chat backend gave no reply.", "empty stream", self.failure_status)
        for index in sorted((started or {0}) - finished):
            yield Delta(finish_reason=read.finish or "stop", index=index)

    def checked(self, deltas: list[Delta], chat: Chat, value: Any, calls: Calls) -> Iterator[Delta]:
        """What is said of the whole answer goes to the Chat; whole texts go on in portions."""
        if isinstance(value, dict) and "choices" in value and not chat.stored:
            chat.id = value["id"] if isinstance(value.get("id"), str) and value["id"] else chat.id
            chat.created = value["created"] if isinstance(value.get("created"), int) else chat.created
        for delta in deltas:
            if delta.usage:
                chat.usage = delta.usage
            if delta.fields and "tool_calls" in delta.fields:
                delta.fields = delta.fields | {"tool_calls": calls(delta.index, delta.fields["tool_calls"])}
            if delta.fields or delta.logprobs or delta.usage:
                try:  # orjson reads 1,024 levels and writes 254; in an answer they stand some levels down
                    orjson.dumps([[[[[[[[delta.fields, delta.logprobs, delta.usage]]]]]]]])
                except TypeError:
                    raise ValueError("nested too deeply, or a number too large") from None
            if delta.whole and len(delta.content) > 4096 and delta.logprobs is None:
                *most, last = portions(delta.content)
                if first := {k: v for k, v in (delta.fields or {}).items() if k != "tool_calls"}:
                    yield Delta(index=delta.index, fields=first)
                    delta.fields = {k: v for k, v in (delta.fields or {}).items() if k == "tool_calls"}
                yield from (Delta(text, index=delta.index, whole=True) for text in most)
                delta.content = last
            if delta.content or delta.finish_reason or delta.fields or delta.logprobs:
                yield delta

    async def whole(self, reply: Reply, first: bytes = b"", until: float = 0.0) -> bytes:
        """A body to its end, bounded in size, and in time: `until`, in loop time."""
        loop = running_loop()
        parts, size, end = [first], len(first), until or loop.time() + self.limits.total
        while True:
            if size > self.limits.reply_bytes:
                raise unusable(TOO_LARGE, "too large", self.failure_status)
            reply.deadline = min(end, loop.time() + self.limits.stall)
            if not (data := await reply.read()):
                return b"".join(parts)
            parts.append(data)
            size += len(data)

    def parsed(self, body: bytes, *, text: bool) -> Any:
        """A JSON value, or the Lines of a body that has one on each; a text, if it may be one. Raises ValueError."""
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            lines = [line for line in body.split(b"\n") if line.strip()]
            if len(lines) > 1 and all(is_json(line) for line in lines):
                return Lines(len(body), body)
            if text:
                return body.decode("utf-8", "replace")
            raise

    async def refusal(self, reply: Reply) -> Refused:
        """A status other than 2xx, with what the upstream says about it, if that can be read."""
        until = min(reply.deadline, running_loop().time() + 5.0)
        try:
            refused = self.shape.refusal(reply.status, orjson.loads(await self.whole(reply, until=until)))
        except (httpx.HTTPError, TimeoutError, APIError, ValueError):
            refused = Refused(reply.status)
        refused.headers = passed_on(reply.headers)
        return refused

    def failure(self, refused: Refused, *, own_key: bool) -> APIError:
        """What an upstream's refusal means for the client (`own_key`: it was asked with a key of ours, or none)."""
        status = refused.status
        known: dict[str, Any] = {name: redacted(text, self.secrets)[:200] for name, text in refused.known.items()}
        message = redacted(refused.message, self.secrets)[:2000]
        reason = f"upstream: {status}"
        if status in (429, 503, 529):  # 529: Anthropic's "overloaded"
            limited = status == 429
            known = {"code": "rate_limit_exceeded" if limited else "unavailable", "type": "requests"} | known
            message = message if limited and message else "The chat backend is busy."
            return APIError(429 if limited else 503, message, headers=refused.headers, reason=reason, **known)
        if status in (400, 404, 413, 422) or (status in (401, 403) and not own_key):
            return APIError(status, message or "The chat backend refused the request.", reason=reason, **known)
        if status == 504:
            return APIError(504, TOO_SLOW, type="upstream_error", code="timeout", reason=reason)
        error = unusable(FAILED, reason, self.failure_status)
        if status < 500 and status not in (408, 409):  # our configuration is wrong: to try again helps nobody
            error.headers = [(b"x-should-retry", b"false")]
        return error


def dumps(value: Any) -> bytes:
    """JSON for an upstream. Raises APIError: orjson reads 1,024 levels, and writes 254."""
    try:
        return orjson.dumps(value)
    except TypeError:
        raise APIError(400, "The request is nested too deeply.") from None


FAILED = "The chat backend failed to answer."
TOO_LARGE = "The chat backend's answer is too large."
TOO_SLOW = "The chat backend did not answer in time."
UNPRINTABLE = re.compile(r"[^ -~]")
PASSED_ON = re.compile(
    rb"(?:openai-processing-ms|openai-version|retry-after(?:-ms)?|x-ratelimit-(?:limit|remaining|reset)-(?:requests|tokens))"
    rb": [\w.:, -]{1,64}"
)


def passed_on(headers: Mapping[bytes, bytes]) -> Headers:
    """What of an upstream's headers is for the client."""
    return [(k, v) for k, v in headers.items() if PASSED_ON.fullmatch(b"%b: %b" % (k, v))]


class OpenAI(ChatURL):
    """An OpenAI-compatible upstream: what it says goes through as it is, byte for byte, unknown fields and all.

    `api_base` ends where `/chat/completions` and `/models` begin. Without an `api_key` of ours, the client's own
    Authorization goes along.
    """

    MODELS_SECONDS = 60.0
    FAILED_SECONDS = 5.0
    text = False

    def __init__(self, client: Client, api_base: str, shape: Shape, **options: Any) -> None:
        address = httpx.URL(api_base)
        base = address.path.rstrip("/").removesuffix("/chat/completions")
        url, models = (str(address.copy_with(path=f"{base}/{end}")) for end in ("chat/completions", "models"))
        super().__init__(client, url, shape, **{"name": "openai"} | options)
        self.has_key = bool(self.key) or "authorization" in self.own_headers
        self.models_target = client.target("GET", models, shape.headers(self.key, False) | self.own_headers)
        self.listed: list[dict[str, Any]] = []
        self.asking: asyncio.Task[list[dict[str, Any]]] | None = None
        self.ask_again = 0.0  # on the monotonic clock

    def credentials(self, chat: Chat) -> dict[str, str]:
        return {} if self.has_key or not chat.authorization else {"authorization": chat.authorization}

    def body(self, chat: Chat) -> bytes:
        if chat.body and chat.model == chat.payload.get("model") and not chat.stored:
            return chat.body
        # What is stored is stored here: not a second time there, where nobody who deletes it here would reach it.
        asked = {k: v for k, v in chat.payload.items() if not (chat.stored and k in ("store", "metadata"))}
        return dumps(asked | {"model": chat.model, "messages": chat.messages})

    def dropped(self, chat: Chat) -> list[str]:
        return []

    async def models(self, authorization: str) -> list[dict[str, Any]]:
        """The upstream's own list, kept for a minute; where it fails, the one before, or the default model. Raises APIError.

        /info needs no key: without one of the client's, the upstream is asked once at a time, whoever leaves meanwhile, and
        after a failure not again for FAILED_SECONDS.
        """
        now = time.monotonic()
        if self.listed and now < self.ask_again:
            return self.listed
        default = [model_card(self.model)] if self.model else []
        try:
            if authorization and not self.has_key:  # what one client's key may see is not for the next client
                cards = await self.ask_models({"authorization": authorization})
            else:
                if self.asking is None or (self.asking.done() and now >= self.ask_again):
                    self.asking = asyncio.create_task(self.list_models())
                cards = await asyncio.shield(self.asking)
        except APIError:
            if not self.listed and not default:
                raise
            cards = []
        return cards or self.listed or default

    async def list_models(self) -> list[dict[str, Any]]:
        cards: list[dict[str, Any]] = []
        try:
            cards = await self.ask_models({})
        finally:
            self.listed = cards or self.listed
            self.ask_again = time.monotonic() + (self.MODELS_SECONDS if cards else self.FAILED_SECONDS)
        return cards

    async def ask_models(self, credentials: dict[str, str]) -> list[dict[str, Any]]:
        deadline = running_loop().time() + min(10.0, self.limits.first_byte)
        try:
            reply = await self.client.ask(self.models_target, credentials, b"", deadline)
            try:
                if reply.status in (404, 405):  # it has no list, which is no failure
                    return []
                if reply.status != 200:
                    raise await self.refusal(reply)
                value = orjson.loads(await self.whole(reply, until=deadline))
            finally:
                await reply.aclose()
            if not isinstance(value, dict) or not isinstance(value.get("data"), list):
                raise ValueError("no list")
        except Refused as refused:
            error = self.failure(refused, own_key=not credentials)
            if error.status in (400, 404, 413, 422):  # nothing was wrong with what the client asked for
                error = unusable(FAILED, error.reason, self.failure_status)
            raise error from None
        except UPSTREAM_ERRORS as exc:
            raise upstream_error(exc, self.failure_status) from exc
        return [model_card(**row) for row in value["data"] if isinstance(row, dict) and isinstance(row.get("id"), str)]

    async def stream(self, chat: Chat) -> Deltas:
        """Its Deltas; where a rendering takes them, its own bytes: a JSON answer whole, a stream in whole events.

        Events go unparsed but for a look at those that say `error` or `usage`. One is held back until it is whole, so that
        none that is cut short reaches the client. This loop is what a relayed chunk costs: 2 µs; no generator in between.
        """
        async with self.answer(chat) as reply:
            content_type = reply.headers.get(b"content-type", b"").lower()
            if not chat.relay or chat.stream != content_type.startswith(b"text/event-stream"):
                async with aclosing(self.read(reply, chat)) as deltas:
                    async for delta in deltas:
                        yield delta
                return
            if not chat.stream:
                yield Delta(raw=await self.completion(reply, chat))
                return
            loop, stall, event_bytes = running_loop(), self.limits.stall, self.limits.event_bytes
            alias = self.params.model
            one_choice = (chat.payload.get("n") or 1) == 1
            unfinished = b""
            begun = False
            two_back, one_back = b"", b""  # the reads before this one: what is said at the end may stand in three
            while data := await reply.read():
                # Whole events,
                seen = max(0, len(unfinished) - 3)  # in these bytes no event ends; a large one comes in many reads
                if unfinished:
                    data = unfinished + data
                if data.endswith(b"\n\n"):
                    unfinished = b""
                else:
                    end = last_event_end(data, seen)
                    data, unfinished = data[:end], data[end:]
                    if len(unfinished) > event_bytes:
                        raise unusable(TOO_LARGE, "event too large", self.failure_status)
                    if not data:
                        continue
                # that are what they should be,
                if not data.isascii():
                    data.decode()  # raises UnicodeDecodeError: a client's reader would, too
                if (b'"error"' in data or not is_plain_events(data)) and (found := failed_event(data)):
                    if begun or b'"delta"' in data[: found[0]]:
                        yield Delta(raw=self.by_alias(data[: found[0]], chat))
                    raise found[1]
                # from the first on that is of a reply,
                if begun:
                    if data.startswith(b"data:") or b"data:" in data:  # not comments alone: they are no event
                        reply.deadline = loop.time() + stall
                elif b'"delta"' in data:
                    begun = True
                    chat.payload, chat.messages = {}, []  # of no more use: a long stream need not hold the conversation
                    reply.deadline = loop.time() + stall
                else:  # nothing of a reply yet: the status can still be another
                    if DONE.search(data) or len(data) > event_bytes:
                        break
                    unfinished = data + unfinished
                    continue
                # go on as they are.
                yield Delta(raw=self.by_alias(data, chat) if alias else data)
                if data.endswith(b"[DONE]\n\n") or data.rstrip().endswith(b"[DONE]"):
                    reply.linger()
                    break
                two_back, one_back = one_back, data
            if not begun:
                raise unusable("The chat backend gave no reply.", "no chunk", self.failure_status)
            tail = two_back + one_back + data
            if counts := USAGE.match(tail, max(0, tail.rfind(b'"usage":'))):  # a search would read all of it, slowly
                chat.usage = orjson.loads(counts[1])
            done = DONE.search(tail, max(0, len(tail) - 200))
            if DONE.match(unfinished):
                yield Delta(raw=unfinished.strip() + b"\n\n")
            elif unfinished.strip() or not (done or (one_choice and FINISHED.search(tail))):
                raise unusable("The chat backend broke off.", "no [DONE]", self.failure_status)
            elif not done:
                yield Delta(raw=b"data: [DONE]\n\n")

    async def completion(self, reply: Reply, chat: Chat) -> bytes:
        """A completion as it came, when it is one. Raises ValueError, Refused."""
        body = (await self.whole(reply, until=chat.until)).removeprefix(BOM_UTF8)
        value = orjson.loads(body)
        if isinstance(value, dict) and value.get("error"):
            raise refused_in_200(value["error"])
        if not is_plain(value) and not (isinstance(value, dict) and self.shape.answer(value) and "choices" in value):
            raise ValueError("no completion")
        counts = value.get("usage")
        chat.usage = counts if isinstance(counts, dict) else None
        return self.by_alias(body, chat)

    def by_alias(self, data: bytes, chat: Chat) -> bytes:
        """An upstream's bytes; where it calls the model by another name than the client did, with the client's."""
        if not self.params.model:
            return data
        name = b'"model":' + orjson.dumps(chat.model)
        return MODEL.sub(lambda _: name, data)


def is_plain(value: Any) -> bool:
    """A completion as most are, every choice with a text: what else may pass is for the shape to say."""
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        return False
    messages = [choice.get("message") if isinstance(choice, dict) else None for choice in choices]
    return all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages)


def failed_event(data: bytes) -> tuple[int, Refused] | None:
    """Where, in whole events, the first one stands that says an error, or is none of a chat completion's."""
    start = 0
    for end in EVENT_END.finditer(data):
        for name, event in Events(len(data)).feed(data[start : end.end()]):
            event = event.strip()
            said = orjson.loads(event) if b'"error"' in event and event.startswith(b"{") else {}
            if name == "error" or said.get("error"):
                return start, refused_in_200(said.get("error") or {})
            if event != b"[DONE]" and event and not (event.startswith(b"{") and event.endswith(b"}")):
                return start, Refused(502)
        start = end.end()
    return None


# A member alone: in the text of a reply, quotation marks are escaped.
MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
USAGE = re.compile(rb'"usage":\s*(\{(?:[^{}]|\{[^{}]*\})*\})')
FINISHED = re.compile(rb'"finish_reason":\s*"[^"]')


def refused_in_200(error: Any) -> Refused:
    """An upstream's failure that came with a good status, or in mid-stream: `{"message", "type", "param", "code"}` or a text."""
    said = error if isinstance(error, dict) else {"message": error}
    code, message = said.get("code"), said.get("message")
    status = code if isinstance(code, int) and 400 <= code < 600 else STATUS_OF_CODE.get(str(code), 502)
    known = {name: said[name] for name in ("type", "param", "code") if isinstance(said.get(name), str)}
    return Refused(status, message if isinstance(message, str) else "", **known)


STATUS_OF_CODE = {"rate_limit_exceeded": 429, "context_length_exceeded": 400, "content_filter": 400}


def no_such_model(model: str) -> APIError:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return APIError(404, message, code="model_not_found")
