"""The pages in a real browser, against the real app: the chat, the offline reference, the 404 page.

They need Debian's `chromium` and npm, which fetches the libraries of the page once. Without them the
tests are skipped with a line that says why; on a CI they fail.
"""

import asyncio
import json
import re
import shutil
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha384
from pathlib import Path
from typing import TYPE_CHECKING

import browsing
import httpx
import pytest
from serving import served_app

from rewrap.config.settings import Settings
from rewrap.main import create_app
from rewrap.types import APIError, ChatRequest, Delta, Deltas, JSONObject, ResponseInfo, model_card
from rewrap.web.docs import THEME
from rewrap.web.pages import (
    content_security_policy,
    not_found_page,
    prefers_html,
    read,
    source_of,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHATS = "/v1/chat/completions"
AXE = "axe-core@4.14.1"
NOWHERE = "http://127.0.0.1:9/npm"  # nothing listens: the network is cut
LIBRARY = re.compile(r'\["((\w[\w.-]*@[\d.]+)/[^"]+)",\s+"sha384-([^"]+)"\]')
CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"

TABLE = """The visitors, month by month:

| Month | Visitors | Orders |
|---|--:|--:|
| January | 1,240 | 87 |
| February | 1,810 | 132 |
| March | 2,390 | 171 |
"""
CODE = """To compute the rate, as `%`:

```python
def conversion(visitors: int, orders: int) -> float:
    # one line that is far too long for any window, so that it has to scroll sideways by itself, alone
    return round(100 * orders / visitors, 1)
```

- [x] done
- [ ] to do

> A quote with a [link](https://example.com/report).
"""
ATTACK = """<img src=x onerror="window.attacked = 1"> and <script>window.attacked = 1</script>

<iframe srcdoc="<script>parent.attacked = 1</script>"></iframe>
[a link](javascript:window.attacked=1) ![an image](https://tracker.example/?chat=secret)

<a href="javascript:window.attacked=1" id="prompt" class="skip">raw</a>
"""


@dataclass
class Scripted:
    """A backend that answers by the last message. `wait` holds a stream until `go` is set."""

    name: str = "scripted"
    requests: list[ChatRequest] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)

    async def models(self, authorization: str) -> list[JSONObject]:
        return [model_card("small"), model_card("large")]

    async def stream(self, request: ChatRequest, info: ResponseInfo) -> Deltas:
        self.requests.append(request)
        prompt = request.messages[-1]["content"]
        texts = {"table": TABLE, "code": CODE, "attack": ATTACK}
        if prompt == "wait":
            async for delta in self.held():
                yield delta
        elif prompt == "think":
            call = {"index": 0, "id": "call_1", "type": "function"}
            call["function"] = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
            yield Delta(fields={"reasoning_content": "Oslo is in Norway."})
            yield Delta(fields={"tool_calls": [call]})
            yield Delta("It rains.", "stop")
        elif prompt == "refuse":
            again = [(b"retry-after", b"20")]
            raise APIError(429, "Rate limit reached.", type="requests", headers=again)
        elif prompt == "fail":
            raise APIError(502, "The chat backend answered with 500.", type="upstream_error")
        elif prompt == "break":
            yield Delta("The first half")
            raise APIError(502, "The upstream closed the connection.", type="upstream_error")
        else:
            yield Delta(texts.get(prompt, f"You wrote: {prompt}"), "stop", whole=True)

    async def held(self) -> Deltas:
        yield Delta("first ")
        try:
            while not self.go.is_set():
                await asyncio.sleep(0.005)
        except (asyncio.CancelledError, GeneratorExit):
            self.left.set()
            raise
        yield Delta("last", "stop")


@contextmanager
def served_page(
    backend: Scripted | None = None,
    *,
    prefix: str = "",
    assets: str = NOWHERE,
    api_keys: tuple[str, ...] = (),
) -> Iterator[str]:
    """The real app with its pages; without a backend the mock answers. Gives its base URL."""
    settings = Settings(
        log_level="warning", store_url="sqlite://", docs_assets_url=assets, api_keys=api_keys
    )
    app = create_app(settings, backend=backend)
    with served_app(app, prefix) as url:
        yield url


@pytest.fixture(scope="module")
def npm(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("npm")
    return lambda name: browsing.npm_package(folder, name)


@pytest.fixture(scope="module")
def libraries(npm: Callable[[str], Path]) -> dict[str, bytes]:
    """The files that the page loads, by their paths on a CDN."""
    paths = [(match[1], match[2]) for match in LIBRARY.finditer(read("chat.html"))]
    return {path: (npm(name) / path.removeprefix(f"{name}/")).read_bytes() for path, name in paths}


@pytest.fixture(scope="module")
def assets(libraries: dict[str, bytes]) -> Iterator[str]:
    with browsing.mirror(libraries) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with browsing.launched() as browser:
        yield browser


@dataclass
class Chat:
    """The chat page as a person sees it. `complaints` are the errors in the browser's console."""

    page: "Page"
    complaints: list[str]

    def send(self, text: str) -> None:
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.get_by_role("button", name="Send", exact=True).click()

    def ask(self, text: str) -> "Locator":
        """Send a message and wait for the end of the reply."""
        self.send(text)
        self.page.locator("#send").wait_for()
        return self.last()

    def text(self, text: str) -> "Locator":
        """A text in the conversation; the status repeats it for screen readers."""
        return self.page.locator("#log").get_by_text(text)

    def last(self) -> "Locator":
        return self.page.locator("article.assistant").last

    def titles(self) -> list[str]:
        self.page.locator("#list li").first.wait_for()
        return self.page.locator("#list .title > span:first-child").all_inner_texts()


@pytest.fixture
def open_chat(browser: "Browser") -> Iterator[Callable[..., Chat]]:
    contexts = []

    def open_chat(url: str, **options: object) -> Chat:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        chat = Chat(page, [])
        page.on(
            "console",
            lambda line: chat.complaints.append(line.text) if line.type == "error" else None,
        )
        page.on("pageerror", lambda error: chat.complaints.append(str(error)))
        page.goto(url)
        page.locator("#backend.up").wait_for()
        # A server without a journal answers 404 once, and browsers log every 404.
        chat.complaints.clear()
        return chat

    yield open_chat
    for context in contexts:
        context.close()


def unexpected(chat: Chat) -> list[str]:
    """Complaints other than those about statuses and libraries that a test provokes."""
    return [line for line in chat.complaints if "Failed to load resource" not in line]


# The chat.


def test_a_message_is_answered_and_its_reply_is_shown_as_it_streams(
    open_chat: Callable[..., Chat], assets: str
) -> None:
    backend = Scripted()
    with served_page(backend, assets=assets) as url:
        chat = open_chat(f"{url}/ui")
        chat.page.get_by_label("Message", exact=True).fill("wait")
        chat.page.keyboard.press("Enter")
        chat.last().get_by_text("first").wait_for()
        assert chat.page.get_by_role("button", name="Stop").is_visible()
        assert "last" not in chat.last().inner_text()
        backend.go.set()
        chat.text("first last").wait_for()
        chat.page.locator("#send").wait_for()
        note = chat.last().locator("footer small").inner_text()
        assert re.fullmatch(r"first token [\d.]+ m?s · [\d.]+ tokens/s · 3 tokens", note), note
        assert chat.page.locator("#status").inner_text() == "Reply: first last"
        assert chat.page.locator(".figure").count() == 0
        assert unexpected(chat) == []


def test_a_reply_without_streaming_is_shown_whole(open_chat: Callable[..., Chat]) -> None:
    backend = Scripted()
    with served_page(backend) as url:
        chat = open_chat(f"{url}/ui")
        chat.page.get_by_label("Stream replies").uncheck()
        reply = chat.ask("Hello")
        assert reply.locator(".body").inner_text() == "You wrote: Hello"
        assert reply.locator("footer small").inner_text().startswith("reply ")
        assert backend.requests[-1].stream is False


def test_stop_closes_the_upstream_and_keeps_the_text_that_came(
    open_chat: Callable[..., Chat],
) -> None:
    backend = Scripted()
    with served_page(backend) as url:
        chat = open_chat(f"{url}/ui")
        chat.send("wait")
        chat.last().get_by_text("first").wait_for()
        chat.page.get_by_role("button", name="Stop").click()
        chat.last().get_by_text("Stopped").wait_for()
        assert backend.left.wait(5)
        assert chat.last().locator(".body").inner_text().strip() == "first"
        assert httpx.get(url + CHATS).json()["data"] == []
        chat.ask("Go on")
        sent = [(message["role"], message["content"]) for message in backend.requests[-1].messages]
        assert sent == [("user", "wait"), ("assistant", "first "), ("user", "Go on")]


def test_the_settings_go_along_with_a_message(open_chat: Callable[..., Chat]) -> None:
    backend = Scripted()
    with served_page(backend) as url:
        chat = open_chat(f"{url}/ui")
        page = chat.page
        page.locator("#model option", has_text="large").wait_for(state="attached")
        assert page.locator("#model option").all_inner_texts() == [
            "small",
            "large",
            "Another model …",
        ]
        page.get_by_label("Model", exact=True).select_option("")
        page.get_by_label("Name of the model").fill("it's mine")
        page.get_by_label("System text").fill("Be brief.")
        page.get_by_label("Temperature").fill("0.5")
        chat.ask("Hello")
        request = backend.requests[-1]
        assert request.model == "it's mine"
        assert request.messages[0] == {"role": "system", "content": "Be brief."}
        assert request.payload["temperature"] == 0.5
        page.reload()
        page.locator("#model option", has_text="large").wait_for(state="attached")
        assert page.get_by_label("Name of the model").input_value() == "it's mine"


def test_the_curl_line_of_the_page_runs_as_it_stands(open_chat: Callable[..., Chat]) -> None:
    if not shutil.which("curl"):
        browsing.lacking("no curl for the tests of the pages: apt-get install curl")
    with served_page(Scripted()) as url:
        chat = open_chat(f"{url}/ui")
        chat.page.get_by_label("Model", exact=True).select_option("")
        chat.page.get_by_label("Name of the model").fill("it's mine")
        chat.page.get_by_label("Name of the model").blur()
        assert chat.page.locator("#base").inner_text() == f"{url}/v1"
        answer = shell(chat.page.locator("#curl").inner_text())
        assert answer["model"] == "it's mine"
        assert answer["choices"][0]["message"]["content"] == "You wrote: Hello!"


def shell(line: str) -> JSONObject:
    """The JSON that a command prints."""
    run = subprocess.run(
        ["sh", "-c", line],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
        timeout=20,
    )
    answer: JSONObject = json.loads(run.stdout)
    return answer


def test_an_edited_message_is_sent_again_and_replaces_the_stored_chat(
    open_chat: Callable[..., Chat],
) -> None:
    with served_page(Scripted()) as url:
        chat = open_chat(f"{url}/ui")
        chat.ask("One")
        chat.ask("Two")
        (before,) = httpx.get(url + CHATS).json()["data"]
        message = chat.page.locator("article.user").first
        message.hover()
        message.get_by_role("button", name="Edit").click()
        chat.page.get_by_label("Edit the message").fill("Three")
        chat.page.get_by_role("button", name="Send again").click()
        chat.text("You wrote: Three").wait_for()
        assert chat.page.locator("article").count() == 2
        chat.page.locator("#list li.open", has_text="Three").wait_for()
        (after,) = httpx.get(url + CHATS).json()["data"]
        assert after["id"] != before["id"]


def test_reasoning_and_calls_of_tools_are_folded(
    open_chat: Callable[..., Chat], assets: str
) -> None:
    with served_page(Scripted(), assets=assets) as url:
        chat = open_chat(f"{url}/ui")
        reply = chat.ask("think")
        summaries = reply.locator("summary").all_inner_texts()
        assert summaries == ["Reasoning", "Tool call: get_weather"]
        assert not reply.get_by_text("Oslo is in Norway.").is_visible()
        reply.get_by_text("Reasoning").click()
        assert reply.get_by_text("Oslo is in Norway.").is_visible()
        reply.get_by_text("Tool call: get_weather").click()
        assert reply.get_by_text('{"city": "Oslo"}').is_visible()
        assert reply.locator(".body").inner_text() == "It rains."


def test_markdown_has_code_blocks_with_a_button_and_tables(
    open_chat: Callable[..., Chat], assets: str
) -> None:
    with served_page(Scripted(), assets=assets) as url:
        chat = open_chat(f"{url}/ui")
        chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        reply = chat.ask("code")
        reply.locator(".block").wait_for()
        assert reply.locator(".block header").inner_text().strip() == "python"
        reply.get_by_role("button", name="Copy this code").click()
        chat.page.get_by_text("Copied.").wait_for(state="attached")
        copied = chat.page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("def conversion(")
        assert reply.get_by_role("link", name="link").get_attribute("target") == "_blank"
        table = chat.ask("table").locator("table")
        table.wait_for()
        assert table.locator("th").all_inner_texts() == ["Month", "Visitors", "Orders"]
        assert table.locator("td").nth(1).get_attribute("align") == "right"
        assert unexpected(chat) == []


# Stored chats.


def test_a_reload_opens_the_stored_chat_again_and_it_continues(
    open_chat: Callable[..., Chat],
) -> None:
    backend = Scripted()
    with served_page(backend) as url:
        chat = open_chat(f"{url}/ui")
        chat.page.get_by_label("System text").fill("Be brief.")
        chat.ask("Remember this")
        assert chat.titles() == ["Remember this"]
        chat.page.reload()
        chat.text("You wrote: Remember this").wait_for()
        assert chat.page.get_by_label("System text").input_value() == "Be brief."
        chat.page.get_by_role("button", name="New chat").click()
        assert chat.page.locator("article").count() == 0
        chat.page.locator("#list .title").click()
        chat.text("You wrote: Remember this").wait_for()
        chat.ask("And that")
        assert "completion_id" not in backend.requests[-1].payload
        assert len(backend.requests[-1].messages) == 4
        (stored,) = httpx.get(url + CHATS).json()["data"]
        messages = httpx.get(f"{url}{CHATS}/{stored['id']}/messages").json()["data"]
        assert [message["content"] for message in messages] == [
            "Be brief.",
            "Remember this",
            "You wrote: Remember this",
            "And that",
            "You wrote: And that",
        ]


def test_a_stored_chat_is_renamed_and_deleted(open_chat: Callable[..., Chat]) -> None:
    with served_page(Scripted()) as url:
        chat = open_chat(f"{url}/ui")
        page = chat.page
        chat.ask("A chat")
        page.locator("#list li").hover()
        page.get_by_role("button", name="Rename A chat").click()
        page.get_by_label("Title of the chat").fill("A better name")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="A better name").wait_for()
        (stored,) = httpx.get(url + CHATS).json()["data"]
        assert stored["metadata"] == {"title": "A better name"}
        page.get_by_role("button", name="Delete A better name").click()
        page.get_by_role("button", name="Cancel").click()
        assert chat.titles() == ["A better name"]
        page.get_by_role("button", name="Delete A better name").click()
        page.get_by_role("button", name="Delete", exact=True).click()
        page.get_by_text("None yet.").wait_for()
        assert httpx.get(url + CHATS).json()["data"] == []
        assert page.locator("article").count() == 0


def test_a_chat_that_was_deleted_elsewhere_is_sent_again_as_a_whole(
    open_chat: Callable[..., Chat],
) -> None:
    backend = Scripted()
    with served_page(backend) as url:
        chat = open_chat(f"{url}/ui")
        chat.ask("One")
        (stored,) = httpx.get(url + CHATS).json()["data"]
        httpx.delete(f"{url}{CHATS}/{stored['id']}")
        reply = chat.ask("Two")
        assert "It may have been deleted" in reply.inner_text()
        reply.get_by_role("button", name="Try again").first.click()
        chat.text("You wrote: Two").wait_for()
        assert len(backend.requests[-1].messages) == 3


def test_a_chat_that_is_not_stored_is_not_listed(open_chat: Callable[..., Chat]) -> None:
    backend = Scripted()
    with served_page(backend) as url:
        chat = open_chat(f"{url}/ui")
        chat.page.get_by_label("Store chats").uncheck()
        chat.ask("One")
        chat.ask("Two")
        assert len(backend.requests[-1].messages) == 3
        assert httpx.get(url + CHATS).json()["data"] == []


def test_more_stored_chats_are_listed_on_demand(open_chat: Callable[..., Chat]) -> None:
    with served_page(Scripted()) as url:
        for number in range(35):
            asked = {"model": "small", "messages": [{"role": "user", "content": f"Chat {number}"}]}
            httpx.post(url + CHATS, json=asked | {"store": True})
        chat = open_chat(f"{url}/ui")
        assert len(chat.titles()) == 30
        chat.page.get_by_role("button", name="Show more").click()
        chat.page.get_by_text("Chat 0", exact=True).wait_for()
        assert len(chat.titles()) == 35


# Figures.


def test_a_table_of_numbers_is_drawn_as_a_figure_in_the_colours_of_the_page(
    open_chat: Callable[..., Chat], assets: str
) -> None:
    with served_page(Scripted(), assets=assets) as url:
        chat = open_chat(f"{url}/ui")
        chat.ask("table")
        chat.page.locator(".figure .bars path").first.wait_for()
        assert chat.page.locator(".figure .bars path").count() == 6
        assert chat.page.get_by_role("img", name="Figure: Visitors, Orders").is_visible()
        text = chat.page.locator(".figure text").first
        light = text.evaluate("element => getComputedStyle(element).fill")
        chat.page.get_by_role("button", name="Use dark colours").click()
        assert text.evaluate("element => getComputedStyle(element).fill") != light
        chat.page.reload()
        chat.page.locator(".figure .bars path").first.wait_for()
        assert unexpected(chat) == []


# Nothing of a reply is executed.


@pytest.mark.parametrize("network", [True, False])
def test_the_html_of_a_reply_stays_text(
    open_chat: Callable[..., Chat], assets: str, network: bool
) -> None:
    with served_page(Scripted(), assets=assets if network else NOWHERE) as url:
        chat = open_chat(f"{url}/ui")
        asked: list[str] = []
        chat.page.on("request", lambda request: asked.append(request.url))
        reply = chat.ask("attack")
        if network:
            reply.get_by_role("link", name="an image").wait_for()
        body = reply.locator(".body")
        assert '<img src=x onerror="window.attacked = 1">' in body.inner_text()
        assert body.locator("img, script, iframe, .skip, [id], [onerror]").count() == 0
        assert chat.page.locator('a[href^="javascript"]').count() == 0
        assert chat.page.evaluate("window.attacked") is None
        assert [url for url in asked if "tracker" in url] == []


def test_the_policy_stops_a_script_that_gets_into_the_page(open_chat: Callable[..., Chat]) -> None:
    with served_page(Scripted()) as url:
        chat = open_chat(f"{url}/ui")
        chat.page.evaluate(
            """async () => {
              const html = '<img src="data:," onerror="window.attacked = 1">';
              document.body.insertAdjacentHTML("beforeend", html);
              document.body.lastChild.setAttribute("style", "color: red");
              await new Promise(resolve => setTimeout(resolve, 200));
            }"""
        )
        assert chat.page.evaluate("window.attacked") is None
        assert len(unexpected(chat)) == 2
        assert all("Content Security Policy" in line for line in unexpected(chat))


# Failures in words.


@pytest.mark.logs_errors
@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("fail", ["The chat backend answered with 500.", "rewrap probe URL"]),
        ("refuse", ["Rate limit reached.", "try again in 20 s"]),
        ("break", ["The upstream closed the connection.", "The first half"]),
    ],
)
def test_a_failure_says_what_happened_and_what_to_do(
    open_chat: Callable[..., Chat], prompt: str, words: list[str]
) -> None:
    backend = Scripted()
    with served_page(backend) as url:
        chat = open_chat(f"{url}/ui")
        chat.ask("Hello")
        reply = chat.ask(prompt)
        for text in words:
            assert text in reply.inner_text()
        count = len(backend.requests)
        reply.get_by_role("button", name="Try again").first.click()
        chat.page.locator("#send").wait_for()
        assert len(backend.requests) == count + 1
        assert chat.page.locator("article").count() == 4


def test_a_server_that_is_gone_is_reported_in_words(open_chat: Callable[..., Chat]) -> None:
    with served_page(Scripted()) as url:
        chat = open_chat(f"{url}/ui")
    assert "The server cannot be reached." in chat.ask("Hello").inner_text()


def test_a_key_is_asked_for_and_kept_for_the_session_alone(open_chat: Callable[..., Chat]) -> None:
    with served_page(Scripted(), api_keys=("sk-one",)) as url:
        chat = open_chat(f"{url}/ui")
        page = chat.page
        chat.text("Enter a valid API key").wait_for()
        page.get_by_label("API key").fill("sk-one")
        page.keyboard.press("Tab")
        page.locator("#model option", has_text="large").wait_for(state="attached")
        assert not chat.text("Enter a valid API key").is_visible()
        assert "$API_KEY" in page.locator("#curl").inner_text()
        assert "sk-one" not in page.locator("#curl").inner_text()
        assert chat.ask("Hello").locator(".body").inner_text() == "You wrote: Hello"
        page.reload()
        chat.text("You wrote: Hello").wait_for()
        kept = page.evaluate("[JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
        assert ["sk-one" in storage for storage in kept] == [False, True]


# Without a network.


def test_without_a_network_the_chat_works_in_plain_text_and_says_so_once(
    open_chat: Callable[..., Chat],
) -> None:
    with served_page(Scripted()) as url:
        chat = open_chat(f"{url}/ui")
        note = chat.page.get_by_text("Replies are plain text")
        assert note.count() == 0
        reply = chat.ask("table")
        note.wait_for()
        assert reply.locator(".body").inner_text() == TABLE
        chat.ask("code")
        assert note.count() == 1
        assert chat.page.locator(".figure").count() == 0
        chat.page.reload()
        chat.text("def conversion").wait_for()
        assert chat.titles() == ["table"]
        assert unexpected(chat) == []


@pytest.mark.parametrize("body", [b"window.marked = window.DOMPurify = 1", b""])
def test_a_library_with_another_hash_is_not_run(
    open_chat: Callable[..., Chat], libraries: dict[str, bytes], body: bytes
) -> None:
    with browsing.mirror(dict.fromkeys(libraries, body)) as assets:
        with served_page(Scripted(), assets=assets) as url:
            chat = open_chat(f"{url}/ui")
            chat.ask("table")
            chat.page.get_by_text("Replies are plain text").wait_for()
            assert chat.page.evaluate("[typeof marked, typeof DOMPurify]") == ["undefined"] * 2


def test_the_libraries_have_the_hashes_that_the_page_asks_for(libraries: dict[str, bytes]) -> None:
    wanted = {match[1]: match[3] for match in LIBRARY.finditer(read("chat.html"))}
    assert len(wanted) == 3
    found = {path: b64encode(sha384(body).digest()).decode() for path, body in libraries.items()}
    assert found == wanted


def test_no_library_is_loaded_before_there_is_a_reply(
    open_chat: Callable[..., Chat], assets: str
) -> None:
    with served_page(Scripted(), assets=assets) as url:
        chat = open_chat(f"{url}/ui")
        asked: list[str] = []
        chat.page.on("request", lambda request: asked.append(request.url))
        chat.page.reload()
        chat.page.locator("#backend.up").wait_for()
        assert [address for address in asked if not address.startswith(url)] == []
        chat.ask("Hello")
        loaded = [address for address in asked if not address.startswith(url)]
        assert sorted(loaded) == [f"{assets}/{path}" for path in sorted(libraries_for_text())]


def libraries_for_text() -> list[str]:
    paths = [match[1] for match in LIBRARY.finditer(read("chat.html"))]
    return [path for path in paths if "plotly" not in path]


# The journal of the mock.


def test_the_journal_of_the_mock_is_shown_and_follows_its_requests(
    open_chat: Callable[..., Chat],
) -> None:
    with served_page() as url:
        chat = open_chat(f"{url}/ui")
        section = chat.page.get_by_role("region", name="Requests to the mock")
        section.get_by_text("None yet.").wait_for()
        for model in ("small", "large"):
            message = {"role": "user", "content": f"To the {model} one"}
            httpx.post(url + CHATS, json={"model": model, "messages": [message]})
        section.get_by_text("200 · small · no rule").click()
        assert "To the small one" in section.inner_text()
        rows = section.locator("summary").all_inner_texts()
        assert [row.partition(" · ")[2] for row in rows] == [
            "200 · large · no rule",
            "200 · small · no rule",
        ]


def test_the_journal_is_hidden_where_the_server_keeps_none(open_chat: Callable[..., Chat]) -> None:
    with served_page(Scripted()) as url:
        chat = open_chat(f"{url}/ui")
        chat.titles()
        assert not chat.page.get_by_text("Requests to the mock").is_visible()


# Addresses.


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        ("", "/"),
        ("", "/ui"),
        ("", "/ui/"),
        ("", "/v1/ui"),
        ("/llm", "/"),
        ("/a/ui", "/ui"),
        ("/ui", "/"),
    ],
)
def test_the_page_works_at_every_address_and_below_a_prefix(
    open_chat: Callable[..., Chat], prefix: str, path: str
) -> None:
    with served_page(Scripted(), prefix=prefix) as url:
        chat = open_chat(url + path)
        assert chat.page.locator("#base").inner_text() == f"{url}/v1"
        assert chat.ask("Hello").locator(".body").inner_text() == "You wrote: Hello"
        chat.page.get_by_role("link", name="API reference").click()
        chat.page.wait_for_url(f"{url}/docs")


def test_the_root_answers_html_to_browsers_and_json_to_clients() -> None:
    with served_page() as url:
        page = httpx.get(url, headers={"accept": CHROME})
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        for accept in ("*/*", "application/json", "application/json, text/html", ""):
            answer = httpx.get(url, headers={"accept": accept})
            assert answer.json()["status"] == "ok"
            assert answer.headers["vary"] == "Accept"
        icon = httpx.get(f"{url}/favicon.ico")
        assert icon.headers["content-type"].startswith("image/svg+xml")


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (CHROME, True),
        ("TEXT/HTML", True),
        ("image/png, text/html;q=0.5, */*", True),
        ("application/json, text/html", False),
        ("*/*", False),
        ("application/*;q=0.9, text/html", False),
        ("image/png", False),
        ("", False),
    ],
)
def test_an_accept_header_prefers_html_if_it_names_it_first(accept: str, html: bool) -> None:
    assert prefers_html(accept) is html


def test_the_policy_allows_the_own_script_and_the_own_styles_alone() -> None:
    html = "<!-- <script>no</script> --><style>a</style><script>b</script><script src=c></script>"
    policy = content_security_policy(html, "https://cdn.example/npm")
    assert "'unsafe" not in policy
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    # openssl's: printf b | openssl dgst -sha256 -binary | base64
    assert directives["script-src"] == (
        "'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0=' 'strict-dynamic' https://cdn.example"
    )
    assert directives["style-src"] == "'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='"
    assert directives["default-src"] == "'none'"


@pytest.mark.parametrize(
    ("url", "source"),
    [("https://cdn.example:8443/npm/", "https://cdn.example:8443"), ("/static", "'self'")],
)
def test_a_url_is_a_source_by_its_origin(url: str, source: str) -> None:
    assert source_of(url) == source


def test_the_404_page_repeats_the_address_as_text() -> None:
    answer = not_found_page("text/html", "/<script>", "/llm/", THEME)
    assert answer is not None
    body = bytes(answer.body).decode()
    assert answer.status_code == 404
    assert "/&lt;script&gt;" in body
    assert '<a href="/llm/docs">' in body
    assert "script-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_an_unknown_address_is_a_page_for_browsers_and_an_envelope_for_clients(prefix: str) -> None:
    with served_page(prefix=prefix) as url:
        page = httpx.get(f"{url}/lost", headers={"accept": CHROME})
        assert page.status_code == 404
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert f'<a href="{prefix}/docs">' in page.text
        assert (
            httpx.get(f"{url}/lost").json()["error"]["message"]
            == f"Invalid URL (GET {prefix}/lost)"
        )
        posted = httpx.post(f"{url}/lost", headers={"accept": CHROME})
        assert posted.json()["error"]["type"] == "invalid_request_error"


# The reference without a network.


def test_docs_without_a_network_shows_every_operation_with_a_curl_line_that_runs(
    browser: "Browser",
) -> None:
    if not shutil.which("curl"):
        browsing.lacking("no curl for the tests of the pages: apt-get install curl")
    with served_page() as url:
        page = browser.new_page()
        page.goto(f"{url}/docs")
        page.locator(".operation").first.wait_for()
        document = httpx.get(f"{url}/openapi.json").json()
        methods = ("get", "post", "delete")
        operations = [item[m] for item in document["paths"].values() for m in methods if m in item]
        assert page.locator(".operation").count() == len(operations)
        assert "could not be loaded" in page.locator("#missing").inner_text()
        lines = page.locator(".curl pre").all_text_contents()
        answers = [shell(line) for line in lines if line.startswith(f"curl {url}/v1/chat")]
        assert answers[0]["object"] == "chat.completion"
        assert shell(next(line for line in lines if "/v1/models " in line))["object"] == "list"
        model = shell(next(line for line in lines if "/v1/models/" in line))
        assert model["id"] == "mock-gpt-model"
        page.close()


def test_a_curl_line_of_docs_quotes_the_example_for_a_shell(browser: "Browser") -> None:
    if not shutil.which("curl"):
        browsing.lacking("no curl for the tests of the pages: apt-get install curl")
    with served_page() as url:
        document = httpx.get(f"{url}/openapi.json").json()
        body = document["paths"][CHATS]["post"]["requestBody"]["content"]["application/json"]
        message = {"role": "user", "content": "It's `$HOME`"}
        body["examples"] = {"quotes": {"value": {"model": "m", "messages": [message]}}}
        page = browser.new_page()
        page.route("**/openapi.json", lambda route: route.fulfill(json=document))
        page.goto(f"{url}/docs")
        page.locator(".operation").first.wait_for()
        answer = shell(page.locator(".curl pre").first.text_content() or "")
        assert "It's `$HOME`" in answer["choices"][0]["message"]["content"]
        page.close()


# Accessibility.


def violations(page: "Page", axe: Path) -> list[str]:
    """The serious and critical findings of axe-core. It is evaluated, as the policy stops a tag."""
    page.evaluate((axe / "axe.min.js").read_text())
    result = page.evaluate("axe.run()")
    return [
        f"{found['id']}: {node['html'][:200]} {node['failureSummary']}"
        for found in result["violations"]
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]


WINDOWS: dict[str, dict[str, object]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "light-phone": {
        "color_scheme": "light",
        "viewport": {"width": 390, "height": 844},
        "has_touch": True,
        "is_mobile": True,
    },
    "dark-phone": {
        "color_scheme": "dark",
        "viewport": {"width": 390, "height": 844},
        "has_touch": True,
        "is_mobile": True,
        "device_scale_factor": 2,
    },
}


@pytest.mark.parametrize("window", WINDOWS)
def test_axe_finds_no_serious_violation_in_the_chat(
    open_chat: Callable[..., Chat], assets: str, npm: Callable[[str], Path], window: str
) -> None:
    axe = npm(AXE)
    with served_page(Scripted(), assets=assets) as url:
        chat = open_chat(f"{url}/ui", **WINDOWS[window])
        page = chat.page
        assert violations(page, axe) == []
        browsing.screenshot(page.screenshot, f"{window}-empty")
        for text in ("code", "think", "table"):
            chat.ask(text)
        page.locator(".figure .bars path").first.wait_for()
        assert violations(page, axe) == []
        browsing.screenshot(page.screenshot, f"{window}-chat")
        chat.ask("fail")
        assert violations(page, axe) == []
        browsing.screenshot(page.screenshot, f"{window}-failure")
        assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("innerWidth")
        if "phone" in window:
            for name in ("Chats", "Settings"):
                page.get_by_role("button", name=name, exact=True).click()
                assert violations(page, axe) == []
                browsing.screenshot(page.screenshot, f"{window}-{name.lower()}")
                page.keyboard.press("Escape")


def test_axe_finds_no_serious_violation_in_the_other_pages(
    browser: "Browser", npm: Callable[[str], Path]
) -> None:
    axe = npm(AXE)
    with served_page() as url:
        for path in ("/docs", "/lost"):
            page = browser.new_page()
            page.goto(url + path)
            page.locator("main :is(.operation, nav)").first.wait_for()
            for summary in page.locator("summary").all()[:3]:
                summary.click()
            assert violations(page, axe) == []
            browsing.screenshot(page.screenshot, path.strip("/"))
            page.close()


def test_the_keyboard_reaches_everything(open_chat: Callable[..., Chat]) -> None:
    with served_page(Scripted()) as url:
        chat = open_chat(f"{url}/ui")
        page = chat.page
        chat.ask("Hello")
        page.reload()
        chat.text("You wrote: Hello").wait_for()
        names = []
        for _ in range(40):
            page.keyboard.press("Tab")
            names.append(
                page.evaluate(
                    """() => {
                      const at = document.activeElement;
                      return at.getAttribute("aria-label") ?? at.labels?.[0]?.innerText ?? at.innerText;
                    }"""
                ).strip()
            )
        wanted = ["Skip to the message field", "New chat", "Rename Hello", "Delete Hello"]
        wanted += ["API reference", "Use dark colours", "Conversation", "Copy", "Edit", "Try again"]
        wanted += ["Message", "Send", "Model", "System text", "Temperature", "API key"]
        places = [names.index(name) for name in wanted]
        assert places == sorted(places)


def test_a_drawer_takes_the_focus_and_gives_it_back(open_chat: Callable[..., Chat]) -> None:
    with served_page(Scripted()) as url:
        chat = open_chat(f"{url}/ui", **WINDOWS["light-phone"])
        page = chat.page
        button = page.get_by_role("button", name="Settings", exact=True)
        assert not page.get_by_label("System text").is_visible()
        button.click()
        assert page.get_by_label("System text").is_visible()
        assert page.evaluate("document.activeElement.closest('aside').id") == "panel"
        assert button.get_attribute("aria-expanded") == "true"
        page.keyboard.press("Escape")
        assert not page.get_by_label("System text").is_visible()
        assert page.evaluate("document.activeElement.getAttribute('aria-controls')") == "panel"
