"""Search for a reply in JSON of unknown form: by the usual names, a few levels down.

Pure functions. Imports types alone.
"""

from collections.abc import Iterable, Sequence

import orjson

from rewrap.types import JSONObject

REPLY_NAMES = ("reply", "response", "answer", "output", "text", "content", "generated_text")
MORE_NAMES = ("completion", "delta", "token", "bot", "assistant", "output_text", "response_text")
TEXT_NAMES = (*REPLY_NAMES, *MORE_NAMES)
# Texts here may say "success" beside the reply: an object with a reply in it goes first.
OUTCOME_NAMES = ("message", "result")
WRAPPER_NAMES = (
    "data",
    "results",
    "outputs",
    "predictions",
    "responses",
    "messages",
    "body",
    "payload",
)
KNOWN_NAMES = frozenset(
    [*REPLY_NAMES, *MORE_NAMES, *OUTCOME_NAMES, *WRAPPER_NAMES, "choices", "error"]
)
STREAMED_NUMBER_NAMES = ("reply", "response", "answer", "text", "content")
EXTRA_NAMES = ("reasoning_content", "reasoning", "tool_calls")
FIGURE_NAMES = ("figure", "figures")
# Without one of these, and without an object among the members, there is nothing to find.
EXTRA_PLACES = frozenset([*EXTRA_NAMES, *FIGURE_NAMES])
ASSISTANT_ROLES = ("assistant", "ai", "bot", "model")
USER_ROLES = ("user", "human")

OBJECT_LEVELS = 4
LIST_LEVELS = 4
ITEMS = 1000  # of a list


def find_reply(value: object, objects: int = OBJECT_LEVELS, lists: int = LIST_LEVELS) -> str | None:
    """The text of the reply; None if there is none within so many levels of objects and lists."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and lists:
        items = assistant_items(value[:ITEMS])
        texts = [find_reply(item, objects, lists - 1) for item in items]
        found = [text for text in texts if text is not None]
        return "".join(found) if found else None
    if isinstance(value, dict) and objects:
        return find_in_object(value, objects, lists)
    return None


def find_in_object(value: JSONObject, objects: int, lists: int) -> str | None:
    """A text under a name of replies, then a reply inside a member, then a text that may say
    "success".
    """
    for name in TEXT_NAMES:
        text = value.get(name)
        if isinstance(text, str):
            return text
    replies = members_of(value, TEXT_NAMES)
    inner_values = [*replies, *members_of(value, (*WRAPPER_NAMES, *OUTCOME_NAMES))]
    for inner in inner_values:
        if isinstance(inner, str):
            continue
        found = find_reply(inner, objects - 1, lists)
        if found is not None:
            return found
    return first_text(inner_values)


def members_of(value: JSONObject, names: Sequence[str]) -> list[object]:
    return [value[name] for name in names if name in value]


def first_text(values: Iterable[object]) -> str | None:
    return next((value for value in values if isinstance(value, str)), None)


def assistant_items(items: list[object]) -> list[object]:
    """The assistant's messages after the user's last one, if the list is a conversation; else
    all items.
    """
    roles = [item_role(item) for item in items]
    if not any(role in ASSISTANT_ROLES for role in roles):
        return items
    start = 0
    for position, role in enumerate(roles):
        if role in USER_ROLES:
            start = position + 1
    return [
        item
        for item, role in zip(items[start:], roles[start:], strict=True)
        if role in ASSISTANT_ROLES
    ]


def item_role(item: object) -> object:
    if not isinstance(item, dict):
        return None
    role = item.get("role", item.get("type"))
    return role if isinstance(role, str) else None


def nonempty_reply(value: JSONObject) -> str:
    """A reply at the top that is not empty; "" if there is none.

    An empty one may stand beside it.
    """
    for name in REPLY_NAMES:
        text = value.get(name)
        if isinstance(text, str) and text:
            return text
    return ""


def streamed_number(value: JSONObject) -> str | None:
    """A number under a name of replies. Some upstreams stream digits as JSON numbers."""
    for name in STREAMED_NUMBER_NAMES:
        text = number_as_text(value.get(name))
        if isinstance(text, str):
            return text
    return None


def number_as_text(value: object) -> object:
    if type(value) in (int, float):
        return orjson.dumps(value).decode()
    return value


def extra_fields(value: object) -> JSONObject | None:
    """Reasoning, tool calls and figures in an object of unknown form, under the names that
    clients read.
    """
    if not isinstance(value, dict):
        return None
    if EXTRA_PLACES.isdisjoint(value) and not any(type(part) is dict for part in value.values()):
        return None
    fields: JSONObject = {}
    for place in (value.get("message"), value):
        if isinstance(place, dict):
            fields |= {name: place[name] for name in EXTRA_NAMES if place.get(name)}
    return with_both_names(fields | figures_in(value))


def figures_in(value: JSONObject) -> JSONObject:
    """`figure` and `figures`, at the top or one level down."""
    inner = members_of(value, (*WRAPPER_NAMES, *REPLY_NAMES, *OUTCOME_NAMES))
    found: JSONObject = {}
    for place in [*inner, value]:
        if isinstance(place, dict):
            found |= {name: place[name] for name in FIGURE_NAMES if place.get(name)}
    return found


def with_both_names(fields: JSONObject) -> JSONObject | None:
    """The fields, with reasoning under both names that clients read; None if there are none."""
    reasoning = fields.get("reasoning_content") or fields.get("reasoning")
    if reasoning:
        fields = fields | {"reasoning_content": reasoning, "reasoning": reasoning}
    return fields or None
