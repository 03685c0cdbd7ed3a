"""Real clients against real servers: `python tests/clients/run.py [PROGRAM...]` runs all programs, or those that are named.

Each program runs against three servers: the mock, a relay of it, and a chat URL (the mock's, without
a shape); those of error forms against one in front of failing upstreams. The exit status is 0 if no feature failed. `--write` writes the table of docs/clients.md.
`SKIP_CLIENTS=true` skips all.

It needs python3, node 20 or later, and npm. It installs the pinned versions once, into the folder that
client_environments.py names. Without the npm registry, the clients for Node are left out.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).absolute().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE.parent)]

from client_environments import CACHE, Unavailable, environment  # noqa: E402
from error_upstream import FORMS, MESSAGE, backends_file, error_upstream  # noqa: E402
from serving import started  # noqa: E402

DOCUMENT = ROOT / "docs" / "clients.md"
MARKS = ("<!-- clients -->", "<!-- /clients -->")
COLUMNS = ("text", "stream", "tools", "structured", "error", "responses")
PROGRAM_SECONDS = 300


@dataclass(frozen=True)
class Program:
    """A client program, its environment, and the only server that it runs at, if it is one."""

    file: str
    environment: str
    server: str = ""


PROGRAMS = [
    Program("openai_sync.py", "main"),
    Program("openai_async.py", "main"),
    Program("node/openai.mjs", "node"),
    Program("node/ai_sdk.mjs", "node"),
    Program("langchain_openai_client.py", "main"),
    Program("node/langchain.mjs", "node"),
    Program("litellm_client.py", "main"),
    Program("llama_index_client.py", "older"),
    Program("pydantic_ai_client.py", "main"),
    Program("instructor_client.py", "older"),
    Program("agents_sdk.py", "main"),
    Program("llm_client.py", "main"),
    Program("codex.py", "codex"),
    Program("opencode.py", "opencode"),
    Program("aider.py", "aider"),
    Program("error_forms.py", "main", "errors"),
    Program("node/error_forms.mjs", "node", "errors"),
]


@dataclass(frozen=True)
class Outcome:
    """One feature of one client at one server."""

    client: str
    version: str
    feature: str
    failure: str
    server: str


@contextmanager
def servers() -> Iterator[dict[str, str]]:
    """The base URLs of the servers, without /v1. `errors` is in front of failing upstreams."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        config = Path(folder) / "backends.toml"
        config.write_text(backends_file(stack.enter_context(error_upstream())))
        mock = stack.enter_context(started(MOCK_RULES=str(HERE / "rules.toml"))).url
        in_memory = {"STORE_URL": "sqlite://"}
        relay = started(OPENAI_API_BASE=f"{mock}/v1", **in_memory)
        chat_url = started(CHAT_URL=f"{mock}/v1/chat/completions", **in_memory)
        yield {
            "mock": mock,
            "relay": stack.enter_context(relay).url,
            "chat URL": stack.enter_context(chat_url).url,
            "errors": stack.enter_context(started(CONFIG=str(config), **in_memory)).url,
        }


def run_program(program: Program, folder: Path, server: str, url: str) -> list[Outcome]:
    """The outcomes of a program. One that ends early has a failure."""
    modules = folder / "node_modules"
    homes = CACHE / "homes"
    homes.mkdir(parents=True, exist_ok=True)
    known = {"PATH", "HOME", "LANG"}
    variables = {name: value for name, value in os.environ.items() if name in known}
    variables |= {"BASE_URL": url, "CLIENT_MODULES": str(modules), "CLIENT_HOMES": str(homes)}
    models = [f"{kind}-{form}" for form in FORMS for kind in ("openai", "url")]
    variables |= {"ERRORS_MODELS": ",".join(models), "ERRORS_MESSAGE": MESSAGE}
    try:
        done = subprocess.run(
            command_of(program, folder),
            env=variables,
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
        )
    except subprocess.TimeoutExpired:
        failure = f"took more than {PROGRAM_SECONDS} s"
        return [Outcome(program.file, "", "program", failure, server)]
    found = [outcome(line, server) for line in done.stdout.splitlines() if line[:1] == "{"]
    if done.returncode or not found:
        failure = done.stderr[-2000:] or "no output"
        found.append(Outcome(program.file, "", "program", failure, server))
    return found


def outcome(line: str, server: str) -> Outcome:
    """Of a line of JSON that a program prints."""
    row = json.loads(line)
    return Outcome(row["client"], row["version"], row["feature"], row["failure"], server)


def command_of(program: Program, folder: Path) -> list[str]:
    source = HERE / program.file
    if source.suffix == ".mjs":
        return ["node", str(linked(source, folder))]
    python = folder / "bin" / "python"
    return [str(python) if python.exists() else sys.executable, str(source)]


def linked(source: Path, folder: Path) -> Path:
    """A program of Node beside its packages: Node looks them up from the place of the file."""
    for path in source.parent.glob("*.mjs"):
        copy = folder / path.name
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            copy.write_bytes(path.read_bytes())
    return folder / source.name


def run_all(programs: list[Program]) -> tuple[list[Outcome], list[str]]:
    """The outcomes at all servers, and a line for each program whose packages were not to be had."""
    folders: dict[str, Path | Unavailable] = {}
    for name in dict.fromkeys(program.environment for program in programs):
        folders[name] = prepared(name)
    skipped = [
        f"{program.file}: {folder}"
        for program in programs
        if isinstance(folder := folders[program.environment], Unavailable)
    ]
    with servers() as urls, ThreadPoolExecutor(os.cpu_count()) as pool:
        tasks = [
            pool.submit(run_program, program, folder, server, url)
            for program in programs
            if isinstance(folder := folders[program.environment], Path)
            for server, url in urls.items()
            if program.server in (server, "") and (server != "errors" or program.server)
        ]
        outcomes = [row for task in tasks for row in task.result()]
    return outcomes, skipped


def prepared(name: str) -> Path | Unavailable:
    start = time.monotonic()
    try:
        folder = environment(name)
    except Unavailable as error:
        return error
    print(f"environment {name}: {time.monotonic() - start:.0f} s", flush=True)
    return folder


def table(outcomes: list[Outcome]) -> str:
    """A row for each client: ✓ where a feature works at every server, ✗ where it fails at one."""
    lines = [f"| client | version | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for client in dict.fromkeys(row.client for row in outcomes):
        rows = [row for row in outcomes if row.client == client]
        cells = [cell([row for row in rows if row.feature == column]) for column in COLUMNS]
        lines.append(f"| {client} | {rows[0].version} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(rows: list[Outcome]) -> str:
    if not rows:
        return ""
    return "✗" if any(row.failure for row in rows) else "✓"


def write_document(outcomes: list[Outcome]) -> None:
    before, start, rest = DOCUMENT.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    DOCUMENT.write_text(f"{before}{start}\n{table(outcomes)}\n{end}{after}")


def main(arguments: list[str]) -> int:
    """The exit status. A missing npm registry skips its clients; a missing PyPI is a failure."""
    if os.environ.get("SKIP_CLIENTS", "").lower() in ("1", "true", "yes"):
        print("SKIP_CLIENTS is set: no client was run")
        return 0
    names = [argument for argument in arguments if not argument.startswith("--")]
    programs = [program for program in PROGRAMS if not names or program.file in names]
    outcomes, skipped = run_all(programs)
    print(table(outcomes))
    failures = [row for row in outcomes if row.failure]
    for row in failures:
        print(f"\n{row.client}, {row.feature}, {row.server}:\n{row.failure}")
    for line in skipped:
        print(f"not run: {line}")
    if "--write" in arguments and not failures and not skipped:
        write_document(outcomes)
    passed = len(outcomes) - len(failures)
    print(f"{passed} passed, {len(failures)} failed, {len(skipped)} skipped")
    python = [line for line in skipped if not is_of_npm(line)]
    return 1 if failures or python or not outcomes else 0


def is_of_npm(line: str) -> bool:
    file = line.partition(":")[0]
    return file.startswith("node/") or file in ("codex.py", "opencode.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
