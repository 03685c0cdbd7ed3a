"""Members of JSON objects that anybody may have sent: read without an error.

Imports types alone.
"""

from rewrap.types import JSONObject


def text_member(value: object, name: str) -> str:
    """A string in an object; "" if there is none."""
    if not isinstance(value, dict):
        return ""
    found = value.get(name)
    if not isinstance(found, str):
        return ""
    return found


def object_member(value: object, name: str) -> JSONObject:
    """An object in an object; {} if there is none."""
    if not isinstance(value, dict):
        return {}
    found = value.get(name)
    if not isinstance(found, dict):
        return {}
    return found


def list_member(value: object, name: str) -> list[object]:
    """A list in an object; [] if there is none."""
    if not isinstance(value, dict):
        return []
    found = value.get(name)
    if not isinstance(found, list):
        return []
    return found
