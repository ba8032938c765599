"""A device profile: how long the calls of one program's engines take on one kind of machine, measured there.

``twoheads profile`` writes it, ``twoheads plan --device`` predicts times from it. What no single machine can measure,
the network between several and their price, are entries that a person fills in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import Program
from twoheads.graphs.serialization.json_codec import FormatError, from_json, to_json
from twoheads.graphs.serialization.read_json import read_json

__all__ = [
    "ALONE",
    "PROFILE_VERSION",
    "DeviceProfile",
    "EngineTimes",
    "Network",
    "Sampling",
    "engines_digest",
    "profile_text",
    "read_profile",
]

PROFILE_VERSION = 1

ALONE = "alone"
"""The variant of an engine whose kernels share a run's threads, because its input has one block."""

_REMEDY = "make one where the bundle is to run: twoheads profile BUNDLE -o PROFILE.json"


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """One engine file.

    Attributes:
        engine: The engine's name in the program.
        variant: Of an attention engine, e.g. ``full_merge``; empty for a token-wise one; :data:`ALONE` for an engine of
            a run of one block.
        open_seconds: To open it with one set of weights.
        call_seconds: Of one call, by the number of threads that call at the same time (a key of JSON, hence text);
            of the variant :data:`ALONE`, by the number of threads that share its kernels.
    """

    engine: str
    variant: str
    open_seconds: float
    call_seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the host itself computes where attention is sampled (Theorem 4.1), beside the engines' calls.

    Attributes:
        key_seconds: For every key of the input, once a stage, in one thread.
        row_seconds: For every block of queries that draws keys, and
        tile_seconds: for every tile of keys that it draws.
    """

    key_seconds: float
    row_seconds: float
    tile_seconds: float


@dataclass(frozen=True, slots=True)
class Network:
    """Between workers; figures that a person gives, not measured.

    Attributes:
        bytes_per_second: Into one worker.
        round_seconds: From the end of a stage on the last worker to the start of the next stage on all.
    """

    bytes_per_second: float
    round_seconds: float


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """See the module's docstring.

    Attributes:
        version: Of the format, :data:`PROFILE_VERSION`.
        machine: Processor, cores and memory in words.
        backend: What ran the engines.
        precision: In what it multiplied.
        model: The program's name.
        block_size, key_tile: Of the program.
        engines_digest: Of the program's engines, see :func:`engines_digest`.
        threads: The numbers of concurrent callers that were measured, ascending.
        engines: Times of every engine file of the bundle that a run of one input can call.
        stage_seconds: To start the workers of a stage and to wait for them.
        row_seconds: For every block of a stage, beside its calls.
        copy_bytes_per_second: One thread's copies in memory.
        fresh_bytes_per_second: One thread's writes into memory that it has just been given.
        sampling: ``None`` where it was not measured.
        network: Between workers.
        price_per_hour: Of one worker, in any currency; ``None`` if unknown.
    """

    version: int
    machine: str
    backend: str
    precision: str
    model: str
    block_size: int
    key_tile: int
    engines_digest: str
    threads: tuple[int, ...]
    engines: tuple[EngineTimes, ...]
    stage_seconds: float
    row_seconds: float
    copy_bytes_per_second: float
    fresh_bytes_per_second: float
    sampling: Sampling | None
    network: Network
    price_per_hour: float | None

    def times(self, engine: str, variant: str = "") -> EngineTimes | None:
        """The times of one engine file, if it was measured."""
        return next((times for times in self.engines if (times.engine, times.variant) == (engine, variant)), None)

    def variants(self, engine: str) -> frozenset[str]:
        """The variants of an attention engine that were measured."""
        return frozenset(times.variant for times in self.engines if times.engine == engine)

    def call_seconds(self, engine: str, variant: str, callers: int) -> float:
        """Seconds of one call while ``callers`` threads call.

        Of numbers of callers that were not measured, the next larger one counts.

        Raises:
            InputError: That engine was not measured.
        """
        times = self.times(engine, variant)
        if times is None:
            named = f"{engine}.{variant}" if variant else engine
            raise InputError(
                f"device profile of {self.model}",
                f"has no time of the engine {named}, which this run calls",
                "compile the model with that attention, and make a profile of that bundle",
            )
        measured = {int(number): seconds for number, seconds in times.call_seconds.items()}
        return measured[min((number for number in measured if number >= callers), default=max(measured))]

    def check_program(self, program: Program, where: str) -> None:
        """Refuses a program with other engines than those that were measured.

        Args:
            program: What is to be predicted.
            where: The profile's file, for the message.

        Raises:
            InputError: The profile is of another program.
        """
        if self.engines_digest == engines_digest(program):
            return
        measured = f"{self.model} with blocks of {self.block_size} and key tiles of {self.key_tile}"
        wanted = f"{program.name} with blocks of {program.block_size} and key tiles of {program.key_tile}"
        raise InputError(where, f"was measured on the engines of {measured}, not of {wanted}", _REMEDY)

    def check_threads(self, threads: int, where: str) -> None:
        """Refuses more threads than were measured.

        Raises:
            InputError: There are more.
        """
        if threads > self.threads[-1]:
            problem = f"was measured with up to {self.threads[-1]} threads, not with {threads}"
            raise InputError(where, problem, f"give --threads {self.threads[-1]} or fewer, or measure with more")


def engines_digest(program: Program) -> str:
    """The sha256 of the declarations of a program's engines: equal programs of equal engines have equal times."""
    declared = [to_json(engine) for engine in program.engines]
    return sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()


def profile_text(profile: DeviceProfile) -> str:
    """The profile as the JSON that :func:`read_profile` reads."""
    return json.dumps(to_json(profile), indent=2) + "\n"


def read_profile(path: Path) -> DeviceProfile:
    """Reads a device profile.

    Raises:
        InputError: No such file, no JSON, no profile, one of another version, or with numbers that can't be.
    """
    data = read_json(path, fix=_REMEDY)
    version = cast("dict[str, Any]", data).get("version") if isinstance(data, dict) else None
    if isinstance(version, int) and version != PROFILE_VERSION:
        problem = f"is a device profile of format {version}, this twoheads reads {PROFILE_VERSION}"
        raise InputError(str(path), problem, _REMEDY)
    try:
        profile = from_json(DeviceProfile, data)
    except FormatError as error:
        raise InputError(str(path), f"is no device profile: {error}", _REMEDY) from None
    for entry, number in _numbers(profile):
        if not (math.isfinite(number) and number > 0):
            raise InputError(str(path), f"{entry} is {number}", "every figure of a profile is positive; measure again")
    if profile.threads != tuple(sorted(set(profile.threads))) or not profile.threads:
        raise InputError(str(path), f"threads are {list(profile.threads)}, not numbers that ascend", _REMEDY)
    _check_callers(profile, path)
    return profile


def _check_callers(profile: DeviceProfile, path: Path) -> None:
    expected = {str(number) for number in profile.threads}
    for times in profile.engines:
        if times.call_seconds.keys() != expected:
            problem = f"the engine {times.engine} {times.variant}".rstrip() + " has no time for every number of threads"
            raise InputError(str(path), problem, _REMEDY)


def _numbers(profile: DeviceProfile) -> Iterator[tuple[str, float]]:
    """Every figure that must be positive, with its place."""
    yield from ((f"threads[{at}]", number) for at, number in enumerate(profile.threads))
    for at, times in enumerate(profile.engines):
        yield f"engines[{at}].open_seconds", times.open_seconds
        yield from ((f"engines[{at}].call_seconds.{key}", number) for key, number in times.call_seconds.items())
    for part in ("", "network", "sampling"):
        holder = getattr(profile, part) if part else profile
        for entry in fields(holder) if holder is not None else ():
            number = getattr(holder, entry.name)
            if isinstance(number, float):
                yield f"{part}.{entry.name}".lstrip("."), number
