"""Shapes: how a chat endpoint is asked, and where its answer is. All of that is data: shapes.toml, or a user's TOML.

Takes the plain types from backends; knows no HTTP, and reads no file but shapes.toml. Chats, JSON values
and events come in, request bodies and Deltas go out. Settings, templates, paths and conditions are explained at the top
of shapes.toml.
"""

import pathlib
import re
import tomllib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import uuid4

import orjson

from rewrap.types import APIError, ChatRequest, Delta, Reader, UpstreamRejection, dumps, text_of
from rewrap.upstream.framing import TEXT
from rewrap.urls import is_header

Table = Mapping[str, Any]
Path = tuple[str | int | None, ...]  # None is `[]`
Condition = Callable[[str, Any], bool]  # (name of the SSE event, its data) -> fulfilled?

ABSENT: Any = object()
FRAMINGS, MODES = ("auto", "json", "sse", "ndjson", "text"), ("delta", "last", "message")
SYSTEM = ("system", "developer")
NOT_SENT = {"metadata", "store", "session", "n"}  # as part of {chat}; n: a shape reads one choice
SERVED = {
    "model",
    "messages",
    "stream",
    "stream_options",
    "user",
    "metadata",
    "store",
    "session",
}  # never "dropped"
HARMLESS = {
    "n": 1,
    "logprobs": False,
    "response_format": {"type": "text"},
    "modalities": ["text"],
}  # as if not sent
ALIASES = (("max_tokens", "max_completion_tokens"), ("user", "safety_identifier"))
WORDS = re.findall(  # what a template may name: parts of the conversation, then parameters
    r"\w+",
    "prompt system messages dialog history turns conversation session chat nothing model stream stop user session_id"
    " conversation_id temperature top_p top_k min_p typical_p n max_tokens max_completion_tokens seed presence_penalty"
    " frequency_penalty repetition_penalty logit_bias logprobs top_logprobs tools tool_choice parallel_tool_calls"
    " response_format functions function_call reasoning_effort verbosity metadata store service_tier prediction"
    " modalities audio web_search_options safety_identifier prompt_cache_key keep_alive",
)
FINISH = [  # what upstreams call the end of a reply, and OpenAI's word for it; anything else is "stop"
    (re.compile("length|.*max_tokens|limit|.*_exceeded"), "length"),
    (re.compile("tool_calls?|tool_use|function_call"), "tool_calls"),
    (
        re.compile(
            "content_filter|.*safety|recitation|blocklist|prohibited.*|spii|refusal|.*toxic"
        ),
        "content_filter",
    ),
]
# The settings that a table may have: paths, all that tells of an answer, of a stream, of a shape.
PATHS = {"reply", "reasoning", "tool_calls", "logprobs", "finish", "usage", "error", "status"}
ANSWER = PATHS | {"statuses", "fails", "join"}
STREAM = ANSWER | {"framing", "path", "headers", "request", "keep", "mode", "done", "ends", "final"}
TABLE = ANSWER | {
    "about",
    "like",
    "path",
    "key",
    "headers",
    "request",
    "omit",
    "message",
    "roles",
    "turn",
    "stream",
}
REQUEST = {"messages": "{messages}", "temperature": "{temperature}"}  # of a shape that does not say
MESSAGE = {"role": "{role}", "content": "{content}"}


class ShapeError(ValueError):
    """A shape, template, path or URL that cannot be used; the text says where."""


def fill(tree: Any, values: Table, where: str) -> Any:
    """Fill a template. An absent value leaves out its member, and the object or array that is empty then."""
    if isinstance(tree, Mapping):
        full = {
            k: v for k, x in tree.items() if (v := fill(x, values, f"{where}.{k}")) is not ABSENT
        }
        return full if full or not tree else ABSENT
    if isinstance(tree, list):
        items = [
            v for i, x in enumerate(tree) if (v := fill(x, values, f"{where}[{i}]")) is not ABSENT
        ]
        return items if items or not tree else ABSENT
    return fill_text(tree, values, where) if isinstance(tree, str) else tree


def fill_text(text: str, values: Table, where: str) -> Any:
    """A text with its placeholders filled. One that stands alone keeps the type of its value.

    With {"top_k": 5, "seed": None}: "{top_k}" -> 5, "k={top_k}, {seed|any} seed" -> "k=5, any seed", "{seed}" -> ABSENT
    """
    found = []
    for literal, slot, default, single in parsed(text):
        if single:
            raise ShapeError(
                f"{where}: a single {single!r} in {text!r}; two of them mean the character itself"
            )
        if slot and slot not in values and not slot.startswith("param."):
            raise ShapeError(
                f"{where}: no placeholder is called {{{slot}}}; known are: {', '.join(sorted(values))}"
            )
        value = values.get(slot.removeprefix("param.")) if slot else literal
        found.append(default if value is None else value)
    if len(found) == 1:
        return found[0]
    texts = ("" if value is ABSENT else value for value in found)
    return "".join(value if isinstance(value, str) else dumps(value).decode() for value in texts)


PARTS = re.compile(
    r"(?P<literal>[^{}]+)|(?P<doubled>\{\{|\}\})|\{ *(?P<slot>[^{}|]+?) *(?:\|(?P<default>[^{}]*))?\}|(?P<single>[{}])"
)


@lru_cache(1000)
def parsed(text: str) -> list[tuple[str, str, Any, str]]:
    """The parts of a text as (literal, slot, its default, brace that stands alone), empty but for what it is.

    "at {top_k | 5}" -> [("at ", "", ABSENT, ""), ("", "top_k", 5, "")]
    """
    return [
        (literal or doubled[:1], slot, json_value(default.strip()) if default else ABSENT, single)
        for literal, doubled, slot, default, single in PARTS.findall(text)
    ]


def json_value(text: str) -> Any:
    """The JSON value that a text is, or else the text itself."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def paths(text: Any, where: str) -> list[Path]:
    """Compile `a.b[0].c[] | d[-1] | .` (the value itself): alternatives."""
    return [steps(path, where) for path in alternatives(text, where)]


def alternatives(text: Any, where: str) -> list[str]:
    if not isinstance(text, str):
        raise ShapeError(
            f"{where}: a string such as 'choices[0].message.content' is expected, not {text!r}"
        )
    return [one.strip() for one in text.split("|")]


# `[0]`, `[]`, or a name; before a name stands a dot, but not at the start.
STEP = re.compile(r"\[(?P<index>-?\d+)\]|\[\]|(?:\A|(?!\A)\.)(?P<name>[^\s.\[\]{}]+)")


def steps(path: str, where: str) -> Path:
    if path == ".":
        return ()
    found: list[str | int | None] = []
    at = 0
    while at < len(path) or not path:
        match = STEP.match(path, at)
        if not match:
            raise ShapeError(
                f"{where}: {path!r} cannot be read at {path[at:]!r}; a path is like choices[0].message"
            )
        found.append(int(match["index"]) if match["index"] else match["name"])
        at = match.end()
    return tuple(found)


def find(value: Any, path: Path) -> Any:
    """The value at a path, None if there is none; `[]` gives the array of all that is found in its items."""
    for i, step in enumerate(path):
        if step is None:
            items = [find(item, path[i + 1 :]) for item in value] if isinstance(value, list) else []
            flat = [x for item in items for x in (item or [] if None in path[i + 1 :] else [item])]
            return [item for item in flat if item is not None] or None
        if isinstance(step, int):
            value = (
                value[step]
                if isinstance(value, list) and -len(value) <= step < len(value)
                else None
            )
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value


def first(value: Any, places: list[Path]) -> Any:
    """What stands at the first of these paths that leads anywhere."""
    return next((found for path in places if (found := find(value, path)) is not None), None)


def text_at(value: Any, places: list[Path], join: str = "") -> str | None:
    """The first text that is not empty, else an empty one if there is one; the texts of an array are joined.

    A number is a text, too: some upstreams stream the digits of one as JSON numbers.
    """
    best = None
    for path in places:
        found = find(value, path)
        found = orjson.dumps(found).decode() if type(found) in (int, float) else found
        if isinstance(found, list) and all(isinstance(item, str) for item in found):
            found = join.join(found)
        best = found if isinstance(found, str) and not best else best
    return best


def condition(text: Any, where: str) -> Condition:
    """Compile `path`, `path=value`, `@event` or `[DONE]`; several with `|` between them: any."""
    tests = [one_condition(one, where) for one in alternatives(text, where)]
    return lambda event, data: any(test(event, data) for test in tests)


def one_condition(text: str, where: str) -> Condition:
    if text == "[DONE]" or text.startswith("@"):
        return lambda event, data: bool(data == text or event == text[1:])
    left, equals, right = (part.strip() for part in text.partition("="))
    path, wanted = steps(left, where), json_value(right)
    return lambda _, data: bool(find(data, path) == wanted if equals else find(data, path))


class ReplyPaths:
    """Where an answer, or an event of a stream, has what: the compiled paths of one table."""

    def __init__(self, table: Table, where: str) -> None:
        def at(key: str, default: str | None = None) -> list[Path]:
            return [] if (text := table.get(key, default)) is None else paths(text, where + key)

        self.reply, self.reasoning, self.finish = at("reply", "."), at("reasoning"), at("finish")
        self.error, self.status = at("error", "error.message | error"), at("status")
        self.calls, self.logprobs = at("tool_calls"), at("logprobs")
        self.statuses, self.join = table.get("statuses", {}), table.get("join", "")
        self.fails = condition(table["fails"], f"{where}fails") if "fails" in table else None
        usage = table.get("usage")
        sums = usage if isinstance(usage, Mapping) else {}
        checked(sums, {"prompt", "completion", "total", "cached", "reasoning"}, f"{where}usage.")
        self.sums = {
            k: [paths(term, f"{where}usage.{k}") for term in str(v).split("+")]
            for k, v in sums.items()
        }
        self.usage = [] if sums else at("usage")

    def failure(self, event: str, data: Any) -> UpstreamRejection | None:
        """The error that came with HTTP 200, or in a stream, if this is one; 502 where it has no status of its own."""
        found = first(data, self.error)
        if not (self.fails(event, data) if self.fails else found):
            return None
        status = first(data, self.status)
        status = self.statuses.get(status, status) if isinstance(status, str | int) else None
        text = text_at(data, self.error, "; ") or f"error: {orjson.dumps(found).decode()}"
        return UpstreamRejection(
            status if type(status) is int and 400 <= status < 600 else 502, text
        )

    def counts(self, data: Any) -> dict[str, Any]:
        """The token counts that stand here, by OpenAI's names; a sum is that of the terms there are."""
        if isinstance(given := first(data, self.usage), dict):
            return {
                key: value
                for key, value in given.items()
                if "tokens" in key and isinstance(value, int | dict)
            }
        found = {
            key: [n for term in terms if type(n := first(data, term)) is int]
            for key, terms in self.sums.items()
        }
        counts: dict[str, Any] = {
            f"{key}_tokens": sum(numbers) for key, numbers in found.items() if numbers
        }
        for kind, side in (("cached_tokens", "prompt"), ("reasoning_tokens", "completion")):
            if kind in counts:
                counts[f"{side}_tokens_details"] = {kind: counts.pop(kind)}
        return counts

    def reason(self, data: Any) -> str:
        """Why the reply ends, in OpenAI's words; "" if that is not said."""
        said = first(data, self.finish)
        return (
            next((ours for theirs, ours in FINISH if theirs.fullmatch(str(said).lower())), "stop")
            if said
            else ""
        )

    def delta(self, data: Any, text: str, usage: dict[str, Any], kept: bool = True) -> Delta:
        """The text, and what else is said here but the reason to end; `kept`: reasoning, too."""
        if "total_tokens" not in usage and {"prompt_tokens", "completion_tokens"} <= usage.keys():
            usage = usage | {"total_tokens": usage["prompt_tokens"] + usage["completion_tokens"]}
        fields: dict[str, Any] = {}
        if kept and (
            said := text_at(data, self.reasoning)
        ):  # clients look for it under one name or the other
            fields = {"reasoning_content": said, "reasoning": said}
        calls, logprobs = first(data, self.calls), first(data, self.logprobs)
        if isinstance(calls, list) and calls:
            fields["tool_calls"] = calls
        if isinstance(data, dict):
            fields |= {k: data[k] for k in ("figure", "figures") if data.get(k)}
        logprobs = logprobs if isinstance(logprobs, dict) else None
        return Delta(text, fields=fields or None, logprobs=logprobs, usage=dict(usage) or None)


class MappedShape:
    """One shape (backends.Shape), compiled from a checked table.

    Raises ShapeError, at the start and not with a request, for a table or a URL that cannot be used.
    """

    def __init__(self, table: Table, name: str) -> None:
        stream = checked(table.get("stream", {}), STREAM, f"{name}.stream.")
        if "reply" not in table:
            raise ShapeError(
                f"{name}.reply: where is the text of an answer? A path such as 'data.text', or '.'"
            )
        self.table, self.name, self.streams = table, name, "stream" in table
        framing, self.mode = stream.get("framing", "auto"), stream.get("mode", "delta")
        if framing not in FRAMINGS or self.mode not in MODES:
            raise ShapeError(
                f"{name}.stream: no framing {framing!r} with mode {self.mode!r} is known"
            )
        self.framing = (
            "auto" if framing == "json" else framing
        )  # JSON that comes whole is found out anyway
        self.path, self.stream_path = (
            table.get("path", ""),
            stream.get("path", table.get("path", "")),
        )
        self.body, self.omit = table.get("request", REQUEST), table.get("omit", {})
        self.stream_body = (
            merged(self.body, stream["request"]) if "request" in stream else self.body
        )
        self.message, self.turn = table.get("message", MESSAGE), table.get("turn", {})
        check_template(self.body, WORDS, f"{name}.request")
        check_template(self.stream_body, WORDS, f"{name}.stream.request")
        check_template(self.message, ["role", "content"], f"{name}.message")
        check_template(self.turn, ["prompt", "reply"], f"{name}.turn")
        # The names of all placeholders; doubled braces are none.
        braces = re.sub(
            r"\{\{|\}\}", "", orjson.dumps([self.path, self.body, self.stream_body]).decode()
        )
        self.used = set(re.findall(r"\{ *(?:param\.)?(\w+)", braces))
        self.whole = ReplyPaths(table, f"{name}.")
        self.pieces = ReplyPaths(
            {**{key: table[key] for key in ANSWER & table.keys()}, **stream}, f"{name}.stream."
        )
        self.keep, self.done, self.ends = (
            condition(stream[key], f"{name}.stream.{key}") if key in stream else None
            for key in ("keep", "done", "ends")
        )
        self.final = paths(stream["final"], f"{name}.stream.final") if "final" in stream else []

    def check(self, url: str) -> None:
        for stream in (False, True):
            self.url(url, ChatRequest("m", [], {"user": "u"}, stream=stream))

    def url(self, url: str, chat: ChatRequest) -> str:
        """Where to send this chat: a bare address gets the shape's path; {model}, {user}, {session} are filled.

        kserve, model m: "http://h" -> "http://h/v2/models/m/generate"; tgi, as a stream: "http://h/x/generate" ->
        "http://h/x/generate_stream". Raises APIError: 400 where a name in the request cannot stand in a URL.
        """
        parts, values = urlsplit(url), self.values(chat, {"session"})
        path, _, query = (self.stream_path if chat.stream else self.path).partition("?")
        ending = self.path.partition("?")[0].rpartition("}")[2]
        bare = not parts.path.strip("/")
        if not bare and parts.path.endswith(
            ending
        ):  # it is whole; a stream may have another ending
            path = parts.path.removesuffix(ending) + path.rpartition("}")[2]
        elif not bare and not path.startswith(
            f"{parts.path.rstrip('/')}/"
        ):  # an address of its own
            path, query = parts.path, ""
        slots = set(re.findall(r"\{(\w+)\}", path))
        if unknown := sorted(slots - {"model", "user", "session"}):
            raise ShapeError(
                f"{self.name}: the URL must be whole, with its own {unknown[0]}: {path}"
            )
        for name in slots:
            if any(part in ("", ".", "..") for part in str(values[name] or "").split("/")):
                raise APIError(400, f"The {name} of this request cannot stand in a URL.")
        safe = {
            n: quote(str(values[n]), "@:/" if n == "model" else "@:")
            for n in ("model", "user", "session")
        }
        query = "&".join(filter(None, (parts.query, query)))
        return urlunsplit(
            (parts.scheme, parts.netloc, str(fill(path or "/", safe, "url")), query, "")
        )

    def headers(self, key: str, stream: bool) -> dict[str, str]:
        """The shape's own headers, and the key in the one where this product wants it."""
        name = self.table.get("key", "authorization")
        own = self.table.get("stream", {}).get("headers", {}) if stream else {}
        keyed = {name: f"Bearer {key}" if name == "authorization" else key} if key else {}
        return {**self.table.get("headers", {}), **own, **keyed}

    def payload(self, chat: ChatRequest) -> Any:
        """The JSON body to send."""
        body = fill(
            self.stream_body if chat.stream else self.body, self.values(chat, self.used), self.name
        )
        return {} if body is ABSENT else body

    def values(self, chat: ChatRequest, used: set[str]) -> dict[str, Any]:
        """What each placeholder stands for in this chat; the forms of the conversation only where they are used."""
        sent = {
            **chat.payload,
            "model": chat.model,
            "messages": chat.messages,
            "stream": chat.stream,
        }
        values = {**dict.fromkeys(WORDS), **sent, "stream": chat.stream and self.streams}
        for group in ALIASES:
            values |= dict.fromkeys(
                group, next((values[name] for name in group if values[name] is not None), None)
            )
        values["stop"] = [values["stop"]] if isinstance(values["stop"], str) else values["stop"]
        values |= {name: None for name, value in self.omit.items() if values.get(name) == value}
        system, dialog, at = spoken(chat)
        pairs, rest = turns(dialog[:at])
        prompt = (rest if "turns" in used else []) + [text for _, text in dialog[at : at + 1]]
        forms: dict[str, Callable[[], Any]] = {
            "prompt": lambda: "\n".join(prompt),
            "system": lambda: system or None,
            "messages": lambda: self.written([("system", system)] * bool(system) + dialog),
            "dialog": lambda: self.written(dialog),
            "history": lambda: self.written(dialog[:at]),
            "turns": lambda: [fill(self.turn, {"prompt": p, "reply": r}, "turn") for p, r in pairs],
            "conversation": lambda: transcript("" if "system" in used else system, dialog),
            # Strangers must not meet in one session: a chat without a name for it has one of its own.
            "session": lambda: session_of(chat) or uuid4().hex,
            "chat": lambda: {key: value for key, value in sent.items() if key not in NOT_SENT},
            "nothing": lambda: None,
        }
        return values | {name: form() for name, form in forms.items() if name in used}

    def written(self, dialog: list[tuple[str, str]]) -> list[Any]:
        roles = self.table.get("roles", {})
        return [
            fill(self.message, {"role": roles.get(role, role), "content": text}, "")
            for role, text in dialog
        ]

    def dropped(self, chat: ChatRequest) -> list[str]:
        """What the client sent that does not go along: names of parameters, and parts of the messages."""
        if "chat" in self.used:  # then all goes along, but for the number of choices
            return ["n"] if "n" not in self.used and chat.payload.get("n") not in (None, 1) else []
        sent = (
            self.used
            | SERVED
            | ({*SESSIONS} if "session" in self.used else set())
            | {name for group in ALIASES if self.used & set(group) for name in group}
        )
        lost = [
            k
            for k, v in chat.payload.items()
            if not (v is None or k in sent or HARMLESS.get(k) == v)
        ]
        (system, dialog, at), told = (
            spoken(chat),
            self.used & {"messages", "conversation", "dialog"},
        )
        lost += ["messages.system"] * bool(
            system and not self.used & {"messages", "conversation", "system"}
        )
        known = (
            told
            or self.used & {"history", "turns"}
            or ("session" in self.used and session_of(chat))
        )
        lost += ["messages.history"] * bool(
            (at and not known) or (at < len(dialog) - 1 and not told)
        )
        more = {
            str(k)
            for m in chat.messages
            for k, v in m.items()
            if v and k not in ("role", "content")
        }
        contents = [content for m in chat.messages if isinstance(content := m.get("content"), list)]
        more |= {
            str(part.get("type"))
            for parts in contents
            for part in parts
            if not isinstance(part.get("text"), str)
        }
        return lost + [f"messages.{name}" for name in sorted(more)]

    def answer(self, value: Any) -> list[Delta]:
        """What a whole answer says. Raises Refused for an error, or if it has neither a text nor a reason to end."""
        if failed := self.whole.failure("", value):
            raise failed
        text = text_at(value, self.whole.reply, self.whole.join)
        delta = self.whole.delta(value, text or "", self.whole.counts(value))
        reason = self.whole.reason(value) or (
            "tool_calls" if "tool_calls" in (delta.fields or {}) else ""
        )
        if text is None and not reason:
            raise UpstreamRejection(
                502, f"the upstream's answer has no text at {self.table['reply']!r}"
            )
        delta.finish_reason, delta.whole = reason or "stop", True
        return [delta]

    def rejection(self, status: int, value: Any) -> UpstreamRejection:
        """A 4xx or 5xx, with the upstream's own words if they can be found in its body."""
        failed = self.whole.failure("", value)
        return UpstreamRejection(
            status, failed.message if failed else text_at(value, WORDS_OF_REFUSAL, "; ") or ""
        )

    def reader(self) -> "Reader":
        return MappedReader(self)


class MappedReader:
    """One streamed reply (backends.Reader), event by event.

    Some upstreams give a reason to end with every event: the last one counts, so it is in `finish` and in no Delta.
    """

    def __init__(self, shape: MappedShape) -> None:
        self.shape, self.given, self.text, self.usage = shape, False, "", dict[str, Any]()
        self.done, self.complete, self.finish = False, not (shape.done or shape.ends), ""

    def __call__(self, name: str, data: bytes) -> list[Delta]:
        """`name`: of an SSE event, or "". `data`: its data, a line of NDJSON, or a piece of text. Raises Refused."""
        shape, places, said = self.shape, self.shape.pieces, data.decode("utf-8", "replace")
        if shape.framing == "text" or (name == TEXT and () in places.reply):
            return [Delta(said)]
        value = json_value(said)
        value = (
            value if isinstance(value, dict | list | str) else said
        )  # a bare 42 or true is a piece of text
        if failed := places.failure(name, value):
            raise failed
        self.done = value == "[DONE]" or bool(shape.done and shape.done(name, value))
        last = self.done or bool(shape.ends and shape.ends(name, value))
        kept = value != "[DONE]" and (shape.keep is None or shape.keep(name, value))
        if kept and not self.done and value and isinstance(value, str) and () not in places.reply:
            raise UpstreamRejection(502, "an event of the upstream is not JSON")
        text = self.new(text_at(value, places.reply, places.join) or "") if kept else ""
        if last and not self.given and not text:
            text = text_at(value, shape.final, places.join) or ""
        self.given = self.given or bool(text)
        counts = places.counts(value)
        self.usage |= counts
        delta, reason = (
            places.delta(value, text, self.usage if counts else {}, kept),
            places.reason(value),
        )
        self.finish = (
            reason or self.finish or ("tool_calls" if "tool_calls" in (delta.fields or {}) else "")
        )
        self.complete = self.complete or last or bool(reason)
        return [delta]

    def new(self, text: str) -> str:
        """What is new in this text, in the shape's mode: delta, last (all of it so far), message (one of several)."""
        if self.shape.mode == "last":
            text, self.text = text[len(self.text) :], max(text, self.text, key=len)
        return (
            self.shape.pieces.join + text
            if self.shape.mode == "message" and text and self.given
            else text
        )


WORDS_OF_REFUSAL = paths(
    "errors[0].message | detail | detail[].msg | message | [0].error.message", ""
)


def session_of(chat: ChatRequest) -> Any:
    """What the client calls the session, or else the stored chat that goes on; an endpoint may remember it by that."""
    known = {"session": chat.session or None, **chat.payload}
    return next((known[name] for name in SESSIONS if known.get(name)), None)


SESSIONS = ("session_id", "conversation_id", "session", "user")


def spoken(chat: ChatRequest) -> tuple[str, list[tuple[str, str]], int]:
    """A chat's system text, its other messages as (role, text), and which of them is the prompt: the user's last."""
    pairs = [(str(m.get("role", "user")), text_of(m.get("content"))) for m in chat.messages]
    dialog = [
        (role, text) for role, text in pairs if role not in SYSTEM and (text or role != "assistant")
    ]
    at = max(
        (i for i, (role, _) in enumerate(dialog) if role == "user"), default=max(len(dialog) - 1, 0)
    )
    system = "\n\n".join(text for role, text in pairs if role in SYSTEM)
    return (system, dialog, at) if dialog else ("", [("user", system)] * bool(system), 0)


def transcript(system: str, dialog: list[tuple[str, str]]) -> str:
    """A conversation as one text that the assistant is to go on with; a prompt that stands alone stays as it is."""
    lines = [*(f"{role.capitalize()}: {text}" for role, text in dialog), "Assistant:"]
    said = "\n".join(lines) if len(dialog) > 1 else "".join(text for _, text in dialog)
    return "\n\n".join(filter(None, (system, said)))


def turns(history: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[str]]:
    """The history in pairs: what the user said, what the assistant replied; and what has had no reply."""
    found, said = list[tuple[str, str]](), list[str]()
    for role, text in history:
        if role == "assistant":
            found.append(("\n".join(said), text))
        said = [] if role == "assistant" else [*said, text]
    return found, said


TEXTS = {"about", "like", "path", "key", "join"}
TABLES = {
    "headers": str,
    "roles": str,
    "statuses": int,
    "message": object,
    "turn": object,
    "omit": object,
}
VALUES = {str: " of strings", int: " of integers", object: ""}  # of these tables


def checked(table: Any, known: set[str], where: str) -> Table:
    """A table with none but known settings, each of its type; paths and templates are for others to check."""
    if not isinstance(table, Mapping):
        raise ShapeError(f"{where.rstrip('.')}: a table is expected, not {table!r}")
    if unknown := sorted(table.keys() - known):
        raise ShapeError(
            f"{where}{unknown[0]}: no such setting; known are: {', '.join(sorted(known))}"
        )
    for key, value in table.items():
        if key in TEXTS and not isinstance(value, str):
            raise ShapeError(f"{where}{key}: a string is expected, not {value!r}")
        kind = TABLES.get(key)
        if kind and not (
            isinstance(value, Mapping) and all(isinstance(one, kind) for one in value.values())
        ):
            raise ShapeError(
                f"{where}{key}: a table{VALUES[kind]} is expected"
            )  # what stands there may be a secret
    for name, value in [*table.get("headers", {}).items(), (table.get("key", "authorization"), "")]:
        if not is_header(name, value):
            raise ShapeError(f"{where.rstrip('.')}: {name!r} is no header that can be sent")
    return table


def check_template(tree: Any, known: list[str], where: str) -> None:
    """Raises ShapeError for a template that cannot be filled, or not be sent."""
    fill(tree, dict.fromkeys(known), where)
    if odd := [name for name in names(tree) if re.search(r"\{[^{}]*\}", name)]:
        raise ShapeError(f"{where}: the name of a member is no template: {odd[0]!r}")
    try:
        orjson.dumps(tree)
    except TypeError as exc:
        raise ShapeError(f"{where}: {exc}") from exc


def names(tree: Any) -> list[str]:
    """The names of the members in a template, those further down too."""
    inner = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ()
    return [
        *(tree if isinstance(tree, Mapping) else ()),
        *(name for one in inner for name in names(one)),
    ]


def merged(below: Any, above: Any) -> Any:
    """Two tables as one; what both have is as `above` has it."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}


def compiled(table: Table, name: str, known: Mapping[str, MappedShape]) -> MappedShape:
    """Compile one table; `like` names a known shape that it goes on from. Raises ShapeError, which says where."""
    if "like" in checked(table, TABLE, f"{name}."):
        if (like := table["like"]) not in known:
            raise ShapeError(
                f"{name}.like: no shape is called {like!r}; known are: {', '.join(sorted(known))}"
            )
        table = merged(
            known[like].table, {key: value for key, value in table.items() if key != "like"}
        )
    return MappedShape(table, name)


def load_shapes(text: str) -> dict[str, MappedShape]:
    """The shapes of a TOML text, one to a table; a `like` refers to one that stands above it."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ShapeError(f"not TOML: {exc}") from exc
    shapes: dict[str, MappedShape] = {}
    for name, table in tables.items():
        shapes[name] = compiled(table, name, shapes)
    return shapes


@lru_cache
def known_shapes() -> dict[str, MappedShape]:
    """The shapes of shapes.toml."""
    return load_shapes(pathlib.Path(__file__).with_name("shapes.toml").read_text(encoding="utf-8"))


def shape_from(table: Table, where: str) -> MappedShape:
    """The shape of a table of one's own. Raises ShapeError."""
    return compiled(table, where, known_shapes())


def shape_named(name: str, where: str) -> MappedShape:
    """A shape by its name. Raises ShapeError."""
    if name not in known_shapes():
        raise ShapeError(
            f"{where}: no shape is called {name!r}; known are: {', '.join(sorted(known_shapes()))}"
        )
    return known_shapes()[name]
