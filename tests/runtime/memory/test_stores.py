"""Values of a run, by blocks."""

from __future__ import annotations

import numpy as np
import pytest

from twoheads.graphs.program.program import Value
from twoheads.runtime.memory.stores import ValueStore


@pytest.mark.parametrize("shape", [(), (3,), (1, 3)])
def test_a_value_without_tokens_is_an_array_that_can_be_written(shape: tuple[int, ...]) -> None:
    store = ValueStore(Value("size", "float32", shape), length=1, block_size=16, tile=16)
    block = store.block(5)
    assert isinstance(block, np.ndarray)
    assert block.shape == shape
    block[...] = 7
    np.testing.assert_array_equal(store.array, np.full((1, *shape), 7))
