"""What a prompt contains that can fill a schema: numbers, quoted texts, dates, names.

Every pattern here takes linear time, and a long prompt is read at both ends only.
Imports leaf files alone.
"""

import re
from collections.abc import Callable
from functools import cached_property, lru_cache
from itertools import islice
from typing import NamedTuple

from rewrap.regex import regex

READ = 2_000  # characters at each end of the prompt
NEAR = 24  # characters between the name of a property and its value
MAX_FACTS = 50  # of each kind
MAX_NAME = 100  # characters of a name that is looked for
TOKEN = regex(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_]+")
NEGATIONS = (" no", " not", " without", " non", " never")
MONTHS = "janfebmaraprmayjunjulaugsepoctnovdec"
MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
CAPITAL = r"[A-ZÀ-Þ][\w'’-]*"
CLOCK = r"\d\d:\d\d:\d\d(?:Z|[+-]\d\d:\d\d)"

# The value is the last group.
KINDS: dict[str, re.Pattern[str]] = {
    "date": regex(
        rf"(?<!\w)(\d{{4}}-\d\d-\d\d|\d{{1,2}} {MONTH} \d{{4}}|{MONTH} \d{{1,2}},? \d{{4}})(?!\w)"
    ),
    "date-time": regex(rf"(?<!\w)(\d{{4}}-\d\d-\d\dT{CLOCK})"),
    "email": regex(r"(?<![\w.+-])([\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+)"),
    "ipv4": regex(r"(?<![\w.])(\d{1,3}(?:\.\d{1,3}){3})(?!\w)"),
    "name": regex(
        rf"\b(?:[Ii]n|at|[Ff]or|to|from|near|of|with|named|called) ({CAPITAL}(?: {CAPITAL}){{0,5}})"
    ),
    "number": regex(
        r"(?<![\w.:/-])(-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|-?\d{1,18}(?:\.\d{1,15})?)(?![\w:/-]|\.\d)"
    ),
    "path": regex(r"(?<![\w/.~-])((?:~|\.{1,2})?/[\w./-]*\w|[\w-]+\.[A-Za-z]{1,5})(?![\w/@])"),
    "quoted": regex(
        r"\"([^\"\n]{1,500})\"|“([^”\n]{1,500})”|`([^`\n]{1,500})`|(?<!\w)'([^'\n]{1,500})'(?!\w)"
    ),
    "uri": regex(r"(?<!\w)([a-z]{2,10}://[^\s<>\"'`)\]]*[^\s<>\"'`)\].,;!?])"),
    "uuid": regex(r"(?<!\w)([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})(?!\w)"),
    # A code such as AB-123.
    "word": regex(r"(?<!\S)[(\[\"']*(?=\S{0,99}[\d_@#-])([\w@#./+-]{1,100})"),
}


class Fact(NamedTuple):
    start: int
    end: int
    text: str


def iso_date(text: str) -> str:
    """A date such as "5 March 2025" or "March 5, 2025" as ISO 8601."""
    if text[4:5] == "-":
        return text
    first, second, year = text.replace(",", "").split()
    if first.isdecimal():
        first, second = second, first
    month = 1 + MONTHS.index(first[:3].lower()) // 3
    return f"{year}-{month:02}-{second.zfill(2)}"


def words_of(text: str) -> str:
    """The words in lower case, each between spaces: `getWeather` and `get_weather` are alike."""
    return f" {' '.join(TOKEN.findall(text))} ".lower()


# Of the names and enum values of schemas, which come again with each request.
words_of_name = lru_cache(1024)(words_of)


class Prompt:
    """The two ends of a prompt, and the facts in them that are not used yet."""

    def __init__(self, text: str) -> None:
        if len(text) > 2 * READ:
            text = f"{text[:READ]}\n{text[-READ:]}"
        self.text = text
        self.facts: dict[str, list[Fact]] = {}

    @cached_property
    def words(self) -> str:
        return words_of(self.text)

    def named(self, phrase: str) -> bool:
        """Whether the words of the phrase stand in the prompt, in order."""
        if not phrase or len(phrase) > MAX_NAME:
            return False
        words = words_of_name(phrase)
        # Some scripts have no spaces between words, and signs are no words.
        if words.isspace() or not phrase.isascii():
            return phrase in self.text
        return words in self.words

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Where each of the words begins and ends in the text."""
        return [token.span() for token in TOKEN.finditer(self.text)]

    def agrees(self, phrase: str) -> bool:
        """Whether the phrase stands in the prompt without "no" or "not" before it."""
        before, _, _ = self.words.partition(words_of_name(phrase[:MAX_NAME]))
        return self.named(phrase) and not before.endswith(NEGATIONS)

    def place_of(self, name: str) -> tuple[int, int] | None:
        """Where the name begins and ends, or the last of its words: "days" of num_days."""
        words = words_of_name(name[:MAX_NAME])
        for phrase in (words, f" {words.rpartition(' ')[0].rpartition(' ')[2]} "):
            index = self.words.find(phrase)
            if index >= 0 and not phrase.isspace():
                first = self.words.count(" ", 0, index)
                last = first + phrase.count(" ") - 2
                return self.spans[first][0], self.spans[last][1]
        return None

    def unused(self, kind: str) -> list[Fact]:
        """The facts of one of KINDS that are left."""
        if kind not in self.facts:
            found = islice(KINDS[kind].finditer(self.text), MAX_FACTS)
            facts = [Fact(*fact.span(), fact[fact.lastindex or 0]) for fact in found]
            if kind == "date":
                facts = [fact._replace(text=iso_date(fact.text)) for fact in facts]
            # "5 March 2025" contains no number.
            if kind == "number" and facts:
                dates: set[int] = set()
                for date in self.unused("date"):
                    dates.update(range(date.start, date.end))
                facts = [fact for fact in facts if fact.start not in dates]
            self.facts[kind] = facts
        return self.facts[kind]

    def take(
        self, kind: str, name: str, fits: Callable[[str], bool], named_only: bool
    ) -> str | None:
        """A fact that fits, and use it up: the one beside the name, or else the first.

        With `named_only`, only a fact beside the name counts.
        """
        facts = self.unused(kind)
        if not facts:
            return None
        near: list[Fact] = []
        place = self.place_of(name)
        if place is not None:
            near = [fact for fact in facts if characters_between(place, fact) <= NEAR]
            near.sort(key=lambda fact: characters_between(place, fact))
        candidates = near
        if not named_only:
            candidates = near + facts
        for fact in candidates:
            if fits(fact.text):
                facts.remove(fact)
                return fact.text
        return None


def characters_between(place: tuple[int, int], fact: Fact) -> float:
    """Characters between a name and a fact; a fact behind the name is nearer."""
    if fact.start >= place[1]:
        return fact.start - place[1]
    return abs(place[0] - fact.end) + 0.5
