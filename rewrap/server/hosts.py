"""The Host header, the path of a request, and the client's address behind proxies. Imports leaf files alone."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from starlette.types import Scope

from rewrap.regex import regex
from rewrap.urls import is_loopback

LOCAL_SUFFIXES = (
    ".localhost",
    ".docker.internal",
    ".containers.internal",
)  # no page can have such a name
PORT = regex(r":\d*\Z")
IPV6 = regex(r"[0-9A-Fa-f]*:.*:")  # without the brackets that it has in a URL
KNOWN_HOSTS = 100
FORWARDED = frozenset([b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"])  # by a proxy


class HostCheck:
    """Accepts the hosts of this machine, and those that ALLOWED_HOSTS names.

    It guards against DNS rebinding: a web page whose name resolves to a loopback address. Without ALLOWED_HOSTS, only
    requests to a loopback address are checked.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        self.allowed = {host_name(f"[{host}]" if IPV6.match(host) else host) for host in allowed}
        self.known: set[bytes] = set()  # accepted before

    def accepts(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        """`headers`: those of the scope, by name."""
        host = headers.get(b"host", b"")
        repeated = len(headers) != len(scope["headers"])
        if host in self.known and not repeated:
            return True
        server = scope.get("server")
        if not self.allowed and (server is None or not is_own_loopback(server[0])):
            return True
        if repeated and [name for name, _ in scope["headers"]].count(b"host") > 1:
            return "*" in self.allowed  # it is not clear which one is meant
        if host in self.known:
            return True
        name = host_name(host.decode("latin-1"))
        local = is_loopback(name) or name.endswith(LOCAL_SUFFIXES)
        if not local and name not in self.allowed and "*" not in self.allowed:
            return False
        if len(self.known) < KNOWN_HOSTS:
            self.known.add(host)
        return True


def host_name(host: str) -> str:
    """A Host in lower case, without its port."""
    return PORT.sub("", host).lower()


is_own_loopback = lru_cache(64)(is_loopback)  # a server has few addresses


def is_local(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Whether the client is on this machine, and no proxy is between. `headers`: those of the scope, by name."""
    server = scope.get("server")
    client = scope.get("client")
    if server is None or client is None or not FORWARDED.isdisjoint(headers):
        return False
    return is_own_loopback(server[0]) and is_loopback(client[0])


def forwarded_address(headers: Iterable[tuple[bytes, bytes]], hops: int) -> str:
    """The client's address in X-Forwarded-For, which each of `hops` proxies extends; "" without the header.

    The entries before are the client's to write. A chain that is shorter than expected came past some of the proxies: then
    its first entry is the client.
    """
    values = [value for name, value in headers if name == b"x-forwarded-for"]
    if not values:
        return ""
    entries = b",".join(values).rsplit(b",", hops)
    last = entries[-hops:]
    return without_port(last[0].strip().decode("latin-1"))


def without_port(address: str) -> str:
    """`1.2.3.4:5` and `[::1]:5` without the port."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    if address.count(":") == 1:
        return address.partition(":")[0]
    return address


def normal_path(path: str) -> str:
    """One spelling of a path: `/v1/models`, `//v1/models`, `/v1/v1/models/`, `/openai/v1/models` give `/models`.

    Azure's clients put a deployment into the paths of some APIs, and send others, such as Responses, to `/openai/responses`.
    """
    path = re.sub(r"/{2,}", "/", path)
    path = PREFIX.sub("", path)
    return path.rstrip("/") or "/"


PREFIX = regex(r"^(?:/openai(?=/)(?!/deployments/))?(?:/v1)*(?=/|$)")


# The most frequent paths, looked up instead of computed: 2 µs.
NORMAL = {
    f"{prefix}{path}": path
    for prefix in ("", "/v1")
    for path in ("/chat/completions", "/models", "/ask")
}
