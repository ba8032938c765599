"""The result of a compilation, before it is written: the program, its token-wise regions and the weights it binds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from twoheads.compiler.ir.source_program import TokenwiseRegion, Weight
from twoheads.graphs.program.program import Program
from twoheads.graphs.serialization.bundle_format import QuantisedWeight, SourceIdentity

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
        dtype: Of token values and weights.
        approximations: Policies that the user imposed and that changed the model; empty for an exact one.
        quantised: Weights of the source that ``weights`` holds as whole numbers and scales, by their names there.
        weight_dtype: Of the products' weights: ``int8``, ``int4`` or ``lossless``; ``dtype`` where none is quantised.
        products: In what products of quantised weights are computed: ``float32`` or ``int8``.
        other_key_tiles: Widths of key tiles that the bundle is to offer beside the program's.
        dense_experts: Why mixtures of experts are computed densely, by the paths of their modules.
        left_out: Results of an ONNX file that the bundle does not give.
        generation_json: What the model says about generating, or ``None``.
    """

    program: Program
    regions: Mapping[str, TokenwiseRegion]
    weights: Mapping[str, Weight]
    identity: SourceIdentity
    tokenizer_json: bytes | None
    lowering: str
    dtype: str
    approximations: tuple[str, ...] = ()
    quantised: Mapping[str, QuantisedWeight] = field(default_factory=dict[str, QuantisedWeight])
    weight_dtype: str = "float32"
    products: str = "float32"
    other_key_tiles: tuple[int, ...] = ()
    generation_json: bytes | None = None
    dense_experts: Mapping[str, str] = field(default_factory=dict[str, str])
    left_out: tuple[str, ...] = ()
