"""rewrap turns any chat URL into an OpenAI API: routes, endpoints, the application factory, the command line.

A request takes this way: EdgeMiddleware -> Endpoint -> Gateway.admit -> parse -> ChatRequest -> Backend.stream -> Deltas ->
rendering. Read this file, then rewrap/types.py, then backends.py. `python main.py` serves; so does `uvicorn main:app`.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, nullcontext
from functools import partial
from multiprocessing import parent_process

import httpx
import orjson
from rewrap.backends import ChatURL, Mock, backend_summary, build_backend
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rewrap import __version__
from rewrap.api.chat import ChatRendering, TextRendering
from rewrap.api.openapi import document
from rewrap.api.recorder import Recorder
from rewrap.api.requests import parse_ask, parse_chat
from rewrap.api.stored import JSONResponse, StoredCompletions, StoredRoutes
from rewrap.config.flags import Arguments, UsageError, parse_arguments
from rewrap.config.settings import Settings
from rewrap.hooks import load_hooks
from rewrap.ids import random_hex
from rewrap.redaction import loggable
from rewrap.server.auth import Authenticator, owner_id
from rewrap.server.context import RequestContext
from rewrap.server.edge import JSON_TYPE, EdgeMiddleware, EdgeOptions
from rewrap.server.hosts import is_loopback
from rewrap.server.limits import Gate, RateLimit, limit_exceeded, rate_limit_headers
from rewrap.server.serve import graceful, serve_app
from rewrap.storage import open_store
from rewrap.types import (
    APIError,
    Backend,
    ChatRequest,
    Deltas,
    JSONObject,
    Rendering,
    ResponseInfo,
    no_such_model,
)
from rewrap.upstream.callable import CallableBackend
from rewrap.upstream.client import Client
from rewrap.upstream.errors import TOO_LARGE, bad_gateway
from rewrap.upstream.pool import Transport
from rewrap.upstream.router import ModelRouter
from rewrap.web.docs import THEME, WEBSOCKET_NOTE, docs_routes

log = logging.getLogger("rewrap")

Parse = Callable[[bytes, str, str], ChatRequest]  # body, authorization, model in the path
DESCRIPTION = "Any chat URL as an OpenAI API"


class Gateway:
    """The parts that all endpoints share: the backend, authentication, limits, hooks and the store."""

    def __init__(
        self, settings: Settings, backend: Backend, transport: httpx.AsyncBaseTransport
    ) -> None:
        """Raises ValueError, in one line that names the setting."""
        self.transport = transport
        self.settings = settings
        self.backend = backend
        self.backends = [backend]
        if isinstance(backend, ModelRouter):
            self.backends = [row.backend for row in backend.rows]
        self.debug = log.isEnabledFor(logging.DEBUG)
        self.auth = Authenticator(settings.api_keys, settings.secret_key, settings.revoked_keys)
        self.gate = Gate(settings.max_concurrent_requests)
        self.rate_limit: RateLimit | None = None
        if settings.rate_limit_per_minute:
            self.rate_limit = RateLimit(
                settings.rate_limit_per_minute, settings.rate_limit_store_url
            )
        self.store = open_store(
            settings.store_url, settings.store_max_age_days, shared=settings.workers > 1
        )
        before, after = load_hooks(settings.hooks)
        self.recorder = Recorder(
            before,
            after,
            StoredCompletions(self.store),
            reply_bytes=settings.max_reply_bytes,
            too_large=bad_gateway(TOO_LARGE, "too large", settings.upstream_failure_status),
        )
        # A mock that never waits need not watch for its client's leaving: 10 µs of 110.
        self.waits = not isinstance(backend, Mock) or bool(backend.words_per_second)
        keys = [row.key for row in self.backends if isinstance(row, ChatURL)]
        self.secrets = settings.secrets() + [key for key in keys if len(key) > 3]

    async def admit(self, context: RequestContext) -> str:
        """The owner of a request, after authentication and the rate limit. Raises APIError 401, 429.

        A verified key has a limit of its own. Missing or unverified keys share the limit of their address.
        """
        identity = self.auth.identify(context)
        if self.rate_limit is not None:
            verdict = await self.rate_limit.hit(context.key or context.address())
            context.extra_headers += rate_limit_headers(verdict)
            if not verdict.allowed:
                raise limit_exceeded(verdict)
        if isinstance(identity, APIError):
            raise identity
        return identity

    async def owner(self, request: Request) -> str:
        """Admit a request, and give the owner of its stored completions. Raises APIError."""
        return owner_id(await self.admit(request.scope["context"]))

    async def body(self, request: Request) -> bytes:
        context: RequestContext = request.scope["context"]
        return await context.body(self.settings.max_body_bytes)

    async def deltas(
        self, request: ChatRequest, info: ResponseInfo, identity: str, request_id: str
    ) -> Deltas:
        """The reply. Nothing is sent upstream until the stream is iterated. Raises APIError."""
        if self.recorder.concerns(request):
            owner = owner_id(identity)
            return await self.recorder.stream(self.backend, request, info, owner, request_id)
        return self.backend.stream(request, info)

    async def models(self, context: RequestContext, authorization: str = "") -> list[JSONObject]:
        """The backend's models, as the client's own key sees them if that is the upstream's. Raises APIError."""
        with context.watch():
            return await self.backend.models(authorization)

    def auth_summary(self) -> str:
        if self.auth.open:
            return "open: no key is needed"
        return "with a key"

    def summary(self) -> str:
        """The backends and the keys, for the line at the start."""
        return f"{backend_summary(self.backend)}; {self.auth_summary()}"

    async def close(self) -> None:
        await self.store.close()
        if self.rate_limit is not None:
            await self.rate_limit.close()


class Endpoint:
    """One API surface: a parser (bytes to ChatRequest) and a rendering (Deltas to bytes)."""

    def __init__(
        self,
        gateway: Gateway,
        parse: Parse,
        rendering: Callable[[ChatRequest, ResponseInfo], Rendering],
    ) -> None:
        self.gateway = gateway
        self.parse = parse
        self.rendering = rendering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit, read and parse a request, and answer it."""
        context: RequestContext = scope["context"]
        gateway = self.gateway
        identity = await gateway.admit(context)
        gateway.gate.check()  # before the body, which may be large
        body = await context.body(gateway.settings.max_body_bytes)
        with gateway.gate:  # after the body, which may arrive slowly
            if gateway.debug:
                log.debug("%s %s", context.id, loggable(body, gateway.secrets))
            authorization = gateway.auth.upstream_authorization(context)
            path_model = scope["path_params"].get("model", "")
            # The answer alone holds the request: a long stream need not keep the conversation.
            await self.answer(context, self.parse(body, authorization, path_model), identity)

    async def answer(self, context: RequestContext, request: ChatRequest, identity: str) -> None:
        gateway = self.gateway
        info = ResponseInfo(
            id=f"chatcmpl-{random_hex()}",
            created=int(time.time()),
            model=request.model,
            backend=gateway.backend.name,
        )
        context.info = info
        rendering = self.rendering(request, info)
        deltas = await gateway.deltas(request, info, identity, context.id)
        watch = context.watch() if gateway.waits else nullcontext()
        if request.stream:
            del request
            await self.stream(context, rendering, deltas, info, watch)
            return
        del request
        with watch:
            async with aclosing(deltas):
                found = [delta async for delta in deltas]
        if len(found) == 1 and found[0].raw:
            body = found[0].raw
        else:
            body = orjson.dumps(rendering.document(found))
        await context.respond(200, JSON_TYPE + info.headers, body)

    async def stream(
        self,
        context: RequestContext,
        rendering: Rendering,
        deltas: Deltas,
        info: ResponseInfo,
        watch: AbstractContextManager[None],
    ) -> None:
        """Send Deltas as they come. A failure before the first has a status; one after it, the rendering's form."""
        async with aclosing(deltas):  # a client that leaves closes the upstream, too
            with watch:
                first = await anext(deltas, None)
                await context.start_stream([*rendering.headers, *info.headers])
                try:
                    if first is not None:
                        await context.send_body(rendering(first), more=True)
                    async for delta in deltas:
                        body = delta.raw or rendering(delta)
                        if body:
                            await context.send_body(body, more=True)
                    end = rendering.end()
                except (
                    Exception,
                    asyncio.CancelledError,
                ) as exc:  # hooks and user functions raise, too
                    failure = self.failure(context, rendering, exc)
                    if failure is None:
                        return
                    end = failure
        await context.send_body(end, more=False)

    def failure(
        self, context: RequestContext, rendering: Rendering, exc: BaseException
    ) -> bytes | None:
        """The last bytes of a stream that fails; None if the connection is cut, or the client left."""
        error: APIError | None
        if isinstance(exc, Exception):
            error = context.scope["app"].edge.api_error(context, exc)
        else:
            error = context.cancellation()
        if error is None:
            return None
        context.error = error.reason
        return rendering.failure(error)


class InfoRoutes:
    """The routes about the server itself."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/models", self.models),
            Route("/models/{id:path}", self.model),
            Route("/", self.health),
            Route("/health", self.health),
            Route("/info", self.info),
            Route("/docs/websocket", self.websocket_note),
        ]

    async def models(self, request: Request) -> Response:
        """GET /v1/models: the models of the backend."""
        cards = await self.cards(request)
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}: one model."""
        id = request.path_params["id"]
        for card in await self.cards(request):
            if card["id"] == id:
                return JSONResponse(card)
        raise no_such_model(id)

    async def cards(self, request: Request) -> list[JSONObject]:
        context: RequestContext = request.scope["context"]
        await self.gateway.admit(context)
        authorization = self.gateway.auth.upstream_authorization(context)
        return await self.gateway.models(context, authorization)

    async def health(self, request: Request) -> Response:
        """GET / and GET /health: the server runs."""
        return JSONResponse(
            {"status": "ok", "message": "Healthy", "name": "rewrap", "version": __version__}
        )

    async def info(self, request: Request) -> Response:
        """GET /info: backends, models, and the theme of the pages."""
        try:
            cards = await self.gateway.models(request.scope["context"])
        except APIError:
            cards = []
        return JSONResponse(
            {
                "name": "rewrap",
                "version": __version__,
                "description": DESCRIPTION,
                "backends": [backend.name for backend in self.gateway.backends],
                "models": [card["id"] for card in cards],
                "theme": THEME,
            }
        )

    async def websocket_note(self, request: Request) -> Response:
        """GET /docs/websocket: what to use instead of websockets."""
        return JSONResponse(WEBSOCKET_NOTE)


class Rewrap(Starlette):
    """A Starlette app with EdgeMiddleware in place of the default middleware stack."""

    def __init__(self, settings: Settings, gateway: Gateway, routes: Sequence[BaseRoute]) -> None:
        super().__init__(routes=routes, lifespan=self.lifespan)
        self.settings = settings
        self.gateway = gateway
        self.router.redirect_slashes = False
        self.announced = False  # the line at the start is logged
        options = EdgeOptions(
            allow_origins=settings.allow_origins,
            allowed_hosts=settings.allowed_hosts,
            grace_seconds=settings.grace_seconds,
            invalid_request_status=settings.invalid_request_status,
        )
        self.edge = EdgeMiddleware(self.router, options)

    def build_middleware_stack(self) -> ASGIApp:
        return self.edge

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        if not self.announced and parent_process() is None:
            log.info("rewrap %s: %s", __version__, self.gateway.summary())
        self.edge.stopping = False
        if self.edge.logs_lines:  # in place of uvicorn's lines; a mounted app gets no lifespan
            logging.getLogger("uvicorn.access").disabled = True
        await self.gateway.store.open()
        async with self.gateway.transport, graceful(self.edge.drain, self.settings.grace_seconds):
            yield
        self.edge.access_log.flush()
        await self.gateway.close()


def create_app(
    settings: Settings | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    backend: Backend | Callable[[ChatRequest], object] | None = None,
) -> Rewrap:
    """The app. Raises ValueError, in one line that names the setting.

    `transport` carries requests to the upstream: a mock in tests; by default a pool of this project. `backend` replaces the one
    that the settings name: a Backend, or a function of a ChatRequest that returns or yields text. Reads no environment.
    """
    settings = settings or Settings()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    log.setLevel(settings.log_level.upper())
    timeout = settings.connect_timeout_seconds
    if transport is None:
        transport = Transport(settings.max_connections, timeout, proxy=settings.upstream_proxy)
    if backend is None:
        backend = build_backend(settings, Client(transport, timeout))
    elif callable(backend):
        backend = CallableBackend(backend)
    gateway = Gateway(settings, backend, transport)
    return Rewrap(settings, gateway, routes(gateway))


def routes(gateway: Gateway) -> list[BaseRoute]:
    """All routes. The edge takes `/v1` and repeated slashes from a path before it is looked up here."""
    settings = gateway.settings
    backend = gateway.backend
    ask_model = settings.openai_model or "default"
    if isinstance(backend, ModelRouter) and not settings.openai_model:
        ask_model = backend.default_model()
    chat = Endpoint(gateway, partial(parse_chat, settings.openai_model), ChatRendering)
    ask = Endpoint(gateway, partial(parse_ask, ask_model), TextRendering)
    stored = StoredRoutes(gateway.store, gateway.owner, gateway.body)
    openapi = document(__version__)
    return [
        Route("/chat/completions", chat, methods=["POST"]),
        Route("/openai/deployments/{model}/chat/completions", chat, methods=["POST"]),
        Route("/ask", ask, methods=["POST"]),
        *stored.routes(),
        *InfoRoutes(gateway).routes(),
        *docs_routes(openapi, assets=settings.docs_assets_url, theme=THEME),
    ]


# The command line.


def load_app() -> Rewrap:
    """The app of the environment. A wrong configuration stops the start with one line."""
    try:
        return create_app(Settings.load())
    except ValueError as error:
        sys.exit(f"rewrap: {error}")


def __getattr__(name: str) -> Rewrap:
    """`main:app` for uvicorn, made when it is first used: an import reads no environment."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    app = load_app()
    globals()["app"] = app
    return app


def serve() -> None:
    """Serve until a signal. One line at the start has the address and the backends."""
    app = load_app()
    settings = app.settings

    def announce(address: str) -> None:
        app.announced = True
        log.info("rewrap %s on %s: %s", __version__, address, app.gateway.summary())
        if app.gateway.auth.open and not is_loopback(settings.host):
            log.warning(
                "HOST is %s, and neither API_KEYS nor SECRET_KEY is set: every client that reaches it may chat.",
                settings.host,
            )

    serve_app(
        app if settings.workers == 1 else "rewrap.main:app",
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        announce=announce,
    )


def check() -> int:
    """`rewrap check`: print the backends of a configuration. The exit status is 2 if it is wrong."""
    try:
        app = create_app(Settings.load())
    except ValueError as error:
        print(f"rewrap: {error}", file=sys.stderr)
        return 2
    print(f"rewrap: {app.gateway.summary()}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: `rewrap [serve|check|key|probe] ...`; gives the exit status."""
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        print(f"rewrap: {error}", file=sys.stderr)
        return 2
    os.environ |= arguments.settings  # workers are processes, and read the settings again
    return run_command(arguments)


def run_command(arguments: Arguments) -> int:
    match arguments.command:
        case "help" | "version":
            print(arguments.text)
        case "check":
            return check()
        case "key":
            from rewrap.server.keys import key_command

            try:
                secret_key = Settings.load().secret_key
            except ValueError as error:
                sys.exit(f"rewrap: {error}")
            return key_command(arguments.rest, secret_key)
        case "probe":
            from rewrap.probe import probe_command

            return probe_command(arguments.rest)
        case _:
            serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
