"""The script `run`, with a stand-in for Python that records its arguments: nothing is installed."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from serving import ROOT

PYTHON = """#!/bin/sh
echo "$PWD: $*" >> {folder}/calls
[ "$1" = -c ] && [ -e {folder}/too-old ] && exit 1
case "$*" in *"-m pip install"*) [ ! -e {folder}/slow ] || sleep 1.5 ;; esac
case "$*" in "-m venv --clear "*) rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;; esac
"""
HALF = """#!/bin/sh
[ "$1" != -c ] && exit
echo "No module named pip" >&2
exit 1
"""


@dataclass
class Checkout:
    """A folder with the script and the lists of packages. Python is the stand-in."""

    folder: Path

    def run(self, *arguments: str, script: str = "run", cwd: Path | None = None) -> "Ended":
        """Run the script. Its calls of Python are without the folder's name, and without checks (`-c`)."""
        calls = self.folder / "calls"
        calls.write_text("")
        ended = subprocess.run(
            [self.folder / script, *arguments],
            env=os.environ | {"PYTHON": str(self.folder / "python")},
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=20,
        )
        lines = [line.partition(": ") for line in calls.read_text().splitlines()]
        found = [call.replace(f"{self.folder}/", "") for _, _, call in lines]
        folder = lines[-1][0] if lines else ""
        return Ended(
            [call for call in found if not call.startswith("-c ")],
            folder,
            ended.returncode,
            ended.stderr,
        )


@dataclass
class Ended:
    calls: list[str]  # the arguments of Python
    folder: str  # the working directory of the last call
    status: int
    stderr: str

    @property
    def installs(self) -> bool:
        return any("pip install" in call for call in self.calls)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder = tmp_path / "checkout"
    (folder / "tests").mkdir(parents=True)
    for name in ("run", "requirements.txt", "tests/requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    python = folder / "python"
    python.write_text(PYTHON.format(folder=folder))
    python.chmod(0o755)
    return Checkout(folder)


def test_the_first_run_sets_up_and_later_ones_only_start(checkout: Checkout) -> None:
    first = checkout.run("key", "ann")
    assert (first.calls[0], first.calls[-1]) == ("-m venv --clear .venv", "main.py key ann")
    assert first.installs
    assert (first.status, first.stderr) == (0, "")
    assert checkout.run().calls == ["main.py"]
    tests = checkout.run("test", "-q")
    assert not any("venv" in call for call in tests.calls)
    assert tests.calls[-1] == "-m pytest -q"


@pytest.mark.parametrize("kind", ["no pip", "no python"])
def test_a_half_made_venv_is_made_again(checkout: Checkout, kind: str) -> None:
    python = checkout.folder / ".venv/bin/python"
    if kind == "no pip":
        python.parent.mkdir(parents=True)
        python.write_text(HALF)
        python.chmod(0o755)
    else:  # everything was installed, and then its Python was removed
        checkout.run()
        python.unlink()
        python.symlink_to(checkout.folder / "gone")
    ended = checkout.run()
    assert (ended.calls[0], ended.calls[-1]) == ("-m venv --clear .venv", "main.py")
    assert ended.status == 0
    assert ended.stderr == "rewrap: .venv is incomplete: making it again\n"


def test_an_old_python_is_rejected_and_a_new_one_makes_the_venv_again(checkout: Checkout) -> None:
    checkout.run()
    (checkout.folder / ".venv/bin/python").write_text("#!/bin/sh\nexit 1\n")
    for stamp in (checkout.folder / ".venv").glob("installed-*"):
        stamp.unlink()
    (checkout.folder / "too-old").touch()
    ended = checkout.run()
    assert (ended.calls, ended.status) == ([], 1)
    assert "3.11" in ended.stderr.splitlines()[-1]
    (checkout.folder / "too-old").unlink()
    assert checkout.run().calls[0] == "-m venv --clear .venv"


def test_a_changed_list_of_packages_is_installed_even_if_it_was_installed_before(
    checkout: Checkout,
) -> None:
    checkout.run()
    checkout.run("test")
    assert checkout.run().calls == ["main.py"]
    requirements = checkout.folder / "requirements.txt"
    original = requirements.read_text()
    for text, installs in (("starlette==1\n", True), ("starlette==1\n", False), (original, True)):
        requirements.write_text(text)
        assert checkout.run().installs == installs


def test_a_link_to_the_script_serves_from_its_own_folder(
    checkout: Checkout, tmp_path: Path
) -> None:
    bin = checkout.folder / "bin"
    bin.mkdir()
    (bin / "one").symlink_to("../run")
    (bin / "two").symlink_to(bin / "one")
    assert checkout.run("x", script="bin/two", cwd=tmp_path).calls[-1] == "main.py x"
    assert (checkout.folder / ".venv").exists()
    assert not (bin / ".venv").exists()


def test_the_server_runs_in_the_callers_folder_and_the_tests_in_the_checkout(
    checkout: Checkout, tmp_path: Path
) -> None:
    assert checkout.run(cwd=tmp_path).folder == str(tmp_path)
    assert checkout.run("test", cwd=tmp_path).folder == str(checkout.folder)


def test_a_set_up_of_more_than_a_second_prints_what_it_does(checkout: Checkout) -> None:
    (checkout.folder / "slow").touch()
    ended = checkout.run()
    assert ended.stderr == "rewrap: installing the packages of requirements.txt\n"
    assert ended.status == 0


def test_a_python_without_venv_stops_the_set_up_with_the_missing_package(
    checkout: Checkout,
) -> None:
    (checkout.folder / "python").write_text('#!/bin/sh\n[ "$1" = -c ]\n')
    ended = checkout.run()
    assert ended.status == 1
    assert "python3-venv" in ended.stderr.splitlines()[-1]
