"""A JSON value for a JSON Schema: filled from a prompt where that is easy, else deterministic.

Handles draft 2020-12, 4 to 7, and OpenAPI 3.0. The first flat alternative of a schema that has a
value wins. A budget bounds the work for hostile schemas. Imports modules of this package only.
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice, repeat

from rewrap.mock.budget import (
    JSON,
    NO_LIMIT,
    Budget,
    Schema,
    SchemaError,
    SchemaPlace,
    UnsatisfiableError,
    members,
    schema_count,
    word_set,
)
from rewrap.mock.expansion import DEPENDENCIES, STRUCTURAL, Expander, leads_to, required_names
from rewrap.mock.patterns import text_for
from rewrap.mock.prompt import Prompt
from rewrap.mock.scalars import PromptValues, kinds_to_try, preferred
from rewrap.mock.validation import Validator, identity, item_schemas

MAX_DEPTH = 60
MAX_FOUND = 50  # items that an array takes from the prompt
VARIANTS = 8  # values that are tried where the construction does not prove that one is valid

# Keywords that the construction of a value does not guarantee: the value is validated.
UNPROVEN = word_set(
    "allOf oneOf if not contains propertyNames patternProperties dependencies dependentSchemas"
)
COMPLEX = STRUCTURAL | UNPROVEN


def value_for(schema: JSON, prompt: str, root: JSON = None, *, fill: bool = False) -> JSON:
    """A value that is valid against the schema; the same for the same arguments.

    `root` is the document that references point into, the schema itself by default. Required
    properties get a value, and optional ones whose value stands in the prompt. With `fill`, an
    object that requires nothing gets all its properties: for a reply that would be `{}` otherwise.
    The value may share parts with the schema. Raises SchemaError where no value is found, or
    not within the budget.
    """
    generator = Generator(schema if root is None else root, Prompt(prompt), fill)
    try:
        return generator.value(schema, SchemaPlace())
    except RecursionError:
        raise SchemaError("The schema is nested too deeply for the mock.") from None


class Generator:
    """Builds the values of one request."""

    def __init__(self, root: JSON, prompt: Prompt, fill: bool) -> None:
        self.budget = Budget()
        self.validator = Validator(root, self.budget)
        self.expander = Expander(self.validator, prompt)
        self.filler = PromptValues(prompt, self.validator)
        self.fill = fill

    def value(self, schema: JSON, place: SchemaPlace) -> JSON:
        self.budget.spend(20)
        if place.depth > MAX_DEPTH:
            raise UnsatisfiableError("The value is nested too deeply for the mock.")
        # Most schemas are flat and proven: this saves 8 % of the time.
        if isinstance(schema, dict) and COMPLEX.isdisjoint(schema):
            return self.built(schema, schema, place)
        reason = f"The mock finds no value for {place.label()}."
        for flat, refs in self.expander.alternatives(schema, place.refs):
            proven = UNPROVEN.isdisjoint(flat)
            attempts = 1 if proven else VARIANTS
            for attempt in range(attempts):
                here = place._replace(refs=refs, variant=place.variant + attempt)
                try:
                    value = self.built(flat, schema, here)
                except UnsatisfiableError as error:
                    reason = error.message
                    continue
                if proven or self.validator.valid(schema, value):
                    return value
        raise UnsatisfiableError(reason)

    def built(self, flat: Schema, schema: JSON, place: SchemaPlace) -> JSON:
        if "enum" in flat:
            return self.filler.one_of(flat, place)
        kinds = kinds_to_try(flat, place)
        examples = preferred(flat)
        # A value beside its name in the prompt goes before a default, a mere number does not.
        found = self.filler.found(flat, kinds[0], place, bool(examples))
        if found:
            return found[0]
        for candidate in examples[place.variant : place.variant + VARIANTS]:
            self.budget.weigh(candidate)
            if self.validator.valid(schema, candidate):
                return candidate
        reason = ""
        for kind in kinds:
            try:
                return self.made(kind, flat, place)
            except UnsatisfiableError as error:
                reason = error.message
        raise UnsatisfiableError(reason)

    def made(self, kind: str, flat: Schema, place: SchemaPlace) -> JSON:
        if kind == "object":
            return self.object_for(flat, place)
        if kind == "array":
            return self.array_for(flat, place)
        return self.filler.scalar(kind, flat, place)

    def object_for(self, flat: Schema, place: SchemaPlace) -> JSON:
        required = required_names(flat)
        everything = self.fill and not required and not place.recursive()
        most = schema_count(flat, "maxProperties", NO_LIMIT)
        spare = most - len(required)
        result: dict[str, JSON] = {}
        for name, part in members(flat, "properties").items():
            if name in required:
                result[name] = self.member(flat, name, place)
            elif spare > 0:
                found = self.optional(flat, name, part, place, everything)
                spare -= len(found)
                result |= found
        for name in sorted(required - result.keys()):
            result[name] = self.member(flat, name, place)
        self.add_members(result, flat, place)
        if len(result) > most:
            raise UnsatisfiableError(
                f"More properties than allowed are required in {place.label()}."
            )
        return result

    def member(self, flat: Schema, name: str, place: SchemaPlace) -> JSON:
        parts = self.validator.member_schemas(flat, name)
        schema: JSON = {"allOf": parts}
        if len(parts) == 1:
            schema = parts[0]
        return self.value(schema, place.child(name, place.variant))

    def optional(
        self, flat: Schema, name: str, part: JSON, place: SchemaPlace, everything: bool
    ) -> dict[str, JSON]:
        """The member if its value stands in the prompt, or if everything is wanted."""
        dependencies = [members(flat, keyword) for keyword in DEPENDENCIES & flat.keys()]
        if any(name in names for names in dependencies):
            return {}
        if leads_to(part, place.refs):
            return {}
        found = self.mentioned(part, place.child(name, 0), True)
        if found:
            return {name: found[0]}
        if everything:
            with suppress(UnsatisfiableError):
                return {name: self.member(flat, name, place)}
        return {}

    def mentioned(self, schema: JSON, place: SchemaPlace, named_only: bool) -> list[JSON]:
        """The value of a scalar from the prompt, in a list, which is empty without one."""
        self.budget.spend(5)
        for flat, _ in islice(self.expander.alternatives(schema, place.refs), VARIANTS):
            with suppress(UnsatisfiableError):
                kind = kinds_to_try(flat, place)[0]
                found = self.filler.found(flat, kind, place, named_only)
                if found and self.validator.valid(schema, found[0]):
                    return found
        return []

    def add_members(self, result: dict[str, JSON], flat: Schema, place: SchemaPlace) -> None:
        """Members up to minProperties, and one for a map, which declares no properties."""
        least = schema_count(flat, "minProperties")
        self.budget.spend(20 * least)
        declared = members(flat, "properties")
        is_map = members(flat, "additionalProperties") or members(flat, "patternProperties")
        wanted = least
        if is_map and not declared and not place.recursive():
            wanted = max(1, least)
        if len(result) >= wanted:
            return
        for name in chain(declared, self.made_up_names(flat, place, wanted)):
            if len(result) >= wanted:
                return
            if name not in result:
                with suppress(UnsatisfiableError):
                    result[name] = self.member(flat, name, place)
        if len(result) < least:
            raise UnsatisfiableError(
                f"Fewer properties than required are allowed in {place.label()}."
            )

    def made_up_names(self, flat: Schema, place: SchemaPlace, amount: int) -> Iterator[str]:
        """Names for members that the schema allows without declaring them."""
        for variant in range(amount):
            for pattern in members(flat, "patternProperties"):
                yield text_for(pattern, 0, MAX_DEPTH, variant, self.budget) or ""
        if flat.get("additionalProperties") is not False:
            rule: JSON = {"type": "string", "allOf": [flat.get("propertyNames", True)]}
            for variant in range(amount + VARIANTS):
                yield str(self.value(rule, place.child("key", variant)))

    def array_for(self, flat: Schema, place: SchemaPlace) -> JSON:
        least = schema_count(flat, "minItems")
        most = schema_count(flat, "maxItems", NO_LIMIT)
        self.budget.spend(20 * (least + schema_count(flat, "minContains")))
        parts, rest = item_schemas(flat)
        if "contains" in flat:
            contained: JSON = {"allOf": [rest, flat["contains"]]}
            parts = parts + [contained] * schema_count(flat, "minContains", 1)
        wanted = max(least, len(parts))
        # A list of one item shows more than an empty one, but ends no recursion.
        if not wanted and not place.recursive() and not leads_to(rest, place.refs):
            wanted = 1
        result: list[JSON] = []
        seen: set[object] = set()
        reason = f"Too few items are allowed in {place.label()}."
        try:
            for part in islice(chain(parts, repeat(rest)), min(wanted, most)):
                here = place.child(place.name, place.variant + len(result))
                result.append(self.item(part, here, seen))
                if flat.get("uniqueItems") is True:
                    seen.add(identity(result[-1]))
        except UnsatisfiableError as error:
            reason = error.message
        if result and "contains" not in flat:
            self.add_found(result, rest, min(most, MAX_FOUND), place)
        if not least <= len(result) <= most:
            raise UnsatisfiableError(reason)
        return result

    def item(self, part: JSON, place: SchemaPlace, seen: set[object]) -> JSON:
        """A value that is not one of those seen."""
        for attempt in range(len(seen) + VARIANTS):
            value = self.value(part, place._replace(variant=place.variant + attempt))
            if identity(value) not in seen:
                return value
            # A fact that stands in the prompt twice must not fail all attempts.
            place = place._replace(prompted=False)
        raise UnsatisfiableError(f"Too few items can be unique in {place.label()}.")

    def add_found(self, result: list[JSON], rest: JSON, most: int, place: SchemaPlace) -> None:
        """Further items that stand in the prompt, as in "add 1, 2 and 3"."""
        while len(result) < most:
            found = self.mentioned(rest, place.child(place.name, len(result)), False)
            if not found or found[0] in result:
                return
            result += found
