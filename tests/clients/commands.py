"""The frame of a client that is a command: it runs in an empty folder, with nothing of the user's own configuration."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from features import same

PROOF = "Please write a proof."


class Folder:
    """An empty home with a folder of work in it, removed at the end."""

    def __init__(self, files: Mapping[str, object]) -> None:
        """`files` by path below the home: text, or a document that is written as JSON."""
        # Codex does not accept a home below the folder of temporary files.
        self.home = Path(tempfile.mkdtemp(prefix="rewrap-", dir=os.environ["CLIENT_HOMES"]))
        self.work = self.home / "work"
        self.work.mkdir()
        for name, content in files.items():
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))

    def __enter__(self) -> "Folder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.home, ignore_errors=True)

    def run(
        self, command: list[str], environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.work,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home)} | dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def has_proof(self) -> None:
        """The command of the tool call has run."""
        proof = self.work / "proof.txt"
        same(proof.read_text().strip() if proof.exists() else "no proof.txt", "done")


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a command."""
    if done.returncode:
        raise AssertionError(f"exit code {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def contains(output: str, text: str) -> None:
    if text not in output:
        raise AssertionError(f"{text!r} is not in: {output[-2000:]}")
