"""The journal of a server that replays recordings: the same entries as the mock's.

Imports types, and the script of its own room.
"""

from collections.abc import Callable
from contextvars import ContextVar

from rewrap.mock.facts import lane_of
from rewrap.mock.journal import MAX_DIFFERENCE, MAX_TEXT, Cut, Entry
from rewrap.mock.script import Note, Script
from rewrap.types import ChatRequest, JSONObject, ResponseInfo


class ReplayJournal:
    """Notes requests in the journal of a script, with the recordings that answer them."""

    def __init__(self, script: Script) -> None:
        script.answers = False  # connect_mocks changes that, if a mock stands beside
        self.script = script
        self.entry: ContextVar[Entry | None] = ContextVar("entry", default=None)

    def on_reset(self, callback: Callable[[], None]) -> None:
        self.script.on_reset = callback

    def begin(self, request: ChatRequest, info: ResponseInfo) -> None:
        """Note a chat on its arrival. Its upstream is asked next, in the same task."""
        lane = lane_of(request.client_headers, request.payload)
        note = Note(info.request_id, 0.0, request.api, request.model, lane, b"", "", "")
        entry = self.script.record(note, request.messages)

        def answered(status: int) -> None:
            entry.status = status

        info.on_status = answered
        self.entry.set(entry)

    def answered(
        self,
        *,
        path: str,
        model: str,
        messages: list[JSONObject],
        recording: str,
        difference: str,
        status: int,
    ) -> None:
        """Complete the entry of a chat. Any other request gets one with the upstream's path."""
        entry = self.entry.get()
        self.entry.set(None)
        script = self.script
        if entry is None:
            note = Note("", 0.0, "", model, "", b"", "", "")
            entry = script.record(note, messages)
            cut = Cut(MAX_TEXT, script.secrets)
            entry.path = cut.masked(path)[:MAX_TEXT]
            entry.status = status
        entry.rule = recording[:MAX_TEXT]
        entry.difference = Cut(MAX_DIFFERENCE, script.secrets).masked(difference)[:MAX_DIFFERENCE]
