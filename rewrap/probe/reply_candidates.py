"""The texts of an answer of unknown form: which is the reply, and which the id of the chat.

Pure functions: bodies go in, paths (as in shapes.toml) come out.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeGuard
from urllib.parse import parse_qsl

import orjson

from rewrap.structs import struct
from rewrap.upstream.framing import NDJSONDecoder, SSEDecoder, is_json
from rewrap.upstream.paths import first, parse_paths
from rewrap.upstream.reply_search import MORE_NAMES, REPLY_NAMES

DEPTH = 12
ITEMS = 20  # of an array that are looked at
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
EVENT = re.compile(rb"^data:", re.MULTILINE)
# Names of members that hold no reply, or that cannot stand in a path.
OTHER_NAMES = re.compile(
    r"(?i:(?:.*[_-])?(?:ids?|uuid|hash|at|time\w*|date|created|model|role|type|kind|status|state|name"
    r"|errors?|detail|reason|version|urls?|lang\w*|trace|code|finish\w*|user|sender|session|event|usage"
    r"|question|prompt|query|inputs?|request|object|success|level|source|method|path|host|origin))"
    r"|.*[a-z](?:Id|At|Name|Type)|.*[\s.\[\]{}|=].*|"
)
# Names of members that are empty unless the answer is an error.
ERROR_NAMES = re.compile(r"(?i)(?:is_?)?errors?_?(?:message|msg|text)?")
LIKELY_NAMES = frozenset([*REPLY_NAMES, *MORE_NAMES, "message", "result", "msg", "say", "said"])

# The words of names under which a service gives a chat its id: chat_ref, threadId, convo.
CHAT_WORDS = "chat|context|conv|convo|conversation|dialog|dialogue|discussion|room|session|thread"
ID_WORDS = "guid|handle|hash|id|identifier|key|ref|reference|sid|token|uid|uuid"
CHAT_ID_NAMES = (  # the likeliest last
    re.compile(rf"(?:{CHAT_WORDS})(?:_(?:{CHAT_WORDS}))*"),
    re.compile(rf"(?:.*_)?(?:{CHAT_WORDS})_?(?:{ID_WORDS})|(?:{ID_WORDS})_?(?:{CHAT_WORDS})"),
    re.compile(rf"(?:.*_)?(?:{CHAT_WORDS})_?id"),
)
# The value of a name that speaks of a chat alone: it has digits, or capitals inside.
ID_VALUE = re.compile(r"(?=.*(?:\d|[a-z][A-Z]))[\w.:~+/=-]{5,127}[\w=]", re.ASCII)


# Members of a Text that tell a reply, the most telling first.
PREFERRED = ("wanted", "is_unlike_before", "varies", "early", "usual")


@struct(frozen=True, slots=True)
class Text:
    """A text in an answer. In events, the texts of one path are joined."""

    path: str
    text: str
    candidate: bool = False  # it may be the reply; the other members rank candidates
    wanted: bool = False  # it contains the text that was asked for
    early: bool = False  # it is in the first event that has any text
    usual: bool = False  # its name is usual for replies
    events: int = 1  # that have it
    distinct: int = 1  # of its texts in events
    session: int = 0  # how likely it is the id of the chat

    @property
    def varies(self) -> bool:
        return self.distinct > 1

    @property
    def is_unlike_before(self) -> bool:
        """Whether no event repeats the text of another one, or some differ."""
        return self.events == 1 or self.varies

    def rank(self) -> tuple[bool, ...]:
        """Greater for a likelier reply."""
        preferred = [getattr(self, name) for name in PREFERRED]
        return self.candidate, *preferred, " " in self.text.strip()


def json_values(body: bytes) -> list[object]:
    """The JSON value of a body, or those of its events or lines."""
    with suppress(orjson.JSONDecodeError):
        return [orjson.loads(body)]
    decoder = decoder_of(body)
    values: list[object] = []
    for _, data in [*decoder.feed(body), *decoder.close()]:
        with suppress(orjson.JSONDecodeError):
            values.append(orjson.loads(data))
    return values


def end_marker(body: bytes) -> str:
    """The bare text that ends a stream of JSON events, such as [END]; "" if there is none."""
    decoder = decoder_of(body)
    events = [data for _, data in [*decoder.feed(body), *decoder.close()] if data.strip()]
    if len(events) < 2 or is_json(events[-1]) or not all(map(is_json, events[:-1])):
        return ""
    return events[-1].decode("utf-8", "replace")


def decoder_of(body: bytes) -> SSEDecoder | NDJSONDecoder:
    if EVENT.search(body):
        return SSEDecoder(len(body))
    return NDJSONDecoder(len(body))


def events_with(values: list[object], path: str) -> int:
    """How many of the JSON values have something at a path, which may have alternatives."""
    paths = parse_paths(path, "reply")
    return sum(first(value, paths) is not None for value in values)


def is_failure(value: object) -> bool:
    """Whether a JSON value is an error, with any status."""
    if not isinstance(value, dict):
        return False
    if value.get("ok") is False or value.get("success") is False:
        return True
    if value.get("status") in ("error", "fail", "failed"):
        return True
    return any(inner and ERROR_NAMES.fullmatch(name) for name, inner in value.items())


def texts(body: bytes, sent: bytes, wanted: str) -> list[Text]:
    """The texts of an answer in JSON or events, the likeliest reply first.

    `sent` is the body or the query of the request: its texts are no reply. `wanted` is a pattern of the reply that was
    asked for.
    """
    values = json_values(body)
    failed = any(is_failure(value) for value in values)
    echoes = sent_texts(sent)
    pieces: dict[str, list[str]] = {}
    early: set[str] = set()
    for value in values:
        for path, text in texts_in(value):
            pieces.setdefault(path, []).append(text)
        early = early or {path for path, told in pieces.items() if not echoes.issuperset(told)}
    found: list[Text] = []
    for path, told in pieces.items():
        text = "".join(told)
        if echoes.issuperset(told):
            text = told[0]
        varies = len(set(told)) > 1
        may_be = not failed and text not in echoes and may_be_reply(path, text, varies)
        found.append(
            Text(
                path,
                text,
                candidate=may_be,
                wanted=bool(re.search(wanted, text, re.IGNORECASE)),
                early=path in early,
                usual=bool(LIKELY_NAMES.intersection(names_of(path)[-1:])),
                events=len(told),
                distinct=len(set(told)),
                session=0 if text in echoes else session_rank(path, text),
            )
        )
    found = [text for text in found if text.text.strip()]
    return sorted(found, key=Text.rank, reverse=True)


def texts_in(value: object, path: str = "", depth: int = DEPTH) -> Iterator[tuple[str, str]]:
    """The texts in a JSON value that a path can reach, as (path, text)."""
    if isinstance(value, str) and value:
        yield path or ".", value
    elif isinstance(value, dict) and depth:
        for name, inner in value.items():
            if re.fullmatch(r"[^\s.\[\]{}|=]+", name):
                yield from texts_in(inner, f"{path}.{name}" if path else name, depth - 1)
    elif is_list_of_texts(value):
        yield f"{path}[]", "".join(value)
    elif isinstance(value, list) and depth:
        for index, inner in enumerate(value[:ITEMS]):
            yield from texts_in(inner, f"{path}[{index}]", depth - 1)


def is_list_of_texts(value: object) -> TypeGuard[list[str]]:
    """Whether a value is a list of several texts, which are one text together."""
    if not isinstance(value, list) or len(value) < 2:
        return False
    return any(value) and all(isinstance(item, str) for item in value)


def names_of(path: str) -> list[str]:
    return [name for name in re.split(r"[.\[\]]+", path) if name and not name.isdigit()]


def may_be_reply(path: str, text: str, varies: bool) -> bool:
    """Whether no name on a path speaks against a reply. Of a text that varies over events, the last name counts."""
    if session_rank(path, text) > 1:
        return False
    names = names_of(path)
    if varies:
        names = names[-1:]
    return not any(OTHER_NAMES.fullmatch(name) for name in names)


def session_rank(path: str, text: str) -> int:
    """How likely a text is the id of the chat, by the words of its name: 0 (it is not) to 3."""
    name = re.sub(r"(?<=[a-z\d])(?=[A-Z])|-", "_", path.rpartition(".")[2]).lower()
    matches = [rank for rank, names in enumerate(CHAT_ID_NAMES, 1) if names.fullmatch(name)]
    if not matches or re.search(r"\s|://", text):
        return 0
    if max(matches) == 1 and not ID_VALUE.fullmatch(text):
        return 0
    return max(matches)


def chat_id_in(found: list[Text], reply: str) -> Text | None:
    """The text that is likely the id of the chat, beside the reply."""
    ids = [text for text in found if text.session and text.path != reply and names_of(text.path)]
    return max(ids, key=lambda text: text.session, default=None)


def reply_path(found: list[Text]) -> str | None:
    """The path of the reply, if one candidate alone stands out."""
    left = [text for text in found if text.candidate]
    for preferred in PREFERRED:
        left = [text for text in left if getattr(text, preferred)] or left
    return left[0].path if len(left) == 1 else None


def sent_texts(sent: bytes) -> set[str]:
    """The texts of a request: its whole body or query, and each string or parameter in it."""
    text = sent.decode()
    values = [value for _, value in parse_qsl(text)]
    return {text, *values, *(orjson.loads(string) for string in STRING.findall(sent))}
