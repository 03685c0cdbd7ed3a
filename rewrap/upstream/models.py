"""The list of models of an OpenAI-compatible upstream, asked for and kept for a minute."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import NamedTuple

from rewrap.types import APIError, JSONObject, model_card

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


def model_cards(value: object) -> list[JSONObject]:
    """The cards in an upstream's answer. Raises ValueError."""
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise ValueError("no list")
    objects = [row for row in rows if isinstance(row, dict)]
    return [model_card(**row) for row in objects if isinstance(row.get("id"), str)]
