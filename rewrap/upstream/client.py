"""The way out: httpx, and the one place where its failures become ours."""

import asyncio
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import httpx

from rewrap.types import APIError, Reply


class HTTPXReply:
    """A Reply by any httpx transport: a mock in tests, httpx's own for the probe."""

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


class Client(httpx.AsyncClient):
    """httpx's client; where its transport has a shorter way (`exchange`, see extras/transport.py), requests take it.

    Measured: httpx's Request, Response and client are 130 µs of CPU a request; the shorter way is 25.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, connect_timeout: float) -> None:
        timeout = httpx.Timeout(None, connect=connect_timeout, pool=connect_timeout)
        super().__init__(
            transport=transport, timeout=timeout, trust_env=False, follow_redirects=False
        )
        self.direct: Any = transport if hasattr(transport, "exchange") else None

    def target(self, method: str, url: str, headers: Mapping[str, str]) -> Any:
        """What is the same for all requests to a URL, made once."""
        headers = {"accept-encoding": "identity", "user-agent": "rewrap"} | {
            k.lower(): v for k, v in headers.items()
        }
        if (user := httpx.URL(url).userinfo) and "authorization" not in headers:
            headers["authorization"] = f"Basic {b64encode(unquote_to_bytes(user)).decode()}"
        if self.direct:
            return self.direct.target(method, httpx.URL(url), headers)
        return method, url, headers

    async def ask(
        self, target: Any, extra: Mapping[str, str], body: bytes, deadline: float
    ) -> Reply:
        if self.direct:
            lines = (
                "".join(f"{name}: {value}\r\n" for name, value in extra.items()) if extra else ""
            )
            reply: Reply = await self.direct.exchange(
                target, lines.encode("latin-1"), body, deadline
            )
            return reply
        method, url, headers = target
        request = self.build_request(method, url, headers=headers | dict(extra), content=body)
        async with asyncio.timeout_at(deadline):
            return HTTPXReply(await self.send(request, stream=True), deadline)


UPSTREAM_ERRORS = (httpx.HTTPError, TimeoutError, ValueError)


def upstream_error(exc: Exception, failure_status: int = 502) -> APIError:
    """The one place where an upstream's failure, one of UPSTREAM_ERRORS, becomes an APIError of ours.

    Its own words may hold secrets: the client gets ours, and the log the name of the exception.
    """
    if isinstance(exc, httpx.PoolTimeout):
        again = [(b"retry-after", b"1")]
        return APIError(
            503, "All connections to the chat backend are busy.", type="server_error", headers=again
        )
    if isinstance(exc, (httpx.TimeoutException, TimeoutError)):
        return APIError(
            504, TOO_SLOW, type="upstream_error", code="timeout", reason=type(exc).__name__
        )
    return bad_gateway(FAILED, type(exc).__name__, failure_status)


def bad_gateway(message: str, reason: str, failure_status: int = 502) -> APIError:
    return APIError(
        failure_status, message, type="upstream_error", code="bad_gateway", reason=reason
    )


FAILED = "The chat backend failed to answer."
TOO_LARGE = "The chat backend's answer is too large."
TOO_SLOW = "The chat backend did not answer in time."
