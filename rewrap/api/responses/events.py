"""Events of the Responses API: how output items look on the wire, whole and in pieces.

Imports no backend and no store. Source: OpenAI's OpenAPI document 2.3.0 and recorded traffic.
"""

import time
from dataclasses import field

import orjson

from rewrap.api.responses.items import seal
from rewrap.structs import struct
from rewrap.types import JSONObject, dumps


@struct(frozen=True, slots=True)
class ItemForm:
    """How one kind of output item looks on the wire.

    Each item has one part at most, so `content_index` and `summary_index` are always 0.
    """

    type: str  # of the item
    events: str  # the names of its delta and done events, without the ending
    member: str  # holds the whole text, in the done event and in a call
    part: str = ""  # type of the part; "" for calls, which have none
    parts: str = ""  # the member of the item that holds the part
    part_events: str = "response.content_part"
    index: str = "content_index"


TEXT = ItemForm("message", "response.output_text", "text", "output_text", "content")
REFUSAL = ItemForm("message", "response.refusal", "refusal", "refusal", "content")
REASONING = ItemForm("reasoning", "response.reasoning_text", "text", "reasoning_text", "content")
SUMMARY = ItemForm(
    "reasoning",
    "response.reasoning_summary_text",
    "text",
    "summary_text",
    "summary",
    part_events="response.reasoning_summary_part",
    index="summary_index",
)
FUNCTION = ItemForm("function_call", "response.function_call_arguments", "arguments")
CUSTOM = ItemForm("custom_tool_call", "response.custom_tool_call_input", "input")


@struct(slots=True)
class OutputItem:
    """One item of the output while it grows."""

    form: ItemForm
    call: JSONObject = field(default_factory=dict)  # call_id, name and namespace
    pieces: list[str] = field(default_factory=list)
    logprobs: list[JSONObject] = field(default_factory=list)
    id: str = ""  # set when the item is opened
    index: int = 0  # its place in the output
    closed: bool = False
    encrypted: bool = False  # reasoning is repeated in `encrypted_content`
    frame: bytes = b""  # of its delta events, up to the sequence number

    def text(self) -> str:
        """The whole text, as the item has it."""
        text = "".join(self.pieces)
        if self.form is CUSTOM:
            return custom_input(text)
        if self.form is FUNCTION:
            return text or "{}"
        return text

    def part(self, text: str) -> JSONObject:
        part: JSONObject = {"type": self.form.part, self.form.member: text}
        if self.form is TEXT:
            part["annotations"] = []
            part["logprobs"] = self.logprobs if text else []
        return part

    def document(self, status: str, text: str) -> JSONObject:
        """The item as JSON; an empty text gives the item as it is opened."""
        item: JSONObject = {"id": self.id, "type": self.form.type, "status": status}
        if self.form.type == "message":
            item |= {"role": "assistant", "content": []}
        elif self.form.type == "reasoning":
            item |= {"summary": [], "content": [], "encrypted_content": None}
            if text and self.encrypted:
                item["encrypted_content"] = seal(text)
        else:
            item |= self.call
            item[self.form.member] = text
        if self.form.part and text:
            item[self.form.parts] = [self.part(text)]
        return item

    def is_partial_call(self) -> bool:
        """Whether the arguments of a call are not a whole JSON object yet."""
        if self.form.part:
            return False
        try:
            return not isinstance(orjson.loads("".join(self.pieces)), dict)
        except orjson.JSONDecodeError:
            return True


def custom_input(arguments: str) -> str:
    """The plain text in the arguments of a function that stands for a custom tool."""
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments
    if isinstance(value, dict) and isinstance(value.get("input"), str):
        text: str = value["input"]
        return text
    return arguments


class EventWriter:
    """Events as bytes, numbered from 0. `fixed` has the members of the response that never change.

    A delta event is a frame made once per item, with a number and a text put in: to dump each one
    whole takes four times as long.
    """

    def __init__(self, fixed: JSONObject) -> None:
        self.fixed = dumps(fixed)[:-1]
        self.number = 0  # of the next event
        self.events: list[bytes] = []  # not taken yet

    def take(self) -> bytes:
        data = b"".join(self.events)
        self.events.clear()
        return data

    def emit(self, name: str, /, **members: object) -> None:
        event = orjson.dumps({"type": name, "sequence_number": self.number, **members})
        self.events.append(b"event: %b\ndata: %b\n\n" % (name.encode(), event))
        self.number += 1

    def response(self, name: str, state: JSONObject) -> None:
        """An event with the whole response."""
        whole = self.fixed + b"," + orjson.dumps(state)[1:]
        self.emit(f"response.{name}", response=orjson.Fragment(whole))

    def begin(self) -> None:
        state = response_state("in_progress", [])
        self.response("created", state)
        self.response("in_progress", state)

    def open(self, item: OutputItem) -> None:
        form = item.form
        place: JSONObject = {"item_id": item.id, "output_index": item.index}
        document = item.document("in_progress", "")
        self.emit("response.output_item.added", output_index=item.index, item=document)
        if form.part:
            place[form.index] = 0
            self.emit(f"{form.part_events}.added", **place, part=item.part(""))
        if form is TEXT:
            place["logprobs"] = []
        name = f"{form.events}.delta"
        head = orjson.dumps({"type": name, **place})[:-1]
        item.frame = b'event: %b\ndata: %b,"sequence_number":' % (name.encode(), head)

    def piece(self, item: OutputItem, text: str) -> bytes:
        """One delta event, which is not kept in `events`."""
        event = b'%b%d,"delta":%b}\n\n' % (item.frame, self.number, orjson.dumps(text))
        self.number += 1
        return event

    def pieces(self, item: OutputItem, texts: list[str]) -> None:
        """A delta event for each text."""
        self.events += [
            b'%b%d,"delta":%b}\n\n' % (item.frame, number, orjson.dumps(text))
            for number, text in enumerate(texts, self.number)
        ]
        self.number += len(texts)

    def piece_with_logprobs(self, item: OutputItem, text: str, logprobs: list[JSONObject]) -> None:
        place = {"item_id": item.id, "output_index": item.index, "content_index": 0}
        self.emit(f"{item.form.events}.delta", **place, logprobs=logprobs, delta=text)

    def close(self, item: OutputItem, text: str, document: JSONObject) -> None:
        form = item.form
        place: JSONObject = {"item_id": item.id, "output_index": item.index}
        if form.part:
            place[form.index] = 0
        members: JSONObject = {form.member: text}
        if form is TEXT:
            members["logprobs"] = item.logprobs
        elif form is FUNCTION:
            members["name"] = item.call["name"]
        self.emit(f"{form.events}.done", **place, **members)
        if form.part:
            self.emit(f"{form.part_events}.done", **place, part=item.part(text))
        self.emit("response.output_item.done", output_index=item.index, item=document)


def response_state(
    status: str,
    output: list[JSONObject],
    *,
    counts: JSONObject | None = None,
    reason: str = "",
    error: JSONObject | None = None,
) -> JSONObject:
    """The members of the Response object that change."""
    state: JSONObject = {
        "status": status,
        "completed_at": None,
        "error": error,
        "incomplete_details": None,
        "output": output,
        "usage": counts,
    }
    if status == "completed":
        state["completed_at"] = int(time.time())
    if reason:
        state["incomplete_details"] = {"reason": reason}
    return state
