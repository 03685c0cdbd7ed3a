"""How the cost of a function grows with its input: a ratio, which does not depend on the machine.

Ten times the input may cost at most 15 times the CPU time. Work that grows with the square costs 100
times. Other processes disturb each measurement, so the least of several counts.
"""

import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
FACTOR = 10
LINEAR = 15.0
ATTEMPTS = 4
RUNS = 3


def growth(make: Callable[[int], T], work: Callable[[T], object], size: int) -> float:
    """The cost of `work` for an input of ten times `size`, divided by that for one of `size`."""
    small = make(size)
    large = make(size * FACTOR)
    ratios = []
    with no_collection():
        for _ in range(ATTEMPTS):
            # As long as the large one, so that both are disturbed alike.
            smalls = [seconds(lambda: repeat(work, small)) for _ in range(RUNS)]
            larges = [seconds(lambda: work(large)) for _ in range(RUNS)]
            ratios.append(min(larges) * FACTOR / min(smalls))
            if ratios[-1] < LINEAR:
                break
    return min(ratios)


async def growth_of(work: Callable[[int], Awaitable[object]], size: int) -> float:
    """The same for a coroutine, which makes its own input of a size."""
    ratios = []
    with no_collection():
        for _ in range(ATTEMPTS):
            smalls = [await seconds_of(work, size, FACTOR) for _ in range(RUNS)]
            larges = [await seconds_of(work, size * FACTOR, 1) for _ in range(RUNS)]
            ratios.append(min(larges) * FACTOR / min(smalls))
            if ratios[-1] < LINEAR:
                break
    return min(ratios)


def growth_between(
    small: Callable[[], object], large: Callable[[], object], limit: float = LINEAR
) -> float:
    """The cost of the large work divided by that of the small one, whose sizes the caller chose."""
    ratios = []
    with no_collection():
        for _ in range(ATTEMPTS):
            smalls = [seconds(small) for _ in range(RUNS)]
            larges = [seconds(large) for _ in range(RUNS)]
            ratios.append(min(larges) / min(smalls))
            if ratios[-1] < limit:
                break
    return min(ratios)


@contextmanager
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def repeat(work: Callable[[T], object], value: T) -> None:
    for _ in range(FACTOR):
        work(value)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


async def seconds_of(work: Callable[[int], Awaitable[object]], size: int, times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        await work(size)
    return time.process_time() - start
