"""Positions that a GGUF file stretches: read where they are a released Llama's, else refused. Never dropped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.compiler.gguf_file import write_gguf
from twoheads.compiler import plan_model
from twoheads.compiler.frontend.torch.weights.gguf_entries import file_config
from twoheads.compiler.frontend.torch.weights.gguf_positions import FACTORS, LONG
from twoheads.graphs.errors import CompileError

HEAD, BASE = 32, 500000.0
SIZES: Mapping[str, Any] = {
    "context_length": 64,
    "embedding_length": 2 * HEAD,
    "block_count": 1,
    "feed_forward_length": 48,
    "attention.head_count": 2,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": HEAD,
    "rope.freq_base": BASE,
    "vocab_size": 16,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": BASE,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def write(path: Path, tensors: dict[str, Any], **entries: float | str) -> Path:
    """The header of a tiny Llama, with ``tensors`` and entries of positions."""
    said = {f"rope.{name.replace('__', '.')}": value for name, value in entries.items()}
    table = {"token_embd.weight": np.zeros((16, 2 * HEAD), np.float32)}
    return write_gguf(path, "llama", {**SIZES, **said}, {**table, **tensors})


def frequencies(rotary: dict[str, Any]) -> Any:
    config = LlamaConfig(hidden_size=2 * HEAD, num_attention_heads=2, rope_parameters=rotary)
    return LlamaRotaryEmbedding(config).inv_freq


def divisors(largest: float) -> Any:
    """As a converter computes them from the library's own frequencies."""
    plain = frequencies({"rope_type": "default", "rope_theta": BASE})
    return (plain / frequencies({**LLAMA3, "factor": largest})).numpy()


@pytest.mark.parametrize("largest", [8.0, 32.0])
def test_the_divisors_of_a_llama_are_those_of_its_configuration(tmp_path: Path, largest: float) -> None:
    numbers = divisors(largest)
    assert numbers.max() == pytest.approx(largest)
    assert numbers.min() == 1
    found = file_config(write(tmp_path / "model.gguf", {FACTORS: numbers})).rope_parameters
    assert found == {**LLAMA3, "factor": largest}
    torch.testing.assert_close(frequencies(found), frequencies({**LLAMA3, "factor": largest}), rtol=0, atol=0)


def test_divisors_of_one_change_nothing(tmp_path: Path) -> None:
    plain = file_config(write(tmp_path / "plain.gguf", {})).rope_parameters
    ones = file_config(write(tmp_path / "ones.gguf", {FACTORS: np.ones(HEAD // 2, np.float32)}))
    assert ones.rope_parameters == plain
    factor_one = write(tmp_path / "linear.gguf", {}, scaling__type="linear", scaling__factor=1.0)
    assert file_config(factor_one).rope_parameters == plain


@pytest.mark.parametrize(
    ("tensors", "entries", "message"),
    [
        ({FACTORS: divisors(8.0) * np.float32(1.001)}, {}, "numbers .* of no released Llama"),
        ({FACTORS: divisors(8.0).astype(np.float16)}, {}, "numbers .* of no released Llama"),
        ({LONG[0]: divisors(8.0)}, {}, "other divisors for long inputs"),
        ({}, {"scaling__type": "yarn"}, "by 'yarn'"),
        ({}, {"scaling__type": "linear", "scaling__factor": 8.0}, "by 'linear'"),
        ({}, {"scale_linear": 4.0}, "by 'linear'"),
    ],
)
def test_what_is_not_read_is_refused(tmp_path: Path, tensors: Any, entries: Any, message: str) -> None:
    path = write(tmp_path / "model.gguf", tensors, **entries)
    with pytest.raises(CompileError, match=message) as refused:
        plan_model(path)
    assert "Hugging Face folder" in str(refused.value)
