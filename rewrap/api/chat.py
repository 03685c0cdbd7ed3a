"""Renderings: how a backend's Deltas look to a client. Chunks and PlainText as they come, `completion` once all are there.

A rendering that streams has its `headers`, gives the bytes of each Delta, of the `end`, and of a `failure` after the first
byte. Does not know who answers, nor who has asked.
"""

from typing import Any

import orjson

from rewrap.types import (
    APIError,
    ChatRequest,
    Delta,
    estimated_tokens,
    size_of,
    text_of,
    usage,
    words,
)


class Chunks:
    """`chat.completion.chunk` events: role first, finish_reason, usage if it was asked for, [DONE].

    A chunk is a frame made once with the delta put in: dumping each whole was 10 µs a chunk, this is 0.4.

        data: {"id":...,"system_fingerprint":null,"choices":[{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}]}
        |---------------- head ------------------|----------- begin -----------|               |---- between, ends with tail ---...
    """

    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ]

    def __init__(self, chat: ChatRequest) -> None:
        self.chat = chat
        self.roles: set[int] = set()
        self.raw = False
        self.size = 0
        head = b'"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"service_tier":"default"'
        self.head = b"data: {" + head % (
            orjson.dumps(chat.id),
            chat.created,
            orjson.dumps(chat.model),
        )
        self.head += b',"system_fingerprint":null,'
        self.tail = (
            b',"finish_reason":null}]'
            + (b',"usage":null' if chat.include_usage else b"")
            + b"}\n\n"
        )

    def __call__(self, delta: Delta) -> bytes:
        if delta.raw:
            self.raw = True
            return delta.raw
        begin = b'%b"choices":[{"index":%d,"delta":' % (self.head, delta.index)
        out = b""
        if delta.index not in self.roles:
            self.roles.add(delta.index)
            calls = not delta.content and delta.fields is not None and "tool_calls" in delta.fields
            content = b"null" if calls else b'""'
            role = b'{"role":"assistant","content":%b,"refusal":null},"logprobs":null' % content
            out = begin + role + self.tail
        fields = dict(delta.fields) if delta.fields else {}
        tool_calls = fields.pop("tool_calls", None) or []
        if fields:  # reasoning comes before the text; in one chunk, for it has two names, and clients read either
            out += begin + orjson.dumps(fields) + b',"logprobs":null' + self.tail
        if delta.content or delta.logprobs is not None:
            self.size += size_of(delta.content)
            logprobs = b"null" if delta.logprobs is None else orjson.dumps(delta.logprobs)
            between = b'},"logprobs":%b%b' % (logprobs, self.tail)
            begin_text = begin + b'{"content":'
            # Words that are ready together leave together, each still an event: 100 words cost a tenth of 100 sends.
            texts = (
                words(delta.content) if delta.whole and delta.logprobs is None else [delta.content]
            )
            out += begin_text + (between + begin_text).join(map(orjson.dumps, texts)) + between
        for position, call in enumerate(tool_calls):
            piece = {"tool_calls": [{"index": position} | call]}
            out += begin + orjson.dumps(piece) + b',"logprobs":null' + self.tail
        if delta.finish_reason:
            finish = b'{},"logprobs":null,"finish_reason":%b' % orjson.dumps(delta.finish_reason)
            out += begin + finish + self.tail.removeprefix(b',"finish_reason":null')
        return out

    def end(self) -> bytes:
        if self.raw:
            return b""
        counted(self.chat, self.size)
        last = b""
        if self.chat.include_usage:
            last = self.head + b'"choices":[],"usage":' + orjson.dumps(self.chat.usage) + b"}\n\n"
        return last + b"data: [DONE]\n\n"

    def failure(self, error: APIError) -> bytes:
        """After the first byte the status cannot change any more: the SDKs raise on an event with an `error`."""
        return b"data: " + orjson.dumps(error.body) + b"\n\n"


class PlainText:
    """The text alone, for /ask."""

    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"x-vercel-ai-data-stream", b"v1"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ]

    def __init__(self, chat: ChatRequest) -> None:
        self.chat = chat
        self.size = 0

    def __call__(self, delta: Delta) -> bytes:
        if delta.index:
            return b""
        self.size += size_of(delta.content)
        return delta.content.encode()

    def end(self) -> bytes:
        counted(self.chat, self.size)
        return b""

    def failure(self, error: APIError) -> None:
        """Plain text has no place for an error: the connection is cut, so that nobody takes the half for the whole."""


def completion(chat: ChatRequest, deltas: list[Delta]) -> dict[str, Any]:
    """The `chat.completion` object."""
    choices: dict[int, dict[str, Any]] = {}
    size = 0
    for delta in deltas:
        choice = choices.setdefault(
            delta.index, {"texts": [], "fields": {}, "logprobs": None, "finish": "stop"}
        )
        choice["texts"].append(delta.content)
        size += size_of(delta.content)
        if delta.fields:
            merge(choice["fields"], delta.fields)
        if delta.logprobs:
            merge(choice, {"logprobs": delta.logprobs})
        choice["finish"] = delta.finish_reason or choice["finish"]
    for choice in choices.values():
        calls = choice["fields"].get("tool_calls") or []
        calls.sort(key=lambda call: call.get("index", 0))
        for call in calls:
            call.pop("index", None)  # it is of pieces alone; some upstreams refuse to hear it
    counted(chat, size)
    return {
        "id": chat.id,
        "object": "chat.completion",
        "created": chat.created,
        "model": chat.model,
        "choices": [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": "".join(choice["texts"]) or (None if choice["fields"] else ""),
                    "refusal": None,
                    "annotations": [],
                    **choice["fields"],
                },
                "logprobs": choice["logprobs"],
                "finish_reason": choice["finish"],
            }
            for index, choice in sorted(choices.items())
        ],
        "usage": chat.usage,
        "service_tier": "default",
        "system_fingerprint": None,
    }


def merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Put the pieces of streamed fields together: texts are joined, lists by their items' `index`, objects by name."""
    for name, value in more.items():
        old = into.get(name)
        if isinstance(old, str) and isinstance(value, str) and name not in CONSTANT:
            into[name] = old + value
        elif isinstance(old, dict) and isinstance(value, dict):
            merge(old, value)
        elif isinstance(value, list) and all(
            isinstance(item, dict) and "index" in item for item in value
        ):
            rows = into[name] = old if isinstance(old, list) else []
            for item in value:
                known = (
                    row
                    for row in rows
                    if isinstance(row, dict) and row.get("index") == item["index"]
                )
                merge(row, item) if (row := next(known, None)) else rows.append(dict(item))
        elif isinstance(old, list) and isinstance(value, list):
            into[name] = old + value
        elif value is not None:
            into[name] = value


CONSTANT = ("id", "type", "role", "name", "format", "channel")  # texts that each piece repeats


def counted(chat: ChatRequest, size: int) -> None:
    """The upstream's usage where it has told it; an estimate of what it has not."""
    known = chat.usage or {}
    if "prompt_tokens" in known and "completion_tokens" in known:
        return
    prompt = known.get("prompt_tokens")
    if prompt is None:
        prompt = estimated_tokens(
            sum(size_of(text_of(message.get("content"))) for message in chat.messages)
        )
    chat.usage = usage(prompt, known.get("completion_tokens", estimated_tokens(size))) | known
