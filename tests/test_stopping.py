"""The end of a real process: open streams finish within the grace, the rest are told, the exit code is 0; and one worker of two dies.

As `python main.py`, as PID 1 of its own namespace (where the kernel has no default for signals), and as `uvicorn main:app`.
"""

import asyncio
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from commands import PYTHON, UVICORN, Command, children, is_fork, running, workers_of
from serving import ASKED, ROOT
from upstreams import BIG, DONE, FAULTS, TEXT, Request, Upstream, chunk, chunked, hold, make, send

from rewrap.server.signals import UNSENT_SECONDS

pytestmark = pytest.mark.anyio

CHAT, ASK = "/v1/chat/completions", "/ask"
WAYS = {"CHAT_URL": "/chat", "OPENAI_API_BASE": "/v1"}
SECONDS = 3.0  # that a slow stream takes
GRACE = SECONDS + 2
SOON = 2.5  # seconds for what should be at once, on a busy machine


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def upstream(request: Request, reader: Any, writer: Any) -> None:
    """What it does stands in the first message."""
    said = request.json()["messages"][0]["content"]
    if said == "slow":
        await make("sse_openai", TEXT, pause_s=SECONDS / 12)(request, reader, writer)
    elif said == "endless":
        await make("sse_openai", TEXT, gate=asyncio.Event())(request, reader, writer)
    elif said == "flood":
        event = orjson.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 10_000}}]})
        await send(writer, chunked("text/event-stream", [])[:1])
        while True:
            await send(writer, [chunk(b"data: %b\n\n" % event)] * 10)
    elif said == "silent":
        await hold(writer)
    await make("sse_openai" if request.sse else "openai_json", TEXT)(request, reader, writer)


def asked(what: str, stream: bool = True) -> dict[str, Any]:
    return ASKED | {"messages": [{"role": "user", "content": what}], "stream": stream}


def client(process: Command) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=500, max_keepalive_connections=0)
    return httpx.AsyncClient(
        base_url=process.url, trust_env=False, verify=False, timeout=20, limits=limits
    )


class Stream:
    """A request whose answer has begun, and is read on in a task of its own; `body` so far."""

    def __init__(self, way: httpx.AsyncClient, what: str, path: str = CHAT) -> None:
        self.body = b""
        self.begun = asyncio.Event()
        self.task = asyncio.create_task(self.read(way, what, path))

    async def read(self, way: httpx.AsyncClient, what: str, path: str) -> str:
        """How it ended: "done", "error" (an event with one) or "cut"."""
        try:
            async with way.stream("POST", path, json=asked(what)) as response:
                assert response.status_code == 200
                async for piece in response.aiter_raw():
                    self.body += piece
                    self.begun.set()
        except httpx.RemoteProtocolError:
            return "cut"
        finally:
            self.begun.set()
        *_, last = [event for event in self.body.decode().split("\n\n") if event]
        if last == f"data: {DONE}":
            assert "error" not in self.body.decode()
            return "done"
        error = orjson.loads(last.removeprefix("data: "))["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "server_error"
        assert DONE not in self.body.decode()
        return "error"


async def begun(streams: list[Stream]) -> list[Stream]:
    async with asyncio.timeout(10):
        for stream in streams:
            await stream.begun.wait()
    return streams


async def ends(streams: list[Stream]) -> list[str]:
    return await asyncio.gather(*(stream.task for stream in streams))


CUT = (
    "ERROR:    ASGI callable returned without completing response."  # how uvicorn cuts a plain text
)


def clean(process: Command) -> None:
    assert "Traceback" not in process.log, process.log
    assert "ERROR" not in process.log.replace(CUT, ""), process.log


async def drains(
    way: str, command: list[str] | None = None, find: Callable[[int], int] = int
) -> None:
    """50 streams that need 3 s finish; 10 endless ones end with an event; new ones get 503; the exit code is 0."""
    async with Upstream(upstream) as up:
        environment = {way: up.url + WAYS[way], "GRACE_SECONDS": str(GRACE)}
        async with running(command, **environment) as process, client(process) as asking:
            process.pid = find(process.child.pid)
            slow = [Stream(asking, "slow") for _ in range(50)]
            endless = [Stream(asking, "endless") for _ in range(10)]
            plain = Stream(asking, "endless", ASK)
            whole = asyncio.create_task(asking.post(CHAT, json=asked("silent", stream=False)))
            await begun([*slow, *endless, plain])
            started = process.signal()
            await asyncio.sleep(0.3)
            for path in (CHAT, ASK, "/v1/models", "/health"):
                refused = await asking.request(
                    "GET" if "m" in path[-6:] else "POST", path, json=asked("good")
                )
                if path != "/health":
                    check_stopping(refused, path)
            assert await ends(slow) == ["done"] * 50
            assert time.monotonic() - started < GRACE - 0.1
            assert await ends([*endless, plain]) == ["error"] * 10 + ["cut"]
            assert GRACE - 0.2 < time.monotonic() - started < GRACE + SOON
            check_stopping(await whole, CHAT)
            assert await process.exit_code(SOON) == 0
            clean(process)


def check_stopping(response: httpx.Response, path: str) -> None:
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.headers["connection"] == "close"
    if path == ASK:
        assert response.json()["role"] == "assistant"
    else:
        assert response.json()["error"]["type"] == "server_error"


def as_pid_1() -> list[str]:
    """A command to be PID 1 with; or none."""
    command = ["unshare", "--fork", "--pid", "--mount-proc"]
    if (
        shutil.which("unshare")
        and not subprocess.run([*command, "true"], capture_output=True).returncode
    ):
        return command
    return []


async def test_at_sigterm_50_streams_finish_and_10_endless_ones_are_told_and_so_they_are_by_uvicorn() -> (
    None
):
    await asyncio.gather(*map(drains, WAYS), drains("CHAT_URL", UVICORN))


async def test_as_pid_1_it_ends_as_gently() -> None:
    if not (unshare := as_pid_1()):
        pytest.skip("no PID namespaces here")
    await drains("OPENAI_API_BASE", [*unshare, *PYTHON], lambda pid: children(pid)[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_idle_server_ends_at_once_with_exit_status_0(number: int, workers: str) -> None:
    async with running(WORKERS=workers) as process, client(process) as asking:
        assert (await asking.get("/health")).status_code == 200
        process.signal(number)
        assert await process.exit_code(SOON) == 0
        clean(process)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_server_under_nohup_outlives_its_terminal(workers: str) -> None:
    nohup = ["nohup", *PYTHON]
    async with running(nohup, WORKERS=workers) as process, client(process) as asking:
        assert (await asking.get("/health")).status_code == 200
        os.killpg(process.child.pid, signal.SIGHUP)  # as the end of a terminal does
        await asyncio.sleep(0.8)
        assert (await asking.get("/health")).status_code == 200
        process.signal()
        assert await process.exit_code(SOON) == 0


async def test_a_signal_as_soon_as_the_address_is_out_ends_it_with_code_0() -> None:
    async with running() as process:
        process.signal()
        assert await process.exit_code(SOON) == 0
        clean(process)


@pytest.mark.parametrize("grace", [0.0, 0.7])
async def test_the_grace_is_as_long_as_it_is_set(grace: float) -> None:
    async with Upstream(upstream) as up:
        async with running(OPENAI_API_BASE=f"{up.url}/v1", GRACE_SECONDS=str(grace)) as process:
            async with client(process) as asking:
                streams = await begun([Stream(asking, "endless"), Stream(asking, "slow")])
                started = process.signal(signal.SIGINT)
                assert await ends(streams) == ["error"] * 2
                assert grace <= time.monotonic() - started < grace + 1
                assert await process.exit_code(SOON) == 0
                clean(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_second_signal_ends_it_at_once(number: int, workers: str) -> None:
    async with Upstream(upstream) as up:
        async with (
            running(OPENAI_API_BASE=f"{up.url}/v1", WORKERS=workers) as process,
            client(process) as asking,
        ):
            streams = await begun(
                [Stream(asking, "endless"), Stream(asking, "flood"), Stream(asking, "flood")]
            )
            process.signal(number)
            await asyncio.sleep(0.8)
            assert process.child.poll() is None
            process.signal(number)
            assert await process.exit_code(SOON) == 0
            await ends(streams)
            assert "Traceback" not in process.log, process.log


async def test_two_signals_in_a_row_end_two_workers_at_once() -> None:
    async with Upstream(upstream) as up:
        async with (
            running(OPENAI_API_BASE=f"{up.url}/v1", WORKERS="2") as process,
            client(process) as asking,
        ):
            await begun([Stream(asking, "endless")])
            process.signal()
            await asyncio.sleep(0.05)
            process.signal()
            assert await process.exit_code(SOON) == 0


async def drips(request: Request, reader: Any, writer: Any) -> None:
    await send(writer, chunked("application/json", [])[:1])
    while True:
        await send(writer, [chunk(b" ")])
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.parametrize("key", ["", "sk-of-ours"])
async def test_who_asks_for_the_models_cannot_hold_it_back(signals: int, key: str) -> None:
    paths = ["/v1/models", "/v1/models/x", "/info"]
    async with Upstream(drips) as up:
        environment = {"OPENAI_API_BASE": f"{up.url}/v1", "OPENAI_API_KEY": key}
        environment["GRACE_SECONDS"] = "0.3" if signals == 1 else "30"
        async with running(**environment) as process, client(process) as asking:
            asking.headers["authorization"] = "Bearer of-theirs"
            staying, leaving = (
                [asyncio.create_task(asking.get(path)) for path in paths] for _ in range(2)
            )
            await up.wait_requests()
            await asyncio.sleep(0.3)
            for task in leaving:
                task.cancel()
            for _ in range(signals):
                process.signal()
                await asyncio.sleep(0.1)
            assert await process.exit_code(UNSENT_SECONDS + SOON) == 0
            for answer in await asyncio.gather(*staying, return_exceptions=True):
                if signals == 1:
                    assert isinstance(answer, httpx.Response)
                    check_stopping(answer, "")
            await asyncio.gather(*leaving, return_exceptions=True)
            clean(process)


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_hook_that_never_ends_cannot_hold_it_back(signals: int, tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(
        "import asyncio\nasync def before(chat): await asyncio.Event().wait()\n"
    )
    environment = {"HOOKS": "hanging:before", "PYTHONPATH": str(tmp_path)}
    async with (
        running(**environment, GRACE_SECONDS="0.3" if signals == 1 else "30") as process,
        client(process) as asking,
    ):
        chat = asyncio.create_task(asking.post(CHAT, json=asked("good", stream=False)))
        await asyncio.sleep(0.5)
        for _ in range(signals):
            process.signal()
            await asyncio.sleep(0.1)
        assert await process.exit_code(1 + UNSENT_SECONDS + SOON) == 0
        if signals == 1:  # the request gets an answer at the end of the grace period
            assert (await chat).status_code == 503
        else:
            with pytest.raises(httpx.TransportError):
                await chat
        clean(process)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_log_that_nobody_reads_any_more_is_no_failure(workers: str) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PORT": "0",
        "WORKERS": workers,
        "STORE_URL": "sqlite:////dev/null",
    }
    with subprocess.Popen(
        PYTHON, cwd=ROOT / "tests", env=environment, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr
        found = re.search(r"http://\S+:\d+", child.stderr.readline())
        child.stderr.close()
        assert found
        assert httpx.get(f"{found[0]}/health", trust_env=False, timeout=10).status_code == 200
        time.sleep(0.3)  # its line is written
        child.terminate()
        assert child.wait(10) == 0


async def test_those_who_do_not_read_or_do_not_send_cannot_hold_it_back() -> None:
    async with Upstream(upstream) as up:
        async with running(CHAT_URL=f"{up.url}/chat", GRACE_SECONDS="0.3") as process:
            host, port = process.url.removeprefix("http://").split(":")
            head = (
                f"POST {CHAT} HTTP/1.1\r\nhost: x.localhost\r\ncontent-length: %d\r\n\r\n".replace(
                    "x.", ""
                ).encode()
            )
            body = orjson.dumps(asked("flood"))
            sent = {
                "does not read": head % len(body) + body,
                "half a body": head % len(body) + body[:-9],
                "half a head": head[:20],
                "nothing": b"",
                "idle after an answer": b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
            }
            ways = {name: await asyncio.open_connection(host, int(port)) for name in sent}
            for name, (reader, writer) in ways.items():
                writer.write(sent[name])
                if name == "does not read":
                    writer.transport.pause_reading()  # type: ignore[attr-defined]
                elif name.startswith("idle"):
                    await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(1)
            process.signal()
            assert await process.exit_code(2 + SOON) == 0
            assert "Traceback" not in process.log, process.log
            for _, writer in ways.values():
                writer.close()


async def test_who_reads_slowly_has_the_grace_to_read_all_that_was_sent() -> None:
    async with Upstream(FAULTS["body_10mb"]) as up:
        async with (
            running(OPENAI_API_BASE=f"{up.url}/v1", GRACE_SECONDS="6") as process,
            client(process) as asking,
        ):
            async with asking.stream("POST", CHAT, json=asked("good", stream=False)) as response:
                pieces = response.aiter_raw()
                body = await anext(pieces)
                process.signal()
                await asyncio.sleep(2)
                body += b"".join([piece async for piece in pieces])
            assert orjson.loads(body)["choices"][0]["message"]["content"] == BIG
            assert await process.exit_code(SOON) == 0
            clean(process)


async def test_it_may_have_as_many_connections_as_the_system_allows() -> None:
    few = ["sh", "-c", 'ulimit -Sn 200; exec "$0" "$@"', *PYTHON]
    async with running(few) as process:
        limits = await asyncio.to_thread(Path(f"/proc/{process.pid}/limits").read_text)
        soft, hard = map(int, re.search(r"Max open files +(\d+) +(\d+)", limits).groups())  # type: ignore[union-attr]
        assert soft == min(hard, 65536) > 200


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_start_that_fails_has_another_exit_code(workers: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "chat.db")) as newer:
        newer.execute("PRAGMA user_version = 99")
    async with running(WORKERS=workers, STORE_URL=f"sqlite:///{tmp_path}/chat.db") as process:
        assert await process.exit_code(10) not in (0, -15)


# ---- several workers


def sockets(pid: int) -> int:
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since the folder was listed
            count += os.readlink(link).startswith("socket:")
    return count


async def served_by_two(process: Command, asking: httpx.AsyncClient) -> list[int]:
    """Wait until both workers serve; their pids."""
    async with asyncio.timeout(15):
        while True:
            pids = workers_of(process.pid)
            if len(pids) == 2 and all(sockets(pid) > 3 for pid in pids):
                assert (await asking.get("/health")).status_code == 200
                await asyncio.sleep(0.3)
                return pids
            await asyncio.sleep(0.05)


async def spread(
    asking: httpx.AsyncClient, pids: list[int], what: str
) -> tuple[list[Stream], dict[int, int]]:
    """Streams until each worker has some; how many each has."""
    idle = {pid: sockets(pid) for pid in pids}
    streams: list[Stream] = []
    for _ in range(20):
        streams += await begun([Stream(asking, what) for _ in range(10)])
        counts = {
            pid: (sockets(pid) - idle[pid]) // 2 for pid in pids
        }  # one to the client, one to the upstream
        if all(counts.values()):
            return streams, counts
    pytest.skip("the kernel gave all connections to one worker")


async def test_a_worker_killed_in_mid_stream_loses_its_own_streams_alone_and_is_replaced() -> None:
    async with Upstream(upstream) as up:
        async with (
            running(OPENAI_API_BASE=f"{up.url}/v1", WORKERS="2") as process,
            client(process) as asking,
        ):
            pids = await served_by_two(process, asking)
            streams, counts = await spread(asking, pids, "slow")
            assert sum(counts.values()) == len(streams)
            os.kill(pids[0], signal.SIGKILL)
            answers = await asyncio.gather(
                *(asking.post(CHAT, json=asked("good", stream=False)) for _ in range(30))
            )
            assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == [
                TEXT
            ] * 30
            found = await ends(streams)
            assert (found.count("cut"), found.count("done")) == (counts[pids[0]], counts[pids[1]])
            replaced = await served_by_two(process, asking)
            assert pids[1] in replaced
            assert pids[0] not in replaced
            streams, _ = await spread(asking, replaced, "slow")
            process.signal()
            assert await ends(streams) == ["done"] * len(streams)
            assert await process.exit_code(SOON) == 0
            clean(process)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_a_worker_that_cannot_restart_is_tried_less_and_less_often_and_the_other_serves(
    tmp_path: Path,
) -> None:
    store = f"sqlite:///{tmp_path}/chat.db"

    def set_version(number: int) -> None:
        with closing(sqlite3.connect(tmp_path / "chat.db")) as file:
            file.execute(f"PRAGMA user_version = {number}")

    def version() -> int:
        with closing(sqlite3.connect(tmp_path / "chat.db")) as file:
            return int(file.execute("PRAGMA user_version").fetchone()[0])

    async with running(WORKERS="2", STORE_URL=store) as process, client(process) as asking:
        pids = await served_by_two(process, asking)
        good = await asyncio.to_thread(version)
        await asyncio.to_thread(set_version, 99)  # of a newer release: a new worker cannot start
        os.kill(pids[0], signal.SIGKILL)
        end = time.monotonic() + 8
        while time.monotonic() < end:
            assert (await asking.get("/health")).status_code == 200
            await asyncio.sleep(0.05)
        failed = [line for line in process.lines if "schema 99" in line]
        assert 2 <= len(failed) <= 4  # after 0, 1, 2 and 4 seconds at the earliest
        lines = [line for line in process.lines if "a worker ended" in line]
        assert len(lines) == 1, lines
        assert "signal 9" in lines[0]
        await asyncio.to_thread(set_version, good)
        await served_by_two(process, asking)
        process.signal()
        assert await process.exit_code(SOON) == 0


async def test_workers_end_as_gently_when_their_parent_is_gone() -> None:
    async with Upstream(upstream) as up:
        async with (
            running(OPENAI_API_BASE=f"{up.url}/v1", WORKERS="2") as process,
            client(process) as asking,
        ):
            pids = await served_by_two(process, asking)
            try:
                streams = await begun([Stream(asking, "slow") for _ in range(4)])
                process.signal(signal.SIGKILL)
                assert await ends(streams) == ["done"] * 4
                async with asyncio.timeout(UNSENT_SECONDS + SOON):
                    while any(map(lives, pids)):
                        await asyncio.sleep(0.05)
                clean(process)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.child.pid, signal.SIGKILL)


async def test_workers_may_be_added_and_taken_away_by_signals() -> None:
    async with running(WORKERS="2") as process, client(process) as asking:

        async def become(count: int, without: int = 0) -> list[int]:
            async with asyncio.timeout(15):
                while len(pids := workers_of(process.pid)) != count or without in pids:
                    await asyncio.sleep(0.05)
            return pids

        pids = await served_by_two(process, asking)
        process.signal(signal.SIGTTIN)
        added = (set(await become(3)) - set(pids)).pop()
        assert is_fork(added, process.pid)
        await asyncio.sleep(1)
        os.kill(added, signal.SIGKILL)
        await become(3, without=added)
        for count in (2, 1):
            process.signal(signal.SIGTTOU)
            await become(count)
        assert (await asking.get("/health")).status_code == 200
        process.signal()
        assert await process.exit_code(SOON) == 0
        clean(process)


async def test_a_worker_ends_with_its_parent_even_if_a_later_one_hangs() -> None:
    async with running(WORKERS="2") as process, client(process) as asking:
        first, later = sorted(await served_by_two(process, asking))
        try:
            os.kill(later, signal.SIGSTOP)
            process.signal(signal.SIGKILL)
            async with asyncio.timeout(UNSENT_SECONDS + SOON):
                while lives(first):
                    await asyncio.sleep(0.05)
        finally:
            os.killpg(process.child.pid, signal.SIGKILL)


async def two_workers_drain(number: int) -> None:
    environment = {"WORKERS": "2", "GRACE_SECONDS": str(GRACE)}
    async with (
        Upstream(upstream) as up,
        running(OPENAI_API_BASE=f"{up.url}/v1", **environment) as process,
    ):
        async with client(process) as asking:
            slow, _ = await spread(asking, await served_by_two(process, asking), "slow")
            endless = await begun([Stream(asking, "endless") for _ in range(10)])
            if number in (signal.SIGINT, signal.SIGHUP):  # as a terminal does
                os.killpg(process.child.pid, number)
            else:
                process.signal(number)
            assert await ends(slow) == ["done"] * len(slow)
            assert await ends(endless) == ["error"] * 10
            assert await process.exit_code(SOON) == 0
            clean(process)


async def test_two_workers_drain_too_even_if_the_terminal_signals_all_of_them() -> None:
    await asyncio.gather(*map(two_workers_drain, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))


async def test_workers_are_forks_unless_a_module_of_hooks_may_have_threads(tmp_path: Path) -> None:
    imports = tmp_path / "imports.txt"
    module = f"import os\nopen({str(imports)!r}, 'a').write(f'{{os.getpid()}} ')\n"
    (tmp_path / "checks.py").write_text(f"{module}def before_chat(request): pass\n")
    for hooks, forks in (("", True), ("checks:before_chat", False)):
        environment = {"WORKERS": "2", "HOOKS": hooks, "PYTHONPATH": str(tmp_path)}
        async with running(**environment) as process, client(process) as asking:
            pids = await served_by_two(process, asking)
            assert [is_fork(pid, process.pid) for pid in pids] == [forks] * 2
    assert set(imports.read_text().split()) == {str(pid) for pid in [process.pid, *pids]}
