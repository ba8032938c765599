"""Tiny random models with mixtures of experts, of the library's own classes, and their bundles, made once a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers as hf

from twoheads.compiler import compile_model
from twoheads.export import write_bundle

BLOCK, CLASSES, EXPERTS, CHOSEN = 16, 64, 8, 2

_SIZES: dict[str, Any] = {
    "vocab_size": CLASSES, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "num_experts_per_tok": CHOSEN, "pad_token_id": None,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_LATENT: dict[str, Any] = {
    **_SIZES, "num_key_value_heads": 4, "intermediate_size": 24, "moe_intermediate_size": 16,
    "n_routed_experts": EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "routed_scaling_factor": 2.0,
    "n_group": 2, "topk_group": 1,
}  # fmt: skip
_MODELS: Mapping[str, Callable[[], Any]] = {
    "olmoe": lambda: hf.OlmoeForCausalLM(hf.OlmoeConfig(**_SIZES, intermediate_size=24, num_experts=EXPERTS)),
    "mixtral": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**_SIZES, intermediate_size=24, num_local_experts=EXPERTS)
    ),
    "qwen2": lambda: hf.Qwen2MoeForCausalLM(
        hf.Qwen2MoeConfig(
            **_SIZES,
            intermediate_size=24,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=16,
            num_experts=EXPERTS,
        )
    ),
    "qwen3": lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(**_SIZES, intermediate_size=24, moe_intermediate_size=24, num_experts=EXPERTS)
    ),
    "deepseek_v2": lambda: hf.DeepseekV2ForCausalLM(hf.DeepseekV2Config(**_LATENT, topk_method="group_limited_greedy")),
    "deepseek_v3": lambda: hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**_LATENT)),
    "gpt_oss": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(**_SIZES, head_dim=8, intermediate_size=24, num_local_experts=EXPERTS, sliding_window=20)
    ),
}
NAMES = tuple(_MODELS)


@cache
def mixture(name: str) -> Any:
    """A model with weights that are large enough for distinct tokens."""
    torch.manual_seed(0)
    model = _MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread, middle = (0.3, 0.0) if parameter.ndim > 1 else (0.1, 1.0)
            parameter.normal_(middle, spread)
    return model


@cache
def _folder() -> TemporaryDirectory[str]:
    """Where the bundles lie; removed when the process ends."""
    return TemporaryDirectory(prefix="mixtures-")


@cache
def mixture_bundle(name: str, experts: str = "grouped") -> Path:
    """The bundle of the model ``name``."""
    compiled = compile_model(mixture(name), block_size=BLOCK, experts=experts)
    return write_bundle(compiled, Path(_folder().name) / f"{name}.{experts}", generation=False)


def library_logits(name: str, ids: Any) -> np.ndarray[Any, Any]:
    """The library's logits ``[tokens, classes]``, by its own code."""
    with torch.no_grad():
        return mixture(name)(torch.as_tensor(np.asarray(ids))[None], use_cache=False).logits[0].numpy()
