"""One model of the zoo: how it is made, how it comes in, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BLOCK", "LENGTHS", "Entry"]

BLOCK = 16
"""Tokens of a block: small, so that short inputs have many of them."""

LENGTHS = (1, 15, 17, 53)
"""Tokens of the inputs: one, a block less and a block and one more, and no multiple of the block."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the zoo.

    Attributes:
        family: As its readers know it, e.g. ``Llama``; unique with ``maker``.
        door: ``torch`` or ``onnx``.
        maker: What wrote the file, with the operator set (``torch.onnx dynamo, opset 18``); the library's class for a
            torch module.
        make: Makes it; is given an empty folder and returns a file or folder in it, or a torch module.
        lengths: Tokens to verify at; by axis where a model reads two sequences, ``{"n": 15, "m": 40}``.
        options: Further arguments of ``compile_model``.
        refusal: What the compiler must say where the model can't be exact; ``None`` for the others.
    """

    family: str
    door: str
    maker: str
    make: Callable[[Path], Any]
    lengths: tuple[int | Mapping[str, int], ...] = LENGTHS
    options: Mapping[str, Any] | None = None
    refusal: str | None = None

    @property
    def name(self) -> str:
        """Family and maker."""
        return f"{self.family} ({self.maker})" if self.door == "onnx" else self.family
