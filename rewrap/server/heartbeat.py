"""Pings in silent streams: intermediaries close connections that are silent for too long."""

import asyncio

from rewrap.server.context import RequestContext
from rewrap.types import Rendering

TICKS = 3  # a stream is silent if nothing was sent for so many of them


class Heartbeats:
    """All streams of an app. One timer for all of them saves 3 µs a stream."""

    def __init__(self, seconds: float) -> None:
        """A stream gets a ping after `seconds` of silence, or up to a third more. 0: never."""
        self.seconds = seconds
        self.loop: asyncio.AbstractEventLoop | None = None
        self.streams: set[Heartbeat] = set()
        self.timer: asyncio.TimerHandle | None = None

    def of(self, context: RequestContext, rendering: Rendering) -> "Heartbeat":
        return Heartbeat(self, context, rendering)

    def add(self, stream: "Heartbeat") -> None:
        loop = stream.context.loop
        if self.loop is not loop:  # the first one, or a test's own
            self.loop = loop
            self.streams = set()
            self.timer = None
        self.streams.add(stream)
        if self.timer is None:
            self.timer = loop.call_later(self.seconds / TICKS, self.tick)

    def tick(self) -> None:
        self.timer = None
        if self.loop is not None and self.streams:
            self.timer = self.loop.call_later(self.seconds / TICKS, self.tick)
        for stream in self.streams:
            stream.tick()


class Heartbeat:
    """A `with` block: while it runs, a silent stream gets the rendering's ping.

    A ping may start the answer: then the status is 200, and a later failure has the rendering's form. It never does so before
    `info.accepted`. A chunk costs nothing more than a counter.
    """

    __slots__ = ("all", "context", "quiet", "rendering", "seen", "task")

    def __init__(self, all: Heartbeats, context: RequestContext, rendering: Rendering) -> None:
        self.all = all
        self.context = context
        self.rendering = rendering
        self.seen = 0
        self.quiet = -1  # whole ticks without a chunk; the first tick is not a whole one
        self.task: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        if self.all.seconds:
            self.all.add(self)

    def __exit__(self, *exc: object) -> None:
        self.all.streams.discard(self)
        if self.task is not None:
            self.task.cancel()

    def tick(self) -> None:
        if self.context.sends != self.seen:
            self.seen = self.context.sends
            self.quiet = 0
            return
        self.quiet += 1
        waiting = self.task is not None and not self.task.done()  # the client does not read
        if self.quiet >= TICKS and not waiting and self.is_accepted():
            self.quiet = 0
            self.task = self.context.loop.create_task(self.ping())

    def is_accepted(self) -> bool:
        info = self.context.info
        return info is not None and info.accepted

    async def ping(self) -> None:
        body = self.rendering.ping()
        if not body:
            return
        if not self.context.status:
            await self.context.start_stream(self.rendering.headers)
        await self.context.send_body(body, more=True)
