"""Embeddings of chat URLs whose shape has them: embeddings.toml has the requests and the answers.

Knows no endpoint of ours.
"""

import tomllib
from functools import cache
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx
import orjson

from rewrap.eventloop import running_loop
from rewrap.types import APIError, ChatRequest, Limits, Shape, UpstreamRejection
from rewrap.upstream.answers import read_rejection, read_whole
from rewrap.upstream.client import Client
from rewrap.upstream.errors import FAILED, UPSTREAM_ERRORS, bad_gateway, upstream_error
from rewrap.upstream.paths import first, parse_paths
from rewrap.upstream.shapes import MappedShape
from rewrap.upstream.tables import Table, checked_table, table_in, text_in
from rewrap.upstream.template import Template

SETTINGS = {"path", "request", "item", "vectors", "tokens"}
REQUEST_NAMES = ["model", "inputs", "items", "dimensions"]
ITEM_NAMES = ["model", "input", "dimensions"]


class EmbeddingForm:
    """The form of one shape's embeddings, compiled from its table."""

    def __init__(self, table: Table, name: str) -> None:
        checked_table(table, SETTINGS, f"{name}.")
        self.path = text_in(table, "path")
        self.request = Template(table["request"], REQUEST_NAMES, f"{name}.request")
        self.item = Template(table_in(table, "item"), ITEM_NAMES, f"{name}.item")
        self.vectors = parse_paths(table["vectors"], f"{name}.vectors")
        self.tokens = parse_paths(table.get("tokens", "nothing"), f"{name}.tokens")

    def url(self, shape: MappedShape, url: str, model: str) -> str:
        """The address of embeddings. Raises APIError if the chat's is one of its own."""
        chat_url = shape.url(url, ChatRequest(model, [], {}))
        if not self.path:
            return chat_url
        ending = shape.path.partition("?")[0].rpartition("}")[2]
        parts = urlsplit(chat_url)
        if not parts.path.endswith(ending):
            raise APIError(404, "The address of the backend is not one with embeddings.")
        path = parts.path.removesuffix(ending) + self.path
        return parts._replace(path=path, query=parts.query).geturl()

    def body(self, model: str, inputs: list[str], dimensions: int) -> bytes:
        values: dict[str, object] = {"model": model, "inputs": inputs}
        if dimensions:
            values["dimensions"] = dimensions
        values["items"] = [self.item.fill(values | {"input": text}) for text in inputs]
        return orjson.dumps(self.request.fill(values))


@cache
def forms() -> dict[str, EmbeddingForm]:
    """The forms of embeddings.toml by the name of the shape."""
    tables = tomllib.loads(Path(__file__).with_name("embeddings.toml").read_text())
    return {name: EmbeddingForm(table, name) for name, table in tables.items()}


class ChatBackend(Protocol):
    """A backend that asks a chat URL in a shape."""

    name: str
    client: Client
    url: str
    shape: Shape
    key: str
    own_headers: dict[str, str]
    limits: Limits
    failure_status: int

    def upstream_model(self, model: str) -> str:
        """The upstream's name of a model."""

    def rejection_error(self, rejection: UpstreamRejection, headers: dict[str, str]) -> APIError:
        """The client's error for the upstream's."""


class ShapeEmbedder:
    """Asks a chat URL for embeddings in the form of its shape."""

    def __init__(self, backend: ChatBackend, shape: MappedShape, form: EmbeddingForm) -> None:
        self.backend = backend
        self.shape = shape
        self.form = form

    async def __call__(
        self, model: str, inputs: list[str | list[int]], dimensions: int
    ) -> tuple[list[list[float]], int | None]:
        """A vector for each input, and the tokens if the upstream counts them. Raises APIError."""
        texts = [text for text in inputs if isinstance(text, str)]
        if len(texts) < len(inputs):
            message = "The backend embeds texts: it takes no tokens."
            raise APIError(400, message, param="input", code="unsupported_parameter")
        backend = self.backend
        try:
            answer = await self.ask(backend.upstream_model(model), texts, dimensions)
            vectors = first(answer, self.form.vectors)
            if not is_vectors(vectors, len(texts)):
                raise ValueError("no vectors")
        except UpstreamRejection as rejection:
            raise backend.rejection_error(rejection, {}) from None
        except UPSTREAM_ERRORS as exc:
            raise upstream_error(exc, backend.failure_status) from exc
        except (LookupError, TypeError, RecursionError) as exc:
            raise bad_gateway(FAILED, type(exc).__name__, backend.failure_status) from exc
        tokens = first(answer, self.form.tokens)
        assert isinstance(vectors, list)
        return vectors, tokens if isinstance(tokens, int) else None

    async def ask(self, model: str, texts: list[str], dimensions: int) -> object:
        """The upstream's JSON. Raises UpstreamRejection, httpx.HTTPError, ValueError."""
        backend = self.backend
        url = self.form.url(self.shape, backend.url, model)
        headers = {"content-type": "application/json", "accept": "application/json"}
        headers |= self.shape.headers(backend.key, False) | backend.own_headers
        target = backend.client.target("POST", url, headers)
        deadline = running_loop().time() + backend.limits.total
        body = self.form.body(model, texts, dimensions)
        reply = await backend.client.ask(target, {}, body, deadline)
        try:
            if reply.status != httpx.codes.OK:
                raise await read_rejection(reply, self.shape)
            whole = await read_whole(reply, backend.limits, deadline, backend.failure_status)
            value: object = orjson.loads(whole)
            return value
        finally:
            await reply.aclose()


def is_vectors(value: object, count: int) -> bool:
    """Whether a value is a list of `count` lists of numbers."""
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(
        isinstance(row, list) and row and all(type(number) in (int, float) for number in row)
        for row in value
    )


def embedder_of(backend: ChatBackend) -> ShapeEmbedder | None:
    """The embeddings of a backend; None if its shape has none."""
    shape = backend.shape
    if not isinstance(shape, MappedShape) or shape.name not in forms():
        return None
    return ShapeEmbedder(backend, shape, forms()[shape.name])
