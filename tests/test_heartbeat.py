"""Pings in silent streams: when each stream gets its first one, and that one timer is enough for all."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from rewrap.server.heartbeat import TICKS, Heartbeats

pytestmark = pytest.mark.anyio

SECONDS = 0.12


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Stream(SimpleNamespace):
    """A stream that notes when it gets a ping."""

    def __init__(self) -> None:
        super().__init__(sends=0, status=200, info=SimpleNamespace(accepted=True))
        self.loop = asyncio.get_running_loop()
        self.pings: list[float] = []

    async def send_body(self, body: bytes, *, more: bool) -> None:
        self.pings.append(self.loop.time())


def beating(heartbeats: Heartbeats, stream: Stream) -> Any:
    rendering: Any = SimpleNamespace(ping=lambda: b": ping\n\n", headers=[])
    context: Any = stream
    return heartbeats.of(context, rendering)


async def test_a_stream_that_joins_between_ticks_is_silent_for_the_whole_time_first() -> None:
    heartbeats = Heartbeats(SECONDS)
    early, late = Stream(), Stream()
    with beating(heartbeats, early):
        await asyncio.sleep(0.9 * SECONDS / TICKS)
        start = late.loop.time()
        with beating(heartbeats, late):
            await asyncio.sleep(2 * SECONDS)
    assert early.pings
    assert late.pings[0] - start >= SECONDS - 0.01


async def test_a_stream_that_sends_gets_no_ping() -> None:
    stream = Stream()
    with beating(Heartbeats(SECONDS), stream):
        for _ in range(8):
            await asyncio.sleep(SECONDS / TICKS)
            stream.sends += 1
    assert not stream.pings


async def test_without_seconds_and_without_streams_there_is_no_timer() -> None:
    for seconds in (0.0, SECONDS):
        heartbeats = Heartbeats(seconds)
        stream = Stream()
        with beating(heartbeats, stream):
            pulse = heartbeats.by_loop[stream.loop]
            assert pulse.is_running == bool(seconds)
        await asyncio.sleep(2 * SECONDS / TICKS)
        assert not pulse.is_running
        assert not pulse.streams


async def test_a_second_loop_leaves_the_streams_of_the_first_alone() -> None:
    heartbeats = Heartbeats(SECONDS)
    first = Stream()

    async def elsewhere() -> Stream:
        other = Stream()
        with beating(heartbeats, other):
            assert len(heartbeats.by_loop[other.loop].streams) == 1
            await asyncio.sleep(2 * SECONDS)
        return other

    with beating(heartbeats, first):
        second = await asyncio.to_thread(asyncio.run, elsewhere())
    assert first.pings
    assert second.pings
