"""Stored completions through the real `openai` package, on every engine."""

import asyncio
import gc
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import httpx2
import openai
import plotly.graph_objects as go
import pytest
from anyio.from_thread import start_blocking_portal
from commands import workers_of
from mongo_wire import MongoWire
from serving import ROOT, Process, served, started
from test_sdk import TOOLS, with_calls
from upstreams import JSON, TEXT, Reader, Request, Upstream, Writer, make, send, whole

from rewrap.config.settings import Settings
from rewrap.main import create_app
from rewrap.server.keys import sign
from rewrap.storage import mongo

SECRET = "a secret of these tests"
USERS = (f"user {n}" for n in count())
PATH = "/v1/chat/completions"
SDK = openai.OpenAI
# pymongo 4.20 leaves its monitor's socket to the garbage collector if the server dies.
mongo_dies = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def echo(request: Request, reader: Reader, writer: Writer) -> None:
    """Answers with the prompt. A prompt that is a JSON object is the whole answer."""
    prompt = request.json()["messages"][-1]["content"]
    body = prompt if prompt.startswith("{") else json.dumps({"reply": prompt})
    await send(writer, whole(JSON, body.encode()))


async def echo_openai(request: Request, reader: Reader, writer: Writer) -> None:
    """The same as an OpenAI-compatible upstream."""
    text = request.json()["messages"][-1]["content"]
    await make("sse_openai" if request.sse else "openai_json", text)(request, reader, writer)


@contextmanager
def listening(handler: Any) -> Iterator[Upstream]:
    """An upstream outside of the test's thread."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Upstream(handler)) as up,
    ):
        yield up


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with listening(echo) as up:
        yield up


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoWire]:
    with MongoWire(tmp_path_factory.mktemp("mongo")) as server:
        yield server


@pytest.fixture(scope="module", params=["sqlite file", "sqlite memory", "mongodb wire"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> Iterator[str]:
    """A server with a store of each engine, in front of the echo."""
    urls = {
        "sqlite memory": "sqlite://",
        "sqlite file": f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/chat.db",
    }
    url = urls.get(request.param) or f"{request.getfixturevalue('wire').url}stored"
    with served(
        store_url=url, secret_key=(SECRET,), chat_url=f"{upstream.url}/chat", on_unsupported="drop"
    ) as address:
        yield address


def client(url: str, user: str = "ann") -> SDK:
    http = httpx2.Client(trust_env=False, verify=False)
    return SDK(
        base_url=f"{url}/v1",
        api_key=sign(SECRET, user),
        max_retries=0,
        timeout=10.0,
        http_client=http,
    )


def async_client(url: str, key: str) -> openai.AsyncOpenAI:
    http = httpx2.AsyncClient(trust_env=False, verify=False)
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=10.0, http_client=http
    )


def raw(sdk: SDK) -> httpx.Client:
    """The same server and key, without the SDK."""
    base = str(sdk.base_url).removesuffix("/v1/")
    headers = {"authorization": f"Bearer {sdk.api_key}"}
    return httpx.Client(base_url=base, headers=headers, trust_env=False, verify=False, timeout=10)


@pytest.fixture
def sdk(server: str) -> Iterator[SDK]:
    """The SDK with the key of a new user."""
    with client(server, next(USERS)) as sdk:
        yield sdk


def chat_request(prompt: Any = "Hello", **more: Any) -> Any:
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], "store": True} | more


def store_chat(sdk: SDK, prompt: Any = "Hello", **more: Any) -> str:
    """Store a completion. Gives its id."""
    return sdk.chat.completions.create(**chat_request(prompt, **more)).id


def streamed(sdk: SDK, prompt: Any = "Hello", **more: Any) -> tuple[str, str]:
    """Store a streamed completion. Gives its id and the text of its chunks."""
    chunks = list(sdk.chat.completions.create(**chat_request(prompt, stream=True, **more)))
    (id,) = {chunk.id for chunk in chunks}
    return id, "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def continue_chat(sdk: SDK, id: str, prompt: Any, **more: Any) -> Any:
    return sdk.chat.completions.create(
        **chat_request(prompt, extra_body={"completion_id": id}, **more)
    )


def message_texts(sdk: SDK, id: str) -> list[tuple[str, str | None]]:
    return [(message.role, message.content) for message in sdk.chat.completions.messages.list(id)]


def row(sdk: SDK, id: str) -> dict[str, Any]:
    """A stored completion, as JSON."""
    return sdk.chat.completions.retrieve(id).to_dict()


def ids(sdk: SDK, **filters: Any) -> list[str]:
    return [completion.id for completion in sdk.chat.completions.list(**filters)]


# ---- every engine: create, retrieve, list, update, delete


def test_a_stored_completion_is_retrieved_as_it_was_created(sdk: SDK) -> None:
    created = sdk.chat.completions.create(
        **chat_request(
            "Grüße, 世界 👋\u2028",
            metadata={"ключ": "値", "k": ""},
            temperature=0.5,
            seed=-5,
            user="u-1",
            top_p=1,
        )
    )
    more = row(sdk, created.id)
    assert created.to_dict().items() <= more.items()
    assert created.choices[0].message.content == "Grüße, 世界 👋\u2028"
    assert more["metadata"] == {"ключ": "値", "k": ""}
    assert (more["temperature"], more["seed"], more["top_p"], more["input_user"]) == (
        0.5,
        -5,
        1,
        "u-1",
    )
    assert (more["tools"], more["tool_choice"], more["response_format"]) == (None, None, None)
    assert (more["presence_penalty"], more["frequency_penalty"]) == (None, None)
    assert more["request_id"] == created._request_id
    assert message_texts(sdk, created.id) == [
        ("user", "Grüße, 世界 👋\u2028"),
        ("assistant", "Grüße, 世界 👋\u2028"),
    ]
    messages = list(sdk.chat.completions.messages.list(created.id))
    assert [message.id for message in messages] == [f"{created.id}-0", f"{created.id}-1"]
    assert [(message.name, message.content_parts) for message in messages] == [(None, None)] * 2


def test_a_stream_is_stored_as_a_completion(sdk: SDK) -> None:
    prompt = "two words " * 1000  # more than one portion
    id, text = streamed(sdk, prompt, metadata={"k": "v"}, stream_options={"include_usage": True})
    kept = sdk.chat.completions.retrieve(id)
    assert (kept.object, kept.choices[0].finish_reason, kept.choices[0].message.content) == (
        "chat.completion",
        "stop",
        prompt,
    )
    assert text == prompt
    assert kept.usage is not None
    assert kept.usage.completion_tokens > 0
    assert ids(sdk, metadata={"k": "v"}) == [id]
    assert message_texts(sdk, id)[1] == ("assistant", prompt)


def test_only_requests_with_store_true_are_stored(sdk: SDK) -> None:
    for store in (False, None):
        sdk.chat.completions.create(**chat_request(store=store))
    with raw(sdk) as http:
        assert http.post(PATH, json=chat_request(messages=[])).status_code == 400
        assert http.get(PATH).json() == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }
        assert http.post("/ask", json=chat_request("by the other door")).text == "by the other door"
    (kept,) = ids(sdk)
    assert message_texts(sdk, kept) == [
        ("user", "by the other door"),
        ("assistant", "by the other door"),
    ]


def test_metadata_can_be_updated_and_a_completion_deleted(sdk: SDK) -> None:
    first, second = (
        store_chat(sdk, metadata={"k": "old", "x": "1"}),
        store_chat(sdk, metadata={"k": "old"}),
    )
    updated = sdk.chat.completions.update(first, metadata={"k": "new"})
    assert updated == sdk.chat.completions.retrieve(first)
    assert (updated.id, updated.to_dict()["metadata"]) == (first, {"k": "new"})
    assert (ids(sdk, metadata={"k": "new"}), ids(sdk, metadata={"k": "old"})) == ([first], [second])
    assert ids(sdk, metadata={"x": "1"}) == []
    emptied = sdk.chat.completions.update(first, metadata=None)
    assert emptied.to_dict()["metadata"] == {}
    deleted = sdk.chat.completions.delete(second)
    assert (deleted.id, deleted.object, deleted.deleted) == (
        second,
        "chat.completion.deleted",
        True,
    )
    assert ids(sdk) == [first]
    for ask in (
        sdk.chat.completions.retrieve,
        sdk.chat.completions.delete,
        sdk.chat.completions.messages.list,
    ):
        with pytest.raises(openai.NotFoundError, match=second):
            ask(second)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": False}, "metadata"),
        ({"metadata": ""}, "metadata"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ],
)
def test_invalid_metadata_is_rejected(sdk: SDK, change: Any, param: str) -> None:
    id = store_chat(sdk, metadata={"k": "v"})
    with raw(sdk) as http:
        answer = http.post(f"{PATH}/{id}", json=change)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert ids(sdk, metadata={"k": "v"}) == [id]


def test_lists_are_filtered_by_model_and_metadata(sdk: SDK) -> None:
    a = store_chat(sdk, model="m1", metadata={"x": "1", "y]": "1"})
    b = store_chat(sdk, model="grüße/模型", metadata={"x": "1", "y]": "2"})
    c = store_chat(sdk, model="m1", metadata={"x": "1", "y]": "2", "line\nbreak": "3"})
    assert ids(sdk) == [a, b, c]
    assert ids(sdk, model="m1", order="desc") == [c, a]
    assert ids(sdk, model="grüße/模型") == [b]
    assert ids(sdk, metadata={"x": "1", "y]": "2"}) == [b, c]
    assert ids(sdk, model="m1", metadata={"y]": "2"}) == [c]
    assert ids(sdk, metadata={"line\nbreak": "3"}) == [c]
    assert ids(sdk, model="m1", metadata={"x": "2"}) == []


@pytest.mark.anyio
async def test_the_sdk_pages_through_250_completions_in_both_orders(sdk: SDK) -> None:
    async with async_client(str(sdk.base_url).removesuffix("/v1/"), sdk.api_key) as asking:
        for start in range(0, 250, 25):
            made = [
                chat_request(f"no. {n}", metadata={"odd": str(n % 2)})
                for n in range(start, start + 25)
            ]
            await asyncio.gather(*(asking.chat.completions.create(**each) for each in made))
        up = [completion async for completion in asking.chat.completions.list(limit=100)]
        down = [
            completion.id
            async for completion in asking.chat.completions.list(limit=64, order="desc")
        ]
        odd = [
            completion.id
            async for completion in asking.chat.completions.list(limit=50, metadata={"odd": "1"})
        ]
    assert len({completion.choices[0].message.content for completion in up}) == len(up) == 250
    assert [completion.created for completion in up] == sorted(
        completion.created for completion in up
    )
    assert down == [completion.id for completion in up][::-1]
    assert odd == [c.id for c in up if c.to_dict()["metadata"] == {"odd": "1"}]
    assert len(odd) == 125
    assert ids(sdk, limit=100, order="desc") == down
    assert ids(sdk, limit=90) == down[::-1]


@pytest.mark.anyio
async def test_the_async_client_stores_lists_updates_and_deletes(sdk: SDK) -> None:
    async with async_client(str(sdk.base_url).removesuffix("/v1/"), sdk.api_key) as asking:
        chats = asking.chat.completions
        stream = await chats.create(**chat_request("one two", stream=True, metadata={"k": "v"}))
        (id,) = {chunk.id async for chunk in stream}
        assert [
            completion.id async for completion in chats.list(metadata={"k": "v"}, model="m")
        ] == [id]
        assert [m.content async for m in chats.messages.list(id, order="desc", limit=1)] == [
            "one two"
        ] * 2
        assert (await chats.update(id, metadata={"k": "w"})).to_dict()["metadata"] == {"k": "w"}
        assert (await chats.retrieve(id)).choices[0].message.content == "one two"
        assert (await chats.delete(id)).deleted
        with pytest.raises(openai.NotFoundError):
            await chats.retrieve(id)


def test_messages_are_paged_in_both_orders(sdk: SDK) -> None:
    messages = [
        {"role": role, "content": f"{role} {n}"}
        for n in range(60)
        for role in ("user", "assistant")
    ]
    id = store_chat(sdk, messages=[*messages, {"role": "user", "content": "last"}])
    whole = [message["content"] for message in messages] + ["last", "last"]
    for limit in (100, 25):
        up = sdk.chat.completions.messages.list(id, limit=limit)
        assert [message.content for message in up] == whole
        down = sdk.chat.completions.messages.list(id, limit=limit, order="desc")
        assert [message.content for message in down] == whole[::-1]
    page = sdk.chat.completions.messages.list(id, after=f"{id}-2", limit=2)
    assert ([message.id for message in page.data], page.has_more) == ([f"{id}-3", f"{id}-4"], True)


@pytest.mark.parametrize("prefix", ["/v1", "", "/openai/v1"])
def test_the_requests_of_the_sdks_own_tests_are_served(sdk: SDK, prefix: str) -> None:
    id = store_chat(sdk, model="model", metadata={"foo": "string"})
    listing = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": True}
    with raw(sdk) as http:
        for name in ("metadata[foo]", "metadata%5Bfoo%5D"):
            answer = http.get(
                f"{prefix}/chat/completions?after=&limit=0&{name}=string&model=model&order=asc"
            )
            assert (answer.status_code, answer.json()) == (200, listing)
            answer = http.get(
                f"{prefix}/chat/completions?after=&limit=0&{name}=other&model=model&order=asc"
            )
            assert (answer.status_code, answer.json()) == (200, listing | {"has_more": False})
        assert http.get(f"{prefix}/chat/completions/{id}").json()["id"] == id
        assert http.get(f"{prefix}/chat/completions/{id}/messages?after=&limit=1&order=asc").json()[
            "has_more"
        ]
        assert (
            http.post(f"{prefix}/chat/completions/{id}/", json={"metadata": {}}).json()["metadata"]
            == {}
        )
        assert http.delete(f"{prefix}/chat/completions/{id}").json()["deleted"]


def test_has_more_is_exact_and_after_may_name_an_excluded_item(sdk: SDK) -> None:
    a, b, c, d = (store_chat(sdk, metadata={"x": x}) for x in "1010")
    with raw(sdk) as http:

        def page(query: str) -> tuple[list[str], bool]:
            found = http.get(f"{PATH}?{query}").json()
            names = [item["id"] for item in found["data"]]
            assert (found["first_id"], found["last_id"]) == (
                (names[0], names[-1]) if names else (None, None)
            )
            return names, found["has_more"]

        assert page("limit=4") == ([a, b, c, d], False)
        assert page("limit=3") == ([a, b, c], True)
        assert page("metadata[x]=1&limit=1") == ([a], True)
        assert page("metadata[x]=1&limit=2") == ([a, c], False)
        assert page(f"metadata[x]=1&after={b}") == ([c], False)
        assert page(f"metadata[x]=0&after={c}&order=desc") == ([b], False)
        assert page(f"after={d}") == ([], False)
        assert page(f"limit=0&after={c}") == ([], True)


@pytest.mark.parametrize(
    ("query", "param", "status"),
    [
        ("limit=101", "limit", 400),
        ("limit=-1", "limit", 400),
        ("limit=x", "limit", 400),
        ("limit=٣", "limit", 400),
        (f"limit={'9' * 5000}", "limit", 400),
        (f"limit={'0' * 5000}1", "limit", 400),
        ("limit=0000000001000", "limit", 400),
        ("order=up", "order", 400),
        ("after=chatcmpl-none", "after", 404),
        ("&".join(f"metadata[{n}]=x" for n in range(17)), "metadata", 400),
    ],
)
def test_the_error_of_an_invalid_list_names_the_parameter(
    sdk: SDK, query: str, param: str, status: int
) -> None:
    with raw(sdk) as http:
        answer = http.get(f"{PATH}?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert len(answer.content) < 500


# ---- owners


def test_a_completion_does_not_exist_for_another_user_on_any_route(sdk: SDK, server: str) -> None:
    id = store_chat(sdk, "| a | b |\n|---|---|\n| x | 1 |", metadata={"k": "v"})
    never = f"{id[:-1]}{'0' if id[-1] != '0' else '1'}"
    asks = [
        ("GET", "", None),
        ("POST", "", {"metadata": {"k": "stolen"}}),
        ("DELETE", "", None),
        ("GET", "/messages", None),
        ("GET", f"/messages/{id}-1/plots", None),
        ("GET", f"/messages/{id}-1/plot", None),
    ]
    with client(server, next(USERS)) as stranger:
        assert ids(stranger) == ids(stranger, metadata={"k": "v"}) == []
        store_chat(stranger)
        with raw(stranger) as http:
            for method, path, body in asks:
                answer = http.request(method, f"{PATH}/{id}{path}", json=body)
                nobodys = http.request(
                    method, f"{PATH}/{never}{path.replace(id, never)}", json=body
                )
                assert (answer.status_code, nobodys.status_code) == (404, 404), (method, path)
                assert answer.json() == json.loads(
                    nobodys.text.replace(never, id)
                )  # the same as for an id that never existed
            assert http.get(f"{PATH}?after={id}").status_code == 404
            for stream in (False, True):
                answer = http.post(PATH, json=chat_request(completion_id=id, stream=stream))
                assert (answer.status_code, answer.json()["error"]["message"]) == (
                    404,
                    f"Chat completion with id '{id}' not found.",
                )
    assert row(sdk, id)["metadata"] == {"k": "v"}
    assert len(message_texts(sdk, id)) == 2


# ---- continued chats


def test_a_continued_chat_sends_its_history_upstream(sdk: SDK, upstream: Upstream) -> None:
    system = {"role": "system", "content": "Be terse."}
    id = store_chat(
        sdk, messages=[system, {"role": "user", "content": "First,\n  a question  " + "!" * 100}]
    )
    title = row(sdk, id)["title"]
    assert title.startswith("First, a question !!!")
    assert len(title) <= 80
    other = store_chat(sdk, "another one")
    second = continue_chat(sdk, id, "Second")
    assert (second.id, second.choices[0].message.content) == (id, "Second")
    sent = upstream.requests[-1].json()
    assert [message["content"][:8] for message in sent["messages"]] == [
        "Be terse",
        "First,\n ",
        "First,\n ",
        "Second",
    ]
    assert [message["role"] for message in sent["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert "completion_id" not in sent
    (third,) = {chunk.id for chunk in continue_chat(sdk, id, "Third", stream=True)}
    assert third == id
    assert [message["content"] for message in upstream.requests[-1].json()["messages"]][3:] == [
        "Second"
    ] * 2 + ["Third"]
    assert all(
        set(message) == {"role", "content"} for message in upstream.requests[-1].json()["messages"]
    )
    assert [content for _, content in message_texts(sdk, id)][3:] == ["Second"] * 2 + ["Third"] * 2
    kept = row(sdk, id)
    assert (kept["choices"][0]["message"]["content"], kept["title"]) == ("Third", title)
    assert ids(sdk) == [id, other]  # its place stays


@pytest.mark.parametrize(
    ("message", "content"),
    [({"refusal": "No."}, "No."), ({"reasoning": "Hm."}, ""), ({"content": "Yes."}, "Yes.")],
)
def test_a_stored_reply_without_content_is_sent_with_a_text(
    sdk: SDK, upstream: Upstream, message: Any, content: str
) -> None:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None} | message,
        "finish_reason": "stop",
    }
    id = store_chat(sdk, json.dumps({"choices": [choice]}))
    continue_chat(sdk, id, "And now?")
    assert upstream.requests[-1].json()["messages"][1] == {"role": "assistant", "content": content}


def test_a_continued_chat_is_stored_without_store_true(sdk: SDK) -> None:
    id = store_chat(sdk, "one")
    continue_chat(sdk, id, "two", store=None)
    assert [content for _, content in message_texts(sdk, id)] == ["one", "one", "two", "two"]


def test_an_unknown_chat_cannot_be_continued(sdk: SDK, upstream: Upstream) -> None:
    before = len(upstream.requests)
    for id in ("chatcmpl-none", "a/b", "ü\n\x00", "x" * 10_000):
        with pytest.raises(openai.NotFoundError):
            continue_chat(sdk, id, "Hello")
    with pytest.raises(openai.BadRequestError, match="completion_id"):
        continue_chat(sdk, {"$ne": ""}, "Hello")  # type: ignore[arg-type]
    assert len(upstream.requests) == before
    assert ids(sdk) == []


def test_a_chat_that_is_deleted_during_its_reply_stays_deleted() -> None:
    gate = Event()

    async def answer(request: Request, reader: Reader, writer: Writer) -> None:
        if len(request.json()["messages"]) > 1:
            await asyncio.to_thread(gate.wait, 5)
        await echo(request, reader, writer)

    with (
        listening(answer) as up,
        served(store_url="sqlite://", chat_url=up.url) as url,
        client(url) as sdk,
    ):
        id = store_chat(sdk)
        with ThreadPoolExecutor(1) as thread:
            going_on = thread.submit(continue_chat, sdk, id, "more")
            until(lambda: len(up.requests) == 2)
            sdk.chat.completions.delete(id)
            gate.set()
            with pytest.raises(openai.NotFoundError, match=id):
                going_on.result()
        assert ids(sdk) == []


@pytest.mark.parametrize("stream", [False, True])
def test_of_several_choices_only_the_first_is_in_the_history(stream: bool) -> None:
    async def answer(request: Request, reader: Reader, writer: Writer) -> None:
        prompt = request.json()["messages"][-1]["content"]
        choices = [
            {
                "index": n,
                "message": {"role": "assistant", "content": f"{prompt} {n}"},
                "finish_reason": "stop",
            }
            for n in range(request.json().get("n", 1))
        ]
        await send(
            writer,
            whole(JSON, json.dumps({"object": "chat.completion", "choices": choices}).encode()),
        )

    with (
        listening(answer) as up,
        served(store_url="sqlite://", openai_api_base=up.url) as url,
        client(url) as sdk,
    ):
        prompt = {
            "role": "user",
            "content": "a",
            "choice": 5,
        }  # a member of the client, without effect
        id = (
            streamed(sdk, messages=[prompt], n=3)[0]
            if stream
            else store_chat(sdk, messages=[prompt], n=3)
        )
        list(continue_chat(sdk, id, "b", n=2, stream=stream))
        continue_chat(sdk, id, "c")
        sent = up.requests[-1].json()["messages"]
        assert [message["content"] for message in sent] == ["a", "a 0", "b", "b 0", "c"]
        assert not any("choice" in message for message in sent)
        listed = [message.to_dict() for message in sdk.chat.completions.messages.list(id)]
        contents = ["a", "a 0", "a 1", "a 2", "b", "b 0", "b 1", "c", "c 0"]
        assert [message["content"] for message in listed] == contents
        assert [message.get("choice") for message in listed] == [
            None,
            None,
            1,
            2,
            None,
            None,
            1,
            None,
            None,
        ]


def test_content_parts_are_stored_and_sent_as_text_to_a_chat_url(
    sdk: SDK, upstream: Upstream
) -> None:
    parts = [
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "this?"},
    ]
    id = store_chat(sdk, parts)
    first, _ = sdk.chat.completions.messages.list(id)
    assert (first.role, first.content) == ("user", "What is\nthis?")
    assert [part.to_dict() for part in first.content_parts or []] == parts
    continue_chat(sdk, id, "And now?")
    assert [m["content"] for m in upstream.requests[-1].json()["messages"]] == [
        "What is\nthis?",
        "What is\nthis?",
        "And now?",
    ]


def test_content_parts_are_sent_again_to_an_openai_upstream() -> None:
    parts = [
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
    ]
    with (
        listening(with_calls) as up,
        served(store_url="sqlite://", openai_api_base=up.url) as url,
        client(url) as sdk,
    ):
        continue_chat(sdk, store_chat(sdk, parts), "And now?")
        assert [m["content"] for m in up.requests[-1].json()["messages"]] == [
            parts,
            None,
            "And now?",
        ]


def test_a_continued_chat_keeps_its_metadata_unless_it_gets_new_ones(sdk: SDK) -> None:
    id = store_chat(sdk, metadata={"topic": "a"})
    continue_chat(sdk, id, "more")
    assert ids(sdk, metadata={"topic": "a"}) == [id]
    sdk.chat.completions.update(id, metadata={"topic": "b"})
    list(continue_chat(sdk, id, "more", stream=True))
    assert row(sdk, id)["metadata"] == {"topic": "b"}
    continue_chat(sdk, id, "more", metadata={"topic": "c"})
    assert (ids(sdk, metadata={"topic": "c"}), ids(sdk, metadata={"topic": "b"})) == ([id], [])
    continue_chat(sdk, id, "more", metadata={})
    assert row(sdk, id)["metadata"] == {}


def test_a_stored_chat_and_the_request_that_continues_it_are_bounded_together() -> None:
    with (
        listening(echo) as up,
        served(store_url="sqlite://", chat_url=up.url, max_body_bytes=10_000) as url,
        client(url) as sdk,
    ):
        id = store_chat(sdk, "x" * 3000)
        continue_chat(sdk, id, "short")
        requests = len(up.requests)
        for stream in (False, True):
            with pytest.raises(openai.APIStatusError, match="10000 bytes at most") as caught:
                continue_chat(sdk, id, "y" * 4000, stream=stream)
            assert (caught.value.status_code, caught.value.param) == (413, "completion_id")
        with raw(sdk) as http:
            answer = http.post("/ask", json=chat_request("y" * 4000, completion_id=id))
            assert answer.status_code == 413
        assert len(up.requests) == requests
        assert len(message_texts(sdk, id)) == 4
        continue_chat(sdk, id, "short again")


def test_a_page_of_large_completions_is_bounded_and_the_sdk_finds_all(sdk: SDK) -> None:
    made = [store_chat(sdk, "x" * 900_000) for _ in range(5)]
    with raw(sdk) as http:
        page = http.get(f"{PATH}?limit=100")
        assert len(page.content) < 2**21
        assert (len(page.json()["data"]), page.json()["has_more"]) == (2, True)
    assert ids(sdk, limit=100) == made
    assert ids(sdk, limit=100, order="desc") == made[::-1]


# ---- plots


BARS = {"data": [{"type": "bar", "x": ["a"], "y": [1]}], "layout": {"title": {"text": "sent"}}}
LINE = {"data": [{"type": "scatter", "x": [1, 2], "y": [3, 4]}], "layout": {}}
TABLE = "Sales:\n\n| Month | Sum |\n|---|--:|\n| Jan | 1,000 |\n| Feb | $2.50 |\n"


@pytest.mark.parametrize("stream", [False, True])
def test_the_figures_of_a_message_are_plotly_json(sdk: SDK, stream: bool) -> None:
    reply = f"{TABLE}\n```json\n{json.dumps(LINE)}\n```\n"
    prompt = json.dumps({"reply": reply, "figure": BARS})
    id = streamed(sdk, prompt)[0] if stream else store_chat(sdk, prompt)
    with raw(sdk) as http:
        for prefix in ("/v1", ""):
            listed = http.get(f"{prefix}/chat/completions/{id}/messages/{id}-1/plots").json()
            assert listed["object"] == "list"
            sent, table, fenced = listed["data"]
            assert (sent, fenced) == (BARS, LINE)
            assert (table["data"][0]["x"], table["data"][0]["y"]) == (["Jan", "Feb"], [1000, 2.5])
            for figure in listed["data"]:
                assert len(go.Figure(figure).data) == 1  # Plotly raises for anything but a figure
            assert http.get(f"{prefix}/chat/completions/{id}/messages/{id}-1/plot").json() == BARS
        assert http.get(f"{PATH}/{id}/messages/{id}-0/plots").json() == {
            "object": "list",
            "data": [],
        }
        none = http.get(f"{PATH}/{id}/messages/{id}-0/plot")
        assert (none.status_code, none.json()["error"]["type"]) == (404, "invalid_request_error")
        for wrong in (
            f"{id}-2",
            f"{id}-01",
            f"{id}--1",
            f"{id}-x",
            f"{id}-",
            "x-1",
            f"{id}-" + "9" * 30,
            f"{id}-٣",
        ):
            answer = http.get(f"{PATH}/{id}/messages/{wrong}/plots")
            assert (answer.status_code, "Message with id" in answer.text) == (404, True), wrong


def test_a_figure_is_not_part_of_the_history(sdk: SDK, upstream: Upstream) -> None:
    id = store_chat(sdk, json.dumps({"reply": "see", "figure": BARS}))
    assert row(sdk, id)["choices"][0]["message"]["figure"] == BARS
    continue_chat(sdk, id, "thanks")
    assert "figure" not in upstream.requests[-1].json()["messages"][1]


# ---- tool calls


@pytest.mark.parametrize("way", ["chat_url", "openai_api_base"])
def test_tool_calls_are_stored_and_part_of_the_history(way: str) -> None:
    with listening(with_calls) as up:
        url = up.url + ("/v1" if way == "openai_api_base" else "/v1/chat/completions")
        with (
            served(store_url="sqlite://", secret_key=(SECRET,), **{way: url}) as address,
            client(address) as sdk,
        ):
            whole_id = store_chat(sdk, tools=TOOLS, tool_choice="auto")
            stream_id, _ = streamed(sdk, tools=TOOLS, tool_choice="auto")
            again_id = store_chat(sdk)
            assert ids(sdk) == [whole_id, stream_id, again_id]  # upstreams repeat their ids
            for id in (whole_id, stream_id):
                kept = sdk.chat.completions.retrieve(id)
                assert (row(sdk, id)["tools"], row(sdk, id)["tool_choice"]) == (TOOLS, "auto")
                assert (kept.choices[0].finish_reason, kept.choices[0].message.content) == (
                    "tool_calls",
                    None,
                )
                calls = kept.choices[0].message.tool_calls or []
                assert all(set(call.to_dict()) == {"id", "type", "function"} for call in calls)
                assert [
                    (c.id, c.function.name, c.function.arguments)
                    for c in calls
                    if c.type == "function"
                ] == [
                    ("call_1", "look", '{"at": "世界"}'),
                    ("call_2", "stop", "{}"),
                ]
                answers: Any = [
                    {"role": "tool", "tool_call_id": f"call_{n}", "content": str(n)} for n in (1, 2)
                ]
                continue_chat(sdk, id, "", messages=answers)
                sent = up.requests[-1].json()["messages"]
                assert [message["role"] for message in sent] == [
                    "user",
                    "assistant",
                    "tool",
                    "tool",
                ]
                assert [(c["id"], c["function"]) for c in sent[1]["tool_calls"]] == [
                    ("call_1", {"name": "look", "arguments": '{"at": "世界"}'}),
                    ("call_2", {"name": "stop", "arguments": "{}"}),
                ]
                assert sent[2:] == answers
                assert all(
                    set(call) == {"id", "type", "function"} for call in sent[1]["tool_calls"]
                )
                *_, last = sdk.chat.completions.messages.list(id)
                assert last.tool_calls == calls


# ---- durability


@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_ends_before_its_chat_is_on_the_disk(tmp_path: Path, stream: bool) -> None:
    with (
        served(store_url=f"sqlite:///{tmp_path}/chat.db", secret_key=(SECRET,)) as url,
        client(url) as sdk,
    ):
        store_chat(sdk)
        lock = sqlite3.connect(tmp_path / "chat.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")  # writers of the server wait
        with (
            raw(sdk) as http,
            http.stream(
                "POST", PATH, json=chat_request("wait", stream=True), timeout=0.4
            ) as answer,
        ):
            pieces: list[str] = []
            with pytest.raises(httpx.ReadTimeout):
                pieces += answer.iter_text()
        with raw(sdk) as http, ThreadPoolExecutor(1) as thread:
            asking = thread.submit(http.post, PATH, json=chat_request("wait", stream=stream))
            time.sleep(0.3)
            assert not asking.done()
            lock.execute("COMMIT")
            lock.close()
            assert asking.result().status_code == 200
            assert ("data: [DONE]" in asking.result().text) == stream


@pytest.mark.parametrize("engine", ["sqlite", "mongodb"])
def test_acknowledged_chats_survive_kill_9_of_the_server(
    engine: str, tmp_path: Path, wire: MongoWire
) -> None:
    url = f"sqlite:///{tmp_path}/chat.db" if engine == "sqlite" else f"{wire.url}killed"
    environment = {"STORE_URL": url, "SECRET_KEY": SECRET, "LOG_LEVEL": "info"}
    acknowledged: list[str] = []

    def write(process: Process, stream: bool) -> None:
        with client(process.url) as sdk, suppress(openai.APIError):
            for n in count():
                acknowledged.append(
                    streamed(sdk, f"no. {n}")[0] if stream else store_chat(sdk, f"no. {n}")
                )

    with started(**environment) as process, ThreadPoolExecutor(8) as threads:
        writers = [threads.submit(write, process, n % 2 == 0) for n in range(8)]
        while len(acknowledged) < 80:
            assert not any(writer.done() for writer in writers), process.log
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        for writer in writers:
            writer.result()
    with started(**environment) as process, client(process.url) as sdk:
        kept = list(sdk.chat.completions.list(limit=100))
        assert {completion.id for completion in kept} >= set(acknowledged)
        for completion in kept[:: len(kept) // 10]:
            reply = completion.choices[0].message.content
            assert [content for _, content in message_texts(sdk, completion.id)] == [
                str(reply).partition(": ")[2],
                reply,
            ]


@pytest.mark.parametrize("way", ["chat_url", "openai_api_base"])
def test_a_client_that_disconnects_leaves_no_incomplete_chat(way: str) -> None:
    half = make("sse_openai", TEXT, gate=asyncio.Event())  # never set
    with (
        listening(echo_openai) as up,
        served(store_url="sqlite://", **{way: up.url}) as url,
        client(url) as sdk,
    ):
        id = store_chat(sdk, "whole")
        up.handler = half
        for more in ({}, {"completion_id": id}):
            with (
                raw(sdk) as http,
                http.stream("POST", PATH, json=chat_request("half", stream=True, **more)) as answer,
            ):
                assert any('"content":"G' in text for text in answer.iter_text())
            until(lambda: up.requests[-1].closed_at is not None)
        assert ids(sdk) == [id]
        assert [content for _, content in message_texts(sdk, id)] == ["whole", "whole"]
        up.handler = echo_openai
        continue_chat(sdk, id, "next")
        assert [content for _, content in message_texts(sdk, id)] == [
            "whole",
            "whole",
            "next",
            "next",
        ]


def until(fact: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.005)


# ---- a store that is down


def expect_down(sdk: SDK) -> None:
    """Chats work. Storing and reading stored chats is 503."""
    assert (
        sdk.chat.completions.create(**chat_request("hi", store=False)).choices[0].message.content
        is not None
    )
    asks = [
        lambda: store_chat(sdk),
        lambda: continue_chat(sdk, "chatcmpl-x", "more"),
        lambda: sdk.chat.completions.retrieve("chatcmpl-x"),
        lambda: sdk.chat.completions.list(),
        lambda: sdk.chat.completions.update("chatcmpl-x", metadata={}),
        lambda: sdk.chat.completions.delete("chatcmpl-x"),
        lambda: sdk.chat.completions.messages.list("chatcmpl-x"),
    ]
    with ThreadPoolExecutor(len(asks) + 1) as threads:
        stream = threads.submit(expect_no_done, sdk)
        for error in threads.map(failure, asks):
            assert (error.status_code, error.code, error.type) == (
                503,
                "store_unavailable",
                "server_error",
            )
            assert error.response.headers["retry-after"] == "2"
            assert set(error.response.json()["error"]) == {"message", "type", "param", "code"}
        stream.result()


def failure(ask: Callable[[], Any]) -> openai.InternalServerError:
    with pytest.raises(openai.InternalServerError) as caught:
        ask()
    return caught.value


def expect_no_done(sdk: SDK) -> None:
    """A stream starts before it is stored: it ends with an error event."""
    with raw(sdk) as http:
        answer = http.post(PATH, json=chat_request("Hello", stream=True))
    *chunks, last = answer.text.strip().split("\n\n")
    assert answer.status_code == 200
    assert len(chunks) > 2
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "store_unavailable"
    assert "[DONE]" not in answer.text


def test_with_sqlite_down_chats_work_and_storing_recovers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        served(store_url=f"sqlite:///{tmp_path}/later/chat.db", secret_key=(SECRET,)) as url,
        client(url) as sdk,
    ):
        expect_down(sdk)
        (tmp_path / "later").mkdir()
        id = store_chat(sdk)
        assert ids(sdk) == [id]
    assert "Traceback" not in caplog.text


@mongo_dies
def test_with_mongodb_down_chats_work_and_storing_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mongo.TIMEOUTS, "serverSelectionTimeoutMS", 400)  # 2 s by default
    with MongoWire(tmp_path) as wire:
        wire.kill(signal.SIGTERM)
        with served(store_url=wire.url, secret_key=(SECRET,)) as url, client(url) as sdk:
            expect_down(sdk)
            wire.start()
            id = store_chat(sdk)
            wire.kill()
            with pytest.raises(openai.InternalServerError):
                store_chat(sdk)
            wire.start()
            assert ids(sdk) == [id]
    gc.collect()


# ---- stores that stop the start


@pytest.mark.parametrize("command", [["main.py"], ["-m", "uvicorn", "main:app", "--port", "0"]])
def test_a_store_of_a_newer_version_stops_the_start_with_one_line(
    tmp_path: Path, command: list[str]
) -> None:
    with closing(sqlite3.connect(tmp_path / "chat.db")) as newer:
        newer.execute("PRAGMA user_version = 99")
    settings = {"STORE_URL": f"sqlite:///{tmp_path}/chat.db", "PORT": "0"}
    run = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert run.returncode != 0
    (line,) = run.stderr.splitlines()
    assert line == "rewrap: STORE_URL: The store has schema 99, but this version knows 2 at most."


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_workers_cannot_share_a_store_in_memory(url: str) -> None:
    with pytest.raises(ValueError, match=r"^STORE_URL: several WORKERS"):
        create_app(Settings(store_url=url, workers=2))
    create_app(Settings(store_url=url, workers=1))


# ---- several servers


def test_two_workers_with_one_file_see_each_others_completions(tmp_path: Path) -> None:
    environment = {
        "STORE_URL": f"sqlite:///{tmp_path}/chat.db",
        "SECRET_KEY": SECRET,
        "WORKERS": "2",
    }
    with started(**environment) as process:
        one, other = workers(process)
        with frozen(other), client(process.url) as sdk:
            first = store_chat(sdk, "by one", metadata={"k": "v"})
        with frozen(one), client(process.url) as sdk:
            assert message_texts(sdk, first)[0] == ("user", "by one")
            continue_chat(sdk, first, "by the other")
            second = store_chat(sdk)
        with frozen(other), client(process.url) as sdk:
            assert ids(sdk) == [first, second]
            assert [content for role, content in message_texts(sdk, first) if role == "user"] == [
                "by one",
                "by the other",
            ]
            sdk.chat.completions.delete(second)
        with frozen(one), client(process.url) as sdk:
            assert ids(sdk, metadata={"k": "v"}) == ids(sdk) == [first]


def workers(process: Process) -> list[int]:
    """The processes of a server's two workers, once both listen."""

    def found() -> list[int]:
        return workers_of(process.pid)

    until(lambda: len(found()) == 2 and all(listens(pid) for pid in found()), 15)
    return found()


def listens(pid: int) -> bool:
    """Whether it has made sockets of its own: an event loop runs."""
    with suppress(FileNotFoundError):  # closed just now
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        return sum(link.startswith("socket:") for link in links) > 3
    return False


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A worker that does not run: every connection goes to the other one."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_two_servers_with_one_mongodb_see_each_others_completions(wire: MongoWire) -> None:
    store = f"{wire.url}shared"
    with (
        served(store_url=store, secret_key=(SECRET,)) as one,
        served(store_url=store, secret_key=(SECRET,)) as other,
    ):
        with client(one) as here, client(other) as there:
            first = store_chat(here, "by one", metadata={"k": "v"})
            continue_chat(there, first, "by the other")
            second = store_chat(there)
            assert ids(here) == ids(there) == [first, second]
            assert message_texts(here, first) == message_texts(there, first)
            here.chat.completions.delete(second)
            assert ids(there, metadata={"k": "v"}) == ids(there) == [first]


# ---- owners


@pytest.mark.parametrize("keys", [("sk-canary-of-a-client",), ()], ids=["with keys", "open"])
def test_the_store_contains_no_key(tmp_path: Path, keys: tuple[str, ...]) -> None:
    headers = {"authorization": "Bearer sk-canary-of-a-client"}
    with served(store_url=f"sqlite:///{tmp_path}/chat.db", api_keys=keys) as url:
        assert (
            httpx.post(
                f"{url}{PATH}", json=chat_request(), headers=headers, trust_env=False
            ).status_code
            == 200
        )
        files = [file for file in tmp_path.iterdir() if file.is_file()]
        assert any(b"chatcmpl-" in file.read_bytes() for file in files)
        assert [file for file in files if b"sk-canary" in file.read_bytes()] == []
