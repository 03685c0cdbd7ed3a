"""Threads: functions of the user do not hold up others, nor the end of the process."""

import asyncio
import threading
import time
from typing import Any

import httpx
import pytest
from commands import UVICORN, running

from rewrap import threads
from rewrap.config.settings import Settings
from rewrap.large_json import LARGE_BYTES
from rewrap.main import create_app
from rewrap.memory import MemoryBudget
from rewrap.server.loop_lag import LoopLag
from rewrap.threads import MEDIUM_BYTES, ThreadPool, Turns, apart
from rewrap.types import ChatRequest, Delta, ResponseInfo
from rewrap.upstream.callable import CallableBackend

pytestmark = pytest.mark.anyio

ASKED: Any = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# ---- the pool


async def test_calls_run_at_the_same_time_up_to_the_maximum() -> None:
    pool = ThreadPool(3, "test")
    running = 0
    most = 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return number

    found = await asyncio.gather(*(pool.run(work, number) for number in range(12)))
    assert found == list(range(12))
    assert (most, pool.threads) == (3, 3)


async def test_threads_start_when_they_are_needed() -> None:
    pool = ThreadPool(3, "test")
    for _ in range(5):
        await pool.run(time.sleep, 0)
        await asyncio.sleep(0.01)
    assert pool.threads == 1


async def test_exceptions_come_to_the_caller() -> None:
    pool = ThreadPool(1, "test")

    def fail(error: BaseException) -> None:
        raise error

    with pytest.raises(KeyError):
        await pool.run(fail, KeyError("x"))
    for error in (SystemExit(3), StopIteration(), KeyboardInterrupt()):
        with pytest.raises(RuntimeError, match=type(error).__name__):
            await pool.run(fail, error)
    assert await pool.run(int, "7") == 7


async def test_a_caller_that_is_cancelled_leaves_the_queue() -> None:
    pool = ThreadPool(1, "test")
    release = threading.Event()
    calls: list[str] = []
    first = asyncio.create_task(pool.run(release.wait, 10))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(pool.run(calls.append, "second"))
    third = asyncio.create_task(pool.run(calls.append, "third"))
    await asyncio.sleep(0.05)
    second.cancel()
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    release.set()
    await third
    assert calls == ["third"]


async def test_only_a_large_request_is_worked_on_in_a_thread() -> None:
    here = threading.get_ident()
    assert await apart(threading.get_ident) == here
    with MemoryBudget(10 * LARGE_BYTES).reservation() as reserved:
        reserved.grow(LARGE_BYTES)
        assert await apart(threading.get_ident) == here
        reserved.grow(1)
        assert await apart(threading.get_ident) != here


async def test_medium_requests_work_in_order_and_others_have_their_turn_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "TURNS", Turns())
    threads.TURNS.left = 1  # the next request uses it up
    monkeypatch.setattr(threads, "TURN_BYTES", 1)
    order: list[str] = []

    async def medium(name: str) -> None:
        with MemoryBudget(LARGE_BYTES).reservation() as reserved:
            reserved.grow(MEDIUM_BYTES + 1)
            await apart(order.append, name)

    async def small() -> None:
        for _ in range(8):
            await apart(order.append, "small")
            await asyncio.sleep(0)

    await asyncio.gather(medium("a"), medium("b"), medium("c"), small())
    assert [name for name in order if name != "small"] == ["a", "b", "c"]
    assert "small" in order[: order.index("b")]
    assert "small" in order[order.index("b") : order.index("c")]


async def test_medium_requests_share_the_bytes_of_a_turn() -> None:
    turns = Turns()
    order: list[object] = []
    half = threads.TURN_BYTES // 2
    asyncio.get_running_loop().call_soon(order.append, "next turn")
    for number in range(4):
        await turns.take(half, order.append, number)
    assert order[:3] == [0, 1, "next turn"]
    assert order[3:] == [2, 3]


async def test_a_later_medium_request_does_not_overtake_those_that_wait() -> None:
    turns = Turns()
    order: list[int] = []
    tasks = [
        asyncio.create_task(turns.take(threads.TURN_BYTES, order.append, number))
        for number in range(3)
    ]
    while not order:
        await asyncio.sleep(0)
    await turns.take(1, order.append, 3)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3]


async def test_a_medium_request_that_leaves_takes_no_turn() -> None:
    turns = Turns()
    calls: list[int] = []
    tasks = [
        asyncio.create_task(turns.take(threads.TURN_BYTES, calls.append, number))
        for number in range(4)
    ]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert calls == [0, 3]
    await turns.take(1, calls.append, 4)
    assert calls[-1] == 4
    assert not turns.waiters


async def test_the_lag_of_the_loop_is_measured_and_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoopLag, "SECONDS", 0.01)
    caplog.set_level("DEBUG", "rewrap")
    lag = LoopLag()
    lags: list[float] = []
    lag.observe = lags.append
    with lag:
        await asyncio.sleep(0.05)
        time.sleep(0.1)  # noqa: ASYNC251  # holds the loop up
        await asyncio.sleep(0.02)
    assert max(lags) > 0.05
    assert "LOOP_LAG" in caplog.text


# ---- functions as backends


def client(function: Any, **settings: Any) -> httpx.AsyncClient:
    app = create_app(Settings(store_url="sqlite://", **settings), backend=function)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30)


async def test_many_functions_that_hang_hold_up_no_quick_one() -> None:
    release = threading.Event()

    def function(request: ChatRequest) -> str:
        if request.messages[-1]["content"] == "hang":
            release.wait(20)
        return "quick"

    async with client(function) as http:
        hanging = {"messages": [{"role": "user", "content": "hang"}]}
        tasks = [asyncio.create_task(http.post(CHAT, json=ASKED | hanging)) for _ in range(40)]
        await asyncio.sleep(0.2)
        answer = await http.post(CHAT, json=ASKED)
        assert answer.json()["choices"][0]["message"]["content"] == "quick"
        release.set()
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}


async def test_a_function_has_the_time_of_a_request() -> None:
    release = threading.Event()
    limits = {"first_byte_timeout_seconds": 0.3, "total_timeout_seconds": 0.3}
    async with client(lambda request: release.wait(20), **limits) as http:
        for stream in (False, True):
            answer = await http.post(CHAT, json=ASKED | {"stream": stream})
            assert answer.status_code == 504
            assert answer.json()["error"]["code"] == "timeout"
    release.set()


async def test_a_plain_generator_runs_in_a_thread_and_is_closed() -> None:
    closed = threading.Event()

    def generator(request: ChatRequest) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        try:
            for word in ("one ", "two ", "three"):
                time.sleep(0.01)
                yield word
        finally:
            closed.set()

    async with client(generator) as http:
        answer = await http.post(CHAT, json=ASKED)
        assert answer.json()["choices"][0]["message"]["content"] == "one two three"
    assert closed.is_set()
    closed.clear()
    backend = CallableBackend(generator)
    request = ChatRequest("m", ASKED["messages"], ASKED)
    deltas = backend.stream(request, ResponseInfo())
    assert await anext(deltas) == Delta("one ")
    await deltas.aclose()
    assert await asyncio.to_thread(closed.wait, 5)


# ---- hooks and the end of the process

OWN = """
import time
from rewrap import create_app
from rewrap.config.settings import Settings
def slow(chat):
    time.sleep(60)
    return "hi"
app = create_app(Settings(grace_seconds=0.5, store_url="sqlite://"), backend=slow)
"""


async def test_a_function_that_hangs_cannot_hold_back_the_end(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    command = [*UVICORN[:3], "own:app", "--app-dir", str(tmp_path), "--port", "0"]
    root = UVICORN[UVICORN.index("--app-dir") + 1]
    async with running(command, PYTHONPATH=root) as process:
        async with httpx.AsyncClient(base_url=process.url, trust_env=False) as http:
            hanging = asyncio.create_task(http.post(CHAT, json=ASKED))
            await asyncio.sleep(0.5)
            process.signal()
            assert await process.exit_code(5) == 0
            hanging.cancel()
            await asyncio.gather(hanging, return_exceptions=True)


async def test_a_plain_hook_that_waits_holds_up_no_other_chat(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = (
        "import time\ndef before(chat):\n    time.sleep(1 if 'wait' in str(chat.messages) else 0)\n"
    )
    (tmp_path / "waiting_hook.py").write_text(hook)
    monkeypatch.syspath_prepend(tmp_path)
    app = create_app(
        Settings(store_url="sqlite://", use_mock_api=True, hooks="waiting_hook:before")
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        waiting = {"messages": [{"role": "user", "content": "wait"}]}
        slow = asyncio.create_task(http.post(CHAT, json=ASKED | waiting))
        await asyncio.sleep(0.1)
        assert (await http.post(CHAT, json=ASKED)).status_code == 200
        assert not slow.done()
        assert (await slow).status_code == 200
