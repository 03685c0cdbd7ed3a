"""Tool calls in OpenAI's form, however an upstream numbers and names them. Imports types alone."""

from uuid import uuid4

import orjson

from rewrap.types import JSONObject

MAXIMUM_INDEX = 1000


class ToolCallNormalizer:
    """Normalizes the tool calls of one reply, whole or in pieces.

    A piece belongs to the call with its id, or else to the call with its index. Some upstreams
    send no index, or 0 for each call: a name with a new id starts another call. The first piece
    of a call has an id and a type, and all have an index. Arguments are a JSON string.
    """

    def __init__(self) -> None:
        self.choices: dict[int, CallIndex] = {}

    def __call__(self, choice: int, calls: object) -> list[JSONObject]:
        """The pieces in `calls`, a list or one piece.

        Raises ValueError for a value that is no tool call.
        """
        index = self.choices.setdefault(choice, CallIndex())
        pieces = calls if isinstance(calls, list) else [calls]
        return [normalized(piece, index) for piece in pieces]


class CallIndex:
    """The ids of the tool calls of one choice, by index.

    "" stands for a call whose first piece has not come.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.index_of: dict[str, int] = {}

    def place(self, id: str, index: int | None, name: object) -> int:
        """The index of the call that a piece belongs to."""
        if id in self.index_of:
            return self.index_of[id]
        taken = index is not None and index < len(self.ids) and bool(self.ids[index])
        starts_call = bool(name) and (bool(id) or not taken)
        if starts_call and (index is None or taken):
            return len(self.ids)
        if index is not None:
            return index
        return max(len(self.ids) - 1, 0)

    def known(self, index: int) -> bool:
        return index < len(self.ids) and bool(self.ids[index])

    def add(self, index: int, id: str) -> None:
        self.ids += [""] * (index + 1 - len(self.ids))
        self.ids[index] = id
        self.index_of[id] = index


def normalized(piece: object, calls: CallIndex) -> JSONObject:
    """One piece with its index. Raises ValueError."""
    if not isinstance(piece, dict):
        raise ValueError("a tool call is no object")
    function = piece.get("function")
    if not isinstance(function, dict):
        function = {}
    id = piece.get("id")
    id = id if isinstance(id, str) else ""
    index = calls.place(id, sent_index(piece), function.get("name"))
    members = {
        name: value
        for name, value in piece.items()
        if value is not None and name not in ("id", "index")
    }
    result: JSONObject = {"index": index}
    if not calls.known(index):
        id = id or f"call_{uuid4().hex}"
        calls.add(index, id)
        result |= {"id": id, "type": "function"}
    elif id:
        result["id"] = id
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        members["function"] = function | {"arguments": json_text(arguments)}
    return result | members


def sent_index(piece: JSONObject) -> int | None:
    """The upstream's own index, if it can be used."""
    index = piece.get("index")
    if isinstance(index, int) and 0 <= index < MAXIMUM_INDEX:
        return index
    return None


def json_text(value: object) -> str:
    """Raises ValueError for a value that JSON cannot hold."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        raise ValueError("nested too deeply, or a number too large") from None
