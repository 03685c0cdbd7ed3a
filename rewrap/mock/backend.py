"""The backend that answers by itself: an echo, tool calls, structured output, or the answer of a rule.

Imports types, and the delta helpers of its own room.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Protocol

from rewrap.memory import gathered, within_budget
from rewrap.mock.answers import RuleAnswer, as_stream
from rewrap.mock.echo import echo, prompt_words
from rewrap.mock.embedding import embed_all
from rewrap.mock.faults import FaultRate, parse_faults
from rewrap.mock.faulty_send import FaultySend
from rewrap.mock.judging import named_categories
from rewrap.mock.pace import NO_PACE, broken_off, paced
from rewrap.mock.reply import is_plain_echo
from rewrap.mock.rules import RuleSet
from rewrap.mock.script import PLAIN, Plan, Script, scripted
from rewrap.threads import apart
from rewrap.types import (
    APIError,
    Backend,
    ChatRequest,
    Checks,
    Delta,
    Deltas,
    JSONObject,
    ResponseInfo,
    in_portions,
    model_card,
    usage,
)


class Mock:
    """Answers by itself: the same reply for the same request, offline. Rules and faults may script it.

    A word is a token here, so that `max_tokens` and `usage` are predictable. `words_per_second` 0 sends all at once.
    """

    model = "mock-gpt-model"
    default_model = model
    summary = f"the mock answers, as {model} or any other name"

    def __init__(
        self,
        words_per_second: float = 0.0,
        name: str = "mock",
        reply_bytes: int = 64 * 2**20,
        script: Script | None = None,
    ) -> None:
        self.embed = embed_all
        self.judge = named_categories
        self.words_per_second = words_per_second
        self.name = name
        self.reply_bytes = reply_bytes
        self.script = script or Script()
        self.others: Mapping[str, Backend] = {}  # backends that a rule may pass a request on to

    def checks(self, model: str) -> Checks:
        return Checks.OPENAI

    async def models(self, client_headers: Mapping[str, str]) -> list[JSONObject]:
        return [model_card(self.model)]

    async def stream(self, request: ChatRequest, info: ResponseInfo) -> Deltas:
        found = await apart(self.plan_or_echo, request, info)
        if isinstance(found, list):
            for delta in found:
                yield delta
            return
        async with aclosing(self.planned(found, request, info)) as deltas:
            async for delta in deltas:
                yield delta

    async def whole(self, request: ChatRequest, info: ResponseInfo) -> list[Delta]:
        found = await apart(self.plan_or_echo, request, info)
        if isinstance(found, list):
            # One Delta is no larger than the prompt, whose memory is reserved.
            return found if len(found) == 1 else within_budget(found)
        return await gathered(self.planned(found, request, info))

    def plan_or_echo(self, request: ChatRequest, info: ResponseInfo) -> Plan | list[Delta]:
        """The plan for a reply, or the Deltas of an echo that answers at once. Raises APIError."""
        plan = self.script.plan(request, info)
        if plan is PLAIN and not self.words_per_second and is_plain_echo(request):
            return self.echoed(request, info)
        return plan

    async def planned(self, plan: Plan, request: ChatRequest, info: ResponseInfo) -> Deltas:
        """The reply by the plan: its answer, pace and faults. Raises APIError."""
        info.headers += plan.headers
        if plan.faults:
            info.wrap_send = partial(FaultySend, plan.faults)
        answer = plan.answer
        if answer is not None and answer.backend:
            async with aclosing(self.passed_on(answer.backend, request, info)) as deltas:
                async for delta in deltas:
                    yield delta
            return
        if answer is None and is_plain_echo(request):
            deltas = as_stream(await apart(self.echoed, request, info))
        else:
            deltas = as_stream(scripted(answer, request, info))
        pace = plan.pace
        if self.words_per_second and not pace.words_per_second:
            pace = replace(pace, words_per_second=self.words_per_second)
        if pace != NO_PACE:
            deltas = paced(deltas, pace)
        if plan.faults:
            deltas = broken_off(deltas, plan.faults)
        async with aclosing(deltas):
            async for delta in deltas:
                yield delta

    async def answers_to(self, request: ChatRequest, info: ResponseInfo) -> list[RuleAnswer | None]:
        """The answers of the rules to the inputs of embeddings or of a moderation.

        Applies the faults and the pace. Raises APIError.
        """
        plan, answers = await apart(self.script.plan_inputs, request, info)
        info.headers += plan.headers
        if plan.faults:
            info.wrap_send = partial(FaultySend, plan.faults)
        if plan.pace.first_byte_ms:
            await asyncio.sleep(plan.pace.first_byte_ms / 1000)
        for answer in answers:
            if answer is not None and answer.error:
                raise answer.error.error()
        return answers

    def echoed(self, request: ChatRequest, info: ResponseInfo) -> list[Delta]:
        """The Deltas of an echo; the usage is noted. Raises APIError."""
        reply = echo(request)
        choices = request.payload.get("n") or 1
        if choices > 1 and choices * len(reply.text) > self.reply_bytes:
            message = "The mock's reply is too large: it repeats the prompt 'n' times."
            raise APIError(400, message, param="n")
        info.usage = usage(prompt_words(request), reply.tokens * choices)
        deltas: list[Delta] = []
        for index in range(choices):
            deltas += in_portions(Delta(reply.text, reply.finish_reason, index, whole=True))
        return deltas

    def passed_on(self, name: str, request: ChatRequest, info: ResponseInfo) -> Deltas:
        """The reply of another backend. Raises APIError if a rule names one that does not exist."""
        if name not in self.others:
            raise APIError(
                400, f"A rule of the mock names the backend {name!r}, which is not there."
            )
        info.backend = name
        return self.others[name].stream(request, info)


class MockSettings(Protocol):
    """The settings of the mock."""

    # fmt: off
    @property
    def mock_rules(self) -> str: ...
    @property
    def mock_strict(self) -> bool: ...
    @property
    def mock_fault_rate(self) -> float: ...
    @property
    def mock_faults(self) -> Sequence[str]: ...
    @property
    def mock_seed(self) -> int: ...
    @property
    def mock_words_per_second(self) -> float: ...
    @property
    def max_reply_bytes(self) -> int: ...
    # fmt: on

    def secrets(self) -> list[str]: ...


def configured_mock(settings: MockSettings) -> Mock:
    """The mock of the settings. Raises ValueError, in one line that names the setting."""
    rules = None
    if settings.mock_rules:
        try:
            rules = RuleSet.load(settings.mock_rules)
        except ValueError as error:
            raise ValueError(f"MOCK_RULES: {error}") from None
    rate = None
    if settings.mock_fault_rate:
        try:
            faults = parse_faults(",".join(settings.mock_faults))
        except ValueError as error:
            raise ValueError(f"MOCK_FAULTS: {error}") from None
        rate = FaultRate(settings.mock_fault_rate, faults, settings.mock_seed)
    script = Script(rules, strict=settings.mock_strict, rate=rate, secrets=settings.secrets())
    return Mock(settings.mock_words_per_second, reply_bytes=settings.max_reply_bytes, script=script)


def connect_mocks(backends: Sequence[Backend], script: Script) -> None:
    """Give the mocks of a file the script, and the other backends for rules that pass a request on."""
    others = {backend.name: backend for backend in backends}
    for backend in backends:
        if isinstance(backend, Mock):
            backend.script = script
            script.answers = True
            backend.others = others
