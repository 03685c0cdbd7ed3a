"""Threads: for work that would hold up the event loop, and for functions of the user.

asyncio's own threads are few, and the end of the process waits for them. These are daemons, in pools that do not share threads.
Imports types and leaf files.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from rewrap import large_json
from rewrap.eventloop import running_loop
from rewrap.large_json import LARGE_BYTES
from rewrap.memory import CURRENT, reserved
from rewrap.types import dumps

P = ParamSpec("P")
T = TypeVar("T")

MEDIUM_BYTES = 2**16  # a smaller request takes less than 0.2 ms
# Of the requests that work in one turn of the event loop. It takes 3 ms, or 20 ms if their JSON has many small values.
TURN_BYTES = 2**20
LARGE_THREADS = 2
FUNCTION_THREADS = 64


class Job:
    """A call that waits for a thread, or runs in one."""

    def __init__(self, work: Callable[[], object], loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.loop = loop
        self.future: asyncio.Future[object] = loop.create_future()

    def run(self) -> None:
        """Called in the thread."""
        try:
            result = self.work()
        except (
            BaseException
        ) as error:  # SystemExit of a user's function, too, belongs to its caller
            self.report(partial(self.fail, error))
        else:
            self.report(partial(self.finish, result))

    def report(self, callback: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop may be closed by now
            self.loop.call_soon_threadsafe(callback)

    def finish(self, result: object) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        if self.future.done():
            return
        if isinstance(error, (StopIteration, StopAsyncIteration, KeyboardInterrupt, SystemExit)):
            cause = error
            error = RuntimeError(f"{type(cause).__name__} in a thread")
            error.__cause__ = cause
        self.future.set_exception(error)


class ThreadPool:
    """At most `maximum` threads, which start when they are needed. Calls wait in a queue, first come, first served."""

    def __init__(self, maximum: int, name: str) -> None:
        self.maximum = maximum
        self.name = name
        self.threads = 0
        self.idle = 0
        self.jobs: deque[Job] = deque()
        self.changed = threading.Condition()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a call in a thread.

        A caller that is cancelled leaves the queue; a call that runs already goes on, and its result is dropped.
        """
        work = partial(copy_context().run, partial(function, *args, **kwargs))
        job = Job(work, asyncio.get_running_loop())
        with self.changed:
            self.jobs.append(job)
            if self.idle >= len(self.jobs) or self.threads >= self.maximum:
                self.changed.notify()
            else:
                self.threads += 1
                threading.Thread(target=self.serve, name=self.name, daemon=True).start()
        result: T = await job.future  # type: ignore[assignment]
        return result

    def serve(self) -> None:
        """The life of a thread."""
        while True:
            with self.changed:
                self.idle += 1
                while not self.jobs:
                    self.changed.wait()
                self.idle -= 1
                job = self.jobs.popleft()
            if not job.future.cancelled():
                job.run()
            del job  # an idle thread holds no request


class Turns(threading.local):
    """Bounds what medium-sized requests do in one turn of a thread's event loop: others have their turn in between.

    TURN_BYTES of requests may work in a turn of the loop; the rest wait, first come, first served. With a break after each
    call, a request of 100 kB to the mock cost 15 % more.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.reset()

    def reset(self) -> None:
        self.left = TURN_BYTES
        self.begin_is_due = False  # it is called at the next turn
        self.waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(
        self, size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function for a request of `size` bytes, now or in a later turn."""
        loop = running_loop()
        if loop is not self.loop:  # the earlier one may have ended with work to do
            self.loop = loop
            self.reset()
        if self.left <= 0:
            waiter = loop.create_future()
            self.waiters.append((size, waiter))
            await waiter
        else:
            self.use(size)
        return function(*args, **kwargs)

    def use(self, size: int) -> None:
        self.left -= size
        if not self.begin_is_due:
            self.begin_is_due = True
            running_loop().call_soon(self.begin)

    def begin(self) -> None:
        """Called when a turn of the loop begins: wakes the first waiters."""
        self.begin_is_due = False
        self.left = TURN_BYTES
        while self.waiters and self.left > 0:
            size, waiter = self.waiters.popleft()
            if not waiter.done():  # its request was not cancelled
                self.use(size)
                waiter.set_result(None)


TURNS = Turns()
LARGE = ThreadPool(LARGE_THREADS, "large request")
FUNCTIONS = ThreadPool(FUNCTION_THREADS, "function")


async def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function so that it holds up no other request, by what the request of this task has reserved.

    A small request calls at once, and pays 0.8 µs for this function. A medium one waits for its turn. A large one has a thread.
    """
    current = CURRENT.get()
    size = current.size if current is not None else 0
    if size <= MEDIUM_BYTES:
        return function(*args, **kwargs)
    if size <= LARGE_BYTES:
        return await TURNS.take(size, function, *args, **kwargs)
    return await LARGE.run(function, *args, **kwargs)


def encoded(value: object) -> bytes:
    """JSON for the request of this task; of a large one in pieces. Raises APIError 400 if it is nested too deeply."""
    if reserved() <= LARGE_BYTES:
        return dumps(value)
    try:
        return large_json.dumps_large(value)
    except TypeError:
        return dumps(value)  # raises the error for the client
