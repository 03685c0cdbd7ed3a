"""The command line: flags from the table of settings, their precedence, help, and the commands' exit statuses."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import ROOT, started

from rewrap import __version__
from rewrap.cli import main
from rewrap.config.flags import COMMANDS, UsageError, flag, parse_arguments
from rewrap.config.settings import GROUPS, Settings, default_text

SPECS = {spec.name: spec for spec in fields(Settings)}
VALUES = {
    "chat_headers": '{"X-Own": "1"}',
    "log_level": "debug",
    "allow_origins": "https://app.example",
}
Load = Callable[..., Settings]


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder and no setting in the environment, before the test and after it."""
    monkeypatch.chdir(tmp_path)
    for name in SPECS:
        monkeypatch.delenv(name.upper(), raising=False)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """The settings that `rewrap ARGUMENTS` would serve with."""

    def loaded(*arguments: str) -> Settings:
        found: list[Settings] = []
        monkeypatch.setattr("rewrap.cli.serve", lambda: found.append(Settings.load()))
        assert main(arguments) == 0
        (settings,) = found
        return settings

    return loaded


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(ROOT / "main.py"), *arguments]
    env = os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)


def value_of(spec: "Field[Any]") -> str:
    """A value for a setting that is not its default."""
    if spec.name in VALUES:
        return VALUES[spec.name]
    if spec.metadata.get("url"):
        return "http://upstream.example/x"
    if spec.type is bool:
        return str(not spec.default).lower()
    if "among" in spec.metadata:
        return str(spec.metadata["among"][-1])
    if spec.type in (int, float):
        return str(spec.default + 1)
    return "some,words"


# Flags.


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("form", ["{} VALUE", "{}=VALUE"])
def test_every_setting_has_a_flag(name: str, form: str, load: Load) -> None:
    value = value_of(SPECS[name])
    arguments = [part.replace("VALUE", value) for part in form.format(flag(name)).split(" ")]
    by_flag = load(*arguments)
    assert getattr(by_flag, name) != getattr(Settings(), name)
    os.environ[name.upper()] = value
    assert by_flag == Settings.load(), "the variable of this name gives the same settings"


def test_flags_win_over_the_environment_and_the_environment_over_the_env_file(load: Load) -> None:
    Path(".env").write_text("PORT=1001\nWORKERS=2\nHOST=a.example\n")
    os.environ |= {"PORT": "1002", "WORKERS": "3"}
    settings = load("--port", "1003")
    assert (settings.port, settings.workers, settings.host) == (1003, 3, "a.example")


def test_a_file_of_keys_has_a_flag(load: Load, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-one\nsk-two\n")
    assert load("--api-keys-file", "keys").api_keys == ("sk-one", "sk-two")


def test_a_flag_without_text_restores_the_default(load: Load) -> None:
    Path(".env").write_text("CHAT_URL=http://bot.example\n")
    assert load("serve", "--chat-url", "").chat_url == ""


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--use-mock-api"], True),
        (["--use-mock-api", "--port", "0"], True),
        (["--use-mock-api", "no"], False),
        (["--use-mock-api=yes"], True),
    ],
)
def test_a_true_or_false_flag_needs_no_value(arguments: list[str], value: bool, load: Load) -> None:
    assert load(*arguments).use_mock_api is value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chat-ulr", "x"], "--chat-ulr is not a flag; did you mean --chat-url?"),
        (["--api-key=sk-secret"], "--api-key is not a flag; did you mean --api-keys?"),
        (["--zzz"], "--zzz is not a flag; `rewrap --help` lists all"),
        (["--por", "1"], "--por is not a flag; did you mean --port?"),
        (["--port"], "--port: expected one argument"),
        (["prob", "x"], "'prob' is not a command; did you mean probe?"),
        (["--port", "1", "check"], "the command comes first: rewrap check [--SETTING VALUE ...]"),
        (["--api-keys", "a", "sk-b"], "there is a value without a flag; `rewrap --help` lists all"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_the_nearest_name(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+$"):
        parse_arguments(arguments)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"rewrap: {message}")
    assert "sk-" not in output.err
    assert output.err.count("\n") == 1


# Help and version.


def test_the_help_lists_every_setting_in_its_group_with_its_default() -> None:
    text = parse_arguments(["--help"]).text
    assert max(len(line) for line in text.splitlines()) <= 80
    blocks = [block for block in text.split("\n\n") if block.partition(":")[0] in GROUPS]
    assert len(blocks) == len(GROUPS)
    for block in blocks:
        title, _, entries = block.partition(":\n")
        # An entry begins in the second column. Its text is wrapped.
        texts = [" ".join(entry.split()) for entry in f"\n{entries}".split("\n  --")[1:]]
        by_flag = {f"--{entry.split()[0]}": entry for entry in texts}
        files = [flag(f"{name}_file") for name in GROUPS[title] if SPECS[name].metadata.get("file")]
        assert sorted(by_flag) == sorted([*(flag(name) for name in GROUPS[title]), *files])
        for name in GROUPS[title]:
            entry = by_flag[flag(name)]
            about = SPECS[name].metadata["about"]
            assert "".join(about.split()) in "".join(entry.split())  # it is wrapped at hyphens, too
            if default := default_text(SPECS[name]):
                assert entry.endswith(f"[{default}]")


def test_the_help_and_the_version_are_printed() -> None:
    for arguments in (["--help"], ["-h"], ["serve", "--help"], ["check", "--port", "1", "-h"]):
        ended = run(*arguments, PORT="abc")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert all(f"\n  {command} " in ended.stdout for command in COMMANDS)
    ended = run("--version", PORT="abc")
    assert (ended.returncode, ended.stdout) == (0, f"rewrap {__version__}\n")


@pytest.mark.parametrize(
    ("command", "flags"),
    [("key", ["USER", "--days", "--save"]), ("probe", ["URL", "--header", "--key", "--model"])],
)
def test_a_command_with_arguments_of_its_own_has_its_own_help(
    command: str, flags: list[str]
) -> None:
    ended = run(command, "--help", PORT="abc")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"usage: rewrap {command} ")
    assert [name for name in flags if name not in ended.stdout] == []


@pytest.mark.parametrize("arguments", [["--help"], ["check"], ["key", "ada"], ["key", "--help"]])
def test_a_reader_that_leaves_causes_no_traceback(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    ended = subprocess.run(
        command,
        env=os.environ | {"SECRET_KEY": "a secret of some length"},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    os.close(writer)
    assert ended.stderr == ""
    assert ended.returncode in (0, 1)


# The commands.


def test_serve_is_the_default_command_and_takes_flags() -> None:
    flags = ["--port", "0", "--host", "127.0.0.1", "--log-level", "info"]
    command = [sys.executable, str(ROOT / "main.py"), *flags]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stderr is not None
        line = child.stderr.readline()
        assert " on http://127.0.0.1:" in line
        assert "the mock answers" in line
    finally:
        child.terminate()
        child.communicate(timeout=20)
    assert child.returncode == 0


def test_workers_serve_with_the_settings_of_the_flags(tmp_path: Path) -> None:
    """Workers are processes of their own, which read the settings again."""
    store = f"sqlite:///{tmp_path}/chat.db"
    flags = ["--workers", "2", "--port", "0", "--api-keys", "sk-one", "--store-url", store]
    command = [sys.executable, str(ROOT / "main.py"), *flags]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stderr is not None
        address = child.stderr.readline().partition(" on ")[2].partition(": ")[0]
        with httpx.Client(trust_env=False, timeout=30) as client:
            assert client.get(f"{address}/v1/models").status_code == 401
            key = {"authorization": "Bearer sk-one"}
            assert client.get(f"{address}/v1/models", headers=key).status_code == 200
    finally:
        child.terminate()
        child.communicate(timeout=20)


def test_check_prints_the_backends_and_exits_with_0() -> None:
    ended = run(
        "check", "--chat-url", "http://user:pw@bot.example/ask?key=x", "--openai-model", "m"
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == (
        "rewrap: chat-url answers at http://bot.example/ask, for every model name; open: no key is needed\n"
    )


def test_check_prints_each_backend_of_the_file_with_its_models(tmp_path: Path) -> None:
    file = tmp_path / "backends.toml"
    file.write_text(
        '[[backend]]\nname = "a"\nkind = "openai"\nurl = "http://a.example/v1"\nmodels = ["gpt-*", "x"]\n'
        '[[backend]]\nname = "b"\nkind = "mock"\n'
    )
    ended = run("check", "--config", "backends.toml", API_KEYS="sk-one")
    assert ended.stdout == (
        "rewrap: a at http://a.example/v1/chat/completions for gpt-*, x; b for *; with a key\n"
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    "flags",
    [["--port", "abc"], ["--config", "none.toml"], ["--chat-shape", "x"], ["--workers", "0"]],
)
def test_check_exits_with_2_and_one_line_for_a_wrong_setting(flags: list[str]) -> None:
    ended = run("check", *flags)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"rewrap: {flags[0][2:].upper().replace('-', '_')}")


def test_check_opens_no_store_and_leaves_no_file(tmp_path: Path) -> None:
    assert run("check").returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_signed_with_the_secret_of_the_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SECRET_KEY=a secret of some length\n")
    made = run("key", "ada", "--days", "1")
    assert (made.returncode, made.stderr) == (0, "")
    with started(SECRET_KEY="a secret of some length", LOG_LEVEL="info") as process:
        headers = {"authorization": f"Bearer {made.stdout.strip()}"}
        answer = httpx.get(f"{process.url}/v1/models", headers=headers, trust_env=False)
        assert answer.status_code == 200
