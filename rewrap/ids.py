"""Ids of requests, completions and owners. Imports nothing of the project."""

from hashlib import sha256
from random import Random, SystemRandom

IDS = Random(SystemRandom().getrandbits(256))


def random_hex() -> str:
    """32 hex digits that are nobody's secret, only never the same: 0.3 µs, where asking the system for them was 2."""
    return f"{IDS.getrandbits(128):032x}"


def owner_id(identity: str) -> str:
    """The owner of stored completions for an identity. The store sees no key."""
    kind, _, key = identity.partition(":")
    if kind not in ("key", "open"):
        return identity
    return f"{kind}:{sha256(key.encode('latin-1')).hexdigest()[:32]}"
