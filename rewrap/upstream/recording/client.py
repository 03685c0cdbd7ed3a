"""The clients that record exchanges with upstreams, and replay them without the upstreams.

They stand at the place where an answer is read, so that every kind of backend and every odd byte is
recorded as it came: the pieces, their times, a cut. Knows no chats and no shapes.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

import httpx

from rewrap.eventloop import running_loop
from rewrap.structs import struct
from rewrap.threads import LARGE, apart
from rewrap.types import APIError, Reply
from rewrap.upstream.client import Client, RequestJournal, slash_redirect
from rewrap.upstream.passthrough import REPLY_NAMES
from rewrap.upstream.recording.credentials import (
    all_forms,
    header_credentials,
    pieces_without,
    recordable_path,
    request_credentials,
    without,
)
from rewrap.upstream.recording.exchange import Piece, RecordedExchange, Request
from rewrap.upstream.recording.library import Library
from rewrap.upstream.recording.matching import RequestKeys, conversation_in, decoded

log = logging.getLogger("rewrap")

MAX_EXCHANGE_BYTES = 64 * 2**20
PIECE_BYTES = 100  # of memory, beside the data
LARGE_BYTES = 2**18  # a larger file is written in a thread
HEADERS = REPLY_NAMES - {b"content-length", b"content-encoding"}  # the body is inflated
FAILURES = (httpx.HTTPError, TimeoutError)
# Classes of failures by the end of an exchange. The first class of a name is raised in a replay.
ENDS: tuple[tuple[str, type[httpx.HTTPError]], ...] = (
    ("unreachable", httpx.ConnectError),
    ("unreachable", httpx.ConnectTimeout),
    ("silent", httpx.ReadTimeout),
    ("silent", httpx.WriteTimeout),
    ("reset", httpx.ReadError),
    ("reset", httpx.WriteError),
    ("broken", httpx.DecodingError),
    ("cut", httpx.RemoteProtocolError),
    ("left", httpx.RemoteProtocolError),
)
JSON_TYPE = "application/json"


@struct(frozen=True, slots=True)
class RecordedTarget:
    """The constant part of requests to a URL."""

    inner: object  # the transport's own
    url: str
    method: str
    path: str
    content_type: str
    credentials: tuple[str, ...]


@struct(frozen=True, slots=True)
class ObservedRequest:
    """A request without its credentials, and their forms."""

    request: Request
    facts: RequestKeys
    credentials: list[bytes]


class RecordingClient(Client):
    """Writes each exchange to the library. `credentials` are those of the configuration."""

    takes_whole_requests = True
    records_failures = True  # without a head of an answer

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        connect_timeout: float,
        library: Library,
        credentials: Iterable[str],
    ) -> None:
        super().__init__(transport, connect_timeout)
        self.library = library
        self.credentials = tuple(credentials)

    def target(self, method: str, url: str, headers: Mapping[str, str]) -> object:
        lower = {name.lower(): value for name, value in headers.items()}
        content_type = lower.get("content-type", "")
        return RecordedTarget(
            super().target(method, url, headers),
            url,
            method,
            recordable_path(url),
            "" if content_type.startswith(JSON_TYPE) else content_type,
            tuple(request_credentials(url, lower)),
        )

    async def ask(
        self, target: object, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> Reply:
        assert isinstance(target, RecordedTarget)
        observed = await apart(self.observe, target, headers, body)
        return await self.record(target, headers, body, deadline, observed)

    def observe(
        self, target: RecordedTarget, headers: Mapping[str, str], body: bytes
    ) -> ObservedRequest:
        found = [*self.credentials, *target.credentials]
        for name, value in headers.items():
            found += header_credentials(name.lower(), value)
        forms = all_forms(found)
        content_type = target.content_type if body else ""
        request = Request(target.method, target.path, without(body, forms), content_type)
        return ObservedRequest(request, self.library.matcher.facts(request), forms)

    async def record(
        self,
        target: RecordedTarget,
        headers: Mapping[str, str],
        body: bytes,
        deadline: float,
        observed: ObservedRequest,
    ) -> Reply:
        """Ask the upstream. Raises httpx.HTTPError, TimeoutError."""
        if target.method == "HEAD":  # the pool does not know that its answer has no body
            raise APIError(405, "HEAD is not passed on while requests are recorded.")
        record = Record(self.library, self.library.new_name(observed.facts), observed)
        try:
            reply = await super().ask(target.inner, headers, body, deadline)
        except FAILURES as error:
            if self.records_failures and not isinstance(error, httpx.PoolTimeout):
                record.exchange.after = record.seconds()
                record.exchange.end = end_of(error)
                await record.save()
            raise
        if slash_redirect(target.url, reply.status, reply.headers):
            return reply  # paths are compared without a last slash: the request itself follows
        record.head(reply)
        return RecordedReply(reply, record)


class Record:
    """An exchange while it is recorded."""

    def __init__(self, library: Library, name: str, observed: ObservedRequest) -> None:
        self.library = library
        self.name = name
        self.exchange = RecordedExchange(observed.request)
        self.credentials = observed.credentials
        self.size = 0
        self.over = False  # nothing more belongs to it
        self.time = running_loop().time()

    def seconds(self) -> float:
        """The time since the last call."""
        before = self.time
        self.time = running_loop().time()
        return self.time - before

    def head(self, reply: Reply) -> None:
        exchange = self.exchange
        exchange.after = self.seconds()
        exchange.status = reply.status
        exchange.has_length = b"content-length" in reply.headers
        exchange.headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in reply.headers.items()
            if name in HEADERS
        }
        cookies = reply.headers.get(b"set-cookie", b"").decode("latin-1")
        self.credentials += all_forms(header_credentials("set-cookie", cookies))

    def add(self, data: bytes) -> None:
        self.size += len(data) + PIECE_BYTES
        if self.size <= MAX_EXCHANGE_BYTES:
            self.exchange.pieces.append(Piece(self.seconds(), data))
        elif not self.over:
            self.over = True
            self.exchange.pieces.clear()
            log.warning("RECORD: %s is not written: the answer is too large", self.name)

    async def finish(self, end: str) -> None:
        if self.over:
            return
        self.over = True
        self.exchange.end = end
        self.exchange.end_after = self.seconds()
        if self.size > LARGE_BYTES:
            await LARGE.run(self.write)
        else:
            self.write()

    async def save(self) -> None:
        """Write an exchange without an answer."""
        self.over = True
        self.write()

    def clean_request(self) -> None:
        """Take out a cookie that the answer set, should the request have it in its body."""
        request = self.exchange.request
        clean = without(request.body, self.credentials)
        if clean != request.body:
            self.exchange.request = replace(request, body=clean)
            facts = self.library.matcher.facts(self.exchange.request)
            self.name = self.library.new_name(facts)

    def write(self) -> None:
        exchange = self.exchange
        forms = self.credentials  # with those of the answer
        self.clean_request()
        data = pieces_without([piece.data for piece in exchange.pieces], forms)
        for piece, clean in zip(exchange.pieces, data, strict=True):
            piece.data = clean
        exchange.pieces = [piece for piece in exchange.pieces if piece.data]
        for name, value in exchange.headers.items():
            clean = without(value.encode("latin-1"), forms)
            exchange.headers[name] = clean.decode("latin-1")
        self.library.save(self.name, exchange)


class RecordedReply:
    """A Reply that notes its pieces on their way to the reader."""

    def __init__(self, reply: Reply, record: Record) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self.reply = reply
        self.record = record
        self.lingers = False

    @property
    def deadline(self) -> float:
        return self.reply.deadline

    @deadline.setter
    def deadline(self, value: float) -> None:
        self.reply.deadline = value

    async def read(self) -> bytes:
        try:
            data = await self.reply.read()
        except FAILURES as error:
            await self.record.finish(end_of(error))
            raise
        if data:
            self.record.add(data)
        else:
            await self.record.finish("complete")
        return data

    def linger(self) -> None:
        self.lingers = True  # the reader has all that belongs to the reply
        self.reply.linger()

    async def aclose(self) -> None:
        try:
            await self.record.finish("complete" if self.lingers else "left")
        finally:
            await self.reply.aclose()


def end_of(error: Exception) -> str:
    for name, kind in ENDS:
        if isinstance(error, kind):
            return name
    return "silent" if isinstance(error, TimeoutError) else "cut"


# Replay.


class ReplayClient(RecordingClient):
    """Answers from the library. A request without a recording gets 404, or is recorded.

    `speed` 1 keeps the recorded times, 2 halves them, 0 answers at once.
    """

    records_failures = False  # a later run would be answered by a failure of today

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        connect_timeout: float,
        library: Library,
        credentials: Iterable[str],
        *,
        speed: float,
        records_misses: bool,
    ) -> None:
        super().__init__(transport, connect_timeout, library, credentials)
        self.speed = speed
        self.records_misses = records_misses

    def keep_journal(self, journal: RequestJournal) -> None:
        super().keep_journal(journal)
        journal.on_reset(self.library.reset)

    async def ask(
        self, target: object, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> Reply:
        """Raises APIError 404 if there is no recording."""
        assert isinstance(target, RecordedTarget)
        observed = await apart(self.observe, target, headers, body)
        taken = self.library.take(observed.facts, observed.request.path)
        if taken is None:
            difference = await apart(self.library.nearest, observed.request, observed.facts)
            self.note(observed, "", difference, 0 if self.records_misses else 404)
            if self.records_misses:
                return await self.record(target, headers, body, deadline, observed)
            raise no_recording(difference)
        recording, is_loose = taken
        exchange = self.library.exchange(recording)
        difference = ""
        if is_loose:
            difference = self.library.matcher.difference(exchange.request, observed.request)
            log.info("REPLAY: %s answers, although %s", recording.name, difference)
        self.note(observed, recording.name, difference, exchange.status)
        return await replayed(exchange, self.speed, deadline)

    def note(self, observed: ObservedRequest, recording: str, difference: str, status: int) -> None:
        if self.journal is None:
            return
        request = observed.request
        found = conversation_in(decoded(request))
        messages = [{"role": "user", "content": observed.facts.prompt}]
        self.journal.answered(
            path=request.path.partition("?")[0],
            model=observed.facts.model,
            messages=found[0] if found is not None else messages,
            recording=recording,
            difference=difference,
            status=status,
        )


def no_recording(nearest: str) -> APIError:
    message = "REPLAY has no recording of this request."
    if nearest:
        message += f" Nearest is {nearest}."
    return APIError(404, message, code="recording_not_found", reason="no recording")


async def replayed(exchange: RecordedExchange, speed: float, deadline: float) -> "ReplayedReply":
    """The recorded answer, at the time of its head. Raises httpx.HTTPError."""
    reply = ReplayedReply(exchange, speed, deadline)
    await reply.wait(exchange.after)
    if not exchange.status:
        raise failure_at(exchange.end)
    return reply


def failure_at(end: str) -> httpx.HTTPError:
    kind = next(kind for name, kind in ENDS if name == end)
    return kind(f"The recorded exchange ends here: {end}.")


class ReplayedReply:
    """A Reply with the pieces of a recording."""

    def __init__(self, exchange: RecordedExchange, speed: float, deadline: float) -> None:
        self.status = exchange.status
        self.headers = {
            name.encode("latin-1"): value.encode("latin-1")
            for name, value in exchange.headers.items()
        }
        if exchange.has_length:
            size = sum(len(piece.data) for piece in exchange.pieces)
            self.headers[b"content-length"] = str(size).encode()
        self.deadline = deadline
        self.speed = speed
        self.pieces = iter(exchange.pieces)
        self.exchange = exchange
        self.time = running_loop().time()  # at which the last piece was due

    async def read(self) -> bytes:
        piece = next(self.pieces, None)
        if piece is not None:
            await self.wait(piece.after)
            return piece.data
        await self.wait(self.exchange.end_after)
        if self.exchange.end == "complete":
            return b""
        raise failure_at(self.exchange.end)

    async def wait(self, after: float) -> None:
        """Wait until `after` recorded seconds have passed. Raises httpx.ReadTimeout at the deadline."""
        loop = running_loop()
        if not self.speed:
            await asyncio.sleep(0)  # a long stream lets others run
            return
        # From the time that was due: the waits of many pieces do not add up their delays.
        self.time += after / self.speed
        await asyncio.sleep(min(self.time, self.deadline) - loop.time())
        if self.time > self.deadline:
            raise failure_at("silent")

    def linger(self) -> None:
        pass

    async def aclose(self) -> None:
        pass
