"""The Response object of the Responses API and its stream, made from Deltas.

Imports no backend and no store. Source: OpenAI's OpenAPI document 2.3.0, recorded traffic, and the
checks in the clients' stream readers.
"""

from rewrap.api.chat import EVENT_STREAM, complete_usage
from rewrap.api.responses.events import (
    CUSTOM,
    FUNCTION,
    REASONING,
    REFUSAL,
    SUMMARY,
    TEXT,
    EventWriter,
    ItemForm,
    OutputItem,
    response_state,
)
from rewrap.api.responses.request import Translation, id_prefix
from rewrap.api.responses.tools import ToolName
from rewrap.ids import random_hex
from rewrap.types import (
    APIError,
    ChatRequest,
    Delta,
    JSONObject,
    ResponseInfo,
    size_of,
    words,
)

MAX_REPLY_BYTES = 64 * 2**20
# About what these take in memory beside their text:
ITEM_BYTES = 1000
LOGPROB_BYTES = 200
PIECE_BYTES = 100
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
NO_REPLY = "The chat backend gave no reply."
TOO_LARGE = "The chat backend's answer is too large."
# Codex acts on these codes of a failed response. Any other becomes server_error.
KNOWN_CODES = frozenset({
    "context_length_exceeded", "insufficient_quota", "invalid_prompt", "rate_limit_exceeded",
})  # fmt: skip


class ResponseOutput:
    """The output items of one response, as they grow from Deltas.

    One item is open at a time. Chat upstreams may send the pieces of several calls in turns: an
    item that begins while the arguments of a call are not whole waits until the end of the reply.
    """

    def __init__(self, translation: Translation, writer: EventWriter | None = None) -> None:
        self.translation = translation
        self.writer = writer
        self.reasoning = SUMMARY if translation.reasoning_as_summary else REASONING
        self.items: list[JSONObject] = []  # the closed ones
        self.current: OutputItem | None = None
        self.waiting: list[OutputItem] = []
        self.calls: dict[int, OutputItem] = {}  # by the index of the chat call
        self.call_ids: set[str] = set()
        self.finish_reason = ""
        self.size = 0  # bytes of UTF-8 in all texts
        self.held = 0  # bytes in memory, about

    def add(self, delta: Delta) -> None:
        """The next Delta. Raises APIError 502 if the reply is too large."""
        if delta.index:
            return
        fields = delta.fields or {}
        reasoning = fields.get("reasoning_content") or fields.get("reasoning")
        if reasoning and isinstance(reasoning, str):
            self.extend(self.text_item(self.reasoning), reasoning)
        if delta.content:
            self.add_content(delta)
        refusal = fields.get("refusal")
        if refusal and isinstance(refusal, str):
            self.extend(self.text_item(REFUSAL), refusal)
        for position, call in enumerate(fields.get("tool_calls") or []):
            self.add_call(call, call.get("index", position))
        if delta.finish_reason:
            self.finish_reason = delta.finish_reason

    def add_content(self, delta: Delta) -> None:
        item = self.text_item(TEXT)
        if not delta.logprobs or not self.translation.logprobs:
            self.extend(item, delta.content, whole=delta.whole)
            return
        rows = [{"top_logprobs": [], **row} for row in delta.logprobs.get("content") or []]
        item.logprobs += rows
        self.held += sum(LOGPROB_BYTES * (1 + len(row["top_logprobs"])) for row in rows)
        self.keep(item, delta.content)
        if self.writer and item is self.current:
            self.writer.piece_with_logprobs(item, delta.content, rows)

    def add_call(self, call: JSONObject, index: int) -> None:
        function = call.get("function") or {}
        item = self.calls.get(index)
        if item is None:
            item = self.new_call(call.get("id"), function.get("name") or "")
            self.calls[index] = item
            self.begin(item)
        arguments = function.get("arguments")
        if arguments and not item.closed:
            self.extend(item, arguments)

    def new_call(self, call_id: object, name: str) -> OutputItem:
        """An item for a call, named as the client declared the tool."""
        if not isinstance(call_id, str) or not call_id or call_id in self.call_ids:
            call_id = f"call_{random_hex()}"
        self.call_ids.add(call_id)
        tool = self.translation.tool_names.get(name) or ToolName("function", name)
        call = {"call_id": call_id, "name": tool.name}
        if tool.namespace:
            call["namespace"] = tool.namespace
        if tool.kind == "custom":
            return OutputItem(CUSTOM, call)
        return OutputItem(FUNCTION, call)

    def text_item(self, form: ItemForm) -> OutputItem:
        """The item that the next text of this form belongs to."""
        last = self.current
        if self.waiting:
            last = self.waiting[-1]
        if last is None or last.form is not form:
            last = OutputItem(form, encrypted=self.translation.encrypted_reasoning)
            self.begin(last)
        return last

    def begin(self, item: OutputItem) -> None:
        self.held += ITEM_BYTES
        if self.waiting or (self.current and self.current.is_partial_call()):
            self.waiting.append(item)
            return
        self.close("completed")
        self.open(item)

    def open(self, item: OutputItem) -> None:
        item.index = len(self.items)
        prefix = id_prefix(item.form.type)
        item.id = f"{prefix}_{self.translation.hex}{item.index:04x}"
        self.current = item
        if self.writer:
            self.writer.open(item)

    def extend(self, item: OutputItem, text: str, *, whole: bool = False) -> None:
        """More text of an item. A `whole` text leaves as one event per word, in one write."""
        self.keep(item, text)
        if self.writer and item is self.current and item.form is not CUSTOM:
            self.writer.pieces(item, words(text) if whole else [text])

    def keep(self, item: OutputItem, text: str) -> None:
        """Add to the text of an item. Raises APIError, and ValueError for a lone surrogate."""
        size = size_of(text)
        self.size += size
        self.held += size + PIECE_BYTES
        if self.held > MAX_REPLY_BYTES:
            raise APIError(502, TOO_LARGE, type="upstream_error", code="bad_gateway")
        item.pieces.append(text)

    def close(self, status: str) -> None:
        """End the open item. Its arguments may not have been sent: custom input, or none at all."""
        item = self.current
        if item is None:
            return
        text = item.text()
        document = item.document(status, text)
        if self.writer:
            if text and (item.form is CUSTOM or not item.pieces):
                self.writer.pieces(item, [text])
            self.writer.close(item, text, document)
        item.closed = True
        self.items.append(document)
        self.current = None

    def finish(self) -> None:
        """Close what is open, and the items that wait. Only the last one can be incomplete."""
        last = "incomplete" if self.finish_reason in INCOMPLETE else "completed"
        for item in self.waiting:
            self.close("completed")
            self.open(item)
            if self.writer and item.pieces and item.form is not CUSTOM:
                self.writer.pieces(item, ["".join(item.pieces)])
        self.waiting.clear()
        self.close(last)

    def unfinished(self) -> list[JSONObject]:
        """The items of a reply that broke off."""
        if self.current is None:
            return self.items
        return [*self.items, self.current.document("incomplete", self.current.text())]


def is_plain_text(delta: Delta) -> bool:
    """Whether a Delta is one piece of text and nothing else."""
    if delta.fields or delta.finish_reason or delta.logprobs:
        return False
    return bool(delta.content) and not delta.whole and not delta.index


class ResponseEvents:
    """The rendering of a Responses request: events as they come, or one Response object."""

    headers = EVENT_STREAM

    def __init__(self, translation: Translation, request: ChatRequest, info: ResponseInfo) -> None:
        """Raises APIError 400 if the request is nested too deeply to be repeated."""
        self.translation = translation
        self.info = info
        self.fixed: JSONObject = {  # the members that are known before the reply
            "id": f"resp_{translation.hex}",
            "object": "response",
            "created_at": info.created,
            "model": request.model,
            **translation.echo,
        }
        self.writer = EventWriter(self.fixed)
        self.output = ResponseOutput(translation, self.writer)
        self.final: JSONObject | None = None  # the last state

    def __call__(self, delta: Delta) -> bytes:
        if not self.writer.number:
            self.writer.begin()
        item = self.output.current
        if item is not None and item.form is TEXT and is_plain_text(delta):
            # Most deltas of a stream: 1.1 µs instead of 2.5.
            self.output.keep(item, delta.content)
            return self.writer.piece(item, delta.content)
        self.output.add(delta)
        return self.writer.take()

    def ping(self) -> bytes:
        """A keep-alive event. Codex ignores SSE comments; the SDKs need `created` first."""
        if not self.has_begun:
            return b""
        number = self.writer.number
        self.writer.number += 1
        return b'data: {"type":"keepalive","sequence_number":%d}\n\n' % number

    @property
    def has_begun(self) -> bool:
        """Whether the first events of a stream were sent."""
        return self.writer.number > 0

    def document(self, deltas: list[Delta]) -> JSONObject:
        """The finished Response object, of these Deltas or of those that were streamed.

        A reply that hooks have changed is read from `info.completion`. Raises APIError 502 for a
        reply without an end and without output.
        """
        if self.final is None and not self.has_begun:
            self.output.writer = None
            if self.info.completion is not None:
                deltas = deltas_of(self.info.completion)
            for delta in deltas:
                self.output.add(delta)
        state = self.finish()
        if state["status"] == "failed":
            raise APIError(502, NO_REPLY, type="upstream_error", code="bad_gateway")
        return self.fixed | state

    def finish(self) -> JSONObject:
        """Close all items and count the tokens; the last state of the response."""
        if self.final is None:
            self.output.finish()
            items = self.output.items
            finish_reason = self.output.finish_reason
            complete_usage(self.info, self.output.size)
            counts = response_usage(self.info.usage or {})
            if finish_reason in INCOMPLETE:
                reason = INCOMPLETE[finish_reason]
                self.final = response_state("incomplete", items, counts=counts, reason=reason)
            elif items or finish_reason:
                self.final = response_state("completed", items, counts=counts)
            else:
                error = {"code": "server_error", "message": NO_REPLY}
                self.final = response_state("failed", items, counts=counts, error=error)
        return self.final

    def end(self) -> bytes:
        """The events that close the items, and the terminal event. This API has no [DONE]."""
        if not self.has_begun:
            self.writer.begin()
        state = self.finish()
        self.writer.response(state["status"], state)
        return self.writer.take()

    def failure(self, error: APIError) -> bytes:
        """`response.failed`: of all forms of an error, the only one that every client reads."""
        if not self.has_begun:
            self.writer.begin()
        known = {"code": error_code(error), "message": error.message}
        state = response_state("failed", self.output.unfinished(), error=known)
        self.writer.response("failed", state)
        return self.writer.take()


def deltas_of(completion: JSONObject) -> list[Delta]:
    """The first choice of a finished chat completion as Deltas."""
    choice = completion["choices"][0]
    message = choice["message"]
    fields = {name: value for name, value in message.items() if name not in ("role", "content")}
    text = message.get("content") or ""
    return [
        Delta(text, choice.get("finish_reason"), fields=fields, logprobs=choice.get("logprobs"))
    ]


def error_code(error: APIError) -> str:
    if error.code in KNOWN_CODES:
        return str(error.code)
    if error.status == 429:
        return "rate_limit_exceeded"
    return "server_error"


def response_usage(chat: JSONObject) -> JSONObject:
    """`usage` of the Response object. Codex fails a turn whose details lack a member."""
    read = chat.get("prompt_tokens_details") or {}
    written = chat.get("completion_tokens_details") or {}
    prompt = token_count(chat, "prompt_tokens")
    reply = token_count(chat, "completion_tokens")
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": token_count(read, "cached_tokens"),
            "cache_write_tokens": token_count(read, "cache_write_tokens"),
        },
        "output_tokens": reply,
        "output_tokens_details": {"reasoning_tokens": token_count(written, "reasoning_tokens")},
        "total_tokens": token_count(chat, "total_tokens") or prompt + reply,
    }


def token_count(counts: JSONObject, name: str) -> int:
    value = counts.get(name)
    if isinstance(value, int):
        return value
    return 0
