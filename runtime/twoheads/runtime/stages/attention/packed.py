"""Run one attention stage over blocks of packed requests: one call a block, kept apart by codes (Theorem 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.engines.request_codes import SAFE_SCORE, code_capacity, request_codes
from twoheads.graphs.program.program import AttentionEngine, AttentionStage
from twoheads.graphs.variants.packing import Packing, packed_variant
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.memory.stores import ValueStore

__all__ = ["ScoresBeyondCodesError", "packed_engine", "prepare_packed", "run_packed_attention"]

Array = npt.NDArray[Any]


class ScoresBeyondCodesError(Exception):
    """The scores of a block may be so large that codes do not separate its requests: they must run one by one."""


def packed_engine(run: RunState, stage: AttentionStage) -> str:
    """The variant of the stage's engine that computes packed requests."""
    # The run's masks keep each block to itself, so that any length within a block tells the variant.
    variant = packed_variant(stage.mask, run.program.block_size // 2)
    if variant is None:
        raise InternalError(f"stage {stage.name} can't be packed: its mask is {stage.mask}")
    return variant


def prepare_packed(run: RunState, stage: AttentionStage) -> None:
    """Opens the stage's packed engine."""
    run.engines.attention(stage.engine, packed_engine(run, stage))


def run_packed_attention(run: RunState, stage: AttentionStage, packing: Packing) -> None:
    """Computes the output of ``stage`` for all blocks; it must be allocated, as its inputs are.

    Raises:
        ScoresBeyondCodesError: A block's scores may exceed what codes separate, or are not finite.
    """
    handle = run.engines.attention(stage.engine, packed_engine(run, stage))
    engine = run.engines.declared(AttentionEngine, stage.engine)
    query, key, value, output = (run.stores[name] for name in (stage.query, stage.key, stage.value, stage.output.name))
    query_codes, key_codes = request_codes(engine.block_size)
    codes = _row_codes(packing)
    counter = run.counters[stage.name]
    wrap = run.backend.tensor

    def start() -> Callable[[int], None]:
        call = handle.new_call()
        count = counter.worker()
        (q_port, k_port, _), (out_port,) = engine.ports("packed")
        q, k = np.empty(q_port.shape, np.float32), np.empty(k_port.shape, np.float32)
        values = None if value.direct else np.empty(value.value.block_shape(engine.block_size), np.float32)
        out = None if output.direct else np.empty(out_port.shape, np.float32)
        for port, array in ((0, q), (1, k), (2, values)):
            if array is not None:
                call.bind_input(port, wrap(array))
        if out is not None:
            call.bind_output(0, wrap(out))

        def block(at: int) -> None:
            _fill(q, query, at, query_codes[codes[at]] / np.float32(engine.scale))
            _fill(k, key, at, key_codes[codes[at]])
            _check_scores(engine, q, k, stage.name)
            if values is None:
                call.bind_input(2, wrap(value.block(at)))
            else:
                np.copyto(values, value.block(at))
            if out is None:
                call.bind_output(0, wrap(output.block(at)))
            call.run()
            count.calls += 1
            if out is not None:
                np.copyto(output.block(at), out)

        return block

    run.crew.run(range(packing.blocks), start)


def _row_codes(packing: Packing) -> npt.NDArray[np.int64]:
    """The code of every row, ``[blocks, block_size]``; padding has the last one, which no request has."""
    codes = np.full((packing.blocks, packing.block_size), code_capacity(packing.block_size), np.int64)
    for slot in packing.slots:
        codes[slot.block, slot.start : slot.start + slot.length] = slot.code
    return codes


def _fill(target: Array, store: ValueStore, block: int, codes: Array) -> None:
    """``target [1, heads, block, head_dim + r]`` becomes a block of ``store`` with its rows' codes ``[block, r]``."""
    width = target.shape[-1] - codes.shape[-1]
    np.copyto(target[..., :width], store.block(block))
    target[..., width:] = codes


def _check_scores(engine: AttentionEngine, q: Array, k: Array, stage: str) -> None:
    """Bounds every score of a call by the norms of its queries and keys (Cauchy-Schwarz)."""
    largest = abs(engine.scale)
    for array in (q, k):
        rows = array[..., : engine.head_dim]
        largest *= float(np.sqrt(np.einsum("bhnd,bhnd->bhn", rows, rows).max()))
    if not largest <= SAFE_SCORE:  # also where it is not a number
        raise ScoresBeyondCodesError(f"stage {stage}: scores of up to {largest:.2g}, codes separate {SAFE_SCORE:.2g}")
