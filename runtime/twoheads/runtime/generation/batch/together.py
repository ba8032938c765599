"""The ends of several prompts in one call: token-wise engines take rows of all of them, attention goes by request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import AttentionStage, TokenwiseStage
from twoheads.graphs.variants.in_place.batch_in_place import BatchInPlace, prompt_in_place
from twoheads.graphs.variants.in_place.in_place_steps import InPlaceSteps
from twoheads.runtime.generation.context import Context
from twoheads.runtime.generation.steps.engines import StepEngines

__all__ = ["PromptEnd", "PromptsTogether", "prompts_together"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class PromptEnd:
    """Tokens behind a context's own, which lie in its open block.

    Attributes:
        context: Whose.
        tokens: Which.
    """

    context: Context
    tokens: Sequence[int]


class PromptsTogether:
    """Computes ends of prompts, up to a block of rows in a call, with the bits that each gets by its own steps.

    Args:
        engines: Where the engines are open.
        steps: Steps that write in place.
        attended: Rows of an attention; what is behind a prompt's end is nobody's, and needs room.

    Attributes:
        rows: Of a call.
        attended: As given.

    Raises:
        BundleError: An engine can't be opened.
    """

    def __init__(self, engines: StepEngines, steps: InPlaceSteps, attended: int) -> None:
        self._engines, self._steps, self.attended = engines, steps, attended
        program, inside = steps.steps.program, steps.steps.body.inside
        self.rows = program.block_size
        self._kept = {entry.value.name: at for at, entry in enumerate(steps.steps.kept)}
        self._inside = [stage for stage in inside if isinstance(stage, AttentionStage | TokenwiseStage)]
        self._values = self._shared_values()
        self._calls = [self._region(stage) for stage in self._inside]
        self._attends: dict[BatchInPlace, _Attend] = {}

    def run(self, ends: Sequence[PromptEnd]) -> list[Array]:
        """Computes ends of at most ``rows`` tokens in all; the hidden states ``[width]`` behind each.

        Every context has room for ``attended`` rows from where its last ones begin.
        """
        counts = [len(end.tokens) for end in ends]
        at = np.minimum(np.arange(self.rows), sum(counts) - 1)
        tokens = np.concatenate([np.asarray(end.tokens, np.int64) for end in ends])[at]
        firsts = [len(end.context) for end in ends]
        positions = np.concatenate([np.arange(first, first + n) for first, n in zip(firsts, counts, strict=True)])[at]
        for entry in self._steps.steps.program.inputs:
            if entry.source != "zeros":
                self._values[entry.value.name][...] = tokens if entry.source == "argument" else positions
        for end in ends:
            end.context.kept.show(self._steps.kept, len(end.context))
        starts = [int(start) for start in np.cumsum([0, *counts])]
        for stage, call in zip(self._inside, self._calls, strict=True):
            if isinstance(stage, AttentionStage):
                for end, start in zip(ends, starts, strict=False):
                    self._attend(stage, end, start)
            else:
                call.run()
                self._engines.calls += 1
        for end in ends:
            end.context.kept.take_shown(self._steps.kept, len(end.context), len(end.tokens))
            end.context.take(end.tokens)
        hidden = self._values[self._steps.steps.program.hidden][0]
        return [np.array(hidden[stop - 1]) for stop in starts[1:]]

    def _attend(self, stage: AttentionStage, end: PromptEnd, start: int) -> None:
        """Attention of one prompt's rows, which begin at row ``start``, and their place among its keys."""
        kept = end.context.kept
        engine = prompt_in_place(self._steps, stage, kept.capacity)
        if engine is None:
            raise InternalError(f"stage {stage.name} is not written in place")
        if engine not in self._attends:
            self._attends[engine] = _Attend(self._engines, engine)
        names = (stage.query, stage.key, stage.value)
        rows = [self._values[name][0][:, start : start + len(end.tokens)].swapaxes(0, 1) for name in names]
        out = self._values[stage.output.name][0][:, start : start + len(end.tokens)].swapaxes(0, 1)
        past = [kept.past[self._kept[name]] for name in names[1:]]
        self._attends[engine].run(rows, past, len(end.context), out)

    def _region(self, stage: AttentionStage | TokenwiseStage) -> Any:
        """A call of a token-wise stage, bound to the values; ``None`` for attention."""
        if isinstance(stage, AttentionStage):
            return None
        return self._engines.bound_region(stage, self.rows, self._values)

    def _shared_values(self) -> dict[str, Array]:
        """An array of every value; those that are not needed at the same time lie in the same one."""
        program = self._steps.steps.program
        given = [entry.value for entry in program.inputs]
        found = {value.name: np.zeros(value.block_shape(self.rows), value.dtype) for value in given}
        stay = {*found, program.hidden}
        last = {name: stage.name for stage in self._inside for name in stage.inputs}
        free: dict[tuple[tuple[int, ...], str], list[Array]] = {}
        for stage in self._inside:
            for value in stage.outputs:
                shape = tuple(value.block_shape(self.rows))
                spare = free.setdefault((shape, value.dtype), [])
                found[value.name] = spare.pop() if spare else np.zeros(shape, value.dtype)
            for name in {*stage.inputs} - stay:
                if last[name] == stage.name:
                    array = found[name]
                    free.setdefault((array.shape, array.dtype.name), []).append(array)
        return found


class _Attend:
    """A call of an attention engine of one sequence."""

    def __init__(self, engines: StepEngines, engine: BatchInPlace) -> None:
        self._engines, self._wrap, self._rows = engines, engines.backend.tensor, engine.rows
        *self._read, self._place = (np.zeros(port.shape, port.dtype) for port in engine.inputs[:4])
        self._out = np.zeros(engine.outputs[0].shape, engine.outputs[0].dtype)
        self._call = engines.batch_in_place(engine).new_call()
        for number, array in enumerate((*self._read, self._place)):
            self._call.bind_input(number, self._wrap(array))
        self._call.bind_output(0, self._wrap(self._out))

    def run(self, rows: Sequence[Array], past: Sequence[Array], first: int, out: Array) -> None:
        """Attends for ``rows``, ``[tokens, heads, head_dim]`` each, from place ``first`` of the ``past`` on.

        Rows behind them repeat the last one: whatever a model makes of other numbers might be none.
        """
        for number, array in enumerate(past):
            tensor = self._wrap(array)
            self._call.bind_input(4 + number, tensor)
            self._call.bind_output(1 + number, tensor)
        for start in range(0, len(out), self._rows):
            count = min(self._rows, len(out) - start)
            for read, given in zip(self._read, rows, strict=True):
                read[0, :count] = given[start : start + count].reshape(count, -1)
                read[0, count:] = read[0, count - 1]
            self._place[0] = first + start
            self._call.run()
            self._engines.calls += 1
            out[start : start + count] = self._out[0, :count].reshape(count, *out.shape[1:])


def prompts_together(engines: StepEngines) -> PromptsTogether | None:
    """What computes ends of prompts together; ``None`` where each is computed by itself.

    That is so where some layer is written elsewhere, in bundles that were compiled before there were such engines, and
    where weights are read as they lie: kernels that pack them in every call may sum few rows otherwise than a block.
    """
    steps = engines.rows_in_place
    attentions = () if steps is None else steps.steps.body.attentions
    if steps is None or not attentions or not engines.packed:
        return None
    least = next(filter(None, steps.steps.capacities))
    found = [prompt_in_place(steps, stage, least) for stage in attentions]
    if any(engine is None or not engines.holds(engine) for engine in found):
        return None
    return PromptsTogether(engines, steps, steps.rows[-1])
