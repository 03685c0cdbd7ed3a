"""The fields that an error of a chat URL names as missing or wrong, as in "field 'query' is required".

Pure functions: the body of an answer goes in, Fields come out, and a request template is made of them. Sources: the errors of
FastAPI and pydantic, Django REST framework, Flask, Express, zod, Ajv, ASP.NET, Spring, Go's validator, Rust's serde.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

import orjson

from rewrap.structs import struct
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
    r"|absent|specify|supply|mandatory|KeyError|no|not (?:be )?(?:present|found|given|set)|invalid"
    r"|should|is not an?|(?:cannot|can['’]t) be)\b"
)
# A name, or a path: input.text, input[text], input/text, /input/text, $.input.text
PATH = r"""(?:\$\.|(?<![:/])/)?[A-Za-z_]\w{0,40}(?:[./]\w{1,40}|\[["']?\w{1,40}["']?\]){0,6}"""
NAME = rf"(?<![\w.$@/-])({PATH})(?![\w-])"
QUOTED = re.compile(rf"""(?<![\w\[])["'`‘“]({PATH})["'`’”]""")
NOUN = r"(?:fields?|param(?:eter)?s?|property|properties|keys?|arguments?|attributes?|members?)"
FILLER = r"(?:(?:a|an|the|your|some|required|mandatory|valid|non-empty|json|request|body)\s+)*"
NAMES = re.compile(rf"(?i){NAME}(?:(?:,| and| or|, and|, or) {NAME})+ (?:is|are|must)\b")
UNQUOTED = (
    re.compile(rf"(?i)\b{NOUN}\s*[:=]?\s+{NAME}"),  # missing parameter: query
    re.compile(  # query is required; the query field must not be empty
        rf"(?i){NAME}\s+(?:{NOUN}\s+)?(?:is|was|are|must|cannot|can['’]t|should|may not)\b"
    ),
    re.compile(  # input.text: expected a string; query: field required
        rf"(?i){NAME}\s*:\s+(?:this |the )?(?:{NOUN} |value )?(?:is |are )?"
        r"(?:required|missing|expected|must|should|cannot|can['’]t|not an?)\b"
    ),
    re.compile(  # expected a string at input.text
        rf"(?i)\b(?:string|text|value|got \w+)\s+(?:at|for|in)\s+{NAME}"
    ),
    re.compile(  # no query provided; please provide a query
        rf"(?i)\b(?:missing|provide|specify|supply|no|without|requires?|expected|needs?)\s*:?\s+{FILLER}{NAME}"
    ),
)
# The types that a text speaks of after the wanted one: expected a string, but got an array.
GIVEN = re.compile(r"(?i),?\s+(?:but\s+)?(?:received|got|found|instead of)\b|,\s*not\b")
STRING = re.compile(r"(?i)\bstr(?:ing)?(?:_type)?\b")
# Words of a sentence whose paths are those of URLs, and types of content.
ADDRESS = re.compile(r"(?i)\b(?:route|endpoint|url|uri|page|file|resource)\b")
MEDIA_TYPE = re.compile(r"(?i)(?:application|multipart|image|audio)/|text/(?:plain|html|event)")
NOT_NAMES = re.compile(
    r"(?i)\w*error|\w*exception|failed|fields?_?required|"
    r"a|access|an|and|api|apikey|are|argument|arguments|array|at|auth|"
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
    r"|constraints?|explanation|expected|keyword|problem|rule|validation|violation"
)
# Members of an error whose value is the name of a field.
FIELD_MEMBERS = (
    "loc",
    "field",
    "fieldname",
    "fieldpath",
    "param",
    "paramname",
    "parameter",
    "parametername",
    "instancepath",
    "propertypath",
    "pointer",
)
# These may also be the name of something else.
OTHER_MEMBERS = (
    "path",
    "property",
    "propertyname",
    "attribute",
    "argument",
    "target",
    "key",
    "name",
)
WRITTEN = re.compile(r"""[\w$/][\w.$/\[\]'"-]{0,120}""")
LISTS = re.compile(
    r"(?i)(?:missing|required|absent)_?(?:fields|names|params|parameters|properties|keys)?"
)
GIVEN_MEMBERS = re.compile(r"(?i)received|actual|value|input|given|rejected_?value")
URL_MEMBERS = frozenset(["status", "statusCode", "timestamp", "method"])
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


@struct(frozen=True, slots=True)
class Field:
    """A field of a request that a URL wants."""

    path: tuple[str, ...]  # names from the top of the body
    place: str = ""  # body, query or form; "" if the error does not say
    kind: str = ""  # array, object, number, boolean; "" for a string, or if the error does not say
    written: str = ""  # its name in a form or a query


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
            yield from fields_of_member(name, inner, depth - 1)


def fields_of_member(name: str, value: object, depth: int) -> Iterator[Field]:
    listed = value if isinstance(value, list) else [value]
    names = [item for item in listed if isinstance(item, str) and WRITTEN.fullmatch(item)]
    if LISTS.fullmatch(name) and names and len(names) == len(listed):
        yield from filter(None, map(field_of_name, names))
        return
    if is_field_error(name, value):
        kind = kind_in(str(value))
        path = field_of_name(name, kind=kind) if WRITTEN.fullmatch(name) else None
        yield path or Field((name,), kind=kind, written=name)
    else:
        yield from fields_in(value, depth)


def field_of_item(item: JSONObject) -> Field | None:
    """The field of one entry of a list of errors.

    Such as pydantic's {"loc": ["body", "query"], "msg", "type"}, or {"field": "query", "reason": "is required"}.
    """
    members = {re.sub("[_-]", "", name).lower(): name for name in item}
    for plain in (*FIELD_MEMBERS, *OTHER_MEMBERS):
        name = members.get(plain, "")
        if not item.get(name):
            continue
        texts = list(texts_beside(item, name))
        if not asks_for_field("expected" in item, " ".join(texts)):
            continue
        where = PLACES.get(str(item.get("location", "")), "")
        field = field_at(item[name], where, kind_in(" ".join(texts)))
        if field is None:
            continue
        if plain in FIELD_MEMBERS or names_no_other(item, name, field):
            return field
    return None


def texts_beside(item: JSONObject, place: str) -> Iterator[str]:
    """The texts of an error beside the name of its field."""
    for name, value in item.items():
        if name == place or GIVEN_MEMBERS.fullmatch(name):
            continue
        inner = [value]
        if isinstance(value, list):
            inner = value
        elif isinstance(value, dict):
            inner = list(value.values())
        yield from [text[:ERROR_CHARACTERS] for text in inner if isinstance(text, str)]


def asks_for_field(has_type: bool, text: str) -> bool:
    words = re.sub(r"_|(?<=[a-z])(?=[A-Z])", " ", text)
    return has_type or bool(TRIGGER.search(words) or kind_in(text))


def names_no_other(item: JSONObject, name: str, field: Field) -> bool:
    """Whether a member such as `name` or `path` is about a field: no text beside it names another one."""
    if str(item[name]).startswith("/") and not URL_MEMBERS.isdisjoint(item):
        return False
    about = {key: value for key, value in item.items() if TEXT_NAMES.fullmatch(key)}
    texts = list(texts_beside(about, name))
    named = [other.path for text in texts for other in fields_in_text(text)]
    return asks_for_field("expected" in item, " ".join(texts)) and (
        not named or field.path in named
    )


def field_at(place: object, where: str, kind: str) -> Field | None:
    """The field of a list of names, or of a name."""
    if isinstance(place, str):
        if not WRITTEN.fullmatch(place):
            return None
        field = field_of_name(place, where, kind)
        return field if field and not NOT_NAMES.fullmatch(field.path[-1]) else None
    if not isinstance(place, list):
        return None
    steps = [str(step) for step in place]
    if len(steps) > 1 and steps[0] in PLACES:
        where = PLACES[steps.pop(0)]
    if not steps or steps[0] in ("header", "headers", "cookie", "path"):
        return None
    return field_of_steps(steps, where, kind, ".".join(steps))


def field_of_name(written: str, where: str = "", kind: str = "") -> Field | None:
    """The field of a name or a path as an error writes it: `body.query`, `$.input.text`, Go's `Request.Query`."""
    name = re.sub(r"""^\$?[./]?|["']""", "", written)
    first, dot, rest = name.partition(".")
    if dot and (first == "body" or first[:1].isupper()):
        name = rest
    return field_of_steps(re.findall(r"[\w-]+", name), where, kind, name)


def field_of_steps(steps: list[str], where: str, kind: str, written: str) -> Field | None:
    """An item of a list is left to the list."""
    names: list[str] = []
    for step in steps:
        if step.isdigit():
            kind = "array"
            break
        names.append(step)
    if not names:
        return None
    return Field(tuple(names), where, kind, written)


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
        yield Field((alone[1],), written=alone[1])
    for sentence in re.split(r"[.;\n]\s", text):
        if not TRIGGER.search(sentence):
            continue
        for name in names_in(sentence):
            field = field_of_name(name, place_in(sentence), kind_in(sentence))
            if field is not None:
                yield field


def names_in(sentence: str) -> list[str]:
    """The names of fields in a sentence, as it writes them."""
    quoted = usable(QUOTED, sentence)
    if quoted:
        return list(dict.fromkeys(quoted))
    several = NAMES.search(sentence)  # query and user_id are required
    if several:
        return usable(re.compile(NAME), several[0])
    for pattern in UNQUOTED:
        names = usable(pattern, sentence)
        if names:
            return names
    return []


def usable(pattern: re.Pattern[str], sentence: str) -> list[str]:
    """The names that a pattern finds, without words and addresses."""
    names = [match[1] for match in pattern.finditer(sentence)]
    if ADDRESS.search(sentence):
        names = [name for name in names if "/" not in name]
    return [name for name in names if not NOT_NAMES.fullmatch(name) and not MEDIA_TYPE.match(name)]


def place_in(sentence: str) -> str:
    if re.search(r"(?i)\bquery[ -]?(?:string )?param|in (?:the )?query\b|querystring", sentence):
        return "query"
    if re.search(r"(?i)\bform[ -]?(?:data|field)", sentence):
        return "form"
    return ""


def kind_in(text: str) -> str:
    """The type that a text asks for: the first that it names."""
    wanted = GIVEN.split(text)[0]
    found = {kind: pattern.search(wanted) for kind, pattern in KINDS.items()}
    found[""] = STRING.search(wanted)
    places = {kind: match.start() for kind, match in found.items() if match}
    return min(places, key=lambda kind: places[kind], default="")


def request_of(fields: Mapping[tuple[str, ...], Field]) -> JSONObject:
    """A template of a request with these fields."""
    request: JSONObject = {}
    for path, value in values_of(fields).items():
        place = request
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = value
    return request


def flat_request_of(fields: Mapping[tuple[str, ...], Field]) -> JSONObject:
    """A template of a form or a query with these fields."""
    values = values_of(fields)
    return {fields[path].written or ".".join(path): value for path, value in values.items()}


def values_of(fields: Mapping[tuple[str, ...], Field]) -> dict[tuple[str, ...], object]:
    """The value of each field that contains no other one. The likeliest of them gets the prompt."""
    parents = {path[:length] for path in fields for length in range(1, len(path))}
    inner = {path: field for path, field in fields.items() if path not in parents}
    prompts = [path for path, field in inner.items() if may_be_prompt(field)]
    if not prompts:
        prompts = [path for path, field in inner.items() if value_of(field) is None][:1]
    values: dict[tuple[str, ...], object] = {}
    for path, field in inner.items():
        value: object = "{session}"  # often an id, which chats must not share
        if path in prompts:
            value = ["{prompt}"] if field.kind == "array" else "{prompt}"
        elif value_of(field) is not None:
            value = value_of(field)
        values[path] = value
    return values


def may_be_prompt(field: Field) -> bool:
    return field.kind in ("", "array") and bool(PROMPT_NAMES.fullmatch(field.path[-1]))


def value_of(field: Field) -> object:
    """The value of a field by its name or its type; None if neither is known."""
    for pattern, value in VALUES:
        if pattern.fullmatch(field.path[-1]):
            return value
    return {"number": 1, "boolean": False, "object": {}, "array": []}.get(field.kind)
