"""The list of models of an OpenAI-compatible upstream, asked for and kept for a minute."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import NamedTuple

import orjson

from rewrap.eventloop import running_loop
from rewrap.types import APIError, JSONObject, Limits, Shape, model_card
from rewrap.upstream.answers import read_rejection, read_whole
from rewrap.upstream.client import Client

ASK_SECONDS = 10.0
Ask = Callable[[dict[str, str]], Awaitable[list[JSONObject]]]


class KeptList(NamedTuple):
    """A client's own list, until a time on the monotonic clock."""

    cards: list[JSONObject]
    until: float


class ModelList:
    """An upstream's list. If it fails: the list before, or the `default` cards.

    Requests without a key of the client share one question at a time. After a failure the next one follows FAILED_SECONDS
    later, because `/info` needs no key.
    """

    KEPT_SECONDS = 60.0
    FAILED_SECONDS = 5.0
    KEPT_LISTS = 100  # of clients with keys of their own

    def __init__(self, ask: Ask, default: list[JSONObject]) -> None:
        """`ask` takes credentials and gives the cards; [] if the upstream has no list. It raises APIError."""
        self.ask = ask
        self.default = default
        self.listed: list[JSONObject] = []
        self.listing: asyncio.Task[list[JSONObject]] | None = None
        self.again_at = 0.0  # on the monotonic clock
        self.own_lists: dict[bytes, KeptList] = {}  # by the hash of the credentials

    async def cards(self, credentials: dict[str, str]) -> list[JSONObject]:
        """The cards, by the client's own credentials if there are any. Raises APIError."""
        if credentials:
            return await self.own(credentials)
        if self.listed and time.monotonic() < self.again_at:
            return self.listed
        try:
            found = await self.shared()
        except APIError:
            if not self.listed and not self.default:
                raise
            found = []
        return found or self.listed or self.default

    async def own(self, credentials: dict[str, str]) -> list[JSONObject]:
        """A client's own list, kept apart from all others: another key may see other models."""
        key = sha256(repr(sorted(credentials.items())).encode()).digest()
        kept = self.own_lists.get(key)
        if kept is not None and time.monotonic() < kept.until:
            return kept.cards
        cards = await self.ask(credentials) or self.default
        self.own_lists[key] = KeptList(cards, time.monotonic() + self.KEPT_SECONDS)
        if len(self.own_lists) > self.KEPT_LISTS:
            del self.own_lists[next(iter(self.own_lists))]
        return cards

    async def shared(self) -> list[JSONObject]:
        again = time.monotonic() >= self.again_at
        if self.listing is None or (self.listing.done() and again):
            self.listing = asyncio.create_task(self.refresh())
        return await asyncio.shield(self.listing)

    async def refresh(self) -> list[JSONObject]:
        cards: list[JSONObject] = []
        try:
            cards = await self.ask({})
        finally:
            self.listed = cards or self.listed
            seconds = self.KEPT_SECONDS if cards else self.FAILED_SECONDS
            self.again_at = time.monotonic() + seconds
        return cards


async def fetch_models(
    client: Client,
    target: object,
    headers: dict[str, str],
    shape: Shape,
    limits: Limits,
    failure_status: int,
) -> list[JSONObject]:
    """The models that an upstream lists now; [] if it has no list.

    Raises UpstreamRejection, APIError, and the exceptions of UPSTREAM_ERRORS.
    """
    deadline = running_loop().time() + min(ASK_SECONDS, limits.first_byte)
    reply = await client.ask(target, headers, b"", deadline)
    try:
        if reply.status in (404, 405):
            return []
        if reply.status != 200:
            raise await read_rejection(reply, shape)
        body = await read_whole(reply, limits, deadline, failure_status)
        return model_cards(orjson.loads(body))
    finally:
        await reply.aclose()


# Members of an answer that have the list, and members of a row that have the name.
LISTS = ("data", "models", "model_list", "items", "results", "result")
NAMES = ("id", "model", "name", "model_id", "model_name")


def model_cards(value: object) -> list[JSONObject]:
    """The cards in an upstream's answer. Raises ValueError.

    Answers have many forms: OpenAI's `{"data": [{"id"}]}`, Ollama's `{"models": [{"model", "name"}]}`,
    a bare list, and lists of strings.
    """
    cards = [card for row in model_rows(value) if (card := card_of(row))]
    return list({card["id"]: card for card in cards}.values())


def model_rows(value: object) -> list[object]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        for name in LISTS:
            rows = value.get(name)
            if isinstance(rows, list):
                return rows
    raise ValueError("no list of models")


def card_of(row: object) -> JSONObject | None:
    """The card of one row; None if it has no name."""
    if isinstance(row, str):
        return model_card(row) if row else None
    if not isinstance(row, dict):
        return None
    for name in NAMES:
        id = row.get(name)
        if isinstance(id, str) and id:
            return model_card(**(row | {"id": id}))
    return None
