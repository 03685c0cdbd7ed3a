"""The log: every line has its time; an access line for each request, written in batches.

LOG_FORMAT is text, or json with one object a line. A program that has log handlers of its own keeps them: then each access line
is a record of its own. Imports the request context and the event loop's leaf file.
"""

import asyncio
import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import TextIO

import orjson

from rewrap.ids import owner_id
from rewrap.server.context import RequestContext, printable
from rewrap.types import ResponseInfo

log = logging.getLogger("rewrap")

LEVEL_NAMES = {logging.DEBUG: "DEBUG", logging.INFO: "INFO"}  # of access lines
BATCH = "rewrap.access"  # the name of a record whose lines are complete
# Load balancers, Kubernetes and Prometheus ask for these all the time: their lines are for debugging.
QUIET_PATHS = frozenset(["/health", "/livez", "/readyz", "/metrics"])


class TextFormatter(logging.Formatter):
    """Time, level and text, on each line of a record."""

    def __init__(self) -> None:
        super().__init__()
        self.second = 0
        self.second_text = ""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == BATCH:
            return record.getMessage()
        return self.dated(record.created, record.levelname, super().format(record))

    def dated(self, created: float, level: str, text: str) -> str:
        """A text with the time (Unix, seconds; shown as local time) and the level on each line."""
        second = int(created)
        if second != self.second:
            self.second_text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self.second = second
        head = f"{self.second_text},{int((created - second) * 1000):03d} {level} "
        if "\n" in text:
            text = text.replace("\n", f"\n{head}")
        return head + text


class JSONFormatter(logging.Formatter):
    """A JSON object: `time` (UTC), `level`, `message`, and `exception` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.name == BATCH:
            return message
        members = {
            "time": utc(record.created),
            "level": record.levelname.lower(),
            "message": message,
        }
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        return json.dumps(members, separators=(",", ":"))

    def dated(self, created: float, level: str, text: str) -> str:
        return text  # the object has both


class OwnHandler(logging.StreamHandler[TextIO]):
    """The handler of this project, on stderr."""

    def __init__(self, formatter: TextFormatter | JSONFormatter) -> None:
        super().__init__(sys.stderr)
        self.use(formatter)

    def use(self, formatter: TextFormatter | JSONFormatter) -> None:
        self.own_formatter = formatter
        self.setFormatter(formatter)


def set_up_log(level: str, log_format: str) -> None:
    """Log to stderr in this format ("text" or "json"), unless the program has log handlers already."""
    log.setLevel(level.upper())
    formatter = JSONFormatter() if log_format == "json" else TextFormatter()
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(OwnHandler(formatter))
    for handler in root.handlers:
        if isinstance(handler, OwnHandler):
            handler.use(formatter)


def own_handler() -> OwnHandler | None:
    """The handler of this project, if there is no other."""
    handlers = logging.getLogger().handlers
    if len(handlers) == 1 and isinstance(handlers[0], OwnHandler) and not log.handlers:
        return handlers[0]
    return None


class AccessLog:
    """Collects lines and writes them together: a line through `logging` costs 15 µs, in a batch 2.

    Writing waits for the reader of a full pipe, and the server waits with it: log to a file or to a process that reads.
    """

    SECONDS = 0.1

    def __init__(self) -> None:
        handler = own_handler()
        self.is_json = handler is not None and isinstance(handler.own_formatter, JSONFormatter)
        self.debug = log.isEnabledFor(logging.DEBUG)
        self.lines: list[tuple[float, int, str]] = []  # Unix time, level, text
        self.loop: asyncio.AbstractEventLoop | None = None  # that flushes

    def __call__(self, context: RequestContext) -> None:
        """Log a request that has its answer."""
        level = logging.INFO
        if context.scope["path"] in QUIET_PATHS:
            if not self.debug:
                return
            level = logging.DEBUG
        loop = context.loop
        if not self.lines or self.loop is not loop:  # an earlier loop may have ended too soon
            self.loop = loop
            loop.call_later(self.SECONDS, self.flush)
        now = time.time()
        line = json_line(context, now, level) if self.is_json else text_line(context)
        self.lines.append((now, level, line))

    def flush(self) -> None:
        lines = self.lines
        self.lines = []
        if not lines:
            return
        handler = own_handler()
        if handler is None:
            name = BATCH if self.is_json else log.name
            for created, level, line in lines:
                record = access_record(name, level, line)
                record.created = created
                log.handle(record)
            return
        dated = handler.own_formatter.dated
        texts = [dated(created, LEVEL_NAMES[level], line) for created, level, line in lines]
        log.handle(access_record(BATCH, logging.INFO, "\n".join(texts)))


def access_record(name: str, level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 0, text, None, None)


def text_line(context: RequestContext) -> str:
    """Method, path, status, times, model, backend, tokens, error, id."""
    now = time.perf_counter()
    first_byte = (context.first_byte or now) - context.started
    line = (
        f"{context.scope['method']} {printable(context.scope['original_path'])} {context.final_status()}"
        f" first_byte={first_byte * 1e3:.1f}ms total={(now - context.started) * 1e3:.1f}ms"
    )
    info = context.info
    if info is not None:
        counts = info.usage or {}
        prompt = counts.get("prompt_tokens", "-")
        reply = counts.get("completion_tokens", "-")
        line += f" model={printable(info.model)} backend={info.backend} tokens={prompt}+{reply}"
    if context.error:
        line += f" error={context.error}"
    return f"{line} id={context.id}"


def json_line(context: RequestContext, created: float, level: int) -> str:
    """The same as a JSON object, with the owner. Members without a value are null; times are in seconds."""
    now = time.perf_counter()
    first_byte = (context.first_byte or now) - context.started
    info = context.info or ResponseInfo()
    counts = info.usage or {}
    members = {
        "time": utc(created),
        "level": logging.getLevelName(level).lower(),
        "message": "request",
        "request_id": context.id,
        "method": context.scope["method"],
        "path": printable(context.scope["original_path"]),
        "status": context.final_status(),
        "model": printable(info.model) or None,
        "backend": info.backend or None,
        "owner": owner_id(context.identity) or None,
        "first_byte_seconds": round(first_byte, 6),
        "duration_seconds": round(now - context.started, 6),
        "prompt_tokens": counts.get("prompt_tokens"),
        "completion_tokens": counts.get("completion_tokens"),
        "error": context.error or None,
    }
    return orjson.dumps(members).decode()


def utc(created: float) -> str:
    """A time (Unix, seconds) as RFC 3339 has it, in milliseconds."""
    time_of = datetime.fromtimestamp(created, UTC)
    return time_of.isoformat(timespec="milliseconds").replace("+00:00", "Z")
