"""The models that are measured: shapes of known hybrids, of random weights, cut where the machine demands it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["BLOCK", "MODELS", "Shape", "folder_of", "make"]

BLOCK = 256

LINEAR, FULL = "linear_attention", "full_attention"

DRIFT: Mapping[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "layer_types": [LINEAR, FULL, LINEAR],
    "vocab_size": 8000,
}
"""Of every model whose drift is measured."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One model.

    Attributes:
        title: What it is, and what of it was cut.
        kind: The model's type in transformers.
        lowering: That the bundle is compiled with.
        entries: Of its configuration.
        drift: Entries in place of these where the drift is measured: narrow and few layers, so that float64 is
            affordable; none where the library's own code is wrong in blocks.
    """

    title: str
    kind: str
    lowering: str
    entries: Callable[[], dict[str, Any]]
    drift: Mapping[str, Any] = field(default_factory=dict[str, Any])


def _mamba2() -> dict[str, Any]:
    return {
        "hidden_size": 768,
        "num_hidden_layers": 24,
        "num_heads": 24,
        "head_dim": 64,
        "state_size": 128,
        "n_groups": 1,
        "vocab_size": 50288,
        "chunk_size": 256,
    }


def _granite() -> dict[str, Any]:
    return {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "layer_types": [LINEAR] * 5 + [FULL] + [LINEAR] * 6,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "intermediate_size": 2048,
        "shared_intermediate_size": 2048,
        "num_local_experts": 0,
        "mamba_n_heads": 24,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "vocab_size": 49160,
        "tie_word_embeddings": True,
    }


def _qwen3_next() -> dict[str, Any]:
    return {
        "hidden_size": 768,
        "num_hidden_layers": 8,
        "layer_types": [*[LINEAR] * 3, FULL] * 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "linear_num_value_heads": 8,
        "linear_num_key_heads": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "vocab_size": 32000,
    }


MODELS: Mapping[str, Shape] = {
    "mamba2": Shape("Mamba-2-130M: 24 layers of width 768, nothing cut", "mamba2", "model", _mamba2),
    "granite": Shape(
        "Granite-4-shaped: 11 Mamba-2 layers and one of full attention, cut to width 768 and 12 layers without experts",
        "granitemoehybrid",
        "tile",
        _granite,
        {
            **DRIFT,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "intermediate_size": 512,
            "shared_intermediate_size": 512,
            "mamba_n_heads": 8,
        },
    ),
    "qwen3_next": Shape(
        "Qwen3-Next-shaped: gated delta rule and full attention three to one, cut to width 768, 8 layers, 4 experts",
        "qwen3_next",
        "tile",
        _qwen3_next,
        {
            **DRIFT,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
        },
    ),
}
"""By name."""


def make(shape: Shape, changed: Mapping[str, Any] | None = None) -> Any:
    """The model, of seeded random weights; with ``changed`` entries in place of its own."""
    import torch
    import transformers

    entries = shape.entries() | dict(changed or {})
    torch.manual_seed(0)
    library: Any = transformers
    return library.AutoModelForCausalLM.from_config(library.CONFIG_MAPPING[shape.kind](**entries)).eval()


def folder_of(scratch: Path, name: str) -> Path:
    """Where the model called ``name`` lies, as a Hugging Face folder, made if it is not there."""
    folder = scratch / name
    if not (folder / "config.json").exists():
        make(MODELS[name]).save_pretrained(folder)
    return folder
