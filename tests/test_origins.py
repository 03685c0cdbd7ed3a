"""Web pages: pages of other sites cannot act here, and the address of a client behind proxies."""

from typing import Any

import httpx
import pytest
from serving import ASKED, served, started

from rewrap.server.hosts import forwarded_address

CHAT = "/v1/chat/completions"
EVIL = "https://evil.example"


def http(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, trust_env=False)


def posted(client: httpx.Client, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(CHAT, json=ASKED, headers=named).status_code


FOREIGN_PAGES: list[dict[str, str]] = [
    {"origin": EVIL},
    {"origin": "null"},
    {"origin": EVIL, "sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "cross-site"},
    {"origin": "http://localhost.evil.example:3000"},
    {"origin": "http://127.0.0.1.evil.example"},
    {"origin": "http://localhost@evil.example"},
    {"origin": "http://localhost:3000/../evil"},
    {"origin": "https://localhost:3000", "sec_fetch_site": "cross-site"},
]
OWN_PAGES: list[dict[str, str]] = [
    {},
    {"sec_fetch_site": "same-origin", "origin": "https://chat.example"},
    {"sec_fetch_site": "none"},
    {"origin": "http://localhost:3000", "sec_fetch_site": "same-site"},
    {"origin": "http://localhost:5173", "sec_fetch_site": "cross-site"},
    {"origin": "http://localhost"},
    {"origin": "http://127.0.0.1:8080"},
    {"origin": "http://[::1]:3000"},
]


@pytest.mark.parametrize("page", FOREIGN_PAGES, ids=str)
def test_a_page_of_another_site_cannot_chat_or_delete(page: dict[str, str]) -> None:
    headers = {name.replace("_", "-"): value for name, value in page.items()}
    with served() as url, http(url) as client:
        stored = client.post(CHAT, json=ASKED | {"store": True}).json()
        kept = f"{CHAT}/{stored['id']}"
        for kind in ("text/plain", "application/json", "application/x-www-form-urlencoded"):
            refused = client.post(CHAT, json=ASKED, headers=headers | {"content-type": kind})
            assert refused.status_code == 403
            assert "ALLOW_ORIGINS" in refused.json()["error"]["message"]
        assert client.delete(kept, headers=headers).status_code == 403
        assert client.get(kept).status_code == 200


@pytest.mark.parametrize("page", OWN_PAGES, ids=str)
def test_pages_of_this_machine_and_other_clients_may_chat(page: dict[str, str]) -> None:
    with served() as url, http(url) as client:
        assert posted(client, **page) == 200
        assert posted(client, **page, content_type="text/plain") == 200


def test_a_page_of_the_server_itself_may_chat() -> None:
    with served() as url, http(url) as client:
        assert posted(client, origin=url) == 200
        assert posted(client, origin=url.replace("http://", "https://")) == 200


def test_a_page_of_another_site_may_read_what_every_client_may_read() -> None:
    with served() as url, http(url) as client:
        answer = client.get("/health", headers={"origin": EVIL})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origins", [(EVIL,), ("*",)])
def test_a_named_origin_may_chat(origins: tuple[str, ...]) -> None:
    with served(allow_origins=origins) as url, http(url) as client:
        assert posted(client, origin=EVIL, sec_fetch_site="cross-site") == 200
        assert posted(client, origin="http://localhost:3000") == 200
    with served(allow_origins=("https://other.example",)) as url, http(url) as client:
        assert posted(client, origin=EVIL) == 403


def preflight(client: httpx.Client, origin: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    return client.options(CHAT, headers=headers)


def test_a_preflight_grants_the_private_network_to_allowed_pages_alone() -> None:
    with served() as url, http(url) as client:
        granted = preflight(client, "http://localhost:3000")
        assert granted.status_code == 200
        assert granted.headers["access-control-allow-private-network"] == "true"
        assert granted.headers["access-control-allow-origin"] == "http://localhost:3000"
        refused = preflight(client, EVIL)
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers


def test_local_pages_have_no_privilege_beyond_a_loopback_address() -> None:
    addresses = [address for address in own_addresses() if not address.startswith("127.")]
    if not addresses:
        pytest.skip("this machine has no other address")
    with started(HOST="0.0.0.0", USE_MOCK_API="true", API_KEYS="sk-of-the-test") as process:
        url = process.url.replace("0.0.0.0", addresses[0])
        with http(url) as client:
            client.headers["authorization"] = "Bearer sk-of-the-test"
            assert posted(client) == 200
            assert posted(client, origin="http://localhost:3000") == 403
            assert posted(client, origin=url) == 200


def own_addresses() -> list[str]:
    import socket

    found = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    return sorted({str(address[0]) for *_, address in found})


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere", CHAT, "/docs"])
def test_every_answer_forbids_a_guess_of_its_type(path: str) -> None:
    with served() as url, http(url) as client:
        for method in ("GET", "POST"):
            answer = client.request(method, path, json=ASKED)
            assert answer.headers["x-content-type-options"] == "nosniff"


# ---- the address behind proxies


@pytest.mark.parametrize(
    ("values", "hops", "address"),
    [
        ([], 1, ""),
        (["203.0.113.7"], 1, "203.0.113.7"),
        (["10.9.8.7, 203.0.113.7"], 1, "203.0.113.7"),
        (["10.9.8.7", "203.0.113.7"], 1, "203.0.113.7"),
        (["1.1.1.1, 203.0.113.7, 10.0.0.2"], 2, "203.0.113.7"),
        (["203.0.113.7"], 3, "203.0.113.7"),
        (["a,b,203.0.113.7:4711"], 1, "203.0.113.7"),
        (["[2001:db8::1]:4711"], 1, "2001:db8::1"),
        (["x, 2001:db8::1"], 1, "2001:db8::1"),
        ([",".join(["1.1.1.1"] * 5000) + ",203.0.113.7"], 1, "203.0.113.7"),
    ],
)
def test_the_address_is_the_one_that_the_nearest_proxies_added(
    values: list[str], hops: int, address: str
) -> None:
    headers: Any = [(b"host", b"localhost")]
    headers += [(b"x-forwarded-for", value.encode()) for value in values]
    assert forwarded_address(headers, hops) == address


def test_wrong_keys_are_counted_by_the_address_that_the_proxy_added() -> None:
    settings = {"forwarded_allow_ips": "*", "rate_limit_per_minute": 2, "api_keys": ("sk-right",)}
    with served(**settings) as url, http(url) as client:

        def guess(number: int, address: str) -> int:
            headers = {
                "x-forwarded-for": f"10.9.8.{number}, {address}",
                "authorization": f"Bearer guess-{number}",
            }
            return client.get("/v1/models", headers=headers).status_code

        assert [guess(n, "203.0.113.7") for n in range(4)] == [401, 401, 429, 429]
        assert guess(9, "203.0.113.8") == 401
