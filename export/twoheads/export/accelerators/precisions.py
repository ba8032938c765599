"""What each precision of an artifact means: of which numbers weights and activations are, and what has to be known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LOSSY", "PRECISIONS", "Precision"]


@dataclass(frozen=True, slots=True)
class Precision:
    """One of them.

    Attributes:
        limit: The largest error of a canary that passes where nothing could be measured, as a share of the largest
            magnitude.
        half: Whether values have float16's range.
        whole: Whether values are whole numbers of 8 bits throughout.
        small_weights: Bits of weights that are multiplied in float32; ``None`` where that is not what is small.
        rounded_weights: Bits of weights that are multiplied with activations of 16 bits; ``None`` likewise.
        ranges: Whether the compiler needs the ranges that values have in runs over a text.
        lossy: Whether it is chosen for its size or speed, and what it costs depends on the model.
    """

    limit: float
    half: bool = False
    whole: bool = False
    small_weights: int | None = None
    rounded_weights: int | None = None
    ranges: bool = False
    lossy: bool = False

    @property
    def narrow(self) -> bool:
        """Whether values have a smaller range than float32's."""
        return self.half or self.whole


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision(1e-4),
    "bf16": Precision(5e-2),
    "fp16": Precision(2e-2, half=True),
    "int8": Precision(5e-1, whole=True, ranges=True, lossy=True),
    "w8": Precision(1e-1, small_weights=8, lossy=True),
    "w4": Precision(5e-1, small_weights=4, lossy=True),
    "w8a8": Precision(2e-1, lossy=True),
    "w4a8": Precision(5e-1, lossy=True),
    "w8a16": Precision(1e-1, half=True, rounded_weights=8, ranges=True, lossy=True),
    "w4a16": Precision(5e-1, half=True, rounded_weights=4, ranges=True, lossy=True),
    "palette8": Precision(1e-1, half=True, lossy=True),
    "palette4": Precision(5e-1, half=True, lossy=True),
}
"""By name. ``w8a8`` and ``w4a8`` round the rows of activations while they run, by each row's own range."""

LOSSY = tuple(name for name, precision in PRECISIONS.items() if precision.lossy)
