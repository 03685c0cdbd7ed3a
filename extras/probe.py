"""`python main.py probe URL`: finds out what a chat URL speaks, and prints the configuration to paste.

Sends one short message in the likely shapes, one after the other, until one gets a reply, and then asks for a stream. Where the
reply stands at a place that no shape knows, the outcome is a mapping. Asks through backends, so that what works here works
when it is served. Does not follow redirects, look for other addresses, or write files.
"""

import argparse
import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any

import httpx
import orjson

from backends import APIError, Chat, ChatURL, Client, Delta, Limits, Shape

PROMPT, MODEL, MOST_REQUESTS, MOST_BYTES, SHOWN = "Say OK.", "gpt-4o-mini", 30, 2**20, 300
ANY_REQUEST = {name: f"{{{name}}}" for name in ("model", "messages", "temperature", "max_tokens")}
SLOT = re.compile(r"\{\w+\}")
SECRETS = [  # what looks like one: (pattern, what stays)
    (re.compile(r'(?i)("[\w-]*(?:key|token|secret|password|authorization)"\s*:\s*")[^"]+'), r"\1***"),
    (re.compile(r"(?i)([?&][\w-]*(?:key|token|code|sig|signature|secret|password)=)[^&#\s\"']+"), r"\1***"),
    (re.compile(r"(?<=://)[^/@\s]+(?=@)|\beyJ[\w-]{8,}[\w.-]*"), "***"),
    (re.compile(r"(?i)(?<![\w-])(?:sk|pk|key|token|bearer|basic)[-_ ][\w.~+/=*-]{6,}"), "***"),
]
NO_REPLY = re.compile(  # names of members that hold no reply
    r"(?i:(?:.*[_-])?(?:ids?|uuid|hash|at|time\w*|date|created|model|role|object|type|kind|status|state|name|errors?|detail"
    r"|reason|version|urls?|lang\w*|trace|code|finish\w*|user|author|sender|session|event|usage|question|prompt|query"
    r"|inputs?|request|success|level|source))|.*[a-z](?:Id|At|Name|Type)"
)
Try = tuple[str, str, dict[str, Any]]  # name of a shape, URL, a mapping; "" and {}: the shape of any URL


class Recorder(httpx.AsyncBaseTransport):
    """Another transport, and what went through it last: `sent`, `got`, and the `body` of the answer, bounded."""

    def __init__(self, transport: httpx.AsyncBaseTransport, seconds: float) -> None:
        self.transport, self.seconds, self.requests = transport, seconds, 0
        self.sent: httpx.Request | None = None
        self.got: httpx.Response | None = None
        self.body = b""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent, self.got, self.body, self.requests = request, None, b"", self.requests + 1
        if self.requests > MOST_REQUESTS:
            raise httpx.TransportError("too many requests")
        async with asyncio.timeout(self.seconds):
            self.got = got = await self.transport.handle_async_request(request)
            async with aclosing(got.aiter_bytes()) as pieces:
                async for piece in pieces:
                    self.body += piece
                    if len(self.body) > MOST_BYTES:
                        break
            await got.aclose()
        headers = [(name, value) for name, value in got.headers.raw if name.lower() != b"content-encoding"]
        return httpx.Response(got.status_code, headers=headers, stream=httpx.ByteStream(self.body))

    async def aclose(self) -> None:
        await self.transport.aclose()


class Probe:
    """A chat URL in question; no secret stands in what is `shown`."""

    def __init__(self, recorder: Recorder, headers: Mapping[str, str], key: str, model: str) -> None:
        self.recorder, self.client = recorder, Client(recorder, recorder.seconds)
        self.headers, self.key, self.model, self.why = headers, key, model, ""
        values = [key, *headers.values(), *(value.split()[-1] for value in headers.values() if value.strip())]
        self.secrets = sorted({value for value in values if len(value) > 3}, key=len, reverse=True)

    async def ask(self, shape: Shape, url: str, stream: bool = False) -> list[Delta]:
        """The Deltas of a reply; none, and `why`, if there is no text."""
        payload = {"model": self.model, "messages": [{"role": "user", "content": PROMPT}]}
        payload |= {"stream": True} if stream else {}
        limits = Limits(reply_bytes=2 * MOST_BYTES, event_bytes=2 * MOST_BYTES)
        backend = ChatURL(self.client, url, shape, key=self.key, headers=self.headers, limits=limits)
        self.why, self.recorder.got, self.recorder.body = "no text", None, b""
        try:
            async with aclosing(backend.stream(Chat(self.model, payload["messages"], payload, stream=stream))) as said:
                deltas = [delta async for delta in said]
        except APIError as error:
            self.why = error.reason
            return []
        return deltas if any(delta.content.strip() for delta in deltas) else []

    def shown(self, text: str) -> str:
        """A text for the terminal: without secrets, on one line."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        for pattern, rest in SECRETS:
            text = pattern.sub(rest, text)
        return "".join(c if c.isprintable() else " " for c in text)

    def came(self) -> str:
        """What came back: status, type, where it leads to, the first characters."""
        if (got := self.recorder.got) is None:
            return self.why
        where = f", to {got.headers['location']}" if "location" in got.headers else ""
        text = self.shown(self.recorder.body.decode("utf-8", "replace"))
        text = f"{text[:SHOWN]}…" if len(text) > SHOWN else text
        return f"{got.status_code} {self.shown(got.headers.get('content-type', 'of no type') + where)}: {text}"

    def value(self) -> Any:
        try:
            return orjson.loads(self.recorder.body)
        except orjson.JSONDecodeError:
            return None

    def hopeless(self, before: str) -> str:
        """Why it is of no use to go on, if it is none; `before` is what the last one but this said."""
        status = self.recorder.got.status_code if self.recorder.got else 0
        if "Connect" in self.why or status == 429:
            return "It has had enough of requests: try again later." if status else "It cannot be reached."
        if status in (401, 403) and before.startswith(str(status)) and not (self.key or self.headers):
            return "It wants a key: --key KEY, or --header 'Name: value'."
        return "It is too slow: --timeout SECONDS." if "Timeout" in self.why and "Timeout" in before else ""


def tries(url: httpx.URL, shapes: Mapping[str, Any]) -> list[Try]:
    """In what order to ask: shapes whose path this is, those below it, any, all others. One that needs an id is left out."""
    path, ranked, tables = url.path.rstrip("/"), [(3 if url.path.strip("/") else 6, ("", str(url), {}))], list[Any]()
    for name, shape in shapes.items():
        known, one = shape.path.partition("?")[0], (name, str(url), {"like": name})
        pattern = ".+".join(map(re.escape, SLOT.split(known)))
        if shape.table in tables:  # the same by another name
            continue
        tables.append(shape.table)
        if path and known and re.search(f"{pattern}$", path):
            ranked.append((1 - len(known), one))  # the longest first
        elif path and known.startswith(f"{path}/") and not SLOT.search(known):
            ranked.append((2, (name, str(url.copy_with(path=known)), {"like": name})))
        elif path or not set(SLOT.findall(known)) - {"{model}", "{user}", "{session}"}:
            ranked.append((4 if known else 5, one))
    return [one for _, one in sorted(ranked, key=lambda row: row[0])]


def texts(value: Any, path: str = "", depth: int = 12) -> Iterator[tuple[str, str]]:
    """The texts in a JSON value that may be a reply: (path, text)."""
    if isinstance(value, dict) and depth:
        for name, inner in value.items():
            if re.fullmatch(r"[^\s.\[\]{}|=]+", name) and not NO_REPLY.fullmatch(name):
                yield from texts(inner, f"{path}.{name}" if path else name, depth - 1)
    elif isinstance(value, list) and depth:
        for index, inner in enumerate(value[:20]):
            yield from texts(inner, f"{path}[{index}]", depth - 1)
    elif isinstance(value, str) and value and value != PROMPT:
        yield path or ".", value


def only_text(value: Any) -> str | None:
    """The path of the reply in a JSON value of unknown form, if there is but one that it can be."""
    found = list(texts(value))
    likely = [path for path, text in found if re.search(r"\bok\b", text, re.I)] or [path for path, _ in found]
    return likely[0] if len(likely) == 1 else None


def wanted(value: Any) -> dict[str, str]:
    """A request with the members that a validation misses (FastAPI's `detail[].loc`)."""
    found = {}
    for row in value["detail"] if isinstance(value, dict) and isinstance(value.get("detail"), list) else []:
        where = row.get("loc") if isinstance(row, dict) and str(row.get("type")).endswith("missing") else None
        if isinstance(where, list) and len(where) == 2 and where[0] == "body":
            name = str(where[1])
            known = re.search(r"(?i)model|history|messages", name)
            session = re.search(r"(?i)session|user|conversation|thread|id$", name)
            found[name] = f"{{{known[0].lower()}}}" if known else "{session}" if session else "{prompt}"
    return found
