"""rewrap served for tests: in a thread of the test's own process, or as the process that users start. Loopback, free ports."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from rewrap.config.settings import Settings
from rewrap.main import create_app
from rewrap.server.protocol import Protocol

ROOT = Path(__file__).absolute().parent.parent
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


class Server(uvicorn.Server):
    """It ends at once: uvicorn looks up ten times a second, and then waits for a tenth of one."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:
            await asyncio.sleep(0.002)

    async def shutdown(self, sockets: Any = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        while self.server_state.connections or self.server_state.tasks:
            await asyncio.sleep(0.002)
        await self.lifespan.shutdown()


@contextmanager
def served(prefix: str = "", **settings: Any) -> Iterator[str]:
    """The app on an event loop of its own; gives its base URL. `settings` are fields of Settings.

    With a `prefix`, below it in another app; what is beside it is 404.
    """
    chosen = Settings(**{"log_level": "warning", "store_url": "sqlite://"} | settings)
    with served_app(create_app(chosen), prefix, chosen.keep_alive_seconds) as url:
        yield url


@contextmanager
def served_app(app: Starlette, prefix: str = "", keep_alive_seconds: float = 75.0) -> Iterator[str]:
    """An app on an event loop of its own, below a prefix if there is one. Gives its base URL."""
    if prefix:
        app = Starlette(routes=[Mount(prefix, app)])
    options: dict[str, Any] = {
        "log_level": "critical",
        "access_log": False,
        "server_header": False,
        "ws": "none",
        "timeout_keep_alive": keep_alive_seconds,
    }
    server = Server(uvicorn.Config(app, port=0, http=Protocol, **options))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.002)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}{prefix}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"


class Process:
    """`python main.py` with PORT=0, and nothing but `environment`: its `url`, its `pid`, and the `log` so far."""

    def __init__(self, **environment: str) -> None:
        kept = {
            name: os.environ[name] for name in ("PATH", "LANG", "SYSTEMROOT") if name in os.environ
        }
        self.child = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py")],
            cwd=ROOT / "tests",  # no .env lies here
            env=kept | {"PORT": "0", "PYTHONUNBUFFERED": "1"} | environment,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.pid = self.child.pid
        self.lines: list[str] = []
        self.reader = Thread(target=self.collect, daemon=True)
        self.reader.start()
        self.url = self.address()

    def collect(self) -> None:
        assert self.child.stderr is not None
        with self.child.stderr as lines:
            self.lines.extend(lines)

    def address(self, seconds: float = 15.0) -> str:
        """From the start line."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.reader.is_alive():
            if found := re.search(r"http://(?:[\w.]+|\[[\w:]+\]):\d+", self.log):
                return found[0]
            time.sleep(0.01)
        self.stop()
        raise AssertionError(f"no address in the log:\n{self.log}")

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def descriptors(self) -> list[str]:
        """What the process has open (Linux): files by name, sockets by number."""
        names = []
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                names.append(os.readlink(link))
            except FileNotFoundError:  # closed just now
                continue
        return names

    def stop(self, seconds: float = 10.0) -> int:
        """End it, gently first; its exit code."""
        if self.child.poll() is None:
            self.child.terminate()
        try:
            code = self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.child.kill()
            code = self.child.wait()
        self.reader.join(seconds)
        return code


@contextmanager
def started(**environment: str) -> Iterator[Process]:
    """A Process that is ended with the test."""
    process = Process(**environment)
    try:
        yield process
    finally:
        process.stop()
