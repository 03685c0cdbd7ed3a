"""Checks of URLs, hosts and headers. Imports leaf files alone."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import httpx

from rewrap.regex import regex

# A name or an IPv6 address, as httpx writes them.
HOST = regex(r"[\w.-]+|[0-9a-f:.]+(?:%[\w.-]+)?")
HEADER_NAME = regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
HEADER_VALUE = regex(r"[\t\x20-\x7e\x80-\xff]*")
WEBSOCKET = "a WebSocket URL needs a function backend: see examples/websocket_backend.py"
LOOPBACK = frozenset(["127.0.0.1", "localhost", "::1", "[::1]", "ip6-localhost"])


def check_url(url: str, where: str) -> None:
    """Raises ValueError if no request can be sent to `url`.

    The message does not repeat the URL, which may contain a key.
    """
    if url.lower().startswith(("ws://", "wss://")):
        raise ValueError(f"{where}: {WEBSOCKET}")
    if not is_url(url):
        raise ValueError(
            f"{where} must begin with http:// or https:// and name a host, with a port from 1 to"
            " 65535 if it has one; control characters and comments are not allowed"
        )


def is_url(url: str) -> bool:
    try:
        address = httpx.URL(url)
        host = address.raw_host.decode("ascii")
        host.encode("idna")  # as the resolver gets it: no label is empty or too long
    except (httpx.InvalidURL, UnicodeError):
        return False
    if address.scheme not in ("http", "https") or not HOST.fullmatch(host):
        return False
    if address.port is not None and not 0 < address.port < 65536:
        return False
    return " #" not in url


def is_header(name: str, value: object) -> bool:
    """Whether HTTP can carry this name and value."""
    if not isinstance(value, str):
        return False
    return bool(HEADER_NAME.fullmatch(name) and HEADER_VALUE.fullmatch(value))


def is_loopback(host: str) -> bool:
    """Whether a name or an address belongs to this machine alone."""
    text = host[1:-1] if host.startswith("[") else host
    try:
        address: IPv4Address | IPv6Address = ip_address(text)
    except ValueError:
        return host in LOOPBACK
    if isinstance(address, IPv6Address) and address.ipv4_mapped:  # one socket may take both
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
