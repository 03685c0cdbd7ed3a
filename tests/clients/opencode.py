"""opencode: `opencode run`, with a provider of its own configuration."""

import json
import os
import subprocess

from commands import PROOF, Folder, contains, succeeded
from features import BASE, FAIL, GREETING, HELLO, KEY, MODEL, REFUSAL, run

MODULES = os.environ["CLIENT_MODULES"]
PACKAGE = f"{MODULES}/opencode-linux-x64"
PROVIDER = {
    "npm": "@ai-sdk/openai-compatible",
    "name": "rewrap",
    "options": {"baseURL": BASE, "apiKey": KEY},
    "models": {MODEL: {"name": MODEL}},
}
CONFIG = {
    "autoupdate": False,
    "share": "disabled",
    "permission": {"bash": "allow"},
    "model": f"rewrap/{MODEL}",
    "small_model": f"rewrap/{MODEL}",
    "provider": {"rewrap": PROVIDER},
}
OFFLINE = {
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
}


def folder() -> Folder:
    return Folder({"work/opencode.json": CONFIG})


def opencode(where: Folder, prompt: str) -> subprocess.CompletedProcess[str]:
    return where.run([f"{PACKAGE}/bin/opencode", "run", prompt], OFFLINE)


def stream() -> None:
    with folder() as where:
        contains(succeeded(opencode(where, HELLO)), GREETING)


def tools() -> None:
    with folder() as where:
        contains(succeeded(opencode(where, PROOF)), "The proof is written.")
        where.has_proof()


def error() -> None:
    with folder() as where:
        done = opencode(where, FAIL)
        contains(done.stdout + done.stderr, REFUSAL)


with open(f"{PACKAGE}/package.json", encoding="utf-8") as file:
    VERSION = f"opencode {json.load(file)['version']}"
run("opencode", VERSION, [stream, tools, error])
