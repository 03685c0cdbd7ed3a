"""Signed API keys: the secret is enough to verify one. No store is needed.

    sk-USER-ID.EXPIRES.SIGNATURE        sk-ada%20l-9f86d081884c7d65.1798761600.5994471abb01112a…

USER       percent-encoded UTF-8 (RFC 3986: letters, digits and `-._~` stand as they are), so the key is plain ASCII
ID         16 hex digits, random; a list of them revokes keys
EXPIRES    Unix time in seconds, 0 for never
SIGNATURE  HMAC-SHA256 of everything before its dot, 64 hex digits

A key is compared in its written form and never decoded first, so that no second spelling of a signature passes. Does not
keep keys, count their use, or hide the user's name: every reader of a key can see it. Imports leaf files alone.
"""

import hmac
import math
import os
import secrets as randomness
import sys
import time
from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

from rewrap.regex import regex

if TYPE_CHECKING:
    from argparse import ArgumentParser

KEY = regex(r"(sk-([!-~]+)-([0-9a-f]{16})\.([0-9]{1,12}))\.([0-9a-f]{64})")
KEY_ID = regex(r"[0-9a-fA-F]{16}")
SECONDS_PER_DAY = 86_400


class SignedKey(NamedTuple):
    """A verified key: its user, its id for revoking, and the Unix time in seconds of its end (None: never)."""

    user: str
    id: str
    expires: int | None


def sign(secret: str, user: str, *, days: float | None = None, now: float | None = None) -> str:
    """A new key for `user`, valid for `days` days (None: for ever). `now` is the Unix time in seconds.

    Raises ValueError for an empty secret, an empty user, a user that is not Unicode text, or days not above zero.
    """
    if not secret.strip():
        raise ValueError("A key cannot be signed with an empty secret.")
    if not user.strip():
        raise ValueError("A key needs the name of a user.")
    expires = 0
    if days is not None:
        if not 0 < days < 1e6:
            raise ValueError("A key must be good for more than 0 and less than 1,000,000 days.")
        start = time.time() if now is None else now
        expires = math.ceil(start + days * SECONDS_PER_DAY)
    body = f"sk-{quote(user, safe='')}-{randomness.token_hex(8)}.{expires}"
    return f"{body}.{signature(secret, body)}"


def verify(
    secrets: Sequence[str], key: str, *, revoked: Container[str] = (), now: float | None = None
) -> SignedKey | None:
    """The Key if one of the secrets signed it, and it has neither ended nor been revoked (by its id); else None."""
    match = KEY.fullmatch(key)
    if match is None:
        return None
    body, user, id, expires, signed = match.groups()
    if not is_signed(secrets, body, signed) or id in revoked:
        return None
    end = int(expires) or None
    if end is not None and end <= (time.time() if now is None else now):
        return None
    return SignedKey(unquote(user), id, end)


def is_signed(secrets: Sequence[str], body: str, signed: str) -> bool:
    """Whether one of the secrets signed `body`. An empty secret never does: every client could sign with it."""
    return any(
        hmac.compare_digest(signature(secret, body), signed) for secret in secrets if secret.strip()
    )


def signature(secret: str, body: str) -> str:
    """HMAC-SHA256 in lower-case hex. `hmac.digest` takes a third of the time of `hmac.new`."""
    return hmac.digest(secret.encode(), body.encode(), "sha256").hex()


def revoked_ids(entries: Sequence[str]) -> tuple[str, ...]:
    """The ids in REVOKED_KEYS, which lists ids or whole keys. Raises ValueError, which repeats no key."""
    ids = []
    for number, entry in enumerate(entries, 1):
        key = KEY.fullmatch(entry)
        if key is not None:
            ids.append(key[3])
        elif KEY_ID.fullmatch(entry):
            ids.append(entry.lower())
        else:
            whole = "a whole key (sk-USER-ID.EXPIRES.SIGNATURE)"
            raise ValueError(
                f"REVOKED_KEYS: entry {number} is neither {whole} nor the ID of one (16 hex digits)"
            )
    return tuple(ids)


# The command line.


def save(path: str | os.PathLike[str], key: str, user: str) -> None:
    """Append `KEY  # 'USER'` as one line to a file that only its owner can read, whatever its mode was.

    Raises OSError if the file cannot be written, or belongs to another user. Windows has no such modes.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(file, 0o600)  # before the key is in it
        line = f"{key}  # {user!r}\n".encode()
        os.write(file, line)  # one write: lines of two processes never mix
    finally:
        os.close(file)


def key_command(arguments: Sequence[str], secret_key: Callable[[], Sequence[str]]) -> int:
    """`rewrap key USER [--days N] [--save [FILE]]`: print a new key; the exit status.

    `secret_key` reads the setting. It is called once the arguments are good, and may raise ValueError.
    """
    options = key_parser().parse_args(arguments)
    try:
        secrets = secret_key()
        if not secrets:
            raise ValueError("SECRET_KEY is not set: there is nothing to sign a key with")
        key = sign(secrets[0], options.user, days=options.days)
        if options.save:
            save(options.save, key, options.user)
    except (ValueError, OSError) as error:
        print(f"rewrap: {error}", file=sys.stderr)
        return 1
    print(key)
    return 0


def key_parser() -> "ArgumentParser":
    from argparse import ArgumentParser

    parser = ArgumentParser(
        prog="rewrap key", description="Print a new API key, signed with the first of SECRET_KEY."
    )
    parser.add_argument("user", metavar="USER", help="the owner of the key: any name")
    parser.add_argument(
        "--days", type=float, metavar="N", help="valid for N days; default: for ever"
    )
    parser.add_argument(
        "--save",
        nargs="?",
        const="keys.txt",
        metavar="FILE",
        help="append the key to FILE as well (default: keys.txt)",
    )
    return parser
