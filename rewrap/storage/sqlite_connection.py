"""Connections to SQLite, and the schema: the tables of completions, of the tags of their lists, and of messages.

The only module that imports sqlite3. It is imported when it is first needed: a server that stores nothing saves 1.4 MB.
"""

import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

FAILURES = (sqlite3.Error, OSError)  # of a store that cannot be used
BUSY_SECONDS = 3.0  # how long SQLite waits for the writers of other processes
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


def connect(path: str) -> sqlite3.Connection:
    """A connection to the file, or to memory if `path` is empty. Makes the file and its tables."""
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


def migrate(db: sqlite3.Connection) -> None:
    """Bring the tables to this schema. Raises sqlite3.DatabaseError if they have a newer one."""
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


def schema(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def newer_schema(version: int) -> str:
    return f"The store has schema {version}, but this version knows {SCHEMA_VERSION} at most."


def switch_to_wal(db: sqlite3.Connection) -> None:
    """Several processes may do this at once, and SQLite's own time-out does not cover it."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def check_schema(path: str) -> None:
    """Raises ValueError if a newer version made the file. A file that cannot be read passes."""
    version = 0
    with suppress(*FAILURES):
        with closing(sqlite3.connect(existing_uri(path), uri=True)) as db:
            version = schema(db)
    if version > SCHEMA_VERSION:
        raise ValueError(f"STORE_URL: {newer_schema(version)}")
