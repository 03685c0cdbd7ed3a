"""Checked reading of TOML and JSON tables: each member by name and type.

A mistake is a ValueError of one line with its place, such as "then.error.status: must be an
integer from 400 to 599". Imports nothing of ours.
"""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_name(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the one that was meant, or all there are."""
    names = list(known)
    close = get_close_matches(name[:80], names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are {', '.join(names)}"


def strings(value: object, where: str) -> tuple[str, ...]:
    """A string, or a list of strings. Raises ValueError."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{where}: must be a string or a list of strings")
    return tuple(value)


class CheckedTable:
    """A table that may have the members in `known`. A member that is null counts as absent.

    All methods raise ValueError.
    """

    def __init__(self, value: object, where: str, known: Iterable[str]) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: must be a table")
        names = tuple(known)
        self.where = where
        self.members: dict[str, object] = {}
        for name, item in value.items():
            if name not in names:
                hint = nearest_name(name, names)
                raise ValueError(f"{where}: unknown field {name[:80]!r}: {hint}")
            if item is not None:
                self.members[name] = item

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def has(self, names: Iterable[str]) -> list[str]:
        """Those of these members that there are."""
        return [name for name in names if name in self.members]

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
        if name not in self.members:
            return ()
        return strings(self.members[name], self.place(name))

    def choice(self, name: str, allowed: Iterable[str]) -> str:
        """One of the allowed texts; "" if it is absent."""
        value = self.text(name)
        if value and value not in allowed:
            raise ValueError(f"{self.place(name)}: {value[:80]!r}: {nearest_name(value, allowed)}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.members.get(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.place(name)}: must be true or false")
        return value

    def integer(self, name: str, minimum: int, maximum: int, default: int = 0) -> int:
        if name not in self.members:
            return default
        value = self.members[name]
        if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum:
            return value
        raise ValueError(f"{self.place(name)}: must be an integer from {minimum} to {maximum}")

    def number(self, name: str, maximum: float) -> float:
        value = self.members.get(name, 0)
        if (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and 0 <= value <= maximum
        ):
            return float(value)
        raise ValueError(f"{self.place(name)}: must be a number from 0 to {maximum:g}")
