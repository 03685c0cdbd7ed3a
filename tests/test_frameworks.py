"""Real frameworks against the mock: their agent loops end by themselves, and their values validate.

The tests themselves are in tests/frameworks/. Each set of packages has an environment of its own.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from environments import clean_environment, node_environment, python_environment
from serving import ROOT, served

FOLDER = ROOT / "tests" / "frameworks"
ENVIRONMENTS = {
    "with_openai": "agents",
    "with_agents_sdk": "agents",
    "with_langchain": "agents",
    "with_pydantic_ai": "agents",
    "with_instructor": "instructor",
}
TIMEOUT_SECONDS = 300


def test_every_file_has_an_environment() -> None:
    assert {file.stem for file in FOLDER.glob("*.py")} == set(ENVIRONMENTS)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_python_framework(name: str) -> None:
    environment = ENVIRONMENTS[name]
    requirements = FOLDER / "requirements" / f"{environment}.txt"
    python = python_environment(environment, requirements)
    ended = subprocess.run(
        [python, "-m", "pytest", "-c", FOLDER / "pytest.ini", FOLDER / f"{name}.py"],
        env=clean_environment(PYTHONPATH=str(ROOT)),
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-1000:]
    assert re.search(r"^=+ \d+ passed(, \d+ warnings?)? in", ended.stdout, re.MULTILINE)


def test_node_frameworks() -> None:
    folder = node_environment("node", FOLDER / "node")
    run_node(folder, FOLDER / "node" / "ai_sdk.test.mjs")


def run_node(folder: Path, source: Path) -> None:
    """Run a file of node's tests against a mock. Its packages are in `folder`."""
    shutil.copy(source, folder)
    with served() as url:
        ended = subprocess.run(
            ["node", "--test", "--test-reporter=tap", source.name],
            env=clean_environment(OPENAI_BASE_URL=f"{url}/v1", AI_SDK_LOG_WARNINGS="false"),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-1000:]
    assert re.search(r"^# pass [1-9]", ended.stdout, re.MULTILINE)
    assert re.search(r"^# skipped 0$", ended.stdout, re.MULTILINE)
