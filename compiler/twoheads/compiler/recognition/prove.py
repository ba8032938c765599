"""Runs a recognised attention's subgraph on random activations against the formula of what was recognised."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from twoheads.compiler.ir.op_view import Array, OpView, RecognisedAttention
from twoheads.compiler.ir.source_graph import place_of
from twoheads.compiler.recognition.experiments import experiment_lengths, random_like, repeat_heads
from twoheads.graphs.errors import CompileError

__all__ = ["defined_attention", "prove_attention"]

TOLERANCE = 1e-4
"""Relative to the result's largest magnitude; a scale that is off by 1 % differs by about 1e-2."""

SPREAD = 2.0
"""Standard deviation of the scores: small enough that many keys count, large enough that a wrong factor shows."""


def prove_attention(view: OpView, found: RecognisedAttention, axes: tuple[str, str]) -> None:
    """Compares at two lengths (at the one there is, for a constant axis).

    Raises:
        CompileError: The results differ.
    """
    for length in (11, 29):
        lengths = experiment_lengths(axes, length)
        # Scores as large as the softcap show whether it is there; small ones whether the rest is right.
        for spread in (SPREAD, found.softcap) if found.softcap else (SPREAD,):
            error = _difference(view, found, lengths, spread)
            if not error <= TOLERANCE:
                raise CompileError(
                    place_of(found.layer, found.node),
                    f"was read as attention with scale {found.scale:.6g}, softcap {found.softcap:g} and mask "
                    f"{found.mask}, but computes something else (it differs by {error:.1e} of the largest value)",
                    "write attention as softmax(scale * q k^T + mask) v, or call scaled_dot_product_attention",
                )


def _difference(view: OpView, found: RecognisedAttention, lengths: Mapping[str, int], spread: float) -> float:
    names = {name: at for at, (name, _) in enumerate((found.value, found.key, found.query))}
    given = {name: random_like(view, name, lengths, 11 + at) for name, at in names.items()}
    query = found.query[1].apply(given[found.query[0]])
    factor = spread / (abs(found.scale) * query.shape[-1] ** 0.5)
    if found.query[0] not in (found.key[0], found.value[0]):
        given[found.query[0]] = (given[found.query[0]] * factor).astype(query.dtype)
    got = view.evaluate((found.output,), lengths, given)[found.output].astype(np.float64)
    operands = [arrangement.apply(given[name]) for name, arrangement in (found.query, found.key, found.value)]
    expected = found.output_arrangement.apply(defined_attention(found, *operands))
    if got.shape != expected.shape:
        return float("inf")
    return float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-30))


def defined_attention(found: RecognisedAttention, query: Array, key: Array, value: Array) -> npt.NDArray[np.float64]:
    """What the attention computes, in float64, from arranged operands.

    Args:
        found: The attention.
        query: ``[1, q_num_heads, n, head_dim]``.
        key: ``[1, kv_num_heads, m, head_dim]``.
        value: ``[1, kv_num_heads, m, v_head_dim]``.

    Returns:
        ``[1, q_num_heads, n, v_head_dim]``.
    """
    heads, rows, keys = query.shape[1], np.arange(query.shape[2])[:, None], np.arange(key.shape[2])[None, :]
    scores = found.scale * (query.astype(np.float64) @ np.swapaxes(repeat_heads(key, heads), 2, 3))
    if found.softcap:
        scores = found.softcap * np.tanh(scores / found.softcap)
    distance = keys - rows
    if found.bias_slope is not None:
        scores = scores + found.bias_slope[:, None, None] * distance
    if found.bias_table is not None:
        reach = found.bias_table.shape[1] // 2
        scores = scores + found.bias_table[:, np.clip(distance, -reach, reach) + reach]
    scores = np.where(found.mask.dense(rows, keys), scores, -np.inf)
    sinks = np.full(heads, -np.inf) if found.sinks is None else found.sinks.astype(np.float64)
    column = np.broadcast_to(sinks[None, :, None, None], (*scores.shape[:3], 1))
    largest = np.maximum(scores.max(-1, keepdims=True), column)
    weights = np.exp(scores - largest)
    weights /= weights.sum(-1, keepdims=True) + np.exp(column - largest)
    result: npt.NDArray[np.float64] = weights @ repeat_heads(value, heads)
    return result
