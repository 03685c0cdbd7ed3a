"""The requests of a shape: method, URL, headers and body, filled from one chat.

Takes ChatRequests, gives Outgoing requests. Knows no HTTP client. Values of a client are escaped
wherever they stand: in a path, a query, a form or a header.
"""

import re
from collections.abc import Mapping
from functools import partial
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from rewrap.ids import SESSION_NAMES
from rewrap.regex import regex
from rewrap.threads import encoded
from rewrap.types import APIError, ChatRequest, JSONObject, Outgoing
from rewrap.upstream.conversation import conversation_of, session_of
from rewrap.upstream.forms import FORMS
from rewrap.upstream.messages import part_types
from rewrap.upstream.placeholders import ALIASES, NAMES, ConversationForms, placeholder_values
from rewrap.upstream.sessions import SessionMemory
from rewrap.upstream.tables import PLACEHOLDER, ShapeError, Table, merged_tables, table_in, text_in
from rewrap.upstream.template import ABSENT, Template, Values, text_form

DEFAULT_REQUEST = {"messages": "{messages}", "temperature": "{temperature}"}
DEFAULT_MESSAGE = {"role": "{role}", "content": "{content}"}
METHODS = ("POST", "GET", "PUT")
JSON_TYPE = "application/json"
FORM_TYPE = "application/x-www-form-urlencoded"
BRACE = regex(r"[{}]")
IN_URL = regex(r"\{(\w+(?:\.\w+)*)\}")
SAFE_IN_HEADER = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~ "

# Parameters that are never reported as dropped: they are used here, or have no effect with these
# values.
SERVED_HERE = frozenset(
    ["model", "messages", "stream", "stream_options", "user", "metadata", "store", "session"]
)
WITHOUT_EFFECT = {
    "n": 1,
    "logprobs": False,
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "modalities": ["text"],
}


class MappedRequest:
    """How one shape is asked, compiled from its table. See `types.Shape` for the methods."""

    def __init__(self, table: Table, stream: Table, name: str) -> None:
        """Raises ShapeError for a table that cannot be used."""
        self.table = table
        self.stream_table = stream
        self.name = name
        self.streams = "stream" in table
        self.path = text_in(table, "path")
        self.stream_path = text_in(stream, "path", self.path)
        self.omit = table_in(table, "omit")
        self.method = checked_method(table, name)
        self.sessions = SessionMemory(table_in(table, "session"), name)
        self.compile_templates()

    def compile_templates(self) -> None:
        name = self.name
        self.content_type = content_type(self.table, self.method)
        default = DEFAULT_REQUEST if self.content_type == JSON_TYPE else {}
        self.bodies = self.both("form" if self.content_type == FORM_TYPE else "request", default)
        self.queries = self.both("query", {})
        headers = dict(table_in(self.table, "headers"))
        stream_headers = headers | dict(table_in(self.stream_table, "headers"))
        self.fixed_headers = (fixed_headers(headers), fixed_headers(stream_headers))
        self.header_templates = (
            header_template(headers, name),
            header_template(stream_headers, name),
        )
        message = self.table.get("message", DEFAULT_MESSAGE)
        self.forms = ConversationForms(
            Template(message, ["role", "content"], f"{name}.message"),
            Template(table_in(self.table, "turn"), ["prompt", "reply"], f"{name}.turn"),
            table_in(self.table, "roles"),
        )
        templates = [*self.bodies, *self.queries, *self.header_templates]
        self.used = set(IN_URL.findall(self.path)).union(*[each.names for each in templates])
        self.product_forms = [FORMS[used] for used in sorted(self.used) if used in FORMS]
        self.taken = self.used.union(*[form.takes for form in self.product_forms])

    def both(self, setting: str, default: Mapping[str, object]) -> tuple[Template, Template]:
        """The template of a setting, and the one for streams."""
        whole = self.table.get(setting, default)
        stream = merged_tables(whole, self.stream_table.get(setting, whole))
        where = f"{self.name}.{setting}"
        stream_where = f"{self.name}.stream.{setting}"
        return Template(whole, NAMES, where), Template(stream, NAMES, stream_where)

    def check(self, url: str) -> None:
        for stream in (False, True):
            self.prepare(url, ChatRequest("m", [], {"user": "u"}, stream=stream, session="s"))

    def prepare(self, url: str, request: ChatRequest) -> Outgoing:
        """One request. Raises APIError 400 for a value that cannot stand in a path."""
        values = self.values(request, self.used.union(IN_URL.findall(url)))
        stream = request.stream
        return Outgoing(
            self.filled_url(url, stream, values),
            self.filled_headers(stream, values),
            self.filled_body(stream, values),
        )

    def url(self, url: str, request: ChatRequest) -> str:
        """The URL of one request, with its placeholders filled.

        An address without a path gets the shape's path:

        kserve, model m:   http://h             ->  http://h/v2/models/m/generate
        tgi, as a stream:  http://h/x/generate  ->  http://h/x/generate_stream
        """
        return self.prepare(url, request).url

    def payload(self, request: ChatRequest) -> object:
        """The body before it is written: a JSON value, or the fields of a form."""
        body = self.bodies[request.stream].fill(self.values(request, self.used))
        if body is ABSENT:
            return {}
        return body

    def headers(self, key: str, stream: bool) -> dict[str, str]:
        """The constant headers of all requests."""
        headers = dict(self.fixed_headers[stream])
        name = text_in(self.table, "key", "authorization")
        if key and name == "authorization":
            headers[name] = f"Bearer {key}"
        elif key:
            headers[name] = key
        return headers

    def values(self, request: ChatRequest, names: set[str]) -> JSONObject:
        values = placeholder_values(
            request, names, self.forms, omit=self.omit, streams=self.streams
        )
        if "session" in names and self.sessions.active:
            values["session"] = self.sessions.known(request)
        return values

    def filled_headers(self, stream: bool, values: Values) -> dict[str, str]:
        template = self.header_templates[stream]
        if not template.names:
            return {}
        headers = template.fill(values)
        if not isinstance(headers, dict):
            return {}
        return {name: escaped_header(text) for name, text in headers.items()}

    def filled_body(self, stream: bool, values: Values) -> bytes:
        if not self.content_type:
            return b""
        body = self.bodies[stream].fill(values)
        if self.content_type == FORM_TYPE:
            return form_encoded(body).encode()
        if body is ABSENT:
            return b"{}"
        return encoded(body)

    def filled_url(self, url: str, stream: bool, values: Values) -> str:
        path = self.path
        if stream:
            path = self.stream_path
        target, query = completed_path(url, path, self.path)
        target = IN_URL.sub(partial(self.path_value, target, values), target)
        brace = BRACE.search(target)
        if brace is not None:
            raise ShapeError(f"{self.name}: path: a single {brace[0]!r} in {target!r}")
        query = IN_URL.sub(partial(self.query_value, query, values), query)
        own_query = form_encoded(self.queries[stream].fill(values))
        parts = urlsplit(url)
        both = joined_queries(query, own_query)
        return urlunsplit((parts.scheme, parts.netloc, target or "/", both, ""))

    def path_value(self, path: str, values: Values, match: re.Match[str]) -> str:
        """A quoted value for a path. Raises APIError 400: none may lead to another path."""
        name = match[1]
        text = self.url_value(match, values, path)
        parts = text.split("/")
        safe = "@:"
        forbidden = [".", ".."]
        if name == "model":  # slashes are part of its name
            safe = "@:/"
            forbidden.append("")
        if not text or not set(parts).isdisjoint(forbidden):
            raise APIError(400, f"The {name} of this request cannot stand in a URL.")
        return quote(text, safe)

    def query_value(self, query: str, values: Values, match: re.Match[str]) -> str:
        return quote(self.url_value(match, values, query), "")

    def url_value(self, match: re.Match[str], values: Values, place: str) -> str:
        name = match[1].removeprefix("param.")
        if match[1] not in NAMES and name == match[1]:
            raise ShapeError(f"{self.name}: the URL must be whole, with its own {name}: {place}")
        value = values.get(name)
        if value is None:
            return ""
        return text_form(value)

    # The parts of a request that are not sent.

    def dropped(self, request: ChatRequest) -> list[str]:
        if "chat" in self.used:  # all parameters are sent, except the number of choices
            if request.payload.get("n") in (None, 1) or "n" in self.used:
                return []
            return ["n"]
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
        if not has_history and "session" in self.used:
            has_history = self.is_remembered(request)
        earlier_lost = talk.prompt_index > 0 and not has_history
        later_lost = talk.prompt_index < len(talk.dialog) - 1 and not whole
        if earlier_lost or later_lost:
            dropped.append("messages.history")
        return dropped

    def is_remembered(self, request: ChatRequest) -> bool:
        """Whether the upstream knows the earlier turns by the session."""
        if self.sessions.active:
            return bool(self.sessions.known(request))
        return bool(session_of(request))

    def dropped_members(self, request: ChatRequest) -> list[str]:
        if "messages.*" in self.taken:
            return []
        names = member_names(request) | part_types(request.messages)
        return sorted({f"messages.{name}" for name in names} - self.taken)


def checked_method(table: Table, name: str) -> str:
    method = text_in(table, "method", "POST").upper()
    if method not in METHODS:
        raise ShapeError(f"{name}.method: {', '.join(METHODS)} are known, not {method!r}")
    bodies = [setting for setting in ("request", "form") if setting in table]
    if len(bodies) > 1:
        raise ShapeError(f"{name}: request and form are two bodies")
    if bodies and method == "GET":
        raise ShapeError(f"{name}.{bodies[0]}: a GET request has no body: use query")
    return method


def content_type(table: Table, method: str) -> str:
    """The media type of the body; "" without a body."""
    if "form" in table:
        return FORM_TYPE
    if method == "GET" or ("query" in table and "request" not in table):
        return ""
    return JSON_TYPE


def is_fixed(text: object) -> bool:
    return PLACEHOLDER.search(str(text)) is None


def fixed_headers(headers: Mapping[str, object]) -> dict[str, str]:
    """The headers without placeholders."""
    return {name: str(text) for name, text in headers.items() if is_fixed(text)}


def header_template(headers: Mapping[str, object], name: str) -> Template:
    """The template of the headers with placeholders."""
    rest = {header: text for header, text in headers.items() if not is_fixed(text)}
    return Template(rest, NAMES, f"{name}.headers")


def escaped_header(value: object) -> str:
    """A value for a header: in percent encoding where it is not printable ASCII."""
    return quote(text_form(value), SAFE_IN_HEADER)


def form_encoded(fields: object) -> str:
    """The fields of a query or a form. A list is sent item by item, an object as JSON."""
    if not isinstance(fields, Mapping):
        return ""
    pairs: list[tuple[str, str]] = []
    for name, value in fields.items():
        items = value if isinstance(value, list) else [value]
        for item in items:
            if item is not None:
                pairs.append((name, text_form(item)))
    return urlencode(pairs, errors="replace")


def joined_queries(*queries: str) -> str:
    return "&".join([query for query in queries if query])


def completed_path(url: str, path: str, whole_path: str) -> tuple[str, str]:
    """The path and the query for a URL that may stop before a shape's `path`.

    `whole_path` is the path of requests without a stream: a URL that ends like it gets the ending
    of `path`.
    """
    parts = urlsplit(url)
    target, _, query = path.partition("?")
    both = joined_queries(parts.query, query)
    if not parts.path.strip("/"):
        return target, both
    ending = path_ending(whole_path.partition("?")[0])
    if parts.path.endswith(ending):
        return parts.path.removesuffix(ending) + path_ending(target), both
    if target.startswith(f"{parts.path.rstrip('/')}/"):
        return target, both
    return parts.path, parts.query  # an address of its own


def path_ending(path: str) -> str:
    """The part of a path after its last placeholder."""
    return path.rpartition("}")[2]


def member_names(request: ChatRequest) -> set[str]:
    """The members of messages beside role and content."""
    names: set[str] = set()
    for message in request.messages:
        names.update(str(name) for name, value in message.items() if value)
    return names - {"role", "content"}
