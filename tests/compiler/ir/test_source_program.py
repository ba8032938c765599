"""Lengths at which a captured model is looked at."""

from __future__ import annotations

import pytest

from twoheads.compiler.ir.source_program import example_inputs, input_lengths
from twoheads.graphs.program.axes import axis_length
from twoheads.graphs.program.program import Input, Value


def _inputs(axis: str) -> list[Input]:
    """A waveform, the positions of what strides make of it, and a decoder's tokens."""
    return [
        Input(Value("wave", "float32", (1, "m")), "argument", None),
        Input(Value("places", "int64", (axis,)), "positions", None),
        Input(Value("ids", "int64", (1, "n")), "argument", 11),
    ]


@pytest.mark.parametrize("axis", ["(m-80)//320", "m//40"])
def test_a_waveform_of_hardly_a_row_is_longer(axis: str) -> None:
    lengths = input_lengths(_inputs(axis), 16, step=2)
    assert lengths["n"] == 16
    assert axis_length(axis, lengths) == 16
    assert example_inputs(_inputs(axis), lengths, 0)["places"].tolist() == list(range(16))


def test_other_lengths_stay() -> None:
    assert input_lengths(_inputs("m//4"), 16, step=2) == {"n": 16, "m": 18}
