"""Which recording answers a request.

A first turn has to be equal, but for ids, the order of members, and members that the setting names.
In later turns, the messages of the assistant and the results of tools may differ: tools return other
times and ids in each run. Such a turn is found by its thread (all that comes before the first answer),
its user messages and its position. Every request is compared without credentials. Knows no files.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import sha256
from itertools import islice, pairwise
from urllib.parse import parse_qsl

import orjson

from rewrap.structs import struct
from rewrap.types import text_of
from rewrap.upstream.recording.credentials import MODEL_PARENTS
from rewrap.upstream.recording.exchange import Request

ID_NAMES = frozenset(
    [
        *("id", "call_id", "tool_call_id", "tool_use_id", "toolUseId", "item_id", "message_id"),
        *("messageId", "response_id", "previous_response_id", "session_id", "sessionId"),
        *("conversation_id", "conversationId", "chat_id", "chatId", "thread_id", "threadId"),
        *("request_id", "requestId", "trace_id"),
    ]
)
CONVERSATIONS = ("messages", "input", "contents", "history", "chat_history", "conversation")
CALLERS = frozenset(["assistant", "model", "ai", "bot", "chatbot", "agent", "reasoning"])
RESULTS = frozenset(["tool", "function", "ipython", "tool_result"])
RESULT_PARTS = ("tool_result", "function_response")  # types of parts, in messages of the user
PROMPTS = ("prompt", "query", "question", "input", "inputs", "text", "message")
FORM = "application/x-www-form-urlencoded"
BOUNDARY = re.compile(r'boundary="?([^";]+)')

MAX_LEAVES = 500  # of a request, compared to find the nearest recording
PROMPT_CHARACTERS = 1_000  # for names, and to find the nearest recording
SHOWN_DIFFERENCES = 4
SHOWN_CHARACTERS = 60
SHOWN_BEFORE = 15  # characters of a text before its first difference
COMPARED_CHARACTERS = 4096  # of two texts at once
CONVERSATION_DEPTH = 2  # objects around the messages
ABSENT = "absent"


@struct(frozen=True, slots=True)
class RequestKeys:
    """The keys of a request: digests of its normal forms, in hexadecimal."""

    strict: str  # with ids
    exact: str
    loose: str  # without answers and results of tools
    thread: str  # all that comes before the first answer
    position: int  # of the call in its thread, from 1
    loose_items: tuple[str, ...]  # digests of the answers and results
    leaves: frozenset[int]  # hashes of names and values, for the nearest recording
    model: str
    prompt: str  # its beginning


class Matcher:
    """Computes the RequestKeys of requests. `ignored` are names of members, or paths such as `metadata.run`.

    A name is ignored wherever it stands. A path starts at the body, and leads through lists.
    """

    def __init__(self, ignored: Iterable[str] = ()) -> None:
        paths = [tuple(path.split(".")) for path in ignored]
        self.names = frozenset(path[0] for path in paths if len(path) == 1)
        self.paths = frozenset(path for path in paths if len(path) > 1)

    def facts(self, request: Request) -> RequestKeys:
        value = decoded(request)
        model = recorded_model(request, value)
        prompt = recorded_prompt(value)[:PROMPT_CHARACTERS]
        try:
            document = self.document(request, value, keep_ids=False)
            strict = digest(self.document(request, value, keep_ids=True))
            return facts_of(document, strict, model, prompt)
        except (RecursionError, TypeError):  # nested too deeply: it has to be equal as a whole
            key = digest([request.method, request.path, request.body.decode("latin-1")])
            return RequestKeys(key, key, key, key, 1, (), frozenset(), model, prompt)

    def document(self, request: Request, value: object, *, keep_ids: bool) -> dict[str, object]:
        path, _, query = request.path.partition("?")
        document: dict[str, object] = {"method": request.method, "path": path}
        if query:
            params = dict(parse_qsl(query, keep_blank_values=True))
            document["query"] = self.normal(params, (), keep_ids)
        document["body"] = self.normal(value, (), keep_ids)
        return document

    def normal(self, value: object, path: tuple[str, ...], keep_ids: bool) -> object:
        """A value without ignored members. Whole floats are integers."""
        if isinstance(value, dict):
            members: dict[str, object] = {}
            for name, member in value.items():
                place = (*path, name)
                is_id = name in ID_NAMES and isinstance(member, (str, int)) and not keep_ids
                if not (is_id or name in self.names or place in self.paths):
                    members[name] = self.normal(member, place, keep_ids)
            return members
        if isinstance(value, list):
            return [self.normal(item, path, keep_ids) for item in value]
        if isinstance(value, float) and value.is_integer():
            return int(value)
        return value

    def difference(self, recorded: Request, request: Request) -> str:
        """The first differences between two requests, in one line; "" if there are none."""
        try:
            old = self.leaves_of(recorded)
            new = self.leaves_of(request)
        except RecursionError:
            return "the requests are nested too deeply to be compared"
        names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
        shown = [shown_difference(name, old.get(name), new.get(name)) for name in names]
        text = "; ".join(shown[:SHOWN_DIFFERENCES])
        if len(shown) > SHOWN_DIFFERENCES:
            text += f"; and {len(shown) - SHOWN_DIFFERENCES} more"
        return text

    def leaves_of(self, request: Request) -> dict[str, object]:
        document = self.document(request, decoded(request), keep_ids=False)
        return dict(leaves(document, ""))


def facts_of(document: dict[str, object], strict: str, model: str, prompt: str) -> RequestKeys:
    """Raises TypeError if it is nested too deeply."""
    found = conversation_in(document["body"])
    leaf_hashes = frozenset(
        hash((name, str(value))) for name, value in islice(leaves(document, ""), MAX_LEAVES)
    )
    exact = digest(document)
    if found is None:
        return RequestKeys(strict, exact, exact, exact, 1, (), leaf_hashes, model, prompt)
    items, replaced = found
    outline: list[object] = []
    loose_items: list[str] = []
    for item in items:
        shown, loose = outlined(item)
        if loose is not None:
            loose_items.append(digest(loose))
        if not isinstance(shown, str) or outline[-1:] != [shown]:
            outline.append(shown)
    start = next((n for n, item in enumerate(outline) if isinstance(item, str)), len(outline))
    rest = replaced(None)
    return RequestKeys(
        strict,
        exact,
        loose=digest([document | {"body": replaced(outline)}]),
        thread=digest([document | {"body": rest}, outline[:start]]),
        position=1 + outline.count("answer"),
        loose_items=tuple(loose_items),
        leaves=leaf_hashes,
        model=model,
        prompt=prompt,
    )


def conversation_in(
    body: object, depth: int = CONVERSATION_DEPTH
) -> tuple[list[dict[str, object]], Callable[[object], object]] | None:
    """The messages of a body, and a function that gives the body with others in their place."""
    if not isinstance(body, dict) or not depth:
        return None
    for name in CONVERSATIONS:
        items = body.get(name)
        if isinstance(items, list) and items and all(isinstance(item, dict) for item in items):
            return items, partial(with_member, body, name)
    for outer, value in body.items():
        found = conversation_in(value, depth - 1)
        if found is not None:
            return found[0], partial(replaced_in, body, outer, found[1])
    return None


def with_member(body: dict[str, object], name: str, other: object) -> object:
    return body | {name: other}


def replaced_in(
    body: dict[str, object], name: str, inner: Callable[[object], object], other: object
) -> object:
    return body | {name: inner(other)}


def outlined(item: dict[str, object]) -> tuple[object, object]:
    """A message in an outline, and its part that is compared loosely (None if there is none).

    An answer is "answer", a result of a tool is "result". A message of the user stays.
    """
    kind = str(item.get("role") or item.get("type") or "").lower()
    if kind in CALLERS or kind.endswith("_call"):
        return "answer", item
    if kind in RESULTS or kind.endswith("_output"):
        return "result", item
    for name in ("content", "parts"):
        parts = item.get(name)
        if not isinstance(parts, list):
            continue
        others = [part for part in parts if not is_result(part)]
        if len(others) == len(parts):
            continue
        if not others:
            return "result", item
        return item | {name: others}, parts
    return item, None


def is_result(part: object) -> bool:
    """Whether a part of a message is a tool's result: Anthropic's, Gemini's or Bedrock's."""
    if not isinstance(part, dict):
        return False
    return part.get("type") in RESULT_PARTS or bool(
        {"functionResponse", "toolResult"} & part.keys()
    )


def decoded(request: Request) -> object:
    """The body as a JSON value: that of JSON, the fields of a form, or a text."""
    if not request.body:
        return None
    kind = request.content_type.partition(";")[0].strip().lower()
    if kind == FORM:
        return dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
    try:
        value: object = orjson.loads(request.body)
        return value
    except ValueError:
        pass
    body = request.body
    boundary = BOUNDARY.search(request.content_type)
    if boundary is not None:  # a client draws another one each time
        body = body.replace(boundary[1].encode("latin-1"), b"boundary")
    return body.decode("latin-1")


def recorded_model(request: Request, value: object) -> str:
    """The model in the body or in the path; "" if there is none."""
    if isinstance(value, dict) and isinstance(value.get("model"), str):
        return str(value["model"])
    names = request.path.partition("?")[0].split("/")
    for parent, name in pairwise(names):
        if parent in MODEL_PARENTS:
            return name.partition(":")[0]
    return ""


def recorded_prompt(value: object) -> str:
    """The last message of the user, or the text that is the prompt."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return ""
    found = conversation_in(value)
    if found is not None:
        for item in reversed(found[0]):
            text = text_of(item.get("content") or item.get("parts"))
            if text and outlined(item)[0] not in ("answer", "result"):
                return text
    for name in PROMPTS:
        if isinstance(value.get(name), str):
            return str(value[name])
    texts = [text for name, text in value.items() if isinstance(text, str) and name != "model"]
    return max(texts, key=len, default="")


def digest(value: object) -> str:
    """Raises TypeError if the value is nested too deeply."""
    return sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


# Differences.


def likeness(one: RequestKeys, other: RequestKeys) -> tuple[int, float]:
    """How near two requests are: the values that they share, then the share of equal words."""
    these = set(one.prompt.split())
    those = set(other.prompt.split())
    words = len(these & those) / (len(these | those) or 1)
    return len(one.leaves & other.leaves), words


def leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    """The texts, numbers and empty lists in a value, by their path: `messages[0].content`."""
    if isinstance(value, dict) and value:
        for key, member in value.items():
            path = f"{name}.{key}" if name else key
            yield from leaves(member, path.removeprefix("body."))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, f"{name}[{index}]")
    else:
        yield name, value


def shown_difference(name: str, old: object, new: object) -> str:
    start = 0
    if isinstance(old, str) and isinstance(new, str):
        start = max(0, first_difference(old, new) - SHOWN_BEFORE)
    return f"{name[:SHOWN_CHARACTERS]} is {shown_value(new, start)}, recorded is {shown_value(old, start)}"


def first_difference(old: str, new: str) -> int:
    """The index at which two texts differ."""
    step = COMPARED_CHARACTERS
    shorter = min(len(old), len(new))
    start = next(
        (at for at in range(0, shorter, step) if old[at : at + step] != new[at : at + step]),
        shorter,
    )
    pairs = zip(old[start : start + step], new[start : start + step], strict=False)
    return next((start + n for n, (a, b) in enumerate(pairs) if a != b), min(start + step, shorter))


def shown_value(value: object, start: int) -> str:
    """A value in one printable line, cut."""
    if value is None:
        return ABSENT
    if not isinstance(value, str):
        return str(value)[:SHOWN_CHARACTERS]
    text = value[start : start + SHOWN_CHARACTERS]
    before = "…" if start else ""
    after = "…" if len(value) > start + SHOWN_CHARACTERS else ""
    line = orjson.dumps(before + text + after).decode()
    if line.isprintable():
        return line
    return line.encode("unicode_escape").decode("ascii")
