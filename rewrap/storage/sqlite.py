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
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection

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
MONGO_TIMEOUTS: Any = {"serverSelectionTimeoutMS": 2_000, "connectTimeoutMS": 2_000, "socketTimeoutMS": 5_000}
SWEEP_SECONDS = 30.0
SWEEP_BATCH = 100
GROUP = 256  # at most so many writes share one transaction
MAX_LIMIT = 1_000
BLANK_MESSAGE = {"id": None, "role": None, "content": None, "name": None, "content_parts": None}

T = TypeVar("T")
Document = dict[str, Any]
Documents = list[Document]
Connection = sqlite3.Connection
Work = Callable[[Connection], Any]
Bodies = list[Any]  # JSON, str or bytes
Where = tuple[str | None, dict[str, str]]  # model, metadata


class StoreDown(Exception):
    """The store cannot be read or written now; the text says nothing about where it is."""


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list; `has_more` says exactly whether anything follows it."""

    data: Documents
    has_more: bool


def open_store(url: str, max_age_days: float | None = None) -> "Store":
    """The store at sqlite:///relative.db, sqlite:////absolute.db, sqlite:// (memory) or mongodb://host/database.

    Connects when first used. Raises ValueError, also if a newer version made the file: one line, without the URL, which
    may hold a password.
    """
    if url in ("sqlite://", "sqlite:///", "sqlite:///:memory:"):
        return SQLiteStore("", max_age_days)
    if url.startswith("sqlite:///") and "?" not in url:
        path = url.removeprefix("sqlite:///")
        # A file that is not there yet, or cannot be read now, is no reason not to start.
        with suppress(sqlite3.Error, OSError), closing(sqlite3.connect(uri(path), uri=True)) as db:
            if (version := schema(db)) > SCHEMA_VERSION:
                raise ValueError(newer(version))
        return SQLiteStore(path, max_age_days)
    if url.startswith(("mongodb://", "mongodb+srv://")):
        return MongoStore(url, max_age_days)
    raise ValueError("The store's URL must be sqlite:///file.db, sqlite:////path/file.db, sqlite:// or mongodb://...")


class Store(ABC):
    """What each engine offers; all of it raises StoreDown.

    Lists are ordered by `created` (Unix, seconds) as first put, then by insertion: a chat that is continued keeps its
    place and its age. `after` is an item's `id`, found even where the filters exclude it; LookupError if there is none.
    `limit` is cut to 0..1000; `order` is "asc" or "desc".
    """

    def __init__(self, max_age_days: float | None) -> None:
        self.max_age_days = max_age_days
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start the task that removes what is too old and makes MongoDB's indexes; all else works without.

        A store that is down does not matter here.
        """
        self._task = asyncio.create_task(self._upkeep())

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    @abstractmethod
    async def put(self, completion: Document, messages: Documents, *, owner: str, title: str | None = None) -> None:
        """Keep a completion {"id", "created", "model", "metadata", ...}; it is durable when this returns.

        If the owner has one with this id, `completion` replaces it and the messages go after those that it has.
        The title of the first put stays; it is given back as "title".
        """

    @abstractmethod
    async def get(self, owner: str, id: str) -> Document | None: ...

    @abstractmethod
    async def update(self, owner: str, id: str, metadata: dict[str, str]) -> Document | None:
        """Replace the metadata; gives the completion as it is then."""

    @abstractmethod
    async def delete(self, owner: str, id: str) -> bool: ...

    async def list(
        self,
        owner: str,
        *,
        model: str | None = None,
        metadata: dict[str, str] | None = None,
        after: str | None = None,
        limit: int = 20,
        order: str = "asc",
    ) -> Page:
        limit = max(0, min(limit, MAX_LIMIT))
        found = await self._list(owner, (model, metadata or {}), after, limit + 1, order == "asc")
        return Page(found[:limit], len(found) > limit)

    async def messages(
        self, owner: str, id: str, *, after: str | None = None, limit: int = 20, order: str = "asc"
    ) -> Page | None:
        """Messages {"id": "{completion id}-{n}", "role", "content", "name", "content_parts", ...}, n from 0."""
        count = await self._count(owner, id)
        if count is None:
            return None
        numbers = range(count) if order == "asc" else range(count)[::-1]
        if after is not None:
            at = next((at for at, n in enumerate(numbers) if after == f"{id}-{n}"), None)
            if at is None:
                raise LookupError("no such message")
            numbers = numbers[at + 1 :]
        page = numbers[: max(0, min(limit, MAX_LIMIT))]
        bodies = await self._bodies(owner, id, min(page), len(page)) if page else []
        data = [{**orjson.loads(body), "id": f"{id}-{n}"} for n, body in enumerate(bodies, min(page, default=0))]
        return Page(data if order == "asc" else data[::-1], len(numbers) > len(page))

    @abstractmethod
    async def _list(self, owner: str, where: Where, after: str | None, limit: int, up: bool) -> Documents: ...

    @abstractmethod
    async def _count(self, owner: str, id: str) -> int | None:
        """How many messages a completion has."""

    @abstractmethod
    async def _bodies(self, owner: str, id: str, start: int, count: int) -> Bodies:
        """The JSON of messages, in the order of their numbers."""

    @abstractmethod
    async def _sweep(self) -> bool:
        """Remove one batch of what is too old; whether there was any."""

    def _oldest(self) -> int:
        """The time (Unix, seconds) before which nothing exists."""
        return 0 if self.max_age_days is None else max(0, int(time.time() - self.max_age_days * 86_400))

    async def _upkeep(self) -> None:
        while True:
            with suppress(StoreDown):
                while await self._sweep():
                    await asyncio.sleep(0.02)  # the clients' own writes go in between
            await asyncio.sleep(SWEEP_SECONDS)


class Lane:
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
                future.set_exception(outcome) if isinstance(outcome, Exception) else future.set_result(outcome)
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
            if not db.in_transaction:  # SQLite itself has rolled all of it back: a full disk, for one
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
        self._writer = Lane(path, "BEGIN IMMEDIATE", opened)
        self._reader = Lane(path, "BEGIN", opened) if path else self._writer

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

    async def put(self, completion: Document, messages: Documents, *, owner: str, title: str | None = None) -> None:
        def work(db: Connection) -> None:
            old = take(db, owner, completion["id"])
            if old and old[0] < self._first():
                db.execute("DELETE FROM message WHERE seq = ?", old[:1])
                old = None
            seq, name = (old[0], old[1].get("title")) if old else (vacant(db, completion["created"]), title)
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

    async def _list(self, owner: str, where: Where, after: str | None, limit: int, up: bool) -> Documents:
        def work(db: Connection) -> Documents:
            low, high = self._first(), 2**63 - 1
            if after is not None:
                if not (last := find(db, owner, after, low)):
                    raise LookupError("no such completion")
                low, high = (last[0] + 1, high) if up else (low, last[0] - 1)
            lead, *others = rarest_first(db, owner, tags(*where))
            parameters = [owner, *lead, low, high, *(part for tag in others for part in (owner, *tag)), limit]
            return [orjson.loads(body) for (body,) in db.execute(listing(len(others), up), parameters)]

        return await self._reader.do(work)

    async def _count(self, owner: str, id: str) -> int | None:
        return await self._reader.do(lambda db: (it := find(db, owner, id, self._first())) and next_number(db, it[0]))

    async def _bodies(self, owner: str, id: str, start: int, count: int) -> Bodies:
        sql = "SELECT message.body FROM completion JOIN message USING (seq) WHERE owner = ? AND id = ? AND n >= ?"
        part = (owner, id, start, count)
        rows = await self._reader.do(lambda db: db.execute(f"{sql} ORDER BY n LIMIT ?", part).fetchall())
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
    (last,) = db.execute("SELECT max(seq) FROM completion WHERE seq BETWEEN ? AND ?", (low, high)).fetchone()
    return low if last is None else int(last) + 1


def next_number(db: Connection, seq: int) -> int:
    return int(db.execute("SELECT ifnull(max(n) + 1, 0) FROM message WHERE seq = ?", (seq,)).fetchone()[0])


def tags(model: str | None, metadata: dict[str, str] | None) -> list[tuple[str, str]]:
    """The (key, value) of the rows to look for; a key names the model too, so that model and metadata are one walk."""
    entries: dict[Any, str] = {**(metadata or {})} or {None: ""}
    return [(orjson.dumps([model, key]).decode(), value) for key, value in entries.items()]


def tag_rows(owner: str, seq: int, completion: Document) -> list[tuple[str, str, str, int]]:
    """All rows by which a completion is found: with and without a filter by model, and by metadata."""
    model, metadata = completion.get("model"), completion.get("metadata")
    every = {*tags(None, None), *tags(model, None), *tags(None, metadata), *tags(model, metadata)}
    return [(owner, *tag, seq) for tag in every]


def rarest_first(db: Connection, owner: str, filters: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The filters; the one with the fewest rows (counted to 300 at most) leads, so that few are read in vain."""
    sql = "SELECT count(*) FROM (SELECT 1 FROM metadata WHERE owner = ? AND key = ? AND value = ? LIMIT 300)"
    one = len(filters) == 1
    return filters if one else sorted(filters, key=lambda tag: int(db.execute(sql, (owner, *tag)).fetchone()[0]))


def listing(others: int, up: bool) -> str:
    """SQL that walks along the leading filter's rows, in order, and looks the others up in the same index."""
    other = " AND EXISTS (SELECT 1 FROM metadata WHERE owner = ? AND key = ? AND value = ? AND seq = lead.seq)"
    return (
        "SELECT body FROM metadata AS lead CROSS JOIN completion ON completion.seq = lead.seq"
        " WHERE lead.owner = ? AND lead.key = ? AND lead.value = ? AND lead.seq BETWEEN ? AND ?"
        f"{other * others} ORDER BY lead.seq {'ASC' if up else 'DESC'} LIMIT ?"
    )


class MongoStore(Store):
    """One document for each chat, so that each write is atomic, on a single mongod too; MongoDB allows 16 MB for it.

    {"_id": JSON of [owner, id], "owner", "seq": an ObjectId whose first 4 bytes are `created`, "model", "tags": the metadata
    as an array of JSON, "title", "body": JSON, "metadata": JSON that replaces the body's, "messages": [JSON], "count"}
    """

    def __init__(self, url: str, max_age_days: float | None) -> None:
        super().__init__(max_age_days)
        try:
            import pymongo
            from bson.errors import BSONError
            from pymongo.errors import PyMongoError
        except ImportError:
            raise ValueError("A mongodb:// store needs a package: pip install pymongo") from None
        self._errors = (PyMongoError, BSONError)
        self._asked: set[asyncio.Task[Any]] = set()
        self._url = url
        try:
            self._renew()
        except (*self._errors, ValueError, TypeError):  # their texts may repeat a password
            raise ValueError("The store's mongodb:// URL is not valid.") from None
        lists = "owner seq", "owner model seq", "owner tags seq", "owner model tags seq", "seq"
        self._indexes = [pymongo.IndexModel(names.split()) for names in lists]

    def _renew(self) -> None:
        """A client that connects when it is used: it keeps to the event loop of that, and does not open again."""
        import pymongo
        from pymongo.read_concern import ReadConcern

        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: pymongo.AsyncMongoClient[Document] = pymongo.AsyncMongoClient(self._url, **MONGO_TIMEOUTS)
        self._collection = self._client.get_default_database("rewrap").get_collection(
            "completions",
            read_concern=ReadConcern("majority"),
            write_concern=pymongo.WriteConcern("majority", wtimeout=4_000, j=True),
        )

    @property
    def _chats(self) -> "AsyncCollection[Document]":
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop:
                self._renew()
            self._loop = loop
        return self._collection

    async def open(self) -> None:
        with suppress(StoreDown):  # the upkeep tries again
            await self._sweep()
        await super().open()

    async def close(self) -> None:
        await super().close()
        await asyncio.gather(*self._asked, return_exceptions=True)
        client = self._client
        self._renew()
        await client.close()

    async def _ask(self, answer: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(answer)
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)
        try:
            return await asyncio.shield(task)  # pymongo, cancelled, gives up its connection, and may leak the socket
        except self._errors as exc:
            log.warning("store failed: %.300r", exc)
            raise StoreDown("The store cannot be used now.") from exc

    async def put(self, completion: Document, messages: Documents, *, owner: str, title: str | None = None) -> None:
        key = {"_id": orjson.dumps([owner, completion["id"]]).decode()}
        bodies = [orjson.dumps({**BLANK_MESSAGE, **message}).decode() for message in messages]
        body, model, metadata = orjson.dumps(completion).decode(), completion.get("model"), completion.get("metadata")
        change = {
            "$set": {"body": body, "model": model, "tags": pairs(metadata), "metadata": None},
            "$push": {"messages": {"$each": bodies}},
            "$inc": {"count": len(bodies)},
            "$setOnInsert": {"owner": owner, "seq": sequence(completion["created"]), "title": title},
        }
        if self.max_age_days is not None:
            await self._ask(self._chats.delete_one({**key, "seq": {"$lt": self._first()}}))
        await self._ask(self._chats.update_one(key, change, upsert=True))

    async def get(self, owner: str, id: str) -> Document | None:
        return completed(await self._ask(self._chats.find_one(self._one(owner, id), {"messages": 0})))

    async def update(self, owner: str, id: str, metadata: dict[str, str]) -> Document | None:
        change = {"$set": {"metadata": orjson.dumps(metadata).decode(), "tags": pairs(metadata)}}
        one = self._one(owner, id)
        found = self._chats.find_one_and_update(one, change, {"messages": 0}, return_document=True)
        return completed(await self._ask(found))

    async def delete(self, owner: str, id: str) -> bool:
        return (await self._ask(self._chats.delete_one(self._one(owner, id)))).deleted_count == 1

    async def _list(self, owner: str, where: Where, after: str | None, limit: int, up: bool) -> Documents:
        seq = {"$gte": self._first()}
        query: Document = {"owner": owner, "seq": seq}
        model, metadata = where
        if model is not None:
            query["model"] = model
        if metadata:
            query["tags"] = {"$all": pairs(metadata)}
        if after is not None:
            last = await self._ask(self._chats.find_one(self._one(owner, after), {"seq": 1}))
            if last is None:
                raise LookupError("no such completion")
            seq["$gt" if up else "$lt"] = last["seq"]
        rows = self._chats.find(query, {"messages": 0}).sort("seq", 1 if up else -1).limit(limit)
        return [completion for row in await self._ask(rows.to_list()) if (completion := completed(row))]

    async def _count(self, owner: str, id: str) -> int | None:
        found = await self._ask(self._chats.find_one(self._one(owner, id), {"count": 1}))
        return int(found["count"]) if found else None

    async def _bodies(self, owner: str, id: str, start: int, count: int) -> Bodies:
        part = {"count": 1, "messages": {"$slice": [start, count]}}
        found = await self._ask(self._chats.find_one(self._one(owner, id), part))
        return list(found["messages"]) if found else []

    def _one(self, owner: str, id: str) -> Document:
        return {"_id": orjson.dumps([owner, id]).decode(), "seq": {"$gte": self._first()}}

    def _first(self) -> Any:
        """The least `seq` that is not too old."""
        return sequence(self._oldest(), bytes(8))

    async def _sweep(self) -> bool:
        if self._indexes:
            await self._ask(self._chats.create_indexes(self._indexes))
            self._indexes = []
        if self.max_age_days is None:
            return False
        old = self._chats.find({"seq": {"$lt": self._first()}}, {"_id": 1}).limit(SWEEP_BATCH).to_list()
        ids = [row["_id"] for row in await self._ask(old)]
        if ids:
            await self._ask(self._chats.delete_many({"_id": {"$in": ids}}))
        return bool(ids)


def sequence(created: int, rest: bytes | None = None) -> Any:
    """An ObjectId of that second; by default after all others that this process made in it."""
    from bson import ObjectId

    return ObjectId(created.to_bytes(4, "big") + (rest or ObjectId().binary[4:]))


def pairs(metadata: dict[str, str] | None) -> list[str]:
    return [orjson.dumps(pair).decode() for pair in (metadata or {}).items()]


def completed(row: Document | None) -> Document | None:
    if row is None:
        return None
    title = {} if row["title"] is None else {"title": row["title"]}
    updated = {} if row["metadata"] is None else {"metadata": orjson.loads(row["metadata"])}
    return {**orjson.loads(row["body"]), **title, **updated}
