"""Chromium for tests of pages, and the npm packages that the pages load, from a local mirror."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def lacking(reason: str) -> NoReturn:
    """Skip, or fail on a CI: there, a browser and a registry belong to the machine."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def npm_package(folder: Path, name: str) -> Path:
    """The folder of an npm package such as `marked@18.2.1`. It is fetched into `folder` once."""
    package = folder / name
    if package.exists():
        return package
    if not shutil.which("npm"):
        lacking(f"no npm to fetch {name} for the tests of the pages")
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), name]
    subprocess.run(command, check=False, timeout=120, capture_output=True)
    archive = folder / f"{name.replace('@', '-')}.tgz"
    if not archive.exists():
        lacking(f"npm pack {name} failed")
    with tarfile.open(archive) as files:
        files.extractall(folder / f"{name}.part", filter="data")
    # One step at the end: a package that is there is there as a whole.
    (folder / f"{name}.part" / "package").rename(package)
    return package


@contextmanager
def mirror(files: Mapping[str, bytes]) -> Iterator[str]:
    """A server of these files by their paths on a CDN. Gives its base URL."""

    class Mirror(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path.removeprefix("/npm/"))
            self.send_response(404 if body is None else 200)
            self.send_header("access-control-allow-origin", "*")
            self.send_header("content-type", "text/javascript")
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args: object) -> None:
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


@contextmanager
def launched() -> Iterator["Browser"]:
    """Chromium, without a window."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        lacking("no Chromium for the tests of the pages: apt-get install chromium")
    if not find_spec("playwright"):
        lacking("no playwright for the tests of the pages: pip install -r tests/requirements.txt")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


def screenshot(take: Callable[..., bytes], name: str) -> None:
    """A picture for people, where SCREENSHOTS names a folder. `take` is a page's `screenshot`."""
    if folder := os.environ.get("SCREENSHOTS"):
        take(path=Path(folder) / f"{name}.png")
