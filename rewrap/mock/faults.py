"""Faults on demand: how they are written, which requests get them, and the errors among them.

    429, rate_limit    an error with OpenAI's body: any status, any name of the catalogue
    fail=2:503         the first 2 requests of a lane get the error, later ones succeed
    ratelimit=3/10s    3 requests in 10 seconds, with x-ratelimit-* headers that fall, then 429
    slow=2s, hang      the answer starts late, or never: the connection is cut in the end
    stall=2s           silence in mid-answer
    cut, reset         the connection closes, or is reset, in mid-answer
    malformed          JSON that does not parse
    duplicate          a chunk that comes twice
    error_event        a stream that ends with an error event
    content_type       a wrong content type
    empty              no body
    split              UTF-8 characters that are split between two chunks

Commas separate several faults. `@3` puts a fault behind 3 chunks of a stream: `cut@3`. Without it,
2 chunks come first. What happens on the wire is in faulty_send.py. Knows no HTTP server.
"""

import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from hashlib import blake2b

from rewrap.mock.errors import CATALOGUE, ErrorAnswer, error_for_model, error_of_status
from rewrap.mock.tables import nearest_name
from rewrap.regex import regex
from rewrap.structs import struct
from rewrap.types import APIError, Headers, duration

FaultKey = tuple[str, str, str]  # lane, scope and the text of a fault

MAX_SECONDS = 3600.0
MAX_COUNTED = 100_000  # counts of lanes; beyond them the oldest starts anew
DEFAULT_AFTER = 2  # chunks of a stream: the role and the first text have arrived
FAULT = regex(r"([a-z_]+|\d{3})(?:=([^@]*))?(?:@(\d{1,6}))?", re.ASCII)
COUNT = regex(r"\d{1,6}", re.ASCII)
DURATION = regex(r"(\d{1,6}(?:\.\d{1,6})?)(ms|s|m)?", re.ASCII)
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}
CONTENT_TYPE = regex(r"[\w.+/; =-]{1,100}", re.ASCII)


@struct(frozen=True, slots=True)
class Fault:
    """One fault. `source` is its text; `after` is how many chunks of a stream go before it."""

    source: str
    kind: str
    seconds: float = 0.0
    count: int = 0
    text: str = ""
    after: int = DEFAULT_AFTER
    error: ErrorAnswer | None = None


def parse_faults(text: str) -> tuple[Fault, ...]:
    """The faults that a text names. Raises ValueError, in one line."""
    parts = [part.strip() for part in text.split(",")]
    return tuple(parse_fault(part) for part in parts if part)


def parse_fault(text: str) -> Fault:
    """One fault, such as `stall=2s@3`. Raises ValueError."""
    found = FAULT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:80]!r} is not a fault")
    name, argument, after = found.groups()
    if name.isdecimal() or name in CATALOGUE:
        return Fault(text, "error", error=error_named(name))
    if name not in ARGUMENTS:
        raise ValueError(f"unknown fault {name!r}: {nearest_name(name, [*ARGUMENTS, *CATALOGUE])}")
    default, with_argument = ARGUMENTS[name]
    if argument is None and default is None:
        raise ValueError(f"{name!r} needs an argument, such as {EXAMPLES[name]}")
    fault = Fault(text, name)
    if after is not None:
        fault = replace(fault, after=int(after))
    return with_argument(fault, default or "" if argument is None else argument)


# The arguments of faults. Each function raises ValueError.


def no_argument(fault: Fault, argument: str) -> Fault:
    if argument:
        raise ValueError(f"{fault.kind} takes no argument: {argument[:40]!r}")
    return fault


def duration_argument(fault: Fault, argument: str) -> Fault:
    return replace(fault, seconds=seconds_of(argument))


def content_type_argument(fault: Fault, argument: str) -> Fault:
    if not CONTENT_TYPE.fullmatch(argument):
        raise ValueError(f"{argument[:40]!r} is not a content type")
    return replace(fault, text=argument)


def error_argument(fault: Fault, argument: str) -> Fault:
    """`2:503`: a count and an error."""
    count, _, name = argument.partition(":")
    return replace(fault, count=count_of(count), error=error_named(name or "500"))


def period_argument(fault: Fault, argument: str) -> Fault:
    """`3/10s`: a count and a duration."""
    count, _, period = argument.partition("/")
    return replace(fault, count=count_of(count), seconds=seconds_of(period or "1m"))


def error_named(name: str) -> ErrorAnswer:
    """An error by status or by name. Raises ValueError."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    if not COUNT.fullmatch(name) or not 400 <= int(name) <= 599:
        hint = nearest_name(name, CATALOGUE)
        raise ValueError(f"{name[:40]!r} is not a status from 400 to 599, nor an error: {hint}")
    return error_of_status(int(name))


def count_of(text: str) -> int:
    if not COUNT.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a count")
    return int(text)


def seconds_of(text: str) -> float:
    """`2s`, `300ms`, `1.5`, `1m`, in seconds. Raises ValueError, above an hour too."""
    found = DURATION.fullmatch(text)
    if found is not None:
        seconds = float(found[1]) * UNITS[found[2]]
        if seconds <= MAX_SECONDS:
            return seconds
    raise ValueError(f"{text[:40]!r} is not a duration of at most an hour, such as 2s or 300ms")


ArgumentReader = Callable[[Fault, str], Fault]
# Of each kind: the argument that stands for none (None: it needs one), and its reader.
ARGUMENTS: dict[str, tuple[str | None, ArgumentReader]] = {
    "fail": (None, error_argument),
    "ratelimit": (None, period_argument),
    "slow": ("1s", duration_argument),
    "hang": ("60m", duration_argument),
    "stall": ("1s", duration_argument),
    "content_type": ("text/html", content_type_argument),
    "cut": ("", no_argument),
    "reset": ("", no_argument),
    "malformed": ("", no_argument),
    "duplicate": ("", no_argument),
    "error_event": ("", no_argument),
    "empty": ("", no_argument),
    "split": ("", no_argument),
}
EXAMPLES = {"fail": "fail=2:503", "ratelimit": "ratelimit=3/10s"}


def faults_of(headers: Mapping[str, str]) -> tuple[Fault, ...]:
    """The faults that the header `x-mock-fault` names. Raises APIError for one that is none."""
    text = headers.get("x-mock-fault", "")
    try:
        return parse_faults(text)
    except ValueError as error:
        message = f"Invalid 'x-mock-fault' header: {error}."
        raise APIError(400, message, param="x-mock-fault") from None


@struct(frozen=True, slots=True)
class FaultRate:
    """Faults for a share of all requests, `rate` from 0 to 1.

    The same for the same seed and request number.
    """

    rate: float
    faults: tuple[Fault, ...]
    seed: int = 0

    def faults_for(self, number: int) -> tuple[Fault, ...]:
        """The faults of the request with this number: one at most."""
        digest = blake2b(f"{self.seed}:{number}".encode(), digest_size=16).digest()
        share = int.from_bytes(digest[:8]) / 2**64
        if share >= self.rate or not self.faults:
            return ()
        choice = int.from_bytes(digest[8:]) % len(self.faults)
        return (self.faults[choice],)


@struct(slots=True)
class FaultState:
    """The counts of `fail` and `ratelimit`, by lane and by scope (a rule, or "" for headers)."""

    clock: Callable[[], float] = time.monotonic
    # The number of requests in a period, and its end by the clock.
    counts: OrderedDict[FaultKey, tuple[int, float]] = field(default_factory=OrderedDict)

    def reset(self) -> None:
        self.counts.clear()

    def admit(
        self, faults: Iterable[Fault], *, lane: str = "", scope: str = "", model: str = ""
    ) -> Headers:
        """Count a request on its arrival. Returns headers for its answer.

        Raises APIError where a fault is an error.
        """
        headers: Headers = []
        for fault in faults:
            key = (lane, scope, fault.source)
            if fault.kind == "ratelimit":
                headers += self.limited(fault, key, model)
            elif fault.error is not None and self.fails(fault, key):
                raise error_for_model(fault.error, model).error()
        return headers

    def fails(self, fault: Fault, key: FaultKey) -> bool:
        if fault.kind != "fail":
            return True
        number, _ = self.count(key, math.inf)
        return number <= fault.count

    def limited(self, fault: Fault, key: FaultKey, model: str) -> Headers:
        number, left = self.count(key, fault.seconds)
        remaining = max(0, fault.count - number)
        headers = [
            (b"x-ratelimit-limit-requests", b"%d" % fault.count),
            (b"x-ratelimit-remaining-requests", b"%d" % remaining),
            (b"x-ratelimit-reset-requests", duration(left).encode()),
        ]
        if number <= fault.count:
            return headers
        limit = replace(CATALOGUE["rate_limit"], retry_after=left)
        error = error_for_model(limit, model).error()
        error.headers += headers
        raise error

    def count(self, key: FaultKey, period: float) -> tuple[int, float]:
        """The number of this request in its period, and the seconds to the end of that.

        A period starts with its first request.
        """
        now = self.clock()
        number, end = self.counts.pop(key, (0, 0.0))
        if end <= now:
            number = 0
            end = now + period
        self.counts[key] = (number + 1, end)
        if len(self.counts) > MAX_COUNTED:
            self.counts.popitem(last=False)
        return number + 1, end - now
