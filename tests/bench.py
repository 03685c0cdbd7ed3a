"""The benchmark: `python tests/bench.py` prints what a request costs here, beside nginx and any other command.

It starts a fast fake upstream and, for every single measurement, a fresh server on a core of its own; drives the servers in
turns (A B A B), checks every answer, and prints medians. (n ×) is the median over rounds of the ratio to nginx in the same
round; "added" times have the same round's time with no proxy taken off. CPU-µs, the figure to trust on a busy machine, is
user and system time of all processes of the server.

    python tests/bench.py --quick --only json
    python tests/bench.py --beside 'other=some-proxy --port {port} --upstream {upstream}/v1'
    python tests/bench.py --beside 'other@chat=some-proxy --port {port} --url {upstream}/chat'     (@mock: needs no upstream)

`tests/peers/install.sh` installs other programs, and --peers measures them. Linux only; needs uvloop and httptools. Servers
must keep connections alive and answer POST /v1/chat/completions; each gets this project's settings in its environment. Only
--installed leaves loopback. With 2 cores, load and upstream share one.
"""

import argparse
import asyncio
import gc
import http.client
import json
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import httptools
import uvloop

ROOT = Path(__file__).resolve().parent.parent
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, UPSTREAM_CORE, LOAD_CORE = CORES[0], CORES[min(1, len(CORES) - 1)], CORES[-1]
OURS, NGINX, DIRECT = "rewrap", "nginx", "no proxy"
PATH = "/v1/chat/completions"

# What is said: a request of 1.4 kB, an answer of 1 kB, events of 230 bytes.


def words(count: int) -> str:
    return " ".join(f"word{i:03}" for i in range(count))


def response(body: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


def framed(content: str) -> bytes:
    """One event, in a chunk of HTTP's own."""
    piece = f"data: {content}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(piece), piece)


ANSWER = """{"id":"chatcmpl-B9MBs8CjcvOU2jLn4n57","object":"%s","created":1760000000,"model":"gpt-4o-mini",\
"system_fingerprint":null,"choices":[{"index":0,%s,"logprobs":null,"finish_reason":%s}]%s}"""
USAGE = ',"usage":{"prompt_tokens":200,"completion_tokens":60,"total_tokens":260,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0}}'
MESSAGE = (
    f'"message":{{"role":"assistant","content":"{words(60)}","refusal":null,"annotations":[]}}'
)
COMPLETION = ANSWER % ("chat.completion", MESSAGE, '"stop"', USAGE)
JSON, MODELS = (
    response(COMPLETION),
    response('{"object":"list","data":[{"id":"gpt-4o-mini","object":"model"}]}'),
)
REPLIES = {count: response(f'{{"reply":"{words(count)}"}}') for count in (60, 100)}

WORD = ANSWER % ("chat.completion.chunk", '"delta":{"content":"%s"}', "null", "")
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ROLE = framed(
    ANSWER % ("chat.completion.chunk", '"delta":{"role":"assistant","content":""}', "null", "")
)
FINISH = (
    framed(ANSWER % ("chat.completion.chunk", '"delta":{}', '"stop"', ""))
    + framed("[DONE]")
    + b"0\r\n\r\n"
)
STREAM = [HEAD, ROLE, *(framed(WORD % f"word{i:03} ") for i in range(100)), FINISH]
STAMP = re.compile(rb'"t(\d+) "')  # the content of a paced chunk: when it was sent, in nanoseconds


LOOK_BYTES = 4_000  # the upstream looks for its orders in the first bytes of a body
TURN = [
    {"role": "user", "content": "x" + " word" * 400},  # 2 kB each, as agents send them
    {"role": "assistant", "content": "y" + " word" * 400},
]


def question(say: str, stream: bool, max_tokens: int, prompt_bytes: int = 0) -> bytes:
    """A chat whose prompt tells the fake upstream what to do; the mock answers with the prompt, up to `max_tokens` words."""
    turns = TURN * (prompt_bytes // len(json.dumps(TURN)))
    messages = [
        {"role": "system", "content": "You are terse. " * 11 + say},
        *turns,
        {"role": "user", "content": f"{say} {words(99)}"},
    ]
    payload = {
        "model": "gpt-4o-mini",
        "max_tokens": max_tokens,
        "stream": stream,
        "messages": messages,
    }
    return json.dumps(payload, separators=(",", ":")).encode()


def request(body: bytes) -> bytes:
    """The bytes that an OpenAI SDK sends, or nearly."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\nAccept-Encoding: identity\r\n"
    head += "Content-Type: application/json\r\nAuthorization: Bearer sk-bench\r\nUser-Agent: OpenAI/Python 3.0.0\r\n"
    head += "X-Stainless-Lang: python\r\nX-Stainless-Async: false\r\nx-stainless-retry-count: 0\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


class Upstream(asyncio.Protocol):
    """Answers with prebuilt bytes. In a prompt, `pace=MSxN` asks for N stamped chunks, `words=N` for a reply of N words."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.loop = transport, asyncio.get_running_loop()
        self.fd: int = transport.get_extra_info("socket").fileno()
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.body = bytearray()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        body = bytes(self.body[:LOOK_BYTES])
        self.body.clear()
        if self.url.endswith(b"/chat"):
            asked = re.search(rb"words=(\d+)", body)
            self.send(REPLIES[int(asked[1]) if asked else 60])
        elif b'"stream":true' not in body and b'"stream": true' not in body:
            self.send(JSON if body else MODELS)
        elif b"short" in body:
            self.send(HEAD + ROLE + framed(WORD % "word") + FINISH)
        elif pace := re.search(rb"pace=(\d+)x(\d+)", body):
            self.send(HEAD + ROLE)
            self.due, self.interval, self.left = self.loop.time(), int(pace[1]) / 1000, int(pace[2])
            self.tick()
        else:
            for piece in STREAM:
                self.send(piece)

    def tick(self) -> None:
        if self.left and not self.transport.is_closing():
            self.left, self.due = self.left - 1, self.due + self.interval
            self.send(framed(WORD % f"t{time.monotonic_ns()} "))
            self.loop.call_at(self.due, self.tick)
        else:
            self.send(FINISH)

    def send(self, piece: bytes) -> None:
        """One system call a piece, now: uvloop would gather all pieces of one turn of its loop in one call."""
        if self.transport.is_closing():
            return
        try:
            written = 0 if self.transport.get_write_buffer_size() else os.write(self.fd, piece)
        except OSError:  # full, or gone: uvloop finds out which
            written = 0
        if written < len(piece):
            self.transport.write(piece[written:])


async def upstream() -> None:
    gc.disable()
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Wrong(Exception):
    """A server did not start, or an answer is not what it must be."""


def parsed(body: bytes) -> tuple[int, int]:
    """Words and chunks of a completion, of a chat URL's {"reply": str}, or of a stream that ends with [DONE]."""
    if body.startswith(b"{"):
        whole = json.loads(body)
        return len((whole.get("reply") or whole["choices"][0]["message"]["content"]).split()), 0
    events = [line[5:].strip() for line in body.splitlines() if line.startswith(b"data:")]
    if not events or events.pop() != b"[DONE]":
        raise Wrong("a stream without [DONE]")
    deltas = [json.loads(text)["choices"][0]["delta"] for text in events]
    return len("".join(delta.get("content") or "" for delta in deltas).split()), len(deltas)


class Run:
    """What the connections of one measurement share: the question, the words and chunks that must come back, what came."""

    def __init__(self, body: bytes, words: int, chunks: int, again: bool) -> None:
        self.request, self.expected, self.again = request(body), (words, chunks), again
        self.times: list[float] = []  # seconds from a question to its whole answer
        self.firsts: list[float] = []  # ... to the first byte of the body
        self.delays: list[
            int
        ] = []  # nanoseconds from the upstream's write of a chunk to our reading of it
        self.answer = (0, 0)  # words and chunks of the last answer that was parsed
        self.clients: list[Client] = []
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def check(self, status: int, body: bytes) -> None:
        if status != 200:
            raise Wrong(f"status {status}: {body[:200]!r}")
        self.answer = parsed(body)
        if any(want and want != got for want, got in zip(self.expected, self.answer, strict=True)):
            raise Wrong(f"(words, chunks) are {self.answer}, not {self.expected}")

    def fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error if isinstance(error, Wrong) else Wrong(repr(error)))

    async def wait(self, seconds: float, until: Callable[[], bool] | None = None) -> None:
        """Sleep, but not past `until`; raises Wrong as soon as an answer is wrong."""
        finish = time.perf_counter() + seconds
        while (left := finish - time.perf_counter()) > 0 and not (until and until()):
            await asyncio.wait([self.failed], timeout=min(left, 0.05) if until else left)
            if self.failed.done():
                self.failed.result()

    async def connect(
        self, port: int, protocol: type["Client"], count: int, apart: float = 0
    ) -> None:
        for _ in range(count):
            await asyncio.get_running_loop().create_connection(
                lambda: protocol(self), "127.0.0.1", port
            )
            await self.wait(apart)

    async def finish(self) -> None:
        """Let every open answer come to its end: all whole, or Wrong."""
        self.again = False
        await self.wait(30, lambda: not any(client.waiting for client in self.clients))
        if late := sum(client.waiting for client in self.clients):
            raise Wrong(f"{late} answers never came to an end")
        for client in self.clients:
            client.transport.abort()


class Client(asyncio.Protocol):
    """One keep-alive connection; asks again as soon as an answer is whole."""

    def __init__(self, run: Run) -> None:
        self.run, self.waiting = run, False
        self.checked: tuple[int, ...] = ()
        run.clients.append(self)

    def connection_made(self, transport: Any) -> None:
        self.transport, self.parser = transport, httptools.HttpResponseParser(self)
        self.ask()

    def ask(self) -> None:
        self.pieces: list[bytes] = []
        self.waiting, self.asked = True, time.perf_counter()
        self.transport.write(self.run.request)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as exc:  # it wraps what on_message_complete raises
            self.run.fail(exc.__context__ or exc)

    def on_body(self, data: bytes) -> None:
        if not self.pieces:
            self.run.firsts.append(time.perf_counter() - self.asked)
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        self.run.times.append(time.perf_counter() - self.asked)
        self.waiting, body = False, b"".join(self.pieces)
        # Parsing each answer would make the load the bottleneck: one that has the shape of a parsed one passes.
        shape = (
            self.parser.get_status_code(),
            body.count(b" "),
            body.count(b"data:"),
            body.count(b"[DONE]"),
        )
        if shape != self.checked:
            self.run.check(shape[0], body)
            self.checked = shape
        if self.run.again:
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiting:
            self.run.fail(Wrong("the connection closed before the answer was whole"))


class Listener(Client):
    """Asks for one stamped stream, and notes how late each chunk is."""

    rest = b""

    def on_body(self, data: bytes) -> None:
        now, finish = time.monotonic_ns(), 0
        self.pieces.append(data)
        self.rest += data  # an event may come in two pieces
        for stamp in STAMP.finditer(self.rest):
            self.run.delays.append(now - int(stamp[1]))
            finish = stamp.end()
        self.rest = self.rest[finish:]


@dataclass
class Server:
    """A running server. Its session is its own, so all of its processes can be found and ended."""

    port: int
    process: subprocess.Popen[bytes] | None = (
        None  # None: the upstream itself, for the times with no proxy
    )
    ready: dict[str, float] = field(default_factory=dict)  # seconds from start to the first 200
    stats: list[Path] = field(default_factory=list)  # /proc/PID/stat of each process

    def sum(self, first: int, last: int) -> int:
        """Of these fields of /proc/PID/stat, over all processes; numbered as in its manual page."""
        found = (
            path.read_text().rpartition(")")[2].split()[first - 3 : last - 2] for path in self.stats
        )
        return sum(int(number) for numbers in found for number in numbers)

    def cpu(self) -> float:
        """User and system seconds so far, those of ended children too."""
        return self.sum(14, 17) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Resident bytes."""
        return self.sum(24, 24) * os.sysconf("SC_PAGE_SIZE")

    def sockets(self) -> list[int]:
        """The number of open sockets of each process."""
        return [
            sum(os.readlink(link).startswith("socket:") for link in (path.parent / "fd").iterdir())
            for path in self.stats
        ]

    def status(self, method: str, path: str, body: bytes = b"") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(
                method,
                path,
                body,
                {"Content-Type": "application/json", "Authorization": "Bearer sk-bench"},
            )
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def answers(self, process: subprocess.Popen[bytes], began: float) -> bool:
        """Wait for the first answered chat: False after a minute, or when the process has ended."""
        asks = [
            ("/health", "GET", b""),
            (PATH, "POST", question("words=60", stream=False, max_tokens=60)),
        ]
        while PATH not in self.ready:
            if process.poll() is not None or time.perf_counter() > began + 60:
                return False
            for path, method, body in asks:
                if path not in self.ready and self.status(method, path, body) == 200:
                    self.ready[path] = time.perf_counter() - began
            time.sleep(0.002)
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(ProcessLookupError):  # another process that ends just now
                if os.getsid(int(entry.name)) == process.pid:
                    self.stats.append(entry / "stat")
        return True


def spawn(command: list[str], cores: Collection[int], **options: Any) -> subprocess.Popen[bytes]:
    os.sched_setaffinity(0, cores)  # a child inherits it
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    os.sched_setaffinity(0, {LOAD_CORE})
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for what two seconds later is left of its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(2)


NGINX_CONF = """daemon off; worker_processes 1; worker_rlimit_nofile 65536; pid {dir}/pid; error_log {dir}/error.log;
events {{ worker_connections 32768; }}
http {{
    access_log off; keepalive_requests 1000000000; default_type application/json; client_body_temp_path {dir}/body;
    client_max_body_size 100m; proxy_request_buffering off;
    proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    upstream up {{ server 127.0.0.1:{upstream}; keepalive 2048; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /health {{ return 200 '{{}}'; }}
        location / {{ {location} }}
    }}
}}"""
PROXY = 'proxy_pass http://up{}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;'
LOCATIONS = {
    "relay": PROXY.format(""),
    "chat": PROXY.format("/chat"),
    "mock": f"return 200 '{COMPLETION}';",
}
SETTINGS = "HOST=127.0.0.1 PORT={port} LOG_LEVEL=info OPENAI_API_BASE= OPENAI_API_KEY= CHAT_URL= USE_MOCK_API=false "
MODES = {  # what answers behind the server
    "relay": "OPENAI_API_BASE={upstream}/v1 OPENAI_API_KEY=sk-bench",
    "chat": "CHAT_URL={upstream}/chat",
    "mock": "USE_MOCK_API=true MOCK_WORDS_PER_SECOND=0",
}


@dataclass(frozen=True)
class Target:
    """A command that serves, and what it can do."""

    name: str
    command: str  # with {port} and {upstream}, and {folder}: a temporary one
    modes: tuple[str, ...] = tuple(MODES)
    cwd: str | None = None  # None: the temporary folder, where no .env lies

    @contextmanager
    def started(
        self, mode: str, upstream: int, settings: str = "", cores: Collection[int] = (SERVER_CORE,)
    ) -> Iterator[Server]:
        """A fresh process that has answered its first chat, with more settings. Raises Wrong."""
        if self.name == DIRECT:
            yield Server(upstream)
            return
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            open(f"{folder}/log", "w") as log,
        ):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            conf = NGINX_CONF.format(
                dir=folder, port=port, upstream=upstream, location=LOCATIONS[mode]
            )
            Path(folder, "nginx.conf").write_text(conf)
            text = f"{SETTINGS} {MODES[mode]} {settings}\n{self.command}".replace(
                "{port}", str(port)
            ).replace("{folder}", folder)
            variables, command = text.replace("{upstream}", f"http://127.0.0.1:{upstream}").split(
                "\n", 1
            )
            env = os.environ | dict(setting.split("=", 1) for setting in variables.split())
            began, cwd = time.perf_counter(), self.cwd or folder
            process = spawn(shlex.split(command), cores, cwd=cwd, env=env, stdout=log, stderr=log)
            try:
                server = Server(port, process)
                if not server.answers(process, began):
                    raise Wrong(
                        f"did not start: {Path(log.name).read_text(errors='replace')[-600:].strip()}"
                    )
                yield server
            finally:
                end(process)


Figures = dict[str, float]
Goals = dict[str, tuple[float, ...]]  # figure: its goal, at most; and at most so many times nginx's
LOOP: Goals = {"requests/s": (), "p50 ms": (), "p99 ms": ()}
CHUNKED: Goals = LOOP | {"chunks/s": (), "CPU-µs a chunk": ()}


def percentile(values: list[Any], percent: float) -> float:
    if not values:
        raise Wrong("nothing came while it was measured")
    return float(sorted(values)[int(len(values) * percent / 100)])


@dataclass(frozen=True)
class Scenario:
    name: str
    mode: str  # one of MODES
    goals: Goals
    say: str = "-"  # to the upstream; "" asks nothing
    stream: bool = False
    words: int = 0  # in an answer
    chunks: int = 0  # in a stream; 0: as many as the server likes
    connections: int = 32
    pace: int = 0  # milliseconds from chunk to chunk; 0: as fast as it goes
    prompt_bytes: int = 0  # of further messages
    settings: Callable[[], str] = str  # of the server

    def suits(self, target: Target) -> bool:
        if target.name == DIRECT:
            return any("added" in key for key in self.goals)
        return self.mode in target.modes and not (
            target.name == NGINX and self.stream and self.mode != "relay"
        )

    def measure(self, target: Target, upstream: int, seconds: float) -> Figures:
        with target.started(self.mode, upstream, self.settings()) as server:
            if not self.say:
                return {f"s to {path}": seconds for path, seconds in server.ready.items()}
            figures = uvloop.run(
                self.paced(server, seconds) if self.pace else self.closed_loop(server, seconds)
            )
            return (
                figures
                if server.process
                else {key: figures[key] for key in figures if "added" in key}
            )

    async def closed_loop(self, server: Server, seconds: float) -> Figures:
        """Every connection asks again as soon as it has its answer."""
        words = 0 if self.mode == "mock" else self.words  # another mock says what it likes
        body = question(self.say, self.stream, max(self.words, 60), self.prompt_bytes)
        run = Run(body, words, self.chunks, again=True)
        await run.connect(server.port, Client, self.connections)
        await run.wait(max(0.5, seconds / 4))
        cpu, began, start, start_first = (
            server.cpu(),
            time.perf_counter(),
            len(run.times),
            len(run.firsts),
        )
        await run.wait(seconds)
        cpu, elapsed, times, firsts = (
            server.cpu() - cpu,
            time.perf_counter() - began,
            run.times[start:],
            run.firsts,
        )
        await run.finish()
        figures: Figures = {
            f"p{percent} ms": percentile(times, percent) * 1000 for percent in (50, 99)
        }
        figures["added ms, p50"] = percentile(firsts[start_first:], 50) * 1000
        figures |= {
            "CPU-µs": cpu * 1e6 / len(times),
            "requests/s": len(times) / elapsed,
            "words": run.answer[0],
        }
        if chunks := run.answer[1] * len(times):
            figures |= {"chunks/s": chunks / elapsed, "CPU-µs a chunk": cpu * 1e6 / chunks}
        return figures

    async def paced(self, server: Server, seconds: float) -> Figures:
        """All streams open at once, measured while none has ended."""
        warm = Run(question("pace=2x5", True, 60), 5, 7, again=False)
        await warm.connect(server.port, Listener, 1)
        await warm.finish()
        memory, count = (
            server.memory(),
            int((seconds + 0.8 + self.connections * 0.003) * 1000 / self.pace),
        )
        run = Run(question(f"pace={self.pace}x{count}", True, count), count, count + 2, again=False)
        await run.connect(server.port, Listener, self.connections, apart=0.001)
        await run.wait(0.3)
        cpu, began, start = server.cpu(), time.perf_counter(), len(run.delays)
        await run.wait(seconds)
        cpu, elapsed, delays = server.cpu() - cpu, time.perf_counter() - began, run.delays[start:]
        memory = server.memory() - memory
        if run.times:
            raise Wrong(
                "some streams ended before all were open: the machine is too slow for this many"
            )
        await run.finish()
        figures: Figures = {
            f"added ms, p{percent}": percentile(delays, percent) / 1e6 for percent in (50, 99)
        }
        figures |= {"CPU-µs a chunk": cpu * 1e6 / len(delays), "chunks/s": len(delays) / elapsed}
        return figures | {"kB a stream": memory / 1000 / self.connections}


@dataclass(frozen=True)
class Idle(Scenario):
    """The memory of a server at rest, and after a burst of 1,000 requests of 1 MB."""

    def measure(self, target: Target, upstream: int, seconds: float) -> Figures:
        with target.started(self.mode, upstream) as server:
            before = server.memory()
            uvloop.run(self.burst(server))
            time.sleep(REST_SECONDS if seconds > 1 else 1)  # --quick: 1 second
            after = server.memory()
        return {"MB": before / 1e6, "MB after": after / 1e6, "times as much": after / before}

    async def burst(self, server: Server) -> None:
        body = question(self.say, self.stream, 60, self.prompt_bytes)
        run = Run(body, 60, 0, again=True)
        await run.connect(server.port, Client, self.connections)
        await run.wait(120, lambda: len(run.times) >= BURST)
        await run.finish()


BURST = 1_000  # requests
REST_SECONDS = 60.0


@dataclass(frozen=True)
class Workers(Scenario):
    """JSON by one worker and by two, on two cores that they share with the load and the upstream."""

    def suits(self, target: Target) -> bool:
        return target.name == OURS and len(CORES) > 1

    def measure(self, target: Target, upstream: int, seconds: float) -> Figures:
        found: list[Figures] = []
        for count in (1, 2):
            with target.started(self.mode, upstream, f"WORKERS={count}", CORES) as server:
                found.append(uvloop.run(self.spread(server, seconds)))
                found[-1][f"s to {PATH}"] = server.ready[PATH]
        one, two = found
        return {
            "CPU-µs, 1 worker": one["CPU-µs"],
            "CPU-µs, 2 workers": two["CPU-µs"],
            "times as much": two["CPU-µs"] / one["CPU-µs"],
            "% of connections, most": two["% of connections, most"],
            f"s to {PATH}": two[f"s to {PATH}"],
        }

    async def spread(self, server: Server, seconds: float) -> Figures:
        idle = server.sockets()
        run = Run(question(self.say, self.stream, 60), self.words, 0, again=True)
        await run.connect(server.port, Client, self.connections)
        await run.wait(seconds / 4)
        taken = [now - before for now, before in zip(server.sockets(), idle, strict=True)]
        cpu, start = server.cpu(), len(run.times)
        await run.wait(seconds)
        cpu, count = server.cpu() - cpu, len(run.times) - start
        await run.finish()
        return {
            "CPU-µs": cpu * 1e6 / count,
            "% of connections, most": 100 * max(taken) / sum(taken),
        }


@cache
def exact_rules() -> str:
    """The setting for 10,000 rules, of which none matches."""
    path = Path(stores().name, "rules.toml")
    rule = '[[rule]]\nwhen = "question {number}"\nthen = "answer {number}"\n'
    path.write_text("".join(rule.format(number=number) for number in range(10_000)))
    return f"MOCK_RULES={path}"


class ListRun(Run):
    """Asks for 20 stored completions by metadata, in place of a chat."""

    def check(self, status: int, body: bytes) -> None:
        if status != 200 or len(json.loads(body)["data"]) != 20:
            raise Wrong(f"status {status}, and not 20 completions: {body[:200]!r}")


@dataclass(frozen=True)
class Listing(Scenario):
    """The same list from two stores of different size, by one connection: an SQLite file and a server each, asked in turns."""

    def suits(self, target: Target) -> bool:
        return target.name == OURS

    def measure(self, target: Target, upstream: int, seconds: float) -> Figures:
        with ExitStack() as stack:
            servers = []
            for size in SIZES:
                os.environ["STORE_URL"] = f"sqlite:///{stored(size)}"
                servers.append(stack.enter_context(target.started(self.mode, upstream)))
            medians = uvloop.run(self.listed(servers, seconds))
        figures = {
            f"p50 ms, of {size:,}": value for size, value in zip(SIZES, medians, strict=True)
        }
        return figures | {"times as long": medians[1] / medians[0]}

    async def listed(self, servers: list[Server], seconds: float) -> list[float]:
        """Milliseconds, for each server."""
        runs = [ListRun(b"", 0, 0, again=True) for _ in servers]
        for turn in range(10):
            for run, server in zip(runs, servers, strict=True):
                run.request, run.again = LIST, True
                await run.connect(server.port, Client, self.connections)
                await run.wait(seconds / 10)
                await run.finish()
                if not turn:  # it was to warm up
                    run.times.clear()
        return [percentile(run.times, 50) * 1000 for run in runs]


LIST = (
    f"GET {PATH}?metadata[topic]=3&limit=20&order=desc HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
)
SIZES = (100, 100_000)
PROMPTS = {"10 kB": 10_000, "100 kB": 100_000, "1 MB": 1_000_000, "10 MB": 10_000_000}
FILL = """
import asyncio, sys
from rewrap.storage import sqlite, sqlite_worker
sqlite_worker.MAX_GROUP = 5_000  # writes to a transaction
async def fill(path, size, body):
    kept = sqlite.SQLiteStore(path, 0)
    for start in range(0, size, 5_000):
        numbers = range(start, min(start + 5_000, size))
        rows = [eval(body) | {"id": f"c{n}", "created": 1_760_000_000 + n, "metadata": {"topic": str(n % 5)}} for n in numbers]
        messages = [{"role": "user", "content": "-" * 300}, {"role": "assistant", "content": "-" * 500}]
        await asyncio.gather(*(kept.put(row, messages, owner="") for row in rows))
    await kept.close()
asyncio.run(fill(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
"""


@cache
def stores() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)


@cache
def stored(size: int) -> Path:
    """A store of so many completions, a fifth of them of each topic; it goes with the benchmark."""
    path = Path(stores().name, f"{size}.db")
    print(f"storing {size:,} completions", file=sys.stderr, flush=True)
    subprocess.run(
        [sys.executable, "-c", FILL, path, str(size), repr(json.loads(COMPLETION))],
        cwd=ROOT,
        check=True,
    )
    return path


CHUNK: Goals = {
    "CPU-µs a chunk": (60, 1.6),
    "added ms, p50": (),
    "added ms, p99": (),
    "chunks/s": (),
}
THOUSAND: Goals = CHUNK | {"added ms, p99": (2,), "kB a stream": (20,)}
MANY: Goals = CHUNK | {"added ms, p99": (5,), "kB a stream": (20,)}
LISTED: Goals = {**{f"p50 ms, of {size:,}": () for size in SIZES}, "times as long": (1.5,)}
NO_RULES = "mock, JSON of 60 words"
SCENARIOS = [
    Scenario(
        "JSON through an OpenAI-compatible upstream",
        "relay",
        {"CPU-µs": (200, 5), **LOOP},
        words=60,
    ),
    *(
        Scenario(
            f"JSON, connections: {count:,}",
            "relay",
            {"CPU-µs": (200, 5)},
            words=60,
            connections=count,
        )
        for count in (1, 256, 1_000)
    ),
    Scenario("JSON through CHAT_URL", "chat", {"CPU-µs": (300, 8), **LOOP}, "words=60", words=60),
    Scenario(
        "stream of 102 chunks, relayed",
        "relay",
        {"CPU-µs": (700, 0.9), **CHUNKED},
        "-",
        True,
        100,
        102,
    ),
    Scenario(
        "100 words of one reply, as chunks",
        "chat",
        {"CPU-µs": (900,), **CHUNKED},
        "words=100",
        True,
        100,
    ),
    Scenario(NO_RULES, "mock", {"CPU-µs": (100, 4.5), **LOOP, "words": ()}, words=60),
    Scenario(
        f"{NO_RULES}, 10,000 rules",
        "mock",
        {"CPU-µs": (110,)},
        words=60,
        settings=exact_rules,
    ),
    Scenario(
        "mock, 100 words streamed",
        "mock",
        {"CPU-µs": (100,), **CHUNKED, "words": ()},
        "-",
        True,
        100,
    ),
    *(
        Scenario(
            f"prompt of {name}, relayed",
            "relay",
            {"CPU-µs": (1e6, 4.5)},
            words=60,
            prompt_bytes=size,
            connections=8,
        )
        for name, size in PROMPTS.items()
    ),
    *(
        Scenario(
            f"prompt of {name}, CHAT_URL",
            "chat",
            {"CPU-µs": (1e6, 7)},
            "words=60",
            words=60,
            prompt_bytes=size,
            connections=8,
        )
        for name, size in PROMPTS.items()
    ),
    *(
        Scenario(
            f"prompt of {name}, mock",
            "mock",
            {"CPU-µs": ()},
            words=60,
            prompt_bytes=size,
            connections=8,
        )
        for name, size in PROMPTS.items()
    ),
    Scenario(
        "first byte, 1 connection", "relay", {"added ms, p50": (0.25,)}, "short", True, 1, 3, 1
    ),
    Scenario(
        "one stream, a chunk each 2 ms",
        "relay",
        {"added ms, p50": (0.15,), "added ms, p99": ()},
        connections=1,
        pace=2,
    ),
    Scenario("100 streams of 10 chunks/s", "relay", CHUNK, connections=100, pace=100),
    Scenario("1,000 streams of 10 chunks/s", "relay", THOUSAND, connections=1000, pace=100),
    Scenario(
        "9,000 streams of 1 chunk/s",
        "relay",
        MANY,
        connections=9_000,
        pace=1000,
        settings=lambda: "MAX_CONNECTIONS=9500",
    ),
    Idle(
        "memory, before and after 1,000 requests of 1 MB",
        "relay",
        {"MB": (38,), "MB after": (), "times as much": (1.15,)},
        prompt_bytes=1_000_000,
    ),
    Workers(
        "two workers on two cores",
        "relay",
        {
            "CPU-µs, 1 worker": (),
            "CPU-µs, 2 workers": (),
            "times as much": (1.15,),
            "% of connections, most": (60,),
            f"s to {PATH}": (0.5,),
        },
        words=60,
        connections=256,
    ),
    Listing("list 20 stored, by metadata", "mock", LISTED, connections=1),
    Scenario(
        "start to first answer", "relay", {"s to /health": (0.2,), f"s to {PATH}": (0.2,)}, say=""
    ),
]
INSTALLED: Goals = {"MB": (25,), "packages": (15,)}


def installed() -> Figures:
    """Of what serves, the head of requirements.txt (as the Dockerfile cuts it), installed afresh from the package index."""
    wanted = (ROOT / "requirements.txt").read_text().partition("# for test_main")[0]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        Path(folder, "wanted").write_text(wanted)
        options = ["-qq", "--target", f"{folder}/all", "-r", f"{folder}/wanted"]
        subprocess.run([sys.executable, "-m", "pip", "install", *options], check=True, timeout=600)
        size = sum(path.stat().st_size for path in Path(folder, "all").rglob("*") if path.is_file())
        return {"MB": size / 1e6, "packages": len(list(Path(folder, "all").glob("*.dist-info")))}


Rounds = dict[str, list[Figures]]  # target: its figures, round by round; {} where it failed


def measured(
    scenario: Scenario, targets: list[Target], port: int, count: int, seconds: float
) -> Rounds:
    targets = [target for target in targets if scenario.suits(target)]
    rounds: Rounds = {target.name: [] for target in targets}
    for number in range(1, count + 1):
        for target in targets:
            print(
                f"{scenario.name}: round {number} of {count}, {target.name}",
                file=sys.stderr,
                flush=True,
            )
            figures: Figures = {}
            try:
                if {} not in rounds[target.name]:  # what failed once is not tried again
                    figures = scenario.measure(target, port, seconds)
            except (Wrong, OSError) as exc:
                print(f"    {target.name}: {exc}", file=sys.stderr, flush=True)
            rounds[target.name].append(figures)
    return rounds


def figure(value: float) -> str:
    return (
        f"{value:,.0f}"
        if abs(value) >= 100
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.2f}"
    )


def cell(key: str, target: str, rounds: Rounds, goal: tuple[float, ...]) -> str:
    """The median, its ratio to nginx, and ✗ where ours misses its goal."""

    def pairs(other: str) -> list[tuple[float, float]]:
        both = zip(rounds.get(target, []), rounds.get(other, []), strict=False)
        return [(a[key], b[key]) for a, b in both if key in a and key in b]

    relative = "added" in key and target != DIRECT
    values = [a - b for a, b in pairs(DIRECT)] if relative else [a for a, _ in pairs(target)]
    ratios = [
        a / b
        for a, b in pairs(NGINX)
        if b > 0 and "added" not in key and key != "words" and target != NGINX
    ]
    if not values:
        return "failed" if {} in rounds.get(target, []) else ""
    medians = [median(found) for found in (values, ratios) if found]
    missed = target == OURS and any(
        value > most for value, most in zip(medians, goal, strict=False)
    )
    return (
        figure(medians[0])
        + (f" ({figure(medians[1])} ×)" if ratios else "")
        + (" ✗" if missed else "")
    )


def rows(name: str, goals: Goals, rounds: Rounds, columns: list[str]) -> Iterator[list[str]]:
    for key, goal in goals.items():
        wanted = ["≤ {:g}", "≤ {:g}, ≤ {:g} × nginx"][len(goal) - 1].format(*goal) if goal else ""
        yield [name, key, wanted, *(cell(key, target, rounds, goal) for target in columns)]
        name = ""


def table(lines: list[list[str]], markdown: bool) -> str:
    if markdown:
        return "\n".join(
            f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cores = f"{model[1] if model else platform.machine()}, {len(CORES)} cores"
    return f"{time.strftime('%Y-%m-%d')}; {cores}; Python {platform.python_version()}"


def peers() -> list[Target]:
    """The programs that tests/peers/install.sh has installed."""
    folder, files = ROOT / ".venv" / "peers", ROOT / "tests" / "peers"
    known = [
        Target(
            "vllm-router 0.1.17",
            f"{folder}/vllm-router/bin/vllm-router --host 127.0.0.1 --port {{port}} --worker-urls {{upstream}}"
            " --policy round_robin --prometheus-port 29999",
            ("relay",),
        ),
        Target(
            "LiteLLM 1.108.7",
            f"{folder}/litellm/bin/litellm --host 127.0.0.1 --port {{port}} --config {files}/litellm.yaml",
            ("relay",),
        ),
        Target(
            "aimock 1.43.0",
            f"{folder}/aimock/node_modules/.bin/llmock --port {{port}} --fixtures {files}/fixtures --log-level silent",
            ("mock",),
        ),
    ]
    return [target for target in known if Path(target.command.split()[0]).exists()]


def beside(text: str) -> Target:
    """NAME=command or NAME@MODE=command."""
    name, _, command = text.partition("=")
    name, _, mode = name.partition("@")
    if not (name and command and mode in ("", *MODES)):
        raise argparse.ArgumentTypeError(
            "NAME=COMMAND, NAME@chat=COMMAND or NAME@mock=COMMAND, with {port} and {upstream}"
        )
    return Target(name, command, (mode or "relay",), os.getcwd())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=3, help="of each measurement; 1,000 streams: at least 5"
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="the scenarios whose name contains it"
    )
    parser.add_argument(
        "--beside", type=beside, action="append", default=[], metavar="NAME=COMMAND"
    )
    parser.add_argument(
        "--peers", action="store_true", help="also the programs of tests/peers/install.sh"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of one second: only to see that all works"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="the table as it stands in the README"
    )
    parser.add_argument(
        "--installed",
        action="store_true",
        help="also install what requirements.txt needs to serve, for its size",
    )
    args = parser.parse_args()
    args.rounds, args.seconds = (
        (1, 1.0) if args.quick else (min(max(args.rounds, 1), 100), min(max(args.seconds, 1), 60))
    )
    return args


def main() -> None:
    args = arguments()
    # asyncio makes Ctrl-C a cancellation; an exception out of a handler of ours would end in some callback.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.disable()
    targets = [Target(OURS, f"{sys.executable} {ROOT / 'main.py'}")]
    if nginx := shutil.which("nginx"):
        targets.append(Target(NGINX, f"{nginx} -p {{folder}} -c nginx.conf -e error.log"))
    targets += [*(peers() if args.peers else ()), *args.beside, Target(DIRECT, "")]
    columns = list(dict.fromkeys(target.name for target in targets))
    lines = [["32 connections unless said", "figure", "goal", *columns]]
    process = spawn([sys.executable, __file__, "upstream"], [UPSTREAM_CORE], stdout=subprocess.PIPE)
    try:
        port = int((process.stdout or sys.stdin.buffer).readline())
        for scenario in SCENARIOS:
            if args.only.lower() not in scenario.name.lower():
                continue
            # One connection's way between the cores must be as long with a proxy as without: then the upstream sits beside it.
            os.sched_setaffinity(
                process.pid, {SERVER_CORE if scenario.connections == 1 else UPSTREAM_CORE}
            )
            seconds = (
                max(args.seconds, 5)
                if scenario.connections > 100 and not args.quick
                else args.seconds
            )
            lines += rows(
                scenario.name,
                scenario.goals,
                measured(scenario, targets, port, args.rounds, seconds),
                columns,
            )
            gc.collect()
    finally:
        end(process)
    if args.installed:
        lines += rows("installed", INSTALLED, {OURS: [installed()]}, columns)
    print(
        f"{machine()}; medians of {args.rounds} rounds; (n ×): beside nginx; ✗: misses its goal\n\n{table(lines, args.markdown)}"
    )


if __name__ == "__main__":
    try:
        uvloop.run(upstream()) if sys.argv[1:] == ["upstream"] else main()
    except KeyboardInterrupt:
        sys.exit(130)
