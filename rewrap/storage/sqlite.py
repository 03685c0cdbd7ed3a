"""Stored completions: kept by SQLite (one machine) or MongoDB (several), behind one small interface.

A write that has returned survives a kill. Each completion belongs to an owner; for any other it does not exist.
Does not know HTTP, does not check shapes (the caller bounds sizes and the number of filters), does not encrypt.
"""

import asyncio
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from rewrap.storage.base import (
    BLANK_MESSAGE,
    SWEEP_BATCH,
    Bodies,
    Document,
    Documents,
    Store,
    StoreDown,
    T,
    Where,
)

if TYPE_CHECKING:
    pass

log = logging.getLogger("rewrap")

SCHEMA_VERSION = 1
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS completion (
    seq INTEGER PRIMARY KEY, owner TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL, UNIQUE (owner, id));
CREATE TABLE IF NOT EXISTS metadata (
    owner TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (owner, key, value, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS message (
    seq INTEGER NOT NULL, n INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (seq, n));
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
BUSY_SECONDS = 3.0  # how long SQLite waits for the writers of other processes
GROUP = 256  # at most so many writes share one transaction

Connection = sqlite3.Connection
Work = Callable[[Connection], Any]


class SQLiteWorker:
    """A thread with a SQLite connection; all work that waits when it is free shares one transaction.

    Each work has a savepoint: one that fails takes no other with it. After a failure of the transaction itself the
    connection is given up, and the next work makes a new one. A file that was deleted or replaced meanwhile is none to go on
    with: what went to the old one would be lost, and SQLite's -wal beside it belongs to nobody knows which. It takes a restart.
    `opened` is that file, the same for all lanes of a store.
    """

    def __init__(self, path: str, begin: str, opened: list[Any]) -> None:
        self.path, self.begin, self.opened = path, begin, opened
        self._queue: queue.SimpleQueue[tuple[Work, Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def do(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, after COMMIT."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="store")
            self._thread.start()
        future: Future[T] = Future()
        self._queue.put((work, future))
        try:
            return await asyncio.wrap_future(future)
        except (sqlite3.Error, OSError) as exc:
            log.warning("store failed: %r", exc)
            raise StoreDown("The store cannot be used now.") from exc

    async def close(self) -> None:
        if self._thread:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _run(self) -> None:
        db: Connection | None = None
        while (job := self._queue.get()) is not None:
            group = []
            while job is not None:
                if job[1].set_running_or_notify_cancel():  # False: its caller has gone
                    group.append(job)
                if len(group) == GROUP or self._queue.empty():
                    break
                job = self._queue.get()
            if job is None:
                self._queue.put(None)
            try:
                if self.opened and self.opened[0] != file_at(self.path):
                    raise FileNotFoundError(
                        "the file was deleted or replaced while it was in use: start the server anew"
                    )
                db = db or connect(self.path)
                if not self.opened:
                    self.opened.append(file_at(self.path))
                outcomes = transaction(db, self.begin, [work for work, _ in group])
            except Exception as exc:
                outcomes = [exc] * len(group)
                if db:
                    db.close()
                db = None
            for (_, future), outcome in zip(group, outcomes, strict=True):
                future.set_exception(outcome) if isinstance(
                    outcome, Exception
                ) else future.set_result(outcome)
        if db:
            db.close()


def transaction(db: Connection, begin: str, works: list[Work]) -> list[Any]:
    """The results; for a work that failed, its exception."""
    outcomes = []
    db.execute(begin)
    for work in works:
        db.execute("SAVEPOINT one")
        try:
            outcomes.append(work(db))
        except Exception as exc:
            if (
                not db.in_transaction
            ):  # SQLite itself has rolled all of it back: a full disk, for one
                raise
            db.execute("ROLLBACK TO one")
            outcomes.append(exc)
        db.execute("RELEASE one")
    db.execute("COMMIT")
    return outcomes


def connect(path: str) -> Connection:
    """A connection to the file (to memory if `path` is empty); file and tables are made if there are none."""
    if path:
        # O_EXCL: to open and close a file that SQLite has open would drop the locks that this process holds on it.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    db = sqlite3.connect(path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None)
    try:
        switch_to_wal(db)
        db.execute("PRAGMA synchronous = FULL")
        version = schema(db)
        if version > SCHEMA_VERSION:
            raise sqlite3.DatabaseError(newer(version))
        if version < SCHEMA_VERSION:
            db.executescript(SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def file_at(path: str) -> tuple[int, int] | None:
    """Device and inode."""
    with suppress(FileNotFoundError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None


def uri(path: str) -> str:
    """For SQLite, which is not to make the file."""
    return f"{Path(path).absolute().as_uri()}?mode=rw"


def schema(db: Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def newer(version: int) -> str:
    return f"The store has schema {version}, but this version knows {SCHEMA_VERSION} at most."


def switch_to_wal(db: Connection) -> None:
    """SQLite's own time-out does not hold for this, and several processes may do it at once."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class SQLiteStore(Store):
    """One file, shared by the processes of one machine; or memory, for this process.

    `seq` orders the lists: `created` in the upper bits, a count within that second in the lower 24.
    """

    def __init__(self, path: str, max_age_days: float | None) -> None:
        super().__init__(max_age_days)
        self.path = path
        opened: list[Any] = []
        self._writer = SQLiteWorker(path, "BEGIN IMMEDIATE", opened)
        self._reader = SQLiteWorker(path, "BEGIN", opened) if path else self._writer

    async def open(self) -> None:
        if self._is_made():
            with suppress(StoreDown):
                await self._reader.do(lambda db: None)
        await super().open()

    async def close(self) -> None:
        await super().close()
        await self._reader.close()
        await self._writer.close()
        self._writer.opened.clear()

    async def put(
        self, completion: Document, messages: Documents, *, owner: str, title: str | None = None
    ) -> None:
        def work(db: Connection) -> None:
            old = take(db, owner, completion["id"])
            if old and old[0] < self._first():
                db.execute("DELETE FROM message WHERE seq = ?", old[:1])
                old = None
            seq, name = (
                (old[0], old[1].get("title")) if old else (vacant(db, completion["created"]), title)
            )
            keep(db, owner, seq, completion if name is None else {**completion, "title": name})
            numbered = enumerate(messages, next_number(db, seq))
            rows = [(seq, n, orjson.dumps({**BLANK_MESSAGE, **message})) for n, message in numbered]
            db.executemany("INSERT INTO message (seq, n, body) VALUES (?, ?, ?)", rows)

        await self._writer.do(work)

    async def get(self, owner: str, id: str) -> Document | None:
        found = await self._reader.do(lambda db: find(db, owner, id, self._first()))
        return found and found[1]

    async def update(self, owner: str, id: str, metadata: dict[str, str]) -> Document | None:
        def work(db: Connection) -> Document | None:
            if not (old := take(db, owner, id, self._first())):
                return None
            completion = {**old[1], "metadata": metadata}
            keep(db, owner, old[0], completion)
            return completion

        return await self._writer.do(work)

    async def delete(self, owner: str, id: str) -> bool:
        return await self._writer.do(lambda db: drop(db, owner, id, self._first()))

    async def _list(
        self, owner: str, where: Where, after: str | None, limit: int, up: bool
    ) -> Documents:
        def work(db: Connection) -> Documents:
            low, high = self._first(), 2**63 - 1
            if after is not None:
                if not (last := find(db, owner, after, low)):
                    raise LookupError("no such completion")
                low, high = (last[0] + 1, high) if up else (low, last[0] - 1)
            lead, *others = rarest_first(db, owner, tags(*where))
            parameters = [
                owner,
                *lead,
                low,
                high,
                *(part for tag in others for part in (owner, *tag)),
                limit,
            ]
            return [
                orjson.loads(body) for (body,) in db.execute(listing(len(others), up), parameters)
            ]

        return await self._reader.do(work)

    async def _count(self, owner: str, id: str) -> int | None:
        return await self._reader.do(
            lambda db: (it := find(db, owner, id, self._first())) and next_number(db, it[0])
        )

    async def _bodies(self, owner: str, id: str, start: int, count: int) -> Bodies:
        sql = "SELECT message.body FROM completion JOIN message USING (seq) WHERE owner = ? AND id = ? AND n >= ?"
        part = (owner, id, start, count)
        rows = await self._reader.do(
            lambda db: db.execute(f"{sql} ORDER BY n LIMIT ?", part).fetchall()
        )
        return [body for (body,) in rows]

    def _is_made(self) -> bool:
        return not self.path or os.path.exists(self.path)

    def _first(self) -> int:
        """The least `seq` that is not too old."""
        return self._oldest() << 24

    async def _sweep(self) -> bool:
        def work(db: Connection) -> bool:
            sql = "SELECT owner, id FROM completion WHERE seq < ? ORDER BY seq LIMIT ?"
            old = db.execute(sql, (self._first(), SWEEP_BATCH)).fetchall()
            for owner, id in old:
                drop(db, owner, id)
            return bool(old)

        return self.max_age_days is not None and self._is_made() and await self._writer.do(work)


def find(db: Connection, owner: str, id: str, first: int = 0) -> tuple[int, Document] | None:
    sql = "SELECT seq, body FROM completion WHERE owner = ? AND id = ? AND seq >= ?"
    row = db.execute(sql, (owner, id, first)).fetchone()
    return row and (row[0], orjson.loads(row[1]))


def take(db: Connection, owner: str, id: str, first: int = 0) -> tuple[int, Document] | None:
    """Find a completion and remove it and its tags; its messages stay."""
    if found := find(db, owner, id, first):
        seq, completion = found
        db.execute("DELETE FROM completion WHERE seq = ?", (seq,))
        sql = "DELETE FROM metadata WHERE owner = ? AND key = ? AND value = ? AND seq = ?"
        db.executemany(sql, tag_rows(owner, seq, completion))
    return found


def keep(db: Connection, owner: str, seq: int, completion: Document) -> None:
    row = (seq, owner, completion["id"], orjson.dumps(completion))
    db.execute("INSERT INTO completion (seq, owner, id, body) VALUES (?, ?, ?, ?)", row)
    sql = "INSERT INTO metadata (owner, key, value, seq) VALUES (?, ?, ?, ?)"
    db.executemany(sql, tag_rows(owner, seq, completion))


def drop(db: Connection, owner: str, id: str, first: int = 0) -> bool:
    found = take(db, owner, id, first)
    if found:
        db.execute("DELETE FROM message WHERE seq = ?", found[:1])
    return found is not None


def vacant(db: Connection, created: int) -> int:
    """The next `seq` of that second."""
    low, high = created << 24, (created + 1 << 24) - 1
    (last,) = db.execute(
        "SELECT max(seq) FROM completion WHERE seq BETWEEN ? AND ?", (low, high)
    ).fetchone()
    return low if last is None else int(last) + 1


def next_number(db: Connection, seq: int) -> int:
    return int(
        db.execute("SELECT ifnull(max(n) + 1, 0) FROM message WHERE seq = ?", (seq,)).fetchone()[0]
    )


def tags(model: str | None, metadata: dict[str, str] | None) -> list[tuple[str, str]]:
    """The (key, value) of the rows to look for; a key names the model too, so that model and metadata are one walk."""
    entries: dict[Any, str] = {**(metadata or {})} or {None: ""}
    return [(orjson.dumps([model, key]).decode(), value) for key, value in entries.items()]


def tag_rows(owner: str, seq: int, completion: Document) -> list[tuple[str, str, str, int]]:
    """All rows by which a completion is found: with and without a filter by model, and by metadata."""
    model, metadata = completion.get("model"), completion.get("metadata")
    every = {*tags(None, None), *tags(model, None), *tags(None, metadata), *tags(model, metadata)}
    return [(owner, *tag, seq) for tag in every]


def rarest_first(
    db: Connection, owner: str, filters: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The filters; the one with the fewest rows (counted to 300 at most) leads, so that few are read in vain."""
    sql = "SELECT count(*) FROM (SELECT 1 FROM metadata WHERE owner = ? AND key = ? AND value = ? LIMIT 300)"
    one = len(filters) == 1
    return (
        filters
        if one
        else sorted(filters, key=lambda tag: int(db.execute(sql, (owner, *tag)).fetchone()[0]))
    )


def listing(others: int, up: bool) -> str:
    """SQL that walks along the leading filter's rows, in order, and looks the others up in the same index."""
    other = " AND EXISTS (SELECT 1 FROM metadata WHERE owner = ? AND key = ? AND value = ? AND seq = lead.seq)"
    return (
        "SELECT body FROM metadata AS lead CROSS JOIN completion ON completion.seq = lead.seq"
        " WHERE lead.owner = ? AND lead.key = ? AND lead.value = ? AND lead.seq BETWEEN ? AND ?"
        f"{other * others} ORDER BY lead.seq {'ASC' if up else 'DESC'} LIMIT ?"
    )
