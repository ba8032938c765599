"""RWKV and xLSTM: sums of exponentials of learned numbers, which only their running maximum keeps within floats.

Both keep sums ``s_t = sum_i exp(x_i + d_{i+1} + ... + d_t) v_i`` as ``s_t exp(-m_t)``, where ``m_t`` is the largest of
the exponents, and itself a scan: ``m_t = max(m_{t-1} + d_t, x_t)``. The scaled sum is then a scan of factors of 1 at
most: its decay is ``exp(m_{t-1} + d_t - m_t)``, its input ``exp(x_t - m_t) v_t``. Rounding of ``m`` cancels: the decays
of many tokens add up to ``d_{i+1} + ... + d_t + m_i - m_t``, whatever the numbers between are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from twoheads.compiler.frontend.torch.hugging_face.layers.recurrent_layers import require_none
from twoheads.compiler.frontend.torch.operators.scan_ops import (
    causal_conv,
    decayed_attention,
    diagonal_scan,
    max_scan,
)
from twoheads.compiler.frontend.torch.weights.stored_tensor import StoredTensor
from twoheads.graphs.program.engines.scan_operators import NOTHING

__all__ = ["EXPONENTIAL_LAYERS", "rescale_once"]


def rescale_once(module: nn.Module, *, weights: bool = True) -> None:
    """Does at once what RWKV does to its own weights when it first runs.

    The library halves those of some later layers, and hidden states between them, which keeps float16 within its range.
    Weights that a graph refers to must not change while it is proven.

    Args:
        module: The model, in evaluation mode.
        weights: Whether they are there.
    """
    for part in cast("Iterator[Any]", module.modules()):
        if type(part).__name__ != "RwkvModel" or part.layers_are_rescaled:
            continue
        every = part.config.rescale_every
        for at, block in enumerate(part.blocks if weights and every > 0 else ()):
            for linear in (block.attention.output, block.feed_forward.value):
                _scale(linear, 0.5 ** (at // every))
        part.layers_are_rescaled = True


def _scale(linear: Any, factor: float) -> None:
    weight = linear.weight
    if factor == 1:
        return
    if isinstance(weight, StoredTensor):
        scaled = StoredTensor(weight.shape, weight.dtype, lambda: weight.read() * factor)
        linear.weight = nn.Parameter(scaled, requires_grad=False)
    else:
        with torch.no_grad():
            weight.mul_(factor)


def _shifted(rows: Tensor) -> Tensor:
    """Each token's row is that of the token before; the first is zeros. ``[1, n, C]``."""
    before = torch.tensor([[1.0, 0.0]]).expand(rows.shape[-1], 2)
    return cast("Tensor", causal_conv(rows, before, None))


def _rwkv_model(part: Any, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **given: Any) -> Any:
    """RWKV-4 without its state, and with weights that :func:`rescale_once` has changed already."""
    from transformers.models.rwkv.modeling_rwkv import RwkvOutput

    require_none(part, state=given.get("state"))
    every = part.config.rescale_every
    rows: Tensor = part.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
    for at, block in enumerate(part.blocks):
        rows = block(rows)[0]
        if every > 0 and (at + 1) % every == 0:
            rows = rows / 2
    return RwkvOutput(last_hidden_state=part.ln_out(rows))


def _rwkv_attention(part: Any, hidden: Tensor, state: Any = None, use_cache: bool = False) -> tuple[Tensor, None]:
    """Peng et al., arXiv 2305.13048, equations 11 to 16."""
    require_none(part, state=state)
    before = _shifted(hidden)
    key, value, receptance = (
        linear(hidden * mix + before * (1 - mix))
        for linear, mix in (
            (part.key, part.time_mix_key),
            (part.value, part.time_mix_value),
            (part.receptance, part.time_mix_receptance),
        )
    )
    return part.output(torch.sigmoid(receptance) * _wkv(-torch.exp(part.time_decay), part.time_first, key, value)), None


def _wkv(decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Means of values ``[1, n, C]``, weighted by ``exp(key)`` that decay, and by ``exp(key + bonus)`` at the token."""
    first = (torch.arange(key.shape[1]) == 0)[None, :, None]
    decays = torch.where(first, torch.full_like(key, NOTHING), decay.expand(key.shape))
    earlier, highest = cast("Tensor", max_scan(decays, key)).chunk(2, -1)
    kept, new = earlier + decays - highest, torch.exp(key - highest)
    sums = cast("Tensor", diagonal_scan(torch.cat([kept, kept], -1), torch.cat([new * value, new], -1)))
    numerator, denominator = _shifted(sums).chunk(2, -1)
    own = key + bonus
    earlier = torch.where(first, own, earlier)
    highest = torch.maximum(earlier, own)
    old, new = torch.exp(earlier - highest), torch.exp(own - highest)
    return (old * numerator + new * value) / (old * denominator + new)


def _rwkv_feed_forward(part: Any, hidden: Tensor, state: Any = None) -> tuple[Tensor, None]:
    require_none(part, state=state)
    before = _shifted(hidden)
    key = part.key(hidden * part.time_mix_key + before * (1 - part.time_mix_key))
    receptance = part.receptance(hidden * part.time_mix_receptance + before * (1 - part.time_mix_receptance))
    return torch.sigmoid(receptance) * part.value(torch.square(torch.relu(key))), None


def _xlstm_model(part: Any, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **given: Any) -> Any:
    """XLSTM whole: the library cuts inputs beyond ``max_inference_chunksize`` tokens, which changes no number."""
    from transformers.models.xlstm.modeling_xlstm import xLSTMOutput

    require_none(part, cache=given.get("cache"))
    rows = part.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
    for block in part.blocks:
        rows = block(rows)[0]
    return xLSTMOutput(last_hidden_state=part.out_norm(rows))


def _xlstm_head(part: Any, input_ids: Tensor | None = None, **given: Any) -> Any:
    from transformers.models.xlstm.modeling_xlstm import xLSTMCausalLMOutput

    rows = part.backbone(input_ids, **given).last_hidden_state
    logits, cap = part.lm_head(rows).float(), part.config.output_logit_soft_cap
    return xLSTMCausalLMOutput(logits=logits if cap is None else cap * torch.tanh(logits / cap))


def _mlstm(
    part: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    igate: Tensor,
    fgate: Tensor,
    c_initial: Any = None,
    n_initial: Any = None,
    m_initial: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Matrix memory (Beck et al., arXiv 2405.04517, equations 19 to 27), ``[1, heads, n, width]`` in and out.

    ``m`` is in the result by way of ``exp(-m)`` and ``eps``; it begins as 0.
    """
    require_none(part, c_initial=c_initial, n_initial=n_initial, m_initial=m_initial)
    decay = -functional.softplus(-fgate)
    rows = (each.transpose(1, 2) for each in (decay, igate))
    before, after = cast("Tensor", max_scan(*rows)).transpose(1, 2).chunk(2, 1)
    keys = key * torch.exp(igate - after)[..., None]
    values = torch.cat([value, torch.ones_like(value[..., :1])], -1)
    read = cast("Tensor", decayed_attention(query * query.shape[-1] ** -0.5, keys, values, before + decay - after))
    norm = torch.maximum(read[..., -1:].abs(), torch.exp(-after)[..., None])
    return read[..., :-1] / (norm + part.config.eps), None


EXPONENTIAL_LAYERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "RwkvModel": {"forward": _rwkv_model},
    "RwkvSelfAttention": {"forward": _rwkv_attention},
    "RwkvFeedForward": {"forward": _rwkv_feed_forward},
    "xLSTMBackend": {"forward": _mlstm},
    "xLSTMForCausalLM": {"forward": _xlstm_head},
    "xLSTMModel": {"forward": _xlstm_model},
}
"""By the name of the library's class: the methods that are replaced while it is captured."""
