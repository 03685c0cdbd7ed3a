"""Deltas of any backend, checked and cut before a rendering takes them.

Imports types, tool calls, and the repair of JSON.
"""

from collections.abc import Iterable, Iterator

import orjson

from rewrap.types import PORTION_CHARACTERS, Delta, JSONObject, ResponseInfo, in_portions
from rewrap.upstream.lenient import SURROGATE, repaired
from rewrap.upstream.tool_calls import ToolCallNormalizer

REASONING_NAMES = ("reasoning_content", "reasoning")
HIGH_SURROGATES = ("\ud800", "\udbff")  # the first and the last


class DeltaNormalizer:
    """The Deltas of one reply: tool calls in one form, texts in portions, usage noted.

    Some upstreams give a reason to end with every event. It is held back: `end` gives it once for
    each choice. The two halves of a character may be in two events: they are joined.
    """

    def __init__(self, info: ResponseInfo) -> None:
        self.info = info
        self.tool_calls = ToolCallNormalizer()
        self.started: set[int] = set()  # choices
        self.reasons: dict[int, str] = {}
        self.halves: dict[tuple[int, str], str] = {}

    @property
    def ended(self) -> bool:
        """Every choice that was started has a reason to end."""
        return bool(self.reasons) and self.started <= self.reasons.keys()

    def __call__(self, deltas: Iterable[Delta]) -> Iterator[Delta]:
        """Raises ValueError for a Delta that JSON cannot hold, or a tool call that is none."""
        for delta in deltas:
            self.normalize(delta)
            if not (delta.content or delta.fields or delta.logprobs):
                continue
            self.started.add(delta.index)
            if delta.whole and len(delta.content) > PORTION_CHARACTERS:
                yield from in_portions(delta)
            else:
                yield delta

    def normalize(self, delta: Delta) -> None:
        """Note the usage and the reason to end, and bring the members into one form."""
        if delta.usage:
            self.info.usage = delta.usage
        if delta.content and not delta.content.isascii():
            delta.content = self.joined(delta.index, "content", delta.content)
        if delta.fields or delta.logprobs or delta.usage:
            self.normalize_members(delta)
        if delta.finish_reason:
            self.started.add(delta.index)
            self.reasons[delta.index] = delta.finish_reason
            delta.finish_reason = None

    def end(self, reason: str = "") -> Iterator[Delta]:
        """The last Deltas of each choice. `reason`: of the choices without one of their own."""
        for index, name in list(self.halves):
            yield self.last_half(index, name)
        for index in sorted(self.started or {0}):
            calls = self.tool_calls.end(index)
            if calls:
                yield Delta(index=index, fields={"tool_calls": calls})
            own_reason = self.reasons.get(index)
            yield Delta(finish_reason=own_reason or reason or "stop", index=index)

    def normalize_members(self, delta: Delta) -> None:
        fields = delta.fields or {}
        if "tool_calls" in fields:
            fields = fields | {"tool_calls": self.tool_calls(delta.index, fields["tool_calls"])}
        reasoning = fields.get("reasoning")
        if isinstance(reasoning, str) and not reasoning.isascii():
            text = self.joined(delta.index, "reasoning", reasoning)
            fields = with_reasoning(fields, text)
        delta.fields = fields or None
        if not can_be_written(delta):
            repair(delta)

    def last_half(self, index: int, name: str) -> Delta:
        """The Delta of a half that nothing follows."""
        text = self.joined(index, name, "", last=True)
        if name == "content":
            return Delta(text, index=index)
        return Delta(index=index, fields=with_reasoning({}, text))

    def joined(self, index: int, name: str, text: str, *, last: bool = False) -> str:
        """The text after an earlier half of a character; without a half at its end, unless `last`."""
        text = self.halves.pop((index, name), "") + text
        if not SURROGATE.search(text):
            return text
        if not last and HIGH_SURROGATES[0] <= text[-1] <= HIGH_SURROGATES[1]:
            self.halves[index, name] = text[-1]
            text = text[:-1]
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def normalized_whole(deltas: list[Delta], info: ResponseInfo) -> list[Delta]:
    """The Deltas of a reply that came in one piece.

    A short text alone, the usual case, stays one Delta with its finish_reason: that saves 4 µs. Raises ValueError as DeltaNormalizer does.
    """
    if len(deltas) == 1 and is_short_text(deltas[0]):
        deltas[0].finish_reason = deltas[0].finish_reason or "stop"
        return deltas
    normalized = DeltaNormalizer(info)
    return [*normalized(deltas), *normalized.end()]


def is_short_text(delta: Delta) -> bool:
    if delta.fields or delta.logprobs or delta.usage:
        return False
    return 0 < len(delta.content) <= PORTION_CHARACTERS and delta.content.isascii()


def with_reasoning(fields: JSONObject, text: str) -> JSONObject:
    """The fields with another reasoning, under both of its names."""
    others = {name: value for name, value in fields.items() if name not in REASONING_NAMES}
    if not text:
        return others
    return others | dict.fromkeys(REASONING_NAMES, text)


def can_be_written(delta: Delta) -> bool:
    """Whether JSON can hold the Delta, which is eight levels down in an answer."""
    try:
        orjson.dumps([[[[[[[[delta.fields, delta.logprobs, delta.usage]]]]]]]])
    except TypeError:
        return False
    return True


def repair(delta: Delta) -> None:
    """Replace lone surrogates. Raises ValueError for a Delta that JSON cannot hold all the same."""
    for name in ("fields", "logprobs", "usage"):
        setattr(delta, name, repaired(getattr(delta, name)))
    if not can_be_written(delta):
        raise ValueError("nested too deeply, or a number too large")


def take_identity(value: object, info: ResponseInfo) -> None:
    """Use the id and the time of an OpenAI-like answer for the reply."""
    if not isinstance(value, dict) or "choices" not in value:
        return
    id = value.get("id")
    created = value.get("created")
    if isinstance(id, str) and id:
        info.id = id
    if isinstance(created, int):
        info.created = created
