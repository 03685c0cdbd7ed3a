"""Stored completions: the interface of each engine."""

import asyncio
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

SWEEP_SECONDS = 30.0
SWEEP_BATCH = 100
MAX_LIMIT = 1_000
BLANK_MESSAGE = {"id": None, "role": None, "content": None, "name": None, "content_parts": None}
T = TypeVar("T")
Document = dict[str, Any]
Documents = list[Document]
Bodies = list[Any]  # JSON, str or bytes
Where = tuple[str | None, dict[str, str]]  # model, metadata


class StoreDown(Exception):
    """The store cannot be read or written now; the text says nothing about where it is."""


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list; `has_more` says exactly whether anything follows it."""

    data: Documents
    has_more: bool


class Store(ABC):
    """What each engine offers; all of it raises StoreDown.

    Lists are ordered by `created` (Unix, seconds) as first put, then by insertion: a chat that is continued keeps its
    place and its age. `after` is an item's `id`, found even where the filters exclude it; LookupError if there is none.
    `limit` is cut to 0..1000; `order` is "asc" or "desc".
    """

    def __init__(self, max_age_days: float | None) -> None:
        self.max_age_days = max_age_days
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start the task that removes what is too old and makes MongoDB's indexes; all else works without.

        A store that is down does not matter here.
        """
        self._task = asyncio.create_task(self._upkeep())

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    @abstractmethod
    async def put(
        self, completion: Document, messages: Documents, *, owner: str, title: str | None = None
    ) -> None:
        """Keep a completion {"id", "created", "model", "metadata", ...}; it is durable when this returns.

        If the owner has one with this id, `completion` replaces it and the messages go after those that it has.
        The title of the first put stays; it is given back as "title".
        """

    @abstractmethod
    async def get(self, owner: str, id: str) -> Document | None: ...

    @abstractmethod
    async def update(self, owner: str, id: str, metadata: dict[str, str]) -> Document | None:
        """Replace the metadata; gives the completion as it is then."""

    @abstractmethod
    async def delete(self, owner: str, id: str) -> bool: ...

    async def list(
        self,
        owner: str,
        *,
        model: str | None = None,
        metadata: dict[str, str] | None = None,
        after: str | None = None,
        limit: int = 20,
        order: str = "asc",
    ) -> Page:
        limit = max(0, min(limit, MAX_LIMIT))
        found = await self._list(owner, (model, metadata or {}), after, limit + 1, order == "asc")
        return Page(found[:limit], len(found) > limit)

    async def messages(
        self, owner: str, id: str, *, after: str | None = None, limit: int = 20, order: str = "asc"
    ) -> Page | None:
        """Messages {"id": "{completion id}-{n}", "role", "content", "name", "content_parts", ...}, n from 0."""
        count = await self._count(owner, id)
        if count is None:
            return None
        numbers = range(count) if order == "asc" else range(count)[::-1]
        if after is not None:
            at = next((at for at, n in enumerate(numbers) if after == f"{id}-{n}"), None)
            if at is None:
                raise LookupError("no such message")
            numbers = numbers[at + 1 :]
        page = numbers[: max(0, min(limit, MAX_LIMIT))]
        bodies = await self._bodies(owner, id, min(page), len(page)) if page else []
        data = [
            {**orjson.loads(body), "id": f"{id}-{n}"}
            for n, body in enumerate(bodies, min(page, default=0))
        ]
        return Page(data if order == "asc" else data[::-1], len(numbers) > len(page))

    @abstractmethod
    async def _list(
        self, owner: str, where: Where, after: str | None, limit: int, up: bool
    ) -> Documents: ...

    @abstractmethod
    async def _count(self, owner: str, id: str) -> int | None:
        """How many messages a completion has."""

    @abstractmethod
    async def _bodies(self, owner: str, id: str, start: int, count: int) -> Bodies:
        """The JSON of messages, in the order of their numbers."""

    @abstractmethod
    async def _sweep(self) -> bool:
        """Remove one batch of what is too old; whether there was any."""

    def _oldest(self) -> int:
        """The time (Unix, seconds) before which nothing exists."""
        return (
            0
            if self.max_age_days is None
            else max(0, int(time.time() - self.max_age_days * 86_400))
        )

    async def _upkeep(self) -> None:
        while True:
            with suppress(StoreDown):
                while await self._sweep():
                    await asyncio.sleep(0.02)  # the clients' own writes go in between
            await asyncio.sleep(SWEEP_SECONDS)
