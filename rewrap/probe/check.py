"""`rewrap probe --check FILE [NAME]`: asks each backend of a file, and shows where its reply was looked for."""

import re
from collections.abc import Iterator, Mapping

from rewrap.backends import ChatURL, table_backend
from rewrap.config.backends_file import BackendTable, read_backends_file
from rewrap.config.settings import Settings, variables
from rewrap.probe.attempts import Attempt, Options, Outcome
from rewrap.probe.recording import ProbeClient, ask
from rewrap.probe.reply_candidates import events_with, json_values
from rewrap.probe.report import Report
from rewrap.upstream.paths import alternatives, find, parse_path
from rewrap.upstream.shapes import MappedShape

STEP = re.compile(r"\[[^\]]*\]|\.?[^.\[\]]+")
MEMBERS = 12  # of an object that are listed


async def check_backends(path: str, name: str, seconds: float) -> int:
    """Print the checks; the exit status: 0 if all backends replied, 2 if there is no such file or backend."""
    try:
        tables = read_backends_file(path, variables())
        chosen = [table for table in tables if name in ("", table.name)]
        if not chosen:
            names = ", ".join(table.name for table in tables)
            raise ValueError(f"{path} has no backend {name!r}; there are: {names}")
        checks = [await check_backend(table, path, seconds) for table in chosen]
    except ValueError as error:
        print(f"rewrap: {error}")
        return 2
    return 0 if all(checks) else 1


async def check_backend(table: BackendTable, path: str, seconds: float) -> bool:
    """Ask one backend without and with a stream, and print what it did."""
    print(f"backend {table.name!r} ({table.kind})")
    if table.kind == "mock":
        print("  answers by itself\n")
        return True
    async with ProbeClient(seconds) as client:
        backend = table_backend(table, client, settings_for(path, seconds))
        assert isinstance(backend, ChatURL)
        attempt = Attempt(table.url)
        report = Report(Options(table.url, table.headers, table.key))
        model = table.model or "gpt-4o-mini"
        whole = await ask(client, backend, attempt, model)
        lines = report.exchange(whole)
        if isinstance(backend.shape, MappedShape) and whole.response is not None:
            lines += reply_steps(backend.shape, whole)
        lines.append(result_of(whole, report))
        if whole.deltas:
            streamed = await ask(client, backend, attempt, model, stream=True)
            lines.append(f"  stream: {stream_result(streamed)}")
    print("\n".join([*lines, ""]))
    return bool(whole.deltas)


def settings_for(path: str, seconds: float) -> Settings:
    """The settings of a check: no answer may take longer than `seconds`."""
    return Settings(
        config=path,
        first_byte_timeout_seconds=seconds,
        stall_timeout_seconds=seconds,
        total_timeout_seconds=seconds,
    )


def result_of(outcome: Outcome, report: Report) -> str:
    if outcome.deltas:
        return f"  reply: {report.shown(outcome.text)}"
    return f"  no reply: {outcome.failure}"


def stream_result(outcome: Outcome) -> str:
    if not outcome.deltas:
        return f"fails: {outcome.failure}"
    if not outcome.streamed():
        return "no, the reply comes whole"
    return f"yes, {sum(bool(delta.content) for delta in outcome.deltas)} pieces"


def reply_steps(shape: MappedShape, outcome: Outcome) -> Iterator[str]:
    """The path of the reply, step by step, through the answer."""
    assert outcome.response is not None
    values = json_values(outcome.response.content)
    if not values:
        yield "  the answer is not JSON"
        return
    place = shape.table["reply"]
    stream = shape.table.get("stream")
    if len(values) > 1 and isinstance(stream, Mapping):
        place = stream.get("reply", place)
    for path in alternatives(place, "reply"):
        yield f"  path  {path}"
        text = ""
        for step in STEP.findall(path):
            text += step
            yield f"    {text}: {standing_at(values, text)}"
            if not events_with(values, text):
                break


def standing_at(values: list[object], path: str) -> str:
    """What stands at a path of an answer, or in how many of its events something does."""
    if len(values) == 1:
        return description(find(values[0], parse_path(path, "reply")))
    return f"in {events_with(values, path) or 'none'} of {len(values)} events"


def description(value: object) -> str:
    """The kind of a value, and what is in it."""
    if value is None:
        return "not there"
    if isinstance(value, dict):
        more = ", ..." if len(value) > MEMBERS else ""
        return f"an object with {', '.join(list(value)[:MEMBERS])}{more}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return "a text"
    return str(value)
