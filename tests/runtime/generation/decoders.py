"""Small random decoders with step engines, compiled once a session, beside the library's own models."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from tests.compiler.hybrids import hybrid
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.runtime import LoadedBundle, load

BLOCK, CLASSES = 16, 64


@cache
def llama() -> Any:
    """Full attention; random weights that are large enough for distinct tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=CLASSES,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@cache
def gemma() -> Any:
    """Windows of 20 tokens in two layers, full attention between them."""
    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=CLASSES,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=20,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        max_position_embeddings=4096,
        initializer_range=0.3,
    )
    return Gemma3ForCausalLM(config).eval()


@cache
def qwen() -> Any:
    """Gated delta rules with short convolutions, and full attention in the last layer."""
    return hybrid("qwen3_next")


@cache
def _folder() -> TemporaryDirectory[str]:
    """Where the bundles lie; removed when the process ends."""
    return TemporaryDirectory(prefix="decoders-")


@cache
def bundle_folder(name: str) -> Path:
    """The bundle of the model ``llama``, ``gemma`` or ``qwen``."""
    model = {"llama": llama, "gemma": gemma, "qwen": qwen}[name]()
    return write_bundle(compile_model(model, block_size=BLOCK), Path(_folder().name) / name)


@cache
def bundle(name: str) -> LoadedBundle:
    """It, loaded."""
    return load(bundle_folder(name), threads=1)


def tokens(count: int, seed: int = 0) -> list[int]:
    """Random tokens that don't end anything."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, CLASSES, count)]


def original_logits(model: Any, sequence: list[int]) -> np.ndarray[Any, Any]:
    """The library's logits ``[tokens, classes]`` over the whole sequence."""
    with torch.no_grad():
        return model(torch.tensor([sequence])).logits[0].numpy()
