"""Explains a failure that an upstream does not explain itself: what it answered, and the next step.

Imports types, redaction and errors. Does not know shapes.
"""

import logging
import time
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from typing import Protocol

import orjson

from rewrap.redaction import NAMED_SECRET, redacted, secrets_in
from rewrap.types import APIError
from rewrap.upstream.errors import ERROR_DEPTH, START_BYTES, TRACEBACK, redacted_value, unescaped

log = logging.getLogger("rewrap")

SECRET_CHARACTERS = 512  # a longer secret may be cut at the end of what was kept
EXCERPT_CHARACTERS = 200
SILENT_SECONDS = 60.0  # between two lines of one kind
MAX_KINDS = 100
NEXT_STEP = "try: rewrap probe URL"  # addresses are not logged: they may hold keys


class Answered(Protocol):
    """A good answer, or a rejection."""

    @property
    def status(self) -> int: ...

    @property
    def start(self) -> bytes | None:
        """The beginning of the body; None if nothing was read."""


class Explainer:
    """Adds the beginning of an upstream's answer to the log, and to errors for clients on this machine."""

    def __init__(self, name: str, secrets: Sequence[str]) -> None:
        self.name = name
        self.secrets = secrets
        self.logged: dict[str, float] = {}  # kind: monotonic seconds

    def __call__(
        self,
        error: APIError,
        headers: Mapping[str, str],
        answer: Answered | None,
        rejection: Answered | None = None,
    ) -> APIError:
        """The same error with its explanation, from a good answer, a rejection, or a rejection in a good answer.

        The values of `headers`, which the request had, are secrets, too.
        """
        found = [each for each in (answer, rejection) if each is not None]
        status = found[0].status
        start = found[-1].start
        if start is None:
            start = found[0].start
        answered = f"backend {self.name} answered {status}"
        if start is not None:
            secrets = [*self.secrets, *secrets_in("", "", headers)]
            answered = f"{answered}, {excerpt(start, secrets)}"
        error.explanation = f"The {answered} ({NEXT_STEP})"
        self.write(f"{error.reason} {status}", f"{answered} ({NEXT_STEP})")
        return error

    def write(self, kind: str, line: str) -> None:
        """Log a line, once a minute for each kind."""
        now = time.monotonic()
        if now - self.logged.get(kind, float("-inf")) < SILENT_SECONDS:
            return
        if len(self.logged) >= MAX_KINDS:
            self.logged.clear()
        self.logged[kind] = now
        log.info("%s", line)


def excerpt(start: bytes, secrets: Sequence[str]) -> str:
    """The beginning of a body in printable characters, without secrets and tracebacks."""
    body = start.removeprefix(BOM_UTF8).strip()
    if not body:
        return "an empty body"
    if body.startswith(b"<"):
        return "a web page"
    text = NAMED_SECRET.sub(r"\1***", text_without_secrets(body, secrets)).partition(TRACEBACK)[0]
    characters = text[:EXCERPT_CHARACTERS]
    return "".join(character if character.isprintable() else " " for character in characters)


def text_without_secrets(body: bytes, secrets: Sequence[str]) -> str:
    """A body as text without these secrets, however they are escaped."""
    try:
        return orjson.dumps(redacted_value(orjson.loads(body), secrets, ERROR_DEPTH)).decode()
    except (ValueError, TypeError):
        text = redacted(unescaped(body), secrets)
    if len(body) >= START_BYTES - SECRET_CHARACTERS:
        text = text[:-SECRET_CHARACTERS]
    return text
