"""Several processes that share a socket. A worker that dies is replaced, with a growing delay if it dies again soon.

On Linux a worker is a fork of its parent, which has imported all modules: two workers answer after 0.34 s instead of 0.68, and four
take 71 MB with their parent instead of 153. Elsewhere it is a new process: the libraries of macOS may crash in a fork.
"""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import time

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from rewrap.server.metrics_folder import forget_gauges
from rewrap.server.signals import hold_stop_signals, parent_pipes, release_stop_signals

log = logging.getLogger("rewrap")

STEADY_SECONDS = 10.0  # a worker that lived for so long may be replaced at once
MIN_DELAY_SECONDS = 1.0
MAX_DELAY_SECONDS = 30.0


class WorkerPlace:
    """The place of one worker: when its process started, and when the next one may start."""

    def __init__(self) -> None:
        self.started_at = time.monotonic()
        self.start_at = 0.0  # 0: a process is there
        self.delay = 0.0
        self.warned = False

    def died(self) -> bool:
        """Schedule the next process. True if this has to be logged: the first time in a row."""
        now = time.monotonic()
        if now - self.started_at >= STEADY_SECONDS:
            self.delay = 0.0
            self.warned = False
        self.start_at = now + self.delay
        self.delay = min(max(2 * self.delay, MIN_DELAY_SECONDS), MAX_DELAY_SECONDS)
        first = not self.warned
        self.warned = True
        return first


class ForkedProcess(Process):
    """A worker that is a fork of the parent process. It creates its own app."""

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        pipe: tuple[int, int],
        others: list[Process],
    ) -> None:
        """`others`: the other workers. `pipe`: its reading end reports the end of the parent, which alone can write to it."""
        super().__init__(config, sockets)
        self.pipe = pipe
        self.others = others
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=self.serve, args=(sockets,))  # type: ignore[assignment]

    def start(self) -> None:
        """Fork while stop signals are blocked: in the worker they stay pending until its handlers are installed."""
        hold_stop_signals()
        try:
            super().start()
        finally:
            release_stop_signals()

    def serve(self, sockets: list[socket.socket]) -> None:
        """In the worker: close the descriptors of other processes, and serve."""
        for other in self.others:
            other.parent_conn.close()
            other.child_conn.close()
        reading, writing = self.pipe
        os.close(writing)
        parent_pipes.append(reading)
        self.target(sockets)


class Supervisor(Multiprocess):
    """uvicorn's parent process. It handles a second signal too, and does not restart workers without a pause.

    `fork`: the workers are forks of this process, where the system can do that safely.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], *, fork: bool) -> None:
        hangup = getattr(signal, "SIGHUP", None)  # not on Windows
        under_nohup = hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN
        super().__init__(config, sockets)
        if hangup is not None and under_nohup:
            signal.signal(hangup, signal.SIG_IGN)
        self.second_signal = False
        self.places: list[WorkerPlace] = []
        self.all_started = False
        self.failed = False  # the workers cannot start at all
        self.ping_seconds = config.timeout_worker_healthcheck
        self.pipe = os.pipe() if fork and sys.platform == "linux" else None

    def new_process(self) -> Process:
        if self.pipe is None:
            return Process(self.config, self.sockets)
        return ForkedProcess(self.config, self.sockets, self.pipe, self.processes)

    def init_processes(self) -> None:
        for _ in range(self.processes_num):
            self.add_process()

    def add_process(self) -> None:
        process = self.new_process()
        process.start()
        self.processes.append(process)

    def handle_ttin(self) -> None:
        """Add a worker. SIGTTOU ends the last one."""
        self.processes_num += 1
        self.add_process()

    def handle_hup(self) -> None:
        """The end of the terminal ends the server. uvicorn would restart its workers."""
        self.handle_term()

    def handle_signals(self) -> None:
        """Called twice a second: several signals may have come since."""
        self.second_signal = len(self.signal_queue) > 1
        super().handle_signals()

    def keep_subprocess_alive(self) -> None:
        """Replace dead workers. Called twice a second."""
        # SIGTTIN and SIGTTOU change the number of processes.
        while len(self.places) < len(self.processes):
            self.places.append(WorkerPlace())
        del self.places[len(self.processes) :]
        for index, place in enumerate(self.places):
            if self.should_exit.is_set():
                return
            if place.start_at:
                self.restart(index, place)
            elif not self.processes[index].is_alive(self.ping_seconds):
                self.bury(index, place)
        if not self.all_started:
            self.all_started = all(
                process.is_ready(self.ping_seconds) for process in self.processes
            )

    def bury(self, index: int, place: WorkerPlace) -> None:
        """Clear a dead worker away. The server stops if its workers cannot start at all."""
        process = self.processes[index]
        process.kill()  # it may hang
        process.join()
        forget_gauges(process.pid)
        if process.exitcode == STARTUP_FAILURE and not self.all_started:
            self.failed = True
            self.should_exit.set()
            return
        if place.died():
            log.warning(
                "a worker ended (%s); it is replaced, after a delay of up to %.0f s if it ends again",
                ending(process),
                MAX_DELAY_SECONDS,
            )

    def restart(self, index: int, place: WorkerPlace) -> None:
        if time.monotonic() < place.start_at:
            return
        process = self.new_process()
        process.start()
        self.processes[index] = process
        place.started_at = time.monotonic()
        place.start_at = 0.0

    def join_all(self) -> None:
        """Wait for the workers, and pass a second signal on. uvicorn would ignore it here."""
        while living := [process for process in self.processes if process.process.is_alive()]:
            time.sleep(0.05)  # a worker would take two signals at the same moment for one
            if self.second_signal or self.signal_queue:
                self.second_signal = False
                self.signal_queue.clear()
                for process in living:
                    process.process.terminate()


def ending(process: Process) -> str:
    """The reason why a process ended, as the system names it."""
    code = process.exitcode or 0
    if code < 0:
        return f"signal {-code}"
    return f"exit status {code}, see its own lines above"


def serve_by_workers(config: uvicorn.Config, sock: socket.socket, *, fork: bool) -> None:
    """Serve with `config.workers` processes. Exits with uvicorn's status if they cannot start.

    `fork`: see Supervisor.
    """
    supervisor = Supervisor(config, sockets=[sock], fork=fork)
    release_stop_signals()
    supervisor.run()
    if supervisor.failed:
        sys.exit(STARTUP_FAILURE)
