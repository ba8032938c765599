"""Values of all tokens in the file's own graph: as blocks, for engines, and whole, for row movement and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from twoheads.export.one_file.emit.graph import Graph
from twoheads.export.one_file.emit.lengths import Lengths
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import Program, Value

__all__ = ["Values"]


class Values:
    """Every value that is there so far, in the form in which it was made; the other form is made when it is read.

    As blocks it is ``[blocks, *block_shape(M)]``, with anything in the rows of padding; whole it is shaped as declared.
    A row value has one form.
    """

    def __init__(self, graph: Graph, program: Program, lengths: Lengths) -> None:
        self._graph = graph
        self._size = program.block_size
        self._lengths = lengths
        self._declared = {value.name: value for value in program.values()}
        self._blocked: dict[str, str] = {}
        self._whole: dict[str, str] = {}

    def declared(self, name: str) -> Value:
        """How the program declares a value."""
        return self._declared[name]

    def set_blocks(self, name: str, value: str) -> None:
        """A value that engines have made; of a row value, itself."""
        (self._blocked if self._declared[name].axis is not None else self._whole)[name] = value

    def set_whole(self, name: str, value: str) -> None:
        """A value that was made at once."""
        self._whole[name] = value

    def blocks(self, name: str) -> str:
        """A value on an axis as blocks."""
        if name not in self._blocked:
            self._blocked[name] = self._split(self._declared[name], self._whole[name])
        return self._blocked[name]

    def padded_blocks(self, name: str) -> str:
        """A value on an axis as blocks with zeros in the rows of padding."""
        return self._split(self._declared[name], self.whole(name))

    def whole(self, name: str) -> str:
        """A value without padding, shaped as declared."""
        if name not in self._whole:
            if name not in self._blocked:
                raise InternalError(f"value {name} is read before it is made")
            self._whole[name] = self._join(self._declared[name], self._blocked[name])
        return self._whole[name]

    def shape(self, value: Value) -> str:
        """The dimensions of a whole value, int64 ``[rank]``."""
        graph = self._graph
        parts = [
            graph.vector(self._lengths.rows(dim)) if isinstance(dim, str) else graph.ints(dim) for dim in value.shape
        ]
        return graph.op("Concat", *parts, axis=0) if parts else graph.ints()

    def _split(self, value: Value, whole: str) -> str:
        """Whole to blocks: rows of zeros behind it, then a dimension for blocks, moved to the front."""
        graph, at = self._graph, value.token_axis
        if value.axis is None:
            raise InternalError(f"the row value {value.name} has no blocks")
        padded = graph.op("Mul", self._lengths.blocks(value.axis), graph.int64(self._size))
        missing = graph.vector(graph.op("Sub", padded, self._lengths.rows(value.axis)))
        rank = len(value.shape)
        before, behind = graph.ints(*[0] * (rank + at)), graph.ints(*[0] * (rank - at - 1))
        pads = graph.op("Concat", before, missing, behind, axis=0)
        split = graph.reshape(graph.op("Pad", whole, pads), *_numbers(value, at, (-1, self._size)))
        return graph.op("Transpose", split, perm=[at, *(axis for axis in range(rank + 1) if axis != at)])

    def _join(self, value: Value, blocks: str) -> str:
        """Blocks to whole: the dimension of blocks beside that of tokens, both in one, and no padding."""
        graph, at = self._graph, value.token_axis
        if value.axis is None:
            raise InternalError(f"the row value {value.name} has no blocks")
        if prod(dim for dim in value.shape[:at] if isinstance(dim, int)) != 1:
            rest = range(at + 1, len(value.shape) + 1)
            blocks = graph.op("Transpose", blocks, perm=[*range(1, at + 1), 0, *rest])
        joined = graph.reshape(blocks, *_numbers(value, at, (-1,)))
        return graph.op("Slice", joined, graph.ints(0), graph.vector(self._lengths.rows(value.axis)), graph.ints(at))


def _numbers(value: Value, at: int, tokens: Sequence[int]) -> tuple[int, ...]:
    """The shape of ``value`` with ``tokens`` in place of its axis."""
    numbers = [dim for dim in value.shape if isinstance(dim, int)]
    return (*numbers[:at], *tokens, *numbers[at:])
