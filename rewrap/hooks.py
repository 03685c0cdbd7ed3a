"""Hooks: the user's functions that see a chat before its backend, and a completion after its end.

    HOOKS=mymodule:before,mymodule:after_logging

A function whose name starts with `before` is called as `before(chat)` with a HookedChat. It may change the messages or
replace them. A function whose name starts with `after` is called as `after(chat, completion)` with the finished completion (a
dict). Its changes reach a client that waits for JSON; a stream is already sent. Plain functions run in threads, several chats at
the same time. Return values are ignored, and exceptions are not caught here. The hooks of a chat run one after another, in the
order of the setting. Imports types and leaf files.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable

from rewrap.structs import struct
from rewrap.threads import FUNCTIONS
from rewrap.types import ChatRequest, JSONObject

Hook = Callable[..., object]


@struct(slots=True)
class HookedChat:
    """A chat as hooks see it. `payload` is the client's whole JSON object."""

    model: str
    messages: list[JSONObject]
    payload: JSONObject
    stream: bool

    @classmethod
    def of(cls, request: ChatRequest) -> "HookedChat":
        return cls(request.model, request.messages, request.payload, request.stream)


def load_hooks(setting: str) -> tuple[list[Hook], list[Hook]]:
    """The before hooks and the after hooks of `module:function,module:function`; two empty lists for "".

    Modules are looked up in the working directory first, as uvicorn does. Raises ValueError, in one line: there is no such
    module or function, the module fails, or the name starts with neither before nor after.
    """
    before: list[Hook] = []
    after: list[Hook] = []
    for item in setting.split(","):
        item = item.strip()
        if not item:
            continue
        module, _, name = item.partition(":")
        if module and name.startswith("before"):
            before.append(load(module, name))
        elif module and name.startswith("after"):
            after.append(load(module, name))
        else:
            raise ValueError(
                f"HOOKS: {item!r} must be module:before... or module:after...: the name says when the function is called."
            )
    return before, after


def load(module: str, name: str) -> Hook:
    """One function. Raises ValueError."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        hook: Hook | None = getattr(importlib.import_module(module), name, None)
    except Exception as exc:  # the user's module can fail in any way
        reason = " ".join(f"{type(exc).__name__}: {exc}".split())
        raise ValueError(f"HOOKS: the module {module!r} cannot be imported ({reason}).") from exc
    if not callable(hook):
        raise ValueError(f"HOOKS: the module {module!r} has no function {name!r}.")
    return hook


async def run_hooks(hooks: Iterable[Hook], *args: object) -> None:
    """Call each hook with the same arguments: async ones in the event loop, plain ones in a thread."""
    for hook in hooks:
        if inspect.iscoroutinefunction(hook):
            await hook(*args)
            continue
        result = await FUNCTIONS.run(hook, *args)
        if inspect.isawaitable(result):
            await result
