"""OpenAI's own tests of its SDKs against the mock: `python tests/clients/sdk_suites.py [--node CHECKOUT]`.

The source package of openai on PyPI contains its tests; the package of openai on npm does not, so those
need a checkout of its repository. With MOCK_ANY_ID=true all pass. Without it, those of EXPECTED fail:
only a server that is made from the specification alone can pass them.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).absolute().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

from client_environments import Unavailable, environment  # noqa: E402
from serving import started  # noqa: E402

VERSION = "3.57.0"
SUITES = (
    "chat",
    "test_models.py",
    "responses",
    "test_responses.py",
    "test_completions.py",
    "test_embeddings.py",
)
NODE_SUITES = ("chat", "models.test.ts", "responses", "completions.test.ts", "embeddings.test.ts")
NODE_PACKAGES = {
    "@swc/core": "1.15.0",
    "@swc/jest": "0.2.39",
    "jest": "30.4.2",
    "ts-jest": "29.4.5",
    "ts-node": "10.9.2",
    "typescript": "5.9.3",
    "undici": "7.16.0",
    "ws": "8.18.3",
    "zod": "4.6.7",
}
# The tests that fail without MOCK_ANY_ID, as "file::method", and the reason.
EXPECTED = {
    r"chat/completions/test_messages\.py::.*": "the id of a completion that was never stored",
    r"chat/test_completions\.py::.*_(retrieve|update|delete)": "the same",
    r"chat/test_completions\.py::test_method_list_with_all_params": "`after` names none",
    r"responses/test_input_items\.py::.*": "the id of a response that was never stored",
    r"test_responses\.py::.*_(retrieve|delete|cancel)\b.*": "the same",
    r"test_responses\.py::.*_retrieve_.*": "the same",
    r"test_responses\.py::.*_create_.*": "no input; or a conversation, a prompt, the background",
    r"responses/test_input_tokens\.py::.*": "no input; or an unknown previous response",
    r"test_responses\.py::.*_compact.*": "responses are not compacted",
    r"test_models\.py::.*_delete": "models cannot be deleted",
    r"test_embeddings\.py::.*_create": "strict validation rejects the base64 that the SDK asks for",
}


def unpacked(folder: Path) -> Path:
    """The source package of the SDK. Raises CalledProcessError if PyPI does not serve it."""
    flags = ["--no-deps", "--no-binary", "openai", "--quiet", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *flags, f"openai=={VERSION}"]
    subprocess.run(command, check=True)
    [archive] = folder.glob("openai-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / f"openai-{VERSION}"


def run_python(source: Path, url: str) -> str:
    """The output of pytest. It runs on the installed package: `src` is taken away before."""
    python = environment("suite") / "bin" / "python"
    paths = [f"tests/api_resources/{name}" for name in SUITES]
    flags = ["-q", "-n", "0", "--tb=line", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [str(python), "-m", "pytest", *flags, *paths],
        cwd=source,
        env=os.environ | {"TEST_API_BASE_URL": f"{url}/v1"},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def unexpected(output: str) -> list[str]:
    """The tests that failed and are not in EXPECTED."""
    failed = re.findall(r"^FAILED tests/api_resources/(\S+)::Test\w+::(\w+)", output, re.MULTILINE)
    names = sorted({f"{file}::{method}" for file, method in failed})
    known = [re.compile(pattern) for pattern in EXPECTED]
    return [name for name in names if not any(pattern.fullmatch(name) for pattern in known)]


def check_python() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = unpacked(Path(folder))
        (source / "src").rename(source / "sources")
        with started() as mock:
            plain = run_python(source, mock.url)
        with started(MOCK_ANY_ID="true") as mock:
            lenient = run_python(source, mock.url)
    print(f"openai {VERSION} (Python): {share(plain)}")
    print(f"openai {VERSION} (Python), MOCK_ANY_ID=true: {share(lenient)}")
    wrong = unexpected(plain)
    for name in wrong:
        print(f"failed, and not expected to fail: {name}")
    failed, passed = counts(lenient)
    if failed or not passed:
        print(lenient[-3000:])
    return passed > 0 and not failed and not wrong


def run_node(checkout: Path, url: str) -> str:
    """The output of jest in a copy of a checkout of openai-node."""
    paths = [f"tests/api-resources/{name}" for name in NODE_SUITES]
    done = subprocess.run(
        ["npx", "jest", *paths],
        cwd=checkout,
        env=os.environ | {"TEST_API_BASE_URL": f"{url}/v1"},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def check_node(checkout: Path) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        names = ["src", "tests", "scripts", "jest.config.ts", "tsconfig.json"]
        subprocess.run(["cp", "-r", *[str(checkout / name) for name in names], folder], check=True)
        (copy / "package.json").write_text('{"private": true}')
        packages = [f"{name}@{version}" for name, version in NODE_PACKAGES.items()]
        subprocess.run(["npm", "install", "--silent", "--ignore-scripts", *packages], cwd=copy)
        with started() as mock:
            plain = run_node(copy, mock.url)
        with started(MOCK_ANY_ID="true") as mock:
            lenient = run_node(copy, mock.url)
    print(f"openai (Node): {share(plain)}")
    print(f"openai (Node), MOCK_ANY_ID=true: {share(lenient)}")
    failed, passed = counts(lenient)
    return passed > 0 and not failed


def counts(output: str) -> tuple[int, int]:
    """The tests that failed and passed, in the last line of pytest or jest that has them."""
    summaries = re.findall(r"^(?:Tests: .*|.*\d (?:passed|failed).* in .*)$", output, re.MULTILINE)
    last = summaries[-1] if summaries else ""
    numbers = {name: int(number) for number, name in re.findall(r"(\d+) (failed|passed)", last)}
    return numbers.get("failed", 0), numbers.get("passed", 0)


def share(output: str) -> str:
    failed, passed = counts(output)
    return f"{passed} of {failed + passed} tests pass"


def main(arguments: list[str]) -> int:
    """The exit status."""
    if arguments[:1] == ["--node"] and len(arguments) == 2:
        return 0 if check_node(Path(arguments[1])) else 1
    try:
        return 0 if check_python() else 1
    except (Unavailable, subprocess.CalledProcessError) as error:
        print(f"the SDK's tests cannot be had: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
