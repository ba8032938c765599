"""A tiny random transformer in NumPy: the reference of the runtime's tests.

The model's norm has no epsilon and token 0 at position 0 is the zero vector, so what a run computes for padding is NaN:
any leak of padding into real tokens shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.program.program import Limit, Pooling

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tiny:
    """What varies among the tests' models; every layer ``a`` uses ``masks[a % len(masks)]``."""

    block_size: int = 16
    key_tile: int = 16
    layers: int = 3
    masks: tuple[str, ...] = ("causal",)
    q_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 5
    width: int = 12
    vocabulary: int = 40
    softcap: float = 0.0
    sinks: bool = False
    table_reach: int = 0
    slope: bool = False
    pooling: Pooling | None = None
    head: bool = True
    features: bool = False
    max_length: Limit | None = None
    trained_length: int | None = None
    sharpness: float = 3.0
    seed: int = 0
    approximations: tuple[str, ...] = field(default=())

    @property
    def biased(self) -> bool:
        return bool(self.table_reach or self.slope)


def make_weights(tiny: Tiny) -> dict[str, Array]:
    rng = np.random.default_rng(tiny.seed)

    def random(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    d, q, kv = tiny.width, tiny.q_heads * tiny.head_dim, tiny.kv_heads * tiny.head_dim
    weights: dict[str, Array] = {
        "embed": rng.standard_normal((tiny.vocabulary, d)).astype(np.float32),
        "freq": random(d) + 0.3,
    }
    weights["embed"][0] = 0
    for layer in range(tiny.layers):
        sharp = tiny.sharpness
        weights |= {
            f"{layer}.q": sharp * random(d, q),
            f"{layer}.k": sharp * random(d, kv),
            f"{layer}.v": random(d, kv),
        }
        weights |= {f"{layer}.o": random(q, d), f"{layer}.up": random(d, 2 * d), f"{layer}.down": random(2 * d, d)}
        weights[f"{layer}.sinks"] = random(tiny.q_heads) * 2
        weights[f"{layer}.slope"] = -np.abs(random(tiny.q_heads)) / 8
        weights[f"{layer}.table"] = random(tiny.q_heads, 2 * tiny.table_reach + 1) * 2
    if tiny.head:
        weights |= {"norm": random(d) + 1, "lm": random(d, tiny.vocabulary)}
    return weights


def reference(tiny: Tiny, tokens: Array, positions: Array | None = None) -> dict[str, Array]:
    """``hidden``, ``logits`` and ``embedding`` of the whole model at once, in float64."""
    weights = {name: array.astype(np.float64) for name, array in make_weights(tiny).items()}
    n = len(tokens)
    at = np.arange(n) if positions is None else positions
    base = tokens.astype(np.float64) if tiny.features else weights["embed"][tokens]
    # The phase is rounded as the engine rounds it: far out, float32 phases differ from float64 ones by much more than
    # everything else does.
    h = base + np.sin((at[:, None].astype(np.float32) * weights["freq"].astype(np.float32)).astype(np.float64))
    for layer in range(tiny.layers):
        x = _norm(h)
        q, k, v = (
            (x @ weights[f"{layer}.{name}"]).reshape(n, heads, tiny.head_dim).transpose(1, 0, 2)
            for name, heads in (("q", tiny.q_heads), ("k", tiny.kv_heads), ("v", tiny.kv_heads))
        )
        a = dense_attention(q, k, v, **_attention_arguments(tiny, layer, weights, n))
        h = h + a.transpose(1, 0, 2).reshape(n, -1) @ weights[f"{layer}.o"]
        h = h + np.tanh(_norm(h) @ weights[f"{layer}.up"]) @ weights[f"{layer}.down"]
    result = {"hidden": h}
    if tiny.head:
        result["logits"] = (_norm(h) * weights["norm"]) @ weights["lm"]
    if tiny.pooling is not None:
        pooled = {"mean": h.mean(0), "cls": h[0], "last": h[-1]}[tiny.pooling.mode]
        result["embedding"] = pooled / np.linalg.norm(pooled) if tiny.pooling.normalize else pooled
    return result


def _norm(x: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True))


def _attention_arguments(tiny: Tiny, layer: int, weights: dict[str, Array], n: int) -> dict[str, Any]:
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    bias = np.zeros((tiny.q_heads, n, n))
    if tiny.table_reach:
        reach = tiny.table_reach
        bias = bias + weights[f"{layer}.table"][:, np.clip(j - i, -reach, reach) + reach]
    if tiny.slope:
        bias = bias + weights[f"{layer}.slope"][:, None, None] * (j - i)
    visible = parse_mask(tiny.masks[layer % len(tiny.masks)]).dense(i, j)
    sinks = weights[f"{layer}.sinks"] if tiny.sinks else None
    return {"visible": visible, "bias": bias, "softcap": tiny.softcap, "sinks": sinks}


def dense_attention(
    q: Array, k: Array, v: Array, *, visible: Array, bias: Array, softcap: float, sinks: Array | None
) -> Array:
    """Plain attention over ``[heads, n, head_dim]``; a row that sees nothing gives 0."""
    group = len(q) // len(k)
    k, v = k.repeat(group, 0), v.repeat(group, 0)
    scores = q @ k.transpose(0, 2, 1) * q.shape[-1] ** -0.5
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(visible, scores + bias, -np.inf)
    if sinks is not None:
        column = np.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))
        scores, v = np.concatenate([scores, column], -1), np.concatenate([v, 0 * v[:, :1]], 1)
    top = scores.max(-1, keepdims=True)
    p = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = p.sum(-1, keepdims=True)
    return (p / np.where(total > 0, total, 1)) @ v


def random_tokens(tiny: Tiny, length: int, seed: int = 1) -> Array:
    rng = np.random.default_rng(seed)
    if tiny.features:
        return rng.standard_normal((length, tiny.width)).astype(np.float32)
    return rng.integers(1, tiny.vocabulary, length)
