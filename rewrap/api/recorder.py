"""Chats that hooks see or the store keeps: their Deltas are gathered on the way to the client.

All other chats pass by: they are neither parsed nor gathered. Does not know HTTP.
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

from rewrap.api.chat import completion
from rewrap.api.checks import check_depth, check_metadata
from rewrap.api.stored import StoredCompletions, new_after_hooks
from rewrap.hooks import Hook, HookedChat, run_hooks
from rewrap.memory import delta_size, reserve
from rewrap.structs import struct
from rewrap.types import (
    APIError,
    Backend,
    ChatRequest,
    Delta,
    Deltas,
    JSONObject,
    ResponseInfo,
    prompt_size,
)


@struct(slots=True)
class RecordedChat:
    """One chat under way: the request as the hooks left it, and its place in the store."""

    request: ChatRequest
    owner: str
    request_id: str
    new_messages: list[JSONObject] | None = None  # of a stored chat that continues


class Recorder:
    """Runs the hooks, continues stored chats, and stores replies."""

    def __init__(
        self,
        before: Sequence[Hook],
        after: Sequence[Hook],
        stored: StoredCompletions,
        store_by_default: bool,
        reply_bytes: int,
        too_large: APIError,
        hook_seconds: float = 600.0,
    ) -> None:
        self.before = before
        self.after = after
        self.has_hooks = bool(before or after)
        self.stored = stored
        self.store_by_default = store_by_default
        self.reply_bytes = reply_bytes
        self.too_large = too_large
        self.hook_seconds = hook_seconds

    def concerns(self, request: ChatRequest) -> bool:
        """Whether a hook or the store has to see this chat."""
        payload = request.payload
        if self.has_hooks or payload.get("completion_id"):
            return True
        return self.stores(payload)

    def stores(self, payload: JSONObject) -> bool:
        """Whether a chat is stored: `store`, or STORE_BY_DEFAULT."""
        store = payload.get("store")
        return self.store_by_default if store is None else bool(store)

    async def stream(
        self,
        backend: Backend,
        request: ChatRequest,
        info: ResponseInfo,
        owner: str,
    ) -> Deltas:
        """The Deltas of a chat that concerns the recorder. Raises APIError, before anything is sent upstream."""
        recording = RecordedChat(request, owner, info.request_id)
        if request.payload.get("completion_id"):
            await self.load_history(recording, info)
        stored = self.stores(recording.request.payload)
        # An upstream may repeat its ids: a stored chat has an id of this server, and its bytes are not relayed.
        session = info.id if stored else ""
        recording.request = replace(recording.request, relay=False, stored=stored, session=session)
        if stored:
            check_stored(recording.request.payload)
        if self.before:
            await self.run_before(recording)
        deltas = backend.stream(recording.request, info)
        if stored or self.after:
            deltas = self.record(recording, info, deltas)
        async with aclosing(deltas):
            async for delta in deltas:
                yield delta

    async def load_history(self, recording: RecordedChat, info: ResponseInfo) -> None:
        """Put the messages of the stored chat before those of the request."""
        request = recording.request
        id = request.payload["completion_id"]
        size = len(request.body) or prompt_size(request.messages)
        history = await self.stored.history(id, recording.owner, size)
        payload = {
            name: value for name, value in request.payload.items() if name != "completion_id"
        }
        recording.new_messages = request.messages
        recording.request = replace(
            request,
            messages=history + request.messages,
            payload=payload | {"store": True},
            body=b"",
        )
        info.id = id

    async def run_before(self, recording: RecordedChat) -> None:
        """Let the hooks change the request."""
        earlier = list(recording.request.messages)
        chat = HookedChat.of(recording.request)
        await self.run_hooks(self.before, chat)
        if recording.new_messages is not None:
            new = recording.new_messages
            recording.new_messages = new_after_hooks(earlier, new, chat.messages)
        recording.request = replace(
            recording.request,
            model=chat.model,
            messages=chat.messages,
            payload=chat.payload,
            body=b"",
        )

    async def run_hooks(self, hooks: Sequence[Hook], *args: object) -> None:
        """Raises APIError 504 if they take too long."""
        try:
            async with asyncio.timeout(self.hook_seconds):
                await run_hooks(hooks, *args)
        except TimeoutError:
            message = "A hook of this server did not answer in time."
            raise APIError(504, message, type="server_error", reason="hook") from None

    async def record(self, recording: RecordedChat, info: ResponseInfo, deltas: Deltas) -> Deltas:
        """The same Deltas. Before their end the hooks see the completion, and the store has it."""
        gathered: list[Delta] = []
        remaining = self.reply_bytes
        async with aclosing(deltas):
            async for delta in deltas:
                size = delta_size(delta)
                remaining -= size
                if remaining < 0:
                    raise self.too_large
                reserve(size)
                gathered.append(delta)
                yield delta
        info.completion = completion(info, gathered)
        if self.after:
            await self.run_hooks(self.after, HookedChat.of(recording.request), info.completion)
        if recording.request.stored:
            await self.stored.put(
                recording.request,
                info,
                recording.owner,
                recording.request_id,
                recording.new_messages,
            )


def check_stored(payload: JSONObject) -> None:
    """Refuse now what cannot be stored later. Raises APIError."""
    check_depth(payload)
    if payload.get("metadata") is not None:
        check_metadata("metadata", payload["metadata"])
