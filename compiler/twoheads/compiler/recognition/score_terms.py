"""Evaluates what is added to the scores of an attention, and says what it means: a mask, a bias, sinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from twoheads.compiler.ir.op_view import Array, Kind, OpNode, OpView
from twoheads.compiler.recognition.classify_mask import HIDDEN, BiasPattern, classify
from twoheads.compiler.recognition.experiments import EXACT, experiment_lengths, lengths_of, zeros_like
from twoheads.compiler.recognition.scores import Scores
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Full, Mask
from twoheads.graphs.program.axes import axis_length

__all__ = ["Terms", "read_terms"]

PROBE = 41
"""Tokens at which a bias is first looked at."""

BUCKETS = 128
"""How far T5's buckets of distances reach, and those of what was made after it."""


class _TableEnds(Exception):  # noqa: N818 - no error: the mask is read again up to there
    """A term is cut from a table of ``limit`` positions, which is shorter than what was asked for."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"ends at {limit}")
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Terms:
    """What the scores get beside the product; see :class:`twoheads.compiler.ir.op_view.RecognisedAttention`."""

    mask: Mask
    bias: BiasPattern
    bias_source: str
    sinks: Array | None
    max_length: int | None


def read_terms(view: OpView, softmax: OpNode, scores: Scores, axes: tuple[str, str]) -> Terms:
    """Reads mask, bias and sinks.

    Raises:
        CompileError: They are no function of positions that tiles can express.
    """
    heads = int(np.prod(_leading(view, scores.product)))
    sinks = None if scores.sinks is None else _read_sinks(view, softmax, scores.sinks, axes, heads)
    nothing = Terms(Full(), BiasPattern(None, None), "", sinks, None)
    if not scores.steps and scores.product.kind is not Kind.BADDBMM:
        return nothing
    if axes[0] != axes[1]:
        _require_nothing(view, softmax, scores, axes)
        return nothing
    limit = int(axes[0]) if axes[0].isdigit() else None
    while True:
        try:
            mask, bias = _read_mask_and_bias(view, softmax, scores, axes[0], limit)
            break
        except _TableEnds as end:
            limit = end.limit
    return replace(
        nothing,
        mask=mask,
        bias=_for_heads(bias, heads),
        bias_source="" if bias.absent else _bias_source(view, scores, softmax, axes[0]),
        max_length=None if axes[0].isdigit() else limit,
    )


def _read_mask_and_bias(
    view: OpView, softmax: OpNode, scores: Scores, axis: str, limit: int | None
) -> tuple[Mask, BiasPattern]:
    def evaluate(length: int) -> Array:
        zeros = _up_to_the_tables_end(lambda rows: scores_of_zero(view, scores, lengths_of(axis, rows)), length)
        dense = np.broadcast_to(zeros, (len(zeros), length, length))
        return (_without_row_shifts(dense) if shifted else dense)[None]

    shifted = False
    shifted = scores.sinks is None and not _by_distance(evaluate(min(PROBE, limit or PROBE)))
    constants = frozenset(value for name in scores.terms() for value in view.constants(name))
    try:
        mask, bias = classify(evaluate, constants, softmax.where, longest=limit)
    except CompileError:
        # Buckets of distances (T5) may settle beyond every number that their computation mentions.
        mask, bias = classify(evaluate, constants | {BUCKETS}, softmax.where, longest=limit)
    return mask or Full(), bias


def _up_to_the_tables_end(compute: Callable[[int], Array], length: int) -> Array:
    """``compute(length)``; if only shorter lengths can be computed, a look-up by position ends before."""
    try:
        return compute(length)
    except CompileError:
        low, high = 0, length
        while high - low > 1:
            middle = (low + high) // 2
            try:
                compute(middle)
                low = middle
            except CompileError:
                high = middle
        if not low:
            raise
    raise _TableEnds(low)


def _by_distance(dense: Array) -> bool:
    """Whether entries that are no mask depend on their distance only."""
    shown = (dense[..., 1:, 1:] > HIDDEN) & (dense[..., :-1, :-1] > HIDDEN)
    later, before = (np.where(shown, part, 0) for part in (dense[..., 1:, 1:], dense[..., :-1, :-1]))
    return bool(np.all(np.abs(later - before) <= EXACT * np.abs(later).max(initial=0.0)))


def _without_row_shifts(dense: Array) -> Array:
    """The same up to a number a row, which no softmax sees: every query's own key has bias 0.

    ALiBi is written as ``slope * j`` or ``slope * (j - n + 1)`` as often as ``slope * (j - i)``.
    """
    own = np.diagonal(dense, axis1=-2, axis2=-1)[..., None]
    with np.errstate(invalid="ignore"):
        return np.where(dense > HIDDEN, dense - np.where(own > HIDDEN, own, 0), dense)


def scores_of_zero(view: OpView, scores: Scores, lengths: Mapping[str, int]) -> Array:
    """The softmax's operand ``[heads or 1, n or 1, m or 1]`` where all products of queries and keys are 0."""
    given: dict[str, Array] = {}
    wanted = list(scores.terms())
    start = np.zeros((1, 1, 1), np.float32)
    if scores.product.kind is Kind.BADDBMM:
        for name in scores.product.operands[1:]:
            if isinstance(name, str):
                given[name] = zeros_like(view, name, lengths)
        wanted.append(scores.product.name)
    values = view.evaluate(wanted, lengths, given)
    rows, keys = _axes(view, scores.product)
    _require_whole(values, (axis_length(rows, lengths), axis_length(keys, lengths)))
    if scores.product.kind is Kind.BADDBMM:
        start = values[scores.product.name].reshape(-1, *values[scores.product.name].shape[-2:])
    return scores.apply(start, values, _leading(view, scores.product))


def _require_whole(values: Mapping[str, Array], sizes: tuple[int, int]) -> None:
    """A slice of a table has fewer rows than were asked for where the table ends."""
    found = {got for array in values.values() for got in array.shape[-2:]}
    if cut := found - {1, *sizes}:
        raise _TableEnds(min(cut))


def _axes(view: OpView, product: OpNode) -> tuple[str, str]:
    type_ = view.type(product.name)
    rows, keys = ("", "") if type_ is None else type_.shape[-2:]
    return str(rows), str(keys)


def _leading(view: OpView, product: OpNode) -> tuple[int, ...]:
    type_ = view.type(product.name)
    return () if type_ is None else tuple(size for size in type_.shape[:-2] if isinstance(size, int))


def _read_sinks(view: OpView, softmax: OpNode, name: str, axes: tuple[str, str], heads: int) -> Array:
    """Sinks ``[heads]`` from the column ``[1, heads, n, 1]``."""
    column = view.evaluate((name,), lengths_of(axes[0], 11))[name]
    rows = column.reshape(-1, *column.shape[-2:])
    if rows.shape[2] != 1 or rows.shape[0] not in (1, heads) or not np.array_equal(rows, rows[:, :1] + 0 * rows):
        raise CompileError(
            softmax.where, "concatenates scores that are no learned sinks", "keep one learned logit a head"
        )
    return np.broadcast_to(rows[:, 0, 0], (heads,)).astype(np.float32)


def _require_nothing(view: OpView, softmax: OpNode, scores: Scores, axes: tuple[str, str]) -> None:
    for length in (11, 29):
        if scores_of_zero(view, scores, experiment_lengths(axes, length)).any():
            raise CompileError(
                softmax.where,
                f"attention from {axes[0]} to {axes[1]} tokens has a mask or a bias",
                "only attention without a mask may have keys of another sequence: leave padding out",
            )


def _for_heads(bias: BiasPattern, heads: int) -> BiasPattern:
    table = None if bias.table is None else np.broadcast_to(bias.table, (heads, bias.table.shape[1]))
    slope = None if bias.slope is None else np.broadcast_to(bias.slope, (heads,))
    return BiasPattern(table, slope)


def _bias_source(view: OpView, scores: Scores, softmax: OpNode, axis: str) -> str:
    """The value that holds the bias, or the softmax's name if several do."""
    values = view.evaluate(scores.terms(), lengths_of(axis, 11))
    added = [o for s in scores.steps if s.node.kind in (Kind.ADD, Kind.SUB) for o in s.others if isinstance(o, str)]
    added += [name for name in scores.terms() if name in scores.product.operands]
    found = [name for name in added if np.any((values[name] > HIDDEN) & (values[name] != 0))]
    return found[0] if len(found) == 1 else softmax.name
