"""Where completions are stored: SQLite on one machine, MongoDB for several."""

import sqlite3
from contextlib import closing, suppress

from rewrap.storage.base import Store
from rewrap.storage.sqlite import SCHEMA_VERSION, SQLiteStore, newer, schema, uri

IN_MEMORY = ("sqlite://", "sqlite:///", "sqlite:///:memory:")
FORMS = "sqlite:///file.db, sqlite:////path/file.db, sqlite:// or mongodb://..."


def open_store(url: str, max_age_days: float = 0.0, *, shared: bool = False) -> Store:
    """The store at sqlite:///relative.db, sqlite:////absolute.db, sqlite:// (memory) or mongodb://host/database.

    Completions older than `max_age_days` are deleted; 0: never. `shared`: several processes use it. Connects when it is first
    used. Raises ValueError, also if a newer version made the file: one line, without the URL, which may hold a password.
    """
    if url in IN_MEMORY:
        if shared:
            raise ValueError(
                "STORE_URL: WORKERS do not share a store in memory: name a file, sqlite:///chat.db"
            )
        return SQLiteStore("", max_age_days or None)
    if url.startswith("sqlite:///") and "?" not in url:
        path = url.removeprefix("sqlite:///")
        # A file that does not exist yet, or cannot be read now, does not stop the start.
        with suppress(sqlite3.Error, OSError), closing(sqlite3.connect(uri(path), uri=True)) as db:
            version = schema(db)
            if version > SCHEMA_VERSION:
                raise ValueError(f"STORE_URL: {newer(version)}")
        return SQLiteStore(path, max_age_days or None)
    if url.startswith(("mongodb://", "mongodb+srv://")):
        from rewrap.storage.mongo import MongoStore

        return MongoStore(url, max_age_days or None)
    raise ValueError(f"STORE_URL: The store's URL must be {FORMS}")
