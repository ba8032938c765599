"""What runs of one number of blocks share: addresses, buffers of streams, mask slots, rows, recorded graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from twoheads.graphs.costs.attention_costs import attention_rows
from twoheads.graphs.costs.stage_costs import StageCosts
from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.tiles import Segment
from twoheads.graphs.program.lengths import is_cross
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, ScanEngine, ScanStage, Stage, Value
from twoheads.graphs.schedule.schedule import Schedule, needed_stages
from twoheads.runtime.backends.device_protocol import DeviceArray, Graph, HostBytes
from twoheads.runtime.device.layout import LayoutPlan, align, plan_layout
from twoheads.runtime.device.mask_slots import MaskSlots, TileRow, tile_rows
from twoheads.runtime.device.partials import partials_bytes
from twoheads.runtime.device.values import DeviceValue
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.stages.attention.bias_tiles import BiasTiles

__all__ = ["Beside", "DevicePlan", "Memory", "Recorded", "Shape", "Sizing", "make_plan", "make_shape"]

MaskKey = Hashable
Memory = Callable[[int, int], tuple[int, HostBytes]]
"""Gives as many bytes of device memory (its address) and of pinned host memory."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a run does, apart from the numbers: runs of equal shapes share a plan.

    Attributes:
        stages: Names of the stages that run.
        tiles: Tiles and blocks of every value of the body.
        rows: The query blocks of every attention stage with its mask; stages of equal masks share theirs.
    """

    stages: tuple[str, ...]
    tiles: tuple[tuple[str, int, int], ...]
    rows: tuple[tuple[Hashable, tuple[TileRow, ...]], ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A graph, and the engine calls in it by stage."""

    graph: Graph
    calls: dict[str, int]


@dataclass(frozen=True, slots=True)
class Beside:
    """Where lies what is in device memory beside the values.

    Attributes:
        partials: Every lane's partial results.
        masks: For every attention stage, its mask slots.
        sinks: For attention stages with learned sinks, their log-sum-exp.
        reals: By axis and tokens of a tile: the int32 number of real tokens in the last tile.
        head: Blocks of the head's values, by name; under the name of ``hidden`` a block of packed rows.
        weights: Of every scan, in the order of its ports.
        states: Addresses of two states, which all scans take turns with: one runs at a time.
        end: The address behind all of it.
    """

    partials: tuple[int, ...]
    masks: dict[str, int]
    sinks: dict[str, DeviceArray]
    reals: dict[tuple[str, int], int]
    head: dict[str, DeviceArray]
    weights: dict[str, tuple[DeviceArray, ...]]
    states: tuple[int, int]
    end: int


@dataclass(slots=True)
class DevicePlan:
    """See the module.

    Attributes:
        layout: The sizes.
        segments: The body's stages in order, cut into runs of device stages and single sequence stages.
        values: Of the body, by name.
        rows: The query blocks of every attention stage.
        masks: The mask slots of every attention stage.
        turns: Addresses of every lane's two staging buffers.
        key_turns: Addresses of the two buffers for key tiles.
        beside: All other addresses.
        device_bytes: Device memory of the plan, without weights and what engines need while they run.
        streamed: Whether engines with weights are open for their stage only. Nothing is recorded then.
        graphs: By segment.
        runs: How many runs the plan has served.
    """

    layout: LayoutPlan
    segments: tuple[tuple[Stage, ...], ...]
    values: dict[str, DeviceValue]
    rows: dict[str, tuple[TileRow, ...]]
    masks: dict[str, MaskSlots]
    turns: tuple[tuple[int, int], ...]
    key_turns: tuple[int, int]
    beside: Beside
    device_bytes: int
    streamed: bool
    graphs: dict[int, Recorded] = field(default_factory=dict)
    runs: int = 0


class Sizing:
    """What a schedule needs beside its values."""

    def __init__(self, schedule: Schedule, engines: EnginePool, lanes: int) -> None:
        self.schedule = schedule
        self.engines = engines
        self.lanes = lanes
        self.body, self.head = needed_stages(schedule.program, schedule.output)
        self.declared = {value.name: value for value in schedule.program.values()}
        self.attentions = [stage for stage in self.body if isinstance(stage, AttentionStage)]
        self.scans = [
            (stage, engines.declared(ScanEngine, stage.engine)) for stage in self.body if isinstance(stage, ScanStage)
        ]
        self.tiled = schedule.program.tiled

    def tile(self, name: str) -> int:
        """Tokens of a tile of the value ``name``."""
        program = self.schedule.program
        return program.key_tile if name in self.tiled else program.block_size

    def body_values(self) -> Iterator[Value]:
        """The values that live in stores."""
        for entry in self.schedule.program.inputs:
            yield entry.value
        for stage in self.body:
            yield from stage.outputs

    def value(self, value: Value, place: int | HostBytes) -> DeviceValue:
        """The value at ``place``."""
        rows = self.schedule.value_rows(value)
        block_size = self.schedule.program.block_size
        return DeviceValue(value, place, rows=rows, block_size=block_size, tile=self.tile(value.name))

    def stage_rows(self, stage: AttentionStage) -> tuple[TileRow, ...]:
        """The rows of ``stage``, longest first: the last to finish is then a short one."""
        tiles = self.value(self.declared[stage.key], 0).tiles
        biased = stage.bias is not None
        rows = tile_rows(self.schedule.rows(stage), last=tiles - 1, biased=biased)
        if not is_cross(stage, self.declared):
            # With padded queries a tile may need a mask that it does not need without: the same for all lengths.
            padded = tile_rows(enumerate(self._padded_rows(stage)), last=tiles - 1, biased=biased)
            if [[tile for tile, _ in row] for _, row in padded] == [[tile for tile, _ in row] for _, row in rows]:
                rows = padded
        return tuple(sorted(rows, key=lambda row: -len(row[1])))

    def _padded_rows(self, stage: AttentionStage) -> tuple[tuple[Segment, ...], ...]:
        """The rows of ``stage`` for as many tokens as its blocks have."""
        sizes = {"block_size": self.schedule.program.block_size, "key_tile": self.schedule.program.key_tile}
        length = self.value(stage.output, 0).blocks * sizes["block_size"]
        return attention_rows(stage, **sizes, queries=length, keys=length, cross=False)

    def engine_bytes(self, *, streamed: bool) -> int:
        """Device memory of weights, all or those of one stage, and an estimate of what engines need while they run."""
        costs = StageCosts(self.schedule.program, self.schedule.lengths, self.schedule.positions)
        stages = (*self.body, *self.head)
        workspace = max((costs.transient(stage) for stage in stages if not stage.on_host), default=0)
        steps = [(stage,) for stage in self.body] + [self.head] if streamed else [stages]
        weights = max(sum(costs.weights(step, mapped=False).values()) for step in steps)
        return weights + self.lanes * workspace

    def mask_key(self, stage: AttentionStage) -> MaskKey:
        """Equal for stages of equal masks and rows."""
        axes = (stage.output.axis, self.declared[stage.key].axis)
        return stage.engine, stage.mask, stage.bias, axes


def make_shape(sizing: Sizing) -> Shape:
    """The shape of a run."""
    values = [sizing.value(value, 0) for value in sizing.body_values()]
    rows: dict[MaskKey, tuple[TileRow, ...]] = {}
    for stage in sizing.attentions:
        key = sizing.mask_key(stage)
        if key not in rows:
            rows[key] = sizing.stage_rows(stage)
    return Shape(
        tuple(stage.name for stage in (*sizing.body, *sizing.head)),
        tuple((value.value.name, value.tiles, value.blocks) for value in values),
        tuple(rows.items()),
    )


def make_plan(sizing: Sizing, shape: Shape, limit: int, memory: Memory) -> DevicePlan:
    """The plan of ``shape`` within ``limit`` bytes of device memory.

    Values go to host memory first; if the weights do not fit even so, each is there for its stage only.

    Raises:
        InputError: It does not fit.
    """
    schedule, lanes = sizing.schedule, sizing.lanes
    by_key = dict(shape.rows)
    rows = {stage.name: by_key[sizing.mask_key(stage)] for stage in sizing.attentions}
    slots: dict[MaskKey, MaskSlots] = {}
    for stage in sizing.attentions:
        key = sizing.mask_key(stage)
        slots[key] = slots.get(key) or _mask_slots(sizing, stage, rows[stage.name])
    masks = {stage.name: slots[sizing.mask_key(stage)] for stage in sizing.attentions}
    beside = _place_beside(sizing, masks, 0).end
    streamed = False
    try:
        layout = plan_layout(schedule, lanes=lanes, limit=limit, fixed=sizing.engine_bytes(streamed=False) + beside)
    except InputError:
        streamed = True
        layout = plan_layout(schedule, lanes=lanes, limit=limit, fixed=sizing.engine_bytes(streamed=True) + beside)
    base, pinned = memory(layout.device_bytes(lanes) + beside, layout.host_bytes)
    values = {
        value.name: sizing.value(value, base + region.offset if not region.host else pinned[region.offset :])
        for value in sizing.body_values()
        for region in (layout.values[value.name],)
    }
    staging = base + layout.values_bytes
    turns = tuple(
        (staging + 2 * lane * layout.staging_bytes, staging + (2 * lane + 1) * layout.staging_bytes)
        for lane in range(lanes)
    )
    keys = staging + 2 * lanes * layout.staging_bytes
    moving = groupby(sizing.body, key=lambda stage: stage.name if stage.on_host else None)
    return DevicePlan(
        layout,
        tuple(tuple(stages) for _, stages in moving),
        values,
        rows,
        masks,
        turns,
        (keys, keys + layout.key_bytes),
        _place_beside(sizing, masks, keys + 2 * layout.key_bytes),
        layout.device_bytes(lanes) + beside,
        streamed,
    )


def _place_beside(sizing: Sizing, masks: dict[str, MaskSlots], at: int) -> Beside:
    """Places what is beside the values from ``at`` on."""
    program = sizing.schedule.program
    engines = {stage.name: sizing.engines.declared(AttentionEngine, stage.engine) for stage in sizing.attentions}
    claims = _Claims(at)
    most = max(map(partials_bytes, engines.values()), default=0)
    partials = tuple(claims.take(most) for _ in range(sizing.lanes))
    places: dict[int, int] = {}
    for slots in masks.values():
        if id(slots) not in places:
            places[id(slots)] = claims.take(len(slots) * align(slots.nbytes))
    sinks: dict[str, DeviceArray] = {}
    for stage in sizing.attentions:
        if stage.sinks is not None:
            engine = engines[stage.name]
            sinks[stage.name] = claims.array("float32", (1, engine.q_num_heads, engine.block_size))
    axes = {(value.axis, sizing.tile(value.name)) for value in sizing.body_values() if value.axis is not None}
    reals = {key: claims.take(4) for key in sorted(axes)}
    buffers = [sizing.declared[program.hidden], *(value for stage in sizing.head for value in stage.outputs)]
    head = {
        value.name: claims.array(value.dtype, value.block_shape(program.block_size))
        for value in (buffers if sizing.head else ())
    }
    weights = {
        stage.name: tuple(claims.array(port.dtype, port.shape) for port in engine.weight_ports)
        for stage, engine in sizing.scans
    }
    largest = max((engine.state.nbytes for _, engine in sizing.scans), default=0)
    states = (claims.take(largest), claims.take(largest))
    at_masks = {name: places[id(slots)] for name, slots in masks.items()}
    return Beside(partials, at_masks, sinks, reals, head, weights, states, claims.end)


class _Claims:
    """Hands out one address after the other."""

    def __init__(self, at: int) -> None:
        self.end = at

    def take(self, nbytes: int) -> int:
        at, self.end = self.end, self.end + align(nbytes)
        return at

    def array(self, dtype: str, shape: tuple[int, ...]) -> DeviceArray:
        array = DeviceArray(self.end, dtype, shape)
        self.take(array.nbytes)
        return array


def _mask_slots(sizing: Sizing, stage: AttentionStage, rows: tuple[TileRow, ...]) -> MaskSlots:
    engine = sizing.engines.declared(AttentionEngine, stage.engine)
    bias = None
    if stage.bias is not None:
        view = sizing.engines.weights.view
        bias = BiasTiles(
            None if stage.bias.table is None else view(stage.bias.table),
            None if stage.bias.slope is None else view(stage.bias.slope),
            block_size=engine.block_size,
            key_tile=engine.key_tile,
        )
    tiles = sizing.value(sizing.declared[stage.key], 0).tiles
    return MaskSlots(stage, engine, bias, tiles=tiles, rows=rows, cross=is_cross(stage, sizing.declared))
