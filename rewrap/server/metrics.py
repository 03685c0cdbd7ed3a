"""GET /metrics: counts, times and gauges for Prometheus, by the package prometheus-client (METRICS=true).

A request is added to plain numbers, which costs 1 µs. They go to the package's metrics in batches, because these cost 7 µs a
request with several workers. Each label has few values: routes, configured models and backends, statuses. Several workers share
the folder of PROMETHEUS_MULTIPROC_DIR. Imported with METRICS alone; does not know the routes.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import ValueClass
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from rewrap.server.context import RequestContext
from rewrap.server.edge import EdgeMiddleware

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FLUSH_SECONDS = 0.05
OTHER = "other"  # a model that is not configured
NO_ROUTE = "none"
Admit = Callable[[RequestContext], Awaitable[object]]
# Upper bounds of the histograms, in seconds.
FIRST_BYTE = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
DURATION = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
LAG = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1)
STORE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
MAX_TOKENS = 2**40  # an upstream's larger number is not a count
REQUEST_LABELS = ("route", "model", "backend")


class BatchHistogram(Histogram):
    """A histogram that takes many values at once. It uses the members that the package gives to subclasses."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """`counts`: new values in each bucket, the one above all bounds included; `total`: their sum."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


class Times:
    """New values of a histogram."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def move_to(self, histogram: BatchHistogram) -> None:
        histogram.add(self.counts, self.total)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0


class Series:
    """New requests of one route, model, backend and status, and the metrics that they go to."""

    __slots__ = (
        "completion_tokens",
        "duration",
        "durations",
        "first_byte",
        "first_bytes",
        "prompt_tokens",
        "requests",
        "requests_total",
        "tokens_total",
    )

    def __init__(
        self,
        requests_total: Counter,
        first_bytes: BatchHistogram,
        durations: BatchHistogram,
        tokens_total: Callable[[str], Counter],
    ) -> None:
        self.requests_total = requests_total
        self.first_bytes = first_bytes
        self.durations = durations
        self.tokens_total = tokens_total
        self.requests = 0
        self.first_byte = Times(FIRST_BYTE)
        self.duration = Times(DURATION)
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def flush(self) -> None:
        if not self.requests:
            return
        self.requests_total.inc(self.requests)
        self.requests = 0
        self.first_byte.move_to(self.first_bytes)
        self.duration.move_to(self.durations)
        if self.prompt_tokens:
            self.tokens_total("prompt").inc(self.prompt_tokens)
            self.prompt_tokens = 0
        if self.completion_tokens:
            self.tokens_total("completion").inc(self.completion_tokens)
            self.completion_tokens = 0


class Metrics:
    """The metrics of one app. `models`: the names that have a label of their own."""

    def __init__(self, edge: EdgeMiddleware, models: Iterable[str]) -> None:
        self.edge = edge
        self.models = frozenset(models)
        self.shared = bool(ValueClass._multiprocess)
        self.registry = CollectorRegistry()
        self.series: dict[tuple[str, str, str, int], Series] = {}
        self.loop: asyncio.AbstractEventLoop | None = None  # that flushes
        self.make_request_metrics()
        self.make_server_metrics()

    def make_request_metrics(self) -> None:
        registry = self.registry
        self.requests_total = Counter(
            "rewrap_requests", "Requests.", (*REQUEST_LABELS, "status"), registry=registry
        )
        self.first_bytes = BatchHistogram(
            "rewrap_first_byte_seconds",
            "Time to the head of the answer.",
            REQUEST_LABELS,
            registry=registry,
            buckets=FIRST_BYTE,
        )
        self.durations = BatchHistogram(
            "rewrap_request_seconds",
            "Time to the end of the answer.",
            REQUEST_LABELS,
            registry=registry,
            buckets=DURATION,
        )
        self.tokens_total = Counter(
            "rewrap_tokens",
            "Tokens, as the backends count them.",
            ("model", "backend", "kind"),
            registry=registry,
        )
        self.upstream_failures = Counter(
            "rewrap_upstream_failures",
            "Failures of upstreams.",
            ("backend", "kind"),
            registry=registry,
        )

    def make_server_metrics(self) -> None:
        self.open_requests = self.gauge("rewrap_open_requests", "Requests in progress.")
        self.open_streams = self.gauge("rewrap_open_streams", "Streams in progress.")
        self.memory_used = self.gauge("rewrap_memory_used_bytes", "Memory that requests reserve.")
        self.memory_limit = self.gauge("rewrap_memory_limit_bytes", "MAX_MEMORY_BYTES.")
        self.loop_lag = Histogram(
            "rewrap_loop_lag_seconds",
            "Delay of the event loop, four times a second.",
            registry=self.registry,
            buckets=LAG,
        )
        self.store_times = Histogram(
            "rewrap_store_seconds",
            "Time of the store's works.",
            registry=self.registry,
            buckets=STORE,
        )
        self.store_failures = Counter(
            "rewrap_store_failures", "Failed works of the store.", registry=self.registry
        )

    def gauge(self, name: str, about: str) -> Gauge:
        """A gauge whose value is the sum of the living workers' ones."""
        return Gauge(name, about, registry=self.registry, multiprocess_mode="livesum")

    # What happens.

    def observe(self, context: RequestContext) -> None:
        """Count a request that has its answer."""
        info = context.info
        model = ""
        backend = ""
        if info is not None:
            model = info.model if info.model in self.models else OTHER
            backend = info.backend
        key = (self.route_of(context), model, backend, 499 if context.left else context.status)
        series = self.series.get(key)
        if series is None:
            series = self.make_series(key)
        if self.loop is not context.loop:
            self.loop = context.loop
            context.loop.call_later(FLUSH_SECONDS, self.flush_on_time)
        series.requests += 1
        if context.first_byte:
            series.first_byte.add(context.first_byte - context.started)
        series.duration.add(time.perf_counter() - context.started)
        if info is not None and info.usage:
            series.prompt_tokens += count_in(info.usage.get("prompt_tokens"))
            series.completion_tokens += count_in(info.usage.get("completion_tokens"))

    def route_of(self, context: RequestContext) -> str:
        """The path of the route, such as /chat/completions or /models/{id}; "none" if there is no route."""
        scope = context.scope
        route = scope.get("route")
        if route is not None:
            path: str = route.path
            return path.replace(":path}", "}")
        return scope["path"] if scope["path"] in self.edge.fast_routes else NO_ROUTE

    def make_series(self, key: tuple[str, str, str, int]) -> Series:
        route, model, backend, status = key
        series = Series(
            self.requests_total.labels(route, model, backend, status),
            self.first_bytes.labels(route, model, backend),
            self.durations.labels(route, model, backend),
            lambda kind: self.tokens_total.labels(model, backend, kind),
        )
        self.series[key] = series
        return series

    def upstream_failed(self, backend: str, kind: str) -> None:
        self.upstream_failures.labels(backend, kind).inc()

    def store_worked(self, seconds: float, failed: bool) -> None:
        self.store_times.observe(seconds)
        if failed:
            self.store_failures.inc()

    def tick(self, lag: float) -> None:
        """Called four times a second with the lag of the loop, in seconds."""
        self.loop_lag.observe(max(0.0, lag))
        self.update_gauges()

    # What is shown.

    def flush_on_time(self) -> None:
        self.loop = None
        self.flush()

    def flush(self) -> None:
        for series in self.series.values():
            series.flush()

    def update_gauges(self) -> None:
        edge = self.edge
        self.open_requests.set(len(edge.open_requests))
        self.open_streams.set(sum([context.streams for context in edge.open_requests]))
        self.memory_used.set(edge.memory.used)
        self.memory_limit.set(edge.memory.maximum)

    async def exposition(self) -> bytes:
        """All metrics in the text format, those of the other workers too."""
        registry = self.registry
        if self.shared:
            await asyncio.sleep(2 * FLUSH_SECONDS)  # until the others have flushed
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        self.flush()
        self.update_gauges()
        return await asyncio.to_thread(generate_latest, registry)


def count_in(value: object) -> int:
    """A number of tokens; 0 for anything else that an upstream may send."""
    if isinstance(value, int) and 0 < value < MAX_TOKENS:
        return value
    return 0


def metrics_route(metrics: Metrics, admit: Admit | None) -> BaseRoute:
    """GET /metrics. `admit` raises APIError for a client that may not read them; None: every client may."""

    async def show(request: Request) -> Response:
        if admit is not None:
            await admit(request.scope["context"])
        return Response(await metrics.exposition(), media_type=CONTENT_TYPE)

    return Route("/metrics", show)
