"""Tokens gathered by expert, and the calls of an engine of experts on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.engines.experts import ExpertsEngine, row_calls, rows_variant, step_sizes
from twoheads.graphs.program.program import ExpertsStage
from twoheads.runtime.backends.protocol import Call

__all__ = ["Chosen", "Mixture", "StepMixture", "chosen_experts"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The tokens that chose an expert.

    Attributes:
        expert: Its number.
        places: The tokens, ascending.
        slots: At which of its choices each of them names the expert.
    """

    expert: int
    places: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]

    def calls(self, sizes: tuple[int, ...]) -> Iterator[tuple[int, Chosen]]:
        """The calls that they take by engines of ``sizes`` rows: the rows of each, and which of the tokens it has."""
        begin = 0
        for size in row_calls(sizes, len(self.places)):
            part = slice(begin, begin + size)
            yield size, Chosen(self.expert, self.places[part], self.slots[part])
            begin += size


def chosen_experts(stage: str, index: Array, real: npt.NDArray[np.bool_], experts: int) -> list[Chosen]:
    """Every expert that a token chose, in order.

    Args:
        stage: The name of the stage, for an error.
        index: What tokens chose, ``[tokens, chosen]``; numbers beyond ``experts`` name none.
        real: Which tokens count, ``[tokens]``.
        experts: How many there are.

    Raises:
        InputError: A token names one twice. What it gives could not be added up at one place.
    """
    places, slots = np.nonzero(real[:, None] & (index >= 0) & (index < experts))
    numbers = index[places, slots]
    order = np.argsort(numbers, kind="stable")
    numbers, places, slots = numbers[order], places[order], slots[order]
    same = (numbers[1:] == numbers[:-1]) & (places[1:] == places[:-1])
    if same.any():
        problem = f"token {places[1:][same][0]} names expert {numbers[1:][same][0]} twice"
        raise InputError(f"stage {stage}", problem, "compile with --experts dense")
    ends = np.searchsorted(numbers, np.arange(experts + 1))
    pairs = enumerate(pairwise(ends.tolist()))
    return [Chosen(number, places[low:high], slots[low:high]) for number, (low, high) in pairs if low < high]


class Mixture:
    """The calls of one engine of experts, each bound to arrays of its own that rows are copied to.

    Args:
        engine: The engine.
        call: A new call of one of its variants.
        wrap: The backend's tensor of an array.
    """

    def __init__(self, engine: ExpertsEngine, call: Callable[[str], Call], wrap: Callable[[Array], Any]) -> None:
        self._engine, self._new_call, self._wrap = engine, call, wrap
        self._bound: dict[int, _Bound] = {}

    def made(self, size: int, chosen: Chosen, weights: Sequence[Array], values: tuple[Array, Array]) -> Array:
        """What one call makes of an expert's tokens, ``[tokens, width]``: good until the next call.

        Args:
            size: Rows of the engine, as many as there are tokens or more.
            chosen: The tokens.
            weights: The expert's.
            values: Rows ``[tokens, width]`` and shares ``[tokens, chosen]`` of all tokens.
        """
        if size not in self._bound:
            self._bound[size] = _Bound(self._engine, size, self._new_call(rows_variant(size)), self._wrap)
        return self._bound[size].made([self._wrap(weight) for weight in weights], chosen, values)


class _Bound:
    """A call of one size with its arrays."""

    def __init__(self, engine: ExpertsEngine, size: int, call: Call, wrap: Callable[[Array], Any]) -> None:
        self._call = call
        self._rows, before, self._after = (np.zeros((size, engine.width), engine.dtype) for _ in range(3))
        self._share = np.zeros((size, 1), engine.dtype)
        for port, array in enumerate((self._rows, self._share, before)):
            call.bind_input(port, wrap(array))
        call.bind_output(0, wrap(self._after))

    def made(self, weights: Sequence[Any], chosen: Chosen, values: tuple[Array, Array]) -> Array:
        """What the call gives, to be added to the tokens' sums.

        The engine could add it itself; then experts would wait for each other. Rows beyond the tokens are what an
        earlier call left there: finite, and read by nobody.
        """
        hidden, share = values
        count = len(chosen.places)
        # Where rows are taken to is known, and checked places need no check: nothing lies between.
        np.take(hidden, chosen.places, axis=0, out=self._rows[:count], mode="clip")
        self._share[:count, 0] = share[chosen.places, chosen.slots]
        for port, weight in enumerate(weights, 3):
            self._call.bind_input(port, weight)
        self._call.run()
        return self._after[:count]


class StepMixture:
    """A mixture in steps of some rows of growing sequences: the experts that their tokens chose, and no others.

    Args:
        stage: The mixture.
        mixture: Its calls.
        engine: What it calls.
        rows: Tokens of a step.
        values: The step's values, of blocks of ``rows`` tokens, by name.
        part: Gives an expert's part of a weight.
    """

    def __init__(
        self,
        stage: ExpertsStage,
        mixture: Mixture,
        engine: ExpertsEngine,
        rows: int,
        values: Mapping[str, Array],
        part: Callable[[str, int], Array],
    ) -> None:
        self._stage, self._mixture, self._engine, self._part = stage, mixture, engine, part
        self._sizes = step_sizes(engine, rows)
        flat = [values[name].reshape(rows, -1) for name in (stage.hidden, stage.share, stage.output.name)]
        self._values = flat[0], flat[1], flat[2]
        self._index = values[stage.index].reshape(rows, -1)
        self._at = np.arange(rows)

    def run(self, count: int) -> int:
        """Computes the mixture for the first ``count`` rows; returns the calls that it took."""
        hidden, share, sums = self._values
        sums[...] = 0
        calls = 0
        for chosen in chosen_experts(self._stage.name, self._index, self._at < count, self._engine.experts):
            weights = [self._part(name, chosen.expert) for name in self._stage.weights]
            for size, part in chosen.calls(self._sizes):
                sums[part.places] += self._mixture.made(size, part, weights, (hidden, share))
                calls += 1
        return calls
