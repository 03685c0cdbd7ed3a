"""Checks of addresses and headers. Imports nothing of the project."""

import re
from typing import Any

import httpx

HOST = re.compile(
    r"[\w.-]+|[0-9a-f:.]+(?:%[\w.-]+)?"
)  # a name or an IPv6 address, as httpx writes them


def check_url(url: str, where: str) -> None:
    """Raises ValueError where no request can go to `url`, in a line that does not repeat it: keys may stand in it."""
    try:
        address = httpx.URL(url)
        host, port = address.raw_host.decode("ascii"), 80 if address.port is None else address.port
        host.encode("idna")  # as it is looked up: no label is empty, or too long
    except (httpx.InvalidURL, UnicodeError):
        address, host, port = httpx.URL(), "", 0
    if (
        address.scheme not in ("http", "https")
        or not HOST.fullmatch(host)
        or not 0 < port < 65536
        or " #" in url
    ):
        parts = "name a host (and a port from 1 to 65535, if any), and have no control characters, and no comment"
        raise ValueError(f"{where} must begin with http:// or https://, {parts}")


def is_header(name: str, value: Any) -> bool:
    """A name and a value that HTTP can carry."""
    named = re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
    return (
        bool(named)
        and isinstance(value, str)
        and re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value) is not None
    )
