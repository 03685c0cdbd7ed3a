"""What the last traffic says about an upstream: GET /readyz sends nothing of its own. Imports nothing of the project."""

import time

import httpx

FORGET_SECONDS = 10.0
UNREACHABLE = (httpx.ConnectError, httpx.ConnectTimeout)


class Traffic:
    """Whether an upstream was reachable when it was last asked.

    A failure counts for FORGET_SECONDS: a server that is not ready gets no requests, which could show that the upstream is back.
    """

    __slots__ = ("failed_at",)

    def __init__(self) -> None:
        self.failed_at = 0.0  # monotonic seconds; 0: the last request was answered

    def answered(self) -> None:
        self.failed_at = 0.0

    def failed(self, exc: Exception) -> None:
        if isinstance(exc, UNREACHABLE):
            self.failed_at = time.monotonic()

    def reachable(self) -> bool:
        return not self.failed_at or time.monotonic() - self.failed_at > FORGET_SECONDS
