"""Settings: one frozen struct, and the only reader of the environment and of `.env`."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any

import httpx
import orjson

from rewrap.config.near_misses import nearest_setting
from rewrap.regex import regex
from rewrap.structs import ReadOnly, struct
from rewrap.types import Limits
from rewrap.urls import check_url, is_header

OPENAI_BASE = "https://api.openai.com/v1"
OPENAI_MODEL = "gpt-4o-mini"
LOG_LEVELS = ("debug", "info", "warning", "error")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
TRUE = ("true", "1", "yes", "on")
FALSE = ("false", "0", "no", "off")

GROUPS: dict[str, list[str]] = {}  # the names of the settings, by their title in the help


def setting(group: str, default: object, about: str, **rules: object) -> Any:
    """A field with its text for people and its rules.

    Rules: url, header and secret (true or false), minimum, maximum, above, among; alias, another name of the variable;
    file, if NAME_FILE may name a file with the value.
    """
    metadata = {"group": group, "about": about, **rules}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@struct(frozen=True)
class Settings(ReadOnly):
    """Each field is the environment variable of its name in capitals; the environment wins over `.env`."""

    # fmt: off
    chat_url: str = setting("upstream", "", "The chat URL that answers. The mock answers if neither CHAT_URL nor OPENAI_API_BASE nor CONFIG is set.", url=True)
    chat_headers: dict[str, str] = setting("upstream", {}, 'Headers for CHAT_URL, as JSON: {"Authorization": "Bearer ..."}.', secret=True)
    chat_shape: str = setting("upstream", "", "The shape of CHAT_URL, such as ollama or dify. By default it is detected.")
    chat_key: str = setting("upstream", "", "The key for CHAT_URL, sent where its shape wants it.", secret=True, header=True, file=True)
    config: str = setting("upstream", "", "A TOML file with several backends. It replaces CHAT_URL and OPENAI_API_BASE.")
    openai_api_base: str = setting("upstream", "", "The base URL of an OpenAI-compatible upstream, including its /v1. OPENAI_BASE_URL is another name for it.", url=True, alias="OPENAI_BASE_URL")
    openai_api_key: str = setting("upstream", "", "The key for OPENAI_API_BASE. Without it, the client's own key is sent there. In .env, the key alone sets OPENAI_API_BASE to https://api.openai.com/v1 and OPENAI_MODEL to gpt-4o-mini.", secret=True, header=True, file=True)
    on_unsupported: str = setting("upstream", "error", "Images, forced tools and JSON schemas that an upstream cannot take: error (400) or drop.", among=("error", "drop"))
    openai_model: str = setting("upstream", "", "The model for requests without one. The mock's is mock-gpt-model.")
    require_model: bool = setting("upstream", False, "true: a request without a model gets 400, as from OpenAI.")
    upstream_proxy: str = setting("upstream", "", "The HTTP proxy for connections to the upstream: http://host:port.", url=True)
    dns_seconds: float = setting("upstream", 30.0, "The time for which the addresses of an upstream's name are cached. 0: no cache.", minimum=0)
    max_connections: int = setting("upstream", 2000, "The largest number of connections to upstreams, in each worker.", minimum=1)
    forward_headers: tuple[str, ...] = setting("upstream", (), "Headers of the client that are sent to the upstream as well, separated by commas.")
    pass_through: bool = setting("upstream", True, "false: paths that are not served here do not go to an OpenAI-compatible upstream.")
    responses: str = setting("upstream", "auto", "/v1/responses at an OpenAI-compatible upstream: native (as it is), translate (to a chat), or auto (native where the upstream has it).", among=("auto", "native", "translate"))
    late_instructions: str = setting("upstream", "keep", "System messages of /v1/responses after the first turn: keep, hoist (to the front) or user (as user text).", among=("keep", "hoist", "user"))
    reasoning_as_summary: bool = setting("upstream", False, "true: /v1/responses shows reasoning as a summary, which the AI SDK reads.")

    use_mock_api: bool = setting("mock", False, "true: the mock answers, and all upstreams are ignored.")
    mock_words_per_second: float = setting("mock", 0.0, "The speed of the mock's streams. 0: no delay.", minimum=0)
    mock_rules: str = setting("mock", "", "A TOML file of rules for the mock, or a folder of them. It is read again when it changes.")
    mock_strict: bool = setting("mock", False, "true: a request that no rule matches gets 404, which names the nearest rule.")
    mock_faults: tuple[str, ...] = setting("mock", ("500",), "Faults that MOCK_FAULT_RATE draws from, separated by commas: 429, 500, cut, stall=2s ...")
    mock_fault_rate: float = setting("mock", 0.0, "The share of the mock's answers that have a fault, from 0 to 1.", minimum=0, maximum=1)
    mock_any_id: bool = setting("mock", False, "true: the mock answers for any id of a stored object, and takes every request that OpenAI's specification allows, for the generated tests of SDKs.")
    mock_seed: int = setting("mock", 0, "The seed of the faults: the same seed gives the same faults.")

    record: str = setting("record and replay", "", "A folder. Each exchange with an upstream is written to a file there, without credentials.")
    replay: str = setting("record and replay", "", "A folder of recordings, which answer instead of the upstream. The other settings stay as they were for RECORD.")
    replay_miss: str = setting("record and replay", "404", "A request without a recording: 404, or record (it goes to the upstream and is recorded).", among=("404", "record"))
    replay_speed: float = setting("record and replay", 0.0, "The speed of recorded answers. 0: at once, 1: as recorded, 2: twice as fast.", minimum=0)
    replay_ignore: tuple[str, ...] = setting("record and replay", (), "Members of requests that may differ from the recording, separated by commas: names (seed) or paths (metadata.run).")

    api_keys: tuple[str, ...] = setting("keys and limits", (), "The keys that clients may use, separated by commas. Without API_KEYS and SECRET_KEY the server is open.", secret=True, file=True)
    secret_key: tuple[str, ...] = setting("keys and limits", (), "Secrets for signed keys, separated by commas. The first one signs, all verify. `rewrap key USER` prints a key.", secret=True, file=True)
    revoked_keys: tuple[str, ...] = setting("keys and limits", (), "Signed keys that are no longer valid, as whole keys or ids, separated by commas.")
    rate_limit_per_minute: int = setting("keys and limits", 0, "Requests a minute for each key, or for each address without a key. 0: no limit.", minimum=0)
    rate_limit_store_url: str = setting("keys and limits", "", "The store where several machines count requests together: redis://host:6379 or mongodb://... It needs rewrap[redis] or rewrap[mongo].")
    max_concurrent_requests: int = setting("keys and limits", 0, "Chats at the same time. Further ones get 503. 0: no limit.", minimum=0)

    hooks: str = setting("hooks and store", "", "Your own functions that see each chat: mymodule:before,mymodule:after.")
    store_url: str = setting("hooks and store", "", "The store of completions: sqlite:///file.db, sqlite:// (memory), or mongodb://... with rewrap[mongo]. By default sqlite:///chat.db, and memory while the mock answers.")
    store_by_default: bool = setting("hooks and store", False, 'true: every chat is stored, unless its request has "store": false.')
    store_max_age_days: float = setting("hooks and store", 0.0, "Stored completions are deleted after so many days. 0: never.", minimum=0)

    host: str = setting("server", "127.0.0.1", "The address to listen on.")
    port: int = setting("server", 8000, "The port to listen on. 0: any free port.", minimum=0, maximum=65535)
    workers: int = setting("server", 1, "The number of processes that serve.", minimum=1, maximum=256)
    keep_alive_seconds: float = setting("server", 75.0, "The time for which an idle connection of a client is kept.", above=0)
    grace_seconds: float = setting("server", 30.0, "The time that open answers have to finish after SIGTERM.", minimum=0)
    log_level: str = setting("server", "info", "debug (with payloads), info (one line for each request), warning or error.", among=LOG_LEVELS)
    log_format: str = setting("server", "text", "text, or json with one object a line.", among=("text", "json"))
    metrics: bool = setting("server", False, "true: GET /metrics for Prometheus. It needs rewrap[metrics], and a key where keys are set.")
    metrics_public: bool = setting("server", False, "true: GET /metrics needs no key.")
    allowed_hosts: tuple[str, ...] = setting("server", (), "Host names that this server accepts, separated by commas, in addition to localhost on a loopback address.")
    allow_origins: tuple[str, ...] = setting("server", (), "Origins of web pages that may call this server (CORS), separated by commas: https://app.example, https://*.app.example, or *. On a loopback address, pages of this machine (http://localhost:*) may call too. ALLOWED_ORIGIN is another name for it.", alias="ALLOWED_ORIGIN")
    forwarded_allow_ips: str = setting("server", "127.0.0.1", "Addresses of proxies whose X-Forwarded-For is trusted, separated by commas, or *.")
    forwarded_hops: int = setting("server", 1, "The number of proxies in front of this server, for FORWARDED_ALLOW_IPS=*. The client's address is so many entries from the end of X-Forwarded-For.", minimum=1)
    docs_assets_url: str = setting("server", "https://cdn.jsdelivr.net/npm", "The mirror of npm packages from which the pages load their scripts.", url=True)

    invalid_request_status: int = setting("statuses", 400, "The status of invalid requests: 400 or 422.", among=(400, 422))
    upstream_failure_status: int = setting("statuses", 502, "The status of upstream failures: 502 or 500.", among=(502, 500))

    sse_ping_seconds: float = setting("times and sizes", 15.0, "A stream that is silent for so long gets a comment, so that intermediaries keep it open. 0: never.", minimum=0)
    connect_timeout_seconds: float = setting("times and sizes", 5.0, "The time to connect to an upstream, including TLS.", above=0)
    first_byte_timeout_seconds: float = setting("times and sizes", 600.0, "The time until the head of the upstream's answer to a request for a stream.", above=0)
    stall_timeout_seconds: float = setting("times and sizes", 300.0, "The time until the next bytes of a stream. Comments and pings count.", above=0)
    total_timeout_seconds: float = setting("times and sizes", 600.0, "The time for a whole JSON answer, with all fallbacks.", above=0)
    max_memory_bytes: int = setting("times and sizes", 0, "The memory for requests and gathered replies, in each worker. Requests that do not fit get 503. 0: a quarter of the memory of the container or machine, divided by the workers.", minimum=0)
    max_body_bytes: int = setting("times and sizes", 32 * 2**20, "The largest request body. Larger ones get 413.", minimum=1)
    max_reply_bytes: int = setting("times and sizes", 64 * 2**20, "The largest whole answer of an upstream, and the largest stream that is stored.", minimum=1)
    max_event_bytes: int = setting("times and sizes", 8 * 2**20, "The largest single event of an upstream's stream.", minimum=1)
    # fmt: on

    def __repr__(self) -> str:
        """Without the values: some are secrets."""
        return "Settings(...)"

    @classmethod
    def load(cls, env_file: str = ".env") -> "Settings":
        """The settings of the environment and `.env`. Raises ValueError, in one line that names the setting.

        A key for OpenAI in `.env` names OpenAI as the upstream. One in the environment does not: it may be there for
        other programs, and would cost money.
        """
        in_file = env_file_variables(env_file)
        check_file_names(in_file, env_file)
        found = in_file | dict(os.environ)
        values: dict[str, object] = {}
        for spec in fields(cls):
            text = text_of_setting(spec, found)
            if text:
                values[spec.name] = cast(spec.name.upper(), text, spec)
        in_file_key = in_file.get("OPENAI_API_KEY") or in_file.get("OPENAI_API_KEY_FILE")
        if in_file_key and "openai_api_key" in values:
            if not values.keys() & {"chat_url", "config", "openai_api_base"}:
                values["openai_api_base"] = OPENAI_BASE
                values.setdefault("openai_model", OPENAI_MODEL)
        settings = cls(**values)  # type: ignore[arg-type]
        settings.check_own_address()
        return settings

    def check_own_address(self) -> None:
        """Raises ValueError if the upstream is this server: its requests would go around without end."""
        if self.use_mock_api or self.config:
            return
        for name in ("chat_url", "openai_api_base"):
            url = getattr(self, name)
            if url and is_loopback_address(url, self.port):
                raise ValueError(
                    f"{name.upper()} is the address of this server itself: name another one, or set PORT"
                )

    def needs_mock(self) -> bool:
        """Whether the mock is needed beside an upstream: for REPLAY, or to check MOCK_RULES and MOCK_FAULTS."""
        return bool(self.replay or self.mock_rules or self.mock_fault_rate)

    def check_no_chat_options(self) -> None:
        """Raises ValueError if an option of a chat URL is set. There is none."""
        for name in ("chat_shape", "chat_key", "chat_headers"):
            if getattr(self, name):
                raise ValueError(f"{name.upper()} is set, and CHAT_URL is not")

    def limits(self) -> Limits:
        """The bounds of an upstream's answers."""
        return Limits(
            first_byte=self.first_byte_timeout_seconds,
            stall=self.stall_timeout_seconds,
            total=self.total_timeout_seconds,
            request=self.total_timeout_seconds,
            reply_bytes=self.max_reply_bytes,
            event_bytes=self.max_event_bytes,
        )

    def secrets(self) -> list[str]:
        """The texts that no log may contain."""
        texts: list[str] = []
        for spec in fields(self):
            if spec.metadata.get("secret"):
                texts += setting_texts(getattr(self, spec.name))
        return [text for text in texts if len(text) > 3]


for spec in fields(Settings):
    GROUPS.setdefault(spec.metadata["group"], []).append(spec.name)


def default_text(spec: "Field[object]") -> str:
    """A setting's default as it stands in the environment; "" if it is empty."""
    if spec.default is MISSING or spec.default in ((), ""):
        return ""
    if isinstance(spec.default, tuple):
        return ",".join(spec.default)
    if isinstance(spec.default, bool):
        return str(spec.default).lower()
    if isinstance(spec.default, float):
        return f"{spec.default:g}"
    return str(spec.default)


# The environment.

# Like python-dotenv: an optional `export`, quotes around the value (without escapes), a comment after a blank.
LINE = regex(
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
    return env_file_variables(env_file) | dict(os.environ)


def env_file_variables(path: str) -> dict[str, str]:
    """The variables of a file; none if there is no such file. Raises ValueError."""
    if not os.path.isfile(path):
        return {}
    values: dict[str, str] = {}
    for line in file_text(path, path).split("\n"):
        match = LINE.fullmatch(line)
        if match:
            bare = (match["bare"] or "").strip()
            values[match["name"]] = match["quoted"] or match["json"] or bare
    return values


def file_text(path: str, where: str) -> str:
    """Raises ValueError, in one line that begins with `where`."""
    try:
        return Path(path).read_text("utf-8-sig")  # Notepad writes a BOM
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}") from None
    except UnicodeError:
        raise ValueError(f"{where}: not UTF-8") from None


def known_variables() -> list[str]:
    """The names of all settings, with their other names and their files."""
    names: list[str] = []
    for spec in fields(Settings):
        name = spec.name.upper()
        names.append(name)
        if spec.metadata.get("alias"):
            names.append(spec.metadata["alias"])
        if spec.metadata.get("file"):
            names.append(f"{name}_FILE")
    return names


def check_file_names(names: Iterable[str], env_file: str) -> None:
    """Raises ValueError for a name in `.env` that is nearly a setting: such a file is written for this server."""
    known = known_variables()
    for name in names:
        setting = nearest_setting(name, known, in_file=True)
        if setting:
            raise ValueError(f"{env_file}: {name} is not a setting; did you mean {setting}?")


def text_of_setting(spec: "Field[object]", found: Mapping[str, str]) -> str:
    """The text of a setting, of its other name, or of its file; "" if none is set. Raises ValueError."""
    name = spec.name.upper()
    text = utf8_text(name, found)
    alias = spec.metadata.get("alias", "")
    other = utf8_text(alias, found) if alias else ""
    if name == "OPENAI_API_BASE" and text and other and text.rstrip("/") != other.rstrip("/"):
        raise ValueError(f"{name} and {alias} are two names of one setting, and have two values")
    path = utf8_text(f"{name}_FILE", found) if spec.metadata.get("file") else ""
    if not path:
        return text or other
    if text:
        raise ValueError(f"{name} and {name}_FILE are both set")
    lines = file_text(path, f"{name}_FILE").split("\n")
    content = ",".join(line.strip() for line in lines if line.strip())
    if not content:
        raise ValueError(f"{name}_FILE: the file is empty")
    return content


def utf8_text(name: str, found: Mapping[str, str]) -> str:
    """The value of a variable. Raises ValueError if it is not UTF-8."""
    text = found.get(name, "").strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not UTF-8") from None
    return text


def is_loopback_address(url: str, port: int) -> bool:
    """Whether a URL is this port of this machine."""
    address = httpx.URL(url)
    default = 443 if address.scheme == "https" else 80
    host = address.raw_host.decode("ascii")
    return host in LOOPBACK_NAMES and (address.port or default) == port


# Values.


def cast(name: str, text: str, spec: "Field[object]") -> object:
    """A setting's text as its type. Raises ValueError; it never repeats the text of a secret."""
    rules = spec.metadata
    if spec.type is bool:
        return boolean(name, text)
    if spec.type is int:
        return in_range(name, text, number_setting(name, text, int), rules)
    if spec.type is float:
        return in_range(name, text, number_setting(name, text, float), rules)
    if spec.type is str:
        return checked_text(name, text, rules)
    if name == "CHAT_HEADERS":
        return headers(name, text)
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise ValueError(f"{name} has commas, and nothing between them")
    if name == "ALLOW_ORIGINS":
        return tuple(browser_origin(part) for part in parts)
    return parts


def boolean(name: str, text: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        raise ValueError(f"{name} must be true or false, not {text!r}")
    return text.lower() in TRUE


def number_setting(name: str, text: str, type: type[int] | type[float]) -> int | float:
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


def browser_origin(text: str) -> str:
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


def setting_texts(value: object) -> list[str]:
    """The texts of a setting: one, several, or the last word of each header (without `Bearer`)."""
    if isinstance(value, dict):
        return [text.split()[-1] for text in value.values() if text.strip()]
    if isinstance(value, tuple):
        return list(value)
    return [str(value)]
