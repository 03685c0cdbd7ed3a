"""The script `rewrap`, with a Python in its place that only writes down what it is asked: nothing is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from serving import ROOT

PYTHON = """#!/bin/sh
echo "python $*" >> asked
if [ "$*" = "-m venv --clear .venv" ]; then rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; fi
"""
HALF = """#!/bin/sh
[ "$2" != pip ] && exit
echo "No module named pip" >&2
exit 1
"""


def run(folder: Path, *arguments: str) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """What Python was asked for, and how it ended."""
    for name in ("rewrap", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "tests").mkdir(exist_ok=True)
    shutil.copy(ROOT / "tests/requirements.txt", folder / "tests")
    python, asked = folder / "python", folder / "asked"
    python.write_text(PYTHON)
    python.chmod(0o755)
    asked.write_text("")
    env = os.environ | {"PYTHON": str(python)}
    ended = subprocess.run([folder / "rewrap", *arguments], env=env, capture_output=True, text=True, timeout=20)
    return [line.removeprefix("python ") for line in asked.read_text().splitlines()], ended


def test_it_sets_up_once_and_then_serves(tmp_path: Path) -> None:
    asked, ended = run(tmp_path, "key", "ann")
    assert (asked[0], asked[-1]) == ("-m venv --clear .venv", "main.py key ann")
    assert any(line.startswith("-m pip install") for line in asked)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert run(tmp_path)[0] == ["main.py"]
    asked, _ = run(tmp_path, "test", "-q")
    assert not any("venv" in line for line in asked)
    assert asked[-1] == "-m pytest -q"


@pytest.mark.parametrize("kind", ["no pip", "no python"])
def test_a_venv_that_was_left_half_made_is_made_anew(tmp_path: Path, kind: str) -> None:
    python = tmp_path / ".venv/bin/python"
    if kind == "no pip":
        python.parent.mkdir(parents=True)
        python.write_text(HALF)
        python.chmod(0o755)
    else:  # though all had been installed
        run(tmp_path)
        python.unlink()
        python.symlink_to(tmp_path / "gone")
    asked, ended = run(tmp_path)
    assert (asked[0], asked[-1], ended.returncode) == ("-m venv --clear .venv", "main.py", 0)
    (line,) = ended.stderr.splitlines()
    assert line == "rewrap: .venv is not whole: making it anew"


def test_where_python_has_no_venv_it_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    env = os.environ | {"PYTHON": "false"}
    shutil.copy(ROOT / "rewrap", tmp_path)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    ended = subprocess.run([tmp_path / "rewrap"], env=env, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 1
    assert "python3-venv" in ended.stderr.splitlines()[-1]
