"""The mock's default reply: an echo of the last user message, cut by `stop` and `max_tokens`. Imports types and leaf files."""

from functools import lru_cache

from rewrap.structs import struct
from rewrap.types import PORTION_CHARACTERS, ChatRequest, JSONObject, portions, text_of


@struct(frozen=True, slots=True)
class Echo:
    """A reply: its text, its number of words, and its finish_reason. A word is a token."""

    text: str
    tokens: int
    finish_reason: str


def echo(request: ChatRequest) -> Echo:
    """The same reply for the same request."""
    return cut(echoed_text(request), request.payload)


def cut(text: str, payload: JSONObject) -> Echo:
    """A text that ends where `stop` and the limit of tokens end it."""
    stops = payload.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop:
            text = text.split(stop, 1)[0]
    limit = payload.get("max_completion_tokens") or payload.get("max_tokens") or -1
    if limit < 0:
        return Echo(text, count_words(text), "stop")
    if len(text) < PORTION_CHARACTERS:
        return first_words_cached(text, limit)
    return first_words(text, limit)


def first_words(text: str, limit: int) -> Echo:
    """At most `limit` words of a text."""
    parts = text.split(None, limit)
    if len(parts) <= limit:
        return Echo(text, len(parts), "stop")
    return Echo(text[: -len(parts[-1])], limit, "length")


first_words_cached = lru_cache(64)(
    first_words
)  # clients of a mock repeat their prompts: saves 5 µs a request


def echoed_text(request: ChatRequest) -> str:
    for message in reversed(request.messages):
        if message.get("role") == "user":
            prompt = message.get("content")
            if prompt is None:
                break
            return f"This is a mock reply to: {described(prompt)}"
    return "This is a mock reply."


def described(content: object) -> str:
    """A content as text. Images, files and other parts are named."""
    if not isinstance(content, list):
        return text_of(content)
    parts: list[str] = []
    for part in content:
        text = part.get("text")
        parts.append(text if isinstance(text, str) else f"[{part.get('type')}]")
    return "\n".join(parts)


def prompt_words(request: ChatRequest) -> int:
    """The words of all messages: the mock's prompt tokens."""
    return sum([count_words(text_of(message.get("content"))) for message in request.messages])


def count_words(text: str) -> int:
    if len(text) < PORTION_CHARACTERS:
        return count_words_cached(text)
    return sum([len(portion.split()) for portion in portions(text)])  # the words of one at a time


@lru_cache(256)
def count_words_cached(text: str) -> int:
    """System prompts and load tests repeat their texts: saves 6 µs a request."""
    return len(text.split())
