"""Finds out how the operands of a product are laid out, by evaluating it on random numbers.

A product may be transposed, flattened over heads, grouped, or an einsum; keys may be repeated for grouped heads. All of
that is found the same way: an arrangement of the operand as ``[1, heads, tokens, head_dim]`` is right if the plain
product of the arranged operands is what the model computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from twoheads.compiler.ir.op_view import Arrangement, Array, Kind, OpNode, OpView
from twoheads.compiler.recognition.experiments import EXACT, close, random_like, repeat_heads, scalar, zeros_like
from twoheads.graphs.program.program import Dim

__all__ = ["Operand", "ScoreProduct", "ValueProduct", "arrange_scores", "arrange_values"]


@dataclass(frozen=True, slots=True)
class Operand:
    """A value whose arrangement, times ``factor``, enters a product as ``[1, heads, tokens, head_dim]``."""

    source: str
    arrangement: Arrangement
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class ScoreProduct:
    """``alpha * query @ key^T``."""

    query: Operand
    key: Operand
    alpha: float

    @property
    def scale(self) -> float:
        """All factors together."""
        return self.alpha * self.query.factor * self.key.factor


@dataclass(frozen=True, slots=True)
class ValueProduct:
    """Values, and how ``[1, heads, n, v_head_dim]`` becomes the product's result."""

    value: Operand
    output: Arrangement


def arrange_scores(
    view: OpView, product: OpNode, axes: tuple[str, str], lengths: Mapping[str, int]
) -> ScoreProduct | None:
    """Queries and keys of a product whose result's last two dimensions are ``axes``; ``None`` if it is no such."""
    first, second = product.operands[-2:]
    if not isinstance(first, str) or not isinstance(second, str):
        return None
    for query, key in ((first, second), (second, first)):
        found = _match_scores(view, product, query, key, axes, lengths)
        if found is not None:
            best = [
                _simplest_source(view, operand, axis, lengths, scaled=True)
                for operand, axis in zip((found.query, found.key), axes, strict=True)
            ]
            return ScoreProduct(best[0], best[1], found.alpha)
    return None


def arrange_values(
    view: OpView, product: OpNode, probabilities: str, axes: tuple[str, str], lengths: Mapping[str, int]
) -> ValueProduct | None:
    """Values of a product with ``probabilities [..., n, m]``; ``None`` if it is no such."""
    others = [name for name in product.operands if isinstance(name, str) and name != probabilities]
    shape, out_shape = (_shape(view, name) for name in (others[0] if len(others) == 1 else "", product.name))
    if axes[1] not in shape:
        return None
    given = {name: random_like(view, name, lengths, at) for at, name in enumerate((probabilities, others[0]))}
    expected = view.evaluate((product.name,), lengths, given)[product.name]
    p = given[probabilities].reshape(1, -1, *given[probabilities].shape[-2:]).astype(np.float64)
    for arrangement in _arrangements(shape, axes[1]):
        v = arrangement.apply(given[others[0]])
        if p.shape[1] % v.shape[1]:
            continue
        result = p @ repeat_heads(v, p.shape[1])
        for output in _output_arrangements(out_shape):
            if result.size == expected.size and close(output.apply(result), expected):
                value = _simplest_source(view, Operand(others[0], arrangement), axes[1], lengths, scaled=False)
                return ValueProduct(value, _without_reshape(output, result))
    return None


def _shape(view: OpView, name: str) -> tuple[Dim, ...]:
    type_ = view.type(name)
    return () if type_ is None else type_.shape


def _arrangements(shape: tuple[Dim, ...], axis: str) -> Iterator[Arrangement]:
    """Every way to read a shape with the token axis ``axis`` as ``[1, heads, tokens, head_dim]``."""
    if axis not in shape:
        return
    tokens = shape.index(axis)
    for depth in reversed(range(len(shape))):
        rest = [at for at in range(len(shape)) if at not in (tokens, depth)]
        sizes = [size for size in (*(shape[at] for at in rest), shape[depth]) if isinstance(size, int)]
        if depth == tokens or len(sizes) < len(shape) - 1:
            continue
        permutation = (*rest, tokens, depth)
        heads = int(np.prod(sizes[:-1], dtype=np.int64))
        ready = len(shape) == 4 and sizes[0] == 1
        yield Arrangement(
            None if permutation == tuple(range(len(shape))) else permutation,
            None if ready else (1, heads, -1, sizes[-1]),
        )


def _output_arrangements(shape: tuple[Dim, ...]) -> Iterator[Arrangement]:
    sizes = tuple(-1 if isinstance(size, str) else size for size in shape)
    yield Arrangement(None, sizes)
    yield Arrangement((0, 2, 1, 3), sizes)


def _without_reshape(arrangement: Arrangement, array: Array) -> Arrangement:
    """The arrangement without a reshape that changes nothing."""
    shape, has = arrangement.shape or (), Arrangement(arrangement.permutation).apply(array).shape
    same = len(shape) == len(has) and all(size in (-1, other) for size, other in zip(shape, has, strict=True))
    return Arrangement(arrangement.permutation) if same else arrangement


def _match_scores(
    view: OpView, product: OpNode, query: str, key: str, axes: tuple[str, str], lengths: Mapping[str, int]
) -> ScoreProduct | None:
    given = {name: random_like(view, name, lengths, at) for at, name in enumerate((query, key))}
    extra = product.operands[0]
    if product.kind is Kind.BADDBMM and isinstance(extra, str):
        given[extra] = zeros_like(view, extra, lengths)
    expected = view.evaluate((product.name,), lengths, given)[product.name]
    expected = expected.reshape(1, -1, *expected.shape[-2:])
    for first in _arrangements(_shape(view, query), axes[0]):
        for second in _arrangements(_shape(view, key), axes[1]):
            q, k = first.apply(given[query]), second.apply(given[key])
            if q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1] or q.shape[1] != expected.shape[1]:
                continue
            result = q.astype(np.float64) @ np.swapaxes(repeat_heads(k, q.shape[1]), 2, 3)
            alpha = _factor(result, expected, q.shape[3]) if result.shape == expected.shape else 0.0
            if alpha and close(alpha * result, expected):
                return ScoreProduct(Operand(query, first), Operand(key, second), alpha)
    return None


def _factor(result: Array, expected: Array, head_dim: int) -> float:
    """The factor between two arrays; the usual number where it is one, as a fit is only as good as float32."""
    alpha = float((result * expected).sum() / (result * result).sum())
    usual = (1.0, head_dim**-0.5, 1.0 / head_dim)
    return next((value for value in usual if abs(alpha - value) <= EXACT * value), alpha)


def _simplest_source(view: OpView, operand: Operand, axis: str, lengths: Mapping[str, int], *, scaled: bool) -> Operand:
    """The best of the values that the operand is only moved, repeated or (if allowed) ``scaled`` from.

    That is the one with the fewest entries, so that grouped heads are not repeated, that lies as wanted, farthest up.
    """
    best, at, factor = operand, operand.source, 1.0
    while (node := view.nodes.get(at)) is not None and (step := _scaled_or_moved(view, node, lengths)) is not None:
        at, factor = step[0], factor * step[1]
        if axis not in _shape(view, at) or (factor != 1 and not scaled):
            break
        array = random_like(view, at, lengths, 7)
        target = operand.arrangement.apply(view.evaluate((operand.source,), lengths, {at: array})[operand.source])
        found = _arrangement_of(view, at, axis, factor, array, target)
        if found is not None and _cost(view, found) <= _cost(view, best):
            best = found
    return best


def _arrangement_of(view: OpView, name: str, axis: str, factor: float, array: Array, target: Array) -> Operand | None:
    """How ``target [1, heads, tokens, head_dim]`` is made of a value, if it is."""
    for arrangement in _arrangements(_shape(view, name), axis):
        moved = arrangement.apply(array)
        fits = target.shape[1] % moved.shape[1] == 0 and moved.shape[2:] == target.shape[2:]
        if fits and close(factor * repeat_heads(moved, target.shape[1]), target):
            return Operand(name, arrangement, factor)
    return None


def _cost(view: OpView, operand: Operand) -> tuple[int, bool]:
    entries = int(np.prod([size for size in _shape(view, operand.source) if isinstance(size, int)]))
    return entries, operand.arrangement != Arrangement()


def _scaled_or_moved(view: OpView, node: OpNode, lengths: Mapping[str, int]) -> tuple[str, float] | None:
    """The operand that a node scales by a number or moves, and the factor; ``None`` if it does neither."""
    first = node.operands[0]
    if node.kind is Kind.MOVE and isinstance(first, str):
        return first, 1.0
    if node.kind not in (Kind.MUL, Kind.DIV):
        return None
    second = node.operands[1]
    number = scalar(view, second, lengths)
    if number and isinstance(first, str):
        return first, number if node.kind is Kind.MUL else 1.0 / number
    number = scalar(view, first, lengths) if node.kind is Kind.MUL else None
    return (second, number) if number and isinstance(second, str) else None
