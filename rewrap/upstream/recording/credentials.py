"""Credentials of an exchange, which no recording contains.

Only known credentials are taken out: the keys of the configuration, and those of a request's URL and
headers and of an answer's cookies. A text that merely looks like a key stays. Knows no files.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from itertools import accumulate
from urllib.parse import quote, unquote_to_bytes

import httpx

from rewrap.redaction import SEPARATORS

MIN_CHARACTERS = 8  # shorter keys are words such as "ollama", which stand in other texts, too
MASK = "***"
NAME = re.compile(
    r"auth|key|token|secret|passw|pwd|cookie|session|credential|signature|^sig$|^code$",
    re.IGNORECASE,
)
# Letters and digits mixed without a separator, or very many of them: a key, not a model's name.
KEY_LIKE = re.compile(
    r"(?<![A-Za-z0-9])(?:(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{8,}|[A-Za-z0-9]{24,})"
)
MODEL_PARENTS = ("models", "model", "deployments", "engines", "run")  # the next name is a model's
PUBLIC_HEADERS = frozenset(
    ["accept", "accept-encoding", "content-type", "host", "http-referer", "user-agent", "x-title"]
)
SET_COOKIE = re.compile(r"(?:^|,)\s*[^=;,\s]+=([^;,]*)")
SCHEMES = ("bearer", "basic", "token", "digest", "apikey", "api-key")


def request_credentials(url: str, headers: Mapping[str, str]) -> list[str]:
    """The credentials in a request's URL and headers."""
    address = httpx.URL(url)
    found = [address.username, address.password, address.userinfo.decode()]
    found.append(b64encode(unquote_to_bytes(address.userinfo)).decode())
    found += [value for name, value in address.params.multi_items() if is_credential(name, value)]
    found += [name for name in secret_path_names(address.path) if name]
    for header, value in headers.items():
        found += header_credentials(header.lower(), value)
    return found


def header_credentials(name: str, value: str) -> list[str]:
    """The credentials in a header of a request, or in `set-cookie`. `name` is in lower case."""
    if name == "set-cookie":  # of several ones, joined by commas
        return [match[1].strip() for match in SET_COOKIE.finditer(value)]
    if name == "cookie":
        return [pair.partition("=")[2].strip() for pair in value.split(";")]
    if name in PUBLIC_HEADERS or not is_credential(name, value):
        return []
    words = [word for word in SEPARATORS.split(value) if word.lower() not in SCHEMES]
    return [value, *words]


def is_credential(name: str, value: str) -> bool:
    """Whether a value is secret by its name, or looks like a key."""
    return bool(NAME.search(name) or (KEY_LIKE.search(value) and not SEPARATORS.search(value)))


def secret_path_names(path: str) -> list[str]:
    """The names in a path that look like keys; "" in the place of each other name."""
    names = path.split("/")
    parents = ["", *names]
    return [
        name if KEY_LIKE.search(name) and parent not in MODEL_PARENTS else ""
        for parent, name in zip(parents, names, strict=False)
    ]


def recordable_path(url: str) -> str:
    """The path and query of a URL, with masks for credentials, without a slash at its end."""
    address = httpx.URL(url)
    names = address.path.split("/")
    secrets = secret_path_names(address.path)
    shown = [MASK if secret else name for name, secret in zip(names, secrets, strict=True)]
    path = "/".join(shown).rstrip("/") or "/"
    query = [
        f"{name}={MASK if is_credential(name, value) else quote(value)}"
        for name, value in address.params.multi_items()
    ]
    return f"{path}?{'&'.join(query)}" if query else path


def all_forms(credentials: Iterable[str]) -> list[bytes]:
    """Credentials as they may stand in a body, the longest first: plain, in JSON, Base64 and URLs."""
    forms: set[bytes] = set()
    for text in credentials:
        if len(text) < MIN_CHARACTERS:
            continue
        in_json = json.dumps(text)[1:-1]
        encoded = b64encode(text.encode()).decode().rstrip("=")
        written = [text, in_json, in_json.replace("/", "\\/"), quote(text, ""), encoded]
        forms.update(form.encode() for form in written)
    return sorted(forms, key=lambda form: (-len(form), form))


def without(data: bytes, forms: Iterable[bytes]) -> bytes:
    for form in forms:
        data = data.replace(form, MASK.encode())
    return data


def pieces_without(pieces: list[bytes], forms: Iterable[bytes]) -> list[bytes]:
    """Pieces without these credentials, also those that stand in several pieces."""
    whole = b"".join(pieces)
    found = [form for form in forms if form in whole]
    if not found:
        return pieces
    ends = list(accumulate(map(len, pieces)))
    for form in found:
        whole, ends = cut_out(whole, ends, form)
    starts = [0, *ends[:-1]]
    return [whole[start:end] for start, end in zip(starts, ends, strict=True)]


def cut_out(data: bytes, ends: list[int], form: bytes) -> tuple[bytes, list[int]]:
    """Data with masks for each `form`, and the ends of its pieces: a mask is in the piece of its start."""
    parts = data.split(form)
    moved: list[int] = []
    position = len(parts[0])  # of the next `form` in `data`
    number = 0  # of masks before
    change = len(MASK) - len(form)
    for end in ends:
        while number < len(parts) - 1 and position < end:
            number += 1
            position += len(form) + len(parts[number])
        start = position - len(parts[number])  # behind the last mask, in `data`
        moved.append((end if number == 0 else max(end, start)) + number * change)
    return MASK.encode().join(parts), moved
