"""How the zoo's torch models are made: small configurations, random weights large enough for attention to matter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tools.zoo.entry import LENGTHS, Entry

__all__ = [
    "BART",
    "BOTH",
    "DISTILBERT",
    "GPT2",
    "GROUPED",
    "IMAGE",
    "LEARNED",
    "MODERNBERT",
    "NO_TOKENS",
    "PLAIN",
    "SPECTROGRAM",
    "T5",
    "WHISPER",
    "family",
    "rope",
]

PLAIN: Mapping[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED: Mapping[str, Any] = {**PLAIN, "num_key_value_heads": 2}
LEARNED: Mapping[str, Any] = {**PLAIN, "max_position_embeddings": 128}
NO_TOKENS: Mapping[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
GPT2: Mapping[str, Any] = {"vocab_size": 67, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **NO_TOKENS}
DISTILBERT: Mapping[str, Any] = {
    "vocab_size": 67,
    "dim": 32,
    "hidden_dim": 48,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 128,
}
MODERNBERT: Mapping[str, Any] = {
    **PLAIN,
    **NO_TOKENS,
    "local_attention": 16,
    "global_attn_every_n_layers": 2,
    "cls_token_id": None,
    "sep_token_id": None,
}
T5: Mapping[str, Any] = {"vocab_size": 67, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8}
BART: Mapping[str, Any] = {
    "vocab_size": 67,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 128,
}
WHISPER: Mapping[str, Any] = {
    **BART,
    "num_mel_bins": 8,
    "max_source_positions": 50,
    "max_target_positions": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
IMAGE: Mapping[str, Any] = {**PLAIN, "image_size": 42, "patch_size": 6}

BOTH = tuple({"n": n, "m": m} for n, m in ((1, 53), (15, 1), (17, 17), (53, 33)))
"""Tokens of a decoder and of the encoder that it reads."""

SPECTROGRAM = tuple({"n": n} for n in (1, 15, 17, 53))
"""Tokens of a decoder that reads audio of a fixed length."""


def family(
    name: str,
    model: Any,
    config: Any,
    sizes: Mapping[str, Any],
    *,
    lengths: tuple[int | Mapping[str, int], ...] = LENGTHS,
    refusal: str | None = None,
    **more: Any,
) -> Entry:
    """An entry of ``model`` with a ``config`` of ``sizes`` and ``more``."""

    def make(_folder: Path) -> Any:
        module = model(config(**{**sizes, **more})).eval()
        for parameter in module.parameters():
            if parameter.ndim > 1:  # the initial weights are so small that attention would hardly matter
                torch.nn.init.normal_(parameter, std=0.15)
        return module

    return Entry(name, "torch", model.__name__, make, lengths, refusal=refusal)


def rope(kind: str, **more: Any) -> dict[str, Any]:
    """Parameters of rotary positions."""
    return {"rope_type": kind, "rope_theta": 10000.0, **more}
