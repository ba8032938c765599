"""The engine of an expert computes what the operator says, with every gate, layout and way in which weights lie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch

from twoheads.compiler.frontend.torch.operators.experts_op import Gate
from twoheads.export.emit.experts import experts_model
from twoheads.export.precision.quantised_arrays import expanded, quantise
from twoheads.graphs.program.engines.experts import GATES, LAYOUTS, ExpertsEngine, expert_problem

ENGINE = ExpertsEngine("experts_0", 4, 2, 12, 10, "silu", "halves", 0.0, 0.0, 0, 0, 16, "float32")
CASES = [
    (gate, layout, limit)
    for gate in GATES
    for layout in LAYOUTS
    for limit in (0.0, 0.7)
    if not (layout == "single" and (limit or gate == "swiglu"))
]


@pytest.mark.parametrize(("gate", "layout", "limit"), CASES)
@pytest.mark.parametrize("form", [(0, 0), (1, 1)])
def test_every_gate(gate: str, layout: str, limit: float, form: tuple[int, int]) -> None:
    transposed, biased = form
    alpha = 1.7 if gate == "swiglu" else 0.0
    engine = replace(ENGINE, gate=gate, layout=layout, limit=limit, alpha=alpha, transposed=transposed, biased=biased)
    assert expert_problem(engine, 16) is None
    session = onnxruntime.InferenceSession(experts_model(engine, "rows_8").SerializeToString())
    random = np.random.default_rng(0)
    inputs, _ = engine.ports("rows_8")
    given = {port.name: random.standard_normal(port.shape).astype(np.float32) for port in inputs}
    got: Any = session.run(None, given)[0]
    rows = {name: torch.from_numpy(array) for name, array in given.items()}
    up, down = (rows[name].mT if transposed else rows[name] for name in ("up", "down"))
    made = torch.nn.functional.linear(rows["x"], up, rows.get("up_bias"))
    made = torch.nn.functional.linear(Gate(gate, layout, limit, alpha)(made), down, rows.get("down_bias"))
    np.testing.assert_allclose(got, rows["prev"] + rows["share"] * made, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": "tanh"}, "which no version knows"),
        ({"layout": "thirds"}, "which no version knows"),
        ({"alpha": 1.0}, "with alpha 1"),
        ({"gate": "swiglu"}, "with alpha 0"),
        ({"limit": -1.0}, "limit -1"),
        ({"chosen": 5}, "chooses 5 of 4"),
        ({"block_size": 32}, "blocks of 32 rows"),
        ({"biased": 2}, "sizes that no expert has"),
    ],
)
def test_engines_that_are_none(change: dict[str, object], message: str) -> None:
    problem = expert_problem(replace(ENGINE, **change), 16)  # type: ignore[arg-type]
    assert problem is not None
    assert message in problem


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (4, 0), (0, 8)])
@pytest.mark.parametrize("form", [(0, 0), (1, 1)])
def test_weights_of_few_bits(bits: tuple[int, int], form: tuple[int, int]) -> None:
    transposed, biased = form
    plain = replace(ENGINE, width=64, inner=32, transposed=transposed, biased=biased)
    engine = replace(plain, up_bits=bits[0], down_bits=bits[1])
    assert expert_problem(engine, 16) is None
    random = np.random.default_rng(0)
    given = {p.name: random.standard_normal(p.shape).astype(np.float32) for p in plain.ports("rows_8")[0]}
    feeds, numbers = dict(given), dict(given)
    for name, width in zip(("up", "down"), bits, strict=True):
        if not width:
            continue
        rows = given[name].T if transposed else given[name]
        parts = quantise(np.ascontiguousarray(rows), width)
        del feeds[name]
        feeds |= dict(zip((f"{name}:int{width}", f"{name}:scales", f"{name}:offsets"), parts, strict=False))
        numbers[name] = expanded(parts, transposed=bool(transposed))
    assert [port.name for port in engine.ports("rows_8")[0]] == [port.name for port in _session(engine).get_inputs()]
    (got,) = _session(engine).run(None, feeds)
    (want,) = _session(plain).run(None, numbers)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    (other,) = _session(plain).run(None, given)
    assert np.abs(other - want).max() > 1e-3


def _session(engine: ExpertsEngine) -> Any:
    return onnxruntime.InferenceSession(experts_model(engine, "rows_8").SerializeToString())


@pytest.mark.parametrize("change", [{"up_bits": 3}, {"up_bits": 8, "width": 40}, {"down_bits": 4, "dtype": "float16"}])
def test_bits_that_no_engine_has(change: dict[str, object]) -> None:
    problem = expert_problem(replace(ENGINE, inner=32, **change), 16)  # type: ignore[arg-type]
    assert problem is not None
    assert "bits" in problem
