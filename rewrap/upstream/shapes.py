"""Shapes describe how a chat endpoint is asked, and where its answer has the reply.

They are data: tables of shapes.toml, or of a user's TOML.
Chats, JSON values and events come in; URLs, request bodies and Deltas go out. Knows no HTTP, and
reads no file except shapes.toml. Settings, templates, paths and conditions are explained at the
top of that file.
"""

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from rewrap.types import ChatRequest, ChatSession, Delta, NoReplyFound, Reader, UpstreamRejection
from rewrap.upstream.mapped_reader import FRAMINGS, MODES, MappedReader, StreamPaths
from rewrap.upstream.paths import text_at
from rewrap.upstream.reply_paths import REJECTION_PATHS, ReplyPaths
from rewrap.upstream.requests import MappedRequest
from rewrap.upstream.tables import (
    ANSWER,
    SHAPE,
    STREAM,
    ShapeError,
    Table,
    checked_table,
    merged_tables,
    text_in,
)


class MappedShape(MappedRequest):
    """One shape, compiled from its table. See `types.Shape` for the methods."""

    def __init__(self, table: Table, name: str) -> None:
        """Raises ShapeError for a table that cannot be used."""
        stream = checked_table(table.get("stream", {}), STREAM, f"{name}.stream.")
        if "reply" not in table:
            raise ShapeError(
                f"{name}.reply: where is the text of an answer? A path such as 'data.text', or '.'"
            )
        super().__init__(table, stream, name)
        self.framing, self.mode = framing_and_mode(stream, name)
        self.whole = ReplyPaths(table, f"{name}.")
        answer = {setting: table[setting] for setting in ANSWER & table.keys()}
        self.pieces = StreamPaths(answer | dict(stream), f"{name}.stream.")

    def chat(self, request: ChatRequest) -> ChatSession | None:
        return self.sessions.chat(request)

    def answer(self, value: object, chat: ChatSession | None = None) -> list[Delta]:
        rejection = self.whole.failure("", value)
        if rejection is not None:
            raise rejection
        text = text_at(value, self.whole.reply, self.whole.join)
        usage = self.whole.counts(value)
        delta = self.whole.delta(value, text or "", usage, with_reasoning=True)
        reason = self.whole.finish_reason(value)
        if reason in ("", "stop") and "tool_calls" in (delta.fields or {}):
            reason = "tool_calls"
        if text is None and not reason:
            place = self.table["reply"]
            raise NoReplyFound(0, f"the upstream's answer has no text at {place!r}")
        if chat is not None:
            chat.observe(value, delta.content)
        delta.finish_reason = reason or "stop"
        delta.whole = True
        return [delta]

    def reader(self, chat: ChatSession | None = None) -> Reader:
        return MappedReader(self.pieces, self.framing, self.mode, chat)

    def rejection(self, status: int, value: object) -> UpstreamRejection:
        failure = self.whole.failure("", value)
        if failure is not None:
            return UpstreamRejection(status, failure.message)
        return UpstreamRejection(status, text_at(value, REJECTION_PATHS, "; ") or "")


def framing_and_mode(stream: Table, name: str) -> tuple[str, str]:
    framing = stream.get("framing", "auto")
    mode = stream.get("mode", "delta")
    if framing not in FRAMINGS or mode not in MODES:
        raise ShapeError(f"{name}.stream: no framing {framing!r} with mode {mode!r} is known")
    if framing == "json":  # an answer in one piece is always detected
        framing = "auto"
    return str(framing), str(mode)


# Tables to shapes.


def compiled(table: Table, name: str, known: Mapping[str, MappedShape]) -> MappedShape:
    """The shape of one table; `like` names a known shape that it extends. Raises ShapeError."""
    checked_table(table, SHAPE, f"{name}.")
    if "like" in table:
        like = text_in(table, "like")
        if like not in known:
            raise unknown_shape(like, f"{name}.like", known)
        own = {setting: value for setting, value in table.items() if setting != "like"}
        table = checked_table(merged_tables(known[like].table, own), SHAPE, f"{name}.")
    return MappedShape(table, name)


def unknown_shape(name: str, where: str, known: Mapping[str, MappedShape]) -> ShapeError:
    names = ", ".join(sorted(known))
    return ShapeError(f"{where}: no shape is called {name!r}; known are: {names}")


def load_shapes(text: str) -> dict[str, MappedShape]:
    """The shapes of a TOML text, one a table.

    A `like` refers to a table above. Raises ShapeError.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ShapeError(f"not TOML: {error}") from error
    shapes: dict[str, MappedShape] = {}
    for name, table in tables.items():
        shapes[name] = compiled(table, name, shapes)
    return shapes


@lru_cache
def known_shapes() -> dict[str, MappedShape]:
    """The shapes of shapes.toml."""
    return load_shapes(Path(__file__).with_name("shapes.toml").read_text(encoding="utf-8"))


def shape_from(table: Table, where: str) -> MappedShape:
    """The shape of a user's table. Raises ShapeError."""
    return compiled(table, where, known_shapes())


def shape_named(name: str, where: str) -> MappedShape:
    """A shape of shapes.toml. Raises ShapeError."""
    if name not in known_shapes():
        raise unknown_shape(name, where, known_shapes())
    return known_shapes()[name]
