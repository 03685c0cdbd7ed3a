"""Strings and numbers for a flat schema: from a prompt, or within the bounds.

Imports the standard library and modules of this package only.
"""

from collections.abc import Iterator
from fractions import Fraction
from string import ascii_letters, digits
from typing import TypeAlias

from rewrap.mock.budget import (
    JSON,
    NO_LIMIT,
    Schema,
    SchemaError,
    SchemaPlace,
    UnsatisfiableError,
    schema_count,
    schema_number,
    schemas,
    word_set,
)
from rewrap.mock.expansion import NOTHING
from rewrap.mock.formats import CHECKS, EXAMPLES, HINTS, example
from rewrap.mock.patterns import text_for
from rewrap.mock.prompt import KINDS, Prompt
from rewrap.mock.validation import TYPES, Validator, types_of

Exact: TypeAlias = int | Fraction

ATTEMPTS = 8
LARGEST = 1 << 63  # larger integers are written as floats, as JSON readers expect
PROMPT_TEXT = 200  # characters of the prompt that a string takes
LETTERS = ascii_letters + digits

# Names of properties that take the whole prompt where it has no quoted text.
WHOLE = word_set("content input message prompt q query question request task text topic")
# Names of properties that take a capitalised name in the prompt.
NAMES = word_set(
    "address area author city country customer destination location name origin person place"
    " recipient region to town user"
)

KEYWORDS_OF_TYPES = {
    "object": word_set("properties required additionalProperties minProperties"),
    "array": word_set("items prefixItems minItems contains uniqueItems"),
    "number": word_set("minimum maximum multipleOf exclusiveMinimum exclusiveMaximum"),
    "string": word_set("pattern format minLength maxLength"),
}
# With these keywords alone any value of the type is valid.
UNBOUNDED = word_set("type title description default example examples deprecated")
PREFERRED = word_set("default example examples")
ALL_TYPES = ["string", "number", "boolean", "object", "array", "null"]


def kinds_of(flat: Schema) -> list[str]:
    """The types of the schema; without `type`, those first that its keywords are about."""
    declared = types_of(flat)
    if declared:
        return declared
    kinds: list[str] = []
    for kind, keywords in KEYWORDS_OF_TYPES.items():
        if not keywords.isdisjoint(flat):
            kinds.append(kind)
    return kinds + [kind for kind in ALL_TYPES if kind not in kinds]


def kinds_to_try(flat: Schema, place: SchemaPlace) -> list[str]:
    """The types of the schema: null last, or first where a reference stands inside itself."""
    kinds = sorted(kinds_of(flat), key="null".__eq__)
    if NOTHING in kinds:
        raise UnsatisfiableError(f"No type is left for {place.label()}.")
    for kind in kinds:
        if kind not in TYPES:
            raise SchemaError(f"{kind!r} is not valid under any of the given schemas.")
    # Each variant begins with another type, as `not` may forbid one.
    if "not" in flat:
        shift = place.variant % len(kinds)
        return kinds[shift:] + kinds[:shift]
    # OpenAPI 3.0. JSON Schema ignores it, so that null is the last resort.
    if flat.get("nullable") is True:
        kinds.append("null")
    if kinds[-1] == "null" and place.recursive():
        kinds.insert(0, "null")
    return kinds


def preferred(flat: Schema) -> list[JSON]:
    """The values that the schema itself proposes."""
    if PREFERRED.isdisjoint(flat):
        return []
    found = [flat[keyword] for keyword in ("default", "example") if keyword in flat]
    return found + schemas(flat, "examples")


class PromptValues:
    """Takes values from a prompt. A result is a list: of one value, or empty."""

    def __init__(self, prompt: Prompt, validator: Validator) -> None:
        self.prompt = prompt
        self.validator = validator

    def found(self, flat: Schema, kind: str, place: SchemaPlace, named_only: bool) -> list[JSON]:
        """The value of a type for a scalar. With `named_only`, one that stands by its name."""
        if "enum" in flat:
            named, _ = self.options(flat)
            return named[place.variant : place.variant + 1]
        if kind == "boolean" and place.name and self.prompt.agrees(place.name):
            return [True]
        sources = sources_of(flat, kind, place.name)
        if not sources or not place.prompted:
            return []

        def fits(text: str) -> bool:
            value = converted(text, kind)
            return TYPES[kind](value) and self.validator.valid(flat, value)

        for source in sources:
            text = self.prompt.take(source, place.name, fits, named_only)
            if text is not None:
                return [converted(text, kind)]
        return []

    def one_of(self, flat: Schema, place: SchemaPlace) -> JSON:
        """A value of the enum: those that the prompt names come first."""
        named, others = self.options(flat)
        options = named + others
        shift = place.variant % max(1, len(options))
        for option in options[shift:] + options[:shift]:
            if self.validator.valid(flat, option):
                self.validator.budget.weigh(option)
                return option
        raise UnsatisfiableError(f"The enum has no valid value in {place.label()}.")

    def options(self, flat: Schema) -> tuple[list[JSON], list[JSON]]:
        """The values of the enum: those that the prompt names, and the others."""
        named: list[JSON] = []
        others: list[JSON] = []
        for option in schemas(flat, "enum"):
            self.validator.budget.spend()
            if isinstance(option, str) and self.prompt.named(option):
                named.append(option)
            else:
                others.append(option)
        return named, others

    def scalar(self, kind: str, flat: Schema, place: SchemaPlace) -> JSON:
        """A value of a type that is neither in the prompt nor an example."""
        candidates: Iterator[JSON] = iter([None])
        if kind == "boolean":
            candidates = iter([place.variant % 2 == 1])
        if kind == "string":
            candidates = self.texts(flat, place.name, place.variant)
        if kind in ("integer", "number"):
            candidates = number_candidates(flat, kind == "integer", place.variant)
        for candidate in candidates:
            if UNBOUNDED.issuperset(flat) or self.validator.valid(flat, candidate):
                return candidate
        raise UnsatisfiableError(f"The mock finds no {kind} for {place.label()}.")

    def texts(self, flat: Schema, name: str, variant: int) -> Iterator[str]:
        """Candidates for a string, which may still be too long or too short."""
        least = schema_count(flat, "minLength")
        most = schema_count(flat, "maxLength", NO_LIMIT)
        budget = self.validator.budget
        budget.spend(least // 4)
        pattern = flat.get("pattern")
        plain = plain_text(name, variant, self.prompt)
        yield example(flat.get("format"), variant) or plain
        if isinstance(pattern, str):
            yield text_for(pattern, least, most, variant, budget) or ""
        elif str(flat.get("format")) not in CHECKS:
            yield fitted(plain, least, most, variant)


def sources_of(flat: Schema, kind: str, name: str) -> list[str]:
    """The kinds of facts in a prompt that may be the value."""
    if kind in ("integer", "number"):
        return ["number"]
    if kind != "string":
        return []
    declared = flat.get("format")
    if isinstance(declared, str) and declared in EXAMPLES:
        return [declared] if declared in KINDS else []
    if "pattern" in flat:
        return ["quoted", "word"]
    word = last_word(name)
    if word in HINTS:
        return [HINTS[word], "quoted"]
    if word in NAMES:
        return ["quoted", "name"]
    return ["quoted"]


def converted(text: str, kind: str) -> JSON:
    if kind == "string":
        return text
    plain = text.replace(",", "")
    if "." in plain:
        return float(plain)
    return int(plain)


def last_word(name: str) -> str:
    return name.lower().rpartition("_")[2]


def plain_text(name: str, variant: int, prompt: Prompt) -> str:
    if name in WHOLE or not name:
        text = prompt.text.strip()[:PROMPT_TEXT] or "text"
    else:
        hint = HINTS.get(last_word(name))
        text = example(hint, variant) or name.replace("_", " ")
    return text + suffix(variant)


def suffix(variant: int) -> str:
    if variant:
        return f" {variant + 1}"
    return ""


def fitted(text: str, least: int, most: int, variant: int) -> str:
    """The text in `least` to `most` characters, and another one for each variant."""
    end = suffix(variant)
    if len(text) <= most:
        return text.ljust(least, ".")
    if len(end) > most:
        return letters(variant, max(least, 1))[:most]
    return text[: most - len(end)] + end


def letters(variant: int, length: int) -> str:
    text = ""
    while len(text) < length or variant:
        variant, digit = divmod(variant, len(LETTERS))
        text += LETTERS[digit]
    return text


def number_candidates(flat: Schema, whole: bool, variant: int) -> Iterator[int | float]:
    """Candidates: 1 or 1.5 or the nearest multiple in the bounds, then others.

    A candidate may still be a bound that is excluded.
    """
    low: Exact | None = max(bounds(flat, "minimum", "exclusiveMinimum"), default=None)
    high: Exact | None = min(bounds(flat, "maximum", "exclusiveMaximum"), default=None)
    step = multiple_of(flat, whole)
    start: Exact = 1 if whole else Fraction(3, 2)
    if low is not None and high is not None and not whole and "multipleOf" not in flat:
        step = min(step, Fraction(high - low) / 4) or step
    index = -(-start // step)
    if high is not None:
        index = min(index, high // step)
    if low is not None:
        index = max(index, -(-low // step))
    for offset in range(variant, variant + ATTEMPTS):
        value = (index + offset) * step
        # Above the upper bound, the candidates go on below the first one.
        if high is not None and value > high:
            value = 2 * index * step - value
        yield json_number(value, whole)
    for edge in (low, high):
        if edge is not None:
            yield json_number(edge, whole)


def exact(value: int | float) -> Exact:
    """The number without rounding: 0.1 is a tenth. Integers stay what they are, for speed."""
    if isinstance(value, int):
        return value
    return Fraction(str(value))


def bounds(flat: Schema, *keywords: str) -> list[Exact]:
    values = [schema_number(flat, keyword) for keyword in keywords]
    return [exact(value) for value in values if value is not None]


def multiple_of(flat: Schema, whole: bool) -> Exact:
    """What the numbers are multiples of: integers of 1, others of a half if it is left open."""
    step = schema_number(flat, "multipleOf")
    if step is not None and step > 0:
        # Integers that are multiples of 3/2 are the multiples of 3.
        multiple = exact(step)
        return multiple.numerator if whole else multiple
    return 1 if whole else Fraction(1, 2)


def json_number(value: Exact, whole: bool) -> int | float:
    if whole and -LARGEST < value < LARGEST:
        return int(value)
    return float(value)
