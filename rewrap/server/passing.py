"""Requests that are passed on to an upstream: their body on the way up, the answer on the way down.

Nothing is sent faster than its reader takes it. Does not know upstreams: a `PassedAnswer` asks one.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import replace

from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rewrap.server.context import ClientLeft, RequestContext
from rewrap.structs import struct
from rewrap.types import (
    APIError,
    JSONObject,
    NoEndpoint,
    PassedAnswer,
    PassedReply,
    PassedRequest,
    ResponseInfo,
    dumps,
)

API_PREFIXES = ("/v1/", "/openai/")


@struct(frozen=True, slots=True)
class Intake:
    """How requests come in. `admit` raises APIError for a client that may not."""

    admit: Callable[[RequestContext], Awaitable[object]]
    client_headers: Callable[[RequestContext], Mapping[str, str]]
    max_body_bytes: int

    async def request(
        self, context: RequestContext, path: str, *, streamed: bool = False
    ) -> PassedRequest:
        """The request, with its body unless that is `streamed`. Raises APIError, ClientLeft."""
        body = b"" if streamed else await context.body(self.max_body_bytes)
        return passed_request(context, path, self.client_headers(context), body)


class PassThroughEndpoint:
    """The paths under /v1/ that are not served here: any method, any body.

    A JSON body is read whole, because it names the model. All others are streamed, of any size.
    """

    def __init__(self, intake: Intake, answer: PassedAnswer) -> None:
        self.intake = intake
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope["context"]
        if not any(prefix in scope["original_path"] for prefix in API_PREFIXES):
            raise HTTPException(404)
        await self.intake.admit(context)
        streamed = has_streamed_body(context)
        path = "/" + scope["path_params"]["path"]
        request = await self.intake.request(context, path, streamed=streamed)
        await pass_on(context, request, self.answer, streamed=streamed)


class UpstreamOrLocal:
    """An endpoint of OpenAI-compatible upstreams that other backends may have in their own form.

    `find` gives the answer of an upstream, or None. `local` makes the document of an answer here.
    """

    def __init__(
        self,
        intake: Intake,
        path: str,
        find: Callable[[PassedRequest], PassedAnswer | None],
        local: Callable[[PassedRequest, ResponseInfo], Awaitable[JSONObject]],
    ) -> None:
        self.intake = intake
        self.path = path
        self.find = find
        self.local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope["context"]
        await self.intake.admit(context)
        request = await self.intake.request(context, self.path)
        answer = self.find(request)
        if answer is not None:
            await pass_on(context, request, answer)
            return
        info = ResponseInfo(request_id=context.id)
        context.info = info
        with context.watch():
            document = await self.local(request, info)
        context.use(info.wrap_send)
        headers = [(b"content-type", b"application/json"), *info.headers]
        await context.respond(200, headers, dumps(document))


class OwnOrUpstream:
    """A route of stored objects: those that are not found here are asked of the upstream.

    `upstream` gives its answer for an id, or None.
    """

    def __init__(
        self, own: ASGIApp, intake: Intake, upstream: Callable[[str], PassedAnswer | None]
    ) -> None:
        self.own = own
        self.intake = intake
        self.upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope["context"]
        try:
            await self.own(scope, receive, send)
        except APIError as error:
            answer = self.upstream(scope["path_params"]["id"])
            if error.status != 404 or answer is None:
                raise
            request = await self.intake.request(context, scope["path"])
            await pass_on(context, request, answer)


def or_upstream(
    routes: Sequence[Route], intake: Intake, upstream: Callable[[str], PassedAnswer | None]
) -> list[Route]:
    """The routes, those of one object as OwnOrUpstream."""
    found: list[Route] = []
    for route in routes:
        if "{id}" in route.path:
            endpoint = OwnOrUpstream(route.app, intake, upstream)
            route = Route(route.path, endpoint, methods=list(route.methods or ()))
        found.append(route)
    return found


def passed_request(
    context: RequestContext, path: str, client_headers: Mapping[str, str], body: bytes
) -> PassedRequest:
    scope = context.scope
    return PassedRequest(
        scope["method"],
        path,
        scope["query_string"],
        context.request_headers,
        client_headers,
        body,
        scope["path_params"].get("model", ""),
    )


def has_streamed_body(context: RequestContext) -> bool:
    """Whether a request has a body that is not JSON."""
    if context.header(b"content-type").partition(";")[0].strip().lower() == "application/json":
        return False
    length = context.header(b"content-length")
    return length not in ("", "0") or bool(context.header(b"transfer-encoding"))


async def passed_on(context: RequestContext, request: PassedRequest, answer: PassedAnswer) -> bool:
    """Whether the upstream has the endpoint of a request, and so has answered. Raises APIError."""
    try:
        await pass_on(context, request, answer)
    except NoEndpoint:
        return False
    return True


async def pass_on(
    context: RequestContext, request: PassedRequest, answer: PassedAnswer, *, streamed: bool = False
) -> None:
    """Send a request to the upstream, and its answer to the client.

    `streamed`: the body is still to come. Raises APIError, ClientLeft.
    """
    with ExitStack() as stack:
        if not streamed:
            stack.enter_context(context.watch())
            async with answer(request) as passed:
                await send_reply(context, passed)
            return
        async with aclosing(upload(context, stack)) as body:
            async with answer(replace(request, body=body)) as passed:
                if context.active_watch is None:  # an early answer: the rest is not wanted
                    stack.enter_context(context.watch())
                await send_reply(context, passed)


async def upload(context: RequestContext, stack: ExitStack) -> AsyncGenerator[bytes, None]:
    """The body while it arrives. After its end the client is watched, until `stack` ends."""
    more = True
    while more:
        message = await context.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        more = message.get("more_body", False)
        if not more:
            context.has_body = False
            stack.enter_context(context.watch())
        part = message.get("body", b"")
        if part:
            yield part


async def send_reply(context: RequestContext, passed: PassedReply) -> None:
    """Send an answer. A failure before its first bytes has a status; one after them cuts it."""
    context.info = ResponseInfo(model=passed.model, backend=passed.backend)
    reply = passed.reply
    kind = reply.headers.get(b"content-type", b"")
    context.streams = kind.startswith(b"text/event-stream")
    loop = context.loop
    reply.deadline = loop.time() + passed.stall
    data = await reply.read()
    await context.send_start(
        {"type": "http.response.start", "status": passed.status, "headers": passed.headers}
    )
    while data:
        await context.send_body(data, more=True)
        reply.deadline = loop.time() + passed.stall
        data = await reply.read()
    await context.send_body(b"", more=False)
