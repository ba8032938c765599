"""Queue the stages of a plan on a device's streams: what is recorded into its graphs."""

from __future__ import annotations

from collections.abc import Sequence

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, ScanEngine, ScanStage, TokenwiseStage
from twoheads.runtime.backends.cuda_kernels import zero_tail
from twoheads.runtime.backends.device_protocol import DeviceArray, Rows, Stream
from twoheads.runtime.backends.protocol import Call, DeviceBackend, DeviceEngine, EngineHandle
from twoheads.runtime.device.lanes import Desk, Lane, Team
from twoheads.runtime.device.layout import align
from twoheads.runtime.device.mask_slots import TileRow
from twoheads.runtime.device.partials import Partials
from twoheads.runtime.device.plan import DevicePlan
from twoheads.runtime.device.tile_buffers import KeyTiles
from twoheads.runtime.device.values import DeviceValue
from twoheads.runtime.execution.engine_pool import EnginePool

__all__ = ["StageQueue", "device_engine"]


class StageQueue:
    """Queues stages of one plan.

    Args:
        plan: Addresses and rows.
        engines: Open engines.
        backend: Whose engines they are.
        copies: For every lane a stream for copies in and one for copies out.
        fetch: A stream for key tiles.
    """

    def __init__(
        self,
        plan: DevicePlan,
        engines: EnginePool,
        backend: DeviceBackend,
        copies: Sequence[tuple[Stream, Stream]],
        fetch: Stream,
    ) -> None:
        self._plan = plan
        self._engines = engines
        self._device = device = backend.device
        self.lanes = tuple(
            Lane(device, number, compute, pair, turns)
            for number, (compute, pair, turns) in enumerate(zip(backend.lanes, copies, plan.turns, strict=True))
        )
        streams: list[Stream] = list(backend.lanes)
        if plan.layout.staging_bytes:
            streams += [stream for pair in copies for stream in pair]
        if plan.layout.key_bytes:
            streams.append(fetch)
        self.team = Team(device, streams)
        self._key_tiles = KeyTiles(device, fetch, plan.key_turns, len(self.lanes))
        self._calls: dict[tuple[EngineHandle, int], Call] = {}

    @property
    def main(self) -> Stream:
        """The stream that every stage begins after and ends before."""
        return self.lanes[0].compute

    def stage(self, stage: TokenwiseStage | AttentionStage | ScanStage) -> int:
        """Queues ``stage``; returns its engine calls."""
        self.team.fork()
        if isinstance(stage, ScanStage):
            calls = self._scan(stage)
        else:
            calls = self._attention(stage) if isinstance(stage, AttentionStage) else self._tokenwise(stage)
        self.team.join()
        for value in stage.outputs:
            self._zero_padding(self._plan.values[value.name])
        return calls

    def forget_calls(self) -> None:
        """Lets go of all calls, which hold their engines."""
        self._calls.clear()

    def _call(self, handle: EngineHandle, lane: Lane) -> Call:
        key = (handle, lane.number)
        if key not in self._calls:
            self._calls[key] = device_engine(handle).new_call(lane.number)
        return self._calls[key]

    def _tokenwise(self, stage: TokenwiseStage) -> int:
        handle = self._engines.tokenwise(stage)
        inputs = [self._plan.values[name] for name in stage.inputs]
        outputs = [self._plan.values[value.name] for value in stage.outputs]
        count = max((value.blocks for value in (*inputs, *outputs)), default=1)
        lanes = self.lanes[: device_engine(handle).lanes]
        desks = [Desk(lane) for lane in lanes]
        for block in range(count):
            desk, call = desks[block % len(lanes)], self._call(handle, lanes[block % len(lanes)])
            desk.begin()
            for port, value in enumerate(inputs):
                call.bind_input(port, desk.read(value, block))
            for port, value in enumerate(outputs):
                call.bind_output(port, desk.write(value, block))
            desk.loaded()
            call.run()
            desk.done()
        return count

    def _scan(self, stage: ScanStage) -> int:
        """One lane makes the calls; of two states each reads one and writes the other."""
        engine, beside, lane = self._engines.declared(ScanEngine, stage.engine), self._plan.beside, self.lanes[0]
        call = self._call(self._engines.attention(stage.engine, engine.VARIANTS[0]), lane)
        inputs, output = [self._plan.values[name] for name in stage.inputs], self._plan.values[stage.output.name]
        states = [DeviceArray(address, engine.state.dtype, engine.state.shape) for address in beside.states]
        self._device.zero(states[0], lane.compute)
        desk = Desk(lane)
        for block in range(output.blocks):
            desk.begin()
            read = [desk.read(value, block) for value in inputs]
            for port, array in enumerate((*read, *beside.weights[stage.name], states[block % 2])):
                call.bind_input(port, array)
            call.bind_output(0, desk.write(output, block))
            call.bind_output(1, states[1 - block % 2])
            desk.loaded()
            call.run()
            desk.done()
        return output.blocks

    def _attention(self, stage: AttentionStage) -> int:
        rows = self._plan.rows[stage.name]
        works = [_LaneRow(self, stage, lane, self._plan.beside.partials[lane.number]) for lane in self.lanes]
        keys, values = self._plan.values[stage.key], self._plan.values[stage.value]
        self._key_tiles.begin()
        for start in range(0, len(rows), len(works)):
            group = list(zip(works, rows[start : start + len(works)], strict=False))
            for work, row in group:
                work.begin(row)
            # Tile by tile, so that a tile that comes from host memory comes once for all lanes.
            for tile in sorted({tile for _, row in group for tile, _ in row[1]}):
                using = [work for work, _ in group if tile in work.masked]
                key, value = self._key_tiles.take(keys, values, tile, [work.lane for work in using])
                for work in using:
                    work.tile(tile, key, value)
                self._key_tiles.give([work.lane for work in using])
            for work, _ in group:
                work.finish()
        return sum(len(row) for _, row in rows)

    def call(self, stage: AttentionStage, variant: str, lane: Lane) -> Call:
        """The lane's call of a variant of the stage's engine."""
        return self._call(self._engines.attention(stage.engine, variant), lane)

    def mask(self, stage: AttentionStage, block: int, tile: int) -> DeviceArray:
        """The mask of one tile."""
        return self.mask_slot(stage.name, self._plan.masks[stage.name].slot(block, tile))

    def mask_slot(self, name: str, slot: int) -> DeviceArray:
        """One slot of the masks of the stage ``name``."""
        slots = self._plan.masks[name]
        return DeviceArray(self._plan.beside.masks[name] + slot * align(slots.nbytes), "float32", slots.shape)

    @property
    def plan(self) -> DevicePlan:
        """What is queued."""
        return self._plan

    @property
    def engines(self) -> EnginePool:
        """Whose engines are called."""
        return self._engines

    def _zero_padding(self, value: DeviceValue) -> None:
        """Zeroes what lies beyond the value's length: what engines make of padding must not reach a real token."""
        if value.value.axis is None:
            return
        real = self._plan.beside.reals[value.value.axis, value.tile_tokens]
        last = value.tiles - 1
        if not value.on_host:
            zero_tail(self._device, value.address(last), real, value.sizes, self.main)
            return
        address = self._plan.key_turns[0] if self._plan.layout.key_bytes >= value.tile_bytes else self._plan.turns[0][0]
        staged = Rows(address, value.tile_bytes)
        self._device.copy(staged, value.tile_rows(last), self.main)
        zero_tail(self._device, address, real, value.sizes, self.main)
        self._device.copy(value.tile_rows(last), staged, self.main)


class _LaneRow:
    """One lane's work on one row of an attention stage after the other."""

    def __init__(self, queue: StageQueue, stage: AttentionStage, lane: Lane, partials: int) -> None:
        plan = queue.plan
        engine = queue.engines.declared(AttentionEngine, stage.engine)
        self.lane = lane
        self.masked: dict[int, bool] = {}
        """The tiles of the row, and whether each is called with a mask."""
        self._queue = queue
        self._stage = stage
        self._desk = Desk(lane)
        self._partials = Partials(lane.device, engine, partials, lane.compute)
        self._sinks = plan.beside.sinks.get(stage.name)
        self._queries, self._output = plan.values[stage.query], plan.values[stage.output.name]
        self._block = 0

    def begin(self, row: TileRow) -> None:
        """Begins a row."""
        self._block, tiles = row
        self.masked = dict(tiles)
        self._desk.begin()
        if self.masked:
            self._query = self._desk.read(self._queries, self._block)
            self._partials.begin(self._sinks)
        self._target = self._desk.write(self._output, self._block)
        self._desk.loaded()

    def tile(self, tile: int, key: DeviceArray, value: DeviceArray) -> None:
        """Queues one tile."""
        masked = self.masked[tile]
        call = self._queue.call(self._stage, "masked" if masked else "full", self.lane)
        for port, array in enumerate((self._query, key, value)):
            call.bind_input(port, array)
        if masked:
            call.bind_input(3, self._queue.mask(self._stage, self._block, tile))
        alone = len(self.masked) == 1 and self._sinks is None
        out, lse = (self._target, self._partials.spare_lse) if alone else self._partials.next()
        call.bind_output(0, out)
        call.bind_output(1, lse)
        call.run()

    def finish(self) -> None:
        """Queues the row's end."""
        if not self.masked:
            self.lane.device.zero(self._target, self.lane.compute)  # no query of the block sees a key
        elif len(self.masked) > 1 or self._sinks is not None:
            self._partials.finish(self._target)
        self._desk.done()


def device_engine(handle: EngineHandle) -> DeviceEngine:
    """The engine of a device's backend.

    Raises:
        InternalError: It is of another backend.
    """
    if not isinstance(handle, DeviceEngine):
        raise InternalError(f"{type(handle).__name__} is no engine of a device")
    return handle
