"""An upstream that answers every request with an error, in the form that the path names: `/FORM/...`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

MESSAGE = "The engine has no such model."
OBJECT = {"message": MESSAGE, "type": "invalid_request_error", "param": None, "code": "no_engine"}
FORMS: dict[str, object] = {
    "envelope": {"error": OBJECT},
    "string": {"error": MESSAGE},
    "list": [{"error": {"code": 400, "message": MESSAGE, "status": "INVALID_ARGUMENT"}}],
    "detail": {"detail": MESSAGE},
    "details": {"detail": [{"loc": ["body", "model"], "msg": MESSAGE, "type": "value_error"}]},
    "message": {"object": "error", "message": MESSAGE, "type": "BadRequestError", "code": 400},
    "text": MESSAGE,
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        form = FORMS[self.path.split("/")[1]]
        is_text = isinstance(form, str)
        body = (form if is_text else json.dumps(form)).encode()
        self.send_response(400)
        self.send_header("content-type", "text/plain" if is_text else "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """No log."""


@contextmanager
def error_upstream() -> Iterator[str]:
    """Serves it; gives its base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def backends_file(url: str) -> str:
    """The TOML of one backend for each form and kind: `openai-FORM` is a relay, `url-FORM` a chat URL."""
    tables = []
    for form in FORMS:
        tables.append(
            f'[[backend]]\nname = "openai-{form}"\nkind = "openai"\nurl = "{url}/{form}/v1"\n'
            f'models = ["openai-{form}"]\n'
        )
        tables.append(
            f'[[backend]]\nname = "url-{form}"\nurl = "{url}/{form}/chat"\n'
            f'models = ["url-{form}"]\n'
        )
    return "\n".join(tables)
