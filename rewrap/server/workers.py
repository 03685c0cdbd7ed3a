"""Several processes that share a socket. A worker that dies is replaced."""

import socket
import sys
import time

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess

from rewrap.server.signals import release_stop_signals


class Supervisor(Multiprocess):
    """uvicorn's parent process, which handles a second signal too."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.second_signal = False

    def handle_signals(self) -> None:
        """Called twice a second: several signals may have come since."""
        self.second_signal = len(self.signal_queue) > 1
        super().handle_signals()

    def join_all(self) -> None:
        """Wait for the workers, and pass a second signal on. uvicorn would ignore it here."""
        while living := [process for process in self.processes if process.process.is_alive()]:
            time.sleep(0.05)  # a worker would take two signals at the same moment for one
            if self.second_signal or self.signal_queue:
                self.second_signal = False
                self.signal_queue.clear()
                for process in living:
                    process.process.terminate()


def serve_by_workers(config: uvicorn.Config, sock: socket.socket) -> None:
    """Serve with `config.workers` processes. Exits with uvicorn's status if they cannot start."""
    supervisor = Supervisor(config, sockets=[sock])
    release_stop_signals()
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        sys.exit(STARTUP_FAILURE)
