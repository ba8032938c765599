"""Run one sequence stage: rows of whole values moved, or positions counted, on the host; no engine call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import SequenceStage
from twoheads.graphs.program.sequence_operators import compute_sequence
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.memory.stores import ValueStore

__all__ = ["fill_sequence", "run_sequence"]


def run_sequence(run: RunState, stage: SequenceStage) -> None:
    """Computes the output of ``stage``; it must be allocated, as its inputs are.

    Raises:
        InputError: The input asks for what is not there, e.g. an index beyond the last row.
    """
    fill_sequence(stage, [run.stores[name].whole() for name in stage.inputs], run.stores[stage.output.name])


def fill_sequence(stage: SequenceStage, inputs: Sequence[npt.NDArray[Any]], output: ValueStore) -> None:
    """Computes ``stage`` from whole ``inputs`` into ``output``.

    Raises:
        InputError: As :func:`run_sequence`.
    """
    shape = stage.output.block_shape(output.length)
    try:
        output.fill(compute_sequence(stage.operator, dict(stage.attributes), inputs, shape, stage.output.dtype))
    except ValueError as error:
        raise InputError(f"stage {stage.name}", str(error), "give an input that the model can take") from None
