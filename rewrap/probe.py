"""`rewrap probe URL`: find out the API of a chat URL, and print the settings to paste.

Sends one short message in each of the likely shapes until one gets a reply, then asks for a stream. A reply at a place that no
shape knows becomes a mapping. The requests go through backends, so that the printed settings work when served. Follows no
redirect and writes no file.
"""

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import httpx

from rewrap.backends import ChatURL
from rewrap.types import APIError, ChatRequest, Delta, JSONObject, Limits, ResponseInfo, Shape
from rewrap.upstream.auto import AutoShape
from rewrap.upstream.client import Client
from rewrap.upstream.reply_candidates import is_failure, json_values, reply_path
from rewrap.upstream.shapes import MappedShape, known_shapes, shape_from

PROMPT = "Say OK."
WANTED = r"\bok\b"
MODEL = "gpt-4o-mini"
MAX_REQUESTS = 28
LINE_CHARACTERS = 300  # of an answer in the report
ANY_REQUEST = {name: f"{{{name}}}" for name in ("model", "messages", "temperature", "max_tokens")}
# The settings that a mapping takes over from a known shape.
REQUEST_SETTINGS = ("key", "headers", "roles", "message", "turn", "request")
SLOT = re.compile(r"\{\w+\}")
# Texts that look like secrets. The first group stays.
SECRET = re.compile(
    r'(?i)("[\w-]*(?:key|token|secret|password|authorization)"\s*:\s*"'
    r"|[?&][\w-]*(?:key|token|code|sig|secret|password)=)"
    r'[^"&#\s]+|(?<=://)[^/\s]+(?=@)|\beyJ[\w-]{8,}[\w.-]*'
    r"|\b(?:(?:sk|pk)[-_]|(?:bearer|basic) )[\w.~+/=*-]{6,}"
)


@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of the command. `timeout` is in seconds."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    key: str = ""
    model: str = MODEL
    timeout: float = 30.0

    def secrets(self) -> list[str]:
        """The texts that the report must not contain, the longest first."""
        values = {self.key, *self.headers.values()}
        values |= {value.split()[-1] for value in self.headers.values() if value.strip()}
        return sorted((text for text in values if len(text) > 3), key=len, reverse=True)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to ask. An empty `table` stands for the shape of any chat URL."""

    name: str  # of a known shape, or ""
    url: str
    table: JSONObject

    def shape(self) -> Shape:
        if self.table:
            return shape_from(self.table, "probe")
        return AutoShape()

    @property
    def is_mapping(self) -> bool:
        return "reply" in self.table


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one attempt: a reply, or the reason why there is none."""

    deltas: list[Delta]
    failure: str
    response: httpx.Response | None

    @property
    def status(self) -> int:
        return self.response.status_code if self.response else 0

    @property
    def text(self) -> str:
        return "".join(delta.content for delta in self.deltas)

    def reply_path(self) -> str | None:
        """The place of the reply in a good answer that the shape could not read."""
        if self.response is None or not self.response.is_success:
            return None
        return reply_path(self.response.content, self.response.request.content, WANTED)

    def streamed(self) -> bool:
        """Whether the reply came in pieces. One piece of a known length is a whole answer."""
        pieces = sum(bool(delta.content) and not delta.whole for delta in self.deltas)
        if self.response is not None and "content-length" in self.response.headers:
            return pieces > 1
        return pieces > 0


class Probe:
    """The search for the API of one chat URL."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.client = Client(httpx.AsyncHTTPTransport(), options.timeout)
        self.client.event_hooks = {"response": [self.keep]}
        self.response: httpx.Response | None = None  # of the last request

    async def run(self) -> bool:
        """Print what is found. True if there is a reply."""
        later: list[Attempt] = []
        previous = Outcome([], "", None)
        async with self.client:
            planned = chain(attempts(self.options.url, known_shapes()), later)
            for attempt in islice(planned, MAX_REQUESTS):
                outcome = await self.ask(attempt)
                if outcome.deltas:
                    await self.report_reply(attempt, outcome)
                    return True
                self.report(f"No reply as {attempt.name or 'any chat URL'}.", outcome)
                reason = self.hopeless(outcome, previous)
                if reason:
                    print(reason)
                    return False
                previous = outcome
                path = None if attempt.is_mapping else outcome.reply_path()
                if path:
                    later.append(mapped(attempt, path))
        print(
            "No reply was found. If the path has an id in it, give the whole URL. If the product"
            " wants a model, give --model."
        )
        return False

    async def keep(self, response: httpx.Response) -> None:
        await response.aread()  # this is part of the request, and within its timeout
        self.response = response

    async def ask(self, attempt: Attempt, *, stream: bool = False) -> Outcome:
        """Send the prompt through a backend."""
        messages = [{"role": "user", "content": PROMPT}]
        payload: JSONObject = {"model": self.options.model, "messages": messages}
        if stream:
            payload["stream"] = True
        request = ChatRequest(self.options.model, messages, payload, stream=stream)
        seconds = self.options.timeout
        limits = Limits(first_byte=seconds, stall=seconds, total=seconds, request=seconds)
        self.response = None
        try:
            backend = ChatURL(
                self.client,
                attempt.url,
                attempt.shape(),
                key=self.options.key,
                headers=self.options.headers,
                limits=limits,
            )
            deltas = [delta async for delta in backend.stream(request, ResponseInfo())]
        except APIError as error:
            return Outcome([], error.reason, self.response)
        except ValueError as error:
            return Outcome([], str(error), self.response)
        has_text = any(delta.content.strip() for delta in deltas)
        if not has_text or self.response_is_failure():
            return Outcome([], "no text", self.response)
        return Outcome(deltas, "", self.response)

    def response_is_failure(self) -> bool:
        if self.response is None:
            return False
        return any(is_failure(value) for value in json_values(self.response.content))

    def hopeless(self, outcome: Outcome, previous: Outcome) -> str:
        """The reason to stop after a failure; "" if there is none."""
        if outcome.status == 429:
            return "The URL limits the rate of requests: try again later."
        if "Connect" in outcome.failure:
            return "The URL cannot be reached."
        unauthorized = outcome.status in (401, 403) and outcome.status == previous.status
        if unauthorized and not (self.options.key or self.options.headers):
            return "The URL wants a key: --key KEY, or --header 'Name: value'."
        if "Timeout" in outcome.failure and "Timeout" in previous.failure:
            return "The URL is too slow: --timeout SECONDS allows more time."
        return ""

    # The report.

    def report(self, title: str, outcome: Outcome) -> None:
        """Print one attempt: the request that was sent, and the answer."""
        lines = [title]
        if outcome.response is not None:
            request = outcome.response.request
            secret = [f", {name}: ***" for name in self.options.headers]
            if self.options.key:
                secret.append(", key: ***")
            sent = self.shown(f"{request.url} {request.content.decode()}")
            lines.append(f"  sent  {sent}{''.join(secret)}")
        lines.append(f"  got   {self.received(outcome)}")
        print("\n".join(lines))

    def received(self, outcome: Outcome) -> str:
        """The answer on one line: status, content type, target of a redirect, first characters."""
        response = outcome.response
        if response is None:
            return outcome.failure
        location = response.headers.get("location")
        to = f" to {location}" if location else ""
        kind = response.headers.get("content-type", "without a type")
        return self.shown(f"{response.status_code} {kind}{to}: {response.text}")

    def shown(self, text: str, maximum: int = LINE_CHARACTERS) -> str:
        """A text for the terminal: without secrets, on one line, cut."""
        for secret in self.options.secrets():
            text = text.replace(secret, "***")
        text = SECRET.sub(lambda match: f"{match[1] or ''}***", text)
        text = "".join(c if c.isprintable() else " " for c in text)
        return f"{text[:maximum]}…" if len(text) > maximum else text

    async def report_reply(self, attempt: Attempt, outcome: Outcome) -> None:
        """Print the reply, whether the URL streams, and the settings to paste."""
        shape = f" as {attempt.name}" if attempt.name else ""
        self.report(f"A reply{shape}: {self.shown(outcome.text)}", outcome)
        attempt, streamed = await self.ask_stream(attempt)
        streams = streamed.streamed()
        if streams:
            print("  streams: yes\n")
        elif streamed.deltas:
            print("  streams: no, the reply comes whole\n")
        else:
            print(f"  streams: no, a request for a stream fails: {self.received(streamed)}\n")
        print("\n".join(self.settings(attempt, streamed, streams)))

    async def ask_stream(self, attempt: Attempt) -> tuple[Attempt, Outcome]:
        """Ask for a stream. A mapping gets the place of the text in its events, if that is another one."""
        outcome = await self.ask(attempt, stream=True)
        path = outcome.reply_path() if attempt.is_mapping and not outcome.deltas else None
        if not path:
            return attempt, outcome
        table = {**attempt.table, "stream": {**attempt.table["stream"], "reply": path}}
        attempt = Attempt(attempt.name, attempt.url, table)
        return attempt, await self.ask(attempt, stream=True)

    def settings(self, attempt: Attempt, outcome: Outcome, streams: bool) -> list[str]:
        """The lines to paste. Secrets are replaced by names in capitals."""
        url = self.shown(attempt.url, sys.maxsize)
        key = "YOUR-KEY" if self.options.key else ""
        headers = dict.fromkeys(self.options.headers, "YOUR-VALUE")
        model = "" if self.options.model == MODEL else self.options.model
        if attempt.is_mapping:
            lines = mapping_lines(attempt.table, url, key, headers, streams)
            variables = {"CONFIG": "backends.toml", "CHAT_KEY": key, "OPENAI_MODEL": model}
            return ["Into backends.toml:\n", *lines, "", "Into .env:\n", *assignments(variables)]
        address = str(outcome.response.request.url) if outcome.response else ""
        base, is_openai, _ = address.partition("/chat/completions")
        if attempt.name == "openai" and is_openai and not headers and "?" not in url:
            base = self.shown(base, sys.maxsize)
            variables = {"OPENAI_API_BASE": base, "OPENAI_API_KEY": key, "OPENAI_MODEL": model}
        else:
            variables = {
                "CHAT_URL": url,
                "CHAT_SHAPE": attempt.name,
                "CHAT_KEY": key,
                "CHAT_HEADERS": json.dumps(headers) if headers else "",
                "OPENAI_MODEL": model,
            }
        return ["Into .env:\n", *assignments(variables)]


def attempts(address: str, shapes: Mapping[str, MappedShape]) -> list[Attempt]:
    """The ways to ask, in order: shapes whose path this is, shapes below it, any chat URL, the others.

    A shape whose path needs an id that the address does not have is left out.
    """
    ranked = [(3 if httpx.URL(address).path.strip("/") else 6, Attempt("", address, {}))]
    for name, shape in shapes.items():
        ranked += ranked_attempt(name, shape.path, address)
    return [attempt for _, attempt in sorted(ranked, key=lambda row: row[0])]


def ranked_attempt(name: str, shape_path: str, address: str) -> Iterator[tuple[int, Attempt]]:
    """The way to ask in one known shape, with its rank; nothing if it cannot be asked."""
    path = httpx.URL(address).path.rstrip("/")
    known = shape_path.partition("?")[0]
    slots = SLOT.findall(known)
    table: JSONObject = {"like": name}
    if path and known:
        pattern = ".+".join(map(re.escape, SLOT.split(known)))
        if re.search(f"{pattern}$", path):
            yield -len(known), Attempt(name, address, table)  # the longest path first
            return
        if known.startswith(f"{path}/") and not slots:
            below = str(httpx.URL(address).copy_with(path=known))
            yield 2, Attempt(name, below, table)
            return
    if not path and set(slots) - {"{model}", "{user}", "{session}"}:
        return
    yield 4 if shape_path else 5, Attempt(name, address, table)


def mapped(attempt: Attempt, path: str) -> Attempt:
    """The same request as in a known shape, with the reply at another place. Its stream is not tried yet."""
    known: JSONObject = {"request": ANY_REQUEST}
    if attempt.name:
        known = dict(known_shapes()[attempt.name].table)
    table = {name: value for name, value in known.items() if name in REQUEST_SETTINGS}
    table["reply"] = path
    table["stream"] = {}
    if not isinstance(table.get("request"), str):
        asks = known.get("stream", {}).get("request", {})
        table["stream"] = {"request": {**asks, "stream": True}}
    return Attempt(attempt.name, attempt.url, table)


def mapping_lines(
    table: JSONObject, url: str, key: str, headers: dict[str, str], streams: bool
) -> list[str]:
    """A mapping as a table of the backends file."""
    members = {"name": "mine", "url": url, "key_env": key and "CHAT_KEY", "headers": headers}
    lines = ["[[backend]]"]
    lines += [f"{name} = {toml(value)}" for name, value in members.items() if value]
    lines.append("[backend.mapping]")
    for name, value in table.items():
        if name != "stream" or streams:
            lines.append(f"{name} = {toml(value)}")
    return lines


def assignments(variables: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items() if value]


def toml(value: object) -> str:
    if isinstance(value, Mapping):
        members = [f"{json.dumps(name)} = {toml(inner)}" for name, inner in value.items()]
        return f"{{ {', '.join(members)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value)


def parse_options(argv: Sequence[str]) -> Options:
    """Exits with 2 for arguments that cannot be used."""
    parser = argparse.ArgumentParser(
        "rewrap probe", description="Find out the API of a chat URL, and print the settings for it."
    )
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--key", default="", help="the key, sent where the product wants it")
    parser.add_argument("--model", default=MODEL, help="the model to ask for")
    parser.add_argument("--timeout", default=30.0, type=float, metavar="SECONDS")
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="may be repeated"
    )
    found = parser.parse_args(argv)
    headers: dict[str, str] = {}
    for line in found.header:
        pair = re.fullmatch(r"([\w-]+):\s*([ -~]*?)\s*", line, re.ASCII)
        if not pair:
            parser.error("a header is 'Name: value'")
        headers[pair[1]] = pair[2]
    try:
        port = httpx.URL(found.url).port or 0
    except httpx.InvalidURL as error:
        parser.error(f"the URL cannot be used: {error}")
    if port > 65535 or not re.match(r"https?://[^/\s]", found.url):
        parser.error("the URL must begin with http:// or https://, and its port be below 65536")
    return Options(found.url, headers, found.key, found.model, found.timeout)


def probe_command(argv: Sequence[str]) -> int:
    """The command; its exit status."""
    probe = Probe(parse_options(argv))
    return 0 if asyncio.run(probe.run()) else 1
