"""Backends: each one turns a Chat into a stream of Deltas. The mock, any chat URL, an OpenAI-compatible upstream.

Knows httpx and what upstreams say on the wire; never imports Starlette or main.py, and of the folder beside it calls, framing and redaction alone.
A backend does not know which API shape is served: that is a rendering's business (extras/renderings.py).
"""

import asyncio
import logging
import re
import time
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import lru_cache
from typing import Any

import httpx
import orjson

from rewrap.eventloop import running_loop
from rewrap.redaction import redacted, secrets_in
from rewrap.types import (
    APIError,
    ChatRequest,
    Delta,
    Deltas,
    Limits,
    Reply,
    Shape,
    UpstreamRejection,
    dumps,
    model_card,
    portions,
    text_of,
    usage,
    words,
)
from rewrap.upstream.client import (
    FAILED,
    TOO_LARGE,
    TOO_SLOW,
    UPSTREAM_ERRORS,
    Client,
    bad_gateway,
    upstream_error,
)
from rewrap.upstream.framing import (
    DONE,
    NDJSONDecoder,
    SSEDecoder,
    TextDecoder,
    charset,
    framing,
    is_json,
    is_plain_events,
    last_event_end,
)
from rewrap.upstream.params import Params
from rewrap.upstream.relay import (
    FINISHED,
    MODEL,
    USAGE,
    failed_event,
    forwardable_headers,
    is_plain,
    refused_in_200,
)
from rewrap.upstream.tool_calls import ToolCallNormalizer

log = logging.getLogger("rewrap")


# Texts, words and tokens.


def count_words(text: str) -> int:
    return count_words_cached(text) if len(text) < 4096 else len(text.split())


@lru_cache(256)
def count_words_cached(text: str) -> int:
    """System prompts and load tests say the same again and again: 6 µs of a request."""
    return len(text.split())


class Mock:
    """Answers by itself from the conversation: the same answer for the same request, offline.

    A word is a token here, so `max_tokens` and `usage` can be foretold. `words_per_second` 0 is at once.
    """

    model = "mock-gpt-model"

    def __init__(
        self, words_per_second: float = 0.0, name: str = "mock", reply_bytes: int = 64 * 2**20
    ) -> None:
        self.words_per_second, self.name, self.reply_bytes = words_per_second, name, reply_bytes

    async def models(self, authorization: str) -> list[dict[str, Any]]:
        return [model_card(self.model)]

    async def stream(self, chat: ChatRequest) -> Deltas:
        text, count, finish_reason = self.reply(chat)
        choices = chat.payload.get("n") or 1
        if choices > 1 and choices * len(text) > self.reply_bytes:
            raise APIError(
                400, "The mock's reply is too large: it repeats the prompt 'n' times.", param="n"
            )
        prompt_tokens = sum(
            [count_words(text_of(message.get("content"))) for message in chat.messages]
        )
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

    def reply(self, chat: ChatRequest) -> tuple[str, int, str]:
        """The text, how many words it has, and why it ends."""
        prompt = next(
            (m.get("content") for m in reversed(chat.messages) if m.get("role") == "user"), None
        )
        text = (
            "This is a mock reply."
            if prompt is None
            else f"This is a mock reply to: {text_of(prompt)}"
        )
        stops = chat.payload.get("stop") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.split(stop, 1)[0] if stop else text
        limit = chat.payload.get("max_completion_tokens") or chat.payload.get("max_tokens") or -1
        parts = text.split(None, limit)
        if limit < 0 or len(parts) <= limit:
            return text, len(parts), "stop"
        return text[: -len(parts[-1])], limit, "length"


# The way out: httpx, and the one place where its failures become ours.


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
        self.client, self.url, self.shape, self.name, self.key, self.model = (
            client,
            url,
            shape,
            name,
            key,
            model,
        )
        self.params, self.limits = params or Params(), limits or Limits()
        self.failure_status = failure_status
        self.own_headers = {name.lower(): value for name, value in (headers or {}).items()}
        self.targets: dict[tuple[str, bool], Any] = {}
        self.secrets = secrets_in(url, key, self.own_headers)
        # An address that is not whole stops the start, and so does a header that cannot be sent.
        self.target(shape.url(url, ChatRequest("m", [], {"user": "u"})), False)

    def target(self, url: str, stream: bool) -> Any:
        """Where a request goes, and the headers that all of them share: made once."""
        if (target := self.targets.get((url, stream))) is None:
            accept = (
                "text/event-stream, application/json, */*" if stream else "application/json, */*"
            )
            headers = {"content-type": "application/json", "accept": accept} | self.shape.headers(
                self.key, stream
            )
            target = self.client.target("POST", url, headers | self.own_headers)
            if (
                len(self.targets) < 256
            ):  # a model's name may stand in the URL, and names are the clients' to choose
                self.targets[url, stream] = target
        return target

    async def models(self, authorization: str) -> list[dict[str, Any]]:
        return [model_card(self.model or self.name)]

    def body(self, chat: ChatRequest) -> bytes:
        return dumps(self.shape.request(chat))

    def dropped(self, chat: ChatRequest) -> list[str]:
        return self.shape.dropped(chat)

    def credentials(self, chat: ChatRequest) -> dict[str, str]:
        return {}

    async def stream(self, chat: ChatRequest) -> Deltas:
        async with self.answer(chat) as reply, aclosing(self.read(reply, chat)) as deltas:
            async for delta in deltas:
                yield delta

    @asynccontextmanager
    async def answer(self, chat: ChatRequest) -> AsyncIterator[Reply]:
        """The upstream's answer, if it is a good one; closed with the block. What fails in it is an APIError."""
        asked, dropped = self.params.applied(chat)
        body = self.body(asked)
        credentials = self.credentials(chat)
        reply = None
        try:
            target = self.target(self.shape.url(self.url, asked), asked.stream)
            now, limits = running_loop().time(), self.limits
            chat.until = now + limits.total
            deadline = now + (
                limits.first_byte if chat.stream else min(limits.first_byte, limits.total)
            )
            reply = await self.client.ask(target, credentials, body, deadline)
            if not 200 <= reply.status < 300:
                raise await self.refusal(reply)
            if dropped := chat.dropped + dropped + self.dropped(asked):
                names = UNPRINTABLE.sub("?", ", ".join(dropped))[:1000]  # they are the client's
                chat.headers.append((b"x-dropped-params", names.encode()))
            chat.headers += forwardable_headers(reply.headers)
            chat.body = asked.body = body = b""  # of no more use: a long stream need not hold it
            yield reply
        except UpstreamRejection as refused:
            raise self.failure(refused, own_key=not credentials) from None
        except UPSTREAM_ERRORS as exc:
            raise upstream_error(exc, self.failure_status) from exc
        except (AttributeError, LookupError, TypeError, RecursionError) as exc:
            log.exception("%s: an answer that nobody has thought of", self.name)
            raise bad_gateway(FAILED, type(exc).__name__, self.failure_status) from exc
        finally:
            if reply is not None:
                await reply.aclose()

    async def opened(self, reply: Reply, chat: ChatRequest) -> tuple[Any, bytes]:
        """What cuts a good answer into events, and the bytes for it to begin with; or a JSON value, or a text, that is whole."""

        async def more(begun: bool) -> bytes:
            if begun:
                reply.deadline = min(chat.until, running_loop().time() + self.limits.stall)
            return await reply.read()

        kind, first = await framing(
            reply.headers, more, self.shape.framing if chat.stream else "auto"
        )
        encoding = charset(reply.headers)
        if "text" in kind and not self.text:
            raise ValueError("plain text")
        if kind == "text":
            return TextDecoder(self.limits.event_bytes, encoding), first
        if kind in ("sse", "ndjson"):
            return (SSEDecoder if kind == "sse" else NDJSONDecoder)(self.limits.event_bytes), first
        body = await self.whole(reply, first, chat.until)
        body = body if encoding == "utf-8" else body.decode(encoding, "replace").encode()
        return self.parsed(body, text=kind != "json"), b""

    async def read(self, reply: Reply, chat: ChatRequest) -> Deltas:
        """The Deltas of a good answer, whatever its framing."""
        events, first = await self.opened(reply, chat)
        calls = ToolCallNormalizer()
        if not isinstance(events, (NDJSONDecoder, TextDecoder)):
            for delta in self.checked(self.shape.answer(events), chat, events, calls):
                yield delta
            return
        loop = running_loop()
        read = self.shape.reader()
        started, finished = set[int](), set[int]()  # choices
        # What is gathered for an answer that is no stream has an end in time and in size.
        until, left = (
            (float("inf"), float("inf")) if chat.stream else (chat.until, self.limits.reply_bytes)
        )
        data = first or await reply.read()
        while True:
            left -= len(data)
            if left < 0:
                raise bad_gateway(TOO_LARGE, "too large", self.failure_status)
            if (
                loop.time() > until
            ):  # what comes faster than it is read never waits, and so never waits too long
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
            raise bad_gateway("The chat backend broke off.", "cut short", self.failure_status)
        if not started and not read.finish:
            raise bad_gateway(
                "The chat backend gave no reply.", "empty stream", self.failure_status
            )
        for index in sorted((started or {0}) - finished):
            yield Delta(finish_reason=read.finish or "stop", index=index)

    def checked(
        self, deltas: list[Delta], chat: ChatRequest, value: Any, calls: ToolCallNormalizer
    ) -> Iterator[Delta]:
        """What is said of the whole answer goes to the Chat; whole texts go on in portions."""
        if isinstance(value, dict) and "choices" in value and not chat.stored:
            chat.id = value["id"] if isinstance(value.get("id"), str) and value["id"] else chat.id
            chat.created = (
                value["created"] if isinstance(value.get("created"), int) else chat.created
            )
        for delta in deltas:
            if delta.usage:
                chat.usage = delta.usage
            if delta.fields and "tool_calls" in delta.fields:
                delta.fields = delta.fields | {
                    "tool_calls": calls(delta.index, delta.fields["tool_calls"])
                }
            if delta.fields or delta.logprobs or delta.usage:
                try:  # orjson reads 1,024 levels and writes 254; in an answer they stand some levels down
                    orjson.dumps([[[[[[[[delta.fields, delta.logprobs, delta.usage]]]]]]]])
                except TypeError:
                    raise ValueError("nested too deeply, or a number too large") from None
            if delta.whole and len(delta.content) > 4096 and delta.logprobs is None:
                *most, last = portions(delta.content)
                if first := {k: v for k, v in (delta.fields or {}).items() if k != "tool_calls"}:
                    yield Delta(index=delta.index, fields=first)
                    delta.fields = {
                        k: v for k, v in (delta.fields or {}).items() if k == "tool_calls"
                    }
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
                raise bad_gateway(TOO_LARGE, "too large", self.failure_status)
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
                return NDJSONDecoder(len(body), body)
            if text:
                return body.decode("utf-8", "replace")
            raise

    async def refusal(self, reply: Reply) -> UpstreamRejection:
        """A status other than 2xx, with what the upstream says about it, if that can be read."""
        until = min(reply.deadline, running_loop().time() + 5.0)
        try:
            refused = self.shape.refusal(
                reply.status, orjson.loads(await self.whole(reply, until=until))
            )
        except (httpx.HTTPError, TimeoutError, APIError, ValueError):
            refused = UpstreamRejection(reply.status)
        refused.headers = forwardable_headers(reply.headers)
        return refused

    def failure(self, refused: UpstreamRejection, *, own_key: bool) -> APIError:
        """What an upstream's refusal means for the client (`own_key`: it was asked with a key of ours, or none)."""
        status = refused.status
        known: dict[str, Any] = {
            name: redacted(text, self.secrets)[:200] for name, text in refused.known.items()
        }
        message = redacted(refused.message, self.secrets)[:2000]
        reason = f"upstream: {status}"
        if status in (429, 503, 529):  # 529: Anthropic's "overloaded"
            limited = status == 429
            known = {
                "code": "rate_limit_exceeded" if limited else "unavailable",
                "type": "requests",
            } | known
            message = message if limited and message else "The chat backend is busy."
            return APIError(
                429 if limited else 503, message, headers=refused.headers, reason=reason, **known
            )
        if status in (400, 404, 413, 422) or (status in (401, 403) and not own_key):
            return APIError(
                status, message or "The chat backend refused the request.", reason=reason, **known
            )
        if status == 504:
            return APIError(504, TOO_SLOW, type="upstream_error", code="timeout", reason=reason)
        error = bad_gateway(FAILED, reason, self.failure_status)
        if status < 500 and status not in (
            408,
            409,
        ):  # our configuration is wrong: to try again helps nobody
            error.headers = [(b"x-should-retry", b"false")]
        return error


UNPRINTABLE = re.compile(r"[^ -~]")


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
        url, models = (
            str(address.copy_with(path=f"{base}/{end}")) for end in ("chat/completions", "models")
        )
        super().__init__(client, url, shape, **{"name": "openai"} | options)
        self.has_key = bool(self.key) or "authorization" in self.own_headers
        self.models_target = client.target(
            "GET", models, shape.headers(self.key, False) | self.own_headers
        )
        self.listed: list[dict[str, Any]] = []
        self.asking: asyncio.Task[list[dict[str, Any]]] | None = None
        self.ask_again = 0.0  # on the monotonic clock

    def credentials(self, chat: ChatRequest) -> dict[str, str]:
        return (
            {} if self.has_key or not chat.authorization else {"authorization": chat.authorization}
        )

    def body(self, chat: ChatRequest) -> bytes:
        if chat.body and chat.model == chat.payload.get("model") and not chat.stored:
            return chat.body
        # What is stored is stored here: not a second time there, where nobody who deletes it here would reach it.
        asked = {
            k: v
            for k, v in chat.payload.items()
            if not (chat.stored and k in ("store", "metadata"))
        }
        return dumps(asked | {"model": chat.model, "messages": chat.messages})

    def dropped(self, chat: ChatRequest) -> list[str]:
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
            if (
                authorization and not self.has_key
            ):  # what one client's key may see is not for the next client
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
            self.ask_again = time.monotonic() + (
                self.MODELS_SECONDS if cards else self.FAILED_SECONDS
            )
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
        except UpstreamRejection as refused:
            error = self.failure(refused, own_key=not credentials)
            if error.status in (
                400,
                404,
                413,
                422,
            ):  # nothing was wrong with what the client asked for
                error = bad_gateway(FAILED, error.reason, self.failure_status)
            raise error from None
        except UPSTREAM_ERRORS as exc:
            raise upstream_error(exc, self.failure_status) from exc
        return [
            model_card(**row)
            for row in value["data"]
            if isinstance(row, dict) and isinstance(row.get("id"), str)
        ]

    async def stream(self, chat: ChatRequest) -> Deltas:
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
            two_back, one_back = (
                b"",
                b"",
            )  # the reads before this one: what is said at the end may stand in three
            while data := await reply.read():
                # Whole events,
                seen = max(
                    0, len(unfinished) - 3
                )  # in these bytes no event ends; a large one comes in many reads
                if unfinished:
                    data = unfinished + data
                if data.endswith(b"\n\n"):
                    unfinished = b""
                else:
                    end = last_event_end(data, seen)
                    data, unfinished = data[:end], data[end:]
                    if len(unfinished) > event_bytes:
                        raise bad_gateway(TOO_LARGE, "event too large", self.failure_status)
                    if not data:
                        continue
                # that are what they should be,
                if not data.isascii():
                    data.decode()  # raises UnicodeDecodeError: a client's reader would, too
                if (b'"error"' in data or not is_plain_events(data)) and (
                    found := failed_event(data)
                ):
                    if begun or b'"delta"' in data[: found[0]]:
                        yield Delta(raw=self.by_alias(data[: found[0]], chat))
                    raise found[1]
                # from the first on that is of a reply,
                if begun:
                    if (
                        data.startswith(b"data:") or b"data:" in data
                    ):  # not comments alone: they are no event
                        reply.deadline = loop.time() + stall
                elif b'"delta"' in data:
                    begun = True
                    chat.payload, chat.messages = (
                        {},
                        [],
                    )  # of no more use: a long stream need not hold the conversation
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
                raise bad_gateway(
                    "The chat backend gave no reply.", "no chunk", self.failure_status
                )
            tail = two_back + one_back + data
            if counts := USAGE.match(
                tail, max(0, tail.rfind(b'"usage":'))
            ):  # a search would read all of it, slowly
                chat.usage = orjson.loads(counts[1])
            done = DONE.search(tail, max(0, len(tail) - 200))
            if DONE.match(unfinished):
                yield Delta(raw=unfinished.strip() + b"\n\n")
            elif unfinished.strip() or not (done or (one_choice and FINISHED.search(tail))):
                raise bad_gateway("The chat backend broke off.", "no [DONE]", self.failure_status)
            elif not done:
                yield Delta(raw=b"data: [DONE]\n\n")

    async def completion(self, reply: Reply, chat: ChatRequest) -> bytes:
        """A completion as it came, when it is one. Raises ValueError, Refused."""
        body = (await self.whole(reply, until=chat.until)).removeprefix(BOM_UTF8)
        value = orjson.loads(body)
        if isinstance(value, dict) and value.get("error"):
            raise refused_in_200(value["error"])
        if not is_plain(value) and not (
            isinstance(value, dict) and self.shape.answer(value) and "choices" in value
        ):
            raise ValueError("no completion")
        counts = value.get("usage")
        chat.usage = counts if isinstance(counts, dict) else None
        return self.by_alias(body, chat)

    def by_alias(self, data: bytes, chat: ChatRequest) -> bytes:
        """An upstream's bytes; where it calls the model by another name than the client did, with the client's."""
        if not self.params.model:
            return data
        name = b'"model":' + orjson.dumps(chat.model)
        return MODEL.sub(lambda _: name, data)
