"""Several backends and their parameters, in memory: who is listed, what goes along, what the one that failed has left."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from rewrap.config.settings import Settings
from rewrap.main import create_app
from rewrap.types import ChatRequest, Delta, ResponseInfo
from rewrap.upstream.params import Params

pytestmark = pytest.mark.anyio
ASKED = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
GOOD = {"choices": [{"index": 0, "message": {"content": "from b"}, "finish_reason": "stop"}]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def client(
    tmp_path: Path, text: str, answers: dict[str, httpx.Response], **more: Any
) -> httpx.AsyncClient:
    """Of the app with this CONFIG; hosts answer as told, a path of theirs before them."""
    (tmp_path / "c.toml").write_text(text)

    def upstream(request: httpx.Request) -> httpx.Response:
        return answers.get(request.url.path) or answers[request.url.host]

    settings = Settings(config=str(tmp_path / "c.toml"), store_url="sqlite://", **more)
    app = create_app(settings, transport=httpx.MockTransport(upstream))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy")


def backend(name: str, *more: str, kind: str = "openai") -> str:
    return "\n".join(
        [
            "[[backend]]",
            f'name = "{name}"',
            f'kind = "{kind}"',
            f'url = "http://{name}/v1"',
            *more,
            "",
        ]
    )


async def test_a_model_that_no_pattern_matches_is_not_listed_and_does_no_harm(
    tmp_path: Path,
) -> None:
    listed = httpx.Response(200, json={"data": [{"id": "gpt-4o"}, {"id": "whisper-1"}]})
    text = backend("a", 'models = ["gpt-*"]') + backend("bot", 'models = ["bot-*"]', kind="chat")
    some = client(tmp_path, text, {"/v1/models": listed})
    assert [row["id"] for row in (await some.get("/v1/models")).json()["data"]] == ["gpt-4o"]
    assert (await some.get("/v1/models/gpt-4o")).status_code == 200
    assert (await some.get("/v1/models/whisper-1")).status_code == 404
    assert (await some.get("/info")).json()["models"] == ["gpt-4o"]


async def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    text = backend("a", 'models = ["sonnet[1m]", "x-[1m]-*"]')
    some = client(
        tmp_path, text, {"/v1/models": httpx.Response(404), "a": httpx.Response(200, json=GOOD)}
    )
    for model, status in (("sonnet[1m]", 200), ("sonnet1", 404), ("x-[1m]-y", 200)):
        assert (
            await some.post("/v1/chat/completions", json=ASKED | {"model": model})
        ).status_code == status
    assert [row["id"] for row in (await some.get("/v1/models")).json()["data"]] == ["sonnet[1m]"]
    assert (await some.post("/ask", json={"messages": ASKED["messages"]})).status_code == 200


async def test_the_usage_of_one_that_failed_is_not_that_of_the_next(tmp_path: Path) -> None:
    failed = b'data: {"choices":[],"usage":{"prompt_tokens":99,"completion_tokens":99,"total_tokens":198}}\n\n'
    text = backend("a", 'fallbacks = ["b"]', kind="chat") + backend("b", "models = []", kind="chat")
    stream = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=failed)
    some = client(tmp_path, text, {"a": stream, "b": httpx.Response(200, json=GOOD)})
    answer = (await some.post("/v1/chat/completions", json=ASKED)).json()
    assert answer["choices"][0]["message"]["content"] == "from b"
    assert answer["usage"]["total_tokens"] < 10


async def test_the_keys_of_the_file_are_in_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "a-plain-word")
    some = client(
        tmp_path,
        backend("a", 'key_env = "A_KEY"'),
        {"a": httpx.Response(200, json=GOOD)},
        log_level="debug",
    )
    said = [{"role": "user", "content": "Greet a-plain-word"}]
    assert (
        await some.post("/v1/chat/completions", json=ASKED | {"messages": said})
    ).status_code == 200
    assert ("Greet" in caplog.text, "a-plain-word" in caplog.text) == (True, False)


async def test_the_limits_of_one_that_failed_are_not_those_of_the_next(tmp_path: Path) -> None:
    failed = httpx.Response(
        200, headers={"x-ratelimit-limit-requests": "7"}, json={"error": {"message": "no"}}
    )
    text = backend("a", 'fallbacks = ["b"]') + backend("b", "models = []")
    some = client(tmp_path, text, {"a": failed, "b": httpx.Response(200, json=GOOD)})
    answer = await some.post("/v1/chat/completions", json=ASKED)
    assert (answer.status_code, answer.headers.get("x-ratelimit-limit-requests")) == (200, None)


async def test_a_clients_key_does_not_follow_to_another_provider(tmp_path: Path) -> None:
    seen: list[str | None] = []

    def upstream(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(500) if len(seen) % 3 else httpx.Response(200, json=GOOD)

    text = backend("a", 'fallbacks = ["a2", "b"]') + backend("b", "models = []")
    text += backend("a2", "models = []").replace("http://a2/", "http://a/other/")
    (tmp_path / "c.toml").write_text(text)
    settings = Settings(config=str(tmp_path / "c.toml"), store_url="sqlite://")
    app = create_app(settings, transport=httpx.MockTransport(upstream))
    some = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy")
    await some.post("/v1/chat/completions", json=ASKED, headers={"authorization": "Bearer sk-of-a"})
    assert seen == ["Bearer sk-of-a", "Bearer sk-of-a", None]


@pytest.mark.parametrize(
    ("given", "sent", "dropped"),
    [
        ({"max_tokens": 7}, {"most": 7}, []),
        ({"max_tokens": 7, "most": None}, {"most": 7}, []),
        ({"max_tokens": None, "most": 10}, {"most": 10}, []),
        ({"max_tokens": 10, "most": 10}, {"most": 10}, []),
        ({"max_tokens": 7, "most": 10}, {"most": 10}, ["max_tokens"]),
        ({"seed": 1, "temperature": 0.5, "stop": None}, {"heat": 0.5}, ["seed"]),
        ({"x": 1}, {}, ["x"]),
        ({"y": 1}, {}, ["y"]),
    ],
)
async def test_no_parameter_is_lost_by_its_new_name(
    given: dict[str, Any], sent: dict[str, Any], dropped: list[str]
) -> None:
    renamed = {"max_tokens": "most", "temperature": "heat", "x": "y"}
    params = Params(rename=renamed, drop=("seed", "x", "stop", "y"), defaults={})
    chat, lost = params.applied(ChatRequest("m", [], given))
    assert json.loads(json.dumps(chat.payload)) == sent
    assert lost == dropped


async def test_figures_are_kept_wherever_they_stand(tmp_path: Path) -> None:
    for said in (
        GOOD | {"figure": {"data": [1]}},
        {"reply": "x", "figure": {"data": [1]}},
        {"data": {"reply": "x", "figure": {"data": [1]}}},
    ):
        some = client(tmp_path, backend("a", kind="chat"), {"a": httpx.Response(200, json=said)})
        answer = (await some.post("/v1/chat/completions", json=ASKED)).json()
        assert answer["choices"][0]["message"]["figure"] == {"data": [1]}


async def test_a_stored_chat_that_goes_on_is_one_session() -> None:
    sent: list[dict[str, Any]] = []

    def upstream(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json=[{"recipient_id": "x", "text": "ok"}])

    settings = Settings(chat_url="http://bot", chat_shape="rasa", store_url="sqlite://")
    app = create_app(settings, transport=httpx.MockTransport(upstream))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://proxy"
    ) as some:
        first = await some.post("/v1/chat/completions", json=ASKED | {"store": True, "user": "bob"})
        more = {"completion_id": first.json()["id"], "user": "bob"}
        again = await some.post("/v1/chat/completions", json=ASKED | more)
        other = await some.post("/v1/chat/completions", json=ASKED | {"store": True, "user": "bob"})
    assert again.status_code == other.status_code == 200
    assert sent[0]["sender"] == sent[1]["sender"] != sent[2]["sender"]
    assert "x-dropped-params" not in again.headers


async def test_a_user_may_stand_in_an_address_that_was_given() -> None:
    settings = Settings(chat_url="http://bot/of/{user}", chat_shape="dify", store_url="sqlite://")
    asked: list[str] = []

    def upstream(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json={"answer": "ok"})

    app = create_app(settings, transport=httpx.MockTransport(upstream))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://proxy"
    ) as some:
        await some.post("/v1/chat/completions", json=ASKED | {"user": "ada"})
        answer = await some.post("/v1/chat/completions", json=ASKED | {"user": "../x"})
    assert asked == ["http://bot/of/ada"]
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("patterns", "asked"),
    [
        (('models = ["one", "uno"]', 'models = ["two"]'), ("a", "one")),
        (("models = []", 'models = ["two"]'), ("b", "two")),
        (('models = ["gpt-*"]', 'models = ["two"]'), ("a", "gpt-*")),
        (('models = ["one"]', 'models = ["*"]'), ("b", "default")),
    ],
)
async def test_ask_without_a_model_is_for_the_first_of_several(
    patterns: tuple[str, str], asked: tuple[str, str], tmp_path: Path
) -> None:
    seen = []

    def upstream(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, json.loads(request.content)["model"]))
        return httpx.Response(200, json=GOOD)

    (tmp_path / "c.toml").write_text("".join(map(backend, ("a", "b"), patterns)))
    settings = Settings(config=str(tmp_path / "c.toml"), store_url="sqlite://")
    transport = httpx.ASGITransport(create_app(settings, transport=httpx.MockTransport(upstream)))
    some = httpx.AsyncClient(transport=transport, base_url="http://proxy")
    assert (await some.post("/ask", json={"messages": ASKED["messages"]})).text == "from b"
    assert seen == [asked]
    unknown = await some.post("/ask", json=ASKED | {"model": "unknown"})
    assert unknown.status_code == (200 if asked[1] == "default" else 404)


# ---- A function as the backend


class TextDecoder:
    """An async iterator that is no generator: it cannot be closed."""

    def __init__(self) -> None:
        self.left = ["Hel", "lo"]

    def __aiter__(self) -> "TextDecoder":
        return self

    async def __anext__(self) -> str:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)


async def generator(chat: ChatRequest) -> Any:
    yield "Hel"
    yield "lo"


async def gives_a_generator(chat: ChatRequest) -> Any:
    return generator(chat)


async def text(chat: ChatRequest) -> str:
    return "Hello"


@pytest.mark.parametrize(
    "function",
    [
        text,
        generator,
        gives_a_generator,
        lambda chat: "Hello",
        lambda chat: ["Hel", "lo"],
        lambda chat: (piece for piece in ("Hel", "lo")),
        lambda chat: generator(chat),
        lambda chat: text(chat),
        lambda chat: TextDecoder(),
    ],
)
async def test_a_function_gives_or_yields_text_in_any_way(function: Any) -> None:
    app = create_app(Settings(store_url="sqlite://"), backend=function)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://proxy"
    ) as some:
        for stream in (False, True):
            answer = await some.post("/v1/chat/completions", json=ASKED | {"stream": stream})
            assert answer.status_code == 200, answer.text
            assert not stream or "[DONE]" in answer.text
        assert (await some.post("/ask", json=ASKED)).text == "Hello"


class Calling:
    """A Backend of one's own, whose calls of tools have no numbers."""

    name = "own"

    async def models(self, authorization: str) -> list[dict[str, Any]]:
        return []

    async def stream(self, chat: ChatRequest, info: ResponseInfo) -> Any:
        calls = [
            {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}}
            for id in ("a", "b")
        ]
        yield Delta(fields={"tool_calls": calls}, finish_reason="tool_calls")


async def test_calls_of_a_backend_of_ones_own_are_numbered_in_a_stream() -> None:
    app = create_app(Settings(store_url="sqlite://"), backend=Calling())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://proxy"
    ) as some:
        answer = await some.post("/v1/chat/completions", json=ASKED | {"stream": True})
    events = [
        json.loads(event[6:]) for event in answer.text.split("\n\n") if event.startswith("data: {")
    ]
    calls = [
        call for event in events for call in event["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert [(call["index"], call["id"]) for call in calls] == [(0, "a"), (1, "b")]
