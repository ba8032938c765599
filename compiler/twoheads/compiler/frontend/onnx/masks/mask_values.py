"""What an attention mask holds where every token counts: found by leaving tokens out.

Files differ: 1 or True for a token that counts, True for one that does not (torch's ``key_padding_mask``), or a number
that is added to the scores. A value leaves a token out if no other token's result depends on what that token is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.ir.source_program import example_inputs, input_lengths
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import Input

__all__ = ["Filled", "counting_values"]

TOKENS = 12

SAME = 1e-5
"""Relative to the largest magnitude."""

CANDIDATES: Mapping[str, Sequence[tuple[float, float]]] = {
    "b": ((1, 0), (0, 1)),
    "i": ((1, 0), (0, 1)),
    "f": ((1, 0), (0, -1e9), (0, 1)),
}
"""By kind of number: what a token that counts has, and what one that does not."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A mask by which tokens can be left out.

    Attributes:
        dtype: Of its entries.
        shape: Of its array at one token.
        values: Its entry for a token that counts, and for one that does not.
    """

    dtype: str
    shape: tuple[int, ...]
    values: tuple[float, float]

    def only(self, kept: Array) -> Array:
        """The mask that leaves out all but the tokens ``kept``, bool ``[tokens]``, for every query."""
        rows = np.where(kept, *self.values).astype(self.dtype)
        return np.broadcast_to(rows, (*self.shape[:-1], len(kept)))


def counting_values(
    graph: OnnxGraph, mask: str, arguments: Sequence[Input], fixed: int | None, outputs: Sequence[str]
) -> tuple[float, float] | None:
    """The entries of ``mask`` for a token that counts and for one that does not; ``None`` where none leaves one out.

    Args:
        graph: The file's operators; ``mask`` is one of its values.
        mask: Its last dimension counts tokens.
        arguments: What a run supplies.
        fixed: The file's number of tokens, where it has one.
        outputs: What the file is for.
    """
    if all(mask not in node.outputs for node in graph.nodes):
        return 1.0, 0.0  # nothing reads it
    tokens = fixed or TOKENS
    lengths = input_lengths(arguments, tokens)
    one, other = (example_inputs(arguments, lengths, seed) for seed in (1, 2))
    try:
        whole = graph.run([mask], one, {})[mask]
        for counts, left_out in CANDIDATES.get(whole.dtype.kind, ()):
            if all(_leaves_out(graph, whole, mask, (counts, left_out), (one, other), half, outputs) for half in (0, 1)):
                return counts, left_out
    except CompileError:  # it does not run so; measuring says why
        return None
    return None


def _leaves_out(
    graph: OnnxGraph,
    whole: Array,
    mask: str,
    values: tuple[float, float],
    examples: tuple[Mapping[str, Array], Mapping[str, Array]],
    half: int,
    outputs: Sequence[str],
) -> bool:
    """Whether the results of one half of the tokens stay when the other half, left out, says something else."""
    count = whole.shape[-1]
    kept = (np.arange(count) < count // 2) == (half == 0)
    given = np.where(np.broadcast_to(kept, whole.shape), *values).astype(whole.dtype)
    runs: list[dict[str, Any]] = []
    for changed in (False, True):
        feeds = {name: _mixed(array, examples[1][name], kept, changed) for name, array in examples[0].items()}
        runs.append(graph.run(outputs, {**feeds, mask: given}, {}))
    return all(_same(runs[0][name], runs[1][name], kept) for name in outputs)


def _mixed(one: Array, other: Array, kept: Array, changed: bool) -> Array:
    """The one example, with the other's tokens where they are left out."""
    if not changed or one.ndim < 2 or one.shape[1] != len(kept):
        return one
    return np.where(kept.reshape(1, -1, *[1] * (one.ndim - 2)), one, other).astype(one.dtype)


def _same(one: Array, other: Array, kept: Array) -> bool:
    if one.ndim > 1 and one.shape[1] == len(kept):
        one, other = one[:, kept], other[:, kept]
    largest = float(np.abs(one).max(initial=0.0))
    return bool(np.isfinite(one).all()) and float(np.abs(one - other).max(initial=0.0)) <= SAME * largest
