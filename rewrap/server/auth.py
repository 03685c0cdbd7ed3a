"""Authentication of a request."""

from hashlib import sha256


def owner_id(who: str) -> str:
    """Whose a stored completion is: the store sees no key."""
    kind, _, key = who.partition(":")
    return (
        f"{kind}:{sha256(key.encode('latin-1')).hexdigest()[:32]}"
        if kind in ("key", "open")
        else who
    )


BEARER = [(b"www-authenticate", b"Bearer")]
