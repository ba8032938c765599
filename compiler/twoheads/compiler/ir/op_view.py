"""A model as a recogniser sees it: plain operators over named values, whichever front door they came through.

An ONNX file and a captured torch graph both offer an :class:`OpView`. A recogniser walks ``nodes`` by kind and asks
``evaluate`` for numbers: what a chain of views means, which mask a subgraph makes, whether a rewrite is exact. So the
kinds are few and carry no attributes: how a product is transposed or a shape changed is found out by evaluating it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.compiler.ir.source_graph import AttentionNode, TensorType, place_of
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.program.program import Dim

__all__ = ["Arrangement", "Array", "Kind", "Move", "OpNode", "OpView", "RecognisedAttention"]

Array: TypeAlias = npt.NDArray[Any]


class Kind(Enum):
    """What a node does, as far as attention is concerned."""

    MATMUL = "matmul"
    """A product of two tensors that sums over one dimension, however it is transposed or scaled: MatMul, Gemm without
    a third operand, FusedMatMul, Einsum of two operands, ``bmm``."""
    BADDBMM = "baddbmm"
    """``beta * operand 0 + alpha * operand 1 @ operand 2``."""
    SOFTMAX = "softmax"
    """A softmax along the last axis; along any other it is ``OTHER``."""
    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    DIV = "div"
    NEG = "neg"
    TANH = "tanh"
    WHERE = "where"
    """``operand 1 where operand 0, else operand 2``; torch's ``masked_fill(x, mask, y)`` is ``where(mask, y, x)``."""
    MAX = "max"
    """A maximum along the last axis that is kept with size 1."""
    LARGER = "larger"
    """The larger of two numbers, entry by entry."""
    ISNAN = "isnan"
    CONCAT = "concat"
    """Along the last axis; along any other it is ``OTHER``."""
    SLICE = "slice"
    CAST = "cast"
    """Between floating-point types."""
    MOVE = "move"
    """Rearranges or repeats the entries of operand 0, computes nothing: transpose, reshape, (un)squeeze, expand, tile,
    identity, contiguous, dropout in evaluation. Further operands are shapes."""
    SHAPE = "shape"
    """Reads sizes of its operand, not its numbers (Shape, Size, ConstantOfShape, zeros_like)."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class OpNode:
    """One operator with one tensor result.

    Attributes:
        name: Of its (first) result, as in the source graph.
        kind: What it does.
        operands: Names of its operands in the order of the kind; a number where the graph holds a plain number.
        operator: Its own name, for messages, e.g. ``Softmax`` or ``aten.softmax.int``.
        layer: Path of the module it belongs to, for messages; may be empty.
    """

    name: str
    kind: Kind
    operands: tuple[str | float, ...]
    operator: str
    layer: str

    @property
    def where(self) -> str:
        """The node and its layer, for error messages."""
        return place_of(self.layer, self.name)


class OpView(Protocol):
    """A whole model's operators, and numbers for them."""

    @property
    def name(self) -> str:
        """The model's name, for messages."""
        ...

    @property
    def nodes(self) -> Mapping[str, OpNode]:
        """Every operator by the name of its result, in topological order; shape arithmetic may be left out."""
        ...

    def type(self, name: str) -> TensorType | None:
        """Type of a value, weights and inputs included, batch 1; ``None`` if it is no single tensor."""
        ...

    def depends_on_content(self, name: str) -> bool:
        """Whether the *numbers* of a value depend on an ``argument`` input; positions, zeros and shapes don't count."""
        ...

    def constants(self, name: str) -> frozenset[int]:
        """Magnitudes of the whole numbers that the computation of a value mentions: candidates for window sizes."""
        ...

    def evaluate(
        self, names: Iterable[str], lengths: Mapping[str, int], given: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Computes values for inputs of these lengths.

        Args:
            names: What is wanted.
            lengths: Tokens of every input axis, e.g. ``{"n": 11}``. Inputs are the same random ones every time.
            given: Values (results, weights or inputs) to take instead of computing them; nothing upstream of them runs.

        Returns:
            Exactly the wanted values by name.

        Raises:
            CompileError: They can't be computed at these lengths: a table of positions ends.
        """
        ...


MoveKind: TypeAlias = Literal["transposed", "reshaped"]
Move: TypeAlias = tuple[MoveKind, tuple[int, ...]]
"""A transpose with its permutation, or a reshape with its sizes, -1 for the token axis."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How a tensor of one layout becomes one of another: transposed, then reshaped; nothing is computed.

    Attributes:
        permutation: Axes for a transpose, or ``None``.
        shape: Sizes for a reshape with -1 for the token axis (as every library reads it), or ``None``.
    """

    permutation: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None

    @property
    def moves(self) -> tuple[Move, ...]:
        """Its steps."""
        steps: tuple[tuple[MoveKind, tuple[int, ...] | None], ...] = (
            ("transposed", self.permutation),
            ("reshaped", self.shape),
        )
        return tuple((kind, numbers) for kind, numbers in steps if numbers is not None)

    def undone(self, shape: Sequence[Dim]) -> tuple[Move, ...]:
        """Steps that make a value of ``shape`` of what this arrangement has made of it."""
        order = self.permutation or tuple(range(len(shape)))
        sizes = tuple(-1 if isinstance(dim, str) else dim for dim in (shape[at] for at in order))
        return ("reshaped", sizes), ("transposed", tuple(order.index(at) for at in range(len(order))))

    def apply(self, array: Array) -> Array:
        """The rearranged array."""
        moved = array if self.permutation is None else np.transpose(array, self.permutation)
        return moved if self.shape is None else moved.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class RecognisedAttention:
    """One attention of the model, proven equal to what the model computes.

    ``source`` values exist in the graph; where an arrangement is not empty the front door inserts views. With
    ``q [1, q_num_heads, n, head_dim]``, ``k [1, kv_num_heads, m, head_dim]``, ``v [1, kv_num_heads, m, v_head_dim]``,
    ``result = output_arrangement(softmax(softcap(scale * q k^T) + bias + mask) v)``.

    Attributes:
        output: Name of the value that the attention replaces; nodes that only it needed disappear with it.
        query, key, value: Where the operands come from, and how they are arranged.
        output_arrangement: From ``[1, q_num_heads, n, v_head_dim]`` to the shape of ``output``.
        mask: Which keys a query sees.
        scale: Factor of the scores.
        softcap: Bound of the scores; 0 for none.
        sinks: Learned logits ``float32 [q_num_heads]``, or ``None``.
        bias_table: ``float32 [q_num_heads, 2 * reach + 1]`` by distance, or ``None``.
        bias_slope: ``float32 [q_num_heads]``, or ``None``.
        bias_source: Name of the value that holds the bias: attentions that share it share their bias.
        max_length: Positions of the tables that mask or bias are cut from; ``None`` if they hold for every length.
        node: Name of the softmax, for messages.
        layer: Path of the module, for messages.
    """

    output: str
    query: tuple[str, Arrangement]
    key: tuple[str, Arrangement]
    value: tuple[str, Arrangement]
    output_arrangement: Arrangement
    mask: Mask
    scale: float
    softcap: float
    sinks: Array | None
    bias_table: Array | None
    bias_slope: Array | None
    bias_source: str
    max_length: int | None
    node: str
    layer: str

    def as_node(
        self, name: str, operands: tuple[str, str, str], type_: TensorType, weights: dict[str, Array]
    ) -> AttentionNode:
        """The attention in a source graph.

        Args:
            name: Of its result.
            operands: Its queries, keys and values.
            type_: Of its result.
            weights: Gets what was read of its sinks and bias, one row a head.
        """

        def kept(name: str, array: Array | None) -> str | None:
            if array is None:
                return None
            rows = np.broadcast_to(array, (int(type_.shape[1]), *array.shape[1:]))
            weights[name] = np.array(rows, np.float32)
            return name

        return AttentionNode(
            name,
            *operands,
            type=type_,
            mask=self.mask,
            scale=self.scale,
            softcap=self.softcap,
            sinks=kept(f"{self.output}.sinks", self.sinks),
            bias_table=kept(f"{self.bias_source}.table", self.bias_table),
            bias_slope=kept(f"{self.bias_source}.slope", self.bias_slope),
            layer=self.layer,
        )
