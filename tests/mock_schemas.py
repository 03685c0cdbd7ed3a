"""Schemas after real tools and real models, for the tests of the mock's JSON."""

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal
from uuid import UUID

from jsonschema import Draft4Validator, Draft7Validator, Draft202012Validator
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, TypeAdapter

Schema = dict[str, Any]


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Address(BaseModel):
    street: str
    city: str
    zip: str = Field(pattern=r"^\d{5}(-\d{4})?$")


class Person(BaseModel):
    name: str = Field(min_length=2, max_length=40)
    age: int = Field(ge=0, le=150)
    address: Address | None = None
    favourite: Colour = Colour.RED


class Line(BaseModel):
    sku: str = Field(pattern=r"^[A-Z]{3}-\d{4}$")
    price: Decimal
    amount: int = Field(gt=0, multiple_of=5)
    tags: set[str] = Field(min_length=2)


class Invoice(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: UUID
    issued: datetime
    due: date
    paid_at: time
    terms: timedelta
    lines: list[Line] = Field(min_length=2, max_length=4)
    status: Literal["open", "paid", "void"]
    note: str | None
    totals: dict[str, float]
    link: AnyUrl
    host: IPv4Address


class Node(BaseModel):
    value: int
    children: list["Node"]
    parent: "Node | None"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    others: list[Cat | Dog]


class Number(BaseModel):
    type: Literal["number"]
    value: float


class Sum(BaseModel):
    type: Literal["sum"]
    left: "Expression"
    right: "Expression"


Expression = Annotated[Sum | Number, Field(discriminator="type")]
Sum.model_rebuild()


class Matrix(BaseModel):
    rows: list[list[float]] = Field(min_length=2)
    size: tuple[int, int]
    label: Annotated[str, Field(examples=["A", "B"])]


class Settings(BaseModel):
    retries: int = 3
    ratio: float = Field(0.5, gt=0, lt=1)
    names: list[str] = ["a"]


class Everything(BaseModel):
    a: int | str | None
    b: list[int | None]
    c: dict[str, list[Address]]
    d: Literal[1, "one", True]
    e: Any
    f: bytes
    g: tuple[int, ...]
    h: frozenset[int]


def tool(**properties: Any) -> Schema:
    """Parameters as they are written by hand: all required, unless the name ends with _optional."""
    required = [name for name in properties if not name.endswith("_optional")]
    return {"type": "object", "properties": properties, "required": required}


STRING = {"type": "string"}
INTEGER = {"type": "integer"}

# Name of the schema: the schema.
REAL: dict[str, Schema] = {
    "weather": tool(
        location={"type": "string", "description": "City and state"},
        unit_optional={"type": "string", "enum": ["celsius", "fahrenheit"]},
    ),
    "strict weather": tool(
        location=STRING, unit={"type": ["string", "null"], "enum": ["c", "f", None]}
    )
    | {"additionalProperties": False},
    "calendar": tool(
        title={"type": "string", "minLength": 1},
        start={"type": "string", "format": "date-time"},
        day={"type": "string", "format": "date"},
        attendees={"type": "array", "items": {"type": "string", "format": "email"}, "minItems": 1},
        reminder={"type": "integer", "minimum": 5, "maximum": 60, "multipleOf": 5},
    ),
    "sql": tool(
        query=STRING,
        limit={"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
        dialect={"enum": ["postgres", "sqlite"]},
    ),
    "read file": tool(path={"type": "string"}, head_optional=INTEGER),
    "write file": tool(path=STRING, content=STRING),
    "edit file": tool(
        path=STRING,
        edits={
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"oldText": STRING, "newText": STRING},
                "required": ["oldText", "newText"],
                "additionalProperties": False,
            },
        },
        dryRun={"type": "boolean", "default": False},
    )
    | {"$schema": "http://json-schema.org/draft-07/schema#"},
    "nothing": {"type": "object", "properties": {}},
    "nothing at all": {},
    "search": tool(
        q=STRING,
        page={"type": "integer", "exclusiveMinimum": 0},
        filters={"type": "object", "additionalProperties": {"type": "string"}},
    ),
    "transfer": tool(
        amount={"type": "number", "minimum": 0.01, "multipleOf": 0.01},
        currency={"type": "string", "pattern": "^[A-Z]{3}$"},
        iban={"type": "string", "pattern": "^[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}$"},
        card={"type": "string", "pattern": r"^(?:4\d{12}(?:\d{3})?|5[1-5]\d{14})$"},
    ),
    "github issue": tool(
        owner=STRING,
        labels={"type": "array", "items": STRING, "uniqueItems": True, "minItems": 3},
        milestone={"anyOf": [INTEGER, {"type": "null"}]},
        state={"type": "string", "enum": ["open", "closed"], "default": "open"},
    ),
    "openapi": tool(
        id={"type": "string", "format": "uuid", "example": "123e4567-e89b-12d3-a456-426614174000"},
        size={"type": "integer", "format": "int64", "nullable": True},
    ),
    "zod email": tool(
        email={
            "type": "string",
            "format": "email",
            "pattern": "^(?!\\.)(?!.*\\.\\.)([A-Za-z0-9_'+\\-\\.]*)[A-Za-z0-9_+-]@"
            "([A-Za-z0-9][A-Za-z0-9\\-]*\\.)+[A-Za-z]{2,}$",
        },
        record={"type": "object", "propertyNames": STRING, "additionalProperties": INTEGER},
    ),
    "tuple": {
        "type": "array",
        "prefixItems": [STRING, INTEGER],
        "items": False,
        "minItems": 2,
        "maxItems": 2,
    },
    "tuple of draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [STRING, {"type": "boolean"}],
        "additionalItems": INTEGER,
        "minItems": 4,
    },
    "contains": {"type": "array", "contains": {"const": 7}, "minContains": 2, "minItems": 3},
    "all of": {
        "allOf": [
            {"$ref": "#/definitions/named"},
            {"type": "object", "properties": {"age": INTEGER}, "required": ["age"]},
        ],
        "definitions": {"named": tool(name=STRING)},
    },
    "if then else": {
        "type": "object",
        "properties": {"country": {"enum": ["US", "NL"]}, "postal": STRING},
        "required": ["country", "postal"],
        "if": {"properties": {"country": {"const": "US"}}},
        "then": {"properties": {"postal": {"pattern": "^[0-9]{5}$"}}},
        "else": {"properties": {"postal": {"pattern": "^[0-9]{4}[A-Z]{2}$"}}},
    },
    "one of": {"oneOf": [{"type": "number", "multipleOf": 5}, {"type": "number", "multipleOf": 3}]},
    "one of that overlap": {
        "oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 1}]
    },
    "one of two requirements": {
        "type": "object",
        "properties": {"by_id": INTEGER, "by_name": STRING},
        "oneOf": [{"required": ["by_id"]}, {"required": ["by_name"]}],
    },
    "not": {"type": "string", "not": {"enum": ["text", "Hello"]}},
    "not empty": {"type": "object", "minProperties": 2, "properties": {"a": INTEGER}},
    "maps": {
        "type": "object",
        "patternProperties": {"^x-[a-z]+$": INTEGER},
        "additionalProperties": False,
        "minProperties": 2,
    },
    "dependent": tool(card=STRING)
    | {
        "dependentRequired": {"card": ["address"]},
        "dependentSchemas": {"card": {"required": ["name"]}},
    },
    "linked list": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": ["object", "null"],
                "properties": {"value": INTEGER, "next": {"$ref": "#/$defs/node"}},
                "required": ["value", "next"],
            }
        },
    },
    "interface": {
        "type": "object",
        "properties": {
            "type": {"enum": ["div", "button"]},
            "children": {"type": "array", "items": {"$ref": "#"}},
            "attributes": {"type": "array", "items": {"$ref": "#/$defs/attribute"}},
        },
        "$defs": {"attribute": tool(name=STRING, value=STRING)},
        "required": ["type", "children", "attributes"],
        "additionalProperties": False,
    },
    "bounds of draft 4": {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 5},
    "formats": tool(
        host={"type": "string", "format": "hostname"},
        six={"type": "string", "format": "ipv6"},
        uri={"type": "string", "format": "uri"},
        time={"type": "string", "format": "time"},
        duration={"type": "string", "format": "duration"},
        pointer={"type": "string", "format": "json-pointer"},
    ),
    "person": Person.model_json_schema(),
    "invoice": Invoice.model_json_schema(),
    "invoice as written": Invoice.model_json_schema(mode="serialization"),
    "tree": Node.model_json_schema(),
    "union": Owner.model_json_schema(),
    "expression": TypeAdapter(Expression).json_schema(),
    "matrix": Matrix.model_json_schema(),
    "settings": Settings.model_json_schema(),
    "everything": Everything.model_json_schema(),
    "list of models": TypeAdapter(list[Person]).json_schema(),
    "short strings": {
        "type": "array",
        "items": {"type": "string", "maxLength": 1},
        "minItems": 30,
        "uniqueItems": True,
    },
    "boolean": {"type": "array", "items": True, "minItems": 2},
}


def problems(schema: Any, value: Any) -> list[str]:
    """What the jsonschema package finds, formats included."""
    kind = Draft202012Validator
    if isinstance(schema, dict) and "draft-07" in schema.get("$schema", ""):
        kind = Draft7Validator
    if isinstance(schema, dict) and schema.get("exclusiveMinimum") is True:
        kind = Draft4Validator
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)
    return [error.message for error in validator.iter_errors(value)]
