"""The lag of the event loop: how late its timers are, because something holds it up. Imports nothing of the project."""

import asyncio
import logging

log = logging.getLogger("rewrap")


class LoopLag:
    """A `with` block in which the lag is measured four times a second, and logged for debugging if it is high."""

    SECONDS = 0.25
    LOGGED_SECONDS = 0.02

    def __init__(self) -> None:
        self.longest = 0.0  # seconds, since the last `take`
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
        self.longest = max(self.longest, lag)
        if lag > self.LOGGED_SECONDS:
            log.debug("LOOP_LAG %.0f ms", lag * 1000)
        self.schedule(loop)

    def take(self) -> float:
        """The longest lag since the last call, in seconds."""
        longest = self.longest
        self.longest = 0.0
        return longest
