"""Ids of requests, completions and owners. Imports nothing of the project."""

import os
import secrets
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


def owner_id(identity: str) -> str:
    """The owner of stored completions for an identity. The store sees no key."""
    kind, _, key = identity.partition(":")
    if kind not in ("key", "open"):
        return identity
    return f"{kind}:{sha256(key.encode('latin-1')).hexdigest()[:32]}"
