"""Where the values of a run lie in device memory, or in pinned host memory, decided before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from twoheads.graphs.costs.stage_costs import StageCosts
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import Value
from twoheads.graphs.schedule.schedule import Schedule, needed_stages
from twoheads.graphs.schedule.spill import enough_text

__all__ = ["ALIGNMENT", "LayoutPlan", "Region", "align", "is_direct", "lay_out", "plan_layout"]

ALIGNMENT = 256
"""What vectorised loads and TensorRT ask of an address, in bytes."""


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes of one of the two memories.

    Attributes:
        offset, nbytes: From the beginning of that memory.
        host: Whether it is the pinned host memory.
    """

    offset: int
    nbytes: int
    host: bool


@dataclass(frozen=True, slots=True)
class LayoutPlan:
    """A run's memory.

    Attributes:
        values: The region of every value of the body, by name; values that are never alive together share bytes.
        values_bytes: Device memory of values.
        staging_bytes: Device memory through which a lane reads and writes blocks that engines can't take in place, a
            turn of two.
        key_bytes: Device memory for one key tile and its values, where these are in host memory; a turn of two.
        host_bytes: Pinned host memory.
    """

    values: dict[str, Region]
    values_bytes: int
    staging_bytes: int
    key_bytes: int
    host_bytes: int

    def device_bytes(self, lanes: int) -> int:
        """Device memory of values and of what streams them, for ``lanes`` lanes."""
        return self.values_bytes + 2 * (lanes * self.staging_bytes + self.key_bytes)


def align(nbytes: int) -> int:
    """``nbytes``, rounded up to where another array may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def is_direct(value: Value, block_size: int, tile: int) -> bool:
    """Whether a block of a value kept in tiles of ``tile`` tokens is contiguous, as engines want it."""
    return value.axis is None or tile == block_size or all(dim == 1 for dim in value.shape[: value.token_axis])


def plan_layout(schedule: Schedule, *, lanes: int, limit: int, fixed: int) -> LayoutPlan:
    """Keeps all values on the device if they fit; else keys and values in host memory, else more, the largest first.

    Args:
        schedule: The run.
        lanes: Streams that compute at the same time.
        limit: Bytes of device memory.
        fixed: Bytes of it that are taken by other things: weights, workspace, partial results, masks.

    Raises:
        InputError: It does not fit, with what it takes.
    """
    host: frozenset[str] = frozenset()
    tried = lay_out(schedule, host)
    needed = tried.device_bytes(lanes)
    for names in _candidates(schedule):
        if tried.device_bytes(lanes) + fixed <= limit:
            break
        host |= names
        tried = lay_out(schedule, host)
    if tried.device_bytes(lanes) + fixed <= limit:
        return tried
    least = tried.device_bytes(lanes) + fixed
    raise InputError(
        f"device memory limit {enough_text(limit)}",
        f"the run of {schedule.length} tokens needs {enough_text(needed + fixed)} of device memory, and "
        f"{enough_text(least)} with all values that can be in {enough_text(tried.host_bytes)} of host memory (weights, "
        f"workspace, partial results and masks {enough_text(fixed)})",
        f"allow {enough_text(least)}, or use fewer lanes",
    )


def lay_out(schedule: Schedule, host: frozenset[str]) -> LayoutPlan:
    """The layout with the values ``host`` in host memory."""
    costs = StageCosts(schedule.program, schedule.lengths, schedule.positions)
    memories = {False: _Memory(), True: _Memory()}
    regions: dict[str, Region] = {}

    def place(value: Value) -> None:
        on_host = value.name in host
        nbytes = align(costs.nbytes(value))
        regions[value.name] = Region(memories[on_host].take(nbytes), nbytes, on_host)

    for entry in schedule.program.inputs:
        place(entry.value)
    body, _ = needed_stages(schedule.program, schedule.output)
    for stage in body:
        for value in stage.outputs:
            place(value)
        for name in schedule.release_after.get(stage.name, ()):
            memories[regions[name].host].give(regions[name])
    staging, keys = _streaming(schedule, host)
    return LayoutPlan(regions, memories[False].size, staging, keys, memories[True].size)


class _Memory:
    """First fit among the gaps; regions are all multiples of the alignment."""

    def __init__(self) -> None:
        self._taken: list[tuple[int, int]] = []
        self.size = 0

    def take(self, nbytes: int) -> int:
        at = 0
        for start, stop in sorted(self._taken):
            if start - at >= nbytes:
                break
            at = max(at, stop)
        self._taken.append((at, at + nbytes))
        self.size = max(self.size, at + nbytes)
        return at

    def give(self, region: Region) -> None:
        self._taken.remove((region.offset, region.offset + region.nbytes))


def _candidates(schedule: Schedule) -> Iterator[frozenset[str]]:
    """Values that may go to host memory, in this order: keys and values, then others by size, largest first."""
    costs = StageCosts(schedule.program, schedule.lengths, schedule.positions)
    body, _ = needed_stages(schedule.program, schedule.output)
    tiled = schedule.program.tiled
    values = [entry.value for entry in schedule.program.inputs]
    values += [value for stage in body for value in stage.outputs]
    sizes = {value.name: costs.nbytes(value) for value in values if value.axis is not None}
    yield frozenset(tiled & set(sizes))
    for size in sorted(set(sizes.values()), reverse=True):
        yield frozenset(name for name in sizes if sizes[name] == size and name not in tiled)


def _streaming(schedule: Schedule, host: frozenset[str]) -> tuple[int, int]:
    """The most bytes that a lane stages for one call, and those of the largest key tile with its values."""
    program, tiled = schedule.program, schedule.program.tiled
    values = {value.name: value for value in program.values()}

    def block(name: str) -> int:
        """Bytes that a block of the value is staged in; 0 if it is read in place."""
        value = values[name]
        tile = program.key_tile if name in tiled else program.block_size
        if name not in host and is_direct(value, program.block_size, tile):
            return 0
        return align(value.nbytes(program.block_size))

    body, head = needed_stages(program, schedule.output)
    staging = keys = 0
    for stage in body:
        outputs = [value.name for value in stage.outputs]
        # A tile of keys in host memory also comes back once for its padding.
        keys = max([keys, *(align(values[name].nbytes(program.key_tile)) for name in outputs if name in host & tiled)])
        if not stage.on_host:
            rows = stage.inputs[: len(stage.inputs) - len(stage.tiled)]
            staging = max(staging, sum(map(block, (*rows, *outputs))))
        keys = max(keys, sum(align(values[name].nbytes(program.key_tile)) for name in stage.tiled if name in host))
    if head:
        staging = max(staging, block(program.hidden))
    return staging, keys
