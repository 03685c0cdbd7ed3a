"""Structs and late expressions behave as dataclasses and compiled expressions do."""

import re
from copy import copy
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest

from rewrap.regex import regex
from rewrap.structs import ReadOnly, struct


@struct(frozen=True, slots=True)
class Point:
    x: int
    y: int = 0
    key: str = field(default="", repr=False)


@struct
class Box:
    content: list[int] = field(default_factory=list)


@struct(frozen=True)
class Guarded(ReadOnly):
    x: int = 1


def test_a_struct_shows_and_compares_its_fields() -> None:
    assert repr(Point(1, key="secret")) == "Point(x=1, y=0)"
    assert Point(1) == Point(1, 0)
    assert Point(1) != Point(2)
    assert Box() == Box()
    assert Point(1) != (1, 0, "")


def test_a_frozen_struct_has_a_hash_by_its_values() -> None:
    assert len({Point(1), Point(1), Point(2)}) == 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(Box())


def test_a_struct_keeps_its_slots_and_can_be_replaced() -> None:
    point = replace(Point(1), y=5)
    assert point == Point(1, 5)
    with pytest.raises(AttributeError):
        point.z = 1  # type: ignore[attr-defined]


def test_a_method_of_the_class_itself_is_kept() -> None:
    @struct(frozen=True)
    class Secret:
        value: str

        def __repr__(self) -> str:
            return "***"

    assert repr(Secret("a")) == "***"


def test_a_frozen_dataclass_inherits_from_a_frozen_struct() -> None:
    @dataclass(frozen=True)
    class Named(Guarded):
        name: str = ""

    assert Named(1, "a").name == "a"


def test_a_struct_matches_by_position() -> None:
    match Point(3, 4):
        case Point(x, y):
            assert (x, y) == (3, 4)
        case _:
            pytest.fail("no match")


def test_an_attribute_of_a_guarded_struct_is_set_once() -> None:
    guarded = Guarded(2)
    with pytest.raises(FrozenInstanceError):
        guarded.x = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del guarded.x  # type: ignore[misc]
    assert guarded.x == 2


def test_an_expression_is_compiled_by_its_first_use_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[object] = []
    original = re.compile

    def counted(source: str, flags: int = 0) -> "re.Pattern[str]":
        compiled.append(source)
        return original(source, flags)

    monkeypatch.setattr(re, "compile", counted)
    word = regex(r"[a-z]+", re.IGNORECASE)
    assert not compiled
    found = [word.findall("Ab, c") for _ in range(3)]
    assert found == [["Ab", "c"]] * 3
    assert len(compiled) == 1


def test_a_late_expression_can_be_copied() -> None:
    assert copy(regex("a+")).findall("aab") == ["aa"]


def test_a_wrong_expression_is_an_error_at_its_first_use() -> None:
    wrong = regex("(")
    with pytest.raises(re.error):
        wrong.search("")
