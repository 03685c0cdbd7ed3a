"""GET /metrics: the package's own parser accepts it, totals are those of the requests, labels are few, and it is off by default."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import PYTHON, children, running
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families
from serving import ASKED, ROOT, served

from rewrap.config.settings import Settings
from rewrap.main import Rewrap, create_app
from rewrap.server.metrics import DURATION, BatchHistogram, Times
from rewrap.types import ChatRequest, Delta, Deltas, JSONObject, ResponseInfo

CHAT = "/v1/chat/completions"
Labels = frozenset[tuple[str, str]]
Values = dict[str, dict[Labels, float]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def app_of(backend: Any = None, **settings: Any) -> Rewrap:
    chosen = Settings(**{"store_url": "sqlite://", "metrics": True} | settings)
    return create_app(chosen, backend=backend)


def client_of(app: Rewrap) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://proxy")


async def scrape(client: httpx.AsyncClient) -> Values:
    """The samples of /metrics: by name, by labels."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    values: Values = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = frozenset(sample.labels.items())
            assert labels not in values.get(sample.name, {}), sample
            values.setdefault(sample.name, {})[labels] = sample.value
    return values


def total(values: Values, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels."""
    wanted = labels.items()
    return sum(value for found, value in values.get(name, {}).items() if wanted <= found)


def of_label(values: Values, name: str, label: str) -> set[str]:
    return {dict(found)[label] for found in values[name]}


def folders(parent: Path) -> list[Path]:
    """The folders that workers share."""
    return list(parent.glob("rewrap-metrics-*"))


# Totals.

KINDS: list[tuple[str, str, Any]] = [
    ("POST", CHAT, ASKED),
    ("POST", CHAT, ASKED | {"stream": True}),
    ("POST", CHAT, ASKED | {"messages": []}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/nothing", None),
]


@pytest.mark.anyio
async def test_with_two_workers_under_load_the_totals_are_those_of_the_requests(
    tmp_path: Path,
) -> None:
    rounds = 60
    before = 0.0

    async def send(client: httpx.AsyncClient) -> None:
        for _ in range(rounds):
            method, path, body = random.choice(KINDS)
            answer = await client.request(method, path, json=body)
            sent.append((path, answer.status_code))

    sent: list[tuple[str, int]] = []
    async with running(METRICS="true", WORKERS="2", TMPDIR=str(tmp_path)) as process:
        clients = [httpx.AsyncClient(base_url=process.url, timeout=30) for _ in range(10)]
        senders = asyncio.gather(*map(send, clients))
        async with httpx.AsyncClient(base_url=process.url, timeout=30) as scraper:
            while not senders.done():
                count = total(await scrape(scraper), "rewrap_requests_total", method="POST")
                assert count >= before
                before = count
                await asyncio.sleep(0.05)
            await senders
            values = await scrape(scraper)
        (folder,) = folders(tmp_path)
        files = [file.name for file in folder.glob("counter_*.db")]
        for client in clients:
            await client.aclose()
        process.signal()
        assert await process.exit_code(20) == 0
    assert len(files) == 3  # of both workers, and of their parent, which counts nothing
    assert folders(tmp_path) == []
    for path, route in ((CHAT, "/chat/completions"), ("/v1/models", "/models")):
        for status in (200, 400):
            expected = sent.count((path, status))
            found = total(values, "rewrap_requests_total", route=route, status=str(status))
            assert found == expected, (path, status)
    assert total(values, "rewrap_requests_total", route="none", status="404") == sent.count(
        ("/v1/nothing", 404)
    )
    chats = [status for path, status in sent if path == CHAT]
    for name in ("rewrap_first_byte_seconds", "rewrap_request_seconds"):
        assert total(values, f"{name}_count", route="/chat/completions") == len(chats)
        assert total(values, f"{name}_bucket", route="/chat/completions", le="+Inf") == len(chats)
    assert total(values, "rewrap_tokens_total", kind="prompt") == chats.count(200)


def test_a_signal_during_the_start_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(0.5)\ndef before_chat(request): pass\n"
    )
    environment = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(tmp_path), "PORT": "0"}
    environment |= {"METRICS": "true", "WORKERS": "2", "HOOKS": "slow:before_chat"}
    child = subprocess.Popen(PYTHON, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    child.terminate()
    assert child.wait(20) == 0
    assert folders(tmp_path) == []


@pytest.mark.anyio
async def test_the_counts_of_a_killed_worker_stay_and_its_gauges_go(tmp_path: Path) -> None:
    async with running(METRICS="true", WORKERS="2", TMPDIR=str(tmp_path)) as process:
        async with httpx.AsyncClient(base_url=process.url, timeout=30) as client:
            for _ in range(5):
                await client.get("/info", headers={"connection": "close"})
            before = await scrape(client)
        (folder,) = folders(tmp_path)
        workers = [pid for pid in children(process.pid) if list(folder.glob(f"*_{pid}.db"))]
        os.kill(workers[0], signal.SIGKILL)
        async with asyncio.timeout(20):
            while list(folder.glob(f"gauge_live*_{workers[0]}.db")):
                await asyncio.sleep(0.05)
        async with httpx.AsyncClient(base_url=process.url, timeout=30) as client:
            after = await scrape(client)
    for values in (before, after):
        assert total(values, "rewrap_requests_total", route="/info") == 5
    assert folders(tmp_path) == [folder]  # killed with the test


@pytest.mark.anyio
async def test_one_process_shows_a_request_at_once() -> None:
    async with client_of(app_of()) as client:
        for count in range(3):
            values = await scrape(client)
            assert total(values, "rewrap_requests_total", route="/metrics") == count


def test_values_that_are_added_together_have_the_buckets_of_single_ones() -> None:
    registry = CollectorRegistry()
    single = Histogram("single", "x", registry=registry, buckets=DURATION)
    together = BatchHistogram("together", "x", registry=registry, buckets=DURATION)
    values = [*DURATION, *[random.expovariate(1) for _ in range(500)], 0.0, 1e6]
    times = Times(DURATION)
    for value in values:
        single.observe(value)
        times.add(value)
    times.move_to(together)
    times.move_to(together)
    first, second = (
        [(sample.labels, pytest.approx(sample.value)) for sample in metric._child_samples()][:-1]
        for metric in (single, together)
    )
    assert first == second


# Labels.


@pytest.mark.anyio
async def test_names_that_clients_make_up_share_a_label(tmp_path: Path) -> None:
    config = tmp_path / "backends.toml"
    config.write_text(
        '[[backend]]\nname = "one"\nkind = "mock"\nmodels = ["known", "family-*"]\n'
        '[[backend]]\nname = "two"\nkind = "mock"\nmodels = ["*"]\n'
    )
    async with client_of(app_of(config=str(config))) as client:
        for number in range(30):
            for model in ("known", f"family-{number}", f"made-up-{number}"):
                await client.post(CHAT, json=ASKED | {"model": model})
            await client.get(f"/v1/models/made-up-{number}")
            await client.get(f"/path-{number}")
            await client.request(f"VERB{number}", "/info")
        values = await scrape(client)
    name = "rewrap_requests_total"
    assert of_label(values, name, "model") == {"known", "other", ""}
    assert of_label(values, name, "backend") == {"one", "two", ""}
    assert total(values, name, model="known", backend="one") == 30
    assert total(values, name, model="other", backend="one") == 30
    assert total(values, name, route="/models/{id}") == 30
    assert total(values, name, route="none", status="404") == 30
    assert total(values, name, route="/info", status="405") == 30
    assert len(values[name]) < 10


class Counting:
    """A backend that reports this count of tokens."""

    name = "counting"

    def __init__(self, count: Any) -> None:
        self.count = count

    async def stream(self, request: ChatRequest, info: ResponseInfo) -> Deltas:
        info.usage = {"prompt_tokens": self.count, "completion_tokens": 3}
        yield Delta("Hi", finish_reason="stop")

    async def models(self, client_headers: Mapping[str, str]) -> list[JSONObject]:
        return []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("count", "counted"), [(7, 7), (-1, 0), (2**60, 0), ("7", 0), (None, 0), (True, 1)]
)
async def test_a_number_of_tokens_that_is_none_is_not_counted(count: object, counted: int) -> None:
    async with client_of(app_of(Counting(count))) as client:
        await client.post(CHAT, json=ASKED)
        values = await scrape(client)
    assert total(values, "rewrap_tokens_total", kind="prompt") == counted


# Gauges.


@pytest.mark.anyio
async def test_open_streams_and_requests_are_shown_while_they_are_open() -> None:
    # Long enough to last until the figures are read, also on a busy machine.
    asked = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello " * 50}]}
    with served(metrics=True, mock_words_per_second=2) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            async with client.stream("POST", CHAT, json=asked) as stream:
                await anext(stream.aiter_lines())
                during = await scrape(client)
            async with asyncio.timeout(5):
                while total(after := await scrape(client), "rewrap_open_streams"):
                    await asyncio.sleep(0.02)
    assert total(during, "rewrap_open_streams") == 1
    assert total(during, "rewrap_open_requests") == 2
    assert total(after, "rewrap_open_requests") == 1


@pytest.mark.anyio
async def test_the_loop_the_memory_and_the_store_are_measured() -> None:
    app = app_of(max_memory_bytes=10_000_000)
    async with app.router.lifespan_context(app), client_of(app) as client:
        await client.post(CHAT, json=ASKED | {"store": True})
        await asyncio.sleep(0.3)
        values = await scrape(client)
    assert total(values, "rewrap_loop_lag_seconds_count") >= 1
    assert total(values, "rewrap_memory_limit_bytes") == 10_000_000
    assert total(values, "rewrap_memory_used_bytes") == 0
    assert total(values, "rewrap_store_seconds_count") >= 1
    assert total(values, "rewrap_store_failures_total") == 0


@pytest.mark.anyio
async def test_failures_of_the_store_are_counted(tmp_path: Path) -> None:
    store = tmp_path / "none" / "chat.db"
    async with client_of(app_of(store_url=f"sqlite:///{store}")) as client:
        answer = await client.get(CHAT)
        values = await scrape(client)
    assert answer.status_code == 503
    assert total(values, "rewrap_store_failures_total") == 1


# Keys, and the switch.


@pytest.mark.anyio
async def test_metrics_need_a_key_where_keys_are_set_unless_they_are_public() -> None:
    async with client_of(app_of(api_keys=("sk-one",))) as client:
        assert (await client.get("/metrics")).status_code == 401
        answer = await client.get("/metrics", headers={"authorization": "Bearer sk-one"})
        assert answer.status_code == 200
    async with client_of(app_of(api_keys=("sk-one",), metrics_public=True)) as client:
        assert (await client.get("/metrics")).status_code == 200
    async with client_of(app_of()) as client:
        assert (await client.get("/metrics")).status_code == 200


@pytest.mark.anyio
async def test_metrics_are_off_by_default() -> None:
    async with client_of(app_of(metrics=False)) as client:
        assert (await client.get("/metrics")).status_code == 404


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PORT": "0", "STORE_URL": f"sqlite:///{tmp_path}/chat.db"}


def test_without_metrics_nothing_of_the_package_is_imported(environment: dict[str, str]) -> None:
    program = (
        "import sys; from rewrap import create_app; create_app();"
        "sys.exit(any('prometheus' in name or name.endswith('metrics') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=30)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_the_package_the_start_stops_with_one_line(
    workers: str, environment: dict[str, str]
) -> None:
    main = str(ROOT / "main.py")
    program = (
        "import runpy, sys; sys.modules['prometheus_client'] = None;"
        f"sys.argv = [{main!r}]; runpy.run_path({main!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"METRICS": "true", "WORKERS": workers},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "rewrap: METRICS needs the package prometheus-client: pip install 'rewrap[metrics]'\n"
    )
