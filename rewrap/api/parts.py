"""The parts of the API that MOCK_ANY_ID exchanges: how strict the store and three surfaces are."""

from collections.abc import Callable

from rewrap.api.answers import LocalEmbeddings
from rewrap.api.responses.routes import ResponseRoutes
from rewrap.api.surfaces import ResponsesSurface
from rewrap.storage.base import Store
from rewrap.structs import struct


@struct(frozen=True, slots=True)
class Parts:
    store: Callable[[Store], Store]
    surface: type[ResponsesSurface]
    routes: type[ResponseRoutes]
    embeddings: type[LocalEmbeddings]


def api_parts(any_id: bool) -> Parts:
    if any_id:
        from rewrap.api.any_id import PARTS

        return PARTS
    return Parts(lambda store: store, ResponsesSurface, ResponseRoutes, LocalEmbeddings)
