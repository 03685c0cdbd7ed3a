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
ATTEMPTS = 8
RUNS = 4


def growth(make: Callable[[int], T], work: Callable[[T], object], size: int) -> float:
    """The cost of `work` for an input of ten times `size`, divided by that for one of `size`."""
    small = make(size)
    large = make(size * FACTOR)
    # As long as the large one, so that both are disturbed alike.
    return FACTOR * growth_between(
        lambda: repeat(work, small), lambda: work(large), LINEAR / FACTOR
    )


def growth_between(
    small: Callable[[], object], large: Callable[[], object], limit: float = LINEAR
) -> float:
    """The cost of the large work divided by that of the small one, whose sizes the caller chose."""
    smalls: list[float] = []
    larges: list[float] = []
    with no_collection():
        for _ in range(ATTEMPTS):
            smalls += [seconds(small) for _ in range(RUNS)]
            larges += [seconds(large) for _ in range(RUNS)]
            ratio = min(larges) / min(smalls)
            if ratio < limit:
                break
    return ratio


async def growth_of(work: Callable[[int], Awaitable[object]], size: int) -> float:
    """The same for a coroutine, which makes its own input of a size."""
    smalls: list[float] = []
    larges: list[float] = []
    with no_collection():
        for _ in range(ATTEMPTS):
            smalls += [await seconds_of(work, size, FACTOR) for _ in range(RUNS)]
            larges += [await seconds_of(work, size * FACTOR, 1) for _ in range(RUNS)]
            ratio = min(larges) * FACTOR / min(smalls)
            if ratio < LINEAR:
                break
    return ratio


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
    start = time.thread_time()
    work()
    return time.thread_time() - start


async def seconds_of(work: Callable[[int], Awaitable[object]], size: int, times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        await work(size)
    return time.process_time() - start
