"""Who may come in, how often and how many at once, and the hooks: through a running server."""

import asyncio
import gc
import hmac
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from mongo_wire import MongoWire
from serving import ASKED, ROOT, served, started
from test_sdk import client as sdk_client
from upstreams import FAULTS, TEXT, Upstream, chunk, chunked, make, says, send

from rewrap.server.keys import sign, verify
from rewrap.types import APIError
from rewrap.upstream.models import ModelList

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
NEW, OLD, FOREIGN = "the new secret", "the old secret", "another server's secret"
PLAIN = "sk-a-plain-key-0123456789"
REVOKED = sign(NEW, "eve")
LIMITS = [f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def http(url: str, **headers: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers=headers, trust_env=False, verify=False, timeout=10)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def error(answer: httpx.Response) -> dict[str, Any]:
    """The four members of OpenAI's envelope."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    found = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return dict(found)


# ---- keys


@pytest.fixture(scope="module")
def locked() -> Iterator[httpx.Client]:
    """A server that asks for keys; no key is sent."""
    revoked = verify([NEW], REVOKED)
    assert revoked
    settings: Any = {
        "secret_key": (NEW, OLD),
        "api_keys": (PLAIN,),
        "revoked_keys": ("0" * 16, revoked.id),
    }
    with served(**settings, store_url="sqlite://") as url, http(url) as client:
        yield client


GOOD = {
    "signed": bearer(sign(NEW, "ada")),
    "signed by the secret before": bearer(sign(OLD, "ada")),
    "good for a day": bearer(sign(NEW, "ada", days=1)),
    "a name with dashes": bearer(sign(NEW, "jean-luc-0123456789abcdef.7")),
    "a name in another script": bearer(sign(NEW, "Ада 世界 👋")),
    "plain": bearer(PLAIN),
    "lower case": {"authorization": f"bearer {PLAIN}"},
    "upper case": {"Authorization": f"BEARER   {PLAIN}"},
    "api-key": {"api-key": PLAIN},
    "api-key, signed": {"Api-Key": sign(NEW, "ada")},
    "api-key beside another scheme": {"authorization": "Basic YTpi", "api-key": PLAIN},
    "api-key beside an empty bearer": {"authorization": "Bearer", "api-key": PLAIN},
}
ENDED = sign(NEW, "ada", days=1, now=time.time() - 86_500)
BAD = {
    "expired": ENDED,
    "longer by hand": ENDED.replace(ENDED.split(".")[1], "9999999999"),
    "revoked": REVOKED,
    "foreign": sign(FOREIGN, "ada"),
    "plain, changed": PLAIN[:-1] + "8",
    "plain, cut": PLAIN[:-1],
    "plain, longer": PLAIN + "0",
    "of somebody else": sign(NEW, "ada").replace("ada", "adb"),
    "a secret": NEW,
    "latin-1": "sk-\xe9\xff",
    "long": "sk-" + "x" * 10_000,
}
ROUTES = [
    ("POST", CHAT),
    ("POST", "/chat/completions"),
    ("POST", "/openai/deployments/m/chat/completions"),
    ("POST", "/ask"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/mock-gpt-model"),
    ("GET", CHAT),
    ("GET", f"{CHAT}/x"),
    ("POST", f"{CHAT}/x"),
    ("DELETE", f"{CHAT}/x"),
    ("GET", f"{CHAT}/x/messages"),
    ("GET", f"{CHAT}/x/messages/x-0/plots"),
    ("GET", f"{CHAT}/x/messages/x-0/plot"),
]


@pytest.mark.parametrize("case", GOOD)
def test_a_good_key_opens_in_every_spelling_of_its_header(locked: httpx.Client, case: str) -> None:
    assert locked.post(CHAT, json=ASKED, headers=GOOD[case]).status_code == 200
    assert locked.get("/v1/models", headers=GOOD[case]).status_code == 200


@pytest.mark.parametrize("case", BAD)
def test_a_bad_key_is_refused_and_not_repeated(locked: httpx.Client, case: str) -> None:
    for headers in (bearer(BAD[case]), {"api-key": BAD[case]}):
        given = [(name, value.encode("latin-1")) for name, value in headers.items()]
        answer = locked.post(CHAT, json=ASKED, headers=given)
        assert answer.status_code == 401
        assert (error(answer)["code"], error(answer)["type"]) == (
            "invalid_api_key",
            "invalid_request_error",
        )
        assert answer.headers["www-authenticate"] == "Bearer"
        assert BAD[case] not in answer.text
        assert len(answer.content) < 200


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_key_is_asked_for_wherever_something_talks_or_is_stored(
    locked: httpx.Client, method: str, path: str
) -> None:
    for headers in ({}, bearer("sk-wrong")):
        answer = locked.request(
            method, path, headers=headers, content=b"not json" if method == "POST" else b""
        )
        assert answer.status_code == 401  # and not 400: the key is checked before the payload
    assert locked.request(method, path, headers=bearer(PLAIN), content=b"not json").status_code in (
        200,
        400,
        404,
    )


def test_a_huge_body_without_a_good_key_is_not_waited_for(locked: httpx.Client) -> None:
    for key, status in (("sk-wrong", b"401"), (PLAIN, b"413")):
        with socket.create_connection(
            (locked.base_url.host, locked.base_url.port or 0), 5
        ) as connection:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\n"
            connection.sendall(f"{head}content-length: 999999999999\r\n\r\n{{".encode())
            assert connection.recv(12) == b"HTTP/1.1 " + status


def test_after_a_rotation_the_old_secret_goes() -> None:
    keys = {secret: bearer(sign(secret, "ada")) for secret in (NEW, OLD)}
    for secrets, statuses in (((OLD,), [401, 200]), ((NEW, OLD), [200, 200]), ((NEW,), [200, 401])):
        with served(secret_key=secrets) as url, http(url) as client:
            assert [
                client.post(CHAT, json=ASKED, headers=keys[s]).status_code for s in (NEW, OLD)
            ] == statuses


def test_a_user_is_the_same_by_each_of_his_keys_and_nobody_else(locked: httpx.Client) -> None:
    id = locked.post(CHAT, json=ASKED | {"store": True}, headers=bearer(sign(NEW, "a-b"))).json()[
        "id"
    ]
    assert locked.get(f"{CHAT}/{id}", headers=bearer(sign(OLD, "a-b", days=2))).status_code == 200
    for other in (sign(NEW, "a"), sign(NEW, "a-b "), sign(NEW, "A-b"), sign(NEW, "a%2Db"), PLAIN):
        assert locked.get(f"{CHAT}/{id}", headers=bearer(other)).status_code == 404
    plain = locked.post(CHAT, json=ASKED | {"store": True}, headers=bearer(PLAIN)).json()["id"]
    assert locked.get(f"{CHAT}/{plain}", headers={"api-key": PLAIN}).status_code == 200


# ---- rewrap key


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    argv = [sys.executable, "-W", "error", str(ROOT / "main.py"), *arguments]
    env = kept | {"PYTHONUTF8": "1"} | environment
    return subprocess.run(
        argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=20, check=False
    )


def test_the_command_makes_a_key_that_opens_and_saves_it_for_its_owner_alone(
    locked: httpx.Client, tmp_path: Path
) -> None:
    secrets = f"{NEW}, {OLD}"
    first = command(
        "key", "jean-luc 世界", "--days", "30", "--save", cwd=tmp_path, SECRET_KEY=secrets
    )
    assert (first.returncode, first.stderr) == (0, "")
    key = first.stdout.removesuffix("\n")
    known = verify([NEW], key)
    assert known
    assert known.user == "jean-luc 世界"
    assert abs((known.expires or 0) - time.time() - 30 * 86_400) < 60
    assert locked.get("/v1/models", headers=bearer(key)).status_code == 200
    os.chmod(tmp_path / "keys.txt", 0o644)
    second = command("key", "bob", "--save", cwd=tmp_path, SECRET_KEY=secrets)
    assert (
        tmp_path / "keys.txt"
    ).read_text() == f"{key}  # 'jean-luc 世界'\n{second.stdout.strip()}  # 'bob'\n"
    assert stat.S_IMODE((tmp_path / "keys.txt").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["keys.txt"]


@pytest.mark.parametrize(
    ("arguments", "secrets", "said", "code"),
    [
        (["key", "ada"], "", "SECRET_KEY is not set", 1),
        (["key", "ada", "--days", "0"], NEW, "more than 0", 1),
        (["key", " "], NEW, "needs the name of a user", 1),
        (["key", "ada", "--save", "no/such/folder/keys.txt"], NEW, "No such file or directory", 1),
        (["key", "ada", "--days", "soon"], NEW, "invalid float value: 'soon'", 2),
        (["key"], NEW, "USER", 2),
        (["kye", "ada"], NEW, "did you mean key", 2),
    ],
)
def test_the_command_names_the_mistake_in_one_line_without_a_key(
    tmp_path: Path, arguments: list[str], secrets: str, said: str, code: int
) -> None:
    answer = command(*arguments, cwd=tmp_path, SECRET_KEY=secrets)
    assert (answer.returncode, answer.stdout) == (code, "")
    assert said in answer.stderr
    assert not [bad for bad in ("Traceback", NEW) if bad in answer.stderr]
    assert list(tmp_path.iterdir()) == []


# ---- what the start says


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_open_server_logs_one_line_that_no_key_is_needed(workers: str) -> None:
    with started(LOG_LEVEL="info", WORKERS=workers) as process, http(process.url) as client:
        assert client.post(CHAT, json=ASKED).status_code == 200
    assert process.log.count("open: no key is needed") == 1
    assert "every client that reaches it may chat" not in process.log


@pytest.mark.parametrize(
    ("environment", "warned"),
    [({}, True), ({"API_KEYS": PLAIN}, False), ({"SECRET_KEY": NEW}, False)],
)
def test_beyond_loopback_an_open_server_warns(environment: dict[str, str], warned: bool) -> None:
    with started(HOST="0.0.0.0", LOG_LEVEL="info", **environment) as process:
        pass
    warnings = [
        line
        for line in process.log.splitlines()
        if "WARNING" in line and "every client that reaches it may chat" in line
    ]
    assert len(warnings) == warned
    assert ("open: no key is needed" in process.log) == warned
    assert not [secret for secret in (PLAIN, NEW) if secret in process.log]


# ---- so many a minute


def budget(answer: httpx.Response) -> tuple[str, str]:
    """What the headers tell: the limit, and what remains."""
    limit, remaining, reset = (answer.headers[name] for name in LIMITS)
    assert reset.endswith("s")
    return limit, remaining


def test_so_many_requests_a_minute_for_each_key_and_every_answer_tells_how_many_remain() -> None:
    with (
        served(rate_limit_per_minute=5, secret_key=(NEW,), api_keys=(PLAIN,)) as url,
        http(url) as client,
    ):
        ada = bearer(sign(NEW, "ada"))
        assert budget(client.post(CHAT, json=ASKED, headers=ada)) == ("5", "4")
        assert budget(client.post(CHAT, json=ASKED | {"stream": True}, headers=ada)) == ("5", "3")
        assert budget(client.post("/ask", json=ASKED, headers=ada)) == ("5", "2")
        assert budget(client.post(CHAT, content=b"no json", headers=ada)) == ("5", "1")
        assert budget(client.get("/v1/models", headers=ada)) == ("5", "0")
        for ask in (ASKED, ASKED | {"stream": True}):
            refused = client.post(CHAT, json=ask, headers=ada)
            assert (refused.status_code, budget(refused)) == (429, ("5", "0"))
            assert (error(refused)["type"], error(refused)["code"]) == (
                "requests",
                "rate_limit_exceeded",
            )
            assert 50 <= int(refused.headers["retry-after"]) <= 60
        for other in (sign(NEW, "bob"), PLAIN):
            assert budget(client.post(CHAT, json=ASKED, headers=bearer(other))) == ("5", "4")
        for headers in ({}, bearer("sk-wrong")):
            assert (
                client.post(CHAT, json=ASKED, headers=headers).status_code == 401
            )  # counts for nobody
        assert budget(client.post(CHAT, json=ASKED, headers=bearer(PLAIN))) == ("5", "3")
        health = client.get("/health")
        assert (health.status_code, LIMITS[0] in health.headers) == (200, False)


def test_who_guesses_keys_is_stopped_and_who_has_one_at_the_same_address_is_not() -> None:
    with served(rate_limit_per_minute=3, api_keys=(PLAIN,)) as url, http(url) as client:
        guesses = [bearer("sk-wrong-1"), {}, {"api-key": "sk-wrong-2"}, bearer("sk-wrong-3"), {}]
        answers = [client.get("/v1/models", headers=guess) for guess in guesses]
        assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
        assert 50 <= int(answers[-1].headers["retry-after"]) <= 60
        assert error(answers[-1])["code"] == "rate_limit_exceeded"
        good = [client.get("/v1/models", headers=bearer(PLAIN)) for _ in range(4)]
        assert [answer.status_code for answer in good] == [200, 200, 200, 429]
        assert budget(good[0]) == ("3", "2")


SIGNED = sign(NEW, "ada")


@pytest.mark.parametrize(
    "key",
    [PLAIN, PLAIN[:-1] + "8", SIGNED, sign(FOREIGN, "ada")],
    ids=["plain", "no", "signed", "foreign"],
)
def test_keys_are_compared_in_a_time_that_tells_nothing(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can measure that over a socket: whether the one function that does it so was asked has to do."""
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr(
        hmac, "compare_digest", lambda one, other: compared.append(one) or compare(one, other)
    )
    with served(secret_key=(NEW,), api_keys=(PLAIN,)) as url, http(url) as client:
        status = client.get("/v1/models", headers=bearer(key)).status_code
    assert status == (200 if key in (PLAIN, SIGNED) else 401)
    assert key.encode() in compared  # with API_KEYS
    assert any(isinstance(one, str) for one in compared) == ("." in key)  # the signature


def test_a_page_of_another_origin_may_read_the_limit() -> None:
    origin = "https://page.example"
    with (
        served(rate_limit_per_minute=1, allow_origins=(origin,)) as url,
        http(url, origin=origin) as client,
    ):
        for status in (200, 429):
            answer = client.post(CHAT, json=ASKED)
            exposed = {
                name.strip().lower()
                for name in answer.headers["access-control-expose-headers"].split(",")
            }
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
                status,
                origin,
            )
            assert exposed >= {*LIMITS, "retry-after", "x-request-id"}
            assert budget(answer) == ("1", "0")


def test_the_sdk_raises_rate_limit_error() -> None:
    with served(rate_limit_per_minute=1) as url, sdk_client(url) as sdk:
        raw = sdk.chat.completions.with_raw_response.create(**ASKED)
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as caught:
            sdk.chat.completions.create(**ASKED)
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
        assert int(caught.value.response.headers["retry-after"]) > 50


def test_without_keys_each_address_counts_and_a_trusted_proxy_tells_it() -> None:
    with served(rate_limit_per_minute=1) as url, http(url) as client:
        assert statuses(client, "10.1.1.1", "10.1.1.2", "10.1.1.1") == [200, 200, 429]
        assert statuses(client, "6.6.6.1, 10.1.1.2", "6.6.6.2, 10.1.1.2") == [
            429,
            429,
        ]  # what its client made up
        assert client.post(CHAT, json=ASKED).status_code == 200
    with (
        started(RATE_LIMIT_PER_MINUTE="1", FORWARDED_ALLOW_IPS="10.9.9.9") as process,
        http(process.url) as client,
    ):
        assert statuses(client, "10.1.1.1", "10.1.1.2") == [200, 429]


def statuses(client: httpx.Client, *addresses: str) -> list[int]:
    return [
        client.post(CHAT, json=ASKED, headers={"x-forwarded-for": a}).status_code for a in addresses
    ]


def test_two_servers_over_one_store_count_together(tmp_path: Path) -> None:
    with MongoWire(tmp_path) as wire:
        settings: Any = {
            "rate_limit_per_minute": 3,
            "rate_limit_store_url": wire.url,
            "secret_key": (NEW,),
        }
        with (
            served(**settings) as one,
            served(**settings) as other,
            http(one) as here,
            http(other) as there,
        ):
            ada, bob = bearer(sign(NEW, "ada")), bearer(sign(NEW, "bob"))
            turns = [
                client.post(CHAT, json=ASKED, headers=ada) for client in (here, there, here, there)
            ]
            assert [answer.status_code for answer in turns] == [200, 200, 200, 429]
            assert [answer.headers[LIMITS[1]] for answer in turns] == ["2", "1", "0", "0"]
            assert there.post(CHAT, json=ASKED, headers=bob).status_code == 200
    gc.collect()


def test_an_upstreams_limit_does_not_stand_beside_ours() -> None:
    """Two values of one header would be read as one that is no number."""
    with portal_upstream("429_retry_after") as url:
        for limit, told in ((0, [["60"], ["0"], ["7s"]]), (9, None)):
            with (
                served(rate_limit_per_minute=limit, openai_api_base=url) as address,
                http(address) as client,
            ):
                answer = client.post(CHAT, json=ASKED)
                assert (answer.status_code, answer.headers.get_list("retry-after")) == (429, ["7"])
                found = [answer.headers.get_list(name) for name in LIMITS]
                assert [len(values) for values in found] == [1, 1, 1]
                assert found == told if told else found[:2] == [["9"], ["8"]]


@contextmanager
def portal_upstream(fault: str) -> Iterator[str]:
    from anyio.from_thread import start_blocking_portal

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Upstream(FAULTS[fault])) as up,
    ):
        yield f"{up.url}/v1"


# ---- so many at a moment


@asynccontextmanager
async def busy(
    most: int, handler: Any, **settings: Any
) -> AsyncIterator[tuple[Upstream, httpx.AsyncClient]]:
    async with Upstream(handler) as up:
        with served(
            max_concurrent_requests=most, openai_api_base=f"{up.url}/v1", **settings
        ) as url:
            async with httpx.AsyncClient(
                base_url=url, trust_env=False, verify=False, timeout=10
            ) as client:
                yield up, client


async def test_more_at_a_moment_than_are_allowed_are_refused_at_once_and_who_leaves_makes_room() -> (
    None
):
    async with busy(2, FAULTS["hang"]) as (up, client):
        inside = [
            asyncio.create_task(client.post(CHAT, json=ASKED | {"stream": n == 0}))
            for n in range(2)
        ]
        await up.wait_requests(2)
        for path, ask in ((CHAT, ASKED), (CHAT, ASKED | {"stream": True}), ("/ask", ASKED)):
            began = time.monotonic()
            refused = await client.post(path, json=ask)
            assert time.monotonic() - began < 0.5
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        refused = await client.post(CHAT, json=ASKED)
        assert error(refused)["type"] == "server_error"
        assert (
            await client.get("/v1/chat/completions/x")
        ).status_code == 404  # what does not chat has room
        assert len(up.requests) == 2
        inside[0].cancel()
        up.handler = FAULTS["good"]
        await up.until(lambda: any(request.closed_at is not None for request in up.requests))
        assert [await status(client) for _ in range(3)] == [200] * 3
        inside[1].cancel()
        await asyncio.gather(*inside, return_exceptions=True)


async def status(client: httpx.AsyncClient, **more: Any) -> int:
    """Of one chat; one that finds no room asks again for a while, as its client's end may just be under way."""
    for _ in range(20):
        answer = await client.post(CHAT, json=ASKED | more)
        if answer.status_code != 503:
            break
        await asyncio.sleep(0.02)
    return answer.status_code


@pytest.mark.logs_errors
async def test_whatever_goes_wrong_makes_room_again() -> None:
    keys: Any = {
        "secret_key": (NEW,),
        "hooks": "test_admission:before_refusing",
        "store_url": "sqlite://",
    }
    async with busy(1, FAULTS["500"], **keys) as (up, client):
        assert (await client.post(CHAT, json=ASKED)).status_code == 401
        client.headers.update(bearer(sign(NEW, "ada")))
        assert [await status(client) for _ in range(3)] == [502] * 3
        assert [await status(client, messages=1) for _ in range(3)] == [400] * 3
        up.handler = FAULTS["truncated_sse"]
        assert [await status(client, stream=True) for _ in range(3)] == [200] * 3
        up.handler = FAULTS["good"]
        assert [await status(client, user="refused") for _ in range(3)] == [500] * 3
        assert [await status(client, completion_id="x") for _ in range(3)] == [404] * 3
        assert await status(client) == 200


async def test_who_sends_slowly_takes_no_place_from_others() -> None:
    async with busy(1, FAULTS["good"]) as (_, client):
        url = httpx.URL(client.base_url)
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{" % CHAT.encode()
        )
        await asyncio.sleep(0.05)
        assert (await client.post(CHAT, json=ASKED)).status_code == 200
        writer.close()


async def test_a_place_is_kept_until_the_last_byte_of_a_stream() -> None:
    gate = asyncio.Event()
    async with busy(1, make("sse_openai", TEXT, gate=gate)) as (_, client):
        async with client.stream("POST", CHAT, json=ASKED | {"stream": True}) as answer:
            pieces = answer.aiter_text()
            assert '"content"' in await anext(pieces)
            assert (await client.post(CHAT, json=ASKED)).status_code == 503
            gate.set()
            assert "[DONE]" in "".join([piece async for piece in pieces])
        assert await status(client, stream=True) == 200


# ---- the list of models: what the upstream is asked with our key, by /info for whoever comes


async def drips(request: Any, reader: Any, writer: Any) -> None:
    await send(writer, chunked("application/json", [])[:1])
    while True:
        await send(writer, [chunk(b" ")], 0)
        await asyncio.sleep(0.05)


@asynccontextmanager
async def listing(
    handler: Any, **settings: Any
) -> AsyncIterator[tuple[Upstream, httpx.AsyncClient]]:
    settings = {"openai_api_key": "sk-of-ours", "first_byte_timeout_seconds": 0.5} | settings
    async with busy(9, handler, **settings) as (up, client):
        yield up, client


UNLISTED = {
    "500": 502,
    "401_repeats_key": 502,
    "redirect": 502,
    "429_retry_after": 429,
    "503_retry_after": 503,
}
UNLISTED |= {"html_200": 502, "no_choices": 502, "reset": 502, "hang": 504}


@pytest.mark.parametrize(("fault", "status"), UNLISTED.items())
async def test_a_list_that_cannot_be_had_is_no_empty_list(fault: str, status: int) -> None:
    async with listing(FAULTS[fault]) as (_, client):
        for path in ("/v1/models", "/v1/models/x"):
            answer = await client.get(path)
            assert answer.status_code == status
            assert "sk-of-ours" not in str(error(answer))
        info = await client.get("/info")
        assert (info.status_code, info.json()["models"]) == (200, [])
    async with listing(FAULTS[fault], openai_model="small") as (_, client):
        assert [row["id"] for row in (await client.get("/v1/models")).json()["data"]] == ["small"]
        assert (await client.get("/v1/models/small")).status_code == 200


async def test_a_list_that_never_ends_has_an_end() -> None:
    async with listing(drips) as (up, client):
        assert (await client.get("/v1/models")).status_code == 504
        await up.until(lambda: up.open == 0)


@pytest.mark.parametrize(
    "handler", [FAULTS["500"], FAULTS["hang"], drips], ids=["500", "hang", "drips"]
)
async def test_however_often_info_is_asked_a_failing_upstream_is_asked_once(handler: Any) -> None:
    async with listing(handler) as (up, client):
        leaving = [asyncio.create_task(client.get("/info")) for _ in range(5)]
        await up.wait_requests()
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        answers = await asyncio.gather(*(client.get("/info") for _ in range(20)))
        answers += [await client.get("/info") for _ in range(5)]
        assert {answer.status_code for answer in answers} == {200}
        assert len(up.requests) == 1


async def test_after_a_while_a_failing_upstream_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ModelList, "FAILED_SECONDS", 0.2)
    async with listing(FAULTS["500"]) as (up, client):
        assert (await client.get("/v1/models")).status_code == 502
        up.handler = says(200, b'{"data": [{"id": "m"}]}')
        await asyncio.sleep(0.3)
        assert (await client.get("/info")).json()["models"] == ["m"]
        up.handler = FAULTS["500"]
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "m"


async def test_a_clients_own_key_hears_that_it_is_wrong_and_the_next_one_is_asked_for_itself() -> (
    None
):
    async def answer(request: Any, reader: Any, writer: Any) -> None:
        good = request.headers.get("authorization") == "Bearer good"
        known = (
            says(200, b'{"data": [{"id": "m"}]}')
            if good
            else says(401, b'{"error": {"message": "Wrong key."}}')
        )
        await known(request, reader, writer)

    async with listing(answer, openai_api_key="") as (_, client):
        for _ in range(2):
            assert (await client.get("/v1/models", headers=bearer("bad"))).status_code == 401
            assert (await client.get("/v1/models", headers=bearer("good"))).status_code == 200
            assert (await client.get("/info")).json()["models"] == []


async def test_who_asks_with_his_own_key_for_models_and_leaves_ends_the_upstreams_work() -> None:
    async with listing(drips, openai_api_key="", first_byte_timeout_seconds=60) as (up, client):
        asking = asyncio.create_task(client.get("/v1/models", headers=bearer("theirs")))
        await up.wait_requests()
        asking.cancel()
        await up.wait_closed()
        await asyncio.gather(asking, return_exceptions=True)


@pytest.mark.parametrize("fault", ["500", "hang"])
async def test_one_backend_of_several_that_fails_leaves_the_list_of_the_others(
    fault: str, tmp_path: Path
) -> None:
    row = '[[backend]]\nname = "{}"\nkind = "openai"\nurl = "{}/v1"\nmodels = {}\n'
    async with (
        Upstream(FAULTS[fault]) as bad,
        Upstream(says(200, b'{"data": [{"id": "g-1"}]}')) as good,
    ):
        for models, found in (('["b-0", "b*"]', ["b-0", "g-1"]), ('["*"]', ["g-1"])):
            file = tmp_path / "backends.toml"
            file.write_text(
                row.format("bad", bad.url, models) + row.format("good", good.url, '["g*"]')
            )
            with served(config=str(file), first_byte_timeout_seconds=0.5) as url:
                async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as client:
                    assert [
                        row["id"] for row in (await client.get("/v1/models")).json()["data"]
                    ] == found
                    assert (await client.get("/info")).json()["models"] == found
        file.write_text(row.format("bad", bad.url, '["*"]'))
        with served(config=str(file), first_byte_timeout_seconds=0.5) as url:
            async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as client:
                assert (await client.get("/v1/models")).status_code in (502, 504)
                assert (await client.get("/info")).json()["models"] == []


# ---- hooks: those of this module, by its name

SEEN: list[tuple[str, dict[str, Any]]] = []  # (model, completion)


def before_refusing(chat: Any) -> None:
    if chat.payload.get("user") == "refused":
        raise RuntimeError("canary of a hook")
    if chat.payload.get("user") == "forbidden":
        raise APIError(403, "Not this one.", code="forbidden_word")


async def before_waiting(chat: Any) -> None:
    await asyncio.sleep(0.01)
    chat.messages.insert(0, {"role": "system", "content": "Be kind."})


def after_noting(chat: Any, completion: dict[str, Any]) -> None:
    SEEN.append((chat.model, completion))
    if chat.payload.get("user") == "refused after":
        raise RuntimeError("canary of a hook")


async def after_changing(chat: Any, completion: dict[str, Any]) -> None:
    await asyncio.sleep(0)
    completion["checked"] = True


@asynccontextmanager
async def hooked(
    *names: str, way: str = "openai_api_base"
) -> AsyncIterator[tuple[Upstream, httpx.AsyncClient]]:
    SEEN.clear()
    hooks = ",".join(name if ":" in name else f"test_admission:{name}" for name in names)
    path = "chat" if way == "chat_url" else "v1"
    async with Upstream(FAULTS["good"]) as up:
        with served(**{way: f"{up.url}/{path}"}, hooks=hooks, store_url="sqlite://") as url:
            async with httpx.AsyncClient(
                base_url=url, trust_env=False, verify=False, timeout=10
            ) as client:
                yield up, client


@pytest.mark.parametrize("way", ["chat_url", "openai_api_base"])
async def test_the_example_keeps_e_mail_addresses_from_the_upstream(way: str) -> None:
    said = {"role": "user", "content": "Write to ada@example.com."}
    parts = {"role": "user", "content": [{"type": "text", "text": "cc bob@example.com"}]}
    async with hooked("examples.redact:before", "examples.redact:after", way=way) as (up, client):
        asks = [(CHAT, {}), (CHAT, {"stream": True}), (CHAT, {"store": True}), ("/ask", {})]
        for path, more in asks:
            answer = await client.post(path, json=ASKED | {"messages": [said, parts]} | more)
            assert answer.status_code == 200
            sent = up.requests[-1]
            assert b"example.com" not in sent.body
            assert sent.json()["messages"][0]["content"] == "Write to [e-mail]."
            assert b"cc [e-mail]" in sent.body
        assert len(up.requests) == len(asks)
        kept = (await client.get(CHAT)).json()["first_id"]
        assert "example.com" not in (await client.get(f"{CHAT}/{kept}/messages")).text


@pytest.mark.parametrize("way", ["chat_url", "openai_api_base"])
async def test_hooks_run_in_order_and_see_the_finished_completion_of_json_and_of_streams(
    way: str,
) -> None:
    async with hooked("before_waiting", "after_changing", "after_noting", way=way) as (up, client):
        whole = (await client.post(CHAT, json=ASKED)).json()
        assert (whole["checked"], whole["choices"][0]["message"]["content"]) == (True, TEXT)
        assert [message["role"] for message in up.requests[-1].json()["messages"]] == [
            "system",
            "user",
        ]
        streamed = await client.post(CHAT, json=ASKED | {"stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert "checked" not in streamed.text
        assert (await client.post("/ask", json=ASKED)).text == TEXT
        stored = (await client.post(CHAT, json=ASKED | {"store": True})).json()
        assert (await client.get(f"{CHAT}/{stored['id']}")).json()["checked"] is True
    assert [model for model, _ in SEEN] == ["m"] * 4
    for _, completion in SEEN:
        assert completion["object"] == "chat.completion"
        assert completion["choices"][0]["message"]["content"] == TEXT
        assert completion["choices"][0]["finish_reason"] == "stop"
        assert completion["usage"]["total_tokens"] > 0


async def test_after_hooks_do_not_see_what_has_failed() -> None:
    async with hooked("after_noting") as (up, client):
        for fault, stream, expected in (
            ("500", False, 502),
            ("500", True, 502),
            ("truncated_sse", True, 200),
        ):
            up.handler = FAULTS[fault]
            assert (
                await client.post(CHAT, json=ASKED | {"stream": stream})
            ).status_code == expected
        assert SEEN == []


@pytest.mark.logs_errors
async def test_a_hook_that_raises_is_500_and_tells_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with hooked("before_refusing", "after_noting") as (up, client):
        for path, more in (
            (CHAT, {"user": "refused"}),
            (CHAT, {"user": "refused", "stream": True}),
        ):
            expect_500(await client.post(path, json=ASKED | more))
        assert up.requests == []
        expect_500(await client.post(CHAT, json=ASKED | {"user": "refused after"}))
        expect_500(await client.post(CHAT, json=ASKED | {"user": "refused after", "store": True}))
        assert (await client.get(CHAT)).json()["data"] == []
        assert caplog.text.count("RuntimeError: canary of a hook") == 4  # the log tells it
        forbidden = await client.post(CHAT, json=ASKED | {"user": "forbidden"})
        assert (forbidden.status_code, error(forbidden)["code"]) == (403, "forbidden_word")
        assert (await client.post(CHAT, json=ASKED)).status_code == 200


@pytest.mark.logs_errors
async def test_an_after_hook_that_raises_ends_a_stream_with_an_error() -> None:
    async with hooked("after_noting") as (_, client):
        for more in ({}, {"store": True}):
            answer = await client.post(
                CHAT, json=ASKED | {"user": "refused after", "stream": True} | more
            )
            assert "canary" not in answer.text
            assert "[DONE]" not in answer.text
            last = answer.text.strip().split("\n\n")[-1].removeprefix("data: ")
            assert json.loads(last)["error"]["type"] == "server_error"
        assert (await client.get(CHAT)).json()["data"] == []


def expect_500(answer: httpx.Response) -> None:
    assert answer.status_code == 500
    assert error(answer)["message"] == "The server had an error while processing your request."
    assert not [word for word in ("canary", "RuntimeError", "hook") if word in answer.text]
