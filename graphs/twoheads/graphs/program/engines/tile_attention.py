"""The engines of the ``tile`` lowering: attention of a query block over one key tile, with its log-sum-exp."""

from __future__ import annotations

from dataclasses import dataclass

from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.request_codes import code_length

__all__ = ["AttentionEngine"]


@dataclass(frozen=True, slots=True)
class AttentionEngine:
    """The engines of one attention geometry: softmax attention of a query block over one key tile.

    ``q [1, q_num_heads, block, head_dim]``, ``k [1, kv_num_heads, key_tile, head_dim]``,
    ``v [1, kv_num_heads, key_tile, v_head_dim]`` give the normalised ``out [1, q_num_heads, block, v_head_dim]`` and
    ``lse [1, q_num_heads, block]`` (natural log, float32). There are four ONNX files,
    ``engines/<name>.<variant>.onnx``: ``full``, ``masked`` (plus ``mask``, an additive float32 array
    ``[mask_heads, block, key_tile]``), and of each a ``_merge`` form that takes the partial result of earlier tiles as
    ``prev_out``, ``prev_lse`` and returns the merged one: ``merge_state`` fused into the engine, so that rows need no
    arithmetic on the host. Whatever :attr:`dtype` is, ``out`` is float32 as ``lse`` is: it is a partial result until
    the last tile has been merged.

    Where :attr:`adds`, there may be two more for the later tiles of a long row, ``full_add`` and ``masked_add``. They
    take the log-sum-exp of the row's first tile as an anchor, in one more column of ``q``: ``-lse / scale`` (keys get
    a 1). Relative to it nothing needs a maximum, a division or a logarithm: ``weight [1, q_num_heads, block]`` and
    ``acc [1, q_num_heads, block, v_head_dim]`` are ``prev_weight`` and ``prev_acc`` plus the sums of ``exp(score -
    lse)`` and of that times the values. After the last tile ``out = acc / weight``. A weight may overflow to infinity;
    the row must be computed with the other variants then.

    Where :attr:`packs`, there may be two more for many short requests in one block (Theorem 4.2), ``packed`` and
    ``packed_causal``: attention of a block over itself that takes no mask and gives ``out`` only, its queries and keys
    ``code_length(block_size)`` columns wider.

    Where :attr:`distances` is not 0, the last so many columns of queries and keys are no coordinates but scores by
    distance (DeBERTa, WavLM): the score of a query and a key is ``q k^T`` of the columns before them, plus entry ``d``
    of the query's and of the key's, where ``d`` is what ``mask`` holds for the two (-inf where hidden). Such a stage's
    bias is its table of ``d`` by ``j - i``, so that every call is a masked one.

    Attributes:
        name: Unique in the program.
        q_num_heads, kv_num_heads: Query heads and key/value heads; the latter divide the former.
        head_dim, v_head_dim: Width of a head's queries and keys, and of its values.
        block_size, key_tile: Queries and keys of one call, in tokens.
        scale: Factor on ``q k^T``.
        softcap: Scores become ``softcap * tanh(scores / softcap)`` before the mask; 0 for none.
        mask_heads: 1, or ``q_num_heads`` where an additive bias differs by head.
        dtype: Of queries, keys and values; the two products are in it, everything between them is in float32.
        distances: Columns of queries and keys that are scores by distance; then heads are equal in number and share a
            mask.
    """

    name: str
    q_num_heads: int
    kv_num_heads: int
    head_dim: int
    v_head_dim: int
    block_size: int
    key_tile: int
    scale: float
    softcap: float
    mask_heads: int
    dtype: str
    distances: int = 0

    kind = "attention"
    weights = ()
    VARIANTS = ("full", "masked", "full_merge", "masked_merge")
    ADD_VARIANTS = ("full_add", "masked_add")
    PACKED_VARIANTS = ("packed", "packed_causal")
    run_variants = VARIANTS + ADD_VARIANTS
    ALL_VARIANTS = VARIANTS + ADD_VARIANTS + PACKED_VARIANTS

    def ports(self, variant: str) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        """The inputs and outputs of one variant's ONNX file."""
        if variant in self.PACKED_VARIANTS:
            return self._packed_ports()
        added = variant in self.ADD_VARIANTS
        q = Port("q", self.dtype, (1, self.q_num_heads, self.block_size, self.head_dim + added))
        k = Port("k", self.dtype, (1, self.kv_num_heads, self.key_tile, self.head_dim))
        v = Port("v", self.dtype, (1, self.kv_num_heads, self.key_tile, self.v_head_dim))
        out_shape = (1, self.q_num_heads, self.block_size, self.v_head_dim)
        inputs = [q, k, v]
        if variant.startswith("masked"):
            inputs.append(Port("mask", "float32", (self.mask_heads, self.block_size, self.key_tile)))
        names = ("acc", "weight") if added else ("out", "lse")
        if added or variant.endswith("_merge"):
            inputs += [
                Port(f"prev_{names[0]}", "float32", out_shape),
                Port(f"prev_{names[1]}", "float32", out_shape[:3]),
            ]
        return tuple(inputs), (Port(names[0], "float32", out_shape), Port(names[1], "float32", out_shape[:3]))

    def _packed_ports(self) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        width = self.head_dim + code_length(self.block_size)
        return (
            Port("q", self.dtype, (1, self.q_num_heads, self.block_size, width)),
            Port("k", self.dtype, (1, self.kv_num_heads, self.block_size, width)),
            Port("v", self.dtype, (1, self.kv_num_heads, self.block_size, self.v_head_dim)),
        ), (Port("out", "float32", (1, self.q_num_heads, self.block_size, self.v_head_dim)),)

    @property
    def adds(self) -> bool:
        """Whether an anchor can be a column of the queries: nothing bends the scores, and float32 holds the sums."""
        return self.dtype == "float32" and self.scale != 0 and not self.softcap and not self.distances

    @property
    def variants(self) -> tuple[str, ...]:
        """Every variant that there is for this geometry."""
        return self.VARIANTS + self.ADD_VARIANTS * self.adds + self.PACKED_VARIANTS * self.packs

    @property
    def packs(self) -> bool:
        """Whether codes can keep requests apart: nothing flattens the scores or is added to them by head."""
        plain = self.dtype == "float32" and self.scale > 0 and not self.softcap and not self.distances
        return plain and self.mask_heads == 1

    def call_flops(self, variant: str = "") -> int:
        """Floating-point operations of the two matrix products of one call."""
        width = self.head_dim - self.distances + self.v_head_dim
        return 2 * self.q_num_heads * self.block_size * self.key_tile * width
