"""rewrap turns any chat URL into an OpenAI API: what is asked for, who may ask, the routes, the app.

A request's way: Front -> Gateway.admit -> parse_chat -> Chat -> Backend.stream -> Deltas -> a rendering. Everything that answers
is a backend (backends.py); everything that is asked for is a rendering of its Deltas (extras/renderings.py). `python main.py`
serves, `uvicorn main:app` too.
"""

import asyncio
import hmac
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from multiprocessing import parent_process
from typing import Any

import httpx
import orjson
from rewrap.backends import ChatURL, Mock
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rewrap import probe
from rewrap.api.chat import Chunks, PlainText, completion
from rewrap.api.openapi import document
from rewrap.api.requests import parse_ask, parse_chat, parse_metadata
from rewrap.api.stored import JSON, StoredCompletions, still_new
from rewrap.config.settings import Settings
from rewrap.factory import backend_summary, build_backend
from rewrap.figures import figures
from rewrap.hooks import load_hooks, run_hooks
from rewrap.redaction import loggable, masked
from rewrap.server import keys
from rewrap.server.auth import BEARER, owner_id
from rewrap.server.edge import JSON_TYPE, EdgeMiddleware, RequestContext
from rewrap.server.hosts import is_loopback
from rewrap.server.limits import Gate, RateLimit
from rewrap.server.limits import headers as limit_headers
from rewrap.server.serve import graceful, run
from rewrap.storage import open_store
from rewrap.storage.base import StoreDown
from rewrap.storage.sqlite import SQLiteStore
from rewrap.types import APIError, Backend, ChatRequest, Delta, Deltas, dumps, no_such_model
from rewrap.upstream.auto import AutoShape
from rewrap.upstream.client import TOO_LARGE, Client, bad_gateway
from rewrap.upstream.pool import Transport
from rewrap.upstream.router import CallableBackend, ModelRouter
from rewrap.upstream.shapes import known_shapes, shape_of
from rewrap.web.docs import THEME, WEBSOCKET_NOTE, docs_routes

__version__ = "0.1.0"
log = logging.getLogger("rewrap")


# Requests, checked by hand (extras/checks.py has a check for each field).


# The app.


class Rewrap(Starlette):
    """A Starlette app with Front in place of the default middleware stack."""

    def __init__(self, settings: Settings, gateway: "Gateway", **options: Any) -> None:
        super().__init__(**options)
        self.settings, self.gateway = settings, gateway
        self.front = EdgeMiddleware(self.router, settings)
        self.router.redirect_slashes = False

    def build_middleware_stack(self) -> ASGIApp:
        return self.front


class Gateway:
    """Settings, the backend, who may come in, and what is kept: what the routes share."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self.settings, self.backend = settings, backend
        self.backends = (
            [row for row, _, _ in backend.rows] if isinstance(backend, ModelRouter) else [backend]
        )
        own_keys = [
            row.key for row in self.backends if isinstance(row, ChatURL) and len(row.key) > 3
        ]
        self.secrets = settings.secrets() + own_keys  # for no log
        self.keys = [key.encode() for key in settings.api_keys]
        self.open = not self.keys and not settings.secret_key
        self.debug = log.isEnabledFor(logging.DEBUG)
        self.before, self.after = load_hooks(settings.hooks)
        limit, most = settings.rate_limit_per_minute, settings.max_concurrent_requests
        self.rate_limit = RateLimit(limit, settings.rate_limit_store_url) if limit else None
        self.gate = Gate(most) if most else None
        try:
            self.store = open_store(settings.store_url, settings.store_max_age_days or None)
        except ValueError as error:
            raise ValueError(f"STORE_URL: {error}") from None
        if settings.workers > 1 and isinstance(self.store, SQLiteStore) and not self.store.path:
            raise ValueError(
                "STORE_URL: a store in memory is not shared by WORKERS: name a file, sqlite:///chat.db"
            )
        self.stored = StoredCompletions(self.store, StoreDown, self.owner, self.metadata, figures)

    def authorize(self, call: RequestContext) -> str:
        """Who asks: "user:NAME", "key:KEY", "open:KEY" or "". Raises APIError 401.

        Where no key is asked for, one that is sent still tells its owner from others: it may be for the upstream.
        """
        scheme, _, key = call.header(b"authorization").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" and key.strip() else call.header(b"api-key")
        if self.open:
            return f"open:{key}" if key else ""
        if not key:
            message = "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            raise APIError(401, message, headers=BEARER, reason="no key")
        given = key.encode("latin-1")
        if any(hmac.compare_digest(given, known) for known in self.keys):
            call.key = key
            return f"key:{key}"
        if signed := keys.verify(self.settings.secret_key, key, revoked=self.settings.revoked_keys):
            call.key = key
            return f"user:{signed.user}"
        raise APIError(
            401,
            f"Incorrect API key provided: {masked(key)}.",
            code="invalid_api_key",
            headers=BEARER,
        )

    def for_upstream(self, call: RequestContext) -> str:
        """The client's own Authorization (or api-key, as Azure's clients send it), if it was not for this server."""
        if not self.open:
            return ""
        key = call.header(b"api-key")
        return call.header(b"authorization") or (f"Bearer {key}" if key else "")

    async def owner(self, request: Request) -> str:
        """Who asks, by any route but those that talk; within the same limits."""
        return owner_id(await self.admit(request.scope["call"]))

    async def metadata(self, request: Request) -> dict[str, str]:
        call: RequestContext = request.scope["call"]
        return parse_metadata(await call.body(self.settings.max_body_bytes))

    async def admit(self, call: RequestContext) -> str:
        """Who asks, if there is room for it now. Raises APIError 401, 429, 503.

        A key counts for itself, whoever else is at its address; one that is wrong, or may be any, for the address.
        """
        try:
            return self.authorize(call)
        finally:
            if self.rate_limit:
                verdict = await self.rate_limit.hit(call.key or call.address())
                call.headers += limit_headers(verdict)
                if not verdict.allowed:
                    message = f"Rate limit reached for requests: {verdict.limit} a minute. Please try again later."
                    raise APIError(429, message, type="requests", code="rate_limit_exceeded")

    async def chat(
        self, call: RequestContext, parse: Callable[..., ChatRequest], *args: str
    ) -> tuple[ChatRequest, Deltas]:
        """Who asks, what is asked, and the answer, which begins with the first step of the Deltas."""
        owner = await self.admit(call)
        if self.gate:
            self.gate.check()  # before a body that is large, and after one that came slowly
        body = await call.body(self.settings.max_body_bytes)
        if self.gate:
            self.gate.enter()
            call.gate = self.gate
        if self.debug:
            log.debug("%s %s", call.id, loggable(body, self.secrets))
        chat = call.chat = parse(body, *args)
        chat.backend = self.backend.name
        chat.authorization = self.for_upstream(call)
        if (
            not isinstance(self.backend, Mock) or self.backend.words_per_second
        ):  # one that never waits: 10 µs of 110
            call.watch()
        if not (
            self.before
            or self.after
            or chat.payload.get("store")
            or chat.payload.get("completion_id")
        ):
            return chat, self.backend.stream(chat)
        return chat, await self.accompanied(call, chat, owner_id(owner))

    async def models(self, request: Request, by_client: bool = True) -> list[dict[str, Any]]:
        """The backend's models; as its client's own key sees them, where that is the one for the upstream. Raises APIError."""
        call: RequestContext = request.scope["call"]
        if not isinstance(self.backend, Mock):
            call.watch()
        rows = await self.backend.models(self.for_upstream(call) if by_client else "")
        call.unwatch()
        return rows

    async def accompanied(self, call: RequestContext, chat: ChatRequest, owner: str) -> Deltas:
        """The answer of a chat that is stored, goes on, or has hooks: parsed, so that it can be seen and kept."""
        if chat.payload.get("completion_id"):
            await self.stored.go_on(chat, owner)
        stored = bool(chat.payload.get("store"))
        chat.relay, chat.stored = (
            False,
            stored,
        )  # upstreams repeat their ids: what is stored has one of ours
        if stored:
            dumps(chat.payload)  # what cannot be written is refused now, not after the answer
        if self.before:
            before = list(chat.messages)
            await run_hooks(self.before, chat)
            chat.body = b""
            if chat.new_messages is not None:
                chat.new_messages = still_new(before, chat.new_messages, chat.messages)
        deltas = self.backend.stream(chat)
        if stored or (self.after and chat.stream):
            return self.seen(chat, deltas, (owner, call.id) if stored else None)
        return deltas

    async def finished(self, chat: ChatRequest, deltas: list[Delta]) -> dict[str, Any]:
        """The completion, after the hooks have seen it."""
        whole = chat.completion = completion(chat, deltas)
        if self.after:
            await run_hooks(self.after, chat, whole)
        return whole

    async def seen(
        self, chat: ChatRequest, deltas: Deltas, kept_for: tuple[str, str] | None
    ) -> Deltas:
        """The same Deltas; before their end the hooks see the completion, and the store has it (for an owner, by a request)."""
        all_of_them: list[Delta] = []
        left = self.settings.max_reply_bytes
        async with aclosing(deltas):
            async for delta in deltas:
                more = (
                    orjson.dumps([delta.fields, delta.logprobs])
                    if delta.fields or delta.logprobs
                    else b""
                )
                left -= 100 + len(delta.content) + len(more)  # 100: about what an empty one takes
                if left < 0:
                    raise bad_gateway(TOO_LARGE, "too large", self.settings.upstream_failure_status)
                all_of_them.append(delta)
                yield delta
        whole = await self.finished(chat, all_of_them)
        if kept_for:
            await self.stored.put(chat, whole, *kept_for)


class ChatCompletions:
    """POST /v1/chat/completions: one JSON object, or SSE chunks if `stream` is true."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: RequestContext = scope["call"]
        path_model = scope["path_params"].get("model", "")
        chat, deltas = await self.gateway.chat(
            call, parse_chat, self.gateway.settings.openai_model, path_model
        )
        if chat.stream:
            await stream(call, chat, deltas, Chunks(chat))
            return
        async with aclosing(deltas):
            found = [delta async for delta in deltas]
        if len(found) == 1 and found[0].raw:
            body = found[0].raw
        else:
            body = orjson.dumps(chat.completion or await self.gateway.finished(chat, found))
        call.unwatch()
        await call.respond(200, JSON_TYPE + chat.headers, body)


class Ask:
    """POST /ask: the reply as plain text, in pieces as they come."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        backend = gateway.backend
        self.model = gateway.settings.openai_model or (
            backend.default() if isinstance(backend, ModelRouter) else "default"
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: RequestContext = scope["call"]
        chat, deltas = await self.gateway.chat(call, parse_ask, self.model)
        await stream(call, chat, deltas, PlainText(chat))


async def stream(
    call: RequestContext, chat: ChatRequest, deltas: Deltas, rendering: Chunks | PlainText
) -> None:
    """Send Deltas as they come. A failure before the first has its own status; one after it, the rendering's form."""
    async with aclosing(deltas):  # a client that goes away closes the upstream, too
        first = await anext(deltas, None)
        await call.send_start(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [*rendering.headers, *chat.headers],
            }
        )
        send = call.raw_send
        try:
            if first is not None:
                body = rendering(first)
                await send({"type": "http.response.body", "body": body, "more_body": True})
            async for delta in deltas:
                if body := delta.raw or rendering(delta):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            end = rendering.end()
        except (
            Exception,
            asyncio.CancelledError,
        ) as exc:  # what hooks and backends of one's own raise, too
            cancelled = isinstance(exc, asyncio.CancelledError)
            error = call.cancelled() if cancelled else call.scope["app"].front.api_error(call, exc)
            call.error = error.reason if error else ""
            if error is None or (told := rendering.failure(error)) is None:
                return
            end = told
    call.unwatch()
    await send({"type": "http.response.body", "body": end})


def create_app(
    settings: Settings | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    backend: Backend | Callable[[ChatRequest], Any] | None = None,
) -> Rewrap:
    """The app. Raises ValueError, in one line, for settings that cannot be.

    `transport` is the way to the upstream: a mock in tests, a pool of our own without one. `backend` answers instead of what
    the settings name: a Backend, or a function of the Chat that gives or yields text.
    """
    settings = settings or Settings()
    settings = replace(settings, revoked_keys=keys.revoked_ids(settings.revoked_keys))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    log.setLevel(settings.log_level.upper())
    timeout = settings.connect_timeout_seconds
    transport = transport or Transport(
        settings.max_connections, timeout, proxy=settings.upstream_proxy
    )
    client = Client(transport, timeout)
    if backend is None:
        backend = build_backend(settings, client)
    gateway = Gateway(settings, CallableBackend(backend) if callable(backend) else backend)

    async def models(request: Request) -> Response:
        """GET /v1/models: the models of the backend."""
        await gateway.owner(request)
        return JSON({"object": "list", "data": await gateway.models(request)})

    async def model(request: Request) -> Response:
        """GET /v1/models/{id}: one model."""
        await gateway.owner(request)
        id = request.path_params["id"]
        for row in await gateway.models(request):
            if row["id"] == id:
                return JSON(row)
        raise no_such_model(id)

    async def health(request: Request) -> Response:
        """GET / and GET /health: whether it serves."""
        return JSON(
            {"status": "ok", "message": "Healthy", "name": "rewrap", "version": __version__}
        )

    async def info(request: Request) -> Response:
        """GET /info: who answers, and the theme of the pages."""
        try:
            names = [row["id"] for row in await gateway.models(request, by_client=False)]
        except APIError:
            names = []
        about = {
            "name": "rewrap",
            "version": __version__,
            "description": "Any chat URL as an OpenAI API",
        }
        return JSON(
            about
            | {"backends": [row.name for row in gateway.backends], "models": names, "theme": THEME}
        )

    async def websocket_note(request: Request) -> Response:
        """GET /docs/websocket: what to use in place of websockets."""
        return JSON(WEBSOCKET_NOTE)

    @asynccontextmanager
    async def lifespan(app: Rewrap) -> AsyncIterator[None]:
        if not announced and parent_process() is None:
            log.info(
                "rewrap %s: %s%s",
                __version__,
                backend_summary(gateway.backend),
                auth_summary(gateway),
            )
        app.front.stopping = False
        if (
            app.front.logs_lines
        ):  # one line a request, ours; where this is only mounted, no lifespan comes here
            logging.getLogger("uvicorn.access").disabled = True
        await gateway.store.open()
        async with (
            transport,
            graceful(app.front.drain, settings.grace_seconds),
        ):  # a closed client would not start again
            yield
        app.front.access.flush()
        await gateway.store.close()
        if gateway.rate_limit:
            await gateway.rate_limit.close()

    chat_completions = ChatCompletions(gateway)
    routes = [
        Route("/chat/completions", chat_completions, methods=["POST"]),
        Route("/openai/deployments/{model}/chat/completions", chat_completions, methods=["POST"]),
        Route("/ask", Ask(gateway), methods=["POST"]),
        *gateway.stored.routes(),
        Route("/models", models),
        Route("/models/{id:path}", model),
        Route("/", health),
        Route("/health", health),
        Route("/info", info),
        Route("/docs/websocket", websocket_note),
        *docs_routes(document(__version__), assets=settings.docs_assets_url, theme=THEME),
    ]
    return Rewrap(settings, gateway, routes=routes, lifespan=lifespan)


def auth_summary(gateway: Gateway) -> str:
    return "; open: no key is asked for" if gateway.open else "; with a key"


def load_app() -> Rewrap:
    """The app of the environment. Bad configuration stops the start with one line."""
    try:
        return create_app(Settings.load())
    except ValueError as error:
        sys.exit(f"rewrap: {error}")


announced = False


def serve(settings: Settings) -> None:
    """Until a signal. The one line at the start says where, and who answers."""

    def announce(address: str) -> None:
        global announced
        announced = True
        log.info(
            "rewrap %s on %s: %s%s",
            __version__,
            address,
            backend_summary(app.gateway.backend),
            auth_summary(app.gateway),
        )
        if app.gateway.open and not is_loopback(settings.host):
            log.warning(
                "HOST is %s, and neither API_KEYS nor SECRET_KEY is set: whoever reaches it may chat.",
                settings.host,
            )

    run(
        app if settings.workers == 1 else "main:app",
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        announce=announce,
    )


app = load_app()

if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            serve(app.settings)
        case ["key", *arguments]:
            sys.exit(keys.run(arguments, app.settings.secret_key))
        case ["probe", *arguments]:
            sys.exit(probe.run(arguments, known_shapes(), AutoShape(), shape_of))
        case _:
            sys.exit(
                "rewrap: main.py serves; main.py key USER makes a key; main.py probe URL finds out what a URL speaks"
            )
