"""The routes for load balancers and orchestrators: whether the process lives, and whether it can serve.

They send nothing to an upstream: a backend is judged by its last traffic. They need no key.
"""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from rewrap import __version__
from rewrap.api.stored import JSONResponse
from rewrap.storage.base import Store
from rewrap.types import Backend

HEALTH = {"status": "ok", "message": "Healthy", "name": "rewrap", "version": __version__}
LIVE = {"status": "live"}


class HealthRoutes:
    def __init__(self, store: Store, backends: Sequence[Backend]) -> None:
        self.store = store
        self.backends = backends

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/health", self.health),
            Route("/livez", self.livez),
            Route("/readyz", self.readyz),
        ]

    async def health(self, request: Request) -> Response:
        """GET /health, and GET / for API clients: the server runs."""
        return JSONResponse(HEALTH)

    async def livez(self, request: Request) -> Response:
        """GET /livez: the event loop works. It is 200 while the server stops, too."""
        return JSONResponse(LIVE)

    async def readyz(self, request: Request) -> Response:
        """GET /readyz: 200 if the store answers and one backend is reachable. Edge answers 503 while the server stops."""
        backends = {backend.name: is_reachable(backend) for backend in self.backends}
        store = await self.store.answers()
        ready = store and any(backends.values())
        document = {
            "status": "ready" if ready else "not ready",
            "store": store,
            "backends": backends,
        }
        return JSONResponse(document, 200 if ready else 503)


def is_reachable(backend: Backend) -> bool:
    """Whether the last traffic of a backend does not speak against it. One without an upstream is always there."""
    traffic = getattr(backend, "traffic", None)
    return traffic is None or bool(traffic.reachable())
