"""The lag of the event loop: how late its timers are, because something holds it up. Imports nothing of the project."""

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger("rewrap")


class LoopLag:
    """A `with` block in which the lag is measured four times a second, and logged for debugging if it is high."""

    SECONDS = 0.25
    LOGGED_SECONDS = 0.02

    def __init__(self) -> None:
        self.observe: Callable[[float], None] | None = None  # gets each lag, in seconds
        self.timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self.schedule(asyncio.get_running_loop())

    def __exit__(self, *exc: object) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + self.SECONDS
        self.timer = loop.call_at(due, self.tick, loop, due)

    def tick(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        lag = loop.time() - due
        if self.observe is not None:
            self.observe(lag)
        if lag > self.LOGGED_SECONDS:
            log.debug("LOOP_LAG %.0f ms", lag * 1000)
        self.schedule(loop)
