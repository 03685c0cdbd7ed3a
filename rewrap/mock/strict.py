"""OpenAI's checks of a JSON Schema: those of strict mode, and those of every function.

The texts are those that OpenAI sends, as users report them. Where reports contradict each other,
a schema is accepted, so that the mock is never stricter than OpenAI: `default`, `examples`,
`minLength` and `maxLength` are. A definition is checked as a schema of its own, with the context
`()`. Time is linear in the size of the schema. Imports `budget` and leaf files.
"""

from collections.abc import Iterator
from itertools import chain

from rewrap.mock.budget import JSON, Schema, SchemaError, members, schema_strings, schemas, word_set
from rewrap.regex import regex
from rewrap.structs import struct

MAX_LEVELS = 10  # objects and arrays inside each other, the root included
MAX_PROPERTIES = 5_000
MAX_ENUM_VALUES = 1_000
MAX_TYPES = 7  # in a list of types

FORMATS = word_set("date-time time date duration email hostname ipv4 ipv6 uuid")
NOT_PERMITTED = word_set(
    "additionalItems allOf contains dependencies dependentRequired dependentSchemas else if"
    " maxContains maxProperties minContains minProperties not oneOf patternProperties"
    " propertyNames then unevaluatedItems unevaluatedProperties uniqueItems"
)
DEFINITION = regex(r"#(?:/(?:\$defs|definitions)/[^/]+)?")
LOOKAROUND = regex(r"(?<!\\)(?:\\\\)*\(\?<?[=!]")
ITEMS = word_set("items prefixItems")
TOP_LEVEL = ("oneOf", "anyOf", "allOf", "enum", "not")

OPEN = "'additionalProperties' is required to be supplied and to be false."
REQUIRED = "'required' is required to be supplied and to be an array including every key in"
ROOT = "schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{}\"'."
COMPOSED = "schema must have type 'object' and not have 'oneOf'/'anyOf'/'allOf'/'enum'/'not' at the"
REFERENCE = "reference can only point to definitions defined at the top level of the schema."
ENUM = "Expected at most {} enum values in total within a single schema when using"


@struct(frozen=True, slots=True)
class Node:
    """A schema inside the checked one. `path` is the path of its parent and the last keys."""

    schema: Schema
    path: "tuple[Node, tuple[str, ...]] | None" = None
    level: int = 1

    def context(self) -> str:
        """The keys that lead here, written as Python writes a tuple."""
        keys: list[str] = []
        node = self
        while node.path is not None:
            keys[:0] = node.path[1]
            node = node.path[0]
        return str(tuple(keys))

    def child(self, schema: Schema, *keys: str) -> "Node":
        deeper = schema.get("type") in ("object", "array")
        return Node(schema, (self, keys), self.level + deeper)


@struct(frozen=True, slots=True)
class Subject:
    """What is checked, as errors name it."""

    kind: str
    name: str
    param: str | None
    code: str | None

    def error(self, problem: str, node: Node | None = None) -> SchemaError:
        context = ""
        if node is not None:
            context = f"In context={node.context()}, "
        message = f"Invalid schema for {self.kind} '{self.name}': {context}{problem}"
        return SchemaError(message, self.param, self.code)


def check_strict(
    schema: JSON,
    name: str,
    kind: str = "response_format",
    param: str = "response_format",
    code: str | None = None,
) -> None:
    """Raises SchemaError as OpenAI refuses a schema with `strict: true`.

    `kind` is "response_format" or "function". For a function, `param` is such as
    "tools[0].function.parameters" and `code` is "invalid_function_parameters".
    """
    subject = Subject(kind, name, param, code)
    root = checked_root(schema, subject)
    definitions = members(root, "$defs") | members(root, "definitions")
    tops = [Node(root)]
    tops += [Node(part) for part in definitions.values() if isinstance(part, dict)]
    levels = properties = enums = 0
    for node, left in chain.from_iterable(walk(top) for top in tops):
        if left:
            check_required(node, subject)
            continue
        check_node(node, subject)
        levels = max(levels, node.level)
        if node.schema.get("type") == "object":
            properties += len(members(node.schema, "properties"))
        enums += len(schemas(node.schema, "enum"))
    if levels > MAX_LEVELS:
        raise subject.error(f"{levels} levels of nesting exceeds limit of {MAX_LEVELS}.")
    if properties > MAX_PROPERTIES:
        raise subject.error(f"{properties} parameters exceeds limit of {MAX_PROPERTIES}.")
    if enums > MAX_ENUM_VALUES:
        raise subject.error(
            f"{ENUM.format(MAX_ENUM_VALUES)} structured outputs, but received {enums}."
        )


def check_function_parameters(schema: JSON, name: str, param: str) -> None:
    """Raises SchemaError as OpenAI refuses the parameters of any function, strict or not."""
    subject = Subject("function", name, param, "invalid_function_parameters")
    root = checked_root(schema, subject)
    if any(keyword in root for keyword in TOP_LEVEL):
        raise subject.error(f"{COMPOSED} top level.")
    for node, _ in walk(Node(root)):
        is_array = node.schema.get("type") == "array"
        if is_array and ITEMS.isdisjoint(node.schema):
            raise subject.error("array schema missing items.", node)


def checked_root(schema: JSON, subject: Subject) -> Schema:
    if not isinstance(schema, dict):
        raise subject.error(ROOT.format(None))
    if schema.get("type") != "object":
        raise subject.error(ROOT.format(schema.get("type")))
    # Reported for functions alone.
    if subject.kind == "function" and "properties" not in schema:
        raise subject.error("object schema missing properties.", Node(schema))
    if "anyOf" in schema:
        raise subject.error(f"{COMPOSED} top level.")
    return schema


def walk(top: Node) -> Iterator[tuple[Node, bool]]:
    """The node and all below it: each with False before its children, with True behind them."""
    pending = [(top, False)]
    while pending:
        node, left = pending.pop()
        yield node, left
        if not left:
            pending.append((node, True))
            pending += [(child, False) for child in [*children(node)][::-1]]


def children(node: Node) -> Iterator[Node]:
    schema = node.schema
    kinds = schema.get("type")
    # OpenAI takes a list of types as a schema for each, with an index in the context.
    if isinstance(kinds, list):
        for index, kind in enumerate(kinds[:MAX_TYPES]):
            single: Schema = {**schema, "type": kind, "enum": None}
            yield node.child(single, "type", str(index))
        return
    if kinds == "object":
        for name, part in members(schema, "properties").items():
            if isinstance(part, dict):
                yield node.child(part, "properties", name)
    items = schema.get("items")
    if kinds == "array" and isinstance(items, dict):
        yield node.child(items, "items")
    for index, part in enumerate(schemas(schema, "anyOf")):
        if isinstance(part, dict):
            yield node.child(part, "anyOf", str(index))


def check_node(node: Node, subject: Subject) -> None:
    schema = node.schema
    if "$ref" in schema:
        check_reference(node, subject)
        return
    if isinstance(schema.get("type"), list):
        return
    for keyword in schema:
        if keyword in NOT_PERMITTED:
            raise subject.error(f"'{keyword}' is not permitted.", node)
    if "type" not in schema and "anyOf" not in schema and schema:
        raise subject.error("schema must have a 'type' key.", node)
    if schema.get("type") == "array" and not schema.get("items"):
        raise subject.error("array schema missing items.", node)
    if schema.get("type") == "object":
        check_object(node, subject)
    if schema.get("type") == "string":
        check_string_schema(node, subject)


def check_reference(node: Node, subject: Subject) -> None:
    ref = node.schema["$ref"]
    others = sorted(node.schema.keys() - {"$ref"})
    if others:
        keywords = "{" + ", ".join(repr(keyword) for keyword in others) + "}"
        # This text alone begins its context without "In".
        problem = f"context={node.context()}, $ref cannot have keywords {keywords}."
        raise subject.error(problem)
    if not isinstance(ref, str) or not DEFINITION.fullmatch(ref):
        raise subject.error(REFERENCE, node)


def check_object(node: Node, subject: Subject) -> None:
    schema = node.schema
    rule = schema.get("additionalProperties")
    is_map = isinstance(rule, dict) and "properties" not in schema
    if rule is not False and not is_map:
        raise subject.error(OPEN, node)


def check_required(node: Node, subject: Subject) -> None:
    """OpenAI checks this behind the children: it drops some of them."""
    if node.schema.get("type") != "object":
        return
    properties = members(node.schema, "properties")
    required = schema_strings(node.schema, "required")
    known = {name for name, part in properties.items() if counts(part)}
    listed = set(required)
    for name in properties:
        if name not in listed:
            raise subject.error(f"{REQUIRED} properties. Missing '{name}'.", node)
    for name in required:
        if name not in known:
            extra = f"Extra required key '{name}' supplied."
            raise subject.error(f"{REQUIRED} properties. {extra}", node)


def counts(part: JSON) -> bool:
    """Strict mode drops a property that is empty or an object without `properties`."""
    if not isinstance(part, dict) or not part:
        return False
    closed = part.get("additionalProperties") is False
    is_map = isinstance(part.get("additionalProperties"), dict)
    unnamed = part.get("type") == "object" and "properties" not in part
    return not (unnamed and (closed or is_map))


def check_string_schema(node: Node, subject: Subject) -> None:
    name = node.schema.get("format")
    if name is not None and str(name) not in FORMATS:
        raise subject.error(f"'{name}' is not a valid format.", node)
    pattern = node.schema.get("pattern")
    if isinstance(pattern, str) and LOOKAROUND.search(pattern):
        place = json_path(node)
        raise SchemaError(
            f"Invalid JSON schema: regex lookaround is not supported. Found at {place}.pattern.",
            subject.param,
            "invalid_json_schema",
        )


def json_path(node: Node) -> str:
    """The path as `$.properties.email` or `$.anyOf[0]`."""
    path = ""
    while node.path is not None:
        node, keys = node.path
        if keys[0] == "anyOf":
            path = f".anyOf[{keys[1]}]" + path
        elif keys[0] != "type":
            path = "." + ".".join(keys) + path
    return "$" + path
