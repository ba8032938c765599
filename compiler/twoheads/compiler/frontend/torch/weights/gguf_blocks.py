"""Which of a GGUF file's own blocks keep their numbers in a bundle's weights of few bits.

A bundle has blocks of 32 numbers: of 4 bits with a scale and an offset, of 8 bits with a scale. Those are the numbers
of Q4_0, Q4_1 and Q4_K, whose blocks of 256 have a scale and an offset for every 32 of them; and of Q8_0. Blocks of 5
and 6 bits fit neither: they are expanded once and rounded, like numbers of 16 and 32 bits; or stay float32, where no
number may change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from twoheads.compiler.frontend.torch.weights.gguf_header import check_gguf, gguf_facts
from twoheads.graphs.errors import CompileError
from twoheads.graphs.serialization.bundle_format import LOSSLESS

__all__ = ["FileBlocks", "file_blocks", "require_4_bits"]

FOUR_BITS, EIGHT_BITS = frozenset({"Q4_0", "Q4_1", "Q4_K"}), frozenset({"Q8_0"})
"""Types by the bits of a bundle's weights that have their very numbers."""

TABLES = ("token_embd.weight", "output.weight")
"""The table of tokens and the head: they have 8 bits in a bundle of 4, too, and all in one that loses nothing."""


@dataclass(frozen=True, slots=True)
class FileBlocks:
    """How many of a file's matrices keep their bits, and how many do not, by the types that the file has.

    Attributes:
        kept: As ``{"Q4_K": 150}``.
        rounded: Others that were rounded.
        expanded: Others that are float32.
    """

    kept: Mapping[str, int]
    rounded: Mapping[str, int]
    expanded: Mapping[str, int] = field(default_factory=dict[str, int])

    def to_json(self) -> dict[str, Mapping[str, int]]:
        """The counts by what became of the matrices."""
        return {"kept": self.kept, "rounded": self.rounded, "float32": self.expanded}

    def __str__(self) -> str:
        """As ``kept: 150 matrices of Q4_K; rounded: 30 of Q6_K``."""
        parts = self.to_json().items()
        counts = {word: [f"{count} of {kind}" for kind, count in each.items()] for word, each in parts if each}
        text = "; ".join(f"{word}: {', '.join(each)}" for word, each in counts.items())
        return text.replace(" of ", " matrices of ", 1)


def file_blocks(path: Path, weights: str, products: str) -> FileBlocks:
    """What becomes of the matrices of the GGUF file ``path``.

    Args:
        path: The file.
        weights: ``int4``, ``int8`` or ``lossless``, as ``compile --weights`` has it.
        products: ``float32`` or ``int8``; products of 8-bit weights in whole numbers have one scale a column.
    """
    from gguf import GGMLQuantizationType

    kept: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for name, tensor in gguf_facts(path).tensors.items():
        if tensor.dimensions < 2:
            continue
        kind = GGMLQuantizationType(tensor.kind).name
        if name in TABLES:
            fitting = frozenset[str]() if weights == LOSSLESS else EIGHT_BITS
        elif weights in ("int4", LOSSLESS):
            fitting = FOUR_BITS
        else:
            fitting = frozenset[str]() if products == "int8" else EIGHT_BITS
        (kept if kind in fitting else others)[kind] += 1
    return FileBlocks(kept, {}, others) if weights == LOSSLESS else FileBlocks(kept, others)


def require_4_bits(path: Path) -> None:
    """Refuses a GGUF file by its header that ``compile --weights lossless`` could keep nothing of.

    Raises:
        CompileError: It is damaged, or has no matrix of 4 bits beside its table of tokens and its head.
    """
    check_gguf(path)
    if not (found := file_blocks(path, LOSSLESS, "float32")).kept:
        problem = f"{path.name} has no matrix of 4 bits in its layers ({found})"
        raise CompileError(f"--weights {LOSSLESS}", problem, "leave it out")
