"""Renderings of chat completions: chunks, the whole completion, and the plain text of /ask.

Does not know which backend answers. Source: OpenAI's reference, and recordings of its API.
"""

from dataclasses import field

import orjson

from rewrap.api.merge import merge, merged
from rewrap.structs import struct
from rewrap.types import (
    APIError,
    ChatRequest,
    Delta,
    Headers,
    JSONObject,
    ResponseInfo,
    estimated_tokens,
    size_of,
    usage,
    words,
)

EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ChatRendering:
    """`chat.completion.chunk` events: role first, then the text, finish_reason, usage if the client wants it, [DONE].

    A chunk is a prebuilt frame with the delta put in: that costs 0.4 µs, and dumping each chunk whole costs 10.

        data: {"id":...,"service_tier":"default","choices":[{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}]}
        |---------------- head ------------------|---------- opening -----------|               |------ closing, ends with tail ---...
    """

    headers = EVENT_STREAM

    def __init__(self, request: ChatRequest, info: ResponseInfo) -> None:
        self.info = info
        self.include_usage = request.include_usage
        self.roles: set[int] = set()  # choices whose role chunk was sent
        self.raw = False
        self.size = 0
        self.head = b""  # made for the first chunk, as the tails are
        self.tail = b""
        self.finish_tail = b""

    def __call__(self, delta: Delta) -> bytes:
        if delta.raw:
            self.raw = True
            return delta.raw
        if not self.head:
            self.begin()
        opening = b'%b"choices":[{"index":%d,"delta":' % (self.head, delta.index)
        out = b""
        if delta.index not in self.roles:
            self.roles.add(delta.index)
            out = opening + self.role_chunk(delta)
        tool_calls: list[JSONObject] = []
        if delta.fields:
            self.size += fields_size(delta.fields)
            fields = dict(delta.fields)
            tool_calls = fields.pop("tool_calls", None) or []
            if fields:  # reasoning comes before the text
                out += opening + orjson.dumps(fields) + b',"logprobs":null' + self.tail
        if delta.content or delta.logprobs is not None:
            out += self.text_chunks(opening, delta)
        for position, call in enumerate(tool_calls):
            piece = {"tool_calls": [{"index": position} | call]}
            out += opening + orjson.dumps(piece) + b',"logprobs":null' + self.tail
        if delta.finish_reason:
            reason = orjson.dumps(delta.finish_reason)
            out += opening + b'{},"logprobs":null,"finish_reason":%b' % reason + self.finish_tail
        return out

    def begin(self) -> None:
        """Make the members that all chunks share. An upstream may have set the id by the first Delta."""
        info = self.info
        no_usage = b',"usage":null' if self.include_usage else b""
        self.tail = b',"finish_reason":null}]%b}\n\n' % no_usage
        self.finish_tail = b"}]%b}\n\n" % no_usage
        self.head = (
            b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b'
            b',"service_tier":"default",'
        ) % (orjson.dumps(info.id), info.created, orjson.dumps(info.model))

    def role_chunk(self, delta: Delta) -> bytes:
        has_calls = delta.fields is not None and "tool_calls" in delta.fields
        content = b"null" if has_calls and not delta.content else b'""'
        role = b'{"role":"assistant","content":%b,"refusal":null},"logprobs":null' % content
        return role + self.tail

    def text_chunks(self, opening: bytes, delta: Delta) -> bytes:
        """The text; word by word if it came whole: 100 words in one send cost a tenth of 100 sends."""
        self.size += size_of(delta.content)
        logprobs = b"null" if delta.logprobs is None else orjson.dumps(delta.logprobs)
        closing = b'},"logprobs":%b%b' % (logprobs, self.tail)
        opening += b'{"content":'
        text = delta.content
        if not delta.whole or delta.logprobs is not None:
            return opening + orjson.dumps(text) + closing
        between = closing + opening
        if has_single_spaces(text):
            content = orjson.dumps(text)
            pieces = content[:-2].replace(b" ", b' "%b"' % between) + content[-2:]
        else:
            pieces = between.join(map(orjson.dumps, words(text)))
        return opening + pieces + closing

    def end(self) -> bytes:
        if self.raw:
            return b""
        complete_usage(self.info, self.size)
        if not self.include_usage:
            return b"data: [DONE]\n\n"
        counts = orjson.dumps(self.info.usage)
        if not self.head:
            self.begin()
        return self.head + b'"choices":[],"usage":' + counts + b"}\n\ndata: [DONE]\n\n"

    def ping(self) -> bytes:
        return b": ping\n\n"

    def failure(self, error: APIError) -> bytes:
        """An event with an `error`: the SDKs raise on it. The status is already sent."""
        return b"data: " + orjson.dumps(error.body) + b"\n\n"

    def document(self, deltas: list[Delta]) -> JSONObject:
        return self.info.completion or completion(self.info, deltas)


def has_single_spaces(text: str) -> bool:
    """Whether single spaces alone separate the words. To split the JSON of such a text costs a tenth of dumping each word."""
    return text.isprintable() and "  " not in text and not text.startswith(" ")


class TextRendering:
    """The text alone, for /ask. `x-vercel-ai-data-stream` is the AI SDK's."""

    headers: Headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"x-vercel-ai-data-stream", b"v1"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ]

    def __init__(self, request: ChatRequest, info: ResponseInfo) -> None:
        self.info = info
        self.size = 0

    def __call__(self, delta: Delta) -> bytes:
        if delta.index:
            return b""
        self.size += size_of(delta.content)
        return delta.content.encode()

    def end(self) -> bytes:
        complete_usage(self.info, self.size)
        return b""

    def ping(self) -> bytes:
        return b""

    def failure(self, error: APIError) -> None:
        """Plain text cannot hold an error. A cut connection shows that the text is not complete."""

    def document(self, deltas: list[Delta]) -> JSONObject:
        return self.info.completion or completion(self.info, deltas)


@struct(slots=True)
class Choice:
    """One choice of a completion, put together from its Deltas."""

    texts: list[str] = field(default_factory=list)
    fields: JSONObject = field(default_factory=dict)
    logprobs: JSONObject = field(default_factory=dict)
    finish_reason: str = "stop"

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.content)
        if delta.fields:
            merge(self.fields, delta.fields)
        if delta.logprobs:
            merge(self.logprobs, delta.logprobs)
        self.finish_reason = delta.finish_reason or self.finish_reason

    def message(self) -> JSONObject:
        fields = {name: merged(value) for name, value in self.fields.items()}
        calls = fields.get("tool_calls")
        if isinstance(calls, list):
            fields["tool_calls"] = in_order(calls)
        text = "".join(self.texts)
        return message_of(text or (None if fields else "")) | fields

    def document(self, index: int) -> JSONObject:
        return {
            "index": index,
            "message": self.message(),
            "logprobs": merged(self.logprobs) if self.logprobs else None,
            "finish_reason": self.finish_reason,
        }


def message_of(text: str | None) -> JSONObject:
    return {"role": "assistant", "content": text, "refusal": None, "annotations": []}


def whole_choice(delta: Delta) -> JSONObject:
    """The only choice of a reply that came in one Delta, with a text alone: 3 µs less than a Choice."""
    return {
        "index": delta.index,
        "message": message_of(delta.content),
        "logprobs": None,
        "finish_reason": delta.finish_reason or "stop",
    }


def in_order(calls: list[JSONObject]) -> list[JSONObject]:
    """Tool calls in the order of their `index`, which only pieces have."""
    ordered = sorted(calls, key=lambda call: call.get("index", 0))
    return [{k: v for k, v in call.items() if k != "index"} for call in ordered]


def completion(info: ResponseInfo, deltas: list[Delta]) -> JSONObject:
    """The `chat.completion` object."""
    if not is_complete(info.usage):
        complete_usage(info, sum([reply_size(delta) for delta in deltas]))
    return {
        "id": info.id,
        "object": "chat.completion",
        "created": info.created,
        "model": info.model,
        "choices": choices_of(deltas),
        "usage": info.usage,
        "service_tier": "default",
    }


def choices_of(deltas: list[Delta]) -> list[JSONObject]:
    if len(deltas) == 1 and deltas[0].fields is None and deltas[0].logprobs is None:
        return [whole_choice(deltas[0])]
    choices: dict[int, Choice] = {}
    for delta in deltas:
        choices.setdefault(delta.index, Choice()).add(delta)
    return [choice.document(index) for index, choice in sorted(choices.items())]


def reply_size(delta: Delta) -> int:
    """The bytes of UTF-8 in the parts of a reply that a model writes."""
    if not delta.fields:
        return size_of(delta.content)
    return size_of(delta.content) + fields_size(delta.fields)


def fields_size(fields: JSONObject) -> int:
    """The bytes of reasoning, refusal and arguments of calls."""
    texts = [fields.get("reasoning_content") or fields.get("reasoning"), fields.get("refusal")]
    for call in fields.get("tool_calls") or ():
        texts.append((call.get("function") or {}).get("arguments"))
    return sum([size_of(text) for text in texts if isinstance(text, str)])


def is_complete(counts: JSONObject | None) -> bool:
    return counts is not None and "prompt_tokens" in counts and "completion_tokens" in counts


def complete_usage(info: ResponseInfo, size: int) -> None:
    """Estimate the counts that the upstream did not send. `size`: as of `reply_size`."""
    if is_complete(info.usage):
        return
    known = info.usage or {}
    prompt = known.get("prompt_tokens")
    if prompt is None:
        prompt = estimated_tokens(info.prompt_bytes)
    written = known.get("completion_tokens", estimated_tokens(size))
    total = known.get("total_tokens")
    if "completion_tokens" not in known and isinstance(total, int) and total >= prompt:
        written = total - prompt
    info.usage = usage(prompt, written) | known
