"""Servers that speak as Ollama, Anthropic, Gemini and Cohere do, with tools.

A server rejects a body that its product would reject. It calls `get_weather` for Paris and Rome,
then answers with a text once the results are there; without tools it answers at once.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from product_schemas import Body, problems
from shape_servers import head, lines, sse, typed, whole

REPLY = "Sunny in both."
SCHEMA_REPLY = '{"city": "Paris"}'
CITIES = ("Paris", "Rome")
SIGNATURE = "c2lnbmF0dXJl"


class Product:
    """One product: where its requests go, and its answers."""

    path = ""
    stream_path = ""
    content_type = "text/event-stream"

    def has_results(self, body: Body) -> bool:
        raise NotImplementedError

    def wants_stream(self, target: str, body: Body) -> bool:
        return bool(body.get("stream"))

    def calls(self) -> Body:
        raise NotImplementedError

    def text(self, text: str) -> Body:
        raise NotImplementedError

    def streamed_calls(self) -> list[bytes]:
        raise NotImplementedError

    def streamed_text(self, text: str) -> list[bytes]:
        raise NotImplementedError


class Ollama(Product):
    path = "/api/chat"
    content_type = "application/x-ndjson"
    counts = {"done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 4}

    def has_results(self, body: Body) -> bool:
        return any(message["role"] == "tool" for message in body["messages"])

    def message(self, **members: Any) -> Body:
        return {"model": "m", "message": {"role": "assistant", "content": ""} | members}

    def tool_calls(self) -> list[Body]:
        return [
            {"function": {"index": n, "name": "get_weather", "arguments": {"city": city}}}
            for n, city in enumerate(CITIES)
        ]

    def calls(self) -> Body:
        return self.message(tool_calls=self.tool_calls()) | self.counts

    def text(self, text: str) -> Body:
        return self.message(content=text) | self.counts

    def streamed_calls(self) -> list[bytes]:
        rows = [self.message(tool_calls=[call]) | {"done": False} for call in self.tool_calls()]
        return lines(*rows, self.message() | self.counts)

    def streamed_text(self, text: str) -> list[bytes]:
        rows = [self.message(content=piece) | {"done": False} for piece in (text[:3], text[3:])]
        return lines(*rows, self.message() | self.counts)


class Anthropic(Product):
    path = "/v1/messages"

    def has_results(self, body: Body) -> bool:
        return '"tool_result"' in json.dumps(body)

    def message(self, reason: str, *content: Body) -> Body:
        usage = {"input_tokens": 3, "output_tokens": 4}
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": list(content),
            "stop_reason": reason,
            "usage": usage,
        }

    def tool_uses(self) -> list[Body]:
        return [
            {"type": "tool_use", "id": f"toolu_{n}", "name": "get_weather", "input": {"city": city}}
            for n, city in enumerate(CITIES)
        ]

    def calls(self) -> Body:
        return self.message("tool_use", {"type": "text", "text": "I look."}, *self.tool_uses())

    def text(self, text: str) -> Body:
        return self.message("end_turn", {"type": "text", "text": text})

    def streamed(self, reason: str, *events: Body) -> list[bytes]:
        start = self.message("", *())
        return typed(
            {"type": "message_start", "message": start},
            {"type": "ping"},
            *events,
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason},
                "usage": {"output_tokens": 4},
            },
            {"type": "message_stop"},
        )

    def streamed_calls(self) -> list[bytes]:
        events: list[Body] = self.text_events(0, "I look.")
        for n, block in enumerate(self.tool_uses(), 1):
            text = json.dumps(block["input"])
            events.append(
                {"type": "content_block_start", "index": n, "content_block": block | {"input": {}}}
            )
            for piece in ("", text[:5], text[5:]):
                delta = {"type": "input_json_delta", "partial_json": piece}
                events.append({"type": "content_block_delta", "index": n, "delta": delta})
            events.append({"type": "content_block_stop", "index": n})
        return self.streamed("tool_use", *events)

    def text_events(self, index: int, text: str) -> list[Body]:
        block = {"type": "text", "text": ""}
        return [
            {"type": "content_block_start", "index": index, "content_block": block},
            *(
                {
                    "type": "content_block_delta",
                    "index": index,
                    "delta": {"type": "text_delta", "text": piece},
                }
                for piece in (text[:3], text[3:])
            ),
            {"type": "content_block_stop", "index": index},
        ]

    def streamed_text(self, text: str) -> list[bytes]:
        return self.streamed("end_turn", *self.text_events(0, text))


class Gemini(Product):
    path = "/v1beta/models/m:generateContent"
    stream_path = "/v1beta/models/m:streamGenerateContent?alt=sse"

    def wants_stream(self, target: str, body: Body) -> bool:
        return target == self.stream_path

    def has_results(self, body: Body) -> bool:
        return '"functionResponse"' in json.dumps(body)

    def candidate(self, reason: str | None, *parts: Body) -> Body:
        row: Body = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
        if reason:
            row["finishReason"] = reason
        return {"candidates": [row], "usageMetadata": {"promptTokenCount": 3, "totalTokenCount": 7}}

    def call_parts(self) -> list[Body]:
        parts: list[Body] = [
            {"functionCall": {"name": "get_weather", "args": {"city": city}}} for city in CITIES
        ]
        parts[0]["thoughtSignature"] = SIGNATURE
        return parts

    def calls(self) -> Body:
        return self.candidate("STOP", {"text": "Hm.", "thought": True}, *self.call_parts())

    def text(self, text: str) -> Body:
        return self.candidate("STOP", {"text": text})

    def streamed_calls(self) -> list[bytes]:
        first, second = self.call_parts()
        thought = {"text": "Hm.", "thought": True}
        rows = [
            self.candidate(None, thought),
            self.candidate(None, first),
            self.candidate("STOP", second),
        ]
        return sse(*rows)

    def streamed_text(self, text: str) -> list[bytes]:
        pieces = [{"text": text[:3]}, {"text": text[3:]}]
        return sse(self.candidate(None, pieces[0]), self.candidate("STOP", pieces[1]))


class Cohere(Product):
    path = "/v2/chat"
    usage = {"tokens": {"input_tokens": 3, "output_tokens": 4}}

    def has_results(self, body: Body) -> bool:
        return any(message["role"] == "tool" for message in body["messages"])

    def message(self, reason: str, **members: Any) -> Body:
        message = {"role": "assistant"} | members
        return {"id": "1", "finish_reason": reason, "message": message, "usage": self.usage}

    def tool_calls(self) -> list[Body]:
        return [
            {
                "id": f"get_weather_{n}",
                "type": "function",
                "function": {"name": "get_weather", "arguments": json.dumps({"city": city})},
            }
            for n, city in enumerate(CITIES)
        ]

    def calls(self) -> Body:
        return self.message("TOOL_CALL", tool_plan="I look.", tool_calls=self.tool_calls())

    def text(self, text: str) -> Body:
        return self.message("COMPLETE", content=[{"type": "text", "text": text}])

    def streamed(self, reason: str, *events: Body) -> list[bytes]:
        end = {"finish_reason": reason, "usage": self.usage}
        return typed(
            {"type": "message-start", "delta": {"message": {"role": "assistant"}}},
            *events,
            {"type": "message-end", "delta": end},
        )

    def streamed_calls(self) -> list[bytes]:
        plan = {"message": {"tool_plan": "I look."}}
        events: list[Body] = [{"type": "tool-plan-delta", "delta": plan}]
        for n, call in enumerate(self.tool_calls()):
            text = call["function"]["arguments"]
            start = call | {"function": {"name": "get_weather", "arguments": ""}}
            events.append(
                {"type": "tool-call-start", "index": n, "delta": {"message": {"tool_calls": start}}}
            )
            for piece in (text[:5], text[5:]):
                delta = {"message": {"tool_calls": {"function": {"arguments": piece}}}}
                events.append({"type": "tool-call-delta", "index": n, "delta": delta})
            events.append({"type": "tool-call-end", "index": n})
        return self.streamed("TOOL_CALL", *events)

    def streamed_text(self, text: str) -> list[bytes]:
        return self.streamed(
            "COMPLETE",
            *(
                {"type": "content-delta", "delta": {"message": {"content": {"text": piece}}}}
                for piece in (text[:3], text[3:])
            ),
        )


PRODUCTS: dict[str, Product] = {
    "ollama": Ollama(),
    "anthropic": Anthropic(),
    "gemini": Gemini(),
    "cohere": Cohere(),
}


class ToolServer:
    """Speaks one product. `requests` has the bodies, `problems` the reasons to reject them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.product = PRODUCTS[name]
        self.requests: list[Body] = []
        self.problems: list[str] = []
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            text = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            size = int(text.partition("content-length:")[2].split()[0])
            body = json.loads(await reader.readexactly(size))
            target = text.split(" ")[1]
            self.requests.append(body)
            await self.reply(writer, target, body)
        finally:
            writer.close()

    async def reply(self, writer: asyncio.StreamWriter, target: str, body: Body) -> None:
        product = self.product
        targets = [path.lower() for path in (product.path, product.stream_path)]
        found = problems(self.name, body)
        if target not in targets:
            found.append(f"no such path: {target}")
        if found:
            self.problems += found
            await whole(writer, 400, {"error": {"message": "; ".join(found)}})
            return
        stream = product.stream_path.lower() == target or product.wants_stream(target, body)
        wants_calls = "tools" in body and not product.has_results(body)
        text = SCHEMA_REPLY if '"city"' in json.dumps(body) and "tools" not in body else REPLY
        if not stream:
            await whole(writer, 200, product.calls() if wants_calls else product.text(text))
            return
        pieces = product.streamed_calls() if wants_calls else product.streamed_text(text)
        writer.write(head(200, product.content_type))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()


@asynccontextmanager
async def tool_server(name: str) -> AsyncIterator[ToolServer]:
    """A server on loopback, at `url` (without the product's path)."""
    server = ToolServer(name)
    async with await asyncio.start_server(server.answer, "127.0.0.1", 0) as listener:
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        yield server
