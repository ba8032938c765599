"""Small random decoders with step engines, compiled once a session, beside the library's own models."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from tests.compiler.hybrids import hybrid
from tests.mixtures import mixture
from tests.shared_folder import publish, shared_folder
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.graphs.variants.steps import CAPACITIES
from twoheads.runtime import LoadedBundle, load

BLOCK, CLASSES = 16, 64

BEYOND = CAPACITIES[-1] + 1
"""Whole blocks of which no engine reads as many at once."""


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


def spread(model: Any) -> Any:
    """Large random weights, so that tokens are distinct."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model.eval()


@cache
def t5() -> Any:
    """An encoder, and a decoder with a bias by distance; any length."""
    sizes: Any = {"decoder_start_token_id": 0, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8}
    return spread(T5ForConditionalGeneration(T5Config(vocab_size=CLASSES, **sizes)))


SEQ2SEQ: dict[str, Any] = {
    "vocab_size": CLASSES,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}


@cache
def bart() -> Any:
    """An encoder and a decoder with tables of positions; a first and a last token are forced."""
    model = spread(BartForConditionalGeneration(BartConfig(max_position_embeddings=128, **SEQ2SEQ)))
    model.generation_config.forced_bos_token_id = 5
    model.generation_config.no_repeat_ngram_size = 3
    return model


@cache
def marian() -> Any:
    """Sines for positions, a bias of the vocabulary; padding begins it and never comes, and an end is forced."""
    tokens: Any = {"pad_token_id": 63, "decoder_start_token_id": 63, "eos_token_id": 0, "bos_token_id": 1}
    model = spread(MarianMTModel(MarianConfig(max_position_embeddings=128, **SEQ2SEQ, **tokens)))
    model.final_logits_bias.copy_(torch.linspace(-1, 1, CLASSES))
    told = {"bad_words_ids": [[63]], "forced_eos_token_id": 0, "max_length": 40, "num_beams": 4}
    for name, value in told.items():
        setattr(model.generation_config, name, value)
    return model


@cache
def whisper() -> Any:
    """An encoder of spectrograms of one size, and a decoder that is told language and task."""
    sizes: Any = {"num_mel_bins": 8, "max_source_positions": 50, "max_target_positions": 128}
    tokens: Any = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    lists: Any = {"suppress_tokens": None, "begin_suppress_tokens": None}
    model = spread(WhisperForConditionalGeneration(WhisperConfig(**SEQ2SEQ, **sizes, **tokens, **lists)))
    told: dict[str, Any] = {
        "suppress_tokens": [8, 9],
        "begin_suppress_tokens": [20, 2],
        "max_length": 100,
        "return_timestamps": False,
    }
    told |= {"lang_to_id": {"<|de|>": 4, "<|en|>": 5, "<|fr|>": 6}, "no_timestamps_token_id": 63}
    told |= {"task_to_id": {"transcribe": 10, "translate": 11}, "is_multilingual": True}
    for name, value in told.items():
        setattr(model.generation_config, name, value)
    return model


@cache
def mamba() -> Any:
    """States alone: a selective scan and a short convolution a layer."""
    return hybrid("mamba")


@cache
def rwkv() -> Any:
    """States alone, one of them a maximum of all tokens."""
    return hybrid("rwkv")


@cache
def xlstm() -> Any:
    """Matrices as states, scaled by such a maximum, which is in the result."""
    return hybrid("xlstm")


MODELS = {
    "llama": llama,
    "gemma": gemma,
    "qwen": qwen,
    "t5": t5,
    "bart": bart,
    "marian": marian,
    "whisper": whisper,
    "mamba": mamba,
    "rwkv": rwkv,
    "xlstm": xlstm,
}
MIXTURES: dict[str, Any] = {name: partial(mixture, name) for name in ("olmoe", "gpt_oss")}
"""Models with mixtures of experts, which are gathered by expert; the second has windows, sinks and biases."""


@cache
def bundle_folder(name: str, block: int = BLOCK) -> Path:
    """The bundle of one of :data:`MODELS` or :data:`MIXTURES`; written once in a run, not to be changed."""
    place = shared_folder() / f"{name}-{block}.bundle"
    if place.exists():
        return place
    experts = "grouped" if name in MIXTURES else "auto"
    model = {**MODELS, **MIXTURES}[name]()
    folder = Path(mkdtemp(dir=shared_folder()))
    return publish(write_bundle(compile_model(model, block_size=block, experts=experts), folder / name), place.name)


@cache
def bundle(name: str, threads: int = 1) -> LoadedBundle:
    """It, loaded."""
    return load(bundle_folder(name), threads=threads)


def tokens(count: int, seed: int = 0) -> list[int]:
    """Random tokens that don't end anything."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, CLASSES, count)]


def original_logits(model: Any, sequence: list[int]) -> np.ndarray[Any, Any]:
    """The library's logits ``[tokens, classes]`` over the whole sequence."""
    with torch.no_grad():
        return model(torch.tensor([sequence])).logits[0].numpy()
