"""What every worker of a placed run holds at any time, and what it copies from others so that no loss is final.

The rule is that of ``runtime/cluster``: a block is held by the worker that computed it until its last reader is done;
after every attention or scan, and after the last stage, each block that is still needed gets a second holder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.program import Stage
from twoheads.graphs.schedule.placement import Placement
from twoheads.graphs.schedule.schedule import needed_stages

__all__ = ["Holdings", "worker_holdings"]

Bytes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Holdings:
    """Bytes of token values, for every worker ``[W]``.

    Attributes:
        peak: The most that it holds: blocks of its own and copies of others', and, while it computes a stage, what it
            reads and writes there.
        copied: What it copies after a stage, by the stage's name; stages without copies are left out.
    """

    peak: Bytes
    copied: Mapping[str, Bytes]


def worker_holdings(placement: Placement) -> Holdings:
    """Goes through the body's stages; on one worker there is nobody to copy to."""
    schedule, workers = placement.schedule, placement.workers
    body, _ = needed_stages(schedule.program, schedule.output)
    none = np.zeros(workers, np.int64)
    held: dict[str, Bytes] = {}
    safe: dict[str, Bytes] = {}
    copied: dict[str, Bytes] = {}
    peak = none
    for stage in body:
        placed = placement.stage(stage.name)
        held |= _shares(stage, placed.written_bytes, schedule.program.block_size)
        reading = sum((held.get(name, none) for name in dict.fromkeys(stage.inputs)), placed.read_bytes)
        alive = sum((*held.values(), *safe.values()), none)
        peak = np.maximum(peak, alive + reading + placed.written_bytes)
        for name in schedule.release_after[stage.name]:
            held.pop(name, None)
            safe.pop(name, None)
        if workers > 1 and (stage.mixes or stage is body[-1]):
            # The next worker takes a copy, so that shares of equal sizes stay so.
            new = {name: np.roll(share, 1) for name, share in held.items() if name not in safe}
            copied[stage.name] = sum(new.values(), none)
            safe |= new
    return Holdings(peak, copied)


def _shares(stage: Stage, written: Bytes, block_size: int) -> dict[str, Bytes]:
    """Bytes of every output of ``stage`` that each worker computes, of all that it writes there."""
    sizes = {value.name: value.nbytes(block_size) for value in stage.outputs}
    total = sum(sizes.values())
    return {name: written * size // total for name, size in sizes.items()}
