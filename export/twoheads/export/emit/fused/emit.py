"""A run of stages as one ONNX file: the graphs of their token-wise engines with attention between them.

Nothing is exported again: the graphs are those of the tile engines, joined by their ports. Attention joins the keys and
values of all tiles that a call is given, and attends to them at once: one Softmax, no log-sum-exp and no merge. Only
operators and forms that have not changed since opset 13 are added, so that the file's operator set may be that of a
foreign ONNX file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx

from twoheads.export.emit.fused.one_block import BlockScores, ReadWeight
from twoheads.export.emit.graph_builder import GraphBuilder, common_opsets
from twoheads.export.emit.tile_attention import IR_VERSION, OPSET, product, scores_of
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.engines.fused import FusedEngine
from twoheads.graphs.program.fused import FusedStage, TileWindow
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Program, TokenwiseStage
from twoheads.graphs.variants.one_block import LENGTH

__all__ = ["fused_model"]


def fused_model(
    program: Program, steps: Program, engine: FusedEngine, engines: Mapping[str, onnx.ModelProto], weight: ReadWeight
) -> onnx.ModelProto | None:
    """The engine as a fixed-shape ONNX model.

    Args:
        program: The tile program.
        steps: What is derived from it and declares the engine.
        engine: What to make; the first stage of ``steps`` that calls it says of what.
        engines: The models of the token-wise engines by name, their weights being inputs.
        weight: Reads learned sinks and biases, which become constants: a few numbers a head.

    Returns:
        A model whose inputs are the engine's inputs followed by its weights, all by port name; ``None`` where the
        graphs can't be joined: they use different or old operator sets, functions or subgraphs.
    """
    stage = next(s for s in steps.body if isinstance(s, FusedStage) and s.engine == engine.name)
    used = {inner.engine: engines[inner.engine] for inner in stage.inside if isinstance(inner, TokenwiseStage)}
    opsets = common_opsets(used.values(), OPSET)
    if opsets is None:
        return None
    joined = _Joined(program, stage, engine, used, weight)
    for inner in stage.inside:
        if isinstance(inner, TokenwiseStage):
            joined.region(inner)
        else:
            joined.attention(inner)
    ir_version = max([IR_VERSION, *(model.ir_version for model in used.values())])
    return joined.graph.model(engine.name, (*engine.inputs, *engine.weights), engine.outputs, opsets, ir_version)


class _Joined:
    """The graph under construction. Values keep their program's names, with the port's where they are one."""

    def __init__(
        self,
        program: Program,
        stage: FusedStage,
        engine: FusedEngine,
        engines: Mapping[str, onnx.ModelProto],
        weight: ReadWeight,
    ) -> None:
        self.graph = GraphBuilder()
        self._program, self._stage, self._engines = program, stage, engines
        ports = list(zip(engine.inputs, stage.reads, strict=True))
        self._tiles = {(read.value, read.offset): port.name for port, read in ports if read.value}
        self._masks = [port.name for port, read in ports if not read.value]
        self._names = {value: name for (value, offset), name in self._tiles.items() if offset == 0}
        outputs = (*(value.name for value in stage.outputs), *(entry.value.name for entry in stage.kept))
        self._names |= dict(zip(outputs, (port.name for port in engine.outputs), strict=True))
        self._weights = dict(zip(stage.weights, (port.name for port in engine.weights), strict=True))
        self._block = BlockScores(self.graph, program.block_size, self._names.get(LENGTH, ""), weight)

    def _name(self, value: str) -> str:
        """What a value of the program is called in the graph."""
        return self._names.get(value, f"value/{value}")

    def region(self, stage: TokenwiseStage) -> None:
        """Appends the operators of a token-wise engine, between the values of ``stage``."""
        model = self._engines[stage.engine].graph
        given = (*map(self._name, stage.inputs), *(self._weights[name] for name in stage.weights))
        names = dict(zip((value.name for value in model.input), given, strict=True))
        written = (self._name(value.name) for value in stage.outputs)
        names |= dict(zip((value.name for value in model.output), written, strict=True))
        self.graph.join(model, stage.name, names)

    def attention(self, stage: AttentionStage) -> None:
        """Appends softmax attention of the block over all tiles of its window, or over itself."""
        graph, window, declared = self.graph, self._stage.window_of(stage), self._program.engine(stage.engine)
        if not isinstance(declared, AttentionEngine):
            raise InternalError(f"stage {stage.name} has the engine {declared.name}, which is no tile attention")
        tiles = 1 if window is None else window.tiles
        engine = replace(declared, key_tile=tiles * self._program.block_size)
        k, v = (self._keys(name, window, engine.dtype) for name in (stage.key, stage.value))
        mask = self._block.added(stage, engine) if window is None else self._masks[self._stage.windows.index(window)]
        scores = scores_of(graph, engine, self._name(stage.query), k, mask=mask)
        values = graph.reshape(v, engine.kv_num_heads, engine.key_tile, engine.v_head_dim)
        if stage.sinks is not None:
            scores, values = self._block.with_sinks(stage.sinks, engine, scores, values)
        out = product(graph, engine, graph.node("Softmax", scores, axis=-1), values)
        shape = (1, engine.q_num_heads, engine.block_size, engine.v_head_dim)
        graph.reshape(out, *shape, output=self._name(stage.output.name))

    def _keys(self, value: str, window: TileWindow | None, dtype: str) -> str:
        """Keys or values ``[1, kv_heads, tiles * block, head_dim]``, in the order of the window's tiles."""
        if window is None:
            return self._block.without_padding(self._name(value), dtype)
        names = [self._tiles.get((value, offset)) or self._name(value) for offset in window.offsets]
        return self.graph.node("Concat", *names, axis=2) if len(names) > 1 else names[0]
