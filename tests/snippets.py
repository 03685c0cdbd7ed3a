"""The fenced blocks of the documents, and the upstreams that stand in for the addresses in them."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from serving import ROOT

FENCE = re.compile(r"^```(\w*)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. Words after the language say how it is tested: `sh serve`, `toml file=rules.toml`."""

    document: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str
    values: dict[str, str] = field(default_factory=dict)  # of `name=value`

    @property
    def kind(self) -> str:
        return " ".join([self.language, *self.words])

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    found: list[Block] = []
    for match in FENCE.finditer(text):
        words = (match[2] or "").split()
        values = dict(word.split("=", 1) for word in words if "=" in word)
        plain = tuple(word for word in words if "=" not in word)
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(path.name, line, match[1], plain, match[3], values))
    return found


def write_commands(folder: Path) -> None:
    """The commands of the documents, as an installation of this checkout would have them."""
    plugin = "-p no:rewrap -p rewrap.pytest_plugin"
    commands = {
        "rewrap": f"{ROOT}/main.py",
        "python": "",
        "pytest": f"-m pytest {plugin} -p no:cacheprovider",
    }
    folder.mkdir()
    for name, command in commands.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        script.chmod(0o755)


class Upstream(BaseHTTPRequestHandler):
    """The chat URLs of the documents: /ask, /odd, /events, Ollama's /api/chat."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/ask":
            self.answer(200, {"reply": "OK."})
        elif self.path == "/odd" and "frage" in body:
            self.answer(200, {"daten": {"antwort": "OK.", "titel": "Hallo"}})
        elif self.path == "/odd":
            self.answer(400, {"fehler": "field 'frage' is required"})
        elif self.path == "/events":
            self.send(
                200, "text/event-stream", b'data: {"piece": "OK."}\n\ndata: {"end": true}\n\n'
            )
        elif self.path == "/api/chat":
            message = {"role": "assistant", "content": "OK."}
            self.answer(200, {"message": message, "done": True, "done_reason": "stop"})
        else:
            self.answer(404, {"error": "not found"})

    def answer(self, status: int, value: object) -> None:
        self.send(status, "application/json", json.dumps(value).encode() + b"\n")

    def send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def upstream() -> Iterator[str]:
    """The base URL of a server for the chat URLs of the documents."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
