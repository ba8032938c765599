"""Tables of kinds: the nearest type's entry, and an error that names the room where there is none."""

from __future__ import annotations

import pytest

from twoheads.graphs.by_kind import ByKind
from twoheads.graphs.errors import InternalError


class Animal:
    pass


class Dog(Animal):
    pass


class Puppy(Dog):
    pass


def test_the_nearest_kind_answers() -> None:
    table = ByKind("zoo", {Animal: "any", Dog: "dog"})
    assert [table.of(kind()) for kind in (Animal, Dog, Puppy)] == ["any", "dog", "dog"]


def test_a_kind_without_a_row_is_named_with_its_room() -> None:
    with pytest.raises(InternalError, match="zoo: no entry for Animal"):
        ByKind("zoo", {Dog: "dog"}).of(Animal())
