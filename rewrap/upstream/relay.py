"""An OpenAI-compatible upstream's own bytes, checked on the way to the client."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from rewrap.types import Headers, UpstreamRejection
from rewrap.upstream.framing import EVENT_END, SSEDecoder

PASSED_ON = re.compile(
    rb"(?:openai-processing-ms|openai-version|retry-after(?:-ms)?|x-ratelimit-(?:limit|remaining|reset)-(?:requests|tokens))"
    rb": [\w.:, -]{1,64}"
)


def forwardable_headers(headers: Mapping[bytes, bytes]) -> Headers:
    """What of an upstream's headers is for the client."""
    return [(k, v) for k, v in headers.items() if PASSED_ON.fullmatch(b"%b: %b" % (k, v))]


def is_plain(value: Any) -> bool:
    """A completion as most are, every choice with a text: what else may pass is for the shape to say."""
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        return False
    messages = [choice.get("message") if isinstance(choice, dict) else None for choice in choices]
    return all(
        isinstance(message, dict) and isinstance(message.get("content"), str)
        for message in messages
    )


def failed_event(data: bytes) -> tuple[int, UpstreamRejection] | None:
    """Where, in whole events, the first one stands that says an error, or is none of a chat completion's."""
    start = 0
    for end in EVENT_END.finditer(data):
        for name, event in SSEDecoder(len(data)).feed(data[start : end.end()]):
            event = event.strip()
            said = orjson.loads(event) if b'"error"' in event and event.startswith(b"{") else {}
            if name == "error" or said.get("error"):
                return start, refused_in_200(said.get("error") or {})
            if (
                event != b"[DONE]"
                and event
                and not (event.startswith(b"{") and event.endswith(b"}"))
            ):
                return start, UpstreamRejection(502)
        start = end.end()
    return None


# A member alone: in the text of a reply, quotation marks are escaped.
MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
USAGE = re.compile(rb'"usage":\s*(\{(?:[^{}]|\{[^{}]*\})*\})')
FINISHED = re.compile(rb'"finish_reason":\s*"[^"]')


def refused_in_200(error: Any) -> UpstreamRejection:
    """An upstream's failure that came with a good status, or in mid-stream: `{"message", "type", "param", "code"}` or a text."""
    said = error if isinstance(error, dict) else {"message": error}
    code, message = said.get("code"), said.get("message")
    status = (
        code if isinstance(code, int) and 400 <= code < 600 else STATUS_OF_CODE.get(str(code), 502)
    )
    known = {
        name: said[name] for name in ("type", "param", "code") if isinstance(said.get(name), str)
    }
    return UpstreamRejection(status, message if isinstance(message, str) else "", **known)


STATUS_OF_CODE = {"rate_limit_exceeded": 429, "context_length_exceeded": 400, "content_filter": 400}
