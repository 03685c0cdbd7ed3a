"""How the cost of a function grows with its input: a ratio, which does not depend on the machine."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
FACTOR = 10
LINEAR = 15.0  # the most that ten times the input may cost
RUNS = 5


def growth(make: Callable[[int], T], work: Callable[[T], object], size: int) -> float:
    """The cost of `work` for an input of ten times `size`, divided by that for one of `size`."""
    small = make(size)
    large = make(size * FACTOR)
    return least_seconds(lambda: work(large)) / least_seconds(lambda: work(small))


async def growth_of(work: Callable[[int], Awaitable[object]], size: int) -> float:
    """The same for coroutines, which make their own input."""
    small = await least_seconds_of(work, size)
    large = await least_seconds_of(work, size * FACTOR)
    return large / small


def least_seconds(work: Callable[[], object]) -> float:
    """The least CPU time of several runs, without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        return min(seconds(work) for _ in range(RUNS))
    finally:
        gc.enable()


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


async def least_seconds_of(work: Callable[[int], Awaitable[object]], size: int) -> float:
    gc.collect()
    gc.disable()
    try:
        times = []
        for _ in range(RUNS):
            start = time.process_time()
            await work(size)
            times.append(time.process_time() - start)
            await asyncio.sleep(0)
        return min(times)
    finally:
        gc.enable()
