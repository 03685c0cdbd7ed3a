"""POST /v1/embeddings and /v1/moderations where no OpenAI-compatible upstream answers them.

Does not know backends: it is given their functions.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from rewrap.api.embeddings import embedding_list, parse_embeddings
from rewrap.api.moderations import CATEGORIES, moderation
from rewrap.api.requests import parse_object
from rewrap.structs import struct
from rewrap.types import APIError, Backend, ChatRequest, JSONObject, PassedRequest, ResponseInfo

Vectors = list[list[float]]


class Embedder(Protocol):
    """Makes vectors of texts."""

    async def __call__(
        self, model: str, inputs: list[str | list[int]], dimensions: int
    ) -> tuple[Vectors, int | None]:
        """A vector for each input, and the tokens if they are counted. Raises APIError."""


class ScriptedInput(Protocol):
    """The answer of a rule to one input: a vector or categories, where the rule has them."""

    @property
    def embedding(self) -> tuple[float, ...]: ...

    @property
    def flagged(self) -> tuple[str, ...]: ...


class Scripted(Protocol):
    """A backend's `answers_to`: the mock's rules."""

    async def __call__(
        self, request: ChatRequest, info: ResponseInfo
    ) -> Sequence[ScriptedInput | None]:
        """An answer or None for each message of the request. Raises APIError."""


@struct(frozen=True, slots=True)
class LocalEmbeddings:
    """The answer to a request for embeddings, by the backend's `embed` if it has one."""

    backend_of: Callable[[str], Backend]  # the backend of a model; it raises APIError
    default_model: str

    async def __call__(self, passed: PassedRequest, info: ResponseInfo) -> JSONObject:
        """Raises APIError."""
        payload = payload_of(passed)
        request = parse_embeddings(payload, self.default_model)
        backend = self.backend_of(request.model)
        embed: Embedder | None = getattr(backend, "embed", None)
        if embed is None:
            raise lacks(backend, "embeddings")
        info.model = request.model
        texts = [text if isinstance(text, str) else str(text) for text in request.inputs]
        scripted = await answers_to(
            backend, chat_form("embeddings", passed, payload, texts, info), info
        )
        vectors, tokens = await embed(request.model, request.inputs, request.dimensions)
        for position, answer in enumerate(scripted):
            if answer is not None and answer.embedding:
                vectors[position] = list(answer.embedding)
        if request.dimensions and any(len(vector) != request.dimensions for vector in vectors):
            message = "The backend's vectors have another number of dimensions."
            raise APIError(400, message, param="dimensions", code="unsupported_parameter")
        return embedding_list(request, vectors, tokens)


@struct(frozen=True, slots=True)
class LocalModerations:
    """The answer to a request for a moderation, by the backend's `judge` if it has one."""

    backend_of: Callable[[str], Backend]

    async def __call__(self, passed: PassedRequest, info: ResponseInfo) -> JSONObject:
        """Raises APIError."""
        payload = payload_of(passed)
        model = payload.get("model")
        info.model = model if isinstance(model, str) else ""
        backend = self.backend_of(info.model)
        judge = getattr(backend, "judge", None)
        if judge is None:
            raise lacks(backend, "moderations")
        texts: list[str] = []

        def collect(text: str) -> Collection[str]:
            texts.append(text)
            return ()

        moderation(payload, collect)  # checks the request as well
        scripted = await answers_to(
            backend, chat_form("moderations", passed, payload, texts, info), info
        )
        flags = {
            text: answer.flagged
            for text, answer in zip(texts, scripted, strict=False)
            if answer is not None and answer.flagged
        }
        return moderation(payload, lambda text: flags.get(text) or judge(CATEGORIES, text))


def chat_form(
    api: str,
    passed: PassedRequest,
    payload: JSONObject,
    texts: Sequence[str],
    info: ResponseInfo,
) -> ChatRequest:
    """The request as rules see it: each input is a user message."""
    messages: list[JSONObject] = [{"role": "user", "content": text} for text in texts or [""]]
    headers: Mapping[str, str] = passed.client_headers
    return ChatRequest(info.model, messages, payload, client_headers=headers, api=api)


async def answers_to(
    backend: Backend, request: ChatRequest, info: ResponseInfo
) -> Sequence[ScriptedInput | None]:
    """The answers of the backend's rules; none if it has no rules. Raises APIError."""
    info.backend = backend.name
    scripted: Scripted | None = getattr(backend, "answers_to", None)
    if scripted is None:
        return ()
    return await scripted(request, info)


def payload_of(passed: PassedRequest) -> JSONObject:
    """The object of a body, with the model that Azure's paths name. Raises APIError."""
    assert isinstance(passed.body, bytes)
    payload = parse_object(passed.body)
    if passed.model:
        payload["model"] = passed.model
    return payload


def lacks(backend: Backend, name: str) -> APIError:
    """The error for an endpoint that a backend has no place for."""
    message = (
        f"The backend {backend.name!r} has no {name}: it has chat completions, responses and "
        "completions."
    )
    return APIError(404, message, reason=f"no {name}")
