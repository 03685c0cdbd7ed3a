"""Who answers: the backend that the settings, or a file of several, name; and how the start line calls it.

Makes backends, and does not ask them anything. What cannot be is a ValueError of one line, which names the setting.
"""

import re
from dataclasses import replace
from typing import Any

import httpx

from rewrap.backends import ChatURL, Mock, OpenAI
from rewrap.config.backends_file import BackendTable, read_config
from rewrap.config.settings import Settings, variables
from rewrap.types import APIError, Backend, ChatRequest, Limits, Shape
from rewrap.upstream.auto import AutoShape
from rewrap.upstream.client import Client
from rewrap.upstream.params import Params
from rewrap.upstream.router import ModelRouter
from rewrap.upstream.shapes import shape_named, shape_of


def build_backend(settings: Settings, client: Client) -> Backend:
    """Who answers: the mock where it is asked for or nothing is named; a file of several before one that is set here."""
    limits = Limits(
        settings.first_byte_timeout_seconds,
        settings.stall_timeout_seconds,
        settings.total_timeout_seconds,
        settings.max_reply_bytes,
        settings.max_event_bytes,
    )
    common: dict[str, Any] = {"limits": limits, "failure_status": settings.upstream_failure_status}
    if settings.use_mock_api:
        return Mock(settings.mock_words_per_second, reply_bytes=limits.reply_bytes)
    if path := settings.config:
        rows = [
            (backend_from(table, client, common, path), table)
            for table in read_config(path, variables())
        ]
        return ModelRouter([(backend, table.models, table.fallbacks) for backend, table in rows])
    common["model"] = settings.openai_model
    if settings.chat_url:
        shape = (
            shape_named(settings.chat_shape, "CHAT_SHAPE") if settings.chat_shape else AutoShape()
        )
        common |= {"key": settings.chat_key, "headers": settings.chat_headers}
        return checked_backend(ChatURL, "CHAT_URL", client, settings.chat_url, shape, **common)
    for name in ("chat_shape", "chat_key", "chat_headers"):
        if getattr(settings, name):
            raise ValueError(f"{name.upper()} is set, and CHAT_URL is not")
    if base := settings.openai_api_base:
        return checked_backend(
            OpenAI,
            "OPENAI_API_BASE",
            client,
            base,
            AutoShape(),
            key=settings.openai_api_key,
            **common,
        )
    return Mock(settings.mock_words_per_second, reply_bytes=limits.reply_bytes)


def checked_backend(
    kind: type[ChatURL], where: str, client: Client, url: str, shape: Shape, **options: Any
) -> Backend:
    """A backend that can be asked, streaming too. Raises ValueError, which begins with `where`."""
    try:
        backend = kind(client, url, shape, **options)
        backend.target(
            shape.url(backend.url, ChatRequest("m", [], {"user": "u"}, stream=True)), True
        )
    except (httpx.InvalidURL, httpx.LocalProtocolError, APIError, ValueError) as error:
        said = str(error)
        raise ValueError(said if said.startswith(where) else f"{where}: {said}") from None
    return backend


def backend_from(table: BackendTable, client: Client, common: dict[str, Any], path: str) -> Backend:
    """One backend of the file. Raises ValueError."""
    if table.kind == "mock":
        return Mock(table.words_per_second, table.name, common["limits"].reply_bytes)
    where = f"CONFIG: {path}: backend {table.name!r}"
    names = ("first_byte", "stall", "total")
    seconds = {
        name: value for name in names if (value := getattr(table, f"{name}_timeout_seconds"))
    }
    options = common | {
        "name": table.name,
        "key": table.key,
        "headers": table.headers,
        "params": Params(**table.params, model=table.model),
        "limits": replace(common["limits"], **seconds),
    }
    shape: Shape = AutoShape()
    if table.mapping:
        shape = shape_of(table.mapping, f"{where}: mapping")
    elif table.shape:
        shape = shape_named(table.shape, f"{where}: shape")
    return checked_backend(
        OpenAI if table.kind == "openai" else ChatURL, where, client, table.url, shape, **options
    )


def backend_summary(backend: Backend) -> str:
    """One line for the start; of a URL only what is no secret."""
    if isinstance(backend, Mock):
        return f"the mock answers, as {backend.model} or any other name"
    if isinstance(backend, ModelRouter):
        rows = [
            f"{row.name}{safe_address(row)} for {', '.join(patterns)}"
            for row, patterns, _ in backend.rows
        ]
        return "; ".join(rows)
    return f"{backend.name} answers{safe_address(backend)}, for every model name"


def safe_address(backend: Backend) -> str:
    """at the address of a backend, without what may be a key: user, query, fragment, a long part of a webhook's path."""
    if not isinstance(backend, ChatURL):
        return ""
    url = httpx.URL(backend.url)
    path = re.sub(r"(?<=/)(?=[^/]*[0-9])[^/]{16,}", "***", url.path)
    return f" at {url.scheme}://{url.netloc.decode()}{path}"
