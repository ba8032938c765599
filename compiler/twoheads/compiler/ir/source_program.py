"""What the passes need of a captured model beside its graph: values by experiment, and regions to make engines of.

Both front doors implement it, on torch's FX graphs and on ONNX files. All arrays are NumPy's, so that no pass needs
either of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.compiler.ir.size_formula import lengths_for
from twoheads.compiler.ir.source_graph import SourceGraph
from twoheads.graphs.program.axes import axis_inputs, axis_length, parse_axis
from twoheads.graphs.program.program import COUNTING, Input, Pooling, TokenwiseEngine
from twoheads.graphs.serialization.bundle_format import SourceIdentity

__all__ = [
    "Captured",
    "LookUp",
    "SourceProgram",
    "TokenwiseRegion",
    "Weight",
    "all_lengths",
    "example_inputs",
    "input_lengths",
    "trial_lengths",
]

OTHER_LENGTH = 9
"""Tokens of the inputs that an experiment is not about."""

SPECIAL = 4
"""Token numbers below this are mostly special ones (padding, begin, end)."""

Weight: TypeAlias = Any
"""A weight where the source has it, referenced, never copied: a torch tensor, which may be one that reads its numbers
when an operator needs them, or a NumPy array."""


@dataclass(frozen=True, slots=True)
class LookUp:
    """A node that reads rows of a table: names of both, and the table's axis that is indexed."""

    table: str
    index: str
    axis: int


class TokenwiseRegion(Protocol):
    """A region at a fixed block size, ready to become an engine.

    Attributes:
        nodes: Names of the region's nodes, constants included, in topological order.
        inputs, weights, outputs: Names in the order of the engine's ports.
        axis: The token axis of its values; ``None`` for a region that runs once on values without one.
    """

    @property
    def nodes(self) -> tuple[str, ...]: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def weights(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def axis(self) -> str | None: ...

    def flops(self, engine: TokenwiseEngine) -> int:
        """Floating-point operations of the matrix products of one call of ``engine``, which has the region's ports."""
        ...


class SourceProgram(Protocol):
    """The computation behind a :class:`SourceGraph`; names are the graph's."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What a run supplies."""
        ...

    @property
    def weights(self) -> Mapping[str, Weight]:
        """Parameters, buffers and constants by name."""
        ...

    def evaluate(self, names: Iterable[str], inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """Runs what the named values need on ``inputs``; returns these at least (tuple results as lists)."""
        ...

    def evaluate_each(
        self, names: Iterable[str], given: Sequence[Mapping[str, npt.NDArray[Any]]]
    ) -> list[dict[str, Any]]:
        """The same for each of ``given``; weights that are read from files are read once for all of them."""
        ...

    def evaluate_nodes(
        self, names: Sequence[str], values: Mapping[str, Any], lengths: Mapping[str, int]
    ) -> Mapping[str, Any]:
        """Token-wise nodes that follow each other, on given operands, with the sizes at ``lengths`` (of input axes)."""
        ...

    def look_up(self, name: str) -> LookUp | None:
        """What the node reads if it is a table look-up."""
        ...

    def region(
        self,
        nodes: tuple[str, ...],
        inputs: tuple[str, ...],
        weights: tuple[str, ...],
        outputs: tuple[str, ...],
        axis: str | None,
        /,
    ) -> TokenwiseRegion:
        """The named nodes as a region."""
        ...


@dataclass(frozen=True, slots=True)
class Captured:
    """A model read by a front door.

    Attributes:
        graph, program: Its computation.
        identity: What it is.
        tokenizer_json: A `tokenizers` file's contents, or ``None``.
        pooling: How an embedding is made of hidden states, or ``None``.
        trained_length: Context length it was trained on, or ``None``.
        generation_json: What it says about generating, or ``None``.
        dense_experts: Why mixtures of experts are computed densely, by the paths of their modules.
        left_out: Results of an ONNX file that are neither its last hidden states nor its logits, and no caches.
    """

    graph: SourceGraph
    program: SourceProgram
    identity: SourceIdentity
    tokenizer_json: bytes | None = None
    pooling: Pooling | None = None
    trained_length: int | None = None
    generation_json: bytes | None = None
    dense_experts: Mapping[str, str] = field(default_factory=dict[str, str])
    left_out: tuple[str, ...] = ()


def input_lengths(inputs: Iterable[Input], tokens: int, *, step: int = 0) -> dict[str, int]:
    """A length for every input axis: ``tokens`` for the first, ``step`` more for each further one.

    Where that leaves hardly a row of what strides make of an input (its positions are one, too), so much that there are
    ``tokens`` rows.
    """
    axes = {axis for entry in inputs for axis in (entry.value.axis, entry.axis) if axis is not None}
    names = sorted({name for axis in axes for name in axis_inputs(axis)}, key=lambda name: (name != "n", name))
    lengths = {name: tokens + step * at for at, name in enumerate(names)}
    for axis in sorted(axes):
        parts = parse_axis(axis)
        rows = (sum(lengths[name] for name in parts.of) + parts.add) // parts.div
        if parts.div > 1 and rows < min(2, tokens):
            lengths |= lengths_for(axis, tokens)
    return lengths


def trial_lengths(graph: SourceGraph, tokens: int, *, step: int = 0) -> dict[str, int]:
    """:func:`input_lengths` at which the last hidden states have ``tokens`` rows where strides make fewer of an input.

    Of a waveform of so few samples nothing would be left. What an encoder makes of another input has as many rows.
    """
    lengths = input_lengths(graph.inputs, tokens, step=step)
    types = graph.types()
    own = _strided(types[graph.hidden].axis)
    other = {axis for type_ in types.values() if (axis := _strided(type_.axis)) and own != axis}
    for axis in sorted(other, key=lambda each: parse_axis(each).div):  # the shortest one last
        if axis_inputs(axis) != _names(types[graph.hidden].axis):
            lengths |= lengths_for(axis, tokens)
    return lengths if own is None else lengths | lengths_for(own, tokens)


def _strided(axis: str | None) -> str | None:
    """The axis if it has fewer rows than its input."""
    try:
        parts = None if axis is None else parse_axis(axis)
    except ValueError:  # several rows a token, which partitioning refuses by name
        return None
    return axis if parts is not None and parts.of and parts.div > 1 else None


def all_lengths(inputs: Iterable[Input], lengths: Mapping[str, int]) -> dict[str, int]:
    """``lengths`` with ``OTHER_LENGTH`` for every input axis that an experiment does not name."""
    return {**input_lengths(inputs, OTHER_LENGTH), **lengths}


def _names(axis: str | None) -> tuple[str, ...]:
    return () if axis is None else axis_inputs(axis)


def example_inputs(inputs: Iterable[Input], lengths: Mapping[str, int], seed: int) -> dict[str, npt.NDArray[Any]]:
    """An array for every input at ``lengths``: token numbers below their limit, normal features, positions, zeros.

    Half of the tokens are of the first few: special tokens, on which padding and position arithmetic turns, are there.
    """
    generator = np.random.default_rng(seed)
    made: dict[str, npt.NDArray[Any]] = {}
    for entry in inputs:
        value = entry.value
        tokens = 0 if value.axis is None else axis_length(value.axis, lengths)
        shape, dtype = value.block_shape(tokens), np.dtype(value.dtype)
        if entry.source == "length" and entry.axis is not None:
            made[value.name] = np.full(shape, axis_length(entry.axis, lengths), dtype)
        elif entry.source in COUNTING:
            view = [-1 if at == value.token_axis else 1 for at in range(len(shape))]
            made[value.name] = np.broadcast_to(np.arange(tokens, dtype=dtype).reshape(view), shape).copy()
        elif entry.source == "zeros":
            made[value.name] = np.zeros(shape, dtype)
        elif dtype.kind == "f":
            made[value.name] = generator.standard_normal(shape).astype(dtype)
        else:
            limit = entry.limit or 2
            special = generator.integers(0, min(limit, SPECIAL), shape)
            other = generator.integers(0, limit, shape)
            made[value.name] = np.where(generator.random(shape) < 0.5, special, other).astype(dtype)
    return made
