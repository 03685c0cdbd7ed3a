"""The scripted mock: rules, faults and the journal in front of the mock's own reply.

A Script decides once per request, before anything is awaited: the rule, its step, the faults, the pace. Imports types and the
mock's modules.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any

import orjson

from rewrap.mock.answers import RuleAnswer, answer_deltas
from rewrap.mock.echo import prompt_words
from rewrap.mock.facts import Facts
from rewrap.mock.faults import Fault, FaultRate, FaultState, faults_of
from rewrap.mock.journal import Entry, Journal
from rewrap.mock.pace import Pace
from rewrap.mock.reply import deltas_of_reply, reply_to
from rewrap.mock.rules import RuleSet
from rewrap.structs import struct
from rewrap.types import APIError, ChatRequest, Delta, Headers, JSONObject, ResponseInfo, usage

PATHS = {
    "chat": "/v1/chat/completions",
    "ask": "/ask",
    "responses": "/v1/responses",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "moderations": "/v1/moderations",
}
PENDING = 1000  # requests that are noted before the journal is read
PENDING_BYTES = 2**17  # a larger body is cut at once
JOURNAL_BYTES = 2**20  # of the notes and the entries
MOCK_HEADERS = "x-mock-"


@struct(slots=True)
class Plan:
    """The decision for one request."""

    answer: RuleAnswer | None = None
    faults: Sequence[Fault] = ()
    pace: Pace = field(default_factory=Pace)
    headers: Headers = field(default_factory=list)


@struct(slots=True)
class Note:
    """A request that the journal has not copied yet: copying costs more than the mock's whole reply."""

    id: str
    time: float
    api: str
    model: str
    lane: str
    body: bytes
    rule: str
    difference: str
    status: int = 0

    def answered(self, status: int) -> None:
        self.status = status


class Script:
    """Rules from MOCK_RULES and from the control API, fault rates, and the journal."""

    def __init__(
        self,
        rules: RuleSet | None = None,
        *,
        strict: bool = False,
        rate: FaultRate | None = None,
        secrets: Iterable[str] = (),
    ) -> None:
        self.rules = rules or RuleSet()
        self.strict = strict
        self.rate = rate
        self.secrets = list(secrets)
        self.faults = FaultState()
        self.journal = Journal(max_bytes=JOURNAL_BYTES)
        self.pending: deque[Note] = deque()
        self.pending_bytes = 0
        self.requests = 0
        self.answers = True  # False: only its journal is used
        self.on_reset: Callable[[], None] | None = None

    def needs_headers(self, names: Iterable[bytes]) -> bool:
        """Whether the headers of a request can matter. To decode all of them costs 5 µs.

        A rule that is added while a request is read does not see its headers.
        """
        self.rules.reload_if_changed()
        if len(self.rules) and self.rules.look_at_headers():
            return True
        return b"x-mock-" in b" ".join(names)  # 1.3 µs less than a loop

    def plan(self, request: ChatRequest, info: ResponseInfo) -> Plan:
        """Raises APIError: an error that a rule, a header or a rate demands, or 404 in strict mode without a rule."""
        self.requests += 1
        self.rules.reload_if_changed()
        headers = request.client_headers
        scripted = bool(len(self.rules)) or self.strict
        undisturbed = self.rate is None and not has_mock_header(headers)
        if not scripted and undisturbed:
            self.note(request, info, "", "", "")
            return PLAIN
        facts = Facts.of(request, request.api, headers)
        answer, difference = self.matched(facts)
        self.note(request, info, facts.lane, answer.rule if answer else "", difference)
        if difference:
            raise no_match(difference)
        if answer is None and undisturbed:
            return PLAIN
        return self.decided(answer, facts, headers)

    def plan_inputs(
        self, request: ChatRequest, info: ResponseInfo
    ) -> tuple[Plan, list[RuleAnswer | None]]:
        """The plan of a request whose messages are inputs of their own, and the answer to each.

        Faults and pace are those of the first input that a rule answers. Raises APIError.
        """
        self.requests += 1
        self.rules.reload_if_changed()
        headers = request.client_headers
        inputs = [
            Facts.of(replace(request, messages=[message]), request.api, headers)
            for message in request.messages
        ]
        found = [self.matched(facts) for facts in inputs]
        answers = [answer for answer, _ in found]
        first = next(filter(None, answers), None)
        difference = next((text for _, text in found if text), "")
        self.note(request, info, inputs[0].lane, first.rule if first else "", difference)
        if difference:
            raise no_match(difference)
        return self.decided(first, inputs[0], headers), answers

    def matched(self, facts: Facts) -> tuple[RuleAnswer | None, str]:
        """The answer of the rules, and in strict mode without one the difference to the nearest."""
        answer = self.rules.match(facts) if len(self.rules) else None
        if answer is None and self.strict:
            return None, self.rules.nearest(facts)
        return answer, ""

    def decided(self, answer: RuleAnswer | None, facts: Facts, headers: Mapping[str, str]) -> Plan:
        """The faults and the pace of a request. Raises APIError for faults that are errors."""
        plan = Plan(answer)
        requested = faults_of(headers)
        model = facts.model
        plan.headers += self.faults.admit(requested, lane=facts.lane, model=model)
        plan.faults = [*requested]
        if answer is not None:
            scope = answer.rule
            plan.headers += self.faults.admit(
                answer.faults, lane=facts.lane, scope=scope, model=model
            )
            plan.faults = [*requested, *answer.faults]
            plan.pace = answer.pace
        if self.rate is not None and not plan.faults:
            drawn = self.rate.faults_for(self.requests)
            plan.headers += self.faults.admit(drawn, scope="rate", model=model)
            plan.faults = [*drawn]
        plan.pace = plan.pace.with_headers(headers)
        return plan

    # The journal.

    def note(
        self, request: ChatRequest, info: ResponseInfo, lane: str, rule: str, difference: str
    ) -> None:
        body = request.body
        if not body or len(body) > PENDING_BYTES:
            self.copy_notes()
            entry = self.record(
                Note(info.request_id, 0.0, request.api, request.model, lane, b"", rule, difference),
                request.messages,
            )

            info.on_status = entry.answered
            return
        noted = Note(
            info.request_id,
            time.time(),
            request.api,
            request.model,
            lane,
            body,
            rule,
            difference,
        )
        self.add_note(noted)
        info.on_status = noted.answered

    def add_note(self, note: Note) -> None:
        """Notes are newer than all entries of the journal, which are forgotten first."""
        if len(self.pending) == PENDING:
            self.pending_bytes -= len(self.pending.popleft().body)
        self.pending.append(note)
        self.pending_bytes += len(note.body)
        if self.pending_bytes + self.journal.bytes > JOURNAL_BYTES:
            self.journal.clear()
        while self.pending_bytes > JOURNAL_BYTES:
            self.pending_bytes -= len(self.pending.popleft().body)

    def copy_notes(self) -> None:
        """Move the noted requests to the journal."""
        self.pending_bytes = 0
        while self.pending:
            note = self.pending.popleft()
            payload: JSONObject = orjson.loads(note.body)
            entry = self.record(note, payload.get("messages") or [])
            entry.time = note.time
            entry.status = note.status

    def record(self, note: Note, messages: list[JSONObject]) -> Entry:
        return self.journal.record(
            id=note.id,
            api=note.api,
            path=PATHS.get(note.api, ""),
            model=note.model,
            messages=messages,
            lane=note.lane,
            rule=note.rule,
            difference=note.difference,
            secrets=self.secrets,
        )

    def entries(self, *, model: str, path: str, rule: str, limit: int) -> list[Entry]:
        """The last requests, oldest first."""
        self.copy_notes()
        return self.journal.find(model=model, path=path, rule=rule, limit=limit)

    def clear(self) -> None:
        """Forget the journal."""
        self.pending.clear()
        self.pending_bytes = 0
        self.journal.clear()

    def reset(self) -> None:
        """Forget the journal, all counts, and the rules that were added."""
        self.clear()
        self.rules.reset()
        self.faults.reset()
        self.requests = 0
        if self.on_reset is not None:
            self.on_reset()


PLAIN = Plan()


def no_match(difference: str) -> APIError:
    message = f"No rule of the mock matches (MOCK_STRICT). {difference}"
    return APIError(404, message, code="mock_no_match", reason="no rule")


def has_mock_header(headers: Mapping[str, str]) -> bool:
    return bool(headers) and any(name.startswith(MOCK_HEADERS) for name in headers)


def scripted(answer: RuleAnswer | None, request: ChatRequest, info: ResponseInfo) -> list[Delta]:
    """The Deltas of a rule's answer, or of the mock's own reply; the usage is noted. Raises APIError."""
    if answer is not None and (answer.error or answer.has_content):
        deltas = answer_deltas(answer, request, check=misfit_of, fill=arguments_for)
        tokens = sum([len(delta.content.split()) for delta in deltas])
        reasoning = 0
    else:
        reply = reply_to(request)
        choices = request.payload.get("n") or 1
        deltas = []
        for index in range(choices):
            deltas += deltas_of_reply(reply, index)
        tokens = reply.tokens * choices
        reasoning = reply.reasoning_tokens
        if answer is not None and answer.finish_reason:
            for delta in deltas:
                delta.finish_reason = delta.finish_reason and answer.finish_reason
    counts = usage(prompt_words(request), tokens + reasoning)
    counts["completion_tokens_details"]["reasoning_tokens"] = reasoning
    info.usage = counts
    if answer is not None:
        info.usage = counts | (answer.usage or {})
        info.model = answer.model or info.model
        info.id = answer.id or info.id
    return deltas


def misfit_of(schema: JSONObject, arguments: Any) -> str:
    """The reason why arguments do not fit a schema; "" if they do."""
    from rewrap.mock.budget import Budget
    from rewrap.mock.validation import Validator

    if Validator(schema, Budget()).valid(schema, arguments):
        return ""
    return "they are not valid"


def arguments_for(schema: JSONObject, prompt: str) -> object:
    from rewrap.mock.budget import SchemaError
    from rewrap.mock.schema import value_for

    try:
        return value_for(schema, prompt)
    except SchemaError as error:
        raise APIError(400, error.message, param="tools") from None
