"""aider: one message, with the whole file as the format of edits."""

import subprocess
import sys
from pathlib import Path

from commands import PROOF, Folder, contains, succeeded
from features import BASE, FAIL, GREETING, HELLO, KEY, MODEL, REFUSAL, package_version, run

AIDER = str(Path(sys.executable).parent / "aider")
# A list of prices in its cache, and litellm's own: else they are fetched from the network.
FILES = {".aider/caches/model_prices_and_context_window.json": {MODEL: {}}}
ENVIRONMENT = {
    "OPENAI_API_BASE": BASE,
    "OPENAI_API_KEY": KEY,
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
FLAGS = [
    "--yes-always",
    "--no-git",
    "--no-show-model-warnings",
    "--no-check-update",
    "--no-show-release-notes",
    "--analytics-disable",
    "--no-pretty",
    "--map-tokens=0",
    "--edit-format=whole",
    f"--model=openai/{MODEL}",
]


def aider(where: Folder, prompt: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [AIDER, *FLAGS, *arguments, "--message", prompt, "proof.txt"]
    return where.run(command, ENVIRONMENT)


def text() -> None:
    with Folder(FILES) as where:
        contains(succeeded(aider(where, HELLO, "--no-stream")), GREETING)


def stream() -> None:
    """The reply edits a file."""
    with Folder(FILES) as where:
        succeeded(aider(where, PROOF))
        where.has_proof()


def error() -> None:
    with Folder(FILES) as where:
        done = aider(where, FAIL)
        contains(done.stdout + done.stderr, REFUSAL)


run("aider", package_version("aider-chat"), [text, stream, error])
