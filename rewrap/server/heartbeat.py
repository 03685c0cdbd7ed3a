"""Pings in silent streams: intermediaries close connections that are silent for too long."""

import asyncio
from weakref import WeakKeyDictionary

from rewrap.server.context import RequestContext
from rewrap.types import Rendering

TICKS = 3  # a stream is silent if nothing was sent for so many of them


class Heartbeats:
    """Pings for all streams of an app. One timer for the streams of a loop saves 3 µs a stream."""

    def __init__(self, seconds: float) -> None:
        """A stream gets a ping after `seconds` of silence, or up to a third more. 0: never."""
        self.seconds = seconds
        self.by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Pulse] = WeakKeyDictionary()

    def of(self, context: RequestContext, rendering: Rendering) -> "Heartbeat":
        pulse = self.by_loop.get(context.loop)
        if pulse is None:
            pulse = self.by_loop[context.loop] = Pulse(self.seconds)
        return Heartbeat(pulse, context, rendering)


class Pulse:
    """The streams of one loop, and their timer."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.streams: set[Heartbeat] = set()
        self.is_running = False

    def add(self, stream: "Heartbeat") -> None:
        self.streams.add(stream)
        if self.seconds and not self.is_running:
            self.run(stream.context.loop)

    def run(self, loop: asyncio.AbstractEventLoop) -> None:
        self.is_running = True
        loop.call_later(self.seconds / TICKS, self.tick, loop)

    def tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self.is_running = False
        if self.streams:
            self.run(loop)
        for stream in self.streams:
            stream.tick()


class Heartbeat:
    """A `with` block: while it runs, a silent stream gets the rendering's ping.

    A ping may start the answer: then the status is 200, and a later failure has the rendering's form. It never does so before
    `info.accepted`. A chunk costs nothing more than a counter.
    """

    __slots__ = ("context", "pulse", "quiet", "rendering", "seen", "task")

    def __init__(self, pulse: Pulse, context: RequestContext, rendering: Rendering) -> None:
        self.pulse = pulse
        self.context = context
        self.rendering = rendering
        self.seen = 0
        self.quiet = -1  # ticks without a chunk; the first tick comes early
        self.task: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self.pulse.add(self)

    def __exit__(self, *exc: object) -> None:
        self.pulse.streams.discard(self)
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
