"""Mappings of one's own: GET, queries, forms, placeholders everywhere, sessions that a product assigns."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest

from rewrap.config.settings import Settings
from rewrap.main import create_app
from rewrap.types import APIError, ChatRequest, ResponseInfo
from rewrap.upstream import sessions
from rewrap.upstream.shapes import MappedShape, shape_from
from rewrap.upstream.tables import ShapeError

ODD = "a&b=c d?#/ü\r\nX-Evil: 1 {prompt} %41"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def mapped(**table: Any) -> MappedShape:
    return shape_from({"reply": "a"} | table, "mine")


def chat(prompt: str = "hi", **payload: Any) -> ChatRequest:
    messages = payload.pop("messages", [{"role": "user", "content": prompt}])
    owner = payload.pop("identity", "")
    payload = {"model": "m", "messages": messages} | payload
    stream = payload.get("stream", False)
    return ChatRequest("m", messages, payload, stream=stream, owner=owner)


def query_of(url: str) -> list[tuple[str, str]]:
    return parse_qsl(httpx.URL(url).query.decode(), keep_blank_values=True)


# Requests


def test_a_get_request_has_a_query_and_no_body() -> None:
    shape = mapped(method="GET", query={"q": "{prompt}", "t": "{temperature}", "on": True})
    sent = shape.prepare("http://h/ask?key=k", chat(ODD))
    assert (shape.method, shape.content_type, sent.body) == ("GET", "", b"")
    assert query_of(sent.url) == [("key", "k"), ("q", ODD), ("on", "true")]
    assert shape.dropped(chat(temperature=1, seed=2)) == ["seed"]


@pytest.mark.anyio
async def test_a_user_agent_of_a_mapping_is_sent(tmp_path: Path) -> None:
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["user-agent"])
        return httpx.Response(200, json={"a": "hi"})

    table = (
        '[[backend]]\nname = "a"\nurl = "http://up.example/chat"\n[backend.mapping]\nreply = "a"\n'
    )
    file = tmp_path / "backends.toml"
    for header, expected in (("", "rewrap/"), ('"User-Agent" = "Mozilla/5.0"\n', "Mozilla/5.0")):
        file.write_text(f"{table}[backend.mapping.headers]\n{header}")
        settings = Settings(config=str(file), store_url="sqlite://")
        app = create_app(settings, transport=httpx.MockTransport(answer))
        backend = app.gateway.backends[0]
        async for _ in backend.stream(chat(), ResponseInfo()):
            pass
        assert sent[-1].startswith(expected)


def test_a_post_with_a_query_alone_has_no_body() -> None:
    sent = mapped(query={"q": "{prompt}"}).prepare("http://h/ask", chat("x"))
    assert (sent.url, sent.body) == ("http://h/ask?q=x", b"")
    both = mapped(query={"v": 1}, request={"p": "{prompt}"}).prepare("http://h/ask", chat("x"))
    assert (both.url, both.body) == ("http://h/ask?v=1", b'{"p":"x"}')


def test_a_form_is_encoded() -> None:
    shape = mapped(
        form={"message": "{prompt}", "stop": "{stop}", "extra": {"a": [1]}, "no": "{seed}"}
    )
    sent = shape.prepare("http://h/ask", chat(ODD, stop=["x", "y"]))
    assert shape.content_type == "application/x-www-form-urlencoded"
    assert parse_qsl(sent.body.decode()) == [
        ("message", ODD),
        ("stop", "x"),
        ("stop", "y"),
        ("extra", '{"a":[1]}'),
    ]


def test_a_stream_may_have_a_query_and_a_form_of_its_own() -> None:
    shape = mapped(query={"q": "{prompt}"}, stream={"query": {"stream": "1"}}, form={"a": "1"})
    assert query_of(shape.prepare("http://h/x", chat()).url) == [("q", "hi")]
    assert query_of(shape.prepare("http://h/x", chat(stream=True)).url) == [
        ("q", "hi"),
        ("stream", "1"),
    ]


def test_headers_are_filled_and_escaped() -> None:
    shape = mapped(headers={"x-user": "{user|nobody}", "x-fixed": "1", "x-json": '{"a":1}'})
    assert shape.headers("", False) == {"x-fixed": "1", "x-json": '{"a":1}'}
    assert shape.prepare("http://h", chat()).headers == {"x-user": "nobody"}
    assert shape.prepare("http://h", chat(user=ODD)).headers == {
        "x-user": "a&b=c d?#/%C3%BC%0D%0AX-Evil: 1 {prompt} %2541"
    }


def test_paths_and_queries_of_a_url_are_filled_and_escaped() -> None:
    shape = mapped(method="GET")
    sent = shape.prepare("http://h/say/{prompt}/x?to={user}&m={model}", chat(ODD, user="a&b"))
    path = httpx.URL(sent.url).raw_path.decode()
    assert path.startswith(
        "/say/a%26b%3Dc%20d%3F%23%2F%C3%BC%0D%0AX-Evil:%201%20%7Bprompt%7D%20%2541/x?"
    )
    assert query_of(sent.url) == [("to", "a&b"), ("m", "m")]


@pytest.mark.parametrize("prompt", ["", "..", ".", "a/../b"])
def test_a_prompt_cannot_change_the_path(prompt: str) -> None:
    with pytest.raises(APIError, match="cannot stand in a URL") as raised:
        mapped(method="GET").prepare("http://h/say/{prompt}", chat(prompt))
    assert raised.value.status == 400


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"method": "DELETE"}, r"mine\.method: POST, GET, PUT are known, not 'DELETE'"),
        ({"method": 5}, r"mine\.method: a string"),
        ({"method": "GET", "request": {}}, r"mine\.request: a GET request has no body"),
        ({"method": "GET", "form": {}}, r"mine\.form: a GET request has no body"),
        ({"request": {}, "form": {}}, r"mine: request and form are two bodies"),
        ({"query": {"q": "{promt}"}}, r"mine\.query\.q: .*\{promt\}"),
        ({"query": "q={prompt}"}, r"mine\.query: a table is expected"),
        ({"form": {"q": "{promt}"}}, r"mine\.form\.q: .*\{promt\}"),
        ({"headers": {"x": "{promt}"}}, r"mine\.headers\.x: .*\{promt\}"),
        ({"session": {"form": "a"}}, r"mine\.session: it has one setting, from"),
        ({"session": {"from": "a["}}, r"mine\.session\.from: 'a\['"),
        ({"session": "a"}, r"mine\.session: a table"),
        ({"reply": "{prompt}"}, r"mine\.reply: '\{prompt\}' cannot be read"),
        ({"join": "{prompt}"}, r"mine\.join: no value is filled in for \{prompt\}"),
        ({"roles": {"user": "{user}"}}, r"mine\.roles: no value is filled in for \{user\}"),
        ({"omit": {"top_p": "{top_k}"}}, r"mine\.omit: no value is filled in for \{top_k\}"),
    ],
)
def test_a_wrong_table_stops_the_start(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{message}"):
        mapped(**table)


def file_of(folder: Path, **backend: Any) -> str:
    lines = ["[[backend]]", 'name = "a"', 'models = ["*"]']
    lines += [f"{name} = {value}" for name, value in backend.items()]
    path = folder / "backends.toml"
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_url": "http://h/ask?q={prompt}"}, r"CHAT_URL: no value for \{prompt\} in the URL"),
        ({"openai_api_base": "http://h/{model}"}, r"OPENAI_API_BASE: no value for \{model\}"),
        (
            {"chat_url": "http://h", "chat_headers": {"X-User": "{user}"}},
            r"CHAT_URL: headers: x-user: no value for \{user\}",
        ),
        (
            {"chat_url": "http://h/{what}", "chat_shape": "ollama"},
            r"CHAT_URL: ollama: the URL must be whole, with its own what",
        ),
    ],
)
def test_a_placeholder_without_a_value_stops_the_start(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        create_app(Settings(**settings))


@pytest.mark.parametrize("name", ["CHAT_URL", "OPENAI_API_BASE"])
@pytest.mark.parametrize("url", ["ws://h/chat", "wss://h/chat?key=secret"])
def test_a_websocket_url_stops_the_start_with_advice(
    name: str, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, url)
    with pytest.raises(ValueError, match=f"^{name}: .*examples/websocket_backend.py$") as raised:
        Settings.load("no.env")
    assert "secret" not in str(raised.value)
    with pytest.raises(ValueError, match=r"url: a WebSocket URL needs a function backend"):
        create_app(Settings(config=file_of(tmp_path, url=json.dumps(url))))


# Through the app


class App:
    """The app in front of one mapping, and the requests that its upstream received."""

    def __init__(self, folder: Path, mapping: str, **settings: Any) -> None:
        self.sent: list[httpx.Request] = []
        self.answer: Any = {"a": "Hello"}
        config = file_of(folder, url='"http://bot/x"', mapping=mapping)
        settings = {"config": config, "store_url": "sqlite://"} | settings
        app = create_app(Settings(**settings), transport=httpx.MockTransport(self.upstream))
        transport = httpx.ASGITransport(app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://proxy")

    def upstream(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        if isinstance(self.answer, bytes):
            return httpx.Response(
                200, content=self.answer, headers={"content-type": "text/event-stream"}
            )
        return httpx.Response(200, json=self.answer)

    async def ask(self, *messages: str, key: str = "", **payload: Any) -> httpx.Response:
        """A chat in which user and assistant alternate."""
        roles = ["user", "assistant"]
        rows = [{"role": roles[n % 2], "content": text} for n, text in enumerate(messages)]
        headers = {"authorization": f"Bearer {key}"} if key else {}
        body = {"model": "m", "messages": rows} | payload
        response = await self.client.post("/v1/chat/completions", json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response

    def last(self) -> Any:
        return json.loads(self.sent[-1].content)


@pytest.mark.anyio
async def test_a_get_backend_answers(tmp_path: Path) -> None:
    app = App(tmp_path, '{ method = "GET", query = { q = "{prompt}" }, reply = "a" }')
    answer = await app.ask(ODD)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello"
    request = app.sent[0]
    assert (request.method, request.content) == ("GET", b"")
    assert "content-type" not in request.headers
    assert query_of(str(request.url)) == [("q", ODD)]


@pytest.mark.anyio
async def test_a_form_backend_answers(tmp_path: Path) -> None:
    headers = '{ "x-user" = "{user}" }'
    app = App(tmp_path, f'{{ form = {{ q = "{{prompt}}" }}, headers = {headers}, reply = "a" }}')
    await app.ask("a b", user="ann")
    request = app.sent[0]
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert (request.content, request.headers["x-user"]) == (b"q=a+b", "ann")


SESSION = (
    '{ request = { q = "{prompt}", id = "{session}" }, reply = "a", '
    'session = { from = "data.id" }, stream = { reply = "t", done = "end" } }'
)


def answer(session: Any, text: str = "Hello") -> Any:
    return {"a": text, "data": {"id": session}}


@pytest.mark.anyio
async def test_the_session_of_a_named_chat_is_sent_with_its_next_turn(tmp_path: Path) -> None:
    app = App(tmp_path, SESSION)
    for name in ("user", "session_id", "conversation_id", "session"):
        app.answer = answer(f"c-{name}")
        first = await app.ask("hi", **{name: f"ann-{name}"})
        assert app.last() == {"q": "hi"}
        await app.ask("hi", "Hello", "more", **{name: f"ann-{name}"})
        assert app.last() == {"q": "more", "id": f"c-{name}"}
        await app.ask("hi", **{name: f"bob-{name}"})
        assert app.last() == {"q": "hi"}
        assert "x-dropped-params" not in first.headers
        app.answer = answer("changed")
        await app.ask("other", **{name: f"ann-{name}"})
        await app.ask("again", **{name: f"ann-{name}"})
        assert app.last()["id"] == "changed"


@pytest.mark.anyio
async def test_the_session_of_a_chat_without_a_name_is_found_by_its_messages(
    tmp_path: Path,
) -> None:
    app = App(tmp_path, SESSION)
    app.answer = answer("c-1")
    await app.ask("hi")
    app.answer = answer("c-1", "Two")
    second = await app.ask("hi", "Hello", "more")
    assert app.last() == {"q": "more", "id": "c-1"}
    assert "x-dropped-params" not in second.headers
    await app.ask("hi", "Hello", "more", "Two", "even more")
    assert app.last()["id"] == "c-1"
    other = await app.ask("hi", "Another reply", "more")
    assert "id" not in app.last()
    assert other.headers["x-dropped-params"] == "messages.history"


@pytest.mark.anyio
async def test_equal_chats_of_two_strangers_share_no_session(tmp_path: Path) -> None:
    app = App(tmp_path, SESSION)
    for session in ("c-1", "c-2"):
        app.answer = answer(session)
        await app.ask("hi")
    await app.ask("hi", "Hello", "more")
    assert "id" not in app.last()


@pytest.mark.anyio
async def test_a_session_belongs_to_its_owner(tmp_path: Path) -> None:
    app = App(tmp_path, SESSION, api_keys=("key-of-ann", "key-of-bob"))
    app.answer = answer("c-ann")
    await app.ask("hi", key="key-of-ann", user="ann")
    await app.ask("hi", key="key-of-ann")
    for payload in ({"user": "ann"}, {}):
        await app.ask("hi", "Hello", "more", key="key-of-bob", **payload)
        assert "id" not in app.last()
        await app.ask("hi", "Hello", "more", key="key-of-ann", **payload)
        assert app.last()["id"] == "c-ann"


@pytest.mark.anyio
@pytest.mark.parametrize("named", [True, False])
async def test_the_session_of_a_stream_is_kept(named: bool, tmp_path: Path) -> None:
    app = App(tmp_path, SESSION)
    events = [{"t": "Hel"}, {"t": "lo", "data": {"id": 7}}, {"end": True}]
    app.answer = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)
    name = {"user": "ann"} if named else {}
    assert "[DONE]" in (await app.ask("hi", stream=True, **name)).text
    await app.ask("hi", "Hello", "more", stream=True, **name)
    assert app.last()["id"] == 7


def test_the_memory_of_sessions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "CHATS", 3)
    shape = mapped(request={"s": "{session}"}, session={"from": "id"})
    for number in range(5):
        found = shape.chat(chat(user=f"u{number}"))
        assert found is not None
        found.observe({"id": f"s{number}"}, "")
        found.close()
        shape.payload(chat(user="u0"))  # the chats in use are kept
    known = [shape.payload(chat(user=f"u{number}")) for number in range(5)]
    assert known == [{"s": "s0"}, {}, {}, {"s": "s3"}, {"s": "s4"}]


@pytest.mark.parametrize("session", ["", None, True, 1.5, {"a": 1}, "x" * 1001])
def test_a_value_that_is_no_session_is_not_kept(session: Any) -> None:
    shape = mapped(request={"s": "{session}"}, session={"from": "id"})
    found = shape.chat(chat(user="u"))
    assert found is not None
    found.observe({"id": session}, "")
    found.close()
    assert shape.payload(chat(user="u")) == {}
