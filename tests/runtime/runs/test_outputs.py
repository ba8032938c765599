"""Which rows make an output, for one input and for many."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.tiny_bundle import make_program
from tests.runtime.tiny_model import Tiny
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import Pooling
from twoheads.graphs.variants.packing import pack
from twoheads.runtime.inputs.requests import read_inputs
from twoheads.runtime.runs.groups import Group
from twoheads.runtime.runs.outputs import request_rows, split_output

PROGRAM = make_program(Tiny(layers=1, masks=("full",), pooling=Pooling("mean", False)))


@pytest.mark.parametrize(
    ("output", "positions", "rows"),
    [
        ("last", None, [6]),
        ("embedding", None, None),
        ("hidden", None, None),
        ("logits", None, None),
        ("hidden", [-1, 0], [6, 0]),
        ("logits", [3], [3]),
    ],
)
def test_rows_of_one_input(output, positions, rows):
    (request,) = read_inputs(PROGRAM, range(1, 8), output=output, positions=positions).requests
    found = request_rows(PROGRAM.value(PROGRAM.hidden), request, output)
    assert (found if found is None else found.tolist()) == rows


def test_rows_of_inputs_that_share_a_run_begin_where_they_lie():
    inputs = read_inputs(PROGRAM, [[1, 2, 3], [4, 5]], output="last")
    group = Group(tuple(inputs.requests), "last", pack([3, 2], PROGRAM.block_size))
    assert [rows.tolist() for rows in group.request_rows(PROGRAM) or ()] == [[2], [4]]
    whole = Group(group.requests, "embedding", group.packing)
    assert [rows.tolist() for rows in whole.request_rows(PROGRAM) or ()] == [[0, 1, 2], [3, 4]]


def test_each_input_gets_its_own_rows():
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    own = [np.array([0, 1, 2]), np.array([3, 4])]
    first, second = split_output(PROGRAM, rows, own, "hidden")
    np.testing.assert_array_equal(first, rows[:3])
    np.testing.assert_array_equal(second, rows[3:])
    first, second = split_output(PROGRAM, rows, own, "embedding")
    np.testing.assert_array_equal(first, rows[:3].mean(0))
    np.testing.assert_array_equal(second, rows[3:].mean(0))
    with pytest.raises(InternalError):
        split_output(PROGRAM, None, own, "hidden")
