"""Requests that go to an OpenAI-compatible upstream as they are, and its answers, byte for byte.

A JSON body comes whole and takes the pool, which keeps connections and repeats a request that met a
closed one. Any other body is streamed by httpx's own transport, on a connection of its own: a
streamed request cannot be repeated. Uploads and downloads wait for each other's reader, so that a
body of any size needs little memory.

Only listed headers pass, in both directions. So hop-by-hop headers, cookies, CORS headers and private
headers of an upstream never do. Knows no Starlette.
"""

import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Protocol
from urllib.parse import quote, unquote_to_bytes

import httpx
import orjson

from rewrap.eventloop import running_loop
from rewrap.regex import regex
from rewrap.types import (
    APIError,
    Backend,
    Headers,
    Limits,
    NoEndpoint,
    PassedAnswer,
    PassedReply,
    PassedRequest,
    Reply,
    Shape,
    UpstreamRejection,
)
from rewrap.upstream.answers import read_rejection
from rewrap.upstream.client import Client, DirectTransport
from rewrap.upstream.errors import (
    FORWARDABLE_NAMES,
    REDIRECTED,
    UPSTREAM_ERRORS,
    configuration_error,
    upstream_error,
)

# Headers of a request that describe its body and its conditions.
REQUEST_NAMES = (
    b"accept",
    b"accept-language",
    b"content-digest",
    b"content-encoding",
    b"content-length",
    b"content-md5",
    b"content-type",
    b"if-match",
    b"if-modified-since",
    b"if-none-match",
    b"if-range",
    b"if-unmodified-since",
    b"openai-beta",
    b"range",
)
REPLY_NAMES = FORWARDABLE_NAMES | {
    b"accept-ranges",
    b"cache-control",
    b"content-digest",
    b"content-disposition",
    b"content-encoding",
    b"content-language",
    b"content-length",
    b"content-md5",
    b"content-range",
    b"content-type",
    b"etag",
    b"expires",
    b"last-modified",
    b"openai-model",
}
NOT_MODIFIED = 304
PATH_CHARACTERS = "/:@!$&'()*+,;=~"
ABSENT = frozenset([404, 405, 501])  # the statuses of an upstream without an endpoint
ABOUT_OBJECT = regex(
    r"\b(?:model|response|item|conversation)\b.{0,300}\bnot (?:exist|found)", re.IGNORECASE
)


class Provider(Backend, Protocol):
    """An OpenAI-compatible backend: its address, its credentials and its bounds."""

    client: Client
    shape: Shape
    api_base: httpx.URL
    responses: str  # native, translate or auto: see native_responses.py
    fixed_headers: dict[str, str]  # our own key for it, and the headers of the configuration
    limits: Limits
    failure_status: int

    def headers_from(self, client_headers: Mapping[str, str]) -> dict[str, str]:
        """The client's own headers that go there."""

    def upstream_model(self, model: str) -> str:
        """The upstream's name of a model."""

    def rejection_error(self, rejection: UpstreamRejection, headers: Mapping[str, str]) -> APIError:
        """The client's error for the upstream's."""


class StreamedBody(httpx.AsyncByteStream):
    """A request's body while it arrives."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self.pieces:
            yield piece


class RawReply:
    """A Reply on an httpx response. Its bytes keep the upstream's content-encoding."""

    def __init__(self, response: httpx.Response, deadline: float) -> None:
        self.status = response.status_code
        self.headers = {name.lower(): value for name, value in response.headers.raw}
        self.deadline = deadline
        self.response = response
        failed = response.status_code >= 400  # an error is read here
        self.pieces = response.aiter_bytes() if failed else response.aiter_raw()

    async def read(self) -> bytes:
        async for piece in self.pieces:
            if piece:
                return piece
        return b""

    def linger(self) -> None:
        pass

    async def aclose(self) -> None:
        await self.response.aclose()


class PassThrough:
    """The way to the OpenAI-compatible backends for requests that are not translated."""

    def __init__(
        self,
        providers: Sequence[Provider],
        pick: Callable[[str], Backend],
        make_transport: Callable[[], httpx.AsyncBaseTransport],
        max_connections: int,
        connect_timeout: float,
    ) -> None:
        """`pick` gives the backend of a model, and raises APIError if none has it. `connect_timeout` is in seconds."""
        self.providers = providers
        self.pick = pick
        self.make_transport = make_transport
        self.transport: httpx.AsyncBaseTransport | None = None
        self.max_connections = max_connections
        self.connect_timeout = connect_timeout
        self.open = 0  # connections of streamed bodies

    def provider(self, model: str) -> Provider | None:
        """The backend of a model if it is OpenAI-compatible; without a model, the first that is.

        Raises APIError if no backend has the model.
        """
        if not model:
            return next(iter(self.providers), None)
        picked = self.pick(model)
        return next((provider for provider in self.providers if provider is picked), None)

    def find(self, request: PassedRequest) -> PassedAnswer | None:
        """`answer` of the backend that has the request's model; None if it is of another kind.

        Raises APIError if no backend has the model.
        """
        provider = self.provider(named_model(request))
        return None if provider is None else partial(self.answer, provider)

    def by_model(self, request: PassedRequest) -> AbstractAsyncContextManager[PassedReply]:
        """The answer of the backend that has the request's model. Raises APIError."""
        answer = self.find(request)
        if answer is None:
            raise no_api(request.path, named_model(request))
        return answer(request)

    @asynccontextmanager
    async def answer(
        self, provider: Provider, request: PassedRequest, *, optional: bool = False
    ) -> AsyncIterator[PassedReply]:
        """A good answer, which is closed with the block.

        Failures, inside the block too, become an APIError. `optional`: NoEndpoint is raised if
        the upstream lacks the endpoint.
        """
        headers = provider.headers_from(request.client_headers)
        reply: Reply | None = None
        try:
            reply = await self.send(provider, request, headers)
            if reply.status >= 400:
                raise await read_rejection(reply, provider.shape)
            if 300 <= reply.status < 400 and reply.status != NOT_MODIFIED:
                reason = f"upstream: {reply.status}"
                raise configuration_error(REDIRECTED, reason, provider.failure_status)
            yield PassedReply(
                reply.status,
                reply_headers(reply),
                reply,
                stall=provider.limits.stall,
                backend=provider.name,
                model=named_model(request),
            )
        except UpstreamRejection as rejection:
            if optional and lacks_endpoint(rejection):
                raise NoEndpoint from None
            raise provider.rejection_error(rejection, headers) from None
        except httpx.InvalidURL:
            raise APIError(400, "The path cannot be sent to the upstream.") from None
        except UPSTREAM_ERRORS as exc:
            raise upstream_error(exc, provider.failure_status) from exc
        finally:
            if reply is not None:
                await reply.aclose()

    async def send(
        self, provider: Provider, request: PassedRequest, client_headers: Mapping[str, str]
    ) -> Reply:
        """Raises httpx.HTTPError, httpx.InvalidURL, TimeoutError, APIError."""
        url = address(provider.api_base, request)
        headers = request_headers(provider, request) | dict(client_headers)
        deadline = running_loop().time() + provider.limits.total
        whole = request.body
        if provider.client.takes_whole_requests and not isinstance(whole, bytes):
            whole = await whole_body(whole, provider.limits.reply_bytes)
        if isinstance(whole, bytes) and (whole or provider.client.takes_whole_requests):
            body = with_model(provider, request, whole)
            headers.pop("content-length", None)  # the pool writes its own
            target = provider.client.target(request.method, str(url), headers)
            return await provider.client.ask(target, {}, body, deadline)
        return await self.stream(provider, request, url, headers, deadline)

    async def stream(
        self,
        provider: Provider,
        request: PassedRequest,
        url: httpx.URL,
        headers: dict[str, str],
        deadline: float,
    ) -> Reply:
        """Send a request by httpx's transport. Its connection is not kept."""
        if self.transport is None:
            self.transport = self.make_transport()
        if self.open >= self.max_connections:
            raise httpx.PoolTimeout("All connections are busy.")
        body: httpx.AsyncByteStream = httpx.ByteStream(b"")
        if not isinstance(request.body, bytes):
            body = StreamedBody(request.body)
            if "content-length" not in headers:
                headers["transfer-encoding"] = "chunked"
        elif request.method in ("POST", "PUT", "PATCH"):
            headers["content-length"] = "0"
        timeout = {
            "connect": self.connect_timeout,
            "pool": self.connect_timeout,
            "read": provider.limits.total,
            "write": provider.limits.stall,
        }
        outgoing = httpx.Request(
            request.method,
            url,
            headers={"host": url.netloc.decode(), **headers, "connection": "close"},
            stream=body,
            extensions={"timeout": timeout},
        )
        self.open += 1
        try:
            response = await self.transport.handle_async_request(outgoing)
        except BaseException:
            self.open -= 1
            raise
        timeout["read"] = provider.limits.stall  # httpx reads it again for the body
        return CountedReply(response, deadline, self)


async def whole_body(body: AsyncIterator[bytes], max_bytes: int) -> bytes:
    """A streamed body as a whole. Raises APIError 413."""
    parts: list[bytes] = []
    size = 0
    async for part in body:
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise APIError(413, "The upload is too large to be recorded.")
    return b"".join(parts)


class CountedReply(RawReply):
    """A RawReply that has a place among the connections of a PassThrough until it is closed."""

    def __init__(self, response: httpx.Response, deadline: float, owner: PassThrough) -> None:
        super().__init__(response, deadline)
        self.owner: PassThrough | None = owner

    async def aclose(self) -> None:
        if self.owner is not None:
            self.owner.open -= 1
            self.owner = None
        await super().aclose()


def raw_transport(transport: httpx.AsyncBaseTransport, proxy: str = "") -> httpx.AsyncBaseTransport:
    """The transport of streamed bodies: httpx's own in the place of a pool.

    It keeps no connection, and bounds none: its own bounds do not survive a burst of cancelled
    requests (encode/httpcore#1093).
    """
    if not isinstance(transport, DirectTransport):
        return transport
    return httpx.AsyncHTTPTransport(
        trust_env=False,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        proxy=proxy or None,
    )


def no_api(path: str, model: str) -> APIError:
    """The error for an endpoint that a model's backend lacks."""
    message = (
        f"The backend of the model `{model}` has no {path}: it has chat completions, responses "
        "and completions."
    )
    return APIError(404, message, param="model", reason="no such endpoint")


def address(api_base: httpx.URL, request: PassedRequest) -> httpx.URL:
    """The upstream's URL of a request. Raises APIError for a path that leaves the API."""
    if {".", ".."}.intersection(request.path.split("/")):
        raise APIError(404, "The path has a segment of dots.", reason="dots in a path")
    base_path, _, base_query = api_base.raw_path.partition(b"?")
    path = base_path.rstrip(b"/") + quote(request.path, safe=PATH_CHARACTERS).encode()
    query = b"&".join(part for part in (base_query, request.query) if part)
    if query:
        path += b"?" + query
    return api_base.copy_with(raw_path=path)


def request_headers(provider: Provider, request: PassedRequest) -> dict[str, str]:
    """The headers of a request but for those that belong to the client's key."""
    found = request.headers
    headers = {
        name.decode(): found[name].decode("latin-1") for name in REQUEST_NAMES if name in found
    }
    headers["accept-encoding"] = "identity"  # a compressed answer could not be checked
    headers |= provider.fixed_headers
    base = provider.api_base
    if base.userinfo and "authorization" not in headers:
        credentials = b64encode(unquote_to_bytes(base.userinfo)).decode()
        headers["authorization"] = f"Basic {credentials}"
    return headers


def reply_headers(reply: Reply) -> Headers:
    """The headers of an answer that the client gets."""
    dropped: set[bytes] = set()
    if not isinstance(reply, RawReply) and b"content-encoding" in reply.headers:
        dropped = {b"content-encoding", b"content-length"}  # the pool has inflated it
    return [
        (name, value)
        for name, value in reply.headers.items()
        if name in REPLY_NAMES and name not in dropped
    ]


def named_model(request: PassedRequest) -> str:
    """The model that a request names, in its path or in a JSON body; "" if it names none."""
    if request.model:
        return request.model
    if request.path.startswith("/models/"):
        return request.path.removeprefix("/models/")
    if not isinstance(request.body, bytes):
        return ""
    try:
        payload = orjson.loads(request.body)
    except ValueError:
        return ""
    model = payload.get("model") if isinstance(payload, dict) else None
    return model if isinstance(model, str) else ""


def with_model(provider: Provider, request: PassedRequest, body: bytes) -> bytes:
    """The body with the upstream's name of the model; the client's own bytes if it is the same."""
    model = named_model(request)
    if not model or request.path.startswith("/models/"):
        return body
    wanted = provider.upstream_model(model)
    if wanted == model and not request.model:
        return body
    try:
        payload = orjson.loads(body)
    except ValueError:
        return body
    if not isinstance(payload, dict) or payload.get("model") == wanted:
        return body
    try:
        return orjson.dumps(payload | {"model": wanted})
    except TypeError:  # nested too deeply to be written
        return body


def lacks_endpoint(rejection: UpstreamRejection) -> bool:
    """Whether an error means that the upstream lacks the endpoint.

    An upstream that has it answers 404, too: for a model, or for an object that the body names.
    """
    if rejection.status not in ABSENT:
        return False
    error = rejection.error
    named = error.get("code") == "model_not_found" or bool(error.get("param"))
    return not named and ABOUT_OBJECT.search(rejection.message) is None
