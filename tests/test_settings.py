"""Settings that cannot be misread: names that are nearly right, files of secrets, settings without effect, defaults."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import respx
from serving import ROOT, started

from rewrap.config.near_misses import nearest_setting
from rewrap.config.notes import ignored_notes, misspelled_notes
from rewrap.config.settings import Settings, known_variables
from rewrap.main import create_app

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]
FILES = ("API_KEYS", "SECRET_KEY", "OPENAI_API_KEY", "CHAT_KEY")


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder and no setting in the environment, before the test and after it."""
    monkeypatch.chdir(tmp_path)
    for name in known_variables():
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def env_file(text: str) -> None:
    Path(".env").write_text(text)


@contextmanager
def serving(folder: Path, **environment: str) -> Iterator[str]:
    """`python main.py --port 0` in a folder; gives its base URL."""
    command = [sys.executable, str(ROOT / "main.py"), "--port", "0"]
    env = os.environ | environment
    child = subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stderr is not None
        yield child.stderr.readline().partition(" on ")[2].partition(": ")[0]
    finally:
        child.terminate()
        child.communicate(timeout=20)


def client(settings: Settings, router: respx.Router | None = None) -> httpx.AsyncClient:
    """A client of the app in memory. `router` answers as the upstream."""
    transport = httpx.MockTransport(router.async_handler) if router else None
    app = create_app(settings, transport)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


# Names that are nearly right.


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("CHAT_ULR", "CHAT_URL"),
        ("CHATURL", "CHAT_URL"),
        ("CHAT_URLS", "CHAT_URL"),
        ("API_KEY", "API_KEYS"),
        ("APIKEYS", "API_KEYS"),
        ("OPENAI_API_BASES", "OPENAI_API_BASE"),
        ("OPENAI_URL", "OPENAI_API_BASE"),
        ("RATE_LIMIT", "RATE_LIMIT_PER_MINUTE"),
        ("STALL_TIMEOUT", "STALL_TIMEOUT_SECONDS"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("HSOT", "HOST"),
        ("chat_url", "CHAT_URL"),
    ],
)
def test_a_misspelled_variable_is_named_with_the_right_one(name: str, setting: str) -> None:
    assert nearest_setting(name, known_variables()) == setting
    env_file(f"{name}=x\n")
    with pytest.raises(ValueError, match=rf"^\.env: {name} is not .* did you mean {setting}\?$"):
        Settings.load()
    Path(".env").unlink()
    os.environ[name] = "x"
    Settings.load()
    (note,) = misspelled_notes([name])
    assert note == f"{name} is not a setting and has no effect; did you mean {setting}?"


ORDINARY = [
    "PATH",
    "HOME",
    "USER",
    "SHELL",
    "TERM",
    "LANG",
    "LC_ALL",
    "PWD",
    "OLDPWD",
    "LOGNAME",
    "HOSTNAME",
    "HOSTTYPE",
    "MAIL",
    "EDITOR",
    "PAGER",
    "DISPLAY",
    "TMPDIR",
    "TEMP",
    "TMP",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "SSH_AUTH_SOCK",
    "XDG_DATA_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
    "CI",
    "GITHUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_PORT",
    "REWRAP_PORT",
    "REWRAP_SERVICE_HOST",
    "DATABASE_URL",
    "REDIS_URL",
    "MONGODB_URI",
    "ANTHROPIC_API_KEY",
    "GEMINI_API_KEY",
    "CLOUD_API_KEY",
    "DIFY_KEY",
    "MODEL",
    "DEBUG",
    "HTTP_PROXY",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "PYTHONUNBUFFERED",
    "WEB_CONCURRENCY",
    "UVICORN_PORT",
]


@pytest.mark.parametrize("name", ORDINARY)
def test_variables_of_other_programs_are_left_alone(name: str) -> None:
    assert nearest_setting(name, known_variables()) == ""
    env_file(f"{name}=x\n")
    Settings.load()


@pytest.mark.parametrize("name", known_variables())
def test_no_setting_is_taken_for_another_one(name: str) -> None:
    assert misspelled_notes([name]) == []


def test_short_names_are_misspelled_in_the_env_file_alone() -> None:
    assert nearest_setting("POST", known_variables()) == ""
    env_file("PRT=9000\n")
    with pytest.raises(ValueError, match="did you mean PORT"):
        Settings.load()


def test_a_variable_with_an_empty_name_is_no_setting() -> None:
    assert nearest_setting("", known_variables()) == ""


def test_the_start_logs_a_line_for_each_misspelled_or_ignored_setting() -> None:
    environment = {"API_KEY": "sk-one", "OPENAI_API_KEY": "sk-upstream-1", "LOG_LEVEL": "info"}
    with started(**environment) as process:
        assert httpx.get(f"{process.url}/health", trust_env=False).status_code == 200
    warnings = [line for line in process.log.splitlines() if " WARNING " in line]
    assert len(warnings) == 2
    assert warnings[0].endswith(
        "API_KEY is not a setting and has no effect; did you mean API_KEYS?"
    )
    assert "OPENAI_API_KEY has no effect" in warnings[1]
    assert "sk-" not in process.log


def test_check_prints_the_same_lines() -> None:
    command = [sys.executable, str(ROOT / "main.py"), "check"]
    env = os.environ | {"CHAT_ULR": "x"}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 0
    assert ended.stderr == (
        "rewrap: CHAT_ULR is not a setting and has no effect; did you mean CHAT_URL?\n"
    )


# Settings without effect.


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (
            {"chat_url": "http://a.example", "openai_api_base": "http://b.example"},
            "OPENAI_API_BASE",
        ),
        ({"config": "b.toml", "chat_url": "http://a.example"}, "CHAT_URL"),
        (
            {"use_mock_api": True, "chat_url": "http://a.example", "chat_key": "k"},
            "CHAT_URL CHAT_KEY",
        ),
        ({"openai_api_key": "sk-1"}, "OPENAI_API_KEY"),
        ({"openai_api_key": "sk-1", "chat_url": "http://a.example"}, "OPENAI_API_KEY"),
        ({"openai_api_key": "sk-1", "openai_api_base": "http://b.example"}, ""),
        ({"mock_words_per_second": 5.0, "chat_url": "http://a.example"}, "MOCK_WORDS_PER_SECOND"),
        ({"mock_words_per_second": 5.0}, ""),
        ({"revoked_keys": ("a" * 16,)}, "REVOKED_KEYS"),
        ({"revoked_keys": ("a" * 16,), "secret_key": ("s",)}, ""),
        ({"rate_limit_store_url": "redis://x"}, "RATE_LIMIT_STORE_URL"),
        ({}, ""),
    ],
)
def test_a_setting_without_effect_is_named_in_one_line(
    settings: dict[str, Any], names: str
) -> None:
    notes = ignored_notes(Settings(**settings))
    assert [note.split()[0] for note in notes] == names.split()
    assert all(" has no effect: " in note and "\n" not in note for note in notes)


# Backends that no model name reaches.


@pytest.mark.parametrize(
    ("members", "unreached"),
    [
        (["", ""], "b: every model goes to 'a'"),
        (["", "", ""], "b: every model goes to 'a'; c: every model goes to 'a'"),
        (['models = ["x", "*"]'] * 2, "b: its models (x, *) go to 'a'"),
        (['models = ["x"]', 'models = ["y"]', 'models = ["y", "x"]'], "c: its models (y, x) go to"),
        (['models = ["x"]', ""], ""),
        (['models = ["x-*"]', 'models = ["x-?"]', 'models = ["x-1"]'], ""),
        (['fallbacks = ["b"]', ""], ""),
        (["", 'fallbacks = ["c"]', ""], "b: every model goes to 'a'"),
        (["", "models = []"], ""),
        ([""], ""),
    ],
)
def test_a_backend_that_no_model_name_reaches_is_named_in_one_line(
    members: list[str], unreached: str
) -> None:
    rows = zip("abc", members, strict=False)
    tables = [f'[[backend]]\nname = "{name}"\nkind = "mock"\n{more}\n' for name, more in rows]
    Path("b.toml").write_text("".join(tables))
    notes = create_app(Settings(config="b.toml")).gateway.notes([])
    assert len(notes) == len(unreached.split("; ")) * bool(unreached)
    for note, expected in zip(notes, unreached.split("; "), strict=False):
        name, _, reason = expected.partition(": ")
        assert note.startswith(f"no model name reaches backend {name!r}: {reason}")
        assert note.endswith(f'; give {name!r} models = ["{name}"], or name it in fallbacks')


def test_a_backend_that_some_of_its_model_names_do_not_reach_is_named() -> None:
    models = {"a": '["x", "*"]', "b": '["y", "*"]', "c": '["z", "x", "*", "y"]'}
    tables = [
        f'[[backend]]\nname = "{name}"\nkind = "mock"\nmodels = {of}\n'
        for name, of in models.items()
    ]
    Path("b.toml").write_text("".join(tables))
    assert create_app(Settings(config="b.toml")).gateway.notes([]) == [
        "backend 'b' does not get its models *: they go to 'a', earlier in the file",
        "backend 'c' does not get its models x, *, y: they go to 'a', 'b', earlier in the file",
    ]


def test_the_start_and_check_name_a_backend_that_no_model_name_reaches() -> None:
    tables = [f'[[backend]]\nname = "{name}"\nurl = "http://{name}.example"\n' for name in "ab"]
    Path("b.toml").write_text("".join(tables))
    line = (
        "no model name reaches backend 'b': every model goes to 'a', earlier in the file; "
        "give 'b' models = [\"b\"], or name it in fallbacks"
    )
    file = str(Path("b.toml").absolute())
    with started(CONFIG=file, STORE_URL="sqlite://", LOG_LEVEL="info") as process:
        assert httpx.get(f"{process.url}/health", trust_env=False).status_code == 200
    warnings = [text for text in process.log.splitlines() if " WARNING " in text]
    assert len(warnings) == 1
    assert warnings[0].endswith(line)
    command = [sys.executable, str(ROOT / "main.py"), "check", "--config", "b.toml"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stderr) == (0, f"rewrap: {line}\n")


# Secrets in files.


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_secret_is_read_from_a_file(name: str, ending: str) -> None:
    Path("secret").write_text(f"sk-from-file{ending}", newline="")
    os.environ[f"{name}_FILE"] = "secret"
    os.environ["CHAT_URL"] = "http://bot.example"
    found = getattr(Settings.load(), name.lower())
    assert found in ("sk-from-file", ("sk-from-file",))


def test_each_line_of_a_file_of_keys_is_a_key() -> None:
    Path("keys").write_text("sk-one\n\nsk-two, sk-three\n")
    env_file("API_KEYS_FILE=keys\n")
    assert Settings.load().api_keys == ("sk-one", "sk-two", "sk-three")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "API_KEYS_FILE: No such file or directory"),
        (b" \n", "API_KEYS_FILE: the file is empty"),
        (b"\xff", "API_KEYS_FILE: not UTF-8"),
    ],
)
def test_a_file_without_a_secret_stops_the_start(content: bytes | None, message: str) -> None:
    """An open server would be the worse surprise."""
    if content is not None:
        Path("keys").write_bytes(content)
    os.environ["API_KEYS_FILE"] = "keys"
    with pytest.raises(ValueError, match=f"^{message}$"):
        Settings.load()


def test_a_secret_and_its_file_stop_the_start_together() -> None:
    Path("keys").write_text("sk-one")
    os.environ |= {"API_KEYS_FILE": "keys", "API_KEYS": "sk-two"}
    with pytest.raises(ValueError, match=r"^API_KEYS and API_KEYS_FILE are both set$"):
        Settings.load()


# The upstream.


def test_a_key_in_the_env_file_names_openai_as_the_upstream() -> None:
    env_file("OPENAI_API_KEY=sk-mine\n")
    settings = Settings.load()
    assert settings.openai_api_base == "https://api.openai.com/v1"
    assert (settings.openai_model, settings.openai_api_key) == ("gpt-4o-mini", "sk-mine")


def test_a_key_in_the_environment_names_no_upstream() -> None:
    os.environ["OPENAI_API_KEY"] = "sk-of-other-programs"
    assert Settings.load().openai_api_base == ""


@pytest.mark.parametrize(
    ("text", "base", "model"),
    [
        ("OPENAI_MODEL=m\n", "https://api.openai.com/v1", "m"),
        ("OPENAI_API_BASE=http://up.example/v1\n", "http://up.example/v1", ""),
        ("OPENAI_BASE_URL=http://up.example/v1\n", "http://up.example/v1", ""),
        ("CHAT_URL=http://bot.example\n", "", ""),
        ("CONFIG=backends.toml\n", "", ""),
    ],
)
def test_a_named_upstream_and_model_win_over_openais(text: str, base: str, model: str) -> None:
    env_file(f"OPENAI_API_KEY=sk-mine\n{text}")
    settings = Settings.load()
    assert (settings.openai_api_base, settings.openai_model) == (base, model)


def test_use_mock_api_wins_over_a_key_in_the_env_file() -> None:
    env_file("OPENAI_API_KEY=sk-mine\nUSE_MOCK_API=true\n")
    assert "the mock" in create_app(Settings.load()).gateway.summary()


async def post(
    settings: Settings, payload: dict[str, Any], router: respx.Router | None = None
) -> Any:
    async with client(settings, router) as some:
        return await some.post(CHAT, json=payload)


@pytest.mark.anyio
async def test_a_request_goes_to_openai_with_the_key_of_the_env_file() -> None:
    env_file("OPENAI_API_KEY=sk-mine\n")
    router = respx.MockRouter()
    message = {"role": "assistant", "content": "Hi"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    completion = {"id": "c", "object": "chat.completion", "choices": [choice]}
    route = router.post("https://api.openai.com/v1/chat/completions").respond(json=completion)
    answer = await post(Settings.load(), {"messages": MESSAGES}, router)
    assert answer.status_code == 200
    sent = route.calls.last.request
    assert sent.headers["authorization"] == "Bearer sk-mine"
    assert orjson.loads(sent.content) == {"model": "gpt-4o-mini", "messages": MESSAGES}


def test_openai_base_url_is_another_name_of_openai_api_base() -> None:
    os.environ["OPENAI_BASE_URL"] = "http://up.example/v1"
    assert Settings.load().openai_api_base == "http://up.example/v1"
    os.environ["OPENAI_API_BASE"] = "http://up.example/v1/"
    assert Settings.load().openai_api_base == "http://up.example/v1/"
    os.environ["OPENAI_API_BASE"] = "http://other.example/v1"
    with pytest.raises(ValueError, match=r"^OPENAI_API_BASE and OPENAI_BASE_URL are two"):
        Settings.load()


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1", "http://127.0.0.1:8000", "http://[::1]:8000/v1"]
)
@pytest.mark.parametrize("name", ["OPENAI_BASE_URL", "OPENAI_API_BASE", "CHAT_URL"])
def test_an_upstream_that_is_this_server_itself_stops_the_start(name: str, url: str) -> None:
    """The variable for clients of this server is often set in the same shell."""
    os.environ[name] = url
    with pytest.raises(ValueError, match="is the address of this server itself"):
        Settings.load()
    os.environ["PORT"] = "8001"
    Settings.load()
    os.environ |= {"PORT": "8000", "USE_MOCK_API": "true"}
    Settings.load()


# Requests without a model.


@pytest.mark.anyio
@pytest.mark.parametrize("payload", [{}, {"model": None}, {"model": ""}])
async def test_the_mock_answers_a_request_without_a_model(payload: dict[str, Any]) -> None:
    answer = await post(Settings(), {"messages": MESSAGES, **payload})
    assert (answer.status_code, answer.json()["model"]) == (200, "mock-gpt-model")


@pytest.mark.anyio
@pytest.mark.parametrize("payload", [{}, {"model": None}, {"model": ""}])
async def test_require_model_rejects_a_request_without_a_model(payload: dict[str, Any]) -> None:
    answer = await post(Settings(require_model=True), {"messages": MESSAGES, **payload})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "you must provide a model parameter"


@pytest.mark.anyio
@pytest.mark.parametrize("model", [0, False, [], {}, 5])
async def test_a_model_that_is_no_string_is_rejected(model: object) -> None:
    answer = await post(Settings(), {"messages": MESSAGES, "model": model})
    assert answer.status_code == 400


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("settings", "model"),
    [({"openai_model": "small"}, "small"), ({}, "chat-url")],
)
async def test_a_chat_url_gets_a_model_for_a_request_without_one(
    settings: dict[str, str], model: str
) -> None:
    router = respx.MockRouter()
    route = router.post("http://bot.example/ask").respond(json={"reply": "Hi"})
    chat_url = Settings(chat_url="http://bot.example/ask", **settings)  # type: ignore[arg-type]
    answer = await post(chat_url, {"messages": MESSAGES}, router)
    assert (answer.status_code, answer.json()["model"]) == (200, model)
    assert orjson.loads(route.calls.last.request.content)["model"] == model


@pytest.mark.anyio
async def test_an_upstream_without_openai_model_needs_one_from_the_client() -> None:
    settings = Settings(openai_api_base="http://up.example/v1")
    answer = await post(settings, {"messages": MESSAGES}, respx.MockRouter())
    assert answer.status_code == 400


# The store.


@pytest.mark.anyio
async def test_store_by_default_stores_every_chat_that_does_not_refuse() -> None:
    settings = Settings(store_by_default=True)
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as some,
    ):
        ids: list[str] = []
        for store in ({}, {"store": None}, {"store": True}, {"store": False}):
            answer = await some.post(CHAT, json={"messages": MESSAGES, **store})
            ids.append(answer.json()["id"])
        streamed = await some.post(CHAT, json={"messages": MESSAGES, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        listed = [item["id"] for item in (await some.get(CHAT)).json()["data"]]
    assert len(listed) == 4
    assert set(listed) >= set(ids[:3])
    assert ids[3] not in listed


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_mock_stores_in_memory_and_leaves_no_file(tmp_path: Path, workers: str) -> None:
    """Several processes do not share a memory: they get the file that other backends get."""
    with serving(tmp_path, WORKERS=workers) as url:
        body = {"messages": MESSAGES, "store": True}
        stored = httpx.post(f"{url}{CHAT}", json=body, trust_env=False).json()["id"]
        found = httpx.get(f"{url}{CHAT}/{stored}", trust_env=False)
        assert found.status_code == 200
    files = {path.name for path in tmp_path.iterdir() if path.suffix == ".db"}
    assert files == ({"chat.db"} if workers == "2" else set())


def test_another_backend_stores_in_a_file(tmp_path: Path) -> None:
    settings = Settings(chat_url="http://bot.example/ask")
    store = create_app(settings).gateway.store
    assert getattr(store, "path", "") == "chat.db"


def test_every_setting_has_a_text_that_ends_a_sentence() -> None:
    for spec in fields(Settings):
        about = spec.metadata["about"]
        assert about.endswith("."), spec.name
        assert "  " not in about
