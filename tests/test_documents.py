"""The documents against the code: settings, and the packages of the image."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from serving import ROOT
from settings_texts import ENV_EXAMPLE, TABLE_FILE, env_example, with_table


def test_the_example_of_settings_is_made_from_the_settings() -> None:
    assert ENV_EXAMPLE.read_text() == env_example(), "run: python tests/settings_texts.py"


def test_the_table_of_settings_is_made_from_the_settings() -> None:
    text = TABLE_FILE.read_text()
    assert text == with_table(text), "run: python tests/settings_texts.py"


def pins(name: str) -> dict[str, str]:
    """The pinned packages of a list, by name."""
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / name).read_text(), re.MULTILINE))


def test_the_image_has_the_packages_of_the_checkout_in_the_same_versions() -> None:
    serving, _, testing = (ROOT / "requirements.txt").read_text().partition("# for test_main")
    assert testing, "the mark that parts packages to serve from those to test"
    wanted = dict(re.findall(r"^([\w.-]+)==([\w.]+)", serving, re.MULTILINE))
    tests = pins("tests/requirements.txt")
    wanted |= {
        name: tests[name] for name in ("pymongo", "redis", "limits", "prometheus-client")
    }  # extras
    locked = pins("requirements.lock")
    assert {name: locked.get(name) for name in wanted} == wanted
    lines = (ROOT / "requirements.lock").read_text()
    assert lines.count("--hash=sha256:") >= 2 * len(locked)


def test_the_image_copies_every_file_that_it_needs_and_no_other() -> None:
    """COPY takes what .dockerignore lets through."""
    copied: set[str] = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            copied |= set(line.split()[1:-1])
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    assert copied == kept == {"main.py", "backends.py", "rewrap", "requirements.lock"}
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_contains_compiled_modules(tmp_path: Path) -> None:
    """Its user cannot write them, and each start would compile all of them again."""
    [line] = [
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if "compileall" in line
    ]
    command = line.removeprefix("RUN ").partition(" && ")[0].split()
    shutil.copytree(
        ROOT / "rewrap", tmp_path / "rewrap", ignore=shutil.ignore_patterns("__pycache__")
    )
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True, timeout=120)
    sources = {str(file.with_suffix("")) for file in tmp_path.rglob("*.py")}
    compiled = {
        str(file.parent.parent / file.name.partition(".")[0]) for file in tmp_path.rglob("*.pyc")
    }
    assert sources == compiled
