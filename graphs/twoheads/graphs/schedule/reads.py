"""Which blocks of which values the rows of a stage read; a row is one block of what the stage computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.program import (
    AttentionStage,
    Stage,
    Value,
)
from twoheads.graphs.schedule.schedule import Schedule

__all__ = ["StageReads"]

Blocks = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Runs:
    """The runs of key tiles of all rows of an attention: row ``row[i]`` reads the tiles ``[start[i], stop[i])``."""

    row: Blocks
    start: Blocks
    stop: Blocks


class StageReads:
    """What the rows of a schedule's body stages read.

    Args:
        schedule: A program, expanded for the lengths of an input.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.values: dict[str, Value] = {value.name: value for value in schedule.program.values()}
        self._runs: dict[str, _Runs] = {}

    def blocks(self, name: str) -> int:
        """Blocks of the value ``name``; 1 for a row value."""
        value = self.values[name]
        return 1 if value.axis is None else -(-self.schedule.value_rows(value) // self.schedule.program.block_size)

    def rows(self, stage: Stage) -> int:
        """In how many pieces ``stage`` can be computed: the blocks of its axis.

        A stage of row values only is one piece, as is one that moves rows of whole values, or hands a state on.
        """
        axis, _ = stage.axes(self.values)
        if axis is None or stage.at_once:
            return 1
        touched = (*(value.name for value in stage.outputs), *stage.inputs)
        return next(self.blocks(name) for name in touched if self.values[name].axis == axis)

    def of(self, stage: Stage, rows: Iterable[int]) -> dict[str, Blocks]:
        """The blocks of each input of ``stage`` that ``rows`` read, ascending.

        Keys and values are read in whole tiles, and only those tiles in which the mask shows one of the rows a key.
        (Sampled attention may draw any key that the mask shows.)
        """
        chosen = np.fromiter(rows, np.int64)
        chosen.sort()
        if stage.at_once:
            return {name: np.arange(self.blocks(name)) for name in stage.inputs}
        once = np.zeros(1, np.int64)
        reads = {name: once if self.values[name].axis is None else chosen for name in stage.inputs}
        if isinstance(stage, AttentionStage):
            reads |= dict.fromkeys(stage.tiled, self._keys(stage, chosen)) | {stage.query: chosen}
        return reads

    def _keys(self, stage: AttentionStage, rows: Blocks) -> Blocks:
        program = self.schedule.program
        runs = self._runs_of(stage)
        tiles = -(-self.schedule.value_rows(self.values[stage.key]) // program.key_tile)
        chosen = np.zeros(self.rows(stage), np.bool_)
        chosen[rows] = True
        mine = chosen[runs.row]
        edges = np.bincount(runs.start[mine], minlength=tiles + 1) - np.bincount(runs.stop[mine], minlength=tiles + 1)
        read = np.flatnonzero(np.cumsum(edges[:-1]) > 0)
        per_tile = program.key_tile // program.block_size
        blocks = (read[:, None] * per_tile + np.arange(per_tile)).reshape(-1)
        return blocks[blocks < self.blocks(stage.key)]

    def _runs_of(self, stage: AttentionStage) -> _Runs:
        """All runs of the stage's rows; stages of equal mask and axes share them."""
        key = f"{stage.mask} {stage.axes(self.values)}"
        if key not in self._runs:
            found = [
                (row, segment.start, segment.stop)
                for row, segments in self.schedule.rows(replace(stage, average=None))
                for segment in segments
            ]
            table = np.array(found, np.int64).reshape(-1, 3).T
            self._runs[key] = _Runs(*table)
        return self._runs[key]
