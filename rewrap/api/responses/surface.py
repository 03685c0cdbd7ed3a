"""The surface of POST /v1/responses. It is loaded by its first request."""

from collections.abc import Callable
from functools import partial

from rewrap.api.requests import chat_request, looks_like_chat, model_of, parse_object
from rewrap.api.responses.chat_shape import from_chat_shape
from rewrap.api.responses.rendering import ResponseEvents
from rewrap.api.responses.request import parse_responses
from rewrap.api.responses.stored import StoredResponses
from rewrap.api.surfaces import Incoming, Turn
from rewrap.ids import owner_id
from rewrap.structs import struct
from rewrap.threads import apart
from rewrap.types import ChecksOf, Deltas, Rendering


@struct(frozen=True, slots=True)
class ResponsesSurface:
    """POST /v1/responses. Chat requests are understood there, too."""

    default_model: str
    checks: ChecksOf
    stored: Callable[[], StoredResponses]
    late_instructions: str
    reasoning_as_summary: bool

    async def is_own(self, incoming: Incoming) -> bool:
        """Whether only this server can answer: a chat body, or one that goes on from here."""
        payload = await apart(parse_object, incoming.body, incoming.values)
        previous = payload.get("previous_response_id")
        if looks_like_chat(payload):
            return True
        if not isinstance(previous, str):
            return False
        return await self.stored().has(owner_id(incoming.identity), previous)

    async def parse(self, incoming: Incoming) -> Turn:
        payload = await apart(parse_object, incoming.body, incoming.values)
        if looks_like_chat(payload):
            payload = await apart(from_chat_shape, payload)
        owner = owner_id(incoming.identity)
        history = await self.stored().history(owner, payload)
        chat, translation = await apart(
            parse_responses,
            payload,
            history.items,
            find_item=history.referenced.get,
            late_instructions=self.late_instructions,
            reasoning_as_summary=self.reasoning_as_summary,
        )
        model = model_of(chat, self.default_model, incoming.path_model)
        request = await apart(
            chat_request,
            chat,
            model,
            incoming.client_headers,
            unsupported=translation.dropped,
            api="responses",
            checks=self.checks(model),
            identity=incoming.identity,
        )
        turn = Turn(request, partial(ResponseEvents, translation))

        def record(deltas: Deltas, rendering: Rendering) -> Deltas:
            assert isinstance(rendering, ResponseEvents)
            return self.stored().record(owner, deltas, rendering)

        if translation.stored:
            turn.record = record
        return turn
