"""Settings: one frozen dataclass, and the only reader of the environment and of `.env`."""

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

from rewrap.urls import check_url, is_header

LOG_LEVELS = ("debug", "info", "warning", "error")
TRUE = ("true", "1", "yes", "on")
FALSE = ("false", "0", "no", "off")

GROUPS: dict[str, list[str]] = {}  # the names of the settings, by their title in the help


def setting(group: str, default: object, about: str, **rules: object) -> Any:
    """A field with its text for people and its rules.

    Rules: url, header and secret (true or false), minimum, maximum, above, among.
    """
    metadata = {"group": group, "about": about, **rules}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Each field is the environment variable of its name in capitals; the environment wins over `.env`."""

    # fmt: off
    chat_url: str = setting("upstream", "", "The chat URL that answers. Without it and OPENAI_API_BASE, the mock answers.", url=True)
    chat_headers: dict[str, str] = setting("upstream", {}, 'Headers for CHAT_URL, as JSON: {"Authorization": "Bearer ..."}.', secret=True)
    chat_shape: str = setting("upstream", "", "The shape of CHAT_URL, such as ollama or dify. Without it, it is detected.")
    chat_key: str = setting("upstream", "", "The key for CHAT_URL, sent where its shape wants it.", secret=True, header=True)
    config: str = setting("upstream", "", "A TOML file with several backends, in place of CHAT_URL and OPENAI_API_BASE.")
    openai_api_base: str = setting("upstream", "", "An OpenAI-compatible upstream, up to and with its /v1.", url=True)
    openai_api_key: str = setting("upstream", "", "The key for OPENAI_API_BASE. Without it, the client's own key goes there.", secret=True, header=True)
    openai_model: str = setting("upstream", "", "The model for requests without one.")
    upstream_proxy: str = setting("upstream", "", "A proxy on the way to the upstream: http://host:port.", url=True)
    max_connections: int = setting("upstream", 2000, "Connections to upstreams, for each worker.", minimum=1)

    forward_headers: tuple[str, ...] = setting("upstream", (), "Headers of the client that go to the upstream, separated by commas.")

    pass_through: bool = setting("upstream", True, "false: paths that are not served here do not go to an OpenAI-compatible upstream.")
    responses: str = setting("upstream", "auto", "/v1/responses at an OpenAI-compatible upstream: native (as it is), translate (to a chat), or auto (native where the upstream has it).", among=("auto", "native", "translate"))
    late_instructions: str = setting("upstream", "keep", "System messages of /v1/responses after the first turn: keep, hoist (to the front) or user (as user text).", among=("keep", "hoist", "user"))
    reasoning_as_summary: bool = setting("upstream", False, "true: /v1/responses shows reasoning as a summary, which the AI SDK reads.")

    use_mock_api: bool = setting("mock", False, "true: the mock answers, and no upstream is used.")
    mock_words_per_second: float = setting("mock", 0.0, "The speed of the mock's streams; 0: all at once.", minimum=0)

    api_keys: tuple[str, ...] = setting("keys and limits", (), "Keys that clients may use, separated by commas.", secret=True)
    secret_key: tuple[str, ...] = setting("keys and limits", (), "Secrets that sign keys, separated by commas; the first signs, all verify. `rewrap key USER` makes a key.", secret=True)
    revoked_keys: tuple[str, ...] = setting("keys and limits", (), "Signed keys that are no longer valid, whole or by id, separated by commas.")
    rate_limit_per_minute: int = setting("keys and limits", 0, "Requests a minute for each key, or address; 0: no limit.", minimum=0)
    rate_limit_store_url: str = setting("keys and limits", "", "A store in which several machines count together, with the packages limits and redis, or limits and pymongo: redis://host:6379 or mongodb://...")
    max_concurrent_requests: int = setting("keys and limits", 0, "Chats at the same time; more get 503. 0: no limit.", minimum=0)

    hooks: str = setting("hooks and store", "", "Functions of yours that see chats: mymodule:before,mymodule:after.")
    store_url: str = setting("hooks and store", "sqlite:///chat.db", "Stored completions: sqlite:///file.db, sqlite:// (memory), or mongodb://... with the package pymongo.")
    store_max_age_days: float = setting("hooks and store", 0.0, "Stored completions that are older are deleted; 0: never.", minimum=0)

    host: str = setting("server", "127.0.0.1", "The address to listen on.")
    port: int = setting("server", 8000, "The port to listen on; 0: any free one.", minimum=0, maximum=65535)
    workers: int = setting("server", 1, "Processes that serve, for machines with several cores.", minimum=1, maximum=256)
    grace_seconds: float = setting("server", 30.0, "How long open answers may go on after SIGTERM.", minimum=0)
    log_level: str = setting("server", "info", "debug (with payloads), info (one line a request), warning or error.", among=LOG_LEVELS)
    allowed_hosts: tuple[str, ...] = setting("server", (), "Names that this server answers to (Host), beside localhost on a loopback address.")
    allow_origins: tuple[str, ...] = setting("server", (), "Origins of web pages that may call (CORS), separated by commas: https://app.example, https://*.app.example, or *. ALLOWED_ORIGIN is another name for it.")
    forwarded_allow_ips: str = setting("server", "127.0.0.1", "Proxies whose X-Forwarded-For is trusted, separated by commas, or *.")
    docs_assets_url: str = setting("server", "https://cdn.jsdelivr.net/npm", "The mirror of npm packages from which /docs and /redoc load their scripts.", url=True)

    invalid_request_status: int = setting("statuses", 400, "The status of invalid requests: 400 or 422.", among=(400, 422))
    upstream_failure_status: int = setting("statuses", 502, "The status of an upstream's failure: 502 or 500.", among=(502, 500))

    sse_ping_seconds: float = setting("times and sizes", 15.0, "A stream that is silent for so long gets a comment; 0: never.", minimum=0)
    connect_timeout_seconds: float = setting("times and sizes", 5.0, "To connect to the upstream, with TLS.", above=0)
    first_byte_timeout_seconds: float = setting("times and sizes", 600.0, "Until the head of an upstream's stream.", above=0)
    stall_timeout_seconds: float = setting("times and sizes", 300.0, "Until the next bytes of an upstream's stream; comments and pings count.", above=0)
    total_timeout_seconds: float = setting("times and sizes", 600.0, "For a whole answer without a stream, with all fallbacks.", above=0)
    max_body_bytes: int = setting("times and sizes", 32 * 2**20, "The largest request; larger ones get 413.", minimum=1)
    max_reply_bytes: int = setting("times and sizes", 64 * 2**20, "The largest whole answer of an upstream, and the largest stream that is stored.", minimum=1)
    max_event_bytes: int = setting("times and sizes", 8 * 2**20, "The largest event of an upstream's stream.", minimum=1)
    # fmt: on

    @classmethod
    def load(cls, env_file: str = ".env") -> "Settings":
        """The settings of the environment and `.env`. Raises ValueError, in one line that names the setting."""
        found = variables(env_file)
        values: dict[str, object] = {}
        for spec in fields(cls):
            name = spec.name.upper()
            text = found.get(name, "")
            if not text and name == "ALLOW_ORIGINS":
                text = found.get("ALLOWED_ORIGIN", "")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{name} is not UTF-8") from None
            if text.strip():
                values[spec.name] = cast(name, text.strip(), spec)
        return cls(**values)  # type: ignore[arg-type]

    def secrets(self) -> list[str]:
        """The texts that no log may contain."""
        texts: list[str] = []
        for spec in fields(self):
            if spec.metadata.get("secret"):
                texts += texts_in(getattr(self, spec.name))
        return [text for text in texts if len(text) > 3]


for spec in fields(Settings):
    GROUPS.setdefault(spec.metadata["group"], []).append(spec.name)


def default_text(spec: "Field[object]") -> str:
    """A setting's default as it stands in the environment; "" if it is empty."""
    if spec.default is MISSING or spec.default in ((), "", 0.0, 0, False):
        return ""
    if isinstance(spec.default, float):
        return f"{spec.default:g}"
    return str(spec.default)


# The environment.

# Like python-dotenv: an optional `export`, quotes around the value (without escapes), a comment after a blank.
LINE = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[^\s#=]+)\s*=
        (?: \s*(?P<mark>["'])(?P<quoted>.*?)(?P=mark)
          | \s*(?P<json>\{.*\})
          | (?P<bare>.*?)
        )
        (?:\s+\#.*)?\s*""",
    re.VERBOSE,
)


def variables(env_file: str = ".env") -> dict[str, str]:
    """The variables of `.env`, and of the environment over them. Raises ValueError, in one line that names the file."""
    lines: list[str] = []
    try:
        if os.path.isfile(env_file):
            lines = Path(env_file).read_text("utf-8-sig").split("\n")  # Notepad writes a BOM
    except OSError as error:
        raise ValueError(f"{env_file}: {error.strerror}") from None
    except UnicodeError:
        raise ValueError(f"{env_file}: not UTF-8") from None
    values: dict[str, str] = {}
    for line in lines:
        match = LINE.fullmatch(line)
        if match:
            bare = (match["bare"] or "").strip()
            values[match["name"]] = match["quoted"] or match["json"] or bare
    return values | dict(os.environ)


# Values.


def cast(name: str, text: str, spec: "Field[object]") -> object:
    """A setting's text as its type. Raises ValueError; it never repeats the text of a secret."""
    rules = spec.metadata
    if spec.type is bool:
        return boolean(name, text)
    if spec.type is int:
        return in_range(name, text, number(name, text, int), rules)
    if spec.type is float:
        return in_range(name, text, number(name, text, float), rules)
    if spec.type is str:
        return checked_text(name, text, rules)
    if name == "CHAT_HEADERS":
        return headers(name, text)
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise ValueError(f"{name} has commas, and nothing between them")
    if name == "ALLOW_ORIGINS":
        return tuple(origin(part) for part in parts)
    return parts


def boolean(name: str, text: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        raise ValueError(f"{name} must be true or false, not {text!r}")
    return text.lower() in TRUE


def number(name: str, text: str, type: type[int] | type[float]) -> int | float:
    try:
        return type(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {text!r}") from None


def in_range(name: str, text: str, value: int | float, rules: Mapping[str, object]) -> int | float:
    """Raises ValueError. Infinity and NaN are out of every range."""
    minimum = bound(rules, "minimum", float("-inf"))
    maximum = bound(rules, "maximum", 1e20)
    above = bound(rules, "above", float("-inf"))
    if not minimum <= value <= maximum or value <= above:
        raise ValueError(f"{name} is out of range: {text}")
    among = rules.get("among")
    if isinstance(among, tuple) and value not in among:
        raise ValueError(f"{name} must be {' or '.join(map(str, among))}, not {text}")
    return value


def bound(rules: Mapping[str, object], name: str, default: float) -> float:
    value = rules.get(name, default)
    assert isinstance(value, (int, float))
    return value


def checked_text(name: str, text: str, rules: Mapping[str, object]) -> str:
    if rules.get("url"):
        check_url(text, name)
    if rules.get("header") and not is_header("key", text):
        raise ValueError(
            f"{name} must be a key that a header can carry: one line, without letters above U+00FF"
        )
    among = rules.get("among")
    if not isinstance(among, tuple):
        return text
    if text.lower() not in among:
        raise ValueError(f"{name} must be {', '.join(among[:-1])} or {among[-1]}")
    return text.lower()


def headers(name: str, text: str) -> dict[str, str]:
    try:
        value = orjson.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not all(is_header(*item) for item in value.items()):
        raise ValueError(
            f'{name} must be a JSON object of headers: {{"Authorization": "Bearer ..."}}'
        )
    return value


def origin(text: str) -> str:
    """An origin as browsers write it. Raises ValueError for one that no browser sends."""
    text = text.lower().removesuffix("/")
    text = re.sub(r"^(https://.*):443$|^(http://.*):80$", r"\1\2", text)
    if text in ("*", "null"):
        return text
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://(?!\*(?::|$))[^/\s]+", text):
        raise ValueError(
            f"ALLOW_ORIGINS: {text!r} is not an origin: they are like https://app.example:8443"
        )
    return text


def texts_in(value: object) -> list[str]:
    """The texts of a setting: one, several, or the last word of each header (without `Bearer`)."""
    if isinstance(value, dict):
        return [text.split()[-1] for text in value.values() if text.strip()]
    if isinstance(value, tuple):
        return list(value)
    return [str(value)]
