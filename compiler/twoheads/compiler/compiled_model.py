"""The result of a compilation, before it is written: the program, its token-wise regions and the weights it binds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twoheads.compiler.source_program import TokenwiseRegion, Weight
from twoheads.graphs.bundle_format import SourceIdentity
from twoheads.graphs.program import Program

__all__ = ["CompiledModel"]


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """What :func:`twoheads.export.write_bundle` needs.

    Attributes:
        program: The block program.
        regions: For each token-wise engine by name, the region that its ONNX file is emitted from.
        weights: Every array a stage binds, by name; references into the source model, not copies.
        identity: What was compiled.
        tokenizer_json: A `tokenizers` file's contents, or ``None``.
        lowering: How attention was lowered.
        dtype: Of weights and activations.
        approximations: Policies that the user imposed and that changed the model; empty for an exact one.
    """

    program: Program
    regions: Mapping[str, TokenwiseRegion]
    weights: Mapping[str, Weight]
    identity: SourceIdentity
    tokenizer_json: bytes | None
    lowering: str
    dtype: str
    approximations: tuple[str, ...] = ()
