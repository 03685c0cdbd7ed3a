"""Every command and every snippet of the documents, run as it stands.

The blocks of a document run in their order, in one folder. Three kinds of addresses are replaced: those of rewrap, which
gets a free port, and those of chat URLs and of upstreams, which local servers stand for. Clients that are large to install
(LangChain, the AI SDK, Codex) are tested where they are installed, or can be.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import httpx
import pytest
import yaml
from serving import ROOT, started
from snippets import Block, blocks_of, upstream, write_commands

from rewrap.config.backends_file import read_backends_file
from rewrap.config.settings import Settings, known_variables

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_BLOCKS = [document for document in DOCUMENTS if blocks_of(document)]
OWN = "http://127.0.0.1:8000"
KEYS = {"CLOUD_API_KEY": "sk-cloud", "DIFY_KEY": "sk-dify"}
# Programs of blocks that are not run, since other tests do what they do, or since they need a network.
NOT_RUN = {"./run": "test_script.py", "pip": "test_install.py", "docker": "no daemon"}
CLIENTS = ("js", "js recipe", "sh node", "toml codex", "yaml continue", "python needs")
PACKAGES = ["ai@6", "@ai-sdk/openai@3"]


def is_client(block: Block) -> bool:
    return block.kind in CLIENTS or "needs" in block.values


class Reader:
    """Follows a document: writes its files, starts its servers, runs its commands and snippets."""

    def __init__(self, folder: Path, chat_url: str, api_base: str) -> None:
        self.folder = folder
        self.addresses = {
            "https://chat.example.com": chat_url,
            "http://localhost:11434": chat_url,
            "https://api.example.com/v1": f"{api_base}/v1",
        }
        self.servers = ExitStack()
        self.server = ""  # the base URL of the newest server
        write_commands(folder / "bin")
        (folder / "work").mkdir()
        (folder / "work" / "examples").symlink_to(ROOT / "examples")

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        return kept | {"PATH": path, "PORT": "0", "PYTHONPATH": str(ROOT)}

    def replaced(self, text: str) -> str:
        for address, local in self.addresses.items():
            text = text.replace(address, local)
        if OWN in text:
            if not self.server:
                self.start(Block("", 0, "sh", ("serve",), "rewrap\n"))
            text = text.replace(OWN, self.server)
        return text

    def run(self, block: Block) -> None:
        match block.kind:
            case "toml" | "python" if "file" in block.values:
                file = self.folder / "work" / block.values["file"]
                file.parent.mkdir(exist_ok=True)
                file.write_text(self.replaced(block.text))
            case "sh":
                self.command(["sh", "-e", "-c", self.replaced(block.text)])
            case "python":
                self.command([sys.executable, "-c", self.replaced(block.text)])
            case "sh serve" | "sh serve-uvicorn":
                self.start(block)
            case "sh external":
                programs = re.findall(r"(?:^|&& )([\w./]+)", block.text, re.MULTILINE)
                assert set(programs) <= set(NOT_RUN)
            case "toml backends":
                file = self.folder / "backends.toml"
                file.write_text(block.text)
                assert read_backends_file(str(file), KEYS)
            case "env":
                file = self.folder / "env"
                file.write_text(block.text)
                assert Settings.load(str(file)) != Settings()
            case "json":
                json.loads(block.text)
            case "":
                self.line_of_the_start(block)
            case _:
                pytest.fail(f"{block}: no test runs a block of the kind {block.kind!r}")

    def command(self, command: list[str]) -> None:
        ended = subprocess.run(
            command,
            cwd=self.folder / "work",
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr + ended.stdout

    def start(self, block: Block) -> None:
        """Start a server, and chat with it."""
        self.servers.close()
        text = self.replaced(block.text)
        child = subprocess.Popen(
            ["sh", "-c", f"exec env {text.strip()}"],
            cwd=self.folder / "work",
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        log: list[str] = []
        reader = Thread(target=collect, args=[child, log], daemon=True)
        reader.start()
        self.servers.callback(reader.join, 5)
        self.servers.callback(stop, child)
        end = time.monotonic() + 20
        while time.monotonic() < end and child.poll() is None:
            found = re.search(r" on (http://127\.0\.0\.1:\d+)", "".join(log))
            if found:
                self.server = found[1]
                break
            time.sleep(0.01)
        else:
            pytest.fail(f"{block}: the server did not start: {''.join(log)}")
        key = re.search(r"API_KEYS=([^,\s]+)", text)
        self.chat({"authorization": f"Bearer {key[1]}"} if key else {})
        if key:  # the snippets that follow use a key of their own
            self.server = ""

    def chat(self, headers: dict[str, str]) -> None:
        """A model of the server answers, whole and as a stream."""
        with httpx.Client(base_url=self.server, trust_env=False, headers=headers) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}]}
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"]
            stream = client.post("/v1/chat/completions", json=body | {"stream": True})
            assert stream.text.endswith("data: [DONE]\n\n")

    def line_of_the_start(self, block: Block) -> None:
        with started(LOG_LEVEL="info") as process:
            line = process.log.splitlines()[0].replace(process.url, OWN)
        assert line.endswith(block.text.strip())


def collect(child: "subprocess.Popen[str]", log: list[str]) -> None:
    assert child.stderr is not None
    with child.stderr as lines:
        log.extend(lines)


def stop(child: "subprocess.Popen[str]") -> None:
    child.terminate()
    child.wait(20)


@pytest.fixture(scope="module")
def chat_url() -> Iterator[str]:
    with upstream() as url:
        yield url


@pytest.fixture(scope="module")
def mock() -> Iterator[str]:
    with started() as process:
        yield process.url


@contextmanager
def reading(folder: Path, chat_url: str, mock: str) -> Iterator[Reader]:
    reader = Reader(folder, chat_url, mock)
    with reader.servers:
        yield reader


@pytest.mark.parametrize("document", WITH_BLOCKS, ids=lambda path: path.name)
def test_every_block_of_a_document_runs_as_it_stands(
    document: Path, tmp_path: Path, chat_url: str, mock: str
) -> None:
    blocks = [block for block in blocks_of(document) if not is_client(block)]
    if document.name == "mock.md":
        blocks = [block for block in blocks if block.language != "toml"]  # test_mock_docs.py
    assert blocks
    with reading(tmp_path, chat_url, mock) as reader:
        for block in blocks:
            try:
                reader.run(block)
            except AssertionError as error:
                raise AssertionError(f"{block}: {error}") from None


def blocks_for(kind: str) -> list[Block]:
    return [
        block
        for document in DOCUMENTS
        for block in blocks_of(document)
        if block.kind == kind or kind in block.values
    ]


def only(blocks: list[Block]) -> Block:
    (block,) = blocks
    return block


# Clients.


@pytest.mark.parametrize("block", blocks_for("needs"), ids=str)
def test_a_snippet_for_a_python_client_runs(block: Block, mock: str) -> None:
    if not find_spec(block.values["needs"]):
        pytest.skip(f"{block}: {block.values['needs']} is not installed")
    code = block.text.replace(OWN, mock)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "This is a mock reply to: Hello!\n"), (
        ended.stderr
    )


@pytest.fixture(scope="module")
def node_modules(pytestconfig: pytest.Config) -> Path:
    """A folder with the AI SDK."""
    if not shutil.which("npm"):
        pytest.skip("no npm for the AI SDK: apt-get install npm")
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("ai-sdk")
    if not (folder / "node_modules" / "ai").exists():
        command = ["npm", "install", "--no-audit", "--no-fund", *PACKAGES]
        ended = subprocess.run(command, cwd=folder, capture_output=True, timeout=180)
        if ended.returncode:
            pytest.skip("the AI SDK cannot be installed from npm")
    return folder


def test_the_snippet_for_the_ai_sdk_runs(node_modules: Path, mock: str) -> None:
    block = only(blocks_for("js"))
    script = node_modules / "snippet.mjs"
    script.write_text(block.text.replace(OWN, mock))
    ended = subprocess.run(["node", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "This is a mock reply to: Hello!\n"), (
        ended.stderr
    )


def test_the_configuration_of_codex_is_read_by_codex(tmp_path: Path, mock: str) -> None:
    block = only(blocks_for("toml codex"))
    assert tomllib.loads(block.text)["model_providers"]["rewrap"]["base_url"] == f"{OWN}/v1"
    codex = shutil.which("codex")
    if not codex:
        pytest.skip("no Codex: npm install --global @openai/codex")
    (tmp_path / "config.toml").write_text(block.text.replace(OWN, mock))
    command = [codex, "exec", "--skip-git-repo-check", "Hello!"]
    env = os.environ | {"CODEX_HOME": str(tmp_path)}
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "This is a mock reply to: Hello!" in ended.stdout


def test_the_configuration_of_continue_names_the_base_url() -> None:
    (model,) = yaml.safe_load(only(blocks_for("yaml continue")).text)["models"]
    assert (model["provider"], model["apiBase"]) == ("openai", f"{OWN}/v1")


# The text.


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_of_a_document_leads_to_a_file(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    for target in [inline or image for inline, image in targets]:
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        file = document.parent / path if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = [
                re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
            ]
            assert anchor in slugs, target


def test_the_readme_has_at_most_250_lines_before_its_tables() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.partition("## Routes")[0].count("\n") <= 250


def test_the_messages_of_the_troubleshooting_are_those_of_the_program() -> None:
    files = [ROOT / "main.py", ROOT / "backends.py", *(ROOT / "rewrap").rglob("*.py")]
    source = "".join(file.read_text() for file in files)
    table = (ROOT / "README.md").read_text().partition("## Troubleshooting")[2].partition("## W")[0]
    rows = [row for row in table.splitlines() if row.startswith("|")]
    messages = [text for row in rows[2:] for text in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(messages) > 6
    for message in messages:
        parts = re.split(r"\.\.\.|\b[XY]\b|127[\d.]+|8000|Address.*", message)
        missing = [part for part in map(str.strip, parts) if part not in source]
        assert missing == [], message


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_settings_that_exist(document: Path) -> None:
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)(?:=[^`]*)?`", document.read_text()))
    assert named - set(known_variables()) <= {"API_KEY", "CHAT_ULR"}, "two examples of mistakes"
