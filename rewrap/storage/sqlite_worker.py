"""Connections to SQLite: a thread for each, transactions that several works share, and the schema.

A work that has returned is on the disk. Does not know completions, except for their tables. sqlite3 is imported with the first
connection: a server that stores nothing saves 1.4 MB.
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

# The statements of each schema after the one before it.
MIGRATIONS = (
    (
        "CREATE TABLE completion (seq INTEGER PRIMARY KEY, owner TEXT NOT NULL, id TEXT NOT NULL,"
        " body BLOB NOT NULL, UNIQUE (owner, id))",
        "CREATE TABLE metadata (owner TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,"
        " seq INTEGER NOT NULL, PRIMARY KEY (owner, key, value, seq)) WITHOUT ROWID",
        "CREATE TABLE message (seq INTEGER NOT NULL, n INTEGER NOT NULL, body BLOB NOT NULL,"
        " PRIMARY KEY (seq, n))",
    ),
    (
        # In rows of schema 1 the body has the title and the metadata, and these columns are NULL.
        "ALTER TABLE completion ADD COLUMN kind TEXT NOT NULL DEFAULT 'completion'",
        "ALTER TABLE completion ADD COLUMN model TEXT",
        "ALTER TABLE completion ADD COLUMN title TEXT",
        "ALTER TABLE completion ADD COLUMN metadata BLOB",
    ),
)
SCHEMA_VERSION = len(MIGRATIONS)
BUSY_SECONDS = 3.0  # how long SQLite waits for the writers of other processes
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
            db = db or connect(self.file.path)
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


def failures() -> tuple[type[Exception], ...]:
    """The exceptions of a store that cannot be used. Called when there is one."""
    import sqlite3

    return sqlite3.Error, OSError


def connect(path: str) -> Database:
    """A connection to the file, or to memory if `path` is empty. Makes the file and its tables."""
    import sqlite3

    if path:
        # O_EXCL: closing a file that SQLite has open would drop the locks of this process on it.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    db = sqlite3.connect(path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None)
    try:
        switch_to_wal(db)
        db.execute("PRAGMA synchronous = FULL")
        migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def migrate(db: Database) -> None:
    """Bring the tables to this schema. Raises sqlite3.DatabaseError if they have a newer one."""
    import sqlite3

    if schema(db) == SCHEMA_VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    version = schema(db)  # again: another process may have done it
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(newer_schema(version))
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    db.execute("COMMIT")


def existing_uri(path: str) -> str:
    """A URI with which SQLite does not make the file."""
    return f"{Path(path).absolute().as_uri()}?mode=rw"


def schema(db: Database) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def newer_schema(version: int) -> str:
    return f"The store has schema {version}, but this version knows {SCHEMA_VERSION} at most."


def switch_to_wal(db: Database) -> None:
    """Several processes may do this at once, and SQLite's own time-out does not cover it."""
    import sqlite3

    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
