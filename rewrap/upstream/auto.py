"""The shape of a chat URL of which nothing is known: what is sent to it, and where in its answer the reply is.

Takes the plain types from backends; does no I/O.
"""

import re
from typing import Any

import orjson

from rewrap.types import ChatRequest, Delta, UpstreamRejection, text_of, usage
from rewrap.upstream.errors import rejection_in_success
from rewrap.upstream.framing import TEXT


class AutoShape:
    """OpenAI-like objects, and JSON with the reply under one of the usual names, at the top or one level down."""

    framing = "auto"

    def url(self, url: str, chat: ChatRequest) -> str:
        return url

    def headers(self, key: str, stream: bool) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"} if key else {}

    def check(self, url: str) -> None:
        pass

    def payload(self, chat: ChatRequest) -> Any:
        messages = [
            {**message, "content": text_of(message.get("content"))} for message in chat.messages
        ]
        ours = KEPT_HERE if chat.stored else OURS
        asked = {k: v for k, v in chat.payload.items() if v is not None and k not in ours}
        return asked | {"model": chat.model, "messages": messages}

    def dropped(self, chat: ChatRequest) -> list[str]:
        contents = [m["content"] for m in chat.messages if isinstance(m.get("content"), list)]
        kinds = {
            str(part.get("type"))
            for parts in contents
            for part in parts
            if not isinstance(part.get("text"), str)
        }
        return [f"messages.{kind}" for kind in sorted(kinds)]

    def answer(self, value: Any) -> list[Delta]:
        if isinstance(value, dict) and value.get("error"):
            raise rejection_in_success(value["error"])
        if isinstance(value, dict) and isinstance(value.get("choices"), list) and value["choices"]:
            return openai_deltas(value, whole=True)
        text = find_reply(value)
        if text is None:
            raise ValueError("no reply")
        if not text and isinstance(value, dict):  # an empty one may stand beside the reply
            text = next(
                (said for name in REPLY_NAMES if isinstance(said := value.get(name), str) and said),
                "",
            )
        fields = extra_fields(value)
        reason = "tool_calls" if fields and "tool_calls" in fields else "stop"
        return [Delta(text, reason, whole=True, fields=fields, usage=openai_usage(value))]

    def reader(self) -> "AutoReader":
        return AutoReader()

    def rejection(self, status: int, value: Any) -> UpstreamRejection:
        """The words of an OpenAI envelope; of anything else none, for who knows what is in them."""
        error = value.get("error") if isinstance(value, dict) else None
        error = (
            value if isinstance(value, dict) and value.get("object") == "error" else error
        )  # vLLM's, before 0.9
        refused = rejection_in_success(error if isinstance(error, dict) else {})
        refused.status = status
        return refused


OURS = frozenset(["completion_id", "messages", "model"])
KEPT_HERE = OURS | {"store", "metadata"}


class AutoReader:
    """One streamed reply: (event name, data) to Deltas.

    The first event that is no object tells whether texts are bare or JSON strings. A stream of OpenAI's chunks is complete
    with its own end alone, any other with the end of the answer.
    """

    def __init__(self) -> None:
        self.complete, self.done, self.finish = True, False, ""
        self.bare: bool | None = None

    def __call__(self, name: str, data: bytes) -> list[Delta]:
        if name == TEXT:
            return [Delta(data.decode())]
        if data.strip() == b"[DONE]" or (
            name in ("end", "done", "close") and not data.strip(b' {}"')
        ):
            self.done = True
            return []
        value = json_in(data)
        if value is None and self.bare is not True and BEGUN[self.bare].match(data):
            raise ValueError("an event is not JSON")
        if isinstance(value, str) and not self.bare:
            self.bare = False
            return [Delta(value)]
        if isinstance(value, list) and not self.bare and (found := find_reply(value)) is not None:
            return [Delta(found)]
        if not isinstance(value, dict) or (self.bare and not {*value} & KNOWN):
            if name == "error":
                raise ValueError("error event")
            self.bare = True
            return [Delta(data.decode("utf-8", "replace"))] if data.strip() != b"null" else []
        if name == "error" or value.get("error"):
            raise rejection_in_success(value.get("error"))
        self.bare = self.bare or False
        if isinstance(value.get("choices"), list):
            self.complete = False
            return self.ending(openai_deltas(value, whole=False))
        text = find_reply(value)
        if text is None:
            texts = (
                number_as_text(value.get(name))
                for name in ("reply", "response", "answer", "text", "content")
            )
            text = next((text for text in texts if isinstance(text, str)), None)
        finish = value.get("finish_reason")
        finish = finish if isinstance(finish, str) else None
        return self.ending(
            [Delta(text or "", finish, fields=extra_fields(value), usage=openai_usage(value))]
        )

    def ending(self, deltas: list[Delta]) -> list[Delta]:
        """The same; what they end with is known if nobody says it."""
        if any("tool_calls" in delta.fields for delta in deltas if delta.fields):
            self.finish = "tool_calls"
        return deltas


def json_in(data: bytes) -> Any:
    """The object, list or string of an event; None if it is none."""
    try:
        return orjson.loads(data) if data.lstrip()[:1] in (b"{", b"[", b'"') else None
    except ValueError:
        return None


def openai_deltas(value: dict[str, Any], *, whole: bool) -> list[Delta]:
    """The choices of a completion, or of a chunk. Raises ValueError where a whole one says nothing."""
    deltas = []
    for position, choice in enumerate(value["choices"]):
        if not isinstance(choice, dict):
            raise ValueError("choices are no objects")
        message = choice.get("message") or choice.get("delta") or {}
        if not isinstance(message, dict):
            raise ValueError("a message is no object")
        content = message.get("content", choice.get("text"))
        content = number_as_text(content) if "delta" in choice else content
        fields = {
            k: v
            for k, v in message.items()
            if k not in ("role", "content") and v not in (None, [], "")
        }
        fields |= {k: v for k, v in figures_in(value).items() if not position}
        if (
            whole
            and content is None
            and not fields
            and choice.get("finish_reason") in (None, "stop")
        ):
            raise ValueError("no reply")
        parts = content if isinstance(content, list) else []
        if not isinstance(content, (str, list, type(None))) or not all(
            isinstance(p, (str, dict)) for p in parts
        ):
            raise ValueError("content is no text")
        finish_reason = choice.get("finish_reason")
        if whole and not (isinstance(finish_reason, str) and finish_reason):
            finish_reason = "tool_calls" if "tool_calls" in fields else "stop"
        index = choice.get("index", position)
        deltas.append(
            Delta(
                text_of(content),
                finish_reason,
                index if isinstance(index, int) else position,
                whole=whole,
                fields=both_names(fields),
                logprobs=choice.get("logprobs"),
            )
        )
    if found := openai_usage(value):
        deltas.append(Delta(usage=found))
    return deltas


def openai_usage(value: Any) -> dict[str, Any] | None:
    found = value.get("usage") if isinstance(value, dict) else None
    if not isinstance(found, dict):
        return None
    prompt, completion = found.get("prompt_tokens"), found.get("completion_tokens")
    return (
        usage(prompt, completion) | found
        if isinstance(prompt, int) and isinstance(completion, int)
        else None
    )


def extra_fields(value: Any) -> dict[str, Any] | None:
    """What an object of no known form says besides its text, under the names that clients know."""
    if not isinstance(value, dict):
        return None
    message = value["message"] if isinstance(value.get("message"), dict) else {}
    told = {k: place[k] for place in (message, value) for k in EXTRA if place.get(k)}
    return both_names(told | figures_in(value))


EXTRA = ("reasoning_content", "reasoning", "tool_calls")


def figures_in(value: dict[str, Any]) -> dict[str, Any]:
    """`figure` and `figures`, at the top or one level down."""
    places = [
        inner
        for name in (*WRAPPERS, *REPLY_NAMES, *OUTCOMES)
        if isinstance(inner := value.get(name), dict)
    ]
    return {
        k: place[k] for place in (*places, value) for k in ("figure", "figures") if place.get(k)
    }


def number_as_text(value: Any) -> Any:
    """Some upstreams stream the digits of a text as JSON numbers."""
    return orjson.dumps(value).decode() if type(value) in (int, float) else value


def both_names(fields: dict[str, Any]) -> dict[str, Any] | None:
    """Clients look for reasoning under `reasoning_content` or `reasoning`: it goes on under both."""
    said = fields.get("reasoning_content") or fields.get("reasoning")
    return (fields | {"reasoning_content": said, "reasoning": said} if said else fields) or None


def find_reply(value: Any, depth: int = 4, lists: int = 4) -> str | None:
    """The text in a JSON value of unknown form; None if there is none, so many objects and lists down."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = (
            [find_reply(item, depth, lists - 1) for item in replies_in(value[:1000])]
            if lists
            else []
        )
        found = [text for text in texts if text is not None]
        return "".join(found) if found else None
    if not isinstance(value, dict) or not depth:
        return None
    here = [value[name] for name in (*REPLY_NAMES, *MORE_NAMES) if name in value]
    for text in here:
        if isinstance(text, str):
            return text
    inside = here + [value[name] for name in (*WRAPPERS, *OUTCOMES) if name in value]
    for inner in inside:
        if not isinstance(inner, str) and (text := find_reply(inner, depth - 1, lists)) is not None:
            return text
    return next((text for text in inside if isinstance(text, str)), None)


def replies_in(items: list[Any]) -> list[Any]:
    """Of a conversation that is sent back, what comes after the user's last message; any other list as it is."""
    roles = [
        item.get("role", item.get("type")) if isinstance(item, dict) else None for item in items
    ]
    if not any(role in SPEAKERS for role in roles):
        return items
    last = max((at for at, role in enumerate(roles) if role in ("user", "human")), default=-1)
    return [item for at, item in enumerate(items) if at > last and roles[at] in SPEAKERS]


SPEAKERS = ("assistant", "ai", "bot", "model")
REPLY_NAMES = ("reply", "response", "answer", "output", "text", "content", "generated_text")
OUTCOMES = (
    "message",
    "result",
)  # texts that may say "success" beside the reply: what is found in an object goes first
MORE_NAMES = ("completion", "delta", "token", "bot", "assistant", "output_text", "response_text")
# An object that is cut short, and not the first tokens of a bare text; after others, whatever begins so.
BEGUN = {None: re.compile(rb"\s*\{.*[:,]", re.DOTALL), False: re.compile(rb'\s*[{\["]')}
WRAPPERS = ("data", "results", "outputs", "predictions", "responses", "messages", "body", "payload")
KNOWN = frozenset([*REPLY_NAMES, *MORE_NAMES, *OUTCOMES, *WRAPPERS, "choices", "error"])
