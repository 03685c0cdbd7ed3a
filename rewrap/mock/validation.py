"""Whether a value is valid against a JSON Schema: draft 2020-12, 4 to 7, and OpenAPI 3.0.

For values that the mock makes, within a budget of steps. References reach into the same document
only. Imports the standard library, `budget`, `formats` and `patterns` only.
"""

import operator
from collections.abc import Callable
from itertools import zip_longest
from urllib.parse import unquote

from rewrap.mock.budget import (
    JSON,
    NO_LIMIT,
    Budget,
    Schema,
    SchemaError,
    members,
    schema_count,
    schema_number,
    schema_strings,
    schemas,
)
from rewrap.mock.formats import has_format
from rewrap.mock.patterns import matches


def is_integer(value: JSON) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


TYPES: dict[str, Callable[[JSON], bool]] = {
    "array": lambda value: isinstance(value, list),
    "boolean": lambda value: isinstance(value, bool),
    "integer": is_integer,
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, float) or is_integer(value),
    "object": lambda value: isinstance(value, dict),
    "string": lambda value: isinstance(value, str),
}

BOUNDS: dict[str, Callable[[float, float], bool]] = {
    "exclusiveMaximum": operator.lt,
    "exclusiveMinimum": operator.gt,
    "maximum": operator.le,
    "minimum": operator.ge,
}
# Draft 4 spells "the bound itself is excluded" as true beside the bound.
DRAFT_4 = {"exclusiveMaximum": "maximum", "exclusiveMinimum": "minimum"}


def identity(value: JSON) -> object:
    """A key that is the same for values that JSON Schema holds equal, such as 1 and 1.0."""
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, list):
        return ("list", *(identity(item) for item in value))
    if isinstance(value, dict):
        return frozenset((name, identity(item)) for name, item in value.items())
    return value


def types_of(schema: Schema) -> list[str]:
    """The names under `type`, which may be one or a list; empty where any type will do."""
    declared = schema.get("type")
    if isinstance(declared, str):
        return [declared]
    return schema_strings(schema, "type")


def item_schemas(schema: Schema) -> tuple[list[JSON], JSON]:
    """The schemas of the first items, and that of all others, in either spelling."""
    items = schema.get("items", True)
    if isinstance(items, list):
        return items, schema.get("additionalItems", True)
    return schemas(schema, "prefixItems"), items


class Validator:
    """Checks values against the schemas of one document."""

    def __init__(self, root: JSON, budget: Budget) -> None:
        self.root = root
        self.budget = budget
        self.targets: dict[str, JSON] = {"#": root}

    def resolve(self, ref: str) -> JSON:
        """The schema that a JSON pointer such as `#/$defs/Node` names, or raises SchemaError."""
        if ref not in self.targets:
            self.budget.spend(len(ref))
            self.targets[ref] = self.pointed(ref)
        return self.targets[ref]

    def pointed(self, ref: str) -> JSON:
        target = self.root
        pointer = unquote(ref).removeprefix("#/")
        for part in pointer.split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            found: JSON = None
            if isinstance(target, list) and key.isdecimal() and len(key) < 8:
                index = int(key)
                found = next(iter(target[index : index + 1]), None)
            elif isinstance(target, dict) and ref.startswith("#/"):
                found = target.get(key)
            target = found
        if target is None:
            raise SchemaError(f"The reference {ref!r} points to nothing in the schema.")
        return target

    def valid(self, schema: JSON, value: JSON) -> bool:
        self.budget.spend(4)
        if not isinstance(schema, dict):
            return schema is not False
        if not self.valid_kind(schema, value):
            return False
        if not self.valid_parts(schema, value):
            return False
        match value:
            case bool() | None:
                return True
            case int() | float():
                return valid_number(schema, value)
            case str():
                return self.valid_string(schema, value)
            case list():
                return self.valid_array(schema, value)
        return self.valid_object(schema, value)

    def valid_kind(self, schema: Schema, value: JSON) -> bool:
        """`type`, `enum` and `const`."""
        if "const" in schema and identity(schema["const"]) != identity(value):
            return False
        if "enum" in schema:
            options = schemas(schema, "enum")
            self.budget.spend(len(options))
            key = identity(value)
            if not any(identity(option) == key for option in options):
                return False
        if "type" not in schema:
            return True
        if value is None and schema.get("nullable") is True:
            return True
        kinds = [name for name in types_of(schema) if name in TYPES]
        return any(TYPES[kind](value) for kind in kinds)

    def valid_parts(self, schema: Schema, value: JSON) -> bool:
        """The keywords whose schemas apply to the same value."""
        if APPLICATORS.isdisjoint(schema):
            return True
        ref = schema.get("$ref")
        if isinstance(ref, str) and not self.valid(self.resolve(ref), value):
            return False
        for part in schemas(schema, "allOf"):
            if not self.valid(part, value):
                return False
        if "anyOf" in schema and self.matching(schema, "anyOf", value) == 0:
            return False
        if "oneOf" in schema and self.matching(schema, "oneOf", value) != 1:
            return False
        if "not" in schema and self.valid(schema["not"], value):
            return False
        if "if" not in schema:
            return True
        if self.valid(schema["if"], value):
            return self.valid(schema.get("then", True), value)
        return self.valid(schema.get("else", True), value)

    def matching(self, schema: Schema, keyword: str, value: JSON) -> int:
        """The number of schemas under a keyword that the value satisfies."""
        return sum(self.valid(option, value) for option in schemas(schema, keyword))

    def valid_string(self, schema: Schema, value: str) -> bool:
        least = schema_count(schema, "minLength")
        if not least <= len(value) <= schema_count(schema, "maxLength", NO_LIMIT):
            return False
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and not matches(pattern, value, self.budget):
            return False
        return has_format(schema.get("format"), value)

    def valid_array(self, schema: Schema, value: list[JSON]) -> bool:
        least = schema_count(schema, "minItems")
        if not least <= len(value) <= schema_count(schema, "maxItems", NO_LIMIT):
            return False
        prefix, rest = item_schemas(schema)
        for item, part in zip_longest(value, prefix[: len(value)], fillvalue=rest):
            if not self.valid(part, item):
                return False
        if "contains" in schema:
            found = sum(self.valid(schema["contains"], item) for item in value)
            most = schema_count(schema, "maxContains", NO_LIMIT)
            if not schema_count(schema, "minContains", 1) <= found <= most:
                return False
        if schema.get("uniqueItems") is True:
            return len({identity(item) for item in value}) == len(value)
        return True

    def valid_object(self, schema: Schema, value: dict[str, JSON]) -> bool:
        least = schema_count(schema, "minProperties")
        if not least <= len(value) <= schema_count(schema, "maxProperties", NO_LIMIT):
            return False
        needed = set(schema_strings(schema, "required"))
        for keyword in ("dependentRequired", "dependencies"):
            for name in members(schema, keyword).keys() & value.keys():
                needed.update(schema_strings(members(schema, keyword), name))
        if not needed <= value.keys():
            return False
        for name, part in members(schema, "dependentSchemas").items():
            if name in value and not self.valid(part, value):
                return False
        return self.valid_members(schema, value)

    def valid_members(self, schema: Schema, value: dict[str, JSON]) -> bool:
        names = schema.get("propertyNames", True)
        for name, item in value.items():
            if names is not True and not self.valid(names, name):
                return False
            for part in self.member_schemas(schema, name):
                if not self.valid(part, item):
                    return False
        return True

    def member_schemas(self, schema: Schema, name: str) -> list[JSON]:
        """The schemas that the value of a property has to satisfy."""
        found: list[JSON] = []
        properties = members(schema, "properties")
        if name in properties:
            found.append(properties[name])
        for pattern, part in members(schema, "patternProperties").items():
            if matches(pattern, name, self.budget):
                found.append(part)
        return found or [schema.get("additionalProperties", True)]


APPLICATORS = frozenset(("$ref", "allOf", "anyOf", "oneOf", "not", "if"))


def valid_number(schema: Schema, value: int | float) -> bool:
    for keyword in BOUNDS.keys() & schema.keys():
        bound = schema_number(schema, keyword)
        if bound is not None and not BOUNDS[keyword](value, bound):
            return False
        closed = DRAFT_4.get(keyword, "")
        if schema[keyword] is True and value == schema_number(schema, closed):
            return False
    step = schema_number(schema, "multipleOf")
    if not step:
        return True
    if isinstance(step, int):
        return value % step == 0
    # As common validators have it: 0.07 is no multiple of the float 0.01.
    return (value / step).is_integer()
