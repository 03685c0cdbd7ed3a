"""Calls of tools, in the form that clients know, whichever way an upstream numbers and names them. Imports nothing of ours."""

from typing import Any
from uuid import uuid4

import orjson


class ToolCallNormalizer:
    """The calls of one reply, whole or in pieces; each has an `index` in its choice, and at first an `id` and a `type`.

    A piece belongs to the call of its id, or else of its index. Some upstreams send no index, or 0 for each call: a name with an
    id that is new begins another call. Arguments are a JSON string. Raises ValueError for what is no call.
    """

    def __init__(self) -> None:
        self.ids: dict[int, list[str]] = {}  # of each choice, by index

    def __call__(self, choice: int, calls: Any) -> list[dict[str, Any]]:
        ids = self.ids.setdefault(choice, [])
        return [self.placed(ids, call) for call in (calls if isinstance(calls, list) else [calls])]

    def placed(self, ids: list[str], call: Any) -> dict[str, Any]:
        if not isinstance(call, dict):
            raise ValueError("a call of a tool is no object")
        function = call["function"] if isinstance(call.get("function"), dict) else {}
        id = call["id"] if isinstance(call.get("id"), str) else ""
        index = (
            call["index"]
            if isinstance(call.get("index"), int) and 0 <= call["index"] < MOST
            else None
        )
        taken = index is not None and index < len(ids) and bool(ids[index])
        begins = bool(function.get("name")) and not (id in ids if id else taken)
        if id and id in ids:
            index = ids.index(id)
        elif begins and (index is None or taken):
            index = len(ids)
        elif index is None:
            index = max(len(ids) - 1, 0)
        ids += [""] * (index + 1 - len(ids))
        known: dict[str, Any] = {"index": index}
        if not ids[index]:
            ids[index] = id or f"call_{uuid4().hex}"
            known |= {"id": ids[index], "type": "function"}
        elif id:
            known["id"] = id
        known |= {
            name: value
            for name, value in call.items()
            if value is not None and name not in ("id", "index")
        }
        arguments = function.get("arguments")
        if arguments is not None and not isinstance(arguments, str):
            known["function"] = function | {"arguments": written(arguments)}
        return known


MOST = 1000  # calls of a reply


def written(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        raise ValueError("nested too deeply, or a number too large") from None
