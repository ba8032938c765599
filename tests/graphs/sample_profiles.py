"""Device profiles with round numbers."""

from __future__ import annotations

from twoheads.graphs.prediction.device_profile import (
    PROFILE_VERSION,
    DeviceProfile,
    EngineTimes,
    Network,
    Sampling,
    engines_digest,
)
from twoheads.graphs.program.program import AttentionEngine, Program

VARIANT_SECONDS = {"full": 1.0, "masked": 2.0, "full_merge": 4.0, "masked_merge": 8.0}
ADD_SECONDS = {"full_add": 0.25, "masked_add": 0.125}
TOKENWISE_SECONDS = 16.0
SLOWER = 1.5
"""How much longer a call takes where two threads call."""


def profile_of(
    program: Program, *, adds: bool = False, bandwidth: float = 1e30, round_seconds: float = 1e-30
) -> DeviceProfile:
    """Seconds that are powers of two, next to nothing for everything else, and an endless network.

    Without the variants that add, unless the bundle ``adds``.
    """
    times: list[EngineTimes] = []
    for engine in program.engines:
        held = VARIANT_SECONDS | (ADD_SECONDS if adds else {})
        variants = held if isinstance(engine, AttentionEngine) else {"": TOKENWISE_SECONDS}
        times += [
            EngineTimes(engine.name, variant, 0.5, {"1": seconds, "2": seconds * SLOWER})
            for variant, seconds in variants.items()
        ]
    return DeviceProfile(
        version=PROFILE_VERSION,
        machine="a machine of round numbers",
        backend="none",
        precision="f32",
        model=program.name,
        block_size=program.block_size,
        key_tile=program.key_tile,
        engines_digest=engines_digest(program),
        threads=(1, 2),
        engines=tuple(times),
        stage_seconds=1e-30,
        row_seconds=1e-30,
        copy_bytes_per_second=1e30,
        fresh_bytes_per_second=1e30,
        sampling=Sampling(key_seconds=0.25, row_seconds=32.0, tile_seconds=64.0),
        network=Network(bandwidth, round_seconds),
        price_per_hour=3.0,
    )
