"""An upstream's own Responses API: which upstreams have it, and their streams.

The events pass as they come, and always have an end. Source: OpenAI's OpenAPI document 2.3.0.
"""

import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import orjson

from rewrap.eventloop import running_loop
from rewrap.types import APIError, JSONObject, NoEndpoint, PassedAnswer, PassedReply, PassedRequest
from rewrap.upstream.errors import (
    CUT_SHORT,
    NO_REPLY,
    TOO_LARGE,
    UPSTREAM_ERRORS,
    bad_gateway,
    upstream_error,
)
from rewrap.upstream.framing import last_event_end
from rewrap.upstream.passthrough import PassThrough, Provider, named_model

TERMINAL = re.compile(
    rb'"type":\s{0,8}"response\.(?:completed|failed|incomplete)"'
    rb"|^event: ?response\.(?:completed|failed|incomplete)",
    re.MULTILINE,
)
NUMBER = re.compile(rb'"sequence_number":\s{0,8}(\d{1,18})')
DATA_LINE = re.compile(rb"^data: ?(.*)$", re.MULTILINE)
RESPONSE_ID = re.compile(rb'"id":\s{0,8}"(resp[^"]{1,200})"')
KNOWN_RESPONSES = 10_000


class NativeResponses:
    """The upstreams that have /v1/responses.

    A backend's mode is "native", "translate" or "auto". The first answer of the upstream turns
    "auto" into one of the others. The ids of responses are kept for a while: a request that names
    one goes to the upstream that made it.
    """

    def __init__(self, passing: PassThrough, *, enabled: bool) -> None:
        """`enabled` False: "auto" means "translate"."""
        self.passing = passing
        self.modes = {provider.name: provider.responses for provider in passing.providers}
        if not enabled:
            for name, mode in self.modes.items():
                self.modes[name] = "native" if mode == "native" else "translate"
        self.makers: OrderedDict[str, Provider] = OrderedDict()  # by the id of a response

    def possible(self) -> bool:
        """Whether any upstream may have it."""
        return any(mode != "translate" for mode in self.modes.values())

    def new_response(self, request: PassedRequest) -> PassedAnswer | None:
        """The `answer` of the upstream of a new response; None if this server translates it.

        Raises APIError if no backend has the model.
        """
        provider = self.makers.get(previous_response(request.body))
        if provider is None:
            provider = self.passing.provider(named_model(request))
        if provider is None or self.modes[provider.name] == "translate":
            return None
        return partial(self.answer, provider)

    def stored_response(self, id: str) -> PassedAnswer | None:
        """The `answer` of the upstream to ask for a response; None if there is none."""
        provider = self.makers.get(id)
        if provider is not None:
            return partial(self.answer, provider)
        for provider in self.passing.providers:
            if self.modes[provider.name] != "translate":
                return partial(self.answer, provider)
        return None

    @asynccontextmanager
    async def answer(
        self, provider: Provider, request: PassedRequest
    ) -> AsyncIterator[PassedReply]:
        """The upstream's answer. Raises NoEndpoint if it lacks the endpoint, APIError."""
        optional = self.modes[provider.name] != "native"
        try:
            async with self.passing.answer(provider, request, optional=optional) as passed:
                if request.path == "/responses":
                    self.modes[provider.name] = "native"
                kind = passed.reply.headers.get(b"content-type", b"").lower()
                events = None
                if kind.startswith(b"text/event-stream"):
                    limits = provider.limits
                    events = NativeStream(limits.event_bytes, provider.failure_status)
                reply = NativeReply(passed, events, partial(self.keep_maker, provider))
                yield replace(passed, reply=reply)
        except NoEndpoint:
            if request.path == "/responses":
                self.modes[provider.name] = "translate"
            raise

    def keep_maker(self, provider: Provider, id: str) -> None:
        """Remember the maker of a response. With one upstream there is no doubt."""
        if len(self.passing.providers) == 1:
            return
        self.makers[id] = provider
        if len(self.makers) > KNOWN_RESPONSES:
            self.makers.popitem(last=False)


class NativeReply:
    """A Reply whose stream of events always has an end. `made` gets the id of the response."""

    def __init__(
        self, passed: PassedReply, events: "NativeStream | None", made: Callable[[str], None]
    ) -> None:
        self.reply = passed.reply
        self.stall = passed.stall
        self.status = passed.reply.status
        self.headers = passed.reply.headers
        self.deadline = passed.reply.deadline
        self.events = events
        self.made: Callable[[str], None] | None = made
        self.over = False

    async def read(self) -> bytes:
        if self.over:
            return b""
        if self.events is None:
            self.reply.deadline = self.deadline
            data = await self.reply.read()
        else:
            data = await self.next_events(self.events)
        if self.made is not None and data:
            found = RESPONSE_ID.search(data)
            if found is not None:
                self.made(found[1].decode())
            self.made = None
        return data

    async def next_events(self, events: "NativeStream") -> bytes:
        while True:
            self.reply.deadline = running_loop().time() + self.stall
            try:
                data = await self.reply.read()
            except UPSTREAM_ERRORS as exc:
                self.over = True
                return events.finish(upstream_error(exc, events.failure_status))
            if not data:
                self.over = True
                return events.finish()
            passed = events.feed(data)
            if events.ended:
                self.over = True
                self.reply.linger()
            if passed:
                return passed

    def linger(self) -> None:
        self.reply.linger()

    async def aclose(self) -> None:
        await self.reply.aclose()


class NativeStream:
    """Passes on whole events: `feed` takes the bytes of a read, `finish` completes the stream.

    `response` is the object of the first event, {} before it.
    """

    def __init__(self, event_bytes: int, failure_status: int) -> None:
        self.event_bytes = event_bytes
        self.failure_status = failure_status
        self.unfinished = b""
        self.number = -1  # the last sequence_number
        self.ended = False
        self.response: JSONObject = {}

    def feed(self, data: bytes) -> bytes:
        """The events that are whole now. Raises APIError if one is too large."""
        searched = max(0, len(self.unfinished) - 3)
        data = self.unfinished + data
        end = last_event_end(data, searched)
        self.unfinished = data[end:]
        if len(self.unfinished) > self.event_bytes:
            raise bad_gateway(TOO_LARGE, "event too large", self.failure_status)
        events = data[:end]
        if events:
            self.look_at(events)
        return events

    def look_at(self, events: bytes) -> None:
        if not self.response:
            self.response = first_response(events)
        found = NUMBER.match(events, max(0, events.rfind(b'"sequence_number"')))
        if found is not None:
            self.number = max(self.number, int(found[1]))
        self.ended = self.ended or TERMINAL.search(events) is not None

    def finish(self, error: APIError | None = None) -> bytes:
        """The bytes that complete the stream: `response.failed` if the upstream sent no end.

        Raises `error`, or an APIError, if nothing was passed on.
        """
        if self.ended:
            return b""
        if not self.response:
            raise error or bad_gateway(NO_REPLY, "no event", self.failure_status)
        message = error.message if error is not None else CUT_SHORT
        failed = self.response | {
            "status": "failed",
            "error": {"code": "server_error", "message": message},
        }
        event = {
            "type": "response.failed",
            "sequence_number": self.number + 1,
            "response": failed,
        }
        self.ended = True
        return b"event: response.failed\ndata: %b\n\n" % orjson.dumps(event)


def previous_response(body: object) -> str:
    """The `previous_response_id` of a request; "" if it has none."""
    if not isinstance(body, bytes) or b'"previous_response_id"' not in body:
        return ""
    try:
        payload = orjson.loads(body)
    except ValueError:
        return ""
    id = payload.get("previous_response_id") if isinstance(payload, dict) else None
    return id if isinstance(id, str) else ""


def first_response(events: bytes) -> JSONObject:
    """The Response object of the first event that has one."""
    for line in DATA_LINE.finditer(events):
        try:
            event = orjson.loads(line[1])
        except ValueError:
            continue
        response = event.get("response") if isinstance(event, dict) else None
        if isinstance(response, dict):
            return response
    return {}
