"""Failures of upstreams as errors for the client. This is the only place that translates them.

Source of the statuses: OpenAI's own (429 and 503 with Retry-After), and what clients retry (408, 409, 429, 5xx).
"""

import re
from collections.abc import Mapping, Sequence

import httpx

from rewrap.redaction import redacted
from rewrap.types import APIError, Headers, UpstreamRejection

FAILED = "The chat backend failed to answer."
TOO_LARGE = "The chat backend's answer is too large."
TOO_SLOW = "The chat backend did not answer in time."
NO_REPLY = "The chat backend gave no reply."
CUT_SHORT = "The chat backend broke off."
BUSY = "The chat backend is busy."
REJECTED = "The chat backend refused the request."

UPSTREAM_ERRORS = (httpx.HTTPError, TimeoutError, ValueError)
OVERLOADED_STATUSES = (503, 529)  # 529 is Anthropic's
RETRY_IN_A_SECOND: Headers = [(b"retry-after", b"1")]
DO_NOT_RETRY: Headers = [(b"x-should-retry", b"false")]
MESSAGE_CHARACTERS = 2000
MEMBER_CHARACTERS = 200


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


def rejection_error(
    rejection: UpstreamRejection,
    secrets: Sequence[str],
    *,
    own_key: bool,
    failure_status: int = 502,
) -> APIError:
    """The error for an upstream's error answer.

    `own_key`: the request carried a key of this server, or none. A 401 is then a wrong configuration, not a wrong request.
    """
    status = rejection.status
    message = redacted(rejection.message, secrets)[:MESSAGE_CHARACTERS]
    members = {
        name: redacted(text, secrets)[:MEMBER_CHARACTERS]
        for name, text in rejection.members.items()
    }
    type = members.get("type", "")
    param = members.get("param")
    code = members.get("code", "")
    reason = f"upstream: {status}"
    if status == 429:
        return APIError(
            429,
            message or BUSY,
            type=type or "requests",
            param=param,
            code=code or "rate_limit_exceeded",
            headers=rejection.headers,
            reason=reason,
        )
    if status in OVERLOADED_STATUSES:
        return APIError(
            503,
            BUSY,
            type=type or "requests",
            param=param,
            code=code or "unavailable",
            headers=rejection.headers,
            reason=reason,
        )
    if status in (400, 404, 413, 422) or (status in (401, 403) and not own_key):
        return APIError(
            status,
            message or REJECTED,
            type=type or "invalid_request_error",
            param=param,
            code=code or None,
            reason=reason,
        )
    if status == 504:
        return too_slow(reason)
    error = bad_gateway(FAILED, reason, failure_status)
    if status < 500 and status not in (408, 409):  # a wrong configuration: a retry does not help
        error.headers = DO_NOT_RETRY
    return error


STATUS_OF_CODE = {
    "rate_limit_exceeded": 429,
    "context_length_exceeded": 400,
    "content_filter": 400,
}


def rejection_in_success(error: object) -> UpstreamRejection:
    """The failure in an answer with status 200, or in mid-stream: `{"message", "type", "param", "code"}`, or a text."""
    members = error if isinstance(error, dict) else {"message": error}
    message = members.get("message")
    texts = {
        name: str(members[name])
        for name in ("type", "param", "code")
        if isinstance(members.get(name), str)
    }
    text = message if isinstance(message, str) else ""
    return UpstreamRejection(status_in(members.get("code")), text, **texts)


def status_in(code: object) -> int:
    """The HTTP status that an error's code means."""
    if isinstance(code, int) and 400 <= code < 600:
        return code
    return STATUS_OF_CODE.get(str(code), 502)


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
