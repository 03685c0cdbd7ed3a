"""Shapes: how a chat endpoint is asked, and where its answer is. All of that is data: shapes.toml, or a user's TOML.

Pure functions: no I/O, no HTTP, no framing; JSON values and events come in, request bodies and Pieces go out.
The settings of a shape, its templates, paths and conditions are explained at the top of shapes.toml.
"""

import pathlib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import uuid4

import orjson

from backends import APIError, Delta, Refused
from backends import Chat as Request
from extras.config import is_header

Chat = Mapping[str, Any]  # {"model", "messages", "stream", and every field that the client sent}
Path = tuple[str | int | None, ...]  # None is `[]`
Condition = Callable[[str, Any], bool]  # (name of the SSE event, its data) -> fulfilled?

ABSENT: Any = object()
FRAMINGS, MODES = ("auto", "json", "sse", "ndjson", "text"), ("delta", "last", "message")
SYSTEM = ("system", "developer")
NOT_SENT = {"metadata", "store", "session", "n"}  # as part of {chat}; n: a shape reads one choice
SERVED = {"model", "messages", "stream", "stream_options", "user", "metadata", "store", "session"}  # never "dropped"
HARMLESS: Chat = {"n": 1, "logprobs": False, "response_format": {"type": "text"}, "modalities": ["text"]}
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
    (re.compile("content_filter|.*safety|recitation|blocklist|prohibited.*|spii|refusal|.*toxic"), "content_filter"),
]
ANSWER = {
    "reply",
    "reasoning",
    "finish",
    "usage",
    "error",
    "status",
    "statuses",
    "fails",
    "join",
    "tool_calls",
    "logprobs",
}
STREAM = ANSWER | {"framing", "path", "headers", "request", "keep", "mode", "done", "ends", "final"}
TABLE = ANSWER | {"about", "like", "path", "key", "headers", "request", "omit", "message", "roles", "turn", "stream"}
REQUEST = {"messages": "{messages}", "temperature": "{temperature}"}
MESSAGE = {"role": "{role}", "content": "{content}"}


class ShapeError(ValueError):
    """A shape, template, path or URL that cannot be used; the text says where."""


class UnfitName(ShapeError):
    """A name in a request that cannot stand in a URL."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one answer, or one event of a stream, says. `usage`: OpenAI's names, only the counts that are known."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    tool_calls: list[Any] | None = None
    logprobs: dict[str, Any] | None = None
    figures: dict[str, Any] | None = None  # what stands beside the text as `figure` or `figures`
    error: str | None = None
    error_status: int | None = None
    done: bool = False


def fill(tree: Any, values: Chat, where: str) -> Any:
    """Fill a template. An absent value leaves out its member, and the object or array that is empty then."""
    if isinstance(tree, Mapping):
        full = {k: v for k, x in tree.items() if (v := fill(x, values, f"{where}.{k}")) is not ABSENT}
        return full if full or not tree else ABSENT
    if isinstance(tree, list):
        items = [v for i, x in enumerate(tree) if (v := fill(x, values, f"{where}[{i}]")) is not ABSENT]
        return items if items or not tree else ABSENT
    return fill_text(tree, values, where) if isinstance(tree, str) else tree


def fill_text(text: str, values: Chat, where: str) -> Any:
    found = []
    for literal, slot, default, single in parsed(text):
        if single:
            raise ShapeError(f"{where}: a single {single!r} in {text!r}; two of them mean the character itself")
        if slot and slot not in values and not slot.startswith("param."):
            raise ShapeError(f"{where}: no placeholder is called {{{slot}}}; known are: {', '.join(sorted(values))}")
        value = values.get(slot.removeprefix("param.")) if slot else literal
        found.append(default if value is None else value)
    if len(found) == 1:
        return found[0]
    texts = ("" if value is ABSENT else value for value in found)
    return "".join(value if isinstance(value, str) else orjson.dumps(value).decode() for value in texts)


@lru_cache(1000)
def parsed(text: str) -> list[tuple[str, str, Any, str]]:
    """A text with placeholders as (literal, name, default, brace that stands alone): one of the four."""
    parts = re.findall(r"([^{}]+)|(\{\{|\}\})|\{ *([^{}|]+?) *(?:\|([^{}]*))?\}|([{}])", text)
    parts = parts or [("", "", "", "", "")]
    return [
        (a or b[:1], slot, json_value(default.strip()) if default else ABSENT, c) for a, b, slot, default, c in parts
    ]


def json_value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def paths(text: Any, where: str) -> list[Path]:
    """Compile `a.b[0].c[] | d[-1] | .` (the value itself): alternatives."""
    if not isinstance(text, str):
        raise ShapeError(f"{where}: a string such as 'choices[0].message.content' is expected, not {text!r}")
    return [steps(one.strip(), where) for one in text.split("|")]


def steps(path: str, where: str) -> Path:
    found: list[str | int | None] = []
    at = len(path) if path == "." else 0
    while at < len(path) or not path:
        match = re.compile(r"\[(-?\d+)\]|\[\]|" + r"\."[: 2 * bool(found)] + r"([^\s.\[\]{}]+)").match(path, at)
        if not match:
            raise ShapeError(f"{where}: {path!r} cannot be read at {path[at:]!r}; a path is like choices[0].message")
        found.append(int(match[1]) if match[1] else match[2])
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
            value = value[step] if isinstance(value, list) and -len(value) <= step < len(value) else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value


def first(value: Any, alternatives: list[Path]) -> Any:
    return next((found for path in alternatives if (found := find(value, path)) is not None), None)


def text_at(value: Any, alternatives: list[Path], join: str = "") -> str | None:
    """The first text that is not empty, else an empty one if there is one; the texts of an array are joined.

    A number is a text, too: some upstreams stream the digits of one as JSON numbers.
    """
    best = None
    for path in alternatives:
        found = find(value, path)
        found = orjson.dumps(found).decode() if type(found) in (int, float) else found
        if isinstance(found, list) and all(isinstance(item, str) for item in found):
            found = join.join(found)
        best = found if isinstance(found, str) and not best else best
    return best


def condition(text: Any, where: str) -> Condition:
    """Compile `path`, `path=value`, `@event` or `[DONE]`; several with `|` between them: any."""
    alternatives = [one.strip() for one in text.split("|")] if isinstance(text, str) else paths(text, where)
    tests = [one_condition(str(one), where) for one in alternatives]
    return lambda event, data: any(test(event, data) for test in tests)


def one_condition(text: str, where: str) -> Condition:
    if text == "[DONE]" or text.startswith("@"):
        return lambda event, data: bool(data == text or event == text[1:])
    left, equals, right = (part.strip() for part in text.partition("="))
    path, wanted = steps(left, where), json_value(right)
    return lambda _, data: (
        bool(find(data, path) == wanted) if equals else find(data, path) not in (None, False, "", [], {})
    )


class Places:
    """Where an answer, or an event of a stream, has what: the compiled paths of one table."""

    def __init__(self, table: Chat, where: str) -> None:
        def at(key: str, default: str | None = None) -> list[Path]:
            return [] if (text := table.get(key, default)) is None else paths(text, where + key)

        self.reply, self.reasoning, self.finish = at("reply", "."), at("reasoning"), at("finish")
        self.error, self.status = at("error", "error.message | error"), at("status")
        self.calls, self.logprobs = at("tool_calls"), at("logprobs")
        self.statuses, self.join = table.get("statuses", {}), table.get("join", "")
        self.fails = condition(table["fails"], f"{where}fails") if "fails" in table else None
        sums = table.get("usage") if isinstance(table.get("usage"), Mapping) else {}
        checked(sums, {"prompt", "completion", "total", "cached", "reasoning"}, f"{where}usage.")
        self.sums = {
            k: [paths(term, f"{where}usage.{k}") for term in str(v).split("+")] for k, v in (sums or {}).items()
        }
        self.usage = [] if sums else at("usage")

    def failure(self, event: str, data: Any) -> Piece | None:
        """The Piece of an error that came with HTTP 200, or in a stream."""
        found = first(data, self.error)
        if not (self.fails(event, data) if self.fails else found not in (None, False, "", [], {})):
            return None
        status = first(data, self.status)
        status = self.statuses.get(status, status) if isinstance(status, str | int) else None
        text = text_at(data, self.error, "; ") or f"error: {orjson.dumps(found).decode()}"
        return Piece(error=text, error_status=status if type(status) is int and 400 <= status < 600 else None)

    def counts(self, data: Any) -> dict[str, Any]:
        """The token counts that stand here, by OpenAI's names; a sum is that of the terms there are."""
        if isinstance(given := first(data, self.usage), dict):
            return {key: value for key, value in given.items() if "tokens" in key and isinstance(value, int | dict)}
        found = {key: [n for term in terms if type(n := first(data, term)) is int] for key, terms in self.sums.items()}
        counts: dict[str, Any] = {f"{key}_tokens": sum(numbers) for key, numbers in found.items() if numbers}
        for kind, side in (("cached_tokens", "prompt"), ("reasoning_tokens", "completion")):
            if kind in counts:
                counts[f"{side}_tokens_details"] = {kind: counts.pop(kind)}
        return counts

    def piece(self, data: Any, text: str, usage: dict[str, Any], kept: bool, done: bool) -> Piece:
        if "total_tokens" not in usage and {"prompt_tokens", "completion_tokens"} <= usage.keys():
            usage = usage | {"total_tokens": usage["prompt_tokens"] + usage["completion_tokens"]}
        finish, calls, logprobs = first(data, self.finish), first(data, self.calls), first(data, self.logprobs)
        if finish is not None:
            finish = (
                next((ours for word, ours in FINISH if word.fullmatch(str(finish).lower())), "stop") if finish else None
            )
        reasoning = (text_at(data, self.reasoning) or "") if kept else ""
        return Piece(
            text,
            reasoning,
            finish,
            dict(usage) or None,
            calls if isinstance(calls, list) else None,
            logprobs if isinstance(logprobs, dict) else None,
            {k: data[k] for k in ("figure", "figures") if isinstance(data, dict) and data.get(k)} or None,
            done=done,
        )


class Shape:
    """One shape. Raises ShapeError, at the start and not with a request, for a table that cannot be used."""

    def __init__(self, table: Chat, name: str) -> None:
        stream = checked(checked(table, TABLE, f"{name}.").get("stream", {}), STREAM, f"{name}.stream.")
        if "reply" not in table:
            raise ShapeError(f"{name}.reply: where is the text of an answer? A path such as 'data.text', or '.'")
        self.table, self.name, self.about, self.streams = table, name, table.get("about", name), "stream" in table
        self.framing, self.mode = stream.get("framing", "auto") if self.streams else "json", stream.get("mode", "delta")
        if self.framing not in FRAMINGS or self.mode not in MODES:
            raise ShapeError(f"{name}.stream: no framing {self.framing!r} with mode {self.mode!r} is known")
        self.path, self.stream_path = table.get("path", ""), stream.get("path", table.get("path", ""))
        self.body, self.omit = table.get("request", REQUEST), table.get("omit", {})
        self.stream_body = merged(self.body, stream["request"]) if "request" in stream else self.body
        self.message, self.turn = table.get("message", MESSAGE), table.get("turn", {})
        check_template(self.body, WORDS, f"{name}.request")
        check_template(self.stream_body, WORDS, f"{name}.stream.request")
        check_template(self.message, ["role", "content"], f"{name}.message")
        check_template(self.turn, ["prompt", "reply"], f"{name}.turn")
        braces = re.sub(r"\{\{|\}\}", "", orjson.dumps([self.path, self.body, self.stream_body]).decode())
        self.used = set(re.findall(r"\{ *(?:param\.)?(\w+)", braces))
        self.whole = Places(table, f"{name}.")
        self.pieces = Places({**{key: table[key] for key in ANSWER & table.keys()}, **stream}, f"{name}.stream.")
        self.keep, self.done, self.ends = (
            condition(stream[key], f"{name}.stream.{key}") if key in stream else None
            for key in ("keep", "done", "ends")
        )
        self.final = paths(stream["final"], f"{name}.stream.final") if "final" in stream else []

    def url(self, url: str, chat: Chat) -> str:
        """Where to send this chat: a bare address gets the shape's path; {model}, {user}, {session} are filled."""
        parts, values = urlsplit(url), self.values(chat, {"session"})
        path, _, query = (self.stream_path if values["stream"] else self.path).partition("?")
        ending = self.path.partition("?")[0].rpartition("}")[2]
        if parts.path.strip("/") and parts.path.endswith(ending):
            path = parts.path[: len(parts.path) - len(ending)] + path.rpartition("}")[2]
        elif parts.path.strip("/") and not path.startswith(f"{parts.path.rstrip('/')}/"):
            path, query = parts.path, ""
        slots = set(re.findall(r"\{(\w+)\}", path))
        if unknown := sorted(slots - {"model", "user", "session"}):
            raise ShapeError(f"{self.name}: the URL must be whole, with its own {unknown[0]}: {path}")
        for name in slots:
            if any(part in ("", ".", "..") for part in str(values[name] or "").split("/")):
                raise UnfitName(f"The {name} of this request cannot stand in a URL.")
        safe = {name: quote(str(values[name]), "@:/"[: 2 + (name == "model")]) for name in ("model", "user", "session")}
        query = "&".join(filter(None, (parts.query, query)))
        return urlunsplit((parts.scheme, parts.netloc, str(fill(path or "/", safe, "url")), query, ""))

    def headers(self, key: str | None, stream: bool = False) -> dict[str, str]:
        """The shape's own headers, and the key in the one where this product wants it."""
        name = self.table.get("key", "authorization")
        own = self.table["stream"].get("headers", {}) if stream and self.streams else {}
        keyed = {name: f"Bearer {key}" if name == "authorization" else key} if key else {}
        return {**self.table.get("headers", {}), **own, **keyed}

    def request(self, chat: Chat) -> Any:
        """The JSON body to send."""
        body = fill(self.stream_body if chat.get("stream") else self.body, self.values(chat, self.used), self.name)
        return {} if body is ABSENT else body

    def values(self, chat: Chat, used: set[str]) -> dict[str, Any]:
        """What each placeholder stands for in this chat; the forms of the conversation only where they are used."""
        values = {**dict.fromkeys(WORDS), **chat, "stream": bool(chat.get("stream")) and self.streams}
        for group in ALIASES:
            values |= dict.fromkeys(group, next((values[name] for name in group if values[name] is not None), None))
        values["stop"] = [values["stop"]] if isinstance(values["stop"], str) else values["stop"]
        values |= {name: None for name, value in self.omit.items() if values.get(name) == value}
        system, dialog, at = spoken(chat)
        pairs, rest = turns(dialog[:at])
        forms: dict[str, Callable[[], Any]] = {
            "prompt": lambda: "\n".join(
                [*(rest if "turns" in used else ()), *(text for _, text in dialog[at : at + 1])]
            ),
            "system": lambda: system or None,
            "messages": lambda: self.written([("system", system)] * bool(system) + dialog),
            "dialog": lambda: self.written(dialog),
            "history": lambda: self.written(dialog[:at]),
            "turns": lambda: [fill(self.turn, {"prompt": p, "reply": r}, "turn") for p, r in pairs],
            "conversation": lambda: transcript("" if "system" in used else system, dialog),
            # Strangers must not meet in one session: a chat without a name for it has one of its own.
            "session": lambda: session_of(chat) or uuid4().hex,
            "chat": lambda: {key: value for key, value in chat.items() if key not in NOT_SENT},
            "nothing": lambda: None,
        }
        return values | {name: form() for name, form in forms.items() if name in used}

    def written(self, dialog: list[tuple[str, str]]) -> list[Any]:
        roles = self.table.get("roles", {})
        return [fill(self.message, {"role": roles.get(role, role), "content": text}, "") for role, text in dialog]

    def dropped(self, chat: Chat) -> list[str]:
        """What the client sent that does not go along: names of parameters, and parts of the messages."""
        sent = self.used | SERVED | {name for group in ALIASES if self.used & set(group) for name in group}
        sent = sent | (chat.keys() - {"n"} if "chat" in self.used else set())
        lost = [k for k, v in chat.items() if not (v is None or k in sent or (k in HARMLESS and HARMLESS[k] == v))]
        if "chat" in self.used:
            return lost
        (system, dialog, at), told = spoken(chat), self.used & {"messages", "conversation", "dialog"}
        lost += ["messages.system"] * bool(system and not self.used & {"messages", "conversation", "system"})
        known = told or self.used & {"history", "turns"} or ("session" in self.used and session_of(chat))
        lost += ["messages.history"] * bool((at and not known) or (at < len(dialog) - 1 and not told))
        messages = chat.get("messages") or ()
        more = {str(k) for m in messages for k, v in m.items() if v and k not in ("role", "content")}
        contents = [content for m in messages if isinstance(content := m.get("content"), list)]
        more |= {str(part.get("type")) for content in contents for part in content if not is_text(part)}
        return lost + [f"messages.{name}" for name in sorted(more)]

    def answer(self, obj: Any) -> Piece:
        """What a whole answer with a 2xx says: an error (502) if it has neither a text nor a reason to end."""
        if failed := self.whole.failure("", obj):
            return failed
        text = text_at(obj, self.whole.reply, self.whole.join)
        piece = self.whole.piece(obj, text or "", self.whole.counts(obj), kept=True, done=True)
        if text is None and not piece.finish_reason and not piece.tool_calls:
            return Piece(
                error=f"the upstream's answer has no text at {self.table.get('reply', '.')!r}", error_status=502
            )
        return piece

    def refusal(self, obj: Any) -> str | None:
        """The upstream's own words in the body of a 4xx or 5xx, if there are any."""
        failed = self.whole.failure("", obj)
        return failed.error if failed else text_at(obj, WORDS_OF_REFUSAL, "; ") or None

    def reader(self) -> "Reader":
        return Reader(self)


class Reader:
    """What one streamed reply says, event by event. `complete`: may the body end now, or is it cut short?"""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.given, self.text, self.usage = shape, False, "", dict[str, Any]()
        self.finish = ""  # some give a reason to end with every event: the last one counts, when the end is there
        self.complete = not (shape.done or shape.ends)

    def piece(self, event: str, data: Any) -> Piece:
        """`event`: name of an SSE event, or "". `data`: its data (str or bytes), a line of NDJSON, or a piece of text."""
        shape, places = self.shape, self.shape.pieces
        data = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
        if shape.framing == "text":
            return Piece(text=data)
        value = json_value(data) if isinstance(data, str) else data
        value = value if isinstance(value, dict | list | str) else data  # a bare 42 or true is a piece of text
        if failed := places.failure(event, value):
            return failed
        done = value == "[DONE]" or bool(shape.done and shape.done(event, value))
        last = done or bool(shape.ends and shape.ends(event, value))
        kept = value != "[DONE]" and (shape.keep is None or shape.keep(event, value))
        if kept and not done and value and isinstance(value, str) and () not in places.reply:
            return Piece(error="an event of the upstream is not JSON", error_status=502)
        text = self.new(text_at(value, places.reply, places.join) or "") if kept else ""
        if last and not self.given and not text:
            text = text_at(value, shape.final, places.join) or ""
        self.given = self.given or bool(text)
        counts = places.counts(value)
        self.usage |= counts
        piece = places.piece(value, text, self.usage if counts else {}, kept, done)
        self.finish = piece.finish_reason or ("tool_calls" if piece.tool_calls and not self.finish else self.finish)
        self.complete = self.complete or last or piece.finish_reason is not None
        return piece

    def new(self, text: str) -> str:
        """What is new in this text, in the shape's mode: delta, last (all of it so far), message (one of several)."""
        if self.shape.mode == "last":
            text, self.text = text[len(self.text) :], max(text, self.text, key=len)
        return self.shape.pieces.join + text if self.shape.mode == "message" and text and self.given else text


WORDS_OF_REFUSAL = paths("errors[0].message | detail | detail[].msg | message | [0].error.message", "")


def session_of(chat: Chat) -> Any:
    """What the client calls the session, or else the stored chat that goes on; an endpoint may remember it by that."""
    names = ("session_id", "conversation_id", "session", "user")
    return next((chat[name] for name in names if chat.get(name)), None)


def spoken(chat: Chat) -> tuple[str, list[tuple[str, str]], int]:
    """A chat's system text, its other messages as (role, text), and which of them is the prompt: the user's last."""
    pairs = [(str(m.get("role", "user")), content_text(m.get("content"))) for m in chat.get("messages") or ()]
    dialog = [(role, text) for role, text in pairs if role not in SYSTEM and (text or role != "assistant")]
    at = max((i for i, (role, _) in enumerate(dialog) if role == "user"), default=max(len(dialog) - 1, 0))
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


def content_text(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of an array, one to a line."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if is_text(part))
    return content if isinstance(content, str) else ""


def is_text(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


TEXTS = {"about", "like", "path", "key", "join"}
TABLES = {
    "headers": (str, "a table of strings"),
    "roles": (str, "a table of strings"),
    "statuses": (int, "a table of integers"),
    "message": (object, "a table"),
    "turn": (object, "a table"),
    "omit": (object, "a table"),
}


def checked(table: Any, known: set[str], where: str) -> Chat:
    """A table with none but known settings, each of its type; paths and templates are for others to check."""
    if not isinstance(table, Mapping):
        raise ShapeError(f"{where.rstrip('.')}: a table is expected, not {table!r}")
    if unknown := sorted(table.keys() - known):
        raise ShapeError(f"{where}{unknown[0]}: no such setting; known are: {', '.join(sorted(known))}")
    for key, value in table.items():
        if key in TEXTS and not isinstance(value, str):
            raise ShapeError(f"{where}{key}: a string is expected, not {value!r}")
        kind, words = TABLES.get(key, (object, ""))
        if words and not (isinstance(value, Mapping) and all(isinstance(one, kind) for one in value.values())):
            raise ShapeError(f"{where}{key}: {words} is expected")  # what stands there may be a secret
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
    return [*(tree if isinstance(tree, Mapping) else ()), *(name for one in inner for name in names(one))]


def merged(below: Any, above: Any) -> Any:
    """Two tables as one; what both have is as `above` has it."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}


def shape_from(table: Chat, name: str, known: Mapping[str, Shape]) -> Shape:
    """Compile one table; `like` names a known shape that it goes on from. Raises ShapeError, which says where."""
    if "like" in checked(table, TABLE, f"{name}."):
        if (like := table["like"]) not in known:
            raise ShapeError(f"{name}.like: no shape is called {like!r}; known are: {', '.join(sorted(known))}")
        table = merged(known[like].table, {key: value for key, value in table.items() if key != "like"})
    return Shape(table, name)


def load_shapes(text: str) -> dict[str, Shape]:
    """The shapes of a TOML text, one to a table; a `like` refers to one that stands above it."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ShapeError(f"not TOML: {exc}") from exc
    shapes: dict[str, Shape] = {}
    for name, table in tables.items():
        shapes[name] = shape_from(checked(table, TABLE, f"{name}."), name, shapes)
    return shapes


class Shaped:
    """A shape as backends ask for one: Deltas in place of Pieces, Refused for their errors."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.framing = shape, shape.framing if shape.framing != "json" else "auto"

    def url(self, url: str, chat: Request) -> str:
        try:
            return self.shape.url(url, asked(chat))
        except UnfitName as exc:
            raise APIError(400, str(exc)) from None

    def headers(self, key: str, stream: bool) -> dict[str, str]:
        return self.shape.headers(key or None, stream)

    def request(self, chat: Request) -> Any:
        return self.shape.request(asked(chat))

    def dropped(self, chat: Request) -> list[str]:
        return self.shape.dropped(asked(chat))

    def answer(self, value: Any) -> list[Delta]:
        piece = self.shape.answer(value)
        return deltas(piece, piece.finish_reason or ("tool_calls" if piece.tool_calls else "stop"), whole=True)

    def reader(self) -> "ShapedReader":
        return ShapedReader(self.shape.reader())

    def refusal(self, status: int, value: Any) -> Refused:
        return Refused(status, self.shape.refusal(value) or "")


class ShapedReader:
    def __init__(self, reader: Reader) -> None:
        self.reader, self.done, self.finish = reader, False, ""

    @property
    def complete(self) -> bool:
        return self.reader.complete

    def __call__(self, name: str, data: bytes) -> list[Delta]:
        piece = self.reader.piece(name, data)
        self.done, self.finish = piece.done, self.reader.finish
        return deltas(piece, None, whole=False)


def asked(chat: Request) -> Chat:
    known = {"model": chat.model, "messages": chat.messages, "stream": chat.stream}
    return {**({"session": chat.id} if chat.own_id else {}), **chat.payload, **known}


def deltas(piece: Piece, finish_reason: str | None, *, whole: bool) -> list[Delta]:
    """What a Piece says, as a Delta. Raises Refused."""
    if piece.error is not None:
        raise Refused(piece.error_status or 502, piece.error)
    fields: dict[str, Any] = {}
    if piece.reasoning:  # clients look for it under one name or the other
        fields = {"reasoning_content": piece.reasoning, "reasoning": piece.reasoning}
    if piece.tool_calls:
        fields["tool_calls"] = piece.tool_calls
    fields |= piece.figures or {}
    more: dict[str, Any] = {"logprobs": piece.logprobs, "usage": piece.usage}
    return [Delta(piece.text, finish_reason, whole=whole, fields=fields or None, **more)]


@lru_cache
def known_shapes() -> dict[str, Shape]:
    """The shapes of shapes.toml."""
    return load_shapes(pathlib.Path(__file__).with_name("shapes.toml").read_text(encoding="utf-8"))


def shape_of(table: Chat, where: str) -> Shaped:
    """A mapping of one's own. Raises ShapeError."""
    return Shaped(shape_from(table, where, known_shapes()))


def shape_named(name: str, where: str) -> Shaped:
    """A shape by its name. Raises ShapeError."""
    if name not in known_shapes():
        raise ShapeError(f"{where}: no shape is called {name!r}; known are: {', '.join(sorted(known_shapes()))}")
    return Shaped(known_shapes()[name])
