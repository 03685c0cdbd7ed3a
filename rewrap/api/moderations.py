"""Requests and answers of /v1/moderations, where no upstream has them.

A chat backend judges nothing: only the mock, whose rules name the categories, may answer this way.
Source: OpenAI's OpenAPI document 2.3.0.
"""

from collections.abc import Callable, Collection

from rewrap.api.checks import checked_text_member, missing, object_rows, wrong_type, wrong_value
from rewrap.ids import random_hex
from rewrap.types import JSONObject

DEFAULT_MODEL = "omni-moderation-latest"
CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit",
    "illicit/violent", "self-harm", "self-harm/intent", "self-harm/instructions", "sexual",
    "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
IMAGE_CATEGORIES = frozenset({
    "self-harm", "self-harm/intent", "self-harm/instructions", "sexual", "violence",
    "violence/graphic",
})  # fmt: skip
EXPECTED = "one of a string, array of strings or array of objects"

Judge = Callable[[str], Collection[str]]  # a text's categories, of those above


def moderation(payload: JSONObject, judge: Judge) -> JSONObject:
    """The answer: one result for each text, or one for a list of parts. Raises APIError."""
    value = payload.get("input")
    if value is None:
        raise missing("input")
    if isinstance(value, str):
        results = [result(judge(value), has_image=False)]
    elif not isinstance(value, list) or not value:
        raise wrong_type("input", EXPECTED, value)
    elif all(isinstance(text, str) for text in value):
        results = [result(judge(text), has_image=False) for text in value]
    else:
        results = [result_of_parts(object_rows(value, "input"), judge)]
    model = payload.get("model") or DEFAULT_MODEL
    return {"id": f"modr-{random_hex()}", "model": model, "results": results}


def result_of_parts(parts: list[JSONObject], judge: Judge) -> JSONObject:
    flagged: set[str] = set()
    has_image = False
    for position, part in enumerate(parts):
        where = f"input[{position}]"
        kind = checked_text_member(part, "type", where)
        if kind == "image_url":
            has_image = True
        elif kind == "text":
            flagged.update(judge(checked_text_member(part, "text", where)))
        else:
            raise wrong_value(f"{where}.type", kind, ("text", "image_url"))
    return result(flagged, has_image=has_image)


def result(flagged: Collection[str], *, has_image: bool) -> JSONObject:
    """One result. Scores are 0.99 for a flagged category, and 0.0001 for any other."""
    types = {}
    for name in CATEGORIES:
        types[name] = ["text"]
        if has_image and name in IMAGE_CATEGORIES:
            types[name] = ["text", "image"]
    return {
        "flagged": bool(flagged),
        "categories": {name: name in flagged for name in CATEGORIES},
        "category_scores": {name: 0.99 if name in flagged else 0.0001 for name in CATEGORIES},
        "category_applied_input_types": types,
    }
