"""Hooks: how they are named and found, how they run, and the example."""

import logging
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import respx
from serving import served

from rewrap import create_app
from rewrap.config.settings import Settings
from rewrap.hooks import load_hooks
from rewrap.hooks import run_hooks as run

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of hooks, and an import system that forgets them."""
    (tmp_path / "my_hooks.py").write_text(
        "def before(chat): chat.append('before')\n"
        "async def before_more(chat): chat.append('before_more')\n"
        "def after(chat, completion): completion['seen'] = chat\n"
        "def other(chat): pass\n"
        "before_number = 5\n"
    )
    (tmp_path / "broken_hooks.py").write_text("1 / 0\n")
    (tmp_path / "wrong_hooks.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    for name in ("my_hooks", "broken_hooks", "wrong_hooks"):
        sys.modules.pop(name, None)


def test_hooks_are_found_in_the_working_directory_and_sorted_by_their_names() -> None:
    before, after = load_hooks(" my_hooks:before , my_hooks:after,my_hooks:before_more,")
    assert [hook.__name__ for hook in before] == ["before", "before_more"]
    assert [hook.__name__ for hook in after] == ["after"]


@pytest.mark.parametrize("spec", ["", " ", ","])
def test_no_hooks_are_none(spec: str) -> None:
    assert load_hooks(spec) == ([], [])


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            "no_such_module_here:before",
            "cannot be imported (ModuleNotFoundError: No module named 'no_such_module_here')",
        ),
        (
            "broken_hooks:before",
            "'broken_hooks' cannot be imported (ZeroDivisionError: division by zero)",
        ),
        (
            "wrong_hooks:before",
            "'wrong_hooks' cannot be imported (ModuleNotFoundError: No module named 'no_such_module_anywhere')",
        ),
        ("my_hooks:before_nothing", "'my_hooks' has no function 'before_nothing'"),
        ("my_hooks:before_number", "'my_hooks' has no function 'before_number'"),
        ("my_hooks:other", "'my_hooks:other' must be module:before... or module:after..."),
        ("my_hooks", "'my_hooks' must be module:before..."),
        (":before", "':before' must be module:before..."),
        (".my_hooks:before", "cannot be imported"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_hooks_and_what_is_wrong(
    spec: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=r"^HOOKS: ") as error:
        load_hooks(spec)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


async def test_sync_and_async_hooks_run_in_the_order_of_the_setting() -> None:
    before, after = load_hooks("my_hooks:before_more,my_hooks:before,my_hooks:after")
    chat: list[str] = []
    completion: dict[str, Any] = {}
    await run(before, chat)
    assert chat == ["before_more", "before"]
    await run(after, chat, completion)
    assert completion == {"seen": chat}


async def test_what_a_hook_raises_goes_to_the_caller_and_stops_the_rest() -> None:
    def before_refusing(chat: list[str]) -> None:
        raise PermissionError("not this one")

    chat: list[str] = []
    with pytest.raises(PermissionError, match="not this one"):
        await run([before_refusing, chat.append], "x")
    assert chat == []


# ---- what of a stored chat that goes on is new, after the hooks


def before_copying(chat: Any) -> None:
    chat.messages = [
        m | {"content": m["content"].replace("secret", "[hidden]")} for m in chat.messages
    ]


def before_copying_some(chat: Any) -> None:
    chat.messages = [
        m | {"content": "[hidden]"} if "secret" in m["content"] else m for m in chat.messages
    ]


def before_trimming(chat: Any) -> None:
    chat.messages[:-2] = [{"role": "system", "content": "Be kind."}]


def before_leaving_out(chat: Any) -> None:
    chat.messages.pop(-2)


def before_summing_up(chat: Any) -> None:
    chat.messages[-2:] = [{"role": "user", "content": "both"}]


def before_adding(chat: Any) -> None:
    chat.messages.insert(-2, {"role": "system", "content": "Facts."})
    chat.messages.append({"role": "user", "content": "Be terse."})


@pytest.mark.parametrize(
    ("hook", "new"),
    [
        ("before_copying", ["my [hidden]", "more"]),
        ("before_copying_some", ["[hidden]", "more"]),
        ("before_trimming", ["my secret", "more"]),
        ("before_leaving_out", ["more"]),
        ("before_summing_up", ["both"]),
        ("before_adding", ["my secret", "more", "Be terse."]),
    ],
)
async def test_of_a_stored_chat_that_goes_on_what_the_hooks_left_of_the_new_messages_is_kept(
    hook: str, new: list[str]
) -> None:
    path = "/v1/chat/completions"
    with served(store_url="sqlite://", use_mock_api=True, hooks=f"test_hooks:{hook}") as url:
        async with httpx.AsyncClient(
            base_url=url, trust_env=False, verify=False, timeout=10
        ) as client:
            first = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
            id = (
                await client.post(path, json={"model": "m", "messages": first, "store": True})
            ).json()["id"]
            earlier = (await client.get(f"{path}/{id}/messages")).json()["data"]
            more = [{"role": "user", "content": "my secret"}, {"role": "user", "content": "more"}]
            await client.post(path, json={"model": "m", "messages": more, "completion_id": id})
            *kept, reply = (await client.get(f"{path}/{id}/messages")).json()["data"]
    assert kept[: len(earlier)] == earlier
    assert [message["content"] for message in kept[len(earlier) :]] == new
    assert reply["role"] == "assistant"


async def test_the_example_redacts_e_mail_addresses_and_logs_sizes_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before, after = load_hooks("examples.redact:before,examples.redact:after")
    parts = [
        {"type": "text", "text": "cc zoë.b-c+d@mail.example.org."},
        {"type": "image_url", "image_url": {"url": "x@y.z"}},
    ]
    messages = [
        {"role": "user", "content": "Write to <ada@example.com>, or bob@example.co.uk."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant"},
        {"role": "user", "content": "no@address, @none, a @ b.c"},
    ]
    chat = SimpleNamespace(model="m", messages=messages, payload={"messages": messages})
    await run(before, chat)
    assert messages[0]["content"] == "Write to <[e-mail]>, or [e-mail]."
    assert parts == [
        {"type": "text", "text": "cc [e-mail]."},
        {"type": "image_url", "image_url": {"url": "x@y.z"}},
    ]
    assert messages[4]["content"] == "no@address, @none, a @ b.c"
    with caplog.at_level(logging.INFO, "redact"):
        await run(after, chat, {"usage": {"total_tokens": 12}, "choices": []})
    assert caplog.messages == ["m: 5 messages, 12 tokens"]


@pytest.mark.parametrize("piece", ["a", "a@", "a.", "@", "a@b.", "a@b-"])
async def test_the_example_takes_linear_time(piece: str) -> None:
    before, _ = load_hooks("examples.redact:before")
    start = time.process_time()
    await run(before, SimpleNamespace(messages=[{"content": piece * 100_000}]))
    assert time.process_time() - start < 1


# ---- one id for the client and the hooks

SEEN_IDS: list[str] = []


def after_noting_the_id(chat: Any, completion: dict[str, Any]) -> None:
    SEEN_IDS.append(completion["id"])


@pytest.mark.parametrize("kind", ["chat_url", "openai_api_base"])
async def test_a_streaming_client_and_an_after_hook_see_one_id(kind: str) -> None:
    """The upstream answers a request for a stream with JSON, which has an id of its own."""
    SEEN_IDS.clear()
    answer = {
        "id": "chatcmpl-upstream",
        "created": 7,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}}],
    }
    upstream = respx.MockRouter()
    upstream.post(url__startswith="http://up/").mock(return_value=httpx.Response(200, json=answer))
    settings = Settings(
        store_url="sqlite://",
        hooks="test_hooks:after_noting_the_id",
        **{kind: "http://up/v1"},  # type: ignore[arg-type]
    )
    app = create_app(settings, transport=httpx.MockTransport(upstream.async_handler))
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        text = (await client.post("/v1/chat/completions", json=body)).text
    ids = set(re.findall(r'"id":"([^"]+)"', text))
    assert ids == set(SEEN_IDS) == {"chatcmpl-upstream"}
