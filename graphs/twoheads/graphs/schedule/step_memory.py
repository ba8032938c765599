"""What generation takes of limited memory: weights, all of which every token needs."""

from __future__ import annotations

from dataclasses import dataclass

from twoheads.graphs.costs.stage_costs import StageCosts
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.lengths import input_axes
from twoheads.graphs.program.program import Program, TokenwiseStage
from twoheads.graphs.schedule.schedule import needed_stages
from twoheads.graphs.schedule.spill import enough_text

__all__ = ["StepMemory", "step_memory"]


@dataclass(frozen=True, slots=True)
class StepMemory:
    """How generating keeps to a limit.

    Attributes:
        note: What a token costs where the weights that it needs do not fit; ``None`` where they do.
        passing: Names of the stages whose packed weights are there while they are called, and no longer.
    """

    note: str | None = None
    passing: frozenset[str] = frozenset()


def step_memory(program: Program, *, packed: bool, limit: int, process: int) -> StepMemory:
    """What stays in memory between tokens.

    Keys and values are not counted: how many there will be is not known.

    Args:
        program: What generates.
        packed: Kernels keep their own copy of every weight but those of gathered experts. Else weights are read where
            the bundle's file is mapped, and the system takes their pages back as it needs them.
        limit: Bytes.
        process: Bytes that the process takes beside.

    Raises:
        InputError: They are to be packed, and there is no room for those of the largest stage.
    """
    body, head = needed_stages(program, "last")
    costs = StageCosts(program, dict.fromkeys(input_axes(program), 1), 1)
    reads = sum(costs.weights((*body, *head), mapped=True).values())
    room = max(0, limit - process)
    if packed:
        stages = [stage for stage in (*body, *head) if isinstance(stage, TokenwiseStage)]
        sizes = {stage.name: sum(costs.weights((stage,), mapped=True).values()) for stage in stages}
        return _packed(sizes, reads, limit, process)
    if reads <= room:
        return StepMemory()
    return StepMemory(
        f"a token reads {enough_text(reads)} of weights, and the memory limit has room for {enough_text(room)}: the "
        "others come from the bundle's file again for every token"
    )


def _packed(sizes: dict[str, int], reads: int, limit: int, process: int) -> StepMemory:
    """The first stages stay, as far as there is room beside the largest one, which is there twice while it is packed.

    ``sizes`` are bytes of each stage's weights; a token ``reads`` those of gathered experts, too.
    """
    if process + sum(sizes.values()) <= limit:
        return StepMemory()
    largest = max(sizes.values())
    room = limit - process - 2 * largest
    if room < 0:
        problem = f"generating packs {enough_text(largest)} of weights at a time, and the process takes"
        fix = f"allow {enough_text(process + 2 * largest)}, or compile it in float32: such weights are read in place"
        raise InputError(f"memory limit {enough_text(limit)}", f"{problem} {enough_text(process)}", fix)
    passing: set[str] = set()
    for name, size in sizes.items():
        if size <= room:
            room -= size
        else:
            passing.add(name)
    again = sum(sizes[name] for name in passing)
    return StepMemory(
        f"a token needs {enough_text(reads)} of weights: {enough_text(again)} do not fit into the memory limit, and "
        "are read and packed again for every token, or once for a token of each of several requests",
        frozenset(passing),
    )
