"""The journal of the mock: its last requests, for `GET /mock/requests` and for tests.

Bounded in entries and in bytes. Holds no headers, no query strings, and none of the secrets that
the caller names. Knows no HTTP; imports types and leaf files.
"""

import time
from collections import deque
from collections.abc import Iterable

import orjson

from rewrap.structs import struct
from rewrap.types import JSONObject

MAX_ENTRIES = 1_000
MAX_BYTES = 8 * 2**20  # of the messages of all entries
ENTRY_CHARACTERS = 64 * 2**10  # of the messages of one entry
MAX_TEXT = 200  # characters of model, path, lane and rule
MAX_DIFFERENCE = 2_000
MAX_DEPTH = 64  # of JSON in a message


@struct(slots=True)
class Entry:
    """One request. `status` is 0 until it is answered."""

    id: str
    time: float  # seconds since the epoch
    api: str
    path: str
    model: str
    lane: str
    messages: bytes  # JSON; the newest ones, where `truncated`
    truncated: bool
    rule: str = ""  # that answered; "" where the mock answered by itself
    difference: str = ""  # from the nearest rule, where none matched
    status: int = 0

    def answered(self, status: int) -> None:
        self.status = status

    def as_json(self) -> JSONObject:
        """The entry as `GET /mock/requests` has it: an absent value is null."""
        return {
            "id": self.id,
            "time": self.time,
            "api": self.api,
            "path": self.path,
            "model": self.model,
            "lane": self.lane,
            "rule": self.rule or None,
            "status": self.status or None,
            "difference": self.difference or None,
            "truncated": self.truncated,
            "messages": orjson.loads(self.messages),
        }


class Journal:
    """The last requests in order of arrival. The oldest are forgotten first."""

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.entries: deque[Entry] = deque()
        self.bytes = 0

    def record(
        self,
        *,
        id: str,
        api: str,
        path: str,
        model: str,
        messages: list[JSONObject],
        lane: str = "",
        rule: str = "",
        difference: str = "",
        secrets: Iterable[str] = (),
    ) -> Entry:
        """Add a request on its arrival; the caller sets its `status` later.

        `secrets`, such as the key of the request, are taken out of every text.
        """
        cut = Cut(ENTRY_CHARACTERS, secrets)
        kept = cut.newest(messages)
        entry = Entry(
            id=id,
            time=time.time(),
            api=api,
            path=cut.masked(path.partition("?")[0])[:MAX_TEXT],
            model=cut.masked(model)[:MAX_TEXT],
            lane=cut.masked(lane)[:MAX_TEXT],
            messages=orjson.dumps(kept),
            truncated=cut.happened,
            rule=rule[:MAX_TEXT],
            difference=cut.masked(difference)[:MAX_DIFFERENCE],
        )
        self.entries.append(entry)
        self.bytes += len(entry.messages)
        while len(self.entries) > self.max_entries or self.bytes > self.max_bytes:
            self.bytes -= len(self.entries.popleft().messages)
        return entry

    def find(
        self, *, model: str = "", path: str = "", rule: str = "", limit: int = MAX_ENTRIES
    ) -> list[Entry]:
        """The last `limit` entries with this model, path and rule ("" is any), oldest first."""
        found: list[Entry] = []
        for entry in reversed(self.entries):
            if len(found) >= limit:
                break
            if model and model != entry.model:
                continue
            if path and path != entry.path:
                continue
            if rule in ("", entry.rule):
                found.append(entry)
        return found[::-1]

    def clear(self) -> None:
        self.entries.clear()
        self.bytes = 0


class Cut:
    """Copies messages until a budget of characters is spent: the work is bounded by it, too."""

    def __init__(self, budget: int, secrets: Iterable[str] = ()) -> None:
        self.left = budget
        self.secrets = [secret for secret in secrets if len(secret) > 3]
        self.longest = max(map(len, self.secrets), default=0)
        self.happened = False  # something was left out

    def newest(self, messages: list[JSONObject]) -> list[object]:
        """Messages from the last one backwards, as many as the budget allows."""
        kept = []
        for message in reversed(messages):
            if not self.has_room():
                break
            kept.append(self.message(message))
        return kept[::-1]

    def message(self, message: JSONObject) -> object:
        """The message itself, if it has only texts, fits, and holds no secret: 1.4 µs less than a copy."""
        texts = [*message, *message.values()]
        if set(map(type, texts)) != {str}:
            return self.copy(message, MAX_DEPTH)
        size = 4 + 4 * len(message) + sum(map(len, texts))
        if size > self.left or any(secret in text for secret in self.secrets for text in texts):
            return self.copy(message, MAX_DEPTH)
        self.left -= size
        return message

    def has_room(self) -> bool:
        if self.left <= 0:
            self.happened = True
        return self.left > 0

    def copy(self, value: object, depth: int) -> object:
        self.left -= 4
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, (dict, list)) and depth == 0:
            self.happened = True
            return None
        if isinstance(value, dict):
            members = {}
            for key, item in value.items():
                if not self.has_room():
                    break
                name = self.text(key)
                members[name] = self.copy(item, depth - 1)
            return members
        if isinstance(value, list):
            items = []
            for item in value:
                if not self.has_room():
                    break
                items.append(self.copy(item, depth - 1))
            return items
        return value

    def text(self, text: str) -> str:
        """As much of a text as there is room for, masked first: half a key is a secret, too."""
        room = max(0, self.left)
        size = room + 2 * self.longest
        window = self.masked(text[:size])
        if len(text) > size:
            window = window[: len(window) - self.longest]  # it may end within a secret
        if len(text) > size or len(window) > room:
            self.happened = True
        self.left -= min(len(window), room)
        return window[:room]

    def masked(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text
