"""The pytest plugin, in runs of pytest on small test files that use the openai package."""

import tomllib
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import dedent

import httpcore2
import openai
import pytest
from serving import ROOT

import rewrap.main
import rewrap.pytest_plugin
import rewrap.testing.mock_openai
import rewrap.testing.server_thread
from rewrap.mock.script import Script

pytest_plugins = ["pytester"]

# A run in this process forgets the modules that it has imported. Imported twice, two classes of one
# exception differ.
KEPT = (httpcore2, openai, rewrap.main, rewrap.testing.mock_openai, rewrap.testing.server_thread)
STRICT = "[pytest]\nfilterwarnings = error\naddopts = --strict-markers\n"
HEAD = """
import openai
import pytest

def ask(text="Hello", **more):
    messages = [{"role": "user", "content": text}]
    with openai.OpenAI() as client:
        answer = client.chat.completions.create(model="gpt-4o", messages=messages, **more)
    return answer.choices[0].message
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a test file with the plugin. Warnings are errors there."""

    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini(STRICT)

    def run_file(source: str) -> pytest.RunResult:
        pytester.makepyfile(HEAD + dedent(source))
        return pytester.runpytest_inprocess("-p", "anyio", plugins=[rewrap.pytest_plugin])

    return run_file


def test_the_client_of_the_environment_reaches_the_mock(run: Run) -> None:
    result = run("""
        import os

        def test_default(mock_openai):
            assert ask("Hello").content == "This is a mock reply to: Hello"
            assert os.environ["OPENAI_BASE_URL"] == mock_openai.base_url

        def test_after(monkeypatch):
            assert "OPENAI_BASE_URL" not in os.environ
    """)
    result.assert_outcomes(passed=2)


def test_replies_are_scripted_in_order(run: Run) -> None:
    result = run("""
        def test_replies(mock_openai):
            hello = mock_openai.reply("hi", when="hello")
            mock_openai.reply("later", priority=-1)
            mock_openai.reply("Aha, {topic}!", when={"message": {"regex": "about (?P<topic>.+)"}})
            mock_openai.reply("once", times=1)
            assert ask("hello").content == "hi"
            assert ask("talk about tea").content == "Aha, tea!"
            assert [ask("x").content, ask("x").content] == ["once", "later"]
            assert [request.message for request in hello.requests] == ["hello"]
    """)
    result.assert_outcomes(passed=1)


def test_a_tool_call_and_other_fields_of_rules_are_scripted(run: Run) -> None:
    result = run("""
        TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}

        def test_tool(mock_openai):
            mock_openai.reply(tool="get_weather", arguments={"city": "Rome"}, when="weather?")
            mock_openai.reply(json={"total": 3}, when={"response_format": "json_object"})
            mock_openai.rule([{"text": "one"}, {"refusal": "No."}])
            (call,) = ask("weather?", tools=[TOOL]).tool_calls
            assert (call.function.name, call.function.arguments) == ("get_weather", '{"city":"Rome"}')
            assert ask("JSON!", response_format={"type": "json_object"}).content == '{"total":3}'
            assert ask("x").content == "one"
            assert ask("x").refusal == "No."
            assert mock_openai.requests[0].tools == ["get_weather"]

        def test_misfit(mock_openai):
            mock_openai.reply(tool="get_weather", arguments={"town": "Rome"})
            with pytest.raises(openai.BadRequestError, match="do not fit its schema"):
                ask("weather?", tools=[TOOL])

        def test_mistake(mock_openai):
            with pytest.raises(ValueError, match="reply 1.*text and json exclude each other"):
                mock_openai.reply("a", json={})
    """)
    result.assert_outcomes(passed=3)


def test_failures_end_after_their_times(run: Run) -> None:
    result = run("""
        def test_retries(mock_openai):
            mock_openai.fail(429, retry_after=0.01, times=2)
            assert ask("Hello").content.endswith("Hello")
            assert [request.status for request in mock_openai.requests] == [429, 429, 200]

        def test_error(mock_openai):
            mock_openai.fail("context_length", message="Too long.", when="long")
            with pytest.raises(openai.BadRequestError, match="Too long.") as caught:
                ask("long")
            assert caught.value.code == "context_length_exceeded"

        def test_fault(mock_openai):
            mock_openai.reply("Hello", fault="cut", times=1)
            assert ask("again").content == "This is a mock reply to: again"
    """)
    result.assert_outcomes(passed=3)


def test_streams_have_the_scripted_pieces(run: Run) -> None:
    result = run("""
        import time

        def test_stream(mock_openai):
            mock_openai.stream(["a", "b", "c"], words_per_second=20)
            messages = [{"role": "user", "content": "Hello"}]
            began = time.monotonic()
            with openai.OpenAI() as client:
                with client.chat.completions.create(
                    model="m", messages=messages, stream=True
                ) as chunks:
                    texts = [chunk.choices[0].delta.content for chunk in chunks]
            assert [text for text in texts if text] == ["a", "b", "c"]
            assert time.monotonic() - began >= 0.09
    """)
    result.assert_outcomes(passed=1)


def test_requests_are_seen_whole(run: Run) -> None:
    result = run("""
        def test_requests(mock_openai):
            long = "x" * 200_000
            ask(long, temperature=0.5, extra_headers={"x-team": "red"})
            (request,) = mock_openai.requests
            assert request.messages == [{"role": "user", "content": long}]
            assert (request.model, request.api, request.status) == ("gpt-4o", "chat", 200)
            assert request.body["temperature"] == 0.5
            assert request.headers["x-team"] == "red"
            assert "authorization" not in request.headers
    """)
    result.assert_outcomes(passed=1)


def test_assert_asked_takes_the_conditions_of_rules(run: Run) -> None:
    result = run("""
        def test_asked(mock_openai):
            with pytest.raises(AssertionError, match="no request"):
                mock_openai.assert_asked()
            ask("order 17")
            ask("order 18")
            mock_openai.assert_asked("order 17")
            mock_openai.assert_asked(contains="order", times=2)
            mock_openai.assert_asked(regex="1[78]$", model="gpt-4*")
            mock_openai.assert_asked(contains="invoice", times=0)
            with pytest.raises(ValueError, match="unknown"):
                mock_openai.assert_asked(modell="gpt-4o")
            mock_openai.assert_asked(contains="order", model="o3")
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*0 of 2 requests match; expected at least 1.", "*requests*1* (chat): model: *'gpt-4o'*"]
    )


def test_no_state_passes_from_one_test_to_the_next(run: Run) -> None:
    result = run("""
        from threading import Thread

        ids = []

        def test_one(mock_openai):
            mock_openai.reply("scripted")
            ids.append(mock_openai.url)
            with openai.OpenAI() as client:
                client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "x"}], store=True)

        def test_two(mock_openai):
            assert mock_openai.url == ids[0]
            assert mock_openai.requests == []
            assert ask("Hello").content != "scripted"
            with openai.OpenAI() as client:
                assert client.chat.completions.list().data == []

        def test_request_that_hangs(mock_openai):
            mock_openai.reply("never", fault="hang=1m")
            errors = []
            def asks():
                with openai.OpenAI(max_retries=0) as client:
                    with pytest.raises(openai.APIConnectionError):
                        client.responses.create(model="m", input="x")
            thread = Thread(target=asks)
            thread.start()
            ids.append(thread)
            while not mock_openai.requests:
                pass

        def test_after_it(mock_openai):
            ids[-1].join(10)
            assert not ids[-1].is_alive()
            assert mock_openai.requests == []
    """)
    result.assert_outcomes(passed=4)


def test_async_tests_use_it_as_well(run: Run) -> None:
    result = run("""
        import asyncio

        pytestmark = pytest.mark.anyio

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        async def test_async(mock_openai):
            mock_openai.reply("hi")
            messages = [{"role": "user", "content": "Hello"}]
            async with openai.AsyncOpenAI() as client:
                create = client.chat.completions.create
                answers = await asyncio.gather(
                    *(create(model="m", messages=messages) for _ in range(20)))
            assert {answer.choices[0].message.content for answer in answers} == {"hi"}
            assert len(mock_openai.requests) == 20
    """)
    result.assert_outcomes(passed=1)


RULES = """
[[rule]]
when = "Hello"
then = "from the file"
"""


def test_a_marker_names_rules_and_is_enough_to_use_the_mock(
    run: Run, pytester: pytest.Pytester
) -> None:
    pytester.makefile(".toml", rules=RULES)
    result = run("""
        @pytest.mark.mock_openai(rules="rules.toml")
        def test_file():
            assert ask("Hello").content == "from the file"

        @pytest.mark.mock_openai(rules="rules.toml")
        def test_own_replies_go_first(mock_openai):
            mock_openai.reply("own", times=1)
            assert [ask("Hello").content, ask("Hello").content] == ["own", "from the file"]

        @pytest.mark.mock_openai(rules=[{"when": "Hello", "then": "from the list"}])
        class TestList:
            def test_list(self):
                assert ask("Hello").content == "from the list"

            @pytest.mark.mock_openai(strict=True)
            def test_markers_add_up(self):
                assert ask("Hello").content == "from the list"
    """)
    result.assert_outcomes(passed=4)


def test_a_wrong_marker_is_an_error(run: Run) -> None:
    result = run("""
        @pytest.mark.mock_openai(rules="missing.toml")
        def test_missing(mock_openai):
            pass

        @pytest.mark.mock_openai(rule="rules.toml")
        def test_name(mock_openai):
            pass
    """)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*missing.toml: cannot be read*", "*takes rules=* and strict=*"])


def test_a_request_without_a_match_fails_a_strict_test_with_the_difference(run: Run) -> None:
    result = run("""
        pytestmark = pytest.mark.mock_openai(
            strict=True, rules=[{"name": "greeting", "when": "Hello", "then": "Hi"}])

        def test_matched():
            assert ask("Hello").content == "Hi"

        def test_swallowed():
            try:
                ask("Helo")
            except openai.NotFoundError:
                pass

        def test_raised():
            ask("Good morning")
    """)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "1 requests to the mock matched no rule (strict):",
            "  chat, model gpt-4o: Nearest is greeting: message: expected 'Hello', got 'Helo'.",
            "*NotFoundError*No rule of the mock matches*",
            "*mock_openai*",
            "*Nearest is greeting: message: expected 'Hello', got 'Good morning'.",
        ]
    )


def test_no_proxy_and_no_other_address_of_the_environment_is_used(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("OPENAI_API_BASE", "https://api.example/v1")
    result = run("""
        import os

        def test_direct(mock_openai):
            assert ask("Hello").content.endswith("Hello")
            assert os.environ["NO_PROXY"] == "127.0.0.1,example.org"
            assert "OPENAI_API_BASE" not in os.environ
    """)
    result.assert_outcomes(passed=1)


def test_the_loggers_of_the_process_stay_as_they_were(run: Run) -> None:
    result = run("""
        import logging

        def levels():
            names = ("", "uvicorn", "uvicorn.error", "uvicorn.access")
            loggers = [logging.getLogger(name) for name in names]
            return [(row.level, row.propagate, row.disabled) for row in loggers]

        BEFORE = levels()

        def test_levels(mock_openai, caplog):
            ask("Hello")
            assert levels() == BEFORE
            assert [row.message for row in caplog.records if row.name.startswith("rewrap")] == []
    """)
    result.assert_outcomes(passed=1)


@pytest.fixture
def process(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs pytest in a process of its own."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return partial(pytester.runpytest_subprocess, "-p", "rewrap.pytest_plugin")


def test_workers_of_xdist_have_a_server_each(pytester: pytest.Pytester, process: Run) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(
        HEAD
        + dedent("""
        import os
        from pathlib import Path

        @pytest.mark.parametrize("number", range(6))
        def test_own(number, mock_openai):
            name = os.environ["PYTEST_XDIST_WORKER"]
            mock_openai.reply(name)
            assert ask("Hello").content == name
            assert len(mock_openai.requests) == 1
            Path(f"{name}.url").write_text(mock_openai.url)
    """)
    )
    result = process("-p", "xdist", "-n", "2", "--dist", "each")
    result.assert_outcomes(passed=12)
    assert len({file.read_text() for file in pytester.path.glob("*.url")}) == 2


UNUSED = """
import sys

def test_unused():
    loaded = sorted(name for name in sys.modules if name.split(".")[0] in NAMES)
    assert loaded == ["rewrap", "rewrap.pytest_plugin"]

NAMES = ("rewrap", "main", "backends", "uvicorn", "starlette", "httpx", "orjson", "uvloop")
"""


def test_a_run_that_does_not_use_it_imports_nothing(
    pytester: pytest.Pytester, process: Run
) -> None:
    pytester.makepyfile(UNUSED)
    result = process()
    result.assert_outcomes(passed=1)


def test_the_log_has_no_handler_of_the_mock(pytester: pytest.Pytester, process: Run) -> None:
    pytester.makepyfile("""
        import logging

        def test_handlers(mock_openai):
            assert logging.getLogger().handlers == []
    """)
    process("-p", "no:logging").assert_outcomes(passed=1)


def test_the_package_names_the_plugin_as_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    value = project["entry-points"]["pytest11"]["rewrap"]
    assert EntryPoint("rewrap", value, "pytest11").load() is rewrap.pytest_plugin


def test_pytest_lists_the_marker(process: Run) -> None:
    process("--markers").stdout.fnmatch_lines(["@pytest.mark.mock_openai(rules=None, strict=*"])


def test_recordings_answer_after_the_first_run(run: Run, tmp_path: Path) -> None:
    """The upstream of the first test is the mock itself, on a server of its own."""
    upstream = rewrap.testing.server_thread.ServerThread()
    upstream.start()
    upstream.use(rewrap.pytest_plugin.app_of(Script()))
    folder = tmp_path / "recordings"
    result = run(f"""
        def test_records(mock_openai):
            mock_openai.record({str(folder)!r}, upstream={upstream.url + "/v1"!r})
            assert ask("Hello").content == "This is a mock reply to: Hello"
            assert mock_openai.requests[-1].message == "Hello"
            assert mock_openai.requests[-1].status == 200
    """)
    upstream.stop()
    result.assert_outcomes(passed=1)
    (file,) = folder.iterdir()
    file.write_text(file.read_text().replace("mock reply to: Hello", "reply that was edited"))
    result = run(f"""
        def test_replays(mock_openai):
            mock_openai.record({str(folder)!r})
            assert ask("Hello").content == "This is a reply that was edited"
            with pytest.raises(openai.NotFoundError, match="no recording"):
                ask("Something else")
            mock_openai.assert_asked(contains="else")
    """)
    result.assert_outcomes(passed=1)
