"""Hidden states of a Llama computed layer by layer with transformers' own modules: one layer in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from twoheads.export.precision.quantised_arrays import expanded
from twoheads.runtime.bundle.reader import read_bundle

__all__ = ["bundle_weights", "folder_weights", "reference_hidden"]

Read = Callable[[str], Tensor]
"""A weight by its name, in float32."""


def folder_weights(folder: Path) -> Read:
    """The weights of a folder of safetensors."""
    places: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]

    def read(name: str) -> Tensor:
        with safe_open(folder / places[name], framework="pt") as file:
            return torch.Tensor(file.get_tensor(name).float())

    return read


def bundle_weights(bundle: Path) -> Read:
    """The weights of a bundle, quantised ones expanded: what its engines are to compute with."""
    found = read_bundle(bundle, check="read", engines=False)
    stored, quantised = found.open_weights(), found.manifest.quantised

    def read(name: str) -> Tensor:
        entry = quantised.get(name)
        if entry is None:
            return torch.from_numpy(np.array(stored.view(name)))
        found = expanded(stored.views(entry.stored), transposed=entry.transposed)
        stored.let_go(entry.stored)
        return torch.from_numpy(found)

    return read


@torch.no_grad()
def reference_hidden(folder: Path, read: Read, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Last hidden states ``[n, width]`` of the model in ``folder``.

    Args:
        folder: Its configuration.
        read: Its weights.
        tokens: ``[n]``.
    """
    config: Any = LlamaConfig.from_pretrained(folder, dtype=torch.float32)
    config._attn_implementation = "sdpa"  # which is causal where it is given no mask
    ids = torch.from_numpy(tokens)
    hidden = read("model.embed_tokens.weight")[ids][None]
    positions = torch.arange(len(ids))[None]
    turns = LlamaRotaryEmbedding(config)(hidden, positions)
    for at in range(config.num_hidden_layers):
        with torch.device("meta"):
            layer = LlamaDecoderLayer(config, at)
        prefix = f"model.layers.{at}."
        layer.load_state_dict({name: read(prefix + name) for name in layer.state_dict()}, assign=True)
        found = layer.eval()(hidden, attention_mask=None, position_ids=positions, position_embeddings=turns)
        hidden = found if isinstance(found, Tensor) else found[0]
        del layer
    norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
    norm.weight.copy_(read("model.norm.weight"))
    result: npt.NDArray[np.float32] = norm(hidden)[0].numpy()
    return result
