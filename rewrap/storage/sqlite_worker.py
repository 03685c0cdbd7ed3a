"""Threads that work in SQLite: each has a connection, and several works share a transaction.

A work that has returned is on the disk. sqlite_connection.py is imported with the first connection. Does not know completions.
"""

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from rewrap.storage.base import Observer, StoreDown
from rewrap.structs import struct

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger("rewrap")

T = TypeVar("T")
Database: TypeAlias = "sqlite3.Connection"
Work = Callable[[Database], object]

MAX_GROUP = 256  # works that share one transaction
DOWN = "The store cannot be used now."
REPLACED = "the file was deleted or replaced while it was in use: restart the server"


@struct(slots=True)
class DatabaseFile:
    """The file of a store, which all its connections share; an empty path is memory.

    SQLite keeps a file open after it was deleted or replaced. Writes to it would be lost, and the
    -wal file beside the new one would not match it.
    """

    path: str
    identity: tuple[int, int] | None = None  # device and inode

    def exists(self) -> bool:
        return not self.path or os.path.exists(self.path)

    def is_to_be_made(self) -> bool:
        """Whether there is no file yet. One that was there before is missing, and `check` raises."""
        return self.identity is None and not self.exists()

    def check_folder(self) -> None:
        """Raises StoreDown if the file cannot be made."""
        if not os.access(Path(self.path).absolute().parent, os.W_OK):
            raise StoreDown(DOWN)

    def check(self) -> None:
        """Raises FileNotFoundError if this is not the file that was opened first."""
        if self.identity is not None and self.identity != self.found():
            raise FileNotFoundError(REPLACED)

    def remember(self) -> None:
        if self.identity is None:
            self.identity = self.found()

    def forget(self) -> None:
        self.identity = None

    def found(self) -> tuple[int, int] | None:
        if not self.path:
            return None
        with suppress(FileNotFoundError):
            status = os.stat(self.path)
            return status.st_dev, status.st_ino
        return None


@struct(slots=True)
class StoreJob:
    work: Work
    future: "Future[object]" = field(default_factory=Future)


class SQLiteWorker:
    """A thread with a connection. Works that wait at the same time share one transaction.

    Each work has a savepoint: one that fails does not undo the others. If the transaction itself
    fails, the connection is closed, and the next work opens another.
    """

    def __init__(self, file: DatabaseFile, begin: str) -> None:
        self.file = file
        self.begin = begin
        # None: the thread ends.
        self.queue: queue.SimpleQueue[StoreJob | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self.observe: Observer | None = None

    async def run(self, work: Callable[[Database], T]) -> T:
        """The result of `work`, after COMMIT. Raises StoreDown, and the exceptions of the work."""
        if self.thread is None:
            self.thread = threading.Thread(target=self.serve, daemon=True, name="store")
            self.thread.start()
        job = StoreJob(work)
        started = time.perf_counter()
        self.queue.put(job)
        failed = False
        try:
            result = await asyncio.wrap_future(job.future)
        except failures() as exc:
            failed = True
            log.warning("store failed: %r", exc)
            raise StoreDown(DOWN) from exc
        finally:
            if self.observe is not None:
                self.observe(time.perf_counter() - started, failed)
        return result  # type: ignore[return-value]

    async def close(self) -> None:
        if self.thread:
            self.queue.put(None)
            await asyncio.to_thread(self.thread.join)
            self.thread = None

    def serve(self) -> None:
        db: Database | None = None
        ended = False
        while not ended:
            jobs = [self.queue.get()]
            while len(jobs) < MAX_GROUP and not self.queue.empty():
                jobs.append(self.queue.get())
            ended = None in jobs
            # A future whose caller is cancelled does not run.
            group = [job for job in jobs if job and job.future.set_running_or_notify_cancel()]
            if group:
                db = self.run_group(db, group)
        if db is not None:
            db.close()

    def run_group(self, db: "Database | None", group: list[StoreJob]) -> "Database | None":
        """Run jobs in one transaction. The result is the connection for the next group."""
        outcomes: list[object]
        try:
            self.file.check()
            if db is None:
                from rewrap.storage.sqlite_connection import connect

                db = connect(self.file.path)
            self.file.remember()
            outcomes = transaction(db, self.begin, [job.work for job in group])
        except Exception as exc:
            outcomes = [exc] * len(group)
            if db is not None:
                db.close()
            db = None
        for job, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        return db


def failures() -> tuple[type[Exception], ...]:
    """The exceptions of a store that cannot be used. Called when a work has raised one."""
    from rewrap.storage.sqlite_connection import FAILURES

    return FAILURES


def transaction(db: Database, begin: str, works: Sequence[Work]) -> list[object]:
    """The results; the exception of a work that failed."""
    outcomes: list[object] = []
    db.execute(begin)
    for work in works:
        db.execute("SAVEPOINT one")
        try:
            outcomes.append(work(db))
        except Exception as exc:
            if not db.in_transaction:  # SQLite has rolled all of it back: the disk is full
                raise
            db.execute("ROLLBACK TO one")
            outcomes.append(exc)
        db.execute("RELEASE one")
    db.execute("COMMIT")
    return outcomes
