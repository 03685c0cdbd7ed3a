"""The fields that an error of a chat URL names as missing or wrong, as in "field 'query' is required".

Pure functions: the body of an answer goes in, Fields come out, and a request template is made of them. Sources: the errors of
FastAPI and pydantic, Django REST framework, Flask, Express, zod, Ajv, ASP.NET, Spring, Go's validator, Rust's serde.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import orjson

from rewrap.types import JSONObject

MAX_FIELDS = 8
ERROR_CHARACTERS = 4000  # of a text that are looked at
PLACES = {"body": "body", "query": "query", "querystring": "query", "form": "form"}
KINDS = {
    "array": re.compile(r"(?i)\b(?:list|array|sequence)(?:_type)?\b"),
    "object": re.compile(r"(?i)\b(?:dict|object|mapping|model_attributes)(?:_type)?\b"),
    "number": re.compile(r"(?i)\b(?:int|integer|number|float|numeric)(?:_type|_parsing)?\b"),
    "boolean": re.compile(r"(?i)\bbool(?:ean)?(?:_type|_parsing)?\b"),
}
TRIGGER = re.compile(
    r"(?i)\b(?:required|requires?|missing|expected|must|empty|blank|provide[ds]?|undefined|null|needs?|lacks?"
    r"|absent|specify|supply|mandatory|KeyError|no|not (?:be )?(?:present|found|given|set)|invalid)\b"
)
NAME = r"([A-Za-z_]\w{0,40})(?![\w-])"
QUOTED = re.compile(r"""(?<!\w)["'`‘“]([A-Za-z_][\w.]{0,40})["'`’”]""")
NOUN = r"(?:fields?|param(?:eter)?s?|property|properties|keys?|arguments?|attributes?|members?)"
FILLER = r"(?:(?:a|an|the|your|some|required|mandatory|valid|non-empty|json|request|body)\s+)*"
NAMES = re.compile(rf"(?i)\b{NAME}(?:(?:,| and| or|, and|, or) {NAME})+ (?:is|are|must)\b")
UNQUOTED = (
    re.compile(rf"(?i)\b{NOUN}\s*[:=]?\s+{NAME}"),  # missing parameter: query
    re.compile(  # query is required; the query field must not be empty
        rf"(?i)\b{NAME}\s+(?:{NOUN}\s+)?(?:is|was|are|must|can'?not|should|may not)\b"
    ),
    re.compile(  # no query provided; please provide a query
        rf"(?i)\b(?:missing|provide|specify|supply|no|without|requires?|expected|needs?)\s*:?\s+{FILLER}{NAME}"
    ),
)
NOT_NAMES = re.compile(
    r"(?i)a|access|an|and|api|apikey|are|argument|arguments|array|at|auth|"
    r"authentication|authorization|be|bearer|been|body|boolean|can|cannot|"
    r"content_type|credentials|error|expected|field|fields|for|form|found|header|"
    r"headers|i|in|int|integer|is|it|item|items|json|key|keys|list|media|method|"
    r"missing|must|no|not|null|number|object|of|one|or|page|param|parameter|"
    r"parameters|params|payload|permission|property|provide|provided|request|required|"
    r"resource|route|should|str|string|such|that|the|they|this|token|type|"
    r"undefined|valid|validation|value|values|was|we|you|your"
)
# Names under which an error has its texts, not its fields.
TEXT_NAMES = re.compile(
    r"(?i)code|description|detail|details|error|error_description|errormessage|errors|"
    r"exception|hint|info|message|messages|msg|reason|stack|status|title|trace|type"
)
PROMPT_NAMES = re.compile(
    r"(?i)(?:user_?|chat_?|input_?|new_?)?(?:prompt|query|question|message|text|input|inputs|content|q|msg|utterance"
    r"|sentence|ask|request|instruction|body)(?:_?(?:text|message|input|content))?"
)
# The values of other fields, by their names. The first match counts.
VALUES: tuple[tuple[re.Pattern[str], object], ...] = (
    (re.compile(r"(?i)messages"), "{messages}"),
    (re.compile(r"(?i).*(?:history|turns|dialog|context|conversation)"), "{history}"),
    (re.compile(r"(?i).*(?:session|conversation|thread|chat|dialog)_?(?:id|key)?"), "{session}"),
    (
        re.compile(r"(?i)(?:.*_)?(?:user|client|customer|sender|from)_?(?:id|name)?"),
        "{user|rewrap}",
    ),
    (re.compile(r"(?i).*model(?:_?(?:id|name))?"), "{model}"),
    (re.compile(r"(?i)stream(?:ing)?"), "{stream}"),
    (re.compile(r"(?i).*temperature"), "{temperature|0.7}"),
    (re.compile(r"(?i)max.*tokens|.*length"), "{max_tokens|256}"),
    (re.compile(r"(?i)lang(?:uage)?|locale"), "en"),
    (re.compile(r"(?i)role"), "user"),
)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a request that a URL wants."""

    path: tuple[str, ...]  # names from the top of the body
    place: str = ""  # body, query or form; "" if the error does not say
    kind: str = ""  # array, object, number, boolean; "" for a string, or if the error does not say


def wanted_fields(body: bytes) -> list[Field]:
    """The fields that an error names, in its order; at most MAX_FIELDS."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = body[:ERROR_CHARACTERS].decode("utf-8", "replace")
    found: dict[tuple[str, ...], Field] = {}
    for field in fields_in(value):
        known = found.get(field.path)
        if known is None or (not known.kind and field.kind):
            found[field.path] = field
    return list(found.values())[:MAX_FIELDS]


def fields_in(value: object, depth: int = 6) -> Iterator[Field]:
    if isinstance(value, str):
        with suppress(ValueError):  # some servers put their JSON into a string
            inner = orjson.loads(value[:ERROR_CHARACTERS])
            if isinstance(inner, (dict, list)) and depth:
                yield from fields_in(inner, depth - 1)
                return
        yield from fields_in_text(value[:ERROR_CHARACTERS])
    elif isinstance(value, list) and depth:
        for item in value[:20]:
            yield from fields_in(item, depth - 1)
    elif isinstance(value, dict) and depth:
        item = field_of_item(value)
        if item is not None:
            yield item
            return
        for name, inner in list(value.items())[:20]:
            if is_field_error(name, inner):
                yield Field((name,), kind=kind_in(str(inner)))
            else:
                yield from fields_in(inner, depth - 1)


def field_of_item(item: JSONObject) -> Field | None:
    """The field of one entry of a list of errors, such as pydantic's {"loc": ["body", "query"], "msg", "type"}."""
    place = item.get("loc") or item.get("path") or item.get("field") or item.get("param")
    text = " ".join(str(item.get(name, "")) for name in ("type", "msg", "message", "expected"))
    steps = place if isinstance(place, list) else [place]
    names = [step for step in steps if isinstance(step, str)]
    if not names or not ("expected" in item or TRIGGER.search(text) or kind_in(text)):
        return None
    where = PLACES.get(str(item.get("location", "")), "")
    if names[0] in PLACES and len(names) > 1:
        where = PLACES[names.pop(0)]
    if names[0] in ("header", "headers", "cookie", "path"):
        return None
    path = tuple(name for name in re.split(r"[./]", "/".join(names)) if name)
    return Field(path, where, kind_in(text)) if path else None


def is_field_error(name: str, value: object) -> bool:
    """Whether a member is a field with its errors, which do not name it: {"query": ["This field is required."]}."""
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        text = " ".join(value)
    elif isinstance(value, str) and not TEXT_NAMES.fullmatch(name):
        text = value
    else:
        return False
    return bool(TRIGGER.search(text)) and not any(fields_in_text(text))


def fields_in_text(text: str) -> Iterator[Field]:
    """The fields that a sentence names."""
    alone = re.fullmatch(r"'(\w+)'", text.strip())  # the text of Python's KeyError
    if alone:
        yield Field((alone[1],))
    for sentence in re.split(r"[.;\n]\s", text):
        if TRIGGER.search(sentence):
            for name in names_in(sentence):
                yield Field(tuple(name.split(".")), place_in(sentence), kind_in(sentence))


def names_in(sentence: str) -> list[str]:
    quoted = usable(match[1] for match in QUOTED.finditer(sentence))
    if quoted:
        return list(dict.fromkeys(field_name(name) for name in quoted))
    several = NAMES.search(sentence)  # query and user_id are required
    if several:
        return usable(re.findall(r"\w+", several[0]))
    for pattern in UNQUOTED:
        names = usable(match[1] for match in pattern.finditer(sentence))
        if names:
            return names
    return []


def field_name(quoted: str) -> str:
    """The field of a quoted name: `body.query`, or Go's `Request.Query`."""
    first, dot, rest = quoted.partition(".")
    return rest if dot and (first == "body" or first[0].isupper()) else quoted


def usable(names: Iterable[str]) -> list[str]:
    return [name for name in names if not NOT_NAMES.fullmatch(name)]


def place_in(sentence: str) -> str:
    if re.search(r"(?i)\bquery[ -]?(?:string )?param|in (?:the )?query\b|querystring", sentence):
        return "query"
    if re.search(r"(?i)\bform[ -]?(?:data|field)", sentence):
        return "form"
    return ""


def kind_in(text: str) -> str:
    for kind, pattern in KINDS.items():
        if pattern.search(text):
            return kind
    return ""


def request_of(fields: Mapping[tuple[str, ...], Field]) -> JSONObject:
    """A template of a request with these fields. The likeliest of them gets the prompt."""
    prompts = [path for path in fields if PROMPT_NAMES.fullmatch(path[-1])]
    if not prompts:
        others = [path for path, field in fields.items() if value_of(field) is None]
        prompts = others[:1]
    request: JSONObject = {}
    for path, field in fields.items():
        place = request
        for name in path[:-1]:
            place = place.setdefault(name, {})
        value: object = "{session}"  # often an id, which chats must not share
        if path in prompts:
            value = ["{prompt}"] if field.kind == "array" else "{prompt}"
        elif value_of(field) is not None:
            value = value_of(field)
        place[path[-1]] = value
    return request


def value_of(field: Field) -> object:
    """The value of a field by its name or its type; None if neither is known."""
    for pattern, value in VALUES:
        if pattern.fullmatch(field.path[-1]):
            return value
    return {"number": 1, "boolean": False, "object": {}, "array": []}.get(field.kind)
