"""`struct`: a dataclass that costs less when its module is imported.

`dataclasses.dataclass` compiles up to six methods for each class. For about 70 classes this takes a fifth of the time from the
start to the first answer.
A struct compiles `__init__` alone and shares its other methods with all structs. A type checker sees a dataclass: it reports an
assignment to a field of a frozen struct. At run time nothing prevents that assignment, except for subclasses of `ReadOnly`.
"""

from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as struct
else:
    from dataclasses import dataclass, fields

    def struct(
        cls: type | None = None,
        /,
        *,
        init: bool = True,
        frozen: bool = False,
        slots: bool = False,
    ) -> Any:
        """A class with the annotated attributes as fields. The arguments mean what they mean for a dataclass."""

        def struct_of(cls: type) -> type:
            shared = {
                "__repr__": as_text,
                "__eq__": equal,
                "__hash__": hash_of_values if frozen else None,
            }
            for name, method in shared.items():
                if name not in vars(cls):
                    setattr(cls, name, method)
            made = dataclass(init=init, eq=False, repr=False, slots=slots)(cls)
            # A frozen dataclass may inherit from a frozen struct: dataclasses ask the base for this mark.
            made.__dataclass_params__.frozen = frozen
            return made

        return struct_of if cls is None else struct_of(cls)

    def as_text(self: Any) -> str:
        texts = [f"{x.name}={getattr(self, x.name)!r}" for x in fields(self) if x.repr]
        return f"{type(self).__qualname__}({', '.join(texts)})"

    def values(self: Any) -> tuple[Any, ...]:
        return tuple(getattr(self, x.name) for x in fields(self))

    def equal(self: Any, other: object) -> Any:
        if type(other) is not type(self):
            return NotImplemented
        return values(self) == values(other)

    def hash_of_values(self: Any) -> int:
        return hash(values(self))


class ReadOnly:
    """The base of a frozen struct that refuses a second assignment at run time, too. It needs a `__dict__`: no slots."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self):
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")


__all__ = ["ReadOnly", "struct"]
