"""Row movement in hand-written modules, compiled once and run at lengths below, at and above a block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.compiler.passes.test_check_tokenwise import MOVING
from tests.compiler.small_models import EXAMPLES, OneLayer
from tests.end_to_end.agreement import bundle_of

OPERATIONS = MOVING | {
    "length in arithmetic": lambda x: x * 16.0 / x.shape[1],
    "shift behind a row of ones": lambda x: torch.cat([x.new_ones(1, 1, x.shape[2]), x[:, :-1]], 1),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_rows_move_as_in_torch(name: str, place: str, tmp_path: Path) -> None:
    operation = OPERATIONS[name]
    module = OneLayer(before=operation) if place == "before" else OneLayer(after=operation)
    bundle = bundle_of(module.eval(), tmp_path, example_inputs=EXAMPLES, block_size=16)
    for length in (53, 17, 16, 1 if "shift" in name else 2):
        ids = np.random.default_rng(length).integers(0, 20, (1, length))
        with torch.no_grad():
            expected = module(torch.from_numpy(ids))[0].numpy()
        result = bundle.run(ids, output="hidden")
        assert result.array is not None
        assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls
        np.testing.assert_allclose(result.array, expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))
