"""Host names and paths. Imports nothing of the project."""

import re
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

LOOPBACK = frozenset(["127.0.0.1", "localhost", "::1", "[::1]", "ip6-localhost"])
OF_THIS_MACHINE = (
    ".localhost",
    ".docker.internal",
    ".containers.internal",
)  # no page on the net can have such a name
PORT = re.compile(r":\d*\Z")
IPV6 = re.compile(r"[0-9A-Fa-f]*:.*:")  # without the brackets that it has in a URL


def host_name(host: str) -> str:
    """Of a Host: in lower case, without its port."""
    return PORT.sub("", host).lower()


def is_loopback(host: str) -> bool:
    """Whether a name or an address is of this machine alone."""
    try:
        address: Any = ip_address(host[1:-1] if host[:1] == "[" else host)
    except ValueError:
        return host in LOOPBACK
    return bool(
        (getattr(address, "ipv4_mapped", None) or address).is_loopback
    )  # one socket may take both


on_loopback = lru_cache(64)(is_loopback)  # of our own addresses: there are few


def normal_path(path: str) -> str:
    """`/v1/models`, `//v1/models`, `/v1/v1/models/` and `/models` are one; so is Azure's `/openai/v1`."""
    path = re.sub(r"/{2,}", "/", path)
    path = re.sub(r"^(?:/openai)?(?:/v1)+(?=/|$)", "", path)
    return path.rstrip("/") or "/"


NORMAL = {
    f"{prefix}{path}": path
    for prefix in ("", "/v1")
    for path in ("/chat/completions", "/models", "/ask")
}
