"""The httpx client of the upstreams.

A transport with an `exchange` method (pool.py) is called directly. Any other httpx transport works too: a mock in tests,
httpx's own for the probe. Does not know chats, shapes or errors for clients.
"""

import asyncio
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from urllib.parse import unquote_to_bytes

import httpx

from rewrap import __version__
from rewrap.regex import regex
from rewrap.structs import struct
from rewrap.types import ChatRequest, JSONObject, Reply, ResponseInfo

if TYPE_CHECKING:
    from rewrap.upstream.recording.setup import ClientSettings

USER_AGENT = f"rewrap/{__version__}"
# Carries requests: the pool of this project, or a mock of httpx.
AsyncTransport = httpx.AsyncBaseTransport
UNPRINTABLE = regex(r"[^ -~]")
LIST_CHARACTERS = 1000
ACCEPT_ENCODING = {"accept-encoding": "identity"}


@runtime_checkable
class DirectTransport(Protocol):
    """A transport that takes requests without httpx's Request and Response."""

    def target(self, method: str, url: httpx.URL, headers: Mapping[str, str]) -> object:
        """The constant part of requests to a URL. Raises httpx.HTTPError."""

    async def exchange(
        self, target: object, header_lines: bytes, body: bytes, deadline: float
    ) -> Reply:
        """Send a request and wait for the head of the answer. Raises httpx.HTTPError, TimeoutError."""


@struct(frozen=True, slots=True)
class HTTPXTarget:
    """The constant part of requests to a URL, for httpx."""

    method: str
    url: str
    headers: dict[str, str]


class HTTPXReply:
    """A Reply on an httpx response."""

    def __init__(self, response: httpx.Response, deadline: float) -> None:
        self.status = response.status_code
        self.headers = {name.lower(): value for name, value in response.headers.raw}
        self.deadline = deadline
        self.response = response
        self.pieces = response.aiter_bytes()

    async def read(self) -> bytes:
        async with asyncio.timeout_at(self.deadline):
            async for piece in self.pieces:
                if piece:
                    return piece
            return b""

    def linger(self) -> None:
        pass

    async def aclose(self) -> None:
        await self.response.aclose()


class RequestJournal(Protocol):
    """Notes the requests that recordings answer."""

    def on_reset(self, callback: Callable[[], None]) -> None:
        """Call this function when everything starts again."""

    def begin(self, request: ChatRequest, info: ResponseInfo) -> None:
        """Note a chat on its arrival. Its upstream is asked next, in the same task."""

    def answered(
        self,
        *,
        path: str,
        model: str,
        messages: list[JSONObject],
        recording: str,
        difference: str,
        status: int,
    ) -> None:
        """`recording` is the name of a file, "" if none answers; `difference` from the request."""


class Client(httpx.AsyncClient):
    """httpx's client, with a direct way to transports that have one.

    httpx's Request, Response and client cost 130 µs of CPU a request; the direct way costs 25.
    """

    journal: RequestJournal | None = None  # of REPLAY
    takes_whole_requests = False  # also those without a body, and uploads

    def __init__(self, transport: httpx.AsyncBaseTransport, connect_timeout: float) -> None:
        """`connect_timeout` is in seconds."""
        super().__init__(
            transport=transport,
            timeout=httpx.Timeout(None, connect=connect_timeout, pool=connect_timeout),
            trust_env=False,
            follow_redirects=False,
        )
        self.direct = transport if isinstance(transport, DirectTransport) else None

    def keep_journal(self, journal: RequestJournal) -> None:
        self.journal = journal

    def target(self, method: str, url: str, headers: Mapping[str, str]) -> object:
        """The constant part of all requests to a URL: made once. Raises httpx.InvalidURL, httpx.HTTPError."""
        lower = {name.lower(): value for name, value in headers.items()}
        merged = ACCEPT_ENCODING | lower
        address = httpx.URL(url)
        if address.userinfo and "authorization" not in merged:
            credentials = b64encode(unquote_to_bytes(address.userinfo)).decode()
            merged["authorization"] = f"Basic {credentials}"
        if self.direct is not None:
            return self.direct.target(method, address, merged)
        return HTTPXTarget(method, url, merged)

    async def ask(
        self, target: object, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> Reply:
        """Send a request and wait for the head of its answer, until `deadline` (loop time).

        Raises httpx.HTTPError, TimeoutError.
        """
        if self.direct is not None:
            lines = header_lines(headers) if headers else b""
            return await self.direct.exchange(target, lines, body, deadline)
        assert isinstance(target, HTTPXTarget)
        request = self.build_request(
            target.method, target.url, headers=target.headers | dict(headers), content=body
        )
        async with asyncio.timeout_at(deadline):
            return HTTPXReply(await self.send(request, stream=True), deadline)


def upstream_client(settings: "ClientSettings", transport: httpx.AsyncBaseTransport) -> Client:
    """The client of all upstreams. Raises ValueError, in one line that names the setting."""
    if not settings.record and not settings.replay:
        return Client(transport, settings.connect_timeout_seconds)
    from rewrap.upstream.recording.setup import recording_client

    return recording_client(settings, transport)


def slash_redirect(url: str, status: int, headers: Mapping[bytes, bytes]) -> str:
    """The address that a 307 or 308 names, if it differs from `url` by a last slash alone; else ""."""
    if status not in (307, 308):
        return ""
    try:
        location = httpx.URL(url).join(headers.get(b"location", b"").decode("ascii"))
    except (ValueError, httpx.InvalidURL):
        return ""
    here = httpx.URL(url)
    same_path = location.path.rstrip("/") == here.path.rstrip("/")
    if not same_path or location.copy_with(path="/") != here.copy_with(path="/"):
        return ""
    return str(location)


def header_list(names: Sequence[str]) -> bytes:
    """Names for a header. They are the client's: bounded and printable."""
    return UNPRINTABLE.sub("?", ", ".join(names))[:LIST_CHARACTERS].encode()


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Headers as they stand in an HTTP/1.1 head."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
