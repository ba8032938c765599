"""All layers of a block as one ONNX file; see :mod:`twoheads.graphs.variants.model_steps`.

The graphs are those of the token-wise engines, joined by their ports. Every attention joins the keys and values of
earlier blocks with the block's own, and attends to all of them under the mask that the call is given: one Softmax, no
log-sum-exp and no merge. The block's own keys and values are outputs beside its hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from twoheads.export.emit.fused.regions import JoinedRegions
from twoheads.export.emit.graph_builder import common_opsets
from twoheads.export.emit.tile_attention import OPSET, softmax_attention
from twoheads.graphs.errors import CompileError, InternalError
from twoheads.graphs.program.engines.fused import ModelEngine
from twoheads.graphs.program.program import AttentionStage, Program, TokenwiseStage
from twoheads.graphs.variants.model_steps import BackWindow, ModelStage
from twoheads.graphs.variants.whole_body import whole_body
from twoheads.graphs.variants.window_steps import MASK

__all__ = ["model_step_model"]


def model_step_model(
    program: Program, stage: ModelStage, engine: ModelEngine, engines: Mapping[str, onnx.ModelProto]
) -> onnx.ModelProto:
    """The engine as a fixed-shape ONNX model.

    Args:
        program: The tile program that ``stage`` and ``engine`` are derived from.
        stage: What calls the engine.
        engine: What to make.
        engines: The models of token-wise engines by name, their weights being inputs.

    Returns:
        A model whose inputs are the engine's inputs followed by its weights, all by port name.

    Raises:
        CompileError: The graphs can't be joined.
    """
    body = whole_body(program)
    if body is None:
        raise InternalError(f"program {program.name} has no body for the engine {engine.name}")
    used = {inner.engine: engines[inner.engine] for inner in body.inside if isinstance(inner, TokenwiseStage)}
    opsets = common_opsets(used.values(), OPSET)
    if opsets is None:
        problem = "has regions of different or old operator sets, with functions or subgraphs, which can't be joined"
        raise CompileError(program.name, problem, "choose --lowering tile")
    joined = _Joined(program, stage, engine, used)
    joined.add(body.inside)
    return joined.model(engine, opsets)


class _Joined(JoinedRegions):
    """The graph under construction."""

    def __init__(
        self, program: Program, stage: ModelStage, engine: ModelEngine, engines: Mapping[str, onnx.ModelProto]
    ) -> None:
        names = dict(zip(stage.inputs, (port.name for port in engine.inputs), strict=False))
        outputs = (*(value.name for value in stage.outputs), *(entry.value.name for entry in stage.kept))
        names |= dict(zip(outputs, (port.name for port in engine.outputs), strict=True))
        super().__init__(program, engines, names)
        self._masks = {window.mask: (f"{MASK}_{at}", window) for at, window in enumerate(stage.windows)}
        self._kept = {entry.value.name: entry.ports(at) for at, entry in enumerate(stage.kept)}

    def attention(self, stage: AttentionStage) -> None:
        """Softmax attention of the block over itself and what its window reaches back to."""
        mask, window = self._masks[stage.mask]
        engine = self.attention_engine(stage, window.tiles)
        k, v = (self._tiles(name, window) for name in (stage.key, stage.value))
        softmax_attention(
            self.graph, engine, self.name(stage.query), k, v, mask=mask, output=self.name(stage.output.name)
        )

    def _tiles(self, value: str, window: BackWindow) -> str:
        """Keys or values ``[1, kv_heads, tiles * block, head_dim]`` in the order of :meth:`BackWindow.numbers`."""
        ports = self._kept.get(value, ())
        first = ports[:1] if window.first else ()
        before = ports[len(ports) - window.before :]
        names = [*first, *before, self.name(value)]
        return self.graph.node("Concat", *names, axis=2) if len(names) > 1 else names[0]
