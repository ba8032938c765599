"""The block program: how fixed-shape engines compute a model of any length, symbolic in the number of blocks.

A program is data. It declares values, engines and stages; the length ``N`` appears only as the symbol ``n``, the
token axis of a value, or as a formula of it (:mod:`twoheads.graphs.program.axes`).
:mod:`twoheads.graphs.program.printer` prints and parses a program, :mod:`twoheads.graphs.schedule.schedule` expands
it for one ``N``, and the runtime executes the schedule.

A value has at most one axis. One without an axis is a *row value*: an image, a pooled vector, the length itself. It is
computed once a run.

Execution model: the *body* runs stage after stage, each over all blocks of ``block_size`` rows of its axis. The *head*
stages read nothing but the ``hidden`` output and weights and are token-wise, so they run on any packed selection of
positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np

from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.program.engines.oracle import OracleEngine
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.stock_attention import StockEngine
from twoheads.graphs.program.engines.tile_attention import AttentionEngine
from twoheads.graphs.program.engines.tokenwise import TokenwiseEngine

__all__ = [
    "COUNTING",
    "TOKENS",
    "AttentionEngine",
    "AttentionStage",
    "Dim",
    "Engine",
    "Input",
    "Limit",
    "OracleEngine",
    "Pooling",
    "Port",
    "Program",
    "RelativeBias",
    "SequenceStage",
    "Stage",
    "StockEngine",
    "TokenwiseEngine",
    "TokenwiseStage",
    "Value",
    "inputs_of",
    "outputs_of",
]

TOKENS = "n"
"""The axis of the caller's tokens; where an encoder reads others (``m``), that of the decoder's."""

COUNTING = ("positions", "counts")
"""Sources of inputs that number the tokens; they differ where there is padding."""

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
        return next((dim for dim in self.shape if isinstance(dim, str)), None)

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


Engine: TypeAlias = TokenwiseEngine | AttentionEngine | StockEngine | OracleEngine


@dataclass(frozen=True, slots=True)
class Input:
    """A value that the run supplies.

    Attributes:
        value: The array: one row a token, or a row value (an image).
        source: ``argument`` (the caller's tokens or features), ``positions`` (0, 1, 2, ... on the value's axis),
            ``counts`` (the same, but of a model that adds up its attention mask: padding is not counted), ``zeros``, or
            ``length`` (an int64 row value ``[1]``: how many tokens ``axis`` has).
        limit: Exclusive upper bound of the entries (a vocabulary's size); ``None`` where there is none.
        axis: Whose length, for the source ``length``; else ``None``.
    """

    value: Value
    source: str
    limit: int | None
    axis: str | None = None


@dataclass(frozen=True, slots=True)
class TokenwiseStage:
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
class AttentionStage:
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


@dataclass(frozen=True, slots=True)
class SequenceStage:
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


Stage: TypeAlias = TokenwiseStage | AttentionStage | SequenceStage


@dataclass(frozen=True, slots=True)
class Limit:
    """The longest input the *model* can take, in tokens of an input axis, and why (e.g. a learned position table)."""

    length: int
    reason: str
    axis: str = TOKENS


@dataclass(frozen=True, slots=True)
class Pooling:
    """How token embeddings become one vector: ``mean``, ``cls`` (first) or ``last``; unit length if ``normalize``."""

    mode: str
    normalize: bool


@dataclass(frozen=True, slots=True)
class Program:
    """A whole model as stages over blocks; see the module's docstring.

    Attributes:
        name: The source model's name.
        block_size: ``M``, tokens of a block. key_tile: tokens of a key tile, a multiple of ``block_size``.
        inputs, engines: Declarations.
        body: Stages over all blocks; they define the value named ``hidden``.
        head: Token-wise stages from ``hidden`` to ``logits``; empty where the model has no head, or where its logits
            are of the whole input: a row value that the body computes.
        hidden: Name of the value of last hidden states, ``[1, n, width]``, or on another axis (``n+1``).
        logits: Name of the head's output ``[1, n, classes]`` or of the body's row value ``[1, classes]``, or ``None``.
        pooling: How ``hidden`` becomes an embedding, or ``None`` where the model is not an embedder.
        max_length: What the model itself can't exceed, or ``None``.
        other_limits: The same for further input axes (an encoder's).
        trained_length: The context it was trained on; longer inputs run with a warning. ``None`` if unknown.
    """

    name: str
    block_size: int
    key_tile: int
    inputs: tuple[Input, ...]
    engines: tuple[Engine, ...]
    body: tuple[Stage, ...]
    head: tuple[TokenwiseStage, ...]
    hidden: str
    logits: str | None
    pooling: Pooling | None
    max_length: Limit | None
    trained_length: int | None
    other_limits: tuple[Limit, ...] = ()

    @property
    def default_output(self) -> str:
        """What a run returns unless told otherwise: ``embedding``, else ``logits``, else ``hidden``."""
        return "embedding" if self.pooling else "logits" if self.logits else "hidden"

    @property
    def pooled_logits(self) -> bool:
        """Whether the logits are one row of the whole input, computed by the body, and not a row a token."""
        return self.logits is not None and self.value(self.logits).axis is None

    @property
    def outputs(self) -> tuple[str, ...]:
        """What a run can be asked for."""
        last = ("last",) if self.logits is not None and not self.pooled_logits else ()
        logits = ("logits",) if self.logits is not None else ()
        return ("hidden", *logits, *last, *(("embedding",) if self.pooling else ()))

    def row_value(self, output: str) -> Value | None:
        """The value whose rows are those of ``output``, one a token; ``None`` where it is one row of an input."""
        if output == "hidden":
            return self.value(self.hidden)
        per_token = output == "logits" and self.logits is not None and not self.pooled_logits
        return self.value(self.logits) if per_token and self.logits is not None else None

    @property
    def limits(self) -> tuple[Limit, ...]:
        """What the model itself can't exceed, along all input axes."""
        return (*(() if self.max_length is None else (self.max_length,)), *self.other_limits)

    def engine(self, name: str) -> Engine:
        """The engine called ``name``."""
        for engine in self.engines:
            if engine.name == name:
                return engine
        raise InternalError(f"program {self.name} has no engine {name!r}")

    def values(self) -> Iterator[Value]:
        """Every value, in order of definition."""
        for entry in self.inputs:
            yield entry.value
        for stage in (*self.body, *self.head):
            yield from outputs_of(stage)

    def value(self, name: str) -> Value:
        """The value called ``name``."""
        for value in self.values():
            if value.name == name:
                return value
        raise InternalError(f"program {self.name} has no value {name!r}")

    def lookup_limits(self, stage: TokenwiseStage) -> frozenset[int]:
        """The limits of the numbers in which ``stage`` looks up rows of tables among its weights: their rows."""
        read = (entry.limit for entry in self.inputs if entry.value.name in stage.inputs)
        return frozenset(limit for limit in read if limit is not None)

    def weights(self) -> tuple[str, ...]:
        """Every weight that a stage binds, once, in order of first use."""
        names: dict[str, None] = {}
        for stage in (*self.body, *self.head):
            if isinstance(stage, TokenwiseStage):
                names.update(dict.fromkeys(stage.weights))
            elif isinstance(stage, AttentionStage):
                bias = (stage.bias.table, stage.bias.slope) if stage.bias else ()
                names.update(dict.fromkeys(name for name in (stage.sinks, *bias) if name is not None))
        return tuple(names)


def inputs_of(stage: Stage) -> tuple[str, ...]:
    """Names of the values that a stage reads."""
    return (stage.query, stage.key, stage.value) if isinstance(stage, AttentionStage) else stage.inputs


def outputs_of(stage: Stage) -> tuple[Value, ...]:
    """The values that a stage defines."""
    return stage.outputs if isinstance(stage, TokenwiseStage) else (stage.output,)
