"""Everything's way in, pure ASGI around the router: Host, path, CORS, failures, and a line in the log for each request.

A Call is one request on its way: its id, and the watch for its client's leaving. Does not know what the routes do.
Raises nothing: whatever the router raises becomes an answer.
"""

import asyncio
import logging
import re
import time
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rewrap.eventloop import running_loop
from rewrap.ids import random_hex
from rewrap.server.hosts import (
    IPV6,
    NORMAL,
    OF_THIS_MACHINE,
    host_name,
    is_loopback,
    normal_path,
    on_loopback,
)
from rewrap.types import APIError, ChatRequest

log = logging.getLogger("rewrap")


class ClientLeft(Exception):
    """Nobody is there to answer any more."""


class RequestContext:
    """One HTTP request on its way: its id, what has been sent, and the watch for the client's leaving.

    Our work may be cancelled by that watch (`left`), by the end of the server (`ending`), or by somebody else: `cancelled`
    tells them apart, and makes an answer of it where somebody is there to read one.
    """

    __slots__ = ("chat", "ending", "error", "first_byte", "gate", "given", "headers", "id", "key", "left", "loop", "raw_send", "receive", "scope", "send_start", "started", "status", "watcher", "working")  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self.raw_send = scope, receive, send
        self.given: dict[bytes, bytes] = dict(scope["headers"])
        self.send_start: Send = self.send  # by way of CORS, where there is any
        self.id = f"req_{random_hex()}"
        self.started = time.perf_counter()
        self.first_byte = 0.0
        self.status = 0
        self.error = ""
        self.key = ""  # that was checked
        self.chat: ChatRequest | None = None
        self.headers: list[tuple[bytes, bytes]] = []  # for whatever the answer will be
        self.gate: Any = None  # to be left at the end
        self.left = self.ending = False
        self.loop: Any = None
        self.working: asyncio.Task[Any] | None = None
        self.watcher: asyncio.Task[None] | None = None

    def header(self, name: bytes) -> str:
        """A header's value, the last one of several; "" if there is none."""
        return self.given.get(name, b"").decode("latin-1")

    def address(self) -> str:
        client = self.scope.get("client")
        return str(client[0]) if client else ""

    async def body(self, most: int) -> bytes:
        """The request's body. Raises APIError where it is larger than `most` bytes, ClientLeft where it breaks off."""
        length = self.header(b"content-length")
        if length.isdecimal() and int(length) > most:
            raise too_large(most)
        parts, size, more = list[bytes](), 0, True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise too_large(most)
            more = message.get("more_body", False)
        return b"".join(parts)  # the very same bytes, if they came at once

    def watch(self) -> None:
        """From here on, the client's leaving cancels what is being done for it."""
        self.working = asyncio.current_task(self.loop)
        self.watcher = self.loop.create_task(self.until_left())

    async def until_left(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if self.watcher is not None and self.working is not None and not self.ending:
            self.left = True
            self.working.cancel()

    def end(self) -> None:
        """The server stops: what is being done for this client ends with an error that says so."""
        if self.watcher is not None and self.working is not None and not self.left:
            self.ending = True
            self.working.cancel()

    def cancelled(self) -> APIError | None:
        """Why our work was cancelled: None if the client left. Raises CancelledError if neither it nor we did that."""
        if not self.left and not self.ending:
            raise asyncio.CancelledError
        if self.working is not None:
            self.working.uncancel()
        return stopping() if self.ending else None

    def unwatch(self) -> None:
        if self.watcher is not None:
            watcher, self.watcher = self.watcher, None
            watcher.cancel()

    async def send(self, message: Message) -> None:
        """Start the answer with the request's id; everything else goes as it is."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.first_byte = time.perf_counter()
            ours = [(b"x-request-id", self.id.encode()), *self.headers]
            given = message.get("headers", ())
            if self.headers:  # of an upstream's limits and ours, ours are told
                names = {name for name, _ in ours}
                given = [header for header in given if header[0] not in names]
            message["headers"] = [*given, *ours]
        await self.raw_send(message)

    async def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        length = (b"content-length", b"%d" % len(body))
        await self.send_start(
            {"type": "http.response.start", "status": status, "headers": [*headers, length]}
        )
        await self.raw_send({"type": "http.response.body", "body": body})

    def line(self) -> str:
        """The access line: method, path, model, backend, status, seconds, tokens, id."""
        now = time.perf_counter()
        first = (self.first_byte or now) - self.started
        chat = self.chat
        told = ""
        if chat is not None:
            counts = chat.usage or {}
            tokens = f"{counts.get('prompt_tokens', '-')}+{counts.get('completion_tokens', '-')}"
            told = f" model={printable(chat.model)} backend={chat.backend} tokens={tokens}"
        error = f" error={self.error}" if self.error else ""
        seconds = f"first_byte={first * 1e3:.1f}ms total={(now - self.started) * 1e3:.1f}ms"
        path = printable(self.scope["original_path"])
        return f"{self.scope['method']} {path} {499 if self.left else self.status} {seconds}{told}{error} id={self.id}"


def too_large(most: int) -> APIError:
    return APIError(413, f"The request is too large: this server takes {most} bytes at most.")


def printable(text: str) -> str:
    """Text for a log line: control characters escaped, so that nobody can forge a line; bounded."""
    return (
        text
        if text.isascii() and text.isprintable() and len(text) < 200
        else ascii(text[:200])[1:-1]
    )


class AccessLog:
    """A line a request, written in batches: a line by itself through `logging` cost 15 µs, in a batch 2.

    A pipe that is full, as nobody reads the log, holds the whole server back, as `logging` waits: log to a file, or to
    somebody who reads.
    """

    SECONDS = 0.1

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.loop: asyncio.AbstractEventLoop | None = None  # that flushes

    def __call__(self, line: str) -> None:
        loop = running_loop()
        if (
            not self.lines or self.loop is not loop
        ):  # another one may have ended before it came to that
            self.loop = loop
            loop.call_later(self.SECONDS, self.flush)
        self.lines.append(line)

    def flush(self) -> None:
        lines, self.lines = self.lines, []
        if lines:
            log.info("\n".join(lines))


JSON_TYPE = [(b"content-type", b"application/json")]


def stopping() -> APIError:
    again = [(b"retry-after", b"1"), (b"connection", b"close")]
    return APIError(
        503, "The server is stopping.", type="server_error", headers=again, reason="stopping"
    )


class EdgeMiddleware:
    """Takes the place of Starlette's two error middlewares, whose wrappers cost 60 µs for a stream of 100 chunks."""

    def __init__(self, router: Any, settings: Any) -> None:
        self.router, self.settings = router, settings
        self.inner: ASGIApp = self.guarded
        if origins := settings.allow_origins:
            stars = [
                re.escape(origin).replace(r"\*", r"[\w.-]+") for origin in origins if "*" in origin
            ]
            self.inner = CORS(
                self.guarded,
                allow_origins=["*"] if "*" in origins else list(origins),
                allow_origin_regex="|".join(stars) or None,
                allow_credentials="*"
                not in origins,  # together they would let every page use its visitor's cookies
                allow_methods=["GET", "POST", "DELETE", "OPTIONS"],
                allow_headers=["*"],
                expose_headers=EXPOSED,
            )
        self.access = AccessLog()
        self.logs_lines = log.isEnabledFor(logging.INFO)
        self.calls: set[RequestContext] = set()
        self.allowed_hosts = {
            host_name(f"[{host}]" if IPV6.match(host) else host) for host in settings.allowed_hosts
        }
        self.known_hosts: set[bytes] = set()
        self.hot = {
            r.path: r.endpoint for r in router.routes if r.methods == {"POST"} and "{" not in r.path
        }
        self.stopping = False

    async def drain(self) -> None:
        """Answer 503 from now on; end when all calls have, the last of them with an error after GRACE_SECONDS."""
        self.stopping = True
        loop = running_loop()
        deadline = loop.time() + self.settings.grace_seconds
        while self.calls and loop.time() < deadline:
            await asyncio.sleep(0.05)
        for call in list(self.calls):
            call.end()
        while self.calls and loop.time() < deadline + 1:
            await asyncio.sleep(0.02)
        self.access.flush()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.router(scope, receive, send)
            return
        scope = dict(scope)  # a copy: the server's own log names the path as it came
        call = scope["call"] = RequestContext(scope, receive, send)
        call.loop = running_loop()  # in tests, each may have one of its own
        scope["original_path"] = path = scope["path"]
        if root := scope.get("root_path", "").strip("/"):
            scope["path"], scope["root_path"] = self.below(root, path), ""
        else:
            scope["path"] = NORMAL.get(path) or normal_path(path)
        self.calls.add(call)
        try:
            # CORS answers a preflight by itself.
            refused = scope["method"] == "OPTIONS" and self.foreign(call)
            await (self.guarded if refused else self.inner)(scope, receive, call.send)
        finally:
            self.calls.discard(call)
            call.unwatch()
            if call.gate:
                call.gate.leave()
            if self.logs_lines:
                self.access(call.line())
            # No cycle stays: it would keep a long prompt until the garbage is collected.
            del scope["call"]
            call.send_start = call.raw_send

    def below(self, root: str, path: str) -> str:
        """What stands after root_path. uvicorn puts it before every path, one that a proxy has left it in, too."""
        prefix = re.compile(rf"^/+{re.escape(root)}(?=/|$)")
        rest = prefix.sub("", path)
        found = normal_path(rest)
        return found if self.methods(found) else normal_path(prefix.sub("", rest))

    async def guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The router; whatever it raises becomes an answer."""
        call: RequestContext = scope["call"]
        call.send_start = send
        try:
            if self.stopping:
                raise stopping()
            if self.foreign(call):
                raise APIError(
                    403,
                    "This server does not answer to that Host (ALLOWED_HOSTS).",
                    reason="foreign Host",
                )
            if scope["method"] == "POST" and (endpoint := self.hot.get(scope["path"])):
                scope["path_params"] = {}
                await endpoint(scope, receive, send)  # without the router's search: 5 µs less
            else:
                await self.router(scope, receive, send)
        except asyncio.CancelledError:
            if self.stopping and call.watcher is None:  # it has gone on to the very end, and is cut
                call.left = True
            elif error := call.cancelled():
                await self.render_failure(call, error)
        except ClientLeft:
            call.left = True
        except Exception as exc:
            await self.render_failure(call, exc)

    def foreign(self, call: RequestContext) -> bool:
        """A Host that a web page could have made up (DNS rebinding): on a loopback, or where ALLOWED_HOSTS names others."""
        scope, allowed = call.scope, self.allowed_hosts
        server = scope.get("server")
        if not allowed and (server is None or not on_loopback(server[0])):
            return False
        given = call.given.get(b"host", b"")
        alone = (
            len(call.given) == len(scope["headers"])
            or [name for name, _ in scope["headers"]].count(b"host") == 1
        )
        if alone and given in self.known_hosts:
            return False
        name = (
            host_name(given.decode("latin-1")) if alone else "?"
        )  # of two, who knows which one is meant
        if is_loopback(name) or name.endswith(OF_THIS_MACHINE) or name in allowed or "*" in allowed:
            if len(self.known_hosts) < 100:
                self.known_hosts.add(given)
            return False
        return bool(scope["path"] != "/health")

    async def render_failure(self, call: RequestContext, exc: Exception) -> None:
        error = self.api_error(call, exc)
        call.error = error.reason
        if (
            call.status
        ):  # the answer has begun: uvicorn cuts the connection of one that does not end
            return
        status, body = error.status, orjson.dumps(error.body)
        if call.scope["path"] == "/ask":
            status = (
                500 if status in (502, 504) else status
            )  # what concerns the request, and "wait", are for the client to know
            said = {"role": "assistant", "content": error.message, "error": error.type}
            body = orjson.dumps(said | {"details": error.code or error.param})
        elif status == 400 and error.type == "invalid_request_error":
            status = self.settings.invalid_request_status
        await call.respond(status, JSON_TYPE + error.headers, body)

    def methods(self, path: str) -> list[str]:
        return sorted(
            {
                m
                for route in self.router.routes
                if route.path_regex.match(path)
                for m in route.methods
            }
        )

    def api_error(self, call: RequestContext, exc: Exception) -> APIError:
        if isinstance(exc, APIError):
            return exc
        method, path = call.scope["method"], printable(call.scope["original_path"])
        if isinstance(exc, HTTPException) and exc.status_code == 404:
            hint = (
                ". This server has chat completions: POST /v1/chat/completions."
                if OTHER_APIS.match(call.scope["path"])
                else ""
            )
            return APIError(404, f"Invalid URL ({method} {path}){hint}", reason="unknown URL")
        if isinstance(exc, HTTPException) and exc.status_code == 405:
            hint = "(HINT: Perhaps you meant to use a different HTTP method?)"
            allow = [(b"allow", ", ".join(self.methods(call.scope["path"])).encode())]
            return APIError(
                405,
                f"Not allowed to {method} on {path}. {hint}",
                headers=allow,
                reason="wrong method",
            )
        log.error("%s failed", call.id, exc_info=exc)
        return APIError(
            500, "The server had an error while processing your request.", type="server_error"
        )


OTHER_APIS = re.compile("/(?:responses|completions|embeddings)(?:/|$)")


class CORS(CORSMiddleware):
    """Starlette's, with OpenAI's envelope where it refuses a preflight."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        body = orjson.dumps(APIError(400, bytes(response.body).decode()).body)
        return Response(body, 400, {"vary": "Origin"}, "application/json")


EXPOSED = [
    "x-request-id",
    "retry-after",
    "x-dropped-params",
    "x-should-retry",
    "openai-processing-ms",
]
EXPOSED += [f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")]
