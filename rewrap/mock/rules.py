"""The rules of the mock: which one answers a request, and with which step.

The first match wins, by priority, then in the order of the files. Rules for exact user messages
are found in a dict, so 10,000 of them cost a request no more than 10. Knows no HTTP.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import field
from heapq import merge
from pathlib import Path

from rewrap.mock.answers import RuleAnswer
from rewrap.mock.conditions import HEADER, Captures, shown
from rewrap.mock.facts import Facts
from rewrap.mock.rules_file import MAX_RULES, Rule, parse_rules, read_rules, rule_files
from rewrap.structs import struct

log = logging.getLogger("rewrap")
RELOAD_SECONDS = 1.0
MAX_COUNTED = 100_000  # pairs of a lane and a rule; beyond them the oldest is forgotten
COMPARED = 1_000  # characters of two messages whose words are compared for the nearest rule

Ranked = tuple[int, Rule]  # a rule and its place in the order
# Of each file: its name, the time of its last change, its size.
FolderSignature = tuple[tuple[str, int, int], ...]


@struct(slots=True)
class Counts:
    """The uses of one rule in one lane."""

    answered: int = 0
    matched: int = 0  # times that the conditions held, for `nth`


UNUSED = Counts()


@struct(slots=True)
class RuleState:
    """The counts of all rules in all lanes."""

    counts: OrderedDict[tuple[str, Rule], Counts] = field(default_factory=OrderedDict)

    def of(self, rule: Rule, lane: str) -> Counts:
        """The counts of a rule in a lane, to be changed."""
        key = (lane, rule)
        counts = self.counts.setdefault(key, Counts())
        self.counts.move_to_end(key)
        if len(self.counts) > MAX_COUNTED:
            self.counts.popitem(last=False)
        return counts

    def reset(self) -> None:
        self.counts.clear()


class Index:
    """Rules in their order, those for exact user messages by message."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = sorted(
            rules, key=lambda rule: -rule.priority
        )  # stable: files keep their order
        self.others: list[Ranked] = []
        self.by_message: dict[str, list[Ranked]] = {}
        for place, rule in enumerate(self.rules):
            if not rule.exact:
                self.others.append((place, rule))
            for message in dict.fromkeys(rule.exact):
                self.by_message.setdefault(message, []).append((place, rule))
        self.has_nth = any(rule.nth for rule in rules)
        conditions = [condition for rule in rules for condition in rule.conditions]
        self.looks_at_headers = any(condition.name.startswith(HEADER) for condition in conditions)

    def candidates(self, facts: Facts) -> Iterable[Ranked]:
        """The rules that can match a request, in their order."""
        if not self.by_message:
            return self.others
        exact = self.by_message.get(facts.message)
        if not exact:
            return self.others
        if not self.others:
            return exact
        return merge(exact, self.others, key=lambda ranked: ranked[0])


class RuleSet:
    """The rules of files, and those that were added since. Threads may share it."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.from_files: list[Rule] = []
        self.added: list[Rule] = []
        self.state = RuleState()
        self.index: Index | None = None  # made anew when it is needed after a change
        self.signature: FolderSignature = ()
        self.lock = threading.Lock()
        self.clock: Callable[[], float] = time.monotonic
        self.next_look = 0.0

    @classmethod
    def load(cls, path: str | Path) -> "RuleSet":
        """The rules of a TOML file, or of a folder of them.

        Raises ValueError: file, rule and reason in one line.
        """
        rules = cls()
        rules.path = Path(path)
        rules.signature = signature_of(rules.path)
        rules.from_files = read_rules(rule_files(rules.path))
        return rules

    def reload_if_changed(self) -> bool:
        """Read the files again if they have changed, and start all counts again.

        Looks once a second at most. A mistake in the files is logged once, and the rules that
        were read before stay in use.
        """
        if self.path is None:
            return False
        now = self.clock()
        if now < self.next_look:
            return False
        self.next_look = now + RELOAD_SECONDS
        signature = signature_of(self.path)
        if signature == self.signature:
            return False
        self.signature = signature
        try:
            rules = read_rules(rule_files(self.path))
        except ValueError as error:
            log.warning("MOCK_RULES: %s; the rules read before stay in use", error)
            return False
        with self.lock:
            self.from_files = rules
            self.index = None
            self.state.reset()
        log.info("MOCK_RULES: %d rules read again", len(rules))
        return True

    def add(self, tables: object) -> int:
        """Add a list of rule tables, before the rules of files. Returns how many they are.

        Raises ValueError and adds none if one of them is wrong.
        """
        rules = parse_rules(tables, "added rules")
        with self.lock:
            if len(self.added) + len(rules) > MAX_RULES:
                raise ValueError(f"added rules: there are more than {MAX_RULES} rules")
            self.added += rules
            self.index = None
        return len(rules)

    def reset(self) -> None:
        """Forget all counts, and all rules that were added."""
        with self.lock:
            self.added = []
            self.index = None
            self.state.reset()

    def __len__(self) -> int:
        return len(self.added) + len(self.from_files)

    def look_at_headers(self) -> bool:
        """Whether a rule has a condition on a header."""
        with self.lock:
            return self.indexed().looks_at_headers

    def indexed(self) -> Index:
        if self.index is None:
            self.index = Index([*self.added, *self.from_files])
        return self.index

    def match(self, facts: Facts) -> RuleAnswer | None:
        """The answer of the first rule that matches, counted as used; None if no rule does.

        Requests take the steps of a rule in the order of these calls: it has to be called before
        anything of the request is awaited.
        """
        with self.lock:
            return self.first_match(facts)

    def first_match(self, facts: Facts) -> RuleAnswer | None:
        index = self.indexed()
        answer: RuleAnswer | None = None
        for _, rule in index.candidates(facts):
            if answer is not None and not rule.nth:
                continue
            captures: Captures = {}
            step = self.step(rule, facts, captures)
            if step is not None and answer is None:
                answer = step.filled(facts, captures)
                if rule.counts:
                    self.state.of(rule, facts.lane).answered += 1
            # Rules with `nth` count their matches even where a rule before them answers.
            if answer is not None and not index.has_nth:
                break
        return answer

    def step(self, rule: Rule, facts: Facts, captures: Captures) -> RuleAnswer | None:
        """The step with which a rule answers a request, or None. Counts the match for `nth`."""
        if not all(condition.holds(facts, captures) for condition in rule.conditions):
            return None
        counts = UNUSED
        if rule.counts:
            counts = self.state.of(rule, facts.lane)
        step = next_step(rule, counts)
        if step is None or is_loop(rule, step, facts) or not is_for(step, facts.api):
            return None
        if rule.nth:
            counts.matched += 1
        return step if rule.nth in (0, counts.matched) else None

    def nearest(self, facts: Facts) -> str:
        """The rule nearest to a request that no rule matches, and the differences, in one line.

        Counts nothing.
        """
        with self.lock:
            rules = self.indexed().rules
        if not rules:
            return "There are no rules."
        rule = min(rules, key=lambda rule: distance(rule, facts))
        failed = [condition for condition in rule.conditions if not condition.holds(facts, {})]
        reasons = [condition.difference(facts) for condition in failed]
        return f"Nearest is {rule.label}: {'; '.join(reasons) or self.why_not(rule, facts)}."

    def why_not(self, rule: Rule, facts: Facts) -> str:
        """The reason why a rule does not answer although its conditions hold."""
        counts = self.state.counts.get((facts.lane, rule), UNUSED)
        lane = f" in lane {shown(facts.lane)}" if facts.lane else ""
        step = next_step(rule, counts)
        if step is None:
            return f"it has ended{lane} after {counts.answered} answers"
        if is_loop(rule, step, facts):
            return "this turn has a result of the tool that it calls, and no on_tool_result = true"
        if not is_for(step, facts.api):
            return f"its answer is not one of {facts.api}"
        return f"nth: it answers match {rule.nth}, this is match {counts.matched}{lane}"


def next_step(rule: Rule, counts: Counts) -> RuleAnswer | None:
    """The step that is next by the counts; None where the rule has ended."""
    if rule.times and counts.answered >= rule.times:
        return None
    if rule.ends and counts.answered >= len(rule.steps):
        return None
    return rule.steps[min(counts.answered, len(rule.steps) - 1)]


def is_loop(rule: Rule, step: RuleAnswer, facts: Facts) -> bool:
    """Whether a step calls a tool that has a result in this turn: an agent would never end."""
    if rule.on_tool_result or not step.tool_calls or not facts.turn_results:
        return False
    called = {call.name for call in step.tool_calls}
    return any(result.tool in called or not result.tool for result in facts.turn_results)


def is_for(step: RuleAnswer, api: str) -> bool:
    """Whether a step can answer this API: a chat takes no vector, and embeddings take no text."""
    if step.embedding:
        return api == "embeddings"
    if step.flagged:
        return api == "moderations"
    if api in ("embeddings", "moderations"):
        return not step.has_content and not step.backend
    return True


def distance(rule: Rule, facts: Facts) -> tuple[int, float]:
    """How far a rule is from matching: the conditions that fail, then how unlike messages are."""
    failed = [condition for condition in rule.conditions if not condition.holds(facts, {})]
    likenesses = [text_likeness(text, facts.message) for text in rule.exact]
    return len(failed), -max(likenesses, default=0.0)


def text_likeness(one: str, other: str) -> float:
    """The share of words that two texts have in common, from 0 to 1."""
    these = set(one[:COMPARED].split())
    those = set(other[:COMPARED].split())
    return len(these & those) / (len(these | those) or 1)


def signature_of(path: Path) -> FolderSignature:
    """Differs after a change of the files. Without files it is empty."""
    found = []
    try:
        for file in rule_files(path):
            status = file.stat()
            found.append((str(file), status.st_mtime_ns, status.st_size))
    except (OSError, ValueError):
        return ()
    return tuple(found)
