"""Small modules that compiler tests capture: one block of attention, with room for something wrong in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from twoheads.compiler import attention
from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.ir.source_program import Captured

WIDTH = 8


class OneLayer(nn.Module):
    """Embeds tokens, applies ``before``, attends, applies ``after``; both are functions of ``[1, n, 8]``."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda x: x,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, WIDTH)
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.before, self.after = before, after
        self.attend = attend or (lambda q, k, v: attention(q, k, v, mask="causal"))
        self.eval()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.before(self.embedding(ids))
        heads = self.project(x).view(1, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        out = self.attend(heads[0], heads[1], heads[2]).transpose(1, 2).reshape(1, -1, WIDTH)
        return self.after(x + out)


EXAMPLES = (torch.zeros((1, 11), dtype=torch.int64),)


def captured(module: nn.Module) -> Captured:
    return capture(load_source(module, example_inputs=None if isinstance(module, PreTrainedModel) else EXAMPLES))


SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = SIZES | {"num_key_value_heads": 2} | changes
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


@cache
def captured_llama() -> Captured:
    """The capture of :func:`llama`, for all who only look at it."""
    return captured(llama())


def gemma3() -> Gemma3ForCausalLM:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=8, sliding_window=6, layer_types=kinds)
    return Gemma3ForCausalLM(config).eval()


def bert() -> BertModel:
    return BertModel(BertConfig(**SIZES, max_position_embeddings=50)).eval()


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=50)).eval()


def opt() -> OPTForCausalLM:
    config = OPTConfig(
        vocab_size=40,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=50,
        word_embed_proj_dim=16,
    )
    return OPTForCausalLM(config).eval()


def bloom() -> BloomForCausalLM:
    return BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=4)).eval()


def deepseek_sparse(keys: int) -> DeepseekV32ForCausalLM:
    """Its indexer chooses so many keys."""
    torch.manual_seed(3)
    config = DeepseekV32Config(
        vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, head_dim=8,
        v_head_dim=8, index_n_heads=2, index_head_dim=16, index_topk=keys, first_k_dense_replace=1,
        mlp_layer_types=["dense"],
    )  # fmt: skip
    return DeepseekV32ForCausalLM(config).eval()
