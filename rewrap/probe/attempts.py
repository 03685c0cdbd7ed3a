"""The ways to ask a chat URL, and their outcomes. Sends nothing."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from functools import cached_property

import httpx

from rewrap.probe.field_hints import Field, flat_request_of, request_of
from rewrap.probe.reply_candidates import Text, end_marker, names_of, texts
from rewrap.structs import struct
from rewrap.types import ChatRequest, Delta, JSONObject, NoReplyFound, Shape
from rewrap.upstream.auto import AutoShape
from rewrap.upstream.shapes import MappedShape, known_shapes, shape_from

PROMPT = "Say OK."
WANTED = r"\bok\b"
MODEL = "gpt-4o-mini"
ANY_REQUEST = {name: f"{{{name}}}" for name in ("model", "messages", "temperature", "max_tokens")}
# The settings that a mapping takes over from a known shape.
REQUEST_SETTINGS = (
    "key",
    "headers",
    "roles",
    "message",
    "turn",
    "method",
    "request",
    "query",
    "form",
)
# Names that chat endpoints use for the prompt. Sent together, they reach an endpoint that ignores unknown names.
USUAL_NAMES = (
    "message",
    "prompt",
    "query",
    "question",
    "text",
    "input",
    "content",
    "q",
    "msg",
    "user_input",
    "chatInput",
    "inputs",
)
CONVERSATION = re.compile(r"\{(?:prompt|messages|conversation|dialog)\}")
SESSION = "{session}"
SLOT = re.compile(r"\{\w+\}")
PLACES = {"body": "request", "query": "query", "form": "form"}  # settings of a mapping


@struct(frozen=True, slots=True)
class Options:
    """The arguments of the command. `timeout` is in seconds. `mapping` has those that describe the request.

    `reply` is the path of the reply; with a `mapping`, that has it, too.
    """

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    key: str = ""
    model: str = MODEL
    timeout: float = 30.0
    mapping: JSONObject = field(default_factory=dict)
    reply: str = ""
    stream: bool = False

    def secrets(self) -> list[str]:
        """The texts that the report must not contain, the longest first."""
        values = {self.key, *self.headers.values()}
        values |= {value.split()[-1] for value in self.headers.values() if value.strip()}
        return sorted((text for text in values if len(text) > 3), key=len, reverse=True)


@struct(frozen=True, slots=True)
class Attempt:
    """One way to ask. An empty `table` stands for the shape of any chat URL."""

    url: str
    name: str = ""  # of a known shape
    table: JSONObject = field(default_factory=dict)
    names: tuple[str, ...] = ()  # of which not all may be needed
    fields: Mapping[tuple[str, ...], Field] = field(default_factory=dict)  # from errors

    def shape(self) -> Shape:
        """Raises ValueError."""
        if not self.table:
            return AutoShape()
        # Without a path of the reply, its text is the whole answer.
        return shape_from({"reply": ".", **self.table} if not self.name else self.table, "probe")

    @property
    def has_path(self) -> bool:
        return "reply" in self.table

    @property
    def place(self) -> str:
        """The place of the fields in the request: body, query or form."""
        return next((place for place, name in PLACES.items() if name in self.table), "body")

    def target(self, model: str) -> str:
        """The method and the URL of its request. Raises ValueError."""
        url = self.shape().prepare(self.url, ChatRequest(model, [], {"user": "rewrap"})).url
        return f"{self.table.get('method', 'POST')} {url}"

    def title(self) -> str:
        if self.name:
            return self.name
        return "any chat URL" if not self.table else "a mapping"


@struct(frozen=True)
class Outcome:
    """The end of one attempt: a reply, or the reason why there is none."""

    attempt: Attempt
    deltas: list[Delta]
    failure: str
    response: httpx.Response | None

    @property
    def status(self) -> int:
        return self.response.status_code if self.response else 0

    @property
    def is_good(self) -> bool:
        return self.response is not None and self.response.is_success

    @property
    def text(self) -> str:
        return "".join(delta.content for delta in self.deltas)

    @property
    def is_certain(self) -> bool:
        """The reply has the text that was asked for, or the request is that of a known shape, or of an error's fields."""
        attempt = self.attempt
        return bool(attempt.name or attempt.fields or re.search(WANTED, self.text, re.IGNORECASE))

    @cached_property
    def texts(self) -> list[Text]:
        """The texts of the answer, the likeliest reply first."""
        if self.response is None:
            return []
        request = self.response.request
        sent = request.content or request.url.query
        return texts(self.response.content, sent, WANTED)

    @cached_property
    def marker(self) -> str:
        """The bare text that ends the JSON events of the answer."""
        return end_marker(self.response.content) if self.response else ""

    @property
    def is_marker(self) -> bool:
        """Whether the marker was taken for the reply, although the events have texts."""
        if self.attempt.has_path or not self.marker or self.text.strip() != self.marker.strip():
            return False
        return any(text.candidate for text in self.texts)

    def streamed(self) -> bool:
        """Whether the reply came in pieces. One piece of a known length is a whole answer."""
        pieces = sum(bool(delta.content) and not delta.whole for delta in self.deltas)
        if self.response is not None and "content-length" in self.response.headers:
            return pieces > 1
        return pieces > 0


@struct(frozen=True, slots=True)
class ChatId:
    """The id that a service seems to give a chat."""

    path: str  # in an answer
    works: bool = False  # the service was seen to go on with the chat when it got the id back

    @property
    def name(self) -> str:
        return names_of(self.path)[-1]


def attempts(address: str, shapes: Mapping[str, MappedShape]) -> list[Attempt]:
    """The ways to ask, in order: shapes whose path this is, shapes below it, any chat URL, the others.

    A shape whose path needs an id that the address does not have is left out.
    """
    ranked = [(3 if httpx.URL(address).path.strip("/") else 6, Attempt(address))]
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
            yield -len(known), Attempt(address, name, table)  # the longest path first
            return
        if known.startswith(f"{path}/") and not slots:
            below = str(httpx.URL(address).copy_with(path=known))
            yield 2, Attempt(below, name, table)
            return
    if not path and set(slots) - {"{model}", "{user}", "{session}"}:
        return
    yield 4 if shape_path else 5, Attempt(address, name, table)


def with_reply(attempt: Attempt, path: str, marker: str = "") -> Attempt:
    """The same request, with the reply at another place. Its stream is not tried yet; the marker may end it."""
    known: JSONObject = attempt.table or {"request": ANY_REQUEST}
    if attempt.name:
        known = dict(known_shapes()[attempt.name].table)
    table = {name: value for name, value in known.items() if name in REQUEST_SETTINGS}
    table["reply"] = path
    table["stream"] = {}
    if isinstance(table.get("request"), dict):
        asks = known.get("stream", {}).get("request", {})
        table["stream"] = {"request": {**asks, "stream": True}}
    return with_end(Attempt(attempt.url, "", table, attempt.names), marker)


def with_end(attempt: Attempt, marker: str) -> Attempt:
    """The same mapping with the marker that ends its streams, if the server needs to be told."""
    stream = attempt.table.get("stream", {})
    if not marker or "done" in stream:
        return attempt
    ended = replace(
        attempt,
        table={**attempt.table, "stream": {**stream, "done": f". = {marker}"}},
    )
    if takes_end(attempt, marker) or not takes_end(ended, marker):
        return attempt
    return ended


def takes_end(attempt: Attempt, marker: str) -> bool:
    """Whether a stream of this mapping may end with a marker."""
    try:
        deltas = attempt.shape().reader()("", marker.encode())
    except (NoReplyFound, ValueError):
        return False
    return not any(delta.content for delta in deltas)


def without_leftovers(attempt: Attempt, path: str, marker: str = "") -> Attempt | None:
    """Like `with_reply`, with those members alone that contain the conversation; None if these are all.

    The other members belong to the product whose shape was tried.
    """
    whole = with_reply(attempt, path, marker)
    request = whole.table.get("request")
    needed = conversation_members(request)
    if not attempt.name or not isinstance(request, dict) or needed in (None, request):
        return None
    table = {"request": needed, "reply": path, "stream": {"request": {"stream": True}}}
    return with_end(Attempt(attempt.url, "", table), marker)


def conversation_members(template: object) -> object:
    """The parts of a template that contain a placeholder of the conversation; None if there are none."""
    if isinstance(template, dict):
        members = {name: conversation_members(value) for name, value in template.items()}
        return {name: value for name, value in members.items() if value is not None} or None
    if isinstance(template, list):
        return template if any(map(conversation_members, template)) else None
    return template if CONVERSATION.search(str(template)) else None


def with_extra_field(attempt: Attempt, name: str, value: str) -> Attempt | None:
    """The same request with one more field; None if its body has no fields."""
    setting = PLACES[attempt.place]
    template = attempt.table.get(setting)
    if not isinstance(template, dict):
        return None
    return replace(attempt, table={**attempt.table, setting: {**template, name: value}})


def with_fields(attempt: Attempt, fields: list[Field]) -> Attempt | None:
    """A request with the fields that an error names, and those of earlier errors; None if nothing is new."""
    merged = {**attempt.fields, **{field.path: field for field in fields}}
    if merged == attempt.fields:
        return None
    places = {field.place for field in merged.values() if field.place}
    place = places.pop() if len(places) == 1 else attempt.place
    if attempt.place == "form" and place == "body":  # a form is a body, too
        place = "form"
    return at_place(attempt.url, merged, place, attempt.table.get("method", "POST"))


def at_place(
    address: str,
    fields: Mapping[tuple[str, ...], Field],
    place: str,
    method: str,
) -> Attempt:
    """A request with these fields in its body, its query or its form."""
    template = request_of(fields) if place == "body" else flat_request_of(fields)
    table: JSONObject = {PLACES[place]: template}
    if place == "query":
        table["method"] = method
    return Attempt(address, "", table, fields=fields)


def at_other_places(attempt: Attempt) -> list[Attempt]:
    """The fields of errors in a form, and in the query of a GET request, where a body with them is refused."""
    if not attempt.fields or attempt.place != "body":
        return []
    return [at_place(attempt.url, attempt.fields, place, "GET") for place in ("form", "query")]


def with_names(address: str, place: str, names: tuple[str, ...] = USUAL_NAMES) -> Attempt:
    """The prompt under several names at once. `place` is body, query or form; a query is sent with GET."""
    table: JSONObject = {PLACES[place]: dict.fromkeys(names, "{prompt}")}
    if place == "query":
        table["method"] = "GET"
    return Attempt(address, "", table, names)
