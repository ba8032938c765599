"""Steps whose attention writes new keys and values where they are kept, for ONNX Runtime's processors.

Its operator ``GroupQueryAttention`` reads the keys that are there and no others, and writes the new rows in place. So
no open block is joined with whole blocks, no mask is added and nothing is cut apart: a step has a third of the nodes.
It needs whole blocks and the open block in one array: the engine reads that of whole blocks, which has room for the
rows behind them, and the open block's rows are put there before the first such step.

An engine of one row gives the operator query heads that share keys as rows of one head, so that keys are read once:
it writes as many rows, of which the first is real (:func:`~twoheads.graphs.variants.steps.folded_rows`).

A call of fewer tokens than rows writes rows behind them as well: they are nobody's, and the next tokens replace them.
Such steps of 8 and of 64 rows give the same bits, however tokens are split among them: the operator multiplies every
row over the same keys in the same order, and what is behind a row counts as 0. So whether a call is one of them must
depend on where its tokens stand alone (:meth:`InPlaceSteps.reach`), not on whether its rows have room.

Layers that the operator does not cover (windows, biases by distance, learned sinks, 16-bit values) keep the form that
:mod:`twoheads.graphs.variants.steps` describes, in the same engine. Where no layer is covered there are no such
engines. Other backends take the engines of standard operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.program import Program
from twoheads.graphs.variants.steps import INDEX, MASK, STEP, StepEngine, Steps, step_steps

__all__ = ["NEXT", "PLACE", "InPlaceSteps", "in_place_steps"]

PLACE = "place"
"""The input port that says where the first row is written, counted from the sequence's first."""

NEXT = "next_"
"""How the output ports of arrays that are written in place begin; the input's name follows."""


@dataclass(frozen=True, slots=True)
class InPlaceSteps:
    """Such steps of a program.

    Attributes:
        steps: How its sequences are extended.
        stages: The names of the attentions that write in place.
        kept: Which of the kept values these write, by number, ascending.
        rows: Rows of the engines that there are, ascending.
    """

    steps: Steps
    stages: frozenset[str]
    kept: tuple[int, ...]
    rows: tuple[int, ...]

    def reach(self, rows: int, blocks: int) -> bool:
        """Whether a step of ``rows`` rows behind so many whole blocks is one of these."""
        return rows in self.rows and self.steps.has_room(rows, blocks)

    def room(self, rows: int, first: int) -> int:
        """For how many whole blocks arrays need room where ``rows`` rows are written from token ``first``."""
        return -(-(first + self.steps.written_rows(rows)) // self.steps.program.block_size)

    @property
    def engines(self) -> Iterator[StepEngine]:
        """All engines that there are, those of equal rows behind one another."""
        return (self.engine(rows, capacity) for rows in self.rows for capacity in self.steps.capacities if capacity)

    def engine(self, rows: int, capacity: int) -> StepEngine:
        """The engine of ``rows`` rows in arrays of ``capacity`` whole blocks.

        Its ports are those of :class:`StepEngine`, but for kept values that it writes in place. They have no open
        block and no new rows: the array of whole blocks is an output as well, in the same memory.
        """
        usual = self.steps.engine(rows, capacity)
        written = {f"past_{at}": f"new_{at}" for at in self.kept}
        unread = {f"open_{at}" for at in self.kept} | self._unused
        inputs = [port for port in usual.inputs if port.name not in unread]
        at = next(number for number, port in enumerate(inputs) if port.name.startswith("past_"))
        past = {written[port.name]: replace(port, name=NEXT + port.name) for port in inputs if port.name in written}
        return replace(
            usual,
            name=f"{STEP}in_place_{capacity}" if rows == 1 else f"{STEP}in_place_{rows}_{capacity}",
            inputs=(*inputs[:at], Port(PLACE, "int32", (1,)), *inputs[at:]),
            outputs=tuple(past.get(port.name, port) for port in usual.outputs),
        )

    @property
    def _unused(self) -> set[str]:
        """Ports that only the attentions which write in place would read."""
        others = {added for name, added in self.steps.layers if name not in self.stages}
        masks = {f"{MASK}_{at}" for at in range(len(self.steps.added)) if at not in others}
        return masks if others else masks | {INDEX}


@lru_cache(maxsize=16)
def in_place_steps(program: Program) -> InPlaceSteps | None:
    """Such steps of ``program``; ``None`` where it has none."""
    steps = step_steps(program)
    found = () if steps is None else steps.in_place
    if steps is None or not found:
        return None
    numbers = {entry.value.name: at for at, entry in enumerate(steps.kept)}
    kept = sorted(numbers[name] for stage in found for name in (stage.key, stage.value))
    rows = tuple(rows for rows in steps.rows if steps.reaches_in_place(rows, 0))
    return InPlaceSteps(steps, frozenset(stage.name for stage in found), tuple(kept), rows)
