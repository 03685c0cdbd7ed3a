"""A MongoDB wire server for tests: SecantusDB in a process of its own, on loopback, with its data in a folder.

    with MongoWire(tmp_path) as wire: ... wire.url ... wire.kill() ... wire.start()

The port stays the same over kill and start, and so does what was acknowledged.
"""

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

SERVER = """
import sys, threading
from secantus import SecantusDBServer
server = SecantusDBServer(port=int(sys.argv[1]), storage_path=sys.argv[2], cache_size="64M")
server.start()
print(server.port, flush=True)
threading.Event().wait()
"""


class MongoWire:
    """The server; `url` is its address without a database."""

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("secantus") is None:
            raise RuntimeError(
                "tests of MongoDB need its wire server: pip install SecantusDB==0.7.0b3"
            )
        self.folder = folder
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/"

    def start(self) -> Self:
        argv = [sys.executable, "-c", SERVER, str(self.port), str(self.folder)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line.strip().isdigit():
            raise RuntimeError(f"the MongoDB wire server did not start: {line!r}")
        self.port = int(line)
        return self

    def kill(self, by: signal.Signals = signal.SIGKILL) -> None:
        if self.process and self.process.stdout:
            self.process.send_signal(by)
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
