"""The shape of an unknown chat URL: OpenAI's payload, and a search for the reply in the answer.

Takes ChatRequests, JSON values and events; gives payloads and Deltas. Does no I/O.
"""

import re

from rewrap.types import ChatRequest, Delta, JSONObject, Reader, UpstreamRejection, text_of
from rewrap.upstream import lenient
from rewrap.upstream.completions import completion_deltas, completion_usage
from rewrap.upstream.errors import error_in
from rewrap.upstream.failures import failure_in
from rewrap.upstream.framing import TEXT
from rewrap.upstream.messages import part_types, with_system_role
from rewrap.upstream.reply_search import (
    KNOWN_NAMES,
    extra_fields,
    find_reply,
    nonempty_reply,
    streamed_number,
)

USED_HERE = frozenset(["completion_id", "messages", "model"])
STORED_HERE = frozenset(["store", "metadata"])
END_NAMES = ("end", "done", "close")
# Before any text: an object that is cut short, and not the first token of a bare text. After
# JSON texts: any JSON.
CUT_OBJECT = re.compile(rb"\s*\{.*[:,]", re.DOTALL)
CUT_JSON = re.compile(rb'\s*[{\["]')


class AutoShape:
    """Finds OpenAI's completions, and JSON with the reply under one of the usual names.

    See `types.Shape`.
    """

    framing = "auto"

    def check(self, url: str) -> None:
        pass

    def url(self, url: str, request: ChatRequest) -> str:
        return url

    def headers(self, key: str, stream: bool) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"} if key else {}

    def payload(self, request: ChatRequest) -> object:
        """`{"model", "messages":

        [{"role", "content": "a string"}], ...}` and the client's other parameters.
        """
        local = USED_HERE | STORED_HERE if request.stored else USED_HERE
        payload = {
            name: value
            for name, value in request.payload.items()
            if value is not None and name not in local
        }
        messages = [
            {**message, "content": text_of(message.get("content"))}
            for message in with_system_role(request.messages)
        ]
        return payload | {"model": request.model, "messages": messages}

    def dropped(self, request: ChatRequest) -> list[str]:
        return [f"messages.{type}" for type in sorted(part_types(request.messages))]

    def answer(self, value: object) -> list[Delta]:
        if isinstance(value, dict):
            has_choices = isinstance(value.get("choices"), list) and value["choices"]
            failure = None if has_choices and not value.get("error") else failure_in(value)
            if failure is not None:
                raise failure
            if has_choices:
                return completion_deltas(value, whole=True)
        text = find_reply(value)
        if text is None:
            raise ValueError("no reply")
        if not text and isinstance(value, dict):
            text = nonempty_reply(value)
        fields = extra_fields(value)
        reason = "tool_calls" if fields and "tool_calls" in fields else "stop"
        usage = completion_usage(value)
        return [Delta(text, reason, whole=True, fields=fields, usage=usage)]

    def reader(self) -> Reader:
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
            self.check_not_cut(data)
        if isinstance(value, dict) and not (self.bare and KNOWN_NAMES.isdisjoint(value)):
            return self.object_deltas(name, value)
        return self.text_deltas(name, value, data)

    def check_not_cut(self, data: bytes) -> None:
        """Raises ValueError for JSON that is cut short."""
        cut = CUT_OBJECT if self.bare is None else CUT_JSON
        if not self.bare and cut.match(data):
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
        has_choices = isinstance(value.get("choices"), list)
        failure = None if has_choices and not value.get("error") else failure_in(value)
        if failure is None and name == "error":
            failure = UpstreamRejection(0, error=error_in(value))
        if failure is not None:
            raise failure
        if self.bare is None:
            self.bare = False
        if has_choices:
            self.complete = False
            deltas = completion_deltas(value, whole=False)
        else:
            deltas = [unknown_delta(value)]
        if any("tool_calls" in (delta.fields or {}) for delta in deltas):
            self.finish = "tool_calls"
        return deltas


def unknown_delta(value: JSONObject) -> Delta:
    """The Delta of an event of unknown form."""
    text = find_reply(value)
    if text is None:
        text = streamed_number(value)
    finish_reason = value.get("finish_reason")
    return Delta(
        text or "",
        finish_reason if isinstance(finish_reason, str) else None,
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
