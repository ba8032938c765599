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

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.engines.experts import ExpertsEngine
from twoheads.graphs.program.engines.oracle import OracleEngine
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.scan import ScanEngine
from twoheads.graphs.program.engines.stock_attention import StockEngine
from twoheads.graphs.program.engines.tile_attention import AttentionEngine
from twoheads.graphs.program.engines.tokenwise import TokenwiseEngine
from twoheads.graphs.program.stages import (
    AttentionStage,
    Dim,
    ExpertsStage,
    RelativeBias,
    ScanStage,
    SequenceStage,
    Stage,
    TokenwiseStage,
    Value,
)

__all__ = [
    "COUNTING",
    "TOKENS",
    "AnyAttention",
    "AttentionEngine",
    "AttentionStage",
    "Dim",
    "Engine",
    "ExpertsEngine",
    "ExpertsStage",
    "Input",
    "Limit",
    "OracleEngine",
    "Pooling",
    "Port",
    "Program",
    "RelativeBias",
    "ScanEngine",
    "ScanStage",
    "SequenceStage",
    "Stage",
    "StockEngine",
    "TokenwiseEngine",
    "TokenwiseStage",
    "Value",
]

TOKENS = "n"
"""The axis of the caller's tokens; where an encoder reads others (``m``), that of the decoder's."""

COUNTING = ("positions", "counts")
"""Sources of inputs that number the tokens; they differ where there is padding."""

AnyAttention: TypeAlias = AttentionEngine | StockEngine | OracleEngine
"""The engines of attention, of all lowerings."""

Engine: TypeAlias = TokenwiseEngine | AnyAttention | ScanEngine | ExpertsEngine

E = TypeVar("E", bound=TokenwiseEngine | AttentionEngine | StockEngine | OracleEngine | ScanEngine | ExpertsEngine)


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

    def engine_of(self, kind: type[E], name: str) -> E:
        """The engine called ``name``, which must be of the kind ``kind``."""
        for engine in self.engines:
            if engine.name == name and isinstance(engine, kind):
                return engine
        raise InternalError(f"program {self.name} has no {kind.kind} engine {name!r}")

    @property
    def attentions(self) -> tuple[AttentionStage, ...]:
        """The body's stages of attention."""
        return tuple(stage for stage in self.body if isinstance(stage, AttentionStage))

    @property
    def scans(self) -> tuple[ScanStage, ...]:
        """The body's stages whose blocks are a chain."""
        return tuple(stage for stage in self.body if isinstance(stage, ScanStage))

    @property
    def mixtures(self) -> tuple[ExpertsStage, ...]:
        """The body's stages that gather tokens by expert."""
        return tuple(stage for stage in self.body if isinstance(stage, ExpertsStage))

    @property
    def bindings(self) -> tuple[tuple[TokenwiseStage, TokenwiseEngine], ...]:
        """Every stage of body and head that is called once a block, with its engine."""
        engines = {engine.name: engine for engine in self.tokenwise_engines}
        stages = (stage for stage in (*self.body, *self.head) if isinstance(stage, TokenwiseStage))
        return tuple((stage, engines[stage.engine]) for stage in stages)

    def with_attentions(self, change: Callable[[AttentionStage], AttentionStage]) -> Program:
        """The program with every attention of the body changed; itself where none is."""
        body = tuple(change(stage) if isinstance(stage, AttentionStage) else stage for stage in self.body)
        same = all(new is old for new, old in zip(body, self.body, strict=True))
        return self if same else replace(self, body=body)

    @property
    def tokenwise_engines(self) -> tuple[TokenwiseEngine, ...]:
        """The engines that are called once a block."""
        return tuple(engine for engine in self.engines if isinstance(engine, TokenwiseEngine))

    @property
    def tile_engines(self) -> tuple[AttentionEngine, ...]:
        """The engines of attention over key tiles."""
        return tuple(engine for engine in self.engines if isinstance(engine, AttentionEngine))

    @property
    def tiled(self) -> frozenset[str]:
        """Names of the values that lie in key tiles: those that an attention reads as keys or values."""
        return frozenset(name for stage in self.body for name in stage.tiled)

    def values(self) -> Iterator[Value]:
        """Every value, in order of definition."""
        for entry in self.inputs:
            yield entry.value
        for stage in (*self.body, *self.head):
            yield from stage.outputs

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

    def tables(self, stage: TokenwiseStage, engine: TokenwiseEngine) -> frozenset[str]:
        """The weights of ``stage`` in which it looks up rows by such numbers; ``engine`` is the one that it calls."""
        limits = self.lookup_limits(stage)
        bound = zip(stage.weights, engine.weights, strict=True)
        return frozenset(name for name, port in bound if port.shape and port.shape[0] in limits)

    def weights(self) -> tuple[str, ...]:
        """Every weight that a stage binds, once, in order of first use."""
        return tuple(dict.fromkeys(name for stage in (*self.body, *self.head) for name in stage.weights))
