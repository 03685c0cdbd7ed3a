"""Limits: so many requests a minute for each key, and so many at the same moment.

A key's minute starts with its first request (a fixed window): after `Retry-After` the whole budget is back. One process
counts in its memory. Several count together in a store, by the `limits` library: Redis (packages `limits` and `redis`)
or MongoDB (`limits` and `pymongo`).

Memory is not left to `limits`: its MemoryStorage visits every key at every hit (5.8.0: 9 ms with 50,000 keys).
"""

import asyncio
import hashlib
import logging
import math
import time
from collections import OrderedDict
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from rewrap.types import APIError

if TYPE_CHECKING:
    from limits.aio.storage import Storage

log = logging.getLogger("rewrap")
WINDOW_SECONDS = 60
MAX_KEYS = 100_000  # in memory, some 30 MB: beyond them the oldest window is forgotten, and its key starts anew
STORE_TIMEOUT_SECONDS = 1.0
STORE_PAUSE_SECONDS = 5.0  # for so long a store that failed is not asked
DRIVERS = {
    "redis": "redis",
    "rediss": "redis",
    "mongodb": "pymongo",
    "mongodb+srv": "pymongo",
}  # scheme: package


class Verdict(NamedTuple):
    """May this request go on; the budget of a minute, what is left of it, and the seconds until all of it is back."""

    allowed: bool
    limit: int
    remaining: int
    reset_seconds: float


class RateLimit:
    """At most `per_minute` requests a minute for each key, counted in memory or in the store at `store_url`.

    A store that is down, or slower than a second, is no reason to take chat down: requests go on, each process counts
    in its memory, one warning is logged, and five seconds later the store is asked again.
    Raises ValueError, in one line without the address, where the URL cannot be used or a package is missing.
    """

    def __init__(self, per_minute: int, store_url: str = "") -> None:
        self.per_minute = per_minute
        self.windows: OrderedDict[str, tuple[int, float]] = (
            OrderedDict()
        )  # key: (hits, end on the monotonic clock)
        self.store_url = store_url
        self.loop: asyncio.AbstractEventLoop | None = None  # that the store's connections are of
        self.store = open_limit_storage(store_url) if store_url else None
        self.retry_at = 0.0  # on the monotonic clock; 0: the store is up

    async def hit(self, key: str) -> Verdict:
        """Count one request of `key` (an API key, an address): a store sees only its hash."""
        digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        hits, reset = await self.hit_store(digest) or self.hit_memory(digest)
        return Verdict(
            hits <= self.per_minute, self.per_minute, max(0, self.per_minute - hits), reset
        )

    def hit_memory(self, key: str) -> tuple[int, float]:
        """Hits in the key's window, and seconds to its end. The same small cost with one key and with MAX_KEYS."""
        now, windows = time.monotonic(), self.windows
        # All windows are equally long: the one that began first is the first to end.
        while windows and (len(windows) > MAX_KEYS or next(iter(windows.values()))[1] <= now):
            windows.popitem(last=False)
        hits, end = windows.get(key, (0, now + WINDOW_SECONDS))
        windows[key] = (hits + 1, end)
        return hits + 1, min(end - now, WINDOW_SECONDS)  # floats: (now + 60) - now may be more

    async def hit_store(self, key: str) -> tuple[int, float] | None:
        """The same from the store; None if there is none, or it is down."""
        if not self.store or time.monotonic() < self.retry_at:
            return None
        from limits.errors import StorageError

        loop = asyncio.get_running_loop()
        if self.loop is not loop:  # the drivers keep to the one of their first use
            self.store = open_limit_storage(self.store_url) if self.loop else self.store
            self.loop = loop
        if self.retry_at:
            self.retry_at = (
                time.monotonic() + STORE_PAUSE_SECONDS
            )  # this request alone waits to see if it is back
        try:
            async with asyncio.timeout(STORE_TIMEOUT_SECONDS):
                hits = await self.store.incr(f"rewrap/{key}", WINDOW_SECONDS)
                reset = await self.store.get_expiry(f"rewrap/{key}") - time.time()
        except (StorageError, TimeoutError) as exc:
            if not self.retry_at:  # only the type: the words may hold the address
                reason = type(exc.__cause__ if isinstance(exc, StorageError) else exc).__name__
                log.warning(
                    "RATE_LIMIT_STORE_URL: the store failed (%s); each process counts for itself.",
                    reason,
                )
            self.retry_at = time.monotonic() + STORE_PAUSE_SECONDS
            return None
        self.retry_at = 0.0
        return hits, min(max(0.0, reset), WINDOW_SECONDS)  # clocks of two machines differ

    async def close(self) -> None:
        """Close the connections to the store; the next hit opens them anew."""
        if self.store:
            client: Any = getattr(self.store, "bridge", self.store)  # of Redis, of MongoDB
            self.store, self.loop = open_limit_storage(self.store_url), None
            await client.storage.aclose()


def open_limit_storage(url: str) -> "Storage":
    """The storage of `limits` for a URL; connects to nothing yet. Raises ValueError as RateLimit does."""
    scheme = url.partition("://")[0]
    if scheme not in DRIVERS:
        raise ValueError(
            f"RATE_LIMIT_STORE_URL must start with one of {', '.join(f'{name}://' for name in DRIVERS)}."
        )
    for package in ("limits", DRIVERS[scheme]):
        if not find_spec(package):
            raise ValueError(
                f"RATE_LIMIT_STORE_URL: {scheme} needs the package {package} (pip install {package})."
            )
    try:
        if DRIVERS[scheme] == "pymongo":
            return mongodb(url)
        from limits.aio.storage import RedisStorage

        return RedisStorage(f"async+{url}", wrap_exceptions=True, implementation="redispy")
    except (
        Exception
    ) as exc:  # of the driver; its words may hold a password: not even in the traceback
        reason = type(exc).__name__
        raise ValueError(
            f"RATE_LIMIT_STORE_URL cannot be used ({reason}): is it {scheme}://host:port?"
        ) from None


def mongodb(url: str) -> "Storage":
    """The MongoDB storage of `limits`, which wants `motor`, over pymongo's own async client, which replaced it."""
    import pymongo
    from limits.aio.storage import MongoDBStorage

    class Storage(MongoDBStorage):
        dependencies: Any = {
            "motor.motor_asyncio": SimpleNamespace(
                module=SimpleNamespace(AsyncIOMotorClient=pymongo.AsyncMongoClient)
            ),
            "pymongo": SimpleNamespace(module=pymongo),
        }

        def __del__(self) -> None:
            """The parent's calls `close`, which is a coroutine here."""

    return Storage(url, wrap_exceptions=True)


def rate_limit_headers(verdict: Verdict) -> list[tuple[bytes, bytes]]:
    """OpenAI's x-ratelimit headers for one verdict, and Retry-After (whole seconds, at least 1) with a refusal."""
    fields: list[tuple[bytes, object]] = [
        (b"x-ratelimit-limit-requests", verdict.limit),
        (b"x-ratelimit-remaining-requests", verdict.remaining),
        (b"x-ratelimit-reset-requests", duration(verdict.reset_seconds)),
        (b"retry-after", max(1, math.ceil(verdict.reset_seconds))),
    ]
    return [(name, str(value).encode()) for name, value in fields[: 3 if verdict.allowed else 4]]


def duration(seconds: float) -> str:
    """As OpenAI writes it: `16ms`, `59.369s`, `1m6.499s`."""
    minutes, ms = divmod(round(seconds * 1000), 60_000)
    if not minutes and ms < 1000:
        return f"{ms}ms"
    return (f"{minutes}m" if minutes else "") + f"{ms / 1000:g}s"


class Gate:
    """A `with` block that at most `maximum` requests enter at the same time; 0: no limit."""

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.inside = 0

    def check(self) -> None:
        """Raises APIError 503 if the block is full."""
        if self.maximum and self.inside >= self.maximum:
            raise APIError(
                503,
                "The server is busy: too many requests at this moment.",
                type="server_error",
                headers=[(b"retry-after", b"1")],
                reason="too many requests",
            )

    def __enter__(self) -> None:
        self.check()
        self.inside += 1

    def __exit__(self, *exc: object) -> None:
        self.inside -= 1


def limit_exceeded(verdict: Verdict) -> APIError:
    message = f"Rate limit reached for requests: {verdict.limit} a minute. Please try again later."
    return APIError(429, message, type="requests", code="rate_limit_exceeded")
