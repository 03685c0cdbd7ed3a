"""Recorded answers of real products, one Wire each, and a small server that gives them.

Every reply is "Hello world!", in two pieces. The sources are named in shapes.toml.
The server rejects a body that the product would reject, with the product's own error.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from product_schemas import problems

Body = dict[str, Any]


def sse(*events: Any) -> list[bytes]:
    """Each event is a JSON value, or a pair: its name and a JSON value (None: no data line)."""
    named = [event if isinstance(event, tuple) else ("", event) for event in events]
    return [
        (f"event: {name}\n" if name else "").encode()
        + (b"" if data is None else b"data: " + text(data) + b"\n")
        + b"\n"
        for name, data in named
    ]


def lines(*values: Any, end: bytes = b"\n") -> list[bytes]:
    return [text(value) + end for value in values]


def text(value: Any) -> bytes:
    return value.encode() if value == "[DONE]" else json.dumps(value).encode()


def typed(*events: Body) -> list[bytes]:
    """SSE of Anthropic and Cohere: the data repeats the name of the event."""
    return sse(*((event["type"], event) for event in events))


def has(**types: type) -> Callable[[Body], bool]:
    return lambda body: all(isinstance(body.get(key), kind) for key, kind in types.items())


def spoken(messages: Any, roles: str, key: str = "content") -> bool:
    """Whether each message has a role of the product, and a text."""
    return isinstance(messages, list) and all(
        m["role"] in roles.split() and isinstance(m[key], str) for m in messages
    )


@dataclass(frozen=True)
class Wire:
    """The answers of one product. `refused` is the body of HTTP errors, `broken` the end of a failed stream."""

    path: str  # a regular expression; so is stream_path, which is matched with the query
    valid: Callable[[Body], bool]
    answer: Any
    refused: Any
    stream: list[bytes] = field(
        default_factory=list
    )  # the first one that has text is stream[first]
    first: int = 0
    broken: list[bytes] = field(default_factory=list)
    failed: Any = None  # an error that comes with HTTP 200, instead of the answer
    stream_path: str = ""
    asks: Callable[[Body, dict[str, str]], bool] = lambda body, headers: bool(
        body.get("stream")
    )  # for a stream?
    content_type: str = "text/event-stream; charset=utf-8"
    headers: tuple[str, ...] = ()  # without these: refused
    error: str = "it broke"  # what `refused`, `broken` and `failed` say
    error_status: int | None = None  # what `broken` says
    text: str = "Hello world!"
    usage: tuple[int, int] | None = None  # prompt, completion
    finish: str | None = None

    @property
    def whole(self) -> str:
        """A path that matches, for requests without a stream."""
        return re.sub(r"\[\^[^]]+\]\+", "x", self.path)


def always(body: Body, headers: dict[str, str]) -> bool:
    return True


def chunk(delta: Body, finish: str | None = None, **more: Any) -> Body:
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **more,
    }


def completion(usage: Body) -> Body:
    message = {"role": "assistant", "content": "Hello world!"}
    return {
        "id": "c1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage,
    }


def ollama(key: str, said: Callable[[str], Any]) -> tuple[Any, list[bytes]]:
    counts = {
        "done": True,
        "done_reason": "stop",
        "total_duration": 5,
        "prompt_eval_count": 11,
        "eval_count": 2,
    }

    def one(piece: str) -> Body:
        return {"model": "m", "created_at": "2026-11-20T00:00:00Z", key: said(piece), "done": False}

    return one("Hello world!") | counts, lines(one("Hello"), one(" world!"), one("") | counts)


def tgi(piece: str, special: bool = False, **last: Any) -> Body:
    token = {"id": 7, "text": piece, "logprob": -0.1, "special": special}
    return {"index": 1, "token": token, "generated_text": None, "details": None} | last


def n8n(kind: str, **more: Any) -> Body:
    return {"type": kind, "metadata": {"nodeId": "n1", "nodeName": "AI Agent"}, **more}


def claude(kind: str, **more: Any) -> Body:
    return {"type": kind, **more}


def cohere(piece: Body) -> Body:
    return {"type": "content-delta", "index": 0, "delta": {"message": {"content": piece}}}


def gemini(piece: str, **more: Any) -> Body:
    candidate = {"content": {"parts": [{"text": piece}], "role": "model"}, "index": 0, **more}
    return {
        "candidates": [candidate],
        "modelVersion": "m",
        "usageMetadata": {"promptTokenCount": 11, "totalTokenCount": 11},
    }


def langflow_result(said: str) -> Body:
    return {
        "session_id": "s",
        "outputs": [{"inputs": {}, "outputs": [{"results": {"message": {"text": said}}}]}],
    }


USAGE = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}
OPENAI_ERROR = {
    "error": {"message": "it broke", "type": "server_error", "param": None, "code": None}
}
OLLAMA, OLLAMA_STREAM = ollama("message", lambda piece: {"role": "assistant", "content": piece})
GENERATE, GENERATE_STREAM = ollama("response", str)
GEMINI_USAGE = {
    "promptTokenCount": 11,
    "candidatesTokenCount": 1,
    "thoughtsTokenCount": 1,
    "totalTokenCount": 13,
}
GEMINI_ERROR = {"error": {"code": 503, "message": "it broke", "status": "UNAVAILABLE"}}
CLAUDE_ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "it broke"}}
CLAUDE_START = claude(
    "message_start",
    message={
        "role": "assistant",
        "content": [],
        "usage": {
            "input_tokens": 4,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 7,
            "output_tokens": 1,
        },
    },
)
DIFY_USAGE = {
    "usage": USAGE | {"total_price": "0.0000450", "currency": "USD", "latency": 0.5},
    "retriever_resources": [],
}
DIFY_ERROR = {"code": "completion_request_error", "message": "it broke", "status": 400}


WIRES: dict[str, Wire] = {
    "openai": Wire(
        path="/v1/chat/completions",
        valid=has(model=str, messages=list),
        answer=completion(USAGE),
        refused=OPENAI_ERROR,
        stream=sse(
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Hello"}),
            chunk({"content": " world!"}),
            chunk({}, "stop"),
            {"choices": [], "usage": USAGE},
            "[DONE]",
        ),
        first=1,
        broken=sse(OPENAI_ERROR),
        failed=OPENAI_ERROR,
        usage=(11, 2),
        finish="stop",
    ),
    "ollama": Wire(
        path="/api/chat",
        valid=lambda b: not problems("ollama", b),
        answer=OLLAMA,
        refused={"error": "it broke"},
        stream=OLLAMA_STREAM,
        broken=lines({"error": "it broke"}),
        failed={"error": "it broke"},
        asks=lambda b, h: b.get("stream") is not False,
        content_type="application/x-ndjson",
        usage=(11, 2),
        finish="stop",
    ),
    "ollama-generate": Wire(
        path="/api/generate",
        valid=lambda b: has(model=str, prompt=str)(b) and "messages" not in b,
        answer=GENERATE,
        refused={"error": "it broke"},
        stream=GENERATE_STREAM,
        broken=lines({"error": "it broke"}),
        asks=lambda b, h: b.get("stream") is not False,
        content_type="application/x-ndjson",
        usage=(11, 2),
        finish="stop",
    ),
    "tgi": Wire(
        path="/generate",
        valid=lambda b: (
            isinstance(b["inputs"], str) and isinstance(b["parameters"].get("stop", []), list)
        ),
        answer={
            "generated_text": "Hello world!",
            "details": {
                "finish_reason": "eos_token",
                "generated_tokens": 2,
                "seed": None,
                "prefill": [],
                "tokens": [],
            },
        },
        refused={"error": "it broke", "error_type": "generation"},
        stream_path="/generate_stream",
        asks=always,
        stream=sse(
            tgi("Hello"),
            tgi(" world!"),
            tgi(
                "</s>",
                True,
                generated_text="Hello world!",
                details={
                    "finish_reason": "eos_token",
                    "generated_tokens": 2,
                    "input_length": 11,
                    "seed": None,
                },
            ),
        ),
        broken=sse({"error": "it broke", "error_type": "generation"}),
        usage=(11, 2),
        finish="stop",
    ),
    "huggingface": Wire(
        path="/",
        valid=has(inputs=str),
        answer=[{"generated_text": "Hello world!"}],
        refused={"error": "it broke", "estimated_time": 20.0},
        failed={"error": ["it broke"]},
    ),
    "kserve": Wire(
        path="/v2/models/[^/]+/generate",
        valid=has(text_input=str),
        answer={"model_name": "m", "model_version": "1", "text_output": "Hello world!"},
        refused={"error": "it broke"},
        stream_path="/v2/models/[^/]+/generate_stream",
        asks=always,
        failed={"error": "it broke"},
        stream=sse(
            *(
                {"model_name": "m", "model_version": "1", "text_output": piece}
                for piece in ("Hello", " world!")
            )
        ),
        broken=sse({"error": "it broke"}),
    ),
    "rasa": Wire(
        path="/webhooks/rest/webhook",
        valid=has(sender=str, message=str),
        answer=[
            {"recipient_id": "s", "text": "Hello"},
            {"recipient_id": "s", "image": "i.png"},
            {"recipient_id": "s", "text": "world!"},
        ],
        refused={
            "version": "3",
            "status": "failure",
            "message": "it broke",
            "reason": "NotAuthenticated",
            "code": 401,
        },
        failed=[],
        stream_path=r"/webhooks/rest/webhook\?stream=true",
        asks=always,
        content_type="text/event-stream",
        stream=lines(
            {"recipient_id": "s", "text": "Hello"},
            {"recipient_id": "s", "image": "i.png"},
            {"recipient_id": "s", "text": "world!"},
        ),
        text="Hello\n\nworld!",
    ),
    "dify": Wire(
        path="/v1/chat-messages",
        valid=lambda b: (
            has(query=str, inputs=dict, user=str)(b)
            and b["response_mode"] in ("blocking", "streaming")
        ),
        answer={
            "event": "message",
            "id": "1",
            "conversation_id": "c",
            "mode": "chat",
            "answer": "Hello world!",
            "metadata": DIFY_USAGE,
        },
        refused=DIFY_ERROR,
        stream=[
            b"event: ping\n\n",
            *sse(
                {"event": "workflow_started", "data": {"id": "w"}},
                {"event": "message", "id": "1", "answer": "Hello"},
                {"event": "agent_message", "id": "1", "answer": " world!"},
                {"event": "message_end", "id": "1", "metadata": DIFY_USAGE},
            ),
        ],
        first=2,
        broken=sse({"event": "error", "message_id": "1", **DIFY_ERROR}),
        asks=lambda b, h: bool(b["response_mode"] == "streaming"),
        error_status=400,
        usage=(11, 2),
    ),
    "flowise": Wire(
        path="/api/v1/prediction/[^/]+",
        valid=lambda b: (
            isinstance(b["question"], str) and spoken(b["history"], "userMessage apiMessage")
        ),
        answer={
            "text": "Hello world!",
            "question": "hi",
            "chatId": "c",
            "chatMessageId": "m",
            "sessionId": "c",
        },
        refused={"statusCode": 500, "success": False, "message": "it broke", "stack": {}},
        stream=[
            b"message:\n" + e
            for e in sse(
                *(
                    {"event": k, "data": d}
                    for k, d in (
                        ("start", "Hello"),
                        ("token", "Hello"),
                        ("token", " world!"),
                        ("metadata", {"chatId": "c"}),
                        ("end", "[DONE]"),
                    )
                )
            )
        ],
        first=1,
        broken=[
            b"message\n" + e
            for e in sse({"event": "error", "data": "it broke"}, {"event": "end", "data": "[DONE]"})
        ],
        asks=lambda b, h: b.get("streaming") is True,
    ),
    "langflow": Wire(
        path="/api/v1/run/[^/]+",
        valid=has(input_value=str, session_id=str),
        answer=langflow_result("Hello world!"),
        refused={"detail": "it broke"},
        stream_path=r"/api/v1/run/[^/]+\?stream=true",
        asks=always,
        content_type="text/event-stream; charset=utf-8",
        stream=lines(
            {"event": "add_message", "data": {"text": "hi", "sender": "User"}},
            {"event": "token", "data": {"chunk": "Hello", "id": "1"}},
            {"event": "token", "data": {"chunk": " world!", "id": "1"}},
            {"event": "end", "data": {"result": langflow_result("Hello world!")}},
            end=b"\n\n",
        ),
        first=1,
        broken=lines({"event": "error", "data": {"error": "it broke"}}, end=b"\n\n"),
    ),
    "n8n": Wire(
        path="/webhook/[^/]+/chat",
        valid=lambda b: has(chatInput=str, sessionId=str)(b) and b["action"] == "sendMessage",
        answer={"output": "Hello world!"},
        refused={"code": 0, "message": "it broke"},
        stream=lines(
            n8n("begin"),
            n8n("item", content="Hello"),
            n8n("end"),
            n8n("begin"),
            n8n("item", content=" world!"),
            n8n("end"),
        ),
        first=1,
        broken=lines(n8n("error", content="it broke")),
        asks=always,
        content_type="application/json; charset=utf-8",
    ),
    "langserve": Wire(
        path="/chain/invoke",
        valid=has(input=str),
        answer={"output": "Hello world!", "metadata": {"run_id": "r", "feedback_tokens": []}},
        refused={"detail": "it broke"},
        stream_path="/chain/stream",
        asks=always,
        stream=sse(
            ("metadata", {"run_id": "r"}),
            ("data", "Hello"),
            ("data", {"content": " world!", "type": "AIMessageChunk"}),
            ("end", None),
        ),
        first=1,
        broken=sse(("error", {"status_code": 500, "message": "it broke"})),
        error_status=500,
    ),
    "cloudflare": Wire(
        path="/client/v4/accounts/[^/]+/ai/run/@cf/[^/]+/[^/]+",
        valid=has(messages=list),
        answer={
            "result": {"response": "Hello world!", "tool_calls": [], "usage": USAGE},
            "success": True,
            "errors": [],
            "messages": [],
        },
        refused={
            "result": None,
            "success": False,
            "errors": [{"code": 7009, "message": "it broke"}],
            "messages": [],
        },
        failed={
            "result": None,
            "success": False,
            "errors": [{"code": 7009, "message": "it broke"}],
            "messages": [],
        },
        stream=sse(
            {"response": "Hello", "p": "abcd"},
            {
                "choices": [{"index": 0, "delta": {"content": " world!"}, "finish_reason": None}],
                "p": "a",
            },
            {"response": "", "usage": USAGE},
            "[DONE]",
        ),
        broken=sse({"errors": [{"code": 3040, "message": "it broke"}]}),
        usage=(11, 2),
    ),
    "cohere": Wire(
        path="/v2/chat",
        valid=lambda b: not problems("cohere", b),
        refused={"id": "1", "message": "it broke"},
        answer={
            "id": "1",
            "finish_reason": "COMPLETE",
            "message": {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "text", "text": "Hello world!"},
                ],
            },
            "usage": {
                "billed_units": {"input_tokens": 1},
                "tokens": {"input_tokens": 11, "output_tokens": 2},
            },
        },
        stream=typed(
            {
                "type": "message-start",
                "id": "1",
                "delta": {"message": {"role": "assistant", "content": []}},
            },
            {
                "type": "content-start",
                "index": 0,
                "delta": {"message": {"content": {"type": "text", "text": ""}}},
            },
            cohere({"thinking": "hm"}),
            cohere({"text": "Hello"}),
            cohere({"text": " world!"}),
            {"type": "content-end", "index": 0},
            {
                "type": "message-end",
                "delta": {
                    "finish_reason": "COMPLETE",
                    "usage": {"tokens": {"input_tokens": 11, "output_tokens": 2}},
                },
            },
        ),
        first=3,
        broken=typed(
            {
                "type": "message-end",
                "delta": {"finish_reason": "ERROR", "usage": {}, "error": "it broke"},
            }
        ),
        usage=(11, 2),
        finish="stop",
    ),
    "anthropic": Wire(
        path="/v1/messages",
        valid=lambda b: not problems("anthropic", b),
        refused=CLAUDE_ERROR,
        headers=("anthropic-version",),
        answer={
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "Hello world!"},
            ],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 4, "cache_read_input_tokens": 7, "output_tokens": 2},
        },
        stream=typed(
            CLAUDE_START,
            claude(
                "content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}
            ),
            claude("ping"),
            claude(
                "content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"}
            ),
            claude("content_block_delta", index=1, delta={"type": "text_delta", "text": "Hello"}),
            claude("content_block_delta", index=1, delta={"type": "text_delta", "text": " world!"}),
            claude("content_block_stop", index=1),
            claude("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
            claude("message_stop"),
        ),
        first=4,
        broken=typed(CLAUDE_ERROR),
        failed=CLAUDE_ERROR,
        error_status=529,
        usage=(11, 2),
        finish="stop",
    ),
    "gemini": Wire(
        path="/v1beta/models/[^/:]+:generateContent",
        valid=lambda b: not problems("gemini", b),
        refused=GEMINI_ERROR,
        answer=gemini("Hello world!", finishReason="STOP") | {"usageMetadata": GEMINI_USAGE},
        stream_path=r"/v1beta/models/[^/:]+:streamGenerateContent\?alt=sse",
        asks=always,
        stream=sse(
            gemini("Hello"),
            gemini(" world!", finishReason="STOP") | {"usageMetadata": GEMINI_USAGE},
        ),
        broken=sse(GEMINI_ERROR),
        error_status=503,
        usage=(11, 2),
        finish="stop",
    ),
    "databricks": Wire(
        path="/serving-endpoints/[^/]+/invocations",
        valid=has(messages=list),
        answer={
            "messages": [
                {"role": "assistant", "content": "no"},
                {"role": "assistant", "content": "Hello world!"},
            ],
            "finish_reason": "stop",
            "usage": USAGE,
        },
        refused={"error_code": "BAD_REQUEST", "message": "it broke"},
        stream=sse(
            {"delta": {"role": "assistant", "content": "Hello", "id": "1"}},
            {"type": "response.output_text.delta", "delta": " world!"},
            {"delta": {"content": ""}, "finish_reason": "stop", "usage": USAGE},
            "[DONE]",
        ),
        broken=sse({"error": {"code": 500, "message": "it broke"}}),
        usage=(11, 2),
        finish="stop",
    ),
    "promptflow": Wire(
        path="/score",
        valid=lambda b: (
            isinstance(b["question"], str)
            and all(
                isinstance(t["inputs"]["question"] + t["outputs"]["answer"], str)
                for t in b["chat_history"]
            )
        ),
        answer={"answer": "Hello world!"},
        refused={"error": {"code": "UserError", "message": "it broke"}},
        stream=sse({"answer": ""}, {"answer": "Hello"}, {"answer": " world!"}),
        first=1,
        broken=sse({"error": {"code": "SystemError", "message": "it broke"}}),
        asks=lambda b, h: "text/event-stream" in h.get("accept", ""),
    ),
    "llama.cpp": Wire(
        path="/completion",
        valid=has(prompt=str),
        answer={
            "content": "Hello world!",
            "stop": True,
            "stop_type": "limit",
            "tokens_evaluated": 11,
            "tokens_predicted": 2,
        },
        refused={"error": {"code": 500, "message": "it broke", "type": "server_error"}},
        stream=sse(
            {"content": "Hello", "tokens": [1], "stop": False},
            {"content": " world!", "tokens": [2], "stop": False},
            {
                "content": "",
                "tokens": [],
                "stop": True,
                "stop_type": "limit",
                "tokens_evaluated": 11,
                "tokens_predicted": 2,
            },
        ),
        broken=sse({"error": {"code": 500, "message": "it broke", "type": "server_error"}}),
        error_status=500,
        usage=(11, 2),
        finish="length",
    ),
    "botpress": Wire(
        path="/api/v1/bots/[^/]+/converse/[^/]+",
        valid=lambda b: b["type"] == "text" and isinstance(b["text"], str),
        answer={
            "responses": [
                {"type": "typing", "value": True},
                {"type": "text", "markdown": True, "text": "Hello world!"},
            ]
        },
        refused={"statusCode": 500, "errorCode": "BP_0000", "type": "Error", "message": "it broke"},
        failed={"responses": []},
    ),
}
WIRES["triton"] = WIRES["kserve"]


class ShapeServer:
    """Gives the answers of one Wire. `mode`: "ok"; "error": fails after a piece, or with HTTP 200; "cut" and "short": the
    stream breaks off, or ends as if all were well, after a piece; a status.

    Clear `gate` to hold a stream back after its first text. `requests` has what came: target, headers, body.
    `streaming` is for products where not the request decides (n8n's workflow).
    """

    def __init__(self, name: str) -> None:
        self.wire, self.mode, self.streaming, self.gate = WIRES[name], "ok", True, asyncio.Event()
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""
        self.gate.set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            start, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {
                k.lower(): v.strip() for k, _, v in (line.partition(":") for line in rest if line)
            }
            data = await reader.readexactly(int(headers.get("content-length", 0)))
            body = json.loads(data) if data[:1] in (b"{", b"[") else data.decode()
            target = start.split(" ")[1]
            self.requests.append((target, headers, body))
            await self.reply(writer, start.split(" ")[0], target, headers, body)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def reply(
        self,
        writer: asyncio.StreamWriter,
        method: str,
        target: str,
        headers: dict[str, str],
        body: Any,
    ) -> None:
        wire = self.wire
        streamed = bool(wire.stream and re.fullmatch(wire.stream_path or wire.path, target))
        status = 200 if streamed or re.fullmatch(wire.path, target) else 404
        if status == 200 and (method != "POST" or not self.accepts(headers, body)):
            status = 405 if method != "POST" else 400
        status = self.mode if isinstance(self.mode, int) else status
        if status != 200:
            await whole(writer, status, wire.refused)
            return
        if not (streamed and wire.asks(body, headers) and self.streaming):
            failing = self.mode == "error" and wire.failed is not None
            await whole(writer, 200, wire.failed if failing else wire.answer)
            return
        writer.write(head(200, wire.content_type, "transfer-encoding: chunked"))
        rest = {"ok": wire.stream[wire.first + 1 :], "error": wire.broken, "cut": [], "short": []}[
            str(self.mode)
        ]
        for number, piece in enumerate([*wire.stream[: wire.first + 1], *rest]):
            if number == wire.first + 1:
                await self.gate.wait()
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"" if self.mode == "cut" else b"0\r\n\r\n")
        await writer.drain()

    def accepts(self, headers: dict[str, str], body: Any) -> bool:
        try:
            return all(name in headers for name in self.wire.headers) and self.wire.valid(body)
        except (KeyError, TypeError, IndexError, AttributeError):
            return False


def head(status: int, content_type: str, *more: str) -> bytes:
    return "\r\n".join(
        [
            f"HTTP/1.1 {status} X",
            f"content-type: {content_type}",
            "connection: close",
            *more,
            "",
            "",
        ]
    ).encode()


async def whole(writer: asyncio.StreamWriter, status: int, value: Any) -> None:
    data = json.dumps(value).encode()
    retry = ["retry-after: 7"] if status == 429 else []
    writer.write(head(status, "application/json", f"content-length: {len(data)}", *retry) + data)
    await writer.drain()


@asynccontextmanager
async def shape_server(name: str) -> AsyncIterator[ShapeServer]:
    """A server on loopback, at `url` (without the product's path)."""
    shaped = ShapeServer(name)
    async with await asyncio.start_server(shaped.answer, "127.0.0.1", 0) as server:
        shaped.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield shaped
