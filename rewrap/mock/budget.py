"""What the mock's schema modules share: JSON types, their error, and a budget of steps.

Imports the standard library only.
"""

from typing import NamedTuple, TypeAlias

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Schema: TypeAlias = dict[str, JSON]

# About 5,000 values, or half a second for a schema that is made to cost time.
MAX_STEPS = 100_000
NO_LIMIT = 1 << 62


class SchemaError(Exception):
    """A schema that the mock cannot answer, or that OpenAI refuses.

    `message`, `param` and `code` are the members of OpenAI's error object.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class UnsatisfiableError(SchemaError):
    """No value for this alternative of a schema: the next one is tried."""


class SchemaPlace(NamedTuple):
    """Where a value stands: `refs` are the references that lead there."""

    name: str = ""
    refs: tuple[str, ...] = ()
    depth: int = 0
    variant: int = 0
    prompted: bool = True  # whether the value may come from the prompt

    def child(self, name: str, variant: int) -> "SchemaPlace":
        return SchemaPlace(name, self.refs, self.depth + 1, variant, self.prompted)

    def label(self) -> str:
        return f"'{self.name}'" if self.name else "the schema"

    def recursive(self) -> bool:
        """Whether a reference stands inside itself."""
        return len(set(self.refs)) < len(self.refs)


class Budget:
    """The steps that one request may use. A step takes about a microsecond."""

    def __init__(self) -> None:
        self.left = MAX_STEPS
        self.spent_once: set[str] = set()

    def spend(self, steps: int = 1) -> None:
        """Raises SchemaError when no steps are left."""
        self.left -= steps
        if self.left < 0:
            raise SchemaError("The schema is too complex for the mock: a value takes too long.")

    def spend_once(self, name: str, steps: int) -> None:
        """Spend the steps, unless an earlier call had this name (a pattern, for example)."""
        if name not in self.spent_once:
            self.spent_once.add(name)
            self.spend(steps)

    def weigh(self, value: JSON) -> None:
        """Spend the size of a value in the schema, which the reply may contain many times."""
        self.spend()
        if isinstance(value, str):
            self.spend(len(value) // 16)
        if isinstance(value, dict):
            value = [*value, *value.values()]
        if isinstance(value, list):
            for item in value:
                self.weigh(item)


# Keywords of the wrong type count for nothing, as unknown ones do.


def schemas(schema: Schema, keyword: str) -> list[JSON]:
    value = schema.get(keyword)
    if isinstance(value, list):
        return value
    return []


def members(schema: Schema, keyword: str) -> dict[str, JSON]:
    value = schema.get(keyword)
    if isinstance(value, dict):
        return value
    return {}


def schema_strings(schema: Schema, keyword: str) -> list[str]:
    return [value for value in schemas(schema, keyword) if isinstance(value, str)]


def schema_number(schema: Schema, keyword: str) -> int | float | None:
    value = schema.get(keyword)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return None


def schema_count(schema: Schema, keyword: str, default: int = 0) -> int:
    """A length or amount, which may be spelled 2.0."""
    value = schema_number(schema, keyword)
    if value is None:
        return default
    return max(0, int(value))


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())
