"""Writes that wait for the next turn of the loop: their order, and when each is made."""

import asyncio
import gc
import weakref
from typing import Any

import pytest

from rewrap.held_writes import HELD_BYTES, HoldingTransport

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Wire:
    """A transport that notes what is done with it; `log` may be shared by several."""

    def __init__(self, log: list[bytes]) -> None:
        self.log = log
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.log.append(data)

    def write_eof(self) -> None:
        self.log.append(b"EOF")

    def close(self) -> None:
        self.closing = True
        self.log.append(b"CLOSE")

    def abort(self) -> None:
        self.closing = True
        self.log.append(b"ABORT")


def transports(count: int, log: list[bytes]) -> list[HoldingTransport]:
    loop = asyncio.get_running_loop()
    return [HoldingTransport(Wire(log), loop) for _ in range(count)]


async def busy_turn(several: list[HoldingTransport], log: list[bytes]) -> None:
    """A turn in which all transports write: the next one holds."""
    for transport in several:
        transport.write(b"busy")
    await asyncio.sleep(0)
    log.clear()


async def test_the_only_transport_of_a_turn_writes_at_once() -> None:
    log: list[bytes] = []
    (alone,) = transports(1, log)
    for data in (b"1", b"2"):
        alone.write(data)
        assert log[-1] == data
        await asyncio.sleep(0)
        alone.write(data)
        assert log[-1] == data


async def test_the_others_of_a_turn_write_at_its_end_in_their_order() -> None:
    log: list[bytes] = []
    several = transports(3, log)
    for number, transport in enumerate(several):
        transport.write(b"%d" % number)
    several[1].write(b"more")
    assert log == [b"0"]
    await asyncio.sleep(0)
    assert log == [b"0", b"1more", b"2"]


async def test_after_a_busy_turn_the_first_holds_too_and_after_a_quiet_one_it_does_not() -> None:
    log: list[bytes] = []
    several = transports(2, log)
    await busy_turn(several, log)
    several[0].write(b"a")
    assert log == []
    await asyncio.sleep(0)
    assert log == [b"a"]
    several[0].write(b"b")
    assert log == [b"a", b"b"]


async def test_the_head_of_an_answer_goes_out_with_its_body() -> None:
    log: list[bytes] = []
    (alone,) = transports(1, log)
    alone.write(HEAD)
    alone.write(b"{}")
    assert log == [HEAD + b"{}"]


async def test_a_head_without_a_body_goes_out_in_the_next_turn_and_an_interim_answer_at_once() -> (
    None
):
    log: list[bytes] = []
    (alone,) = transports(1, log)
    alone.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    alone.write(HEAD)
    assert log == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    await asyncio.sleep(0)
    assert log[1:] == [HEAD]


@pytest.mark.parametrize("end", ["write_eof", "close", "abort"])
async def test_what_is_held_goes_out_before_the_end(end: str) -> None:
    log: list[bytes] = []
    several = transports(2, log)
    await busy_turn(several, log)
    several[1].write(b"last")
    getattr(several[1], end)()
    await asyncio.sleep(0)
    assert log == [b"last", end.removeprefix("write_").upper().encode()]


async def test_a_chunk_that_may_not_wait_takes_what_is_held_along() -> None:
    log: list[bytes] = []
    several = transports(2, log)
    await busy_turn(several, log)
    several[1].write_now(b"first")
    several[1].write(HEAD)
    several[1].write_now(b"chunk")
    assert log == [b"first", HEAD + b"chunk"]


async def test_much_is_written_at_once() -> None:
    log: list[bytes] = []
    several = transports(2, log)
    await busy_turn(several, log)
    several[1].write(b"x" * HELD_BYTES)
    assert log == []
    several[1].write(b"y")
    assert [len(data) for data in log] == [HELD_BYTES + 1]


async def test_nothing_is_written_to_a_connection_that_was_lost_meanwhile() -> None:
    log: list[bytes] = []
    several = transports(2, log)
    await busy_turn(several, log)
    several[1].write(b"late")
    several[1].transport.closing = True
    await asyncio.sleep(0)
    assert log == []
    assert several[1].held == []


async def test_a_write_that_fails_ends_its_connection_alone() -> None:
    log: list[bytes] = []
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
    several = transports(3, log)
    await busy_turn(several, log)

    def broken(data: bytes) -> None:
        raise RuntimeError("broken")

    several[0].transport.write = broken
    for transport in several:
        transport.write(b"x")
    await asyncio.sleep(0)
    assert log == [b"ABORT", b"x", b"x"]
    assert str(reports[0]["exception"]) == "broken"
    several[2].write(b"y")
    await asyncio.sleep(0)
    assert log[-1] == b"y"


def test_each_loop_has_a_queue_of_its_own_and_is_not_kept_alive() -> None:
    log: list[bytes] = []
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def write() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        for transport in transports(2, log):
            transport.write(b"x")
        await asyncio.sleep(0)

    for count in (2, 4):
        asyncio.run(write())
        assert log == [b"x"] * count
    gc.collect()
    assert [loop() for loop in loops] == [None, None]
