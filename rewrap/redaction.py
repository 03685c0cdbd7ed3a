"""What nobody is to read: secrets in the words of upstreams, and in what is logged.

Finds those that are known, and what looks like one. Imports nothing of ours.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote_to_bytes

import httpx


def secrets_in(url: str, key: str, headers: Mapping[str, str]) -> list[str]:
    """What an upstream might repeat, and no client may see: keys, parts of headers, the address and what stands in it."""
    address = httpx.URL(url)
    user = unquote_to_bytes(address.userinfo)
    known = [
        url,
        key,
        address.netloc.decode(),
        address.raw_path.decode(),
        address.password,
        address.userinfo.decode(),
    ]
    known += [b64encode(user).decode(), *(value for _, value in address.params.multi_items())]
    known += [part for value in headers.values() for part in (value, *re.split(r"[\s;=,]+", value))]
    known += [b64encode(text.encode()).decode().rstrip("=") for text in known] + [
        quote(text, "") for text in known
    ]
    return sorted(
        {text for text in known if len(text) > 5 or (key and text == key)}, key=len, reverse=True
    )


def redacted(text: str, secrets: Iterable[str]) -> str:
    """An upstream's words without these secrets, what looks like one, or an address."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return KEYLIKE.sub("***", text)


KEYLIKE = re.compile(r"https?://\S+|(?<![\w-])(?:sk|pk|key)[-_][\w*.…-]{8,}|\bBearer\s+\S+")


def safe_address(url: str) -> str:
    """An address without parts that may be keys: user, query, fragment, long names in a path."""
    address = httpx.URL(url)
    path = re.sub(r"(?<=/)(?=[^/]*[0-9])[^/]{16,}", "***", address.path)
    return f"{address.scheme}://{address.netloc.decode()}{path}"


def masked(key: str) -> str:
    return f"{key[:3]}****{key[-4:]}" if len(key) >= 16 else "****"


def loggable(body: bytes, secrets: list[str]) -> str:
    """A payload for the debug log: keys masked, control characters escaped, bounded."""
    text = body[:100_000].decode("utf-8", "replace")
    for secret in secrets:
        text = text.replace(secret, "****")
    text = SECRET.sub(r"\1****", text)[:10_000]  # masked before it is cut: half a key is one, too
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


SECRET = re.compile(
    r"""((?:api[_-]?key|authorization|password|secret|token)\\*["']?\s*[:=]\s*\\*["']?(?:Bearer\s+)?|\bBearer\s+)[^"',\s]{4,}|\b[sp]k-[\w.-]{6,}""",
    re.IGNORECASE,
)
