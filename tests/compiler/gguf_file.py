"""A GGUF file for tests: entries of a header, and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf

__all__ = ["write_gguf"]


def write_gguf(
    path: Path,
    architecture: str,
    entries: Mapping[str, Any],
    tensors: Mapping[str, Any],
    *,
    tokens: int = 0,
    kinds: Mapping[str, gguf.GGMLQuantizationType] = MappingProxyType({}),
) -> Path:
    """Writes ``path`` and returns it.

    Args:
        path: The file.
        architecture: What it says of itself.
        entries: By what stands behind the architecture's name: yes or no, whole numbers, fractions, texts, and lists.
        tensors: NumPy arrays by name.
        tokens: Of a vocabulary of pieces; 0 for none.
        kinds: In which blocks tensors are stored, by name; the others as they are.
    """
    writer = gguf.GGUFWriter(path, architecture)
    adds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for name, value in entries.items():
        add: Any = adds.get(type(value), writer.add_array)
        add(f"{architecture}.{name}", value)
    if tokens:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([0.0] * tokens)
        writer.add_token_list([f"word{number}" for number in range(tokens)])
    for name, tensor in tensors.items():
        kind = kinds.get(name)
        writer.add_tensor(name, tensor if kind is None else gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
