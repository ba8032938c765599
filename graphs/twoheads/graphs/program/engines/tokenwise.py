"""The engine of a token-wise region."""

from __future__ import annotations

from dataclasses import dataclass

from twoheads.graphs.program.engines.port import Port

__all__ = ["TokenwiseEngine"]


@dataclass(frozen=True, slots=True)
class TokenwiseEngine:
    """An engine that maps each token of one block on its own: a region between two attentions.

    Attributes:
        name: Unique in the program; the file is ``engines/<name>.onnx``.
        inputs: Ports fed with blocks of token values, in the order of a stage's ``inputs``.
        outputs: Ports that fill blocks of token values, in the order of a stage's ``outputs``.
        weights: Ports bound once per stage, in the order of a stage's ``weights``.
        flops: Floating-point operations of the matrix products of one call.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: tuple[Port, ...]
    flops: int

    kind = "tokenwise"
    VARIANTS = variants = run_variants = ("",)

    def ports(self, variant: str = "") -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        """The inputs and outputs of its ONNX file, weights aside."""
        return self.inputs, self.outputs

    def call_flops(self, variant: str = "") -> int:
        """Floating-point operations of the matrix products of one call."""
        return self.flops
