"""Name look-ups: cached, one at a time for each name, and independent of other names.

The system's resolver is replaced by one that blocks until the test lets it answer.
"""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from upstreams import JSON, Upstream, sends, whole

from rewrap.upstream import resolver
from rewrap.upstream.pool import Transport
from rewrap.upstream.resolver import Resolver

pytestmark = pytest.mark.anyio

MANY = 50  # more than threads of any shared pool, and than the connections of the pool


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Names:
    """The system's resolver: `known` names have addresses, `silent` ones answer at the end of the test."""

    def __init__(self) -> None:
        self.known = {"good.example": ["127.0.0.1"]}
        self.silent: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.released = threading.Event()

    def getaddrinfo(self, host: str, port: None, **options: Any) -> list[tuple[Any, ...]]:
        self.asked[host] += 1
        if host in self.silent:
            self.released.wait(20)
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, 1, 6, "", (address, 0)) for address in self.known[host]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = Names()
    monkeypatch.setattr(resolver.socket, "getaddrinfo", found.getaddrinfo)
    yield found
    found.released.set()


@pytest.fixture
async def pool() -> AsyncIterator[Transport]:
    transport = Transport(connect_timeout=1.0, max_connections=5)
    yield transport
    await transport.aclose()


async def status(pool: Transport, url: str) -> int:
    target = pool.target("POST", httpx.URL(url), {})
    reply = await pool.exchange(target, b"", b"{}", asyncio.get_running_loop().time() + 3)
    await reply.read()
    await reply.aclose()
    return reply.status


def answering() -> Upstream:
    return Upstream(sends(lambda request: whole(JSON, b"{}", "connection: close")))


def at(name: str, upstream: Upstream) -> str:
    return f"http://{name}:{httpx.URL(upstream.url).port}/"


async def test_a_name_is_looked_up_once_for_many_requests(names: Names) -> None:
    found = Resolver(asyncio.get_running_loop(), 30.0)
    assert (
        await asyncio.gather(*(found.addresses("good.example") for _ in range(MANY)))
        == [["127.0.0.1"]] * MANY
    )
    assert await found.addresses("good.example") == ["127.0.0.1"]
    assert names.asked == {"good.example": 1}


async def test_addresses_expire(names: Names) -> None:
    found = Resolver(asyncio.get_running_loop(), 0.05)
    for _ in range(2):
        await found.addresses("good.example")
    await asyncio.sleep(0.06)
    names.known["good.example"] = ["127.0.0.2"]
    assert await found.addresses("good.example") == ["127.0.0.2"]
    assert names.asked["good.example"] == 2


async def test_a_failure_is_cached_for_less_time(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "FAILED_SECONDS", 0.05)
    found = Resolver(asyncio.get_running_loop(), 30.0)
    for _ in range(2):
        with pytest.raises(OSError, match="Name or service not known"):
            await found.addresses("new.example")
    names.known["new.example"] = ["127.0.0.3"]
    await asyncio.sleep(0.06)
    assert await found.addresses("new.example") == ["127.0.0.3"]
    assert names.asked["new.example"] == 2


async def test_an_address_needs_no_look_up(names: Names) -> None:
    found = Resolver(asyncio.get_running_loop(), 30.0)
    for address in ("127.0.0.1", "::1", "fe80::1%lo"):
        assert await found.addresses(address) == [address]
    assert not names.asked


async def test_a_name_with_an_empty_label_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Resolver(asyncio.get_running_loop(), 30.0)

    def refuse(*_: Any, **__: Any) -> None:
        "a..b".encode("idna")

    monkeypatch.setattr(resolver.socket, "getaddrinfo", refuse)
    with pytest.raises(OSError, match="label empty"):
        await found.addresses("a..b")


async def test_a_silent_name_holds_up_no_other_name(names: Names, pool: Transport) -> None:
    names.silent = {f"silent{number}.example" for number in range(MANY)}
    async with answering() as up:
        silent = [
            asyncio.create_task(status(pool, at(name, up)))
            for name in [*names.silent, *names.silent]
        ]
        await asyncio.sleep(0.05)
        assert await status(pool, at("good.example", up)) == 200
        assert await status(pool, up.url) == 200
        assert not any(task.done() for task in silent)
        failures = await asyncio.gather(*silent, return_exceptions=True)
    assert {type(failure) for failure in failures} == {httpx.ConnectTimeout}
    assert set(names.asked.values()) == {1}


async def test_a_look_up_that_outlives_its_request_serves_the_next_one(
    names: Names, pool: Transport
) -> None:
    names.silent = {"late.example"}
    names.known["late.example"] = ["127.0.0.1"]
    async with answering() as up:
        with pytest.raises(httpx.ConnectTimeout):
            await status(pool, at("late.example", up))
        again = asyncio.create_task(status(pool, at("late.example", up)))
        await asyncio.sleep(0.01)
        names.released.set()
        assert await again == 200
    assert names.asked == {"late.example": 1}


async def test_addresses_are_tried_in_their_order(names: Names, pool: Transport) -> None:
    names.known["several.example"] = ["127.0.0.9", "127.0.0.1"]  # nothing listens at the first
    async with answering() as up:
        assert await status(pool, at("several.example", up)) == 200


async def test_a_name_whose_addresses_cannot_be_reached_is_looked_up_again(
    names: Names, pool: Transport
) -> None:
    names.known["moved.example"] = ["127.0.0.9"]
    async with answering() as up:
        with pytest.raises(httpx.ConnectError):
            await status(pool, at("moved.example", up))
        names.known["moved.example"] = ["127.0.0.1"]
        assert await status(pool, at("moved.example", up)) == 200
    assert names.asked["moved.example"] == 2


async def test_an_unknown_name_is_a_connect_error(names: Names, pool: Transport) -> None:
    with pytest.raises(httpx.ConnectError):
        await status(pool, "http://unknown.example/")
    assert not pool.connections
