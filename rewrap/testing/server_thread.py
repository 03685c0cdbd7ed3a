"""A real server in a thread of this process, on a free port of 127.0.0.1. Its app can be changed.

Leaves signals and the levels of uvicorn's loggers alone. Does not know the app: that is an EdgeApp.
"""

import asyncio
import logging
import socket
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from threading import Event, Thread
from typing import TypeVar

import uvicorn
from starlette.types import Receive, Scope, Send

from rewrap.server.app import EdgeApp
from rewrap.server.protocol import Protocol
from rewrap.server.serve import is_unexpected

T = TypeVar("T")

BACKLOG = 2048
START_SECONDS = 30.0
END_SECONDS = 5.0  # for cancelled requests to end


class QuickServer(uvicorn.Server):
    """Stops at once. uvicorn looks ten times a second, and waits for its clients."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.stopping = asyncio.Event()
        self.ready.set()

    async def main_loop(self) -> None:
        while not self.stopping.is_set():
            await self.on_tick(0)  # the date in the headers
            try:
                await asyncio.wait_for(self.stopping.wait(), 1.0)
            except TimeoutError:
                continue

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await self.end_tasks()
        for sock in sockets or []:
            sock.close()

    async def end_requests(self) -> None:
        """End the requests in progress. Idle connections stay open."""
        for connection in list(self.server_state.connections):
            running = getattr(connection, "running", None)
            if running is not None and not running.response_complete:
                connection.transport.abort()
        await self.end_tasks()

    async def end_tasks(self) -> None:
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=END_SECONDS)


class ServerThread:
    """Serves from `start` to `stop`. `url` is known at once: clients that come early wait."""

    def __init__(self) -> None:
        self.app: EdgeApp | None = None
        self.opened = AsyncExitStack()
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(
            self.answer,
            http=Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            log_config=None,
            server_header=False,
        )
        config.access_log = False  # as an argument, it would change uvicorn's logger
        self.server = QuickServer(config)
        self.thread = Thread(target=self.serve, name="rewrap", daemon=True)

    def serve(self) -> None:
        """The life of the thread."""
        # The fault `cut` leaves an answer without its end, which uvicorn would log as an error.
        logger = logging.getLogger("uvicorn.error")
        logger.addFilter(is_unexpected)
        self.server.run([self.socket])
        logger.removeFilter(is_unexpected)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        await self.app(scope, receive, send)

    def start(self) -> None:
        self.thread.start()
        if not self.server.ready.wait(START_SECONDS):
            raise RuntimeError("The server of the mock did not start.")

    def use(self, app: EdgeApp) -> None:
        """Answer with this app from now on. Requests that still run in the last one are ended."""
        self.run(self.change(app))

    async def change(self, app: EdgeApp) -> None:
        await self.server.end_requests()
        await self.opened.aclose()
        await self.opened.enter_async_context(app.resources.opened())
        self.app = app

    def settle(self) -> None:
        """Wait until the loop has done its work for the answers that clients have."""
        self.run(asyncio.sleep(0))

    def run(self, coroutine: Coroutine[object, object, T]) -> T:
        """The result of a coroutine, run on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.server.loop).result()

    def stop(self) -> None:
        self.run(self.end())
        self.thread.join()

    async def end(self) -> None:
        await self.server.end_requests()
        await self.opened.aclose()
        self.server.stopping.set()
