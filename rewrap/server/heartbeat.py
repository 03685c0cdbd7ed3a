"""Pings in a silent stream: intermediaries close connections that are silent for too long."""

import asyncio

from rewrap.server.context import RequestContext
from rewrap.types import Headers, Rendering

TICKS = 3  # a stream is silent if nothing was sent for so many of them


class Heartbeat:
    """A `with` block: while it runs, a stream that is silent for `seconds` gets the rendering's ping.

    A ping may start the answer: then the status is 200, and a later failure has the rendering's form. It never does so before
    `info.accepted`. One timer a stream counts the silent ticks, so that a chunk costs nothing more than a counter.
    """

    __slots__ = ("context", "headers", "quiet", "rendering", "seconds", "seen", "task", "timer")

    def __init__(
        self, context: RequestContext, rendering: Rendering, headers: Headers, seconds: float
    ) -> None:
        self.context = context
        self.rendering = rendering
        self.headers = headers
        self.seconds = seconds
        self.seen = 0
        self.quiet = 0
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        if self.seconds:
            self.schedule()

    def __exit__(self, *exc: object) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.task is not None:
            self.task.cancel()

    def schedule(self) -> None:
        self.timer = self.context.loop.call_later(self.seconds / TICKS, self.tick)

    def tick(self) -> None:
        self.schedule()
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
            await self.context.start_stream(self.headers)
        await self.context.send_body(body, more=True)
