"""Programs with several axes, values without one and stages that move rows, run and compared with NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.axes_models import (
    BLOCK,
    CLASSES,
    VOCABULARY,
    WIDTH,
    Model,
    classifier,
    convolution,
    counted_positions,
    encoder_decoder,
    image,
)
from twoheads.compiler.lowering.oracle import lower_oracle
from twoheads.compiler.lowering.stock import lower_stock
from twoheads.compiler.lowering.tile import Lowered
from twoheads.graphs.errors import CompileError, InputError
from twoheads.graphs.program.program import Program, SequenceStage
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.graphs.schedule.theorems import program_claim, stage_claims

LENGTHS = (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 5)
RNG = np.random.default_rng(0)


def features(length: int) -> Any:
    return RNG.standard_normal((length, WIDTH)).astype(np.float32)


def check(model: Model, bundle: Any, output: str, **inputs: Any) -> Any:
    """Runs, compares with the reference, and checks that the calls are those of the formulas; returns the result."""
    result = bundle.run(inputs, output=output)
    expected = model.expected(inputs)[output]
    assert result.array is not None
    assert result.array.shape == expected.shape
    np.testing.assert_allclose(result.array, expected, atol=2e-5 * max(1, np.abs(expected).max()))
    report = result.report
    schedule = bundle.schedule(report.lengths, output)
    assert report.engine_calls - report.repeated_calls == report.formula_calls == schedule.engine_calls
    assert report.rounds == schedule.rounds
    assert report.store_bytes >= schedule.memory.values
    return result


@pytest.mark.parametrize("key_tile", [BLOCK, 2 * BLOCK])
@pytest.mark.parametrize("pool", ["first", "last", "mean", "max", "min", "sum", "take_at"])
def test_a_row_before_the_tokens_and_a_pooled_classifier(tmp_path: Path, pool: str, key_tile: int) -> None:
    model = classifier(pool, key_tile)
    bundle = model.load(tmp_path / "b", threads=2)
    for length in LENGTHS:
        inputs = {"features": features(length)}
        if pool == "take_at":
            inputs["ids"] = RNG.integers(0, VOCABULARY, length)
        check(model, bundle, "logits", **inputs)
        hidden = check(model, bundle, "hidden", **inputs)
        assert len(hidden.array) == length + 1
        assert hidden.report.length == length
        assert hidden.report.blocks == -(-(length + 1) // BLOCK)


def test_pooled_logits_are_one_vector(tmp_path: Path) -> None:
    bundle = classifier().load(tmp_path / "b")
    x = features(20)
    assert bundle.program.outputs == ("hidden", "logits")
    assert bundle.run(x).array.shape == (CLASSES,)
    for arguments, word in (
        ({"output": "last"}, "does not give 'last'"),
        ({"positions": [0]}, "can't be chosen for 'logits'"),
        ({"sink": object()}, "one vector, not rows"),
    ):
        with pytest.raises(InputError, match=word):
            bundle.run(x, **arguments)
    some = bundle.run(x, output="hidden", positions=[0, 20, -1]).array
    np.testing.assert_array_equal(some, bundle.run(x, output="hidden").array[[0, 20, 20]])
    with pytest.raises(InputError, match="21 is outside of an input of 21 tokens"):
        bundle.run(x, output="hidden", positions=[21])


def test_hidden_states_alone_do_not_run_what_pools(tmp_path: Path) -> None:
    bundle = classifier().load(tmp_path / "b")
    names = [stage.name for stage in bundle.schedule(20, "hidden").stages]
    assert names == ["cls", "rows", "layer.in", "layer", "layer.out"]
    assert [stage.calls for stage in bundle.schedule(20).stages] == [1, 0, 3, 9, 3, 0, 1]


def test_a_convolution_with_a_stride(tmp_path: Path) -> None:
    model = convolution()
    bundle = model.load(tmp_path / "b", threads=2)
    for length in LENGTHS:
        result = check(model, bundle, "hidden", features=features(length))
        assert len(result.array) == (length + 1) // 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 60), st.integers(1, 60))
def test_attention_between_two_axes(cross: tuple[Model, Any], n: int, m: int) -> None:
    model, bundle = cross
    result = check(model, bundle, "hidden", source=features(m), target=features(n))
    assert result.report.lengths == {"n": n, "m": m}
    assert result.report.length == n
    calls = {stage.name: stage.calls for stage in result.report.stages}
    assert calls["cross"] == -(-n // BLOCK) * -(-m // (2 * BLOCK))


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Any]:
    model = encoder_decoder()
    return model, model.load(tmp_path_factory.mktemp("cross") / "b")


def test_the_theory_of_cross_attention(cross: tuple[Model, Any]) -> None:
    schedule = make_schedule(cross[0].program(), {"n": 50, "m": 20})
    claim = {claim.stage: claim for claim in stage_claims(schedule)}["cross"]
    assert (claim.theorem, claim.formula.calls) == ("Lemma 3.1", 7 * 2)
    assert claim.paper is not None
    assert claim.paper.calls == 2 * 7 * 3
    assert claim.floor.calls == -(-50 * 20 // (BLOCK * 2 * BLOCK))
    assert program_claim(schedule).calls == schedule.engine_calls


def test_lengths_of_two_inputs(cross: tuple[Model, Any]) -> None:
    _, bundle = cross
    for given_lengths, word in (
        (20, "several lengths"),
        ({"n": 3}, "is given for n"),
        ({"n": 3, "m": 0}, "of m: is 0"),
    ):
        with pytest.raises(InputError, match=word):
            bundle.schedule(given_lengths)
    with pytest.raises(InputError, match="source: is missing"):
        bundle.run({"target": features(3)})
    with pytest.raises(InputError, match="takes 2 arrays"):
        bundle.run(features(3))


def test_positions_that_count_and_a_length(tmp_path: Path) -> None:
    model = counted_positions()
    bundle = model.load(tmp_path / "b", threads=2)
    for length in LENGTHS:
        ids = RNG.integers(0, VOCABULARY, length)
        ids[RNG.random(length) < 0.3] = 1
        check(model, bundle, "hidden", ids=ids)


def test_an_image_of_a_fixed_size(tmp_path: Path) -> None:
    model = image()
    bundle = model.load(tmp_path / "b")
    pixels = RNG.standard_normal((1, 6, 6)).astype(np.float32)
    check(model, bundle, "logits", pixels=pixels)
    result = check(model, bundle, "hidden", pixels=pixels)
    assert (result.report.lengths, result.report.length, result.report.blocks) == ({}, 10, 2)
    assert bundle.schedule({}).engine_calls == bundle.schedule(10).engine_calls
    with pytest.raises(InputError, match="takes 10 only"):
        bundle.schedule(11)
    with pytest.raises(InputError, match=r"has shape \[1, 5, 6\], expected \[1, 1, 6, 6\]"):
        bundle.run(pixels[:, :5])


def test_lists_run_one_by_one(tmp_path: Path) -> None:
    bundle = classifier().load(tmp_path / "b")
    inputs = [features(2), features(3), features(30)]
    for result, x in zip(bundle.run(inputs), inputs, strict=True):
        assert result.report.requests == 1
        np.testing.assert_array_equal(result.array, bundle.run(x).array)


def test_an_index_beyond_the_rows(tmp_path: Path) -> None:
    model = classifier("take_at")
    at = next(at for at, stage in enumerate(model.body) if stage.name == "index")
    model.body[at] = SequenceStage("index", "max", ("ids",), model.values["index"], (("axis", 1),))
    bundle = model.load(tmp_path / "b")
    with pytest.raises(InputError, match="stage pooled: row 9 of 4"):
        bundle.run({"features": features(3), "ids": [9, 0, 1]})


def lower(kind: str, program: Program) -> Program:
    lowered = Lowered(program, {})
    return (lower_stock(lowered) if kind == "stock" else lower_oracle(lowered, layers=2, heads=2)).program


@pytest.mark.parametrize("kind", ["stock", "oracle"])
@pytest.mark.parametrize("make", [classifier, lambda: convolution(BLOCK)], ids=["longer", "shorter"])
def test_other_lowerings_on_an_axis_of_their_own(tmp_path: Path, kind: str, make: Any) -> None:
    model = make()
    bundle = model.load(tmp_path / "b", lower=lambda program: lower(kind, program))
    for length in LENGTHS:
        x = features(length)
        result = bundle.run(x, output="hidden")
        want = model.expected({"features": x})["hidden"]
        np.testing.assert_allclose(result.array, want, atol=5e-5 * max(1, np.abs(want).max()))
        assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls


@pytest.mark.parametrize("kind", ["stock", "oracle"])
def test_other_lowerings_refuse_cross_attention(kind: str) -> None:
    with pytest.raises(CompileError, match="along n to tokens along m"):
        lower(kind, encoder_decoder(BLOCK).program())
