"""OpenAI's own tests of its SDKs against the mock: `python tests/clients/sdk_suites.py [--node CHECKOUT]`.

The source package of openai on PyPI contains its tests; the package of openai on npm does not, so those
need a checkout of its repository. With MOCK_ANY_ID=true all pass. Without it, those of EXPECTED fail;
`--list` prints them.
"""

import argparse
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
# The tests that fail without MOCK_ANY_ID, by reason: patterns of "file::test". For Python, a test stands
# for its forms (method, raw_response, streaming_response), and for all modes if no "[mode]" follows.
EXPECTED = {
    "the id of a completion that was never stored: 404": (
        r"chat/completions/test_messages\.py::list(_with_all_params)?",
        r"chat/test_completions\.py::(retrieve|update|delete)",
        r"chat/completions/messages\.test\.ts::list",
        r"chat/completions/completions\.test\.ts::(retrieve|delete)",
        r"chat/completions/completions\.test\.ts::update: (only required|required and optional) params",
    ),
    "the id of a response that was never stored: 404": (
        r"responses/test_input_items\.py::list",
        r"test_responses\.py::retrieve(_with_all_params)?_overload_[12]",
        r"test_responses\.py::(delete|cancel)",
        r"responses/input-items\.test\.ts::list",
        r"responses/responses\.test\.ts::(retrieve|delete|cancel)",
    ),
    "`after` names a completion that was never stored: 404": (
        r"chat/test_completions\.py::list_with_all_params",
    ),
    "a `limit` of 0, and the id of a response that was never stored: 400": (
        r"responses/test_input_items\.py::list_with_all_params",
    ),
    "a response without input: 400": (
        r"test_responses\.py::create_overload_[12]",
        r"responses/test_input_tokens\.py::count",
        r"responses/responses\.test\.ts::create",
        r"responses/input-tokens\.test\.ts::count",
    ),
    "a previous response that was never stored: 400": (
        r"test_responses\.py::create_with_all_params_overload_[12]",
        r"responses/test_input_tokens\.py::count_with_all_params",
    ),
    "the mock does not compact responses: 400": (
        r"test_responses\.py::compact(_with_all_params)?",
        r"responses/responses\.test\.ts::compact: (only required|required and optional) params",
    ),
    "the mock's models cannot be deleted: 405": (
        r"test_models\.py::delete",
        r"models\.test\.ts::delete",
    ),
    "the SDK asks for base64, and its strict validation rejects base64": (
        r"test_embeddings\.py::create\[(strict|aiohttp)\]",
    ),
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


def failed_python(output: str) -> list[str]:
    """The names of the tests that failed, as EXPECTED has them."""
    form = "(?:test_(?:method|raw_response|streaming_response)_)?"
    pattern = rf"^FAILED tests/api_resources/(\S+?)::(?:Test\w+::)?{form}(\S+)"
    failed = re.findall(pattern, output, re.MULTILINE)
    return sorted({f"{file}::{test}" for file, test in failed})


def check_python(listed: bool) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = unpacked(Path(folder))
        (source / "src").rename(source / "sources")
        with started() as mock:
            plain = run_python(source, mock.url)
        with started(MOCK_ANY_ID="true") as mock:
            lenient = run_python(source, mock.url)
    as_expected = judge(failed_python(plain), listed)
    return report(f"openai {VERSION} (Python)", plain, lenient) and as_expected


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


def failed_node(output: str) -> list[str]:
    """The names of the tests that failed, as EXPECTED has them."""
    names = set()
    for suite in re.split(r"^(?:PASS|FAIL) tests/api-resources/", output, flags=re.MULTILINE)[1:]:
        file = suite.split()[0]
        tests = re.findall(r"^  ● (?:resource \w+ › )?(.+)$", suite, re.MULTILINE)
        names.update(f"{file}::{test}" for test in tests)
    return sorted(names)


def check_node(checkout: Path, listed: bool) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        names = ["src", "tests", "scripts", "jest.config.ts", "tsconfig.json"]
        subprocess.run(["cp", "-r", *[str(checkout / name) for name in names], folder], check=True)
        (copy / "package.json").write_text('{"private": true}')
        packages = [f"{name}@{version}" for name, version in NODE_PACKAGES.items()]
        command = ["npm", "install", "--silent", "--ignore-scripts", *packages]
        subprocess.run(command, cwd=copy, check=True)
        with started() as mock:
            plain = run_node(copy, mock.url)
        with started(MOCK_ANY_ID="true") as mock:
            lenient = run_node(copy, mock.url)
    as_expected = judge(failed_node(plain), listed)
    return report("openai (Node)", plain, lenient) and as_expected


def reason(name: str) -> str | None:
    """Why a test is expected to fail without MOCK_ANY_ID; None if it is not."""
    forms = (name, name.partition("[")[0])
    for text, patterns in EXPECTED.items():
        if any(re.fullmatch(pattern, form) for pattern in patterns for form in forms):
            return text
    return None


def judge(failed: list[str], listed: bool) -> bool:
    """Whether all tests that failed are expected to. Prints the others, and if `listed` all, by reason."""
    for text in EXPECTED if listed else ():
        for name in sorted({name.partition("[")[0] for name in failed if reason(name) == text}):
            print(f"expected to fail: {name} ({text})")
    wrong = [name for name in failed if reason(name) is None]
    for name in wrong:
        print(f"failed, and not expected to fail: {name}")
    return not wrong


def report(sdk: str, plain: str, lenient: str) -> bool:
    """Prints how many tests passed. Whether all did with MOCK_ANY_ID."""
    print(f"{sdk}: {share(plain)}")
    print(f"{sdk}, MOCK_ANY_ID=true: {share(lenient)}")
    failed, passed = counts(lenient)
    if failed or not passed:
        print(lenient[-3000:])
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


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="OpenAI's own tests of its SDKs against the mock")
    parser.add_argument("--node", type=Path, metavar="CHECKOUT", help="run those of openai-node")
    parser.add_argument("--list", action="store_true", help="print the tests that fail as expected")
    options = parser.parse_args()
    try:
        if options.node is None:
            passed = check_python(options.list)
        else:
            passed = check_node(options.node, options.list)
    except (Unavailable, subprocess.CalledProcessError) as error:
        print(f"the SDK's tests cannot be had: {error}")
        return 1
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
