"""Limits: so many requests a minute for each key, and so many at the same moment.

A key's minute starts with its first request (a fixed window): after `Retry-After` the whole budget is back. One process
counts in its memory. Several count together in a store, by the `limits` library: Redis (packages `limits` and `redis`)
or MongoDB (`limits` and `pymongo`).

Memory is not left to `limits`: its MemoryStorage visits every key at every hit (5.8.0: 9 ms with 50,000 keys). Nor is
its async MongoDB storage used, which needs `motor`, retired in favour of pymongo: the blocking ones run in threads.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from limits.storage import Storage

log = logging.getLogger(__name__)
WINDOW_SECONDS = 60
MAX_KEYS = 100_000  # in memory, some 30 MB: beyond them the oldest window is forgotten, and its key starts anew
STORE_PAUSE_SECONDS = 5.0  # for so long a store that failed is not asked
REDIS, MONGODB = ("redis", {"socket_timeout": 1}), ("pymongo", {"timeoutMS": 1000})  # seconds, milliseconds
DRIVERS = {"redis": REDIS, "rediss": REDIS, "mongodb": MONGODB, "mongodb+srv": MONGODB}


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
        self.per_minute, self.store_url = per_minute, store_url
        self.windows: OrderedDict[str, tuple[int, float]] = OrderedDict()  # key: (hits, end on the monotonic clock)
        self.store = open_store(store_url) if store_url else None
        self.threads = ThreadPoolExecutor(8, "rate-limit")  # starts none until a store is asked
        self.retry_at = 0.0  # on the monotonic clock; 0: the store is up

    async def hit(self, key: str) -> Verdict:
        """Count one request of `key` (an API key, an address): a store sees only its hash."""
        digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        hits, reset = await self.hit_store(digest) or self.hit_memory(digest)
        return Verdict(hits <= self.per_minute, self.per_minute, max(0, self.per_minute - hits), reset)

    def hit_memory(self, key: str) -> tuple[int, float]:
        """Hits in the key's window, and seconds to its end. The same small cost with one key and with MAX_KEYS."""
        now, windows = time.monotonic(), self.windows
        # All windows are equally long: the one that began first is the first to end.
        while windows and (len(windows) > MAX_KEYS or next(iter(windows.values()))[1] <= now):
            windows.popitem(last=False)
        hits, end = windows.get(key, (0, now + WINDOW_SECONDS))
        windows[key] = (hits + 1, end)
        return hits + 1, end - now

    async def hit_store(self, key: str) -> tuple[int, float] | None:
        """The same from the store; None if there is none, or it is down."""
        store = self.store
        if not store or time.monotonic() < self.retry_at:
            return None
        from limits.errors import StorageError

        if self.retry_at:
            self.retry_at = time.monotonic() + STORE_PAUSE_SECONDS  # this request alone waits to see if it is back
        try:
            answer = asyncio.get_running_loop().run_in_executor(self.threads, ask, store, key)
            counted = await asyncio.wait_for(answer, timeout=1)
        except (StorageError, TimeoutError, ValueError) as exc:
            if store is self.store:  # of the requests that found it down, this is the first
                if not self.retry_at:  # only the type: the words may hold the address
                    reason = type(exc.__cause__ or exc).__name__
                    log.warning("RATE_LIMIT_STORE_URL: the store failed (%s); each process counts for itself.", reason)
                self.retry_at = time.monotonic() + STORE_PAUSE_SECONDS
                self.close()
                self.store = open_store(self.store_url)  # only a new one makes MongoDB's indexes, if they are missing
            return None
        self.retry_at = 0.0
        return counted

    def close(self) -> None:
        """Close the connections to the store, in a thread. (MongoDB's property `storage` would open them first.)"""
        known = vars(self.store) if self.store else {}
        if client := known.get("storage") or known.get("_storage"):
            self.threads.submit(client.close)


def open_store(url: str) -> "Storage":
    """The storage of `limits` for a URL; connects to nothing yet. Raises ValueError as RateLimit does."""
    scheme = url.partition("://")[0]
    if scheme not in DRIVERS:
        raise ValueError(f"RATE_LIMIT_STORE_URL must start with one of {', '.join(f'{name}://' for name in DRIVERS)}.")
    driver, options = DRIVERS[scheme]
    for package in ("limits", driver):
        if not find_spec(package):
            raise ValueError(f"RATE_LIMIT_STORE_URL: {scheme} needs the package {package} (pip install {package}).")
    from limits.errors import ConfigurationError
    from limits.storage import Storage, storage_from_string

    try:
        store = storage_from_string(url, wrap_exceptions=True, **options)
    except (ConfigurationError, ValueError) as exc:  # whose words may hold a password: not even in the traceback
        raise ValueError(f"RATE_LIMIT_STORE_URL cannot be used ({type(exc).__name__}).") from None
    assert isinstance(store, Storage)
    return store


def ask(store: "Storage", key: str) -> tuple[int, float]:
    """Count one hit in the store: how many they are, and the seconds to the window's end by this machine's clock."""
    hits = store.incr(f"rewrap/{key}", WINDOW_SECONDS)
    return hits, min(max(0.0, store.get_expiry(f"rewrap/{key}") - time.time()), WINDOW_SECONDS)


def headers(verdict: Verdict) -> list[tuple[bytes, bytes]]:
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
    """At most `most` requests at a moment: `enter()` says whether one more may come in, `leave()` lets it out."""

    def __init__(self, most: int) -> None:
        self.most, self.inside = most, 0

    def enter(self) -> bool:
        free = self.inside < self.most
        self.inside += free
        return free

    def leave(self) -> None:
        self.inside -= 1
