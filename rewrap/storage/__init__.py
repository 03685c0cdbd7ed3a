"""The store of chat completions and responses: SQLite on one machine, MongoDB for several."""

import os

from rewrap.storage.base import Store
from rewrap.storage.sqlite import SQLiteStore

MEMORY_URLS = ("sqlite://", "sqlite:///", "sqlite:///:memory:")
NOT_A_STORE = (
    "STORE_URL must be sqlite:///file.db, sqlite:////path/file.db, sqlite:// or mongodb://..."
)
MEMORY_IS_NOT_SHARED = (
    "STORE_URL: several WORKERS cannot share a store in memory: name a file, sqlite:///chat.db"
)


def open_store(url: str, max_age_days: float = 0.0, *, shared: bool = False) -> Store:
    """The store at a URL. It connects when it is first used.

    The URL is sqlite:///relative.db, sqlite:////absolute.db, sqlite:// (memory) or
    mongodb://host/database. Items older than `max_age_days` are deleted; 0: never. `shared` means
    that several processes use the store. Raises ValueError, also for a file of a newer version: one
    line without the URL, which may contain a password.
    """
    if url in MEMORY_URLS:
        if shared:
            raise ValueError(MEMORY_IS_NOT_SHARED)
        return SQLiteStore("", max_age_days)
    if url.startswith("sqlite:///") and "?" not in url:
        path = url.removeprefix("sqlite:///")
        if os.path.exists(path):
            from rewrap.storage.sqlite_connection import check_schema

            check_schema(path)
        return SQLiteStore(path, max_age_days)
    if url.startswith(("mongodb://", "mongodb+srv://")):
        from rewrap.storage.mongo import MongoStore

        return MongoStore(url, max_age_days)
    raise ValueError(NOT_A_STORE)
