"""A short input in one call: the body of a program as a single engine, for inputs of at most one block.

Where an input is no longer than a block, attention needs no tiles: one engine holds the token-wise regions and the
attentions and scans between them, and its kernels use the run's threads, as there are no blocks to compute at the same
time. Such a run is an ordinary run of another program, whose body has one stage in place of many, so that schedule,
stores, head and report are the same code. The program is derived, never stored: a bundle holds the engine's file beside
the others.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.program.program import TOKENS, AttentionEngine, Input, Program, Value
from twoheads.graphs.variants.stage_run import FLOAT, StageRun, whole_body

__all__ = ["LENGTH", "ONE_BLOCK", "looks_ahead", "one_block"]

ONE_BLOCK = "one_block"
"""The name of the engine and of its stage."""

LENGTH = "one_block.length"
"""The input that tells the engine how many of the block's tokens are no padding."""


@lru_cache(maxsize=16)
def one_block(program: Program) -> Program | None:
    """The program that computes an input of one block of ``program`` in one call (and its head).

    Returns:
        ``None`` where no engine can hold all attentions and scans; see
        :func:`~twoheads.graphs.variants.stage_run.whole_body`.
    """
    body = whole_body(program)
    if body is None:
        return None
    length = Input(Value(LENGTH, "int64", (1,)), "length", None, TOKENS)
    tiles = {attention.name: 1 for attention in body.attentions}
    return body.in_one(ONE_BLOCK, (length,), tiles=tiles, workspace=_workspace(body))


@lru_cache(maxsize=64)
def looks_ahead(mask: Mask, block_size: int) -> bool:
    """Whether some query of the first block sees a key behind it, so that padding must be hidden from it."""
    at = np.arange(block_size, dtype=np.int64)
    visible = np.broadcast_to(mask.dense(at[:, None], at[None, :]), (block_size, block_size))
    return bool(np.triu(visible, 1).any())


def _workspace(body: StageRun) -> int:
    """Scores thrice, with masks and biases, or the widest scan; and twice what the largest region reads and writes."""
    block = body.program.block_size
    attentions = [(stage, body.program.engine_of(AttentionEngine, stage.engine)) for stage in body.attentions]
    heads = max((engine.q_num_heads for _, engine in attentions), default=0)
    added = {(stage.mask, stage.bias): engine.mask_heads for stage, engine in attentions}
    scores = (3 * heads + 2 * sum(added.values())) * block * block * FLOAT
    return max([scores, *(engine.workspace for _, engine in body.scans)]) + 2 * body.region_bytes
