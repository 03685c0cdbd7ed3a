"""/v1/embeddings and /v1/moderations in front of each kind of backend, over real sockets."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import openai
import pytest
from serving import served

VECTORS = [[0.6, -0.8], [1.0, 0.0]]
INPUTS = ["Hello", "World"]


@contextmanager
def json_upstream(answer: object, status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers every POST with the same JSON; gives its URL and the requests."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen.append((self.path, json.loads(body), headers))
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# Each shape: its address, its answer, and the path and the body that it gets.
SHAPES: dict[str, tuple[str, Any, str, Any, int]] = {
    "ollama": (
        "/api/chat",
        {"embeddings": VECTORS, "prompt_eval_count": 7},
        "/api/embed",
        {"model": "m", "input": INPUTS},
        7,
    ),
    "cohere": (
        "/v2/chat",
        {"embeddings": {"float": VECTORS}, "meta": {"billed_units": {"input_tokens": 7}}},
        "/v2/embed",
        {
            "model": "m",
            "texts": INPUTS,
            "input_type": "search_document",
            "embedding_types": ["float"],
        },
        7,
    ),
    "gemini": (
        "",
        {"embeddings": [{"values": vector} for vector in VECTORS]},
        "/v1beta/models/m:batchEmbedContents",
        {
            "requests": [
                {"model": "models/m", "content": {"parts": [{"text": text}]}} for text in INPUTS
            ]
        },
        4,
    ),
    "tgi": ("/generate", VECTORS, "/embed", {"inputs": INPUTS}, 4),
    "huggingface": ("/models/x", VECTORS, "/models/x", {"inputs": INPUTS}, 4),
    "databricks": (
        "/serving-endpoints/e/invocations",
        {"data": [{"embedding": vector} for vector in VECTORS], "usage": {"prompt_tokens": 7}},
        "/serving-endpoints/e/invocations",
        {"input": INPUTS},
        7,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_with_embeddings_is_asked_in_its_form(shape: str) -> None:
    path, answer, expected_path, expected_body, tokens = SHAPES[shape]
    with json_upstream(answer) as (upstream, seen):
        options: dict[str, Any] = {"chat_url": upstream + path, "chat_shape": shape}
        with served(**options, chat_key="the-key-of-it") as url:
            with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
                found = client.embeddings.create(model="m", input=INPUTS)
    assert [row.embedding for row in found.data] == [pytest.approx(row) for row in VECTORS]
    assert found.usage.prompt_tokens == tokens
    assert [request[:2] for request in seen] == [(expected_path, expected_body)]
    assert "the-key-of-it" in str(seen[0][2])


@pytest.mark.parametrize(
    ("answer", "status", "expected"),
    [
        ({"embeddings": [[1.0]]}, 200, 502),
        ({"embeddings": [[1.0], "x"]}, 200, 502),
        ({"no": 1}, 200, 502),
        ({"error": "model not found"}, 404, 404),
    ],
    ids=["too few", "no vector", "none", "an error"],
)
def test_a_bad_answer_of_a_shape_is_an_error(answer: object, status: int, expected: int) -> None:
    with json_upstream(answer, status) as (upstream, _):
        with served(chat_url=f"{upstream}/api/chat", chat_shape="ollama") as url:
            found = httpx.post(f"{url}/v1/embeddings", json={"model": "m", "input": INPUTS})
    assert found.status_code == expected
    assert found.json()["error"]["message"]


def test_an_ignored_number_of_dimensions_is_an_error() -> None:
    body = {"model": "m", "input": INPUTS, "dimensions": 3}
    with json_upstream({"embeddings": VECTORS}) as (upstream, seen):
        with served(chat_url=f"{upstream}/api/chat", chat_shape="ollama") as url:
            found = httpx.post(f"{url}/v1/embeddings", json=body)
    assert (found.status_code, found.json()["error"]["param"]) == (400, "dimensions")
    assert seen[0][1]["dimensions"] == 3


def test_a_shape_of_texts_takes_no_tokens() -> None:
    with json_upstream({}) as (upstream, seen):
        with served(chat_url=f"{upstream}/api/chat", chat_shape="ollama") as url:
            found = httpx.post(f"{url}/v1/embeddings", json={"model": "m", "input": [1, 2]})
    assert (found.status_code, seen) == (400, [])


def test_a_backend_without_embeddings_says_what_it_has() -> None:
    with json_upstream({}) as (upstream, seen), served(chat_url=upstream) as url:
        for path in ("embeddings", "moderations"):
            found = httpx.post(f"{url}/v1/{path}", json={"model": "m", "input": "x"})
            assert found.status_code == 404
            message = found.json()["error"]["message"]
            assert f"has no {path}: it has chat completions" in message
    assert seen == []


@pytest.mark.parametrize("path", ["embeddings", "moderations"])
@pytest.mark.parametrize("pass_through", [True, False])
def test_an_openai_upstream_gets_the_request_as_it_is(path: str, pass_through: bool) -> None:
    body = {"model": "m", "input": "Hi", "unknown": {"a": 1}}
    answer = {"object": "list", "more": [1, 2]}
    with json_upstream(answer) as (upstream, seen):
        with served(openai_api_base=f"{upstream}/v1", pass_through=pass_through) as url:
            found = httpx.post(f"{url}/v1/{path}", json=body)
            azure = httpx.post(f"{url}/openai/deployments/other/{path}", json=body)
    assert found.json() == azure.json() == answer
    assert [request[:2] for request in seen] == [
        (f"/v1/{path}", body),
        (f"/v1/{path}", body | {"model": "other"}),
    ]


def test_the_mock_embeds_and_moderates() -> None:
    with served() as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
            found = client.embeddings.create(model="m", input=["a b", "a b", "c"], dimensions=8)
            vectors = [row.embedding for row in found.data]
            judged = client.moderations.create(input=["violence", "peace"])
        azure = httpx.post(f"{url}/openai/deployments/d/embeddings", json={"input": "a b"})
    assert vectors[0] == vectors[1] != vectors[2]
    assert len(vectors[0]) == 8
    assert [result.flagged for result in judged.results] == [True, False]
    assert judged.results[0].categories.violence
    assert azure.json()["model"] == "d"


def test_every_answer_of_the_api_has_openais_headers() -> None:
    with served(allow_origins=("https://app.example",)) as url:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
        headers = {"origin": "https://app.example"}
        for stream in (False, True):
            asked = body | {"stream": stream}
            answer = httpx.post(f"{url}/v1/chat/completions", json=asked, headers=headers)
            assert answer.headers["openai-version"] == "2020-10-01"
            assert answer.headers["openai-processing-ms"].isdecimal()
            exposed = answer.headers["access-control-expose-headers"]
            assert {"openai-version", "retry-after-ms", "x-request-id"} <= set(exposed.split(", "))
        assert "openai-version" not in httpx.get(f"{url}/health").headers
