"""One budget of memory for everything that clients and upstreams send at the same time.

Bodies that arrive or wait, requests that an upstream works on, and replies that are gathered count against it. A request that
does not fit is refused before it is read. Code without a reference to its request calls `reserve`, which finds the reservation
of the task. Imports types and leaf files.
"""

import asyncio
import os
from contextlib import aclosing
from contextvars import ContextVar, Token
from pathlib import Path
from threading import Thread

import orjson

from rewrap.eventloop import running_loop
from rewrap.large_json import ValueCount
from rewrap.types import APIError, Delta, Deltas

SHARE = 4  # the budget is a quarter of the memory of the container or machine
UNKNOWN_MEMORY = 4 * 2**30  # of a system that does not report its memory
CGROUP_FILES = (
    "/sys/fs/cgroup/memory.max",  # version 2
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",  # version 1
)

# The memory of decoded JSON, at most. CPython 3.11: an empty list and the pointer to it take 72 bytes, an object with one
# member 240.
VALUE_BYTES = 80
OBJECT_BYTES = 240
DELTA_BYTES = 100  # without its texts
TRIMMED_BYTES = 2**18  # after a request of this size, free memory goes back to the system
TRIM_SECONDS = 10.0  # from the end of that request to the return
BUSY_BYTES = 2**24  # requests that hold more will soon need the memory again: no trim


class MemoryBudget:
    """At most `maximum` bytes, reserved by requests."""

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.used = 0
        self.trimming: asyncio.AbstractEventLoop | None = None  # the loop that has the timer

    def reservation(self) -> "Reservation":
        return Reservation(self)

    def give_back(self, size: int) -> None:
        """Count `size` bytes as free."""
        self.used -= size
        if size >= TRIMMED_BYTES:
            loop = running_loop()
            if self.trimming is not loop:  # this loop has no timer yet (tests use several loops)
                self.trim_later(loop)

    def trim_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self.trimming = loop
        loop.call_later(TRIM_SECONDS, self.trim, loop)

    def trim(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give free memory back to the system, unless the requests under way hold much."""
        if self.used > BUSY_BYTES:
            self.trim_later(loop)
            return
        self.trimming = None
        Thread(target=trim_heap, daemon=True).start()


class Reservation:
    """The memory of one request: a `with` block, at whose end all of it is given back."""

    __slots__ = ("budget", "size", "token")

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget
        self.size = 0
        self.token: Token[Reservation | None] | None = None

    def __enter__(self) -> "Reservation":
        self.token = CURRENT.set(self)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.token is not None:
            CURRENT.reset(self.token)
        self.release()

    def grow(self, size: int) -> None:
        """Reserve `size` more bytes. Raises APIError 503 if they do not fit now."""
        budget = self.budget
        if budget.used + size > budget.maximum:
            raise no_memory()
        budget.used += size
        self.size += size

    def release(self) -> None:
        size = self.size
        self.size = 0
        self.budget.give_back(size)


CURRENT: ContextVar[Reservation | None] = ContextVar("reservation", default=None)


def reserve(size: int) -> None:
    """Reserve memory for the request of this task. Raises APIError 503 if it does not fit now."""
    current = CURRENT.get()
    if current is not None:
        current.grow(size)


def reserve_body(size: int) -> None:
    """Reserve memory for a part of a request's body. Raises APIError: 503 as `reserve`, 413 if the request can never fit."""
    current = CURRENT.get()
    if current is None:
        return
    if current.size + size > current.budget.maximum:
        raise out_of_memory()
    current.grow(size)


def release() -> None:
    """Give back what the request of this task has reserved: its objects are no longer referenced."""
    current = CURRENT.get()
    if current is not None:
        current.release()


def reserved() -> int:
    """The bytes that the request of this task has reserved."""
    current = CURRENT.get()
    return current.size if current is not None else 0


def decoded_size(body: bytes, count: ValueCount) -> int:
    """The most memory that the JSON in a body takes when it is decoded, about: 30 MB of `[]` take 800 MB."""
    # A search for one byte costs a twentieth of one for two.
    escaped = b"\\" in body and b"\\u" in body
    # A decoded text takes four bytes for each character if one of them needs four.
    width = 1 if body.isascii() and not escaped else 4
    return width * len(body) + VALUE_BYTES * count.values + OBJECT_BYTES * count.objects


def delta_size(delta: Delta) -> int:
    """The memory that a Delta takes, about."""
    size = DELTA_BYTES + len(delta.content) + len(delta.raw)
    if delta.fields or delta.logprobs:
        size += len(orjson.dumps([delta.fields, delta.logprobs]))
    return size


async def gathered(deltas: Deltas) -> list[Delta]:
    """All Deltas of a reply, for which memory is reserved as they come. Raises APIError 503."""
    found: list[Delta] = []
    async with aclosing(deltas):
        async for delta in deltas:
            reserve(delta_size(delta))
            found.append(delta)
    return found


def within_budget(deltas: list[Delta]) -> list[Delta]:
    """The same Deltas, for which memory is reserved now. Raises APIError 503."""
    reserve(sum([delta_size(delta) for delta in deltas]))
    return deltas


def default_budget(workers: int) -> int:
    """The budget of each worker: together a quarter of what the container or the machine has."""
    return available_memory() // SHARE // workers


def available_memory() -> int:
    """The memory of this container, or of the machine if that has less."""
    limits = [limit for limit in map(cgroup_limit, CGROUP_FILES) if limit]
    return min([machine_memory(), *limits])


def cgroup_limit(path: str) -> int:
    """The limit in a file of the kernel; 0 if there is none."""
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdecimal() else 0


def machine_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return UNKNOWN_MEMORY


def trim_heap() -> None:
    """Return the free pages of the heap to the system. Only glibc keeps them and has this function.

    After 1,000 requests of 1 MB the process kept 82 MB (39 before them); with the trim, 41. Other threads wait 0.1 ms for each MB.
    """
    try:
        import ctypes

        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (ImportError, AttributeError, OSError, TypeError):
        return
    malloc_trim(0)


def no_memory() -> APIError:
    return APIError(
        503,
        "The server is busy: its memory for requests is full at this moment.",
        type="server_error",
        headers=[(b"retry-after", b"1")],
        reason="no memory",
    )


def out_of_memory() -> APIError:
    message = "The request needs more memory than this server has for all requests."
    return APIError(413, message, reason="more than MAX_MEMORY_BYTES")
