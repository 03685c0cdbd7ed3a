"""Stored completions: storing a reply, the history of a continued chat, and their routes.

A completion belongs to the owner of the key that made it. For any other owner it does not exist.
Source: OpenAI's reference, and recordings of its API. Does not know backends, nor how a request is
authenticated.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rewrap.api.requests import parse_metadata
from rewrap.figures import figures
from rewrap.regex import regex
from rewrap.storage.base import HistoryTooLarge, Page, Store, StoreDown
from rewrap.types import APIError, ChatRequest, JSONObject, ResponseInfo, text_of

T = TypeVar("T")

# Parameters of the request that a stored completion repeats.
REQUEST_MEMBERS = (
    "tools",
    "tool_choice",
    "seed",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "response_format",
)
# Members of a stored message that are not sent to a backend.
LOCAL_MEMBERS = frozenset(
    [
        "id",
        "content_parts",
        "choice",
        "figure",
        "figures",
        "refusal",
        "reasoning",
        "reasoning_content",
    ]
)
CONTENT_SUBSTITUTES = frozenset(["tool_calls", "function_call", "audio"])
MAX_FILTERS = 16
MAX_LIMIT = 100
TITLE_CHARACTERS = 80
FILTER = regex(r"metadata\[(.*)\]", re.DOTALL)
DOWN = "The store of chat completions cannot be reached."


class JSONResponse(Response):
    """Starlette's, written by orjson."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return orjson.dumps(content)


def not_found(id: str, kind: str = "Chat completion") -> APIError:
    return APIError(404, f"{kind} with id '{id}' not found.", reason="unknown id")


def chat_too_large(max_bytes: int) -> APIError:
    message = (
        "The stored chat and this request are too large together:"
        f" this server takes {max_bytes} bytes at most."
    )
    return APIError(413, message, param="completion_id")


async def reached(work: Awaitable[T]) -> T:
    """The result of the store. Raises APIError 503 if it is down.

    Chats that are not stored never use the store, so they work without it.
    """
    try:
        return await work
    except StoreDown as exc:
        headers = [(b"retry-after", b"2")]
        raise APIError(
            503, DOWN, type="server_error", code="store_unavailable", headers=headers
        ) from exc


async def page_of(work: Awaitable[T]) -> T:
    """A page of the store. Raises APIError: 503, and 404 if `after` is unknown."""
    try:
        return await reached(work)
    except LookupError:
        message = "The object that `after` names was not found."
        raise APIError(404, message, param="after") from None


class StoredCompletions:
    """Completions and their messages in a store.

    A stored chat and the request that continues it have `max_body_bytes` at most.
    """

    def __init__(self, store: Store, max_body_bytes: int) -> None:
        self.store = store
        self.max_body_bytes = max_body_bytes

    async def history(self, id: str, owner: str, request_bytes: int) -> list[JSONObject]:
        """The messages of a stored chat, as a backend takes them. Raises APIError."""
        remaining = self.max_body_bytes - request_bytes
        try:
            bodies = await reached(self.store.history(owner, id, remaining))
        except HistoryTooLarge:
            raise chat_too_large(self.max_body_bytes) from None
        if bodies is None:
            raise not_found(id)
        return await asyncio.to_thread(request_messages, bodies)

    async def put(
        self,
        request: ChatRequest,
        info: ResponseInfo,
        owner: str,
        request_id: str,
        new_messages: list[JSONObject] | None = None,
    ) -> None:
        """Store a finished completion: it is in the store when this returns. Raises APIError.

        `new_messages` are those that a continued chat adds; None for a new chat.
        """
        completion = info.completion or {}
        continues = new_messages is not None
        row = completion | {name: request.payload.get(name) for name in REQUEST_MEMBERS}
        metadata = request.payload.get("metadata")
        if metadata is None and not continues:
            metadata = {}
        row["metadata"] = metadata
        row["request_id"] = request_id
        row["input_user"] = request.payload.get("user")
        new = request.messages if new_messages is None else new_messages
        messages = [as_stored(message) for message in new]
        for number, choice in enumerate(completion["choices"]):
            messages.append(as_stored(choice["message"], number))
        title = title_of(request.messages)
        work = self.store.put(row, messages, owner=owner, title=title, continues=continues)
        try:
            await reached(work)
        except LookupError:  # deleted while the reply was on its way
            raise not_found(info.id) from None
        except TypeError:  # orjson writes 254 levels, and an upstream may send more
            message = "The reply is nested too deeply to be stored."
            raise APIError(502, message, type="upstream_error") from None


class StoredRoutes:
    """The routes of stored completions.

    `owner(request)` admits a request and gives its owner; it raises APIError. `body(request)` reads
    its body.
    """

    def __init__(
        self,
        store: Store,
        owner: Callable[[Request], Awaitable[str]],
        body: Callable[[Request], Awaitable[bytes]],
    ) -> None:
        self.store = store
        self.owner = owner
        self.body = body

    def routes(self) -> list[Route]:
        one = "/chat/completions/{id}"
        message = f"{one}/messages/{{message_id}}"
        return [
            Route("/chat/completions", self.list_completions),
            Route(one, self.retrieve),
            Route(one, self.update, methods=["POST"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/messages", self.list_messages),
            Route(f"{message}/plots", self.plots),
            Route(f"{message}/plot", self.plot),
        ]

    async def list_completions(self, request: Request) -> Response:
        """GET /v1/chat/completions: stored completions, by model and metadata."""
        owner = await self.owner(request)
        query = request.query_params
        metadata: dict[str, str] = {}
        for name, value in query.multi_items():
            if match := FILTER.fullmatch(name):
                metadata[match[1]] = value
        if len(metadata) > MAX_FILTERS:
            message = f"At most {MAX_FILTERS} metadata filters can be given."
            raise APIError(400, message, param="metadata")
        page = await page_of(
            self.store.list(
                owner,
                model=query.get("model") or None,
                metadata=metadata,
                after=query.get("after") or None,
                limit=limit_of(request),
                order=order_of(request),
            )
        )
        return listing(page)

    async def retrieve(self, request: Request) -> Response:
        """GET /v1/chat/completions/{id}: one stored completion."""
        owner = await self.owner(request)
        id = request.path_params["id"]
        body = await reached(self.store.get(owner, id))
        if body is None:
            raise not_found(id)
        return stored_response(body)

    async def update(self, request: Request) -> Response:
        """POST /v1/chat/completions/{id}: the completion with its new metadata."""
        owner = await self.owner(request)
        id = request.path_params["id"]
        metadata = parse_metadata(await self.body(request))
        body = await reached(self.store.update(owner, id, metadata))
        if body is None:
            raise not_found(id)
        return stored_response(body)

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/chat/completions/{id}: `{"deleted": true}`; its messages go with it."""
        owner = await self.owner(request)
        id = request.path_params["id"]
        if not await reached(self.store.delete(owner, id)):
            raise not_found(id)
        return JSONResponse({"object": "chat.completion.deleted", "id": id, "deleted": True})

    async def list_messages(self, request: Request) -> Response:
        """GET /v1/chat/completions/{id}/messages: the messages of a stored completion."""
        owner = await self.owner(request)
        id = request.path_params["id"]
        page = await page_of(
            self.store.messages(
                owner,
                id,
                after=request.query_params.get("after") or None,
                limit=limit_of(request),
                order=order_of(request),
            )
        )
        if page is None:
            raise not_found(id)
        return listing(page)

    async def plots(self, request: Request) -> Response:
        """GET /v1/chat/completions/{id}/messages/{message_id}/plots: figures as Plotly JSON."""
        return JSONResponse({"object": "list", "data": await self.figures_of(request)})

    async def plot(self, request: Request) -> Response:
        """GET /v1/chat/completions/{id}/messages/{message_id}/plot: the first figure."""
        found = await self.figures_of(request)
        if not found:
            raise not_found(request.path_params["message_id"], "A figure of the message")
        return JSONResponse(found[0])

    async def figures_of(self, request: Request) -> list[JSONObject]:
        owner = await self.owner(request)
        id = request.path_params["id"]
        message_id = request.path_params["message_id"]
        body = await reached(self.store.message(owner, id, message_id))
        if body is None:
            raise not_found(message_id, "Message")
        # A megabyte of tables takes a second.
        return await asyncio.to_thread(lambda: figures(orjson.loads(body)))


def order_of(request: Request) -> str:
    """The `order` of a list. Raises APIError."""
    order = request.query_params.get("order") or "asc"
    if order in ("asc", "desc"):
        return order
    message = f"Invalid value: '{order[:100]}'. Supported values are: 'asc' and 'desc'."
    raise APIError(400, message, param="order", code="invalid_value")


def limit_of(request: Request) -> int:
    """The `limit` of a list, 0 to 100. Raises APIError."""
    limit = request.query_params.get("limit") or "20"
    if limit.isascii() and limit.isdecimal() and len(limit) <= 3 and int(limit) <= MAX_LIMIT:
        return int(limit)
    message = (
        f"Invalid 'limit': expected an integer between 0 and {MAX_LIMIT},"
        f" but got '{limit[:100]}' instead."
    )
    raise APIError(400, message, param="limit", code="invalid_value")


def stored_response(body: bytes) -> Response:
    """JSON of the store, which is not parsed on its way to the client."""
    return Response(body, media_type="application/json")


def listing(page: Page) -> Response:
    """A page in OpenAI's form of lists."""
    document = {
        "object": "list",
        "data": [orjson.Fragment(item) for item in page.items],
        "first_id": page.ids[0] if page.ids else None,
        "last_id": page.ids[-1] if page.ids else None,
        "has_more": page.has_more,
    }
    return JSONResponse(document)


def as_stored(message: JSONObject, choice: int = 0) -> JSONObject:
    """A message as the API lists it: text in `content`, a list of parts in `content_parts`.

    Of several choices of a reply, those after the first have their number in `choice`. A continued
    chat leaves them out.
    """
    content = message.get("content")
    stored = {
        name: value
        for name, value in message.items()
        if value is not None and name not in ("id", "annotations", "choice")
    }
    parts = content if isinstance(content, list) else None
    stored["content"] = content if parts is None else text_of(parts)
    stored["content_parts"] = parts
    stored["name"] = message.get("name")
    if choice:
        stored["choice"] = choice
    return stored


def request_messages(bodies: Sequence[bytes]) -> list[JSONObject]:
    """Stored messages as a backend takes them: of several choices the first."""
    messages = map(orjson.loads, bodies)
    return [as_request_message(message) for message in messages if not message.get("choice")]


def as_request_message(message: JSONObject) -> JSONObject:
    """A stored message as a backend takes it."""
    kept = {
        name: value
        for name, value in message.items()
        if value is not None and name not in LOCAL_MEMBERS
    }
    content = message.get("content_parts") or message.get("content")
    if content is None and not kept.keys() & CONTENT_SUBSTITUTES:
        content = message.get("refusal") or ""  # backends refuse null alone
    kept["content"] = content
    return kept


def new_after_hooks(
    earlier: Sequence[JSONObject], new: Sequence[JSONObject], after: Sequence[JSONObject]
) -> list[JSONObject]:
    """The new messages of a continued chat after the hooks.

    Hooks may change, copy, insert, append and remove messages. `earlier` are all messages before
    the hooks, `new` the last of them, `after` all messages after the hooks. The first new message
    that is still the same object shows where the new ones start. As many before it as there were
    may be copies. If none is left, as many from the end count as there were. Messages of the
    history never count.
    """
    places = {id(message): place for place, message in enumerate(new)}
    history = {id(message) for message in earlier} - places.keys()
    start = len(after)
    copies = len(new)
    for position, message in enumerate(after):
        if id(message) in places:
            start = position
            copies = places[id(message)]
            break
    while copies and start and id(after[start - 1]) not in history:
        start -= 1
        copies -= 1
    return list(after[start:])


def title_of(messages: Sequence[JSONObject]) -> str:
    """The beginning of the first prompt, in one line."""
    prompts = (message for message in messages if message.get("role") == "user")
    first = next(prompts, {})
    line = " ".join(text_of(first.get("content"))[:1000].split())
    if len(line) <= TITLE_CHARACTERS:
        return line
    return line[: TITLE_CHARACTERS - 1].rstrip() + "…"
