"""Hooks: functions of your own, before a chat goes to its backend and after its completion is finished.

    HOOKS=mymodule:before,mymodule:after_logging

A function whose name starts with `before` is called as `before(chat)`, with `chat.model`, `chat.messages` and
`chat.payload`: it may change the messages, or put others in their place. One whose name starts with `after` is called as
`after(chat, completion)` with the finished completion (a dict): what it changes there reaches a client that waits for
JSON; of a stream it only sees what has been sent. Plain functions run in the event loop, so one that waits for
something should be `async`. What a hook returns is ignored; what it raises is not caught here. Hooks run one after the
other, in the order of the setting.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable

Hook = Callable[..., object]


def load_hooks(spec: str) -> tuple[list[Hook], list[Hook]]:
    """The before hooks and the after hooks that `module:function,module:function` names; two empty lists for "".

    Modules are looked for in the working directory first, as uvicorn does. Raises ValueError, in one line: no such
    module or function, the module fails, or the name does not say whether to call it before or after.
    """
    before: list[Hook] = []
    after: list[Hook] = []
    for item in filter(None, map(str.strip, spec.split(","))):
        module, _, name = item.partition(":")
        if not module or not name.startswith(("before", "after")):
            raise ValueError(
                f"HOOKS: {item!r} is not module:before… or module:after…, so nobody knows when to call it."
            )
        (before if name.startswith("before") else after).append(load(module, name))
    return before, after


def load(module: str, name: str) -> Hook:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        hook: Hook | None = getattr(importlib.import_module(module), name, None)
    except Exception as exc:  # a module of somebody else's can fail in any way
        reason = " ".join(f"{type(exc).__name__}: {exc}".split())
        raise ValueError(f"HOOKS: the module {module!r} cannot be imported ({reason}).") from exc
    if not callable(hook):
        raise ValueError(f"HOOKS: the module {module!r} has no function {name!r}.")
    return hook


async def run_hooks(hooks: Iterable[Hook], *args: object) -> None:
    """Call each hook with the same arguments, and wait for those that are async."""
    for hook in hooks:
        result = hook(*args)
        if inspect.isawaitable(result):
            await result
