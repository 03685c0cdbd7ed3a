"""The shape of an unknown chat URL: OpenAI's payload, and a search for the reply in the answer.

Takes ChatRequests, JSON values and events; gives payloads and Deltas. Does no I/O, except that `shape_of` may read shapes.toml.
"""

import re

from rewrap.regex import regex
from rewrap.types import (
    ChatRequest,
    ChatSession,
    Delta,
    JSONObject,
    Outgoing,
    Reader,
    Shape,
    UpstreamRejection,
    dumps,
    text_of,
)
from rewrap.upstream import lenient
from rewrap.upstream.completions import completion_deltas, completion_usage, implied_reason
from rewrap.upstream.errors import error_in
from rewrap.upstream.failures import failure_in
from rewrap.upstream.framing import END_MARKER, TEXT
from rewrap.upstream.members import list_member, text_member
from rewrap.upstream.messages import part_types
from rewrap.upstream.reply_search import (
    KNOWN_NAMES,
    extra_fields,
    find_reply,
    nonempty_reply,
    streamed_number,
)
from rewrap.upstream.tables import PLACEHOLDER, ShapeError, Table

USED_HERE = frozenset(["completion_id", "messages", "model"])
STORED_HERE = frozenset(["store", "metadata"])
END_NAMES = ("end", "done", "close")
# Before any text: an object that is cut short, and not the first token of a bare text. After
# JSON texts: any JSON.
CUT_OBJECT = regex(rb"\s*\{.*[:,]", re.DOTALL)
CUT_JSON = regex(rb'\s*[{\["]')


class AutoShape:
    """Finds OpenAI's completions, and JSON with the reply under one of the usual names.

    See `types.Shape`.
    """

    framing = "auto"
    method = "POST"
    content_type = "application/json"

    def check(self, url: str) -> None:
        match = PLACEHOLDER.search(url)
        if match is not None:
            raise ShapeError(
                f"no value for {match[0]} in the URL: it needs CHAT_SHAPE or a mapping"
            )

    def prepare(self, url: str, request: ChatRequest) -> Outgoing:
        payload: object = request.payload if is_flat(request) else self.payload(request)
        return Outgoing(url, {}, dumps(payload))

    def headers(self, key: str, stream: bool) -> dict[str, str]:
        if not key:
            return {}
        return {"authorization": f"Bearer {key}"}

    def chat(self, request: ChatRequest) -> None:
        """An unknown URL has no sessions."""

    def payload(self, request: ChatRequest) -> object:
        """`{"model", "messages":

        [{"role", "content": "a string"}], ...}` and the client's other parameters.
        """
        local = USED_HERE
        if request.stored:
            local = USED_HERE | STORED_HERE
        payload = {
            name: value
            for name, value in request.payload.items()
            if value is not None and name not in local
        }
        messages = [flat_message(message) for message in request.messages]
        return payload | {"model": request.model, "messages": messages}

    def dropped(self, request: ChatRequest) -> list[str]:
        return [f"messages.{type}" for type in sorted(part_types(request.messages))]

    def answer(self, value: object, chat: ChatSession | None = None) -> list[Delta]:
        if isinstance(value, dict):
            check_failure(value)
            if list_member(value, "choices"):
                return completion_deltas(value, whole=True)
        text = find_reply(value)
        if text is None:
            raise ValueError("no reply")
        if not text and isinstance(value, dict):
            text = nonempty_reply(value)
        fields = extra_fields(value)
        reason = implied_reason(fields or {})
        usage = completion_usage(value)
        return [Delta(text, reason, whole=True, fields=fields, usage=usage)]

    def reader(self, chat: ChatSession | None = None) -> Reader:
        return AutoReader()

    def rejection(self, status: int, value: object) -> UpstreamRejection:
        return UpstreamRejection(status, error=error_in(value))


class AutoReader:
    """Reads one streamed reply. See `types.Reader`.

    A stream of OpenAI's chunks is complete with its own end alone, any other stream with the end
    of the answer.
    """

    def __init__(self) -> None:
        self.complete = True
        self.done = False
        self.finish = ""
        # Whether texts are bare (True) or JSON strings (False). The first event that is no
        # object decides.
        self.bare: bool | None = None

    def __call__(self, name: str, data: bytes) -> list[Delta]:
        if name == TEXT:
            return [Delta(data.decode())]
        if data.strip() == b"[DONE]" or (name in END_NAMES and not data.strip(b' {}"')):
            self.done = True
            return []
        value = json_in(data)
        if value is None:
            if self.bare is False and END_MARKER.fullmatch(data.decode("latin-1").strip()):
                self.done = True
                return []
            self.check_not_cut(data)
        if isinstance(value, dict) and not (self.bare and KNOWN_NAMES.isdisjoint(value)):
            return self.object_deltas(name, value)
        return self.text_deltas(name, value, data)

    def check_not_cut(self, data: bytes) -> None:
        """Raises ValueError for JSON that is cut short."""
        if self.bare:
            return
        if CUT_OBJECT.match(data) or (self.bare is False and CUT_JSON.match(data)):
            raise ValueError("an event is not JSON")

    def text_deltas(self, name: str, value: object, data: bytes) -> list[Delta]:
        """The Deltas of an event that is no object: a JSON string, a list, or a bare text."""
        if isinstance(value, str) and not self.bare:
            self.bare = False
            return [Delta(value)]
        if isinstance(value, list) and not self.bare:
            text = find_reply(value)
            if text is not None:
                return [Delta(text)]
        if name == "error":
            raise ValueError("error event")
        self.bare = True
        if data.strip() == b"null":
            return []
        return [Delta(data.decode("utf-8", "replace"))]

    def object_deltas(self, name: str, value: JSONObject) -> list[Delta]:
        check_failure(value)
        if name == "error":
            raise UpstreamRejection(0, error=error_in(value))
        if self.bare is None:
            self.bare = False
        if isinstance(value.get("choices"), list):
            self.complete = False
            deltas = completion_deltas(value, whole=False)
        else:
            deltas = [unknown_delta(value)]
        if any("tool_calls" in (delta.fields or {}) for delta in deltas):
            self.finish = "tool_calls"
        return deltas


def is_flat(request: ChatRequest) -> bool:
    """Whether the client's own payload can go out as it is: no copy of it is made.

    Its bytes do not: a member may occur twice in them, and an upstream may read the other one.
    """
    payload = request.payload
    if (
        not request.body
        or request.stored
        or request.model != payload.get("model")
        or "completion_id" in payload
    ):
        return False
    if None in payload.values():
        return False
    for message in request.messages:
        if type(message.get("content")) is not str or message.get("role") == "developer":
            return False
    return True


def flat_message(message: JSONObject) -> JSONObject:
    """The message with a string as its content, and a role that every endpoint knows."""
    flat = {**message, "content": text_of(message.get("content"))}
    if flat.get("role") == "developer":
        flat["role"] = "system"
    return flat


def shape_of(name: str, where: str, mapping: Table | None = None) -> Shape:
    """The shape of a user's table, or of a name in shapes.toml; AutoShape without either.

    `where` is the setting. Raises ShapeError.
    """
    if not name and not mapping:
        return AutoShape()
    from rewrap.upstream.shapes import shape_from, shape_named

    if mapping:
        return shape_from(mapping, where)
    return shape_named(name, where)


def check_failure(value: JSONObject) -> None:
    """Raises UpstreamRejection for a failure with status 200. Choices without an error are none."""
    if isinstance(value.get("choices"), list) and not value.get("error"):
        return
    failure = failure_in(value)
    if failure is not None:
        raise failure


def unknown_delta(value: JSONObject) -> Delta:
    """The Delta of an event of unknown form."""
    text = find_reply(value)
    if text is None:
        text = streamed_number(value)
    return Delta(
        text or "",
        text_member(value, "finish_reason") or None,
        fields=extra_fields(value),
        usage=completion_usage(value),
    )


def json_in(data: bytes) -> object:
    """The object, list or string of an event; None if it is none of them."""
    if data.lstrip()[:1] not in (b"{", b"[", b'"'):
        return None
    try:
        return lenient.loads(data, keep_halves=True)
    except ValueError:
        return None
