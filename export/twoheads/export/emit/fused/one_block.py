"""A whole block of a model as one ONNX file: the token-wise engines' own graphs with attention between them.

Nothing is exported again: the graphs are those of the tile engines, joined by their ports. Attention of a block over
itself needs no tiles, no log-sum-exp and no merge: scores, a Softmax, the product with the values. What is added to the
scores is made once for all layers that share it, and is constant but for the padding, which is hidden where a query
sees keys behind it. Keys and values of padding are zeroed, as the stores of a longer run do it: whatever a model makes
of padding, infinite or no number at all, reaches no real token. Only operators and forms that have not changed since
opset 13 are added, so that the file's operator set may be that of a foreign ONNX file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from twoheads.export.emit.fused.regions import JoinedRegions
from twoheads.export.emit.graph_builder import common_opsets
from twoheads.export.emit.tile_attention import DEAD, OPSET, product, scores_of
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Program, RelativeBias, TokenwiseStage
from twoheads.graphs.variants.one_block import LENGTH, OneBlock, looks_ahead
from twoheads.runtime.stages.attention.bias_tiles import BiasTiles

__all__ = ["one_block_model"]

Array = npt.NDArray[Any]
ReadWeight = Callable[[str], Array]
"""Gives the weight of a name."""


def one_block_model(
    program: Program, block: OneBlock, engines: Mapping[str, onnx.ModelProto], weight: ReadWeight
) -> onnx.ModelProto | None:
    """The engine of ``block`` as a fixed-shape ONNX model.

    Args:
        program: The program that ``block`` is derived from.
        block: What the engine computes.
        engines: The models of the token-wise engines by name, their weights being inputs.
        weight: Reads the learned sinks and biases, which become constants: a few numbers a head.

    Returns:
        A model whose inputs are the engine's inputs followed by its weights, all by port name; ``None`` where the
        graphs can't be joined: they use an old operator set, functions or subgraphs.
    """
    used = {stage.engine: engines[stage.engine] for stage in block.inside if isinstance(stage, TokenwiseStage)}
    opsets = common_opsets(used.values(), OPSET)
    if opsets is None:
        return None
    joined = _Joined(program, block, used, weight)
    joined.add(block.inside)
    return joined.model(block.engine, opsets)


class _Joined(JoinedRegions):
    """The graph under construction."""

    def __init__(
        self, program: Program, block: OneBlock, engines: Mapping[str, onnx.ModelProto], weight: ReadWeight
    ) -> None:
        stage, engine = block.stage, block.engine
        names = dict(zip(stage.inputs, (port.name for port in engine.inputs), strict=True))
        outputs = (value.name for value in stage.outputs)
        super().__init__(
            program, engines, names | dict(zip(outputs, (port.name for port in engine.outputs), strict=True))
        )
        self._weight = weight
        self._size = program.block_size
        self._added: dict[tuple[Mask, RelativeBias | None], str] = {}
        self._padding = ""
        self._real = ""
        self._zeroed: dict[str, str] = {}

    def attention(self, stage: AttentionStage) -> None:
        """Softmax attention of the block over itself."""
        engine, graph = self.attention_engine(stage, 1), self.graph
        k, v = (self._without_padding(name, engine.dtype) for name in (stage.key, stage.value))
        scores = scores_of(graph, engine, self.name(stage.query), k, mask=self._hidden(stage, engine))
        values = graph.reshape(v, engine.kv_num_heads, self._size, engine.v_head_dim)
        if stage.sinks is not None:
            scores, values = self._with_sinks(stage.sinks, engine, scores, values)
        out = product(graph, engine, graph.node("Softmax", scores, axis=-1), values)
        shape = (1, engine.q_num_heads, self._size, engine.v_head_dim)
        graph.reshape(out, *shape, output=self.name(stage.output.name))

    def _real_keys(self) -> str:
        """Whether a token is no padding, ``[M]``."""
        self._real = self._real or self.graph.node("Less", self._keys(), self.name(LENGTH))
        return self._real

    def _without_padding(self, value: str, dtype: str) -> str:
        """Keys or values ``[1, kv_heads, M, head_dim]`` with zeros for padding."""
        if value not in self._zeroed:
            rows = self.graph.reshape(self._real_keys(), self._size, 1)
            zero = self.graph.array(f"zero_{dtype}", np.zeros((), dtype))
            self._zeroed[value] = self.graph.node("Where", rows, self.name(value), zero)
        return self._zeroed[value]

    def _hidden(self, stage: AttentionStage, engine: AttentionEngine) -> str:
        """What is added to the scores: mask, bias and padding ``[mask_heads, M, M]``; empty for nothing."""
        key = (stage.mask, stage.bias)
        if key not in self._added:
            terms = list(self._terms(stage, engine))
            while len(terms) > 1:
                terms[:2] = [self.graph.node("Add", *terms[:2])]
            self._added[key] = terms[0] if terms else ""
        return self._added[key]

    def _terms(self, stage: AttentionStage, engine: AttentionEngine) -> Iterator[str]:
        if (mask := self._mask(stage.mask)) is not None:
            yield mask
        if stage.bias is not None:
            yield self._bias(stage.bias)
        if looks_ahead(stage.mask, self._size):
            yield self._hidden_padding()

    def _mask(self, mask: Mask) -> str | None:
        """0 or :data:`DEAD`, ``[1, M, M]``; a triangle is a comparison, other masks are stored, a byte a pair."""
        at = np.arange(self._size, dtype=np.int64)
        visible = np.broadcast_to(mask.dense(at[:, None], at[None, :]), (self._size, self._size))
        if visible.all():
            return None
        if (visible == np.tri(self._size, dtype=np.bool_)).all():
            hidden = self.graph.node("Less", self._rows(), self._keys())
        else:
            hidden = self.graph.array(f"hidden/{mask}", ~visible[None])
        return self.graph.node("Where", hidden, self.graph.constant(DEAD), self.graph.constant(0.0))

    def _bias(self, bias: RelativeBias) -> str:
        """``[heads, M, M]`` from a row of ``2 * M - 1`` distances for each head."""
        table, slope = (None if name is None else self._weight(name) for name in (bias.table, bias.slope))
        wide = BiasTiles(table, slope, block_size=1, key_tile=2 * self._size - 1)
        line = self.graph.array(f"bias/{bias.table}/{bias.slope}", wide.tile(1 - self._size)[:, 0])
        last = self.graph.array("last_row", np.array(self._size - 1, np.int64))
        distance = self.graph.node("Sub", self.graph.node("Add", self._keys(), last), self._rows2d())
        return self.graph.node("Gather", line, distance, axis=1)

    def _rows(self) -> str:
        return self.graph.array("rows", np.arange(self._size, dtype=np.int64)[None, :, None])

    def _rows2d(self) -> str:
        return self.graph.array("rows_2d", np.arange(self._size, dtype=np.int64)[:, None])

    def _keys(self) -> str:
        return self.graph.array("keys", np.arange(self._size, dtype=np.int64))

    def _hidden_padding(self) -> str:
        """0 or :data:`DEAD` for every key, as rows ``[1, M, M]`` of a mask."""
        if not self._padding:
            line = self.graph.node("Where", self._real_keys(), self.graph.constant(0.0), self.graph.constant(DEAD))
            shape = self.graph.constant([1, self._size, self._size])
            self._padding = self.graph.node("Expand", line, shape)
        return self._padding

    def _with_sinks(self, sinks: str, engine: AttentionEngine, scores: str, values: str) -> tuple[str, str]:
        """Scores with one more column, the learned sinks', and values with a row of zeros for it."""
        logits = np.asarray(self._weight(sinks), np.float32)
        column = np.repeat(logits, self._size).reshape(engine.kv_num_heads, -1, 1)
        zeros = np.zeros((engine.kv_num_heads, 1, engine.v_head_dim), engine.dtype)
        zero_name = f"zeros/{engine.kv_num_heads}/{engine.v_head_dim}/{engine.dtype}"
        scores = self.graph.node("Concat", scores, self.graph.array(f"sinks/{sinks}", column), axis=-1)
        return scores, self.graph.node("Concat", values, self.graph.array(zero_name, zeros), axis=1)
