"""Layers of experts, written out token by token, are the library's."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.models.step3p7.modeling_step3p7 import Step3p7Experts

from tests.compiler.small_models import captured
from twoheads.compiler.frontend.torch.hugging_face.architectures import replaced
from twoheads.compiler.frontend.torch.hugging_face.layers.expert_layers import EXPERT_LAYERS
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.ir.source_graph import ScanNode
from twoheads.compiler.original.prove_capture import prove_capture

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


def _llama4() -> Any:
    config = hf.Llama4TextConfig(
        **SIZES, num_attention_heads=4, head_dim=8, intermediate_size_mlp=24, attention_chunk_size=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return hf.Llama4ForCausalLM(config)


def _jetmoe() -> Any:
    return hf.JetMoeForCausalLM(hf.JetMoeConfig(**SIZES, kv_channels=8))


def _dbrx() -> Any:
    experts: Any = {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}
    config = hf.DbrxConfig(
        vocab_size=40, d_model=32, n_heads=4, n_layers=2, max_seq_len=64, ffn_config=experts,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    )  # fmt: skip
    return hf.DbrxForCausalLM(config)


def _longcat() -> Any:
    heads: dict[str, Any] = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
    config = hf.LongcatFlashConfig(
        vocab_size=40, hidden_size=32, num_layers=1, num_attention_heads=4, v_head_dim=8, ffn_hidden_size=24,
        expert_ffn_hidden_size=24, n_routed_experts=4, zero_expert_num=3, moe_topk=3, head_dim=4, **heads,
    )  # fmt: skip
    return hf.LongcatFlashForCausalLM(config)


def _ernie() -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = hf.models.ernie4_5_vl_moe.Ernie4_5_VLMoeTextConfig(
        vocab_size=40, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, moe_intermediate_size=[24, 16], moe_num_experts=4, moe_k=2, rope_parameters=rope,
    )  # fmt: skip
    return hf.models.ernie4_5_vl_moe.Ernie4_5_VLMoeTextModel(config)


@pytest.mark.parametrize("make", [_llama4, _jetmoe, _dbrx, _longcat, _ernie])
def test_experts_of_every_token_weighted(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ids = torch.randint(0, 40, (1, 23))
    want = model(ids, use_cache=False)[0]
    with replaced(model):
        got = model(ids, use_cache=False)[0]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    source = load_source(model)
    prove_capture(source, captured(model))


def test_experts_that_clamp_what_their_gate_lets_through() -> None:
    torch.manual_seed(0)
    sizes = SimpleNamespace(num_local_experts=4, hidden_size=16, moe_intermediate_size=8, hidden_act="silu")
    experts: Any = Step3p7Experts(sizes, swiglu_limit=0.5)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    rows, chosen = torch.randn(9, 16), torch.randint(0, 2, (9, 1)).repeat(1, 2) + torch.tensor([0, 2])
    weights = torch.rand(9, 2)
    got = EXPERT_LAYERS["Step3p7Experts"]["forward"](experts, rows, chosen, weights)
    torch.testing.assert_close(got, experts(rows, chosen, weights), atol=1e-5, rtol=1e-5)


def test_an_expert_takes_as_many_tokens_as_its_capacity() -> None:
    torch.manual_seed(0)
    config = hf.SwitchTransformersConfig(
        vocab_size=40, d_model=32, d_kv=8, d_ff=24, num_layers=2, num_sparse_encoder_layers=1, num_decoder_layers=2,
        num_sparse_decoder_layers=1, num_heads=2, num_experts=3, expert_capacity=5,
    )  # fmt: skip
    model: Any = hf.SwitchTransformersForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    source = load_source(model)
    found = captured(model)
    assert [node.operator for node in found.graph.cuts if isinstance(node, ScanNode)] == ["diagonal_scan"] * 2
    prove_capture(source, found)  # 45 tokens of which 3 experts take 15 at most
