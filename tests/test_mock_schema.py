"""The mock's JSON values: valid, deterministic, filled from the prompt, and bounded."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mock_schemas import REAL, Invoice, Node, Owner, problems

from rewrap.mock.budget import Budget, SchemaError, word_set
from rewrap.mock.json_mode import json_object_for
from rewrap.mock.patterns import matches, text_for
from rewrap.mock.schema import value_for
from rewrap.mock.strict import check_function_parameters, check_strict

PROMPT = "Make one for 'Ada Lovelace' in Paris, 36 years old, on 2025-03-05, paid."


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("prompt", ["", PROMPT])
@pytest.mark.parametrize("fill", [False, True])
def test_values_for_schemas_of_real_tools_are_valid(name: str, prompt: str, fill: bool) -> None:
    value = value_for(REAL[name], prompt, fill=fill)
    assert problems(REAL[name], json.loads(json.dumps(value))) == []
    assert json.dumps(value_for(REAL[name], prompt, fill=fill)) == json.dumps(value)


def test_there_are_forty_schemas_of_real_tools() -> None:
    assert len(REAL) >= 40


PATTERNS = [
    r"^[a-z]+$",
    r"^\d{3}-\d{4}$",
    r"[A-F0-9]{8}",
    r"^(foo|bar)+\.txt$",
    r"^\S+@\S+$",
    r"^.{5}$",
    r"^(?=.*\d)[a-z0-9]+$",
    r"^(?!-)[+-]?\d*$",
    r"\bword\b",
    r"^[^0-9]*$",
    r"^(a|b(c|d{2}))*e?$",
    r"^[\u0430-\u044f]{3}$",
]
FORMATS = [
    "date",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "time",
    "uri",
    "uuid",
]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=5)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.floats(-9, 9), TEXTS)
NAMES = st.sampled_from(["a", "b", "name", "unit", "days", "path", "x y", "ü"])
Schemas = st.SearchStrategy[Any]


def spans(least: str, most: str, high: int) -> Schemas:
    """Bounds, one, both or none of them, of which the lower is not above the higher."""
    both = st.tuples(st.integers(0, high), st.integers(0, high)).map(sorted)
    names = st.sampled_from([(), (least,), (most,), (least, most)])
    return st.tuples(names, both).map(
        lambda found: {name: found[1][name == most] for name in found[0]}
    )


def typed(name: str, *parts: Schemas) -> Schemas:
    def joined(found: tuple[dict[str, Any], ...]) -> dict[str, Any]:
        return {"type": name} | {key: value for part in found for key, value in part.items()}

    return st.tuples(*parts).map(joined)


def numbers() -> Schemas:
    low = st.integers(-1000, 1000)
    step = st.sampled_from([{}, {"multipleOf": 5}, {"multipleOf": 0.5}, {"multipleOf": 3}])
    keys = st.sampled_from([("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")])
    both = st.tuples(keys, low, st.integers(12, 100)).map(
        lambda found: {found[0][0]: found[1], found[0][1]: found[1] + found[2]}
    )
    one = st.tuples(st.sampled_from(["minimum", "maximum"]), low).map(
        lambda found: {found[0]: found[1]}
    )
    narrow = st.floats(-5, 5).map(lambda n: {"minimum": n, "maximum": n + 0.25})
    some = st.one_of(st.just({}), both, one)
    return st.one_of(
        typed("integer", some, step), typed("number", some, step), typed("number", narrow)
    )


LEAVES = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {}, True]),
    numbers(),
    typed("string", spans("minLength", "maxLength", 40)),
    st.sampled_from(PATTERNS).map(lambda pattern: {"type": "string", "pattern": pattern}),
    st.sampled_from(FORMATS).map(lambda name: {"type": "string", "format": name}),
    st.lists(SCALARS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    SCALARS.map(lambda value: {"const": value}),
    st.just({"$ref": "#/$defs/tree"}),
    st.just({"type": ["string", "null"], "default": None}),
    TEXTS.map(lambda text: {"type": "string", "examples": [text]}),
    TEXTS.map(lambda text: {"type": "string", "not": {"const": text}}),
)


def arrays(part: Schemas) -> Schemas:
    bounds = spans("minItems", "maxItems", 5)
    text = st.just({"uniqueItems": True, "items": {"type": "string"}})
    tuples = st.lists(part, min_size=1, max_size=3)
    return st.one_of(
        typed("array", bounds, part.map(lambda items: {"items": items})),
        typed("array", bounds, text),
        typed("array", tuples.map(lambda parts: {"prefixItems": parts, "items": False})),
        typed("array", part.map(lambda items: {"contains": items, "minContains": 1})),
    )


@st.composite
def objects(draw: st.DrawFn, part: Schemas) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, part, max_size=4))
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    required = draw(st.lists(st.sampled_from([*properties, "z"]), unique=True))
    schema["required"] = required
    match draw(st.integers(0, 4)):
        case 0:
            schema["additionalProperties"] = "z" in required and draw(part)
        case 1:
            schema["maxProperties"] = len(required) + draw(st.integers(0, 2))
        case 2:
            schema["minProperties"] = draw(st.integers(0, 5))
        case 3:
            schema["patternProperties"] = {"^x-": draw(part)}
    return schema


def unions(part: Schemas) -> Schemas:
    several = st.lists(part, min_size=1, max_size=3)
    types = st.sampled_from([["string", "integer"], ["boolean", "array"], ["null", "object"]])
    return st.one_of(
        several.map(lambda parts: {"anyOf": parts}),
        types.map(lambda names: {"oneOf": [{"type": name} for name in names]}),
        objects(part).map(lambda one: {"allOf": [one, {"required": ["a"]}]}),
        part.map(lambda one: {"if": {"type": "string"}, "then": True, "else": one}),
    )


def composed(part: Schemas) -> Schemas:
    return arrays(part) | objects(part) | objects(part) | unions(part)


TREE = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "next": {"$ref": "#/$defs/tree"}},
    "required": ["n"],
}
SCHEMAS = objects(st.recursive(LEAVES, composed, max_leaves=8))


@settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(SCHEMAS, st.sampled_from(["", PROMPT]), st.booleans())
def test_values_for_300_generated_schemas_are_valid(
    schema: dict[str, Any], prompt: str, fill: bool
) -> None:
    schema["$defs"] = {"tree": TREE}
    assume(not contradicts(schema))
    value = value_for(schema, prompt, fill=fill)
    assert problems(schema, value) == []
    assert json.dumps(value_for(schema, prompt, fill=fill)) == json.dumps(value)


def contradicts(schema: Any) -> bool:
    """Whether a part forbids, or allows too few, of the properties that it requires."""
    if isinstance(schema, list):
        return any(contradicts(part) for part in schema)
    if not isinstance(schema, dict):
        return False
    if "allOf" in schema:
        first = schema["allOf"][0]
        required = {*first["required"], "a"}
        closed = first.get("additionalProperties") is False and "a" not in first["properties"]
        if closed or first.get("maxProperties", 9) < len(required):
            return True
    return any(contradicts(part) for part in schema.values())


def one(schema: Any, prompt: str, name: str = "x") -> Any:
    """The value for a required property of that name."""
    return value_for({"properties": {name: schema}, "required": [name]}, prompt)[name]


@pytest.mark.parametrize(
    ("name", "schema", "prompt", "expected"),
    [
        ("n", {"type": "integer"}, "I have 7 apples", 7),
        ("n", {"type": "integer"}, "I have 1,250 apples", 1250),
        ("n", {"type": "number"}, "It costs 9.75 euros.", 9.75),
        ("n", {"type": "integer", "maximum": 5}, "take 9 or 4", 4),
        ("n", {"type": "integer"}, "on 2025-03-05 at 14:30", 1),
        ("n", {"type": "integer"}, "on 5 March 2025 for 3", 3),
        ("days", {"type": "integer"}, "the first 20 days 3", 3),
        ("title", {"type": "string"}, "call it 'Lunch with Bo'", "Lunch with Bo"),
        ("title", {"type": "string"}, "What's the name of Bob's dog?", "title"),
        ("title", {"type": "string"}, "call it “Lunch”", "Lunch"),
        ("city", {"type": "string"}, "What is the weather in New York today?", "New York"),
        ("q", {"type": "string"}, "cheap flights", "cheap flights"),
        ("unit", {"enum": ["celsius", "fahrenheit"]}, "in Fahrenheit please", "fahrenheit"),
        ("unit", {"enum": ["C", "F"]}, "Can you tell?", "C"),
        ("state", {"enum": ["todo", "in_progress"]}, "those in progress", "in_progress"),
        ("taal", {"enum": ["é", "日本"]}, "en 日本語", "日本"),
        ("day", {"type": "string", "format": "date"}, "on March 5, 2025", "2025-03-05"),
        ("day", {"type": "string", "format": "date"}, "on 5 March 2025", "2025-03-05"),
        ("due_date", {"type": "string"}, "before 2025-03-05.", "2025-03-05"),
        ("email", {"type": "string"}, "write to bo.x@example.org, now", "bo.x@example.org"),
        ("url", {"type": "string"}, "see https://a.example/b?c=1.", "https://a.example/b?c=1"),
        ("path", {"type": "string"}, "read /tmp/notes.txt please", "/tmp/notes.txt"),
        ("path", {"type": "string"}, "read notes.txt.", "notes.txt"),
        ("code", {"type": "string", "pattern": "^[A-Z]{2}-\\d+$"}, "order AB-12, please", "AB-12"),
        ("recursive", {"type": "boolean"}, "a recursive listing", True),
        ("recursive", {"type": "boolean"}, "a listing, not recursive", False),
        ("numbers", {"type": "array", "items": {"type": "integer"}}, "add 1, 2 and 3", [1, 2, 3]),
        (
            "tags",
            {"type": "array", "items": {"enum": ["a1", "b1", "c1"]}},
            "c1 and b1",
            ["b1", "c1"],
        ),
        ("n", {"type": "integer", "default": 3}, "I have 7 apples", 3),
        ("days", {"type": "integer", "default": 3}, "for 5 days", 5),
        ("s", {"type": "string", "examples": ["one", "two"]}, "", "one"),
        (
            "at",
            {"type": "string", "format": "date-time", "default": "2025-02-30T09:00:00Z"},
            "",
            "2025-01-15T09:30:00Z",
        ),
        ("s", {"type": "string", "default": 5, "example": "two"}, "", "two"),
        ("s", {"type": "number", "multipleOf": 0.01, "default": 0.075}, "", 1.5),
        ("s", {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}, "", None),
        ("s", {"anyOf": [{"type": "null"}, {"type": "string"}]}, "", "s"),
    ],
)
def test_value_comes_from_the_prompt(name: str, schema: Any, prompt: str, expected: Any) -> None:
    found = one(schema, prompt, name)
    assert found == expected
    assert type(found) is type(expected)


def test_numbers_and_texts_go_to_the_properties_that_they_stand_beside() -> None:
    whole = {"type": "integer"}
    text = {"type": "string"}
    schema = {
        "properties": {"limit": whole, "num_days": whole, "body": text, "title": text},
        "required": ["limit", "num_days", "body", "title"],
    }
    prompt = "Title 'Lunch', body 'Pizza', for 3 days with limit 10"
    expected = {"limit": 10, "num_days": 3, "body": "Pizza", "title": "Lunch"}
    assert value_for(schema, prompt) == expected


def test_optional_properties_appear_where_the_prompt_names_their_values() -> None:
    schema = {
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["metric", "imperial"]},
            "hourly": {"type": "boolean"},
        },
        "required": ["city"],
    }
    assert value_for(schema, "Weather in Oslo") == {"city": "Oslo"}
    found = value_for(schema, "Weather in Oslo for 3 days, imperial")
    assert found == {"city": "Oslo", "days": 3, "unit": "imperial"}


def test_optional_properties_leave_room_for_what_is_required_or_depends_on_them() -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"days": {"type": "integer"}, "limit": {"type": "integer"}},
    }
    prompt = "for 3 days with limit 10"
    assert value_for(schema, prompt) == {"days": 3, "limit": 10}
    assert value_for(schema | {"maxProperties": 1}, prompt) == {"days": 3}
    depends = schema | {"dependentRequired": {"days": ["unit"]}}
    assert value_for(depends, prompt) == {"limit": 10}


def test_map_has_a_member_and_an_array_an_item() -> None:
    assert one({"type": "object", "additionalProperties": {"type": "integer"}}, "") == {"key": 1}
    assert one({"type": "array", "items": {"type": "integer"}}, "") == [1]


def test_fact_that_stands_in_the_prompt_twice_is_no_obstacle_to_unique_items() -> None:
    schema = {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "minItems": 3}
    assert one(schema, "'a' " * 40) == ["a", "x 3", "x 4"]


def test_fill_gives_an_object_that_requires_nothing_its_properties() -> None:
    schema: dict[str, Any] = {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    assert value_for(schema, "") == {}
    assert value_for(schema, "", fill=True) == {"a": 1, "b": "b"}
    schema["properties"]["b"] = {"$ref": "#"}
    assert value_for(schema, "", fill=True) == {"a": 1, "b": {"a": 1}}


def test_union_is_the_model_that_the_prompt_names() -> None:
    schema = Owner.model_json_schema()
    assert value_for(schema, "A dog please")["pet"]["kind"] == "dog"
    assert value_for(schema, "A cat please")["pet"]["kind"] == "cat"


def test_recursion_ends_as_early_as_the_schema_allows() -> None:
    assert value_for(Node.model_json_schema(), "") == {"value": 1, "children": [], "parent": None}
    expression = value_for(REAL["expression"], "")
    assert expression["left"]["type"] == expression["right"]["type"] == "number"
    assert value_for(REAL["linked list"], "") == {"value": 1, "next": None}


def test_models_of_pydantic_parse_their_values() -> None:
    for prompt in ("", PROMPT):
        Invoice.model_validate(value_for(Invoice.model_json_schema(), prompt))
        Node.model_validate(value_for(Node.model_json_schema(), prompt))
        Owner.model_validate(value_for(Owner.model_json_schema(), prompt))


def test_references_may_point_into_another_document() -> None:
    root = {"components": {"a/b": {"type": "integer"}}, "list": [{"const": 5}]}
    assert value_for({"$ref": "#/components/a~1b"}, "", root) == 1
    assert value_for({"$ref": "#/list/0"}, "", root) == 5


def test_value_that_is_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(100):
        schema = {"type": "array", "items": schema, "minItems": 1}
    with pytest.raises(SchemaError) as refused:
        value_for({"properties": {"x": schema}, "required": ["x"], "type": "object"}, "")
    assert refused.value.message == "The value is nested too deeply for the mock."


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "str"}, "'str' is not valid under any of the given schemas."),
        ({"$ref": "#/$defs/missing"}, "The reference '#/$defs/missing' points to nothing"),
        ({"$ref": "https://example.com/schema"}, "points to nothing in the schema"),
        ({"type": "string", "pattern": "("}, "'(' is not a 'regex'"),
        ({"type": "string", "pattern": r"(a)\1"}, "does not support groupref in patterns"),
        ({"type": "string", "pattern": "a" * 1001}, "A pattern may have at most 1000 characters."),
        (
            {"type": "object", "required": ["A"], "propertyNames": {"pattern": "^[a-z]+$"}},
            "finds no value for the schema",
        ),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "no integer for the schema"),
        ({"type": "string", "minLength": 5, "maxLength": 4}, "no string for the schema"),
        ({"enum": []}, "The enum has no valid value in the schema"),
        (False, "finds no value for the schema"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "No type is left for the schema"),
        ({"type": "object", "required": ["a"], "properties": {"a": False}}, "no value for 'a'"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "no value for 'a'"),
        ({"$ref": "#"}, "finds no value for the schema"),
        (
            {"required": ["a"], "properties": {"a": {"$ref": "#"}}, "type": "object"},
            "finds no value for 'a'",
        ),
        (
            {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 3},
            "Too few items can be unique in the schema",
        ),
    ],
)
def test_schemas_without_a_value_are_refused(schema: Any, problem: str) -> None:
    with pytest.raises(SchemaError) as refused:
        value_for(schema, "")
    assert problem in refused.value.message


MORE_PATTERNS = [
    r"^\D\W\S$",
    r"a\Bb|\Ba\b",
    r"^(?:a|b)*?c{0,2}$",
    r"^(?=a)(?!ab).*$",
    r"^[^a-c\d]+$",
    r"(a*b?)*c",
    r"^(|a){3}$",
    r"a{2,3}b{2}",
    r"^.\n?.$",
    r"^(?=.*[A-Z])(?=.*\d)(?=.*[^\w\s]).{8,}$",
]


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(st.sampled_from(PATTERNS + MORE_PATTERNS), st.text("abc1-. \nя", max_size=8))
def test_patterns_match_as_in_python(pattern: str, text: str) -> None:
    # Python's $ also matches before a newline at the end, that of JSON Schema does not.
    wanted = re.search(pattern.replace("$", r"\Z"), text) is not None
    assert matches(pattern, text, Budget()) == wanted


@pytest.mark.parametrize("pattern", PATTERNS + MORE_PATTERNS)
def test_written_texts_match_their_pattern(pattern: str) -> None:
    variants = 1 if "(?" in pattern else 5
    for variant in range(variants):
        text = text_for(pattern, 0, 40, variant, Budget())
        assert text is not None
        assert re.search(pattern, text)


@pytest.mark.parametrize("size", [3, 4, 10, 39])
def test_written_texts_have_the_length_that_is_asked_for(size: int) -> None:
    text = text_for("^[a-z]+@[a-z]*$", size, size, 0, Budget())
    assert text is not None
    assert len(text) == size
    assert text_for("^a{3}$", 4, 9, 0, Budget()) is None
    assert text_for("^a?b?c?d?$", 4, 4, 0, Budget()) == "abcd"
    assert text_for("foo", 6, 6, 0, Budget()) == "fooaaa"


def exponential(depth: int) -> dict[str, Any]:
    """Each definition needs the next one twice; the last one has no value."""
    definitions: dict[str, Any] = {f"d{depth}": False}
    for level in range(depth):
        following = {"$ref": f"#/$defs/d{level + 1}"}
        pair = {"properties": {"a": following, "b": following}, "required": ["a", "b"]}
        definitions[f"d{level}"] = {"anyOf": [pair, pair], "type": "object"}
    return {"$ref": "#/$defs/d0", "$defs": definitions}


def wide(depth: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {f"d{depth}": {"type": "integer"}}
    for level in range(depth):
        following = {"$ref": f"#/$defs/d{level + 1}"}
        definitions[f"d{level}"] = {
            "type": "object",
            "properties": {"a": following, "b": following},
            "required": ["a", "b"],
        }
    return {"$ref": "#/$defs/d0", "$defs": definitions}


def nested(depth: int, keyword: str) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {keyword: [schema]} if keyword == "anyOf" else {keyword: schema}
    return schema


HOSTILE: dict[str, Any] = {
    "many items": {"type": "array", "minItems": 10**9},
    "many items of many items": {
        "type": "array",
        "minItems": 9000,
        "items": {"type": "array", "minItems": 9000},
    },
    "long text": {"type": "string", "minLength": 10**9},
    "long texts": {"type": "array", "minItems": 1000, "items": {"minLength": 9**6}},
    "many properties": {"type": "object", "minProperties": 10**9},
    "many contained": {"type": "array", "contains": True, "minContains": 10**9},
    "failing twice at each level": exponential(60),
    "doubling at each level": wide(60),
    "pattern of a million": {"type": "string", "pattern": "a{1000000000}"},
    "pattern of nothing a million times": {"type": "string", "pattern": "(){1000000000}"},
    "pattern in a pattern": {"type": "string", "pattern": "((((a{99}){99}){99}){99}){99}"},
    "pattern that is long": {"type": "string", "pattern": "a" * 100_000},
    "patterns that are many": {
        "properties": {
            f"p{index}": {"pattern": "[a-c]" * 150 + str(index)} for index in range(900)
        },
        "required": [f"p{index}" for index in range(900)],
    },
    "pattern that is deep": {"type": "string", "pattern": "(" * 900},
    "pattern that backtracks": {
        "type": "string",
        "pattern": "^(a+)+$",
        "default": "a" * 5000 + "b",
    },
    "patterns that contradict": {
        "type": "string",
        "allOf": [{"pattern": "^(a|aa)+$"}, {"pattern": "^b"}],
    },
    "deep any": nested(20_000, "anyOf"),
    "deep not": nested(20_000, "not"),
    "deep items": nested(20_000, "items"),
    "not itself": {"not": {"$ref": "#"}},
    "large default many times": {
        "type": "array",
        "minItems": 9000,
        "items": {"default": "x" * 100_000},
    },
    "many options": {
        "type": "array",
        "minItems": 9000,
        "items": {"enum": [f"option {number}" for number in range(9000)]},
    },
    "many parts": {"allOf": [{"properties": {f"p{i}": {}}} for i in range(50_000)]},
    "many names": {"patternProperties": {"^x": {}}, "minProperties": 5000, "maxProperties": 5000},
}


def seconds(schema: Any, prompt: str) -> float:
    """The shortest of some runs, refusals included."""
    best = float("inf")
    for _ in range(3):
        begun = time.process_time()
        with suppress(SchemaError):
            value_for(schema, prompt)
        best = min(best, time.process_time() - begun)
    return best


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schema_ends_soon(name: str) -> None:
    """At most a few times the work of the largest array; some would take years otherwise."""
    with suppress(SchemaError):
        assert len(json.dumps(value_for(HOSTILE[name], PROMPT))) < 5_000_000
    largest = {"type": "array", "items": {"type": "object"}, "minItems": 2000}
    assert seconds(HOSTILE[name], PROMPT) < 30 * seconds(largest, PROMPT)


def properties(number: int) -> dict[str, Any]:
    kinds = [{"type": "string"}, {"type": "integer"}, {"enum": ["a", "b"]}]
    schema = {f"property_{index}": kinds[index % 3] for index in range(number)}
    return {"type": "object", "properties": schema, "required": [*schema]}


def test_time_grows_linearly_with_the_number_of_properties() -> None:
    assert seconds(properties(1600), PROMPT) < 16 * seconds(properties(200), PROMPT)


def test_time_does_not_grow_with_a_long_prompt() -> None:
    long = "word 'quoted' 12 in Paris on 2025-03-05, a@b.example; " * 400
    assert seconds(REAL["invoice"], long * 50) < 4 * seconds(REAL["invoice"], long)


def test_time_of_a_pattern_grows_linearly_with_the_text() -> None:
    def schema(size: int) -> Any:
        return {"type": "string", "pattern": "^(a+)+b?$", "examples": ["a" * size]}

    assert seconds(schema(2000), "") < 16 * seconds(schema(250), "")


def test_json_object_without_a_hint_repeats_the_prompt() -> None:
    assert json_object_for("Say hello in JSON.") == {"reply": "Say hello in JSON."}
    assert json_object_for("") == {"reply": ""}


def test_json_object_follows_a_schema_in_the_instructions() -> None:
    text = f"Answer with JSON for this schema:\n{json.dumps(Invoice.model_json_schema(), indent=1)}"
    Invoice.model_validate(json_object_for("An invoice, paid", text))
    Node.model_validate(json_object_for(f"A node: {json.dumps(Node.model_json_schema())}"))


def test_json_object_has_the_keys_that_the_prompt_asks_for() -> None:
    found = json_object_for("Return JSON with the keys `setup` and 'punchline'. A joke in JSON.")
    assert found == {"setup": "setup", "punchline": "punchline"}


def test_json_object_repeats_an_example() -> None:
    assert json_object_for('Answer like {"a": {"b": [1]}} and {"c": 2}.') == {"a": {"b": [1]}}


def test_json_object_of_a_hostile_prompt_ends_soon() -> None:
    def elapsed(size: int) -> float:
        begun = time.process_time()
        json_object_for('{"a": ' * size, "{" * size)
        return time.process_time() - begun

    assert elapsed(200_000) < 40 * elapsed(20_000)


KEYWORDS = word_set(
    "$defs $ref additionalItems additionalProperties allOf anyOf const contains default dependencies"
    " dependentRequired dependentSchemas else enum example examples exclusiveMaximum"
    " exclusiveMinimum format if items maxItems maxLength maxProperties maximum minContains minItems"
    " minLength minProperties minimum multipleOf not nullable oneOf pattern patternProperties"
    " prefixItems properties propertyNames required then type uniqueItems"
)
WORDS = ["object", "array", "string", "integer", "null", "#", "#/$defs/a", "a", "^a+$", "(", "date"]
ANYTHING = st.recursive(
    st.one_of(SCALARS, st.sampled_from(WORDS), st.floats(), st.integers(-(10**30), 10**30)),
    lambda part: st.one_of(
        st.lists(part, max_size=4),
        st.dictionaries(st.sampled_from([*sorted(KEYWORDS), "a"]), part, max_size=5),
    ),
    max_leaves=20,
)
NONSENSE = st.dictionaries(st.sampled_from(sorted(KEYWORDS)), ANYTHING, max_size=6)


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(st.one_of(NONSENSE, NONSENSE, ANYTHING), st.booleans())
def test_nonsense_is_answered_or_refused_but_never_crashes(schema: Any, typed: bool) -> None:
    if typed and isinstance(schema, dict):
        schema = {"type": "object", "required": ["x"], "properties": {"x": schema}}
    with suppress(SchemaError):
        value_for(schema, PROMPT)
    with suppress(SchemaError):
        check_strict(schema, "x")
    with suppress(SchemaError):
        check_function_parameters(schema, "x", "tools[0].function.parameters")


def test_values_do_not_depend_on_the_seed_of_hashes() -> None:
    script = (
        "import json, sys; from rewrap.mock.schema import value_for; schemas = json.load(sys.stdin);"
        f"print(json.dumps([value_for(schema, {PROMPT!r}) for schema in schemas]))"
    )
    outputs = set()
    for seed in ("1", "2"):
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            input=json.dumps([*REAL.values()]).encode(),
            capture_output=True,
            check=True,
        )
        outputs.add(run.stdout)
    assert len(outputs) == 1
