"""Settings: one frozen dataclass, and the only reader of the environment and of `.env`."""

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

from rewrap.urls import check_url, is_header


def setting(default: Any, about: str, **limits: Any) -> Any:
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"about": about, **limits})
    return field(default=default, metadata={"about": about, **limits})


@dataclass(frozen=True)
class Settings:
    """Each field is the environment variable of its name in capitals; the environment wins over `.env`."""

    chat_url: str = setting(
        "", "The chat URL that answers. Unset, and OPENAI_API_BASE too: the mock does.", url=True
    )
    chat_headers: dict[str, str] = setting(
        {}, 'Headers for CHAT_URL, as JSON: {"Authorization": "Bearer ..."}.', secret=True
    )
    chat_shape: str = setting(
        "", "The shape that CHAT_URL speaks, such as ollama or dify. Unset: it is found out."
    )
    chat_key: str = setting(
        "", "The key for CHAT_URL, sent where its shape wants it.", secret=True, header=True
    )
    config: str = setting(
        "", "A TOML file with several backends, in place of CHAT_URL and OPENAI_API_BASE."
    )
    openai_api_base: str = setting(
        "", "An OpenAI-compatible upstream, up to and with its /v1.", url=True
    )
    openai_api_key: str = setting(
        "", "Key for OPENAI_API_BASE. Unset: the client's own goes along.", secret=True, header=True
    )
    openai_model: str = setting("", "The model for requests that name none.")
    use_mock_api: bool = setting(False, "true: the mock answers, whatever else is set.")
    mock_words_per_second: float = setting(
        0.0, "How fast the mock speaks; 0: all at once.", least=0
    )
    api_keys: tuple[str, ...] = setting(
        (), "Keys that clients must have one of, separated by commas.", secret=True
    )
    secret_key: tuple[str, ...] = setting(
        (),
        "Secrets that keys are signed with; the first signs, all verify. Make keys with: ./rewrap key USER",
        secret=True,
    )
    revoked_keys: tuple[str, ...] = setting(
        (), "Signed keys that are no longer good, whole or their ids, with commas."
    )
    rate_limit_per_minute: int = setting(
        0, "Requests a minute for each key, or address; 0: no limit.", least=0
    )
    rate_limit_store_url: str = setting(
        "",
        "Where several machines count together, with the packages limits and redis, or limits and pymongo: redis://host:6379 or mongodb://...",
    )
    max_concurrent_requests: int = setting(
        0, "Chats at the same moment, above which there is 503; 0: no limit.", least=0
    )
    hooks: str = setting("", "Functions of yours that see chats: mymodule:before,mymodule:after.")
    store_url: str = setting(
        "sqlite:///chat.db",
        "Stored completions: sqlite:///file.db, sqlite:// (memory), or mongodb://... with the package pymongo.",
    )
    store_max_age_days: float = setting(
        0.0, "Stored completions that are older are deleted; 0: never.", least=0
    )
    allowed_hosts: tuple[str, ...] = setting(
        (), "Names this server answers to (Host), beside localhost on a loopback."
    )
    allow_origins: tuple[str, ...] = setting(
        (),
        "Origins of web pages that may call (CORS), with commas: https://app.example, https://*.app.example, or *. ALLOWED_ORIGIN does, too.",
    )
    docs_assets_url: str = setting(
        "https://cdn.jsdelivr.net/npm",
        "Where /docs and /redoc get their scripts: a mirror of npm packages.",
        url=True,
    )
    host: str = setting("127.0.0.1", "The address to listen on.")
    port: int = setting(8000, "The port to listen on; 0: any free one.", least=0, most=65535)
    workers: int = setting(
        1, "Processes that serve, where there are more cores.", least=1, most=256
    )
    grace_seconds: float = setting(30.0, "What open answers get to end, at SIGTERM.", least=0)
    log_level: str = setting(
        "info", "debug (payloads, too), info (a line a request), warning or error."
    )
    forwarded_allow_ips: str = setting(
        "127.0.0.1", "Proxies whose X-Forwarded-For is believed, with commas, or *."
    )
    invalid_request_status: int = setting(
        400, "The status of invalid requests: 400 or 422.", among=(400, 422)
    )
    upstream_failure_status: int = setting(
        502, "The status of an upstream's failure: 502 or 500.", among=(502, 500)
    )
    connect_timeout_seconds: float = setting(
        5.0, "To connect to the upstream, TLS and all.", above=0
    )
    first_byte_timeout_seconds: float = setting(
        120.0, "Until an upstream's first event, or its head.", above=0
    )
    stall_timeout_seconds: float = setting(60.0, "Until the next whole event of a stream.", above=0)
    total_timeout_seconds: float = setting(600.0, "For a whole answer that is no stream.", above=0)
    max_connections: int = setting(2000, "Connections to upstreams, for each worker.", least=1)
    max_body_bytes: int = setting(32 * 2**20, "The largest request; larger ones get 413.", least=1)
    max_reply_bytes: int = setting(
        64 * 2**20, "The largest whole answer, or stream that is kept, of an upstream.", least=1
    )
    max_event_bytes: int = setting(
        8 * 2**20, "The largest single event of an upstream's stream.", least=1
    )
    upstream_proxy: str = setting(
        "", "A proxy on the way to the upstream: http://host:port.", url=True
    )

    @classmethod
    def load(cls, env_file: str = ".env") -> "Settings":
        """From the environment and `.env`. Raises ValueError, one line that names the setting."""
        found = variables(env_file)
        values: dict[str, Any] = {}
        for spec in fields(cls):
            name = spec.name.upper()
            text = found.get(name) or (
                found.get("ALLOWED_ORIGIN", "") if name == "ALLOW_ORIGINS" else ""
            )
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{name} is not UTF-8") from None
            if text.strip():
                values[spec.name] = cast(name, text.strip(), spec.type, spec.metadata)
        if values.get("log_level", "info") not in ("debug", "info", "warning", "error"):
            raise ValueError("LOG_LEVEL must be debug, info, warning or error")
        return cls(**values)

    def secrets(self) -> list[str]:
        """What must never be read in a log."""
        found = [getattr(self, spec.name) for spec in fields(self) if spec.metadata.get("secret")]
        texts = [text for value in found for text in listed(value)]
        return [text for text in texts if len(text) > 3]


def variables(env_file: str = ".env") -> dict[str, str]:
    """All that is set: `.env`, and the environment over it. Raises ValueError, one line that names the file."""
    try:  # utf-8-sig: Notepad begins a file with a mark
        lines = (
            Path(env_file).read_text("utf-8-sig").split("\n") if os.path.isfile(env_file) else []
        )
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{env_file}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    found = [match for match in map(LINE.fullmatch, lines) if match]
    values = {
        match["name"]: match["quoted"] or match["json"] or (match["bare"] or "").strip()
        for match in found
    }
    return values | dict(os.environ)


# Like python-dotenv: `export` before it, quotes around its value (with no escapes), a comment (blank and #) after it.
LINE = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[^\s#=]+)\s*=(?:\s*(?P<mark>["'])(?P<quoted>.*?)(?P=mark)|\s*(?P<json>\{.*\})|(?P<bare>.*?))(?:\s+\#.*)?\s*"""
)


def cast(name: str, text: str, type: Any, limits: Any) -> Any:
    """A setting's text as its type. Raises ValueError; the text of a secret is not repeated."""
    if type is bool:
        if text.lower() not in ("true", "1", "yes", "on", "false", "0", "no", "off"):
            raise ValueError(f"{name} must be true or false, not {text!r}")
        return text.lower() in ("true", "1", "yes", "on")
    if type in (int, float):
        try:
            number = type(text)
        except ValueError:
            raise ValueError(f"{name} must be a number, not {text!r}") from None
        least, most = (
            limits.get("least", float("-inf")),
            limits.get("most", 1e20),
        )  # inf and nan are out of every range
        if not least <= number <= most or number <= limits.get("above", float("-inf")):
            raise ValueError(f"{name} is out of range: {text}")
        if number not in limits.get("among", (number,)):
            raise ValueError(f"{name} must be {' or '.join(map(str, limits['among']))}, not {text}")
        return number
    if type is str:
        if limits.get("url"):
            check_url(text, name)
        if limits.get("header") and not is_header("key", text):
            raise ValueError(
                f"{name} must be a key that a header can carry: one line, without letters above U+00FF"
            )
        return text.lower() if name == "LOG_LEVEL" else text
    if name == "CHAT_HEADERS":
        try:
            headers = orjson.loads(text)
        except ValueError:
            headers = None
        if not isinstance(headers, dict) or not all(is_header(*item) for item in headers.items()):
            raise ValueError(
                f'{name} must be a JSON object of headers: {{"Authorization": "Bearer ..."}}'
            )
        return headers
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise ValueError(f"{name} has commas, and nothing between them")
    return tuple(map(origin, parts)) if name == "ALLOW_ORIGINS" else parts


def origin(text: str) -> str:
    """As browsers write it. Raises ValueError for what none of them sends."""
    text = re.sub(r"^(https://.*):443$|^(http://.*):80$", r"\1\2", text.lower().removesuffix("/"))
    if text not in ("*", "null") and not re.fullmatch(
        r"[a-z][a-z0-9+.-]*://(?!\*(?::|$))[^/\s]+", text
    ):
        raise ValueError(
            f"ALLOW_ORIGINS: {text!r} is no origin: they are like https://app.example:8443"
        )
    return text


def listed(value: Any) -> list[str]:
    """The texts of a setting: one, several, or those that headers end with (without a `Bearer`)."""
    if isinstance(value, dict):
        return [text.split()[-1] for text in value.values() if text.strip()]
    return list(value) if isinstance(value, tuple) else [value]
