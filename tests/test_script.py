"""The script `rewrap`, with a Python in its place that only writes down what it is asked: nothing is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from serving import ROOT

PYTHON = """#!/bin/sh
echo "python $*" >> asked
[ "$1" = -c ] && [ -e too-old ] && exit 1
if [ "$*" = "-m venv --clear .venv" ]; then rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; fi
"""
HALF = """#!/bin/sh
[ "$1" != -c ] && exit
echo "No module named pip" >&2
exit 1
"""


def run(
    folder: Path, *arguments: str, requirements: str = ""
) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """What Python was asked for, and how it ended."""
    for name in ("rewrap", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    if requirements:
        (folder / "requirements.txt").write_text(requirements)
    (folder / "tests").mkdir(exist_ok=True)
    shutil.copy(ROOT / "tests/requirements.txt", folder / "tests")
    python, asked = folder / "python", folder / "asked"
    python.write_text(PYTHON)
    python.chmod(0o755)
    asked.write_text("")
    env = os.environ | {"PYTHON": str(python)}
    ended = subprocess.run(
        [folder / "rewrap", *arguments], env=env, capture_output=True, text=True, timeout=20
    )
    lines = [line.removeprefix("python ") for line in asked.read_text().splitlines()]
    return [line for line in lines if not line.startswith("-c ")], ended


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


def test_a_python_that_is_too_old_is_named_and_another_makes_it_anew(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    for stamp in (tmp_path / ".venv").glob("installed-*"):
        stamp.unlink()
    (tmp_path / "too-old").touch()
    asked, ended = run(tmp_path)
    assert (asked, ended.returncode) == ([], 1)
    assert "3.11" in ended.stderr.splitlines()[-1]
    (tmp_path / "too-old").unlink()
    assert run(tmp_path)[0][0] == "-m venv --clear .venv"


def test_a_list_that_comes_back_is_installed_again(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, "test")
    assert run(tmp_path)[0] == ["main.py"]
    first = ROOT / "requirements.txt"
    for text, installs in (
        ("starlette==1\n", True),
        ("starlette==1\n", False),
        (first.read_text(), True),
    ):
        asked = run(tmp_path, requirements=text)[0]
        assert any("pip install" in line for line in asked) == installs


def test_it_may_be_called_by_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    run(tmp_path)
    (folder / "one").symlink_to("../rewrap")
    (folder / "two").symlink_to(folder / "one")
    (tmp_path / "asked").write_text("")
    subprocess.run([folder / "two", "x"], cwd=folder, check=True, timeout=20)
    assert (tmp_path / "asked").read_text() == "python main.py x\n"
    assert not (folder / ".venv").exists()


def test_where_python_has_no_venv_it_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ]\n')
    python.chmod(0o755)
    env = os.environ | {"PYTHON": str(python)}
    shutil.copy(ROOT / "rewrap", tmp_path)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    ended = subprocess.run(
        [tmp_path / "rewrap"], env=env, capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 1
    assert "python3-venv" in ended.stderr.splitlines()[-1]
