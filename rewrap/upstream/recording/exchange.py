"""One exchange with an upstream, as a TOML file that people read in a pull request and edit.

    [request]
    method = "POST"
    path = "/v1/chat/completions"
    body = '''...'''                  # or base64 = "..."

    [response]
    status = 200
    after_ms = 312.5                  # from the request to the head
    end = "complete"

    [response.headers]
    content-type = "text/event-stream"

    [[response.pieces]]               # one for each read
    after_ms = 12.1                   # since the piece before
    text = '''...'''                  # or base64 = "..."

`end` is complete; cut or reset (the connection broke); silent (no more bytes came in time); broken
(wrong compression); left (the reader stopped before the end); unreachable (no connection). Without a
head, `status` is absent.
"""

import re
import tomllib
from base64 import b64decode, b64encode
from dataclasses import field
from pathlib import Path

import orjson

from rewrap.structs import struct
from rewrap.urls import is_header

ENDS = ("complete", "cut", "reset", "silent", "broken", "left", "unreachable")
MAX_FILE_BYTES = 128 * 2**20
MAX_MILLISECONDS = 3_600_000
COMMENT = """\
# An exchange with an upstream, recorded by rewrap. It may be edited: a changed file is read again.
"""

FileTable = dict[str, object]  # as tomllib reads it


@struct(frozen=True, slots=True)
class Request:
    """A request without its host, its headers and its secrets."""

    method: str
    path: str  # with the query
    body: bytes
    content_type: str = ""  # "" for JSON


@struct(slots=True)
class Piece:
    """The bytes of one read, so many seconds after the read before."""

    after: float
    data: bytes


@struct(slots=True)
class RecordedExchange:
    """A request and its answer. `status` is 0 if no head of an answer came."""

    request: Request
    status: int = 0
    after: float = 0.0  # seconds from the request to the head, or to the failure
    headers: dict[str, str] = field(default_factory=dict)
    has_length: bool = False  # the answer had a Content-Length
    pieces: list[Piece] = field(default_factory=list)
    end: str = "complete"
    end_after: float = 0.0  # seconds from the last piece


# Writing.


def toml_of(exchange: RecordedExchange) -> str:
    """The text of a file."""
    request = exchange.request
    lines = [COMMENT, "[request]"]
    lines.append(f"method = {quoted(request.method)}")
    lines.append(f"path = {quoted(request.path)}")
    if request.content_type:
        lines.append(f"content_type = {quoted(request.content_type)}")
        lines.append(data_line("body", request.body))
    elif request.body:
        lines.append(data_line("body", readable_json(request.body)))
    lines += ["", "[response]"]
    if exchange.status:
        lines.append(f"status = {exchange.status}")
    lines.append(f"after_ms = {milliseconds(exchange.after)}")
    if exchange.has_length:
        lines.append("has_length = true")
    lines.append(f"end = {quoted(exchange.end)}")
    if exchange.end_after >= 0.001:
        lines.append(f"end_after_ms = {milliseconds(exchange.end_after)}")
    if exchange.headers:
        lines += ["", "[response.headers]"]
        lines += [f"{quoted(name)} = {quoted(text)}" for name, text in exchange.headers.items()]
    for piece in exchange.pieces:
        lines += ["", "[[response.pieces]]", f"after_ms = {milliseconds(piece.after)}"]
        lines.append(data_line("text", piece.data))
    return "\n".join(lines) + "\n"


def milliseconds(seconds: float) -> str:
    return f"{max(0.0, seconds) * 1000:.1f}"


def readable_json(body: bytes) -> bytes:
    """JSON in lines, which a diff can compare; any other body as it is."""
    try:
        return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2) + b"\n"
    except (ValueError, TypeError):  # no JSON, or nested too deeply to be written
        return body


def data_line(name: str, data: bytes) -> str:
    """Bytes as a text if they are UTF-8, else in Base64."""
    try:
        return f"{name} = {multiline(data.decode())}"
    except UnicodeDecodeError:
        return f'base64 = "{b64encode(data).decode()}"'


def multiline(text: str) -> str:
    """A TOML string: in lines as they are, or with escapes if the text needs them.

    TOML drops a line end at the start of such a string, and a reader turns CRLF into LF.
    """
    is_plain = text.replace("\n", "").replace("\t", "").isprintable()
    if is_plain and "'''" not in text and not text.endswith("'"):
        return f"'''\n{text}'''"
    body = escaped_text(text)
    if body.endswith('"'):
        body = body[:-1] + '\\"'
    body = body.replace('"""', '""\\"')
    return f'"""\n{body}"""'


def quoted(text: str) -> str:
    """A TOML string in one line."""
    body = escaped_text(text).replace('"', '\\"').replace("\n", "\\n")
    return f'"{body}"'


def escaped_text(text: str) -> str:
    """A text with escapes for backslashes and for all characters that an editor may change."""
    text = text.replace("\\", "\\\\").replace("\r", "\\r")
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return UNPRINTABLE.sub(lambda match: escape_of(match[0]), text)


def escape_of(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return f"\\U{ord(character):08X}"


# Letters and marks of any script stay; the rest beyond ASCII is looked at one by one.
UNPRINTABLE = re.compile(r"[^\w\n\t -~]")


# Reading.


def read_exchange(path: Path) -> RecordedExchange:
    """The exchange in a file. Raises ValueError, in one line that names the file and the field."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes")
        return exchange_of(tomllib.loads(data.decode("utf-8-sig")))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8") from None
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError is a ValueError
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def exchange_of(document: FileTable) -> RecordedExchange:
    """Raises ValueError, which begins with the field."""
    check_members(document, ("request", "response"), "")
    request = table(document, "request", "")
    response = table(document, "response", "")
    check_members(request, ("method", "path", "content_type", "body", "base64"), "request.")
    check_members(response, RESPONSE_FIELDS, "response.")
    end = text(response, "end", "response.", "complete")
    if end not in ENDS:
        raise ValueError(f"response.end: must be one of {', '.join(ENDS)}")
    status = number_in(response, "status", "response.", 599)
    if status != int(status) or (status < 200 and status):
        raise ValueError("response.status: must be an integer from 200 to 599")
    if not status and end == "complete":
        raise ValueError("response.status is missing")
    return RecordedExchange(
        Request(
            text(request, "method", "request."),
            text(request, "path", "request."),
            bytes_in(request, "body", "request."),
            text(request, "content_type", "request.", ""),
        ),
        int(status),
        seconds(response, "after_ms", "response."),
        headers_of(response),
        response.get("has_length") is True,
        pieces_of(response),
        end,
        seconds(response, "end_after_ms", "response."),
    )


RESPONSE_FIELDS = ("status", "after_ms", "has_length", "end", "end_after_ms", "headers", "pieces")


def check_members(found: FileTable, known: tuple[str, ...], where: str) -> None:
    for name in found:
        if name not in known:
            raise ValueError(f"{where}{name}: unknown field; known are {', '.join(known)}")


def table(found: FileTable, name: str, where: str) -> FileTable:
    value = found.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{where}{name}: must be a table")
    return value


def text(found: FileTable, name: str, where: str, default: str | None = None) -> str:
    value = found.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"{where}{name}: must be a string")
    return value


def number_in(found: FileTable, name: str, where: str, maximum: float) -> float:
    """A number from 0; 0 if it is absent."""
    value = found.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= maximum:
        raise ValueError(f"{where}{name}: must be a number from 0 to {maximum:g}")
    return value


def seconds(found: FileTable, name: str, where: str) -> float:
    return number_in(found, name, where, MAX_MILLISECONDS) / 1000


def headers_of(response: FileTable) -> dict[str, str]:
    value = response.get("headers", {})
    if not isinstance(value, dict):
        raise ValueError("response.headers: must be a table")
    for name, content in value.items():
        if not is_header(name, content):
            raise ValueError(f"response.headers.{name}: is no header that HTTP can carry")
    return {name.lower(): content for name, content in value.items()}


def pieces_of(response: FileTable) -> list[Piece]:
    value = response.get("pieces", [])
    if not isinstance(value, list):
        raise ValueError("response.pieces: pieces are [[response.pieces]] tables")
    pieces = []
    for index, item in enumerate(value):
        where = f"response.pieces[{index}]."
        if not isinstance(item, dict):
            raise ValueError(f"{where[:-1]}: must be a table")
        check_members(item, ("after_ms", "text", "base64"), where)
        data = bytes_in(item, "text", where)
        if data:  # a reader takes an empty piece for the end
            pieces.append(Piece(seconds(item, "after_ms", where), data))
    return pieces


def bytes_in(found: FileTable, name: str, where: str) -> bytes:
    """The bytes of a text, or of `base64`; b"" if both are absent."""
    if "base64" not in found:
        return text(found, name, where, "").encode()
    if name in found:
        raise ValueError(f"{where}{name}: stands beside base64")
    try:
        return b64decode(text(found, "base64", where), validate=True)
    except ValueError:
        raise ValueError(f"{where}base64: is not Base64") from None
