"""Signed API keys: whoever holds the secret can check one, without any store.

    sk-USER-ID.EXPIRES.SIGNATURE        sk-ada%20l-9f86d081884c7d65.1798761600.5994471abb01112a…

USER       percent-encoded UTF-8 (RFC 3986: letters, digits and `-._~` stand as they are), so the key is plain ASCII
ID         16 hex digits, random; a list of them revokes keys
EXPIRES    Unix time in seconds, 0 for never
SIGNATURE  HMAC-SHA256 of all that stands before its dot, 64 hex digits

A key is compared as it is written, never decoded first: base64's spare bits and the two cases of hex have no second
spelling that would pass. Does not keep keys, nor count their use, nor hide the user's name: anybody can read it.
"""

import argparse
import hmac
import math
import os
import re
import secrets as randomness
import sys
import time
from collections.abc import Container, Sequence
from typing import NamedTuple
from urllib.parse import quote, unquote

SHAPE = re.compile(r"(sk-([!-~]+)-([0-9a-f]{16})\.([0-9]{1,12}))\.([0-9a-f]{64})")


class Key(NamedTuple):
    """Whose key it is, its id for revoking, and the Unix time in seconds when it ends (None: never)."""

    user: str
    id: str
    expires: int | None


def sign(secret: str, user: str, *, days: float | None = None, now: float | None = None) -> str:
    """A new key for `user`, good for `days` days (None: for ever); `now` is the Unix time in seconds.

    Raises ValueError for an empty secret, an empty user, a user that is not Unicode text, or days not above zero.
    """
    if not secret.strip():
        raise ValueError("A key cannot be signed with an empty secret.")
    if not user.strip():
        raise ValueError("A key needs the name of a user.")
    if days is not None and not 0 < days < 1e6:
        raise ValueError("A key must be good for more than 0 and less than 1,000,000 days.")
    expires = (
        0 if days is None else math.ceil((time.time() if now is None else now) + days * 86_400)
    )
    body = f"sk-{quote(user, safe='')}-{randomness.token_hex(8)}.{expires}"
    return f"{body}.{signature(secret, body)}"


def verify(
    secrets: Sequence[str], key: str, *, revoked: Container[str] = (), now: float | None = None
) -> Key | None:
    """The Key, if one of the secrets signed it and it has neither ended nor been revoked (by its id); else None."""
    shape = SHAPE.fullmatch(key)
    if not shape:
        return None
    body, user, id, expires, signed = shape.groups()
    # An empty entry in the list of secrets would let anybody sign: it never verifies.
    if not any(
        hmac.compare_digest(signature(secret, body), signed) for secret in secrets if secret.strip()
    ):
        return None
    ends = int(expires) or None
    if id in revoked or (ends and ends <= (time.time() if now is None else now)):
        return None
    return Key(unquote(user) if "%" in user else user, id, ends)


def revoked_ids(entries: Sequence[str]) -> tuple[str, ...]:
    """The ids of what REVOKED_KEYS lists: ids, or whole keys. Raises ValueError, which repeats no key."""
    ids = []
    for number, entry in enumerate(entries, 1):
        key = SHAPE.fullmatch(entry)
        if not key and not re.fullmatch(r"[0-9a-fA-F]{16}", entry):
            whole = "a whole key (sk-USER-ID.EXPIRES.SIGNATURE)"
            raise ValueError(
                f"REVOKED_KEYS: entry {number} is neither {whole} nor the ID of one (16 hex digits)"
            )
        ids.append(key[3] if key else entry.lower())
    return tuple(ids)


def signature(secret: str, body: str) -> str:
    """HMAC-SHA256 in lower-case hex; `hmac.digest` is a third of the price of `hmac.new`."""
    return hmac.digest(secret.encode(), body.encode(), "sha256").hex()


def save(path: str | os.PathLike[str], key: str, user: str) -> None:
    """Append `KEY  # 'USER'` as one line to a file that its owner alone can read, whatever rights it had before.

    Raises OSError where the file cannot be written, or belongs to somebody else.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.fchmod(file, 0o600)  # before the key is in it
        os.write(
            file, f"{key}  # {user!r}\n".encode()
        )  # one write: lines of two processes never mix
    finally:
        os.close(file)


def key_command(arguments: Sequence[str], secret_keys: Sequence[str]) -> int:
    """`key USER [--days N] [--save [FILE]]`: print a new key; the exit code."""
    parser = argparse.ArgumentParser(
        prog="key", description="Print a new key, signed with the first of SECRET_KEY."
    )
    parser.add_argument("user", help="whose key it is: any name")
    parser.add_argument("--days", type=float, help="for how long it is good; without it, for ever")
    parser.add_argument(
        "--save",
        nargs="?",
        const="keys.txt",
        metavar="FILE",
        help="append it to a file, keys.txt, too",
    )
    asked = parser.parse_args(arguments)
    if not secret_keys:
        print("rewrap: SECRET_KEY is not set: there is nothing to sign a key with", file=sys.stderr)
        return 1
    try:
        key = sign(secret_keys[0], asked.user, days=asked.days)
        if asked.save:
            save(asked.save, key, asked.user)
    except (ValueError, OSError) as error:
        print(f"rewrap: {error}", file=sys.stderr)
        return 1
    print(key)
    return 0
