"""Where the reply stands in an answer of unknown form. For the probe: no request is served by a search.

Bodies go in, paths (as in shapes.toml) come out. Does no I/O.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

import orjson

from rewrap.upstream.framing import NDJSONDecoder, SSEDecoder

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


def decoder_of(body: bytes) -> SSEDecoder | NDJSONDecoder:
    if EVENT.search(body):
        return SSEDecoder(len(body))
    return NDJSONDecoder(len(body))


def is_failure(value: object) -> bool:
    """Whether a JSON value is an error, with any status."""
    if not isinstance(value, dict):
        return False
    if value.get("ok") is False or value.get("success") is False:
        return True
    if value.get("status") in ("error", "fail", "failed"):
        return True
    return any(inner and ERROR_NAMES.fullmatch(name) for name, inner in value.items())


def texts(value: object, path: str = "", depth: int = DEPTH) -> Iterator[tuple[str, str]]:
    """The texts in a JSON value that may be a reply, as (path, text)."""
    if isinstance(value, str) and value.strip():
        yield path or ".", value
    elif isinstance(value, dict) and depth:
        for name, inner in value.items():
            if not OTHER_NAMES.fullmatch(name):
                yield from texts(inner, f"{path}.{name}" if path else name, depth - 1)
    elif isinstance(value, list) and depth:
        for index, inner in enumerate(value[:ITEMS]):
            yield from texts(inner, f"{path}[{index}]", depth - 1)


def reply_path(body: bytes, sent: bytes, wanted: str) -> str | None:
    """The path of the reply, if there is only one candidate.

    `sent` is the body of the request: a text that was sent is no reply. `wanted` is a pattern of the reply that was
    asked for.
    """
    values = json_values(body)
    if any(is_failure(value) for value in values):
        return None
    echoes = sent_texts(sent)
    found: dict[str, str] = {}
    early: set[str] = set()  # the paths in the first event that has any
    for value in values:
        for path, text in texts(value):
            if text not in echoes:
                found[path] = found.get(path, "") + text
        early = early or set(found)
    likely = [path for path, text in found.items() if re.search(wanted, text, re.IGNORECASE)]
    likely = likely or list(found)
    likely = kept_if_any(likely, early)
    return likely[0] if len(likely) == 1 else None


def kept_if_any(paths: list[str], preferred: Iterable[str]) -> list[str]:
    return [path for path in paths if path in preferred] or paths


def sent_texts(sent: bytes) -> set[str]:
    """The texts of a request: its whole body, and each string in it."""
    return {sent.decode(), *(orjson.loads(text) for text in STRING.findall(sent))}
