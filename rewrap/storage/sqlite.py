"""The store in SQLite: one file for the processes of one machine, or memory for one process.

A write that has returned is on the disk. Imports the interface of stores and leaf files.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import orjson

from rewrap.storage.base import (
    SWEEP_BATCH,
    Filter,
    HistoryTooLarge,
    Observer,
    Page,
    Store,
    StoreDown,
    fitting,
    is_full,
    message_body,
    with_members,
)
from rewrap.storage.sqlite_worker import Database, DatabaseFile, SQLiteWorker
from rewrap.structs import struct
from rewrap.types import JSONObject

COMPLETION = "completion"
RESPONSE = "response"
Tag = tuple[str, str]
SEQ_BITS = 24  # of a row within its second
MAX_SEQ = 2**63 - 1
MAX_COUNTED = 300  # rows of a filter that are counted to compare it with others


class RowKey(NamedTuple):
    """The owner and the id of a row, and its kind."""

    owner: str
    id: str
    kind: str = COMPLETION


class SQLiteStore(Store):
    """`seq` orders the lists: `created` in the upper bits, a count in that second in the lower."""

    def __init__(self, path: str, max_age_days: float) -> None:
        super().__init__(max_age_days)
        self.path = path
        self.file = DatabaseFile(path)
        self.writer = SQLiteWorker(self.file, "BEGIN IMMEDIATE")
        self.reader = SQLiteWorker(self.file, "BEGIN") if path else self.writer

    async def open(self) -> None:
        if self.path and self.file.exists():  # memory is opened by its first use
            with suppress(StoreDown):
                await self.reader.run(lambda db: None)
        await super().open()

    async def close(self) -> None:
        await super().close()
        await self.reader.close()
        await self.writer.close()
        self.file.forget()

    def observe_with(self, observe: Observer) -> None:
        self.reader.observe = observe
        self.writer.observe = observe

    async def ping(self) -> None:
        if self.file.is_to_be_made():
            self.file.check_folder()
        else:
            await self.reader.run(lambda db: db.execute("SELECT 1").fetchone())

    # Completions.

    async def put(
        self,
        completion: JSONObject,
        messages: Sequence[JSONObject],
        *,
        owner: str,
        title: str | None = None,
        continues: bool = False,
    ) -> None:
        key = RowKey(owner, completion["id"])

        def work(db: Database) -> None:
            row = row_of(completion, title)
            old = find_row(db, key)
            if old is not None and old.seq < self.first_seq():
                drop(db, key)
                old = None
            if old is None:
                if continues:
                    raise LookupError("no such completion")
                row.seq = vacant_seq(db, completion["created"])
            else:
                remove_tags(db, owner, old)
                row.seq = old.seq
                row.title = old.title
                if continues and not row.metadata:
                    row.metadata = old.metadata
            write(db, key, row)
            add_messages(db, row.seq, messages)

        await self.writer.run(work)

    async def get(self, owner: str, id: str) -> bytes | None:
        row = await self.find(RowKey(owner, id))
        if row is None:
            return None
        return row.document()

    async def update(self, owner: str, id: str, metadata: Mapping[str, str]) -> bytes | None:
        key = RowKey(owner, id)

        def work(db: Database) -> bytes | None:
            row = find_row(db, key, self.first_seq())
            if row is None:
                return None
            remove_tags(db, owner, row)
            row.metadata = orjson.dumps(metadata)
            write(db, key, row)
            return row.document()

        return await self.writer.run(work)

    async def delete(self, owner: str, id: str) -> bool:
        return await self.drop(RowKey(owner, id))

    async def find_page(
        self, owner: str, wanted: Filter, after: str | None, limit: int, up: bool
    ) -> Page:
        def work(db: Database) -> Page:
            low = self.first_seq()
            high = MAX_SEQ
            if after is not None:
                seq = find_seq(db, RowKey(owner, after), low)
                if seq is None:
                    raise LookupError("no such completion")
                if up:
                    low = seq + 1
                else:
                    high = seq - 1
            lead, *others = rarest_first(db, owner, tags(wanted.model, wanted.metadata))
            values: list[object] = [owner, *lead, low, high]
            for tag in others:
                values += [owner, *tag]
            values.append(limit + 1)
            found = db.execute(listing_sql(len(others), up), values).fetchall()
            count = fitting([size for _, _, size in found], limit)
            rows = found[:count]
            items = [row_at(db, seq).document() for seq, _, _ in rows]
            return Page([id for _, id, _ in rows], items, count < len(found))

        return await self.reader.run(work)

    # Messages.

    async def count_messages(self, owner: str, id: str) -> int | None:
        def work(db: Database) -> int | None:
            seq = find_seq(db, RowKey(owner, id), self.first_seq())
            if seq is None:
                return None
            return next_number(db, seq)

        return await self.reader.run(work)

    async def message_bodies(self, owner: str, id: str, numbers: range) -> Sequence[bytes]:
        order = "ASC" if numbers.step > 0 else "DESC"
        sql = f"SELECT body FROM message WHERE seq = ? AND n BETWEEN ? AND ? ORDER BY n {order}"

        def work(db: Database) -> list[bytes]:
            seq = find_seq(db, RowKey(owner, id), self.first_seq())
            bodies: list[bytes] = []
            total = 0
            for (body,) in db.execute(sql, (seq, min(numbers), max(numbers))):
                total += len(body)
                if is_full(len(bodies), total, len(numbers)):
                    break
                bodies.append(body)
            return bodies

        return await self.reader.run(work)

    async def history(self, owner: str, id: str, max_bytes: int) -> Sequence[bytes] | None:
        def work(db: Database) -> list[bytes] | None:
            seq = find_seq(db, RowKey(owner, id), self.first_seq())
            if seq is None:
                return None
            sql = "SELECT ifnull(sum(length(body)), 0) FROM message WHERE seq = ?"
            if first_column(db, sql, (seq,)) > max_bytes:
                raise HistoryTooLarge
            rows = db.execute("SELECT body FROM message WHERE seq = ? ORDER BY n", (seq,))
            return [body for (body,) in rows]

        return await self.reader.run(work)

    # Responses.

    async def put_response(self, owner: str, id: str, document: bytes, created: int) -> None:
        key = RowKey(owner, id, RESPONSE)

        def work(db: Database) -> None:
            drop(db, key)
            seq = vacant_seq(db, created)
            write(db, key, StoredRow(document, seq=seq))

        await self.writer.run(work)

    async def get_response(self, owner: str, id: str) -> bytes | None:
        row = await self.find(RowKey(owner, id, RESPONSE))
        if row is None:
            return None
        return row.body

    async def delete_response(self, owner: str, id: str) -> bool:
        return await self.drop(RowKey(owner, id, RESPONSE))

    # Both kinds.

    async def find(self, key: RowKey) -> "StoredRow | None":
        first = self.first_seq()
        return await self.reader.run(lambda db: find_row(db, key, first))

    async def drop(self, key: RowKey) -> bool:
        first = self.first_seq()
        return await self.writer.run(lambda db: drop(db, key, first))

    def first_seq(self) -> int:
        """The least `seq` that is not too old."""
        return self.oldest() << SEQ_BITS

    async def sweep(self) -> bool:
        if not self.max_age_days or not self.file.exists():
            return False

        def work(db: Database) -> bool:
            sql = "SELECT owner, id, kind FROM completion WHERE seq < ? ORDER BY seq LIMIT ?"
            old = db.execute(sql, (self.first_seq(), SWEEP_BATCH)).fetchall()
            for key in old:
                drop(db, RowKey(*key))
            return bool(old)

        return await self.writer.run(work)


# Rows.


@struct(slots=True)
class StoredRow:
    """A completion or a response. `body` is its JSON without the members that have columns."""

    body: bytes
    model: str | None = None
    title: str | None = None
    metadata: bytes = b""  # JSON; empty: the document has no metadata
    seq: int = 0

    def document(self) -> bytes:
        return with_members(self.body, self.title, self.metadata)

    def tags(self) -> set[Tag]:
        """All pairs by which lists find a completion: with and without filters."""
        metadata = orjson.loads(self.metadata or b"{}")
        found = {*tags(None, {}), *tags(self.model, {})}
        return found.union(tags(None, metadata), tags(self.model, metadata))


def row_of(completion: JSONObject, title: str | None) -> StoredRow:
    """The row of a completion, without its place in the lists. Raises TypeError."""
    rest = {name: value for name, value in completion.items() if name != "metadata"}
    row = StoredRow(orjson.dumps(rest), completion.get("model"), title)
    if completion.get("metadata") is not None:
        row.metadata = orjson.dumps(completion["metadata"])
    return row


def read_row(
    seq: int, body: bytes, model: str | None, title: str | None, metadata: bytes | None
) -> StoredRow:
    if metadata is not None:
        return StoredRow(body, model, title, metadata, seq)
    completion = orjson.loads(body)  # of schema 1
    row = row_of(completion, completion.pop("title", None))
    row.seq = seq
    return row


COLUMNS = "seq, body, model, title, metadata"


def find_row(db: Database, key: RowKey, first: int = 0) -> StoredRow | None:
    sql = f"SELECT {COLUMNS} FROM completion WHERE owner = ? AND id = ? AND kind = ? AND seq >= ?"
    found = db.execute(sql, (*key, first)).fetchone()
    if found is None:
        return None
    return read_row(*found)


def row_at(db: Database, seq: int) -> StoredRow:
    sql = f"SELECT {COLUMNS} FROM completion WHERE seq = ?"
    return read_row(*db.execute(sql, (seq,)).fetchone())


def find_seq(db: Database, key: RowKey, first: int) -> int | None:
    sql = "SELECT seq FROM completion WHERE owner = ? AND id = ? AND kind = ? AND seq >= ?"
    found = db.execute(sql, (*key, first)).fetchone()
    if found is None:
        return None
    return int(found[0])


def write(db: Database, key: RowKey, row: StoredRow) -> None:
    """Insert a row, or replace the one with its `seq`. A completion gets the tags of lists."""
    db.execute(
        "INSERT OR REPLACE INTO completion (owner, id, kind, seq, body, model, title, metadata)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*key, row.seq, row.body, row.model, row.title, row.metadata),
    )
    if key.kind == COMPLETION:
        sql = "INSERT INTO metadata (owner, key, value, seq) VALUES (?, ?, ?, ?)"
        db.executemany(sql, tag_rows(key.owner, row))


def add_messages(db: Database, seq: int, messages: Sequence[JSONObject]) -> None:
    """Put messages after those that a completion has. Raises TypeError."""
    sql = "INSERT INTO message (seq, n, body) VALUES (?, ?, ?)"
    numbered = enumerate(messages, next_number(db, seq))
    db.executemany(sql, [(seq, number, message_body(message)) for number, message in numbered])


def remove_tags(db: Database, owner: str, row: StoredRow) -> None:
    sql = "DELETE FROM metadata WHERE owner = ? AND key = ? AND value = ? AND seq = ?"
    db.executemany(sql, tag_rows(owner, row))


def tag_rows(owner: str, row: StoredRow) -> list[tuple[str, str, str, int]]:
    return [(owner, *tag, row.seq) for tag in row.tags()]


def drop(db: Database, key: RowKey, first: int = 0) -> bool:
    """Delete a row with all that belongs to it. False if there is none."""
    row = find_row(db, key, first)
    if row is None:
        return False
    if key.kind == COMPLETION:
        remove_tags(db, key.owner, row)
        db.execute("DELETE FROM message WHERE seq = ?", (row.seq,))
    db.execute("DELETE FROM completion WHERE seq = ?", (row.seq,))
    return True


def vacant_seq(db: Database, created: int) -> int:
    """The next `seq` of that second."""
    low = created << SEQ_BITS
    high = (created + 1 << SEQ_BITS) - 1
    sql = "SELECT ifnull(max(seq) + 1, ?) FROM completion WHERE seq BETWEEN ? AND ?"
    return first_column(db, sql, (low, low, high))


def next_number(db: Database, seq: int) -> int:
    """The number of the next message, which is the number of messages."""
    return first_column(db, "SELECT ifnull(max(n) + 1, 0) FROM message WHERE seq = ?", (seq,))


def first_column(db: Database, sql: str, values: Sequence[object]) -> int:
    return int(db.execute(sql, values).fetchone()[0])


# Lists.


def tags(model: str | None, metadata: Mapping[str, str]) -> list[Tag]:
    """The (key, value) of the rows to look for. The key names the model, too.

    So a filter by model and metadata walks along one index.
    """
    if not metadata:
        return [(tag_key(model, None), "")]
    return [(tag_key(model, key), value) for key, value in metadata.items()]


def tag_key(model: str | None, key: str | None) -> str:
    return orjson.dumps([model, key]).decode()


def rarest_first(db: Database, owner: str, filters: list[Tag]) -> list[Tag]:
    """The filters, and first the one with the fewest rows, so that few rows are read in vain."""
    if len(filters) == 1:
        return filters
    sql = (
        "SELECT count(*) FROM (SELECT 1 FROM metadata"
        f" WHERE owner = ? AND key = ? AND value = ? LIMIT {MAX_COUNTED})"
    )

    def count(tag: Tag) -> int:
        return first_column(db, sql, (owner, *tag))

    return sorted(filters, key=count)


def listing_sql(others: int, up: bool) -> str:
    """SQL that walks along the rows of the first filter, and looks the others up in the same index.

    It gives (seq, id, bytes of the body).
    """
    other = (
        " AND EXISTS (SELECT 1 FROM metadata"
        " WHERE owner = ? AND key = ? AND value = ? AND seq = lead.seq)"
    )
    return (
        "SELECT lead.seq, completion.id, length(completion.body) FROM metadata AS lead"
        " CROSS JOIN completion ON completion.seq = lead.seq"
        " WHERE lead.owner = ? AND lead.key = ? AND lead.value = ? AND lead.seq BETWEEN ? AND ?"
        f"{other * others} ORDER BY lead.seq {'ASC' if up else 'DESC'} LIMIT ?"
    )
