"""The sessions that a product assigned, kept for the next turns of the same chats.

Bounded memory of one process. Imports types, and how conversations are named.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import field

from rewrap.structs import struct
from rewrap.types import ChatRequest, JSONObject, text_of
from rewrap.upstream.conversation import session_of
from rewrap.upstream.messages import role_of
from rewrap.upstream.paths import Path, first, parse_paths
from rewrap.upstream.tables import ShapeError, Table

CHATS = 10_000
SESSION_CHARACTERS = 1000


class SessionMemory:
    """The product's session of each chat; the least recently used chats are forgotten.

    A chat is known by the owner and its name (session_id, conversation_id, session or user). A chat
    without a name is known by the owner and its messages up to the last reply. If two chats of one
    owner are equal so far, neither gets the session of the other.
    """

    def __init__(self, table: Table, name: str) -> None:
        """`table` is the setting `session`. Raises ShapeError."""
        self.paths: list[Path] = []
        if table:
            unknown = sorted(set(table) - {"from"})
            if unknown or "from" not in table:
                raise ShapeError(f"{name}.session: it has one setting, from: the path of the id")
            self.paths = parse_paths(table["from"], f"{name}.session.from")
        self.sessions: OrderedDict[bytes, object] = OrderedDict()

    @property
    def active(self) -> bool:
        return bool(self.paths)

    def known(self, request: ChatRequest) -> object:
        """The session of the chat that a request goes on with; None for a new chat."""
        key = named_key(request) or history_key(request)
        if key not in self.sessions:
            return None
        self.sessions.move_to_end(key)
        return self.sessions[key]

    def keep(self, key: bytes, session: object, *, named: bool) -> None:
        if not named and self.sessions.get(key, session) != session:
            session = None  # two chats that cannot be told apart
        self.sessions[key] = session
        self.sessions.move_to_end(key)
        if len(self.sessions) > CHATS:
            self.sessions.popitem(last=False)

    def chat(self, request: ChatRequest) -> "ReplySession | None":
        """The chat whose reply is read next; None if the shape has no sessions."""
        if not self.active:
            return None
        return ReplySession(self, named_key(request), digest_of(request, request.messages))


@struct(slots=True)
class ReplySession:
    """One reply: its session, and its text if that names the chat."""

    memory: SessionMemory
    name: bytes
    messages: "hashlib._Hash"
    found: object = None
    texts: list[str] = field(default_factory=list)

    def observe(self, value: object, text: str) -> None:
        """Note an answer, or an event of it, and the text that it adds to the reply."""
        session = first(value, self.memory.paths)
        if type(session) in (int, str) and 0 < len(str(session)) <= SESSION_CHARACTERS:
            self.found = session
        if text and not self.name:
            self.texts.append(text)

    def close(self) -> None:
        """Keep the session for the next turn."""
        if self.found is None:
            return
        if self.name:
            self.memory.keep(self.name, self.found, named=True)
            return
        add_turn(self.messages, "assistant", "".join(self.texts))
        self.memory.keep(self.messages.digest(), self.found, named=False)


def named_key(request: ChatRequest) -> bytes:
    """The key of a chat with a name; b"" without one."""
    session = session_of(request)
    if session is None:
        return b""
    text = f"{request.owner}\0{session}"
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def history_key(request: ChatRequest) -> bytes:
    """The key of a chat by its messages up to the last reply."""
    end = 0
    for position, message in enumerate(request.messages):
        if role_of(message) == "assistant":
            end = position + 1
    return digest_of(request, request.messages[:end]).digest()


def digest_of(request: ChatRequest, messages: Sequence[JSONObject]) -> "hashlib._Hash":
    digest = hashlib.sha256(request.owner.encode("utf-8", "replace"))
    for message in messages:
        add_turn(digest, role_of(message), text_of(message.get("content")))
    return digest


def add_turn(digest: "hashlib._Hash", role: str, text: str) -> None:
    encoded = text.encode("utf-8", "replace")
    digest.update(f"\0{role}\0{len(encoded)}\0".encode())
    digest.update(encoded)
