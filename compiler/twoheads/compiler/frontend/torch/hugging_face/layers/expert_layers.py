"""Layers of experts whose library code sorts or repeats tokens, written out token by token: the same sums.

Every expert is computed for every token and weighted, mostly by 0, as :mod:`.hooks` does where the library asks for an
implementation by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from twoheads.compiler.frontend.torch.operators.scan_ops import diagonal_scan

__all__ = ["EXPERT_LAYERS"]


def _llama4_moe(part: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    hidden = hidden_states.reshape(-1, part.hidden_dim)
    scores, logits = part.router(hidden)
    experts = part.experts
    total = part.shared_expert(hidden)
    for expert in range(experts.num_experts):
        gate, up = (hidden * scores[:, expert : expert + 1] @ experts.gate_up_proj[expert]).chunk(2, dim=-1)
        total = total + (up * experts.act_fn(gate)) @ experts.down_proj[expert]
    return total, logits


def _jetmoe_routing(router: Any, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of all experts, the chosen experts and their weights, ``[tokens, k]``."""
    logits = router.layer(rows).float()
    chosen, indices = logits.topk(router.top_k, dim=1)
    return logits, indices, torch.softmax(chosen, dim=1).type_as(rows)


def _jetmoe_moe(part: Any, layer_input: Tensor) -> Tensor:
    rows = layer_input.reshape(-1, layer_input.shape[-1])
    _, indices, gates = _jetmoe_routing(part.router, rows)
    total = torch.zeros_like(rows)
    for expert in range(part.input_linear.num_experts):
        gate, up = (rows @ part.input_linear.weight[expert].T).chunk(2, dim=-1)
        share = (gates * (indices == expert)).sum(-1, keepdim=True)
        total = total + share * ((part.activation(gate) * up) @ part.output_linear.weight[expert].T)
    made: Tensor = total.view(layer_input.shape) + part.bias
    return made


def _jetmoe_map(part: Any, layer_input: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    rows = layer_input.reshape(-1, layer_input.shape[-1])
    logits, indices, gates = _jetmoe_routing(part.router, rows)
    made = [rows @ part.input_linear.weight[expert].T for expert in range(part.num_experts)]
    slots: list[Any] = [
        sum(made[expert] * (indices[:, slot, None] == expert) for expert in range(part.num_experts))
        for slot in range(part.top_k)
    ]
    shape = (*layer_input.shape[:2], part.top_k, part.hidden_size)
    return torch.stack(slots, dim=1).view(shape), logits, (indices, gates)


def _jetmoe_reduce(part: Any, layer_input: Tensor, chosen: tuple[Tensor, Tensor]) -> Tensor:
    batch, length, slots, width = layer_input.shape
    rows, (indices, gates) = layer_input.reshape(-1, slots, width), chosen
    total = torch.zeros((1, part.input_size), dtype=rows.dtype) * gates[:, :1]
    for slot in range(slots):
        for expert in range(part.num_experts):
            share = (gates[:, slot] * (indices[:, slot] == expert))[:, None]
            total = total + share * (rows[:, slot] @ part.output_linear.weight[expert].T)
    made: Tensor = total.view(batch, length, part.input_size) + part.bias
    return made


def _dbrx_experts(part: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    rows = hidden_states.reshape(-1, part.hidden_size)
    shape = (part.num_experts, part.ffn_hidden_size, part.hidden_size)
    weights = [weight.view(shape) for weight in (part.mlp.w1, part.mlp.v1, part.mlp.w2)]
    total = torch.zeros_like(rows)
    for expert in range(part.num_experts):
        share = (top_k_weights * (top_k_index == expert)).sum(-1, keepdim=True)
        total = total + share * part.mlp(rows, *(weight[expert] for weight in weights))
    return total.view(hidden_states.shape)


def _longcat_experts(part: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """LongCat-Flash: experts behind the routed ones return a token as it is (Meituan, arXiv 2509.01322)."""
    kept: Tensor = (top_k_weights * (top_k_index >= part.num_routed_experts)).sum(-1, keepdim=True)
    total = kept * hidden_states
    for expert in range(part.num_routed_experts):
        gate, up = (hidden_states @ part.gate_up_proj[expert].T).chunk(2, dim=-1)
        share = (top_k_weights * (top_k_index == expert)).sum(-1, keepdim=True)
        total = total + share * ((part.act_fn(gate) * up) @ part.down_proj[expert].T)
    return total.to(hidden_states.dtype)


def _step_experts(part: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Step 3.7's experts, whose library code loops over those that some token chose."""
    total = torch.zeros_like(hidden_states)
    for expert in range(part.num_experts):
        share = (top_k_weights * (top_k_index == expert)).sum(-1, keepdim=True)
        made = part._apply_gate(hidden_states @ part.gate_up_proj[expert].T)
        total = total + share * (made @ part.down_proj[expert].T)
    return total


def _ernie_vl_moe(part: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """ERNIE 4.5 VL's experts of text; the library makes one row of all tokens' numbers, and unmakes it behind them."""
    rows = hidden_states.view(-1, part.hidden_dim)
    scores, weights, chosen = part.gate(rows)
    return part.experts(rows, chosen, weights), scores


def _switch(part: Any, hidden_states: Tensor) -> Tensor:
    """Switch Transformers: an expert takes the first tokens that choose it, as many as its capacity, and drops others.

    How many chose it up to a token is a running sum of ones, which a recurrence without decay makes: whole numbers,
    exact in float32 up to 16 million tokens (Fedus et al., arXiv 2101.03961, section 2.2).
    """
    router = part.router
    scores = router.classifier(hidden_states.to(router.dtype))
    share, chosen = torch.softmax(scores, -1, dtype=router.dtype).to(hidden_states.dtype).max(-1, keepdim=True)
    takes = (chosen == torch.arange(router.num_experts)).to(torch.float32)
    count = diagonal_scan(torch.zeros_like(takes), takes)
    takes = takes * (count <= router.expert_capacity)
    total = torch.zeros_like(hidden_states)
    for at, expert in enumerate(part.experts.values()):
        total = total + takes[..., at : at + 1] * (expert(hidden_states) * share)
    return total


EXPERT_LAYERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "Llama4TextMoe": {"forward": _llama4_moe},
    "JetMoeMoE": {"forward": _jetmoe_moe},
    "SwitchTransformersSparseMLP": {"forward": _switch},
    "LongcatFlashExperts": {"forward": _longcat_experts},
    "Ernie4_5_VLMoeSparseMoeBlock": {"forward": _ernie_vl_moe},
    "Step3p7Experts": {"forward": _step_experts},
    "DbrxExperts": {"forward": _dbrx_experts},
    "JetMoeMoA": {"map": _jetmoe_map, "reduce": _jetmoe_reduce},
}
"""By the name of the library's class: the methods that are replaced while it is captured."""
