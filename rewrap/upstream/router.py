"""Backends made of others: several, picked by the model's name, with fallbacks; and a function of one's own.

Takes the plain types from backends; asks nobody itself.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from contextlib import aclosing, nullcontext
from fnmatch import fnmatchcase
from inspect import isasyncgenfunction, isawaitable, iscoroutinefunction
from typing import Any
from urllib.parse import urlsplit

from rewrap.types import APIError, Backend, ChatRequest, Delta, Deltas, model_card, no_such_model

log = logging.getLogger("rewrap")


class ModelRouter:
    """Several backends: the name of the model picks one; others stand in where that fails before its first Delta.

    `rows` are (backend, patterns of model names, names of its fallbacks); an exact name goes before a pattern, a longer
    pattern before a shorter one.
    """

    name = "several"

    def __init__(self, rows: list[tuple[Backend, list[str], list[str]]]) -> None:
        self.rows = rows
        named = {backend.name: backend for backend, _, _ in rows}
        self.fallbacks = {
            backend.name: [named[name] for name in names] for backend, _, names in rows
        }

    def first(self, model: str) -> Backend | None:
        """Whose pattern matches best."""
        found: list[tuple[bool, int, Backend]] = []
        for backend, patterns, _ in self.rows:
            hits = [
                pattern for pattern in patterns if fnmatchcase(model, pattern.replace("[", "[[]"))
            ]
            found += [(pattern == model, len(pattern), backend) for pattern in hits]
        return max(found, key=lambda row: row[:2])[2] if found else None

    def default(self) -> str:
        """The model of a request that names none: any where "*" takes it, else the first in the file."""
        named = [pattern for _, patterns, _ in self.rows for pattern in patterns]
        return (
            "default" if self.first("default") or not named else named[0]
        )  # a pattern matches itself

    async def models(self, authorization: str) -> list[dict[str, Any]]:
        """The names in the file, and of each backend's own list those that it is asked for. Raises APIError if there are none."""
        cards: dict[str, dict[str, Any]] = {}
        failed: APIError | None = None
        for backend, patterns, _ in self.rows:
            names = [pattern for pattern in patterns if not GLOB.search(pattern)]
            cards |= {
                name: model_card(name, owned_by=backend.name) for name in names if name not in cards
            }
            if len(names) < len(patterns):
                try:
                    listed = await backend.models(authorization)
                except APIError as error:
                    log.warning(
                        "backend %s failed to list its models (%s)", backend.name, error.reason
                    )
                    failed, listed = error, []
                for card in listed:
                    if card["id"] not in cards and self.first(card["id"]) is backend:
                        cards[card["id"]] = card
        if failed and not cards:
            raise failed
        return list(cards.values())

    async def stream(self, chat: ChatRequest) -> Deltas:
        if (picked := self.first(chat.model)) is None:
            raise no_such_model(chat.model)
        backends = [picked, *self.fallbacks[picked.name]]
        for backend in backends:
            chat.backend, chat.headers, chat.usage = backend.name, [], None
            if origin(backend) != origin(picked):
                chat.authorization = ""  # the client's key is for the provider that was asked first
            async with aclosing(backend.stream(chat)) as deltas:
                try:
                    first = await anext(deltas, None)
                except APIError as error:
                    if backend is backends[-1] or (error.status < 500 and error.status != 429):
                        raise
                    log.warning(
                        "backend %s failed (%s): asking the next", backend.name, error.reason
                    )
                    continue
                if first is not None:
                    yield first
                async for delta in deltas:
                    yield delta
                return


def origin(backend: Backend) -> Any:
    """Where a backend is; itself, if it has no address."""
    url = getattr(backend, "url", "")
    return urlsplit(url)[:2] if url else backend


GLOB = re.compile(r"[*?]")


class CallableBackend:
    """A backend of one's own: a function of the Chat that returns a text, or yields pieces of one; plain or async.

    A plain function is called in a thread, and so may take its time; a plain generator must not.
    """

    def __init__(self, function: Callable[[ChatRequest], Any]) -> None:
        self.function, self.name = function, getattr(function, "__name__", "function")

    async def models(self, authorization: str) -> list[dict[str, Any]]:
        return [model_card(self.name)]

    async def stream(self, chat: ChatRequest) -> Deltas:
        if iscoroutinefunction(self.function) or isasyncgenfunction(self.function):
            said = self.function(chat)
        else:
            said = await asyncio.to_thread(self.function, chat)
        said = await said if isawaitable(said) else said
        if hasattr(said, "__aiter__"):
            async with aclosing(said) if hasattr(said, "aclose") else nullcontext():
                async for text in said:
                    yield Delta(text)
            yield Delta(finish_reason="stop")
        elif isinstance(said, str):
            yield Delta(said, "stop", whole=True)
        else:
            for text in said:
                yield Delta(text)
            yield Delta(finish_reason="stop")
