"""UPSTREAM_PROXY: the upstream is asked by way of a proxy, with httpx's own transport."""

import httpx
import pytest
from serving import ASKED, served
from upstreams import Upstream, make

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_upstream_is_asked_by_way_of_the_proxy(stream: bool) -> None:
    async with Upstream(make("json", "By way of a proxy.")) as proxy:
        with served(chat_url="http://nowhere.invalid/chat", upstream_proxy=proxy.url) as url:
            async with httpx.AsyncClient(base_url=url) as client:
                answer = await client.post("/v1/chat/completions", json=ASKED | {"stream": stream})
        assert answer.status_code == 200
        assert "proxy." in answer.text
        assert [request.path for request in proxy.requests] == ["http://nowhere.invalid/chat"]
