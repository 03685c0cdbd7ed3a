"""A relay of an OpenAI-compatible upstream: its own bytes reach the client, checked and framed, but not parsed.

RelayStream passes a stream on in whole events. `checked_completion` checks a whole completion.
Imports types, framing, lenient and errors.
"""

import asyncio
import re
from codecs import BOM_UTF8

import orjson

from rewrap import large_json
from rewrap.eventloop import running_loop
from rewrap.types import (
    Delta,
    Deltas,
    JSONObject,
    Reply,
    ResponseInfo,
    Sink,
    UpstreamRejection,
)
from rewrap.upstream import lenient
from rewrap.upstream.errors import CUT_SHORT, NO_REPLY, TOO_LARGE, bad_gateway, rejection_in_success
from rewrap.upstream.framing import DONE, EVENT_END, SSEDecoder, is_plain_events, last_event_end

# A member alone: in the text of a reply, quotation marks are escaped.
MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
USAGE = re.compile(rb'"usage":\s*(\{(?:[^{}]|\{[^{}]*\})*\})')
FINISHED = re.compile(rb'"finish_reason":\s*"[^"]')
DONE_EVENT = b"data: [DONE]\n\n"
REWRITTEN_BYTES = 2**13  # at a time
COMMENT = re.compile(rb"^:[^\r\n]*", re.MULTILINE)
DATA = re.compile(rb"^data", re.MULTILINE)


class ModelAlias:
    """Puts the client's name of the model in the place of the upstream's."""

    def __init__(self, model: str) -> None:
        self.member = b'"model":' + orjson.dumps(model)

    def __call__(self, data: bytes) -> bytes:
        return MODEL.sub(lambda _: self.member, data)


class RelayStream:
    """Passes on an upstream's stream: `feed` takes the bytes of a read and returns bytes for the client.

    A cut event never reaches the client, because an event waits until it is whole. Events in the usual form (`data: {...}`
    and a blank line) pass untouched and unparsed: a relayed chunk costs 2 µs. Other forms are rewritten to that one, because
    naive clients cannot read them. Comments pass at once. Other events before the first delta are held back, because the
    status of the answer can still change.

    Attributes after each `feed`:
        rest     whole events that are still to be rewritten: `feed(b"")` goes on with them, before any new bytes
        started  the reply has its first delta
        done     the upstream ended the stream
        failure  the error event that follows the returned bytes
    """

    __slots__ = (
        "alias",
        "done",
        "event_bytes",
        "failure",
        "failure_status",
        "held",
        "held_bytes",
        "one_choice",
        "previous",
        "recent",
        "rest",
        "second_previous",
        "started",
        "unfinished",
    )

    def __init__(
        self, event_bytes: int, failure_status: int, *, one_choice: bool, alias: ModelAlias | None
    ) -> None:
        self.event_bytes = event_bytes
        self.failure_status = failure_status
        self.one_choice = one_choice
        self.alias = alias
        self.unfinished = b""
        self.rest = b""
        self.held: list[bytes] = []
        self.held_bytes = 0
        self.started = False
        self.done = False
        self.failure: UpstreamRejection | None = None
        # The end of a stream (usage, finish_reason, [DONE]) may stand in three reads.
        self.recent = b""
        self.previous = b""
        self.second_previous = b""

    def feed(self, data: bytes) -> bytes:
        """The bytes that the client gets now; b"" if there are none yet. Raises APIError, UnicodeDecodeError."""
        if self.rest:
            data = self.rest
            self.rest = b""
        elif self.unfinished or not data.endswith(b"\n\n"):
            data = self.whole_events(data)
            if not data:
                return b""
        if not data.isascii():
            data.decode()  # the client's reader would fail, too
        if not is_plain_events(data):
            data = self.rewritten(self.first_events(data))
            if self.done or self.failure is not None:
                self.rest = b""
        else:
            end = first_suspect(data)
            rest = data[end:]
            if rest == DONE_EVENT:
                self.done = True
            elif rest:  # the events before it pass: a fast upstream sends many at once
                data = data[:end] + self.rewritten(rest)
        if not self.started:
            data = self.from_first_delta(data)
        if not data:
            return b""
        self.second_previous = self.previous
        self.previous = self.recent
        self.recent = data
        if self.alias is not None:
            return self.alias(data)
        return data

    def whole_events(self, data: bytes) -> bytes:
        """All events that are whole now. The rest waits. Raises APIError if it is too large."""
        searched = max(
            0, len(self.unfinished) - 3
        )  # no event ends before: a large one comes in many reads
        if self.unfinished:
            data = self.unfinished + data
        end = last_event_end(data, searched)
        self.unfinished = data[end:]
        if len(self.unfinished) > self.event_bytes:
            raise bad_gateway(TOO_LARGE, "event too large", self.failure_status)
        return data[:end]

    def first_events(self, data: bytes) -> bytes:
        """The first REWRITTEN_BYTES, up to the end of an event. The rest waits: to rewrite 50,000 events takes half a second."""
        match = EVENT_END.search(data, REWRITTEN_BYTES)
        if match is None:
            return data
        self.rest = data[match.end() :]
        return data[: match.end()]

    def rewritten(self, data: bytes) -> bytes:
        """Events in the usual form, up to [DONE] or the first failure. Comments stay; data that is no object is left out."""
        parts: list[bytes] = []
        start = 0
        for end in EVENT_END.finditer(data):
            block = data[start : end.end()]
            start = end.end()
            comments = COMMENT.findall(block)
            if comments:
                parts.append(b"\n".join(comments) + b"\n\n")
            for name, event in SSEDecoder(len(block)).feed(block):
                event = event.strip()
                if event == b"[DONE]":
                    self.done = True
                    parts.append(DONE_EVENT)
                    return b"".join(parts)
                self.failure = rejection_of(name, event)
                if self.failure is not None:
                    return b"".join(parts)
                if event.startswith(b"{"):
                    parts.append(b"data: " + event.replace(b"\n", b" ") + b"\n\n")
        return b"".join(parts)

    def from_first_delta(self, data: bytes) -> bytes:
        """All events so far, once there is a delta. Before, comments alone. Raises APIError if the stream ends without one."""
        if b'"delta"' in data:
            self.started = True
            data = b"".join([*self.held, data])
            self.held = []
            return data
        if data and not DATA.search(data):
            return data
        self.held.append(data)
        self.held_bytes += len(data)
        if self.failure is not None:
            return b""
        if self.done or self.held_bytes > self.event_bytes:
            raise bad_gateway(NO_REPLY, "no chunk", self.failure_status)
        return b""

    def finish(self) -> bytes:
        """The bytes that complete the stream at its end. Raises APIError if the upstream cut it short."""
        if not self.started:
            raise bad_gateway(NO_REPLY, "no chunk", self.failure_status)
        if self.done:
            return b""
        if DONE.match(self.unfinished):
            return DONE_EVENT
        finished = self.one_choice and FINISHED.search(self.tail()) is not None
        if self.unfinished.strip() or not finished:
            raise bad_gateway(CUT_SHORT, "no [DONE]", self.failure_status)
        return DONE_EVENT

    def usage(self) -> JSONObject | None:
        """The usage in the last events."""
        tail = self.tail()
        # A search instead of this match would read all of a long tail slowly.
        found = USAGE.match(tail, max(0, tail.rfind(b'"usage":')))
        if found is None:
            return None
        counts: JSONObject = orjson.loads(found[1])
        return counts

    def tail(self) -> bytes:
        return self.second_previous + self.previous + self.recent


class Forwarding:
    """A sink for the upstream's bytes: what the relay lets pass goes straight to the client's socket."""

    def __init__(self, reply: Reply, relay: RelayStream, write: Sink, stall: float) -> None:
        self.reply = reply
        self.relay = relay
        self.write = write
        self.stall = stall
        self.now = running_loop().time
        self.error: Exception | None = None

    def __call__(self, data: bytes) -> bool:
        relay = self.relay
        try:
            passed = relay.feed(data)
        except Exception as error:  # for the reader: this is the socket's callback
            self.error = error
            return False
        self.reply.deadline = self.now() + self.stall
        if passed and not self.write(passed):
            return False
        return relay.failure is None and not relay.done and not relay.rest


async def relayed(reply: Reply, relay: RelayStream, stall: float, info: ResponseInfo) -> Deltas:
    """The raw Deltas of a stream. Raises APIError, UpstreamRejection.

    Once the client has the head and the first bytes, `info.write` sends the rest, and no Delta carries them. Then Deltas
    carry bytes only while the client reads too slowly.
    """
    loop = running_loop()
    forward = getattr(reply, "forward", None)
    while True:
        if relay.rest:
            await asyncio.sleep(0)  # others have their turn
            data = b""
        else:
            data = await reply.read()
            if not data:
                break
        passed = relay.feed(data)
        if passed:
            yield Delta(raw=passed)
        # Any byte is a sign of life. A client that reads slowly does not use up the upstream's time.
        reply.deadline = loop.time() + stall
        over = relay.done or relay.failure is not None
        may_forward = relay.started and not over and not relay.rest
        if may_forward and forward is not None and info.write is not None:
            forwarding = Forwarding(reply, relay, info.write, stall)
            await forward(forwarding)
            if forwarding.error is not None:
                raise forwarding.error
        if relay.failure is not None:
            raise relay.failure
        if relay.done:
            reply.linger()
            break
    info.usage = relay.usage()
    if last := relay.finish():
        yield Delta(raw=last)


def first_suspect(data: bytes) -> int:
    """Of plain events, the start of the first one that may be an error or the end; without one the length of `data`."""
    position = data.find(b'"error"')
    if position < 0:
        position = len(data)
        if not data.endswith(DONE_EVENT):
            return position
    before = data.rfind(b"\n\n", 0, position - 2)
    return before + 2 if before >= 0 else 0


def rejection_of(name: str, event: bytes) -> UpstreamRejection | None:
    """The error in one event, if it is one. Raises ValueError if it looks like one and is not JSON."""
    is_object = event.startswith(b"{")
    if b'"error"' in event and is_object:
        error = orjson.loads(event).get("error")
        if error:
            return rejection_in_success(error)
    if name == "error":
        return rejection_in_success({})
    if is_object and not event.endswith(b"}"):
        return UpstreamRejection(502)
    return None


def checked_completion(body: bytes) -> tuple[bytes, JSONObject | None]:
    """A completion as it came, and its usage.

    Raises ValueError if it is none, UpstreamRejection if it is an error.
    """
    body = body.removeprefix(BOM_UTF8)
    try:
        value = large_json.loads_large(body)
    except ValueError:
        value = lenient.loads(body)
        body = orjson.dumps(value)
    if not isinstance(value, dict):
        raise ValueError("no completion")
    if value.get("error"):
        raise rejection_in_success(value["error"])
    if not is_completion(value):
        raise ValueError("no completion")
    counts = value.get("usage")
    return body, counts if isinstance(counts, dict) else None


def is_completion(value: JSONObject) -> bool:
    """Whether every choice has a message with a text, another member, or a reason to end."""
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices:
        return False
    return all(map(is_answered, choices))


def is_answered(choice: object) -> bool:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return False
    content = message.get("content")
    if isinstance(content, (str, list)) or choice.get("finish_reason"):
        return True
    return any(value for name, value in message.items() if name not in ("role", "content"))
