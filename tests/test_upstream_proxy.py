"""UPSTREAM_PROXY: the upstream is asked by way of a proxy, and by none where it is not set."""

import asyncio
from base64 import b64encode

import httpx
import pytest
from serving import ASKED, served, started
from test_leaving import ASK, CHAT, WAYS, Client
from test_transport import Proxy, listening
from upstreams import FAULTS, TEXT, Upstream, closed_port

pytestmark = pytest.mark.anyio
SECRET = "me:canary-of-the-proxy"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, ASK])
@pytest.mark.parametrize("way", WAYS)
async def test_the_upstream_is_asked_by_way_of_the_proxy(way: str, path: str, stream: bool) -> None:
    proxy = Proxy()
    async with Upstream(FAULTS["good"]) as up, listening(proxy) as port:
        with served(
            **{way: up.url + WAYS[way]}, upstream_proxy=f"http://{SECRET}@localhost:{port}"
        ) as url:
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                answers = [
                    await client.post(path, json=ASKED | {"stream": stream}) for _ in range(3)
                ]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert all(TEXT[-1] in answer.text for answer in answers)
        assert (len(proxy.seen), proxy.accepted, len(up.requests)) == (3, 1, 3)
        assert proxy.seen[0].startswith(f"POST {up.url}{up.requests[0].path} HTTP/1.1\r\n")
        assert "proxy-authorization" not in up.requests[0].headers


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_password_of_a_proxy_that_fails_is_told_to_nobody(scheme: str) -> None:
    proxy = Proxy(
        b"HTTP/1.1 407 Who are you?\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n"
    )
    async with listening(proxy) as port:
        for where in (port, closed_port()):
            way = {
                "CHAT_URL": f"{scheme}://nowhere.invalid/chat",
                "UPSTREAM_PROXY": f"http://{SECRET}@localhost:{where}",
            }
            with started(**way, LOG_LEVEL="debug") as process:
                async with httpx.AsyncClient(base_url=process.url, trust_env=False) as client:
                    answer = await client.post(CHAT, json=ASKED)
                process.stop()
            told = answer.text + str(answer.headers) + process.log
            assert answer.status_code == 502
            assert not [
                secret
                for secret in ("canary", b64encode(SECRET.encode()).decode())
                if secret in told
            ]
    assert proxy.accepted == 1


async def test_the_proxy_gets_no_more_connections_than_the_bound() -> None:
    async with Upstream(FAULTS["hang"]) as proxy:
        limits = {"max_connections": 2, "connect_timeout_seconds": 0.2}
        with served(
            chat_url="http://nowhere.invalid/chat", upstream_proxy=proxy.url, **limits
        ) as url:
            clients = [await Client.ask(url) for _ in range(2)]
            await proxy.wait_requests(2)
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                assert (await client.post(CHAT, json=ASKED)).status_code == 503
            assert proxy.connections == 2
            for one in clients:
                one.leave()
            await proxy.until(lambda: proxy.open == 0)


async def test_crowds_that_leave_do_not_poison_the_way_by_the_proxy() -> None:
    async with Upstream(FAULTS["hang"]) as proxy:
        with started(CHAT_URL="http://nowhere.invalid/chat", UPSTREAM_PROXY=proxy.url) as process:
            for _ in range(3):
                crowd = await asyncio.gather(
                    *(Client.ask(process.url, stream=bool(n % 2)) for n in range(300))
                )
                await asyncio.sleep(0.5)
                for client in crowd:
                    client.leave()
            proxy.handler = FAULTS["good"]
            async with httpx.AsyncClient(
                base_url=process.url, trust_env=False, timeout=10
            ) as client:
                answers = await asyncio.gather(*(client.post(CHAT, json=ASKED) for _ in range(30)))
            assert [answer.status_code for answer in answers] == [200] * 30
            await proxy.until(lambda: proxy.open <= 30)


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Upstream(FAULTS["good"]) as proxy, Upstream(FAULTS["good"]) as up:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.upper(), proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with served(chat_url=f"{up.url}/chat") as url:
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                assert (await client.post(CHAT, json=ASKED)).status_code == 200
        assert (len(proxy.requests), len(up.requests)) == (0, 1)
