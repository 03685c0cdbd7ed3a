"""Faults on demand and the timing of answers: by rule, by request header, or at a seeded rate.

    429, rate_limit         an error with OpenAI's body: any status, any name of the catalogue
    fail=2:503              the first 2 requests of a lane get that error, later ones succeed
    ratelimit=3/10s         3 requests in 10 seconds, with x-ratelimit-* headers that fall, then 429
    slow=2s, hang, hang=9s  the answer starts late, or never: the connection is cut in the end
    stall=2s                silence in mid-answer            cut, reset     the connection closes, or is reset
    malformed, duplicate    JSON that does not parse, a chunk that comes twice
    error_event             a stream that ends with an error event
    content_type, empty     a wrong content type, no body    split   UTF-8 characters split between two chunks

Several are separated by commas. `@3` puts a fault behind 3 chunks of a stream (2 without it): `cut@3`, `stall=2s@0`. An
answer that is no stream has one such place, its middle. `FaultySend` wraps an ASGI `send`, so every kind of answer is
reached in one place; imports no server.
"""

import asyncio
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from random import Random

from starlette.types import Message, Send

from rewrap.mock.errors import CATALOGUE, ErrorAnswer, error_of_status
from rewrap.mock.tables import nearest_name
from rewrap.types import APIError, Delta, Deltas, words

Headers = list[tuple[bytes, bytes]]

MAX_SECONDS = 3600.0
MAX_COUNTED = 100_000  # lanes whose requests are counted; beyond them the oldest starts anew
DEFAULT_AFTER = 2  # chunks of a stream: the role and the first text have arrived
DEFAULT_SECONDS = {"slow": 1.0, "stall": 1.0, "hang": MAX_SECONDS}
# The argument of each kind: a count and an error, a count and a period, seconds, a text, or none.
ARGUMENTS = {
    "fail": "error",
    "ratelimit": "period",
    "slow": "seconds",
    "hang": "seconds",
    "stall": "seconds",
    "content_type": "text",
    "cut": "",
    "reset": "",
    "malformed": "",
    "duplicate": "",
    "error_event": "",
    "empty": "",
    "split": "",
}
FAULT = re.compile(r"([a-z_]+|\d{3})(?:=([^@]*))?(?:@(\d{1,6}))?")
DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(ms|s|m)?")
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}


class CutConnection(Exception):
    """Raised by FaultySend: the connection has to be closed at once, without the rest; by RST where `reset` is set."""

    def __init__(self, reset: bool) -> None:
        super().__init__("reset" if reset else "cut")
        self.reset = reset


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `source` is its text, `after` how many chunks of a stream go before it."""

    source: str
    kind: str
    seconds: float = 0.0
    count: int = 0
    text: str = ""
    after: int = DEFAULT_AFTER
    error: ErrorAnswer | None = None


def parse_faults(text: str) -> tuple[Fault, ...]:
    """The faults that a text names, separated by commas. Raises ValueError, in one line."""
    return tuple(parse_fault(part.strip()) for part in text.split(",") if part.strip())


def parse_fault(text: str) -> Fault:
    found = FAULT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:100]!r} is not a fault")
    name, argument, after = found.groups()
    if name.isdecimal() or name in CATALOGUE:
        return Fault(text, "error", error=error_named(name))
    if name not in ARGUMENTS:
        raise ValueError(f"unknown fault {name!r}: {nearest_name(name, [*ARGUMENTS, *CATALOGUE])}")
    fault = Fault(text, name)
    if after is not None:
        fault = replace(fault, after=int(after))
    return with_argument(fault, ARGUMENTS[name], argument)


def with_argument(fault: Fault, expected: str, argument: str | None) -> Fault:
    if argument is None and expected in ("error", "period"):
        example = "fail=2:503" if expected == "error" else "ratelimit=3/10s"
        raise ValueError(f"{fault.source!r} needs an argument, such as {example}")
    if argument is None:
        return replace(fault, seconds=DEFAULT_SECONDS.get(fault.kind, 0.0))
    if expected == "seconds":
        return replace(fault, seconds=seconds_of(argument))
    if expected == "text" and re.fullmatch(r"[\w.+/; =-]{1,100}", argument):
        return replace(fault, text=argument)
    if expected == "error":
        count, _, name = argument.partition(":")
        return replace(fault, count=count_of(count), error=error_named(name or "500"))
    if expected == "period":
        count, _, period = argument.partition("/")
        return replace(fault, count=count_of(count), seconds=seconds_of(period or "1m"))
    raise ValueError(f"{fault.source!r}: {fault.kind} takes no argument {argument!r}")


def error_named(name: str) -> ErrorAnswer:
    """An error by status or by name. Raises ValueError."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    if not name.isdecimal() or not 400 <= int(name) <= 599:
        raise ValueError(
            f"{name[:40]!r} is no status from 400 to 599: {nearest_name(name, CATALOGUE)}"
        )
    return error_of_status(int(name))


def count_of(text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII):
        raise ValueError(f"{text[:40]!r} is not a count")
    return int(text)


def seconds_of(text: str) -> float:
    """`2s`, `300ms`, `1.5`, `1m`, in seconds. Raises ValueError for others, and above an hour."""
    found = DURATION.fullmatch(text)
    seconds = float(found[1]) * UNITS[found[2]] if found else MAX_SECONDS + 1
    if seconds > MAX_SECONDS:
        raise ValueError(f"{text[:40]!r} is not a duration of at most an hour, such as 2s or 300ms")
    return seconds


def faults_of(headers: Mapping[str, str]) -> tuple[Fault, ...]:
    """The faults that the header `x-mock-fault` asks for. Raises APIError for a header that cannot be read."""
    text = headers.get("x-mock-fault", "")
    if not text:
        return ()
    try:
        return parse_faults(text)
    except ValueError as error:
        raise APIError(
            400, f"Invalid 'x-mock-fault' header: {error}.", param="x-mock-fault"
        ) from None


@dataclass(frozen=True, slots=True)
class FaultRate:
    """Faults for a share of all requests, `rate` from 0 to 1: the same ones for the same seed and request number."""

    rate: float
    faults: tuple[Fault, ...]
    seed: int = 0

    def faults_for(self, number: int) -> tuple[Fault, ...]:
        """The faults of the request with this number; one at most."""
        digest = blake2b(f"{self.seed}:{number}".encode(), digest_size=16).digest()
        share = int.from_bytes(digest[:8]) / 2**64
        if share >= self.rate or not self.faults:
            return ()
        return (self.faults[int.from_bytes(digest[8:]) % len(self.faults)],)


@dataclass(slots=True)
class FaultState:
    """The requests that `fail` and `ratelimit` count, for each lane and scope (the rule, or "" for headers)."""

    clock: Callable[[], float] = time.monotonic
    counts: OrderedDict[tuple[str, str, str], tuple[int, float]] = field(
        default_factory=OrderedDict
    )

    def reset(self) -> None:
        self.counts.clear()

    def admit(self, faults: Iterable[Fault], lane: str, scope: str = "") -> Headers:
        """Count a request, before it is answered. Returns headers for its answer; raises APIError where it fails."""
        headers: Headers = []
        for fault in faults:
            if fault.kind == "error" and fault.error:
                raise fault.error.error()
            if fault.kind == "fail" and fault.error:
                number, _ = self.count(fault, lane, scope, math.inf)
                if number <= fault.count:
                    raise fault.error.error()
            if fault.kind == "ratelimit":
                headers += self.limited(fault, lane, scope)
        return headers

    def limited(self, fault: Fault, lane: str, scope: str) -> Headers:
        number, left = self.count(fault, lane, scope, fault.seconds)
        remaining = max(0, fault.count - number)
        headers = [
            (b"x-ratelimit-limit-requests", b"%d" % fault.count),
            (b"x-ratelimit-remaining-requests", b"%d" % remaining),
            (b"x-ratelimit-reset-requests", duration(left).encode()),
        ]
        if number > fault.count:
            error = replace(CATALOGUE["rate_limit"], retry_after=left).error()
            error.headers += headers
            raise error
        return headers

    def count(self, fault: Fault, lane: str, scope: str, period: float) -> tuple[int, float]:
        """The number of this request in its period, which starts with the first one, and the seconds to its end."""
        key = (lane, scope, fault.source)
        now = self.clock()
        number, end = self.counts.pop(key, (0, 0.0))
        if end <= now:
            number = 0
            end = now + period
        self.counts[key] = (number + 1, end)
        if len(self.counts) > MAX_COUNTED:
            self.counts.popitem(last=False)
        return number + 1, end - now


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them in headers: `16ms`, `59.369s`, `1m6.499s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes = int(seconds // 60)
    rest = f"{seconds - 60 * minutes:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


class FaultySend:
    """An ASGI `send` that spoils a successful answer on its way: awaitable in place of the one that it wraps.

    Raises CutConnection where the connection has to be cut; nothing is sent from then on.
    """

    def __init__(self, faults: Iterable[Fault], send: Send) -> None:
        self.faults = {fault.kind: fault for fault in faults}
        self.send = send
        self.start: Message | None = None  # held back until the first piece of the body
        self.events = False
        self.json = False
        self.sent = 0  # chunks
        self.ended = False
        self.cut: CutConnection | None = None

    async def __call__(self, message: Message) -> None:
        if self.cut:
            raise self.cut
        if message["type"] == "http.response.start":
            await self.begin(message)
        elif message["type"] == "http.response.body" and self.faults:
            await self.body(message)
        elif not self.ended:
            await self.send(message)

    async def begin(self, message: Message) -> None:
        """Wait as `hang` and `slow` say, then hold the head back. Answers that are errors go as they are."""
        if "hang" in self.faults:
            await asyncio.sleep(self.faults["hang"].seconds)
            raise self.cut_off(reset=False)
        if "slow" in self.faults:
            await asyncio.sleep(self.faults["slow"].seconds)
        if message["status"] != 200:
            self.faults = {}
            await self.send(message)
            return
        content_type = dict(message["headers"]).get(b"content-type", b"")
        self.events = content_type.startswith(b"text/event-stream")
        self.json = content_type.startswith(b"application/json")
        self.start = message

    def cut_off(self, reset: bool) -> CutConnection:
        self.cut = CutConnection(reset)
        return self.cut

    async def body(self, message: Message) -> None:
        if self.ended:
            return
        data: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if "empty" in self.faults:
            data = b""
            more = False
        elif not self.events:
            data = self.spoiled_whole(data)
        if self.start:
            start = spoiled_head(self.start, self.faults, None if more else len(data))
            await self.reach(data)
            self.start = None
            await self.send(start)
        for piece in self.pieces(data):
            await self.reach(piece)
            await self.send_piece(piece)
        if not more:
            await self.finish()

    def pieces(self, data: bytes) -> list[bytes]:
        """The chunks of a message: its events; of anything else, its two halves, so that a fault can come between."""
        if self.events:
            return re.findall(rb"(?s).+?(?:\n\n|\Z)", data)
        middle = (len(data) + 1) // 2
        return [piece for piece in (data[:middle], data[middle:]) if piece]

    async def reach(self, piece: bytes) -> None:
        """Stall, cut or reset, where the next chunk is the one that this comes before."""
        for kind in ("stall", "cut", "reset"):
            fault = self.faults.get(kind)
            if fault is None or not piece or self.place(fault) != self.sent:
                continue
            if kind != "stall":
                raise self.cut_off(kind == "reset")
            await self.stall()

    async def stall(self) -> None:
        fault = self.faults.pop("stall", None)
        if fault is not None:
            await asyncio.sleep(fault.seconds)

    def place(self, fault: Fault) -> int:
        return fault.after if self.events else min(fault.after, 1)

    async def send_piece(self, piece: bytes) -> None:
        times = 1
        if self.events and self.is_here("malformed"):
            piece = malformed_event(piece)
        if self.events and self.is_here("duplicate"):
            times = 2
        self.sent += 1
        for _ in range(times):
            parts = split_character(piece) if "split" in self.faults else [piece]
            for part in parts:
                await self.send({"type": "http.response.body", "body": part, "more_body": True})
                if len(parts) > 1:
                    await asyncio.sleep(0.005)  # else the client's kernel joins the two

    def is_here(self, kind: str) -> bool:
        return kind in self.faults and self.faults[kind].after == self.sent

    def spoiled_whole(self, data: bytes) -> bytes:
        """A body that is no stream: made invalid, of the same length, or doubled."""
        if "malformed" in self.faults and self.json and data:
            data = data[:-1] + b","
        if "duplicate" in self.faults:
            data += data
        return data

    async def finish(self) -> None:
        """The end of the answer. A stall or a cut behind more chunks than there are has its place here."""
        await self.stall()
        for kind in ("cut", "reset"):
            if kind in self.faults:
                raise self.cut_off(kind == "reset")
        self.ended = True
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def spoiled_head(start: Message, faults: Mapping[str, Fault], length: int | None) -> Message:
    """The head of the answer, with the content type and the length that its faults lead to."""
    headers = []
    for name, value in start["headers"]:
        if name == b"content-length" and length is not None:
            value = b"%d" % length
        if name == b"content-type" and "content_type" in faults:
            value = (faults["content_type"].text or "text/html").encode()
        headers.append((name, value))
    return {**start, "headers": headers}


def malformed_event(event: bytes) -> bytes:
    """An event whose data ends in the middle."""
    start = event.find(b"data: ") + len(b"data: ")
    end = len(event.rstrip(b"\n"))
    return event[: (start + end + 1) // 2] + b"\n\n"


def split_character(data: bytes) -> list[bytes]:
    """Two parts, cut inside the first character that UTF-8 writes with several bytes, if there is one."""
    found = re.search(rb"[\xc2-\xf4]", data)
    if found is None:
        return [data]
    return [data[: found.end()], data[found.end() :]]


@dataclass(frozen=True, slots=True)
class Pace:
    """The timing of an answer. `words_per_second` 0: at once. Jitter is up to so much more for each wait."""

    first_byte_ms: float = 0.0
    words_per_second: float = 0.0
    jitter_ms: float = 0.0

    def with_headers(self, headers: Mapping[str, str]) -> "Pace":
        """As the headers `x-mock-first-byte-ms` and so on say. Raises APIError for one that is not a number."""
        pace = self
        for name in PACE_FIELDS:
            header = f"x-mock-{name.replace('_', '-')}"
            value = headers.get(header)
            if value is None:
                continue
            if not re.fullmatch(r"\d{1,7}(?:\.\d{1,6})?", value, re.ASCII):
                raise APIError(
                    400, f"Invalid '{header}' header: it must be a number.", param=header
                )
            pace = replace(pace, **{name: float(value)})
        return pace


PACE_FIELDS = ("first_byte_ms", "words_per_second", "jitter_ms")


async def paced(deltas: Deltas, pace: Pace, seed: int = 0) -> Deltas:
    """Deltas at a pace: whole texts word by word, pieces of texts as they are. The same jitter for the same seed."""
    random = Random(seed)
    wait = pace.first_byte_ms / 1000
    between = 1 / pace.words_per_second if pace.words_per_second else 0.0
    splits = bool(between or pace.jitter_ms)
    async with aclosing(deltas):
        async for delta in deltas:
            for piece in split_whole(delta) if splits else [delta]:
                if wait or pace.jitter_ms:
                    await asyncio.sleep(wait + random.random() * pace.jitter_ms / 1000)
                yield piece
                wait = between if piece.content else 0.0


def split_whole(delta: Delta) -> list[Delta]:
    """A text that came at once, in words; what else the Delta has, with an empty text at the end."""
    if not delta.whole or not delta.content:
        return [delta]
    pieces = [Delta(word, index=delta.index) for word in words(delta.content)]
    rest = replace(delta, content="", whole=False)
    if rest != Delta(index=delta.index):
        pieces.append(rest)
    return pieces


async def broken_off(deltas: Deltas, faults: Iterable[Fault]) -> Deltas:
    """Deltas until the fault `error_event`, which raises APIError: a stream's rendering makes an error event of it."""
    fault = next((fault for fault in faults if fault.kind == "error_event"), None)
    sent = 0
    async with aclosing(deltas):
        async for delta in deltas:
            for piece in split_whole(delta) if fault else [delta]:
                if fault and (sent >= fault.after or piece.finish_reason):
                    raise CATALOGUE["server_error"].error()
                sent += 1
                yield piece
