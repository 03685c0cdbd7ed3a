"""Requests that pass through to an OpenAI-compatible upstream: over real sockets, with real clients."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from serving import Process, served, started

MEGABYTE = 2**20
# PASS_THROUGH_MEGABYTES=1024 python -m pytest tests/test_passthrough.py -k large: 1 GB each way.
SIZE = int(os.environ.get("PASS_THROUGH_MEGABYTES", "200")) * MEGABYTE
GROWTH = 30 * MEGABYTE
BLOCK = bytes(range(256)) * 256  # 64 KB
CONTENT = b"0123456789" * 100
LEAK = "canary-of-the-upstream"


@dataclass
class Seen:
    """One request as the upstream saw it."""

    method: str
    path: str
    headers: dict[str, str]
    size: int = 0
    digest: str = ""
    body: bytes = b""
    broken: bool = False


@dataclass
class Files:
    """An OpenAI-compatible upstream with files, on a thread for each connection."""

    requests: list[Seen] = field(default_factory=list)
    left: Event = field(default_factory=Event)  # the client of a download left
    sent: int = 0  # bytes of the last download
    url: str = ""

    @property
    def last(self) -> Seen:
        return self.requests[-1]


def handler_of(files: Files) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def read_body(self, seen: Seen) -> None:
            digest = sha256()
            kept = b""
            for piece in self.pieces():
                digest.update(piece)
                seen.size += len(piece)
                if len(kept) < MEGABYTE:
                    kept += piece
            seen.digest = digest.hexdigest()
            seen.body = kept

        def pieces(self) -> Iterator[bytes]:
            if "chunked" in self.headers.get("transfer-encoding", ""):
                while size := int(self.rfile.readline(), 16):
                    yield self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return
            left = int(self.headers.get("content-length") or 0)
            while left:
                piece = self.rfile.read1(min(left, 65536))  # type: ignore[attr-defined]
                if not piece:
                    raise EOFError
                left -= len(piece)
                yield piece

        def answer(self) -> None:
            seen = Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
            files.requests.append(seen)
            try:
                self.read_body(seen)
            except (EOFError, ValueError, ConnectionError):
                seen.broken = True
                self.close_connection = True
                return
            getattr(self, "at_" + urlsplit(self.path).path.rsplit("/", 1)[-1], self.at_json)()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = answer

        def head(self, status: int, length: int, **headers: str) -> None:
            self.send_response(status)
            self.send_header("content-length", str(length))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("set-cookie", f"session={LEAK}")
            self.send_header("access-control-allow-origin", "*")
            self.send_header("x-internal", LEAK)
            self.send_header("connection", "keep-alive")
            self.send_header("keep-alive", "timeout=5")
            self.end_headers()

        def whole(self, status: int, value: Any, **headers: str) -> None:
            body = json.dumps(value).encode()
            self.head(status, len(body), content_type="application/json", **headers)
            if self.command != "HEAD":
                self.wfile.write(body)

        def at_json(self) -> None:
            self.whole(200, {"path": self.path, "model": "upstream"}, openai_version="2030-01-01")

        def at_wrong(self) -> None:
            error = {"message": "No such file", "type": "t", "param": "file", "code": "c", "x": 1}
            self.whole(404, {"error": error}, retry_after="7")

        def at_coded(self) -> None:
            self.head(200, len(CONTENT), content_encoding="gzip", content_type="text/plain")
            self.wfile.write(CONTENT)

        def at_content(self) -> None:
            etag = '"abc"'
            if self.headers.get("if-none-match") == etag:
                self.head(304, 0, etag=etag)
                return
            part = CONTENT
            status = 200
            more = {"etag": etag, "accept_ranges": "bytes", "content_type": "audio/mpeg"}
            if asked := self.headers.get("range"):
                start, end = map(int, asked.removeprefix("bytes=").split("-"))
                part = CONTENT[start : end + 1]
                status = 206
                more["content_range"] = f"bytes {start}-{end}/{len(CONTENT)}"
            self.head(status, len(part), **more)
            if self.command != "HEAD":
                self.wfile.write(part)

        def at_large(self) -> None:
            self.head(200, SIZE, content_type="application/octet-stream")
            files.sent = 0
            try:
                while files.sent < SIZE:
                    self.wfile.write(BLOCK)
                    files.sent += len(BLOCK)
            except ConnectionError:
                files.left.set()
                self.close_connection = True

        def at_silent(self) -> None:
            self.head(200, SIZE, content_type="application/octet-stream")
            self.wfile.write(BLOCK)
            self.wfile.flush()
            if not self.rfile.read(1):
                files.left.set()
            self.close_connection = True

        def at_cut(self) -> None:
            self.head(200, 1000, content_type="text/plain")
            self.wfile.write(b"half")
            self.close_connection = True

    return Handler


@contextmanager
def files_upstream() -> Iterator[Files]:
    files = Files()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(files))
    server.daemon_threads = True
    files.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def files() -> Iterator[Files]:
    with files_upstream() as found:
        yield found


@pytest.fixture
def base(files: Files) -> Iterator[str]:
    with served(openai_api_base=files.url, openai_api_key="sk-own-key-of-the-server") as url:
        yield url


@pytest.fixture
def process(files: Files) -> Iterator[Process]:
    with started(OPENAI_API_BASE=files.url, STORE_URL="sqlite://") as running:
        yield running


def resident(process: Process) -> int:
    """The largest resident size of a process so far, in bytes."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError


# What passes.


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"])
def test_any_method_reaches_the_same_path_and_query(base: str, files: Files, method: str) -> None:
    answer = httpx.request(method, f"{base}/v1/vector_stores/vs_1/search?limit=2&after=a%20b")
    assert answer.status_code == 200
    assert files.last.method == method
    assert files.last.path == "/v1/vector_stores/vs_1/search?limit=2&after=a%20b"
    if method != "HEAD":
        assert answer.json()["model"] == "upstream"


def test_a_path_keeps_its_spelling(base: str, files: Files) -> None:
    httpx.get(f"{base}/v1/files/a%20b%25%C3%BC;x=1")
    assert files.last.path == "/v1/files/a%20b%25%C3%BC;x=1"


@pytest.mark.parametrize("path", ["/v1/files/%2e%2e/%2e%2e/admin", "/v1/files/..%2fadmin"])
def test_a_path_cannot_leave_the_api(base: str, files: Files, path: str) -> None:
    with socket.create_connection(urlsplit(base).netloc.split(":")) as wire:  # type: ignore[arg-type]
        wire.sendall(
            f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
        )
        head = wire.makefile("rb").readline()
    assert b" 404 " in head
    assert files.requests == []


def test_only_headers_of_the_body_and_its_conditions_go_up(base: str, files: Files) -> None:
    headers = {
        "accept": "audio/mpeg",
        "cookie": "a=b",
        "origin": base,
        "x-forwarded-for": "10.0.0.1",
        "openai-beta": "assistants=v2",
        "idempotency-key": "k",
        "openai-organization": "org-of-the-client",
        "te": "trailers",
        "authorization": "Bearer key-of-the-client",
    }
    httpx.post(f"{base}/v1/audio/speech", json={"input": "x"}, headers=headers)
    sent = files.last.headers
    assert sent["authorization"] == "Bearer sk-own-key-of-the-server"
    assert sent["accept"] == "audio/mpeg"
    assert sent["openai-beta"] == "assistants=v2"
    assert sent["host"] == urlsplit(files.url).netloc
    assert not {"cookie", "origin", "x-forwarded-for", "idempotency-key", "te"} & sent.keys()
    assert "openai-organization" not in sent


def test_without_a_key_of_ours_the_clients_key_goes_up(files: Files) -> None:
    with served(openai_api_base=files.url) as url:
        headers = {"authorization": "Bearer theirs", "openai-organization": "org"}
        httpx.get(f"{url}/v1/files", headers=headers)
        assert files.last.headers["authorization"] == "Bearer theirs"
        assert files.last.headers["openai-organization"] == "org"


def test_a_key_of_this_server_stays_here(files: Files) -> None:
    with served(openai_api_base=files.url, api_keys=("own",)) as url:
        assert httpx.get(f"{url}/v1/files").status_code == 401
        assert files.requests == []
        httpx.get(f"{url}/v1/files", headers={"authorization": "Bearer own"})
        assert "authorization" not in files.last.headers


def test_the_rate_limit_counts_these_requests(files: Files) -> None:
    with served(openai_api_base=files.url, rate_limit_per_minute=1) as url:
        assert httpx.get(f"{url}/v1/files").headers["x-ratelimit-remaining-requests"] == "0"
        assert httpx.get(f"{url}/v1/files").status_code == 429
        assert len(files.requests) == 1


def test_private_headers_of_the_upstream_stay_there(base: str) -> None:
    answer = httpx.get(f"{base}/v1/files/f/content")
    assert answer.headers["etag"] == '"abc"'
    assert answer.headers["content-type"] == "audio/mpeg"
    assert LEAK not in str(answer.headers)
    assert not {"set-cookie", "access-control-allow-origin", "keep-alive"} & answer.headers.keys()
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_the_upstreams_own_openai_headers_win(base: str) -> None:
    answer = httpx.get(f"{base}/v1/batches")
    assert answer.headers.get_list("openai-version") == ["2030-01-01"]
    assert answer.headers["openai-processing-ms"].isdecimal()


def test_ranges_and_etags_pass(base: str) -> None:
    url = f"{base}/v1/files/f/content"
    part = httpx.get(url, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, CONTENT[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(CONTENT)}"
    fresh = httpx.get(url, headers={"if-none-match": '"abc"'})
    assert (fresh.status_code, fresh.content, fresh.headers["etag"]) == (304, b"", '"abc"')
    head = httpx.head(url)
    assert (head.headers["content-length"], head.content) == (str(len(CONTENT)), b"")


def test_a_coded_answer_keeps_its_bytes(base: str, files: Files) -> None:
    with httpx.stream("GET", f"{base}/v1/files/f/coded") as answer:
        assert b"".join(answer.iter_raw()) == CONTENT
        assert answer.headers["content-encoding"] == "gzip"
    assert files.last.headers["accept-encoding"] == "identity"


def test_an_error_of_the_upstream_keeps_its_members(base: str) -> None:
    answer = httpx.get(f"{base}/v1/files/f/wrong")
    assert answer.status_code == 404
    error = {"message": "No such file", "type": "t", "param": "file", "code": "c", "x": 1}
    assert answer.json() == {"error": error}
    assert answer.headers["retry-after"] == "7"


def test_an_answer_that_breaks_off_is_cut_here_too(base: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{base}/v1/files/f/cut")


def test_an_upstream_that_is_away_is_a_502() -> None:
    with served(openai_api_base="http://127.0.0.1:9/v1") as url:
        answer = httpx.get(f"{url}/v1/files")
        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "bad_gateway"


def test_pass_through_can_be_switched_off(files: Files) -> None:
    with served(openai_api_base=files.url, pass_through=False) as url:
        answer = httpx.get(f"{url}/v1/files")
        assert (answer.status_code, files.requests) == (404, [])
        assert "Invalid URL (GET /v1/files)" in answer.json()["error"]["message"]


def test_paths_outside_the_api_do_not_go_up(base: str, files: Files) -> None:
    assert httpx.get(f"{base}/robots.txt").status_code == 404
    assert files.requests == []


def test_the_openai_package_uploads_and_downloads(base: str, files: Files) -> None:
    with openai.OpenAI(base_url=f"{base}/v1", api_key="any", max_retries=0) as client:
        client.files.create(file=("a.jsonl", b'{"a": 1}'), purpose="batch")
        assert files.last.path == "/v1/files"
        assert b'{"a": 1}' in files.last.body
        assert files.last.headers["content-type"].startswith("multipart/form-data; boundary=")
        assert client.files.content("file-1").read() == CONTENT
        speech = client.audio.speech.create(model="tts", voice="alloy", input="Hello")
        assert json.loads(speech.read())["path"] == "/v1/audio/speech"
        assert json.loads(files.last.body)["input"] == "Hello"
    with openai.AzureOpenAI(
        azure_endpoint=base, api_key="any", api_version="2024-06-01", max_retries=0
    ) as azure:
        azure.images.generate(model="dall-e", prompt="x")
        assert files.last.path.startswith("/v1/images/generations?api-version=")
        assert json.loads(files.last.body)["model"] == "dall-e"


# Several backends.


SEVERAL = """
[[backend]]
name = "mock"
kind = "mock"
models = ["mock-*"]

[[backend]]
name = "first"
kind = "openai"
url = "{first}"
models = ["gpt-*"]

[[backend]]
name = "second"
kind = "openai"
url = "{second}"
models = ["whisper", "renamed"]
model = "upstream-name"
"""


@pytest.fixture
def several(tmp_path: Path) -> Iterator[tuple[str, Files, Files]]:
    with files_upstream() as first, files_upstream() as second:
        config = tmp_path / "backends.toml"
        config.write_text(SEVERAL.format(first=first.url, second=second.url))
        with served(config=str(config)) as url:
            yield url, first, second


def test_the_model_of_a_body_or_a_path_picks_the_backend(
    several: tuple[str, Files, Files],
) -> None:
    url, first, second = several
    httpx.get(f"{url}/v1/files")
    httpx.post(f"{url}/v1/audio/speech", json={"model": "gpt-x"})
    httpx.delete(f"{url}/v1/models/gpt-5")
    assert [seen.path for seen in first.requests] == [
        "/v1/files",
        "/v1/audio/speech",
        "/v1/models/gpt-5",
    ]
    httpx.post(f"{url}/v1/audio/speech", json={"model": "renamed", "unknown": [1]})
    assert json.loads(second.last.body) == {"model": "upstream-name", "unknown": [1]}
    httpx.post(f"{url}/openai/deployments/whisper/audio/transcriptions", content=b"x")
    assert second.last.path == "/v1/audio/transcriptions"


def test_a_model_without_the_endpoint_is_a_clear_404(several: tuple[str, Files, Files]) -> None:
    url, _, _ = several
    mock = httpx.post(f"{url}/v1/audio/speech", json={"model": "mock-1"})
    assert mock.status_code == 404
    assert "has no /audio/speech: it has chat completions" in mock.json()["error"]["message"]
    none = httpx.post(f"{url}/v1/audio/speech", json={"model": "none"})
    assert none.json()["error"]["code"] == "model_not_found"


# Size and time.


def blocks(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield BLOCK


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_a_large_upload_needs_little_memory(process: Process, files: Files, framing: str) -> None:
    count = SIZE // len(BLOCK)
    headers = {"content-type": "application/octet-stream"}
    if framing == "content-length":
        headers["content-length"] = str(SIZE)
    httpx.get(f"{process.url}/v1/files")
    before = resident(process)
    answer = httpx.post(
        f"{process.url}/v1/uploads/u/parts", content=blocks(count), headers=headers, timeout=120
    )
    assert answer.status_code == 200
    expected = sha256()
    for block in blocks(count):
        expected.update(block)
    assert (files.last.size, files.last.digest) == (SIZE, expected.hexdigest())
    assert resident(process) - before < GROWTH


def test_a_large_download_needs_little_memory(process: Process, files: Files) -> None:
    httpx.get(f"{process.url}/v1/files")
    before = resident(process)
    size = 0
    with httpx.stream("GET", f"{process.url}/v1/files/f/large", timeout=120) as answer:
        for piece in answer.iter_raw():
            size += len(piece)
    assert size == SIZE
    assert resident(process) - before < GROWTH


def test_a_slow_reader_slows_the_upstream_down(process: Process, files: Files) -> None:
    httpx.get(f"{process.url}/v1/files")
    before = resident(process)
    with httpx.stream("GET", f"{process.url}/v1/files/f/large", timeout=120) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        sent = -1
        while sent != files.sent:  # until nothing moves any more
            sent = files.sent
            time.sleep(0.3)
        assert files.sent < SIZE // 2
    assert files.left.wait(10)
    assert resident(process) - before < GROWTH


@pytest.mark.parametrize("path", ["large", "silent"])
def test_a_client_that_leaves_a_download_ends_it_at_the_upstream(
    base: str, files: Files, path: str
) -> None:
    with httpx.stream("GET", f"{base}/v1/files/f/{path}") as answer:
        next(answer.iter_raw())
    assert files.left.wait(10)


def test_a_client_that_leaves_an_upload_ends_it_at_the_upstream(base: str, files: Files) -> None:
    host, port = urlsplit(base).netloc.split(":")
    with socket.create_connection((host, int(port))) as wire:
        wire.sendall(b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900000\r\n")
        wire.sendall(b"content-type: text/plain\r\n\r\n" + BLOCK)
        while not files.requests or files.last.size < len(BLOCK):
            time.sleep(0.01)
    end = time.monotonic() + 10
    while not files.last.broken and time.monotonic() < end:
        time.sleep(0.01)
    assert files.last.broken
