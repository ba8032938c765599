"""The small models, bundles and inputs that every case starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["BLOCK", "VOCABULARY", "make_bases"]

BLOCK = 16
WORDS = ("[UNK]", "the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "to", "red", "house", "by", "sea")
VOCABULARY = len(WORDS)
TOKENS, PROMPT, DOCUMENTS = 6_000, 400, 400


def make_bases(folder: Path) -> bytes:
    """Fills the new ``folder``: two models of one shape, the bundles of both, one of them built, and inputs."""
    from twoheads.compiler import compile_model
    from twoheads.export import write_bundle
    from twoheads.export.accelerators.build import build_target

    folder.mkdir()
    for seed, name in enumerate(("one", "other")):
        _make_source(folder / f"{name}.source", seed)
    for name, source, steps in (("one", "one", True), ("other", "other", False), ("built", "one", False)):
        compiled = compile_model(folder / f"{source}.source", block_size=BLOCK)
        write_bundle(compiled, folder / f"{name}.bundle", generation=steps)
    build_target(folder / "built.bundle", "openvino")
    draw = np.random.default_rng(0)
    np.save(folder / "tokens.npy", draw.integers(1, VOCABULARY, TOKENS))
    np.save(folder / "prompt.npy", draw.integers(1, VOCABULARY, PROMPT))
    texts = [" ".join(draw.choice(WORDS[1:], draw.integers(1, 60))) for _ in range(DOCUMENTS)]
    (folder / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "lines.txt").write_text("".join(f"{text}\n" for text in texts[:100]))
    return b""


def _make_source(folder: Path, seed: int) -> None:
    """A Hugging Face folder with a random Llama of one layer, and a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    tokenizer: Any = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
