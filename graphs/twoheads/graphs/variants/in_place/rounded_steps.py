"""Steps of one row in place over keys and values of 8 bits, of which long contexts read a fourth of the bytes.

They are those of :class:`~twoheads.graphs.variants.in_place.in_place_steps.InPlaceSteps` but for the arrays that the
operator reads and writes: whole numbers, with a scale a head and channel, which are ports. It computes in float32 with
the numbers times their scales. The new row is an output in float32 as well, as it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.program import Program
from twoheads.graphs.variants.in_place.in_place_steps import NEXT, InPlaceSteps, in_place_steps
from twoheads.graphs.variants.steps import STEP, StepEngine

__all__ = ["SCALE", "RoundedSteps", "rounded_steps"]

SCALE = "scale_"
"""How the ports of scales begin, ``[kv_heads, 1, head_dim]``; the number of the kept value follows."""


@dataclass(frozen=True, slots=True)
class RoundedSteps(InPlaceSteps):
    """Such steps of a program."""

    def engine(self, rows: int, capacity: int) -> StepEngine:
        """The engine of ``rows`` rows, which is 1, in arrays of ``capacity`` whole blocks."""
        exact = InPlaceSteps.engine(self, rows, capacity)
        made = {f"{NEXT}past_{at}": port for at, port in self._rows()}
        inputs = [each for port in exact.inputs for each in self._read(port)]
        outputs = [
            each
            for port in exact.outputs
            for each in ((made[port.name], replace(port, dtype="int8")) if port.name in made else (port,))
        ]
        return replace(exact, name=f"{STEP}in_place_int8_{capacity}", inputs=tuple(inputs), outputs=tuple(outputs))

    def scale(self, at: int) -> Port:
        """The port of the scales of a kept value that is written in place."""
        _, heads, _, width = self.steps.kept[at].value.block_shape(1)
        return Port(f"{SCALE}{at}", "float32", (heads, 1, width))

    def _rows(self) -> Iterator[tuple[int, Port]]:
        """The new rows of kept values that are written in place."""
        for at in self.kept:
            value = self.steps.kept[at].value
            yield at, Port(f"new_{at}", value.dtype, value.block_shape(1))

    def _read(self, port: Port) -> tuple[Port, ...]:
        """What stands for an input port: of whole blocks in place numbers of 8 bits and their scales."""
        at = next((at for at in self.kept if port.name == f"past_{at}"), None)
        return (port,) if at is None else (replace(port, dtype="int8"), self.scale(at))


@lru_cache(maxsize=16)
def rounded_steps(program: Program) -> RoundedSteps | None:
    """Such steps of ``program``; ``None`` where it has none."""
    found = in_place_steps(program)
    return None if found is None else RoundedSteps(found.steps, found.stages, found.kept, (1,))
