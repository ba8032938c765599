"""Hooks that make a Hugging Face model emit one attention operator a layer, with a symbolic mask.

Transformers looks attention and mask functions up by name. We register ours under one name: the mask function turns
the library's mask closures into a mask expression, the attention function emits :func:`attention_op`. A model that
does not ask the registries keeps its own attention; the capture notices, because no attention operator appears.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.moe import ExpertsInterface

from twoheads.compiler.frontend.torch.attention_op import attention_op, mask_op
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Causal, Chunk, Full, Mask, Window, conjunction, disjunction

__all__ = ["CAPTURE", "mask_from_closure", "register_hooks", "set_attention"]

CAPTURE = "twoheads_capture"
"""The name under which transformers finds our functions (``model.set_attn_implementation(CAPTURE)``)."""

MaskFunction = Callable[..., Any]


def register_hooks() -> None:
    """Registers the capture functions with transformers; may be called again."""
    AttentionInterface.register(CAPTURE, _attention)
    AttentionMaskInterface.register(CAPTURE, _symbolic_mask)
    ExpertsInterface.register(CAPTURE, _dense_experts)


def set_attention(model: Any, implementation: str) -> None:
    """Makes a transformers model use the attention registered as ``implementation``.

    A model that has its own attention only stays as it is, without the library's warning.
    """
    if type(model)._can_set_attn_implementation() or model.config.sub_configs:
        model.set_attn_implementation(implementation)


def _symbolic_mask(
    *,
    q_length: int,
    mask_function: MaskFunction,
    attention_mask: Tensor | None = None,
    q_offset: int = 0,
    kv_offset: int = 0,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Tensor | None:
    """Transformers' mask interface: returns a ``[1, 1, n, n]`` symbolic mask, or ``None`` for no mask at all."""
    if attention_mask is not None or q_offset != 0 or kv_offset != 0:
        raise CompileError("attention mask", "padding and cache offsets are no part of a captured model")
    mask = mask_from_closure(mask_function)
    if isinstance(mask, Full):
        return None
    # `like` only tells the operator the length: transformers builds masks before any query exists.
    return cast("Tensor", mask_op(torch.empty((1, 1, q_length, 1), device=device), str(mask)))


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: ``[1, heads, n, head_dim]`` in, ``[1, n, heads, head_dim]`` out."""
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if attention_mask is None and causal:
        attention_mask = mask_op(query, str(Causal()))
    scale = float(scaling) if scaling is not None else float(query.shape[-1]) ** -0.5
    out = attention_op(query, key, value, attention_mask, position_bias, s_aux, scale, float(softcap or 0.0))
    return out.transpose(1, 2), None


def _dense_experts(module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Transformers' experts interface: every expert on every token, weighted by its routing weight, mostly 0.

    The library sorts tokens by expert, which mixes them and makes shapes depend on data; this is the same sum, token by
    token, at the cost of all experts.

    Args:
        module: Holds the stacked weights of all experts.
        hidden: ``[tokens, width]``.
        top_k_index: The chosen experts of each token, ``[tokens, k]``.
        top_k_weights: Their weights, ``[tokens, k]``.
    """
    total = torch.zeros_like(hidden)
    for expert in range(int(module.num_experts)):
        first = "gate_up_proj" if module.has_gate else "up_proj"
        inner = _expert_linear(module, first, expert, hidden)
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        outer = _expert_linear(module, "down_proj", expert, inner)
        if module.has_post_expert_norm:
            outer = module.post_expert_norm(outer)
        share = (top_k_weights * (top_k_index == expert)).sum(-1, keepdim=True)
        total = total + outer * share
    return total.to(hidden.dtype)


def _expert_linear(module: Any, name: str, expert: int, x: Tensor) -> Tensor:
    weight = getattr(module, name)[expert]
    weight = weight.mT if module.is_transposed else weight
    return torch.nn.functional.linear(x, weight, getattr(module, f"{name}_bias")[expert] if module.has_bias else None)


def mask_from_closure(function: MaskFunction) -> Mask:
    """The mask expression of one of transformers' mask functions, recognised by name and parameters.

    Raises:
        CompileError: A mask that depends on data, or one this version does not know.
    """
    name = function.__qualname__.split(".")[0]
    cells = {
        key: cell.cell_contents
        for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    }
    match name:
        case "causal_mask_function":
            return Causal()
        case "bidirectional_mask_function":
            return Full()
        case "and_masks":
            return conjunction(mask_from_closure(term) for term in cells["mask_functions"])
        case "or_masks":
            return disjunction(mask_from_closure(term) for term in cells["mask_functions"])
        case "sliding_window_overlay":  # kv > q - sliding_window: the query and sliding_window - 1 predecessors
            return Window(int(cells["sliding_window"]) - 1, -1)
        case "sliding_window_bidirectional_overlay":  # |q - kv| <= sliding_window, on both sides
            return Window(int(cells["sliding_window"]), int(cells["sliding_window"]))
        case "chunked_overlay":
            return Chunk(int(cells["chunk_size"]))
        case "remap_positions_for_packed_sequence":  # one sequence: positions are 0, 1, 2, ...
            return mask_from_closure(cells["mask_function"])
        case "packed_sequence_mask_function":  # one sequence: every pair belongs to it
            return Full()
        case _:
            raise CompileError(
                "attention mask",
                f"mask function {function.__qualname__!r} is not a function of positions that tiles can express",
                "compile the model with its standard causal, bidirectional, sliding or chunked attention",
            )
