"""Tool calls in OpenAI's form, however an upstream numbers and names them. Imports types and leaf files."""

from uuid import uuid4

import orjson

from rewrap.structs import struct
from rewrap.types import JSONObject
from rewrap.upstream.members import object_member, text_member

MAXIMUM_INDEX = 1000
KNOWN_MEMBERS = frozenset(["id", "index", "type", "function"])


class ToolCallNormalizer:
    """Normalizes the tool calls of one reply, whole or in pieces.

    A piece belongs to the call with its id, or else to the call with its index. Some upstreams send
    no index, or 0 for each call: a name with a new id starts another call. Every piece has an index
    and arguments, which are a string. The first piece of a call alone has an id, a type and a name:
    clients join the texts of pieces.
    """

    def __init__(self) -> None:
        self.choices: dict[int, CallIndex] = {}

    def __call__(self, choice: int, calls: object) -> list[JSONObject]:
        """The pieces in `calls`, a list or one piece. Raises ValueError for a value that is none."""
        index = self.choices.setdefault(choice, CallIndex())
        pieces = calls if isinstance(calls, list) else [calls]
        return [normalized(piece, index) for piece in pieces]

    def end(self, choice: int) -> list[JSONObject]:
        """The arguments of calls that had none: an empty object."""
        calls = self.choices.get(choice)
        if calls is None:
            return []
        return [
            {"index": index, "function": {"arguments": "{}"}}
            for index, call in sorted(calls.calls.items())
            if call.type == "function" and not call.has_arguments
        ]


@struct(slots=True)
class CallState:
    """What is known of one call."""

    id: str = ""
    type: str = ""
    name: str = ""
    has_arguments: bool = False


class CallIndex:
    """The tool calls of one choice, by index."""

    def __init__(self) -> None:
        self.calls: dict[int, CallState] = {}
        self.index_of: dict[str, int] = {}
        self.next = 0  # after the largest index

    def place(self, id: str, index: int | None, name: str) -> int:
        """The index of the call that a piece belongs to."""
        if id in self.index_of:
            return self.index_of[id]
        taken = index in self.calls
        starts_call = bool(name) and (bool(id) or not taken)
        if starts_call and (index is None or taken):
            return self.next
        if index is not None:
            return index
        return max(self.next - 1, 0)

    def call(self, index: int) -> CallState:
        if index not in self.calls:
            self.calls[index] = CallState()
            self.next = max(self.next, index + 1)
        return self.calls[index]


def normalized(piece: object, calls: CallIndex) -> JSONObject:
    """One piece in OpenAI's form. Raises ValueError."""
    if not isinstance(piece, dict):
        raise ValueError("a tool call is no object")
    function = object_member(piece, "function")
    id = text_member(piece, "id")
    name = text_member(function, "name")
    index = calls.place(id, sent_index(piece), name)
    call = calls.call(index)
    result: JSONObject = {"index": index}
    if not call.id:
        call.id = id or f"call_{uuid4().hex}"
        calls.index_of[call.id] = index
        call.type = text_member(piece, "type") or "function"
        result |= {"id": call.id, "type": call.type}
    members = {key: value for key, value in piece.items() if value is not None}
    result |= {key: value for key, value in members.items() if key not in KNOWN_MEMBERS}
    if call.type == "function":
        result["function"] = normalized_function(function, name, call)
    return result


def normalized_function(function: JSONObject, name: str, call: CallState) -> JSONObject:
    members = {key: value for key, value in function.items() if value is not None}
    members.pop("name", None)
    if name and name != call.name:
        call.name = name
        members = {"name": name} | members
    arguments = members.get("arguments", "")
    if not isinstance(arguments, str):
        arguments = json_text(arguments)
    if arguments:
        call.has_arguments = True
    return members | {"arguments": arguments}


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
