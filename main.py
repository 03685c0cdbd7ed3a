"""rewrap turns any chat URL into an OpenAI API: routes, endpoints, the application factory.

A request takes this way: EdgeMiddleware -> Endpoint -> Gateway.admit -> parse -> ChatRequest -> Backend.stream (or `whole`)
-> Deltas -> rendering. A relayed stream soon takes a shorter one: ResponseInfo.write. Read this file, then rewrap/types.py,
then backends.py. `python main.py` serves; so does `uvicorn main:app`.
"""

import sys

if __name__ == "__main__":  # before all other imports: the command line prepares for them
    from rewrap.cli import main

    sys.exit(main())

import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache, cached_property, partial

import orjson
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rewrap import __version__
from rewrap.api import surfaces
from rewrap.api.answers import LocalModerations
from rewrap.api.health import HealthRoutes
from rewrap.api.info import InfoRoutes
from rewrap.api.openapi import document
from rewrap.api.parts import api_parts, stored_responses
from rewrap.api.recorder import Recorder
from rewrap.api.stored import StoredCompletions, StoredRoutes
from rewrap.api.surfaces import Incoming, OwnedSurface, Surface, Turn
from rewrap.backends import ChatURL, OpenAI, build_backend
from rewrap.config.notes import start_notes
from rewrap.config.settings import Settings
from rewrap.hooks import load_hooks
from rewrap.ids import owner_id, random_hex
from rewrap.memory import default_budget, gathered
from rewrap.mock import control_routes, mock_in
from rewrap.redaction import loggable
from rewrap.server import passing
from rewrap.server.app import EdgeApp
from rewrap.server.auth import Authenticator
from rewrap.server.context import RequestContext
from rewrap.server.edge import JSON_TYPE, EdgeOptions
from rewrap.server.heartbeat import Heartbeats
from rewrap.server.limits import Gate, RateLimit, count_request
from rewrap.server.logs import set_up_log
from rewrap.server.streaming import send_stream
from rewrap.storage import open_store
from rewrap.threads import apart
from rewrap.types import (
    NO_HEADERS,
    APIError,
    Backend,
    ChatRequest,
    Delta,
    Deltas,
    JSONObject,
    ResponseInfo,
    Whole,
    checks_of,
    no_such_model,
)
from rewrap.upstream.callable import CallableBackend
from rewrap.upstream.client import AsyncTransport, upstream_client
from rewrap.upstream.errors import TOO_LARGE, bad_gateway
from rewrap.upstream.native_responses import NativeResponses
from rewrap.upstream.passthrough import PassThrough, raw_transport
from rewrap.upstream.pool import Transport
from rewrap.upstream.router import ModelRouter
from rewrap.web.docs import THEME, docs_routes
from rewrap.web.pages import not_found_page, page_routes

log = logging.getLogger("rewrap")


class Gateway:
    """The parts that all endpoints share: the backend, authentication, limits, hooks and the store."""

    def __init__(self, settings: Settings, backend: Backend, transport: AsyncTransport) -> None:
        """Raises ValueError, in one line that names the setting."""
        self.transport = transport
        self.settings = settings
        self.backend = backend
        self.backend_whole: Whole | None = getattr(backend, "whole", None)
        self.backends = [backend]
        if isinstance(backend, ModelRouter):
            self.backends = [row.backend for row in backend.rows]
        self.debug = log.isEnabledFor(logging.DEBUG)
        self.auth = Authenticator(
            settings.api_keys,
            settings.secret_key,
            settings.revoked_keys,
            settings.forward_headers,
        )
        self.heartbeats = Heartbeats(settings.sse_ping_seconds)
        self.gate = Gate(settings.max_concurrent_requests)
        self.rate_limit: RateLimit | None = None
        per_minute = settings.rate_limit_per_minute
        if per_minute:
            self.rate_limit = RateLimit(per_minute, settings.rate_limit_store_url)
        self.mock = mock_in(self.backends)
        is_mock = backend is self.mock
        # The mock leaves no file, unless several processes share the store.
        in_memory = is_mock and settings.workers == 1
        url = settings.store_url or ("sqlite://" if in_memory else "sqlite:///chat.db")
        store = open_store(url, settings.store_max_age_days, shared=settings.workers > 1)
        self.parts = api_parts(any_id=is_mock and settings.mock_any_id)
        self.store = self.parts.store(store)
        before, after = load_hooks(settings.hooks)
        self.recorder = Recorder(
            before,
            after,
            StoredCompletions(self.store, settings.max_body_bytes),
            store_by_default=settings.store_by_default,
            reply_bytes=settings.max_reply_bytes,
            too_large=bad_gateway(TOO_LARGE, "too large", settings.upstream_failure_status),
            hook_seconds=settings.total_timeout_seconds,
        )
        self.passing = PassThrough(
            [row for row in self.backends if isinstance(row, OpenAI)],
            self.backend_of,
            partial(raw_transport, transport, settings.upstream_proxy),
            settings.max_connections,
            settings.connect_timeout_seconds,
        )
        keys = [row.key for row in self.backends if isinstance(row, ChatURL)]
        self.secrets = settings.secrets() + [key for key in keys if len(key) > 3]

    async def admit(self, context: RequestContext) -> str:
        """The owner of a request, after authentication and the rate limit. Raises APIError 401, 429.

        A verified key has a limit of its own. Missing or unverified keys share the limit of their address.
        """
        context.admitted = True
        identity = self.auth.identify(context)
        if self.rate_limit is not None:
            await count_request(self.rate_limit, context)
        if isinstance(identity, APIError):
            raise identity
        context.identity = identity
        return identity

    def client_headers(self, context: RequestContext) -> Mapping[str, str]:
        """The client's headers for the backend: those for the upstream; all but credentials for the mock."""
        if self.mock is None:
            return self.auth.upstream_headers(context)
        if self.backend is self.mock:
            if not self.mock.script.needs_headers(context.request_headers):
                return NO_HEADERS
        headers = self.auth.mock_headers(context)
        if self.backend is not self.mock:
            headers |= self.auth.upstream_headers(context)
        return headers

    async def owner(self, request: Request) -> str:
        """Admit a request, and give the owner of its stored completions. Raises APIError."""
        return owner_id(await self.admit(request.scope["context"]))

    async def body(self, request: Request) -> bytes:
        context: RequestContext = request.scope["context"]
        return await context.body(self.settings.max_body_bytes)

    def stream(self, request: ChatRequest, info: ResponseInfo, identity: str) -> Deltas:
        """The reply. Nothing is sent upstream until the stream is iterated. Raises APIError."""
        if self.recorder.concerns(request):
            return self.recorder.stream(self.backend, request, info, owner_id(identity))
        return self.backend.stream(request, info)

    def whole(
        self, request: ChatRequest, info: ResponseInfo, identity: str
    ) -> Coroutine[None, None, list[Delta]]:
        """The whole reply to a request without a stream. By the backend's `whole`, if it has one: that saves the mock 8 %."""
        if self.backend_whole is None or self.recorder.concerns(request):
            return gathered(self.stream(request, info, identity))
        return self.backend_whole(request, info)

    async def models(self, request: Request) -> list[JSONObject]:
        """The models, as the client's own key sees them if that key goes upstream. Raises APIError."""
        context: RequestContext = request.scope["context"]
        await self.admit(context)
        with context.watch():
            return await self.backend.models(self.auth.upstream_headers(context))

    def backend_of(self, model: str) -> Backend:
        """The backend of a model. Raises APIError if none has it."""
        if not isinstance(self.backend, ModelRouter):
            return self.backend
        found = self.backend.pick(model or self.backend.default_model)
        if found is None:
            raise no_such_model(model)
        return found

    async def public_models(self, request: Request) -> list[JSONObject]:
        """The models that every client may see. Raises APIError."""
        context: RequestContext = request.scope["context"]
        with context.watch():
            return await self.backend.models(NO_HEADERS)

    def model_names(self) -> list[str]:
        """The names of models that the configuration contains."""
        default = getattr(self.backend, "default_model", self.backend.name)
        names = getattr(self.backend, "model_names", [])
        return [name for name in (self.settings.openai_model, default, *names) if name]

    def summary(self) -> str:
        """The backends and the keys, for the line at the start."""
        backend = getattr(self.backend, "summary", f"{self.backend.name} answers")
        keys = "open: no key is needed" if self.auth.open else "with a key"
        return f"{backend}; {keys}"

    def notes(self, variables: Iterable[str]) -> list[str]:
        """Lines for the start, in an environment with these variables: what may be a mistake."""
        of_backend: list[str] = getattr(self.backend, "notes", [])
        return [*start_notes(self.settings, variables), *of_backend]

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """The store and the connections, for as long as the app serves."""
        await self.store.open()
        async with self.transport:
            yield
        await self.store.close()
        if self.rate_limit is not None:
            await self.rate_limit.close()


class Endpoint:
    """One API surface in front of the backend: a parser (bytes to ChatRequest) and a rendering (Deltas to bytes)."""

    def __init__(self, gateway: Gateway, surface: Surface) -> None:
        self.gateway = gateway
        self.surface = surface

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit, read and parse a request, and answer it."""
        context: RequestContext = scope["context"]
        gate = self.gateway.gate
        identity = await self.gateway.admit(context)
        gate.check()  # before the body, which may be large
        body = await context.body(self.gateway.settings.max_body_bytes)
        incoming = self.incoming(context, body, identity)
        del body
        with gate, context.watch():  # a body that arrives slowly has taken no place
            # No caller holds the body or the request: a long stream need not keep the conversation.
            serving = self.serve(context, incoming)
            del incoming
            await serving

    def incoming(self, context: RequestContext, body: bytes, identity: str) -> Incoming:
        gateway = self.gateway
        if gateway.debug:
            log.debug("%s %s", context.id, loggable(body, gateway.secrets))
        path_model = context.scope["path_params"].get("model", "")
        return Incoming(body, gateway.client_headers(context), path_model, identity, context.values)

    async def serve(self, context: RequestContext, incoming: Incoming) -> None:
        identity = incoming.identity
        parsing = self.surface.parse(incoming)
        del incoming
        await self.answer(context, await parsing, identity)

    async def answer(self, context: RequestContext, turn: Turn, identity: str) -> None:
        gateway = self.gateway
        request = turn.request
        info = ResponseInfo(
            id=f"chatcmpl-{random_hex()}",
            created=int(time.time()),
            model=request.model,
            backend=gateway.backend.name,
            request_id=context.id,
        )
        context.info = info
        rendering = turn.rendering(request, info)
        stream = partial(gateway.stream, identity=identity)
        if request.stream:
            deltas = turn.deltas(stream, info, rendering)
            context.holds_request = gateway.recorder.concerns(request) or turn.holds_request
            del request, turn
            await send_stream(context, rendering, deltas, gateway.heartbeats)
            return
        if turn.holds_request:
            asking = gathered(turn.deltas(stream, info, rendering))
        else:
            asking = gateway.whole(request, info, identity)
        del request, turn
        found = await asking
        context.use(info.wrap_send)
        if len(found) == 1 and found[0].raw:
            body = found[0].raw
        else:
            body = await apart(lambda: orjson.dumps(rendering.document(found)))
        await context.respond(200, JSON_TYPE + info.headers, body)


class ResponsesEndpoint(Endpoint):
    """POST /v1/responses: an upstream that has it gets the request as it is; any other gets a chat."""

    def __init__(
        self, gateway: Gateway, make_surface: Callable[[], OwnedSurface], native: NativeResponses
    ) -> None:
        self.gateway = gateway
        self.make_surface = make_surface
        self.native = native

    @cached_property
    def surface(self) -> OwnedSurface:  # type: ignore[override]
        """Made by the first request: it loads the modules of Responses."""
        return self.make_surface()

    async def serve(self, context: RequestContext, incoming: Incoming) -> None:
        if self.native.possible() and not await self.surface.is_own(incoming):
            request = passing.passed_request(
                context, "/responses", incoming.client_headers, incoming.body
            )
            answer = self.native.new_response(request)
            if answer is not None and await passing.passed_on(context, request, answer):
                return
        serving = super().serve(context, incoming)
        del incoming
        await serving


class Rewrap(EdgeApp):
    """The app: its settings, its gateway and its routes."""

    def __init__(self, settings: Settings, gateway: Gateway, routes: Sequence[BaseRoute]) -> None:
        options = EdgeOptions(
            allow_origins=settings.allow_origins,
            allowed_hosts=settings.allowed_hosts,
            grace_seconds=settings.grace_seconds,
            invalid_request_status=settings.invalid_request_status,
            not_found_page=partial(not_found_page, theme=THEME),
            forwarded_hops=settings.forwarded_hops if settings.forwarded_allow_ips == "*" else 0,
            max_memory_bytes=settings.max_memory_bytes or default_budget(settings.workers),
            max_concurrent_requests=settings.max_concurrent_requests,
        )
        super().__init__(routes, options, gateway)
        self.settings = settings
        self.gateway = gateway


def create_app(
    settings: Settings | None = None,
    transport: AsyncTransport | None = None,
    backend: Backend | Callable[[ChatRequest], object] | None = None,
) -> Rewrap:
    """The app. Raises ValueError, in one line that names the setting.

    `transport` carries requests to the upstream: a mock in tests; by default a pool of this project. `backend` replaces the one
    that the settings name: a Backend, or a function of a ChatRequest that returns or yields text. Reads no environment.
    """
    settings = settings or Settings()
    set_up_log(settings.log_level, settings.log_format)
    if transport is None:
        transport = Transport(
            settings.max_connections,
            settings.connect_timeout_seconds,
            proxy=settings.upstream_proxy,
            dns_seconds=settings.dns_seconds,
        )
    if backend is None:
        backend = build_backend(settings, upstream_client(settings, transport))
    elif callable(backend):
        backend = CallableBackend(backend, settings.limits())
    gateway = Gateway(settings, backend, transport)
    app = Rewrap(settings, gateway, routes(gateway))
    if settings.metrics:
        admit = None if settings.metrics_public else gateway.admit
        app.add_metrics(gateway.model_names(), gateway.store, admit)
    return app


def routes(gateway: Gateway) -> list[BaseRoute]:
    """All routes. EdgeMiddleware takes `/v1` and repeated slashes from a path before it is looked up here."""
    settings = gateway.settings
    backend = gateway.backend
    model = settings.openai_model or getattr(backend, "default_model", backend.name)
    chat_model = "" if settings.require_model else model
    checks = checks_of(backend)
    late = settings.late_instructions
    responses = cache(partial(stored_responses, gateway.store, settings.max_body_bytes))
    native = NativeResponses(gateway.passing, enabled=not settings.hooks)
    response_surface = partial(
        gateway.parts.surface, chat_model, checks, responses, late, settings.reasoning_as_summary
    )
    intake = passing.Intake(gateway.admit, gateway.client_headers, settings.max_body_bytes)
    response_routes = gateway.parts.routes(responses, gateway.owner, gateway.body).routes()
    embeddings = gateway.parts.embeddings(gateway.backend_of, model)
    endpoints: dict[str, ASGIApp] = {
        "/chat/completions": Endpoint(gateway, surfaces.ChatSurface(chat_model, checks, late)),
        "/responses": ResponsesEndpoint(gateway, response_surface, native),
        "/completions": Endpoint(gateway, surfaces.CompletionSurface(chat_model, checks)),
        "/embeddings": passing.UpstreamOrLocal(
            intake, "/embeddings", gateway.passing.find, embeddings
        ),
        "/moderations": passing.UpstreamOrLocal(
            intake, "/moderations", gateway.passing.find, LocalModerations(gateway.backend_of)
        ),
    }
    ask = Endpoint(gateway, surfaces.AskSurface(model or "default", checks))
    stored = StoredRoutes(gateway.store, gateway.owner, gateway.body)
    names = [backend.name for backend in gateway.backends]
    info = InfoRoutes(gateway.models, gateway.public_models, gateway.backend_of, names, THEME)
    health = HealthRoutes(gateway.store, gateway.backends)
    azure = "/openai/deployments/{model}"
    rest: list[BaseRoute] = control_routes(gateway.backends, gateway.owner, gateway.body)
    if settings.pass_through and gateway.passing.providers:
        pass_through = passing.PassThroughEndpoint(intake, gateway.passing.by_model)
        rest += [Route(f"{azure}/{{path:path}}", pass_through), Route("/{path:path}", pass_through)]
    return [
        *[Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()],
        *[Route(azure + path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()],
        Route("/ask", ask, methods=["POST"]),
        *passing.or_upstream(response_routes, intake, native.stored_response),
        *stored.routes(),
        *page_routes(settings.docs_assets_url, THEME, health.health),
        *health.routes(),
        *info.routes(),
        *docs_routes(partial(document, __version__), assets=settings.docs_assets_url, theme=THEME),
        *rest,
    ]


def load_app(settings: Settings | None = None) -> Rewrap:
    """The app of the environment. A wrong configuration stops the start with one line."""
    try:
        app = create_app(settings or Settings.load())
    except ValueError as error:
        sys.exit(f"rewrap: {error}")
    app.notes = app.gateway.notes(os.environ)
    return app


def __getattr__(name: str) -> Rewrap:
    """`main:app` for uvicorn, made when it is first used: an import reads no environment."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    app = load_app()
    globals()["app"] = app
    return app
