"""Commands that serve, as processes: signals for them, and counts of what they hold (Linux: by /proc)."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from threading import Thread

from serving import ROOT, Process

PYTHON = [sys.executable, str(ROOT / "main.py")]
UVICORN = [sys.executable, "-m", "uvicorn", "main:app", "--app-dir", str(ROOT), "--port", "0"]
# python main.py that gives back what memory it can at SIGUSR1, and says in a line of JSON what is left.
COUNTED = f"""
import asyncio, ctypes, gc, json, runpy, signal, sys
c = ctypes.CDLL(None)
def count(*_):
    gc.collect()
    c.malloc_trim(0)
    counts = {{"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects()), "blocks": sys.getallocatedblocks()}}
    print(json.dumps(counts), file=sys.stderr, flush=True)
signal.signal(signal.SIGUSR1, count)
sys.path.insert(0, {str(ROOT)!r})
runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")
"""


class Command(Process):
    """Any command that serves, with its address in its log. `pid` is whom signals go to."""

    def __init__(self, command: list[str], **environment: str) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self.folder = tempfile.TemporaryDirectory(prefix="rewrap-")
        store = f"sqlite:///{self.folder.name}/chat.db"
        self.child = subprocess.Popen(
            command,
            cwd=ROOT / "tests",
            env=kept | {"PORT": "0", "PYTHONUNBUFFERED": "1", "STORE_URL": store} | environment,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.pid = self.child.pid
        self.lines: list[str] = []
        self.reader = Thread(target=self.collect, daemon=True)
        self.reader.start()
        self.url = self.address()

    def address(self, seconds: float = 15.0) -> str:
        """From our start line, or uvicorn's; not that of the upstream. "" where the start fails."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.child.poll() is None:
            if found := re.search(r" on (http://127\.0\.0\.1:\d+)", self.log):
                return found[1]
            time.sleep(0.01)
        return ""

    def signal(self, number: int = signal.SIGTERM) -> float:
        os.kill(self.pid, number)
        return time.monotonic()

    async def exit_code(self, seconds: float) -> int:
        async with asyncio.timeout(seconds):
            while self.child.poll() is None:
                await asyncio.sleep(0.01)
        self.reader.join(5)
        assert isinstance(self.child.returncode, int)
        return self.child.returncode

    async def counts(self) -> dict[str, int]:
        """Of a COUNTED one: tasks, objects, blocks that Python has allocated, descriptors, and bytes of memory."""
        said = len(self.lines)
        self.signal(signal.SIGUSR1)
        async with asyncio.timeout(5):
            while not (
                lines := [line for line in self.lines[said:] if line.startswith('{"tasks"')]
            ):
                await asyncio.sleep(0.01)
        counts: dict[str, int] = json.loads(lines[0])
        return counts | {"descriptors": len(self.descriptors()), "memory": self.memory()}

    def memory(self) -> int:
        """Bytes in RAM."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers_of(pid: int) -> list[int]:
    """The pids of its workers: forks, or new processes."""
    found = []
    for child in children(pid):
        with suppress(FileNotFoundError):  # it has just ended
            if is_fork(child, pid) or b"spawn_main" in command_line(child):
                found.append(child)
    return found


def is_fork(pid: int, parent: int) -> bool:
    return command_line(pid) == command_line(parent)


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@asynccontextmanager
async def running(
    command: list[str] | None = None, /, **environment: str
) -> AsyncIterator[Command]:
    """A Command, ended with the test whatever became of it, its children too."""
    process = await asyncio.to_thread(Command, command or PYTHON, **environment)
    try:
        yield process
    finally:
        if process.child.poll() is None:
            os.killpg(process.child.pid, signal.SIGKILL)
        process.child.wait()
        process.reader.join(5)
        process.folder.cleanup()
