"""The parts of the API that MOCK_ANY_ID exchanges: how strict the store and three surfaces are.

The modules of Responses are loaded by its first request.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rewrap.api.answers import LocalEmbeddings
from rewrap.api.responses.routes import ResponseRoutes
from rewrap.storage.base import Store
from rewrap.structs import struct
from rewrap.types import ChecksOf

if TYPE_CHECKING:
    from rewrap.api.responses.stored import StoredResponses
    from rewrap.api.responses.surface import ResponsesSurface


@struct(frozen=True, slots=True)
class Parts:
    store: Callable[[Store], Store]
    surface: "Callable[..., ResponsesSurface]"
    routes: type[ResponseRoutes]
    embeddings: type[LocalEmbeddings]


def api_parts(any_id: bool) -> Parts:
    if any_id:
        from rewrap.api.any_id import PARTS

        return PARTS
    return Parts(lambda store: store, responses_surface, ResponseRoutes, LocalEmbeddings)


def responses_surface(
    default_model: str,
    checks: ChecksOf,
    stored: "Callable[[], StoredResponses]",
    late_instructions: str,
    reasoning_as_summary: bool,
) -> "ResponsesSurface":
    from rewrap.api.responses.surface import ResponsesSurface

    return ResponsesSurface(default_model, checks, stored, late_instructions, reasoning_as_summary)


def stored_responses(store: Store, max_history_bytes: int) -> "StoredResponses":
    from rewrap.api.responses.stored import StoredResponses

    return StoredResponses(store, max_history_bytes)
