"""Stored responses: records, chains of turns, and the answers of the routes of one response.

A record is the JSON of a response in the store:

    {"id": "resp_...", "created": 1700000000, "response": {...}, "input_items": [...]}

`input_items` are those of one request. The chain of `previous_response_id` leads to earlier ones.
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import aclosing, suppress
from typing import NamedTuple

import orjson

from rewrap.api.checks import invalid, wrong_value
from rewrap.api.responses.events import (
    CUSTOM,
    FUNCTION,
    REASONING,
    REFUSAL,
    SUMMARY,
    TEXT,
    EventWriter,
    OutputItem,
)
from rewrap.api.responses.rendering import ResponseEvents
from rewrap.api.responses.request import Translation, previous_id, references, typed_items
from rewrap.api.stored import reached
from rewrap.regex import regex
from rewrap.storage.base import Store
from rewrap.types import APIError, Delta, Deltas, JSONObject, dumps

MAX_REFERENCED = 1000  # responses that the references of one request may lead to
RECORD_BYTES = 1000  # the least that a record counts for
LARGE_BYTES = 100_000
ITEM_ID = regex(r"[a-z]+_([0-9a-f]{32})i?[0-9a-f]+")
USABLE = ("completed", "incomplete")
# The members of a response that change while it is made.
STATE = ("status", "completed_at", "error", "incomplete_details", "output", "usage")
FORMS = {form.part: form for form in (TEXT, REFUSAL, REASONING, SUMMARY)}


class History(NamedTuple):
    """What a request takes from the store, for `parse_responses`."""

    items: list[JSONObject]  # of the chain, oldest first
    referenced: dict[str, JSONObject]  # stored items by id; `.get` is a FindItem


class ItemPage(NamedTuple):
    """The query of a list of input items."""

    limit: int = 20
    order: str = "desc"
    after: str = ""


class StoredResponses:
    """The stored responses of all owners. For any other owner, a response does not exist."""

    def __init__(self, store: Store, max_history_bytes: int = 64 * 2**20) -> None:
        self.store = store
        self.max_history_bytes = max_history_bytes

    async def keep(self, owner: str, response: JSONObject, translation: Translation) -> None:
        """Store a finished response with its input: it is in the store when this returns.

        Raises APIError: 400 for input that is nested too deeply, 503 if the store is down.
        """
        record = {
            "id": response["id"],
            "created": response["created_at"],
            "response": response,
            "input_items": typed_items(translation.items, translation.hex),
        }
        work = self.store.put_response(owner, record["id"], dumps(record), record["created"])
        await reached(work)

    async def record(self, owner: str, deltas: Deltas, events: ResponseEvents) -> Deltas:
        """The same Deltas. Before their end the response is stored: clients use its id at once."""
        gathered: list[Delta] = []
        async with aclosing(deltas):
            async for delta in deltas:
                yield delta
                if not events.has_begun:  # no stream: the Deltas are not rendered yet
                    gathered.append(delta)
        response = events.document(gathered)
        await self.keep(owner, response, events.translation)

    async def find(self, owner: str, id: str) -> JSONObject:
        """A stored record. Raises APIError 404."""
        body = await reached(self.store.get_response(owner, id))
        if body is None:
            raise no_response(id)
        return await parsed_record(body)

    async def has(self, owner: str, id: str) -> bool:
        """Whether a response of this id is stored here. Raises APIError 503."""
        try:
            await self.find(owner, id)
        except APIError as error:
            if error.status != 404:
                raise
            return False
        return True

    async def response(self, owner: str, id: str) -> JSONObject:
        """GET /v1/responses/{id}: the Response object. Raises APIError 404."""
        response: JSONObject = (await self.find(owner, id))["response"]
        return response

    async def delete(self, owner: str, id: str) -> JSONObject:
        """DELETE /v1/responses/{id}. Raises APIError 404."""
        if not await reached(self.store.delete_response(owner, id)):
            raise no_response(id)
        return {"id": id, "object": "response", "deleted": True}

    async def cancel_error(self, owner: str, id: str) -> APIError:
        """POST /v1/responses/{id}/cancel: nothing runs in the background. Raises APIError 404."""
        await self.find(owner, id)
        return invalid("Cannot cancel a synchronous response.", None, None)

    async def input_items(self, owner: str, id: str, page: ItemPage) -> JSONObject:
        """GET /v1/responses/{id}/input_items: the chain's items, then the request's own."""
        record = await self.find(owner, id)
        items: list[JSONObject] = record["input_items"]
        with suppress(APIError):  # an earlier response was deleted: the rest is listed
            items = await self.chain(owner, record["response"]["previous_response_id"]) + items
        return item_list(items, page)

    async def history(self, owner: str, payload: JSONObject) -> History:
        """The stored items that a request needs. Raises APIError if a response is not there."""
        items = await self.chain(owner, previous_id(payload))
        return History(items, await self.referenced(owner, references(payload)))

    async def chain(self, owner: str, id: str | None) -> list[JSONObject]:
        """The items of a response and of all before it, oldest first."""
        turns = []
        left = self.max_history_bytes
        while id is not None:
            body = await reached(self.store.get_response(owner, id))
            if body is None:
                raise no_previous(id)
            left -= max(RECORD_BYTES, len(body))
            if left < 0:
                raise chain_too_long()
            record = await parsed_record(body)
            if record["response"]["status"] not in USABLE:
                raise no_previous(id)
            turns.append(items_of(record))
            id = record["response"]["previous_response_id"]
        return [item for turn in reversed(turns) for item in turn]

    async def referenced(self, owner: str, ids: Iterable[str]) -> dict[str, JSONObject]:
        """The stored items with these ids. The id of an item contains that of its response."""
        matches = map(ITEM_ID.fullmatch, ids)
        hexes = dict.fromkeys(match[1] for match in matches if match)
        if len(hexes) > MAX_REFERENCED:
            raise chain_too_long()
        found: dict[str, JSONObject] = {}
        left = self.max_history_bytes
        for hex in hexes:
            body = await reached(self.store.get_response(owner, f"resp_{hex}"))
            if body is None:
                continue
            left -= len(body)
            if left < 0:
                raise chain_too_long()
            found |= {item["id"]: item for item in items_of(await parsed_record(body))}
        return found


async def parsed_record(body: bytes) -> JSONObject:
    """A stored record. Large ones are parsed in a thread, so that other requests run in between."""
    if len(body) < LARGE_BYTES:
        record: JSONObject = orjson.loads(body)
        return record
    return await asyncio.to_thread(orjson.loads, body)


def items_of(record: JSONObject) -> list[JSONObject]:
    items: list[JSONObject] = [*record["input_items"], *record["response"]["output"]]
    return items


def no_response(id: str) -> APIError:
    return APIError(404, f"Response with id '{id[:100]}' not found.", reason="unknown id")


def no_previous(id: str) -> APIError:
    message = f"Previous response with id '{id[:100]}' not found."
    return invalid(message, "previous_response_id", "previous_response_not_found")


def chain_too_long() -> APIError:
    message = "The stored items that this request refers to are too large together."
    return invalid(message, "input", "context_length_exceeded")


# Lists of input items.


def item_page(query: Mapping[str, str]) -> ItemPage:
    """The page that a query asks for: `limit` (1 to 100), `order` and `after`. Raises APIError for a wrong value."""
    order = query.get("order") or "desc"
    if order not in ("asc", "desc"):
        raise wrong_value("order", order, ("asc", "desc"))
    limit = whole_number("limit", query.get("limit") or "20")
    if not 1 <= limit <= 100:
        message = f"Invalid 'limit': expected an integer from 1 to 100, but got {limit} instead."
        raise invalid(message, "limit", "invalid_value")
    return ItemPage(limit, order, query.get("after") or "")


def whole_number(name: str, text: str) -> int:
    """A number in a URL. Raises APIError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        message = f"Invalid '{name}': expected an integer, but got '{text[:100]}' instead."
        raise invalid(message, name, "invalid_value")
    return int(text)


def item_list(items: list[JSONObject], page: ItemPage) -> JSONObject:
    """One page of a list of items. Raises APIError 404 if `after` names none of them."""
    if page.order == "desc":
        items = items[::-1]
    start = 0
    if page.after:
        ids = [item["id"] for item in items]
        if page.after not in ids:
            raise APIError(404, f"Item with id '{page.after[:100]}' not found.", param="after")
        start = ids.index(page.after) + 1
    data = items[start : start + page.limit]
    ends = [row["id"] for row in (*data[:1], *data[-1:])] or [None, None]
    return {
        "object": "list",
        "data": data,
        "first_id": ends[0],
        "last_id": ends[1],
        "has_more": start + page.limit < len(items),
    }


# Streams of stored responses.


def replay(response: JSONObject, starting_after: int = -1) -> bytes:
    """The events of a stored response, with one delta for each item.

    Events up to the number `starting_after` are left out. The live stream had more deltas, so its
    numbers were higher: the terminal event is never left out, and has a higher number than that.
    """
    writer = EventWriter({name: response[name] for name in response if name not in STATE})
    writer.begin()
    for index, item in enumerate(response["output"]):
        write_item(writer, stored_item(item, index), item)
    del writer.events[: starting_after + 1]
    writer.number = max(writer.number, starting_after + 1)
    writer.response(response["status"], {name: response[name] for name in STATE})
    return writer.take()


def write_item(writer: EventWriter, item: OutputItem, document: JSONObject) -> None:
    text = item.pieces[0]
    writer.open(item)
    if text:
        writer.pieces(item, [text])
    writer.close(item, text, document)


def stored_item(document: JSONObject, index: int) -> OutputItem:
    """An output item as it was before it was closed."""
    item = OutputItem(FUNCTION, id=document["id"], index=index)
    if document["type"] in (FUNCTION.type, CUSTOM.type):
        if document["type"] == CUSTOM.type:
            item.form = CUSTOM
        names = ("call_id", "name", "namespace")
        item.call = {name: document[name] for name in names if name in document}
        item.pieces = [document[item.form.member]]
        return item
    part = [*document.get("content", ()), *document.get("summary", ())][0]
    item.form = FORMS[part["type"]]
    item.pieces = [part[item.form.member]]
    item.logprobs = part.get("logprobs", [])
    return item
