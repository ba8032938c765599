"""Which of a GGUF file's own blocks keep their numbers in a bundle's weights of few bits.

A bundle has blocks of 32 numbers: of 4 bits with a scale and an offset, of 8 bits with a scale. Those are the numbers
of Q4_0, Q4_1 and Q4_K, whose blocks of 256 have a scale and an offset for every 32 of them; and of Q8_0. Blocks of 5
and 6 bits fit neither: they are expanded once and rounded, like numbers of 16 and 32 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twoheads.compiler.frontend.torch.weights.gguf_header import gguf_facts

__all__ = ["FileBlocks", "file_blocks"]

FOUR_BITS, EIGHT_BITS = frozenset({"Q4_0", "Q4_1", "Q4_K"}), frozenset({"Q8_0"})
"""Types by the bits of a bundle's weights that have their very numbers."""

TABLES = ("token_embd.weight", "output.weight")
"""Tensors that have 8 bits in a bundle of 4, too: the table of tokens and the head."""


@dataclass(frozen=True, slots=True)
class FileBlocks:
    """How many of a file's matrices keep their numbers, and how many are rounded, by the types that the file has.

    Attributes:
        kept: As ``{"Q4_K": 150}``.
        rounded: The others.
    """

    kept: Mapping[str, int]
    rounded: Mapping[str, int]


def file_blocks(path: Path, weights: str, products: str) -> FileBlocks:
    """What becomes of the matrices of the GGUF file ``path``.

    Args:
        path: The file.
        weights: ``int4`` or ``int8``, as ``compile --weights`` has it.
        products: ``float32`` or ``int8``; products of 8-bit weights in whole numbers have one scale a column.
    """
    from gguf import GGMLQuantizationType

    kept: Counter[str] = Counter()
    rounded: Counter[str] = Counter()
    for name, tensor in gguf_facts(path).tensors.items():
        if tensor.dimensions < 2:
            continue
        kind = GGMLQuantizationType(tensor.kind).name
        if name in TABLES:
            fitting = EIGHT_BITS
        elif weights == "int4":
            fitting = FOUR_BITS
        else:
            fitting = frozenset[str]() if products == "int8" else EIGHT_BITS
        (kept if kind in fitting else rounded)[kind] += 1
    return FileBlocks(kept, rounded)
