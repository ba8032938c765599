"""The operators of scans: how a layer mixes tokens causally through a state of fixed size.

``state, x[block] -> y[block], state'``. One operator is one mathematics. Its sizes are whole numbers with names, its
ports have shapes made of them and of ``n``, the tokens of a block; everything is float32. The state is zeros before the
first token. Scales, normalisations, gates, activations and skips work on each token alone: they are no part of it.

======================  =====================================  ========================================================
operator                token values                           for each token ``t``
======================  =====================================  ========================================================
``causal_conv``         ``x [1, n, C]``                        ``y = bias + sum_j weight[:, j] x[t - K + 1 + j]``; the
                                                               state is the last ``K - 1`` rows of ``x``
``gated_delta_rule``    ``q k [1, G, n, Dk]``,                 ``S = exp(decay) S``, ``S += beta k (v - k^T S)^T``,
                        ``v [1, H, n, Dv]``, ``decay           ``y = q^T S``; arXiv 2412.06464, and with decays by
                        [1, H, n(, Dk)]``, ``beta [1, H, n]``  channel Kimi Delta Attention (arXiv 2510.26692)
``decayed_attention``   ``q k [1, G, n, Dk]``,                 ``S = exp(decay) S + k v^T``, ``y = q^T S``; SSD of
                        ``v [1, H, n, Dv]``,                   Mamba-2 (arXiv 2405.21060), lightning attention,
                        ``decay [1, H, n]``                    retention
``diagonal_scan``       ``decay x [1, n, D]``                  ``h = exp(decay) h + x``, ``y = h``; RG-LRU (arXiv
                                                               2402.19427)
``selective_scan``      ``dt x [1, n, D]``, ``b c [1, n, S]``  ``h = exp(dt a) h + dt b x``, ``y = c h``, with a weight
                                                               ``a [D, S]``; Mamba (arXiv 2312.00752)
``max_scan``            ``decay x [1, n, D]``                  ``m' = max(m + decay, x)``, ``y = (m, m')``: what
                                                               exponentials are scaled by in RWKV (arXiv 2305.13048)
                                                               and xLSTM (arXiv 2405.04517)
======================  =====================================  ========================================================

Decays are logarithms, not above 0. ``G`` heads of queries and keys serve ``H`` heads, ``H / G`` neighbours each.

Tokens of zeros leave every state as it is, but for that of ``causal_conv``: a block's padding does no harm. A maximum
is left by an ``x`` of :data:`NOTHING`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["NOTHING", "OPERATORS", "ROWS", "SIGNS", "ScanOperator", "Shape", "Sizes", "scan_problem"]

Array: TypeAlias = npt.NDArray[Any]
Sizes: TypeAlias = Mapping[str, int]
Shape: TypeAlias = tuple[int | str, ...]

ROWS = "n"
"""The dimension of a port that runs over the tokens of a block."""


NOTHING = -1e30
"""The ``x`` of a maximum that no number is below, and a decay that leaves nothing of one. Its sums are finite."""

SIGNS = {"a": -1, "beta": 1, "decay": -1, "dt": 1}
"""The ports whose numbers have one sign; with the other one, states would grow without bound."""


@dataclass(frozen=True, slots=True)
class ScanOperator:
    """One operator.

    Attributes:
        sizes: The names of its sizes, in alphabetical order.
        tokens: The token values that it reads, with their shapes, in order.
        weights: The weights that it reads, likewise.
        state: The shape of its state.
        output: The shape of ``y``.
        flops: Multiplications and additions of a block, from sizes, its tokens and those of a chunk.
        scratch: Numbers that a call holds beside its ports: an estimate, from the same.
        apply: The mathematics as it stands, token by token in float64: from sizes, token values, weights and a state
            the output and the next state. For proofs and tests; no run calls it.
        chunk: Tokens of a chunk that is as fast as any, a power of 2.
        switches: Those of the sizes that are 0 or 1; the others are 1 or more.
        absent: What a token value is where there is no token; 0 for those that are not named.
    """

    sizes: tuple[str, ...]
    tokens: Callable[[Sizes], dict[str, Shape]]
    weights: Callable[[Sizes], dict[str, Shape]]
    state: Callable[[Sizes], Shape]
    output: Callable[[Sizes], Shape]
    flops: Callable[[Sizes, int, int], int]
    scratch: Callable[[Sizes, int, int], int]
    apply: Callable[[Sizes, Sequence[Array], Sequence[Array], Array], tuple[Array, Array]]
    chunk: int
    switches: frozenset[str] = frozenset()
    absent: Mapping[str, float] = field(default_factory=dict[str, float])


def scan_problem(operator: str, sizes: Sizes) -> str | None:
    """What is wrong with an operator of such sizes; ``None`` if nothing is."""
    form = OPERATORS.get(operator)
    if form is None:
        return f"{operator!r} is not a scan operator"
    if tuple(sizes) != form.sizes:
        return f"{operator} has the sizes {list(sizes)}, expected {list(form.sizes)}"
    for name, size in sizes.items():
        if not (size in (0, 1) if name in form.switches else size >= 1):
            return f"{operator} has {name}={size}"
    if operator == "causal_conv" and sizes["kernel"] < 2:
        return "causal_conv of one row mixes no tokens"
    if sizes.get("heads", 1) % sizes.get("groups", 1):
        return f"{operator} has {sizes['heads']} heads, no multiple of {sizes['groups']} groups"
    return None


def _no_weights(sizes: Sizes) -> dict[str, Shape]:
    return {}


def _conv_weights(s: Sizes) -> dict[str, Shape]:
    weight: dict[str, Shape] = {"weight": (s["channels"], s["kernel"])}
    return weight | {"bias": (s["channels"],)} if s["bias"] else weight


def _conv(s: Sizes, tokens: Sequence[Array], weights: Sequence[Array], state: Array) -> tuple[Array, Array]:
    weight = np.asarray(weights[0], np.float64)
    rows = np.concatenate([state, tokens[0]], axis=1, dtype=np.float64)
    kernel, count = s["kernel"], tokens[0].shape[1]
    y = sum((rows[:, j : j + count] * weight[:, j] for j in range(kernel)), np.zeros((1, count, s["channels"])))
    return y + (weights[1] if s["bias"] else 0), rows[:, rows.shape[1] - (kernel - 1) :]


def _heads(s: Sizes) -> dict[str, Shape]:
    keys: Shape = (1, s["groups"], ROWS, s["key_dim"])
    return {"q": keys, "k": keys, "v": (1, s["heads"], ROWS, s["value_dim"])}


def _delta_tokens(s: Sizes) -> dict[str, Shape]:
    row: Shape = (1, s["heads"], ROWS)
    return _heads(s) | {"decay": (*row, s["key_dim"]) if s["by_channel"] else row, "beta": row}


def _attention_tokens(s: Sizes) -> dict[str, Shape]:
    return _heads(s) | {"decay": (1, s["heads"], ROWS)}


def _selective_tokens(s: Sizes) -> dict[str, Shape]:
    channels: Shape = (1, ROWS, s["width"])
    states: Shape = (1, ROWS, s["states"])
    return {"dt": channels, "x": channels, "b": states, "c": states}


def _head_state(s: Sizes) -> Shape:
    return 1, s["heads"], s["key_dim"], s["value_dim"]


def _head_output(s: Sizes) -> Shape:
    return 1, s["heads"], ROWS, s["value_dim"]


def _by_token(s: Sizes, tokens: Sequence[Array], state: Array) -> tuple[list[Array], Array, list[Array]]:
    """Queries and keys of every head, values and the rest in float64, tokens first; the state; a list for outputs."""
    q, k, *rest = (np.moveaxis(np.asarray(each, np.float64)[0], 1, 0) for each in tokens)
    shared = s["heads"] // s["groups"]
    return [q.repeat(shared, 1), k.repeat(shared, 1), *rest], np.array(state[0], np.float64), []


def _delta(s: Sizes, tokens: Sequence[Array], weights: Sequence[Array], state: Array) -> tuple[Array, Array]:
    rows, matrix, made = _by_token(s, tokens, state)
    for q, k, v, decay, beta in zip(*rows, strict=True):
        matrix = np.exp(decay[..., None] if s["by_channel"] else decay[:, None, None]) * matrix
        error = beta[:, None] * (v - np.einsum("hk,hkv->hv", k, matrix))
        matrix = matrix + k[:, :, None] * error[:, None]
        made.append(np.einsum("hk,hkv->hv", q, matrix))
    return np.stack(made, 1)[None], matrix[None]


def _attention(s: Sizes, tokens: Sequence[Array], weights: Sequence[Array], state: Array) -> tuple[Array, Array]:
    rows, matrix, made = _by_token(s, tokens, state)
    for q, k, v, decay in zip(*rows, strict=True):
        matrix = np.exp(decay)[:, None, None] * matrix + k[:, :, None] * v[:, None]
        made.append(np.einsum("hk,hkv->hv", q, matrix))
    return np.stack(made, 1)[None], matrix[None]


def _diagonal(s: Sizes, tokens: Sequence[Array], weights: Sequence[Array], state: Array) -> tuple[Array, Array]:
    h, made = np.array(state, np.float64), list[Array]()
    for decay, x in zip(*(np.asarray(each, np.float64)[0] for each in tokens), strict=True):
        h = np.exp(decay) * h + x
        made.append(h)
    return np.stack(made, 1), h


def _maximum(s: Sizes, tokens: Sequence[Array], weights: Sequence[Array], state: Array) -> tuple[Array, Array]:
    m, made = np.array(state, np.float64), list[Array]()
    for decay, x in zip(*(np.asarray(each, np.float64)[0] for each in tokens), strict=True):
        before, m = m, np.maximum(m + decay, x)
        made.append(np.concatenate([before, m], -1))
    return np.stack(made, 1), m


def _selective(s: Sizes, tokens: Sequence[Array], weights: Sequence[Array], state: Array) -> tuple[Array, Array]:
    a = np.asarray(weights[0], np.float64)
    h, made = np.array(state[0], np.float64), list[Array]()
    for dt, x, b, c in zip(*(np.asarray(each, np.float64)[0] for each in tokens), strict=True):
        h = np.exp(dt[:, None] * a) * h + (dt * x)[:, None] * b
        made.append(h @ c)
    return np.stack(made)[None], h[None]


def _attention_flops(s: Sizes, rows: int, chunk: int) -> int:
    """Scores, their product with the values, what queries read of a state, and what keys add to it."""
    scores = s["groups"] * s["key_dim"] + s["heads"] * s["value_dim"]
    return 2 * rows * (chunk * scores + 2 * s["heads"] * s["key_dim"] * s["value_dim"])


def _delta_flops(s: Sizes, rows: int, chunk: int) -> int:
    """Those of attention, the products of keys with keys, the inverse, and its products with keys and values."""
    inner = chunk * (2 * s["key_dim"] + s["value_dim"] + chunk // 3) + s["key_dim"] * s["value_dim"]
    return _attention_flops(s, rows, chunk) + 2 * rows * s["heads"] * inner


def _head_scratch(s: Sizes, rows: int, chunk: int) -> int:
    """Scores and decays of all pairs of a chunk, and copies of queries, keys, values and states."""
    pairs, copies = 4 * rows * chunk, 4 * rows * (s["key_dim"] + s["value_dim"])
    return s["heads"] * (pairs + copies + rows // chunk * s["key_dim"] * s["value_dim"])


OPERATORS: Mapping[str, ScanOperator] = {
    "causal_conv": ScanOperator(
        ("bias", "channels", "kernel"),
        lambda s: {"x": (1, ROWS, s["channels"])},
        _conv_weights,
        lambda s: (1, s["kernel"] - 1, s["channels"]),
        lambda s: (1, ROWS, s["channels"]),
        lambda s, rows, chunk: 2 * rows * s["channels"] * s["kernel"],
        lambda s, rows, chunk: 3 * (rows + s["kernel"]) * s["channels"],
        _conv,
        1,
        frozenset({"bias"}),
    ),
    "gated_delta_rule": ScanOperator(
        ("by_channel", "groups", "heads", "key_dim", "value_dim"),
        _delta_tokens,
        _no_weights,
        _head_state,
        _head_output,
        _delta_flops,
        lambda s, rows, chunk: 2 * _head_scratch(s, rows, chunk),
        _delta,
        64,
        frozenset({"by_channel"}),
    ),
    "decayed_attention": ScanOperator(
        ("groups", "heads", "key_dim", "value_dim"),
        _attention_tokens,
        _no_weights,
        _head_state,
        _head_output,
        _attention_flops,
        _head_scratch,
        _attention,
        64,
    ),
    "diagonal_scan": ScanOperator(
        ("width",),
        lambda s: dict.fromkeys(("decay", "x"), (1, ROWS, s["width"])),
        _no_weights,
        lambda s: (1, s["width"]),
        lambda s: (1, ROWS, s["width"]),
        lambda s, rows, chunk: 2 * rows * s["width"],
        lambda s, rows, chunk: 6 * rows * s["width"],
        _diagonal,
        16,
    ),
    "selective_scan": ScanOperator(
        ("states", "width"),
        _selective_tokens,
        lambda s: {"a": (s["width"], s["states"])},
        lambda s: (1, s["width"], s["states"]),
        lambda s: (1, ROWS, s["width"]),
        lambda s, rows, chunk: 6 * rows * s["width"] * s["states"],
        lambda s, rows, chunk: 6 * rows * s["width"] * s["states"],
        _selective,
        16,
    ),
    "max_scan": ScanOperator(
        ("width",),
        lambda s: dict.fromkeys(("decay", "x"), (1, ROWS, s["width"])),
        _no_weights,
        lambda s: (1, s["width"]),
        lambda s: (1, ROWS, 2 * s["width"]),
        lambda s, rows, chunk: 2 * rows * s["width"],
        lambda s, rows, chunk: 8 * rows * s["width"],
        _maximum,
        16,
        absent={"x": NOTHING},
    ),
}
"""Every operator by name."""
