"""The API surfaces: each parses the body of a request to a Turn, which an Endpoint answers.

A surface knows its API's form. It does not know the backend, nor how a request is authenticated.
"""

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Protocol

from rewrap.api.chat import ChatRendering, TextRendering
from rewrap.api.completions import CompletionRendering, all_prompts, parse_completion
from rewrap.api.requests import (
    chat_request,
    looks_like_responses,
    model_of,
    parse_ask,
    parse_object,
)
from rewrap.structs import struct
from rewrap.threads import apart
from rewrap.types import ChatRequest, Checks, ChecksOf, Deltas, Rendering, ResponseInfo

Stream = Callable[[ChatRequest, ResponseInfo], Deltas]


@struct(slots=True)
class Turn:
    """A parsed request, and the form of its answer."""

    request: ChatRequest
    rendering: Callable[[ChatRequest, ResponseInfo], Rendering]
    # Stores the reply in this API's own form, before its end.
    record: Callable[[Deltas, Rendering], Deltas] | None = None
    # Makes one reply of several chats.
    join: Callable[[ResponseInfo, Stream], Deltas] | None = None

    def deltas(self, stream: Stream, info: ResponseInfo, rendering: Rendering) -> Deltas:
        """The reply, by a function that streams one chat. Raises APIError."""
        deltas = stream(self.request, info) if self.join is None else self.join(info, stream)
        return deltas if self.record is None else self.record(deltas, rendering)

    @property
    def holds_request(self) -> bool:
        """Whether the request is needed until the end of the answer."""
        return self.record is not None or self.join is not None


@struct(slots=True)
class Incoming:
    """A request as it came: its body, and the facts of its head."""

    body: bytes
    client_headers: Mapping[str, str]
    path_model: str = ""  # Azure's paths name the model
    identity: str = ""  # of the authenticated client
    values: int | None = None  # in the JSON of the body, if they were counted


class Surface(Protocol):
    """One API."""

    def parse(self, incoming: Incoming) -> Coroutine[None, None, Turn]:
        """Raises APIError."""


class OwnedSurface(Surface, Protocol):
    """A surface whose requests an upstream may answer, except for those that are this server's own."""

    def is_own(self, incoming: Incoming) -> Coroutine[None, None, bool]:
        """Raises APIError."""


@struct(frozen=True, slots=True)
class ChatSurface:
    """POST /v1/chat/completions. Editors send Responses requests there, too."""

    default_model: str
    checks: ChecksOf
    late_instructions: str

    def parse(self, incoming: Incoming) -> Coroutine[None, None, Turn]:
        return apart(self.turn, incoming)

    def turn(self, incoming: Incoming) -> Turn:
        payload = parse_object(incoming.body, incoming.values)
        body = incoming.body
        if looks_like_responses(payload):
            from rewrap.api.responses.request import parse_responses

            payload, _ = parse_responses(payload, late_instructions=self.late_instructions)
            body = b""
        model = model_of(payload, self.default_model, incoming.path_model)
        request = chat_request(
            payload,
            model,
            incoming.client_headers,
            body=body,
            relay=True,
            checks=self.checks(model),
            identity=incoming.identity,
        )
        return Turn(request, ChatRendering)


@struct(frozen=True, slots=True)
class AskSurface:
    """POST /ask: plain text."""

    default_model: str
    checks: ChecksOf

    def parse(self, incoming: Incoming) -> Coroutine[None, None, Turn]:
        return apart(self.turn, incoming)

    def turn(self, incoming: Incoming) -> Turn:
        payload, unsupported = parse_ask(parse_object(incoming.body, incoming.values))
        model = model_of(payload, self.default_model)
        request = chat_request(
            payload,
            model,
            incoming.client_headers,
            unsupported=unsupported,
            checks=self.checks(model),
            identity=incoming.identity,
        )
        return Turn(request, TextRendering)


@struct(frozen=True, slots=True)
class CompletionSurface:
    """POST /v1/completions: each prompt becomes a chat."""

    default_model: str
    checks: ChecksOf

    def parse(self, incoming: Incoming) -> Coroutine[None, None, Turn]:
        return apart(self.turn, incoming)

    def turn(self, incoming: Incoming) -> Turn:
        payload = parse_object(incoming.body, incoming.values)
        model = model_of(payload, self.default_model, incoming.path_model)
        checks = self.checks(model)
        # Only the mock, which stands in for OpenAI, can echo and fill in.
        plan = parse_completion(payload, mock=checks is Checks.OPENAI)
        requests = [
            chat_request(
                chat,
                model,
                incoming.client_headers,
                api="completions",
                checks=checks,
                identity=incoming.identity,
            )
            for chat in plan.payloads
        ]

        def join(info: ResponseInfo, stream: Stream) -> Deltas:
            return all_prompts(plan, info, lambda position, part: stream(requests[position], part))

        return Turn(requests[0], partial(CompletionRendering, plan), join=join)
