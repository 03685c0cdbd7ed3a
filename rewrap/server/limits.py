"""Limits: requests per minute for each key, and requests at the same time.

A key's minute starts with its first request (a fixed window): after `Retry-After` the whole budget is back. One process
counts in its memory. Several processes count together in a store, by the `limits` library: Redis (packages `limits` and
`redis`) or MongoDB (`limits` and `pymongo`). Imports types and the request context.

The library's own memory storage is not used: it visits every key at every hit (limits 5.8.0: 9 ms with 50,000 keys).
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

from rewrap.server.context import RequestContext
from rewrap.types import APIError, Headers, duration

if TYPE_CHECKING:
    from limits.aio.storage import Storage

log = logging.getLogger("rewrap")
WINDOW_SECONDS = 60
MAX_KEYS = 100_000  # in memory, about 30 MB: beyond them the oldest window is forgotten
STORE_TIMEOUT_SECONDS = 1.0
STORE_PAUSE_SECONDS = 5.0  # a store that failed is not used for so long
# The Python package that each scheme of a store needs, beside `limits`.
DRIVERS = {
    "redis": "redis",
    "rediss": "redis",
    "mongodb": "pymongo",
    "mongodb+srv": "pymongo",
}


class Verdict(NamedTuple):
    """Whether a request may go on, the budget of a minute, its remainder, and seconds until all of it is back."""

    allowed: bool
    limit: int
    remaining: int
    reset_seconds: float


class HitCount(NamedTuple):
    """The hits in a key's window, and seconds to its end."""

    hits: int
    reset_seconds: float


class RateLimit:
    """At most `per_minute` requests a minute for each key, counted in memory or in the store at `store_url`.

    A store that is down, or slower than a second, does not stop chats: requests go on, each process counts in its
    memory, one warning is logged, and five seconds later the store is tried again.
    Raises ValueError, in one line without the address, if the URL cannot be used or a package is missing.
    """

    def __init__(self, per_minute: int, store_url: str = "") -> None:
        self.per_minute = per_minute
        # By key: hits, and the end of the window on the monotonic clock.
        self.windows: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self.store_url = store_url
        self.store = open_limit_storage(store_url) if store_url else None
        self.loop: asyncio.AbstractEventLoop | None = None  # of the store's connections
        self.retry_at = 0.0  # on the monotonic clock; 0: the store is up

    async def hit(self, key: str) -> Verdict:
        """Count one request of `key` (an API key, an address). The store sees only its hash."""
        digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        count = await self.hit_store(digest)
        if count is None:
            count = self.hit_memory(digest)
        remaining = max(0, self.per_minute - count.hits)
        allowed = count.hits <= self.per_minute
        return Verdict(allowed, self.per_minute, remaining, count.reset_seconds)

    def hit_memory(self, key: str) -> HitCount:
        """Count in memory. The same small cost with one key and with MAX_KEYS."""
        now = time.monotonic()
        windows = self.windows
        # All windows have the same length: the oldest ends first.
        while windows and (len(windows) > MAX_KEYS or next(iter(windows.values()))[1] <= now):
            windows.popitem(last=False)
        hits, end = windows.get(key, (0, now + WINDOW_SECONDS))
        windows[key] = (hits + 1, end)
        seconds = min(end - now, WINDOW_SECONDS)  # (now + 60) - now may be above 60
        return HitCount(hits + 1, seconds)

    async def hit_store(self, key: str) -> HitCount | None:
        """Count in the store; None if there is none, or it is down."""
        if not self.store or time.monotonic() < self.retry_at:
            return None
        from limits.errors import StorageError

        self.follow_loop()
        if self.retry_at:  # this request alone waits for a store that may be up again
            self.retry_at = time.monotonic() + STORE_PAUSE_SECONDS
        try:
            async with asyncio.timeout(STORE_TIMEOUT_SECONDS):
                hits = await self.store.incr(f"rewrap/{key}", WINDOW_SECONDS)
                reset = await self.store.get_expiry(f"rewrap/{key}") - time.time()
        except StorageError as error:
            self.pause(type(error.__cause__).__name__)
            return None
        except TimeoutError as error:
            self.pause(type(error).__name__)
            return None
        self.retry_at = 0.0
        return HitCount(hits, min(max(0.0, reset), WINDOW_SECONDS))  # clocks of two machines differ

    def follow_loop(self) -> None:
        """Open the store anew in another event loop: the drivers stay with the one of their first use."""
        loop = asyncio.get_running_loop()
        if self.loop is not None and self.loop is not loop:
            self.store = open_limit_storage(self.store_url)
        self.loop = loop

    def pause(self, reason: str) -> None:
        """Count in memory for a while. `reason` is the type of the error: its text may hold the address."""
        if not self.retry_at:
            log.warning(
                "RATE_LIMIT_STORE_URL: the store failed (%s); each process counts for itself.",
                reason,
            )
        self.retry_at = time.monotonic() + STORE_PAUSE_SECONDS

    async def close(self) -> None:
        """Close the connections to the store. The next hit opens new ones."""
        if self.store is None:
            return
        store = self.store
        self.store = open_limit_storage(self.store_url)
        self.loop = None
        client: Any = getattr(store, "bridge", store)  # of Redis; of MongoDB
        await client.storage.aclose()


def open_limit_storage(url: str) -> "Storage":
    """The storage of `limits` for a URL. Does not connect yet. Raises ValueError as RateLimit does."""
    scheme = url.partition("://")[0]
    if scheme not in DRIVERS:
        schemes = ", ".join(f"{name}://" for name in DRIVERS)
        raise ValueError(f"RATE_LIMIT_STORE_URL must start with one of {schemes}.")
    for package in ("limits", DRIVERS[scheme]):
        if not find_spec(package):
            need = f"{scheme} needs the package {package} (pip install {package})"
            raise ValueError(f"RATE_LIMIT_STORE_URL: {need}.")
    try:
        if DRIVERS[scheme] == "pymongo":
            return mongodb_storage(url)
        from limits.aio.storage import RedisStorage

        return RedisStorage(f"async+{url}", wrap_exceptions=True, implementation="redispy")
    except Exception as error:  # of the driver; its text may hold a password
        reason = type(error).__name__
        hint = f"is it {scheme}://host:port?"
        raise ValueError(f"RATE_LIMIT_STORE_URL cannot be used ({reason}): {hint}") from None


def mongodb_storage(url: str) -> "Storage":
    """The MongoDB storage of `limits` on pymongo's async client. It expects `motor`, which pymongo has replaced."""
    import pymongo
    from limits.aio.storage import MongoDBStorage

    motor = SimpleNamespace(AsyncIOMotorClient=pymongo.AsyncMongoClient)

    class Storage(MongoDBStorage):
        dependencies: Any = {
            "motor.motor_asyncio": SimpleNamespace(module=motor),
            "pymongo": SimpleNamespace(module=pymongo),
        }

        def __del__(self) -> None:
            """The parent calls `close`, which is a coroutine here."""

    return Storage(url, wrap_exceptions=True)


def rate_limit_headers(verdict: Verdict) -> Headers:
    """OpenAI's x-ratelimit headers for a verdict. A refusal has Retry-After too, in whole seconds, at least 1."""
    headers = [
        (b"x-ratelimit-limit-requests", b"%d" % verdict.limit),
        (b"x-ratelimit-remaining-requests", b"%d" % verdict.remaining),
        (b"x-ratelimit-reset-requests", duration(verdict.reset_seconds).encode()),
    ]
    if not verdict.allowed:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(verdict.reset_seconds))))
    return headers


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


async def count_request(limit: RateLimit, context: RequestContext) -> None:
    """Count a request for its key, or else for its address. Raises APIError 429."""
    verdict = await limit.hit(context.key or context.address())
    context.extra_headers = [*context.extra_headers, *rate_limit_headers(verdict)]
    if not verdict.allowed:
        raise limit_exceeded(verdict)
