"""The end of the server: SIGTERM, SIGINT and SIGHUP let open answers finish.

Does not know the app: `graceful` takes a function that drains it.
"""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing import parent_process
from types import FrameType

import uvicorn

UNSENT_SECONDS = 1.0  # at least, for clients to read the last bytes of a connection that closes
# Windows has SIGBREAK (Ctrl+Break), and no SIGHUP (the end of the terminal).
STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
]
TERMINAL_SIGNALS = [number for number in STOP_SIGNALS if number != signal.SIGTERM]
CANCEL_SECONDS = 0.1  # for requests to end with their connections, before they are cancelled
# In a forked worker: the descriptor that becomes readable when the parent process ends. The sentinel of multiprocessing becomes
# readable only after all later forks have ended too, because they hold copies of its other end.
parent_pipes: list[int] = []


def hold_stop_signals() -> None:
    """Keep signals pending until a handler is there.

    Before, they would end the process with status -15, or be lost as PID 1. Windows cannot hold signals.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def release_stop_signals() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


class GracefulStop:
    """Stops a uvicorn server: drains the app, then lets clients read the last bytes, then cuts the rest."""

    def __init__(
        self, server: uvicorn.Server, drain: Callable[[], Awaitable[None]], grace_seconds: float
    ) -> None:
        self.server = server
        self.drain = drain
        self.grace_seconds = grace_seconds
        self.loop = asyncio.get_running_loop()
        self.task: asyncio.Task[None] | None = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self.loop.call_soon_threadsafe(self.request)

    def request(self) -> None:
        """Stop gracefully; at once if a stop is in progress."""
        if self.task is None:
            self.task = self.loop.create_task(self.stop())
        else:
            self.cut()

    async def stop(self) -> None:
        end = self.loop.time() + self.grace_seconds
        await self.drain()
        self.server.should_exit = True
        await asyncio.sleep(max(end - self.loop.time(), UNSENT_SECONDS))
        self.cut()

    def cut(self) -> None:
        """Abort all connections. Their requests end as those of clients that left."""
        self.server.should_exit = True
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()
        self.loop.call_later(CANCEL_SECONDS, self.cancel)

    def cancel(self) -> None:
        for task in list(self.server.server_state.tasks):
            task.cancel()

    def on_parent_lost(self, sentinel: int) -> None:
        self.loop.remove_reader(sentinel)
        if self.task is None:
            self.request()

    def close(self) -> None:
        if self.task is not None:
            self.task.cancel()


@asynccontextmanager
async def graceful(
    drain: Callable[[], Awaitable[None]], grace_seconds: float = 0.0
) -> AsyncIterator[None]:
    """Handle signals in uvicorn's place: `drain`, then stop, with exit status 0. A second signal stops at once.

    uvicorn alone closes its socket first, waits for slow readers without a limit, and raises the signal again at its end
    (exit status 143). A client has `grace_seconds` from the signal on to read its answer. Under another server, and in
    tests, no signal is handled.
    """
    server = serving_server()
    if server is None:
        yield
        return
    stop = GracefulStop(server, drain, grace_seconds)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, stop.on_signal)
    freeze_garbage()
    release_stop_signals()
    parent = parent_process()
    if parent is not None:
        # A terminal signals all its processes. A worker waits for the signal of its parent, or for its end.
        for number in TERMINAL_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        sentinel = parent_pipes[0] if parent_pipes else parent.sentinel
        stop.loop.add_reader(sentinel, stop.on_parent_lost, sentinel)
    yield
    stop.close()


def serving_server() -> uvicorn.Server | None:
    """The uvicorn server of this process, if it handles the signals."""
    handler = signal.getsignal(signal.SIGTERM)
    server = getattr(handler, "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None


def freeze_garbage() -> None:
    """Exclude the objects of the start from garbage collection, and collect less often.

    A full collection stopped the server for 20 ms, and all of them together took 9 % of its CPU. None is made here: it would
    take 14 ms of the start, and finds no garbage.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
