"""Environments of their own for tests with packages of other projects, made once and kept in .venv/.

Without the package index, tests that need one are skipped; on a CI they fail.
"""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import pytest
from serving import ROOT

CACHE = ROOT / ".venv" / "frameworks"
INSTALL_SECONDS = 900


def lacking(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def python_environment(name: str, requirements: Path) -> Path:
    """The Python of a virtual environment that has these requirements, all of them pinned."""
    folder = CACHE / name
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp = stamp_of(folder, requirements)
    if not stamp.exists():
        install([sys.executable, "-m", "venv", "--clear", str(folder)], ROOT)
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
        install([*pip, "--no-deps", "--requirement", str(requirements)], ROOT)
        stamp.touch()
    return python


def node_environment(name: str, package: Path) -> Path:
    """A folder with the packages of a package-lock.json."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        lacking("node and npm are not there")
    folder = CACHE / name
    lock = package / "package-lock.json"
    stamp = stamp_of(folder, lock)
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in (lock, package / "package.json"):
            shutil.copy(file, folder)
        install(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], folder)
        stamp.touch()
    return folder


def stamp_of(folder: Path, packages: Path) -> Path:
    """The file that is there once these packages are installed with this Python."""
    digest = sha256(packages.read_bytes() + sys.version.encode()).hexdigest()[:16]
    return folder / f"installed-{digest}"


def install(command: list[str], folder: Path) -> None:
    ended = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS
    )
    if ended.returncode != 0:
        lacking(f"{command[:4]} failed: {ended.stderr[-500:]}")


def clean_environment(**variables: str) -> dict[str, str]:
    """The environment without settings that clients of OpenAI's API read."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("OPENAI_")}
    return kept | variables
