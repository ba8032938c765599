"""A GGUF file of random float16 weights, which llama.cpp and ours both read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch

from tools.large_models.make import Shape, random_weight, weight_files

__all__ = ["make_gguf"]

_WORD = "word"
"""A token's text is this and its number."""


def make_gguf(path: Path, shape: Shape) -> Path:
    """Writes the model to ``path``, its tensors one at a time; norms are float32."""
    writer: Any = gguf.GGUFWriter(path, "llama")
    heads = shape.num_attention_heads
    writer.add_name(path.stem)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_rope_dimension_count(shape.hidden_size // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab_size)
    _add_tokenizer(writer, shape.vocab_size)
    weights = [(name, sizes) for part in weight_files(shape) for name, sizes in part.items()]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.num_hidden_layers)
    for name, sizes in weights:
        kind = torch.float32 if len(sizes) == 1 else torch.float16
        told = names.get_name(name, (".weight",))
        dtype = torch.empty(0, dtype=kind).numpy().dtype
        count = int(torch.Size(sizes).numel())
        writer.add_tensor_info(told, sizes, dtype, count * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, sizes in weights:
        kind = torch.float32 if len(sizes) == 1 else torch.float16
        writer.write_tensor_data(random_weight(name, sizes).to(kind).numpy())
    writer.close()
    return path


def _add_tokenizer(writer: Any, size: int) -> None:
    """One that both sides can load: three special tokens, a token for every byte, and names of no meaning."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    tokens += [f"{_WORD}{number}" for number in range(len(tokens), size)]
    kinds += [gguf.TokenType.NORMAL] * (size - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
