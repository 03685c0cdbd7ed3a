"""Stored completions in MongoDB."""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
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
    from pymongo.asynchronous.collection import AsyncCollection

log = logging.getLogger("rewrap")

MONGO_TIMEOUTS: Any = {
    "serverSelectionTimeoutMS": 2_000,
    "connectTimeoutMS": 2_000,
    "socketTimeoutMS": 5_000,
}


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
        self._client: pymongo.AsyncMongoClient[Document] = pymongo.AsyncMongoClient(
            self._url, **MONGO_TIMEOUTS
        )
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
            return await asyncio.shield(
                task
            )  # pymongo, cancelled, gives up its connection, and may leak the socket
        except self._errors as exc:
            log.warning("store failed: %.300r", exc)
            raise StoreDown("The store cannot be used now.") from exc

    async def put(
        self, completion: Document, messages: Documents, *, owner: str, title: str | None = None
    ) -> None:
        key = {"_id": orjson.dumps([owner, completion["id"]]).decode()}
        bodies = [orjson.dumps({**BLANK_MESSAGE, **message}).decode() for message in messages]
        body, model, metadata = (
            orjson.dumps(completion).decode(),
            completion.get("model"),
            completion.get("metadata"),
        )
        change = {
            "$set": {"body": body, "model": model, "tags": pairs(metadata), "metadata": None},
            "$push": {"messages": {"$each": bodies}},
            "$inc": {"count": len(bodies)},
            "$setOnInsert": {
                "owner": owner,
                "seq": sequence(completion["created"]),
                "title": title,
            },
        }
        if self.max_age_days is not None:
            await self._ask(self._chats.delete_one({**key, "seq": {"$lt": self._first()}}))
        await self._ask(self._chats.update_one(key, change, upsert=True))

    async def get(self, owner: str, id: str) -> Document | None:
        return completed(
            await self._ask(self._chats.find_one(self._one(owner, id), {"messages": 0}))
        )

    async def update(self, owner: str, id: str, metadata: dict[str, str]) -> Document | None:
        change = {"$set": {"metadata": orjson.dumps(metadata).decode(), "tags": pairs(metadata)}}
        one = self._one(owner, id)
        found = self._chats.find_one_and_update(one, change, {"messages": 0}, return_document=True)
        return completed(await self._ask(found))

    async def delete(self, owner: str, id: str) -> bool:
        return (await self._ask(self._chats.delete_one(self._one(owner, id)))).deleted_count == 1

    async def _list(
        self, owner: str, where: Where, after: str | None, limit: int, up: bool
    ) -> Documents:
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
        return [
            completion for row in await self._ask(rows.to_list()) if (completion := completed(row))
        ]

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
        old = (
            self._chats.find({"seq": {"$lt": self._first()}}, {"_id": 1})
            .limit(SWEEP_BATCH)
            .to_list()
        )
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
