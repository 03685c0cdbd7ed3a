"""Where completions are stored: SQLite or MongoDB."""

import sqlite3
from contextlib import closing, suppress

from rewrap.storage.base import Store
from rewrap.storage.mongo import MongoStore
from rewrap.storage.sqlite import SCHEMA_VERSION, SQLiteStore, newer, schema, uri


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
    raise ValueError(
        "The store's URL must be sqlite:///file.db, sqlite:////path/file.db, sqlite:// or mongodb://..."
    )
