"""Chooses the width of a bundle's key tiles by measuring its attention engines on this machine.

Wider tiles are fewer calls, and more hidden or padded keys: which is faster depends on the processor. Attention engines
hold no weights, so one of them is measured in milliseconds; what follows for a run is predicted as ``plan --device``
predicts it. What was found is kept, see :mod:`twoheads.runtime.measurement.tuning_cache`.
"""

from __future__ import annotations

import logging
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from twoheads.graphs.errors import InputError
from twoheads.graphs.prediction.device_profile import PROFILE_VERSION, DeviceProfile, EngineTimes, engines_digest
from twoheads.graphs.prediction.one_machine import predict_run
from twoheads.graphs.program.lengths import input_axes, resolve_lengths
from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.runtime.backends.protocol import Backend
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.measurement.engine_meter import EngineMeter
from twoheads.runtime.measurement.profiler import DEFAULT_NETWORK, copy_speed, machine_text
from twoheads.runtime.measurement.tuning_cache import Tuning, TuningKey, keep_tuning, kept_tuning

__all__ = ["TUNE_LEVELS", "Effort", "tuned_bundle"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        seconds: For all engine files of all widths together; a file is called ``tiles`` times a round at least.
        tiles: Different key tiles that calls read in turn.
        rounds: All widths are measured in turns, and of every file the fastest round counts.
        lengths: Tokens of the inputs whose time is predicted, or the longest that the model takes.
    """

    seconds: float
    tiles: int
    rounds: int
    lengths: tuple[int, ...]


EFFORTS = {
    "quick": Effort(seconds=1.0, tiles=3, rounds=2, lengths=(4096,)),
    "full": Effort(seconds=3.0, tiles=8, rounds=3, lengths=(1024, 4096, 16384)),
}
TUNE_LEVELS = ("off", *EFFORTS)

WORTH_IT = 0.97
"""The share of the own width's time below which another one is chosen: less may be chance, and bits would change."""


def tuned_bundle(bundle: Bundle, backend: Backend, *, precision: str, threads: int, level: str) -> Bundle:
    """``bundle`` with the key tiles that are fastest here, as measured now or before.

    Args:
        bundle: What is to run.
        backend: What runs its engines.
        precision: In what it multiplies.
        threads: Workers of a run.
        level: ``off`` (the bundle as it is), ``quick`` or ``full``.

    Raises:
        InputError: ``level`` is none of these.
        BundleError: An engine can't be opened.
    """
    if level not in TUNE_LEVELS:
        raise InputError("tune", f"is {level!r}", f"choose one of {', '.join(TUNE_LEVELS)}")
    if level == "off":
        return bundle
    if not bundle.manifest.other_key_tiles:
        logger.info("%s offers one width of key tiles, there is nothing to tune", bundle.path)
        return bundle
    key = _key(bundle, backend, precision, threads)
    tuning = kept_tuning(bundle, key, level)
    if tuning is None:
        tuning = _measured(bundle, backend, key, level)
        keep_tuning(bundle, tuning)
    return bundle.with_key_tile(tuning.key_tile)


def _key(bundle: Bundle, backend: Backend, precision: str, threads: int) -> TuningKey:
    version = getattr(sys.modules.get(backend.name), "__version__", "")  # an open backend has imported its package
    return TuningKey(bundle.identity, machine_text(), f"{backend.name} {version}".rstrip(), precision, threads)


def _measured(bundle: Bundle, backend: Backend, key: TuningKey, level: str) -> Tuning:
    effort, widths = EFFORTS[level], bundle.manifest.key_tiles
    offered = [bundle.with_key_tile(width) for width in widths]
    rounds = _measure(offered, backend, key.threads, effort)
    copies = copy_speed(fresh=False), copy_speed(fresh=True)
    predicted = [
        _predicted(one.program, _profile(one.program, _fastest(times), key, copies), effort.lengths)
        for one, times in zip(offered, rounds, strict=True)
    ]
    for width, row in zip(widths, predicted, strict=True):
        logger.info("key tiles of %d: attention takes %s s", width, ", ".join(f"{time:.4g}" for time in row))
    return Tuning(key, level, _chosen(widths, predicted))


def _chosen(widths: Sequence[int], predicted: Sequence[Sequence[float]]) -> int:
    """The width of the least time, every length counting the same; the first, the bundle's own, unless it pays."""
    costs = [statistics.mean(time / own for time, own in zip(row, predicted[0], strict=True)) for row in predicted]
    return widths[costs.index(min(costs))] if min(costs) < WORTH_IT else widths[0]


def _measure(
    offered: Sequence[Bundle], backend: Backend, threads: int, effort: Effort
) -> list[list[list[EngineTimes]]]:
    """For every width, the times of its engine files in every round."""
    files = sum(name.endswith(".onnx") for name in offered[0].manifest.files)
    seconds = effort.seconds / files / effort.rounds
    meters = [EngineMeter(one, backend, (threads,), _silent, seconds=seconds, tiles=effort.tiles) for one in offered]
    rounds: list[list[list[EngineTimes]]] = [[] for _ in offered]
    for _ in range(effort.rounds):
        for one, meter, times in zip(offered, meters, rounds, strict=True):
            times.append(_attention_times(one.program, meter))
    return rounds


def _silent(_name: str) -> None:
    pass


def _attention_times(program: Program, meter: EngineMeter) -> list[EngineTimes]:
    return [times for engine in program.tile_engines for times in meter.attention(engine)]


def _fastest(rounds: Sequence[Sequence[EngineTimes]]) -> list[EngineTimes]:
    """Of every engine file the least disturbed round's time."""
    return [min(same, key=lambda times: sum(times.call_seconds.values())) for same in zip(*rounds, strict=True)]


def _profile(
    program: Program, attention: list[EngineTimes], key: TuningKey, copies: tuple[float, float]
) -> DeviceProfile:
    """A profile in which everything that is the same for all widths takes no time."""
    callers = str(key.threads)
    tokenwise = [EngineTimes(engine.name, "", 0.0, {callers: 0.0}) for engine in program.tokenwise_engines]
    return DeviceProfile(
        version=PROFILE_VERSION,
        machine=key.machine,
        backend=key.backend,
        precision=key.precision,
        model=program.name,
        block_size=program.block_size,
        key_tile=program.key_tile,
        engines_digest=engines_digest(program),
        threads=(key.threads,),
        engines=(*tokenwise, *attention),
        stage_seconds=0.0,
        row_seconds=0.0,
        copy_bytes_per_second=copies[0],
        fresh_bytes_per_second=copies[1],
        sampling=None,
        network=DEFAULT_NETWORK,
        price_per_hour=None,
    )


def _predicted(program: Program, profile: DeviceProfile, lengths: Sequence[int]) -> list[float]:
    """Seconds of the body's attention, and of the copies that come with the tiles, at each of ``lengths``."""
    longest = {limit.axis: limit.length for limit in program.limits}
    threads = profile.threads[-1]
    seconds: list[float] = []
    for length in lengths:
        wanted = {axis: min(length, longest.get(axis, length)) for axis in input_axes(program)}
        schedule = make_schedule(program, resolve_lengths(program, wanted), output="hidden", workers=threads)
        seconds.append(predict_run(schedule, profile, threads).seconds)
    return seconds
