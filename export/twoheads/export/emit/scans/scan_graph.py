"""The graph of a scan's engine under construction: sizes, triangles of ones, and what several forms share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from twoheads.export.emit.graph_builder import GraphBuilder
from twoheads.graphs.program.engines.scan import ScanEngine

__all__ = ["ScanGraph"]

LOWEST = -200.0
"""Decays below this count as this: ``exp(-104)`` is 0 in float32. So -inf does no harm, nor do sums lose digits."""


class ScanGraph(GraphBuilder):
    """The graph of one engine.

    Attributes:
        sizes: Of its operator.
        rows: Tokens of a block; they are ``chunks`` times ``chunk``.
        count: The port that says how many of them are there; empty where all are.
    """

    def __init__(self, engine: ScanEngine) -> None:
        super().__init__()
        self.sizes: Mapping[str, int] = dict(engine.sizes)
        self.rows = engine.block_size
        self.chunk = engine.chunk
        self.chunks = engine.block_size // engine.chunk
        self.count = ""

    def hide(self, tokens: Sequence[tuple[str, int, float]]) -> None:
        """Takes tokens that are not there out, before all else.

        Args:
            tokens: The ports of token values, each with the dimensions behind that of its tokens, and with the number
                that stands for no token.
        """
        read = {port: f"{port}/there" for port, *_ in tokens}
        for node in self.nodes:
            node.input[:] = [read.get(name, name) for name in node.input]
        before, self.nodes = self.nodes, []
        places = self.array("places", np.arange(self.rows, dtype=np.int64))
        less = self.node("Less", places, self.count, output="there/less")
        there = self.node("Cast", less, output="there", to=TensorProto.FLOAT)
        for port, behind, absent in tokens:
            factor = self.reshape(there, self.rows, *[1] * behind, output=f"{port}/factor")
            if absent:
                numbers = self.node("Mul", port, factor, output=f"{port}/numbers")
                missing = self.node("Sub", self.constant(1.0), factor, output=f"{port}/missing")
                filled = self.node("Mul", missing, self.constant(absent), output=f"{port}/filled")
                self.node("Add", numbers, filled, output=read[port])
            else:
                self.node("Mul", port, factor, output=read[port])
        self.nodes += before

    def upto(self, size: int) -> str:
        """``[size, size]``: ones where a column is not after its row."""
        return self._triangle("upto", size, np.tril)

    def before(self, size: int) -> str:
        """Ones where a column is before its row."""
        return self._triangle("before", size, lambda ones: np.tril(ones, -1))

    def after(self, size: int) -> str:
        """Ones where a column is after its row."""
        return self._triangle("after", size, lambda ones: np.triu(ones, 1))

    def _triangle(self, name: str, size: int, make: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]) -> str:
        key = f"{name}_{size}"
        return key if key in self.constants else self.array(key, make(np.ones((size, size), np.float32)))

    def exp_sums(self, triangle: str, logs: str) -> str:
        """The exponentials of those sums of ``logs [..., size, width]`` that ``triangle [size, size]`` takes."""
        return self.node("Exp", self.node("MatMul", triangle, logs))

    def turned(self, value: str, rank: int = 4) -> str:
        """With its last two dimensions exchanged."""
        return self.node("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])

    def part(self, value: str, axis: int, start: int, stop: int) -> str:
        """The entries from ``start`` to ``stop`` along ``axis``."""
        return self.node("Slice", value, *(self.constant([number]) for number in (start, stop, axis)))

    def parts(self, value: str, axis: int, count: int, size: int = 1) -> list[str]:
        """``count`` parts along ``axis``, of ``size`` entries each."""
        if count == 1:
            return [value]
        names = [f"{value}/{axis}/{at}" for at in range(count)]
        sizes = self.constant([size] * count)
        self.nodes.append(helper.make_node("Split", [value, sizes], names, name=f"{value}/{axis}", axis=axis))
        return names

    def joined(self, values: Sequence[str], axis: int) -> str:
        """One after the other along ``axis``."""
        return values[0] if len(values) == 1 else self.node("Concat", *values, axis=axis)

    def decays(self, *shape: int) -> str:
        """The port ``decay`` as an array of ``shape``."""
        return self.reshape(self.node("Max", "decay", self.constant(LOWEST)), *shape)
