"""One step engine bound to the arrays of one context: tokens in, hidden states and new keys and values out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.engines.scan import COUNT
from twoheads.graphs.variants.in_place.in_place_steps import NEXT, PLACE, InPlaceSteps
from twoheads.graphs.variants.in_place.rounded_steps import SCALE, RoundedSteps
from twoheads.graphs.variants.steps import INDEX, MASK, SOURCE, SOURCE_MASK
from twoheads.runtime.generation.kept.kept_source import KeptSource
from twoheads.runtime.generation.kept.rounded_reads import RoundedReads
from twoheads.runtime.generation.kept.rows import KeptBlocks
from twoheads.runtime.generation.kept.states import KeptStates
from twoheads.runtime.generation.steps.added import AddedScores
from twoheads.runtime.generation.steps.engines import StepEngines

__all__ = ["BoundStep", "Heads"]

Array = npt.NDArray[Any]


class BoundStep:
    """A call of ``rows`` tokens of one context.

    Args:
        engines: Where the engine is open.
        rows: Tokens of a call.
        kept: The context's keys and values, which must stay where they are.
        source: What it reads of an encoder, likewise.
        in_place: How rows are written in place, if they are; of :class:`RoundedSteps` one into the copy of ``kept``.

    Attributes:
        hidden: The hidden states of the last call, ``[1, rows, width]``.
    """

    def __init__(
        self,
        engines: StepEngines,
        rows: int,
        kept: KeptBlocks,
        source: KeptSource,
        in_place: InPlaceSteps | None = None,
    ) -> None:
        self._engines, self._rows, self._kept = engines, rows, kept
        self._written = () if in_place is None else in_place.kept
        self._copy = kept.rounded if isinstance(in_place, RoundedSteps) and isinstance(kept, RoundedReads) else None
        steps = engines.steps
        self._block = steps.program.block_size
        self._capacity = kept.capacity
        if in_place is None:
            engine, handle = engines.body(rows, kept.capacity, source.capacity or 0)
        else:
            engine, handle = engines.in_place_body(in_place, rows, kept.capacity)
        self._arrays = {
            port.name: np.zeros(port.shape, port.dtype)
            for port in engine.inputs
            if not port.name.startswith(("past_", "open_", "state_", SCALE, SOURCE))
        }
        self._feeds = [(entry.source, self._arrays[f"input_{at}"]) for at, entry in enumerate(_inputs(engines))]
        self._added = [self._arrays.get(f"{MASK}_{at}") for at in range(len(steps.added))]
        self._ports = len(engine.inputs) - len(steps.states), len(engine.outputs) - len(steps.states)
        read = dict(enumerate(kept.past)) | ({} if self._copy is None else self._copy.reserve(kept))
        written = {f"{NEXT}past_{at}": read[at] for at in self._written}
        if self._copy is not None:
            written |= {f"new_{at}": array for at, array in self._copy.new.items()}
        outputs = {
            port.name: written[port.name] if port.name in written else np.zeros(port.shape, port.dtype)
            for port in engine.outputs[: self._ports[1]]
        }
        self.hidden = outputs["hidden"]
        self._new = {at: outputs[f"new_{at}"] for at in range(len(steps.kept)) if f"new_{at}" in outputs}
        given = dict(self._arrays)
        given |= {f"past_{at}": array for at, array in read.items()}
        if self._copy is not None:
            given |= {f"{SCALE}{at}": array for at, array in self._copy.scales.items()}
        given |= {f"open_{at}": array for at, array in enumerate(kept.opened)}
        for tile, mask in zip(source.tiles, source.masks, strict=True):  # one, or none
            given |= {SOURCE_MASK: mask} | {f"{SOURCE}_{at}": array for at, array in enumerate(tile)}
        self._call = handle.new_call()
        wrap = engines.backend.tensor
        for number, port in enumerate(engine.inputs[: self._ports[0]]):
            self._call.bind_input(number, wrap(given[port.name]))
        for number, array in enumerate(outputs.values()):
            self._call.bind_output(number, wrap(array))

    def run(self, tokens: npt.NDArray[np.int64], first: int, added: AddedScores, states: KeptStates) -> None:
        """Computes ``tokens``, 1 to ``rows`` of them, at positions from ``first``, all in one block.

        The states behind them are the spare ones then.

        Rows beyond them repeat the last one: whatever a model makes of other numbers might be none.
        """
        count = len(tokens)
        at = np.minimum(np.arange(self._rows, dtype=np.int64), count - 1)
        positions = first + at
        for source, array in self._feeds:
            if source == "argument":
                array[...] = tokens[at]
            elif source != "zeros":
                array[...] = positions
        if INDEX in self._arrays:
            index = self._arrays[INDEX]
            index[:] = np.arange(self._block)
            place = first % self._block
            index[place : place + count] = self._block + np.arange(count)
        added.fill(self._added, positions, self._capacity)
        if PLACE in self._arrays:
            self._arrays[PLACE][0] = first
            self._show(first)
        if COUNT in self._arrays:
            self._arrays[COUNT][0] = count
        wrap = self._engines.backend.tensor
        for number, (before, spare) in enumerate(zip(states.before(first), states.spare, strict=True)):
            self._call.bind_input(self._ports[0] + number, wrap(before))
            self._call.bind_output(self._ports[1] + number, wrap(spare))
        self._call.run()
        self._engines.calls += 1
        while self._copy is not None and self._copy.exceeded(self._kept):
            self._call.run()
            self._engines.calls += 1

    def _show(self, first: int) -> None:
        """Puts what is kept before token ``first`` where a row that is written in place reads it."""
        if self._copy is None:
            self._kept.show(self._written, first)
        else:
            self._copy.bring(self._kept, first)

    def keep(self, kept: KeptBlocks, first: int, count: int, skip: int) -> None:
        """The last call's keys and values become those of ``count`` tokens from ``first``, without ``skip`` before."""
        kept.write(first % self._block, self._new, count, skip)
        if self._copy is not None:
            self._copy.take(first)
        elif self._written:
            kept.take_shown(self._written, first, count)


class Heads:
    """Logits of rows of hidden states.

    Args:
        engines: Where the engines are open.
        rows: Rows of a call.
    """

    def __init__(self, engines: StepEngines, rows: int) -> None:
        self._engines = engines
        program = engines.steps.program
        self.rows = rows
        self._values: dict[str, Array] = {}
        self._calls: list[Any] = []
        wrap = engines.backend.tensor
        for (stage, engine), handle in zip(engines.steps.heads(rows), engines.heads(rows), strict=True):
            call = handle.new_call()
            for number, (name, port) in enumerate(zip(stage.inputs, engine.inputs, strict=True)):
                call.bind_input(number, wrap(self._values.setdefault(name, np.zeros(port.shape, port.dtype))))
            for number, (value, port) in enumerate(zip(stage.outputs, engine.outputs, strict=True)):
                array = self._values[value.name] = np.zeros(port.shape, port.dtype)
                call.bind_output(number, wrap(array))
            self._calls.append(call)
        self._hidden = self._values[program.hidden]
        self._logits = self._values[program.logits or ""]

    def logits(self, hidden: Array) -> npt.NDArray[np.float32]:
        """Logits ``[count, classes]``, float32, of hidden states ``[count, width]``, at most ``rows`` of them."""
        count = len(hidden)
        self._hidden[0] = hidden[np.minimum(np.arange(self.rows), count - 1)]
        for call in self._calls:
            call.run()
        self._engines.calls += len(self._calls)
        return np.array(self._logits[0, :count], np.float32)


def _inputs(engines: StepEngines) -> list[Any]:
    """The program's inputs in the order in which a step reads them."""
    steps = engines.steps
    named = {entry.value.name: entry for entry in steps.program.inputs}
    return [named[name] for name in steps.fed]
