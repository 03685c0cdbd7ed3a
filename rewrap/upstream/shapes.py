"""Shapes describe how a chat endpoint is asked, and where its answer has the reply.

They are data: tables of shapes.toml, or of a user's TOML.
Chats, JSON values and events come in; URLs, request bodies and Deltas go out. Knows no HTTP, and
reads no file except shapes.toml. Settings, templates, paths and conditions are explained at the
top of that file.
"""

import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from rewrap.ids import SESSION_NAMES
from rewrap.types import APIError, ChatRequest, Delta, Reader, UpstreamRejection
from rewrap.upstream.conversation import conversation_of, session_of, session_or_new
from rewrap.upstream.forms import FORMS
from rewrap.upstream.mapped_reader import FRAMINGS, MODES, MappedReader, StreamPaths
from rewrap.upstream.messages import part_types
from rewrap.upstream.paths import text_at
from rewrap.upstream.placeholders import (
    ALIASES,
    NAMES,
    ConversationForms,
    parameter_values,
    placeholder_values,
)
from rewrap.upstream.reply_paths import REJECTION_PATHS, ReplyPaths
from rewrap.upstream.tables import (
    ANSWER,
    SHAPE,
    STREAM,
    ShapeError,
    Table,
    checked_table,
    merged,
    table_in,
    text_in,
)
from rewrap.upstream.template import ABSENT, Template

DEFAULT_REQUEST = {"messages": "{messages}", "temperature": "{temperature}"}
DEFAULT_MESSAGE = {"role": "{role}", "content": "{content}"}
URL_NAMES = ("model", "user", "session")
URL_PLACEHOLDER = re.compile(r"\{(\w+)\}")

# Parameters that are never reported as dropped: they are used here, or have no effect with these
# values.
SERVED_HERE = frozenset(
    ["model", "messages", "stream", "stream_options", "user", "metadata", "store", "session"]
)
WITHOUT_EFFECT = {
    "n": 1,
    "logprobs": False,
    "response_format": {"type": "text"},
    "modalities": ["text"],
}


class MappedShape:
    """One shape, compiled from its table. See `types.Shape` for the methods."""

    def __init__(self, table: Table, name: str) -> None:
        """Raises ShapeError for a table that cannot be used."""
        stream = checked_table(table.get("stream", {}), STREAM, f"{name}.stream.")
        if "reply" not in table:
            raise ShapeError(
                f"{name}.reply: where is the text of an answer? A path such as 'data.text', or '.'"
            )
        self.table = table
        self.name = name
        self.stream_table = stream
        self.streams = "stream" in table
        self.framing, self.mode = framing_and_mode(stream, name)
        self.path = text_in(table, "path")
        self.stream_path = text_in(stream, "path", self.path)
        self.omit = table_in(table, "omit")
        self.compile_request()
        self.whole = ReplyPaths(table, f"{name}.")
        answer = {setting: table[setting] for setting in ANSWER & table.keys()}
        self.pieces = StreamPaths(answer | dict(stream), f"{name}.stream.")

    def compile_request(self) -> None:
        body = self.table.get("request", DEFAULT_REQUEST)
        stream_body = merged(body, self.stream_table.get("request", body))
        self.body = Template(body, NAMES, f"{self.name}.request")
        self.stream_body = Template(stream_body, NAMES, f"{self.name}.stream.request")
        message = self.table.get("message", DEFAULT_MESSAGE)
        turn = table_in(self.table, "turn")
        self.forms = ConversationForms(
            Template(message, ["role", "content"], f"{self.name}.message"),
            Template(turn, ["prompt", "reply"], f"{self.name}.turn"),
            table_in(self.table, "roles"),
        )
        in_path = set(URL_PLACEHOLDER.findall(self.path))
        self.used = self.body.names | self.stream_body.names | in_path
        self.product_forms = [FORMS[name] for name in sorted(self.used) if name in FORMS]
        self.taken = self.used.union(*[form.takes for form in self.product_forms])

    # A request.

    def check(self, url: str) -> None:
        for stream in (False, True):
            self.url(url, ChatRequest("m", [], {"user": "u"}, stream=stream))

    def url(self, url: str, request: ChatRequest) -> str:
        """The URL of one request, with {model}, {user} and {session} filled.

        An address without a path gets the shape's path:

        kserve, model m:   http://h             ->  http://h/v2/models/m/generate
        tgi, as a stream:  http://h/x/generate  ->  http://h/x/generate_stream

        Raises APIError 400 for a model or a user that cannot stand in a URL.
        """
        path = self.stream_path if request.stream else self.path
        target, query = completed_path(url, path, self.path)
        names = set(URL_PLACEHOLDER.findall(target))
        unknown = sorted(names.difference(URL_NAMES))
        if unknown:
            raise ShapeError(
                f"{self.name}: the URL must be whole, with its own {unknown[0]}: {target}"
            )
        if names:
            values = url_values(request, names)
            target = URL_PLACEHOLDER.sub(lambda match: values[match[1]], target)
        check_braces(target, self.name)
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc, target or "/", query, ""))

    def headers(self, key: str, stream: bool) -> dict[str, str]:
        name = text_in(self.table, "key", "authorization")
        headers = dict(table_in(self.table, "headers"))
        if stream:
            headers |= table_in(self.stream_table, "headers")
        if key:
            headers[name] = f"Bearer {key}" if name == "authorization" else key
        return {name: str(value) for name, value in headers.items()}

    def payload(self, request: ChatRequest) -> object:
        template = self.stream_body if request.stream else self.body
        values = placeholder_values(
            request, self.used, self.forms, omit=self.omit, streams=self.streams
        )
        body = template.fill(values)
        return {} if body is ABSENT else body

    # The parts of a request that the payload leaves out.

    def dropped(self, request: ChatRequest) -> list[str]:
        if "chat" in self.used:  # all parameters go along, except the number of choices
            several = request.payload.get("n") not in (None, 1)
            return ["n"] if several and "n" not in self.used else []
        names = [
            *self.dropped_parameters(request),
            *self.dropped_turns(request),
            *self.dropped_members(request),
        ]
        for form in self.product_forms:
            names += form.lost(request)
        return list(dict.fromkeys(names))

    def dropped_parameters(self, request: ChatRequest) -> list[str]:
        sent = self.taken.union(SERVED_HERE)
        for names in ALIASES:
            if self.taken.intersection(names):
                sent.update(names)
        if "session" in self.used:
            sent.update(SESSION_NAMES)
        return [
            name
            for name, value in request.payload.items()
            if value is not None and name not in sent and WITHOUT_EFFECT.get(name) != value
        ]

    def dropped_turns(self, request: ChatRequest) -> list[str]:
        talk = conversation_of(request.messages)
        whole = bool(self.taken & {"messages", "conversation", "dialog"})
        dropped: list[str] = []
        if talk.system and not self.taken & {"messages", "conversation", "system"}:
            dropped.append("messages.system")
        has_history = whole or bool(self.taken & {"history", "turns"})
        if "session" in self.used and session_of(request):  # the upstream remembers
            has_history = True
        earlier_lost = talk.prompt_index > 0 and not has_history
        later_lost = talk.prompt_index < len(talk.dialog) - 1 and not whole
        if earlier_lost or later_lost:
            dropped.append("messages.history")
        return dropped

    def dropped_members(self, request: ChatRequest) -> list[str]:
        if "messages.*" in self.taken:
            return []
        names = member_names(request) | part_types(request.messages)
        return sorted({f"messages.{name}" for name in names} - self.taken)

    # An answer.

    def answer(self, value: object) -> list[Delta]:
        rejection = self.whole.failure("", value)
        if rejection is not None:
            raise rejection
        text = text_at(value, self.whole.reply, self.whole.join)
        usage = self.whole.counts(value)
        delta = self.whole.delta(value, text or "", usage, with_reasoning=True)
        reason = self.whole.finish_reason(value)
        if reason in ("", "stop") and "tool_calls" in (delta.fields or {}):
            reason = "tool_calls"
        if text is None and not reason:
            place = self.table["reply"]
            raise UpstreamRejection(502, f"the upstream's answer has no text at {place!r}")
        delta.finish_reason = reason or "stop"
        delta.whole = True
        return [delta]

    def reader(self) -> Reader:
        return MappedReader(self.pieces, self.framing, self.mode)

    def rejection(self, status: int, value: object) -> UpstreamRejection:
        failure = self.whole.failure("", value)
        if failure is not None:
            return UpstreamRejection(status, failure.message)
        return UpstreamRejection(status, text_at(value, REJECTION_PATHS, "; ") or "")


def framing_and_mode(stream: Table, name: str) -> tuple[str, str]:
    framing = stream.get("framing", "auto")
    mode = stream.get("mode", "delta")
    if framing not in FRAMINGS or mode not in MODES:
        raise ShapeError(f"{name}.stream: no framing {framing!r} with mode {mode!r} is known")
    if framing == "json":  # an answer in one piece is always detected
        framing = "auto"
    return str(framing), str(mode)


def completed_path(url: str, path: str, whole_path: str) -> tuple[str, str]:
    """The path and the query for a URL that may stop before a shape's `path`.

    `whole_path` is the path of requests without a stream: a URL that ends like it gets the
    ending of `path`.
    """
    parts = urlsplit(url)
    target, _, query = path.partition("?")
    both = "&".join([part for part in (parts.query, query) if part])
    ending = whole_path.partition("?")[0].rpartition("}")[2]
    if not parts.path.strip("/"):
        return target, both
    if parts.path.endswith(ending):
        return parts.path.removesuffix(ending) + target.rpartition("}")[2], both
    if target.startswith(f"{parts.path.rstrip('/')}/"):
        return target, both
    return parts.path, parts.query  # an address of its own


def check_braces(path: str, name: str) -> None:
    """Raises ShapeError for a brace that belongs to no placeholder."""
    match = re.search(r"[{}]", path)
    if match is not None:
        raise ShapeError(f"{name}: path: a single {match[0]!r} in {path!r}")


def url_values(request: ChatRequest, names: set[str]) -> dict[str, str]:
    """The quoted values of placeholders in a URL. Raises APIError 400: none may change the path."""
    values = parameter_values(request.payload) | {"model": request.model}
    if "session" in names:
        values["session"] = session_or_new(request)
    quoted: dict[str, str] = {}
    for name in names:
        text = str(values.get(name) or "")
        if any(part in ("", ".", "..") for part in text.split("/")):
            raise APIError(400, f"The {name} of this request cannot stand in a URL.")
        quoted[name] = quote(text, "@:/" if name == "model" else "@:")
    return quoted


def member_names(request: ChatRequest) -> set[str]:
    """The members of messages beside role and content."""
    names: set[str] = set()
    for message in request.messages:
        names.update(str(name) for name, value in message.items() if value)
    return names - {"role", "content"}


# Tables to shapes.


def compiled(table: Table, name: str, known: Mapping[str, MappedShape]) -> MappedShape:
    """The shape of one table; `like` names a known shape that it extends. Raises ShapeError."""
    checked_table(table, SHAPE, f"{name}.")
    if "like" in table:
        like = text_in(table, "like")
        if like not in known:
            raise unknown_shape(like, f"{name}.like", known)
        own = {setting: value for setting, value in table.items() if setting != "like"}
        table = checked_table(merged(known[like].table, own), SHAPE, f"{name}.")
    return MappedShape(table, name)


def unknown_shape(name: str, where: str, known: Mapping[str, MappedShape]) -> ShapeError:
    names = ", ".join(sorted(known))
    return ShapeError(f"{where}: no shape is called {name!r}; known are: {names}")


def load_shapes(text: str) -> dict[str, MappedShape]:
    """The shapes of a TOML text, one a table.

    A `like` refers to a table above. Raises ShapeError.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ShapeError(f"not TOML: {error}") from error
    shapes: dict[str, MappedShape] = {}
    for name, table in tables.items():
        shapes[name] = compiled(table, name, shapes)
    return shapes


@lru_cache
def known_shapes() -> dict[str, MappedShape]:
    """The shapes of shapes.toml."""
    return load_shapes(Path(__file__).with_name("shapes.toml").read_text(encoding="utf-8"))


def shape_from(table: Table, where: str) -> MappedShape:
    """The shape of a user's table. Raises ShapeError."""
    return compiled(table, where, known_shapes())


def shape_named(name: str, where: str) -> MappedShape:
    """A shape of shapes.toml. Raises ShapeError."""
    if name not in known_shapes():
        raise unknown_shape(name, where, known_shapes())
    return known_shapes()[name]
