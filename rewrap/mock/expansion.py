"""A schema as flat alternatives: without `$ref`, `allOf`, `anyOf`, `oneOf`, `if` and `const`.

Imports the standard library and modules of this package only.
"""

from collections.abc import Callable, Iterator

from rewrap.mock.budget import JSON, Schema, members, schema_strings, schemas, word_set
from rewrap.mock.prompt import Prompt
from rewrap.mock.validation import Validator, identity, types_of

MAX_RECURSION = 4  # times a reference may stand inside itself, where nothing ends it earlier
NOTHING = "nothing"  # the type of a schema whose parts have no type in common

# A schema without these is flat as it stands.
STRUCTURAL = word_set("$ref allOf anyOf oneOf if const dependentSchemas")

# What a flat schema leaves out. It keeps the others as a mark that values need a validation.
EXPANDED = word_set("$ref anyOf $defs definitions")
DEPENDENCIES = word_set("dependentRequired dependencies")

Refs = tuple[str, ...]


class Expander:
    """Expands the schemas of one document, in an order that suits the prompt."""

    def __init__(self, validator: Validator, prompt: Prompt) -> None:
        self.validator = validator
        self.prompt = prompt

    def alternatives(self, schema: JSON, refs: Refs) -> Iterator[tuple[Schema, Refs]]:
        """Flat schemas whose union is the schema, each with the references that lead to it."""
        if isinstance(schema, dict) and STRUCTURAL.isdisjoint(schema):
            return iter([(schema, refs)])
        return self.expand({}, [schema], refs)

    def expand(
        self, flat: Schema, pending: list[JSON], refs: Refs
    ) -> Iterator[tuple[Schema, Refs]]:
        """The alternatives of a flat schema together with the pending ones."""
        while pending:
            part = pending.pop()
            if part is False:
                return
            if not isinstance(part, dict):
                continue
            size = len(part) + len(pending)
            size += len(members(flat, "properties"))
            size += len(members(part, "properties"))
            self.validator.budget.spend(10 + size // 8)
            # Keywords beside a reference hold as well, as since draft 2019-09.
            ref = part.get("$ref")
            if isinstance(ref, str):
                if refs.count(ref) > MAX_RECURSION:
                    return
                refs = (*refs, ref)
                pending.append(self.validator.resolve(ref))
            flat = merged_schema(flat, part)
            pending += implied(part)
            choices = alternatives_of(part)
            if choices:
                # One list of options is chosen from here, the others when they are popped.
                pending += [{"anyOf": options} for options in choices[1:]]
                for option in self.ordered(choices[0], refs):
                    yield from self.expand(flat, [*pending, option], refs)
                return
        yield flat, refs

    def ordered(self, options: list[JSON], refs: Refs) -> list[JSON]:
        """The options that the prompt names first; null, then recursive ones, last."""

        self.validator.budget.spend(len(options))

        def rank(option: JSON) -> int:
            if not isinstance(option, dict):
                return 0
            if leads_to(option, refs):
                return 2
            if option.get("type") == "null":
                return 1
            title = str(option.get("$ref", option.get("title", "")))
            return -self.prompt.named(title.rpartition("/")[2])

        return sorted(options, key=rank)


def implied(schema: Schema) -> list[JSON]:
    """The schemas that a value must satisfy as well."""
    found = schemas(schema, "allOf")[::-1]
    dependent = members(schema, "dependentSchemas")
    if dependent:
        required = schema_strings(schema, "required")
        found += [dependent[name] for name in required if name in dependent]
    return found


def required_names(schema: Schema) -> set[str]:
    """The names under `required`, and the names that those depend on."""
    required: set[str] = set()
    pending = schema_strings(schema, "required")
    while pending:
        name = pending.pop()
        if name not in required:
            required.add(name)
            for keyword in DEPENDENCIES & schema.keys():
                pending += schema_strings(members(schema, keyword), name)
    return required


def leads_to(schema: JSON, refs: Refs) -> bool:
    """Whether the schema, one of its parts or its items is one of the references."""
    if not isinstance(schema, dict):
        return False
    for part in (schema, schema.get("items"), *schemas(schema, "allOf")):
        if isinstance(part, dict) and part.get("$ref") in refs:
            return True
    return False


def alternatives_of(schema: Schema) -> list[list[JSON]]:
    """The lists of schemas of each of which a value has to satisfy one."""
    choices = [schemas(schema, "anyOf"), schemas(schema, "oneOf")]
    # Which of the two branches suits the other keywords shows when a value is built.
    if "if" in schema:
        condition = schema["if"]
        then = both(condition, schema.get("then", True))
        otherwise = both({"not": condition}, schema.get("else", True))
        choices.append([then, otherwise])
    return [options for options in choices if options]


def merged_schema(flat: Schema, part: Schema) -> Schema:
    """A schema that demands what both demand, as far as a flat schema can."""
    result = dict(flat)
    for keyword, value in unified(part).items():
        if keyword in EXPANDED:
            continue
        if keyword in result:
            combine = COMBINED.get(keyword, first_of_two)
            value = combine(result[keyword], value)
        result[keyword] = value
    return result


def unified(part: Schema) -> Schema:
    """The schema with `const` as an enum."""
    if "const" not in part:
        return part
    options: list[JSON] = [part["const"]]
    return {**part, "enum": common(part.get("enum", options), options)}


def first_of_two(one: JSON, other: JSON) -> JSON:
    return one


def both(one: JSON, other: JSON) -> JSON:
    return {"allOf": [one, other]}


def only_numbers(*values: JSON) -> list[int | float]:
    return [value for value in values if isinstance(value, int | float)]


def larger(one: JSON, other: JSON) -> JSON:
    return max(only_numbers(one, other), default=None)


def smaller(one: JSON, other: JSON) -> JSON:
    return min(only_numbers(one, other), default=None)


def joined_objects(one: JSON, other: JSON) -> JSON:
    """The members of both objects. A member that is in both has to match both schemas."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one
    result = dict(one)
    for name, part in other.items():
        if name in result:
            part = both(result[name], part)
        result[name] = part
    return result


def union(one: JSON, other: JSON) -> JSON:
    names = schema_strings({"names": one}, "names") + schema_strings({"names": other}, "names")
    return [*dict.fromkeys(names)]


def common(one: JSON, other: JSON) -> list[JSON]:
    if not isinstance(one, list) or not isinstance(other, list):
        return []
    known = {identity(value) for value in other}
    return [value for value in one if identity(value) in known]


def shared_types(one: JSON, other: JSON) -> JSON:
    """The types that both have; an integer is a number too."""
    left = types_of({"type": one})
    right = types_of({"type": other})
    found: list[JSON] = [kind for kind in left if kind in right]
    if {"integer", "number"} <= {*left, *right} and "integer" not in found:
        found.append("integer")
    return found or NOTHING


# How the two values become one where two schemas have the same keyword.
COMBINED: dict[str, Callable[[JSON, JSON], JSON]] = {
    "additionalProperties": both,
    "enum": common,
    "exclusiveMaximum": smaller,
    "exclusiveMinimum": larger,
    "items": both,
    "maxItems": smaller,
    "maxLength": smaller,
    "maxProperties": smaller,
    "maximum": smaller,
    "minItems": larger,
    "minLength": larger,
    "minProperties": larger,
    "minimum": larger,
    "patternProperties": joined_objects,
    "properties": joined_objects,
    "propertyNames": both,
    "required": union,
    "type": shared_types,
    "uniqueItems": larger,
}
