"""Checked reading of TOML and JSON tables: each member by name and type, each mistake one line with its place.

Every method raises ValueError: "then.error.status: must be an integer from 400 to 599". Imports nothing of ours.
"""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_name(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: which one was probably meant, or which there are."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are {', '.join(names)}"


def strings(value: object, where: str) -> tuple[str, ...]:
    """A string, or a list of strings."""
    items = value if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, str):
            raise ValueError(f"{where}: must be a string or a list of strings")
    return tuple(items)


class Table:
    """A table with the members that `known` names. A member that is null counts as absent."""

    def __init__(self, value: object, where: str, known: Iterable[str]) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: must be a table")
        names = tuple(known)
        for name in value:
            if name not in names:
                raise ValueError(f"{where}: unknown field {name!r}: {nearest_name(name, names)}")
        self.where = where
        self.members: dict[str, object] = {k: v for k, v in value.items() if v is not None}

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def place(self, name: str) -> str:
        return f"{self.where}.{name}"

    def get(self, name: str) -> object:
        return self.members.get(name)

    def text(self, name: str, default: str = "") -> str:
        value = self.members.get(name, default)
        if not isinstance(value, str):
            raise ValueError(f"{self.place(name)}: must be a string")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        return strings(self.members[name], self.place(name)) if name in self.members else ()

    def choice(self, name: str, allowed: Iterable[str]) -> str:
        value = self.text(name)
        if value and value not in allowed:
            raise ValueError(f"{self.place(name)}: {value!r}: {nearest_name(value, allowed)}")
        return value

    def flag(self, name: str) -> bool:
        value = self.members.get(name, False)
        if not isinstance(value, bool):
            raise ValueError(f"{self.place(name)}: must be true or false")
        return value

    def integer(self, name: str, minimum: int, maximum: int, default: int = 0) -> int:
        value = self.members.get(name, default)
        if name not in self.members:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            span = f"from {minimum} to {maximum}"
            raise ValueError(f"{self.place(name)}: must be an integer {span}")
        return value

    def number(self, name: str, maximum: float) -> float:
        value = self.members.get(name, 0)
        if (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and 0 <= value <= maximum
        ):
            return float(value)
        raise ValueError(f"{self.place(name)}: must be a number from 0 to {maximum:g}")
