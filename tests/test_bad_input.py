"""Bad input is never a 5xx, always OpenAI's envelope (or the form of /ask), and leaves no traceback in the log.

REWRAP_EXAMPLES=100000 tries so many bodies, and of headers, paths and operations in proportion; the default is a few hundred.
"""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import httpx
import pytest
import requests
import schemathesis
from growth import LINEAR, growth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from serving import ASKED, Process, served, started

from rewrap.api.checks import CHECKS, ROLES
from rewrap.api.duplicates import ROUTING_MEMBERS
from rewrap.api.openapi import document
from rewrap.api.requests import chat_request, parse_object
from rewrap.config.settings import Settings
from rewrap.main import Rewrap, create_app
from rewrap.server.hosts import normal_path
from rewrap.types import APIError
from rewrap.upstream.auto import AutoShape
from rewrap.upstream.params import Params
from rewrap.upstream.shapes import known_shapes

EXAMPLES = int(os.environ.get("REWRAP_EXAMPLES", "400"))
CHAT, ASK, AZURE, ONE = (
    "/v1/chat/completions",
    "/ask",
    "/openai/deployments/m/chat/completions",
    "/v1/chat/completions/x",
)
POSTS = (CHAT, ASK, AZURE, ONE)
Headers = list[tuple[bytes, bytes]]


SHAPES = ["ollama", "tgi", "rasa", "dify", "cohere", "anthropic", "gemini", "llama.cpp"]
UPSTREAMS: dict[str, dict[str, Any]] = {
    "relay": {"openai_api_base": "http://upstream.internal/v1"},
    "any URL": {"chat_url": "http://upstream.internal/chat"},
    **{name: {"chat_url": "http://upstream.internal/chat", "chat_shape": name} for name in SHAPES},
}


@cache
def app(upstream: str = "") -> Rewrap:
    """The app with the mock, or in front of an upstream that answers everything with a text."""
    settings = Settings(store_url="sqlite://", log_level="error", **UPSTREAMS.get(upstream, {}))
    return create_app(settings, transport=httpx.MockTransport(hello))


def hello(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"reply": "Hello"})


@cache
def loop() -> asyncio.AbstractEventLoop:
    """One for all examples: to make one takes longer than to answer."""
    return asyncio.new_event_loop()


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes
    whole: bool  # the app said that this is the end


class Tracebacks(logging.Handler):
    """Whatever is logged with an exception, or by a task that nobody asked for its result."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.found.append(self.format(record))


@pytest.fixture(scope="module", autouse=True)
def tracebacks() -> Iterator[Tracebacks]:
    handler = Tracebacks()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
    for upstream in ("", *UPSTREAMS):
        loop().run_until_complete(app(upstream).gateway.store.close())
    loop().close()
    assert handler.found == []


def ask(
    method: str,
    target: str,
    body: bytes = b"",
    headers: Headers | None = None,
    upstream: str = "",
) -> Answer:
    """The app's answer to one request, which a server would have given it so (ASGI); the target is percent-encoded."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1"), *(headers or [])],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    return loop().run_until_complete(answered(app(upstream), scope, body))


async def answered(app: Rewrap, scope: dict[str, Any], body: bytes) -> Answer:
    sent: list[Any] = []
    parts: list[Any] = [{"type": "http.request", "body": body}]

    async def receive() -> Any:
        if not parts:
            await asyncio.sleep(3600)  # the client stays
        return parts.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    text = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], dict(sent[0]["headers"]), text, not sent[-1].get("more_body"))


def complaints(answer: Answer, path: str) -> str:
    """What is wrong with an answer, in a word; "" where nothing is."""
    if answer.status >= 500 or not answer.whole:
        return f"status {answer.status}, whole: {answer.whole}"
    if b"x-request-id" not in answer.headers:
        return "no request id"
    if answer.status == 200:
        kind = answer.headers[b"content-type"].partition(b";")[0]
        if kind == b"text/event-stream":
            *events, last = answer.body.decode().removesuffix("\n\n").split("\n\n")
            broken = [
                event for event in events if "error" in json.loads(event.removeprefix("data: "))
            ]
            return f"events: {broken}" if broken or last != "data: [DONE]" else ""
        if kind == b"application/json":
            json.loads(answer.body)
        return ""
    return wrong_envelope(json.loads(answer.body), path)


def wrong_envelope(body: Any, path: str) -> str:
    error, names = body, ["role", "content", "error", "details"]
    if path != ASK:
        error, names = body.get("error"), ["message", "type", "param", "code"]
        if list(body) != ["error"]:
            return f"no envelope: {body}"
    texts = (
        [error.get(name) for name in names[:3]]
        if path == ASK
        else [error.get("message"), error.get("type")]
    )
    rest = [error.get(name) for name in names[len(texts) :]]
    good = list(error) == names and all(isinstance(text, str) and text for text in texts)
    return (
        ""
        if good and all(isinstance(value, str | None) for value in rest)
        else f"not all members: {body}"
    )


# What people send, and what they do not.

TEXT = st.text(max_size=8) | st.sampled_from(
    ["", "\x00", "\ud800", "\u2028", "😀", "user", "text", "data: [DONE]\n\n", "\r\nx: y"]
)
NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, -1, 2**53, 2**63, 2**64, 10**400, 1e308, -0.0])
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXT
DEEP_ONES = st.integers(240, 300).map(
    lambda levels: json.loads("[" * levels + "]" * levels)
)  # orjson writes 254 levels
ANYTHING = st.recursive(
    LEAVES | DEEP_ONES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "file"]) | ANYTHING},
    optional={"text": TEXT | ANYTHING},
)
CONTENT = TEXT | st.lists(PARTS | ANYTHING, max_size=3) | ANYTHING
CALLS = st.lists(
    st.fixed_dictionaries({"id": TEXT, "type": TEXT, "function": ANYTHING}) | ANYTHING, max_size=2
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(ROLES) | ANYTHING, "content": CONTENT},
    optional={
        "tool_calls": CALLS | ANYTHING,
        "tool_call_id": TEXT,
        "parts": st.lists(PARTS) | ANYTHING,
        "name": ANYTHING,
        "id": ANYTHING,
    },
)
GOOD = {
    "temperature": st.floats(0, 2),
    "n": st.integers(1, 3),
    "max_tokens": st.integers(0, 9),
    "max_completion_tokens": st.integers(0, 9),
    "stop": TEXT | st.lists(TEXT, max_size=4),
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(0, 20),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries(
        {}, optional={"include_usage": st.booleans() | ANYTHING}
    ),
    "tools": st.lists(
        st.fixed_dictionaries(
            {"type": st.just("function"), "function": st.fixed_dictionaries({"name": TEXT})}
        ),
        max_size=2,
    ),
    "tool_choice": st.sampled_from(["none", "auto", "required"]) | ANYTHING,
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "json_object", "json_schema"]) | ANYTHING},
        optional={"json_schema": ANYTHING},
    ),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "metadata": st.dictionaries(TEXT, TEXT, max_size=3),
    "store": st.booleans(),
}
FIELDS = {name: GOOD.get(name, LEAVES) | ANYTHING for name in CHECKS}
PAYLOADS = st.fixed_dictionaries(
    {
        "model": st.just("m") | TEXT | ANYTHING,
        "messages": st.lists(MESSAGE, min_size=1, max_size=3) | ANYTHING,
    },
    optional={**FIELDS, "parts": ANYTHING, "figure": ANYTHING},
)


@st.composite
def bodies(draw: Any) -> bytes:
    """A payload as JSON, as some program or other writes it; one in four broken on the way."""
    value = draw(st.one_of(PAYLOADS, PAYLOADS, ANYTHING))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    body = text.encode(
        draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig"])), "surrogatepass"
    )
    if draw(st.integers(0, 3)) == 0:
        cut = draw(st.integers(0, len(body)))
        body = body[:cut] + draw(st.binary(max_size=4)) + body[draw(st.integers(cut, len(body))) :]
    return body


def tries(share: float = 1.0) -> Any:
    checks_off = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(
        max_examples=max(20, int(EXAMPLES * share)),
        deadline=None,
        database=None,
        suppress_health_check=checks_off,
    )


@tries()
@given(st.sampled_from(POSTS), bodies() | st.binary(max_size=40))
def test_no_body_breaks_the_server(path: str, body: bytes) -> None:
    assert complaints(ask("POST", path, body), path) == ""


@pytest.mark.parametrize("upstream", list(UPSTREAMS))
def test_no_body_breaks_the_server_in_front_of_an_upstream(upstream: str) -> None:
    """The answer of the upstream may have no reply: that is its error, not one of the server."""

    @tries(0.25)
    @given(st.sampled_from([CHAT, ASK, "/v1/responses", "/v1/completions"]), bodies())
    def one(path: str, body: bytes) -> None:
        answer = ask("POST", path, body, upstream=upstream)
        assert answer.status < 500 or b'"upstream_error"' in answer.body

    one()


RIGHT_PART = st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}) | st.fixed_dictionaries(
    {"type": st.sampled_from(["image_url", "input_audio", "file"])},
    optional={"image_url": ANYTHING, "file": ANYTHING},
)
RIGHT_MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant"]),
        "content": TEXT | st.lists(RIGHT_PART),
    },
    optional={
        "name": TEXT,
        "tool_calls": st.lists(
            st.fixed_dictionaries({"id": TEXT, "function": ANYTHING}), max_size=2
        ),
    },
)
RIGHT = GOOD | {
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
    "tool_choice": st.sampled_from(["none", "auto"]),
    "response_format": st.fixed_dictionaries({"type": st.sampled_from(["text", "json_object"])}),
    "metadata": st.dictionaries(st.text("abc", max_size=3), TEXT, max_size=3),
    "user": TEXT,
    "session_id": ANYTHING,
    "top_k": ANYTHING,
    "reasoning_effort": ANYTHING,
}
ASKED_RIGHTLY = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["m", "ü/😀", "a b"]),
        "messages": st.lists(RIGHT_MESSAGE, min_size=1, max_size=4),
    },
    optional={
        name: values for name, values in RIGHT.items() if name not in ("store", "top_logprobs")
    },
)
PARAMS = Params(
    rename={"max_tokens": "most"},
    defaults={"seed": 1},
    drop=("n", "user"),
    roles={"developer": "system"},
)


def test_valid_bodies_are_accepted_and_every_shape_can_send_them() -> None:
    """Most random bodies are refused at the door: half of these get in, and go through all shapes."""
    shapes, tried, taken = [AutoShape(), *known_shapes().values()], 0, 0

    @tries(0.5)
    @given(ASKED_RIGHTLY)
    def one(payload: dict[str, Any]) -> None:
        nonlocal tried, taken
        tried += 1
        body = json.dumps(payload).encode()
        answer = ask("POST", CHAT, body)
        assert complaints(answer, CHAT) == ""
        taken += answer.status == 200
        if answer.status == 200:
            chat = chat_request(parse_object(body), payload["model"], {})
            for each in (chat, PARAMS.applied(chat)[0]):
                for shape in shapes:
                    shape.dropped(each)
                    with suppress(APIError):  # nested too deeply
                        shape.prepare("http://h/x", each)

    one()
    assert taken > tried * 0.3, f"{taken} of {tried}"


HEADER_NAMES = st.sampled_from(
    [
        b"authorization",
        b"api-key",
        b"content-type",
        b"content-length",
        b"accept",
        b"cookie",
        b"x-forwarded-for",
        b"origin",
        b"expect",
        b"x-request-id",
    ]
)
HEADER_VALUES = st.binary(max_size=30) | st.sampled_from(
    [b"Bearer ", b"Bearer \xff\xfe", b"99999999999999999999", b"-1", b"\xb2", b"a\r\nb: c"]
)


@tries(0.25)
@given(st.sampled_from(POSTS), st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=5))
def test_no_headers_break_the_server(path: str, headers: Headers) -> None:
    answer = ask("POST", path, json.dumps(ASKED | {"metadata": {}}).encode(), headers)
    assert complaints(answer, path) == ""


TARGETS = st.lists(
    st.sampled_from(
        [
            "/",
            "//",
            "v1",
            "chat",
            "completions",
            "models",
            "openai",
            "deployments",
            "messages",
            "plots",
            "plot",
            "ask",
            "docs",
            "..",
        ]
    )
    | st.sampled_from(
        [
            "%00",
            "%0d%0a",
            "%ff",
            "%",
            "%2f",
            "%zz",
            "%f0%9f%98%80",
            "x" * 5000,
            "-1",
            "x-99999999999999999999",
            "x-0",
        ]
    )
    | st.text(
        st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#"), max_size=5
    ),
    max_size=12,
).map(lambda parts: "/" + "/".join(parts))
QUERIES = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "limit",
                "after",
                "order",
                "model",
                "metadata[a]",
                "metadata[]",
                "metadata%5Ba%5D",
                "api-version",
            ]
        ),
        st.sampled_from(["", "0", "-1", "²", "%ff", "%00", "9" * 50, "asc", "null"]),
    ),
    max_size=4,
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs if value.isascii()))
METHODS = st.sampled_from(
    ["GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "get", "\x7f"]
)


@tries(0.5)
@given(METHODS, TARGETS, QUERIES)
def test_no_path_breaks_the_server(method: str, path: str, query: str) -> None:
    answer = ask(method, f"{path}?{query}", b"{}")
    if method != "HEAD" or answer.status != 200:
        assert complaints(answer, normal_path(unquote(path))) == ""


# What the document calls good and bad, from the document alone.

LEFT_OUT = [
    positive_data_acceptance,  # JSON Schema takes 1.0 for an integer, OpenAI does not
    negative_data_rejection,  # an empty parameter counts as none
]

SCHEMA = schemathesis.openapi.from_dict(document("0.0.0"))
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]
MODES = schemathesis.GenerationMode
CASES = [
    (op, mode)
    for op in OPERATIONS
    for mode in MODES
    if mode is MODES.POSITIVE or op.body.items or op.query.items  # any path is a good one
]


@pytest.fixture(scope="module")
def live() -> Iterator[tuple[str, requests.Session]]:
    with served(store_url="sqlite://") as url, requests.Session() as session:
        yield url, session


@pytest.mark.parametrize(
    ("operation", "mode"),
    CASES,
    ids=[f"{operation.label}, {mode.value}" for operation, mode in CASES],
)
def test_every_operation_answers_as_the_document_says(
    operation: Any, mode: schemathesis.GenerationMode, live: Any
) -> None:
    url, session = live

    @tries(0.01)
    @given(operation.as_strategy(mode))
    def call(case: Any) -> None:
        case.call_and_validate(base_url=url, session=session, excluded_checks=LEFT_OUT)

    call()


# Members that occur twice.

MESSAGES = b'"messages":[{"role":"user","content":"Hi"}]'
PADDING = b"x" * 3000


@pytest.mark.parametrize("path", [CHAT, ASK, "/v1/responses", "/v1/completions"])
@pytest.mark.parametrize("name", list(ROUTING_MEMBERS))
def test_a_routing_member_that_occurs_twice_is_rejected(path: str, name: str) -> None:
    for value in (b"null", b'"x"', b'[{"a":"}"}]'):
        body = b'{"%b":1,"y":"z", "%b" :\t%b}' % (name.encode(), name.encode(), value)
        answer = ask("POST", path, body)
        assert answer.status == 400
        assert wrong_envelope(json.loads(answer.body), path) == ""
        assert f"the parameter '{name}' occurs twice" in answer.body.decode()


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","mod\\u0065l":"b",%b}' % MESSAGES,
        b'{"model":"a","\\u006D\\u006f\\u0064\\u0065\\u006C":"b",%b}' % MESSAGES,
        b'{"model":"a",%b,"x":"%b","model":"b"}' % (MESSAGES, PADDING),
        b'{"model":"a",%b,"x":"%b","mod\\u0065l":"b"}' % (MESSAGES, PADDING),
        b'{"x":"\\\\","model":"a","y":{"model":["]}","{\\""]},"model":"a",%b}' % MESSAGES,
        b'{"model":"a","model":"b","seed":%b,%b}' % (b"9" * 300, MESSAGES),
    ],
)
def test_a_second_model_is_found_however_it_is_written(body: bytes) -> None:
    answer = ask("POST", CHAT, body)
    assert (answer.status, json.loads(answer.body)["error"]["param"]) == (400, "model")


@pytest.mark.parametrize(
    "extra",
    [
        b'"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"model":{"model":1}}}}}]',
        b'"x":["model","model","messages"]',
        b'"x":"\\"model\\":1,\\"model\\":1 \\\\u006d"',
        b'"y":1,"y":2,"metadata":null,"metadata":null',
        b'"x":"%b","tools":[{"type":"function","function":{"name":"model"}}]' % PADDING,
        b'"x":%b"model"%b' % (b"[" * 200, b"]" * 200),
    ],
)
def test_names_of_routing_members_may_occur_anywhere_else(extra: bytes) -> None:
    for body in (b'{"model":"m",%b,%b}' % (MESSAGES, extra), b"{%b, %b}" % (extra, MESSAGES)):
        assert ask("POST", CHAT, body).status == 200


@tries()
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["model", "messages", "stream", "x", "mod", 'a"b']),
            st.recursive(
                st.sampled_from(["model", '"model":', "\\", 1, None]),
                lambda inner: (
                    st.lists(inner, max_size=2)
                    | st.dictionaries(st.sampled_from(["model", "x"]), inner, max_size=2)
                ),
                max_leaves=4,
            ),
        ),
        max_size=5,
    ),
    st.booleans(),
)
def test_exactly_the_bodies_with_a_repeated_routing_member_are_rejected(
    members: list[tuple[str, Any]], spaced: bool
) -> None:
    separators = (", ", ": ") if spaced else (",", ":")
    pairs = [
        f"{json.dumps(name)}{separators[1]}{json.dumps(value, separators=separators)}"
        for name, value in members
    ]
    body = f"{{{separators[0].join(pairs)}}}".encode()
    names = [name for name, _ in members]
    if any(names.count(name) > 1 for name in ROUTING_MEMBERS):
        with pytest.raises(APIError, match="occurs twice"):
            parse_object(body)
    else:
        assert parse_object(body) == dict(members)


def test_a_second_model_in_a_large_body_is_refused_before_a_router(tmp_path: Path) -> None:
    """The parser does not search the middle of this body. The router does."""
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}}
        return httpx.Response(200, json={"choices": [choice | {"finish_reason": "stop"}]})

    (tmp_path / "c.toml").write_text(
        '[[backend]]\nname = "a"\nkind = "openai"\nurl = "http://h/v1"\nmodels = ["cheap"]\n'
    )
    several = create_app(
        Settings(config=str(tmp_path / "c.toml"), store_url="sqlite://"),
        transport=httpx.MockTransport(answer),
    )
    pad = b'"x":"%b"' % PADDING
    body = b'{%b,%b,"model":"dear",%b,"model":"cheap",%b}' % (pad, MESSAGES, pad, pad)

    async def post() -> int:
        transport = httpx.ASGITransport(several)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return (await client.post(CHAT, content=body)).status_code

    assert loop().run_until_complete(post()) == 400
    assert bodies == []


# The cost of large bodies.

ROWS = {
    "messages": b'{"model":"m","messages":[%b]}',
    "parts": b'{"model":"m","messages":[{"role":"user","content":[%b]}]}',
    "calls": b'{"model":"m","messages":[{"role":"assistant","tool_calls":[%b]}]}',
    "tools": b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"tools":[%b]}',
    "other": b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"x":[%b]}',
}
LARGE = [
    ("messages", b'{"role":"user","content":"Hello"}'),
    ("messages", b'{"role":"tool","content":[{"type":"text","text":"x"}],"tool_call_id":"c"}'),
    ("messages", b'{"role":"assistant","content":null,"tool_calls":[{"id":"c"}]}'),
    ("parts", b'{"type":"text","text":"Hello"}'),
    ("parts", b'{"type":"image_url","image_url":{"url":"data:"}}'),
    ("calls", b'{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}'),
    ("tools", b'{"type":"function","function":{"name":"f"}}'),
    ("other", b'{"model":"m"}'),
    ("other", b'"\\u006d"'),
    ("other", b"[]"),
]


@pytest.mark.parametrize(("place", "row"), LARGE)
def test_the_cost_of_parsing_and_checking_a_body_is_linear(place: str, row: bytes) -> None:
    def body(size: int) -> bytes:
        return ROWS[place] % b",".join([row] * size)

    # Both sizes are decoded at once. large_json has tests of its own.
    assert growth(body, lambda body: chat_request(parse_object(body), "m", {}), 300) < LINEAR


# Malformed bodies and requests over a real socket.

DEEP = 100_000
GOOD_BODY = json.dumps(ASKED).encode()


def saying(content: bytes, more: bytes = b"") -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":%b}]%b}' % (content, more)


BODIES = {
    "empty": b"",
    "spaces": b" \n\t ",
    "null": b"null",
    "true": b"true",
    "a number": b"7",
    "a string": b'"Hello"',
    "an array": b"[]",
    "an array of requests": b"[" + GOOD_BODY + b"]",
    "an empty object": b"{}",
    "cut": GOOD_BODY[:-3],
    "two objects": GOOD_BODY + GOOD_BODY,
    "a comment": b"/* */" + GOOD_BODY,
    "single quotes": GOOD_BODY.replace(b'"', b"'"),
    "a form": b"model=m&messages=Hello",
    "a BOM": b"\xef\xbb\xbf" + GOOD_BODY,
    "UTF-16": GOOD_BODY.decode().encode("utf-16"),
    "UTF-32": GOOD_BODY.decode().encode("utf-32"),
    "invalid UTF-8": saying(b'"\xff\xfe"'),
    "overlong UTF-8": saying(b'"\xc0\x80"'),
    "half a character": saying(b'"\xf0\x9f\x98"'),
    "a lone surrogate": saying(rb'"\ud800"'),
    "surrogates the wrong way round": saying(rb'"\udc00\ud800"'),
    "a lone surrogate as UTF-8": saying(b'"\xed\xa0\x80"'),
    "a lone surrogate as a key": saying(b'"Hi"', rb',"\ud800":1'),
    "NUL, escaped": saying(rb'"\u0000"'),
    "NUL, bare": saying(b'"\x00"'),
    "NULs": b"\x00" * 1000,
    "NaN": saying(b'"Hi"', b',"temperature":NaN'),
    "Infinity": saying(b'"Hi"', b',"temperature":-Infinity'),
    "1e999": saying(b'"Hi"', b',"temperature":1e999'),
    "a huge integer": saying(b'"Hi"', b',"seed":' + b"9" * 5000),
    "an integer over 64 bits": saying(b'"Hi"', b',"n":18446744073709551617'),
    "an integer over 64 bits below": saying(b'"Hi"', b',"max_tokens":-18446744073709551617'),
    "duplicate keys": saying(b'"Hi"', b',"model":7,"messages":[],"messages":null'),
    "deep arrays": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep arrays, open": b"[" * DEEP,
    "deep content": saying(b"[" * 900 + b"]" * 900),
    "deep extra": saying(b'"Hi"', b',"extra":' + b"[" * 900 + b"]" * 900),
    "deep tools": saying(
        b'"Hi"',
        b',"tools":[{"type":"function","function":{"name":"f","parameters":'
        + b'{"a":' * 300
        + b"1"
        + b"}" * 302
        + b"]",
    ),
    "deep tools, stored": saying(
        b'"Hi"',
        b',"store":true,"tools":[{"type":"function","function":{"name":"f","parameters":'
        + b'{"a":' * 300
        + b"1"
        + b"}" * 302
        + b"]",
    ),
    "deep message, stored": b'{"model":"m","store":true,"messages":[{"role":"user","content":"Hi","extra":'
    + b"[" * 900
    + b"]" * 900
    + b"}]}",
    "deep and ambiguous": saying(b'"Hi"', b',"x":' + b"[" * 1010 + b'"model"' + b"]" * 1010),
    "deep metadata": saying(b'"Hi"', b',"metadata":' + b'{"a":' * 300 + b"1" + b"}" * 300),
    "many messages": b'{"model":"m","messages":['
    + b",".join([b'{"role":"user","content":"Hi"}'] * 20_000)
    + b"]}",
    "a long model": json.dumps(ASKED | {"model": "m" * 100_000}).encode(),
    "a model with a line break": json.dumps(ASKED | {"model": "m\r\nset-cookie: a=b"}).encode(),
    "a model that is an object": json.dumps(ASKED | {"model": {}}).encode(),
    "metadata with a NUL, stored": json.dumps(
        ASKED | {"store": True, "metadata": {"\x00": "\x00"}}
    ).encode(),
    "no role": b'{"model":"m","messages":[{}]}',
    "a role that is a list": b'{"model":"m","messages":[{"role":[],"content":"Hi"}]}',
    "a completion that is not stored": json.dumps(ASKED | {"completion_id": "x\x00/../y"}).encode(),
    "stop of nothing": json.dumps(ASKED | {"stop": [""]}).encode(),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    """The server as people start it; what it has written is looked at afterwards."""
    with started(USE_MOCK_API="true", STORE_URL="sqlite://", LOG_LEVEL="debug") as process:
        yield process
        process.stop()
        assert "Traceback" not in process.log
        assert " ERROR " not in process.log


def told(server: Process, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to these bytes."""
    url = urlsplit(server.url)
    with socket.create_connection((url.hostname, url.port), timeout=20) as connection:
        connection.sendall(request)
        received = b""
        while part := connection.recv(65536):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        chunks, body = body, b""
        while (size := int(chunks.partition(b"\r\n")[0] or b"-1", 16)) > 0:
            chunks = chunks.partition(b"\r\n")[2]
            body, chunks = body + chunks[:size], chunks[size + 2 :]
        assert size == 0, "the answer was cut"
    return int(head.split(b" ")[1]), body


def request(method: bytes, target: bytes, body: bytes = b"", *headers: bytes) -> bytes:
    lines = [
        b"%b %b HTTP/1.1" % (method, target),
        b"host: 127.0.0.1",
        b"connection: close",
        b"content-length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_malformed_body_gets_an_error_in_the_envelope(
    server: Process, path: str, body: bytes
) -> None:
    status, answer = told(
        server, request(b"POST", path.encode(), body, b"content-type: application/json")
    )
    assert status < 500
    if status != 200:
        assert wrong_envelope(json.loads(answer), path) == ""


NASTY = {
    "a long path": request(b"GET", b"/" + b"x" * 20_000),
    "many slashes": request(b"GET", b"/" * 20_000 + b"nothing"),
    "NUL in the path": request(b"GET", b"/v1/models/%00"),
    "a line break in the path": request(b"GET", b"/v1/models/x%0d%0aset-cookie:%20a=b"),
    "a surrogate": request(b"GET", b"/v1/chat/completions/%ed%a0%80"),
    "two dots": request(b"GET", b"/../../../../etc/passwd"),
    "another host's URL": request(b"GET", b"http://example.com/v1/nothing"),
    "a star": request(b"OPTIONS", b"*"),
    "a filter of NULs": request(b"GET", b"/v1/chat/completions?metadata[%00]=%00&limit=%ff"),
    "many filters": request(
        b"GET", b"/v1/chat/completions?" + b"&".join(b"metadata[%d]=x" % n for n in range(500))
    ),
    "a limit of digits that are no digits": request(b"GET", b"/v1/chat/completions?limit=%C2%B2"),
    "a message that cannot be": request(
        b"GET", b"/v1/chat/completions/x/messages/x-99999999999999999999/plots"
    ),
    "a key of bytes": request(
        b"POST", b"/v1/chat/completions", b"{}", b"authorization: Bearer \xff\xfe"
    ),
    "a length of digits that are no digits": b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: \xb2\r\n\r\n",
    "a length below nothing": b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
    "a method of no one": request(b"BREW", b"/v1/chat/completions"),
    "a header without a name": b"GET /v1/nothing HTTP/1.1\r\n: x\r\nconnection: close\r\n\r\n",
    "NUL in the request line": b"GET /\x00 HTTP/1.1\r\nconnection: close\r\n\r\n",
}


# A chat would be served for any name of a model, so these are names.
ODD_MODELS = {
    "many prefixes": request(b"GET", b"/v1" * 5_000 + b"/models/x"),
    "a percent sign alone": request(b"GET", b"/v1/models/%"),
    "bytes that are not UTF-8": request(b"GET", b"/v1/models/%ff%fe"),
    "two dots, escaped": request(b"GET", b"/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
}


@pytest.mark.parametrize("sent", NASTY.values(), ids=NASTY)
def test_a_malformed_request_gets_an_error_in_the_envelope(server: Process, sent: bytes) -> None:
    status, answer = told(server, sent)
    assert 400 <= status < 500
    assert wrong_envelope(json.loads(answer), "") == ""


@pytest.mark.parametrize("sent", ODD_MODELS.values(), ids=ODD_MODELS)
def test_an_odd_name_of_a_model_is_a_name(server: Process, sent: bytes) -> None:
    status, answer = told(server, sent)
    assert status == 200
    assert json.loads(answer)["object"] == "model"
