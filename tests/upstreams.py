"""Upstreams for tests: servers on loopback that answer well, or go wrong in one exactly named way.

`Upstream(handler)` serves inside a test and keeps the evidence; `FAULTS[name]` and `make(kind, text)` are its handlers.
`python tests/upstreams.py PORT` serves all of them, chosen by path (PORT 0: a free one; the port is printed):

    /fault/NAME/v1/chat/completions    /good/v1/chat/completions    OpenAI-compatible
    /fault/NAME/chat                   /good/chat, /good/KIND/chat  chat URL: {"reply": TEXT}
    GET /evidence                      what it saw; times are CLOCK_MONOTONIC seconds, comparable between processes

`"stream": true` in the body gets a fault's SSE form, anything else its JSON form; FORCED_SSE and FORCED_JSON name those
with one form. Raw sockets on purpose: no HTTP library would send most of this. No TLS, and no half-closed clients: who
shuts the sending side down has left.
"""

import asyncio
import gzip
import json
import re
import signal
import socket
import struct
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from http import HTTPStatus
from itertools import chain, count, repeat
from typing import Any, Self

JSON, SSE = "application/json", "text/event-stream; charset=utf-8"
PLAIN, HTML = "text/plain; charset=utf-8", "text/html"
CHUNKED, END, DONE = "transfer-encoding: chunked", b"0\r\n\r\n", "[DONE]"
MARK = "§"  # stands where the text of a reply goes, for faults that put something else there
LEAK = "canary-of-the-upstream-5d1f"  # in error pages, tracebacks and private headers: must never reach a client
TEXT = "Grüße, 世界! 👋 Every piece of this answer arrives, once, in order. 🙂"
U2028_TEXT = "one\u2028two\u0085three\u2029four"
BIG = ("x" * 999 + " ") * 10_000


@dataclass
class Request:
    """What a client sent; header names in lower case, times in seconds of loop.time()."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    nth: int = 0  # 0: the first request of its connection
    arrived_at: float = 0.0
    closed_at: float | None = None  # the client left while the handler was still answering
    answered: bool = False  # the handler came to its end
    sse: bool = field(init=False)

    def __post_init__(self) -> None:
        self.sse = self.asked.get("stream") is True

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def asked(self) -> dict[str, Any]:
        """The body as an object; empty if it is something else."""
        try:
            asked = json.loads(self.body)
        except ValueError:
            return {}
        return asked if isinstance(asked, dict) else {}

    @property
    def openai(self) -> bool:
        return self.path.split("?")[0].endswith("/completions")


Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Handler = Callable[[Request, Reader, Writer], Awaitable[None]]
Body = tuple[str, list[bytes]]  # content type, pieces


async def read_request(reader: Reader) -> Request:
    """One HTTP/1.1 request with its body; raises EOFError (IncompleteReadError) where the client ends instead."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
    method, path, _ = first.split(" ")
    headers: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        before = headers.get(name.lower())
        headers[name.lower()] = value.strip() if before is None else f"{before}, {value.strip()}"
    if "chunked" not in headers.get("transfer-encoding", ""):
        return Request(
            method, path, headers, await reader.readexactly(int(headers.get("content-length", "0")))
        )
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return Request(method, path, headers, body)


class Wire(asyncio.StreamReaderProtocol):
    """One connection: request after request to the handler, which is cancelled as soon as the client leaves.

    A protocol, and not start_server's callback, because only a protocol hears of the end without reading for it.
    """

    def __init__(self, upstream: "Upstream") -> None:
        super().__init__(asyncio.StreamReader(limit=2**20), self.accepted)
        self.upstream = upstream
        self.request: Request | None = None

    def accepted(self, reader: Reader, writer: Writer) -> None:
        self.transport = writer.transport
        self.upstream.connections += 1
        self.upstream.wires.add(self)
        self.task = asyncio.create_task(self.serve(reader, writer))
        self.upstream.tasks.add(self.task)
        self.task.add_done_callback(self.upstream.tasks.discard)
        self.upstream.changed()

    async def serve(self, reader: Reader, writer: Writer) -> None:
        nth = 0
        try:
            while not writer.is_closing():
                request = await read_request(reader)
                request.nth, request.arrived_at = nth, asyncio.get_running_loop().time()
                await self.answer(request, reader, writer)
                nth += 1
                if request.headers.get("connection", "").lower() == "close":
                    break
        except (asyncio.CancelledError, EOFError, ConnectionError):
            pass
        except (
            Exception
        ) as error:  # a mistake in a test's own handler: raised where its Upstream ends
            self.upstream.errors.append(error)
        finally:
            self.request = None
            writer.close()

    async def answer(self, request: Request, reader: Reader, writer: Writer) -> None:
        if request.path == "/evidence":
            self.upstream.connections -= 1
            data = dumps(self.upstream.evidence(self)).encode()
            await send(writer, whole(JSON, data, "connection: close"))
            return writer.close()
        self.request = request
        self.upstream.requests.append(request)
        del self.upstream.requests[: -self.upstream.keep]
        self.upstream.changed()
        await self.upstream.handler(request, reader, writer)
        self.request, request.answered = None, True
        self.upstream.changed()
        return None

    def eof_received(self) -> bool | None:
        self.left()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.left()
        self.upstream.wires.discard(self)
        self.upstream.changed()
        super().connection_lost(exc)

    def left(self) -> None:
        if self.request is not None:
            self.request.closed_at, self.request = asyncio.get_running_loop().time(), None
            self.task.cancel()
            self.upstream.changed()


class Upstream:
    """`async with Upstream(handler) as up:` serves at `up.url` on a free port; leaving it ends every answer and socket.

    Evidence: `requests` (the last `keep`), `connections` (accepted so far), `open` (now).
    Raises, on leaving, what a handler raised.
    """

    def __init__(self, handler: Handler, port: int = 0, keep: int = 10_000) -> None:
        self.handler, self.port, self.keep = handler, port, keep
        self.requests: list[Request] = []
        self.connections = 0
        self.wires: set[Wire] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.errors: list[Exception] = []
        self._change = asyncio.Event()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(
            lambda: Wire(self), "127.0.0.1", self.port, backlog=1024
        )
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        await asyncio.sleep(0.01)  # what was accepted just now becomes a Wire yet
        for wire in self.wires:
            wire.request = None  # it is we who leave
            wire.transport.abort()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(
            *self.tasks, return_exceptions=True
        )  # one that never started is cancelled as a whole
        await self.until(lambda: not self.wires)
        await self.server.wait_closed()
        if self.errors:
            raise self.errors[0]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        return len(self.wires)

    def evidence(self, asking: Wire) -> dict[str, Any]:
        requests = [
            asdict(r) | {"body": r.body[:10_000].decode(errors="replace")} for r in self.requests
        ]
        return {
            "connections": self.connections,
            "open": len(self.wires - {asking}),
            "requests": requests,
        }

    def changed(self) -> None:
        before, self._change = self._change, asyncio.Event()
        before.set()

    async def until(self, fact: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """Wait for a fact about the evidence, e.g. `until(lambda: up.open == 0)`; raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not fact():
                await self._change.wait()

    async def wait_requests(self, count: int = 1, timeout_s: float = 5.0) -> Request:
        """Wait until `count` requests have arrived; the last one."""
        await self.until(lambda: len(self.requests) >= count, timeout_s)
        return self.requests[-1]

    async def wait_closed(self, request: Request | None = None, timeout_s: float = 5.0) -> float:
        """Wait until the client of `request` (default: the last) has left in mid-answer; that time."""
        asked = request or await self.wait_requests(1, timeout_s)
        await self.until(lambda: asked.closed_at is not None, timeout_s)
        assert asked.closed_at is not None
        return asked.closed_at


def closed_port() -> int:
    """A port where nobody listens: connecting is refused."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


# ---- words of HTTP and SSE

dumps = partial(json.dumps, ensure_ascii=False)


def head(content_type: str, *headers: str, status: int = 200, version: str = "1.1") -> bytes:
    first = f"HTTP/{version} {status} {HTTPStatus(status).phrase}"
    return ("\r\n".join([first, f"content-type: {content_type}", *headers]) + "\r\n\r\n").encode(
        "latin-1"
    )


def whole(content_type: str, data: bytes, *headers: str, status: int = 200) -> list[bytes]:
    return [head(content_type, f"content-length: {len(data)}", *headers, status=status) + data]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunked(
    content_type: str, pieces: Iterable[bytes], *headers: str, end: bytes = END
) -> list[bytes]:
    return [head(content_type, CHUNKED, *headers), *map(chunk, pieces), end]


def sse(payloads: Iterable[str], eol: str = "\n", field: str = "data: ") -> list[bytes]:
    return [(field + text.replace("\n", eol + field) + eol + eol).encode() for text in payloads]


async def send(writer: Writer, parts: Iterable[bytes], pause_s: float = 0.0) -> None:
    """Write each part by itself, `pause_s` seconds after the one before (0 still lets others run)."""
    for at, part in enumerate(parts):
        await asyncio.sleep(pause_s if at else 0)
        writer.write(part)
        await writer.drain()


def split(text: str, count: int = 10) -> list[str]:
    """At most `count` pieces of equal length, whatever stands there; joined they are the text."""
    size = max(1, -(-len(text) // count))
    return [text[at : at + size] for at in range(0, len(text), size)]


def lf(text: str) -> str:
    """The text as bare lines of SSE can carry it: each CRLF and each CR is an LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


# ---- good answers

Asked = dict[str, Any]
USAGE = {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33}


def openai(kind: str, asked: Asked, choices: list[Any], **more: Any) -> str:
    model = asked.get("model") or "upstream-model"
    return dumps(
        {
            "id": "chatcmpl-up",
            "object": kind,
            "created": 17 * 10**8,
            "model": model,
            "choices": choices,
        }
        | more
    )


def completion(text: str, asked: Asked) -> str:
    message: Asked = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return openai("chat.completion", asked, [choice], usage=USAGE)


def chunks(pieces: Sequence[str], asked: Asked) -> list[str]:
    with_usage = bool((asked.get("stream_options") or {}).get("include_usage"))

    def event(delta: Asked, finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return openai(
            "chat.completion.chunk", asked, [choice], **{"usage": None} if with_usage else {}
        )

    events = [
        event({"role": "assistant", "content": ""}),
        *(event({"content": p}) for p in pieces),
        event({}, "stop"),
    ]
    return [
        *events,
        *([openai("chat.completion.chunk", asked, [], usage=USAGE)] if with_usage else []),
        DONE,
    ]


def keyed(key: str, pieces: Sequence[str]) -> list[str]:
    return [dumps({key: piece}) for piece in pieces]


def halves(text: str, parts: int = 2) -> list[bytes]:
    data, size = text.encode(), -(-len(text.encode()) // parts)
    return [data[at : at + size] for at in range(0, len(data), size)]


KINDS: dict[str, Callable[[Sequence[str], Asked], Body]] = {
    "json": lambda pieces, asked: (JSON, halves(dumps({"reply": "".join(pieces)}))),
    "openai_json": lambda pieces, asked: (JSON, halves(completion("".join(pieces), asked))),
    "json_string": lambda pieces, asked: (JSON, halves(dumps("".join(pieces)))),
    "sse_json": lambda pieces, asked: (SSE, sse([*keyed("reply", pieces), DONE])),
    "sse_json_text": lambda pieces, asked: (
        SSE,
        sse(keyed("text", pieces)),
    ),  # just ends, as many do
    "sse_openai": lambda pieces, asked: (SSE, sse(chunks(pieces, asked))),
    "sse_text": lambda pieces, asked: (SSE, sse([*map(lf, pieces), DONE])),
    "ndjson": lambda pieces, asked: (
        "application/x-ndjson",
        [f"{line}\n".encode() for line in keyed("reply", pieces)],
    ),
    "plain_text": lambda pieces, asked: (PLAIN, [piece.encode() for piece in pieces]),
}


def make(
    kind: str,
    text: str,
    pieces: Sequence[str] = (),
    pause_s: float = 0.0,
    gate: asyncio.Event | None = None,
) -> Handler:
    """A good upstream of one of KINDS that says `text`, in `pieces` (default: ten), `pause_s` seconds apart.

    With a `gate`, what comes after the first piece of text (of one JSON value: its first half) waits until it is set.
    `sse_text` says lf(text): bare lines have no CR.
    """

    async def answer(request: Request, reader: Reader, writer: Writer) -> None:
        content_type, body = KINDS[kind](
            pieces or split(lf(text) if kind == "sse_text" else text), request.asked
        )
        parts = chunked(content_type, body)
        first = 3 if kind == "sse_openai" else 2  # the head, a role without text, the first text
        await send(writer, parts[:first], pause_s)
        if gate:
            await gate.wait()
        await asyncio.sleep(pause_s)
        await send(writer, parts[first:], pause_s)

    return answer


# ---- what goes wrong: each script gives the bytes of an answer, part by part; what `then` does comes after the last

Script = Callable[[Request], Iterable[bytes]]


async def close(writer: Writer) -> None:
    writer.close()


async def hold(writer: Writer) -> None:
    await asyncio.Event().wait()


async def reset(writer: Writer) -> None:
    await asyncio.sleep(0.05)  # a reset may overtake what was sent just before
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    writer.transport.abort()


def sends(
    script: Script, then: Callable[[Writer], Awaitable[None]] | None = None, pause_s: float = 0.0
) -> Handler:
    async def answer(request: Request, reader: Reader, writer: Writer) -> None:
        await send(writer, script(request), pause_s)
        if then:
            await then(writer)

    return answer


async def keepalive_race(request: Request, reader: Reader, writer: Writer) -> None:
    """Good once; the next request on the same connection finds it closed, without a byte."""
    await (close(writer) if request.nth else FAULTS["good"](request, reader, writer))


def payloads(r: Request, text: str = TEXT) -> list[str]:
    """The events, or the one JSON object, of a good answer in the form that was asked for."""
    if r.openai:
        return chunks(split(text), r.asked) if r.sse else [completion(text, r.asked)]
    return [*keyed("reply", split(text)), DONE] if r.sse else keyed("reply", [text])


def framed(
    r: Request, events: Sequence[str], eol: str = "\n", field: str = "data: "
) -> list[bytes]:
    return sse(events, eol, field) if r.sse else [events[0].encode()]


def body(r: Request, text: str = TEXT) -> list[bytes]:
    return framed(r, payloads(r, text))


def form(r: Request) -> str:
    return SSE if r.sse else JSON


def ok(r: Request, pieces: Sequence[bytes], *headers: str) -> list[bytes]:
    """Faultless HTTP: one piece with its length, several in chunks."""
    return (
        whole(form(r), pieces[0], *headers)
        if len(pieces) == 1
        else chunked(form(r), pieces, *headers)
    )


def cut(pieces: Sequence[bytes]) -> list[bytes]:
    """Two pieces and half of the third; half of the only one."""
    *before, last = pieces[:3]
    return [*before, last[: len(last) // 2]]


def begun(r: Request, pieces: Sequence[bytes]) -> list[bytes]:
    return chunked(form(r), pieces)[:-1]


def around(r: Request) -> tuple[bytes, bytes]:
    """The bytes before and after the text, of the JSON object or of the first event that has text."""
    event = next(text for text in payloads(r, MARK) if MARK in text)
    before, _, after = framed(r, [event])[0].partition(MARK.encode())
    return before, after


def pours(block: bytes, times: Iterable[object] = count(), pause_s: float = 0.0) -> Handler:
    """One JSON string that goes on and on; after so many times silence, but never its end."""
    return sends(
        lambda r: chain(begun(r, around(r)[:1]), (chunk(block) for _ in times)), hold, pause_s
    )


def slow_head(r: Request) -> list[bytes]:
    answer = b"".join(ok(r, body(r)))
    return [*(answer[at : at + 1] for at in range(17)), answer[17:]]


def unlike(old: str, new: bytes) -> Handler:
    """A good answer, but for `new` where `old`, the text or its JSON string, stood."""
    return sends(lambda r: ok(r, [piece.replace(old.encode(), new) for piece in body(r, MARK)]))


def extra(raw: str) -> Handler:
    """A good answer with one more member, `raw`, in each object."""
    return sends(
        lambda r: ok(
            r, framed(r, [p[:-1] + f', "extra": {raw}}}' if p != DONE else p for p in payloads(r)])
        )
    )


def only(value: object) -> Handler:
    """One JSON object, as the whole answer or as the only event before [DONE]."""
    return sends(lambda r: ok(r, framed(r, [dumps(value), DONE])))


def reframed(eol: str = "\n", field: str = "data: ") -> Handler:
    return sends(lambda r: ok(r, framed(r, payloads(r), eol, field)))


def indented(r: Request) -> list[str]:
    return [p if p == DONE else dumps(json.loads(p), indent=1) for p in payloads(r)]


def apart(r: Request, at: bytes, eol: str = "\n") -> list[bytes]:
    """Pieces that end, and begin, in the middle of each `at`, after its first byte."""
    return re.split(b"(?<=%b)(?=%b)" % (at[:1], at[1:]), b"".join(framed(r, payloads(r), eol)))


@cache
def bomb(before: bytes, after: bytes) -> bytes:
    press = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(map(press.compress, [before, *[b" " * 10**6] * 250, after])) + press.flush()


def zipped(r: Request, data: bytes) -> list[bytes]:
    return ok(r, [data], "content-encoding: gzip")


def says(status: int, data: bytes, *headers: str, content_type: str = JSON) -> Handler:
    return sends(lambda r: whole(content_type, data, *headers, status=status))


def fails(
    status: int,
    message: str,
    code: str | None = None,
    param: str | None = None,
    headers: Sequence[str] = (),
) -> Handler:
    return says(status, envelope(message, code, param), *headers)


def envelope(message: str, code: str | None = None, param: str | None = None) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return dumps({"error": error}).encode()


def repeated_key(r: Request) -> list[bytes]:
    keys = [value for name, value in r.headers.items() if "auth" in name or "key" in name]
    data = envelope(f"Incorrect API key provided: {' '.join(keys)}. {LEAK}", "invalid_api_key")
    return whole(JSON, data, f"www-authenticate: {LEAK}", status=401)


def redirects(status: int) -> Handler:
    """To another host name that is this server too: who follows is seen at /stolen."""
    place = "location: http://localhost:{}/stolen"
    return sends(
        lambda r: whole(
            HTML, b"", place.format(r.headers["host"].rpartition(":")[2]), status=status
        )
    )


EARLY, CONTINUE = (
    b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
)
ERROR = envelope(f"The engine stopped. {LEAK}").decode()
PAGE = f"<html><title>Oops</title><h1>nginx</h1>{LEAK}</html>".encode()
ABOVE = "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 99.0 instead."
RATE = [
    "x-ratelimit-limit-requests: 60",
    "x-ratelimit-remaining-requests: 0",
    "x-ratelimit-reset-requests: 7s",
]
PRIVATE = [
    f"set-cookie: session={LEAK}",
    f"server: {LEAK}",
    f"x-internal: {LEAK}",
    "keep-alive: timeout=5",
]
CORS = [
    "access-control-allow-origin: https://evil.example",
    "access-control-allow-credentials: true",
]
CHAT = {"id": "chatcmpl-up", "object": "chat.completion"}

FAULTS: dict[str, Handler] = {
    "good": sends(lambda r: ok(r, body(r))),
    # the connection
    "hang": sends(lambda r: [], hold),
    "reset": sends(lambda r: [], reset),
    "reset_mid": sends(lambda r: begun(r, cut(body(r))), reset),
    "keepalive_race": keepalive_race,
    "slow_head": sends(slow_head, pause_s=0.2),
    "slow_good": sends(
        lambda r: chunked(form(r), body(r) if r.sse else halves(payloads(r)[0], 10)), pause_s=0.1
    ),
    "drip": pours(b"a", pause_s=0.05),
    "drip_json": pours(b"a", pause_s=0.05),
    "drip_mid": sends(
        lambda r: chain(
            begun(r, [*body(r)[: 3 if r.sse else 0], around(r)[0]]), repeat(chunk(b"a"))
        ),
        pause_s=0.05,
    ),
    "pings_only": sends(
        lambda r: chain(begun(r, []), repeat(chunk(b": ping\n\n" if r.sse else b"\n"))),
        pause_s=0.05,
    ),
    "blanks": sends(lambda r: chain(begun(r, []), repeat(chunk(b"\n"))), pause_s=0.05),
    "endless": sends(
        lambda r: chain(begun(r, body(r)[:1]), repeat(chunk([*body(r), b" " * 2**12][1])))
    ),
    "endless_json": pours(b"a" * 2**16),
    "endless_head": sends(
        lambda r: chain([head(form(r))[:-2]], repeat(b"x-more: and more\r\n" * 100))
    ),
    "huge_event": pours(b"a" * 10**5, range(500)),
    "done_then_open": sends(lambda r: begun(r, body(r)), hold),
    # HTTP
    "cut_chunk": sends(lambda r: [b"".join(begun(r, body(r)[:3]))[:-10]], close),
    "bad_chunk_size": sends(
        lambda r: [*begun(r, body(r)[:2]), b"zz\r\nnot hexadecimal\r\n" + END], close
    ),
    "truncated_json": sends(lambda r: [head(JSON, "content-length: 9999"), *cut(body(r))], close),
    "two_lengths": sends(lambda r: whole(form(r), b"".join(body(r)), "content-length: 7"), close),
    "header_injection": sends(lambda r: ok(r, body(r), "x-first: a\nx-injected: yes")),
    "obs_fold": sends(lambda r: ok(r, body(r), "x-folded: a\r\n\tset-cookie: b")),
    "set_cookie": sends(lambda r: ok(r, body(r), *PRIVATE, *CORS)),
    "trailers": sends(
        lambda r: chunked(form(r), body(r), "trailer: x-sum", end=b"0\r\nx-sum: 1\r\n\r\n")
    ),
    "early_hints": sends(lambda r: [EARLY, *ok(r, body(r))], pause_s=0.01),
    "hundred_continue": sends(lambda r: [CONTINUE, *ok(r, body(r))], pause_s=0.01),
    "close_delimited": sends(lambda r: [head(form(r)), *body(r)], close),
    "http10": sends(lambda r: [head(form(r), version="1.0"), *body(r)], close),
    "gzip": sends(lambda r: zipped(r, gzip.compress(b"".join(body(r))))),
    "gzip_bomb": sends(lambda r: zipped(r, bomb(*around(r)))),
    # the status
    "400_envelope": fails(400, ABOVE, "decimal_above_max_value", "temperature"),
    "401_repeats_key": sends(repeated_key),
    "403": fails(403, f"Country not supported. {LEAK}", "unsupported_country_region_territory"),
    "404_model": fails(404, "The model `x` does not exist.", "model_not_found"),
    "422": says(
        422,
        b'{"detail": [{"loc": ["body", "messages"], "msg": "field required", "type": "missing"}]}',
    ),
    "429_retry_after": fails(
        429, "Rate limit reached.", "rate_limit_exceeded", headers=["retry-after: 7", *RATE]
    ),
    "500": says(500, f"Traceback (most recent call last):\n  {LEAK}".encode(), content_type=PLAIN),
    "503_retry_after": says(503, PAGE, "retry-after: 3", content_type=HTML),
    "html_502": says(502, PAGE, content_type=HTML),
    "204": sends(lambda r: [b"HTTP/1.1 204 No Content\r\n\r\n"]),
    "redirect": redirects(302),
    "redirect_307": redirects(307),
    # the body
    "html_200": says(200, PAGE, content_type=HTML),
    "wrong_type": says(200, b"\x89PNG\r\n\x1a\n" + bytes(range(256)), content_type="image/png"),
    "empty_200": sends(lambda r: whole(form(r), b"")),
    "body_10mb": sends(lambda r: ok(r, body(r, BIG))),
    "truncated_json_clean": sends(lambda r: ok(r, cut(body(r)))),
    "null_content": unlike(f'"{MARK}"', b"null"),
    "no_choices": only(CHAT),
    "empty_choices": only(CHAT | {"choices": []}),
    "error_in_200": says(200, ERROR.encode()),
    "deep_json": extra("[" * 2000 + "]" * 2000),
    "deep_300": extra("[" * 300 + "]" * 300),
    "nan_json": extra("NaN"),
    "surrogate": unlike(MARK, b"good, then \\ud800"),
    "invalid_utf8": unlike(MARK, b"good, then \xff\xc3("),
    "split_utf8": sends(lambda r: ok(r, apart(r, "👋".encode())), pause_s=0.05),
    "u2028": sends(lambda r: ok(r, body(r, U2028_TEXT))),
    # the events
    "cut_event": sends(lambda r: ok(r, cut(body(r)))),
    "truncated_sse": sends(lambda r: ok(r, body(r)[:3] if r.sse else cut(body(r)))),
    "error_event": sends(lambda r: ok(r, framed(r, [*payloads(r)[: 3 if r.sse else 0], ERROR]))),
    "error_first_event": sends(lambda r: ok(r, framed(r, [ERROR]))),
    "no_done_but_finish": sends(lambda r: ok(r, framed(r, [p for p in payloads(r) if p != DONE]))),
    "no_last_blank": sends(lambda r: ok(r, [*body(r)[:-1], body(r)[-1].rstrip()])),
    "many_data_lines": sends(lambda r: ok(r, framed(r, indented(r)))),
    "crlf": reframed(eol="\r\n"),
    "crlf_apart": sends(lambda r: ok(r, apart(r, b"\r\n", "\r\n")), pause_s=0.002),
    "cr": reframed(eol="\r"),
    "comments": reframed(field=": ping\n\n: ping\nid: 7\nretry: 3000\ndata: "),
    "no_space": reframed(field="data:"),
}

# One form only, whatever "stream" says. An OpenAI-compatible client that asks for JSON gets JSON even here: cut, reset
# or endless as the name says, and simply good where the fault is one of SSE.
FORCED_SSE = [
    "drip",
    "drip_mid",
    "pings_only",
    "endless",
    "huge_event",
    "reset_mid",
    "cut_chunk",
    "cut_event",
    "truncated_sse",
    "error_event",
    "error_first_event",
    "no_done_but_finish",
    "done_then_open",
    "crlf",
    "crlf_apart",
    "cr",
    "comments",
    "many_data_lines",
    "no_space",
    "no_last_blank",
]
FORCED_JSON = ["blanks", "drip_json", "endless_json", "truncated_json", "truncated_json_clean"]

# These are to be given out as if nothing were odd; all other faults are failures, or are for the test to judge.
GOOD = {"u2028": U2028_TEXT} | dict.fromkeys(
    [
        "good",
        "slow_good",
        "keepalive_race",
        "early_hints",
        "hundred_continue",
        "trailers",
        "close_delimited",
        "http10",
        "set_cookie",
        "gzip",
        "split_utf8",
        "crlf",
        "crlf_apart",
        "cr",
        "comments",
        "many_data_lines",
        "no_space",
        "no_last_blank",
        "no_done_but_finish",
        "done_then_open",
    ],
    TEXT,
)


def forced(handler: Handler, to_sse: bool) -> Handler:
    def answer(request: Request, reader: Reader, writer: Writer) -> Awaitable[None]:
        request.sse = to_sse and (request.sse or not request.openai)
        return handler(request, reader, writer)

    return answer


FAULTS |= {name: forced(FAULTS[name], name in FORCED_SSE) for name in FORCED_SSE + FORCED_JSON}


# ---- all of them in one process


async def by_path(request: Request, reader: Reader, writer: Writer) -> None:
    """/fault/NAME/… and /good/…, as the module's head says; GET …/models is always good."""
    handler = fails(404, f"Invalid URL ({request.method} {request.path})")
    match request.path.partition("?")[0].split("/"):
        case ["", "fault" | "good", *_, "models"]:
            handler = says(
                200, b'{"object": "list", "data": [{"id": "upstream-model", "object": "model"}]}'
            )
        case ["", "fault", name, *_] if name in FAULTS:
            handler = FAULTS[name]
        case ["", "good", kind, "chat"] if kind in KINDS:
            handler = make(kind, TEXT)
        case ["", "good", "chat"] | ["", "good", "v1", "chat", "completions"]:
            handler = FAULTS["good"]
    await handler(request, reader, writer)


async def main(port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Upstream(by_path, port) as upstream:
        print(upstream.port, flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
