"""The scans of :mod:`twoheads.graphs.program.engines.scan_operators` as torch operators, one node of a graph each.

A scan mixes tokens through a state of fixed size. Hooks put these operators in the place of the library's functions
while a model is captured. Run eagerly they follow the definition token by token, from a state of zeros: slow, and
independent of the chunked forms that the library and the engines compute.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = [
    "CAUSAL_CONV",
    "SCANS",
    "causal_conv",
    "decayed_attention",
    "diagonal_scan",
    "gated_delta_rule",
    "max_scan",
    "selective_scan",
]


@torch.library.custom_op("twoheads::causal_conv", mutates_args=())
def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A depthwise convolution along tokens: each sees the ``K - 1`` before it.

    Args:
        x: ``[1, n, C]``.
        weight: ``[C, K]``; its last column weighs the token itself.
        bias: ``[C]``.

    Returns:
        ``[1, n, C]``.
    """
    taps = weight.shape[1]
    padded = torch.cat([x.new_zeros((x.shape[0], taps - 1, x.shape[2])), x], 1)
    rows = x.shape[1]
    total = torch.zeros_like(x) if bias is None else bias.expand(x.shape).clone()
    for tap in range(taps):
        total = total + padded[:, tap : tap + rows] * weight[:, tap]
    return total


@causal_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("twoheads::gated_delta_rule", mutates_args=())
def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """The gated delta rule (Yang et al., arXiv 2412.06464).

    ``S = exp(decay) S;  S += beta k (v - k^T S)^T;  y = q^T S``.

    Args:
        q: ``[1, G, n, Dk]``; ``G`` divides ``H``, and head ``h`` reads group ``h // (H // G)``.
        k: ``[1, G, n, Dk]``.
        v: ``[1, H, n, Dv]``.
        decay: Logarithms, at most 0: ``[1, H, n]``, or ``[1, H, n, Dk]`` for one a channel of the keys.
        beta: ``[1, H, n]``.

    Returns:
        ``[1, H, n, Dv]``.
    """
    shared = v.shape[1] // k.shape[1]
    queries, keys = q.repeat_interleave(shared, 1), k.repeat_interleave(shared, 1)
    state = v.new_zeros((*v.shape[:2], k.shape[3], v.shape[3]))
    factors = decay.exp() if decay.ndim == 4 else decay.exp()[..., None]
    rows: list[Tensor] = []
    for t in range(v.shape[2]):
        key = keys[:, :, t, :, None]
        state = factors[:, :, t, :, None] * state
        correction = v[:, :, t] - (key * state).sum(-2)
        state = state + key * (beta[:, :, t, None] * correction)[:, :, None]
        rows.append((queries[:, :, t, :, None] * state).sum(-2))
    return torch.stack(rows, 2)


@gated_delta_rule.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    return v.new_empty(v.shape)


@torch.library.custom_op("twoheads::decayed_attention", mutates_args=())
def decayed_attention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """Linear attention whose state decays: SSD (Dao & Gu, arXiv 2405.21060), lightning attention, retention.

    ``S = exp(decay) S + k v^T;  y = q^T S``.

    Args:
        q: ``[1, G, n, Dk]``; ``G`` divides ``H``, and head ``h`` reads group ``h // (H // G)``.
        k: ``[1, G, n, Dk]``.
        v: ``[1, H, n, Dv]``.
        decay: Logarithms, at most 0, ``[1, H, n]``.

    Returns:
        ``[1, H, n, Dv]``.
    """
    shared = v.shape[1] // k.shape[1]
    queries, keys, factors = q.repeat_interleave(shared, 1), k.repeat_interleave(shared, 1), decay.exp()
    state = v.new_zeros((*v.shape[:2], k.shape[3], v.shape[3]))
    rows: list[Tensor] = []
    for t in range(v.shape[2]):
        state = factors[:, :, t, None, None] * state + keys[:, :, t, :, None] * v[:, :, t, None]
        rows.append((queries[:, :, t, :, None] * state).sum(-2))
    return torch.stack(rows, 2)


@decayed_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    return v.new_empty(v.shape)


@torch.library.custom_op("twoheads::selective_scan", mutates_args=())
def selective_scan(dt: Tensor, x: Tensor, b: Tensor, c: Tensor, a: Tensor) -> Tensor:
    """A diagonal state a channel whose steps depend on the token: Mamba (Gu & Dao, arXiv 2312.00752).

    ``h = exp(dt a) h + dt b x;  y = sum(c h)``.

    Args:
        dt: ``[1, n, D]``.
        x: ``[1, n, D]``.
        b: ``[1, n, S]``.
        c: ``[1, n, S]``.
        a: ``[D, S]``, negative.

    Returns:
        ``[1, n, D]``.
    """
    state = x.new_zeros((x.shape[0], *a.shape))
    rows: list[Tensor] = []
    for t in range(x.shape[1]):
        step = dt[:, t, :, None]
        state = (step * a).exp() * state + step * x[:, t, :, None] * b[:, t, None]
        rows.append((state * c[:, t, None]).sum(-1))
    return torch.stack(rows, 1)


@selective_scan.register_fake
def _(dt: Tensor, x: Tensor, b: Tensor, c: Tensor, a: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("twoheads::diagonal_scan", mutates_args=())
def diagonal_scan(decay: Tensor, x: Tensor) -> Tensor:
    """A diagonal recurrence: RG-LRU (De et al., arXiv 2402.19427). ``h = exp(decay) h + x;  y = h``.

    Args:
        decay: Logarithms, at most 0, ``[1, n, D]``.
        x: ``[1, n, D]``.

    Returns:
        ``[1, n, D]``.
    """
    state, factors = torch.zeros_like(x[:, 0]), decay.exp()
    rows: list[Tensor] = []
    for t in range(x.shape[1]):
        state = factors[:, t] * state + x[:, t]
        rows.append(state)
    return torch.stack(rows, 1)


@diagonal_scan.register_fake
def _(decay: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("twoheads::max_scan", mutates_args=())
def max_scan(decay: Tensor, x: Tensor) -> Tensor:
    """A maximum that decays: ``m' = max(m + decay, x);  y = (m, m')``.

    Args:
        decay: At most 0, ``[1, n, D]``.
        x: ``[1, n, D]``.

    Returns:
        ``[1, n, 2 D]``: the maximum before each token, and the one behind it. It begins as 0.
    """
    state = torch.zeros_like(x[:, 0])
    rows: list[Tensor] = []
    for t in range(x.shape[1]):
        after = torch.maximum(state + decay[:, t], x[:, t])
        rows.append(torch.cat([state, after], -1))
        state = after
    return torch.stack(rows, 1)


@max_scan.register_fake
def _(decay: Tensor, x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], 2 * x.shape[2]))


CAUSAL_CONV = torch.ops.twoheads.causal_conv.default
"""What graphs call :func:`causal_conv`."""

SCANS: Mapping[str, tuple[str, int]] = {
    f"twoheads.{name}.default": (name, tokens)
    for name, tokens in (
        ("causal_conv", 1),
        ("gated_delta_rule", 5),
        ("decayed_attention", 4),
        ("selective_scan", 4),
        ("diagonal_scan", 2),
        ("max_scan", 2),
    )
}
"""By the name that graphs give it: the scan operator that a torch operator is, and how many token values come first."""
