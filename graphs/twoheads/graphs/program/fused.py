"""Stages that stand for others: a run of stages in one call a block, and the head in several.

The first is of an engine that holds the stages, and is called in their place.

Such an engine is called as a token-wise one is, and its attentions see a fixed number of key tiles. Without windows, a
block attends to itself alone: a whole input of at most one block. Otherwise the tiles of earlier and later blocks are
inputs: read from the run's values, or *kept* by the run, in rings of as many blocks as the longest window reaches. The
states of scans are inputs and outputs as well.

The second is of an engine that gives some columns of the scores from as many rows of the weights: a head whose weights
do not fit into memory is called for some columns after the other.

No such stage is stored: a program with it is derived from the one of a bundle, which holds the engine's file.
"""

from __future__ import annotations

from dataclasses import dataclass

from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.program.program import AttentionStage, Port, ScanStage, TokenwiseStage, Value

__all__ = ["ColumnsStage", "FusedStage", "Kept", "PortRead", "TileWindow"]

FLOAT = 4


@dataclass(frozen=True, slots=True)
class TileWindow:
    """The key tiles of one call under one mask, each of a block's size.

    Attributes:
        mask: Which keys a query sees; a band, perhaps with sink tokens.
        before, after: Tiles before and behind the block's own.
        first: Whether the first tile of all stands before those, for its sink tokens.
        layers: How many layers have it.
    """

    mask: Mask
    before: int
    after: int = 0
    first: bool = False
    layers: int = 1

    @property
    def offsets(self) -> tuple[int | None, ...]:
        """The tiles in order, counted from the block's own; ``None`` for the first of all."""
        return (*((None,) if self.first else ()), *range(-self.before, self.after + 1))

    @property
    def tiles(self) -> int:
        """Key tiles of a call."""
        return len(self.offsets)

    def numbers(self, block: int, blocks: int) -> tuple[int | None, ...]:
        """The tiles that query block ``block`` of ``blocks`` sees, in order; ``None`` for one that it does not see.

        A block whose window reaches the first tile sees its sink tokens there.
        """
        first = 0 if block > self.before else None
        near = ((first if offset is None else block + offset) for offset in self.offsets)
        return tuple(tile if tile is not None and 0 <= tile < blocks else None for tile in near)

    def like(self, block: int) -> int:
        """The first block whose mask over its tiles is that of ``block``, if neither is at the end."""
        return min(block, self.before + self.first)


@dataclass(frozen=True, slots=True)
class Kept:
    """Keys or values of one layer, of which the last blocks are kept.

    Attributes:
        value: What they are.
        before: Blocks before the one being computed.
        first: Whether the first block of all is kept beside.
    """

    value: Value
    before: int
    first: bool

    @property
    def blocks(self) -> int:
        """Blocks that are held, that being computed among them."""
        return self.first + self.before + 1

    @property
    def offsets(self) -> tuple[int | None, ...]:
        """The earlier blocks in the order of the ports, as in :attr:`TileWindow.offsets`."""
        return (*((None,) if self.first else ()), *range(-self.before, 0))


@dataclass(frozen=True, slots=True)
class PortRead:
    """What an input port of a fused engine is given for each block.

    Attributes:
        value: The value of which it reads a block; ``""`` for a mask or a state.
        offset: Which block, counted from the one being computed; ``None`` for the first of all.
        window: Of a mask: the number of its window.
        state: Of a state: its number.
    """

    value: str
    offset: int | None = 0
    window: int = 0
    state: int | None = None

    def number(self, block: int, blocks: int) -> int | None:
        """The block of the value that block ``block`` of ``blocks`` reads; ``None`` where there is none."""
        if self.offset is None:
            return 0 if block else None
        return block + self.offset if 0 <= block + self.offset < blocks else None


@dataclass(frozen=True, slots=True)
class FusedStage(TokenwiseStage):
    """One call of a ``FusedEngine`` for every block; where it is ``whole``, in order.

    Output ports are those of ``outputs``, then the block's own tile of each of ``kept``, then the next states.

    Attributes:
        inside: The stages that it stands for, in order.
        reads: What each input port is given.
        windows: The masks of its attentions with the tiles that they see; none where a block sees itself alone.
        kept: What is kept for later blocks.
        whole: As of its engine.
        states: Of the scans inside, in order.
    """

    inside: tuple[TokenwiseStage | AttentionStage | ScanStage, ...]
    reads: tuple[PortRead, ...]
    windows: tuple[TileWindow, ...]
    kept: tuple[Kept, ...]
    whole: bool
    states: tuple[Port, ...] = ()

    @property
    def operands(self) -> tuple[str, ...]:
        """The value of which each input port reads a block; ``""`` for masks."""
        return tuple(read.value for read in self.reads)

    @property
    def kind(self) -> str:
        """How reports call it: ``model`` (all layers of a block) or ``window`` (one layer's attention and region)."""
        return "model" if self.whole else "window"

    @property
    def chained(self) -> bool:
        return self.whole

    def window_of(self, stage: AttentionStage) -> TileWindow | None:
        """What the attention ``stage`` inside sees; ``None`` for the block alone."""
        return next((window for window in self.windows if window.mask == stage.mask), None)

    def kept_bytes(self, block_size: int) -> int:
        """Bytes beside the run's values where blocks are kept: rings, zeros of every shape, all masks, states twice."""
        if not self.whole:
            return 0
        rings = sum(entry.blocks * entry.value.nbytes(block_size) for entry in self.kept)
        zeros = {entry.value.shape: entry.value.nbytes(block_size) for entry in self.kept}
        masks = sum((window.like(window.before + 1) + 1) * window.tiles for window in self.windows)
        states = 2 * sum(port.nbytes for port in self.states)
        return states + rings + sum(zeros.values()) + masks * block_size * block_size * FLOAT


@dataclass(frozen=True, slots=True)
class ColumnsStage(TokenwiseStage):
    """The head in several calls a block, each of which gives some columns of the scores, and reads their weights alone.

    Attributes:
        whole: The engine that gives all columns in one call.
        parted: The weights that have a row a column, of which a call is given those of its columns.
        columns: Of one call.
        classes: Columns in all.
    """

    whole: str
    parted: tuple[str, ...]
    columns: int
    classes: int

    @property
    def starts(self) -> tuple[int, ...]:
        """Where the columns of each call begin; the last ones lie among those of the call before, if need be."""
        return tuple(min(start, self.classes - self.columns) for start in range(0, self.classes, self.columns))

    @property
    def alone(self) -> bool:
        return True
