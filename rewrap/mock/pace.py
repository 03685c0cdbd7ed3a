"""The timing of scripted answers, and streams that break off: wrappers of Deltas.

Imports types, the faults, the errors and leaf files.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from random import Random

from rewrap.mock.errors import CATALOGUE
from rewrap.mock.faults import Fault
from rewrap.regex import regex
from rewrap.structs import struct
from rewrap.types import APIError, Delta, Deltas, words

PACE_FIELDS = ("first_byte_ms", "words_per_second", "jitter_ms")
NUMBER = regex(r"\d{1,7}(?:\.\d{1,6})?", re.ASCII)


@struct(frozen=True, slots=True)
class Pace:
    """When an answer begins and how fast it goes on. `words_per_second` 0: at once.

    Each wait is longer by a random time of up to `jitter_ms`.
    """

    first_byte_ms: float = 0.0
    words_per_second: float = 0.0
    jitter_ms: float = 0.0

    def with_headers(self, headers: Mapping[str, str]) -> "Pace":
        """This pace, changed by the headers `x-mock-first-byte-ms` and so on.

        Raises APIError for a header that is not a number.
        """
        pace = self
        for name in PACE_FIELDS:
            header = f"x-mock-{name.replace('_', '-')}"
            value = headers.get(header)
            if value is None:
                continue
            if not NUMBER.fullmatch(value):
                message = f"Invalid '{header}' header: it must be a number."
                raise APIError(400, message, param=header)
            pace = replace(pace, **{name: float(value)})
        return pace


NO_PACE = Pace()


async def paced(deltas: Deltas, pace: Pace, seed: int = 0) -> Deltas:
    """Deltas at a pace: whole texts word by word, pieces of texts as they are.

    The jitter is the same for the same seed.
    """
    random = Random(seed)
    wait = pace.first_byte_ms / 1000
    between = 0.0
    if pace.words_per_second:
        between = 1 / pace.words_per_second
    async with aclosing(deltas):
        async for delta in deltas:
            for piece in in_words(delta, bool(between or pace.jitter_ms)):
                if wait or pace.jitter_ms:
                    await asyncio.sleep(wait + random.random() * pace.jitter_ms / 1000)
                yield piece
                wait = between if piece.content else 0.0


async def broken_off(deltas: Deltas, faults: Iterable[Fault]) -> Deltas:
    """Deltas up to the fault `error_event`, if there is one: then APIError is raised.

    The rendering of a stream makes an error event of that.
    """
    fault = next((fault for fault in faults if fault.kind == "error_event"), None)
    sent = 0
    async with aclosing(deltas):
        async for delta in deltas:
            for piece in in_words(delta, fault is not None):
                if fault and (sent >= fault.after or piece.finish_reason):
                    raise CATALOGUE["server_error"].error()
                sent += 1
                yield piece


def in_words(delta: Delta, splits: bool) -> list[Delta]:
    """A text that came at once, word by word; the other members of the Delta come last."""
    if not splits or not delta.whole or not delta.content:
        return [delta]
    pieces = [Delta(word, index=delta.index) for word in words(delta.content)]
    rest = replace(delta, content="", whole=False)
    if rest != Delta(index=delta.index):
        pieces.append(rest)
    return pieces
