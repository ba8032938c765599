"""What a GGUF file's header says: each entry reaches the configuration, changes nothing, or refuses the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compiler.gguf_file import write_gguf
from twoheads.compiler import plan_model
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.frontend.torch.weights.gguf_entries import file_config
from twoheads.graphs.errors import CompileError

SMALL: Mapping[str, Any] = {
    "context_length": 64,
    "embedding_length": 32,
    "block_count": 2,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.head_count_kv": 4,
}
HEAD = 8
GEMMA: Mapping[str, Any] = {"attention.key_length": HEAD, "attention.value_length": HEAD, "attention.sliding_window": 9}
MAMBA: Mapping[str, Any] = {
    "attention.head_count": 0,
    "attention.head_count_kv": 0,
    "feed_forward_length": 0,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 8,
    "ssm.time_step_rank": 2,
    "ssm.inner_size": 64,
}
MOE: Mapping[str, Any] = {"expert_count": 4, "expert_used_count": 2}


def write(path: Path, architecture: str, entries: Mapping[str, Any], tensors: Mapping[str, Any] | None = None) -> Path:
    """A header of a tiny decoder: small sizes, and ``entries`` behind them."""
    table = {"token_embd.weight": np.zeros((16, 32), np.float32)}
    return write_gguf(path, architecture, {**SMALL, **entries}, tensors or table, tokens=16)


@pytest.mark.parametrize(
    ("architecture", "entries", "attribute", "expected"),
    [
        ("starcoder2", {"rope.freq_base": 1e5}, "rope_parameters", {"rope_theta": 1e5, "rope_type": "default"}),
        ("starcoder2", {"attention.sliding_window": 40}, "sliding_window", 40),
        ("starcoder2", {"attention.layer_norm_epsilon": 1e-3}, "norm_epsilon", pytest.approx(1e-3)),
        ("phi3", {"attention.sliding_window": 40}, "sliding_window", 40),
        ("phi3", {"attention.sliding_window": 64}, "sliding_window", None),
        ("phi3", {"attention.sliding_window": 0}, "sliding_window", None),
        ("gemma2", {**GEMMA, "attn_logit_softcapping": 30.0}, "attn_logit_softcapping", 30.0),
        ("gemma2", {**GEMMA, "final_logit_softcapping": 20.0}, "final_logit_softcapping", 20.0),
        ("gemma2", GEMMA, "query_pre_attn_scalar", HEAD),
        ("gemma3", GEMMA, "query_pre_attn_scalar", HEAD),
        (
            "nemotron",
            {"attention.layer_norm_epsilon": 1e-3, "rope.dimension_count": 4, "attention.key_length": 8},
            "norm_eps",
            pytest.approx(1e-3),
        ),
        (
            "falcon",
            {"attention.head_count_kv": 1, "attention.layer_norm_epsilon": 1e-3},
            "layer_norm_epsilon",
            pytest.approx(1e-3),
        ),
        (
            "falcon",
            {"attention.head_count_kv": 1, "rope.freq_base": 1e5, "tensor_data_layout": 1},
            "rope_parameters",
            {"rope_theta": 1e5, "rope_type": "default"},
        ),
        (
            "stablelm",
            {"rope.freq_base": 1e5, "rope.dimension_count": 2},
            "rope_parameters",
            {"rope_theta": 1e5, "rope_type": "default", "partial_rotary_factor": 0.25},
        ),
        ("qwen2moe", {**MOE, "expert_weights_norm": True}, "norm_topk_prob", True),
        ("qwen3moe", {**MOE, "attention.key_length": HEAD, "expert_weights_norm": False}, "norm_topk_prob", False),
        (
            "lfm2",
            {
                "attention.head_count_kv": [4, 0],
                "shortconv.l_cache": 3,
                "rope.freq_base": 1e6,
                "attention.layer_norm_rms_epsilon": 1e-3,
            },
            "norm_eps",
            pytest.approx(1e-3),
        ),
        ("gemma3", {**GEMMA, "rope.freq_base_swa": 1e4, "attention.sliding_window_pattern": 6}, "head_dim", HEAD),
        ("gemma3", {**GEMMA, "attention.sliding_window_pattern": [True, True]}, "head_dim", HEAD),
        ("bloom", {"attention.layer_norm_epsilon": 1e-3}, "layer_norm_epsilon", pytest.approx(1e-3)),
        ("gpt2", {"attention.head_count_kv": 4}, "n_head", 4),
        ("llama", {"attention.scale": 0.0, "logit_scale": 1.0, "nextn_predict_layers": 0}, "num_hidden_layers", 2),
        ("llama", {"attention.causal": True, "attention.sliding_window": 64}, "num_hidden_layers", 2),
        (
            "mamba",
            {**MAMBA, "ssm.dt_b_c_rms": False},
            "state_size",
            8,
        ),
    ],
    ids=str,
)
def test_what_the_file_says_is_in_the_configuration(
    tmp_path: Path, architecture: str, entries: Mapping[str, Any], attribute: str, expected: Any
) -> None:
    config = file_config(write(tmp_path / "model.gguf", architecture, entries))
    assert getattr(config, attribute) == expected


@pytest.mark.parametrize(
    ("architecture", "entries"),
    [
        ("llama", {"logit_scale": 0.5}),
        ("llama", {"residual_scale": 0.2}),
        ("llama", {"embedding_scale": 12.0}),
        ("llama", {"attention.scale": 0.5}),
        ("llama", {"attention.sliding_window": 40}),
        ("llama", {"attention.key_length": 16}),
        ("llama", {"attention.value_length": 16}),
        ("llama", {"attention.causal": False}),
        ("llama", {"what.nobody.reads": 1}),
        ("llama", {"attention.sliding_window_pattern": [1.0, 0.0]}),
        ("qwen2", {"rope.dimension_count": 4}),
        ("gpt2", {"rope.freq_base": 1e5}),
        ("gpt2", {"attention.head_count_kv": 2}),
        ("gemma3", {**GEMMA, "rope.freq_base_swa": 1e5}),
        ("gemma3", {**GEMMA, "final_logit_softcapping": 30.0}),
        ("gemma3", {**GEMMA, "attention.sliding_window_pattern": 2}),
        ("gemma3", {**GEMMA, "attention.sliding_window_pattern": [True, False]}),
        (
            "mamba",
            {**MAMBA, "ssm.dt_b_c_rms": True},
        ),
    ],
    ids=str,
)
def test_what_no_configuration_has_a_place_for_is_refused(
    tmp_path: Path, architecture: str, entries: Mapping[str, Any]
) -> None:
    path = write(tmp_path / "model.gguf", architecture, entries)
    key = f"{architecture}.{list(entries)[-1]}"
    with pytest.raises(CompileError, match=f"says {key} = .*, which transformers does not read") as refused:
        file_config(path)
    assert "Hugging Face folder" in str(refused.value)
    with pytest.raises(CompileError, match=f"says {key}"):
        plan_model(path)


def test_tensors_that_no_part_of_the_model_takes_are_refused(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {f"attn_{part}.weight": (32, 32) for part in ("q", "k", "v", "output")}
    shapes |= {"ffn_gate.weight": (48, 32), "ffn_up.weight": (48, 32), "ffn_down.weight": (32, 48)}
    shapes |= {"attn_norm.weight": (32,), "ffn_norm.weight": (32,)}
    tensors = {f"blk.{layer}.{name}": shape for layer in range(2) for name, shape in shapes.items()}
    tensors |= {"token_embd.weight": (16, 32), "output_norm.weight": (32,)}
    rng = np.random.default_rng(0)
    whole = {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    entries = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": HEAD}
    load_source(write(tmp_path / "whole.gguf", "llama", entries, whole), deferred=True)
    biased = {**whole, "blk.1.attn_q.bias": np.ones(32, np.float32)}
    with pytest.raises(CompileError, match=r"tensors that transformers does not read .*: blk\.1\.attn_q\.bias \(1 of"):
        load_source(write(tmp_path / "biased.gguf", "llama", entries, biased), deferred=True)
