"""The package as pip installs it into a fresh virtual environment: its contents, its command, its imports.

pip needs the package index, or a cache of it. Without them these tests are skipped, except on a CI.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest
from serving import ROOT

from rewrap import __version__

OWN_MAIN = 'raise SystemExit("the main.py of the user was imported")\n'
TIMEOUT_SECONDS = 300

PLUGIN_TEST = """
import os
import rewrap

def test_fixture(mock_openai):
    assert os.environ["OPENAI_BASE_URL"] == mock_openai.base_url
    assert rewrap.__file__.startswith(os.environ["PYTHONPATH"])
"""

# Prints what an import of `create_app` opens beside modules, and the variables that our code reads.
PURITY = """
import os, sys
opened, read = [], []
def audit(event, arguments):
    if event == "open" and not str(arguments[0]).endswith((".py", ".pyc", ".so", ".pyd")):
        opened.append(str(arguments[0]))
sys.addaudithook(audit)
original = os._Environ.__getitem__
def recorded(self, name):
    frame = sys._getframe(1)
    while frame.f_globals["__name__"] in ("os", "_collections_abc"):
        frame = frame.f_back
    if frame.f_globals["__name__"].startswith("rewrap"):
        read.append(name)
    return original(self, name)
os._Environ.__getitem__ = recorded
import rewrap
assert "rewrap.main" not in sys.modules and "starlette" not in sys.modules
from rewrap import create_app
assert "rewrap.main" in sys.modules and "app" not in vars(sys.modules["rewrap.main"])
print(opened, read)
"""


@dataclass
class Environment:
    """A virtual environment, and a folder to run it in that holds a main.py of its own."""

    bin: Path
    folder: Path

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.folder,
            env=kept | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that a clone has."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
    )
    if listed.returncode != 0:
        pytest.skip("the checkout is no git repository")
    folder = tmp_path_factory.mktemp("source")
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def dist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, and `again/` with a wheel made from the latter."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d"]
    subprocess.run([*build, str(folder)], cwd=source, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(sdist, folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    again = [*build, str(folder / "again"), "-t", "wheel"]
    subprocess.run(again, cwd=unpacked, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install .` in a fresh virtual environment."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    bin = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = [bin / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "."]
    ended = subprocess.run(pip, cwd=source, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    if ended.returncode != 0:
        if os.environ.get("CI") or "connection" not in ended.stderr.lower():
            pytest.fail(f"pip install . failed:\n{ended.stderr}", pytrace=False)
        pytest.skip("the package index cannot be reached")
    (folder / "empty").mkdir()
    (folder / "empty" / "main.py").write_text(OWN_MAIN)
    return Environment(bin, folder / "empty")


def contents(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_package_with_all_its_files_and_nothing_else(
    source: Path, dist: Path
) -> None:
    (wheel,) = dist.glob("*.whl")
    package = {path for path in (source / "rewrap").rglob("*") if path.is_file()}
    expected = {str(path.relative_to(source)) for path in package}
    expected |= {"rewrap/main.py", "rewrap/backends.py"}
    metadata = {name for name in contents(wheel) if ".dist-info/" in name}
    assert contents(wheel) - metadata == expected
    assert f"rewrap-{__version__}.dist-info/METADATA" in metadata


def test_the_source_distribution_builds_the_same_wheel(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    (again,) = (dist / "again").glob("*.whl")
    assert contents(again) == contents(wheel)


def test_pytest_finds_the_plugin_of_the_wheel(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", format="zip")
    (tmp_path / "test_mock.py").write_text(PLUGIN_TEST)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path / "test_mock.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "1 passed" in ended.stdout, ended.stdout + ended.stderr


def test_site_packages_gets_the_package_and_its_metadata_alone(installed: Environment) -> None:
    shown = installed.run("python", "-m", "pip", "show", "-f", "rewrap").stdout
    files = [line.strip() for line in shown.partition("\nFiles:\n")[2].splitlines()]
    inside = [name for name in files if not name.startswith("..")]
    assert {re.split(r"[/\\]", name)[0] for name in inside} == {
        "rewrap",
        f"rewrap-{__version__}.dist-info",
    }
    assert [Path(name).stem for name in files if name.startswith("..")] == ["rewrap"]


def test_the_command_serves_in_a_folder_with_a_main_py_of_its_own(installed: Environment) -> None:
    child = subprocess.Popen(
        [installed.bin / "rewrap", "--port", "0"],
        cwd=installed.folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stderr is not None
        line = child.stderr.readline()
        address = re.search(r" on (http://\S+):", line)
        assert address, line
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}
        with httpx.Client(trust_env=False) as client:
            answer = client.post(f"{address[1]}/v1/chat/completions", json=body)
            assert answer.status_code == 200
            assert client.get(f"{address[1]}/docs").status_code == 200
    finally:
        child.terminate()
        child.communicate(timeout=20)
    assert child.returncode == 0


@pytest.mark.parametrize("command", [["rewrap"], ["python", "-m", "rewrap"]])
def test_the_command_and_the_module_print_the_version(
    command: list[str], installed: Environment
) -> None:
    ended = installed.run(*command, "--version", PORT="abc")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"rewrap {__version__}\n", "")


@pytest.mark.parametrize("command", [["rewrap"], ["python", "-m", "rewrap"]])
def test_a_wrong_setting_stops_the_start_with_one_line(
    command: list[str], installed: Environment
) -> None:
    ended = installed.run(*command, PORT="abc")
    assert ended.returncode != 0
    assert (ended.stdout, ended.stderr) == ("", "rewrap: PORT must be a number, not 'abc'\n")


def test_a_wrong_setting_does_not_break_the_import(installed: Environment) -> None:
    ended = installed.run("python", "-W", "error", "-c", "from rewrap import create_app", PORT="a")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_app_is_made_beside_a_main_py_of_the_user(installed: Environment) -> None:
    code = "from rewrap import create_app; print(type(create_app()).__name__)"
    ended = installed.run("python", "-W", "error", "-c", code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Rewrap\n", "")


def test_an_import_reads_no_environment_opens_no_file_and_builds_no_app(
    installed: Environment,
) -> None:
    ended = installed.run("python", "-c", PURITY)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[] []\n", "")


def test_every_public_name_is_importable(installed: Environment) -> None:
    code = "import rewrap; print([getattr(rewrap, name) for name in rewrap.__all__] and 'all')"
    ended = installed.run("python", "-c", code)
    assert (ended.stdout, ended.stderr) == ("all\n", "")


@pytest.mark.parametrize("command", [["main.py", "--version"], ["-m", "rewrap", "--version"]])
def test_a_checkout_runs_without_an_installation(command: list[str], source: Path) -> None:
    ended = subprocess.run(
        [sys.executable, *command], cwd=source, capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout, ended.stderr) == (f"rewrap {__version__}\n", "")


def test_uvicorn_finds_the_app_of_a_checkout(source: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "main:app", "--port", "0"],
        cwd=source,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stderr is not None
        lines = iter(child.stderr.readline, "")
        assert any("Uvicorn running on http://127.0.0.1:" in line for line in lines)
    finally:
        child.terminate()
        child.communicate(timeout=20)
