"""`python main.py probe URL`: finds out what a chat URL speaks, and prints the configuration to paste.

Sends one short message in the likely shapes until one gets a reply, then asks for a stream; a reply at a place that no shape
knows makes a mapping. It asks through backends: what works here works when served. It follows no redirect, writes no file.
"""

import argparse
import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import httpx
import orjson

from rewrap.backends import ChatURL
from rewrap.types import APIError, ChatRequest, Delta, Limits, ResponseInfo, Shape
from rewrap.upstream.auto import AutoShape
from rewrap.upstream.client import Client
from rewrap.upstream.framing import NDJSONDecoder, SSEDecoder
from rewrap.upstream.shapes import known_shapes, shape_from

Table = Mapping[str, Any]  # a shape, as in shapes.toml
Try = tuple[str, str, Table]  # name of a shape, URL, table; "" and {}: the shape of any URL
PROMPT, MODEL, MOST_REQUESTS = "Say OK.", "gpt-4o-mini", 28
ANY_REQUEST = {name: f"{{{name}}}" for name in ("model", "messages", "temperature", "max_tokens")}
KEPT = {
    "key",
    "headers",
    "roles",
    "message",
    "turn",
    "request",
}  # what a mapping takes over from a shape
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
SLOT = re.compile(r"\{\w+\}")
SECRET = re.compile(  # what looks like one; the first group stays
    r'(?i)("[\w-]*(?:key|token|secret|password|authorization)"\s*:\s*"|[?&][\w-]*(?:key|token|code|sig|secret|password)=)'
    r'[^"&#\s]+|(?<=://)[^/\s]+(?=@)|\beyJ[\w-]{8,}[\w.-]*|\b(?:(?:sk|pk)[-_]|(?:bearer|basic) )[\w.~+/=*-]{6,}'
)
NO_REPLY = re.compile(  # names of members that hold no reply, or cannot stand in a path
    r"(?i:(?:.*[_-])?(?:ids?|uuid|hash|at|time\w*|date|created|model|role|type|kind|status|state|name|errors?|detail|reason"
    r"|version|urls?|lang\w*|trace|code|finish\w*|user|sender|session|event|usage|question|prompt|query|inputs?|request"
    r"|object|success|level|source|method|path|host|origin))|.*[a-z](?:Id|At|Name|Type)|.*[\s.\[\]{}|=].*|"
)
FAILED = re.compile(
    r"(?i)(?:is_?)?errors?_?(?:message|msg|text)?"
)  # names of members that are empty when all is well


@dataclass
class Probe:
    """A chat URL in question. `shapes` are those of the file, by name; `shape_from` compiles a table for backends."""

    url: str
    shapes: Mapping[str, Any]
    anyshape: Shape
    shape_from: Callable[[Table, str], Shape]
    headers: Mapping[str, str]
    key: str = ""
    model: str = MODEL
    timeout_seconds: float = 30.0
    write: Callable[[str], None] = print
    why: str = ""  # the last request got no reply
    got: httpx.Response | None = None  # by the last request

    async def found(self) -> bool:
        """Whether a reply was found; all else is written."""
        later, before = list[Try](), ""
        self.client = Client(httpx.AsyncHTTPTransport(), self.timeout_seconds)
        self.client.event_hooks = {"response": [self.keep]}
        async with self.client:
            for name, url, table in islice(
                chain(tries(self.url, self.shapes), later), MOST_REQUESTS
            ):
                if said := await self.ask(url, table):
                    self.tell(
                        f"A reply{' as ' * bool(name)}{name}: {self.shown(''.join(d.content for d in said))}"
                    )
                    await self.configure(name, url, table)
                    return True
                self.tell(f"No reply as {name or 'any chat URL'}.")
                if reason := self.hopeless(before):
                    self.write(reason)
                    return False
                before = self.came()
                if "reply" not in table and (path := self.place()):
                    known = self.shapes[name].table if name else {"request": ANY_REQUEST}
                    later.append((name, url, mapping(known, path)))
        self.write(
            "Nothing answers. If its path has an id in it, give the whole URL; if it wants a model, --model."
        )
        return False

    async def keep(self, response: httpx.Response) -> None:
        await response.aread()  # within the time-out, as it is part of the request
        self.got = response

    async def ask(self, url: str, table: Table, stream: bool = False) -> list[Delta]:
        """The Deltas of a reply; none, and `why`, if there is no text."""
        messages = [{"role": "user", "content": PROMPT}]
        payload = {
            "model": self.model,
            "messages": messages,
            **({"stream": True} if stream else {}),
        }
        chat = ChatRequest(self.model, messages, payload, stream=stream)
        shape, limits = (
            self.shape_from(table, "probe") if table else self.anyshape,
            Limits(self.timeout_seconds),
        )
        self.got, self.why = None, "no text"
        try:
            backend = ChatURL(
                self.client, url, shape, key=self.key, headers=self.headers, limits=limits
            )
            deltas = [delta async for delta in backend.stream(chat, ResponseInfo())]
        except (APIError, ValueError) as error:
            self.why = error.reason if isinstance(error, APIError) else str(error)
            return []
        failed = self.got is not None and any(map(is_failure, json_values(self.got.content)))
        return deltas if any(delta.content.strip() for delta in deltas) and not failed else []

    def place(self) -> str | None:
        """Where in what came last the reply is, if it can be found."""
        return (
            reply_path(self.got.content, self.got.request.content)
            if self.got and self.got.is_success
            else None
        )

    def tell(self, outcome: str) -> None:
        """What was sent, and what came back."""
        sent = self.got.request if self.got else None
        own = "".join(f", {name}: ***" for name in [*self.headers, *["key"][: len(self.key)]])
        lines = (
            [f"  sent  {self.shown(f'{sent.url} {sent.content.decode()}')}{own}"] if sent else []
        )
        self.write("\n".join([outcome, *lines, f"  got   {self.came()}"]))

    def came(self) -> str:
        """What came back: status, type, where it leads to, the first characters."""
        if self.got is None or not self.got.is_closed:
            return self.why
        headers = self.got.headers
        where = f" to {headers['location']}" if "location" in headers else ""
        return self.shown(
            f"{self.got.status_code} {headers.get('content-type', 'of no type')}{where}: {self.got.text}"
        )

    def shown(self, text: str, most: int = 300) -> str:
        """A text for the terminal: no secrets, on one line, shortened."""
        values = {
            self.key,
            *self.headers.values(),
            *(v.split()[-1] for v in self.headers.values() if v.strip()),
        }
        for secret in sorted(values, key=len, reverse=True):
            text = text.replace(secret, "***") if len(secret) > 3 else text
        text = SECRET.sub(lambda match: f"{match[1] or ''}***", text)
        text = "".join(c if c.isprintable() else " " for c in text)
        return f"{text[:most]}…" if len(text) > most else text

    def hopeless(self, before: str) -> str:
        """Why it is of no use to go on, if it is none; `before` is what came before."""
        status = self.got.status_code if self.got else 0
        if "Connect" in self.why or status == 429:
            return (
                "It has had enough of requests: try again later."
                if status
                else "It cannot be reached."
            )
        if (
            status in (401, 403)
            and before.startswith(str(status))
            and not (self.key or self.headers)
        ):
            return "It wants a key: --key KEY, or --header 'Name: value'."
        return (
            "It is too slow: --timeout SECONDS."
            if "Timeout" in self.why and "Timeout" in before
            else ""
        )

    async def configure(self, name: str, url: str, table: Table) -> None:
        """Whether it streams, and the lines to paste; where a secret was, a name in capitals."""
        pieces = await self.ask(url, table, stream=True)
        if not pieces and "reply" in table and (path := self.place()):
            table = {**table, "stream": {**table["stream"], "reply": path}}
            pieces = await self.ask(url, table, stream=True)
        how = "the reply comes whole" if pieces else f"asked for a stream, it fails: {self.came()}"
        sized = (
            self.got is not None and "content-length" in self.got.headers
        )  # then one piece alone is all there is
        streams = sum(bool(delta.content) and not delta.whole for delta in pieces) > sized
        self.write(f"  streams: {'yes' if streams else how}\n")
        base, found, _ = str(self.got.request.url if self.got else "").partition(
            "/chat/completions"
        )
        url, key = self.shown(url, 9999), "YOUR-KEY" if self.key else ""
        headers = dict.fromkeys(self.headers, "YOUR-VALUE")
        env = {
            "CHAT_URL": url,
            "CHAT_SHAPE": name,
            "CHAT_KEY": key,
            "CHAT_HEADERS": headers and json.dumps(headers),
        }
        where = "Into .env:\n"
        if "reply" in table:
            mine = {"name": "mine", "url": url, "key_env": key and "CHAT_KEY", "headers": headers}
            rows = [
                "[[backend]]",
                *(f"{k} = {toml(v)}" for k, v in mine.items() if v),
                "[backend.mapping]",
            ]
            rows += [f"{k} = {toml(v)}" for k, v in table.items() if k != "stream" or streams]
            self.write("\n".join(["Into backends.toml:\n", *rows, ""]))
            env, where = {"CONFIG": "backends.toml", "CHAT_KEY": key}, "Into the environment:\n"
        elif name == "openai" and found and not headers and "?" not in url:
            env = {"OPENAI_API_BASE": self.shown(base, 9999), "OPENAI_API_KEY": key}
        env["OPENAI_MODEL"] = self.model if self.model != MODEL else ""
        self.write("\n".join([where, *(f"{k}={v}" for k, v in env.items() if v)]))


def tries(address: str, shapes: Mapping[str, Any]) -> list[Try]:
    """In what order to ask: shapes whose path this is, those below it, any, all others. One that needs an id is left out."""
    path = httpx.URL(address).path.rstrip("/")
    ranked: list[tuple[int, Try]] = [(3 if path else 6, ("", address, {}))]
    for name, shape in shapes.items():
        known, to, rank = shape.path.partition("?")[0], address, 4 if shape.path else 5
        if path and known and re.search(".+".join(map(re.escape, SLOT.split(known))) + "$", path):
            rank = -len(known)  # the longest first
        elif path and known.startswith(f"{path}/") and not SLOT.search(known):
            rank, to = 2, str(httpx.URL(address).copy_with(path=known))
        elif not path and set(SLOT.findall(known)) - {"{model}", "{user}", "{session}"}:
            continue
        ranked.append((rank, (name, to, {"like": name})))
    return [one for _, one in sorted(ranked, key=lambda row: row[0])]


def texts(value: Any, path: str = "", depth: int = 12) -> Iterator[tuple[str, str]]:
    """The texts in a JSON value that may be a reply: (path, text)."""
    if isinstance(value, dict) and depth:
        for name, inner in value.items():
            if not NO_REPLY.fullmatch(name):
                yield from texts(inner, f"{path}.{name}" if path else name, depth - 1)
    elif isinstance(value, list) and depth:
        for index, inner in enumerate(value[:20]):
            yield from texts(inner, f"{path}[{index}]", depth - 1)
    elif isinstance(value, str) and value.strip():
        yield path or ".", value


def reply_path(body: bytes, sent: bytes = b"") -> str | None:
    """The path of the reply in JSON of unknown form, or in events of it, if there is but one place where it can be."""
    ours = {PROMPT, sent.decode(), *map(orjson.loads, STRING.findall(sent))}  # an echo is no reply
    values, found, early = json_values(body), dict[str, str](), set[str]()
    for value in values:
        for path, text in texts(value):
            if text not in ours:
                found[path] = found.get(path, "") + text
        early = early or {*found}  # the places in the first event that has any
    likely = [path for path, text in found.items() if re.search(r"\bok\b", text, re.I)] or list(
        found
    )
    likely = [path for path in likely if path in early] or likely
    return likely[0] if len(likely) == 1 and not any(map(is_failure, values)) else None


def json_values(body: bytes) -> list[Any]:
    """A body that is JSON, or that of its events or lines which are."""
    with suppress(orjson.JSONDecodeError):
        return [orjson.loads(body)]
    values, events = (
        list[Any](),
        (SSEDecoder if re.search(rb"^data:", body, re.M) else NDJSONDecoder)(len(body)),
    )
    for _, data in chain(events.feed(body), events.close()):
        with suppress(orjson.JSONDecodeError):
            values.append(orjson.loads(data))
    return values


def is_failure(value: Any) -> bool:
    """Whether this JSON says that it is an error, whatever its status."""
    if not isinstance(value, dict):
        return False
    if (
        value.get("ok") is False
        or value.get("success") is False
        or value.get("status") in ("error", "fail", "failed")
    ):
        return True
    return any(inner and FAILED.fullmatch(name) for name, inner in value.items())


def mapping(known: Table, path: str) -> Table:
    """A mapping that asks as a known shape does, with the reply at a place of its own; `stream` is yet to be tried."""
    kept = {name: value for name, value in known.items() if name in KEPT}
    asks = {**known.get("stream", {}).get("request", {}), "stream": True}
    return kept | {
        "reply": path,
        "stream": {} if isinstance(kept.get("request"), str) else {"request": asks},
    }


def toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            "{ "
            + ", ".join(f"{json.dumps(name)} = {toml(inner)}" for name, inner in value.items())
            + " }"
        )
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)


def probe_command(argv: list[str]) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser("rewrap probe", description="Find out what a chat URL speaks.")
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'")
    for name, default in {"--key": "", "--model": MODEL, "--timeout": 30.0}.items():
        parser.add_argument(name, default=default, type=type(default))
    told = parser.parse_args(argv)
    pairs = [re.fullmatch(r"([\w-]+):\s*([ -~]*?)\s*", line, re.ASCII) for line in told.header]
    if not re.match(r"https?://[^/\s]", told.url) or not all(pairs):
        parser.error("a URL begins with http:// or https://, a header is 'Name: value'")
    headers = {pair[1]: pair[2] for pair in pairs if pair}
    probe = Probe(
        told.url,
        known_shapes(),
        AutoShape(),
        shape_from,
        headers,
        told.key,
        told.model,
        told.timeout,
    )
    try:
        if (httpx.URL(told.url).port or 0) > 65535:
            raise httpx.InvalidURL("there is no such port")
        return 0 if asyncio.run(probe.found()) else 1
    except httpx.InvalidURL as error:
        parser.error(f"the URL cannot be used: {error}")
