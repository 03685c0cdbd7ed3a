"""A relay of an OpenAI-compatible upstream: its own bytes reach the client, checked and framed, but not parsed.

RelayStream passes a stream on in whole events. `completion_members` checks a whole completion. Imports types, framing and errors.
"""

import re

import orjson

from rewrap.types import JSONObject, UpstreamRejection
from rewrap.upstream.errors import CUT_SHORT, NO_REPLY, TOO_LARGE, bad_gateway, rejection_in_success
from rewrap.upstream.framing import DONE, EVENT_END, SSEDecoder, is_plain_events, last_event_end

# A member alone: in the text of a reply, quotation marks are escaped.
MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
USAGE = re.compile(rb'"usage":\s*(\{(?:[^{}]|\{[^{}]*\})*\})')
FINISHED = re.compile(rb'"finish_reason":\s*"[^"]')
DONE_EVENT = b"data: [DONE]\n\n"


class ModelAlias:
    """Puts the client's name of the model in the place of the upstream's."""

    def __init__(self, model: str) -> None:
        self.member = b'"model":' + orjson.dumps(model)

    def __call__(self, data: bytes) -> bytes:
        return MODEL.sub(lambda _: self.member, data)


class RelayStream:
    """Passes on an upstream's stream: `feed` takes the bytes of a read and returns bytes for the client.

    A cut event never reaches the client, because an event waits until it is whole. Events are not parsed, except those that
    contain `error` or have an unusual form: a relayed chunk costs 2 µs. Before the first delta the events are held back, because
    the status of the answer can still change.

    Attributes after each `feed`:
        started  the reply has its first delta
        alive    this read had an event of the reply (comments alone are none)
        done     the upstream ended the stream
        failure  the error event that follows the returned bytes
    """

    __slots__ = (
        "alias",
        "alive",
        "done",
        "event_bytes",
        "failure",
        "failure_status",
        "held",
        "held_bytes",
        "one_choice",
        "previous",
        "recent",
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
        self.held: list[bytes] = []
        self.held_bytes = 0
        self.started = False
        self.alive = False
        self.done = False
        self.failure: UpstreamRejection | None = None
        # The end of a stream (usage, finish_reason, [DONE]) may stand in three reads.
        self.recent = b""
        self.previous = b""
        self.second_previous = b""

    def feed(self, data: bytes) -> bytes:
        """The bytes that the client gets now; b"" if there are none yet. Raises APIError, UnicodeDecodeError."""
        self.alive = False
        if self.unfinished or not data.endswith(b"\n\n"):
            data = self.whole_events(data)
            if not data:
                return b""
        if not data.isascii():
            data.decode()  # the client's reader would fail, too
        if b'"error"' in data or not is_plain_events(data):
            data = self.before_failure(data)
        if not self.started:
            data = self.from_first_delta(data)
        if not data:
            return b""
        if data.startswith(b"data:") or b"data:" in data:
            self.alive = True
        self.second_previous = self.previous
        self.previous = self.recent
        self.recent = data
        if data.endswith(b"[DONE]\n\n") or data.rstrip().endswith(b"[DONE]"):
            self.done = True
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

    def before_failure(self, data: bytes) -> bytes:
        """The events before the first error event, which becomes `failure`."""
        found = failed_event(data)
        if found is None:
            return data
        start, self.failure = found
        return data[:start]

    def from_first_delta(self, data: bytes) -> bytes:
        """All events so far, once there is a delta; b"" before. Raises APIError if the stream ends without one."""
        if b'"delta"' in data:
            self.started = True
            data = b"".join([*self.held, data])
            self.held = []
            return data
        self.held.append(data)
        self.held_bytes += len(data)
        if DONE.search(data):
            self.done = True
        if self.done or self.held_bytes > self.event_bytes:
            raise bad_gateway(NO_REPLY, "no chunk", self.failure_status)
        return b""

    def finish(self) -> bytes:
        """The bytes that complete the stream at its end. Raises APIError if the upstream cut it short."""
        if not self.started:
            raise bad_gateway(NO_REPLY, "no chunk", self.failure_status)
        if DONE.match(self.unfinished):
            return self.unfinished.strip() + b"\n\n"
        tail = self.tail()
        done = DONE.search(tail, max(0, len(tail) - 200)) is not None
        finished = self.one_choice and FINISHED.search(tail) is not None
        if self.unfinished.strip() or not (done or finished):
            raise bad_gateway(CUT_SHORT, "no [DONE]", self.failure_status)
        if done:
            return b""
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


def failed_event(data: bytes) -> tuple[int, UpstreamRejection] | None:
    """The place of the first event that is an error, or not an event of a chat completion."""
    start = 0
    for end in EVENT_END.finditer(data):
        decoder = SSEDecoder(len(data))
        for name, event in decoder.feed(data[start : end.end()]):
            rejection = rejection_of(name, event.strip())
            if rejection is not None:
                return start, rejection
        start = end.end()
    return None


def rejection_of(name: str, event: bytes) -> UpstreamRejection | None:
    """The error in one event, if it is one. Raises ValueError if it looks like one and is not JSON."""
    is_object = event.startswith(b"{")
    if b'"error"' in event and is_object:
        error = orjson.loads(event).get("error")
        if error:
            return rejection_in_success(error)
    if name == "error":
        return rejection_in_success({})
    if event and event != b"[DONE]" and not (is_object and event.endswith(b"}")):
        return UpstreamRejection(502)
    return None


def is_plain_completion(value: object) -> bool:
    """Whether every choice has a text, as most completions have. The shape decides about others."""
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        return False
    return all(has_text(choice) for choice in choices)


def has_text(choice: object) -> bool:
    message = choice.get("message") if isinstance(choice, dict) else None
    return isinstance(message, dict) and isinstance(message.get("content"), str)
