"""The stages of a block program, and the values between them.

All kinds of stages have one face: ``name``, ``kind``, ``engine``, ``inputs`` (names), ``outputs`` (values), ``weights``
(names), ``tiled``, ``on_host``, ``chained`` and ``axes``. What a room does for each kind stands in a table of that room
(:class:`~twoheads.graphs.by_kind.ByKind`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np

from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.sampling import Average

__all__ = [
    "AttentionStage",
    "Dim",
    "ExpertsStage",
    "RelativeBias",
    "ScanStage",
    "SequenceStage",
    "Stage",
    "TokenwiseStage",
    "Value",
]

Dim: TypeAlias = int | str
"""A number, or an axis as :mod:`twoheads.graphs.program.axes` writes it."""


@dataclass(frozen=True, slots=True)
class Value:
    """An array over all tokens of an input: one dimension of ``shape`` is an axis, the others are numbers.

    A *row value* has numbers only: there is one in a run.

    Attributes:
        name: Unique in the program.
        dtype: A NumPy dtype name, e.g. ``float32``.
        shape: Dimensions, e.g. ``(1, 9, "n", 64)`` for queries ``[batch, heads, tokens, head_dim]``.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def axis(self) -> str | None:
        """The axis that it runs over; ``None`` for a row value."""
        for dim in self.shape:  # asked for often: no generator
            if isinstance(dim, str):
                return dim
        return None

    @property
    def token_axis(self) -> int:
        """The index of the dimension that runs over its axis."""
        for index, dim in enumerate(self.shape):
            if isinstance(dim, str):
                return index
        raise InternalError(f"the row value {self.name} has no token axis")

    def block_shape(self, tokens: int) -> tuple[int, ...]:
        """The shape of a block of ``tokens`` positions; of a row value, its shape."""
        return tuple(tokens if isinstance(dim, str) else dim for dim in self.shape)

    def nbytes(self, tokens: int) -> int:
        """Bytes of ``tokens`` positions, or of the row value."""
        return prod(self.block_shape(tokens)) * np.dtype(self.dtype).itemsize


class _AnyStage(ABC):
    """What all kinds of stages have beside ``name``, ``engine``, ``inputs``, ``outputs`` and ``weights``."""

    __slots__ = ()

    @property
    @abstractmethod
    def kind(self) -> str:
        """How reports call it."""

    @abstractmethod
    def axes(self, values: Mapping[str, Value]) -> tuple[str | None, str | None]:
        """The axis whose blocks it is computed for, and that of its keys; ``None`` where there is none.

        Args:
            values: At least those that it reads.
        """

    @property
    def tiled(self) -> tuple[str, ...]:
        """Names of the values that it reads in key tiles."""
        return ()

    @property
    def on_host(self) -> bool:
        """Whether it moves rows of whole values on the host, and calls no engine."""
        return False

    @property
    def chained(self) -> bool:
        """Whether the call for a block needs that for the block before."""
        return False

    @property
    def at_once(self) -> bool:
        """Whether its blocks are no work for several machines: it moves rows, or each block needs the one before."""
        return self.on_host or self.chained

    @property
    def mixes(self) -> bool:
        """Whether a block of it needs other blocks, as attention and scans do."""
        return bool(self.tiled) or self.chained

    @property
    def alone(self) -> bool:
        """Whether its calls are made one after the other, so that the kernels of each use the run's threads."""
        return self.chained

    @property
    def unshared(self) -> bool:
        """Whether inputs can't share its blocks: a row depends on others beyond what a mask shows."""
        return self.on_host or self.chained

    def kept_bytes(self, block_size: int) -> int:
        """Bytes that it holds beside the run's values."""
        return 0


@dataclass(frozen=True, slots=True)
class TokenwiseStage(_AnyStage):
    """One call of ``engine`` for every block; ``weights`` names the tensors bound to its weight ports.

    Its inputs and outputs are on one axis. Inputs may be row values beside, bound whole in every call. Where nothing is
    on an axis, it is called once.
    """

    name: str
    engine: str
    inputs: tuple[str, ...]
    outputs: tuple[Value, ...]
    weights: tuple[str, ...]

    @property
    def kind(self) -> str:
        return "tokenwise"

    def axes(self, values: Mapping[str, Value]) -> tuple[str | None, str | None]:
        touched = (*self.outputs, *(values[name] for name in self.inputs))
        return next((value.axis for value in touched if value.axis is not None), None), None

    @property
    def operands(self) -> tuple[str, ...]:
        """The value of which each input port of the engine reads a block, in order; ``""`` for what is no value."""
        return self.inputs


@dataclass(frozen=True, slots=True)
class RelativeBias:
    """An additive bias that depends on head and distance only.

    ``bias[h, i, j] = table[h, clip(j - i, -reach, reach) + reach] + slope[h] * (j - i)``.

    Attributes:
        table: Name of a weight ``[heads, 2 * reach + 1]`` (T5's buckets), or ``None``.
        slope: Name of a weight ``[heads]`` (ALiBi), or ``None``.
    """

    table: str | None
    slope: str | None


@dataclass(frozen=True, slots=True)
class AttentionStage(_AnyStage):
    """Attention of all query blocks over all non-empty key tiles of ``mask``, merged by log-sum-exp.

    Query and output are on one axis, key and value on one, which is another in cross attention; the mask is then full.

    Attributes:
        name: Unique in the program; usually the layer's path in the source model.
        engine: An :class:`AttentionEngine`, :class:`StockEngine` or :class:`OracleEngine`.
        query, key, value: Token values ``[1, heads, n, head_dim]``.
        output: The token value ``[1, q_num_heads, n, v_head_dim]`` that it defines.
        mask: Which keys a query sees.
        sinks: Name of a weight ``[q_num_heads]`` of learned sink logits (a logit without a value), or ``None``.
        bias: An additive bias on the scores (after scale and softcap), or ``None``.
        average: How the keys outside of the near tiles are sampled (Theorem 4.1), or ``None``: all are attended to.
    """

    name: str
    engine: str
    query: str
    key: str
    value: str
    output: Value
    mask: Mask
    sinks: str | None
    bias: RelativeBias | None
    average: Average | None = None

    @property
    def kind(self) -> str:
        return "attention"

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.query, self.key, self.value

    @property
    def outputs(self) -> tuple[Value, ...]:
        return (self.output,)

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the learned sinks and of what its bias is made of."""
        bias = (self.bias.table, self.bias.slope) if self.bias else ()
        return tuple(name for name in (self.sinks, *bias) if name is not None)

    @property
    def tiled(self) -> tuple[str, ...]:
        return self.key, self.value

    def axes(self, values: Mapping[str, Value]) -> tuple[str | None, str | None]:
        return self.output.axis, values[self.key].axis


@dataclass(frozen=True, slots=True)
class SequenceStage(_AnyStage):
    """Rows of whole values, moved or counted on the host: no engine, no call.

    Attributes:
        name: Unique in the program.
        operator: One of :data:`twoheads.graphs.program.sequence_operators.OPERATORS`.
        inputs: The values it reads, of any axes.
        output: The value that it defines.
        attributes: The operator's attributes and their numbers, by name in alphabetical order.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    output: Value
    attributes: tuple[tuple[str, int], ...] = ()

    @property
    def kind(self) -> str:
        return "sequence"

    @property
    def engine(self) -> str:
        """It calls none."""
        return ""

    @property
    def outputs(self) -> tuple[Value, ...]:
        return (self.output,)

    @property
    def weights(self) -> tuple[str, ...]:
        """It binds none."""
        return ()

    @property
    def on_host(self) -> bool:
        return True

    def axes(self, values: Mapping[str, Value]) -> tuple[str | None, str | None]:
        return self.output.axis, None


@dataclass(frozen=True, slots=True)
class ScanStage(_AnyStage):
    """One call of ``engine`` for every block, in order: each begins with the state that the one before ended with.

    Inputs and output are on one axis. The state is zeros before the first block.

    Attributes:
        name: Unique in the program; usually the layer's path in the source model.
        engine: A :class:`~twoheads.graphs.program.engines.scan.ScanEngine`.
        inputs: The token values of its operator, in the operator's order.
        output: The token value that it defines.
        weights: Names of the operator's weights, bound in every call.
    """

    name: str
    engine: str
    inputs: tuple[str, ...]
    output: Value
    weights: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return "scan"

    @property
    def outputs(self) -> tuple[Value, ...]:
        return (self.output,)

    @property
    def chained(self) -> bool:
        return True

    def axes(self, values: Mapping[str, Value]) -> tuple[str | None, str | None]:
        return self.output.axis, None


@dataclass(frozen=True, slots=True)
class ExpertsStage(_AnyStage):
    """A mixture of experts on all tokens: each token's row by the experts that it chose, weighted and added up.

    The tokens of all blocks are gathered by expert. One expert follows the other, each adding to what those before it
    gave, so results do not depend on how tokens are gathered but for rounding. An expert that no token chose is not
    read.

    Attributes:
        name: Unique in the program; usually the layer's path in the source model.
        engine: An :class:`~twoheads.graphs.program.engines.experts.ExpertsEngine`.
        hidden: The tokens' rows, ``[n, width]`` or ``[1, n, width]``.
        index: The experts that each token chose, whole numbers ``[n, chosen]``; those that are none count nothing.
        share: Their weights in the sum, ``[n, chosen]``.
        output: The token value that it defines, of the shape of ``hidden``.
        weights: Names of the weights of all experts, ``[experts, ...]`` each, in the order of the engine's ports.
    """

    name: str
    engine: str
    hidden: str
    index: str
    share: str
    output: Value
    weights: tuple[str, ...]

    @property
    def kind(self) -> str:
        return "experts"

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.hidden, self.index, self.share

    @property
    def outputs(self) -> tuple[Value, ...]:
        return (self.output,)

    @property
    def at_once(self) -> bool:
        return True

    def axes(self, values: Mapping[str, Value]) -> tuple[str | None, str | None]:
        return self.output.axis, None


Stage: TypeAlias = TokenwiseStage | AttentionStage | SequenceStage | ScanStage | ExpertsStage
