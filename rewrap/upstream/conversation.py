"""Conversations in the forms that upstreams want: prompt, history, pairs of turns, one text.

Pure functions on the messages of a ChatRequest. Imports types and leaf files.
"""

from collections.abc import Callable, Sequence
from uuid import uuid4

from rewrap.ids import SESSION_NAMES, session_name
from rewrap.structs import struct
from rewrap.types import ChatRequest, JSONObject, text_of
from rewrap.upstream.messages import SYSTEM_ROLES, role_of

RoleAndText = tuple[str, str]  # role, text


@struct(frozen=True, slots=True)
class Conversation:
    """The messages of a request as texts. The prompt is the user's last message.

    `dialog` has all messages except system ones; an assistant's message without a text is left
    out. The prompt is `dialog[prompt_index]`.
    """

    system: str
    dialog: list[RoleAndText]
    prompt_index: int

    @property
    def history(self) -> list[RoleAndText]:
        return self.dialog[: self.prompt_index]

    @property
    def prompt(self) -> str:
        if not self.dialog:
            return ""
        return self.dialog[self.prompt_index][1]

    @property
    def messages(self) -> list[RoleAndText]:
        """All turns, the system text first."""
        if not self.system:
            return self.dialog
        return [("system", self.system), *self.dialog]


def content_text(message: JSONObject) -> str:
    return text_of(message.get("content"))


def conversation_of(
    messages: Sequence[JSONObject], text_in: Callable[[JSONObject], str] = content_text
) -> Conversation:
    """The conversation of a request. A system text that stands alone becomes the prompt."""
    system_texts: list[str] = []
    dialog: list[RoleAndText] = []
    prompt_index = -1
    for message in messages:
        role = role_of(message)
        text = text_in(message)
        if role in SYSTEM_ROLES:
            system_texts.append(text)
            continue
        if role == "assistant" and not text:
            continue
        if role == "user":
            prompt_index = len(dialog)
        dialog.append((role, text))
    system = "\n\n".join(system_texts)
    if not dialog:
        dialog = [("user", system)] if system else []
        return Conversation("", dialog, 0)
    if prompt_index < 0:
        prompt_index = len(dialog) - 1
    return Conversation(system, dialog, prompt_index)


def transcript(system: str, dialog: Sequence[RoleAndText]) -> str:
    """A conversation as one text that the assistant continues.

    A prompt that stands alone stays as it is.
    """
    if len(dialog) > 1:
        lines = [f"{role.capitalize()}: {text}" for role, text in dialog]
        body = "\n".join([*lines, "Assistant:"])
    else:
        body = "".join([text for _, text in dialog])
    return "\n\n".join([part for part in (system, body) if part])


def pairs_of(history: Sequence[RoleAndText]) -> tuple[list[RoleAndText], list[str]]:
    """A history as (prompt, reply) pairs, and the texts after the last reply."""
    pairs: list[RoleAndText] = []
    pending: list[str] = []
    for role, text in history:
        if role == "assistant":
            pairs.append(("\n".join(pending), text))
            pending = []
        else:
            pending.append(text)
    return pairs, pending


def session_of(request: ChatRequest) -> str | None:
    """The client's name of the session, or else the stored chat that goes on; None without
    either. Owners share no session, whatever they name it.
    """
    known = {"session": request.session or None, **request.payload}
    for name in SESSION_NAMES:
        value = known.get(name)
        if value:
            return session_name(request.owner, str(value))
    return None


def session_or_new(request: ChatRequest) -> str:
    """The session of a request.

    A chat without a name gets one of its own, so that strangers never share one.
    """
    return session_of(request) or uuid4().hex
