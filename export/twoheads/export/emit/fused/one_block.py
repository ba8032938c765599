"""What is added to the scores of a block that attends to itself alone, in a graph under construction.

It is made once for all layers that share it, and is constant but for the padding, which is hidden where a query sees
keys behind it. Keys and values of padding are zeroed, as the stores of a longer run do it: whatever a model makes of
padding, infinite or no number at all, reaches no real token.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from twoheads.export.emit.graph_builder import GraphBuilder
from twoheads.export.emit.tile_attention import DEAD
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, RelativeBias
from twoheads.graphs.program.wiring import ReadWeight
from twoheads.graphs.variants.one_block import looks_ahead
from twoheads.runtime.stages.attention.bias_tiles import BiasTiles

__all__ = ["BlockScores"]


class BlockScores:
    """Masks, biases, padding and learned sinks.

    Args:
        graph: Where they go.
        block_size: Tokens of the block.
        length: The value that says how many of them are no padding.
        weight: Reads biases, which become constants: a few numbers a head.
    """

    def __init__(self, graph: GraphBuilder, block_size: int, length: str, weight: ReadWeight) -> None:
        self.graph = graph
        self._size = block_size
        self._length = length
        self._weight = weight
        self._added: dict[tuple[Mask, RelativeBias | None], str] = {}
        self._padding = ""
        self._real = ""
        self._zeroed: dict[str, str] = {}

    def without_padding(self, value: str, dtype: str) -> str:
        """Keys or values ``[1, kv_heads, M, head_dim]`` with zeros for padding."""
        if value not in self._zeroed:
            rows = self.graph.reshape(self._real_keys(), self._size, 1)
            zero = self.graph.array(f"zero_{dtype}", np.zeros((), dtype))
            self._zeroed[value] = self.graph.node("Where", rows, value, zero)
        return self._zeroed[value]

    def added(self, stage: AttentionStage, engine: AttentionEngine) -> str:
        """What is added to the scores: mask, bias and padding ``[mask_heads, M, M]``; empty for nothing."""
        key = (stage.mask, stage.bias)
        if key not in self._added:
            terms = list(self._terms(stage, engine))
            while len(terms) > 1:
                terms[:2] = [self.graph.node("Add", *terms[:2])]
            self._added[key] = terms[0] if terms else ""
        return self._added[key]

    def with_sink_rows(self, values: str, engine: AttentionEngine) -> str:
        """Values with a row of zeros for the learned sinks."""
        zeros = np.zeros((engine.kv_num_heads, 1, engine.v_head_dim), engine.dtype)
        name = f"zeros/{engine.kv_num_heads}/{engine.v_head_dim}/{engine.dtype}"
        return self.graph.node("Concat", values, self.graph.array(name, zeros), axis=1)

    def _real_keys(self) -> str:
        """Whether a token is no padding, ``[M]``."""
        self._real = self._real or self.graph.node("Less", self._keys(), self._length)
        return self._real

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
