"""Limits: requests a minute in memory, in Redis and in MongoDB, what clients are told of it, and the gate.

Redis here is a stub of its wire (loopback, a port of its own): it counts as the script that `limits` sends would count.
"""

import asyncio
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from mongo_wire import MongoWire

from rewrap.server import limits
from rewrap.server.limits import Gate, RateLimit, Verdict, duration, rate_limit_headers
from rewrap.types import APIError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    """Both clocks of the module, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moved = 0.0
        real, wall = time.monotonic, time.time
        monkeypatch.setattr(limits.time, "monotonic", lambda: real() + self.moved)
        monkeypatch.setattr(limits.time, "time", lambda: wall() + self.moved)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class FakeRedis(socketserver.ThreadingTCPServer):
    """Redis's wire, as far as `limits` speaks it: the script that counts, and TTL. `hangs`: never answers."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.counts: Counter[bytes] = Counter()
        self.hangs = threading.Event()
        super().__init__(("127.0.0.1", port), FakeRedisConnection)
        self.port = self.server_address[1]
        self.open: list[FakeRedisConnection] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://:hunter2@127.0.0.1:{self.port}/0"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for each in self.open:
            with suppress(OSError):
                each.connection.shutdown(socket.SHUT_RDWR)


class FakeRedisConnection(socketserver.StreamRequestHandler):
    server: FakeRedis

    def handle(self) -> None:
        self.server.open.append(self)
        while line := self.rfile.readline():
            command = []
            for _ in range(int(line[1:])):
                command.append(self.rfile.read(int(self.rfile.readline()[1:])))
                self.rfile.read(2)
            if self.server.hangs.is_set():
                time.sleep(3)
                return
            self.wfile.write(self.answer(command[0].upper(), command[1:]))

    def answer(self, name: bytes, args: list[bytes]) -> bytes:
        if name == b"EVALSHA":  # sha, number of keys, key, seconds, amount
            self.server.counts[args[2]] += int(args[4])
            return b":%d\r\n" % self.server.counts[args[2]]
        if name == b"HELLO":
            return b"%1\r\n$5\r\nproto\r\n:3\r\n"
        if name == b"TTL":
            return b":42\r\n"
        return b"+OK\r\n" if name in (b"CLIENT", b"SELECT") else b"-ERR unknown command\r\n"


@pytest.fixture
def redis() -> Iterator[FakeRedis]:
    server = FakeRedis()
    yield server
    server.stop()


@asynccontextmanager
async def limited(per_minute: int, url: str = "") -> AsyncIterator[RateLimit]:
    """A RateLimit whose connections are closed before the test is over."""
    limit = RateLimit(per_minute, url)
    try:
        yield limit
    finally:
        await limit.close()


async def allowed(limit: RateLimit, hits: int, key: str = "k") -> list[bool]:
    return [(await limit.hit(key)).allowed for _ in range(hits)]


async def test_so_many_requests_a_minute_are_allowed_and_the_next_is_refused(clock: Clock) -> None:
    limit = RateLimit(2)
    first, second, third = [await limit.hit("k") for _ in range(3)]
    assert (first.allowed, first.limit, first.remaining) == (True, 2, 1)
    assert (second.allowed, second.limit, second.remaining) == (True, 2, 0)
    assert (third.allowed, third.limit, third.remaining) == (False, 2, 0)
    assert 59 < third.reset_seconds <= first.reset_seconds <= 60


async def test_after_the_time_that_a_refusal_names_the_whole_budget_is_back(clock: Clock) -> None:
    limit = RateLimit(3)
    assert await allowed(limit, 5) == [True, True, True, False, False]
    clock.moved += 59
    assert not (await limit.hit("k")).allowed
    clock.moved += 1
    assert await allowed(limit, 4) == [True, True, True, False]


async def test_each_key_has_a_budget_of_its_own() -> None:
    limit = RateLimit(1)
    assert await allowed(limit, 2, "a") == [True, False]
    assert await allowed(limit, 2, "b\udce9") == [True, False]


async def test_memory_forgets_windows_that_have_ended(clock: Clock) -> None:
    limit = RateLimit(1)
    for at in range(500):
        await limit.hit(f"key {at}")
    assert len(limit.windows) == 500
    clock.moved += 61
    await limit.hit("another")
    assert len(limit.windows) == 1


async def test_memory_is_bounded_and_the_oldest_window_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_KEYS", 100)
    limit = RateLimit(1)
    for at in range(1000):
        await limit.hit(f"key {at}")
    assert len(limit.windows) <= 101
    assert not (await limit.hit("key 999")).allowed
    assert (await limit.hit("key 0")).allowed


async def test_a_hit_costs_the_same_with_many_keys() -> None:
    limit = RateLimit(10)
    for at in range(50_000):
        limit.hit_memory(f"key {at}")
    start = time.process_time()
    await allowed(limit, 200)
    assert (time.process_time() - start) / 200 < 0.001  # some 10 µs where nothing else runs


async def test_redis_counts_for_all_processes_and_sees_no_key(redis: FakeRedis) -> None:
    async with limited(3, redis.url) as one, limited(3, redis.url) as two:
        assert await allowed(one, 2, "sk-secret") == [True, True]
        third, fourth = await two.hit("sk-secret"), await two.hit("sk-secret")
    assert (third.allowed, third.remaining) == (True, 0)
    assert (fourth.allowed, fourth.remaining) == (False, 0)
    assert 41 < third.reset_seconds <= 42
    assert len(redis.counts) == 1
    assert not any(b"secret" in key for key in redis.counts)


async def test_mongodb_counts_for_all_processes(tmp_path: Path) -> None:
    with MongoWire(tmp_path) as wire:
        async with limited(3, wire.url) as one, limited(3, wire.url) as two:
            assert await allowed(one, 2) == [True, True]
            third, fourth = await two.hit("k"), await two.hit("k")
            assert one.windows == two.windows == {}
    assert (third.allowed, third.remaining) == (True, 0)
    assert (fourth.allowed, fourth.remaining) == (False, 0)
    assert 55 < third.reset_seconds <= 60


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what the first loop has left open
@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("kind", ["redis", "mongodb"])
@pytest.mark.parametrize("closed", [True, False])
def test_a_store_counts_on_in_another_event_loop_and_after_its_end(
    kind: str, closed: bool, redis: FakeRedis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MongoWire(tmp_path) as wire:
        limit = RateLimit(3, redis.url if kind == "redis" else wire.url)

        async def twice() -> list[bool]:
            hits = await allowed(limit, 2)
            if closed:
                await limit.close()
            return hits

        assert asyncio.run(twice()) + asyncio.run(twice()) == [True, True, True, False]
    assert (caplog.messages, len(limit.windows)) == ([], 0)


async def test_with_redis_down_requests_go_on_with_one_warning_and_it_is_used_again_when_it_is_back(
    redis: FakeRedis, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with limited(2, redis.url) as limit:
        await limit.hit("k")
        redis.stop()
        # Each process goes on counting for itself.
        assert await allowed(limit, 3) == [True, True, False]
        clock.moved += 6
        assert await allowed(limit, 1, "other") == [True]
        (warning,) = caplog.messages
        assert warning.startswith("RATE_LIMIT_STORE_URL: the store failed (ConnectionError)")
        assert "127.0.0.1" not in caplog.text
        assert "hunter2" not in caplog.text
        again = FakeRedis(redis.port)
        clock.moved += 6
        await limit.hit("k")
        assert len(again.counts) == 1
        again.stop()
        clock.moved += 6
        await limit.hit("k")
        assert len(caplog.messages) == 2


async def test_with_mongodb_down_requests_go_on(caplog: pytest.LogCaptureFixture) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as closed:
        port = closed.server_address[1]
    async with limited(1, f"mongodb://127.0.0.1:{port}/") as limit:
        start = time.monotonic()
        assert await allowed(limit, 2) == [True, False]
        assert time.monotonic() - start < 2.5
    assert len(caplog.messages) == 1
    assert str(port) not in caplog.text


async def test_a_store_that_hangs_delays_one_request_by_a_second_and_the_next_ones_not_at_all(
    redis: FakeRedis, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    redis.hangs.set()
    async with limited(100, redis.url) as limit:
        start = time.monotonic()
        await limit.hit("k")
        assert time.monotonic() - start < 2
        start = time.monotonic()
        assert all(await allowed(limit, 50))
        assert time.monotonic() - start < 0.5
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("url", ["redis://h", "rediss://h", "mongodb://h"])
@pytest.mark.parametrize("missing", ["limits", "the driver"])
def test_a_missing_package_is_one_line_that_names_the_setting(
    url: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = {"r": "redis", "m": "pymongo"}[url[0]]
    package = driver if missing == "the driver" else missing
    monkeypatch.setattr(limits, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(
        ValueError,
        match=rf"^RATE_LIMIT_STORE_URL: \w+ needs the package {package} \(pip install .*\)\.$",
    ):
        RateLimit(1, url)


def test_memory_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "find_spec", lambda name: None)
    RateLimit(1)


@pytest.mark.parametrize(
    "url",
    [
        "memcached://h",
        "h:6379",
        "redis",
        "http://hunter2@h",
        "redis://u:hunter2@h:port",
        "redis://u:hunter2@h",
        "mongodb://u:hunter2@",
        "mongodb://u:hunter2@h:port",
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_without_the_address(url: str) -> None:
    with pytest.raises(ValueError, match=r"^RATE_LIMIT_STORE_URL [^\n]*[.?]$") as error:
        RateLimit(1, url)
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None


def test_every_answer_tells_the_limit_what_remains_and_when_it_is_reset() -> None:
    assert rate_limit_headers(Verdict(True, 60, 59, 59.3694)) == [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"59"),
        (b"x-ratelimit-reset-requests", b"59.37s"),
    ]


@pytest.mark.parametrize(
    ("reset", "after"), [(12.001, b"13"), (12.0, b"12"), (0.4, b"1"), (0.0, b"1")]
)
def test_a_refusal_says_when_to_come_back_in_whole_seconds(reset: float, after: bytes) -> None:
    assert rate_limit_headers(Verdict(False, 60, 0, reset))[3:] == [(b"retry-after", after)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.369, "59.369s"), (66.499, "1m6.499s"), (0.016, "16ms"), (0, "0ms"), (1, "1s"), (60, "1m0s"), (59.9999, "1m0s"), (0.9996, "1s"), (600.05, "10m0.05s")],
)  # fmt: skip
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_gate_admits_a_fixed_number_of_requests_at_a_time() -> None:
    gate = Gate(2)
    with gate:
        gate.check()
        with gate:
            with pytest.raises(APIError) as refused:
                gate.check()
            assert (refused.value.status, refused.value.headers) == (503, [(b"retry-after", b"1")])
            with pytest.raises(APIError), gate:
                pass
            assert gate.inside == 2
        with gate:
            assert gate.inside == 2
    assert gate.inside == 0
