"""The document against the app, and the pages made from it in a real browser.

The browser's tests need Debian's `chromium`, and the files of the pages, which come with a PyPI package; where they cannot be had,
those tests are skipped with a line that says why, and on a CI they fail.
"""

import json
import os
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha384
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn
from zipfile import ZipFile

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from serving import served

from rewrap.api.checks import CHECKS
from rewrap.api.openapi import document
from rewrap.config.settings import Settings
from rewrap.main import create_app
from rewrap.server.hosts import normal_path
from rewrap.server.origins import EXPOSED
from rewrap.server.protocol import HEAD_BYTES, TOO_LARGE, TOO_SLOW
from rewrap.web.docs import REDOC, SWAGGER_UI

DOCUMENT = document("0.0.0")
REGISTRY: Any = Registry().with_resource("urn:document", DRAFT202012.create_resource(DOCUMENT))
METHODS = ("get", "post", "delete")
CHAT = "/v1/chat/completions"
STORE = {"store_url": "sqlite://"}

# Swagger UI and Redoc, as npm has them, in a package that pip can fetch; what it needs (Django) is left out.
ASSETS = "drf-spectacular-sidecar==2026.10.1"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"


def lacking(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def errors(value: Any, pointer: str) -> list[str]:
    """What is wrong with a value, by the schema at this place of the document."""
    validator: Any = Draft202012Validator({"$ref": f"urn:document#{pointer}"}, registry=REGISTRY)
    return [
        f"{pointer}: {error.json_path}: {error.message[:200]}"
        for error in validator.iter_errors(value)
    ]


def escaped(name: Any) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")


def walk(node: Any, pointer: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the document but what stands in examples, each with its JSON pointer."""
    if isinstance(node, dict):
        yield pointer, node
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for name, child in items:
        if name not in ("example", "examples"):
            yield from walk(child, f"{pointer}/{escaped(name)}")


def answer_errors(path: str, method: str, answer: httpx.Response) -> list[str]:
    """What is wrong with an answer, by the document."""
    pointer = f"/paths/{escaped(path)}/{method}/responses/{answer.status_code}"
    responses = DOCUMENT["paths"][path][method]["responses"]
    response = responses[str(answer.status_code)]
    if "$ref" in response:
        pointer = response["$ref"].removeprefix("#")
        response = DOCUMENT["components"]["responses"][pointer.rpartition("/")[2]]
    kind = answer.headers["content-type"].partition(";")[0]
    media = f"{pointer}/content/{escaped(kind)}"
    assert kind in response["content"], (path, kind)
    for name, header in response["headers"].items():
        if "$ref" in header:
            header = DOCUMENT["components"]["headers"][name]
        assert name in answer.headers or not header.get("required"), name
    if kind != "text/event-stream":
        return errors(
            answer.json() if kind == "application/json" else answer.text, f"{media}/schema"
        )
    return events_errors(answer.text, f"{media}/x-itemSchema")


def events_errors(text: str, schema: str) -> list[str]:
    """What is wrong with a stream: with its end, and with the JSON of each event."""
    events = [event.rpartition("data: ")[2] for event in text.split("\n\n") if event]
    *values, last = [event if event == "[DONE]" else json.loads(event) for event in events]
    if last != "[DONE]":
        assert "error" in last or last["type"] == "response.completed"
        values.append(last)
    return [error for value in values for error in errors(value, schema)]


# The document.


def test_the_document_is_valid_openapi_3_1() -> None:
    assert [
        f"{list(e.absolute_path)}: {e.message[:200]}"
        for e in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()
    ] == []


def test_the_document_has_exactly_the_routes_of_the_app() -> None:
    def shape(path: str) -> str:
        return "/".join("{}" if part.startswith("{") else part for part in path.split("/"))

    routes: Any = create_app(Settings(**STORE)).routes
    app = {
        (shape(route.path), method.lower())
        for route in routes
        for method in route.methods - {"HEAD"}
    }
    documented = {
        (shape(normal_path(path)), m)
        for path, item in DOCUMENT["paths"].items()
        for m in METHODS
        if m in item
    }
    assert documented == app


def test_every_example_fits_its_schema() -> None:
    wrong, count = [], 0
    for pointer, node in walk(DOCUMENT):
        named, single = node.get("examples", {}), [node["example"]] if "example" in node else []
        examples = (
            named
            if isinstance(named, list)
            else [example["value"] for example in named.values()] + single
        )
        for example in examples:
            count += 1
            if "x-itemSchema" in node:
                wrong += events_errors(example, f"{pointer}/x-itemSchema")
            else:
                wrong += errors(
                    example, pointer if isinstance(named, list) else f"{pointer}/schema"
                )
    assert wrong == []
    assert count > 50


def test_every_json_body_has_an_example() -> None:
    def has_example(node: dict[str, Any]) -> bool:
        schema = node["schema"]
        if "$ref" in schema:
            schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return "example" in node or "examples" in node or "examples" in schema

    bodies = [
        (pointer, node)
        for pointer, node in walk(DOCUMENT)
        if pointer.endswith("/application~1json")
    ]
    assert [pointer for pointer, node in bodies if not has_example(node)] == []


def test_the_document_has_every_parameter_that_is_checked() -> None:
    assert {*CHECKS, "messages"} == set(
        DOCUMENT["components"]["schemas"]["ChatParameters"]["properties"]
    )


@pytest.fixture(scope="module")
def api() -> Iterator[httpx.Client]:
    with served(**STORE) as url, httpx.Client(base_url=url) as client:
        yield client


def test_the_answer_to_every_example_fits_the_document(api: httpx.Client) -> None:
    count = 0
    for path, item in DOCUMENT["paths"].items():
        body = item.get("post", {}).get("requestBody", {}).get("content", {})
        media = body.get("application/json", {})
        examples = [example["value"] for example in media.get("examples", {}).values()]
        if "example" in media:
            examples.append(media["example"])
        if "{completion_id}" in path:
            continue
        for example in examples:
            answer = api.post(path.replace("{model}", "m"), json=example)
            assert answer.status_code == 200, (path, answer.text)
            assert answer_errors(path, "post", answer) == []
            count += 1
    assert count > 15


def test_stored_responses_fit_the_document(api: httpx.Client) -> None:
    id = api.post("/v1/responses", json={"input": "Hello"}).json()["id"]
    one = "/v1/responses/{response_id}"
    for path, method, query, status in (
        (one, "get", "", 200),
        (one, "get", "?stream=true", 200),
        (f"{one}/input_items", "get", "?order=asc", 200),
        (f"{one}/cancel", "post", "", 400),
        ("/v1/responses/compact", "post", "", 400),
        (one, "delete", "", 200),
        (one, "get", "", 404),
    ):
        answer = api.request(method, path.format(response_id=id) + query)
        assert answer.status_code == status, (path, answer.text)
        assert answer_errors(path, method, answer) == []


def test_stored_completions_fit_the_document(api: httpx.Client) -> None:
    table = "| drink | sold |\n|---|---|\n| tea | 12 |\n| coffee | 30 |"
    asked = {
        "model": "m",
        "messages": [{"role": "user", "content": table}],
        "store": True,
        "metadata": {"topic": "memory"},
    }
    id = api.post(CHAT, json=asked).json()["id"]
    one = f"{CHAT}/{{completion_id}}"
    for path, method, body in (
        (CHAT, "get", None),
        (one, "get", None),
        (one, "post", {"metadata": {"topic": "tea"}}),
        (f"{one}/messages", "get", None),
        (f"{one}/messages/{{message_id}}/plots", "get", None),
        (f"{one}/messages/{{message_id}}/plot", "get", None),
        (one, "delete", None),
    ):
        answer = api.request(method, path.format(completion_id=id, message_id=f"{id}-0"), json=body)
        assert answer.status_code == 200, (path, answer.text)
        assert answer_errors(path, method, answer) == []
    gone = api.get(f"{CHAT}/{id}")
    assert gone.status_code == 404
    assert answer_errors(one, "get", gone) == []


def test_server_information_fits_the_document(api: httpx.Client) -> None:
    for path in (
        "/v1/models",
        "/models",
        "/",
        "/health",
        "/livez",
        "/readyz",
        "/info",
        "/docs/websocket",
        "/openapi.json",
        "/docs",
        "/redoc",
    ):
        answer = api.get(path)
        assert answer.status_code == 200, path
        assert answer_errors(path, "get", answer) == []


def test_errors_fit_the_document(api: httpx.Client) -> None:
    for path, body in ((CHAT, {}), ("/ask", {}), (CHAT, {"model": "m", "messages": "Hello"})):
        answer = api.post(path, json=body)
        assert answer.status_code == 400
        assert answer_errors(path, "post", answer) == []
    with served(api_keys=("sk-one",), **STORE) as url:
        for path in (CHAT, "/ask"):
            answer = httpx.post(url + path, json={})
            assert answer.status_code == 401
            assert answer_errors(path, "post", answer) == []


def test_headers_fit_the_document() -> None:
    headers = DOCUMENT["components"]["headers"]
    assert {*EXPOSED} <= {*headers}
    with served(rate_limit_per_minute=1, **STORE) as url:
        asked = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
        for status in (200, 429):
            answer = httpx.post(url + CHAT, json=asked)
            assert answer.status_code == status
            assert answer_errors(CHAT, "post", answer) == []
            told = {name: value for name, value in answer.headers.items() if name in headers}
            assert {*told} >= {name for name in headers if name.endswith("-requests")}
            for name, value in told.items():
                number = headers[name]["schema"].get("type") == "integer"
                assert (
                    errors(int(value) if number else value, f"/components/headers/{name}/schema")
                    == []
                )


def test_errors_before_a_request_is_parsed_fit_the_document() -> None:
    with served(**STORE) as url:
        answer = httpx.get(f"{url}/health", headers={"x": "y" * HEAD_BYTES})
    assert (answer.status_code, "x-request-id" in answer.headers) == (431, True)
    for status, message, body in ((431, TOO_LARGE, answer.json()), (408, TOO_SLOW, None)):
        example = DOCUMENT["components"]["responses"][str(status)]["content"]["application/json"][
            "example"
        ]
        assert example["error"]["message"] == message
        assert body in (example, None)


def test_health_answers_to_every_host_as_documented() -> None:
    assert "403" not in DOCUMENT["paths"]["/health"]["get"]["responses"]
    with served(**STORE) as url:
        assert httpx.get(f"{url}/health", headers={"host": "evil.example"}).status_code == 200


def test_the_document_and_the_pages_need_no_key() -> None:
    with served(api_keys=("sk-one",), **STORE) as url:
        assert [
            httpx.get(url + path).status_code
            for path in ("/openapi.json", "/docs", "/docs/", "/v1/redoc")
        ] == [200] * 4


# The pages. Their files come from a mirror of our own, over a setting.


@pytest.fixture(scope="module")
def assets(pytestconfig: pytest.Config) -> dict[str, bytes]:
    """The files by their paths on a CDN: `redoc@2.5.4/bundles/redoc.standalone.js`."""
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir(ASSETS.replace("==", "-"))
    if not (wheels := list(folder.glob("*.whl"))):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            str(folder),
            ASSETS,
        ]
        subprocess.run(command, check=False, timeout=120, capture_output=True)
        wheels = list(folder.glob("*.whl"))
    if not wheels:
        lacking(f"the files of the pages are missing: pip download {ASSETS} failed")
    with ZipFile(wheels[0]) as wheel:
        return {
            path: wheel.read(
                f"drf_spectacular_sidecar/static/drf_spectacular_sidecar/{unversioned(path)}"
            )
            for path in SWAGGER_UI | REDOC
        }


def unversioned(path: str) -> str:
    package, _, rest = path.partition("/")
    return f"{package.partition('@')[0]}/{rest}"


@contextmanager
def mirror(assets: dict[str, bytes]) -> Iterator[str]:
    """A server of these files; gives its base URL."""

    class Mirror(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = assets.get(self.path.removeprefix("/npm/"))
            self.send_response(404 if body is None else 200)
            self.send_header("access-control-allow-origin", "*")
            self.send_header(
                "content-type", "text/css" if self.path.endswith(".css") else "text/javascript"
            )
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/npm"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


Open = Callable[[str], Any]  # a URL: its page, with `.complaints` of the browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    if not CHROMIUM:
        lacking("no Chromium for the tests of the pages: apt-get install chromium")
    if not find_spec("playwright"):
        lacking("no playwright for the tests of the pages: pip install -r tests/requirements.txt")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("chromium"),
            executable_path=CHROMIUM,
            args=FLAGS.split(),
            viewport={"width": 1280, "height": 900},
        )

        def open_page(url: str) -> Any:
            page = browser.new_page()
            page.set_default_timeout(15_000)
            page.complaints = []
            page.on(
                "console", lambda line: line.type == "error" and page.complaints.append(line.text)
            )
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            page.goto(url)
            return page

        yield open_page
        browser.close()


def shot(page: Any, name: str) -> None:
    """A picture for people, where SCREENSHOTS names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_the_files_have_the_hashes_in_the_pages(assets: dict[str, bytes]) -> None:
    assert {
        path: b64encode(sha384(body).digest()).decode() for path, body in assets.items()
    } == SWAGGER_UI | REDOC


def test_execute_on_the_docs_page_shows_a_completion(
    chromium: Open, assets: dict[str, bytes]
) -> None:
    with mirror(assets) as base, served(docs_assets_url=base, api_keys=("sk-one",), **STORE) as url:
        page = chromium(f"{url}/docs")
        page.click(".btn.authorize")
        shot(page, "key")
        page.locator(".auth-container", has_text="bearer").locator("input").fill("sk-one")
        page.locator(".auth-container", has_text="bearer").locator("button[type=submit]").click()
        page.click(".btn-done")
        shot(page, "docs")
        ask = page.locator("#operations-Chat-createChatCompletion")
        ask.locator(".opblock-summary-control").click()
        with page.expect_response(f"{url}{CHAT}") as answer:
            ask.locator(".btn.execute").click()
        assert answer.value.status == 200
        assert answer.value.request.headers["authorization"] == "Bearer sk-one"
        shown = ask.locator(".live-responses-table .response")
        shown.wait_for()
        assert shown.locator(".response-col_status").inner_text().startswith("200")
        assert "chat.completion" in shown.inner_text()
        shown.scroll_into_view_if_needed()
        shot(page, "executed")
        assert not page.is_visible("#missing")
        assert page.complaints == []


@pytest.mark.parametrize(
    ("prefix", "path"),
    [("/llm", "/docs"), ("/a/b", "/docs/"), ("/llm", "/v1/docs"), ("", "/v1/docs/")],
)
def test_execute_works_below_a_path_prefix(
    chromium: Open, assets: dict[str, bytes], prefix: str, path: str
) -> None:
    with mirror(assets) as base, served(prefix, docs_assets_url=base, **STORE) as url:
        page = chromium(f"{url}{path}")
        ask = page.locator("#operations-Chat-createChatCompletion")
        ask.locator(".opblock-summary-control").click()
        with page.expect_response(f"**{CHAT}") as answer:
            ask.locator(".btn.execute").click()
        assert (answer.value.status, answer.value.url.startswith(f"{url}/")) == (200, True)
        page.get_by_role("link", name="Read", exact=True).click()
        page.get_by_role("heading", name="Create a chat completion", exact=False).first.wait_for()
        page.get_by_role("link", name="openapi.json").click()
        page.wait_for_url(f"{url}/**/openapi.json")


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_redoc_shows_every_operation(chromium: Open, assets: dict[str, bytes], prefix: str) -> None:
    with mirror(assets) as base, served(prefix, docs_assets_url=base, **STORE) as url:
        page = chromium(f"{url}/redoc")
        page.get_by_role("heading", name="Create a chat completion", exact=False).first.wait_for()
        text = page.inner_text("#page")
        summaries = [
            item[m]["summary"] for item in DOCUMENT["paths"].values() for m in METHODS if m in item
        ]
        assert [summary for summary in summaries if summary not in text] == []
        shot(page, "redoc")
        assert not page.is_visible("#missing")
        # It would show its maker's logo, from its maker's server: the policy of the page says no.
        assert [complaint for complaint in page.complaints if "logo" not in complaint] == []


FAULTS = ["nothing listens", "other files", "no style sheet"]


@pytest.mark.parametrize(
    ("path", "fault"), [(path, fault) for path in ("/docs", "/redoc") for fault in FAULTS][:-1]
)
def test_a_page_whose_files_are_missing_shows_a_message(
    chromium: Open, assets: dict[str, bytes], path: str, fault: str
) -> None:
    files = dict.fromkeys(assets, b"window.Redoc = window.SwaggerUIBundle = 1")
    if fault == "no style sheet":
        files = {name: body for name, body in assets.items() if name.endswith(".js")}
    with mirror(files) as base:
        told = "http://127.0.0.1:9/npm" if fault == "nothing listens" else base
        with served(docs_assets_url=told, **STORE) as url:
            page = chromium(f"{url}{path}")
            page.wait_for_selector("#missing")
            text = page.inner_text("#missing")
            assert "could not be loaded" in text
            assert told in text
            assert "DOCS_ASSETS_URL" in text
            page.click("#missing a")
            page.wait_for_url(f"{url}/openapi.json")
            page.go_back()
            shot(page, "missing")
