"""Hooks that make a Hugging Face model emit one attention operator a layer, with a symbolic mask.

Ours take the place of the library's eager functions: the mask function turns the library's mask closures into a mask
expression, the attention function emits :func:`attention_op`. A model that does not ask the library for an attention
keeps its own; the capture notices, because no attention operator appears.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers.integrations.moe import ExpertsInterface

from twoheads.compiler.frontend.torch.hugging_face.grouped_experts import DENSE, ExpertsChoice, grouped_gates
from twoheads.compiler.frontend.torch.hugging_face.layers.relative_positions import backward_distances
from twoheads.compiler.frontend.torch.hugging_face.library_attention import EAGER, in_place_of_eager, require_understood
from twoheads.compiler.frontend.torch.hugging_face.library_scans import own_scans
from twoheads.compiler.frontend.torch.operators.attention_op import additive_mask_op, attention_op
from twoheads.compiler.frontend.torch.operators.distance_attention import distance_attention
from twoheads.compiler.frontend.torch.operators.experts_op import Gate, experts_op
from twoheads.compiler.frontend.torch.rows.sequence_builder import is_number
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Causal, Chunk, Full, Mask, Window, conjunction, disjunction

__all__ = ["hooked", "mask_from_closure"]

EXPERTS = "twoheads_capture"
"""The name under which transformers finds our experts."""

MaskFunction = Callable[..., Any]


@contextmanager
def hooked(model: Any, experts: ExpertsChoice = DENSE) -> Generator[None]:
    """Within it, attentions, masks, recurrences and experts of a transformers model are ours."""
    gates, _ = grouped_gates(model, experts)
    ExpertsInterface.register(EXPERTS, partial(_experts, gates))
    before = model.config._experts_implementation
    skips: list[Tensor] = []
    fused = getattr(model.config, "_attn_implementation", None) != EAGER
    attention, mask = partial(_attention, skips if fused else []), partial(_symbolic_mask, skips)
    with in_place_of_eager(model, attention, mask), own_scans(model):
        model.set_experts_implementation(EXPERTS)
        try:
            yield
        finally:
            model.set_experts_implementation(before)


def _symbolic_mask(
    skips: list[Tensor],
    *,
    q_length: int,
    mask_function: MaskFunction,
    kv_length: int | None = None,
    attention_mask: Tensor | None = None,
    q_offset: int = 0,
    kv_offset: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    dtype: torch.dtype = torch.float32,
    **others: Any,
) -> Tensor | None:
    """Transformers' mask interface: returns a ``[1, 1, n, n]`` symbolic mask, or ``None`` for no mask at all.

    Masks that the library leaves out where its fused kernel hides later tokens by itself are added to ``skips``.
    """
    if q_offset != 0 or kv_offset != 0:
        raise CompileError(_MASK, "cache offsets are no part of a captured model", "compile it without a cache")
    if unknown := sorted(name for name, value in others.items() if value is not None and name not in _MASK_OPTIONS):
        raise CompileError(_MASK, f"is asked for with {unknown[0]!r}, which is not understood", _STANDARD)
    try:
        mask = mask_from_closure(mask_function)
    except CompileError:
        mask = None
    if mask is None:  # it is found out by experiment what the function means, once it is in the graph
        seen = _dense(mask_function, q_length, q_length if kv_length is None else kv_length, device)
        dense = torch.zeros((), dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
    elif isinstance(mask, Full):
        dense = None
    elif kv_length is not None and kv_length != q_length:
        raise CompileError(_MASK, f"is {mask} between two inputs of different lengths", _STANDARD)
    else:  # `like` only tells the operator the length: transformers builds masks before any query exists
        dense = cast("Tensor", additive_mask_op(torch.empty((1, 1, q_length, 1), device=device), str(mask)))
        if mask == Causal():
            skips.append(dense)
    if attention_mask is None:
        return dense
    # A model's own ones are a constant, and are found to hide nothing; what depends on the input is refused.
    padding = torch.zeros((), dtype=dtype, device=device).masked_fill(~attention_mask.bool(), torch.finfo(dtype).min)
    padding = padding[:, None, None, :]
    return padding if dense is None else torch.minimum(dense, padding)


def _dense(function: MaskFunction, rows: int, keys: int, device: torch.device | str) -> Tensor:
    """``[1, 1, rows, keys]``, bool: the function of every pair of positions."""
    first = torch.zeros((1, 1, 1, 1), dtype=torch.int64, device=device)
    query = torch.arange(rows, device=device)[None, None, :, None]
    key = torch.arange(keys, device=device)[None, None, None, :]
    return torch.as_tensor(function(first, first, query, key), device=device).expand(1, 1, rows, keys)


_TWO_MASKS = (
    "has a causal mask and says that it is not causal: transformers' eager code hides later tokens there, "
    "and its fused attention hides none"
)
_MASK = "attention mask"
_STANDARD = "compile the model with its standard causal, bidirectional, sliding or chunked attention"
_MASK_OPTIONS = frozenset(
    {"allow_is_bidirectional_skip", "allow_is_causal_skip", "allow_torch_fix", "config", "local_size", "use_vmap"}
)
"""Keywords that say how a mask is made, not what it hides."""


def _attention(
    skips: list[Tensor],
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
    sinks: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: ``[1, heads, n, head_dim]`` in, ``[1, n, heads, head_dim]`` out."""
    require_understood(module, others)
    scale = float(scaling) if scaling is not None else float(query.shape[-1]) ** -0.5
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    # Some (Moonshine) say that they are not causal because they are given a mask: without it they say that they are.
    if not causal and not getattr(module, "is_causal", False) and any(each is attention_mask for each in skips):
        raise CompileError(type(module).__name__, _TWO_MASKS, "compile the language model alone, or another model")
    alone = not causal and all(each is None for each in (attention_mask, softcap, s_aux, position_bias, sinks))
    if alone and not is_number(query.shape[1]):  # each token attends to what layers made of it, and to no other
        weights = (query @ key.transpose(-1, -2) * scale).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), None
    if attention_mask is None and causal:
        attention_mask = additive_mask_op(query, str(Causal()))
    table = None if position_bias is None else backward_distances(module)
    if (sinks is not None and s_aux is not None) or (softcap and not (sinks is None and table is None)):
        raise CompileError(type(module).__name__, "has a softcap or learned sinks beside terms by query", _STANDARD)
    if sinks is not None:
        s_aux = torch.zeros(query.shape[1])  # a query's sink is taken off all of its scores
    if table is not None and position_bias is not None:
        numbers = position_bias if sinks is None else position_bias - sinks
        out = _by_backward_distance(query, key, value, numbers / scale, table, scale, attention_mask, s_aux)
    else:
        if sinks is not None:
            query, key = torch.cat([query, sinks / -scale], -1), torch.cat([key, torch.ones_like(key[..., :1])], -1)
        out = attention_op(query, key, value, attention_mask, position_bias, s_aux, scale, float(softcap or 0.0))
    return out.transpose(1, 2).contiguous(), None


def _by_backward_distance(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    numbers: Tensor,
    table: Tensor,
    scale: float,
    mask: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    """Scores with a query's number for every backward distance, ``[1, heads, n, distances]``; a key head for each."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1) if groups > 1 else each for each in (key, value))
    return distance_attention(
        query, key, value, by_query=numbers, by_key=None, table=table, scale=scale, mask=mask, sinks=sinks
    )


def _experts(
    gates: Mapping[int, Gate], module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Transformers' experts interface: one operator that gathers tokens by expert, or every expert on every token.

    Args:
        gates: Of the modules that are gathered, see :func:`grouped_gates`.
        module: Holds the stacked weights of all experts.
        hidden: ``[tokens, width]``.
        top_k_index: The chosen experts of each token, ``[tokens, k]``.
        top_k_weights: Their weights, ``[tokens, k]``.
    """
    gate = gates.get(id(vars(module)))
    if gate is None:
        return _dense_experts(module, hidden, top_k_index, top_k_weights)
    up, down = ("gate_up_proj" if module.has_gate else "up_proj"), "down_proj"
    weights = [getattr(module, name) for name in (up, down)]
    biases = [getattr(module, f"{name}_bias") if module.has_bias else None for name in (up, down)]
    shares = top_k_weights.to(hidden.dtype)
    made = experts_op(
        hidden, top_k_index, shares, weights[0], biases[0], weights[1], biases[1],
        gate.gate, gate.layout, gate.limit, gate.alpha, bool(module.is_transposed),
    )  # fmt: skip
    return cast("Tensor", made)


def _dense_experts(module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Every expert on every token, weighted by its routing weight, mostly 0.

    The library sorts tokens by expert, which mixes them and makes shapes depend on data; this is the same sum, token by
    token, at the cost of all experts. Arguments as of :func:`_experts`.
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
    known = _CLOSURES.get(name)
    if known is None or cells.keys() != known[0] or function.__module__ != "transformers.masking_utils":
        raise CompileError(
            _MASK,
            f"mask function {function.__qualname__!r} is not a function of positions that tiles can express",
            _STANDARD,
        )
    return known[1](cells)


def _each(cells: Mapping[str, Any]) -> Generator[Mask]:
    return (mask_from_closure(term) for term in cells["mask_functions"])


_CLOSURES: Mapping[str, tuple[frozenset[str], Callable[[Mapping[str, Any]], Mask]]] = {
    "causal_mask_function": (frozenset(), lambda _: Causal()),
    "bidirectional_mask_function": (frozenset(), lambda _: Full()),
    "and_masks": (frozenset({"mask_functions"}), lambda cells: conjunction(_each(cells))),
    "or_masks": (frozenset({"mask_functions"}), lambda cells: disjunction(_each(cells))),
    # kv > q - sliding_window: the query and sliding_window - 1 predecessors
    "sliding_window_overlay": (
        frozenset({"sliding_window"}),
        lambda cells: Window(int(cells["sliding_window"]) - 1, -1),
    ),
    # |q - kv| <= sliding_window, on both sides
    "sliding_window_bidirectional_overlay": (
        frozenset({"sliding_window"}),
        lambda cells: Window(int(cells["sliding_window"]), int(cells["sliding_window"])),
    ),
    "chunked_overlay": (frozenset({"chunk_size", "left_padding"}), lambda cells: Chunk(int(cells["chunk_size"]))),
    # one sequence: positions are 0, 1, 2, ..., and every pair belongs to it
    "remap_positions_for_packed_sequence": (
        frozenset({"mask_function", "position_ids"}),
        lambda cells: mask_from_closure(cells["mask_function"]),
    ),
    "packed_sequence_mask_function": (frozenset({"packed_sequence_mask"}), lambda _: Full()),
}
"""What transformers' mask functions mean: the variables that each one captures, and the mask."""
