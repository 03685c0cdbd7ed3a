"""Failures that a chat URL reports in JSON with status 200, in the forms of home-made APIs.

Pure functions. Imports types, and how errors and replies are found.
"""

import re

from rewrap.regex import regex
from rewrap.types import JSONObject, UpstreamRejection
from rewrap.upstream.errors import error_in, status_in
from rewrap.upstream.reply_search import KNOWN_NAMES, find_reply

SUCCESS_NAMES = ("success", "ok", "succeeded", "is_success", "isSuccess")
STATUS_NAMES = ("status", "state", "type", "event")
FAILED_STATUSES = frozenset(["error", "fail", "failed", "failure"])
# A code of the first names is one of an error; a code of the others may be one of success.
ERROR_CODE = regex(r"(?i)err(or)?_?(code|no)")
CODE_NAMES = ("code", "status", "status_code", "statusCode", "retcode", "ret_code", "ret")
FAILED_CODE = regex(
    r"(?i).*(err|fail|invalid|denied|unauthori|forbidden|expired|exceed|not.?found|timeout)"
)
ERROR_NAME = regex(r"(?i)(is_?|has_?)?errors?_?(message|msg|text|description)?|errmsg")
MESSAGE_NAMES = ("message", "msg", "detail", "info")
HARMLESS = KNOWN_NAMES - {"error"} | {"id", "object", "created", "model", "role", "usage", "index"}
# All names above contain one of these.
SUSPECT = regex(r"(?i)err|succe|ok|stat|type|event|code|ret")
NOT_FAILED = ("", "0", "00000", "ok", "success", "none", "no")


def failure_in(value: JSONObject) -> UpstreamRejection | None:
    """The failure in an answer or an event; None if it is none.

    {"success": false, "message"}   {"status": "error", "message"}   {"error_code": 110, "error_msg"}
    {"error": "text"}               {"code": 40101, "message", "data": null}
    """
    # Of most events all names are known: that costs 0.2 µs, and the rest 5.
    if HARMLESS.issuperset(value) or not SUSPECT.search(" ".join(value)):
        return None
    if not value.get("error") and not is_marked(value) and not is_unanswered(value):
        return None
    error = error_in(value)
    return UpstreamRejection(status_in(error), error=error)


def is_marked(value: JSONObject) -> bool:
    """Whether a member can only mean a failure, whatever stands beside it."""
    for name in SUCCESS_NAMES:
        if value.get(name, True) in (False, "false"):
            return True
    for name in STATUS_NAMES:
        status = value.get(name)
        if isinstance(status, str) and status.lower() in FAILED_STATUSES:
            return True
    for name, code in value.items():
        if code and ERROR_CODE.fullmatch(name) and str(code).lower() not in NOT_FAILED:
            return True
    return False


def is_unanswered(value: JSONObject) -> bool:
    """Whether a member speaks of an error, and there is no reply but a message."""
    if not has_failed_code(value) and not has_error_member(value):
        return False
    others = {name: member for name, member in value.items() if name not in MESSAGE_NAMES}
    return not find_reply(others)


def has_failed_code(value: JSONObject) -> bool:
    return any(is_failed_code(value.get(name)) for name in CODE_NAMES)


def has_error_member(value: JSONObject) -> bool:
    return any(member and ERROR_NAME.fullmatch(name) for name, member in value.items())


def is_failed_code(code: object) -> bool:
    """Whether a code is neither 0, 1, nor from 200 to 299; or a word such as "INVALID_TOKEN"."""
    if isinstance(code, str):
        if not re.fullmatch(r"-?\d{1,9}", code):
            return FAILED_CODE.match(code) is not None
        code = int(code)
    if isinstance(code, bool) or not isinstance(code, int):
        return False
    return code not in (0, 1) and not 200 <= code < 300
