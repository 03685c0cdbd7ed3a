r"""Regular expressions with a bounded cost: Python's `re`, guarded against texts that keep it busy.

Clients control the text, and `re` holds the interpreter while it backtracks: no timeout can end
it. So there are two guards.

1. When a pattern is compiled, a repeat of a repeat or of alternatives (`(a+)+`, `(a|b)*`) is
   refused, as is a backreference: their cost can double with each character.
2. Before a pattern runs, its cost on this very text is bounded from above, in linear time: the
   places where a match could start, and for each repeat its longest run and the places where it
   could end. A text with a bound above MAX_STEPS counts as one that does not match.

Imports leaf files alone.
"""

import re
from dataclasses import field

from rewrap.regex import regex
from rewrap.structs import struct

MAX_STEPS = 20_000_000  # a step takes 3 to 6 ns: 0.1 s at most
# Steps for one character of `.+`, of `[a-z]+`, of `.+?`, for one repetition of a group: measured.
ANY_STEPS = 1
SET_STEPS = 3
LAZY_STEPS = 4
GROUP_STEPS = 64
MAX_COPIES = 8  # of a group with repeats, as in `(\d{1,3}\.){3}`
UNBOUNDED = 2**31
# Texts of at most one of these lengths are searched as they are: the worst of them is not costly.
SAFE_LENGTHS = (32, 128, 512, 4096, 32_768, 262_144)
TOKEN = regex(
    r"""(?P<refused>\\[1-9]|\(\?P=|\(\?\(|\(\?[aiLmsux-]+:|\(\?[a-zA-Z]*x)
    | (?P<skipped>\(\?[aiLmsu]+\)|\(\?\#[^)]*\))
    | (?P<open>\((?:\?(?:P<\w+>|<?[=!]|[:>]))?)
    | (?P<close>\))
    | (?P<bar>\|)
    | (?P<quantifier>(?:[*+?]|\{\d*,\d*\}|\{\d+\})[?+]?)
    | (?P<set>\[\^?\]?(?:\\.|[^\]\\])*\]|\\[dDsSwWAbBZ]|[.^$])
    | (?P<literal>\\(?:x..|u.{4}|U.{8}|N\{[^}]*\}|0[0-7]{0,2}|.)|.)""",
    re.VERBOSE | re.DOTALL,
)
COMMITTING = ("(?>", "(?=", "(?!", "(?<=", "(?<!")
BRACES = regex(r"\{(\d*)(,?)(\d*)\}")
BOUNDS = {"*": (0, UNBOUNDED), "+": (1, UNBOUNDED), "?": (0, 1)}


@struct(slots=True)
class Item:
    """An element of a pattern: one character (`source`), or a group with its alternatives."""

    source: str
    is_literal: bool = False
    alternatives: list[list["Item"]] = field(default_factory=list)
    minimum: int = 1
    maximum: int = 1
    steps: int = SET_STEPS
    commits: bool = False  # possessive, atomic or a lookaround: `re` never comes back into it
    following: str | None = ""  # the literal text that has to come after it; None: the end

    @property
    def varies(self) -> bool:
        """Whether it can match one text in several ways."""
        if self.commits:
            return False
        inside = any(item.varies for sequence in self.alternatives for item in sequence)
        return self.minimum != self.maximum or len(self.alternatives) > 1 or inside


class SafePattern:
    """A compiled regular expression, searched for at a bounded cost.

    Raises ValueError, in one line, where it is none or its cost cannot be bounded.
    """

    def __init__(self, source: str) -> None:
        try:
            self.compiled = re.compile(source)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"regex {source!r}: {error}") from None
        self.source = source
        self.names = tuple(self.compiled.groupindex)
        flags = re.ASCII | re.IGNORECASE | re.DOTALL | re.MULTILINE
        self.flags = self.compiled.flags & flags
        self.branches = [Branch(sequence, self.flags) for sequence in parse(source)]
        self.safe_length = 0
        if self.steps(Measure(0)) > MAX_STEPS:
            raise ValueError(f"regex {source!r}: too many alternatives and repeats")
        for length in SAFE_LENGTHS:
            if self.steps(Measure(length)) > MAX_STEPS:
                break
            self.safe_length = length

    def search(self, text: str) -> re.Match[str] | None:
        if self.is_costly(text):
            return None
        return self.compiled.search(text)

    def is_costly(self, text: str) -> bool:
        if len(text) <= self.safe_length:
            return False
        return self.steps(MeasureOfText(text, self.flags)) > MAX_STEPS

    def steps(self, measure: "Measure") -> int:
        """An upper bound of the steps that a search takes."""
        return sum(branch.steps(measure) for branch in self.branches)


class Branch:
    """An alternative of a pattern: how it begins, and its choices. Other items cost little."""

    def __init__(self, sequence: list[Item], flags: int) -> None:
        annotate(sequence, None)
        first = sequence[0] if sequence else Item("")
        is_start = first.source == "^" and not flags & re.MULTILINE
        self.starts_once = is_start or first.source == r"\A"
        self.prefix = ""  # the text that every match begins with
        if first.is_literal and first.minimum == first.maximum == 1:
            self.prefix = first.source + (first.following or "")
        self.choices = choice_items(sequence)

    def steps(self, measure: "Measure") -> int:
        starts = measure.length + 1
        if self.starts_once:
            starts = 1
        elif self.prefix:
            starts = measure.occurrences(self.prefix)
        # A repeat at the end cannot fail: its longest run counts once, for the match.
        return starts * measure.cost(self.choices, 1) + measure.length


def choice_items(sequence: list[Item]) -> list[Item]:
    """The items where `re` has a choice, and lookarounds and the like."""
    found = [item for item in sequence if item.varies or item.commits]
    for item in found:
        item.alternatives = [choice_items(inner) for inner in item.alternatives]
    return found


class Measure:
    """Costs on the worst text of a length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def reach(self, item: Item) -> int:
        """The longest run of an item."""
        return self.length

    def occurrences(self, literal: str) -> int:
        return self.length

    def cost(self, sequence: list[Item], rest: int) -> int:
        """Steps for a sequence from one start, where the items after it take `rest` steps."""
        for item in reversed(sequence):
            rest = min(self.cost_of(item, rest), MAX_STEPS + 1)  # no number grows without end
        return rest

    def cost_of(self, item: Item, rest: int) -> int:
        if item.commits:
            return self.repeat_cost(item) + rest
        if item.following is None and not item.alternatives:
            return (item.minimum + 1) * item.steps
        if not item.alternatives or item.maximum > MAX_COPIES:
            longest = min(self.reach(item), item.maximum)
            ends = max(0, longest - item.minimum + 1)
            if item.following:
                ends = min(ends, self.occurrences(item.following))
            return self.repeat_cost(item) + ends * rest
        total = rest
        for _ in range(item.maximum):
            total = self.group_cost(item, total)
            if item.minimum == 0:
                total += rest
        return total

    def repeat_cost(self, item: Item) -> int:
        """Steps for an item repeated as often as it can be."""
        times = 1 + min(self.reach(item), item.maximum)
        if item.alternatives:
            return times * (GROUP_STEPS + self.group_cost(item, 1))
        return times * item.steps

    def group_cost(self, item: Item, rest: int) -> int:
        return SET_STEPS + sum(self.cost(sequence, rest) for sequence in item.alternatives)


class MeasureOfText(Measure):
    """Costs on one text, each found in linear time."""

    def __init__(self, text: str, flags: int) -> None:
        super().__init__(len(text))
        self.text = text
        self.flags = flags
        self.known: dict[str, int] = {}

    def reach(self, item: Item) -> int:
        if item.alternatives:
            return self.length
        if item.source not in self.known:
            runs = re.finditer(f"(?:{item.source})+", self.text, self.flags)
            lengths = [run.end() - run.start() for run in runs]
            self.known[item.source] = max(lengths, default=0)
        return self.known[item.source]

    def occurrences(self, literal: str) -> int:
        search = f"(?={literal})"  # places, overlapping ones too
        if search not in self.known:
            found = re.findall(search, self.text, self.flags)
            self.known[search] = len(found)
        return self.known[search]


def parse(source: str) -> list[list[Item]]:
    """The alternatives of a pattern that `re` has compiled.

    Raises ValueError for what can take exponential time.
    """
    opened: list[Item] = [Item("", alternatives=[[]])]
    for token in TOKEN.finditer(source):
        kind = token.lastgroup
        text = token.group()
        sequence = opened[-1].alternatives[-1]
        if kind == "refused":
            raise ValueError(f"regex {source!r}: {text} is not supported")
        if kind == "open":
            opened.append(Item(text, alternatives=[[]], commits=text in COMMITTING))
        elif kind == "bar":
            opened[-1].alternatives.append([])
        elif kind == "close":
            group = opened.pop()
            opened[-1].alternatives[-1].append(group)
        elif kind == "quantifier":
            quantify(sequence[-1], text, source)
        elif kind != "skipped":
            sequence.append(Item(text, is_literal=kind == "literal"))
    return opened[0].alternatives


def quantify(item: Item, text: str, source: str) -> None:
    """Apply `*`, `+`, `?` or `{m,n}` to an item. Raises ValueError for a repeat of a repeat."""
    found = BRACES.match(text)
    if found is None:
        minimum, maximum = BOUNDS[text[0]]
    else:
        minimum = int(found[1] or 0)
        maximum = minimum
        if found[2]:  # a comma
            maximum = int(found[3] or UNBOUNDED)
    possessive = len(text) > 1 and text.endswith("+")
    if item.varies and not possessive and maximum > MAX_COPIES:
        reason = "a repeat of a repeat, or of alternatives, can take exponential time"
        raise ValueError(f"regex {source!r}: {reason}")
    item.minimum = minimum
    item.maximum = maximum
    item.commits = item.commits or possessive
    if len(text) > 1 and text.endswith("?"):
        item.steps = LAZY_STEPS
    elif item.source == ".":
        item.steps = ANY_STEPS


def annotate(sequence: list[Item], after: str | None) -> None:
    """Note for each item the literal text that has to come after it."""
    for item in reversed(sequence):
        item.following = after
        inside = after
        if item.maximum > 1 or item.commits:  # the group itself may come next
            inside = ""
        for inner in item.alternatives:
            annotate(inner, inside)
        literal = item.source + (after or "")
        is_once = item.minimum == item.maximum == 1
        after = literal if item.is_literal and is_once else ""
