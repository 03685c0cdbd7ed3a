"""Whatever an upstream does, each answer is right: every fault x both kinds of upstream x every form of answer, on real sockets.

The table at the end of this module says where each thing that goes wrong in chat proxies has its test.
"""

import ast
import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import COUNTED, Command, running
from serving import ASKED, ROOT
from upstreams import BIG, DONE, FAULTS, GOOD, LEAK, TEXT, Request, Upstream, around, bomb

pytestmark = pytest.mark.anyio

CHAT, ASK = "/v1/chat/completions", "/ask"
WAYS = {"CHAT_URL": "/chat", "OPENAI_API_BASE": "/v1"}
FORMS = ["whole", "stream", "ask"]
KEY = "sk-canary-key-of-the-server-71b2"
OWN = "canary-header-of-the-server-93fe"
CLIENTS = "sk-canary-key-of-the-client-c0de"
LIMITS = {
    "FIRST_BYTE_TIMEOUT_SECONDS": "0.9",
    "STALL_TIMEOUT_SECONDS": "0.6",
    "TOTAL_TIMEOUT_SECONDS": "5",
    "MAX_REPLY_BYTES": "20000000",
    "MAX_EVENT_BYTES": "2000000",
    "LOG_LEVEL": "debug",
}
KEYS = {
    "CHAT_URL": {"CHAT_HEADERS": json.dumps({"authorization": f"Bearer {KEY}", "x-secret": OWN})},
    "OPENAI_API_BASE": {"OPENAI_API_KEY": KEY},
}
LEFT_AFTER = 200_000  # bytes that a client reads of an endless stream
LEFT_AFTER_SECONDS = 2.0  # that a client waits for a stream that is alive and has no end
ALIVE = ["drip", "drip_mid", "drip_json", "pings_only", "blanks"]  # any byte is a sign of life
HEAVY = ["endless", "endless_json", "endless_head", "huge_event", "gzip_bomb", "body_10mb"]

# Mistakes in JSON are repaired: NaN becomes null, a lone surrogate U+FFFD.
REPAIRED = {"nan_json": TEXT, "surrogate": "good, then \ufffd"}
TEXTS = GOOD | REPAIRED | {"body_10mb": BIG, "deep_300": TEXT}
STATUSES = {
    400: ["400_envelope"],
    404: ["404_model"],
    422: ["422"],
    429: ["429_retry_after"],
    503: ["503_retry_after"],
    504: ["hang", "slow_head", "drip", "drip_json", "drip_mid", "pings_only", "blanks"],
}
SOON = ["hang", "slow_head"]  # they end by the first deadline, not by that of the whole
BROKEN = [
    "reset_mid",
    "cut_chunk",
    "bad_chunk_size",
    "cut_event",
    "error_event",
    "truncated_sse",
    "drip_mid",
]  # in mid-stream
AS_IT_IS = {
    "nan_json": TEXT,
    "surrogate": "good, then \ud800",
    "deep_json": TEXT,
}  # where events go through unparsed


Found = str | int


def expected(name: str, way: str, form: str) -> Found | tuple[Found, ...]:
    """A status; or "text", "broken" (an error event; of /ask, the connection cut), "endless", "nothing" or "a part"."""
    openai = way == "OPENAI_API_BASE"
    if name == "done_then_open" and openai and form == "whole":
        return 504  # JSON has no end but HTTP's
    if name in ALIVE and form != "whole":
        return "endless"
    if name == "endless":
        return (
            "endless" if form != "whole" else (502, 504)
        )  # too large, or too slow, whichever comes first
    if name == "invalid_utf8" and openai and form == "stream":
        return ("broken", 502)  # whether what comes before it has come by itself
    if name == "null_content" and openai:
        return "text" if form == "whole" else "nothing"  # it passes as it came
    if name == "slow_head" and form == "whole":
        return "a part"  # a whole answer is bounded by the total time alone
    if name == "403":
        return 403
    if name == "truncated_sse" and not openai:
        return "a part"  # of events that have no end of their own, HTTP alone tells that they are cut short
    if name in TEXTS or (name in AS_IT_IS and openai and form == "stream"):
        return "text"
    if name in BROKEN and form != "whole":
        return "broken"
    status = next((status for status, names in STATUSES.items() if name in names), 502)
    return 500 if form == "ask" and status in (502, 504) else status


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def no_canary(text: str, up: Upstream) -> None:
    """No secret, address or traceback. The upstream's own words (LEAK) are for the log, and in a rejection for the client."""
    found = [word for word in (KEY, OWN, CLIENTS, f":{up.port}", "Traceback") if word in text]
    assert not found, f"{found} in {text[:2000]}"


class Case:
    """One request of the table: what came of it, in one word."""

    def __init__(self, up: Upstream, name: str, way: str, form: str) -> None:
        self.up, self.name, self.way, self.form = up, name, way, form
        self.got = b""
        self.seconds = 0.0

    async def found(self, client: httpx.AsyncClient, model: str) -> Found:
        path = ASK if self.form == "ask" else CHAT
        body = ASKED | {
            "model": model,
            "stream": self.form != "whole",
            "user": f"{self.name}-{self.way}-{self.form}",
        }
        ending, began = "", time.monotonic()
        headers = {"authorization": f"Bearer {CLIENTS}", "accept-encoding": "gzip"}
        alive = self.name in ALIVE and self.form != "whole"
        try:
            async with (
                asyncio.timeout(LEFT_AFTER_SECONDS if alive else None),
                client.stream("POST", path, json=body, headers=headers) as response,
            ):
                async for piece in response.aiter_raw():
                    self.got += piece
                    if self.name == "endless" and len(self.got) > LEFT_AFTER:
                        ending = "endless"
                        break
        except TimeoutError:
            return "endless"
        except httpx.RemoteProtocolError:
            ending = "broken" if self.form == "ask" else "cut off"
        self.seconds = time.monotonic() - began
        self.check_head(response)
        if ending == "endless" or response.status_code != 200:
            return ending or response.status_code
        if self.form == "stream":
            return ending or self.streamed()
        text = (
            self.got.decode()
            if self.form == "ask"
            else json.loads(self.got)["choices"][0]["message"]["content"]
        )
        return ending or self.word(text)

    def check_head(self, response: httpx.Response) -> None:
        """Nothing of the upstream's own; each failure with its envelope."""
        headers = response.headers
        no_canary(f"{headers}", self.up)
        assert LEAK not in f"{headers}"
        no_canary(self.got.decode(), self.up)
        assert headers["x-request-id"].startswith("req_")
        private = {
            "set-cookie",
            "server",
            "x-internal",
            "x-injected",
            "x-folded",
            "keep-alive",
            "www-authenticate",
        }
        private |= {
            "access-control-allow-origin",
            "content-encoding",
            "location",
            "link",
            "trailer",
        }
        assert not private & set(headers), headers
        if response.status_code != 200:
            assert headers["content-type"] == "application/json"
            error = json.loads(self.got)
            assert set(error) == (
                {"role", "content", "error", "details"} if self.form == "ask" else {"error"}
            )
            members = {"message", "type", "param", "code"}
            assert self.form == "ask" or members <= set(error["error"])
            if "retry_after" in self.name:
                assert headers["retry-after"] == ("7" if self.name.startswith("429") else "3")
        elif self.form == "stream":
            assert headers["content-type"].startswith("text/event-stream")
            assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
            assert "content-length" not in headers
        elif self.form == "ask":
            assert headers["content-type"] == "text/plain; charset=utf-8"
            assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")

    def streamed(self) -> str:
        body = self.got.decode().replace("\r\n", "\n").replace("\r", "\n")
        assert body.endswith("\n\n")
        rows = [
            [line[5:].strip() for line in e.split("\n") if line.startswith("data:")]
            for e in body.split("\n\n")
        ]
        *datas, last = ["\n".join(row) for row in rows if row]
        assert DONE not in datas
        if self.name == "deep_json" and last == DONE:
            return self.word(
                "".join(re.findall(r'"content": "([^"]*)"', body))
            )  # no parser of ours goes so deep
        text = "".join(
            c["delta"].get("content") or "" for data in datas for c in json.loads(data)["choices"]
        )
        if last == DONE:
            return self.word(text)
        assert set(json.loads(last)["error"]) == {"message", "type", "param", "code"}
        assert TEXT.startswith(text)
        assert '"finish_reason":"' not in body
        return "broken"

    def word(self, text: str) -> str:
        relayed = self.way == "OPENAI_API_BASE" and self.form == "stream"
        texts = TEXTS | AS_IT_IS if relayed else TEXTS
        if text == texts.get(self.name):
            return "text"
        return (
            "nothing"
            if not text
            else "a part"
            if TEXT.startswith(text)
            else f"other text: {text[:50]}"
        )


async def by_model(request: Request, reader: Any, writer: Any) -> None:
    await FAULTS[request.asked["model"]](request, reader, writer)


@asynccontextmanager
async def both(
    up: Upstream, **environment: str
) -> AsyncIterator[dict[str, tuple[Command, httpx.AsyncClient]]]:
    """A process for each kind of upstream, and a client of it."""
    async with AsyncExitStack() as stack:
        found = {}
        for way, path in WAYS.items():
            settings = {way: up.url + path, **KEYS[way], **environment}
            process = await stack.enter_async_context(
                running([sys.executable, "-c", COUNTED], **settings)
            )
            client = httpx.AsyncClient(
                base_url=process.url, trust_env=False, verify=False, timeout=8
            )
            found[way] = process, await stack.enter_async_context(client)
            await found[way][1].get("/health")
        yield found


async def test_the_fault_table(told: list[str]) -> None:
    """Each fault x kind of upstream x form: the right answer, no secret; then a good request; at the end nothing is left."""
    for stream in (False, True):
        for path in ("/chat", CHAT):
            asked = json.dumps({"model": "gzip_bomb", "stream": stream})
            bomb(*around(Request("POST", path, {}, asked.encode())))  # takes a second to make
    wrong: list[str] = []
    held = 0

    async def race(cases: list[Case]) -> list[Found]:
        """Each on a connection that has served once, while nobody else asks."""
        found = []
        for case in cases:
            client = ways[case.way][1]
            await Case(up, "good", case.way, case.form).found(client, "keepalive_race")
            found.append(await case.found(client, "keepalive_race"))
        return found

    async def fault(name: str) -> None:
        nonlocal held
        cases = [Case(up, name, way, form) for way in WAYS for form in FORMS]
        if name == "keepalive_race":
            results: list[Any] = await race(cases)
        else:
            asking = (case.found(ways[case.way][1], name) for case in cases)
            results = await asyncio.gather(*asking, return_exceptions=True)
        for case, found in zip(cases, results, strict=True):
            wanted = expected(name, case.way, case.form)
            late = name in SOON and case.seconds > 4 and case.form != "whole"
            if found in (wanted if isinstance(wanted, tuple) else (wanted,)) and not late:
                held += 1
            elif late:
                wrong.append(
                    f"{name}, {case.way}, {case.form}: {found!r} after {case.seconds:.1f} s"
                )
            else:
                wrong.append(f"{name}, {case.way}, {case.form}: {found!r} instead of {wanted!r}")
        for way in WAYS:
            if (
                next_one := await Case(up, "good", way, "whole").found(ways[way][1], "good")
            ) != "text":
                wrong.append(f"good after {name}, {way}: {next_one!r}")

    async def few(names: list[str]) -> None:
        for name in names:
            await fault(name)

    async with Upstream(by_model) as up, both(up, **LIMITS) as ways:
        await fault("good")
        held = 0
        before = {way: await process.counts() for way, (process, _) in ways.items()}
        light = [name for name in FAULTS if name not in (*HEAVY, "keepalive_race")]
        await asyncio.gather(*(few(light[n::8]) for n in range(8)))
        await few(["keepalive_race", *HEAVY])
        told.append(f"fault table: {held} of {len(FAULTS) * len(WAYS) * len(FORMS)} cases held")
        for _, client in ways.values():
            await client.aclose()
        await up.until(lambda: up.open == 0, 10)
        for way, (process, _) in ways.items():
            wrong += await left_behind(way, process, before[way])
            await until_all_is_logged(process)
            no_canary("".join(process.lines[1:]), up)  # the first one says where it asks
        for request in up.requests:
            assert request.path in ("/chat", CHAT), "a redirect was followed"
            assert CLIENTS not in str(request.headers)
        times = Counter(
            request.asked["user"]
            for request in up.requests
            if not request.asked["user"].startswith("good")
        )
        again = [
            user
            for user, count in times.items()
            if count > 1 + user.startswith(("keepalive_race", "reset-"))
        ]
        assert not again, "asked more than once"
        assert {times[f"keepalive_race-{way}-{form}"] for way in WAYS for form in FORMS} == {2}, (
            "there was no race"
        )
    assert not wrong, "\n".join(wrong)


async def until_all_is_logged(process: Command) -> None:
    """Its lines come in batches: one more request, and nothing before that is missing."""
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        id = (await client.get(f"{process.url}/health")).headers["x-request-id"]
    async with asyncio.timeout(3):
        while id not in process.log:
            await asyncio.sleep(0.01)


async def left_behind(way: str, process: Command, before: dict[str, int]) -> list[str]:
    """What a process holds that it did not hold before."""
    for _ in range(100):
        now = await process.counts()
        if now["descriptors"] <= before["descriptors"] and now["tasks"] <= before["tasks"]:
            break
        await asyncio.sleep(0.05)
    most = {"descriptors": 0, "tasks": 0, "objects": 1500, "memory": 80_000_000}
    return [
        f"{way}: {now[name] - before[name]} {name} left"
        for name in most
        if now[name] - before[name] > most[name]
    ]


# ---- whom it asks, and what it is made of


async def test_a_url_that_a_client_gives_is_not_asked() -> None:
    async with Upstream(FAULTS["good"]) as up, Upstream(FAULTS["good"]) as other, both(up) as ways:
        for _, client in ways.values():
            fields = dict.fromkeys(
                ["api_base", "base_url", "url", "api_key", "proxy"], f"{other.url}/v1"
            )
            headers = {
                "x-forwarded-host": other.url[7:],
                "forwarded": f"host={other.url[7:]}",
                "x-base-url": other.url,
            }
            assert (
                await client.post(CHAT, json=ASKED | fields, headers=headers)
            ).status_code == 200
            host, port = str(client.base_url)[7:].strip("/").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            body = json.dumps(ASKED).encode()
            head = f"POST {other.url}{CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)  # an absolute URI, as proxies get it
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
            writer.close()
        assert not other.connections
        assert len(up.requests) == 4


async def test_proxies_of_the_environment_do_not_see_what_is_asked() -> None:
    async with Upstream(FAULTS["good"]) as up, Upstream(FAULTS["500"]) as proxy:
        names = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
        async with both(up, **dict.fromkeys(names, proxy.url)) as ways:
            for _, client in ways.values():
                assert (await client.post(CHAT, json=ASKED)).status_code == 200
        assert not proxy.connections


def test_packages_are_pinned_and_none_is_older_than_its_last_hole() -> None:
    floors = {"starlette": (1, 3, 1), "uvicorn": (0, 45), "h11": (0, 16), "orjson": (3, 11, 5)}
    for name, floor in floors.items():
        assert tuple(map(int, version(name).split("."))) >= floor
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = [
        line.split(";")[0].split() for line in lines if line and not line.startswith(("#", "-"))
    ]
    assert packages
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", package[0]) for package in packages)
    assert "python-multipart" not in str(packages)


def test_the_image_runs_as_a_plain_user_and_hears_its_signals_itself() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    (user,) = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert user.split(":")[0] not in ("0", "root")
    (command,) = [line for line in lines if line.startswith("ENTRYPOINT ")]
    # In exec form: no shell is PID 1.
    assert json.loads(command.removeprefix("ENTRYPOINT ")) == ["python", "main.py"]


# ---- what goes wrong in chat proxies, and the tests that hold it

HELD = {
    "the upstream closes when the client leaves: in mid-stream, before the first byte, without a stream, in the queue": """
        test_leaving_in_mid_stream_closes_the_upstream_at_once test_leaving_any_kind_of_stream_closes_the_upstream_at_once
        test_leaving_before_the_first_byte_closes_the_upstream_at_once test_leaving_while_all_connections_are_busy_takes_no_place
        test_leaving_while_a_json_answer_comes_in_closes_the_upstream_at_once test_beside_nginx_leaving_is_as_soon""",
    "middleware is pure ASGI": "test_no_file_wraps_streams_in_base_http_middleware",
    "masses that leave do not poison the pool": """
        test_after_masses_that_left_everybody_is_served_and_nothing_stays_open
        test_requests_cancelled_at_any_moment_never_poison_the_pool""",
    "a stream that is cut short is never a success": """
        test_the_fault_table test_a_broken_stream_ends_with_an_error_event_and_no_done""",
    "an error before the headers has a real status": """
        test_the_fault_table test_an_upstreams_failure_before_the_first_byte_has_its_own_status""",
    "server-sent events are read by the standard": """
        test_the_fault_table test_events_are_read_by_the_standard test_a_stream_passes_through_byte_for_byte""",
    "what was acknowledged survives kill -9": """
        test_acknowledged_chats_survive_kill_9_of_the_server
        test_acknowledged_writes_survive_kill_9_of_a_process_with_eight_writers""",
    "no key, URL, header, page or traceback of an upstream in an answer or a log": """
        test_the_fault_table test_payloads_are_logged_at_debug_alone_with_keys_masked""",
    "whose key goes where; URLs of clients are ignored": """
        test_the_fault_table test_the_clients_key_goes_along_only_where_the_server_has_none
        test_the_clients_key_never_goes_to_a_chat_url test_a_url_that_a_client_gives_is_not_asked""",
    "keys": """
        test_each_change_of_one_character_of_a_key_is_refused test_no_change_by_any_character_passes
        test_a_key_ends_at_its_expiry test_a_revoked_key_is_refused_and_others_are_not
        test_after_a_rotation_old_and_new_keys_are_accepted_until_the_old_secret_goes
        test_where_something_talks_a_key_is_asked_for_before_the_payload_is_read""",
    "four deadlines: connect, first byte, next event, whole answer": """
        test_the_fault_table test_a_connect_that_takes_too_long_is_a_connect_timeout
        test_a_silent_stream_ends_at_the_stall_timeout
        test_a_slow_json_answer_ends_at_the_total_timeout""",
    "which status": """
        test_the_fault_table test_an_upstreams_error_keeps_its_status_and_every_member
        test_a_refused_key_is_told_to_the_client_whose_it_was test_each_failure_has_its_status_and_the_envelope""",
    "one retry at most, after the keep-alive race alone": """
        test_the_fault_table test_after_the_race_there_is_one_retry_and_no_more
        test_after_a_byte_of_an_answer_nothing_is_asked_again test_a_silent_connection_is_not_asked_again""",
    "memory is bounded": """
        test_a_request_that_is_too_large_is_413_whether_it_tells_its_length_or_not test_413_comes_before_the_body_is_read
        test_a_gzip_bomb_comes_in_bounded_pieces test_a_client_that_reads_slowly_does_not_fill_the_memory
        test_a_long_stream_does_not_fill_the_memory test_a_large_upload_waits_for_a_slow_upstream""",
    "bad input is never a 5xx and always has the envelope": """
        test_no_body_breaks_the_server test_no_headers_break_the_server test_no_path_breaks_the_server
        test_what_can_be_read_but_not_written_is_a_bad_request test_what_is_no_http_has_the_envelope_too""",
    "SIGTERM": """
        test_at_sigterm_50_streams_finish_and_10_endless_ones_are_told_and_so_they_are_by_uvicorn
        test_as_pid_1_it_ends_as_gently test_the_grace_is_as_long_as_it_is_set""",
    "leaving while the body is read leaves no traceback": """
        test_leaving_in_the_middle_of_a_request_asks_nobody_and_logs_no_traceback""",
    "headers of event streams": "test_the_fault_table",
    "headers of an upstream go on by a list": """
        test_the_fault_table test_of_an_upstreams_headers_only_those_that_clients_use_go_on""",
    "CORS": """
        test_any_origin_and_credentials_never_come_together test_errors_of_keys_and_upstreams_may_be_read_too""",
    "a server on a loopback refuses a foreign Host": "test_a_loopback_refuses_foreign_hosts",
    "control characters are escaped in logs": "test_control_characters_are_escaped_in_the_log",
    "websockets get an answer; no proxy of the environment; the image": """
        test_a_websocket_handshake_gets_a_plain_answer test_proxies_of_the_environment_do_not_see_what_is_asked
        test_the_image_runs_as_a_plain_user_and_hears_its_signals_itself""",
    "floors and pins": "test_packages_are_pinned_and_none_is_older_than_its_last_hole",
}


def test_each_of_these_has_its_tests() -> None:
    files = [ROOT / "test_main.py", *Path(__file__).parent.glob("test_*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    known = {
        node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert len(HELD) == 24
    assert not {name for names in HELD.values() for name in names.split()} - known
