"""A request as the conditions of rules see it.

Tool results are looked for in the current turn alone, the messages after the last user message: in
the whole history, a rule for a tool's result would match in every later turn. Imports the types.
"""

from collections.abc import Mapping
from functools import cached_property

from rewrap.structs import struct
from rewrap.types import ChatRequest, JSONObject, text_of

MAX_LANE = 200  # characters
SYSTEM = ("system", "developer")
RESULT = ("tool", "function")


@struct(frozen=True, slots=True)
class ToolResult:
    """The result of a tool in the conversation. `tool` is "" where no call has its id."""

    tool: str
    text: str


class Facts:
    """The facts of one request; each is computed when it is first needed.

    `messages` are those of a chat. The prompt of a completion and the input of embeddings and
    moderations come as one user message. `headers` have lower-case names.
    """

    def __init__(
        self,
        model: str,
        messages: list[JSONObject],
        payload: JSONObject,
        *,
        api: str = "chat",
        headers: Mapping[str, str] | None = None,
        lane: str = "",
    ) -> None:
        self.model = model
        self.messages = messages
        self.payload = payload
        self.api = api
        self.headers = headers or {}
        self.lane = lane or lane_of(self.headers, payload)

    @classmethod
    def of(
        cls, request: ChatRequest, api: str = "chat", headers: Mapping[str, str] | None = None
    ) -> "Facts":
        return cls(request.model, request.messages, request.payload, api=api, headers=headers)

    @cached_property
    def last_user(self) -> int:
        """The position of the last user message; -1 if there is none."""
        for position in range(len(self.messages) - 1, -1, -1):
            if self.messages[position].get("role") == "user":
                return position
        return -1

    @cached_property
    def message(self) -> str:
        """The text of the last user message."""
        if self.last_user < 0:
            return ""
        return text_of(self.messages[self.last_user].get("content"))

    @cached_property
    def texts(self) -> list[str]:
        return [text_of(message.get("content")) for message in self.messages]

    @cached_property
    def system(self) -> str:
        found = [message for message in self.messages if message.get("role") in SYSTEM]
        return "\n".join(text_of(message.get("content")) for message in found)

    @property
    def user(self) -> str:
        return string_or_empty(self.payload.get("user"))

    @cached_property
    def current_turn(self) -> list[JSONObject]:
        return self.messages[self.last_user + 1 :]

    @cached_property
    def turn(self) -> int:
        """The number of the current user turn. Adjacent user messages are one turn.

        Assistant messages tell nothing here: a turn with tool calls has several of them.
        """
        return count_runs("user", self.messages)

    @cached_property
    def call(self) -> int:
        """The number of this request within its turn: one more than the answers in it so far."""
        return count_runs("assistant", self.current_turn) + 1

    @cached_property
    def tools(self) -> dict[str, JSONObject]:
        """The functions offered, by name. Each may have a JSON schema as `parameters`."""
        tools = objects(self.payload.get("tools"))
        offered = [as_object(tool.get("function")) or tool for tool in tools]
        offered += objects(self.payload.get("functions"))
        # Tools of other types may have no name.
        return {tool["name"]: tool for tool in offered if string_or_empty(tool.get("name"))}

    @cached_property
    def turn_results(self) -> list[ToolResult]:
        """The tool results of the current turn, in order."""
        names: dict[str, str] = {}
        results = []
        for message in self.current_turn:
            for call in objects(message.get("tool_calls")):
                function = as_object(call.get("function"))
                names[string_or_empty(call.get("id"))] = string_or_empty(function.get("name"))
            if message.get("role") in RESULT:
                called = names.get(string_or_empty(message.get("tool_call_id")))
                tool = called or string_or_empty(message.get("name"))  # the old form has no id
                results.append(ToolResult(tool, text_of(message.get("content"))))
        return results

    @cached_property
    def new_results(self) -> list[ToolResult]:
        """The tool results that this request brings: those that end the conversation."""
        count = 0
        for message in reversed(self.current_turn):
            if message.get("role") not in RESULT:
                break
            count += 1
        return self.turn_results[len(self.turn_results) - count :]

    @property
    def new_tool(self) -> str:
        """The tool of the last new result; "" if there is none."""
        for result in reversed(self.new_results):
            return result.tool
        return ""

    @property
    def new_text(self) -> str:
        return "\n".join(result.text for result in self.new_results)

    @cached_property
    def response_format(self) -> tuple[str, str]:
        """The type of the response format, and the name of its schema."""
        value = as_object(self.payload.get("response_format"))
        schema = as_object(value.get("json_schema"))
        return string_or_empty(value.get("type")) or "text", string_or_empty(schema.get("name"))


# Parts of requests that no check has seen may be any JSON.


def as_object(value: object) -> JSONObject:
    return value if isinstance(value, dict) else {}


def string_or_empty(value: object) -> str:
    return value if isinstance(value, str) else ""


def objects(value: object) -> list[JSONObject]:
    if not isinstance(value, list):
        return []
    return [item for item in value if isinstance(item, dict)]


def count_runs(role: str, messages: list[JSONObject]) -> int:
    """How many groups of adjacent messages have this role. System messages part no group."""
    count = 0
    previous = ""
    for message in messages:
        current = message.get("role", "")
        if current in SYSTEM:
            continue
        if current == role != previous:
            count += 1
        previous = current
    return count


def lane_of(headers: Mapping[str, str], payload: JSONObject, key: str = "") -> str:
    """The lane in which a request is counted.

    It is the header `x-mock-lane`, else the `user`, else `key` (the owner of a key, where callers
    want a lane for each), else "", which all other requests share.
    """
    lane = headers.get("x-mock-lane") or string_or_empty(payload.get("user")) or key
    return lane[:MAX_LANE]
