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

from twoheads.export.emit.fused.one_block import BlockScores
from twoheads.export.emit.fused.regions import JoinedRegions, with_sinks
from twoheads.export.emit.scans.scan import scan_model
from twoheads.export.emit.tile_attention import product, scores_of
from twoheads.graphs.program.engines.fused import FusedEngine
from twoheads.graphs.program.fused import FusedStage, TileWindow
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Program, ScanEngine, ScanStage
from twoheads.graphs.program.wiring import ReadWeight
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
    return _Joined(program, stage, engine, engines, weight).model(engine)


class _Joined(JoinedRegions):
    """The graph under construction."""

    def __init__(
        self,
        program: Program,
        stage: FusedStage,
        engine: FusedEngine,
        engines: Mapping[str, onnx.ModelProto],
        weight: ReadWeight,
    ) -> None:
        ports = list(zip(engine.inputs, stage.reads, strict=True))
        self._tiles = {(read.value, read.offset): port.name for port, read in ports if read.value}
        self._masks = [port.name for port, read in ports if not read.value and read.state is None]
        scans = (scan.name for scan in stage.inside if isinstance(scan, ScanStage))
        self._states = {name: port.name for name, port in zip(scans, stage.states, strict=True)}
        names = {value: name for (value, offset), name in self._tiles.items() if offset == 0}
        outputs = (*(value.name for value in stage.outputs), *(entry.value.name for entry in stage.kept))
        names |= dict(zip(outputs, (port.name for port in engine.outputs[: len(outputs)]), strict=True))
        weights = dict(zip(stage.weights, (port.name for port in engine.weights), strict=True))
        super().__init__(stage.inside, engines, names, weights, weight)
        self._program, self._stage = program, stage
        self._block = BlockScores(self.graph, program.block_size, names.get(LENGTH, ""), weight)

    def attention(self, stage: AttentionStage) -> None:
        """Appends softmax attention of the block over all tiles of its window, or over itself."""
        graph, window = self.graph, self._stage.window_of(stage)
        tiles = 1 if window is None else window.tiles
        declared = self._program.engine_of(AttentionEngine, stage.engine)
        engine = replace(declared, key_tile=tiles * self._program.block_size)
        k, v = (self._keys(name, window, engine.dtype) for name in (stage.key, stage.value))
        mask = self._block.added(stage, engine) if window is None else self._masks[self._stage.windows.index(window)]
        scores = scores_of(graph, engine, self.name(stage.query), k, mask=mask)
        values = graph.reshape(v, engine.kv_num_heads, engine.key_tile, engine.v_head_dim)
        if stage.sinks is not None:
            scores = with_sinks(graph, engine, scores, stage.sinks, self._weight)
            values = self._block.with_sink_rows(values, engine)
        out = product(graph, engine, graph.node("Softmax", scores, axis=-1), values)
        shape = (1, engine.q_num_heads, engine.block_size, engine.v_head_dim)
        graph.reshape(out, *shape, output=self.name(stage.output.name))

    def scan(self, stage: ScanStage) -> None:
        """Appends a scan of the block, from the state that the call is given to the one that it returns."""
        state = self._states[stage.name]
        model = scan_model(self._program.engine_of(ScanEngine, stage.engine))
        self.add_scan(stage, model, state, state=f"next_{state}")

    def _keys(self, value: str, window: TileWindow | None, dtype: str) -> str:
        """Keys or values ``[1, kv_heads, tiles * block, head_dim]``, in the order of the window's tiles."""
        if window is None:
            return self._block.without_padding(self.name(value), dtype)
        names = [self._tiles.get((value, offset)) or self.name(value) for offset in window.offsets]
        return self.graph.node("Concat", *names, axis=2) if len(names) > 1 else names[0]
