"""Deltas of any backend, checked and cut before a rendering takes them.

Imports types and tool calls.
"""

from collections.abc import Iterable, Iterator

import orjson

from rewrap.types import PORTION_CHARACTERS, Delta, ResponseInfo, in_portions
from rewrap.upstream.tool_calls import ToolCallNormalizer


class DeltaNormalizer:
    """The Deltas of one reply: tool calls in one form, texts in portions, usage noted."""

    def __init__(self, info: ResponseInfo) -> None:
        self.info = info
        self.tool_calls = ToolCallNormalizer()

    def __call__(self, deltas: Iterable[Delta]) -> Iterator[Delta]:
        """Raises ValueError for a Delta that JSON cannot hold, or a tool call that is none."""
        for delta in deltas:
            if delta.usage:
                self.info.usage = delta.usage
            if delta.fields and "tool_calls" in delta.fields:
                calls = self.tool_calls(delta.index, delta.fields["tool_calls"])
                delta.fields = delta.fields | {"tool_calls": calls}
            if delta.fields or delta.logprobs or delta.usage:
                check_depth(delta)
            if delta.whole and len(delta.content) > PORTION_CHARACTERS:
                yield from in_portions(delta)
            elif delta.content or delta.finish_reason or delta.fields or delta.logprobs:
                yield delta


def check_depth(delta: Delta) -> None:
    """Raises ValueError if a Delta is nested too deeply: it is eight levels down in an answer."""
    try:
        orjson.dumps([[[[[[[[delta.fields, delta.logprobs, delta.usage]]]]]]]])
    except TypeError:
        raise ValueError("nested too deeply, or a number too large") from None


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
