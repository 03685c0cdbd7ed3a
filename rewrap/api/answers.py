"""POST /v1/embeddings and /v1/moderations where no OpenAI-compatible upstream answers them.

Does not know backends: it is given their functions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from rewrap.api.embeddings import embedding_list, parse_embeddings
from rewrap.api.moderations import CATEGORIES, moderation
from rewrap.api.requests import parse_object
from rewrap.types import APIError, Backend, JSONObject

Vectors = list[list[float]]


class Embedder(Protocol):
    """Makes vectors of texts."""

    async def __call__(
        self, model: str, inputs: list[str | list[int]], dimensions: int
    ) -> tuple[Vectors, int | None]:
        """A vector for each input, and the tokens if they are counted. Raises APIError."""


@dataclass(frozen=True, slots=True)
class LocalEmbeddings:
    """The answer to a request for embeddings, by the backend's `embed` if it has one."""

    backend_of: Callable[[str], Backend]  # the backend of a model; it raises APIError
    default_model: str

    async def __call__(self, body: bytes, path_model: str) -> JSONObject:
        """Raises APIError."""
        request = parse_embeddings(with_path_model(body, path_model), self.default_model)
        backend = self.backend_of(request.model)
        embed: Embedder | None = getattr(backend, "embed", None)
        if embed is None:
            raise lacks(backend, "embeddings")
        vectors, tokens = await embed(request.model, request.inputs, request.dimensions)
        if request.dimensions and any(len(vector) != request.dimensions for vector in vectors):
            message = "The backend's vectors have another number of dimensions."
            raise APIError(400, message, param="dimensions", code="unsupported_parameter")
        return embedding_list(request, vectors, tokens)


@dataclass(frozen=True, slots=True)
class LocalModerations:
    """The answer to a request for a moderation, by the backend's `judge` if it has one."""

    backend_of: Callable[[str], Backend]

    async def __call__(self, body: bytes, path_model: str) -> JSONObject:
        """Raises APIError."""
        payload = with_path_model(body, path_model)
        model = payload.get("model")
        backend = self.backend_of(model if isinstance(model, str) else "")
        judge = getattr(backend, "judge", None)
        if judge is None:
            raise lacks(backend, "moderations")
        return moderation(payload, partial(judge, CATEGORIES))


def with_path_model(body: bytes, path_model: str) -> JSONObject:
    """The object of a body, with the model that Azure's paths name. Raises APIError."""
    payload = parse_object(body)
    if path_model:
        payload["model"] = path_model
    return payload


def lacks(backend: Backend, name: str) -> APIError:
    """The error for an endpoint that a backend has no place for."""
    message = (
        f"The backend {backend.name!r} has no {name}: it has chat completions, responses and "
        "completions."
    )
    return APIError(404, message, reason=f"no {name}")
