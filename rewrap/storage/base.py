"""The interface of every store of chat completions and responses.

Documents leave a store as the JSON bytes that came in: a store never parses what it only passes on.
Does not know HTTP, does not check the form of documents, does not encrypt. Imports types and leaf files.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field

import orjson

from rewrap.structs import struct
from rewrap.types import JSONObject

SWEEP_SECONDS = 30.0
SWEEP_BATCH = 100
SWEEP_PAUSE_SECONDS = 0.02  # the writes of clients go in between
SECONDS_A_DAY = 86_400
PING_SECONDS = 1.0  # an answer counts for so long
PING_TIMEOUT_SECONDS = 2.0
MAX_LIMIT = 1_000
MAX_PAGE_BYTES = 2 * 2**20
BLANK_MESSAGE = {"id": None, "role": None, "content": None, "name": None, "content_parts": None}
BLANK_ID = b'{"id":null'  # the beginning of every stored message


Observer = Callable[[float, bool], None]  # gets the seconds of a work, and whether it failed


class StoreDown(Exception):
    """The store cannot be read or written now. The text does not contain its address."""


class HistoryTooLarge(Exception):
    """The messages of a chat are larger than the caller takes."""


@struct(frozen=True, slots=True)
class Page:
    """Part of a list: the JSON of its items, and their ids. `has_more` is exact."""

    ids: Sequence[str]
    items: Sequence[bytes]
    has_more: bool


@struct(frozen=True, slots=True)
class Filter:
    """The completions that a list shows: those with this model, and with all of these pairs."""

    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class Store(ABC):
    """Completions with their messages, and responses.

    For another owner than its own, an item does not exist. A write that has returned survives a
    kill of the process. Every method raises StoreDown.

    Lists are ordered by the `created` (Unix time in seconds) of the first put, then by insertion: a
    chat that is continued keeps its place and its age. `after` is the id of an item; it is found
    even if the filters exclude it. LookupError if it does not exist. `limit` is cut to 0..1000, and
    a page ends before it has more than MAX_PAGE_BYTES, but not before its first item.
    """

    def __init__(self, max_age_days: float) -> None:
        """Items older than `max_age_days` do not exist; 0: they never get too old."""
        self.max_age_days = max_age_days
        self.upkeep_task: asyncio.Task[None] | None = None
        self.asked_at = float("-inf")  # on the monotonic clock
        self.answered = True

    async def open(self) -> None:
        """Start the task that deletes old items and makes MongoDB's indexes.

        All else works without it. A store that is down does not matter here.
        """
        self.upkeep_task = asyncio.create_task(self.upkeep())

    async def close(self) -> None:
        if self.upkeep_task:
            self.upkeep_task.cancel()
            await asyncio.wait([self.upkeep_task])

    @abstractmethod
    def observe_with(self, observe: Observer) -> None:
        """Measure the works of the store."""

    async def answers(self) -> bool:
        """Whether the store can be used now. It is asked once a second at most."""
        now = time.monotonic()
        if now - self.asked_at < PING_SECONDS:
            return self.answered
        self.asked_at = now
        try:
            async with asyncio.timeout(PING_TIMEOUT_SECONDS):
                await self.ping()
            self.answered = True
        except (StoreDown, TimeoutError):
            self.answered = False
        return self.answered

    @abstractmethod
    async def ping(self) -> None:
        """Raises StoreDown if the store cannot be used now. Makes no file."""

    # Completions.

    @abstractmethod
    async def put(
        self,
        completion: JSONObject,
        messages: Sequence[JSONObject],
        *,
        owner: str,
        title: str | None = None,
        continues: bool = False,
    ) -> None:
        """Store a completion {"id", "created", "model", "metadata", ...}.

        If the owner has one with this id, `completion` replaces it, the messages go after its
        messages, and its title stays. With `continues` there has to be one (LookupError), and its
        metadata stay if the completion has none. A title comes back as the member "title".
        """

    @abstractmethod
    async def get(self, owner: str, id: str) -> bytes | None:
        """The JSON of a completion."""

    @abstractmethod
    async def update(self, owner: str, id: str, metadata: Mapping[str, str]) -> bytes | None:
        """Replace the metadata. The result is the changed completion."""

    @abstractmethod
    async def delete(self, owner: str, id: str) -> bool:
        """Delete a completion and its messages."""

    async def list(
        self,
        owner: str,
        *,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int = 20,
        order: str = "asc",
    ) -> Page:
        """One page of completions; `order` is "asc" or "desc"."""
        wanted = Filter(model, metadata or {})
        return await self.find_page(owner, wanted, after, bounded(limit), order == "asc")

    async def messages(
        self, owner: str, id: str, *, after: str | None = None, limit: int = 20, order: str = "asc"
    ) -> Page | None:
        """One page of a completion's messages. None if there is no such completion.

        A message is {"id": "{completion id}-{number}", "role", "content", "name", "content_parts"}
        with its other members; numbers count from 0.
        """
        count = await self.count_messages(owner, id)
        if count is None:
            return None
        numbers = range(count)
        if order != "asc":
            numbers = numbers[::-1]
        if after is not None:
            number = message_number(id, after)
            if number not in numbers:
                raise LookupError("no such message")
            numbers = numbers[numbers.index(number) + 1 :]
        page = numbers[: bounded(limit)]
        bodies: Sequence[bytes] = []
        if page:
            bodies = await self.message_bodies(owner, id, page)
        ids = [f"{id}-{number}" for number in page[: len(bodies)]]
        items = [with_id(body, name) for name, body in zip(ids, bodies, strict=True)]
        return Page(ids, items, len(items) < len(numbers))

    async def message(self, owner: str, id: str, message_id: str) -> bytes | None:
        """One message of a completion."""
        number = message_number(id, message_id)
        if number < 0:
            return None
        bodies = await self.message_bodies(owner, id, range(number, number + 1))
        if not bodies:
            return None
        return with_id(bodies[0], message_id)

    @abstractmethod
    async def history(self, owner: str, id: str, max_bytes: int) -> Sequence[bytes] | None:
        """All messages of a completion, without ids. Raises HistoryTooLarge."""

    # Responses.

    @abstractmethod
    async def put_response(self, owner: str, id: str, document: bytes, created: int) -> None:
        """Store the JSON of a response, or replace it. `created`: Unix time in seconds."""

    @abstractmethod
    async def get_response(self, owner: str, id: str) -> bytes | None:
        """The JSON of a response."""

    @abstractmethod
    async def delete_response(self, owner: str, id: str) -> bool: ...

    # The parts that each engine has.

    @abstractmethod
    async def find_page(
        self, owner: str, wanted: Filter, after: str | None, limit: int, up: bool
    ) -> Page: ...

    @abstractmethod
    async def count_messages(self, owner: str, id: str) -> int | None:
        """The number of a completion's messages."""

    @abstractmethod
    async def message_bodies(self, owner: str, id: str, numbers: range) -> Sequence[bytes]:
        """Messages in the order of `numbers`, as many as fit on a page."""

    @abstractmethod
    async def sweep(self) -> bool:
        """Delete one batch of old items. False if there was none."""

    def oldest(self) -> int:
        """The time (Unix, seconds) before which nothing exists."""
        if not self.max_age_days:
            return 0
        return max(0, int(time.time() - self.max_age_days * SECONDS_A_DAY))

    async def upkeep(self) -> None:
        while True:
            with suppress(StoreDown):
                while await self.sweep():
                    await asyncio.sleep(SWEEP_PAUSE_SECONDS)
            await asyncio.sleep(SWEEP_SECONDS)


def bounded(limit: int) -> int:
    return max(0, min(limit, MAX_LIMIT))


def is_full(count: int, size: int, limit: int) -> bool:
    """Whether a page of `count` items cannot take one more, with which it has `size` bytes."""
    return count == limit or (count > 0 and size > MAX_PAGE_BYTES)


def fitting(sizes: Iterable[int], limit: int) -> int:
    """How many items of these sizes a page takes."""
    count = 0
    total = 0
    for size in sizes:
        total += size
        if is_full(count, total, limit):
            break
        count += 1
    return count


# JSON.


def message_body(message: JSONObject) -> bytes:
    """The JSON of a message as it is stored. Raises TypeError."""
    return orjson.dumps({**BLANK_MESSAGE, **message, "id": None})


def with_id(body: bytes, id: str) -> bytes:
    return b'{"id":%b%b' % (orjson.dumps(id), body.removeprefix(BLANK_ID))


def with_members(body: bytes, title: str | None, metadata: bytes) -> bytes:
    """The JSON of a completion, with the members that are stored beside its body."""
    members = b""
    if title is not None:
        members += b',"title":' + orjson.dumps(title)
    if metadata:
        members += b',"metadata":' + metadata
    return body[:-1] + members + b"}"


def message_number(id: str, message_id: str) -> int:
    """The number in a message's id, "{completion id}-{number}"; -1 if it has another form."""
    digits = message_id.removeprefix(f"{id}-")
    if digits.isdecimal() and digits.isascii():
        number = int(digits[:9])
        if message_id == f"{id}-{number}":
            return number
    return -1
