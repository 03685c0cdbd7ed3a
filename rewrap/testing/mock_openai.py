"""The object that a test gets from the fixture `mock_openai`: it scripts the mock, and reads its requests.

Does not know pytest, nor the app.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rewrap.mock.conditions import CONDITIONS, Condition, parse_condition
from rewrap.mock.facts import Facts
from rewrap.mock.replay import ReplayJournal
from rewrap.mock.rules import RuleSet
from rewrap.mock.rules_file import parse_rules
from rewrap.mock.script import Script
from rewrap.mock.tables import CheckedTable
from rewrap.structs import struct
from rewrap.types import ChatRequest, JSONObject, ResponseInfo

API_KEY = "sk-mock"
SHOWN_REQUESTS = 5  # in the message of a failed assertion

# As in a rule file: the exact last user message, or a table of conditions.
When = str | Mapping[str, object]
Error = int | str | Mapping[str, object]


@struct(slots=True)
class MockRequest:
    """A request that the mock got. `status` is 0 until it is answered."""

    facts: Facts
    rule: str = ""  # the name of the rule that answered; "" for the default answer
    difference: str = ""  # in strict mode, why the nearest rule did not match
    status: int = 0

    @property
    def api(self) -> str:
        """`chat`, `responses`, `completions`, `embeddings`, `moderations` or `ask`."""
        return self.facts.api

    @property
    def model(self) -> str:
        return self.facts.model

    @property
    def messages(self) -> list[JSONObject]:
        """The messages in the form of chat completions, whichever API the client used."""
        return self.facts.messages

    @property
    def message(self) -> str:
        """The text of the last user message."""
        return self.facts.message

    @property
    def tools(self) -> list[str]:
        """The names of the functions that the request offers."""
        return list(self.facts.tools)

    @property
    def headers(self) -> Mapping[str, str]:
        """The client's headers, by lower-case name, without its credentials."""
        return self.facts.headers

    @property
    def body(self) -> JSONObject:
        """All members of the request in the form of chat completions."""
        return self.facts.payload


class WatchedScript(Script):
    """A Script that keeps every request whole, for the test that it serves."""

    def __init__(self, rules: RuleSet | None, *, strict: bool) -> None:
        super().__init__(rules, strict=strict)
        self.seen: list[MockRequest] = []

    def needs_headers(self, names: Iterable[bytes]) -> bool:
        return True

    def note(
        self, request: ChatRequest, info: ResponseInfo, lane: str, rule: str, difference: str
    ) -> None:
        super().note(request, info, lane, rule, difference)
        self.watch(request, info, rule, difference)

    def watch(self, request: ChatRequest, info: ResponseInfo, rule: str, difference: str) -> None:
        """Keep a request, and the status of its answer."""
        facts = Facts.of(request, request.api, request.client_headers)
        entry = MockRequest(facts, rule, difference)
        self.seen.append(entry)
        for_journal = info.on_status

        def answered(status: int) -> None:
            entry.status = status
            if for_journal is not None:
                for_journal(status)

        info.on_status = answered


class WatchedJournal(ReplayJournal):
    """The journal of a test that is answered by recordings."""

    def __init__(self, script: WatchedScript) -> None:
        super().__init__(script)
        self.watched = script

    def begin(self, request: ChatRequest, info: ResponseInfo) -> None:
        super().begin(request, info)
        self.watched.watch(request, info, "", "")


@struct(frozen=True, slots=True)
class ScriptedAnswer:
    """An answer that a test has scripted. `requests` are those that got it."""

    name: str
    mock: "MockOpenAI"

    @property
    def requests(self) -> list[MockRequest]:
        return [request for request in self.mock.requests if request.rule == self.name]


class MockOpenAI:
    """The mock of one test: a real server, at `base_url`, with no state of other tests.

    Answers are scripted by rules: the first that matches a request answers, in the order of the
    calls, then those of a rule file. Without a match the mock gives its default answer; with
    `strict` it answers 404, and the test fails.
    """

    def __init__(
        self,
        url: str,
        script: WatchedScript,
        settle: Callable[[], None],
        replay: Callable[[str | Path, str, str], None],
    ) -> None:
        self.url = url
        self.base_url = f"{url}/v1"
        self.api_key = API_KEY
        self.script = script
        self.settle = settle
        self.replay = replay
        self.count = 0

    # Answers. They raise ValueError for a rule that is wrong.

    def reply(
        self,
        text: str | None = None,
        *,
        when: When | None = None,
        tool: str = "",
        arguments: Mapping[str, object] | str | None = None,
        times: int = 0,
        priority: int = 0,
        **then: object,
    ) -> ScriptedAnswer:
        """Answer with a text, or with a call of a tool, which the request has to offer.

        `when` is the exact last user message, or a table of conditions; without it every request
        matches. `times`: so many requests at most. `then` are other fields of a rule's answer:
        json, reasoning, refusal, tool_calls, finish_reason, usage, fault, words_per_second ...
        """
        answer: dict[str, object] = dict(then)
        if text is not None:
            answer["text"] = text
        if tool:
            answer["tool"] = tool
        if arguments is not None:
            answer["arguments"] = arguments
        return self.rule(answer, when=when, times=times, priority=priority, kind="reply")

    def stream(
        self,
        pieces: Sequence[str],
        *,
        words_per_second: float = 0.0,
        when: When | None = None,
        times: int = 0,
        priority: int = 0,
        **then: object,
    ) -> ScriptedAnswer:
        """Answer with a text in pieces: each is a chunk of a stream. 0 words a second: at once."""
        answer = {"pieces": list(pieces), "words_per_second": words_per_second} | then
        return self.rule(answer, when=when, times=times, priority=priority, kind="stream")

    def fail(
        self,
        error: Error = 500,
        *,
        retry_after: float | None = None,
        when: When | None = None,
        times: int = 0,
        priority: int = 0,
        **members: object,
    ) -> ScriptedAnswer:
        """Answer with an error: a status, or a name such as `rate_limit` or `context_length`.

        `retry_after` is in seconds. `members` are `message`, `type`, `code` and `param`.
        """
        table = dict(members)
        if isinstance(error, int):
            table["status"] = error
        elif isinstance(error, str):
            table["name"] = error
        else:
            table |= error
        if retry_after is not None:
            table["retry_after"] = retry_after
        answer = {"error": table}
        return self.rule(answer, when=when, times=times, priority=priority, kind="fail")

    def record(self, folder: str | Path, *, upstream: str = "", key: str = "") -> None:
        """From now on, recordings answer in place of rules. `folder` is beside the test.

        With an `upstream` (a base URL; of OpenAI, if a `key` is given alone), requests without a
        recording go there, and are recorded: once, since later runs find the recordings. Without
        both they get 404, which names the nearest recording. Raises ValueError for an empty folder.
        """
        self.replay(folder, upstream, key)

    def rule(
        self,
        then: object,
        *,
        when: When | None = None,
        times: int = 0,
        priority: int = 0,
        kind: str = "rule",
        **fields: object,
    ) -> ScriptedAnswer:
        """Add a rule as a rule file has it. `then` may be a list of answers, taken in turn."""
        self.count += 1
        name = f"{kind} {self.count}"
        table: dict[str, object] = {"name": name, "then": then, "priority": priority} | fields
        if when is not None:
            table["when"] = plain_value(when)
        if times:
            table["times"] = times
        self.script.rules.add([plain_value(table)])
        return ScriptedAnswer(str(table["name"]), self)

    # Requests.

    @property
    def requests(self) -> list[MockRequest]:
        """All requests of this test that the mock accepted, in order of arrival."""
        self.settle()
        return list(self.script.seen)

    @property
    def unmatched(self) -> list[MockRequest]:
        """Requests that no rule matched, in strict mode."""
        return [request for request in self.requests if request.difference]

    def assert_asked(
        self,
        message: str | Sequence[str] | None = None,
        *,
        contains: str | Sequence[str] | None = None,
        regex: str = "",
        times: int | None = None,
        **conditions: object,
    ) -> None:
        """Assert that a request came with this last user message and these conditions.

        `conditions` are those of a rule: `model="gpt-4o*"`, `system={"contains": "pirate"}`,
        `tools="get_weather"`, `tool_result=True`. `times`: exactly so many requests.
        """
        test = {"exact": message, "contains": contains, "regex": regex}
        given = {name: value for name, value in test.items() if value}
        if given:
            conditions["message"] = given
        parsed = parse_conditions(conditions)
        requests = self.requests
        found = [request for request in requests if not differences(parsed, request)]
        if (times is None and found) or len(found) == times:
            return
        raise AssertionError(failure_of(parsed, requests, len(found), times))


def rules_of(source: object, folder: Path) -> RuleSet:
    """The rules of a file or folder, whose path is relative to `folder`, or of a list of tables.

    Raises ValueError.
    """
    if source is None:
        return RuleSet()
    if isinstance(source, (str, Path)):
        return RuleSet.load(folder / source)
    rules = RuleSet()
    rules.from_files = parse_rules(plain_value(source), "rules")
    return rules


def plain_value(value: object) -> object:
    """A value as a TOML file gives it: mappings are dicts, and other sequences are lists."""
    if isinstance(value, Mapping):
        return {str(name): plain_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    return value


def parse_conditions(conditions: Mapping[str, object]) -> list[Condition]:
    """Raises ValueError for a condition that there is not."""
    table = CheckedTable(plain_value(conditions), "assert_asked", CONDITIONS)
    found: list[Condition] = []
    for name, value in table.members.items():
        found += parse_condition(name, value, name)
    return found


def differences(conditions: Sequence[Condition], request: MockRequest) -> list[str]:
    facts = request.facts
    return [row.difference(facts) for row in conditions if not row.holds(facts, {})]


def failure_of(
    conditions: Sequence[Condition],
    requests: Sequence[MockRequest],
    found: int,
    times: int | None,
) -> str:
    """The message of an assertion that failed: the last requests, and why they do not match."""
    if not requests:
        return "The mock got no request."
    wanted = "at least 1" if times is None else str(times)
    lines = [f"{found} of {len(requests)} requests match; expected {wanted}."]
    start = max(0, len(requests) - SHOWN_REQUESTS)
    for position, request in enumerate(requests[start:], start):
        reasons = differences(conditions, request) or ["matches"]
        lines.append(f"  requests[{position}] ({request.api}): {'; '.join(reasons)}")
    return "\n".join(lines)
