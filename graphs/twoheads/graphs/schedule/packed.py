"""The schedule of a run whose blocks several requests share."""

from __future__ import annotations

from dataclasses import replace

from twoheads.graphs.masks.documents import Documents
from twoheads.graphs.masks.expressions import Causal, Chunk, Full
from twoheads.graphs.program.program import AttentionStage, Program
from twoheads.graphs.schedule.schedule import PROCESS_BYTES, Schedule, make_schedule
from twoheads.graphs.variants.packing import Packing, longest_packable, packed_variant

__all__ = ["packed_schedule"]


def packed_schedule(
    program: Program,
    packing: Packing,
    *,
    output: str,
    rows: int | None = None,
    workers: int = 2,
    process: int = PROCESS_BYTES,
) -> Schedule:
    """The schedule of a packed run; with codes, one call a block in every stage.

    Args:
        program: What runs.
        packing: The requests.
        output: ``hidden`` or ``embedding``, or ``logits`` (also for the last position's).
        rows: Rows of logits over all requests.
        workers: Engine calls that run at the same time, for the workspace.
        process: Resident bytes of the process, as :func:`make_schedule` takes them.
    """
    if packing.coded:
        longest = longest_packable(program)
        alone = program.with_attentions(lambda stage: _alone(stage, packing.block_size, longest))
    else:
        places = sorted((packing.first_row(slot), slot.length) for slot in packing.slots)
        starts, lengths = (tuple(numbers) for numbers in zip(*places, strict=True))
        alone = program.with_attentions(lambda stage: replace(stage, mask=Documents(stage.mask, starts, lengths)))
    alone = replace(alone, max_length=None)
    tokens = packing.blocks * packing.block_size
    return make_schedule(alone, tokens, output=output, positions=rows, workers=workers, process=process)


def _alone(stage: AttentionStage, block_size: int, longest: int) -> AttentionStage:
    """``stage`` with a mask that keeps each block to itself."""
    inner = Full() if packed_variant(stage.mask, longest) == "packed" else Causal()
    # Nothing is left to be sampled: a request lies in the tile of its own queries, which is exact.
    return replace(stage, mask=Chunk(block_size) & inner, average=None)
