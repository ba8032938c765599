"""Folders of models as large as real ones, of random weights: bfloat16 safetensors, a file a layer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["QWEN", "SHAPES", "Shape", "make_config", "make_model", "make_qwen", "random_weight", "weight_files"]

SPREAD = 0.02
"""Standard deviation of the weights, that of the library's own initialisation."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama; the names are the configuration's."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int = 32_000

    @property
    def layer_bytes(self) -> int:
        """Of the weights of the largest layer in float32; the embedding and the head are layers of their own."""
        head = self.hidden_size // self.num_attention_heads
        attention = self.hidden_size * (2 * self.hidden_size + 2 * self.num_key_value_heads * head)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return 4 * max(layer, self.vocab_size * self.hidden_size)


SHAPES = {
    "1b": Shape(2048, 8192, 16, 32, 8),
    "7b": Shape(4096, 11008, 32, 32, 32),
    "70b": Shape(8192, 28672, 80, 64, 8),
}
"""Sizes by name: about those of Llama 3.2 1B, Llama 2 7B and Llama 3 70B."""


def make_model(folder: Path, shape: Shape) -> Path:
    """Writes the model into the new folder ``folder``, a layer at a time; the same numbers every time."""
    make_config(folder, shape)
    parts = list(weight_files(shape))
    places: dict[str, str] = {}
    for at, part in enumerate(parts):
        name = f"model-{at + 1:05}-of-{len(parts):05}.safetensors"
        tensors = {key: random_weight(key, sizes) for key, sizes in part.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
    return folder


QWEN = "qwen2.5-0.5b"
"""The name of the model that :func:`make_qwen` makes."""


def make_qwen(folder: Path) -> Path:
    """Writes a Qwen2 of the sizes of Qwen2.5-0.5B and random bfloat16 weights, with a tied head and biases."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    model: Any = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def make_config(folder: Path, shape: Shape) -> Path:
    """The new folder ``folder`` with the model's configuration alone, which is all that ``plan`` reads."""
    folder.mkdir(parents=True)
    config = {
        **asdict(shape),
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return folder


def weight_files(shape: Shape) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors of each file, by name."""
    width, inner = shape.hidden_size, shape.intermediate_size
    keys = width // shape.num_attention_heads * shape.num_key_value_heads
    table = (shape.vocab_size, width)
    yield {"model.embed_tokens.weight": table}
    for layer in range(shape.num_hidden_layers):
        names = {
            "input_layernorm": (width,),
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, width),
            "post_attention_layernorm": (width,),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }
        yield {f"model.layers.{layer}.{name}.weight": sizes for name, sizes in names.items()}
    yield {"model.norm.weight": (width,), "lm_head.weight": table}


def random_weight(name: str, sizes: tuple[int, ...]) -> Tensor:
    """The weight ``name``, in bfloat16."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")  # another one for every layer
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(sizes, generator=generator, dtype=torch.float32)
    return ((1 + noise * SPREAD) if len(sizes) == 1 else noise * SPREAD).to(torch.bfloat16)
