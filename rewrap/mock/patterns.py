r"""Regular expressions with a bounded cost: Python's `re`, guarded against texts that keep it busy.

Clients control the text, and `re` holds the interpreter while it backtracks: no timeout can end
it. So there are two guards.

1. When a pattern is compiled, a repeat of a repeat or of alternatives (`(a+)+`, `(a|b)*`) is
   refused, as is a backreference: their cost can double with each character.
2. Before a pattern runs, its cost on this very text is bounded from above, in linear time: the
   places where a match could start, and for each repeat its longest run and the places where it
   could end. A text with a bound above MAX_STEPS counts as one that does not match.

Imports nothing of ours.
"""

import re
from dataclasses import dataclass, field

MAX_STEPS = 5_000_000  # a step takes 3 to 50 ns
GROUP_STEPS = 16  # for one repetition of a group, measured against one of a character
MAX_COPIES = 8  # of a group with repeats, as in `(\d{1,3}\.){3}`
UNBOUNDED = 2**31
TOKEN = re.compile(
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
# Texts of at most one of these lengths need no bound of their own: on the worst of them it holds.
SAFE_LENGTHS = (32, 128, 512, 4096, 32_768, 262_144)
COMMITTING = ("(?>", "(?=", "(?!", "(?<=", "(?<!")
BRACES = re.compile(r"\{(\d*)(,?)(\d*)\}")
BOUNDS = {"*": (0, UNBOUNDED), "+": (1, UNBOUNDED), "?": (0, 1)}


@dataclass(slots=True)
class Item:
    """An element of a pattern: one character (`source`), or a group with its alternatives."""

    source: str
    kind: str
    alternatives: list[list["Item"]] = field(default_factory=list)
    minimum: int = 1
    maximum: int = 1
    commits: bool = False  # possessive, atomic or a lookaround: `re` never comes back into it
    following: str = ""  # the literal text that has to come after it

    @property
    def varies(self) -> bool:
        """Whether it can match one text in several ways."""
        if self.commits:
            return False
        inside = any(item.varies for sequence in self.alternatives for item in sequence)
        return self.minimum != self.maximum or len(self.alternatives) > 1 or inside


class Pattern:
    """A compiled regular expression, searched for at a bounded cost.

    Raises ValueError, in one line, where it is none or its cost cannot be bounded.
    """

    def __init__(self, source: str) -> None:
        try:
            compiled = re.compile(source)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"regex {source!r}: {error}") from None
        self.source = source
        self.names = tuple(compiled.groupindex)
        self.flags = compiled.flags & (re.ASCII | re.IGNORECASE | re.DOTALL | re.MULTILINE)
        sequences = parse(source)
        for sequence in sequences:
            annotate(sequence, "")
        self.branches = [Branch(sequence) for sequence in sequences]
        self.by_line = len(sequences) == 1 and begins_with_any(sequences[0])
        if self.by_line:
            compiled = re.compile(anchored(source, self.flags))
        self.compiled = compiled
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
        """An upper bound of the characters that a search looks at."""
        total = 0
        for branch in self.branches:
            total += self.starts(branch, measure) * measure.cost(branch.choices, 1)
        return total

    def starts(self, branch: "Branch", measure: "Measure") -> int:
        """How many places of the text a match could start at."""
        if branch.first == r"\A" or (branch.first == "^" and not self.flags & re.MULTILINE):
            return 1
        if self.by_line and self.flags & re.DOTALL:
            return 1
        if self.by_line:
            return measure.occurrences("\n") + 1
        if branch.prefix:
            return measure.occurrences(branch.prefix)
        return measure.length + 1


class Branch:
    """An alternative of a pattern: how it begins, and its choices. What is fixed costs next to nothing."""

    def __init__(self, sequence: list[Item]) -> None:
        self.first = sequence[0].source if sequence else ""
        self.prefix = literal_prefix(sequence)
        self.choices = choices_of(sequence)


def choices_of(sequence: list[Item]) -> list[Item]:
    """The items where `re` has a choice, and lookarounds and the like."""
    found = [item for item in sequence if item.varies or item.commits]
    for item in found:
        item.alternatives = [choices_of(inner) for inner in item.alternatives]
    return found


def anchored(source: str, flags: int) -> str:
    """A pattern that begins with `.+`, tried where lines start: `re` tries every character."""
    start = "(?m:^)"
    if flags & re.DOTALL:
        start = r"\A"
    return re.sub(r"\A(\(\?[aiLmsu]+\))?", lambda found: found.group() + start, source, count=1)


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
            copies = 1 if item.maximum == 1 else self.length + 1
            return copies * self.once(item, 1) + rest
        if not item.varies:
            return item.maximum * self.once(item, 0) + rest
        if not item.alternatives or item.maximum > MAX_COPIES:
            reach = min(self.reach(item), item.maximum)
            ends = max(0, reach - item.minimum + 1)
            if item.following:
                ends = min(ends, self.occurrences(item.following))
            return reach * self.once(item, 0) + 1 + ends * rest
        total = rest
        for _ in range(item.maximum):
            total = self.once(item, total)
            if item.minimum == 0:
                total += rest
        return total

    def once(self, item: Item, rest: int) -> int:
        if not item.alternatives:
            return 1 + rest
        return GROUP_STEPS + sum(self.cost(sequence, rest) for sequence in item.alternatives)


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
            self.known[item.source] = max((run.end() - run.start() for run in runs), default=0)
        return self.known[item.source]

    def occurrences(self, literal: str) -> int:
        search = f"(?={literal})"  # places, overlapping ones too
        if search not in self.known:
            self.known[search] = len(re.findall(search, self.text, self.flags))
        return self.known[search]


def parse(source: str) -> list[list[Item]]:
    """The alternatives of a pattern that `re` has compiled.

    Raises ValueError for what can take exponential time.
    """
    opened: list[Item] = [Item("", "group", [[]])]
    for token in TOKEN.finditer(source):
        kind = token.lastgroup or ""
        text = token.group()
        if kind == "refused":
            raise ValueError(f"regex {source!r}: {text} is not supported")
        if kind == "open":
            opened.append(Item(text, "group", [[]], commits=text in COMMITTING))
        elif kind == "bar":
            opened[-1].alternatives.append([])
        elif kind == "close":
            group = opened.pop()
            opened[-1].alternatives[-1].append(group)
        elif kind == "quantifier":
            quantify(opened[-1].alternatives[-1][-1], text, source)
        elif kind != "skipped":
            opened[-1].alternatives[-1].append(Item(text, kind))
    return opened[0].alternatives


def quantify(item: Item, text: str, source: str) -> None:
    """Apply `*`, `+`, `?` or `{m,n}` to an item. Raises ValueError for a repeat of a repeat."""
    possessive = len(text) > 1 and text.endswith("+")
    minimum, maximum = bounds(text)
    if item.varies and not possessive and maximum > MAX_COPIES:
        reason = "a repeat of a repeat, or of alternatives, can take exponential time"
        raise ValueError(f"regex {source!r}: {reason}")
    item.minimum = minimum
    item.maximum = maximum
    item.commits = item.commits or possessive


def bounds(text: str) -> tuple[int, int]:
    """The minimum and the maximum of a quantifier."""
    found = BRACES.match(text)
    if found is None:
        return BOUNDS[text[0]]
    low, comma, high = found.groups()
    if not comma:
        return int(low), int(low)
    return int(low or 0), int(high or UNBOUNDED)


def annotate(sequence: list[Item], after: str) -> None:
    """Note for each item the literal text that has to come after it."""
    for item in reversed(sequence):
        item.following = after
        is_once = item.minimum == item.maximum == 1
        for inner in item.alternatives:
            annotate(inner, after if item.maximum == 1 and not item.commits else "")
        after = item.source + after if is_once and item.kind == "literal" else ""


def literal_prefix(sequence: list[Item]) -> str:
    """The text that every match begins with; "" if none is known."""
    if not sequence or sequence[0].kind != "literal" or sequence[0].minimum == 0:
        return ""
    if sequence[0].maximum > 1:
        return sequence[0].source
    return sequence[0].source + sequence[0].following


def begins_with_any(sequence: list[Item]) -> bool:
    """Whether a sequence begins with `.*` or `.+`."""
    if not sequence:
        return False
    first = sequence[0]
    if first.alternatives:
        is_once = first.minimum == first.maximum == 1 and len(first.alternatives) == 1
        return is_once and not first.commits and begins_with_any(first.alternatives[0])
    return first.source == "." and first.maximum == UNBOUNDED and first.minimum < 2
