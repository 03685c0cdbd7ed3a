"""A Starlette app behind EdgeMiddleware, and its beginning and end. Does not know its routes."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from multiprocessing import parent_process
from typing import Protocol

from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from rewrap import __version__
from rewrap.server.context import RequestContext
from rewrap.server.edge import EdgeMiddleware, EdgeOptions
from rewrap.server.loop_lag import LoopLag
from rewrap.server.signals import graceful

log = logging.getLogger("rewrap")

NO_METRICS = "METRICS needs the package prometheus-client: pip install 'rewrap[metrics]'"


class ObservedStore(Protocol):
    """A store whose works can be measured."""

    def observe_with(self, observe: Callable[[float, bool], None]) -> None:
        """`observe` gets the seconds of each work, and whether it failed."""


class Resources(Protocol):
    """What an app holds open while it serves."""

    def opened(self) -> AbstractAsyncContextManager[None]:
        """The block in which it serves."""

    def summary(self) -> str:
        """The backends and the keys, for the line at the start."""


class EdgeApp(Starlette):
    """A Starlette app with EdgeMiddleware in place of the default middleware stack."""

    def __init__(
        self, routes: Sequence[BaseRoute], options: EdgeOptions, resources: Resources
    ) -> None:
        super().__init__(routes=routes, lifespan=self.lifespan)
        self.router.redirect_slashes = False
        self.resources = resources
        self.announced = False  # the line at the start is logged
        self.notes: list[str] = []  # about the settings, for the start
        self.edge = EdgeMiddleware(self.router, options)
        self.loop_lag = LoopLag()

    def build_middleware_stack(self) -> ASGIApp:
        return self.edge

    def add_metrics(
        self,
        models: Iterable[str],
        store: ObservedStore,
        admit: Callable[[RequestContext], Awaitable[object]] | None,
    ) -> None:
        """Measure the app for GET /metrics. Raises ValueError without the package.

        `models`: names with a label of their own; `admit`: see metrics_route.
        """
        try:
            from rewrap.server.metrics import Metrics, metrics_route
        except ImportError:
            raise ValueError(NO_METRICS) from None
        metrics = Metrics(self.edge, models)
        self.edge.metrics = metrics
        self.loop_lag.observe = metrics.tick
        store.observe_with(metrics.store_worked)
        # Before the route that takes every path.
        self.router.routes.insert(0, metrics_route(metrics, admit))

    def announce(self, address: str) -> None:
        """Log the backends in one line, and a line for each setting that may be a mistake."""
        self.announced = True
        place = f" on {address}" if address else ""
        log.info("rewrap %s%s: %s", __version__, place, self.resources.summary())
        for note in self.notes:
            log.warning(note)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        if not self.announced and parent_process() is None:
            self.announce("")
        self.edge.stopping = False
        if self.edge.logs_lines:  # in place of uvicorn's lines; a mounted app gets no lifespan
            logging.getLogger("uvicorn.access").disabled = True
        async with self.resources.opened():
            async with graceful(self.edge.drain, self.edge.options.grace_seconds):
                with self.loop_lag:
                    yield
            self.edge.access_log.flush()
