"""The errors of OpenAI's API by name, for rules and faults: status, message, type, param and code.

The texts are from recordings and public reports of the real API, as of November 2026. To correct a
text, correct it here. Imports types, the table reader and leaf files.
"""

import math
from dataclasses import replace

from rewrap.mock.tables import CheckedTable, nearest_name
from rewrap.structs import struct
from rewrap.types import APIError

INVALID = "invalid_request_error"
SERVER = "server_error"
FIELDS = ("name", "status", "message", "type", "code", "param", "retry_after")
MAX_RETRY_SECONDS = 86_400


@struct(frozen=True, slots=True)
class ErrorAnswer:
    """An error that the mock answers with. `retry_after` is in seconds; None: no such header."""

    status: int
    message: str
    type: str = INVALID
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None

    def error(self) -> APIError:
        """The exception to raise. OpenAI sends the time to wait in two headers."""
        headers = []
        if self.retry_after is not None:
            headers.append((b"retry-after", b"%d" % math.ceil(self.retry_after)))
            headers.append((b"retry-after-ms", b"%d" % math.ceil(self.retry_after * 1000)))
        return APIError(
            self.status,
            self.message,
            type=self.type,
            param=self.param,
            code=self.code,
            headers=headers,
            reason="scripted",
        )


# `{model}` stands for the model of the request. Of several entries with one status, the first is
# the one that a bare status means.
CATALOGUE: dict[str, ErrorAnswer] = {
    "invalid_request": ErrorAnswer(400, "Your request was rejected."),
    "context_length": ErrorAnswer(
        400,
        "This model's maximum context length is 128000 tokens. However, your messages resulted in"
        " 128001 tokens. Please reduce the length of the messages.",
        code="context_length_exceeded",
        param="messages",
    ),
    # Azure's form. OpenAI itself ends such replies with the finish_reason `content_filter`.
    "content_filter": ErrorAnswer(
        400,
        "The response was filtered due to the prompt triggering Azure OpenAI's content management"
        " policy. Please modify your prompt and retry.",
        code="content_filter",
        param="prompt",
    ),
    "invalid_key": ErrorAnswer(
        401,
        "Incorrect API key provided: sk-****. You can find your API key at"
        " https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    ),
    "permission": ErrorAnswer(
        403,
        "Project `proj_mock` does not have access to model `{model}`",
        code="model_not_found",
    ),
    "model_not_found": ErrorAnswer(
        404,
        "The model `{model}` does not exist or you do not have access to it.",
        code="model_not_found",
    ),
    "rate_limit": ErrorAnswer(
        429,
        "Rate limit reached for {model} in organization org-mock on requests per min (RPM): Limit"
        " 3, Used 3, Requested 1. Please try again in 1s. Visit"
        " https://platform.openai.com/account/rate-limits to learn more.",
        type="requests",
        code="rate_limit_exceeded",
        retry_after=1.0,
    ),
    "tokens": ErrorAnswer(
        429,
        "Rate limit reached for {model} in organization org-mock on tokens per min (TPM): Limit"
        " 30000, Used 28000, Requested 3000. Please try again in 2s. Visit"
        " https://platform.openai.com/account/rate-limits to learn more.",
        type="tokens",
        code="rate_limit_exceeded",
        retry_after=2.0,
    ),
    "quota": ErrorAnswer(
        429,
        "You exceeded your current quota, please check your plan and billing details. For more"
        " information on this error, read the docs:"
        " https://platform.openai.com/docs/guides/error-codes/api-errors.",
        type="insufficient_quota",
        code="insufficient_quota",
    ),
    "server_error": ErrorAnswer(
        500,
        "The server had an error while processing your request. Sorry about that!",
        type=SERVER,
    ),
    "overloaded": ErrorAnswer(
        503,
        "Our servers are currently overloaded. Please try again later.",
        type="service_unavailable_error",
        code="server_is_overloaded",
    ),
    "timeout": ErrorAnswer(504, "The request timed out.", type=SERVER, code="timeout"),
}


def error_of_status(status: int) -> ErrorAnswer:
    """An error by its status, from 400 to 599, with OpenAI's body."""
    for entry in CATALOGUE.values():
        if entry.status == status:
            return entry
    known = CATALOGUE["invalid_request" if status < 500 else "server_error"]
    return replace(known, status=status)


def error_for_model(error: ErrorAnswer, model: str) -> ErrorAnswer:
    """An entry of the catalogue for a request of this model."""
    return replace(error, message=error.message.replace("{model}", model))


def parse_error(value: object, where: str) -> ErrorAnswer:
    """An error by name, by status, or as a table: a name or a status, and the members that differ.

    Raises ValueError, in one line.
    """
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"status": value}
    table = CheckedTable(value, where, FIELDS)
    name = table.choice("name", CATALOGUE)
    status = table.integer("status", 400, 599)
    if not name and not status:
        raise ValueError(f"{where}: needs a name or a status; {nearest_name('', CATALOGUE)}")
    known = CATALOGUE[name] if name else error_of_status(status)
    retry_after = known.retry_after
    if "retry_after" in table:
        retry_after = table.number("retry_after", MAX_RETRY_SECONDS)
    return replace(
        known,
        status=status or known.status,
        message=table.text("message", known.message),
        type=table.text("type", known.type),
        code=table.text("code", known.code or "") or None,
        param=table.text("param", known.param or "") or None,
        retry_after=retry_after,
    )
