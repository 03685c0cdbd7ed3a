"""Backends: each turns a ChatRequest into a stream of Deltas.

Mock (rewrap/mock/backend.py) answers by itself. ChatURL asks any chat URL in its shape. OpenAI relays an OpenAI-compatible upstream. `build_backend`
makes the one that the settings name. A backend does not know which API is served: that is a rendering's business.
Imports types, leaf files, config, mock and upstream; never Starlette, the server or the APIs.
"""

import logging
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

import httpx

from rewrap.config.backends_file import BackendTable, read_backends_file
from rewrap.config.settings import Settings, variables
from rewrap.eventloop import running_loop
from rewrap.memory import gathered
from rewrap.redaction import safe_address, secrets_in
from rewrap.threads import apart, encoded
from rewrap.types import (
    CLIENT_HEADERS,
    APIError,
    Backend,
    ChatRequest,
    Checks,
    Delta,
    Deltas,
    JSONObject,
    Limits,
    Outgoing,
    ResponseInfo,
    Shape,
    UpstreamRejection,
    model_card,
    prompt_size,
)
from rewrap.upstream.answers import Answer, Exchange, Opened, Prepared, WholeReply, read_rejection
from rewrap.upstream.auto import AutoShape, shape_of
from rewrap.upstream.client import USER_AGENT, Client, header_list, slash_redirect
from rewrap.upstream.deltas import DeltaNormalizer, normalized_whole, take_identity
from rewrap.upstream.errors import (
    CUT_SHORT,
    FAILED,
    NO_REPLY,
    UPSTREAM_ERRORS,
    bad_gateway,
    forwardable_headers,
    reason_of,
    rejection_error,
    upstream_error,
)
from rewrap.upstream.explain import Explainer
from rewrap.upstream.models import ModelList, fetch_models
from rewrap.upstream.params import Params
from rewrap.upstream.relay import ModelAlias, RelayStream, checked_completion, relayed
from rewrap.upstream.router import BackendRow, ModelRouter
from rewrap.upstream.tables import check_constant
from rewrap.upstream.targets import Targets
from rewrap.upstream.traffic import Traffic
from rewrap.upstream.unsupported import DroppedParts

log = logging.getLogger("rewrap")
EXAMPLE = ChatRequest("m", [], {"user": "u"}, session="s")  # to check the URL of a backend


# Any chat URL.


class ChatURL:
    """Any chat URL: asks it in its shape, and finds the reply in the answer.

    Sends    the shape's payload; AutoShape's is {"model", "messages": [{"role", "content": "a string"}], ...}
    Expects  JSON with the reply near the top, a JSON string, or plain text; SSE of JSON or text, NDJSON, or text in
             pieces, which are passed on as they arrive

    Raises APIError: 502 if it cannot be reached, breaks off, or sends nothing usable; 504 if it is silent for too long;
    429, 503 and errors of the request (400, 404, 413, 422) keep their status.
    """

    text_is_reply = True  # an answer of plain text is a reply
    transparent = False  # True (OpenAI): the upstream's own errors and models reach the client

    def __init__(
        self,
        client: Client,
        url: str,
        shape: Shape,
        *,
        name: str = "chat-url",
        key: str = "",
        headers: Mapping[str, str] | None = None,
        model: str = "",
        params: Params | None = None,
        limits: Limits | None = None,
        failure_status: int = 502,
        forward_headers: Sequence[str] = (),
        responses: str = "auto",
        on_unsupported: str = "error",
    ) -> None:
        """The class OpenAI alone uses `responses`. Raises ValueError, httpx.InvalidURL or httpx.LocalProtocolError if no request can be sent to `url`."""
        self.client = client
        self.url = url
        self.shape = shape
        self.name = name
        self.key = key
        self.model = model
        self.params = params or Params()
        self.limits = limits or Limits()
        self.failure_status = failure_status
        self.check_dropped = DroppedParts(name, on_unsupported)
        self.traffic = Traffic()
        self.forward_headers = [name.lower() for name in forward_headers]
        self.own_headers = {name.lower(): value for name, value in (headers or {}).items()}
        self.has_key = bool(key) or "authorization" in self.own_headers
        self.secrets = secrets_in(url, key, self.own_headers)
        self.explain = Explainer(name, self.secrets)
        self.responses = responses
        shape.check(url)
        check_constant(self.own_headers)
        self.target = Targets(client, shape, self.own_headers, key, self.agent())
        for stream in (False, True):  # an unusable address or header stops the start
            self.target(shape.prepare(url, replace(EXAMPLE, stream=stream)).url, stream)

    @property
    def embed(self) -> object:
        """An Embedder that uses the shape of the URL; None if the shape has no embeddings."""
        from rewrap.upstream.embeddings import embedder_of

        return embedder_of(self)

    def agent(self) -> dict[str, str]:
        """The constant User-Agent; {} if each request has its own."""
        return {"user-agent": USER_AGENT}

    @property
    def summary(self) -> str:
        return f"{self.name} answers at {safe_address(self.url)}, for every model name"

    @property
    def default_model(self) -> str:
        """The model of a request without one; "" if the upstream has to name it."""
        return "" if self.transparent else self.name

    async def models(self, client_headers: Mapping[str, str]) -> list[JSONObject]:
        return [model_card(self.model or self.name)]

    def outgoing(self, request: ChatRequest) -> Outgoing:
        return self.shape.prepare(self.url, request)

    def dropped(self, request: ChatRequest) -> list[str]:
        """The parts of a request that have no place. Raises APIError 400 if they change its meaning."""
        return self.check_dropped(request, self.shape.dropped(request))

    def upstream_model(self, model: str) -> str:
        return self.params.model or model

    def headers_from(self, client_headers: Mapping[str, str]) -> dict[str, str]:
        """The client's headers that go to the upstream: those of FORWARD_HEADERS."""
        if not self.forward_headers:
            return {}
        return {
            name: client_headers[name] for name in self.forward_headers if name in client_headers
        }

    async def stream(self, request: ChatRequest, info: ResponseInfo) -> Deltas:
        prepared = await self.prepare_apart(request, info)
        del request  # while the upstream works, the bytes for it are kept alone
        async with Exchange(self, prepared, info) as answer:  # by `good_answer` and `failure`
            del prepared
            async with aclosing(self.read(answer, info)) as deltas:
                async for delta in deltas:
                    yield delta

    async def whole(self, request: ChatRequest, info: ResponseInfo) -> list[Delta]:
        prepared = await self.prepare_apart(request, info)
        del request
        async with Exchange(self, prepared, info) as answer:
            del prepared
            return await self.read_whole(answer, info)

    async def read_whole(self, answer: Answer, info: ResponseInfo) -> list[Delta]:
        """All Deltas of a good answer to a request without a stream."""
        opened = await answer.opened(self.shape.framing, text_is_reply=self.text_is_reply)
        if isinstance(opened, WholeReply):
            return self.deltas_in(opened, answer, info)  # its body's memory is reserved
        return await gathered(self.read(answer, info, opened))

    def prepare_apart(self, request: ChatRequest, info: ResponseInfo) -> Awaitable[Prepared]:
        info.accepted = not self.transparent  # no ping before a relay knows its status
        if self.client.journal is not None:
            self.client.journal.begin(request, info)
        return apart(self.prepare, request, info)

    def prepare(self, request: ChatRequest, info: ResponseInfo) -> Prepared:
        """The request to send. Raises APIError."""
        if not request.relay or not self.transparent:
            info.prompt_bytes = prompt_size(request.messages)
        adapted, dropped = self.params.applied(request)
        dropped = [*request.unsupported, *dropped, *self.dropped(adapted)]
        outgoing = self.outgoing(adapted)
        return Prepared(
            outgoing.url,
            self.headers_from(request.client_headers) | outgoing.headers,
            outgoing.body,
            dropped,
            stream=request.stream,
            relay=request.relay,
            stored=request.stored,
            choices=request.payload.get("n") or 1,
            chat=self.shape.chat(adapted),
        )

    async def good_answer(self, prepared: Prepared, info: ResponseInfo) -> Answer:
        """Send the request, and wait for the head of a good answer. Raises UpstreamRejection for any other."""
        target = self.target(prepared.url, prepared.stream)
        now = running_loop().time()
        # Fallbacks share the time of the first backend: they do not multiply it.
        info.deadline = info.deadline or now + self.limits.request
        total = min(now + self.limits.total, info.deadline)
        # The head of an answer in one piece comes when it is done.
        deadline = min(now + self.limits.first_byte, total) if prepared.stream else total
        reply = await self.client.ask(target, prepared.headers, prepared.body, deadline)
        try:
            self.traffic.answered()
            if moved := slash_redirect(prepared.url, reply.status, reply.headers):
                await reply.aclose()
                target = self.target(moved, prepared.stream)
                reply = await self.client.ask(target, prepared.headers, prepared.body, deadline)
            if not 200 <= reply.status < 300:
                raise await read_rejection(reply, self.shape)
        except BaseException:
            await reply.aclose()
            raise
        info.headers += forwardable_headers(reply.headers)
        if prepared.dropped:
            info.headers.append((b"x-dropped-params", header_list(prepared.dropped)))
        return Answer(
            reply,
            self.limits,
            self.failure_status,
            deadline=total,
            stream=prepared.stream,
            relay=prepared.relay,
            stored=prepared.stored,
            choices=prepared.choices,
            chat=prepared.chat,
        )

    def failure(
        self, headers: Mapping[str, str], exc: BaseException, answer: Answer | None
    ) -> APIError | None:
        """The client's error for an exception; None if it is no failure of the upstream."""
        if isinstance(exc, UpstreamRejection):
            return self.rejection_error(exc, headers, answer)
        if isinstance(exc, UPSTREAM_ERRORS):
            self.traffic.failed(exc)
            error = upstream_error(exc, self.failure_status)
            if answer is not None and isinstance(exc, ValueError):  # what came is not a reply
                self.explain(error, headers, answer)
            return error
        if isinstance(exc, (AttributeError, LookupError, TypeError, RecursionError)):
            log.error("%s: unexpected reply format", self.name, exc_info=exc)
            return bad_gateway(FAILED, type(exc).__name__, self.failure_status)
        return None

    def deltas_in(self, reply: WholeReply, answer: Answer, info: ResponseInfo) -> list[Delta]:
        """The Deltas of a good answer that came in one piece."""
        if not answer.stored:
            take_identity(reply.value, info)
        found = self.shape.answer(reply.value, answer.chat)
        if answer.chat is not None:
            answer.chat.close()
        return normalized_whole(found, info)

    async def read(
        self, answer: Answer, info: ResponseInfo, opened: Opened | None = None
    ) -> Deltas:
        """The Deltas of a good answer, in any framing; it may be `opened` already."""
        if opened is None:
            opened = await answer.opened(self.shape.framing, text_is_reply=self.text_is_reply)
        if isinstance(opened, WholeReply):
            for delta in self.deltas_in(opened, answer, info):
                yield delta
            return
        normalized = DeltaNormalizer(info)
        reader = self.shape.reader(answer.chat)
        async with aclosing(answer.events(opened)) as events:
            async for name, event in events:
                for delta in normalized(reader(name, event)):
                    yield delta
                if reader.done:
                    break
        answer.reply.linger()
        if not (reader.done or reader.complete or normalized.ended):
            raise bad_gateway(CUT_SHORT, "cut short", self.failure_status)
        if not normalized.started and not reader.finish:
            error = bad_gateway(NO_REPLY, "empty stream", self.failure_status)
            raise self.explain(error, {}, answer)
        if answer.chat is not None:
            answer.chat.close()
        for delta in normalized.end(reader.finish):
            yield delta

    def rejection_error(
        self,
        rejection: UpstreamRejection,
        headers: Mapping[str, str],
        answer: Answer | None = None,
    ) -> APIError:
        """The client's error, and a line for the log. `answer` is the good answer that holds the rejection."""
        error = rejection_error(
            rejection,
            self.secrets,
            own_key="authorization" not in headers,
            transparent=self.transparent,
            failure_status=self.failure_status,
        )
        if not rejection.is_clear:
            return self.explain(error, headers, answer, rejection)
        reason = reason_of(rejection, self.secrets)
        log.info("backend %s: the upstream answered %d: %r", self.name, rejection.status, reason)
        return error


# An OpenAI-compatible upstream.


class OpenAI(ChatURL):
    """An OpenAI-compatible upstream: its answers pass through as they are, byte for byte, with unknown fields.

    `api_base` ends where `/chat/completions` and `/models` begin. Without an `api_key` of ours, the client's own
    Authorization goes to the upstream.
    """

    text_is_reply = False
    transparent = True

    def __init__(
        self,
        client: Client,
        api_base: str,
        shape: Shape,
        *,
        name: str = "openai",
        **options: object,
    ) -> None:
        shape.check(api_base)
        address = httpx.URL(api_base)
        base = address.path.rstrip("/").removesuffix("/chat/completions")
        url = str(address.copy_with(path=f"{base}/chat/completions"))
        super().__init__(client, url, shape, name=name, **options)  # type: ignore[arg-type]
        self.api_base = address.copy_with(path=base or "/")
        self.fixed_headers = shape.headers(self.key, False) | self.own_headers | self.agent()
        models_url = str(address.copy_with(path=f"{base}/models"))
        self.models_target = client.target("GET", models_url, self.fixed_headers)
        default = [model_card(self.model)] if self.model else []
        self.model_list = ModelList(self.ask_models, default)

    def agent(self) -> dict[str, str]:
        return super().agent() if self.has_key else {}

    def headers_from(self, client_headers: Mapping[str, str]) -> dict[str, str]:
        """Without a key of ours, the client's key goes to the upstream, and takes the headers that belong to it along."""
        if self.has_key:
            return super().headers_from(client_headers)
        names = ("authorization", *CLIENT_HEADERS, *self.forward_headers)
        headers = {name: client_headers[name] for name in names if name in client_headers}
        agent = client_headers.get("user-agent")
        headers["user-agent"] = f"{agent} {USER_AGENT}" if agent else USER_AGENT
        return headers

    def outgoing(self, request: ChatRequest) -> Outgoing:
        """The client's own bytes where nothing was changed."""
        payload = request.payload
        if request.body and request.model == payload.get("model") and not request.stored:
            return Outgoing(self.url, {}, request.body)
        # A stored chat is stored here only. A second copy upstream would stay there after its deletion here.
        local = ("store", "metadata") if request.stored else ()
        members = {name: value for name, value in payload.items() if name not in local}
        members |= {"model": request.model, "messages": request.messages}
        return Outgoing(self.url, {}, encoded(members))

    def dropped(self, request: ChatRequest) -> list[str]:
        return []

    def read(self, answer: Answer, info: ResponseInfo, opened: Opened | None = None) -> Deltas:
        """The upstream's own bytes if the rendering takes them: a stream in whole events, a JSON answer whole."""
        info.accepted = True
        if not answer.relay or answer.stream != answer.is_event_stream():
            return super().read(answer, info, opened)
        if not answer.stream:
            return self.read_completion(answer, info)
        relay = RelayStream(
            self.limits.event_bytes,
            self.failure_status,
            one_choice=answer.choices == 1,
            alias=self.alias(info),
        )
        return relayed(answer.reply, relay, self.limits.stall, info)

    async def read_completion(self, answer: Answer, info: ResponseInfo) -> Deltas:
        yield await self.completion(answer, info)

    async def read_whole(self, answer: Answer, info: ResponseInfo) -> list[Delta]:
        if not answer.relay or answer.is_event_stream():
            return await super().read_whole(answer, info)
        return [await self.completion(answer, info)]

    async def completion(self, answer: Answer, info: ResponseInfo) -> Delta:
        body, info.usage = await apart(checked_completion, await answer.whole())
        alias = self.alias(info)
        return Delta(raw=alias(body) if alias else body)

    def alias(self, info: ResponseInfo) -> ModelAlias | None:
        """Puts the client's name of the model into answers, if the upstream has another name for it."""
        return ModelAlias(info.model) if self.params.model else None

    def checks(self, model: str) -> Checks:
        return Checks.ROUTING

    async def models(self, client_headers: Mapping[str, str]) -> list[JSONObject]:
        """The upstream's list, by the client's own key where that one goes upstream. Raises APIError."""
        if self.has_key or "authorization" not in client_headers:
            return await self.model_list.cards({})
        return await self.model_list.cards(self.headers_from(client_headers))

    async def ask_models(self, headers: dict[str, str]) -> list[JSONObject]:
        """The models that the upstream lists now; [] if it has no list. Raises APIError."""
        try:
            return await fetch_models(
                self.client,
                self.models_target,
                headers,
                self.shape,
                self.limits,
                self.failure_status,
            )
        except UpstreamRejection as rejection:
            error = self.rejection_error(rejection, headers)
            if error.status in (400, 404, 413, 422):  # the client's request has no fault
                error = bad_gateway(FAILED, error.reason, self.failure_status)
            raise error from None
        except UPSTREAM_ERRORS as exc:
            raise upstream_error(exc, self.failure_status) from exc


# The backend that the settings name.


def build_backend(settings: Settings, client: Client) -> Backend:
    """The backend of the settings. Raises ValueError, in one line that names the setting.

    USE_MOCK_API comes first, then CONFIG, CHAT_URL and OPENAI_API_BASE. With none of them the mock answers.
    """
    backend = None if settings.use_mock_api or settings.config else upstream(settings, client)
    if backend is not None and not settings.needs_mock():
        return backend  # no module of the mock is loaded
    from rewrap.mock.backend import configured_mock, connect_mocks

    mock = configured_mock(settings)
    if settings.replay:
        from rewrap.mock.replay import ReplayJournal

        client.keep_journal(ReplayJournal(mock.script))
    if settings.config and not settings.use_mock_api:
        tables = read_backends_file(settings.config, variables())
        backends = [table_backend(table, client, settings) for table in tables]
        connect_mocks(backends, mock.script)
        rows = zip(backends, tables, strict=True)
        return ModelRouter(
            [BackendRow(made, table.models, table.fallbacks) for made, table in rows]
        )
    return backend or mock


def upstream(settings: Settings, client: Client) -> Backend | None:
    """The backend of CHAT_URL or OPENAI_API_BASE; None if neither is set. Raises ValueError."""
    if settings.chat_url:
        return checked_backend(
            ChatURL,
            "CHAT_URL",
            client,
            settings,
            settings.chat_url,
            shape_of(settings.chat_shape, "CHAT_SHAPE"),
            key=settings.chat_key,
            headers=settings.chat_headers,
            model=settings.openai_model,
        )
    settings.check_no_chat_options()
    if not settings.openai_api_base:
        return None
    return checked_backend(
        OpenAI,
        "OPENAI_API_BASE",
        client,
        settings,
        settings.openai_api_base,
        AutoShape(),
        key=settings.openai_api_key,
        model=settings.openai_model,
        responses=settings.responses,
    )


def checked_backend(
    kind: type[ChatURL],
    place: str,
    client: Client,
    settings: Settings,
    url: str,
    shape: Shape,
    **options: object,
) -> Backend:
    """A backend whose URL and headers can be sent. Raises ValueError, which begins with `place`."""
    defaults = {
        "limits": settings.limits(),
        "failure_status": settings.upstream_failure_status,
        "forward_headers": settings.forward_headers,
        "on_unsupported": settings.on_unsupported,
    }
    try:
        return kind(client, url, shape, **(defaults | options))  # type: ignore[arg-type]
    except (httpx.InvalidURL, httpx.LocalProtocolError, APIError, ValueError) as error:
        text = str(error)
        raise ValueError(text if text.startswith(place) else f"{place}: {text}") from None


def table_backend(table: BackendTable, client: Client, settings: Settings) -> Backend:
    """The backend of one table of the file. Raises ValueError."""
    if table.kind == "mock":
        from rewrap.mock.backend import Mock

        return Mock(table.words_per_second, table.name, settings.max_reply_bytes)
    place = f"CONFIG: {settings.config}: backend {table.name!r}"
    return checked_backend(
        OpenAI if table.kind == "openai" else ChatURL,
        place,
        client,
        settings,
        table.url,
        shape_of(table.shape, f"{place}: {'mapping' if table.mapping else 'shape'}", table.mapping),
        name=table.name,
        key=table.key,
        headers=table.headers,
        params=Params(**table.params, model=table.model),
        limits=table.limits(settings.limits()),
        responses=table.responses or settings.responses,
    )
