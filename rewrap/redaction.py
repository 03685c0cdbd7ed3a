"""Takes secrets out of upstream errors and log lines: known ones, and texts that look like keys.

Every pattern costs time linear in the text. Imports leaf files alone.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote_to_bytes

import httpx

from rewrap.regex import regex

MIN_SECRET_CHARACTERS = 6  # shorter texts are words: only the key itself may be shorter
LOGGED_BYTES = 100_000
LOGGED_CHARACTERS = 10_000

URL_OR_KEY = regex(r"https?://\S+|(?<![\w-])(?:sk|pk|key)[-_][\w*.…-]{8,}|\bBearer\s+\S+")
NAMED_SECRET = regex(
    r"((?:api[_-]?key|authorization|password|secret|token)"
    r"\\*[\"']?\s*[:=]\s*\\*[\"']?(?:Bearer\s+)?"
    r"|\bBearer\s+)[^\"',\s]{4,}"
    r"|\b[sp]k-[\w.-]{6,}",
    re.IGNORECASE,
)
LONG_NAMES = regex(r"(?<=/)(?=[^/]*[0-9])[^/]{16,}")  # in a path: they may be keys
SEPARATORS = regex(r"[\s;=,]+")


def secrets_in(url: str, key: str, headers: Mapping[str, str]) -> list[str]:
    """The texts of a backend's configuration that no client may see, the longest first.

    They are the key and the parts of the URL and the headers, each also in Base64 and quoted.
    """
    address = httpx.URL(url)
    plain = [
        url,
        key,
        address.netloc.decode(),
        address.raw_path.decode(),
        address.password,
        address.userinfo.decode(),
        b64encode(unquote_to_bytes(address.userinfo)).decode(),
    ]
    plain += [value for _, value in address.params.multi_items()]
    for value in headers.values():
        plain.append(value)
        plain += SEPARATORS.split(value)
    encoded = [b64encode(text.encode()).decode().rstrip("=") for text in plain]
    quoted = [quote(text, "") for text in plain]
    found = {text for text in plain + encoded + quoted if len(text) >= MIN_SECRET_CHARACTERS}
    if key:
        found.add(key)
    return sorted(found, key=len, reverse=True)


def redacted(text: str, secrets: Iterable[str]) -> str:
    """A text of an upstream without these secrets, texts that look like keys, and URLs."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return URL_OR_KEY.sub("***", text)


def safe_address(url: str) -> str:
    """An address without the parts that may be keys: user, query, fragment, long path names."""
    address = httpx.URL(url)
    path = LONG_NAMES.sub("***", address.path)
    return f"{address.scheme}://{address.netloc.decode()}{path}"


def masked(key: str) -> str:
    """The ends of a key, as OpenAI's errors show it."""
    if len(key) < 16:
        return "****"
    return f"{key[:3]}****{key[-4:]}"


def loggable(body: bytes, secrets: Iterable[str]) -> str:
    """A payload for the debug log: bounded, secrets masked, control characters escaped."""
    text = body[:LOGGED_BYTES].decode("utf-8", "replace")
    for secret in secrets:
        text = text.replace(secret, "****")
    # Cut after masking: a cut before it could leave half a key, which no pattern finds.
    text = NAMED_SECRET.sub(r"\1****", text)[:LOGGED_CHARACTERS]
    if text.isprintable():
        return text
    return text.encode("unicode_escape").decode("ascii")
