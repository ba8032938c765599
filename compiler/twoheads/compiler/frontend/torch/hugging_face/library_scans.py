"""Our scan operators in the place of the functions that transformers computes recurrences with.

The library keeps a torch form of each recurrence as a function of the module that defines the model, where a kernel may
take its place; ours do while a model is captured, whichever architecture calls them. Norms, factors, gates and skips
that such a function computes beside its scan are token-wise, and stay so. What it is asked beyond that is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from twoheads.compiler.frontend.torch.operators.scan_ops import (
    causal_conv,
    decayed_attention,
    gated_delta_rule,
    selective_scan,
)
from twoheads.graphs.errors import CompileError

__all__ = ["own_scans"]

_IGNORED = frozenset(
    {
        "cache_position",  # where a cache is written: there is none
        "chunk_size",  # how the library cuts its computation
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",  # of the layer's attention
        "position_ids",  # of kernels that pack sequences
        "return_dict",
        "use_associative_scan",
        "use_cache",
        "use_mambapy",
    }
)
"""Keywords that change how a scan is computed, not what."""

_NORM_EPSILON = 1e-6
"""That of the library's norm of queries and keys."""


@contextmanager
def own_scans(module: nn.Module) -> Generator[None]:
    """Within it, the recurrences of a transformers model are our operators."""
    homes = {type(part).__module__ for part in module.modules() if type(part).__module__.startswith("transformers.")}
    before: list[tuple[Any, str, Any]] = []
    for home in sorted(homes):
        for name, function in _FUNCTIONS.items():
            if hasattr(sys.modules[home], name):
                before.append((sys.modules[home], name, getattr(sys.modules[home], name)))
                setattr(sys.modules[home], name, function)
    try:
        yield
    finally:
        for where, name, function in before:
            setattr(where, name, function)


def _causal_conv(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **others: Any
) -> Tensor:
    """``[1, C, n]`` in and out."""
    from transformers.activations import ACT2FN

    _require_nothing("causal_conv1d_fn", others)
    rows = hidden_states.to(weight.dtype).transpose(1, 2)
    made = cast("Tensor", causal_conv(rows, weight, bias))
    activate = (lambda x: x) if activation is None else cast("Callable[[Tensor], Tensor]", ACT2FN[activation])
    return activate(made).transpose(1, 2).to(hidden_states.dtype)


def _delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 64,
    use_qk_l2norm_in_kernel: bool = False,
    output_final_state: bool = False,
    **others: Any,
) -> tuple[Tensor, None]:
    """``[1, n, heads, width]`` in and out; ``g`` is one number a head, or one a channel of its keys."""
    _require_nothing("chunk_gated_delta_rule", {**others, "output_final_state": output_final_state or None})
    q, k, v, decay, rate = (x.transpose(1, 2).float() for x in (query, key, value, g, beta))
    if use_qk_l2norm_in_kernel:
        q, k = _norm(q), _norm(k)
    made = cast("Tensor", gated_delta_rule(q * q.shape[-1] ** -0.5, k, v, decay, rate))
    return made.transpose(1, 2).to(query.dtype), None


def _norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + _NORM_EPSILON)


def _chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803 - the library's names
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    chunk_size: int,
    D: Tensor | None = None,  # noqa: N803
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **others: Any,
) -> Tensor:
    """Mamba-2: ``hidden_states [1, n, heads, width]``, ``dt [1, n, heads]``, ``B, C [1, n, groups, state]``."""
    _require_nothing("mamba2_chunk_scan", {**others, "return_final_states": return_final_states or None})
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    steps = (functional.softplus(dt) if dt_softplus else dt).clamp(min=dt_limit[0])
    steps = (steps if dt_limit[1] == float("inf") else steps.clamp(max=dt_limit[1])).float()
    x = hidden_states.float()
    q, k, v = (each.transpose(1, 2) for each in (C.float(), B.float(), x * steps[..., None]))
    made = cast("Tensor", decayed_attention(q, k, v, (A.float() * steps).transpose(1, 2))).transpose(1, 2)
    return (made if D is None else made + D[..., None] * x).contiguous()


def _selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803 - the library's names
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **others: Any,
) -> Tensor:
    """Mamba: ``hidden_states, dt, z [1, D, n]``, ``B, C [1, state, n]``."""
    _require_nothing("mamba_selective_scan", {**others, "return_last_state": return_last_state or None})
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    steps = functional.softplus(dt) if delta_softplus else dt
    operands = (each.transpose(1, 2).float() for each in (steps, hidden_states, B, C))
    made = cast("Tensor", selective_scan(*operands, A)).transpose(1, 2)
    if D is not None:
        made = made + hidden_states * D[None, :, None]
    return made if z is None else made * functional.silu(z)


def _no_training(*_: Any, **__: Any) -> None:
    """The library's shortcut for training, which it leaves at once where no kernel is installed."""


def _require_nothing(function: str, keywords: Mapping[str, Any]) -> None:
    """Refuses what a scan was given beside what is understood: an earlier state, packed sequences.

    Raises:
        CompileError: Names the keyword.
    """
    if unknown := sorted(name for name, value in keywords.items() if value is not None and name not in _IGNORED):
        raise CompileError(
            function,
            f"is called with {unknown[0]!r}, a keyword that is not understood: it may change what tokens see",
            "compile a model whose recurrences start from a state of zeros",
        )


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _causal_conv,
    "chunk_kimi_delta_attention": _delta_rule,
    "mamba2_chunk_scan": _chunk_scan,
    "mamba_selective_scan": _selective_scan,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "mamba2_split_conv1d_scan_combined": _no_training,
    "mamba_inner_fn": _no_training,
}
"""By the library's name."""
