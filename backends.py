"""Backends: each one turns a Chat into a stream of Deltas. The mock, any chat URL, an OpenAI-compatible upstream.

Knows httpx and what upstreams say on the wire; never imports Starlette, main.py or the folder beside it.
A backend does not know which API shape is served: that is a rendering's business (main.py).
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import orjson

from extras.framing import Events, Lines, Pieces, framing, is_json

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
    backend: str = ""
    usage: dict[str, Any] | None = None
    headers: Headers = field(default_factory=list)  # for the answer to the client


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


class Backend(Protocol):
    """Who answers. `stream` raises APIError, before the first Delta or after it; closing it ends the upstream's work."""

    name: str

    def stream(self, chat: Chat) -> Deltas: ...

    async def models(self, authorization: str) -> list[dict[str, Any]]: ...


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

    Parts that are no text (images, audio) have no place in it: `parts_without_text` names them.
    """
    if isinstance(content, list):
        texts = (part if isinstance(part, str) else part.get("text") for part in content)
        return "\n".join(text for text in texts if isinstance(text, str))
    return content or ""


def estimated_tokens(*texts: str) -> int:
    """A guess for upstreams that do not count: a token for four bytes of UTF-8.

    That is about right for English, and for Chinese or Japanese (three bytes a character) it is 0.75 a character.
    """
    return -(-sum(len(text) if text.isascii() else len(text.encode()) for text in texts) // 4)


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


class Mock:
    """Answers by itself from the conversation: the same answer for the same request, offline.

    A word is a token here, so `max_tokens` and `usage` can be foretold. `words_per_second` 0 is at once.
    """

    name = "mock"
    model = "mock-gpt-model"

    def __init__(self, words_per_second: float = 0.0) -> None:
        self.words_per_second = words_per_second

    async def models(self, authorization: str) -> list[dict[str, Any]]:
        return [model_card(self.model)]

    async def stream(self, chat: Chat) -> Deltas:
        parts, finish_reason = self.reply(chat)
        choices = chat.payload.get("n") or 1
        prompt_tokens = sum(len(text_of(message.get("content")).split()) for message in chat.messages)
        chat.usage = usage(prompt_tokens, len(parts) * choices)
        for index in range(choices):
            if self.words_per_second:
                for part in parts:
                    await asyncio.sleep(1 / self.words_per_second)
                    yield Delta(part, index=index)
                yield Delta(finish_reason=finish_reason, index=index)
            else:
                *most, last = portions("".join(parts))
                for text in most:
                    yield Delta(text, index=index, whole=True)
                yield Delta(last, finish_reason, index, whole=True)

    def reply(self, chat: Chat) -> tuple[list[str], str]:
        """The words, and why they end."""
        prompts = [text_of(m.get("content")) for m in chat.messages if m.get("role") == "user"]
        text = f"This is a mock reply to: {prompts[-1]}" if prompts else "This is a mock reply."
        stops = chat.payload.get("stop") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.split(stop, 1)[0] if stop else text
        parts = words(text)
        limit = chat.payload.get("max_completion_tokens") or chat.payload.get("max_tokens") or len(parts)
        return (parts[:limit], "length") if limit < len(parts) else (parts, "stop")


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
    """A Reply by any httpx transport: a mock in tests, httpx's own for proxies."""

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


@contextmanager
def upstream_errors(failure_status: int = 502) -> Iterator[None]:
    """The one place where an upstream's failure becomes an APIError of ours.

    Its own words may hold secrets: the client gets ours, and the log the name of the exception.
    """
    try:
        yield
    except httpx.PoolTimeout as exc:
        again = [(b"retry-after", b"1")]
        raise APIError(
            503, "All connections to the chat backend are busy.", type="server_error", headers=again
        ) from exc
    except (httpx.TimeoutException, TimeoutError) as exc:
        message = "The chat backend did not answer in time."
        raise APIError(504, message, type="upstream_error", code="timeout", reason=type(exc).__name__) from exc
    except (httpx.HTTPError, ValueError) as exc:
        raise unusable("The chat backend failed to answer.", type(exc).__name__, failure_status) from exc


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


class Shape(Protocol):
    """How an endpoint is spoken to: where the prompt goes, where the text is."""

    def request(self, chat: Chat) -> dict[str, Any]: ...  # the JSON to send
    def answer(self, value: Any) -> list[Delta]: ...  # a whole JSON answer; raises ValueError if there is no reply
    def reader(self) -> Callable[[str, bytes], list[Delta] | None]: ...  # (event name, data); None: it was the last


class ChatURL:
    """Any chat URL: asks it in its shape, and finds the reply in whatever comes back.

    Sends    {"model", "messages": [{"role", "content": "a string"}], and what else was asked for and is set}
    Expects  JSON with the reply somewhere near the top, a JSON string, or plain text; SSE of JSON or text, NDJSON,
             or text in pieces, which are given on as they come

    Raises APIError: 502 when it cannot be reached, breaks off, or says nothing usable; 504 when it is silent for too long;
    429, 503 and what concerns the request (400, 404, 413, 422) as they come.
    """

    def __init__(
        self,
        client: Client,
        url: str,
        shape: Shape,
        *,
        name: str = "chat-url",
        headers: Mapping[str, str] | None = None,
        model: str = "",
        limits: Limits | None = None,
        failure_status: int = 502,
    ) -> None:
        self.client, self.url, self.name, self.model = client, url, name, model
        self.shape = shape
        self.limits = limits or Limits()
        self.failure_status = failure_status
        self.headers = {"content-type": "application/json", "accept": "application/json, text/event-stream, */*"}
        self.headers |= {k.lower(): v for k, v in (headers or {}).items()}
        self.target = client.target("POST", url, self.headers)
        address = httpx.URL(url)
        self.secrets = [v.split()[-1] for v in (headers or {}).values() if v.strip()] + [url, address.netloc.decode()]

    async def models(self, authorization: str) -> list[dict[str, Any]]:
        return [model_card(self.model or self.name)]

    def body(self, chat: Chat) -> bytes:
        try:
            return orjson.dumps(self.shape.request(chat))
        except TypeError as exc:  # orjson reads 1,024 levels, and writes 254
            raise APIError(400, "The request is nested too deeply.") from exc

    def credentials(self, chat: Chat) -> dict[str, str]:
        return {}

    async def stream(self, chat: Chat) -> Deltas:
        body = self.body(chat)
        with upstream_errors(self.failure_status):
            now = asyncio.get_running_loop().time()
            credentials = self.credentials(chat)
            reply = await self.client.ask(self.target, credentials, body, now + self.limits.first_byte)
            try:
                if not 200 <= reply.status < 300:
                    raise await self.refusal(reply, passed_on=bool(credentials))
                self.passed_on(reply, chat)
                async with aclosing(self.read(reply, chat)) as deltas:
                    async for delta in deltas:
                        yield delta
            finally:
                await reply.aclose()

    async def read(self, reply: Reply, chat: Chat) -> Deltas:
        """The Deltas of a good answer, whatever its framing."""
        kind, first = await framing(reply)
        if kind == "json":
            value = self.parsed(await self.whole(reply, first))
            if not isinstance(value, Lines):
                for delta in self.checked(self.shape.answer(value), chat, value):
                    yield delta
                return
            events: Any = value
        else:
            events = {"sse": Events, "ndjson": Lines, "text": Pieces}[kind](self.limits.event_bytes)
        read = self.shape.reader()
        finished = set()
        ended = started = False
        loop = asyncio.get_running_loop()
        data = first or await reply.read()
        while True:
            for name, event in events.feed(data) if data else events.close():
                deltas = read(name, event)
                if deltas is None:
                    ended = True
                    break
                reply.deadline = loop.time() + self.limits.stall
                for delta in self.checked(deltas, chat, None):
                    started = True
                    if delta.finish_reason:
                        finished.add(delta.index)
                    yield delta
            if ended or not data:
                break
            data = await reply.read()
        reply.linger()
        if not finished and not ended and getattr(read, "ends", False):
            raise unusable("The chat backend broke off.", "no finish_reason, no [DONE]", self.failure_status)
        if not started and not finished:
            raise unusable("The chat backend gave no reply.", "empty stream", self.failure_status)
        if not finished:
            yield Delta(finish_reason="stop")

    def checked(self, deltas: list[Delta], chat: Chat, value: Any) -> Iterator[Delta]:
        """What is said of the whole answer goes to the Chat; whole texts go on in portions."""
        if isinstance(value, dict) and "choices" in value:
            chat.id = value["id"] if isinstance(value.get("id"), str) and value["id"] else chat.id
            chat.created = value["created"] if isinstance(value.get("created"), int) else chat.created
        for delta in deltas:
            if delta.usage:
                chat.usage = delta.usage
            if delta.whole and len(delta.content) > 4096:
                *most, last = portions(delta.content)
                yield from (Delta(text, index=delta.index, whole=True) for text in most)
                delta.content = last
            if delta.content or delta.finish_reason or delta.fields:
                yield delta

    async def whole(self, reply: Reply, first: bytes = b"") -> bytes:
        """A body to its end, bounded in time and size."""
        loop = asyncio.get_running_loop()
        parts, size, end = [first], len(first), loop.time() + self.limits.total
        while True:
            reply.deadline = min(end, loop.time() + self.limits.stall)
            if not (data := await reply.read()):
                return b"".join(parts)
            parts.append(data)
            size += len(data)
            if size > self.limits.reply_bytes:
                raise unusable("The chat backend's answer is too large.", "too large", self.failure_status)

    def parsed(self, body: bytes) -> Any:
        """A JSON value, or the Lines of a body that has one JSON value on each. Raises ValueError."""
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            lines = body.strip().split(b"\n")
            if len(lines) < 2 or not all(is_json(line) for line in lines):
                raise
            return Lines(len(body), body)

    def passed_on(self, reply: Reply, chat: Chat) -> None:
        """Headers of the answer that clients use; of all others none."""
        for name, value in reply.headers.items():
            if name in PASSED_ON or name.startswith(b"x-ratelimit-"):
                chat.headers.append((name, value))

    async def refusal(self, reply: Reply, *, passed_on: bool) -> APIError:
        """What a status other than 2xx means for the client (`passed_on`: who sent a key of its own)."""
        reply.deadline = min(reply.deadline, asyncio.get_running_loop().time() + 5.0)
        try:
            said = orjson.loads(await self.whole(reply))["error"]
            message = self.redacted(said["message"])
        except (httpx.HTTPError, TimeoutError, APIError, ValueError, KeyError, TypeError, IndexError):
            said, message = {}, ""
        status = reply.status
        headers = [(k, v) for k, v in reply.headers.items() if k.startswith((b"retry-after", b"x-ratelimit-"))]
        known = {key: said[key] for key in ("param", "code") if isinstance(said.get(key), str)}
        kind = said["type"] if isinstance(said.get("type"), str) else ""
        reason = f"status {status}"
        if status in (429, 503):
            kind = kind or ("requests" if status == 429 else "server_error")
            known.setdefault("code", "rate_limit_exceeded" if status == 429 else "unavailable")
            return APIError(
                status, message or "The chat backend is busy.", type=kind, headers=headers, reason=reason, **known
            )
        if status in (400, 404, 413, 422) or (status in (401, 403) and passed_on):
            message = message or "The chat backend refused the request."
            return APIError(status, message, type=kind or "invalid_request_error", reason=reason, **known)
        if status == 504:
            return APIError(504, "The chat backend did not answer in time.", type="upstream_error", code="timeout")
        error = unusable("The chat backend failed to answer.", reason, self.failure_status)
        if status < 500:  # our configuration is wrong (its key, its URL): to try again helps nobody
            error.headers = [(b"x-should-retry", b"false")]
        return error

    def redacted(self, text: str) -> str:
        """An upstream's words without our secrets, or its address."""
        for secret in self.secrets:
            if len(secret) > 3:
                text = text.replace(secret, "***")
        return KEYLIKE.sub("***", text)


PASSED_ON = frozenset([b"openai-processing-ms", b"openai-version", b"x-should-retry"])
KEYLIKE = re.compile(r"https?://\S+|(?<![\w-])(?:sk|pk|key|Bearer)[-_ ][\w*.…-]{8,}")


class OpenAI(ChatURL):
    """An OpenAI-compatible upstream: what it says goes through as it is, byte for byte, unknown fields and all.

    `api_base` ends where `/chat/completions` and `/models` begin. Without an `api_key` of ours, the client's own
    Authorization goes along.
    """

    MODELS_SECONDS = 60.0

    def __init__(self, client: Client, api_base: str, shape: Shape, *, api_key: str = "", **options: Any) -> None:
        base = api_base.rstrip("/").removesuffix("/chat/completions")
        headers = dict(options.pop("headers", None) or {})
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        options.setdefault("name", "openai")
        super().__init__(client, f"{base}/chat/completions", shape, headers=headers, **options)
        self.has_key = "authorization" in self.headers
        self.models_target = client.target("GET", f"{base}/models", self.headers)
        self.listed: tuple[float, list[dict[str, Any]]] = (0.0, [])

    def credentials(self, chat: Chat) -> dict[str, str]:
        return {} if self.has_key or not chat.authorization else {"authorization": chat.authorization}

    def body(self, chat: Chat) -> bytes:
        if chat.body and chat.model == chat.payload.get("model"):
            return chat.body
        try:
            return orjson.dumps(chat.payload | {"model": chat.model, "messages": chat.messages})
        except TypeError as exc:
            raise APIError(400, "The request is nested too deeply.") from exc

    async def models(self, authorization: str) -> list[dict[str, Any]]:
        """The upstream's own list, kept for a minute; where it has none, the default model."""
        now = time.monotonic()
        if self.listed[1] and now - self.listed[0] < self.MODELS_SECONDS:
            return self.listed[1]
        extra = {} if self.has_key or not authorization else {"authorization": authorization}
        try:
            with upstream_errors():
                deadline = asyncio.get_running_loop().time() + min(10.0, self.limits.first_byte)
                reply = await self.client.ask(self.models_target, extra, b"", deadline)
                try:
                    value = orjson.loads(await self.whole(reply)) if reply.status == 200 else None
                finally:
                    await reply.aclose()
            rows = value["data"] if isinstance(value, dict) and isinstance(value.get("data"), list) else []
            cards = [model_card(**row) for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]
        except APIError:
            cards = []
        if cards and not extra:  # what one client's key may see is not for the next client
            self.listed = (now, cards)
        return cards or self.listed[1] or ([model_card(self.model)] if self.model else [])

    async def read(self, reply: Reply, chat: Chat) -> Deltas:
        content_type = reply.headers.get(b"content-type", b"").lower()
        if not chat.relay or chat.stream != content_type.startswith(b"text/event-stream"):
            async with aclosing(super().read(reply, chat)) as deltas:
                async for delta in deltas:
                    yield delta
        elif chat.stream:
            async with aclosing(self.relayed(reply, chat)) as deltas:
                async for delta in deltas:
                    yield delta
        else:
            body = await self.whole(reply)
            value = orjson.loads(body)
            if not isinstance(value, dict) or not self.shape.answer(value):
                raise ValueError("no reply")
            chat.usage = value.get("usage")
            yield Delta(raw=body)

    async def relayed(self, reply: Reply, chat: Chat) -> Deltas:
        """Whole events as they come, unparsed but for a look at those that say `error` or `usage`.

        An event is held back until it is whole, so that one that is cut short never reaches the client.
        """
        loop = asyncio.get_running_loop()
        rest = b""
        finished = 0
        while data := await reply.read():
            if rest:
                data = rest + data
            end = len(data) if data.endswith(b"\n\n") else last_event_end(data)
            rest = data[end:]
            if len(rest) > self.limits.event_bytes:
                raise unusable("The chat backend's answer is too large.", "event too large", self.failure_status)
            if not end:
                continue
            if rest:
                data = data[:end]
            if b"data:" not in data:  # comments alone: alive, but no event
                rest = data + rest
                continue
            reply.deadline = loop.time() + self.limits.stall
            if not data.isascii():
                data.decode()  # raises UnicodeDecodeError: a client's reader would, too
            if b'"error"' in data:
                self.look_for_error(data)
            if b'"usage":' in data and (found := USAGE.search(data)):
                chat.usage = orjson.loads(found[1])
            finished += data.count(b'"finish_reason":"') or data.count(b'"finish_reason": "')
            yield Delta(raw=data)
            if b"data: [DONE]" in data or b"data:[DONE]" in data:
                reply.linger()
                return
        if rest.strip() in (b"data: [DONE]", b"data:[DONE]"):
            yield Delta(raw=rest.strip() + b"\n\n")
        elif finished < (chat.payload.get("n") or 1) or rest.strip():
            raise unusable("The chat backend broke off.", "no [DONE]", self.failure_status)
        else:
            yield Delta(raw=b"data: [DONE]\n\n")

    def look_for_error(self, data: bytes) -> None:
        for _, event in Events(len(data) + 1).feed(data):
            if event.startswith(b"{") and orjson.loads(event).get("error"):
                raise error_in_200(orjson.loads(event)["error"], self.redacted, self.failure_status)


USAGE = re.compile(rb'"usage":\s*(\{(?:[^{}]|\{[^{}]*\})*\})')
EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")


def last_event_end(data: bytes) -> int:
    """Where the last whole event ends, whichever line ends it uses; 0 if none does."""
    end = 0
    for match in EVENT_END.finditer(data):
        end = match.end()
    return end


def error_in_200(error: Any, redacted: Callable[[str], str], failure_status: int) -> APIError:
    """An upstream's failure that came with a good status, or in mid-stream."""
    said = error.get("message") if isinstance(error, dict) else error
    code = error.get("code") if isinstance(error, dict) else None
    message = redacted(said)[:1000] if isinstance(said, str) and code in SAID_ALOUD else ""
    status = 429 if code in ("rate_limit_exceeded", 429) else failure_status
    failure = unusable(message or "The chat backend failed to answer.", "error in 200", status)
    failure.code = code if isinstance(code, str) else failure.code
    return failure


SAID_ALOUD = frozenset(["context_length_exceeded", "content_filter", "rate_limit_exceeded"])
