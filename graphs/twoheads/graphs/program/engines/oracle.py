"""The engine of the ``oracle`` lowering: a plain small transformer that is told its parameters (Theorems 3.4, 3.5)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from twoheads.graphs.program.engines.port import Port

__all__ = ["OracleEngine"]

FEED_FORWARD = 64
"""Width of the oracle's MLP. Ours are idle (zero), so it is small; the embedding's width is what the packing takes."""


@dataclass(frozen=True, slots=True)
class OracleEngine:
    """A transformer of ``layers`` layers and ``heads`` heads over ``1 + block_size`` positions, parameters as inputs.

    Every layer is softmax attention with a residual, then an MLP (ReLU) with a residual; the only output is the final
    embeddings ``y [1, 1 + block, embedding]``. The file ``engines/<name>.<mask>.onnx`` knows nothing of the model whose
    heads it serves: not its scale, its heads or its layers.

    Lemma 3.3's packing: the embedding has a slice for each head of each layer, ``[q | k | v | out]``. Head ``h`` of
    layer ``l`` reads ``q, k, v`` of its slice and adds its result to ``out``; all other slices pass through the
    residuals. So one call serves ``layers * heads`` independent instances of single-head attention. Position 0 is the
    synthetic token, which in a ``causal`` oracle every query therefore sees.

    Attributes:
        name: Unique in the program.
        layers, heads: ``L'`` and ``H'``.
        block_size: Queries and keys of an instance, ``M``.
        head_dim, v_head_dim: Width of the model's queries and keys, and of its values.
        code_size: Coordinates for the codes of windows narrower than a block (Theorem 4.2).
        mask: ``causal``, or ``full`` where every position sees every other.
        dtype: Of all ports.
        q_num_heads, kv_num_heads, scale: Of the model, for whoever packs; the engine's file does not depend on them.
    """

    name: str
    layers: int
    heads: int
    block_size: int
    head_dim: int
    v_head_dim: int
    code_size: int
    mask: str
    dtype: str
    q_num_heads: int
    kv_num_heads: int
    scale: float

    kind = "oracle"
    weights = ()
    mask_heads = 0
    VARIANTS = variants = run_variants = ("full", "causal")

    @property
    def key_tile(self) -> int:
        """Keys of an instance: as many as queries, they travel side by side."""
        return self.block_size

    @property
    def query_dim(self) -> int:
        """Width of an instance's queries and keys: the model's, the synthetic coordinate, the codes."""
        return self.head_dim + 1 + self.code_size

    @property
    def value_dim(self) -> int:
        """Width of an instance's values and results: the model's and two indicators."""
        return self.v_head_dim + 2

    @property
    def slice_dim(self) -> int:
        """Coordinates of one instance: query, key, value, result."""
        return 2 * self.query_dim + 2 * self.value_dim

    @property
    def embedding(self) -> int:
        """Width of the embedding."""
        return self.layers * self.heads * self.slice_dim

    @property
    def slots(self) -> int:
        """Instances of one call, ``H' L'``."""
        return self.layers * self.heads

    def ports(self, variant: str) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        """The inputs (embeddings, then each layer's parameters) and the output; alike for both variants."""
        positions, width = 1 + self.block_size, self.embedding
        parameters = chain.from_iterable(self.parameters(layer) for layer in range(self.layers))
        embeddings = (1, positions, width)
        return (Port("x", self.dtype, embeddings), *parameters), (Port("y", self.dtype, embeddings),)

    def parameters(self, layer: int) -> tuple[Port, ...]:
        """The parameters of one layer: ``w_q, w_k, w_v, w_o, w_1, b_1, w_2, b_2``."""
        width = self.embedding
        shapes = {
            "w_q": (self.heads, width, self.query_dim),
            "w_k": (self.heads, width, self.query_dim),
            "w_v": (self.heads, width, self.value_dim),
            "w_o": (self.heads * self.value_dim, width),
            "w_1": (width, FEED_FORWARD),
            "b_1": (FEED_FORWARD,),
            "w_2": (FEED_FORWARD, width),
            "b_2": (width,),
        }
        return tuple(Port(f"{name}.{layer}", self.dtype, shape) for name, shape in shapes.items())

    def call_flops(self, variant: str = "full") -> int:
        """Floating-point operations of the matrix products of one call, projections and MLP included."""
        positions, width = 1 + self.block_size, self.embedding
        project = self.heads * width * (2 * self.query_dim + 2 * self.value_dim)
        attend = self.heads * positions * (self.query_dim + self.value_dim)
        return 2 * self.layers * positions * (project + attend + 2 * width * FEED_FORWARD)
