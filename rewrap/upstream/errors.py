"""Failures of upstreams as errors for the client. This is the only place that translates them.

An upstream's own error keeps its status, its message and every member; secrets of this server are taken out, and the size is
bounded. Source of the statuses: OpenAI's own, and the statuses that clients retry (408, 409, 429, 5xx).
"""

import re
from collections.abc import Mapping, Sequence

import httpx
import orjson

from rewrap.redaction import redacted
from rewrap.regex import regex
from rewrap.types import APIError, Headers, JSONObject, UpstreamRejection

FAILED = "The chat backend failed to answer."
TOO_LARGE = "The chat backend's answer is too large."
TOO_SLOW = "The chat backend did not answer in time."
NO_REPLY = "The chat backend gave no reply."
CUT_SHORT = "The chat backend broke off."
BUSY = "The chat backend is busy."
REJECTED = "The chat backend refused the request."
REDIRECTED = "The chat backend redirects to another path: check its address."

UPSTREAM_ERRORS = (httpx.HTTPError, TimeoutError, ValueError)
RETRY_IN_A_SECOND: Headers = [(b"retry-after", b"1")]
DO_NOT_RETRY: Headers = [(b"x-should-retry", b"false")]
MESSAGE_CHARACTERS = 4000
LOGGED_CHARACTERS = 300
TRACEBACK = "Traceback (most recent call last)"
ERROR_BYTES = 16_384  # of all members of an error
ERROR_DEPTH = 20
DETAILS = 20  # items of a list of errors
START_BYTES = 8192  # kept of a body to explain a failure: secrets are taken out before it is cut
CONTROL = regex(r"[\x00-\x08\x0e-\x1f\x7f\ufeff]")  # UTF-16 is full of them
ESCAPE = regex(r"\\u(?!d[89a-f])([0-9a-f]{4})", re.IGNORECASE)  # no surrogates
# Other names of an error's message.
MESSAGE_NAMES = [
    *("detail", "details", "errors", "error_message", "error_msg", "errorMessage", "errmsg"),
    *("error_description", "msg", "title", "reason"),
]


def bad_gateway(message: str, reason: str, failure_status: int = 502) -> APIError:
    """The error for an answer that cannot be used. `reason` goes to the log only."""
    return APIError(
        failure_status, message, type="upstream_error", code="bad_gateway", reason=reason
    )


def too_slow(reason: str) -> APIError:
    return APIError(504, TOO_SLOW, type="upstream_error", code="timeout", reason=reason)


def upstream_error(exc: Exception, failure_status: int = 502) -> APIError:
    """The error for one of UPSTREAM_ERRORS.

    Their texts may hold secrets: the client gets a text of ours, and the log gets the name of the exception.
    """
    if isinstance(exc, httpx.PoolTimeout):
        message = "All connections to the chat backend are busy."
        return APIError(503, message, type="server_error", headers=RETRY_IN_A_SECOND)
    if isinstance(exc, (httpx.TimeoutException, TimeoutError)):
        return too_slow(type(exc).__name__)
    return bad_gateway(FAILED, type(exc).__name__, failure_status)


# An upstream's own errors.


def rejection_error(
    rejection: UpstreamRejection,
    secrets: Sequence[str],
    *,
    own_key: bool,
    transparent: bool = False,
    failure_status: int = 502,
) -> APIError:
    """The error for an upstream's error answer.

    `own_key`: the request carried a key of this server, or none. A 401 is then a wrong configuration, not a wrong request.
    `transparent`: a 5xx with a message keeps its status, as from an OpenAI-compatible upstream.
    """
    status = rejection.status or failure_status
    reason = rejection.reason
    if 300 <= status < 400:
        return configuration_error(REDIRECTED, reason, failure_status)
    if status == 407 or (status == 401 and own_key):  # 407 is from a proxy of this server
        return configuration_error(FAILED, reason, failure_status)
    error = error_without_secrets(rejection.error, secrets)
    if status == 504 and not has_message(error):
        return too_slow(reason)
    if status == 529:  # Anthropic's 503
        status = 503
    kept = transparent and has_message(error)
    if status >= 500 and status not in (503, 504) and not kept:
        status = failure_status
    defaults = default_members(status)
    members = defaults | {name: value for name, value in error.items() if value or value == 0}
    return APIError(
        status,
        str(members["message"]),
        type=str(members["type"]),
        headers=rejection.headers,
        reason=reason,
        error=members,
    )


def reason_of(rejection: UpstreamRejection, secrets: Sequence[str]) -> str:
    """The upstream's message for the log: redacted and bounded."""
    message = error_without_secrets(rejection.error, secrets).get("message")
    return str(message or "")[:LOGGED_CHARACTERS]


def configuration_error(message: str, reason: str, failure_status: int) -> APIError:
    """The error for a wrong setting of this server. A retry does not help."""
    error = bad_gateway(message, reason, failure_status)
    error.headers = DO_NOT_RETRY
    return error


def default_members(status: int) -> JSONObject:
    """OpenAI's members for those that an upstream's error lacks."""
    if status == 429:
        return error_members(BUSY, "requests", "rate_limit_exceeded")
    if status == 503:
        return error_members(BUSY, "server_error", "unavailable")
    if status >= 500:
        return error_members(FAILED, "upstream_error", "bad_gateway")
    return error_members(REJECTED, "invalid_request_error", None)


def error_members(message: str, type: str, code: str | None) -> JSONObject:
    return {"message": message, "type": type, "param": None, "code": code}


def has_message(error: JSONObject) -> bool:
    return isinstance(error.get("message"), str) and bool(error["message"])


def error_without_secrets(error: JSONObject, secrets: Sequence[str]) -> JSONObject:
    """An error with redacted texts. Members beside OpenAI's four are left out if all of them are too large."""
    clean = redacted_value(error, secrets, ERROR_DEPTH)
    assert isinstance(clean, dict)
    message = clean.get("message")
    if isinstance(message, str):
        clean["message"] = message.partition(TRACEBACK)[0].strip()[:MESSAGE_CHARACTERS]
    elif message is not None:
        clean["message"] = orjson.dumps(message).decode()[:MESSAGE_CHARACTERS]
    if len(orjson.dumps(clean)) <= ERROR_BYTES:
        return clean
    texts = {name: clean.get(name) for name in ("message", "type", "param", "code")}
    return {
        name: text[:200] if name != "message" else text
        for name, text in texts.items()
        if isinstance(text, str)
    }


def redacted_value(value: object, secrets: Sequence[str], depth: int) -> object:
    """A JSON value whose texts contain no secrets; null below `depth` levels."""
    if isinstance(value, str):
        return redacted(value, secrets)
    if isinstance(value, (dict, list)) and not depth:
        return None
    if isinstance(value, dict):
        return {
            redacted(name, secrets): redacted_value(member, secrets, depth - 1)
            for name, member in value.items()
        }
    if isinstance(value, list):
        return [redacted_value(item, secrets, depth - 1) for item in value]
    return value


def rejection_in_success(error: object) -> UpstreamRejection:
    """The failure in an answer with status 200, or in mid-stream: an object, or a text."""
    members: JSONObject = error if isinstance(error, dict) else {"message": error}
    if not isinstance(members.get("message"), str):
        members = {name: value for name, value in members.items() if name != "message"}
    rejection = UpstreamRejection(status_in(members), error=members)
    if members:
        rejection.start = orjson.dumps(members)
    return rejection


def rejection_in_body(status: int, body: bytes) -> UpstreamRejection:
    """The error in the body of an error answer, in any form."""
    try:
        value: object = orjson.loads(body)
    except ValueError:
        text = unescaped(body).strip()
        # A page for people is not a message.
        return UpstreamRejection(status, "" if text.startswith("<") else text)
    return UpstreamRejection(status, error=error_in(value))


def unescaped(body: bytes) -> str:
    """Text that may be broken or foreign JSON, without its escapes: they would hide secrets."""
    text = CONTROL.sub("", body.decode("utf-8", "replace")).replace("\\/", "/")
    return ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


def error_in(value: object) -> JSONObject:
    """The error object in an upstream's JSON; {} if there is none.

    {"error": {...}}       OpenAI              [{"error": {...}}]           Gemini
    {"error": "text"}      LM Studio, Ollama   {"detail": "text" or [...]}  FastAPI
    {"message": "text"}    Mistral, vLLM       {"errors": [...]}            Cloudflare
    """
    if isinstance(value, list):
        return error_in(value[0]) if value else {}
    if isinstance(value, str):
        return {"message": value}
    if not isinstance(value, dict):
        return {}
    error = value.get("error")
    if isinstance(error, dict):
        return with_message(error)
    others = {name: member for name, member in value.items() if name != "error"}
    if isinstance(error, str) and error:
        if not has_message(others):
            return others | {"message": error}
        return others | {"code": error}
    return with_message(value)


def with_message(error: JSONObject) -> JSONObject:
    """An error whose message may stand under another name."""
    if has_message(error):
        return error
    for name in MESSAGE_NAMES:
        text = message_in(error.get(name))
        if text:
            return error | {"message": text}
    return error


def message_in(value: object) -> str:
    """The message in a text, an object, or a list of them: FastAPI's `[{"loc": [...], "msg": "..."}]`."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "; ".join(filter(None, [message_in(item) for item in value[:DETAILS]]))
    if not isinstance(value, dict):
        return ""
    text = next(
        (
            value[name]
            for name in ("msg", "message", "detail", "error")
            if isinstance(value.get(name), str)
        ),
        "",
    )
    place = value.get("loc")
    if text and isinstance(place, list):
        return f"{'.'.join(map(str, place[:DETAILS]))}: {text}"
    return text


STATUS_OF_CODE = {
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "model_not_found": 404,
}


def status_in(error: JSONObject) -> int:
    """The HTTP status that an error means: its `code` or `status`, as a number or as OpenAI's word; 0 if it has none."""
    for name in ("code", "status", "status_code"):
        code = error.get(name)
        if isinstance(code, str) and code.isdecimal() and len(code) == 3:
            code = int(code)
        if isinstance(code, int) and 400 <= code < 600:
            return code
        if isinstance(code, str) and code in STATUS_OF_CODE:
            return STATUS_OF_CODE[code]
    return 0


FORWARDABLE_NAMES = frozenset(
    [
        b"openai-processing-ms",
        b"openai-version",
        b"retry-after",
        b"retry-after-ms",
        b"x-ratelimit-limit-requests",
        b"x-ratelimit-remaining-requests",
        b"x-ratelimit-reset-requests",
        b"x-ratelimit-limit-tokens",
        b"x-ratelimit-remaining-tokens",
        b"x-ratelimit-reset-tokens",
    ]
)
FORWARDABLE_VALUE = re.compile(rb"[\w.:, -]{1,64}")


def forwardable_headers(headers: Mapping[bytes, bytes]) -> Headers:
    """The headers of an upstream's answer that the client may see."""
    return [
        (name, value)
        for name, value in headers.items()
        if name in FORWARDABLE_NAMES and FORWARDABLE_VALUE.fullmatch(value)
    ]
