"""JSON: lossless for programs, manifests and schedules' parts, and strict about what it reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum

import pytest
from hypothesis import given, settings

from tests.graphs.sample_programs import classifier, decoder, encoder, programs
from twoheads.graphs.masks.expressions import Mask, parse_mask
from twoheads.graphs.program.program import Program
from twoheads.graphs.serialization.bundle_format import FORMAT_VERSION, FileEntry, Manifest, SourceIdentity, WeightEntry
from twoheads.graphs.serialization.json_codec import FormatError, from_json, to_json
from twoheads.graphs.serialization.relative_path import RelativePath


class Color(Enum):
    """An enumeration."""

    RED = "red"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One branch of a union."""

    size: int


@dataclass(frozen=True, slots=True)
class Twig:
    """The other branch."""

    size: int


@dataclass(frozen=True, slots=True)
class Tree:
    """Every kind of field the codec knows."""

    name: str
    ratio: float
    alive: bool
    color: Color
    mask: Mask
    rings: tuple[int, ...]
    leaves: dict[str, Leaf]
    part: Leaf | Twig
    dim: int | str
    age: int | None
    spare: Leaf | None
    optional_rings: tuple[int, ...] | None
    girths: tuple[tuple[str, int], ...]


TREE = Tree(
    name="oak",
    ratio=0.1,
    alive=True,
    color=Color.RED,
    mask=parse_mask("causal & window(3, 0)"),
    rings=(1, 2),
    leaves={"a": Leaf(1)},
    part=Twig(2),
    dim="n",
    age=None,
    spare=Leaf(3),
    optional_rings=(4,),
    girths=(("foot", 3), ("crown", 1)),
)


def test_every_kind_of_field_round_trips() -> None:
    assert from_json(Tree, json.loads(json.dumps(to_json(TREE)))) == TREE


@settings(deadline=None)
@given(programs)
def test_programs_round_trip(program: Program) -> None:
    assert from_json(Program, json.loads(json.dumps(to_json(program)))) == program


def test_sample_programs_and_manifests_round_trip() -> None:
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        producer="twoheads",
        source=SourceIdentity("tiny", "folder", "LlamaForCausalLM", "00"),
        block_size=16,
        key_tile=16,
        lowering="tile",
        dtype="float32",
        approximations=(),
        weights={"embed": WeightEntry(0, "float32", (100, 32))},
        files={RelativePath("program.json"): FileEntry(10, "ff")},
    )
    for item in (decoder(), encoder(), classifier(), manifest):
        assert from_json(type(item), json.loads(json.dumps(to_json(item)))) == item


def test_a_whole_number_is_a_float_but_a_float_is_no_whole_number() -> None:
    data = to_json(TREE)
    assert from_json(Tree, {**data, "ratio": 1}).ratio == 1.0
    with pytest.raises(FormatError, match=r"Tree\.age: expected int, got float"):
        from_json(Tree, {**data, "age": 1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, r"Tree\.name: expected str, got int"),
        ({"ratio": "0.1"}, r"Tree\.ratio: expected float, got str"),
        ({"ratio": True}, r"Tree\.ratio: expected float, got bool"),
        ({"alive": 1}, r"Tree\.alive: expected bool, got int"),
        ({"color": "blue"}, r"Tree\.color: 'blue' is not a valid Color"),
        ({"mask": "banded"}, r"Tree\.mask: mask 'banded' is not a mask expression"),
        ({"mask": 3}, r"Tree\.mask: expected str, got int"),
        ({"rings": 3}, r"Tree\.rings: expected list, got int"),
        ({"rings": [1, "2"]}, r"Tree\.rings\[1\]: expected int, got str"),
        ({"rings": [1, True]}, r"Tree\.rings\[1\]: expected int, got bool"),
        ({"leaves": []}, r"Tree\.leaves: expected dict, got list"),
        ({"leaves": {"a": {"kind": "Leaf", "size": "big"}}}, r"Tree\.leaves\.a\.size: expected int, got str"),
        ({"part": {"kind": "Root", "size": 1}}, r"Tree\.part: unknown kind 'Root'"),
        ({"part": {"size": 1}}, r"Tree\.part: dict fits none of \['Leaf', 'Twig'\]"),
        ({"part": None}, r"Tree\.part: NoneType fits none of"),
        ({"dim": 1.5}, r"Tree\.dim: float fits none of \['int', 'str'\]"),
        ({"age": "old"}, r"Tree\.age: expected int, got str"),
        ({"spare": {"kind": "Leaf"}}, r"Tree\.spare: missing entry 'size'"),
        ({"spare": {"kind": "Leaf", "size": 1, "hue": 2}}, r"Tree\.spare: unknown entry 'hue'"),
        ({"optional_rings": [None]}, r"Tree\.optional_rings\[0\]: expected int, got NoneType"),
        ({"girths": [["foot", "3"]]}, r"Tree\.girths\[0\]\[1\]: expected int, got str"),
        ({"girths": [["foot"]]}, r"Tree\.girths\[0\]: expected 2 entries, got 1"),
        ({"kind": "Bush"}, r"Tree: expected Tree, got 'Bush'"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(change: dict[str, object], message: str) -> None:
    with pytest.raises(FormatError, match=f"^{message}"):
        from_json(Tree, {**to_json(TREE), **change})


def test_the_whole_must_be_an_object_and_the_path_can_be_named() -> None:
    with pytest.raises(FormatError, match=r"^manifest\.json: expected dict, got list"):
        from_json(Tree, [], "manifest.json")
