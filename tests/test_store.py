"""The contract of every store, and the tests of SQLite and of MongoDB alone."""

import asyncio
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
from growth import LINEAR, growth_of
from mongo_wire import MongoWire

from rewrap.storage import base, mongo, open_store, sqlite, sqlite_connection, sqlite_worker
from rewrap.storage.base import HistoryTooLarge, Page, Store, StoreDown
from rewrap.storage.mongo import MongoStore
from rewrap.storage.sqlite import SQLiteStore, listing_sql

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parent.parent
NOTHING = Page([], [], has_more=False)
NUMBER = count()

WRITERS = """
import asyncio, os, sys
from rewrap.storage import open_store

async def write(store, name):
    for n in range(1_000_000):
        id = f"{os.getpid()}-{name}-{n}"
        messages = [{"role": "user", "content": id}, {"role": "assistant", "content": "x" * 1000}]
        await store.put({"id": id, "created": 1000, "model": "m", "metadata": {"k": "v"}}, messages, owner="ann")
        await store.put_response("ann", f"resp {id}", b"{}", 1000)
        print(id, flush=True)

async def main():
    store = open_store(sys.argv[1])
    await asyncio.gather(*(write(store, name) for name in range(8)))

asyncio.run(main())
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoWire]:
    with MongoWire(tmp_path_factory.mktemp("mongo")) as server:
        yield server


@pytest.fixture(params=["sqlite file", "sqlite memory", "mongodb wire"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite memory":
        return "sqlite://"
    if request.param == "sqlite file":
        return f"sqlite:///{tmp_path}/chat.db"
    return str(request.getfixturevalue("wire").url) + f"test{next(NUMBER)}"


@asynccontextmanager
async def opened(url: str, max_age_days: float = 0.0) -> AsyncIterator[Store]:
    store = open_store(url, max_age_days)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def chat(id: str, created: int = 1000, model: str | None = "m", **metadata: str) -> dict[str, Any]:
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "metadata": metadata,
    }


def prompts(*contents: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} for content in contents]


def ids(page: Page | None) -> list[str]:
    assert page is not None
    assert [item["id"] for item in documents(page)] == list(page.ids)
    return list(page.ids)


def documents(page: Page | None) -> list[dict[str, Any]]:
    assert page is not None
    return [orjson.loads(item) for item in page.items]


def contents(page: Page | None) -> list[str]:
    """The texts of a page of messages."""
    return [message["content"] for message in documents(page)]


async def stored(store: Store, owner: str, id: str) -> dict[str, Any] | None:
    """A completion as the store has it."""
    body = await store.get(owner, id)
    return None if body is None else orjson.loads(body)


async def all_ids(store: Store, limit: int, order: str, **filters: Any) -> list[str]:
    """All ids, page by page, as an SDK's auto-paging asks for them."""
    found: list[str] = []
    page = await store.list("ann", limit=limit, order=order, **filters)
    while True:
        found += ids(page)
        if not page.has_more:
            return found
        page = await store.list("ann", limit=limit, order=order, after=found[-1], **filters)


# Every engine


async def test_a_completion_and_its_messages_come_back_unchanged(url: str) -> None:
    completion: dict[str, Any] = {
        "id": "chatcmpl-ü\n1",
        "created": 1_763_000_000,
        "model": "grüße/模型",
        "metadata": {"ключ.$x": "値 \x00 🎈", "": ""},
        "seed": -9007199254740991,
        "big": 2**63,
        "choices": [{"message": {"content": None, "$set": {"a.b": [1.5, True, None]}}}],
    }
    message = {
        "role": "user",
        "content": "🎈\u2028é",
        "name": "Ann",
        "content_parts": [{"type": "text"}],
        "figure": {},
    }
    async with opened(url) as store:
        await store.put(
            completion,
            [message, {"role": "assistant", "content": None}],
            owner="ann",
            title="Títle",
        )
        assert await stored(store, "ann", completion["id"]) == {**completion, "title": "Títle"}
        page = await store.list(
            "ann", model="grüße/模型", metadata={"ключ.$x": "値 \x00 🎈", "": ""}
        )
        assert documents(page) == [{**completion, "title": "Títle"}]
        assert not page.has_more
        blank = {"name": None, "content_parts": None}
        page = await store.messages("ann", completion["id"])
        assert documents(page) == [
            {"id": "chatcmpl-ü\n1-0", **message},
            {"id": "chatcmpl-ü\n1-1", "role": "assistant", "content": None, **blank},
        ]
        assert page
        assert not page.has_more


async def test_a_completion_without_optional_members_comes_back_unchanged(url: str) -> None:
    async with opened(url) as store:
        await store.put({"id": "a", "created": 0}, [], owner="ann")
        assert await stored(store, "ann", "a") == {"id": "a", "created": 0}
        assert await store.messages("ann", "a") == NOTHING
        assert await store.messages("ann", "b") is None


async def test_pages_have_each_of_250_items_once_in_both_orders(url: str) -> None:
    async with opened(url) as store:
        names = [f"c{n}" for n in range(250)]
        for n in range(0, 250, 50):  # three in each second: a tie is decided by insertion
            for name in names[n : n + 50]:
                await store.put(
                    chat(name, int(name[1:]) // 3, parity=str(int(name[1:]) % 2)), [], owner="ann"
                )
        assert await all_ids(store, 100, "asc") == names
        assert await all_ids(store, 37, "desc") == names[::-1]
        assert await all_ids(store, 20, "asc", metadata={"parity": "1"}) == names[1::2]
        assert (
            await all_ids(store, 20, "desc", model="m", metadata={"parity": "0"})
            == names[::2][::-1]
        )


async def test_lists_are_ordered_by_created_not_by_arrival(url: str) -> None:
    async with opened(url) as store:
        for created in (30, 10, 20):
            await store.put(chat(f"c{created}", created), [], owner="ann")
        assert ids(await store.list("ann")) == ["c10", "c20", "c30"]


async def test_messages_are_paged_in_both_orders(url: str) -> None:
    async with opened(url) as store:
        await store.put(chat("c"), prompts(*"abcde"), owner="ann")
        first = await store.messages("ann", "c", limit=2)
        assert (ids(first), first and first.has_more) == (["c-0", "c-1"], True)
        rest = await store.messages("ann", "c", after="c-1", limit=3)
        assert (ids(rest), rest and rest.has_more) == (["c-2", "c-3", "c-4"], False)
        back = await store.messages("ann", "c", after="c-3", limit=2, order="desc")
        assert contents(back) == ["c", "b"]
        assert back
        assert back.has_more
        assert await store.messages("ann", "c", after="c-4") == NOTHING
        assert await store.messages("ann", "c", limit=0) == Page([], [], has_more=True)


async def test_filters_can_be_combined(url: str) -> None:
    async with opened(url) as store:
        await store.put(chat("a", 1, "m1", x="1", y="1"), [], owner="ann")
        await store.put(chat("b", 2, "m2", x="1", y="2"), [], owner="ann")
        await store.put(chat("c", 3, "m1", x="1", y="2"), [], owner="ann")
        await store.put(chat("d", 4, None, x="1=y"), [], owner="ann")
        for filters, expected in (
            ({"model": "m1"}, ["a", "c"]),
            ({"metadata": {"x": "1"}}, ["a", "b", "c"]),
            ({"metadata": {"x": "1", "y": "2"}}, ["b", "c"]),
            ({"model": "m1", "metadata": {"x": "1", "y": "2"}}, ["c"]),
            ({"model": "m2", "metadata": {"y": "1"}}, []),
            ({"metadata": {"x=1": "y"}}, []),
            ({"metadata": {"y": "1", "z": "1"}}, []),
            ({"model": "m1", "metadata": {}}, ["a", "c"]),
            ({}, ["a", "b", "c", "d"]),
        ):
            assert ids(await store.list("ann", **filters)) == expected, filters


async def test_after_may_name_an_item_that_the_filters_exclude(url: str) -> None:
    async with opened(url) as store:
        for n in range(6):
            await store.put(chat(f"c{n}", n, x=str(n % 2)), [], owner="ann")
        assert ids(await store.list("ann", after="c2", metadata={"x": "1"})) == ["c3", "c5"]
        assert ids(await store.list("ann", after="c2", metadata={"x": "1"}, order="desc")) == ["c1"]


async def test_an_unknown_after_raises_lookup_error(url: str) -> None:
    async with opened(url) as store:
        await store.put(chat("c"), prompts("a"), owner="ann")
        await store.put(chat("b"), prompts("a"), owner="bob")
        for after in ("x", "b", ""):
            with pytest.raises(LookupError):
                await store.list("ann", after=after)
        for after in ("c-1", "c", "c--1", "c-00", "b-0", ""):
            with pytest.raises(LookupError):
                await store.messages("ann", "c", after=after)


async def test_has_more_is_exact(url: str) -> None:
    async with opened(url) as store:
        assert await store.list("ann", limit=0) == NOTHING
        for n in range(4):
            await store.put(chat(f"c{n}", n, x=str(n // 2)), [], owner="ann")
        for limit, has_more in ((-1, True), (0, True), (3, True), (4, False), (10**30, False)):
            page = await store.list("ann", limit=limit)
            assert (len(page.items), page.has_more) == (max(0, min(limit, 4)), has_more)
        assert not (await store.list("ann", limit=2, metadata={"x": "0"})).has_more
        assert (await store.list("ann", limit=1, metadata={"x": "0"})).has_more


async def test_a_page_has_at_most_max_limit_items(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_LIMIT", 2)
    async with opened(url) as store:
        for n in range(3):
            await store.put(chat(f"c{n}", n), prompts("a", "b", "c"), owner="ann")
        messages = await store.messages("ann", "c0", limit=10**9)
        for page in (await store.list("ann", limit=10**9), messages):
            assert page
            assert len(page.items) == 2
            assert page.has_more


async def test_a_page_ends_before_it_has_too_many_bytes(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_PAGE_BYTES", 1000)
    sizes = [100, 300, 2000, 400, 10, 900, 5000]
    async with opened(url) as store:
        for n, size in enumerate(sizes):
            completion = chat(f"c{n}", n) | {"text": "x" * size}
            await store.put(completion, prompts(*["x" * size for size in sizes]), owner="ann")
        for order in ("asc", "desc"):
            pages: list[Page] = []
            texts: list[Page] = []
            while not pages or pages[-1].has_more:
                after = pages[-1].ids[-1] if pages else None
                pages.append(await store.list("ann", limit=4, order=order, after=after))
                assert pages[-1].ids
            while not texts or texts[-1].has_more:
                after = texts[-1].ids[-1] if texts else None
                page = await store.messages("ann", "c0", limit=4, order=order, after=after)
                assert page
                assert page.ids
                texts.append(page)
            for found, name in ((pages, "c"), (texts, "c0-")):
                every = [id for page in found for id in page.ids]
                names = [f"{name}{n}" for n in range(len(sizes))]
                assert every == (names if order == "asc" else names[::-1])
                lengths = [sum(map(len, page.items)) for page in found if len(page.items) > 1]
                assert lengths
                assert max(lengths) <= 1000
        assert not (await store.list("ann", limit=0, after="c6")).has_more
        assert (await store.list("ann", limit=0)).has_more


async def test_a_page_of_one_large_item_is_whole(url: str) -> None:
    async with opened(url) as store:
        large = "x" * (base.MAX_PAGE_BYTES + 1)
        for n in range(3):
            await store.put(chat(f"c{n}", n) | {"text": large}, prompts(large, large), owner="ann")
        page = await store.list("ann")
        assert (page.ids, page.has_more) == (["c0"], True)
        page = await store.list("ann", after="c1")
        assert (page.ids, page.has_more) == (["c2"], False)
        messages = await store.messages("ann", "c0")
        assert messages
        assert (list(messages.ids), messages.has_more) == (["c0-0"], True)


async def test_one_message_is_found_by_its_id(url: str) -> None:
    async with opened(url) as store:
        await store.put(chat("c"), prompts("a", "b"), owner="ann")
        found = await store.message("ann", "c", "c-1")
        assert found
        assert orjson.loads(found) == orjson.loads((await all_messages(store, "c")).items[1])
        for wrong in ("c-2", "c", "c-", "c--1", "c-01", "c-٣", "x-1", "c-" + "9" * 30, "-1"):
            assert await store.message("ann", "c", wrong) is None, wrong
        assert await store.message("bob", "c", "c-1") is None
        assert await store.message("ann", "d", "d-0") is None


async def all_messages(store: Store, id: str) -> Page:
    page = await store.messages("ann", id, limit=1000)
    assert page
    return page


async def test_the_history_has_all_messages_or_is_too_large(url: str) -> None:
    async with opened(url) as store:
        await store.put(chat("c"), prompts(*(f"é {n}" for n in range(1500))), owner="ann")
        history = await store.history("ann", "c", 10**9)
        assert history
        texts = [orjson.loads(body)["content"] for body in history]
        assert texts == [f"é {n}" for n in range(1500)]
        size = sum(map(len, history))
        assert await store.history("ann", "c", size) == history
        with pytest.raises(HistoryTooLarge):
            await store.history("ann", "c", size - 1)
        await store.put(chat("d"), [], owner="ann")
        assert await store.history("ann", "d", 0) == []
        assert await store.history("bob", "c", 10**9) is None
        assert await store.history("ann", "e", 10**9) is None


async def test_the_cost_of_pages_and_of_the_history_is_linear(url: str) -> None:
    async with opened(url) as store:

        async def read(size: int) -> None:
            id = f"c{size}"
            after = None
            more = True
            while more:
                page = await store.messages("ann", id, after=after, limit=100)
                assert page
                more = page.has_more
                after = page.ids[-1]
            assert len(await store.history("ann", id, 10**9) or ()) == size

        for size in (1000, 10_000):
            await store.put(chat(f"c{size}"), prompts(*["hello"] * size), owner="ann")
        assert await growth_of(read, 1000) < LINEAR


async def test_a_completion_does_not_exist_for_another_owner(url: str) -> None:
    async with opened(url) as store:
        await store.put(chat("c", x="1"), prompts("secret"), owner="ann")
        await store.put(chat("c", x="2"), prompts("mine"), owner="bob")
        for stranger in ("eve", "an", "ann\n", "", "bob\nc"):
            assert await store.get(stranger, "c") is None
            assert await store.update(stranger, "c", {"x": "0"}) is None
            assert await store.delete(stranger, "c") is False
            assert await store.messages(stranger, "c") is None
            assert await store.list(stranger) == NOTHING
        assert await store.delete("bob", "c") is True
        assert await store.get("bob", "c") is None
        assert await stored(store, "ann", "c") == chat("c", x="1")
        assert contents(await store.messages("ann", "c")) == ["secret"]


async def test_an_update_replaces_the_metadata_that_filters_find(url: str) -> None:
    async with opened(url) as store:
        await store.put(chat("c", x="1", y="1"), prompts("a"), owner="ann", title="t")
        changed = {**chat("c", x="2"), "title": "t"}
        updated = await store.update("ann", "c", {"x": "2"})
        assert updated
        assert orjson.loads(updated) == changed
        assert await stored(store, "ann", "c") == changed
        assert ids(await store.list("ann", model="m", metadata={"x": "2"})) == ["c"]
        assert (
            ids(await store.list("ann", metadata={"x": "1"}))
            == ids(await store.list("ann", metadata={"y": "1"}))
            == []
        )
        assert ids(await store.messages("ann", "c")) == ["c-0"]
        assert await store.update("ann", "nobody", {}) is None


async def test_a_deleted_completion_is_gone_with_its_messages(url: str) -> None:
    async with opened(url) as store:
        await store.put(chat("c", x="1"), prompts("a", "b"), owner="ann")
        assert await store.delete("ann", "c") is True
        assert await store.delete("ann", "c") is False
        assert (await store.get("ann", "c"), await store.messages("ann", "c")) == (None, None)
        assert await store.list("ann", model="m", metadata={"x": "1"}) == NOTHING
        assert await store.list("ann") == NOTHING
        await store.put(chat("c"), prompts("new"), owner="ann")
        assert contents(await store.messages("ann", "c")) == ["new"]


async def test_a_continued_chat_grows_and_keeps_its_place_and_title(url: str) -> None:
    async with opened(url) as store:
        await store.put(
            chat("a", 1, "m1", x="1"), prompts("one", "two"), owner="ann", title="first"
        )
        await store.put(chat("b", 2), [], owner="ann")
        await store.update("ann", "a", {"x": "9"})
        await store.put(chat("a", 3, "m2", x="2"), prompts("three"), owner="ann", title="second")
        assert await stored(store, "ann", "a") == {**chat("a", 3, "m2", x="2"), "title": "first"}
        assert ids(await store.list("ann")) == ["a", "b"]
        assert ids(await store.list("ann", model="m2", metadata={"x": "2"})) == ["a"]
        assert (
            ids(await store.list("ann", model="m1"))
            == ids(await store.list("ann", metadata={"x": "1"}))
            == []
        )
        page = await store.messages("ann", "a")
        assert contents(page) == ["one", "two", "three"]
        assert ids(page) == ["a-0", "a-1", "a-2"]


async def test_a_chat_that_continues_has_to_exist_and_keeps_its_metadata(url: str) -> None:
    async with opened(url) as store:

        async def go_on(id: str, *texts: str, **members: Any) -> None:
            completion = {"id": id, "created": 9, "model": "m2"} | members
            await store.put(completion, prompts(*texts), owner="ann", title="t2", continues=True)

        for members in ({}, {"metadata": {"x": "1"}}):
            with pytest.raises(LookupError):
                await go_on("c", "lost", **members)
        assert await store.get("ann", "c") is None
        await store.put(chat("c", x="1"), prompts("one"), owner="ann", title="t")
        await go_on("c", "two", metadata=None)
        assert await stored(store, "ann", "c") == {
            "id": "c",
            "created": 9,
            "model": "m2",
            "title": "t",
            "metadata": {"x": "1"},
        }
        await store.update("ann", "c", {"x": "2"})
        await go_on("c", "three")
        assert ids(await store.list("ann", model="m2", metadata={"x": "2"})) == ["c"]
        assert ids(await store.list("ann", metadata={"x": "1"})) == []
        await go_on("c", "four", metadata={})
        assert ids(await store.list("ann", metadata={"x": "2"})) == []
        assert contents(await store.messages("ann", "c")) == ["one", "two", "three", "four"]
        await store.delete("ann", "c")
        with pytest.raises(LookupError):
            await go_on("c", "five")
        assert await store.list("ann") == NOTHING


async def test_concurrent_continuations_lose_no_message(url: str) -> None:
    async with opened(url) as store, opened(url) as other:
        stores = [store, store] if url == "sqlite://" else [store, other]
        turns = [
            stores[n % 2].put(chat("c"), prompts(f"{n} asks", f"{n} hears"), owner="ann")
            for n in range(20)
        ]
        await asyncio.gather(*turns)
        page = await stores[1].messages("ann", "c", limit=100)
        assert ids(page) == [f"c-{n}" for n in range(40)]
        texts = contents(page)
        assert sorted(texts[::2]) == sorted(f"{n} asks" for n in range(20))
        assert [text.replace("asks", "hears") for text in texts[::2]] == texts[1::2]


async def test_a_completion_that_is_too_old_does_not_exist(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "SWEEP_SECONDS", 1_000.0)
    now = int(time.time())
    async with opened(url, max_age_days=1) as store:
        await store.put(
            chat("new", now - 80_000), [], owner="ann"
        )  # the first sweep has nothing to find
        await asyncio.sleep(0.05)
        await store.put(chat("old", now - 90_000, x="1"), prompts("lost"), owner="ann", title="old")
        assert ids(await store.list("ann")) == ["new"]
        assert ids(await store.list("ann", order="desc", model="m")) == ["new"]
        assert (await store.get("ann", "old"), await store.messages("ann", "old")) == (None, None)
        assert await store.update("ann", "old", {}) is None
        assert await store.delete("ann", "old") is False
        with pytest.raises(LookupError):
            await store.list("ann", after="old")
        await store.put(chat("old", now), prompts("again"), owner="ann", title="new")
        assert await stored(store, "ann", "old") == {**chat("old", now), "title": "new"}
        assert contents(await store.messages("ann", "old")) == ["again"]


async def test_old_completions_are_deleted_in_batches(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "SWEEP_SECONDS", 0.05)
    for engine in (sqlite, mongo):
        monkeypatch.setattr(engine, "SWEEP_BATCH", 3)
    async with opened(url, max_age_days=1) as store:
        await store.put(chat("new", int(time.time())), prompts("kept"), owner="ann")
        for n in range(10):
            await store.put(chat(f"c{n}", n, x="1"), prompts("a"), owner="ann")
        async with asyncio.timeout(5):
            while await remaining(store) != 1:
                await asyncio.sleep(0.05)
        assert ids(await store.messages("ann", "new")) == ["new-0"]


async def remaining(store: Store) -> int:
    """How many completions lie in the store, too old or not; in SQLite no other table may hold more."""
    if isinstance(store, SQLiteStore):

        def count_all(db: sqlite3.Connection) -> int:
            counts = [
                db.execute(f"SELECT count(DISTINCT seq) FROM {table}").fetchone()[0]
                for table in TABLES
            ]
            return int(max(counts))

        return await store.writer.run(count_all)
    assert isinstance(store, MongoStore)
    return await store.chats.count_documents({})


TABLES = ("completion", "metadata", "message")


async def test_a_put_that_fails_does_not_undo_the_others(url: str) -> None:
    async with opened(url) as store:
        good = [store.put(chat(f"c{n}"), prompts("a"), owner="ann") for n in range(8)]
        bad = store.put(chat("bad"), [{"role": "user", "content": object()}], owner="ann")
        *kept, failed = await asyncio.gather(*good, bad, return_exceptions=True)
        assert kept == [None] * 8
        assert isinstance(failed, TypeError)
        assert await store.get("ann", "bad") is None
        assert len((await store.list("ann")).items) == 8


async def test_a_cancelled_caller_does_not_break_the_store(url: str) -> None:
    async with opened(url) as store:
        for _ in range(5):
            tasks = [
                asyncio.create_task(store.put(chat(f"x{n}"), prompts("a"), owner="ann"))
                for n in range(20)
            ]
            await asyncio.sleep(0.001)
            for task in tasks[::2]:
                task.cancel()
            async with asyncio.timeout(10):
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert outcomes[1::2] == [None] * 10
        async with asyncio.timeout(5):
            assert set(ids(await store.list("ann", limit=50))) >= {f"x{n}" for n in range(1, 20, 2)}


async def test_a_store_keeps_its_content_when_it_is_closed_and_opened(url: str) -> None:
    async with opened(url) as store:
        await store.put(chat("c"), prompts("a"), owner="ann")
    async with opened(url) as store:
        assert ids(await store.list("ann")) == ([] if url == "sqlite://" else ["c"])


# Responses of every engine.


async def test_a_response_comes_back_unchanged_until_it_is_deleted(url: str) -> None:
    document = '{"id": "resp_1", "output": [ "é\u2028" ]}'.encode()
    async with opened(url) as store:
        await store.put_response("ann", "resp_1", document, 1000)
        assert await store.get_response("ann", "resp_1") == document
        for stranger in ("bob", "", "ann\n"):
            assert await store.get_response(stranger, "resp_1") is None
            assert await store.delete_response(stranger, "resp_1") is False
        await store.put_response("ann", "resp_1", b"{}", 2000)
        assert await store.get_response("ann", "resp_1") == b"{}"
        assert await store.delete_response("ann", "resp_1") is True
        assert await store.delete_response("ann", "resp_1") is False
        assert await store.get_response("ann", "resp_1") is None


async def test_responses_and_completions_do_not_see_each_other(url: str) -> None:
    async with opened(url) as store:
        await store.put(chat("chat", x="1"), prompts("a"), owner="ann")
        await store.put_response("ann", "resp", b'{"model":"m","metadata":{"x":"1"}}', 1000)
        assert ids(await store.list("ann")) == ["chat"]
        assert ids(await store.list("ann", model="m", metadata={"x": "1"})) == ["chat"]
        assert await store.get("ann", "resp") is None
        assert await store.update("ann", "resp", {}) is None
        assert await store.messages("ann", "resp") is None
        assert await store.history("ann", "resp", 100) is None
        assert await store.delete("ann", "resp") is False
        with pytest.raises(LookupError):
            await store.list("ann", after="resp")
        with pytest.raises(LookupError):
            await store.put(chat("resp"), [], owner="ann", continues=True)
        assert await store.get_response("ann", "chat") is None
        assert await store.delete_response("ann", "chat") is False
        assert await store.get_response("ann", "resp")
        assert await store.get("ann", "chat")


async def test_old_responses_do_not_exist_and_are_deleted(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "SWEEP_SECONDS", 0.05)
    now = int(time.time())
    async with opened(url, max_age_days=1) as store:
        await store.put_response("ann", "new", b"{}", now)
        await store.put_response("ann", "old", b"{}", now - 90_000)
        assert await store.get_response("ann", "old") is None
        async with asyncio.timeout(5):
            while await remaining(store) != 1:
                await asyncio.sleep(0.05)
        assert await store.get_response("ann", "new") == b"{}"


# URLs


def test_an_invalid_url_raises_one_line_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for url in (
        "",
        "chat.db",
        "sqlite://chat.db",
        "sqlite:///chat.db?mode=ro",
        "postgres://ann:hunter2@host/db",
        "mongodb://ann:hunter2/x@host",
        "mongodb://ann:hun/ter2@host/",
        "mongodb://",
    ):
        with pytest.raises(ValueError, match=r"^STORE_URL") as caught:
            open_store(url)
        text = str(caught.value)
        assert not [part for part in ("\n", "hun") if part in text], text
    monkeypatch.setitem(sys.modules, "pymongo", None)
    with pytest.raises(ValueError, match=r"^STORE_URL: .*pip install pymongo"):
        open_store("mongodb://host/")


def test_a_url_names_a_relative_file_an_absolute_file_or_memory() -> None:
    paths = {
        "sqlite:///a/b.db": "a/b.db",
        "sqlite:////a/b.db": "/a/b.db",
        "sqlite://": "",
        "sqlite:///:memory:": "",
    }
    for url, path in paths.items():
        store = open_store(url)
        assert isinstance(store, SQLiteStore)
        assert store.path == path


# SQLite


async def test_the_first_write_makes_the_file_readable_by_its_owner_only(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chat.db"
    mask = os.umask(0)
    try:
        async with opened(f"sqlite:///{path}", max_age_days=1) as store:
            await asyncio.sleep(0.1)
            assert not path.exists()
            await store.put(chat("c"), [], owner="ann")
            assert {
                stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in os.listdir(tmp_path)
            } == {0o600}
    finally:
        os.umask(mask)


async def test_every_commit_is_synchronous(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/chat.db") as store:
        assert isinstance(store, SQLiteStore)
        full = await store.writer.run(lambda db: db.execute("PRAGMA synchronous").fetchone())
        assert full == (2,)
        assert await store.writer.run(lambda db: db.execute("PRAGMA journal_mode").fetchone()) == (
            "wal",
        )


async def test_writes_that_wait_at_the_same_time_share_a_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = sqlite_worker.transaction

    def spy(db: sqlite3.Connection, begin: str, works: list[Any]) -> list[Any]:
        sizes.append(len(works))
        return real(db, begin, works)

    monkeypatch.setattr(sqlite_worker, "transaction", spy)
    async with opened(f"sqlite:///{tmp_path}/chat.db") as store:
        await asyncio.gather(*(store.put(chat(f"c{n}"), [], owner="ann") for n in range(200)))
    assert sum(sizes) == 200
    assert len(sizes) < 20


async def test_every_list_walks_along_an_index_without_sorting() -> None:
    async with opened("sqlite://") as store:
        assert isinstance(store, SQLiteStore)
        for others in (0, 1, 3):
            for up in (True, False):
                sql = f"EXPLAIN QUERY PLAN {listing_sql(others, up)}"
                parameters = ["x"] * (6 + 3 * others)
                plan = await store.writer.run(
                    lambda db, s=sql, p=parameters: [row[3] for row in db.execute(s, p)]
                )  # type: ignore[misc]
                text = "\n".join(plan)
                assert not [bad for bad in ("SCAN", "TEMP B-TREE") if bad in text], text
                assert (
                    "SEARCH lead USING PRIMARY KEY (owner=? AND key=? AND value=? AND seq>? AND seq<?)"
                    in text
                ), text


async def test_listing_20_of_5000_costs_as_much_as_listing_20_of_100(tmp_path: Path) -> None:
    async def steps(size: int) -> list[int]:
        """SQLite's instructions, in hundreds, for each kind of list."""
        costs = []
        async with opened(f"sqlite:///{tmp_path}/{size}.db") as store:
            assert isinstance(store, SQLiteStore)
            chats = [
                chat(
                    f"c{n}",
                    n,
                    f"m{n % 2}",
                    odd=str(n % 2),
                    k=str(n % 4),
                    same="1",
                    rare=str(n % (size // 20)),
                )
                for n in range(size)
            ]
            await asyncio.gather(*(store.put(each, [], owner="ann") for each in chats))
            ticks = count()
            await store.reader.run(lambda db: db.set_progress_handler(lambda: next(ticks) < 0, 100))
            for filters in FILTERS:
                before = next(ticks)
                page = await store.list("ann", limit=20, order="desc", **filters)
                assert len(page.items) >= 10 or (not page.items and filters == NONE)
                costs.append(next(ticks) - before)
        return costs

    for small, large, filters in zip(await steps(100), await steps(5000), FILTERS, strict=True):
        assert large <= 2 * small + 60, (filters, small, large)


NONE = {"model": "m1", "metadata": {"odd": "0"}}  # many have each of them, none has both
FILTERS: list[dict[str, Any]] = [
    {},
    {"model": "m1"},
    {"metadata": {"k": "1"}},
    {"model": "m1", "metadata": {"k": "1"}},
    NONE,
    {"metadata": {"same": "1", "rare": "3"}},
    {"model": "m1", "metadata": {"same": "1", "rare": "3", "odd": "1"}},
]


async def test_several_stores_may_make_the_file_at_the_same_moment(tmp_path: Path) -> None:
    for n in range(40):
        stores = [open_store(f"sqlite:///{tmp_path}/{n}.db") for _ in range(3)]
        await asyncio.gather(
            *(store.put(chat("c"), prompts("a"), owner="ann") for store in stores * 5)
        )
        assert len((await stores[0].messages("ann", "c") or NOTHING).items) == 15
        await asyncio.gather(*(store.close() for store in stores))


async def test_a_locked_file_raises_store_down_until_it_is_unlocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_connection, "BUSY_SECONDS", 0.2)
    async with opened(f"sqlite:///{tmp_path}/chat.db") as store:
        await store.put(chat("a"), [], owner="ann")
        other = sqlite3.connect(tmp_path / "chat.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreDown):
            await store.put(chat("b"), [], owner="ann")
        assert ids(await store.list("ann")) == ["a"]  # readers go on
        other.execute("COMMIT")
        other.close()
        await store.put(chat("c"), [], owner="ann")
        assert ids(await store.list("ann")) == ["a", "c"]


async def test_a_missing_folder_raises_store_down_until_it_exists(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/later/chat.db") as store:
        with pytest.raises(StoreDown) as caught:
            await store.put(chat("a"), [], owner="ann")
        assert str(tmp_path) not in str(caught.value)
        with pytest.raises(StoreDown):
            await store.get("ann", "a")
        (tmp_path / "later").mkdir()
        await store.put(chat("a"), [], owner="ann")
        assert await stored(store, "ann", "a") == chat("a")


async def test_a_file_that_is_not_a_database_does_not_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "chat.db").write_bytes(b"something else" * 100)
    async with opened(f"sqlite:///{tmp_path}/chat.db") as store:
        with pytest.raises(StoreDown):
            await store.put(chat("a"), [], owner="ann")
        (tmp_path / "chat.db").unlink()
        await store.put(chat("a"), [], owner="ann")


async def test_a_full_disk_raises_store_down_until_there_is_space(tmp_path: Path) -> None:
    for size in (10_000, 1_000_000):  # the disk is full at COMMIT; and before it
        async with opened(f"sqlite:///{tmp_path}/{size}.db") as store:
            await store.put(chat("first", 1), [], owner="ann")
            kept = ["first"]
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (200_000, hard)
            )  # Python ignores SIGXFSZ: a write gives EFBIG
            try:
                with suppress(StoreDown):
                    for n in range(100):
                        await store.put(chat(f"c{n}", 2), prompts("x" * size), owner="ann")
                        kept.append(f"c{n}")
                assert len(kept) < 50
                assert ids(await store.list("ann", limit=100)) == kept
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            await store.put(chat("last", 3), prompts("x" * size), owner="ann")
            assert ids(await store.list("ann", limit=100)) == [*kept, "last"]


async def test_a_failed_transaction_closes_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqlite_worker.transaction

    def failing(db: sqlite3.Connection, begin: str, works: list[Any]) -> list[Any]:
        monkeypatch.setattr(sqlite_worker, "transaction", real)
        db.execute(begin)
        raise sqlite3.OperationalError("disk I/O error")

    async with opened(f"sqlite:///{tmp_path}/chat.db") as store:
        monkeypatch.setattr(sqlite_worker, "transaction", failing)
        with pytest.raises(StoreDown):
            await store.put(chat("a"), [], owner="ann")
        await store.put(chat("b"), [], owner="ann")
        assert ids(await store.list("ann")) == ["b"]


async def test_a_newer_schema_stops_the_start_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ü 100%.db"
    async with opened(f"sqlite:///{path}") as store:
        await store.put(chat("a"), [], owner="ann")
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert db.execute("PRAGMA user_version").fetchone() == (2,)
            db.execute("PRAGMA user_version = 7")
        with pytest.raises(
            ValueError,
            match=r"^STORE_URL: The store has schema 7, but this version knows 2 at most\.$",
        ):
            open_store(f"sqlite:///{path}")
    assert os.listdir(tmp_path) == [path.name]


SCHEMA_1 = """
CREATE TABLE completion (
    seq INTEGER PRIMARY KEY, owner TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL, UNIQUE (owner, id));
CREATE TABLE metadata (
    owner TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (owner, key, value, seq)) WITHOUT ROWID;
CREATE TABLE message (
    seq INTEGER NOT NULL, n INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (seq, n));
PRAGMA user_version = 1;
"""


def write_schema_1(path: Path, count: int) -> None:
    """A file as version 0.1.0 of this program wrote it: c0, c1 ... with two messages each."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(SCHEMA_1)
        for n in range(count):
            seq = n << 24
            completion = chat(f"c{n}", n, x=str(n % 2)) | {"title": f"title {n}"}
            row = (seq, "ann", f"c{n}", orjson.dumps(completion))
            db.execute("INSERT INTO completion VALUES (?, ?, ?, ?)", row)
            for key, value in (
                ("[null,null]", ""),
                ('["m",null]', ""),
                ('[null,"x"]', str(n % 2)),
                ('["m","x"]', str(n % 2)),
            ):
                db.execute("INSERT INTO metadata VALUES (?, ?, ?, ?)", ("ann", key, value, seq))
            for number, text in enumerate(("question", "answer")):
                message = base.BLANK_MESSAGE | {"role": "user", "content": text}
                db.execute(
                    "INSERT INTO message VALUES (?, ?, ?)", (seq, number, orjson.dumps(message))
                )


async def test_a_file_of_schema_1_is_brought_to_this_schema_and_keeps_its_content(
    tmp_path: Path,
) -> None:
    write_schema_1(tmp_path / "chat.db", 4)
    async with opened(f"sqlite:///{tmp_path}/chat.db") as store:
        before = [chat(f"c{n}", n, x=str(n % 2)) | {"title": f"title {n}"} for n in range(4)]
        assert documents(await store.list("ann")) == before
        assert await stored(store, "ann", "c1") == before[1]
        assert ids(await store.list("ann", model="m", metadata={"x": "1"})) == ["c1", "c3"]
        assert contents(await store.messages("ann", "c1")) == ["question", "answer"]
        await store.put_response("ann", "resp", b"{}", 9)
        assert await store.get_response("ann", "resp") == b"{}"

        changed = await store.update("ann", "c0", {"x": "7"})
        assert changed
        assert orjson.loads(changed) == before[0] | {"metadata": {"x": "7"}}
        assert await store.get("ann", "c0") == changed
        completion = {"id": "c1", "created": 9, "model": "m2"}
        await store.put(completion, prompts("more"), owner="ann", title="new", continues=True)
        assert await stored(store, "ann", "c1") == completion | {
            "title": "title 1",
            "metadata": {"x": "1"},
        }
        assert await store.delete("ann", "c2")
        assert ids(await store.list("ann")) == ["c0", "c1", "c3"]
        assert ids(await store.list("ann", metadata={"x": "0"})) == []
        assert ids(await store.list("ann", model="m")) == ["c0", "c3"]
        assert contents(await store.messages("ann", "c1")) == ["question", "answer", "more"]
        for id in ("c0", "c1", "c3"):
            assert await store.delete("ann", id)
        assert await store.delete_response("ann", "resp")
        assert await remaining(store) == 0  # no row of an index is left behind
    with closing(sqlite3.connect(tmp_path / "chat.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_several_stores_may_bring_a_file_to_this_schema_at_the_same_moment(
    tmp_path: Path,
) -> None:
    for n in range(20):
        write_schema_1(tmp_path / f"{n}.db", 3)
        stores = [open_store(f"sqlite:///{tmp_path}/{n}.db") for _ in range(3)]
        pages = await asyncio.gather(*(store.list("ann") for store in stores))
        assert [ids(page) for page in pages] == [["c0", "c1", "c2"]] * 3
        await asyncio.gather(*(store.close() for store in stores))


async def test_a_newer_schema_at_run_time_raises_store_down(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/chat.db") as store:
        await store.put(chat("a"), [], owner="ann")
        with closing(sqlite3.connect(tmp_path / "new.db")) as db:
            db.execute("PRAGMA user_version = 7")
        os.replace(tmp_path / "new.db", tmp_path / "chat.db")
        for ask in (store.put(chat("b"), [], owner="ann"), store.get("ann", "a")):
            with pytest.raises(StoreDown):
                await ask


@pytest.mark.parametrize("gone", [["chat.db"], ["chat.db", "chat.db-wal", "chat.db-shm"]])
async def test_a_deleted_or_replaced_file_raises_store_down(
    tmp_path: Path, gone: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    url, path = f"sqlite:///{tmp_path}/chat.db", tmp_path / "chat.db"
    for replaced in (False, True):
        async with opened(url) as store:
            await store.put(chat("a"), prompts("a"), owner="ann")
            assert await store.get("ann", "a")
            with (
                closing(sqlite3.connect(path)) as db,
                closing(sqlite3.connect(tmp_path / "backup.db")) as backup,
            ):
                db.backup(backup)
            for name in gone:
                (tmp_path / name).unlink()
            if replaced:
                os.replace(tmp_path / "backup.db", path)
            for _ in range(2):
                with pytest.raises(StoreDown):
                    await store.put(chat("b"), prompts("b"), owner="ann")
                with pytest.raises(StoreDown):
                    await store.list("ann")
            assert path.exists() == replaced
        assert "restart the server" in caplog.text
        assert {record.name for record in caplog.records} == {
            "rewrap"
        }  # so that LOG_LEVEL holds for it
        async with opened(url) as store:
            assert ids(await store.list("ann")) == (["a"] if replaced else [])


def test_opening_a_store_makes_no_file(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/chat.db")
    open_store(f"sqlite:///{tmp_path}/later/chat.db")
    assert os.listdir(tmp_path) == []


async def test_two_processes_with_one_file_see_each_others_completions(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/chat.db"
    two = [writers(url), writers(url)]
    seen = [acknowledged(process, 50) for process in two]
    async with opened(url) as store:
        for process, names in zip(two, seen, strict=True):
            assert names
            assert names[0].startswith(str(process.pid))
            for name in names:
                assert await store.get("ann", name), name
        await store.put(chat("mine"), [], owner="ann")  # and a third one gets a turn between them
        assert await stored(store, "ann", "mine") == chat("mine")
    for process in two:
        kill(process)


async def test_acknowledged_writes_survive_kill_9_of_a_process_with_eight_writers(
    tmp_path: Path,
) -> None:
    names: list[str] = []
    for _ in range(3):
        process = writers(f"sqlite:///{tmp_path}/chat.db")
        names += acknowledged(process, 400)
        names += kill(process)
        db = sqlite3.connect(tmp_path / "chat.db")
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.close()
        async with opened(f"sqlite:///{tmp_path}/chat.db") as store:
            for name in names:
                assert await store.get("ann", name), name
                assert contents(await store.messages("ann", name)) == [name, "x" * 1000]
                assert await store.get_response("ann", f"resp {name}"), name
            assert len(set(await all_ids(store, 1000, "asc", metadata={"k": "v"}))) >= len(names)


def writers(url: str) -> subprocess.Popen[str]:
    """A process with eight writers, which prints each id once it is acknowledged."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITERS, url], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def acknowledged(process: subprocess.Popen[str], number: int) -> list[str]:
    assert process.stdout
    return [process.stdout.readline().strip() for _ in range(number)]


def kill(process: subprocess.Popen[str]) -> list[str]:
    """Kill the writers; what they printed since, without a line that was cut."""
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    return rest.rpartition("\n")[0].splitlines()


# MongoDB


async def test_two_stores_with_one_mongodb_see_each_others_completions(wire: MongoWire) -> None:
    url = f"{wire.url}test{next(NUMBER)}"
    async with opened(url) as one, opened(url) as two:
        await one.put(chat("a", 1), prompts("one"), owner="ann")
        await two.put(chat("b", 2), [], owner="ann")
        await two.put(chat("a", 1), prompts("two"), owner="ann")
        assert ids(await one.list("ann")) == ids(await two.list("ann")) == ["a", "b"]
        assert contents(await one.messages("ann", "a")) == ["one", "two"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what the first loop has left open
@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("closed", [True, False])
def test_a_store_works_in_a_second_event_loop(
    closed: bool, tmp_path: Path, wire: MongoWire
) -> None:
    for url in (f"sqlite:///{tmp_path}/chat.db", f"{wire.url}test{next(NUMBER)}"):
        store = open_store(url)

        async def once(id: str, store: Store = store) -> list[str]:
            if closed:
                await store.open()
            await store.put(chat(id), prompts("x"), owner="ann")
            found = ids(await store.list("ann"))
            if closed:
                await store.close()
            return found

        assert asyncio.run(once("a")) == ["a"]
        assert asyncio.run(once("b")) == ["a", "b"]


async def test_documents_of_the_first_version_in_mongodb_keep_their_content(
    wire: MongoWire,
) -> None:
    async with opened(f"{wire.url}test{next(NUMBER)}") as store:
        assert isinstance(store, MongoStore)
        for n in range(3):
            row = {
                "_id": f'["ann","c{n}"]',
                "owner": "ann",
                "seq": mongo.sequence(n),
                "model": "m",
                "tags": ['["x","1"]'],
                "title": "first",
                "body": orjson.dumps(chat(f"c{n}", n, x="1")).decode(),
                "metadata": None,
                "messages": [orjson.dumps(base.BLANK_MESSAGE | {"content": "old"}).decode()],
                "count": 1,
            }
            await store.chats.insert_one(row)
        before = [chat(f"c{n}", n, x="1") | {"title": "first"} for n in range(3)]
        assert documents(await store.list("ann", metadata={"x": "1"})) == before
        changed = await store.update("ann", "c0", {"x": "2"})
        assert changed
        assert changed.count(b'"metadata"') == 1
        assert orjson.loads(changed) == before[0] | {"metadata": {"x": "2"}}
        for id, value in (("c0", "2"), ("c1", "1")):
            completion = {"id": id, "created": 9, "model": "m2"}
            await store.put(completion, prompts("new"), owner="ann", title="t", continues=True)
            assert await stored(store, "ann", id) == completion | {
                "title": "first",
                "metadata": {"x": value},
            }
            assert contents(await store.messages("ann", id)) == ["old", "new"]
        assert ids(await store.list("ann", model="m2", metadata={"x": "2"})) == ["c0"]


async def test_mongodb_has_an_index_for_every_list(wire: MongoWire) -> None:
    async with opened(f"{wire.url}test{next(NUMBER)}") as store:
        assert isinstance(store, MongoStore)
        keys = [tuple(index["key"]) for index in (await store.chats.index_information()).values()]
        fields = {tuple(name for name, _ in key) for key in keys}
        lists = {
            ("owner", "seq"),
            ("owner", "model", "seq"),
            ("owner", "tags", "seq"),
            ("owner", "model", "tags", "seq"),
        }
        assert fields == lists | {("seq",), ("_id",)}


async def test_mongodb_writes_are_journaled_on_a_majority(wire: MongoWire) -> None:
    store = open_store(wire.url)
    assert isinstance(store, MongoStore)
    assert store.chats.write_concern.document == {"w": "majority", "wtimeout": 4_000, "j": True}
    assert store.chats.read_concern.level == "majority"


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.usefixtures("collected")
async def test_a_mongodb_that_is_down_raises_store_down_soon_until_it_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "SWEEP_SECONDS", 0.1)
    with MongoWire(tmp_path) as wire:
        wire.kill(signal.SIGTERM)
        async with opened(wire.url) as store:  # the start does not fail
            assert isinstance(store, MongoStore)
            await expect_down(store, wire.port)
            wire.start()
            async with asyncio.timeout(5):
                while store.missing_indexes:  # made at last
                    await asyncio.sleep(0.05)
            await store.put(chat("a"), prompts("a"), owner="ann")
            wire.kill()
            await expect_down(store, wire.port)
            wire.start()
            assert await stored(store, "ann", "a") == chat("a")


async def expect_down(store: Store, port: int) -> None:
    start = time.monotonic()
    asked = (
        store.put(chat("x"), [], owner="ann"),
        store.get("ann", "x"),
        store.list("ann"),
        store.delete("ann", "x"),
    )
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(outcome, StoreDown), outcome
        assert str(port) not in str(outcome)
        assert "127.0.0.1" not in str(outcome)
    assert time.monotonic() - start < 3.5


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.usefixtures("collected")
async def test_acknowledged_writes_survive_kill_9_of_mongodb_under_eight_writers(
    tmp_path: Path,
) -> None:
    names: list[str] = []

    async def write(store: Store, writer: int) -> None:
        for n in count():
            name = f"{server.port}-{round}-{writer}-{n}"
            await store.put(chat(name, k="v"), prompts(name, "x" * 1000), owner="ann")
            names.append(name)

    with MongoWire(tmp_path) as server:
        for round in range(3):
            async with opened(server.url) as store:
                tasks = [asyncio.create_task(write(store, writer)) for writer in range(8)]
                async with asyncio.timeout(20):
                    while len(names) < 100 * (round + 1):
                        await asyncio.sleep(0.01)
                server.kill()
                for task in tasks:
                    task.cancel()
                    with suppress(asyncio.CancelledError, StoreDown):
                        await task
            server.start()
            async with opened(server.url) as store:
                kept = await all_ids(store, 1000, "asc", metadata={"k": "v"})
                assert set(kept) >= set(names)
                assert len(kept) == len(set(kept))
                for name in names[round::3]:
                    assert contents(await store.messages("ann", name)) == [name, "x" * 1000]
