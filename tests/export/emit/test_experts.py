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
