"""The engines of scans: a block of tokens and a state in, the block's output and the next state out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd

from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.scan_operators import OPERATORS, ROWS, Shape, scan_problem

__all__ = ["COUNT", "STEP", "ScanEngine", "engine_problem", "resized_scan", "scan_chunk"]

COUNT = "count"
"""The input port that says how many tokens of a block are there."""

STEP = "step"
"""The variant that extends a sequence, perhaps by less than a block; no run of whole inputs calls it."""

FLOAT = 4
"""Bytes of a number."""


@dataclass(frozen=True, slots=True)
class ScanEngine:
    """One operator of certain sizes: ``engines/<name>.block.onnx``.

    Its file holds no weights. Those of a stage are inputs, as token values and the state are, so that stages of equal
    sizes share one engine, and one that is open.

    Attributes:
        name: Unique in the program.
        operator: One of :data:`~twoheads.graphs.program.engines.scan_operators.OPERATORS`.
        sizes: The operator's sizes, by name in alphabetical order.
        block_size: Tokens of one call.
        chunk: Tokens that are computed by products of matrices, from one state to the next, inside of a call: a power
            of 2 that divides ``block_size``. The mathematics is the same for all, speed and rounding are not.
    """

    name: str
    operator: str
    sizes: tuple[tuple[str, int], ...]
    block_size: int
    chunk: int

    kind = "scan"
    weights = ()
    VARIANTS = variants = run_variants = ("block",)

    @property
    def tokens(self) -> tuple[Port, ...]:
        """The ports of token values, in the order of a stage's ``inputs``."""
        return self._ports(OPERATORS[self.operator].tokens(self._sizes))

    @property
    def weight_ports(self) -> tuple[Port, ...]:
        """The ports of weights, in the order of a stage's ``weights``."""
        return self._ports(OPERATORS[self.operator].weights(self._sizes))

    @property
    def state(self) -> Port:
        """The state that a call begins with, as an input."""
        return self._port("state", OPERATORS[self.operator].state(self._sizes))

    @property
    def output(self) -> Port:
        """What a call gives for its tokens."""
        return self._port("y", OPERATORS[self.operator].output(self._sizes))

    def ports(self, variant: str = "block") -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        """The inputs (token values, weights, ``state``) and outputs (``y``, ``next_state``) of its ONNX file.

        The variant :data:`STEP` takes a ``count [1]`` behind them: tokens beyond it leave the state as it is.
        """
        state = self.state
        count = (Port(COUNT, "int64", (1,)),) if variant == STEP else ()
        inputs = (*self.tokens, *self.weight_ports, state, *count)
        return inputs, (self.output, Port("next_state", state.dtype, state.shape))

    def call_flops(self, variant: str = "block") -> int:
        """Floating-point operations of the matrix products (or of the recurrence, where it has none) of one call."""
        return OPERATORS[self.operator].flops(self._sizes, self.block_size, self.chunk)

    @property
    def workspace(self) -> int:
        """Bytes of intermediate arrays of one call: an estimate."""
        numbers = OPERATORS[self.operator].scratch(self._sizes, self.block_size, self.chunk)
        return FLOAT * numbers + sum(port.nbytes for ports in self.ports() for port in ports)

    @property
    def _sizes(self) -> dict[str, int]:
        return dict(self.sizes)

    def _ports(self, shapes: Mapping[str, Shape]) -> tuple[Port, ...]:
        return tuple(self._port(name, shape) for name, shape in shapes.items())

    def _port(self, name: str, shape: Shape) -> Port:
        return Port(name, "float32", tuple(self.block_size if dim == ROWS else int(dim) for dim in shape))


def scan_chunk(operator: str, block_size: int) -> int:
    """The chunk that suits an operator in blocks of ``block_size`` tokens."""
    return gcd(block_size, OPERATORS[operator].chunk)


def resized_scan(engine: ScanEngine, rows: int) -> ScanEngine:
    """``engine`` for blocks of ``rows`` tokens."""
    return replace(engine, block_size=rows, chunk=scan_chunk(engine.operator, rows))


def engine_problem(engine: ScanEngine, block_size: int) -> str | None:
    """What is wrong with an engine of a program with blocks of ``block_size`` tokens; ``None`` if nothing is."""
    sizes = dict(engine.sizes)
    if len(sizes) != len(engine.sizes):
        return f"{engine.operator} has a size twice"
    power = engine.chunk > 0 and engine.chunk & (engine.chunk - 1) == 0
    if engine.block_size != block_size or not power or block_size % engine.chunk:
        return f"chunks of {engine.chunk} in blocks of {engine.block_size} do not fit blocks of {block_size}"
    return scan_problem(engine.operator, sizes)
