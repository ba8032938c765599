"""Checks that every region really is token-wise: no token's result may depend on another token.

The check is three experiments on the region itself, with its real weights. Half of the tokens are replaced by other
tokens of a real run, and every intermediate value of the other half must stay as it was; also where conditions come out
at random for those tokens, as they might for rare ones; and the last tokens alone must give what they gave in the whole
run. Whatever mixes positions or counts them, by whichever operator (a sort, a cumulative sum, an unusual convolution),
is found and named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.compiler.ir.source_graph import SequenceNode, SourceGraph, TensorType, TokenwiseNode, place_of
from twoheads.compiler.ir.source_program import SourceProgram, example_inputs, trial_lengths
from twoheads.compiler.passes.partition import Region
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.axes import axis_inputs, axis_length, parse_axis

__all__ = ["check_tokenwise"]

LENGTH = 16
"""Tokens of the trial run; each further input of another length is longer by ``STEP``."""

STEP = 3

FIRST = 6
"""Tokens that are left out where the last ones are run alone."""

TOLERANCE = 1e-4
"""Relative to the value's largest magnitude: rounding may differ where a kernel groups rows differently."""

Array = npt.NDArray[Any]


def check_tokenwise(graph: SourceGraph, program: SourceProgram, regions: Sequence[Region]) -> None:
    """Runs the model on a few random tokens and checks every region of ``regions``.

    Raises:
        CompileError: Names the node that mixes positions.
    """
    types = graph.types()
    lengths = trial_lengths(graph, LENGTH, step=STEP)
    compared = dict.fromkeys(name for region in regions for name in _compared(region))
    run, other = program.evaluate_each(compared, [example_inputs(program.inputs, lengths, seed) for seed in (1, 2)])
    _check_constants(graph, program, {node.name for region in regions for node in region.nodes})
    for region in regions:
        if region.axis is not None:
            trial = _Trial(region, program, types, lengths, run, other)
            trial.replace_tokens()
            trial.flip_conditions()
            trial.run_last_tokens()


def _compared(region: Region) -> Iterator[str]:
    """The values that a trial of the region looks at."""
    if region.axis is not None:
        yield from region.inputs
        yield from (node.name for node in region.nodes if node.type is not None and node.type.axis is not None)


def _check_constants(graph: SourceGraph, program: SourceProgram, members: set[str]) -> None:
    """What depends on no input must be the same for every token and every length: a block does not know where it is."""
    names = [name for name in _spread_constants(graph) if name in members]
    shorter, longer = (
        program.evaluate(names, example_inputs(program.inputs, trial_lengths(graph, tokens, step=STEP), 3))
        for tokens in (LENGTH, LENGTH + 7)
    )
    for node in graph.nodes:
        if not isinstance(node, TokenwiseNode) or node.name not in names or node.type is None:
            continue
        axis = node.type.shape.index(node.type.axis)  # a spread constant has an axis
        first = np.take(longer[node.name], [0], axis)
        if not all(_same(np.broadcast_to(first, run[node.name].shape), run[node.name]) for run in (shorter, longer)):
            raise CompileError(
                place_of(node.layer, node.name),
                f"makes numbers that depend on position or length from constants: {node.op}",
                "compute them from torch.arange(length), which blocks receive as their positions",
            )


def _spread_constants(graph: SourceGraph) -> list[str]:
    """Names of results that have a token axis but depend on no input and no positions.

    Tables that are spread along a constant axis (those of an image) are rows that a run cuts, not constants of a block.
    """
    dependent = {entry.value.name for entry in graph.inputs}
    spread: list[str] = []
    for node in graph.nodes:
        table = isinstance(node, SequenceNode) and node.operator == "concat" and (node.type.axis or "").isdigit()
        if table or not dependent.isdisjoint(node.inputs):
            dependent.add(node.name)
        elif node.type is not None and node.type.axis is not None:
            spread.append(node.name)
    return spread


class _Trial:
    """One region's run with half of its tokens replaced, and with its last tokens alone."""

    def __init__(
        self,
        region: Region,
        program: SourceProgram,
        types: Mapping[str, TensorType],
        lengths: Mapping[str, int],
        run: Mapping[str, Any],
        other: Mapping[str, Any],
    ) -> None:
        self.region, self.program, self.types, self.lengths = region, program, types, lengths
        self.run, self.other = run, other
        self.axis = region.axis or ""
        self.tokens = axis_length(self.axis, lengths)
        self.kept = np.arange(self.tokens) % 2 == 0
        # Order is shuffled as well, so that an operator that only looks at its neighbours can't see equal ones.
        self.shuffled = np.random.default_rng(2).permutation(self.tokens)

    def replace_tokens(self) -> None:
        """Raises at the first node whose kept tokens change when the others do."""
        mixed = {name: self._mixed(name) for name in self.region.inputs}
        self._compare(mixed, self.lengths, np.flatnonzero(self.kept), np.flatnonzero(self.kept))

    def flip_conditions(self) -> None:
        """The same where every condition comes out at random for the replaced tokens."""
        generator = np.random.default_rng(4)

        def flip(value: Array, at: int) -> Array:
            if value.dtype != np.bool_:
                return value
            kept = self.kept.reshape([-1 if dim == at else 1 for dim in range(value.ndim)])
            return np.where(kept, value, generator.random(value.shape) < 0.5)

        if not any(map(_is_condition, self.region.nodes)):
            return  # nothing to flip: it is what was compared before
        mixed = {name: self._mixed(name) for name in self.region.inputs}
        rows = np.flatnonzero(self.kept)
        # Conditions that contradict each other may make an index that no token has; then there is nothing to compare.
        with contextlib.suppress(IndexError, RuntimeError):
            self._compare(mixed, self.lengths, rows, rows, flip)

    def run_last_tokens(self) -> None:
        """Raises at the first node that gives the last tokens something else where the first ones are not there."""
        if not axis_inputs(self.axis):
            return  # a number of tokens that the model itself fixes
        rest = self.tokens - FIRST
        parts = parse_axis(self.axis)
        lengths = {name: 0 if at else rest * parts.div - parts.add for at, name in enumerate(parts.of)}
        rows = np.arange(FIRST, self.tokens)
        inputs = {name: self._rows(name, rows) for name in self.region.inputs}
        self._compare(inputs, lengths, rows, np.arange(rest))

    def _rows(self, name: str, rows: Array) -> Array:
        value: Array = self.run[name]
        if self.types[name].axis is None:
            return value
        return np.ascontiguousarray(np.take(value, rows, self.types[name].shape.index(self.axis)))

    def _compare(
        self,
        values: dict[str, Array],
        lengths: Mapping[str, int],
        expected: Array,
        got: Array,
        change: Callable[[Array, int], Array] | None = None,
    ) -> None:
        """Computes the region on ``values`` and compares rows ``got`` of every result with ``expected`` of the run.

        ``change`` may replace a result after the comparison; it is given the result and its token dimension.
        """
        by_name = {node.name: node for node in self.region.nodes}
        results: dict[str, Any] = dict(values)
        waiting = [node.name for node in self.region.nodes]
        for node in self.region.nodes:
            if node.name not in results:  # what is changed is changed before others read it
                conditions = (at for at, name in enumerate(waiting, 1) if change and _is_condition(by_name[name]))
                stop = next(conditions, len(waiting))
                results |= self.program.evaluate_nodes(waiting[:stop], results, lengths)
                waiting = waiting[stop:]
            if node.type is None or node.type.axis is None:
                continue
            at = node.type.shape.index(self.axis)
            if not _same(np.take(self.run[node.name], expected, at), np.take(results[node.name], got, at)):
                culprit = by_name.get(node.inputs[0], node) if node.op.startswith("getitem") else node
                raise CompileError(
                    place_of(culprit.layer, culprit.name),
                    f"mixes tokens: {culprit.op.split('(')[0]} makes one token's value depend on others",
                    "only attention may mix tokens; move it out of the compiled part",
                )
            if change is not None:
                results[node.name] = change(results[node.name], at)

    def _mixed(self, name: str) -> Array:
        """An input with every other token replaced; a row value, which all tokens share, as it is."""
        shape = self.types[name].shape
        value: Array = self.run[name]
        if self.types[name].axis is None:
            return value
        at = shape.index(self.axis)
        mask = self.kept.reshape([-1 if dim == at else 1 for dim in range(len(shape))])
        return np.where(mask, value, np.take(self.other[name], self.shuffled, at))


def _is_condition(node: TokenwiseNode) -> bool:
    """Whether a node gives each token a yes or no."""
    return node.type is not None and node.type.axis is not None and node.type.dtype == "bool"


def _same(expected: Array, got: Array) -> bool:
    if expected.dtype.kind != "f":
        return np.array_equal(expected, got)
    finite = np.isfinite(expected)  # what hides a choice is minus infinity, and no measure of the others
    magnitude = float(np.abs(expected[finite]).max(initial=0.0))
    close = np.isclose(expected, got, rtol=0.0, atol=TOLERANCE * max(magnitude, 1e-30))
    same = (expected == got) | (np.isnan(expected) & np.isnan(got))
    return bool(np.where(finite, close, same).all())
