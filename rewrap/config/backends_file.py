"""Several backends at once, from a TOML file: which there are, and which answers for which model.

    [[backend]]
    name = "fast"                       # also in logs, /info and `fallbacks`
    models = ["gpt-4o", "gpt-4o-*"]     # exact names, patterns with * and ?; "*" is every other name
    kind = "openai"                     # openai, chat (any chat URL), or mock
    url = "https://api.example.com/v1"
    key_env = "FAST_API_KEY"            # the variable that holds the key: a key never stands in the file
    model = "small-2026"                # the upstream's own name of the model, where it is another
    fallbacks = ["other"]               # tried where this one cannot be reached, or answers 5xx or 429

Also: shape = "dify", or [backend.mapping] with a shape of one's own; headers; params = {rename, defaults, drop, roles};
words_per_second (mock); first_byte_, stall_ and total_timeout_seconds. Does not make backends: factory.py does.
Imports nothing of ours, so that settings.py and shapes.py can share its checks of URLs and headers.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin

import orjson

from rewrap.urls import check_url, is_header

KINDS = ("openai", "chat", "mock")
RESPONSES = ("auto", "native", "translate")
ONLY = {
    "shape": "chat",
    "mapping": "chat",
    "responses": "openai",
    "words_per_second": "mock",
}  # what other kinds would pass over in silence
PARAMS = {"rename": dict, "defaults": dict, "drop": list, "roles": dict}


@dataclass(frozen=True, slots=True)
class BackendTable:
    """One `[[backend]]` of the file, checked. `key` is what the variable `key_env` holds."""

    name: str
    models: list[str] = field(default_factory=lambda: ["*"])
    kind: str = "chat"
    url: str = ""
    key_env: str = ""
    key: str = field(default="", repr=False)
    model: str = ""
    fallbacks: list[str] = field(default_factory=list)
    shape: str = ""
    mapping: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    responses: str = ""  # "": the setting RESPONSES
    words_per_second: float = 0.0
    first_byte_timeout_seconds: float = 0.0  # 0: as the setting of that name says
    stall_timeout_seconds: float = 0.0
    total_timeout_seconds: float = 0.0


def read_backends_file(path: str, environ: Mapping[str, str]) -> list[BackendTable]:
    """The backends of a file, in its order. Raises ValueError: one line that names the file, the backend and the field."""
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"CONFIG: {path} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}"
        ) from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # TOMLDecodeError is a ValueError; so is a number without end
        raise ValueError(f"CONFIG: {path} is not TOML: {error}") from None
    tables = data.pop("backend", None)
    if (
        data
        or not isinstance(tables, list)
        or not tables
        or not all(isinstance(t, dict) for t in tables)
    ):
        raise ValueError(f"CONFIG: {path} must have [[backend]] tables, and nothing beside them")
    backends = [
        backend_table(table, f"CONFIG: {path}: backend {number}", environ)
        for number, table in enumerate(tables, 1)
    ]
    names = [backend.name for backend in backends]
    for backend in backends:
        if names.count(backend.name) > 1:
            raise ValueError(f"CONFIG: {path}: two backends have the name {backend.name!r}")
        for other in backend.fallbacks:
            if other not in names or other == backend.name:
                raise ValueError(
                    f"CONFIG: {path}: backend {backend.name!r}: fallbacks: there is no other backend {other!r}"
                )
    return backends


def backend_table(table: dict[str, Any], where: str, environ: Mapping[str, str]) -> BackendTable:
    """One table, checked. Raises ValueError."""
    known = {
        spec.name: get_origin(spec.type) or spec.type
        for spec in fields(BackendTable)
        if spec.name != "key"
    }
    for name, value in table.items():
        kind: Any = known.get(name)
        if kind is None:
            raise ValueError(f"{where}: {name} is not known")
        kinds: Any = (int, float) if kind is float else kind
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{where}: {name} must be a {kind.__name__}")
        if kind is list or name == "headers":
            items: Any = value if kind is list else value.values()
            if not all(isinstance(item, str) for item in items):
                raise ValueError(f"{where}: {name} must hold strings")
        if kind is float and not 0 <= value <= 1e9:
            raise ValueError(f"{where}: {name} must be from 0 to 1e9")
    if not table.get("name"):
        raise ValueError(f"{where}: it has no name")
    if (kind := table.get("kind", "chat")) not in KINDS:
        raise ValueError(f"{where}: kind must be one of {', '.join(KINDS)}")
    for name, only in ONLY.items():
        if name in table and kind != only:
            raise ValueError(f"{where}: {name} is for the kind {only} alone")
    if table.get("responses", "auto") not in RESPONSES:
        raise ValueError(f"{where}: responses must be one of {', '.join(RESPONSES)}")
    if kind != "mock":
        check_url(table.get("url", ""), f"{where}: url")
    for name, value in table.get("headers", {}).items():
        if not is_header(name, value):
            raise ValueError(f"{where}: headers: {name!r} is none that can be sent")
    for name, value in table.get("params", {}).items():
        if name not in PARAMS:
            raise ValueError(f"{where}: params may have {', '.join(PARAMS)}")
        items = value.values() if isinstance(value, dict) else value
        if not isinstance(value, PARAMS[name]) or (
            name != "defaults" and not all(isinstance(i, str) for i in items)
        ):
            raise ValueError(
                f"{where}: params: {name} must be a {PARAMS[name].__name__} of strings"
            )
    params = table.get("params", {})
    rename, defaults = params.get("rename", {}), params.get("defaults", {})
    for name in ("model", "messages"):
        if name in (*rename, *rename.values(), *defaults, *params.get("drop", ())):
            raise ValueError(
                f"{where}: params: {name} cannot be renamed, dropped, or have a default"
            )
    try:
        orjson.dumps(defaults)
    except TypeError as error:
        raise ValueError(f"{where}: params: defaults: {error}") from None
    if table.get("shape") and table.get("mapping"):
        raise ValueError(f"{where}: shape and mapping are two ways to say one thing")
    if "mapping" in table and not table["mapping"]:
        raise ValueError(
            f"{where}: mapping is empty: it needs a reply, the path of the text of an answer"
        )
    variable = table.get("key_env")
    key = environ.get(variable, "").strip() if variable else ""
    if variable and not key:
        raise ValueError(f"{where}: key_env: the variable {variable} is not set")
    if not is_header("key", key):
        raise ValueError(f"{where}: key_env: the variable {variable} holds no key that can be sent")
    return BackendTable(**table, key=key)
