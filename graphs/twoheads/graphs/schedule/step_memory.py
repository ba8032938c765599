"""What generation takes of limited memory: weights, all of which every token needs."""

from __future__ import annotations

from twoheads.graphs.costs.stage_costs import StageCosts
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.lengths import input_axes
from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.schedule import needed_stages
from twoheads.graphs.schedule.spill import enough_text

__all__ = ["step_memory_note"]


def step_memory_note(program: Program, *, packed: bool, limit: int, process: int) -> str | None:
    """What a token costs where the weights that it needs do not fit into the limit; ``None`` where they do.

    Keys and values are not counted: how many there will be is not known.

    Args:
        program: What generates.
        packed: Kernels keep their own copy of every weight but those of gathered experts. Else weights are read where
            the bundle's file is mapped, and the system takes their pages back as it needs them.
        limit: Bytes.
        process: Bytes that the process takes beside.

    Raises:
        InputError: They are to be packed and there is no room for them.
    """
    body, head = needed_stages(program, "last")
    sizes = StageCosts(program, dict.fromkeys(input_axes(program), 1), 1).weights((*body, *head), mapped=True)
    experts = {name for mixture in program.mixtures for name in mixture.weights}
    reads, held = sum(sizes.values()), sum(size for (name, _), size in sizes.items() if name not in experts)
    if packed and process + held > limit:
        problem = (
            f"generating keeps {enough_text(held)} of packed weights, and the process takes {enough_text(process)}"
        )
        fix = f"allow {enough_text(process + held)}, or compile it in float32: such weights are read where they lie"
        raise InputError(f"memory limit {enough_text(limit)}", problem, fix)
    room = max(0, limit - process)
    if reads <= room:
        return None
    return (
        f"a token reads {enough_text(reads)} of weights, and the memory limit has room for {enough_text(room)}: the "
        "others come from the bundle's file again for every token"
    )
