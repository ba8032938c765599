"""Engines that can't be those of the files beside them are told by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.graphs.program.program import AttentionEngine, TokenwiseEngine
from twoheads.runtime.bundle.engines_check import engines_problem
from twoheads.runtime.bundle.reader import read_bundle


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return read_bundle(write_tiny(tmp_path_factory.mktemp("bundle") / "b", Tiny()))


def test_what_was_written_is_fine(read: Any) -> None:
    assert engines_problem(read.program, read.manifest) is None


ATTENTION = [
    ({"name": "a/b"}, "'a/b': its name is no plain name of a file"),
    ({"name": "other"}, "engine other has no file engines/other."),
    ({"kv_num_heads": 3}, "its heads or tiles do not fit the program"),
    ({"key_tile": 8}, "its heads or tiles do not fit the program"),
    ({"scale": -1.0}, "its scale is -1"),
    ({"softcap": float("inf")}, "its softcap is inf"),
    ({"dtype": "float8"}, "dtype 'float8'"),
]


@pytest.mark.parametrize(("change", "told"), ATTENTION)
def test_an_attention_that_does_not_fit(read: Any, change: dict[str, Any], told: str) -> None:
    engines = [
        replace(engine, **change) if isinstance(engine, AttentionEngine) else engine for engine in read.program.engines
    ]
    assert told in str(engines_problem(replace(read.program, engines=tuple(engines)), read.manifest))


def test_ports_of_one_name_and_engines_of_one_name(read: Any) -> None:
    program = read.program
    engine = next(engine for engine in program.engines if isinstance(engine, TokenwiseEngine))
    double = replace(engine, outputs=(*engine.outputs, engine.outputs[0]))
    others = tuple(other for other in program.engines if other is not engine)
    assert "has two ports of one name" in str(
        engines_problem(replace(program, engines=(double, *others)), read.manifest)
    )
    twice = replace(program, engines=(*program.engines, engine))
    assert engines_problem(twice, read.manifest) == "declares two engines of one name"


def test_files_that_the_manifest_promises(read: Any) -> None:
    offered = replace(read.manifest, other_key_tiles=(read.program.key_tile,))
    assert "can't have key tiles of" in str(engines_problem(read.program, offered))
    offered = replace(read.manifest, other_key_tiles=(4 * read.program.key_tile,))
    assert "has no file for key tiles of" in str(engines_problem(read.program, offered))
    packed = replace(read.manifest, files={}, packed_for="qnn")
    assert engines_problem(read.program, packed) is None
    assert "has no file" in str(engines_problem(read.program, replace(packed, packed_for=None)))
