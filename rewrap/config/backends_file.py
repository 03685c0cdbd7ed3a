"""Several backends from a TOML file: their addresses, keys and parameters, and the models of each.

    [[backend]]
    name = "fast"                       # also in logs, /info and `fallbacks`
    models = ["gpt-4o", "gpt-4o-*"]     # names, patterns with * and ?; "*", the default: all others
    kind = "openai"                     # openai, chat (any chat URL), or mock
    url = "https://api.example.com/v1"
    key_env = "FAST_API_KEY"            # the variable that holds the key: the file never has a key
    model = "small-2026"                # the upstream's own name of the model, if it has another
    fallbacks = ["other"]               # tried if this one cannot be reached, or answers 5xx or 429

Also: `shape = "dify"`, or `[backend.mapping]` with a shape of one's own; `headers`; `params =
{rename, defaults, drop, roles}`; `words_per_second` of a mock; `first_byte_timeout_seconds`,
`stall_timeout_seconds`, `total_timeout_seconds`. This module does not make backends. It imports
only types, and the checks of URLs and headers.
"""

from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import get_origin, get_type_hints

import orjson

from rewrap.structs import struct
from rewrap.types import JSONObject, Limits
from rewrap.urls import check_url, is_header

KINDS = ("openai", "chat", "mock")
RESPONSES = ("auto", "native", "translate")
# Fields of one kind. Another kind would ignore them.
KIND_OF_FIELD = {
    "shape": "chat",
    "mapping": "chat",
    "responses": "openai",
    "words_per_second": "mock",
}
PARAMS: dict[str, type] = {
    "rename": dict,
    "defaults": dict,
    "drop": list,
    "roles": dict,
}
ROUTING_MEMBERS = ("model", "messages")
MAX_NUMBER = 1e9


@struct(frozen=True, slots=True)
class BackendTable:
    """One checked `[[backend]]` of the file. `key` is the value of the variable `key_env`."""

    name: str
    models: list[str] = field(default_factory=lambda: ["*"])
    kind: str = "chat"
    url: str = ""
    key_env: str = ""
    key: str = field(default="", repr=False)
    model: str = ""
    fallbacks: list[str] = field(default_factory=list)
    shape: str = ""
    mapping: JSONObject = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    params: JSONObject = field(default_factory=dict)
    responses: str = ""  # "": the setting RESPONSES
    words_per_second: float = 0.0
    first_byte_timeout_seconds: float = 0.0  # 0: the setting of that name
    stall_timeout_seconds: float = 0.0
    total_timeout_seconds: float = 0.0

    def limits(self, common: Limits) -> Limits:
        """The bounds of this backend's answers: its own times in place of those of all."""
        return replace(
            common,
            first_byte=self.first_byte_timeout_seconds or common.first_byte,
            stall=self.stall_timeout_seconds or common.stall,
            total=self.total_timeout_seconds or common.total,
        )


FIELD_TYPES: dict[str, type] = {
    name: get_origin(hint) or hint
    for name, hint in get_type_hints(BackendTable).items()
    if name != "key"
}


def read_backends_file(path: str, environ: Mapping[str, str]) -> list[BackendTable]:
    """The backends of a file, in its order.

    Raises ValueError: one line that names the file, the backend and the field.
    """
    place = f"CONFIG: {path}"
    backends = [
        backend_table(table, f"{place}: backend {number}", environ)
        for number, table in enumerate(read_tables(path, place), 1)
    ]
    check_names(backends, place)
    return backends


def read_tables(path: str, place: str) -> list[JSONObject]:
    """The `[[backend]]` tables of a file. Raises ValueError."""
    import tomllib

    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{place} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise ValueError(f"{place} cannot be read: not UTF-8") from None
    # TOMLDecodeError is a ValueError; a number of too many digits raises one, too.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not TOML: {error}") from None
    tables = data.pop("backend", None)
    if data or not is_array_of_tables(tables):
        raise ValueError(f"{place} must have [[backend]] tables, and nothing beside them")
    return list(tables)


def is_array_of_tables(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(item, dict) for item in value)


def check_names(backends: list[BackendTable], place: str) -> None:
    """Raises ValueError if a name occurs twice, or a fallback does not exist."""
    names: set[str] = set()
    for backend in backends:
        if backend.name in names:
            raise ValueError(f"{place}: two backends have the name {backend.name!r}")
        names.add(backend.name)
    for backend in backends:
        for other in backend.fallbacks:
            if other not in names or other == backend.name:
                problem = f"fallbacks: there is no other backend {other!r}"
                raise ValueError(f"{place}: backend {backend.name!r}: {problem}")


def backend_table(table: JSONObject, place: str, environ: Mapping[str, str]) -> BackendTable:
    """One table, checked. Raises ValueError, in one line that begins with `place`."""
    for name, value in table.items():
        check_field(name, value, place)
    if not table.get("name"):
        raise ValueError(f"{place}: it has no name")
    check_kind(table, place)
    if table.get("kind") != "mock":
        check_url(table.get("url", ""), f"{place}: url")
    if table.get("responses", "auto") not in RESPONSES:
        raise ValueError(f"{place}: responses must be one of {', '.join(RESPONSES)}")
    for name, value in table.get("headers", {}).items():
        if not is_header(name, value):
            raise ValueError(f"{place}: headers: {name!r} is not a header that can be sent")
    check_params(table.get("params", {}), f"{place}: params")
    check_shape(table, place)
    key = read_key(table.get("key_env", ""), f"{place}: key_env", environ)
    return BackendTable(**table, key=key)


def check_field(name: str, value: object, place: str) -> None:
    """Raises ValueError if a field is unknown, or its value has another type."""
    kind = FIELD_TYPES.get(name)
    if kind is None:
        raise ValueError(f"{place}: {name} is not known")
    if kind is float:
        check_number(name, value, place)
        return
    if not isinstance(value, kind):
        raise ValueError(f"{place}: {name} must be a {kind.__name__}")
    items: list[object] = []
    if isinstance(value, list):
        items = value
    if isinstance(value, dict) and name == "headers":
        items = list(value.values())
    if not all(isinstance(item, str) for item in items):
        raise ValueError(f"{place}: {name} must hold strings")


def check_number(name: str, value: object, place: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{place}: {name} must be a float")
    if not 0 <= value <= MAX_NUMBER:
        raise ValueError(f"{place}: {name} must be from 0 to 1e9")


def check_kind(table: JSONObject, place: str) -> None:
    kind = table.get("kind", "chat")
    if kind not in KINDS:
        raise ValueError(f"{place}: kind must be one of {', '.join(KINDS)}")
    for name, only in KIND_OF_FIELD.items():
        if name in table and kind != only:
            raise ValueError(f"{place}: {name} is for the kind {only} alone")


def check_params(params: JSONObject, place: str) -> None:
    """Raises ValueError if `params` is not {rename, defaults, drop, roles} of strings."""
    for name, value in params.items():
        kind = PARAMS.get(name)
        if kind is None:
            raise ValueError(f"{place} may have {', '.join(PARAMS)}")
        if not isinstance(value, kind) or (name != "defaults" and not holds_strings(value)):
            raise ValueError(f"{place}: {name} must be a {kind.__name__} of strings")
    rename = params.get("rename", {})
    defaults = params.get("defaults", {})
    changed = {*rename, *rename.values(), *defaults}
    changed.update(params.get("drop", ()))
    for name in ROUTING_MEMBERS:
        if name in changed:
            raise ValueError(f"{place}: {name} cannot be renamed, dropped, or have a default")
    try:
        orjson.dumps(defaults)
    except TypeError as error:
        raise ValueError(f"{place}: defaults: {error}") from None


def holds_strings(value: object) -> bool:
    """Whether all items of a list, or all values of a table, are strings."""
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def check_shape(table: JSONObject, place: str) -> None:
    if table.get("shape") and table.get("mapping"):
        raise ValueError(f"{place}: shape and mapping exclude each other")
    if "mapping" in table and not table["mapping"]:
        problem = "mapping is empty: it needs `reply`, the path of the text in an answer"
        raise ValueError(f"{place}: {problem}")


def read_key(variable: str, place: str, environ: Mapping[str, str]) -> str:
    """The key in a variable, or "" if none is named. Raises ValueError."""
    if not variable:
        return ""
    key = environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"{place}: the variable {variable} is not set")
    if not is_header("key", key):
        raise ValueError(f"{place}: the variable {variable} holds no key that can be sent")
    return key
