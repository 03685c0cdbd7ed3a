"""The store in MongoDB, which several machines can share. Imports the interface of stores alone."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

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
from rewrap.types import JSONObject

if TYPE_CHECKING:
    from bson import ObjectId
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.asynchronous.cursor import AsyncCursor

log = logging.getLogger("rewrap")

T = TypeVar("T")
RESPONSE = "response"
LISTS = ("owner seq", "owner model seq", "owner tags seq", "owner model tags seq", "seq")
TIMEOUTS = {
    "serverSelectionTimeoutMS": 2_000,
    "connectTimeoutMS": 2_000,
    "socketTimeoutMS": 5_000,
}
WRITE_TIMEOUT_MS = 4_000
COLLECTION = "completions"
DOWN = "The store cannot be used now."
NO_PACKAGE = "STORE_URL: a mongodb:// store needs a package: pip install pymongo"
INVALID_URL = "STORE_URL: the mongodb:// URL is not valid"


class MongoStore(Store):
    """One document for each chat, so that each write is atomic. MongoDB allows 16 MB for it.

    A completion is {"_id": JSON of [owner, id], "owner", "seq": an ObjectId whose first 4 bytes are
    `created`, "model", "tags": the pairs of the metadata as JSON, "title", "body": JSON without the
    title and the metadata, "metadata": JSON, "messages": [JSON], "count", "version"}. In documents
    without a version the body has the metadata, and "metadata" is null until they change.

    A response is {"_id": JSON of [owner, id, "response"], "seq", "body"}. No list walks over it,
    because it has no "owner".
    """

    def __init__(self, url: str, max_age_days: float) -> None:
        """Raises ValueError."""
        super().__init__(max_age_days)
        try:
            from bson.errors import BSONError
            from pymongo import IndexModel
            from pymongo.errors import PyMongoError
        except ImportError:
            raise ValueError(NO_PACKAGE) from None
        self.errors = (PyMongoError, BSONError)
        self.requests: set[asyncio.Task[object]] = set()
        self.observe: Observer | None = None
        self.url = url
        try:
            self.connect()
        except (*self.errors, ValueError, TypeError):  # their texts may repeat a password
            raise ValueError(INVALID_URL) from None
        self.missing_indexes = [IndexModel(names.split()) for names in LISTS]

    def connect(self) -> None:
        """Make a client, which connects when it is used.

        It cannot be used in another event loop, nor after it was closed.
        """
        from pymongo import AsyncMongoClient, WriteConcern
        from pymongo.read_concern import ReadConcern

        self.loop: asyncio.AbstractEventLoop | None = None
        options: dict[str, Any] = {**TIMEOUTS}
        self.client: AsyncMongoClient[JSONObject] = AsyncMongoClient(self.url, **options)
        database = self.client.get_default_database("rewrap")
        self.collection = database.get_collection(
            COLLECTION,
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern("majority", wtimeout=WRITE_TIMEOUT_MS, j=True),
        )

    @property
    def chats(self) -> "AsyncCollection[JSONObject]":
        loop = asyncio.get_running_loop()
        if self.loop is not loop:
            if self.loop:
                self.connect()
            self.loop = loop
        return self.collection

    async def open(self) -> None:
        with suppress(StoreDown):  # the upkeep tries again
            await self.sweep()
        await super().open()

    async def close(self) -> None:
        await super().close()
        await asyncio.gather(*self.requests, return_exceptions=True)
        client = self.client
        self.connect()
        await client.close()

    async def request(self, answer: Coroutine[object, object, T]) -> T:
        """The answer of MongoDB. Raises StoreDown."""
        started = time.perf_counter()
        failed = False
        task = asyncio.create_task(answer)
        self.requests.add(task)
        task.add_done_callback(self.requests.discard)
        try:
            # If pymongo is cancelled, it gives up its connection, and may leak the socket.
            return await asyncio.shield(task)
        except self.errors as exc:
            failed = True
            log.warning("store failed: %.300r", exc)
            raise StoreDown(DOWN) from exc
        finally:
            if self.observe is not None:
                self.observe(time.perf_counter() - started, failed)

    def observe_with(self, observe: Observer) -> None:
        self.observe = observe

    async def find_one(self, query: JSONObject, members: JSONObject) -> JSONObject | None:
        """These members of the document that a query finds."""
        return await self.request(self.chats.find_one(query, members))

    async def ping(self) -> None:
        await self.request(self.chats.database.command("ping"))

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
        id = completion["id"]
        bodies = [message_body(message).decode() for message in messages]
        metadata = completion.get("metadata")
        if continues and metadata is None:
            metadata = await self.metadata(owner, id)
        rest = {name: value for name, value in completion.items() if name != "metadata"}
        change = {
            "$set": {
                "body": orjson.dumps(rest).decode(),
                "model": completion.get("model"),
                "version": 2,
            }
            | metadata_members(metadata),
            "$push": {"messages": {"$each": bodies}},
            "$inc": {"count": len(bodies)},
            "$setOnInsert": {
                "owner": owner,
                "seq": sequence(completion["created"]),
                "title": title,
            },
        }
        key = {"_id": key_of(owner, id)}
        if self.max_age_days:
            old = key | {"seq": {"$lt": self.first_seq()}}
            await self.request(self.chats.delete_one(old))
        result = await self.request(self.chats.update_one(key, change, upsert=not continues))
        if continues and not result.matched_count:
            raise LookupError("no such completion")

    async def metadata(self, owner: str, id: str) -> Mapping[str, str] | None:
        """The metadata of a completion. Raises LookupError."""
        row = await self.find_one(self.one(owner, id), {"metadata": 1})
        if row is None:
            raise LookupError("no such completion")
        text = row["metadata"]
        if text is None:  # of the first version: in the body
            text = await self.get(owner, id) or b"{}"
            text = orjson.dumps(orjson.loads(text).get("metadata"))
        metadata: Mapping[str, str] | None = orjson.loads(text)
        return metadata

    async def get(self, owner: str, id: str) -> bytes | None:
        row = await self.find_one(self.one(owner, id), {"messages": 0})
        if row is None:
            return None
        return document_of(row)

    async def update(self, owner: str, id: str, metadata: Mapping[str, str]) -> bytes | None:
        found = self.chats.find_one_and_update(
            self.one(owner, id),
            {"$set": metadata_members(metadata)},
            {"messages": 0},
            return_document=True,
        )
        row = await self.request(found)
        if row is None:
            return None
        return document_of(row)

    async def delete(self, owner: str, id: str) -> bool:
        result = await self.request(self.chats.delete_one(self.one(owner, id)))
        return result.deleted_count == 1

    async def find_page(
        self, owner: str, wanted: Filter, after: str | None, limit: int, up: bool
    ) -> Page:
        direction = 1 if up else -1
        seq = {"$gte": self.first_seq()}
        query: JSONObject = {"owner": owner, "seq": seq}
        if wanted.model is not None:
            query["model"] = wanted.model
        if wanted.metadata:
            query["tags"] = {"$all": tag_list(wanted.metadata)}
        if after is not None:
            last = await self.find_one(self.one(owner, after), {"seq": 1})
            if last is None:
                raise LookupError("no such completion")
            seq["$gt" if up else "$lt"] = last["seq"]
        rows = self.chats.find(query, {"messages": 0})
        rows = rows.sort("seq", direction).limit(limit + 1)
        return await self.request(read_page(rows, limit))

    # Messages.

    async def count_messages(self, owner: str, id: str) -> int | None:
        row = await self.find_one(self.one(owner, id), {"count": 1})
        if row is None:
            return None
        return int(row["count"])

    async def message_bodies(self, owner: str, id: str, numbers: range) -> Sequence[bytes]:
        part = {"count": 1, "messages": {"$slice": [min(numbers), len(numbers)]}}
        row = await self.find_one(self.one(owner, id), part)
        if row is None:
            return []
        bodies = row["messages"][:: numbers.step]
        return utf8_texts(bodies[: fitting(map(len, bodies), len(bodies))])

    async def history(self, owner: str, id: str, max_bytes: int) -> Sequence[bytes] | None:
        row = await self.find_one(self.one(owner, id), {"messages": 1})
        if row is None:
            return None
        bodies = utf8_texts(row["messages"])
        if sum(map(len, bodies)) > max_bytes:
            raise HistoryTooLarge
        return bodies

    # Responses.

    async def put_response(self, owner: str, id: str, document: bytes, created: int) -> None:
        key = {"_id": key_of(owner, id, RESPONSE)}
        row = {"seq": sequence(created), "body": document.decode()}
        await self.request(self.chats.replace_one(key, row, upsert=True))

    async def get_response(self, owner: str, id: str) -> bytes | None:
        row = await self.find_one(self.one(owner, id, RESPONSE), {"body": 1})
        if row is None:
            return None
        body: str = row["body"]
        return body.encode()

    async def delete_response(self, owner: str, id: str) -> bool:
        query = self.one(owner, id, RESPONSE)
        result = await self.request(self.chats.delete_one(query))
        return result.deleted_count == 1

    # Age.

    def one(self, owner: str, id: str, *kind: str) -> JSONObject:
        """The query for one document that is not too old."""
        return {"_id": key_of(owner, id, *kind), "seq": {"$gte": self.first_seq()}}

    def first_seq(self) -> "ObjectId":
        """The least `seq` that is not too old."""
        return sequence(self.oldest(), bytes(8))

    async def sweep(self) -> bool:
        if self.missing_indexes:
            await self.request(self.chats.create_indexes(self.missing_indexes))
            self.missing_indexes = []
        if not self.max_age_days:
            return False
        too_old = {"seq": {"$lt": self.first_seq()}}
        rows = self.chats.find(too_old, {"_id": 1}).limit(SWEEP_BATCH)
        ids = [row["_id"] for row in await self.request(rows.to_list())]
        if ids:
            await self.request(self.chats.delete_many({"_id": {"$in": ids}}))
        return bool(ids)


async def read_page(rows: "AsyncCursor[JSONObject]", limit: int) -> Page:
    """The rows that fit on a page. The cursor has one more row than `limit`, if there is one."""
    ids: list[str] = []
    items: list[bytes] = []
    size = 0
    async with rows:
        async for row in rows:
            item = document_of(row)
            size += len(item)
            if is_full(len(items), size, limit):
                return Page(ids, items, has_more=True)
            ids.append(orjson.loads(row["_id"])[1])
            items.append(item)
    return Page(ids, items, has_more=False)


def document_of(row: JSONObject) -> bytes:
    """The JSON of a completion."""
    body: bytes = row["body"].encode()
    metadata: bytes = (row["metadata"] or "").encode()
    if "version" in row:
        return with_members(body, row["title"], metadata)
    completion = orjson.loads(body)
    if metadata:
        completion["metadata"] = orjson.loads(metadata)
    return with_members(orjson.dumps(completion), row["title"], b"")


def key_of(owner: str, id: str, *kind: str) -> str:
    return orjson.dumps([owner, id, *kind]).decode()


def sequence(created: int, rest: bytes | None = None) -> "ObjectId":
    """An ObjectId of that second. By default it is after all others that this process has made."""
    from bson import ObjectId

    if rest is None:
        rest = ObjectId().binary[4:]
    return ObjectId(created.to_bytes(4, "big") + rest)


def metadata_members(metadata: Mapping[str, str] | None) -> JSONObject:
    """The members of a document that depend on the metadata."""
    if metadata is None:
        return {"metadata": None, "tags": []}
    return {"metadata": orjson.dumps(metadata).decode(), "tags": tag_list(metadata)}


def tag_list(metadata: Mapping[str, str]) -> list[str]:
    return [orjson.dumps(pair).decode() for pair in metadata.items()]


def utf8_texts(texts: Iterable[str]) -> list[bytes]:
    return [text.encode() for text in texts]
