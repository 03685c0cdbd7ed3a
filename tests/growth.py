"""How the cost of a function grows with its input: a ratio, which does not depend on the machine.

Ten times the input may cost at most 15 times the CPU time. Work that grows with the square costs 100
times, at each size. Other processes disturb each measurement, so the least of several counts. Where
the larger input alone leaves a cache of the processor, the ratio is high at that size: so larger
inputs are tried, too.
"""

import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

T = TypeVar("T")
FACTOR = 10
LINEAR = 15.0
SCALES = (1, 3, 8)  # of the caller's size, until one is linear
ATTEMPTS = 4
RUNS = 4


def growth(make: Callable[[int], T], work: Callable[[T], object], size: int) -> float:
    """The cost of `work` for an input of ten times `size`, divided by that for one of `size`.

    `work` must not change its input.
    """
    for scale in SCALES:
        small = make(size * scale)
        large = make(size * scale * FACTOR)
        # As long as the large one, so that both are disturbed alike.
        ratio = FACTOR * growth_between(partial(repeat, work, small), partial(work, large))
        if ratio < LINEAR:
            break
    return ratio


def growth_between(repeated: Callable[[], object], large: Callable[[], object]) -> float:
    """The cost of the large work divided by that of the small work, repeated."""
    smalls: list[float] = []
    larges: list[float] = []
    with no_collection():
        for _ in range(ATTEMPTS):
            smalls += [seconds(repeated) for _ in range(RUNS)]
            larges += [seconds(large) for _ in range(RUNS)]
            ratio = min(larges) / min(smalls)
            if ratio * FACTOR < LINEAR:
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
