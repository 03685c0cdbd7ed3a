"""ASGI middleware around the router: the client's address, host and origin checks, path, CORS, errors, access log.

It replaces Starlette's two error middlewares, whose wrappers cost 60 µs for a stream of 100 chunks. Whatever the router
raises becomes an answer here. Does not know what the routes do.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Callable, Sequence
from struct import pack
from typing import Protocol

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from rewrap.eventloop import running_loop
from rewrap.memory import MemoryBudget
from rewrap.regex import regex
from rewrap.server.context import CONNECTION, ClientLeft, RequestContext, printable, stopping
from rewrap.server.hosts import NORMAL, HostCheck, forwarded_address, is_local, normal_path
from rewrap.server.limits import Gate
from rewrap.server.logs import AccessLog
from rewrap.server.origins import OriginPolicy
from rewrap.structs import struct
from rewrap.types import APIError, CutConnection, Headers, JSONObject

log = logging.getLogger("rewrap")

JSON_TYPE: Headers = [(b"content-type", b"application/json")]
HEALTH_PATHS = ("/health", "/livez", "/readyz")
UNKNOWN_URL = "unknown URL"
WRONG_METHOD = "(HINT: Perhaps you meant to use a different HTTP method?)"
OTHER_API = (
    ". This server has chat completions, responses, completions, embeddings and moderations; "
    "the rest of the API needs an OpenAI-compatible upstream (OPENAI_API_BASE)."
)
OTHER_APIS = regex(
    "/(?:audio|images|videos|files|uploads|batches|fine_tuning|vector_stores|containers|evals"
    "|conversations|assistants|threads|realtime)(?:/|$)"
)


# From an Accept header, an unknown path and the path of the chat page: a page for a browser, or None.
NotFoundPage = Callable[[str, str, str], Response | None]


@struct(frozen=True, slots=True)
class EdgeOptions:
    """Settings of the edge. Units as in the settings of the same names."""

    allow_origins: Sequence[str] = ()
    allowed_hosts: Sequence[str] = ()
    grace_seconds: float = 30.0
    invalid_request_status: int = 400
    not_found_page: NotFoundPage | None = None
    forwarded_hops: int = 0  # proxies in front, if all addresses are trusted; 0: the server knows
    max_memory_bytes: int = 2**63
    max_concurrent_requests: int = 0  # bounds the bodies that arrive in several parts


class RequestMetrics(Protocol):
    """Counts requests for GET /metrics."""

    def observe(self, context: RequestContext) -> None:
        """Count a request that has its answer."""

    def flush(self) -> None:
        """Show what was counted."""


class EdgeMiddleware:
    """The outermost ASGI app: it makes a RequestContext and turns exceptions into answers."""

    def __init__(self, router: Router, options: EdgeOptions) -> None:
        self.router = router
        self.options = options
        self.hosts = HostCheck(options.allowed_hosts)
        self.access_log = AccessLog()
        self.logs_lines = log.isEnabledFor(logging.INFO)
        self.open_requests: set[RequestContext] = set()
        self.stopping = False
        self.metrics: RequestMetrics | None = None
        routes = [route for route in router.routes if isinstance(route, Route)]
        # A lookup by path saves the router's search: 5 µs.
        self.fast_routes = {
            route.path: route.app
            for route in routes
            if route.methods == {"POST"} and "{" not in route.path
        }
        self.memory = MemoryBudget(options.max_memory_bytes)
        self.body_gate = Gate(options.max_concurrent_requests)
        self.origins = OriginPolicy(self.guarded, options.allow_origins)

    async def drain(self) -> None:
        """Answer 503 from now on, and end when all requests have ended.

        After GRACE_SECONDS the rest end with an error.
        """
        self.stopping = True
        loop = running_loop()
        deadline = loop.time() + self.options.grace_seconds
        while self.open_requests and loop.time() < deadline:
            await asyncio.sleep(0.05)
        for context in list(self.open_requests):
            context.end()
        while self.open_requests and loop.time() < deadline + 1:
            await asyncio.sleep(0.02)
        self.access_log.flush()
        if self.metrics is not None:
            self.metrics.flush()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.router(scope, receive, send)
            return
        if (
            CONNECTION not in scope
        ):  # another server may log its own scope, where `path` must not change
            scope = dict(scope)
        context = RequestContext(scope, receive, send, running_loop())
        context.body_gate = self.body_gate
        scope["context"] = context
        path = scope["path"]
        scope["original_path"] = path
        root = scope.get("root_path", "").strip("/")
        if root:
            scope["path"] = self.path_below(root, path)
            scope["root_path"] = ""
            scope["home"] = f"/{root}/"
        else:
            scope["path"] = NORMAL.get(path) or normal_path(path)
        if self.options.forwarded_hops:
            address = forwarded_address(scope["headers"], self.options.forwarded_hops)
            if address:
                scope["client"] = (address, 0)
        self.open_requests.add(context)
        try:
            app: ASGIApp = self.guarded
            if b"origin" in context.request_headers:
                # CORS answers a preflight by itself, so that a foreign host has to be refused before it.
                if scope["method"] != "OPTIONS" or not self.is_foreign(context):
                    app = self.origins.app_for_page(scope)
                    context.sends_directly = False
            await app(scope, receive, context.send)
        finally:
            self.open_requests.discard(context)
            if context.info is not None and context.info.on_status is not None:
                context.info.on_status(context.status)
            if self.metrics is not None:
                self.metrics.observe(context)
            if self.logs_lines:
                self.access_log(context)
            # A cycle would keep a long prompt in memory until the next garbage collection.
            del scope["context"]
            context.send_start = context.raw_send

    async def guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The router. Exceptions become answers."""
        context: RequestContext = scope["context"]
        context.send_start = send
        try:
            if self.stopping and scope["path"] != "/livez":
                raise stopping()
            if self.is_foreign(context):
                message = "This server does not answer to that Host (ALLOWED_HOSTS)."
                raise APIError(403, message, reason="foreign Host")
            self.origins.check(scope, context.request_headers)
            endpoint = self.fast_routes.get(scope["path"]) if scope["method"] == "POST" else None
            with self.memory.reservation():
                if endpoint is not None:
                    scope["path_params"] = {}
                    await endpoint(scope, receive, send)
                else:
                    await self.router(scope, receive, send)
        except asyncio.CancelledError:
            await self.answer_cancelled(context)
        except ClientLeft:
            context.left = True
        except CutConnection as cut:
            context.error = str(cut)
            abort_connection(context, reset=cut.reset)
        except Exception as exc:
            await self.render_failure(context, exc)

    async def answer_cancelled(self, context: RequestContext) -> None:
        """Answer a cancelled request, if its client is still there. Raises CancelledError for a foreign cause."""
        if self.stopping and not context.ending and not context.left:
            context.left = True  # still running when the grace period ended
            return
        error = context.cancellation()
        if error is not None:
            await self.render_failure(context, error)

    def is_foreign(self, context: RequestContext) -> bool:
        """Whether the Host is one that a web page could have made up. Health checks are answered for any."""
        accepted = self.hosts.accepts(context.scope, context.request_headers)
        return not accepted and context.scope["path"] not in HEALTH_PATHS

    async def render_failure(self, context: RequestContext, exc: Exception) -> None:
        error = self.api_error(context, exc)
        context.error = error.reason
        if (
            context.status
        ):  # the answer has started: uvicorn cuts the connection of one that does not end
            return
        page = self.not_found_page(context, error)
        if page is not None:
            headers = [header for header in page.raw_headers if header[0] != b"content-length"]
            await context.respond(page.status_code, headers, bytes(page.body))
            return
        status = error.status
        body = error.body
        if context.scope["path"] == "/ask":
            body = ask_failure(error)
            if status in (502, 504):  # the templates' status for an upstream's failure
                status = 500
        elif status == 400 and error.type == "invalid_request_error":
            status = self.options.invalid_request_status
        await context.respond(status, JSON_TYPE + error.headers, orjson.dumps(body))

    def api_error(self, context: RequestContext, exc: Exception) -> APIError:
        """The error that the client sees for an exception."""
        if isinstance(exc, APIError):
            if exc.explanation and is_local(context.scope, context.request_headers):
                return exc.explained()
            return exc
        if isinstance(exc, HTTPException) and exc.status_code == 404:
            return self.unknown_url(context)
        if isinstance(exc, HTTPException) and exc.status_code == 405:
            return self.wrong_method(context)
        log.error("%s failed", context.id, exc_info=exc)
        message = "The server had an error while processing your request."
        return APIError(500, message, type="server_error")

    def unknown_url(self, context: RequestContext) -> APIError:
        scope = context.scope
        hint = OTHER_API if OTHER_APIS.match(scope["path"]) else ""
        message = f"Invalid URL ({scope['method']} {printable(scope['original_path'])}){hint}"
        return APIError(404, message, reason=UNKNOWN_URL)

    def not_found_page(self, context: RequestContext, error: APIError) -> Response | None:
        """The page for an unknown URL, if a browser asks for one."""
        make = self.options.not_found_page
        scope = context.scope
        if make is None or error.reason != UNKNOWN_URL or scope["method"] != "GET":
            return None
        return make(context.header(b"accept"), scope["original_path"], scope.get("home", "/"))

    def wrong_method(self, context: RequestContext) -> APIError:
        scope = context.scope
        path = printable(scope["original_path"])
        allow = ", ".join(self.methods(scope["path"])).encode()
        return APIError(
            405,
            f"Not allowed to {scope['method']} on {path}. {WRONG_METHOD}",
            headers=[(b"allow", allow)],
            reason="wrong method",
        )

    def path_below(self, root: str, path: str) -> str:
        """The path after root_path. uvicorn puts root_path before every path, also where a proxy left it in."""
        prefix = re.compile(rf"^/+{re.escape(root)}(?=/|$)")
        rest = prefix.sub("", path)
        found = normal_path(rest)
        if self.methods(found):
            return found
        return normal_path(prefix.sub("", rest))

    def methods(self, path: str) -> list[str]:
        """The methods that the routes of a path take."""
        methods: set[str] = set()
        for route in self.router.routes:
            if isinstance(route, Route) and route.path_regex.match(path):
                methods |= route.methods or set()
        return sorted(methods)


def abort_connection(context: RequestContext, *, reset: bool) -> None:
    """Close the connection of an answer that does not end. Without a server's transport, the answer just stops."""
    cycle = getattr(context.receive, "__self__", None)  # uvicorn's request cycle
    transport = getattr(cycle, "transport", None)
    if transport is None:
        return
    if reset:
        sock = transport.get_extra_info("socket")
        if sock is not None:  # with no time to linger, close sends a TCP reset
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


def ask_failure(error: APIError) -> JSONObject:
    """The template's form of an error on /ask."""
    return {
        "role": "assistant",
        "content": error.message,
        "error": error.type,
        "details": error.code or error.param or error.message,
    }
