"""The mock of the OpenAI API. Its other modules are loaded when a mock is made: a server that only relays never loads them."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from rewrap.types import Backend

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from rewrap.mock.backend import Mock


def is_loaded() -> bool:
    """Whether there may be a mock: making one loads its module."""
    return "rewrap.mock.backend" in sys.modules


def mock_in(backends: Sequence[Backend]) -> "Mock | None":
    """The first mock of some backends; None if there is none."""
    if not is_loaded():
        return None
    from rewrap.mock.backend import Mock

    return next((backend for backend in backends if isinstance(backend, Mock)), None)


def control_routes(
    backends: Sequence[Backend],
    owner: "Callable[[Request], Awaitable[str]]",
    body: "Callable[[Request], Awaitable[bytes]]",
) -> "list[BaseRoute]":
    """The routes that control the mock, or the journal of replayed recordings (REPLAY); [] without both."""
    if not is_loaded():
        return []
    from rewrap.mock.routes import MockRoutes
    from rewrap.mock.script import Script

    for backend in backends:
        journal = getattr(getattr(backend, "client", None), "journal", None)
        script = getattr(journal or backend, "script", None)
        if isinstance(script, Script):
            return [*MockRoutes(script, owner, body).routes()]
    return []
