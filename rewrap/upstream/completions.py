"""OpenAI's completions and chunks as Deltas. Upstreams may deviate from the form.

Imports types alone.
"""

from rewrap.types import Delta, JSONObject, text_of, usage
from rewrap.upstream.members import object_member, text_member
from rewrap.upstream.reply_search import figures_in, number_as_text, with_both_names

EMPTY: tuple[object, ...] = (None, [], "")


def completion_deltas(value: JSONObject, *, whole: bool) -> list[Delta]:
    """The Deltas of a completion (`whole`) or of a chunk.

    Raises ValueError for one that holds no reply.
    """
    figures = figures_in(value)
    deltas: list[Delta] = []
    for position, choice in enumerate(value["choices"]):
        if not isinstance(choice, dict):
            raise ValueError("a choice is no object")
        deltas.append(choice_delta(choice, position, figures, whole=whole))
        figures = {}
    counts = completion_usage(value)
    if counts:
        deltas.append(Delta(usage=counts))
    return deltas


def choice_delta(choice: JSONObject, position: int, figures: JSONObject, *, whole: bool) -> Delta:
    message = choice.get("message") or choice.get("delta") or {}
    if not isinstance(message, dict):
        raise ValueError("a message is no object")
    content = message.get("content", choice.get("text"))
    if "delta" in choice:
        content = number_as_text(content)
    check_content(content)
    fields = other_members(message) | figures
    finish_reason = choice.get("finish_reason")
    if whole:
        if content is None and not fields and not finish_reason:
            raise ValueError("no reply")
        finish_reason = text_member(choice, "finish_reason") or implied_reason(fields)
    index = choice.get("index")
    if not isinstance(index, int):
        index = position
    return Delta(
        text_of(content),
        finish_reason,
        index,
        whole=whole,
        fields=with_both_names(fields),
        logprobs=choice.get("logprobs"),
    )


def other_members(message: JSONObject) -> JSONObject:
    """The members beside role and content that are not empty."""
    return {
        name: member
        for name, member in message.items()
        if name not in ("role", "content") and member not in EMPTY
    }


def implied_reason(fields: JSONObject) -> str:
    """The reason of an answer without one."""
    if "tool_calls" in fields:
        return "tool_calls"
    return "stop"


def check_content(content: object) -> None:
    """Raises ValueError for a content that is neither a text nor a list of parts."""
    if content is None or isinstance(content, str):
        return
    if isinstance(content, list) and all(isinstance(part, (str, dict)) for part in content):
        return
    raise ValueError("content is no text")


def completion_usage(value: object) -> JSONObject | None:
    """OpenAI's `usage` in an answer, if it counts both sides."""
    counts = object_member(value, "usage")
    prompt = counts.get("prompt_tokens")
    completion = counts.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    return usage(prompt, completion) | counts
