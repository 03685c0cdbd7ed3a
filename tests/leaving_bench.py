"""How soon the upstream is closed after a client has left, beside nginx in the same run: `python tests/leaving_bench.py`.

Every way to leave: in mid-stream, before the first byte, without a stream, on /ask; by FIN and by RST. The time is from the
client's close to the moment at which the upstream sees the end of its connection, both by the same clock.
"""

# ruff: noqa: E402  # run by itself, it has to find the app first
import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).absolute().parent.parent)]

from bench import LOCATIONS, NGINX_CONF
from commands import running
from test_leaving import ASK, CHAT, FIRST_HALF, GATE, Client
from upstreams import FAULTS, TEXT, Handler, Upstream, chunk, closed_port, hold, make, sends

GOAL = 0.1  # seconds, p99
STREAM = make("sse_openai", TEXT, gate=GATE())
HALF = sends(lambda request: [*FIRST_HALF, chunk(b'{"choices": [{"mess')], hold)
MOMENTS: dict[
    str, tuple[str, bool, Handler, bytes]
] = {  # path, stream, the upstream, what is read before leaving
    "in mid-stream": (CHAT, True, STREAM, TEXT[:4].encode()),
    "before the first byte": (CHAT, True, FAULTS["hang"], b""),
    "no stream, before the head": (CHAT, False, FAULTS["hang"], b""),
    "no stream, half of it there": (CHAT, False, HALF, b""),
    "/ask, in mid-stream": (ASK, True, STREAM, TEXT[:4].encode()),
    "/ask, before the first byte": (ASK, True, FAULTS["hang"], b""),
}


async def lag(up: Upstream, url: str, moment: str, rudely: bool) -> float:
    """Seconds from leaving to the upstream's end, once."""
    path, stream, up.handler, mark = MOMENTS[moment]
    seen = len(up.requests)
    client = await Client.ask(url, path, stream)
    request = await up.wait_requests(seen + 1)
    if mark:
        await client.read_until(mark)
    else:
        await asyncio.sleep(0.005)
    left_at = client.leave(rudely)
    return await up.wait_closed(request) - left_at


@asynccontextmanager
async def nginx(upstream: int) -> AsyncIterator[str]:
    """Its address, before the same upstream; ended by its pid."""
    with tempfile.TemporaryDirectory(prefix="leaving-") as folder:
        port = closed_port()
        conf = NGINX_CONF.format(
            dir=folder, port=port, upstream=upstream, location=LOCATIONS["relay"]
        )
        await asyncio.to_thread(Path(folder, "nginx.conf").write_text, conf)
        process = await asyncio.create_subprocess_exec(
            "nginx", "-p", folder, "-c", "nginx.conf", "-e", "error.log"
        )
        try:
            for _ in range(200):
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except ConnectionError:
                    await asyncio.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            await process.wait()


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[-(-len(values) * percent // 100) - 1]


async def compare(tries: int) -> dict[str, float]:
    """Print a table, in ms; the p99 of each of our ways, in seconds."""
    worst: dict[str, float] = {}
    async with Upstream(STREAM) as up:
        async with (
            running(CHAT_URL=f"{up.url}/chat") as chat_url,
            running(OPENAI_API_BASE=f"{up.url}/v1") as openai,
            nginx(up.port) if shutil.which("nginx") else running() as beside,
        ):
            servers = {"CHAT_URL": chat_url.url, "OPENAI_API_BASE": openai.url}
            servers |= {"nginx": beside} if isinstance(beside, str) else {}
            print(f"{'ms, median / p99 / most':38}" + "".join(f"{name:>24}" for name in servers))
            for moment in MOMENTS:
                for rudely in (False, True):
                    lags: dict[str, list[float]] = {name: [] for name in servers}
                    for _ in range(tries):
                        for name, url in servers.items():
                            lags[name].append(await lag(up, url, moment, rudely))
                    label = f"{moment}, {'RST' if rudely else 'FIN'}"
                    row = [
                        [1e3 * percentile(found, p) for p in (50, 99, 100)]
                        for found in lags.values()
                    ]
                    print(
                        f"{label:38}"
                        + "".join(f"{a:10.1f} / {b:.1f} / {c:.1f}".rjust(24) for a, b, c in row),
                        flush=True,
                    )
                    worst |= {
                        f"{name}, {label}": percentile(lags[name], 99)
                        for name in servers
                        if name != "nginx"
                    }
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(
        description="How soon the upstream is closed after a client has left."
    )
    parser.add_argument("--tries", type=int, default=100)
    worst = asyncio.run(compare(parser.parse_args().tries))
    late = [f"{name}: {seconds * 1e3:.0f} ms" for name, seconds in worst.items() if seconds > GOAL]
    print(
        f"p99 within {GOAL * 1e3:.0f} ms: {len(worst) - len(late)} of {len(worst)} ways",
        *late,
        sep="\n",
    )
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
