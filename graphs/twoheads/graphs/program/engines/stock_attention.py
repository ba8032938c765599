"""The engine of the ``stock`` lowering: softmax attention as any accelerator has it, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from twoheads.graphs.program.engines.port import Port

__all__ = ["StockEngine"]


@dataclass(frozen=True, slots=True)
class StockEngine:
    """Softmax attention whose statistics a synthetic key reveals (Lemma 3.1, with two value columns in one call).

    ``q [1, q_num_heads, block, query_dim]``, ``k [1, kv_num_heads, 1 + keys, query_dim]`` and
    ``v [1, kv_num_heads, 1 + keys, v_head_dim + 2]`` give ``out [1, q_num_heads, block, v_head_dim + 2]``, the softmax
    of ``scale * q k^T`` times ``v``. There is no log-sum-exp among the outputs. Key 0 is the synthetic one: it is 1 in
    the coordinate ``head_dim`` and 0 elsewhere; its value is ``[0 | 0 | 1]``, where a real key's is ``[v | 1 | 0]``. A
    query's coordinate ``head_dim`` therefore sets the synthetic score ``c``, and the two last columns of ``out`` are
    the real keys' share ``y`` and the synthetic key's ``p0``: ``lse = c + log(y / p0)``.

    Variants, each a file ``engines/<name>.<variant>.onnx``: ``full`` (``key_tile`` keys, no mask), ``causal``
    (``block`` keys; query ``a`` sees the synthetic key and the first ``a + 1`` others, which is a constant inside the
    engine) and ``masked`` (``key_tile`` keys and an additive input ``mask [mask_heads, block, 1 + key_tile]``), the
    last only for biases and for masks that can't be cut into rectangles and triangles.

    Attributes:
        name: Unique in the program.
        q_num_heads, kv_num_heads: Query heads and key/value heads; the latter divide the former.
        head_dim, v_head_dim: Width of the model's queries and keys, and of its values.
        block_size, key_tile: Queries and real keys of one call, in tokens.
        scale: Factor on ``q k^T``.
        code_size: Coordinates after the synthetic one, for the codes of windows narrower than a block (Theorem 4.2).
        mask_heads: 1, or ``q_num_heads`` where an additive bias differs by head.
        dtype: Of all ports except ``mask``, which is float32.
    """

    name: str
    q_num_heads: int
    kv_num_heads: int
    head_dim: int
    v_head_dim: int
    block_size: int
    key_tile: int
    scale: float
    code_size: int
    mask_heads: int
    dtype: str

    kind = "stock"
    weights = ()
    VARIANTS = variants = run_variants = ("full", "causal", "masked")

    @property
    def query_dim(self) -> int:
        """Width of queries and keys at the ports: the model's, the synthetic coordinate, the codes."""
        return self.head_dim + 1 + self.code_size

    def keys(self, variant: str) -> int:
        """Keys of one call of a variant, the synthetic one included."""
        return 1 + (self.block_size if variant == "causal" else self.key_tile)

    def ports(self, variant: str) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        """The inputs and outputs of one variant's ONNX file."""
        keys, width = self.keys(variant), self.v_head_dim + 2
        inputs = [
            Port("q", self.dtype, (1, self.q_num_heads, self.block_size, self.query_dim)),
            Port("k", self.dtype, (1, self.kv_num_heads, keys, self.query_dim)),
            Port("v", self.dtype, (1, self.kv_num_heads, keys, width)),
        ]
        if variant == "masked":
            inputs.append(Port("mask", "float32", (self.mask_heads, self.block_size, keys)))
        return tuple(inputs), (Port("out", self.dtype, (1, self.q_num_heads, self.block_size, width)),)

    def call_flops(self, variant: str = "full") -> int:
        """Floating-point operations of the two matrix products of one call."""
        return 2 * self.q_num_heads * self.block_size * self.keys(variant) * (self.query_dim + self.v_head_dim + 2)
