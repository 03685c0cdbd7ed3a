"""The search for the API of one chat URL.

Sends one short message in the likely ways until one gets a reply, then asks for a stream. Errors that name a field lead to a
request with it. The requests go through backends, so that the printed settings work when served. Follows no redirect.
"""

from collections import deque
from dataclasses import field, replace

from rewrap.backends import ChatURL
from rewrap.probe.attempts import (
    PLACES,
    SESSION,
    Attempt,
    ChatId,
    Options,
    Outcome,
    at_other_places,
    attempts,
    with_end,
    with_extra_field,
    with_fields,
    with_names,
    with_reply,
    without_leftovers,
)
from rewrap.probe.field_hints import wanted_fields
from rewrap.probe.recording import ProbeClient, ask, limits_of
from rewrap.probe.reply_candidates import chat_id_in, events_with, json_values, reply_path
from rewrap.structs import struct
from rewrap.types import APIError
from rewrap.upstream.shapes import known_shapes

MAX_REQUESTS = 40
RESERVED = 3  # of the requests: for a stream, and for the id of the chat
MAX_SAME = 2  # identical answers of an address that no other request is going to change
WRONG_ADDRESS = (404, 405, 410, 501)


@struct
class Finding:
    """The result of a search. `reply` is None if there is none; `guess` may be one."""

    reply: Outcome | None = None
    streamed: Outcome | None = None  # the outcome of a request for a stream
    guess: Outcome | None = None  # a good answer in which several texts may be the reply
    guessed: bool = False  # the place of the reply is the likeliest of several
    chat_id: ChatId | None = None
    advice: str = ""  # the reason to stop early
    failures: list[Outcome] = field(default_factory=list)


class Search:
    """One search."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.client = ProbeClient(options.timeout)
        self.finding = Finding()
        self.plan: deque[Attempt] = deque()
        self.tried: set[str] = set()

    async def run(self) -> Finding:
        async with self.client:
            if self.options.mapping:
                self.plan.append(Attempt(self.options.url, "", self.options.mapping))
            else:
                self.plan.extend(attempts(self.options.url, known_shapes()))
                self.plan.extend(with_names(self.options.url, place) for place in PLACES)
            await self.try_all()
            found = self.finding
            if found.reply is None and found.guess is not None and not found.advice:
                likeliest = found.guess.texts[0].path
                guessed = with_reply(found.guess.attempt, likeliest, found.guess.marker)
                found.reply = await self.ask(guessed)
                found.guessed = True
            if found.reply is not None and not found.reply.deltas:
                found.reply = None
            if found.reply is not None and found.reply.attempt.names:
                found.reply = await self.with_needed_names(found.reply)
            if found.reply is not None:
                found.streamed = await self.ask_stream(found.reply.attempt)
                found.chat_id = await self.chat_id(found.reply, found.streamed)
        return found

    async def try_all(self) -> None:
        """Try the plan until there is a reply beyond doubt, or a reason to stop."""
        doubtful: Outcome | None = None
        while self.plan and self.client.requests < MAX_REQUESTS - RESERVED:
            attempt = self.plan.popleft()
            try:
                if self.is_hopeless(attempt):
                    continue
            except ValueError:
                continue
            outcome = await self.ask(attempt, stream=self.options.stream)
            if outcome.deltas and outcome.is_certain:
                self.finding.reply = outcome
                return
            if outcome.deltas:
                doubtful = doubtful or outcome
                # It may answer without having read the prompt: try other names of it, and nothing else.
                names = None if attempt.names else with_names(attempt.url, "body")
                self.plan = deque([names] if names and not self.options.mapping else [])
                continue
            self.finding.failures.append(outcome)
            self.finding.advice = self.reason_to_stop()
            if self.finding.advice:
                break
            self.plan_next(outcome)
        self.finding.reply = doubtful

    def plan_next(self, outcome: Outcome) -> None:
        """Put before the plan what an answer without a reply suggests."""
        attempt = outcome.attempt
        if outcome.is_good and not attempt.has_path and outcome.texts:
            path = self.place_of_reply(outcome)
            if path:
                fewer = without_leftovers(attempt, path, outcome.marker)
                whole = with_reply(attempt, path, outcome.marker)
                self.plan.extendleft([whole, *([fewer] if fewer else [])])
            elif not self.options.reply and outcome.texts[0].candidate and not self.finding.guess:
                self.finding.guess = outcome
        if outcome.response is None:
            return
        if outcome.is_good and attempt.has_path:
            self.plan_end(outcome, outcome.response.content)
        if self.options.mapping:
            return
        wanted = wanted_fields(outcome.response.content)
        if not wanted:
            return
        better = with_fields(attempt, wanted)
        self.plan_first([better] if better else at_other_places(attempt))

    def place_of_reply(self, outcome: Outcome) -> str | None:
        """The path of the reply in a good answer: that of --reply, or of the one text that stands out."""
        asked = self.options.reply
        if not asked:
            return reply_path(outcome.texts)
        assert outcome.response is not None
        return asked if events_with(json_values(outcome.response.content), asked) else None

    def plan_end(self, outcome: Outcome, body: bytes) -> None:
        """Try a mapping again whose text is there, with the marker that ends the stream."""
        attempt = outcome.attempt
        ended = with_end(attempt, outcome.marker)
        if ended != attempt and events_with(json_values(body), attempt.table["reply"]):
            self.plan.appendleft(ended)

    def plan_first(self, planned: list[Attempt]) -> None:
        """Put attempts before the plan, each table once."""
        new = [attempt for attempt in planned if str(attempt.table) not in self.tried]
        self.tried.update(str(attempt.table) for attempt in new)
        self.plan.extendleft(reversed(new))

    def is_hopeless(self, attempt: Attempt) -> bool:
        """Whether its address answers everything alike, with a status that no body is going to change."""
        target = attempt.target(self.options.model)
        same = [
            failure.response.content
            for failure in self.finding.failures
            if failure.response is not None
            and failure.status in WRONG_ADDRESS
            and f"{failure.response.request.method} {failure.response.request.url}" == target
        ]
        return len(same) >= MAX_SAME and len(set(same)) == 1

    def reason_to_stop(self) -> str:
        """The reason to stop after a failure; "" if there is none."""
        outcome = self.finding.failures[-1]
        previous = self.finding.failures[-2] if len(self.finding.failures) > 1 else None
        if outcome.status == 429:
            return "The URL limits the rate of requests: try again later."
        if "Connect" in outcome.failure:
            return "The URL cannot be reached."
        if previous is None:
            return ""
        unauthorized = outcome.status in (401, 403) and outcome.status == previous.status
        if unauthorized and not (self.options.key or self.options.headers):
            return "The URL wants a key: --key KEY, or --header 'Name: value'."
        if "Timeout" in outcome.failure and "Timeout" in previous.failure:
            return "The URL is too slow: --timeout SECONDS allows more time."
        return ""

    async def with_needed_names(self, outcome: Outcome) -> Outcome:
        """The same reply with as few names as are needed."""
        attempt = outcome.attempt
        names = attempt.names
        best = outcome
        while best.attempt.names != names or len(names) > 1:
            if self.client.requests >= MAX_REQUESTS - RESERVED:
                break
            asked = names[: len(names) // 2] or names
            fewer = with_names(attempt.url, attempt.place, asked)
            if attempt.has_path:
                fewer = with_reply(fewer, attempt.table["reply"], outcome.marker)
            smaller = await self.ask(fewer)
            if smaller.deltas and smaller.is_certain:
                best = smaller
                names = asked
            elif asked == names:
                break
            else:
                names = names[len(asked) :]
        return best

    async def ask_stream(self, attempt: Attempt) -> Outcome:
        """Ask for a stream. A mapping gets the place of the text in its events, if that is another one."""
        outcome = await self.ask(attempt, stream=True)
        if outcome.deltas or not attempt.has_path or not outcome.is_good:
            return outcome
        path = reply_path(outcome.texts)
        if not path:
            return outcome
        stream = {**attempt.table.get("stream", {}), "reply": path}
        table = {**attempt.table, "stream": stream}
        other = Attempt(attempt.url, "", table, attempt.names)
        return await self.ask(with_end(other, outcome.marker), stream=True)

    async def chat_id(self, reply: Outcome, other: Outcome) -> ChatId | None:
        """The id of the chat in an answer. It works if it comes back when it is sent, and `other` got another one."""
        attempt = reply.attempt
        if not attempt.has_path:
            return None
        given = chat_id_in(reply.texts, str(attempt.table["reply"]))
        if given is None:
            return None
        found = ChatId(given.path)
        if SESSION in str(attempt.table):
            return ChatId(given.path, works=bool(self.options.mapping))
        again = with_extra_field(attempt, found.name, given.text)
        others = {text.text for text in other.texts if text.path == given.path}
        if again is None or not others or given.text in others or "{" in given.text:
            return found
        outcome = await self.ask(again)
        came_back = any(
            (text.path, text.text) == (given.path, given.text) for text in outcome.texts
        )
        return ChatId(given.path, works=bool(outcome.deltas) and came_back)

    async def ask(self, attempt: Attempt, *, stream: bool = False) -> Outcome:
        """Send the prompt through a backend for this attempt."""
        try:
            backend = ChatURL(
                self.client,
                attempt.url,
                attempt.shape(),
                key=self.options.key,
                headers=self.options.headers,
                limits=limits_of(self.options.timeout),
            )
        except (APIError, ValueError) as error:
            return Outcome(attempt, [], str(error), None)
        outcome = await ask(self.client, backend, attempt, self.options.model, stream=stream)
        if outcome.is_marker:
            return replace(outcome, deltas=[], failure="the end of a stream alone")
        if self.options.reply not in ("", ".") and not attempt.has_path:
            return replace(outcome, deltas=[], failure="the reply is at another place")
        return outcome
