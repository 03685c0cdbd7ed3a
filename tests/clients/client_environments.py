"""The environments of the clients: one for each pinned list of packages, kept outside the checkout for later runs.

The folder is `CLIENTS_CACHE`, by default ~/.cache/rewrap-clients. A list that changes makes a new environment.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).absolute().parent
CACHE = Path(os.environ.get("CLIENTS_CACHE") or Path.home() / ".cache" / "rewrap-clients")
# pip downloads one package after the other: 7 minutes for those of aider. uv takes 12 seconds.
UV = "uv==0.13.9"
INSTALL_SECONDS = 420


class Unavailable(Exception):
    """A registry did not serve the packages of an environment."""


def environment(name: str) -> Path:
    """The folder of an environment, made if it is not there. Raises Unavailable.

    For Python (requirements/NAME.txt) it has `bin/python`; for Node (NAME/package.json),
    `node_modules`.
    """
    requirements = HERE / "requirements" / f"{name}.txt"
    if requirements.exists():
        return kept(name, [requirements], lambda folder: install_python(folder, requirements))
    lists = [HERE / name / "package.json", HERE / name / "package-lock.json"]
    return kept(name, lists, lambda folder: install_node(folder, lists))


def kept(name: str, lists: list[Path], install: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in lists)).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    with locked(CACHE / f"{name}.lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            install(folder)
            (folder / "complete").touch()
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Two runs at a time do not make one environment twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install_python(folder: Path, requirements: Path) -> None:
    uv = kept("uv", [], install_uv) / "bin" / "uv"
    call([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    target = ["--python", str(folder / "bin" / "python")]
    call([str(uv), "pip", "install", "--quiet", "--no-deps", *target, "-r", str(requirements)])


def install_uv(folder: Path) -> None:
    call([sys.executable, "-m", "venv", str(folder)])
    call([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", UV])


def install_node(folder: Path, lists: list[Path]) -> None:
    """No script of a package runs: the programs of these packages need none."""
    if shutil.which("npm") is None:
        raise Unavailable("npm is not installed")
    folder.mkdir(parents=True)
    for path in lists:
        shutil.copy(path, folder)
    flags = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    flags += ["--fetch-retries=1", "--fetch-timeout=60000"]
    call(["npm", "ci", *flags], folder)


def call(command: list[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command[:4])} took more than {INSTALL_SECONDS} s") from None
    if done.returncode:
        raise Unavailable(f"{' '.join(command[:4])} failed: {done.stderr[-2000:]}")
