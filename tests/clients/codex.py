"""Codex CLI: `codex exec`, which speaks the Responses API only."""

import json
import os
import subprocess

from commands import PROOF, Folder, contains, succeeded
from features import ADA, BASE, FAIL, GREETING, HELLO, KEY, MODEL, REFUSAL, run, same

MODULES = os.environ["CLIENT_MODULES"]
CODEX = f"{MODULES}/.bin/codex"
CONFIG = f"""
model = "{MODEL}"
model_provider = "rewrap"

[model_providers.rewrap]
name = "rewrap"
base_url = "{BASE}"
wire_api = "responses"
env_key = "REWRAP_KEY"
request_max_retries = 0
stream_max_retries = 0
"""
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FLAGS = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--json"]


def folder() -> Folder:
    return Folder({"codex/config.toml": CONFIG, "schema.json": PERSON})


def codex(where: Folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"CODEX_HOME": f"{where.home}/codex", "REWRAP_KEY": KEY}
    return where.run([CODEX, "exec", *FLAGS, *arguments], environment)


def messages(output: str) -> list[str]:
    """The messages of the agent among the events, a line of JSON each."""
    items = [json.loads(line).get("item", {}) for line in output.splitlines() if line[:1] == "{"]
    return [item["text"] for item in items if item.get("type") == "agent_message"]


def responses() -> None:
    with folder() as where:
        same(messages(succeeded(codex(where, HELLO))), [GREETING])


def tools() -> None:
    """A task with a shell command: the call, its run, its result, and the last words."""
    with folder() as where:
        same(messages(succeeded(codex(where, PROOF)))[-1], "The proof is written.")
        where.has_proof()


def structured() -> None:
    with folder() as where:
        output = succeeded(codex(where, "--output-schema", f"{where.home}/schema.json", ADA))
        same(json.loads(messages(output)[-1]), {"name": "Ada", "age": 36})


def error() -> None:
    with folder() as where:
        contains(codex(where, FAIL).stdout, REFUSAL)


PACKAGE = f"{MODULES}/@openai/codex/package.json"
with open(PACKAGE, encoding="utf-8") as file:
    VERSION = f"@openai/codex {json.load(file)['version']}"
run("Codex CLI", VERSION, [responses, tools, structured, error])
