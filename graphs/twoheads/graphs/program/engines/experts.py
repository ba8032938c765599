"""The engines of experts: some rows of tokens, the weights of one expert, and what earlier experts gave these rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite

from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.quantised import QUANTISATION_BLOCK, quantised_ports

__all__ = [
    "GATES",
    "LAYOUTS",
    "ExpertsEngine",
    "expert_problem",
    "fewest_calls",
    "most_calls",
    "row_calls",
    "rows_variant",
    "step_sizes",
]

GATES = ("gelu", "gelu_tanh", "relu", "relu_squared", "silu", "swiglu")
"""What is done with an expert's inner rows.

``swiglu`` is ``(up + 1) * gate * sigmoid(alpha * gate)``; the others are activations: ``act(gate) * up``, or ``act``
alone where the layout is ``single``.
"""

LAYOUTS = ("halves", "pairs", "single")
"""Where gate and up lie in the first product: one behind the other, in turns, or there is no gate."""

CALL_ROWS = 32
"""What a call costs beside its rows, in rows: kernels read and rearrange the weights anew for each call."""

SMALLEST = 8
"""Rows of the smallest engine beside that of a single row."""


@dataclass(frozen=True, slots=True)
class ExpertsEngine:
    """One expert of certain sizes on some rows: ``engines/<name>.rows_<R>.onnx``, a file for each ``R``.

    ``y = prev + share * down(gate(up(x)))``: ``x [R, width]``, ``share [R, 1]`` (the router's weight of the expert for
    each row), ``prev [R, width]`` (the sum over earlier experts), then the weights of the expert; ``y [R, width]``.
    A file holds no weights. An expert's are inputs, so all experts of all equal layers share the files and what is
    open of them, and an expert that no token needs is not read.

    Attributes:
        name: Unique in the program.
        experts: Of a layer.
        chosen: How many of them a token needs at most.
        width: Of a token's row.
        inner: Of the row between the two products.
        gate: One of :data:`GATES`.
        layout: One of :data:`LAYOUTS`.
        limit: Gates are cut above it, and ups on both sides; 0 for no limit.
        alpha: Of ``swiglu``; 0 elsewhere.
        transposed: 1 where products read weights ``[in, out]``, 0 for ``[out, in]``.
        biased: 1 where both products have a bias.
        block_size: Rows of the largest file.
        dtype: Of all ports but those of quantised weights.
        up_bits: Of the first product's weights: 8 or 4, or 0 where they are of ``dtype``.
        down_bits: The same of the second's.
    """

    name: str
    experts: int
    chosen: int
    width: int
    inner: int
    gate: str
    layout: str
    limit: float
    alpha: float
    transposed: int
    biased: int
    block_size: int
    dtype: str
    up_bits: int = 0
    down_bits: int = 0

    kind = "experts"
    weights = ()

    @property
    def row_sizes(self) -> tuple[int, ...]:
        """Rows of the files, ascending: 1, then doubling from 8 on, and a block."""
        sizes, rows = [1], SMALLEST
        while rows < self.block_size:
            sizes.append(rows)
            rows *= 2
        return tuple(dict.fromkeys((*sizes, self.block_size)))

    @property
    def variants(self) -> tuple[str, ...]:
        """Every file's variant."""
        return tuple(map(rows_variant, self.row_sizes))

    @property
    def VARIANTS(self) -> tuple[str, ...]:  # noqa: N802 - as other kinds of engines call it
        """The same."""
        return self.variants

    @property
    def run_variants(self) -> tuple[str, ...]:
        """The same."""
        return self.variants

    @property
    def expert_ports(self) -> tuple[Port, ...]:
        """The weights of one expert, in the order of a stage's ``weights``: first product, its bias, second, its.

        A quantised one is several ports: values, scales, and with 4 bits zeros; they begin with the outer dimension.
        """
        up, down = (self.made, self.width), (self.width, self.inner)
        if self.transposed:
            up, down = up[::-1], down[::-1]
        ports: list[Port] = []
        for name, shape, bits, bias in (
            ("up", up, self.up_bits, self.made),
            ("down", down, self.down_bits, self.width),
        ):
            port = Port(name, self.dtype, shape)
            ports += quantised_ports(port, bits, transposed=bool(self.transposed)) if bits else (port,)
            ports += [Port(f"{name}_bias", self.dtype, (bias,))] if self.biased else []
        return tuple(ports)

    @property
    def made(self) -> int:
        """Width of what the first product gives."""
        return self.inner if self.layout == "single" else 2 * self.inner

    @property
    def weight_ports(self) -> tuple[Port, ...]:
        """The weights of a stage: those of all experts, one behind the other."""
        return tuple(replace(port, shape=(self.experts, *port.shape)) for port in self.expert_ports)

    def ports(self, variant: str) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        """The inputs and the output of one file."""
        rows = int(variant.removeprefix("rows_"))
        tokens = Port("x", self.dtype, (rows, self.width))
        inputs = (tokens, Port("share", self.dtype, (rows, 1)), replace(tokens, name="prev"), *self.expert_ports)
        return inputs, (replace(tokens, name="y"),)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's weights."""
        return sum(port.nbytes for port in self.expert_ports)

    @property
    def row_flops(self) -> int:
        """Floating-point operations of the matrix products of one expert for one row."""
        return 2 * self.width * (self.made + self.inner)

    def call_flops(self, variant: str = "") -> int:
        """The same of one call; of the largest file if none is named."""
        rows = int(variant.removeprefix("rows_")) if variant else self.block_size
        return rows * self.row_flops

    @property
    def workspace(self) -> int:
        """Bytes of the arrays of one call of the largest file: its ports but for weights, and inner rows.

        Beside them a quantised weight's numbers, which kernels expand, and rows of two calls that wait to be added.
        """
        expanded = max(self.made if self.up_bits else 0, self.inner if self.down_bits else 0) * self.width
        return 4 * self.block_size * (6 * self.width + 2 * self.made + 2 * self.inner) + 4 * expanded


def rows_variant(rows: int) -> str:
    """The variant for calls of ``rows`` rows."""
    return f"rows_{rows}"


@lru_cache(maxsize=1 << 12)
def row_calls(sizes: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """The sizes of the calls that compute ``rows`` rows of one expert, those of whole blocks first.

    Of ``sizes``, which ascend, the largest serves as long as there are as many rows. The rest takes the calls that
    cost least; the last of them may hold rows that nobody reads.
    """
    whole, rest = divmod(rows, sizes[-1])
    return (sizes[-1],) * whole + _rest_calls(sizes, rest)


@lru_cache(maxsize=1 << 12)
def _rest_calls(sizes: tuple[int, ...], rest: int) -> tuple[int, ...]:
    if rest == 0:
        return ()
    one = next(size for size in sizes if size >= rest)
    ways: list[tuple[int, ...]] = [(one,)]
    below = [size for size in sizes if 1 < size < rest]
    if below:
        ways.append((below[-1], *_rest_calls(sizes, rest - below[-1])))
    return min(ways, key=lambda calls: sum(calls) + CALL_ROWS * len(calls))


def step_sizes(engine: ExpertsEngine, rows: int) -> tuple[int, ...]:
    """The sizes of calls for a step of ``rows`` tokens.

    Kernels for a single row give other last bits than those for several, so a step of several never takes them.
    """
    return engine.row_sizes[:1] if rows == 1 else engine.row_sizes[1:]


def most_calls(engine: ExpertsEngine, tokens: int, *, step: bool = False) -> int:
    """The most calls that ``tokens`` tokens take, however they choose; in one ``step`` of a sequence, or in a run."""
    pairs = tokens * engine.chosen
    sizes = step_sizes(engine, tokens) if step else engine.row_sizes
    most = min(tokens, engine.block_size)  # of one expert, beside whole blocks
    beside = max(len(_rest_calls(sizes, rest)) for rest in range(1, most + 1)) if most <= sizes[-1] else most
    return min(pairs, pairs // engine.block_size + min(engine.experts, pairs) * beside)


def fewest_calls(engine: ExpertsEngine, tokens: int) -> int:
    """The fewest calls that ``tokens`` tokens take, where each chooses as many experts as it may."""
    return max(min(engine.chosen, tokens * engine.chosen), -(-tokens * engine.chosen // engine.block_size))


def expert_problem(engine: ExpertsEngine, block_size: int) -> str | None:
    """What is wrong with an engine of a program with blocks of ``block_size`` tokens; ``None`` if nothing is."""
    if engine.gate not in GATES or engine.layout not in LAYOUTS:
        return f"has the gate {engine.gate!r} of layout {engine.layout!r}, which no version knows"
    if (engine.gate == "swiglu") != (engine.alpha != 0) or (engine.gate == "swiglu" and engine.layout == "single"):
        return f"has the gate {engine.gate!r} with alpha {engine.alpha:g} and layout {engine.layout!r}"
    if not (isfinite(engine.alpha) and isfinite(engine.limit) and engine.limit >= 0):
        return f"has the numbers limit {engine.limit:g} and alpha {engine.alpha:g}"
    if problem := _bits_problem(engine):
        return problem
    if engine.block_size != block_size:
        return f"computes blocks of {engine.block_size} rows, the program has {block_size}"
    if not 1 <= engine.chosen <= engine.experts:
        return f"chooses {engine.chosen} of {engine.experts} experts"
    if min(engine.width, engine.inner) < 1 or {engine.transposed, engine.biased} - {0, 1}:
        return "has sizes that no expert has"
    return None


def _bits_problem(engine: ExpertsEngine) -> str | None:
    for name, bits, inner in (("up", engine.up_bits, engine.width), ("down", engine.down_bits, engine.inner)):
        if bits not in (0, 4, 8):
            return f"has weights {name} of {bits} bits"
        if bits and (inner % QUANTISATION_BLOCK or engine.dtype != "float32"):
            return f"has weights {name} of {bits} bits, of {inner} {engine.dtype} numbers a row"
    return None
