"""The ports of engines: what goes in and out, every dimension a number."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

__all__ = ["Port"]


@dataclass(frozen=True, slots=True)
class Port:
    """A fixed-shape input, output or weight of an engine; ``name`` is its name in the engine's ONNX file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize
