"""Refuses a body in which a member that this server routes by occurs twice.

An upstream that gets the same bytes may read the first of them, where this server reads the last.
Imports types and leaf files.
"""

import json
import re

import orjson

from rewrap.regex import regex
from rewrap.types import APIError, JSONObject

# The members of all APIs that decide who answers, how, and what is stored.
ROUTING_MEMBERS = {
    name: b'"%b"' % name.encode()
    for name in (
        "model",
        "messages",
        "stream",
        "store",
        "completion_id",
        "input",
        "previous_response_id",
        "prompt",
    )
}
# An escaped letter or underscore, which hides a name. No JSON library writes one.
ESCAPED_LETTER = regex(rb"\\u00(?:5f|6|7)", re.IGNORECASE)
ESCAPE = b"\\u00"
SPACED = b'": '
SMALL = 2_048  # bytes
END_BYTES = 512
MAX_PARSED_AGAIN = 2**18  # bytes


def check_unique(body: bytes, payload: JSONObject) -> None:
    """Raises APIError 400. `payload` is the object in `body`.

    Of a body of more than 2 kB only the ends are searched, where clients put these members: to
    search all of it takes as long as to parse it. A router searches all of it for a second model.
    """
    if len(body) > SMALL:
        searched = body[:END_BYTES] + body[-END_BYTES:]
    elif is_compact(body, payload):
        return
    else:
        searched = body
    if is_suspicious(searched, payload) and len(body) <= MAX_PARSED_AGAIN:
        refuse_duplicates(body)


def is_compact(body: bytes, payload: JSONObject) -> bool:
    """Whether the body is what orjson would write, as the bodies of OpenAI's SDKs are: 0.4 µs.

    Then no member occurs twice. The search costs 1.5 µs for a body of 1 kB.
    """
    if SPACED in body[:32]:
        return False
    try:
        return orjson.dumps(payload) == body
    except TypeError:  # orjson writes 254 levels
        return False


def is_suspicious(searched: bytes, payload: JSONObject) -> bool:
    """Whether a name occurs twice, perhaps in another object or as a value, or may be hidden."""
    for name in payload:
        quoted = ROUTING_MEMBERS.get(name)
        if quoted is not None and searched.count(quoted) > 1:
            return True
    if b"\\" not in searched or ESCAPE not in searched:  # the search for one byte is the fastest
        return False
    return ESCAPED_LETTER.search(searched) is not None


def refuse_duplicates(body: bytes) -> None:
    """Parse a body again, with all members of its objects. Raises APIError 400."""
    try:
        members = json.loads(body, object_pairs_hook=list)
    except RecursionError:
        raise APIError(400, "The request is nested too deeply.") from None
    names = [name for name, _ in members]
    for name in ROUTING_MEMBERS:
        if names.count(name) > 1:
            message = f"Invalid body: the parameter '{name}' occurs twice."
            raise APIError(400, message, param=name, code="duplicate_parameter")
