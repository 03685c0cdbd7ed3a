"""Hooks that hide e-mail addresses from the backend and log the size of each chat.

HOOKS=examples.redact:before,examples.redact:after
"""

import logging
import re

from rewrap.hooks import HookedChat
from rewrap.types import JSONObject

log = logging.getLogger("redact")
# A match can only start where a word starts: the time is linear in the length of any text.
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")


def before(chat: HookedChat) -> None:
    """Replace each address by [e-mail], in plain messages and in the text parts of others."""
    for message in chat.messages:
        content = message.get("content")
        if isinstance(content, str):
            message["content"] = EMAIL.sub("[e-mail]", content)
        elif isinstance(content, list):
            for part in content:
                if isinstance(part.get("text"), str):
                    part["text"] = EMAIL.sub("[e-mail]", part["text"])


def after(chat: HookedChat, completion: JSONObject) -> None:
    """Log the size of the chat, never its text."""
    tokens = (completion.get("usage") or {}).get("total_tokens")
    log.info("%s: %d messages, %s tokens", chat.model, len(chat.messages), tokens)
