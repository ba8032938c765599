"""Measures what the host itself computes in sampled attention (Theorem 4.1), on any bundle that allows it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.prediction.device_profile import Sampling
from twoheads.graphs.program.lengths import input_axes, is_cross
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Program
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.runtime.execution.crew import Crew
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.execution.run_state import RunState, WorkerCount
from twoheads.runtime.stages.attention.sampled import Sampler, SamplerWorker

__all__ = ["measure_sampling"]

TILES = 6
"""Key tiles of the input that is sampled; each block draws one or two of them."""

REPEATS = 5
LEAST_SECONDS = 1e-9
"""What a difference of two measured times counts at least."""


def measure_sampling(program: Program, pool: EnginePool, full_seconds: Mapping[str, float]) -> Sampling | None:
    """Times of one thread, from drawing one tile and drawing two, without those of the engine's calls.

    Args:
        program: A bundle's program; it need not sample itself.
        pool: Its engines.
        full_seconds: One call of the variant ``full``, by attention engine.

    Returns:
        ``None`` where no attention can be sampled, or none as long as a measurement needs.
    """
    stage = _samplable(program, full_seconds)
    length = TILES * program.key_tile
    if stage is None or any(limit.length < length for limit in program.limits):
        return None
    call = full_seconds[stage.engine]
    key_seconds, one = _measure(program, pool, stage, length, 1)
    _, two = _measure(program, pool, stage, length, 2)
    tile = max(two - one - call, LEAST_SECONDS)
    return Sampling(key_seconds, max(one - call - tile, LEAST_SECONDS), tile)


def _samplable(program: Program, full_seconds: Mapping[str, float]) -> AttentionStage | None:
    values = {value.name: value for value in program.values()}
    for stage in program.body:
        if not isinstance(stage, AttentionStage) or stage.engine not in full_seconds or stage.bias is not None:
            continue
        if Average.applies_to(stage.mask) and not is_cross(stage, values):
            return stage
    return None


def _measure(
    program: Program, pool: EnginePool, attention: AttentionStage, length: int, samples: int
) -> tuple[float, float]:
    """Seconds for every key, and for a block that draws ``samples`` tiles, its engine calls included."""
    stage = replace(attention, average=Average(samples, None, 0, 0))
    body = tuple(stage if other.name == stage.name else other for other in program.body)
    schedule = make_schedule(replace(program, body=body), dict.fromkeys(input_axes(program), length), output="hidden")
    random = np.random.default_rng(0)
    with Crew(1) as crew:
        run = RunState(schedule, pool, crew)
        for name in (stage.query, stage.key, stage.value):
            array = run.stores.allocate(program.value(name)).array
            array[...] = random.standard_normal(array.shape)
        began = time.perf_counter()
        sampler = Sampler(run, stage, pool.declared(AttentionEngine, stage.engine))
        key_seconds = (time.perf_counter() - began) / length
        return key_seconds, _block_seconds(run, sampler)


def _block_seconds(run: RunState, sampler: Sampler) -> float:
    """The median of the last block, before which most keys lie."""
    worker = SamplerWorker(sampler, WorkerCount())
    last = sampler.length // sampler.engine.block_size - 1
    query = run.backend.tensor(np.ascontiguousarray(sampler.query.block(last)))
    _, (out, lse) = sampler.engine.ports("full")
    target, target_lse = np.zeros(out.shape, out.dtype), np.zeros(lse.shape, lse.dtype)
    seconds: list[float] = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        worker.add(last, query, target, target_lse)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])  # the first call allocates
