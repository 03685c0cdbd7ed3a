"""Regular expressions of schemas: match a text, or write one that matches.

`re` parses a pattern but never matches it: a client's pattern such as `(a+)+$` backtracks for ever.
Here a match moves a set of positions through the parse tree, whose time is bounded by the length
of the text times the size of the pattern, and by the budget. Imports `budget` only.
"""

import importlib
import re
import warnings
from functools import lru_cache
from string import ascii_letters, digits
from typing import Any, NamedTuple, TypeAlias

from rewrap.mock.budget import Budget, SchemaError

MAX_PATTERN = 1_000  # characters
ATTEMPTS = 12

# The parse tree of `re`, which has no types: pairs of an operation and its argument.
Items: TypeAlias = Any

# The characters to write, those first that read best.
SIGNS = "-_. /:,;+*#@!?=&%$~^|'\"`<>()[]{}\\\n\té"
ALPHABET = ascii_letters + digits + SIGNS
# All kinds in turn, as rules for passwords want: "(?=.*[A-Z])(?=.*\d)".
MIXED = "".join(f"{ascii_letters[i]}{ascii_letters[i + 26]}{i % 10}{SIGNS[i]}" for i in range(26))
MIXED += ALPHABET


class ParsedPattern(NamedTuple):
    items: Items
    samples: dict[tuple[int, str], str]  # what an operation accepts of an alphabet


@lru_cache(64)
def parsed_pattern(pattern: str) -> ParsedPattern:
    """Raises SchemaError for a pattern that is too long, or that `re` cannot read."""
    if len(pattern) > MAX_PATTERN:
        raise SchemaError(f"A pattern may have at most {MAX_PATTERN} characters.")
    # Its old name, sre_parse, warns of its removal.
    parser = importlib.import_module("re._parser")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ParsedPattern(parser.parse(pattern), {})
    except (re.error, OverflowError, RecursionError):
        raise SchemaError(f"{pattern!r} is not a 'regex'.") from None


def matches(pattern: str, text: str, budget: Budget) -> bool:
    """Whether the pattern is found anywhere in the text, as JSON Schema has it."""
    anywhere = set(range(len(text) + 1))
    return bool(ends(parsed_pattern(pattern).items, text, anywhere, budget))


def ends(items: Items, text: str, starts: set[int], budget: Budget) -> set[int]:
    """The positions where a match of the items can end that begins at one of the starts."""
    for operation, argument in items:
        budget.spend(1 + len(starts))
        if not starts:
            break
        starts = step(str(operation), argument, text, starts, budget)
    return starts


def step(kind: str, argument: Any, text: str, starts: set[int], budget: Budget) -> set[int]:
    match kind:
        case "BRANCH":
            found = [ends(option, text, starts, budget) for option in argument[1]]
            return set[int]().union(*found)
        case "SUBPATTERN":
            return ends(argument[-1], text, starts, budget)
        case "MAX_REPEAT" | "MIN_REPEAT":
            return repeated(argument, text, starts, budget)
        case "ASSERT" | "ASSERT_NOT" if argument[0] > 0:
            ahead = [at for at in starts if ends(argument[1], text, {at}, budget)]
            if kind == "ASSERT":
                return set(ahead)
            return starts.difference(ahead)
        case "AT":
            return {at for at in starts if is_edge(str(argument), text, at)}
    inside = [at for at in starts if at < len(text)]
    return {at + 1 for at in inside if accepts(kind, argument, text[at])}


def repeated(argument: Any, text: str, starts: set[int], budget: Budget) -> set[int]:
    minimum, maximum, items = argument
    for _ in range(minimum):
        before = starts
        starts = ends(items, text, before, budget)
        # Nothing changes from here on: "(){1000000000}" ends at once.
        if not starts or starts == before:
            break
    found = set(starts)
    for _ in range(maximum - minimum):
        # Only positions that are new go on, so that each is visited once.
        starts = ends(items, text, starts, budget) - found
        if not starts:
            break
        found |= starts
    return found


def is_edge(kind: str, text: str, at: int) -> bool:
    if kind.startswith("AT_BEGINNING"):
        return at == 0
    if kind.startswith("AT_END"):
        return at == len(text)
    before = at > 0 and is_word(text[at - 1])
    after = at < len(text) and is_word(text[at])
    return (before != after) == (kind == "AT_BOUNDARY")


def is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def accepts(kind: str, argument: Any, char: str) -> bool:
    """Whether an operation for one character accepts this one."""
    match kind:
        case "LITERAL":
            return char == chr(argument)
        case "NOT_LITERAL":
            return char != chr(argument)
        case "ANY":
            return char != "\n"
        case "IN":
            negated = str(argument[0][0]) == "NEGATE"
            found = [in_class(str(part), value, char) for part, value in argument]
            return any(found) != negated
    raise SchemaError(f"The mock does not support {kind.lower()} in patterns.")


def in_class(kind: str, argument: Any, char: str) -> bool:
    match kind:
        case "LITERAL":
            return char == chr(argument)
        case "RANGE":
            return chr(argument[0]) <= char <= chr(argument[1])
        case "CATEGORY":
            category = str(argument).removeprefix("CATEGORY_")
            tests = {"DIGIT": str.isdecimal, "SPACE": str.isspace, "WORD": is_word}
            found = tests[category.removeprefix("NOT_")](char)
            return found != category.startswith("NOT_")
    return False


class Writer:
    """Writes a text that the items match, if no assertion forbids it.

    `variant` chooses among branches and characters, so that each gives another text. Repeats add
    `need` characters to the shortest text. Each attempt writes another text: the odd ones let `?`
    add a character too.
    """

    def __init__(
        self, pattern: ParsedPattern, budget: Budget, variant: int, need: int = 0, attempt: int = 0
    ) -> None:
        self.pattern = pattern
        self.budget = budget
        self.variant = variant + attempt
        self.need = need + attempt // 2
        self.optional = attempt % 2 == 1
        self.alphabet = ALPHABET
        if attempt >= ATTEMPTS // 2:
            self.alphabet = MIXED
        self.text: list[str] = []

    def written(self) -> str:
        self.write(self.pattern.items)
        return "".join(self.text)

    def write(self, items: Items) -> None:
        for operation, argument in items:
            self.budget.spend()
            match str(operation):
                case "BRANCH":
                    options = argument[1]
                    self.write(options[self.pick(len(options))])
                case "SUBPATTERN":
                    self.write(argument[-1])
                case "MAX_REPEAT" | "MIN_REPEAT":
                    self.repeat(*argument)
                case "AT" | "ASSERT" | "ASSERT_NOT":
                    pass  # The text is matched afterwards.
                case kind:
                    self.character(kind, argument)

    def pick(self, size: int) -> int:
        self.variant, choice = divmod(self.variant, size)
        return choice

    def character(self, kind: str, argument: Any) -> None:
        if kind == "LITERAL":
            self.text.append(chr(argument))
            return
        key = (id(argument), self.alphabet)
        samples = self.pattern.samples.get(key)
        if samples is None:
            accepted = [char for char in self.alphabet if accepts(kind, argument, char)]
            samples = "".join(dict.fromkeys(accepted))
            samples = samples or chr(first_code(argument))
            self.pattern.samples[key] = samples
        # Later characters differ from earlier ones: "ABC-4567" rather than "AAA-0000".
        position = len(self.text) + self.pick(len(samples))
        self.text.append(samples[position % len(samples)])

    def repeat(self, minimum: int, maximum: int, items: Items) -> None:
        for _ in range(minimum):
            self.write(items)
            self.budget.spend()
        if maximum == 1 and not self.optional:
            return
        written = minimum
        while self.need > 0 and written < maximum:
            need = self.need
            size = len(self.text)
            self.need = 0
            self.write(items)
            self.need = need - max(1, len(self.text) - size)
            written += 1


def first_code(argument: Any) -> int:
    """A character of a class that has none of the alphabet."""
    while not isinstance(argument, int):
        # A pair of an operation and its argument, or a list or range of which the first will do.
        argument = argument[str(argument[0]) in ("LITERAL", "RANGE")]
    return argument


def text_for(pattern: str, least: int, most: int, variant: int, budget: Budget) -> str | None:
    """A text of `least` to `most` characters that matches; None where none was found."""
    tree = parsed_pattern(pattern)
    # For the samples, whether or not an earlier request has left them in the cache.
    budget.spend_once(pattern, 20 * len(pattern))
    shortest = Writer(tree, budget, variant).written()
    need = max(least, min(1, most)) - len(shortest)
    for attempt in range(ATTEMPTS):
        text = Writer(tree, budget, variant, need, attempt).written()
        text = text.ljust(least, "a")
        if least <= len(text) <= most and matches(pattern, text, budget):
            return text
    return None
