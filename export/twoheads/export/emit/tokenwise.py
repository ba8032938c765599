"""Token-wise regions of either front door to ONNX, and regions that are ONNX already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx

from twoheads.compiler.ir.source_program import TokenwiseRegion
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import TokenwiseEngine

__all__ = ["EmittedRegion", "emit_tokenwise"]


@dataclass(frozen=True, slots=True)
class EmittedRegion:
    """A region after a pass over its ONNX model: a :class:`TokenwiseRegion` whose engine is made.

    Attributes:
        region: What the model was emitted from.
        model: The engine; its weights are graph inputs, by the names of the ports that the pass declared.
        engine: The declaration of the engine before the pass.
        change: The pass, for the same engine with blocks of another size; ``None`` for none, which declares nothing.
    """

    region: TokenwiseRegion
    model: onnx.ModelProto
    engine: TokenwiseEngine
    change: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None

    def resized(self, engine: TokenwiseEngine) -> onnx.ModelProto:
        """The model with the shapes of ``engine``, which is declared as after the pass."""
        inputs = zip(self.engine.inputs, engine.inputs, strict=True)
        outputs = zip(self.engine.outputs, engine.outputs, strict=True)
        before = replace(
            self.engine,
            inputs=tuple(replace(port, shape=like.shape) for port, like in inputs),
            outputs=tuple(replace(port, shape=like.shape) for port, like in outputs),
        )
        made = emit_tokenwise(self.region, before)
        return made if self.change is None else self.change(made)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Those of the region."""
        return self.region.nodes

    @property
    def inputs(self) -> tuple[str, ...]:
        """Those of the region."""
        return self.region.inputs

    @property
    def weights(self) -> tuple[str, ...]:
        """Those of the region, before the pass."""
        return self.region.weights

    @property
    def outputs(self) -> tuple[str, ...]:
        """Those of the region."""
        return self.region.outputs

    @property
    def axis(self) -> str | None:
        """That of the region."""
        return self.region.axis

    def flops(self, engine: TokenwiseEngine) -> int:
        """Those of the engine: a pass changes formats, not products."""
        return engine.flops


def emit_tokenwise(region: TokenwiseRegion, engine: TokenwiseEngine) -> onnx.ModelProto:
    """The region as an ONNX model of fixed shapes, its weights graph inputs by port name.

    Raises:
        CompileError: An operator has no ONNX form.
    """
    from twoheads.compiler.frontend.onnx.onnx_program import OnnxRegion

    if isinstance(region, EmittedRegion):
        if [port.shape for port in engine.inputs] != [port.shape for port in region.engine.inputs]:
            return region.resized(engine)
        model = onnx.ModelProto()
        model.CopyFrom(region.model)
        return model
    if isinstance(region, OnnxRegion):
        from twoheads.export.emit.tokenwise_from_onnx import tokenwise_from_onnx

        return tokenwise_from_onnx(region, engine)
    from twoheads.compiler.frontend.torch.fx.fx_program import FxRegion
    from twoheads.export.emit.tokenwise_from_torch import tokenwise_model

    if not isinstance(region, FxRegion):
        raise InternalError(f"engine {engine.name} has a region of an unknown front door, {type(region).__name__}")
    return tokenwise_model(region, engine)
