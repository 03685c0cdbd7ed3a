"""The reader of a mapped shape's streams. Takes events, gives Deltas; does no I/O."""

from rewrap.types import ChatSession, Delta, JSONObject, NoReplyFound
from rewrap.upstream import lenient
from rewrap.upstream.framing import END_MARKER, TEXT
from rewrap.upstream.paths import EventCondition, Path, parse_event_condition, parse_paths, text_at
from rewrap.upstream.reply_paths import ReplyPaths
from rewrap.upstream.tables import Table

FRAMINGS = ("auto", "json", "sse", "ndjson", "text")
MODES = ("delta", "last", "message")
DONE = "[DONE]"


class StreamPaths(ReplyPaths):
    """The compiled paths and conditions of a `stream` table."""

    def __init__(self, table: Table, where: str) -> None:
        super().__init__(table, where)
        self.keep = self.condition("keep")
        self.done = self.condition("done")
        self.ends = self.condition("ends")
        self.final: list[Path] = []
        if "final" in table:
            self.final = parse_paths(table["final"], f"{where}final")

    def condition(self, name: str) -> EventCondition | None:
        if name not in self.table:
            return None
        return parse_event_condition(self.table[name], self.where + name)


class MappedReader:
    """Reads one streamed reply. See `types.Reader`.

    Some upstreams give a reason to end with every event. The last one counts: it is in `finish`,
    and in no Delta.
    """

    def __init__(
        self, paths: StreamPaths, framing: str, mode: str, chat: ChatSession | None = None
    ) -> None:
        self.paths = paths
        self.framing = framing
        self.mode = mode
        self.chat = chat
        self.text_given = False
        self.longest = ""  # in the mode `last`: the text so far
        self.usage: JSONObject = {}
        self.called = False  # a tool
        self.done = False
        self.complete = not (paths.done or paths.ends)
        self.finish = ""

    def __call__(self, name: str, data: bytes) -> list[Delta]:
        """`name` is that of an SSE event, or "".

        `data`: its data, a line of NDJSON, or a piece of text.
        """
        paths = self.paths
        text = data.decode("utf-8", "replace")
        if self.framing == "text" or (name == TEXT and () in paths.reply):
            self.observe(text, text)
            return [Delta(text)]
        value = event_value(text)
        rejection = paths.failure(name, value)
        if rejection is not None:
            raise rejection
        is_marker = self.is_end_marker(value)
        self.done = is_marker or holds(paths.done, name, value)
        last = self.done or holds(paths.ends, name, value)
        kept = not is_marker
        if paths.keep is not None:
            kept = kept and paths.keep(name, value)
        delta = self.delta(value, kept=kept, last=last)
        self.observe(value, delta.content)
        return [delta]

    def observe(self, value: object, text: str) -> None:
        if self.chat is not None:
            self.chat.observe(value, text)

    def delta(self, value: object, *, kept: bool, last: bool) -> Delta:
        """The Delta of one event. `kept`: it may have text. `last`: the stream may end after it."""
        paths = self.paths
        text = ""
        if kept:
            self.check_json(value)
            text = self.new_text(text_at(value, paths.reply, paths.join) or "")
        if last and not self.text_given and not text:
            text = text_at(value, paths.final, paths.join) or ""
        if text:
            self.text_given = True
        counts = paths.counts(value)
        self.usage |= counts
        usage = self.usage if counts else {}
        delta = paths.delta(value, text, usage, with_reasoning=kept)
        reason = paths.finish_reason(value)
        if last or reason:
            self.complete = True
        if reason:
            self.finish = reason
        if "tool_calls" in (delta.fields or {}):
            self.called = True
        if self.called and self.finish in ("", "stop"):
            self.finish = "tool_calls"
        return delta

    def is_end_marker(self, value: object) -> bool:
        """Whether an event is [DONE] or, where the shape expects JSON, another word in brackets, such as [END]."""
        if not isinstance(value, str):
            return False
        if () in self.paths.reply:  # texts may have brackets
            return value == DONE
        return END_MARKER.fullmatch(value) is not None

    def check_json(self, value: object) -> None:
        """Raises NoReplyFound for a text where the shape expects JSON."""
        if value and isinstance(value, str) and not self.done and () not in self.paths.reply:
            raise NoReplyFound(0, "an event of the upstream is not JSON")

    def new_text(self, text: str) -> str:
        """The new part of an event's text.

        Modes: `delta`, it is new; `last`, it is all so far; `message`, it is one of several
        messages.
        """
        if self.mode == "last":
            new = text[len(self.longest) :]
            if len(text) > len(self.longest):
                self.longest = text
            return new
        if self.mode == "message" and text and self.text_given:
            return self.paths.join + text
        return text


def holds(condition: EventCondition | None, name: str, value: object) -> bool:
    return condition is not None and condition(name, value)


def event_value(text: str) -> object:
    """An object, a list or a string; a text that is none, such as a bare 42, stays as it is."""
    try:
        value = lenient.loads(text, keep_halves=True)
    except ValueError:
        return text
    if isinstance(value, dict | list | str):
        return value
    return text
