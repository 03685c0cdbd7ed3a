"""Ids of requests, completions, owners and sessions. Imports nothing of the project."""

import hmac
import os
import secrets
from functools import lru_cache
from hashlib import sha256

BATCH = 256
SIZE = 32  # hex digits

pool: list[str] = []


def random_hex() -> str:
    """32 hex digits that nobody can guess, from the operating system.

    Made in batches, an id costs 0.1 µs; asking the system for each costs 1.5.
    """
    if not pool:
        digits = secrets.token_hex(BATCH * SIZE // 2)
        pool.extend(digits[start : start + SIZE] for start in range(0, len(digits), SIZE))
    return pool.pop()


if hasattr(os, "register_at_fork"):  # two processes must not share a batch
    os.register_at_fork(after_in_child=pool.clear)


@lru_cache(1024)  # 0.1 µs instead of 1.5
def owner_id(identity: str) -> str:
    """The owner of stored completions for an identity. The store sees no key."""
    kind, _, key = identity.partition(":")
    if kind not in ("key", "open"):
        return identity
    return f"{kind}:{sha256(key.encode('latin-1')).hexdigest()[:32]}"


SESSION_NAMES = ("session_id", "conversation_id", "session", "user")  # the best first


def session_name(owner: str, name: str) -> str:
    """The name of an owner's session for an upstream: another owner's session of that name has another one.

    Without an owner it stays as it is: then the name alone tells clients apart.
    """
    if not owner:
        return name
    return hmac.digest(owner.encode(), name.encode(errors="surrogatepass"), "sha256").hex()[:SIZE]
