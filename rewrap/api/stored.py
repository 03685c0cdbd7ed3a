"""Stored completions, as OpenAI has them: keep one, go on with one, and the routes that list, show, change and delete them.

Each belongs to the owner of the key that made it; for anybody else it does not exist. Takes the store, and who asks, from outside:
imports neither. Source: OpenAI's reference, and recordings of its API.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rewrap.types import APIError, ChatRequest, text_of

Document = dict[str, Any]

ASKED = (
    "tools",
    "tool_choice",
    "seed",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
)
MAX_FILTERS = 16
TITLE_CHARACTERS = 80


class JSON(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def no_such(id: str, what: str = "Chat completion") -> APIError:
    return APIError(404, f"{what} with id '{id}' not found.", reason="unknown id")


class StoredCompletions:
    """`store` keeps; `owner(request)` says who asks, and raises APIError where nobody may; `metadata(request)` reads
    its body; `figures(message)` draws.

    A store that is down is 503 here, and only here: what is not to be stored goes on.
    """

    def __init__(
        self,
        store: Any,
        down: type[Exception],
        owner: Callable[[Request], Awaitable[str]],
        metadata: Callable[[Request], Awaitable[dict[str, str]]],
        figures: Callable[[Document], list[Document]],
    ) -> None:
        self.store, self.down, self.owner, self.metadata, self.figures = (
            store,
            down,
            owner,
            metadata,
            figures,
        )

    async def reached(self, work: Awaitable[Any]) -> Any:
        """The one place where a store that is down becomes an APIError; LookupError: `after` names nothing."""
        try:
            return await work
        except self.down as exc:
            again = [(b"retry-after", b"2")]
            message = "The store of chat completions cannot be reached."
            raise APIError(
                503, message, type="server_error", code="store_unavailable", headers=again
            ) from exc
        except LookupError:
            raise APIError(
                404, "The object that `after` names was not found.", param="after"
            ) from None

    async def go_on(self, chat: ChatRequest, owner: str) -> None:
        """`completion_id` in a request: the messages of that stored chat come before the new ones."""
        id = chat.payload["completion_id"]
        earlier: list[Document] = []
        page = None
        while page is None or page.has_more:
            after = earlier[-1]["id"] if earlier else None
            page = await self.reached(self.store.messages(owner, id, after=after, limit=1000))
            if page is None:
                raise no_such(id)
            earlier += page.data
        chat.new_messages = chat.messages
        chat.messages = [
            said(message) for message in earlier if not message.get("choice")
        ] + chat.messages
        chat.id, chat.body = id, b""
        chat.payload = {k: v for k, v in chat.payload.items() if k != "completion_id"} | {
            "store": True
        }

    async def put(
        self, chat: ChatRequest, completion: Document, owner: str, request_id: str
    ) -> None:
        """Keep a completion; it is in the store when this returns."""
        asked = {name: chat.payload.get(name) for name in (*ASKED, "response_format")}
        metadata = chat.payload.get("metadata")
        if chat.new_messages is not None:
            old = await self.reached(self.store.get(owner, chat.id))
            if old is None:  # deleted while it went on: it stays so
                raise no_such(chat.id)
            metadata = old["metadata"] if metadata is None else metadata
        known = {
            "metadata": metadata or {},
            "request_id": request_id,
            "input_user": chat.payload.get("user"),
        }
        row = completion | asked | known
        new = chat.messages if chat.new_messages is None else chat.new_messages
        replies = [
            as_stored(choice["message"], n) for n, choice in enumerate(completion["choices"])
        ]
        messages = [as_stored(message) for message in new] + replies
        try:
            await self.reached(
                self.store.put(row, messages, owner=owner, title=title(chat.messages))
            )
        except TypeError:  # orjson writes 254 levels, and an upstream may send more
            raise APIError(
                502, "The reply is nested too deeply to be stored.", type="upstream_error"
            ) from None

    def routes(self) -> list[Route]:
        one, all_of = "/chat/completions/{id}", "/chat/completions"
        return [
            Route(all_of, self.list_completions),
            Route(one, self.retrieve),
            Route(one, self.update, methods=["POST"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/messages", self.list_messages),
            Route(f"{one}/messages/{{message_id}}/plots", self.plots),
            Route(f"{one}/messages/{{message_id}}/plot", self.plot),
        ]

    async def list_completions(self, request: Request) -> Response:
        """GET /v1/chat/completions: the stored ones, by model and metadata."""
        owner = await self.owner(request)
        found = (
            (FILTER.fullmatch(name), value) for name, value in request.query_params.multi_items()
        )
        metadata = {match[1]: value for match, value in found if match}
        if len(metadata) > MAX_FILTERS:
            raise APIError(
                400, f"At most {MAX_FILTERS} metadata filters can be given.", param="metadata"
            )
        model = request.query_params.get("model") or None
        page = await self.reached(
            self.store.list(owner, model=model, metadata=metadata, **paging(request))
        )
        return listed(page)

    async def retrieve(self, request: Request) -> Response:
        """GET /v1/chat/completions/{id}: one stored completion."""
        owner, id = await self.owner(request), request.path_params["id"]
        if (row := await self.reached(self.store.get(owner, id))) is None:
            raise no_such(id)
        return JSON(row)

    async def update(self, request: Request) -> Response:
        """POST /v1/chat/completions/{id}: other metadata for it."""
        owner, id = await self.owner(request), request.path_params["id"]
        metadata = await self.metadata(request)
        if (row := await self.reached(self.store.update(owner, id, metadata))) is None:
            raise no_such(id)
        return JSON(row)

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/chat/completions/{id}: away with it, and its messages."""
        owner, id = await self.owner(request), request.path_params["id"]
        if not await self.reached(self.store.delete(owner, id)):
            raise no_such(id)
        return JSON({"object": "chat.completion.deleted", "id": id, "deleted": True})

    async def list_messages(self, request: Request) -> Response:
        """GET /v1/chat/completions/{id}/messages: what was said in it."""
        owner, id = await self.owner(request), request.path_params["id"]
        page = await self.reached(self.store.messages(owner, id, **paging(request)))
        if page is None:
            raise no_such(id)
        return listed(page)

    async def plots(self, request: Request) -> Response:
        """GET /v1/chat/completions/{id}/messages/{message_id}/plots: its figures, as Plotly JSON."""
        return JSON({"object": "list", "data": await self.figures_of(request)})

    async def plot(self, request: Request) -> Response:
        """GET /v1/chat/completions/{id}/messages/{message_id}/plot: the first of them."""
        if not (found := await self.figures_of(request)):
            raise no_such(request.path_params["message_id"], "A figure of the message")
        return JSON(found[0])

    async def figures_of(self, request: Request) -> list[Document]:
        owner, id, message_id = (
            await self.owner(request),
            request.path_params["id"],
            request.path_params["message_id"],
        )
        number = message_id.removeprefix(f"{id}-")
        if (
            not number.isdecimal()
            or not number.isascii()
            or message_id != f"{id}-{int(number[:9])}"
        ):
            raise no_such(message_id, "Message")
        after = f"{id}-{int(number) - 1}" if int(number) else None
        try:
            page = await self.reached(self.store.messages(owner, id, after=after, limit=1))
        except APIError as error:
            raise no_such(message_id, "Message") if error.status == 404 else error from None
        if page is None or not page.data:
            raise no_such(message_id, "Message")
        return await asyncio.to_thread(
            self.figures, page.data[0]
        )  # a megabyte of tables takes a second


FILTER = re.compile(r"metadata\[(.*)\]", re.DOTALL)


def paging(request: Request) -> dict[str, Any]:
    """`after`, `limit` (0 to 100) and `order` of a list. Raises APIError."""
    asked = request.query_params
    order = asked.get("order") or "asc"
    if order not in ("asc", "desc"):
        message = f"Invalid value: '{order[:100]}'. Supported values are: 'asc' and 'desc'."
        raise APIError(400, message, param="order", code="invalid_value")
    limit = asked.get("limit") or "20"
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= 3 and int(limit) <= 100):
        message = f"Invalid 'limit': expected an integer between 0 and 100, but got '{limit[:100]}' instead."
        raise APIError(400, message, param="limit", code="invalid_value")
    return {"after": asked.get("after") or None, "limit": int(limit), "order": order}


def listed(page: Any) -> Response:
    first, last = (page.data[0]["id"], page.data[-1]["id"]) if page.data else (None, None)
    return JSON(
        {
            "object": "list",
            "data": page.data,
            "first_id": first,
            "last_id": last,
            "has_more": page.has_more,
        }
    )


def as_stored(message: Document, choice: int = 0) -> Document:
    """A message as the API lists it: text in `content`, the parts of a list in `content_parts`, and what else it has.

    Of the choices of one reply, those after the first have their number in `choice`: they are listed, and not said again.
    """
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    kept = {
        k: v
        for k, v in message.items()
        if v is not None and k not in ("id", "annotations", "choice")
    }
    text = text_of(content) if parts is not None else content
    number = {"choice": choice} if choice else {}
    return kept | {"content": text, "content_parts": parts, "name": message.get("name")} | number


def said(message: Document) -> Document:
    """A stored message as it goes to a backend."""
    kept = {k: v for k, v in message.items() if v is not None and k not in NOT_SAID}
    content = message.get("content_parts") or message.get("content")
    if content is None and not kept.keys() & {"tool_calls", "function_call", "audio"}:
        content = message.get("refusal") or ""  # null alone would be refused
    return kept | {"content": content}


NOT_SAID = frozenset(
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


def still_new(before: list[Document], new: list[Document], after: list[Document]) -> list[Document]:
    """Which messages are new when hooks have been there: they may change, copy, insert, append and leave out.

    The first new one that is still the same object shows where they begin; as many before it as there were may be copies.
    If none is, as many from the end as there were. What was said earlier never is.
    """
    places = {id(message): n for n, message in enumerate(new)}
    earlier = {id(message) for message in before} - places.keys()
    found = ((at, places[id(message)]) for at, message in enumerate(after) if id(message) in places)
    start, copies = next(found, (len(after), len(new)))
    while copies and start and id(after[start - 1]) not in earlier:
        start, copies = start - 1, copies - 1
    return after[start:]


def title(messages: list[Document]) -> str:
    """The first prompt's beginning, in one line."""
    first = next((text_of(m.get("content")) for m in messages if m.get("role") == "user"), "")
    line = " ".join(first[:1000].split())
    return line if len(line) <= TITLE_CHARACTERS else line[: TITLE_CHARACTERS - 1].rstrip() + "…"
