"""Buffers filled piece by piece are concatenations; what is not filled wholly is refused as before."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import Tensor

from tests.compiler.small_models import EXAMPLES, OneLayer, captured
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.original.prove_capture import prove_capture
from twoheads.graphs.errors import CompileError


def _filled(x: Tensor, bounds: tuple[tuple[int, int], ...]) -> Tensor:
    buffer = x.new_empty(*x.shape)
    for start, end in bounds:
        buffer[..., start:end].copy_(2 * x[..., start:end])
    return buffer


@pytest.mark.parametrize("bounds", [((0, 3), (3, 8)), ((3, 8), (0, 3)), ((0, 2), (6, 8), (2, 6)), ((0, 8),)])
def test_a_buffer_that_is_filled_is_what_it_is_filled_with(bounds: tuple[tuple[int, int], ...]) -> None:
    source = load_source(OneLayer(before=lambda x: _filled(x, bounds)), example_inputs=EXAMPLES)
    found = captured(source.module)
    prove_capture(source, found)
    assert not any("empty" in str(getattr(node, "op", "")) for node in found.graph.nodes)


@pytest.mark.parametrize("bounds", [((0, 3), (4, 8)), ((0, 5), (3, 8)), ((0, 7),)])
def test_a_buffer_with_gaps_or_overlaps_stays(bounds: tuple[tuple[int, int], ...]) -> None:
    found = captured(OneLayer(before=lambda x: _filled(x, bounds)))
    assert any("empty" in str(getattr(node, "op", "")) for node in found.graph.nodes)


def test_latent_attention_writes_its_keys_in_two_pieces() -> None:
    torch.manual_seed(0)
    config = hf.DeepseekV3Config(
        vocab_size=40, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=12, qk_rope_head_dim=4,
        qk_nope_head_dim=6, v_head_dim=10, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        first_k_dense_replace=1,
    )  # fmt: skip
    source = load_source(hf.DeepseekV3ForCausalLM(config).eval())
    found = captured(source.module)
    prove_capture(source, found)
    types = found.graph.types()
    assert {types[node.key].shape for node in found.graph.attentions} == {(1, 4, "n", 10)}
    with pytest.raises(CompileError, match="computes something else"):
        prove_capture(load_source(hf.DeepseekV3ForCausalLM(config).eval()), found)
