"""A few rows of all layers behind kept keys as one ONNX file; see :mod:`twoheads.graphs.variants.steps`.

The graphs are those of the token-wise engines at so many rows, joined by their ports. Every attention places its new
keys and values into the open block, and reads them there: one product with the keys of whole blocks and one with the
open block's, a softmax over both, and the same for values. Only standard operators are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx

from twoheads.export.emit.fused.regions import JoinedRegions, with_sinks
from twoheads.export.emit.scans.scan import scan_model
from twoheads.export.emit.tile_attention import product, scores_of
from twoheads.graphs.program.engines.scan import COUNT
from twoheads.graphs.program.engines.scan import STEP as SCAN_STEP
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, ExpertsStage, ScanEngine, ScanStage
from twoheads.graphs.program.wiring import ReadWeight
from twoheads.graphs.variants.stage_run import with_rows
from twoheads.graphs.variants.steps import INDEX, MASK, SOURCE, SOURCE_MASK, KeptRows, StepEngine, Steps

__all__ = ["StepGraph", "step_model"]


def step_model(
    steps: Steps, engine: StepEngine, engines: Mapping[str, onnx.ModelProto], weight: ReadWeight
) -> onnx.ModelProto | None:
    """The engine as a fixed-shape ONNX model.

    Args:
        steps: What the engine is of.
        engine: What to make.
        engines: The models of the token-wise engines by name, for as many rows, their weights being inputs.
        weight: Reads the learned sinks, which become constants.

    Returns:
        A model whose inputs are the engine's inputs followed by its weights, all by port name; ``None`` where the
        graphs can't be joined: they use an old operator set, functions or subgraphs.
    """
    return StepGraph(steps, engine, engines, weight).model(engine)


class StepGraph(JoinedRegions):
    """The graph under construction.

    Attributes:
        program: The tile program for as many rows.
        kept: The keys and values of all layers by name, each with its number.
    """

    def __init__(
        self, steps: Steps, engine: StepEngine, engines: Mapping[str, onnx.ModelProto], weight: ReadWeight
    ) -> None:
        names = dict(zip(steps.fed, (port.name for port in engine.inputs), strict=False))
        names[steps.program.hidden] = "hidden"
        made = {port.name for port in engine.outputs}
        names |= {entry.value.name: f"new_{at}" for at, entry in enumerate(steps.kept) if f"new_{at}" in made}
        names |= {value.name: f"{SOURCE}_{at}" for at, value in enumerate(steps.source)}
        weights = {name: port.name for name, port in steps.body.weights.items()}
        inside = tuple(stage for stage in steps.body.inside if not isinstance(stage, ExpertsStage))
        super().__init__(inside, engines, names, weights, weight)
        self.program = with_rows(steps.program, engine.rows)
        self._rows, self._capacity, self._block = engine.rows, engine.capacity, steps.program.block_size
        self.kept = {entry.value.name: (at, entry) for at, entry in enumerate(steps.kept)}
        self._added = dict(steps.layers)
        self._states = {stage.name: port.name for (stage, _), port in zip(steps.body.scans, steps.states, strict=True)}
        self._whole: dict[str, str] = {}
        self._source = engine.source * self._block

    def attention(self, stage: AttentionStage) -> None:
        """Appends softmax attention of the rows over whole blocks and the open one, or over an encoder's tokens."""
        graph, engine = self.graph, self.program.engine_of(AttentionEngine, stage.engine)
        query, heads = self.name(stage.query), engine.kv_num_heads
        keys, values = self._parts(stage.key), self._parts(stage.value)
        parts = [scores_of(graph, replace(engine, key_tile=width), query, name) for name, width in keys]
        widths = [width for _, width in keys]
        scores = graph.node("Concat", *parts, axis=-1) if len(parts) > 1 else parts[0]
        scores = self._masked(scores, engine, sum(widths), stage)
        if stage.sinks is not None:
            scores, widths = with_sinks(graph, engine, scores, stage.sinks, self._weight), [*widths, 1]
        shares = self._split(graph.node("Softmax", scores, axis=-1), widths)
        out = ""
        for share, (name, width) in zip(shares, values, strict=False):
            rows = graph.reshape(name, heads, width, engine.v_head_dim)
            part = product(graph, engine, share, rows)
            out = graph.node("Add", out, part) if out else part
        shape = (1, engine.q_num_heads, self._rows, engine.v_head_dim)
        graph.reshape(out, *shape, output=self.name(stage.output.name))

    def scan(self, stage: ScanStage) -> None:
        """Appends a scan of the rows, from the state before them to the one behind those that are there."""
        state = self._states[stage.name]
        model = scan_model(self.program.engine_of(ScanEngine, stage.engine), SCAN_STEP)
        self.add_scan(stage, model, state, COUNT, state=f"next_{state}")

    def _parts(self, value: str) -> list[tuple[str, int]]:
        """Keys or values of whole blocks, if any are read, and of the open block, each with how many there are.

        Those of cross attention are of one port.
        """
        if value not in self.kept:
            return [(self.name(value), self._source)]
        at, entry = self.kept[value]
        past = [(f"past_{at}", entry.blocks(self._capacity) * self._block)] if self._capacity else []
        return [*past, (self._open(at, entry), self._block)]

    def _open(self, at: int, entry: KeptRows) -> str:
        """The open block with the new rows in their places, made once for all layers that read it."""
        new = self.name(entry.value.name)
        if self._rows == self._block:
            return new
        if new not in self._whole:
            axis = entry.value.token_axis
            both = self.graph.node("Concat", f"open_{at}", new, axis=axis)
            self._whole[new] = self.graph.node("Gather", both, INDEX, axis=axis)
        return self._whole[new]

    def _masked(self, scores: str, engine: AttentionEngine, keys: int, stage: AttentionStage) -> str:
        """The scores ``[kv_heads, group * rows, keys]`` plus what is added to them."""
        graph, heads = self.graph, engine.kv_num_heads
        group = engine.q_num_heads // heads
        if stage.key not in self.kept:
            return graph.node("Add", scores, SOURCE_MASK)
        shape = (1, 1) if engine.mask_heads == 1 else (heads, group)
        added = graph.reshape(f"{MASK}_{self._added[stage.name]}", *shape, self._rows, keys)
        folded = graph.reshape(scores, heads, group, self._rows, keys)
        return graph.reshape(graph.node("Add", folded, added), heads, group * self._rows, keys)

    def _split(self, shares: str, widths: list[int]) -> list[str]:
        if len(widths) == 1:
            return [shares]
        starts = [sum(widths[:at]) for at in range(len(widths))]
        return [self._columns(shares, start, start + width) for start, width in zip(starts, widths, strict=True)]

    def _columns(self, value: str, start: int, stop: int) -> str:
        first, last, axis = (self.graph.constant([number]) for number in (start, stop, -1))
        return self.graph.node("Slice", value, first, last, axis)
