"""The calls that compute the rows of one sequence: steps of few rows, runs of whole blocks, and logits."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.variants.in_place.in_place_steps import InPlaceSteps
from twoheads.graphs.variants.step_calls import Pieces
from twoheads.graphs.variants.steps import CAPACITIES
from twoheads.runtime.bundle.weights import Weights
from twoheads.runtime.generation.kept.held_sequence import KeptSequence
from twoheads.runtime.generation.kept.prompt_blocks import RunsPrompts
from twoheads.runtime.generation.kept.rounded_reads import RoundedReads
from twoheads.runtime.generation.steps.added import AddedScores
from twoheads.runtime.generation.steps.engines import StepEngines
from twoheads.runtime.generation.steps.long_step import LongStep
from twoheads.runtime.generation.steps.step import BoundStep, Heads

__all__ = ["SequenceCalls"]


class SequenceCalls:
    """Computes rows of one sequence, and writes them into it.

    Args:
        engines: What computes.
        weights: The bundle's.
        sequence: Whose rows.
        prompts: Computes blocks that become whole; ``None`` where steps do.

    Attributes:
        added: What is added to the scores of its steps.
    """

    def __init__(
        self, engines: StepEngines, weights: Weights, sequence: KeptSequence, prompts: RunsPrompts | None
    ) -> None:
        self.added = AddedScores(engines.steps, weights)
        self._engines, self._sequence, self._prompts = engines, sequence, prompts
        self._heads: dict[int, Heads] = {}

    @property
    def runs(self) -> bool:
        """Whether blocks that become whole are computed by runs."""
        return self._prompts is not None

    def extending(self, new: list[int], *, whole: bool = False) -> Generator[int, None, npt.NDArray[Any] | None]:
        """Adds ``new`` by calls of several rows: gives the rows of each behind it.

        Args:
            new: Tokens.
            whole: Only what runs compute.

        Returns:
            The last hidden states ``[width]``; ``None`` where ``whole`` left tokens.
        """
        sequence, block = self._sequence, self._sequence.block
        tokens = np.array([*sequence.tokens, *new], np.int64)
        hidden: npt.NDArray[Any] | None = None
        if self.runs:
            sequence.reserve(len(tokens) // block)  # once, and not as they come
        start = sequence.take_from_cache(tokens)
        start = sequence.take_parts(tokens) if self.runs else start
        for first, count, rows in Pieces(start, len(tokens), sequence.steps.rows, runs=self.runs):
            if self.runs and count % block == 0:
                hidden = self._run_whole(tokens[: first + count], first, last=first + count == len(tokens))
            elif whole:
                return None
            else:
                hidden = self.step(tokens[first : first + count], first, rows)[-1]
                sequence.give_to_cache()
                if self.runs:
                    sequence.give_parts()
            yield rows
        return hidden

    def extend(self, new: list[int]) -> None:
        """Adds ``new`` by calls of several rows."""
        for _ in self.extending(new):
            pass

    def step(self, tokens: npt.NDArray[np.int64], first: int, rows: int) -> npt.NDArray[Any]:
        """One call of ``rows`` rows, or more, for ``tokens`` from position ``first`` on, which lie in one block.

        Tokens that are there already are computed again, and left as they are.

        Returns:
            The hidden states ``[new tokens, width]`` of the others.
        """
        sequence, count, rows = self._sequence, len(tokens), max(rows, self._engines.least_rows)
        in_place = self._in_place(rows, first)
        # Layer by layer, whole blocks are read in tiles of the widest capacity.
        room = first // sequence.block if in_place is None else in_place.room(rows, first)
        sequence.reserve(max(room, CAPACITIES[-1] if sequence.source.capacity is None else 0))
        step = self._bound_step(rows, first, in_place)
        step.run(tokens, first, self.added, sequence.states)
        sequence.states.move(first + count)
        skip = len(sequence) - first
        step.keep(sequence.kept, len(sequence), count - skip, skip)
        sequence.add(tokens[skip:])
        return np.array(step.hidden[0, skip:count])

    def _bound_step(self, rows: int, first: int, in_place: InPlaceSteps | None) -> BoundStep | LongStep:
        sequence, kept = self._sequence, self._sequence.kept
        wide = sequence.steps.capacity(first // sequence.block) is None or sequence.source.capacity is None
        long = wide or kept.rounds or self._engines.layered
        key = (rows, long, type(in_place))
        if key not in sequence.bound:
            if long:
                sequence.bound[key] = LongStep(self._engines, rows, kept, sequence.source)
            else:
                sequence.bound[key] = BoundStep(self._engines, rows, kept, sequence.source, in_place)
        step: BoundStep | LongStep = sequence.bound[key]
        return step

    def _in_place(self, rows: int, first: int) -> InPlaceSteps | None:
        """How a step of ``rows`` rows from token ``first`` is written in place; ``None`` where it is not."""
        kept, blocks = self._sequence.kept, first // self._sequence.block
        found = self._engines.rows_in_place if rows > 1 else self._engines.in_place if kept.own else None
        if isinstance(kept, RoundedReads) and rows == 1 and blocks:
            found = kept.rounded.steps
        return found if found is not None and not kept.rounds and found.reach(rows, blocks) else None

    def make_room(self, rows: int, count: int) -> bool:
        """Room for ``count`` tokens in place, by steps of ``rows`` rows; ``False`` where they are written elsewhere."""
        sequence = self._sequence
        first = len(sequence) + (count - 1) // rows * rows
        in_place = self._in_place(rows, first)
        if in_place is None:
            sequence.bound.clear()  # the arrays are about to move
        else:
            sequence.reserve(in_place.room(rows, first))
        return in_place is not None

    def _run_whole(self, tokens: npt.NDArray[np.int64], first: int, *, last: bool) -> npt.NDArray[Any] | None:
        """Computes the blocks of ``tokens`` behind token ``first``; the hidden states of the ``last`` token, if so."""
        sequence, block = self._sequence, self._sequence.block
        kept = sequence.kept
        if self._prompts is None:
            raise InternalError("no runs compute whole blocks")
        made = self._prompts.run(tokens, kept, first // block, hidden=last)
        self._engines.calls += made.calls
        for at in range(0, len(tokens) - first, block):
            kept.write(0, dict(enumerate(made.kept)), block, skip=at)
            sequence.add(tokens[first + at : first + at + block])
            sequence.give_to_cache()
        return made.hidden

    def heads(self, rows: int) -> Heads:
        """What gives the logits of ``rows`` rows, or more."""
        rows = max(rows, self._engines.least_rows)
        if rows not in self._heads:
            self._heads[rows] = Heads(self._engines, rows)
        return self._heads[rows]

    def close(self) -> None:
        """Lets calls go."""
        self._heads.clear()
