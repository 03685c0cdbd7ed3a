"""Explains a failure that an upstream does not explain itself: what it answered, and the next step.

Imports types, redaction and errors. Does not know shapes.
"""

import logging
import time
from collections.abc import Sequence
from typing import Protocol

from rewrap.redaction import redacted
from rewrap.types import APIError
from rewrap.upstream.errors import TRACEBACK

log = logging.getLogger("rewrap")

EXCERPT_BYTES = 800  # UTF-8 has four bytes a character at most
EXCERPT_CHARACTERS = 200
SILENT_SECONDS = 60.0  # between two lines of one kind
MAX_KINDS = 100
NEXT_STEP = "try: rewrap probe URL"  # addresses are not logged: they may hold keys


class Answered(Protocol):
    """What an upstream answered: a good answer, or a rejection."""

    @property
    def status(self) -> int: ...

    @property
    def start(self) -> bytes:
        """The first bytes of the body."""


class Explainer:
    """Adds the beginning of an upstream's answer to the log, and to the client's error if `for_client`.

    A server on a loopback address has clients of this machine alone, which may see it.
    """

    def __init__(self, name: str, secrets: Sequence[str], *, for_client: bool) -> None:
        self.name = name
        self.secrets = secrets
        self.for_client = for_client
        self.logged: dict[str, float] = {}  # kind: monotonic seconds

    def __call__(self, error: APIError, answered: Answered | None) -> APIError:
        """The same error, with the explanation. Without an answer there is nothing to explain."""
        if answered is None:
            return error
        text = excerpt(answered.start, self.secrets)
        explanation = f"backend {self.name} answered {answered.status}, {text} ({NEXT_STEP})"
        self.write(error.reason, explanation)
        if self.for_client:
            error.message = f"{error.message} The {explanation}"
            if error.error is not None:
                error.error = error.error | {"message": error.message}
        return error

    def write(self, kind: str, line: str) -> None:
        """Log a line, once a minute for each kind."""
        now = time.monotonic()
        if now - self.logged.get(kind, float("-inf")) < SILENT_SECONDS:
            return
        if len(self.logged) < MAX_KINDS:
            self.logged[kind] = now
        log.info("%s", line)


def excerpt(start: bytes, secrets: Sequence[str]) -> str:
    """The beginning of a body in printable characters, without secrets and tracebacks."""
    start = start.strip()
    if not start or start.startswith(b"<"):  # the body of a page is not always read
        return "a web page or an empty body"
    text = redacted(start.decode("utf-8", "replace"), secrets).partition(TRACEBACK)[0]
    characters = text[:EXCERPT_CHARACTERS]
    return "".join(character if character.isprintable() else " " for character in characters)
