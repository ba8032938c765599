"""Many requests in the blocks of one run: who goes where.

Short ones can be kept apart by codes (Theorem 4.2, :mod:`twoheads.graphs.program.engines.request_codes`): no query
looks beyond its own block, and every attention stage is one call a block, of an engine that takes no mask. Requests
of any length are kept apart by the run's masks (:mod:`twoheads.graphs.masks.documents`); those that are longer than a
block share their last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.program.engines.request_codes import code_capacity
from twoheads.graphs.program.program import TOKENS, AttentionEngine, AttentionStage, Program

__all__ = ["Packing", "Slot", "longest_packable", "pack", "packed_variant", "takes_documents"]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a request lies: ``length`` tokens from row ``start`` of block ``block``; ``code`` numbers it there.

    One that is longer than a block begins at row 0 and goes on in the next blocks.
    """

    block: int
    start: int
    length: int
    code: int


@dataclass(frozen=True, slots=True)
class Packing:
    """Requests packed into blocks.

    Attributes:
        block_size: ``M``, tokens of a block.
        slots: One for each request, in the requests' order.
        used: For each block, its rows that belong to requests; padding follows.
        coded: Whether codes keep the requests apart; otherwise the masks of the run do.
    """

    block_size: int
    slots: tuple[Slot, ...]
    used: tuple[int, ...]
    coded: bool = True

    @property
    def blocks(self) -> int:
        """Blocks of the run."""
        return len(self.used)

    @property
    def tokens(self) -> int:
        """Tokens of all requests, without padding."""
        return sum(self.used)

    def first_row(self, slot: Slot) -> int:
        """Where a request begins on the run's token axis."""
        return slot.block * self.block_size + slot.start


def pack(lengths: Sequence[int], block_size: int, *, coded: bool = True) -> Packing:
    """Packs requests into blocks, longest first, each into the first block with room and a free code.

    Without codes requests may be longer than a block: these begin a block each, and others share their last one.

    Raises:
        InternalError: A request is empty, or longer than a block and to be kept apart by codes.
    """
    capacity = code_capacity(block_size) if coded else block_size
    # Every request might open blocks of its own; the first one that is not open yet always has room.
    most = sum(-(-length // block_size) for length in lengths)
    room = np.full(most, block_size, np.int64)
    count, used = [0] * most, [0] * most
    opened = 0
    slots: dict[int, Slot] = {}
    for request in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        length = lengths[request]
        if length < 1 or (coded and length > block_size):
            raise InternalError(f"a request of {length} tokens in a block of {block_size}")
        block = opened if length > block_size else int(np.argmax(room[: opened + 1] >= length))
        slots[request] = Slot(block, used[block], length, count[block])
        rest = length
        while rest > block_size:  # longest first, so that these blocks are new
            used[block], room[block] = block_size, 0
            rest -= block_size
            block += 1
        opened = max(opened, block + 1)
        used[block] += rest
        count[block] += 1
        room[block] = block_size - used[block] if count[block] < capacity else 0
    return Packing(block_size, tuple(slots[at] for at in range(len(lengths))), tuple(used[:opened]), coded)


@lru_cache(maxsize=256)
def packed_variant(mask: Mask, length: int) -> str | None:
    """The packed engine for requests of up to ``length`` tokens under ``mask``; ``None`` unless it is all or causal.

    A window that is no shorter than the requests, or a chunk, does not restrict them.
    """
    at = np.arange(length, dtype=np.int64)
    shape = (length, length)
    visible = np.broadcast_to(mask.dense(at[:, None], at[None, :]), shape)
    if visible.all():
        return "packed"
    return "packed_causal" if bool((visible == np.tri(length, dtype=np.bool_)).all()) else None


@lru_cache(maxsize=16)
def longest_packable(program: Program) -> int:
    """The longest request that packed engines compute exactly, in tokens, 2 to half a block; 0 if there is none.

    Half a block is where packing ends to pay: at least two requests then share a block.

    Codes are columns of the scores, so a softcap would flatten them; a bias by distance or a learned sink needs a row
    of its own in the scores. What moves rows, or reads something that is not one row a token, knows nothing of
    requests, and a scan's state would go from one to the next. Such models run one by one.
    """
    stages = program.attentions
    if not stages or not _one_row_a_token(program) or not all(_takes_codes(program, stage) for stage in stages):
        return 0
    masks = {stage.mask for stage in stages}
    fits, beyond = 0, program.block_size // 2 + 1
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        if all(packed_variant(mask, middle) is not None for mask in masks):
            fits = middle
        else:
            beyond = middle
    return fits if fits > 1 else 0


@lru_cache(maxsize=16)
def takes_documents(program: Program) -> bool:
    """Whether requests of any length can share a run, kept apart by its masks.

    What moves rows, or reads something that is not one row a token, knows nothing of requests; nor does an engine that
    takes no mask, attention to drawn keys, or the state of a scan.
    """
    stages = program.attentions
    tiles = all(isinstance(program.engine(stage.engine), AttentionEngine) for stage in stages)
    return tiles and _one_row_a_token(program) and all(stage.average is None for stage in stages)


def _one_row_a_token(program: Program) -> bool:
    moved = any(stage.unshared for stage in program.body)
    return not moved and all(value.axis == TOKENS for value in program.values())


def _takes_codes(program: Program, stage: AttentionStage) -> bool:
    engine = program.engine(stage.engine)
    return isinstance(engine, AttentionEngine) and engine.packs and stage.bias is None and stage.sinks is None
