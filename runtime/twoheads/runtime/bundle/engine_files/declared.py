"""What a bundle's program says of every engine file: ports, the weights it refers to, the factors of its scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from twoheads.graphs.program.engines.scan import STEP as SCAN_STEP
from twoheads.graphs.program.fused import FusedStage
from twoheads.graphs.program.program import (
    AnyAttention,
    AttentionEngine,
    AttentionStage,
    Engine,
    ExpertsEngine,
    OracleEngine,
    Port,
    Program,
    ScanEngine,
    Stage,
    StockEngine,
    TokenwiseEngine,
)
from twoheads.graphs.program.wiring import ReadWeight, wiring
from twoheads.graphs.schedule.head_columns import head_columns
from twoheads.graphs.serialization.bundle_format import ENGINES, Manifest, WeightEntry, tiles_folder
from twoheads.graphs.variants.batch_steps import BATCH_ROWS, BatchSteps
from twoheads.graphs.variants.choose import fused_steps
from twoheads.graphs.variants.in_place.batch_in_place import batches_in_place
from twoheads.graphs.variants.in_place.in_place_steps import in_place_steps
from twoheads.graphs.variants.in_place.rounded_steps import rounded_steps
from twoheads.graphs.variants.key_tiles import with_key_tile
from twoheads.graphs.variants.steps import SMALL_ROWS, step_steps

__all__ = ["DeclaredEngine", "declared_engines", "declared_steps"]


@dataclass(frozen=True, slots=True)
class DeclaredEngine:
    """One engine file, as the program has it.

    Attributes:
        inputs, outputs: Its ports, in order, weights not among them.
        weights: For every weight port where the file's own weight lies: that of the first stage that uses it.
        factors: What the program multiplies scores with: scales and softcaps, which the file says again.
        alone: Whether the file multiplies with no other single number.
        wiring: Of the stages that it holds; ``None`` where it holds one.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: Mapping[str, WeightEntry]
    factors: frozenset[float]
    alone: bool
    wiring: str | None = None


def declared_engines(program: Program, manifest: Manifest, weight: ReadWeight) -> dict[str, DeclaredEngine]:
    """Every engine file that a run may open, by its name in the manifest; the bundle need not hold all of them.

    Those that extend a sequence are apart, as there are many: :func:`declared_steps`. What reads a weight is asked for
    sinks and biases.
    """
    found = dict(_tokenwise(program, program.tokenwise_engines, program, manifest, weight))
    for steps, fused in fused_steps(program, manifest.lowering, short=True):
        found.update(_tokenwise(steps, [fused], program, manifest, weight))
    found.update(_columns(head_columns(program), manifest))
    for width in manifest.key_tiles:
        folder = ENGINES if width == program.key_tile else tiles_folder(width)
        for engine in with_key_tile(program, width).engines:
            found.update(_attention(engine, folder))
    return found


def declared_steps(program: Program, manifest: Manifest, weight: ReadWeight) -> dict[str, DeclaredEngine]:
    """Every engine file that extends a sequence, as :func:`declared_engines`; checked when generating opens it."""
    found: dict[str, DeclaredEngine] = {}
    steps = step_steps(program)
    if steps is None:
        return found
    joined, factors = wiring(steps.body.inside, weight), _factors_of(steps.body.inside, program)
    in_place = [found.engines for found in (in_place_steps(program), rounded_steps(program)) if found is not None]
    for engine in chain(steps.engines, *in_place):
        bound = _bound(engine, tuple(steps.body.weights), manifest, factors)
        found[_file(engine)] = replace(bound, wiring=joined)
    for rows in steps.rows:
        for tile, variants in steps.tiles(rows).items():
            found.update(_variants(tile, variants, ENGINES))
    for rows in {*steps.rows, *BATCH_ROWS}:
        for stage, head in steps.heads(rows) if rows in {*SMALL_ROWS, *BATCH_ROWS} else ():
            found[_file(head)] = _bound(head, stage.weights, manifest)
        for stage, _ in steps.body.regions if rows != program.block_size else ():
            region = steps.region(stage, rows)
            found.setdefault(_file(region), _bound(region, stage.weights, manifest))
        for scan in {steps.scan(stage, rows) for stage, _ in steps.body.scans}:
            found[f"{ENGINES}/{scan.name}.{SCAN_STEP}.onnx"] = _unbound(scan, SCAN_STEP)
    for attention in BatchSteps(steps).attentions:
        factors = _factors(attention.geometry)
        found[f"{ENGINES}/{attention.name}.onnx"] = DeclaredEngine(
            attention.inputs, attention.outputs, {}, factors, True
        )
    exact = in_place_steps(program)
    for written in () if exact is None else batches_in_place(exact):
        factors = _factors(written.geometry)
        found[f"{ENGINES}/{written.name}.onnx"] = DeclaredEngine(written.inputs, written.outputs, {}, factors, True)
    return found


def _tokenwise(
    steps: Program, engines: Iterable[TokenwiseEngine], program: Program, manifest: Manifest, weight: ReadWeight
) -> Iterator[tuple[str, DeclaredEngine]]:
    """Of ``engines`` of ``steps``, which is ``program`` or derived from it."""
    left = {engine.name: engine for engine in engines}
    for stage, used in steps.bindings:
        if (engine := left.pop(used.name, None)) is None:
            continue
        inside = stage.inside if isinstance(stage, FusedStage) else ()
        bound = _bound(engine, stage.weights, manifest, _factors_of(inside, program))
        yield _file(engine), replace(bound, wiring=wiring(inside, weight) if inside else None)


def _columns(program: Program | None, manifest: Manifest) -> Iterator[tuple[str, DeclaredEngine]]:
    """The engine of some columns of the head, with the first rows of the weights that it has a part of."""
    if program is None:
        return
    for stage in program.head:
        engine = program.engine_of(TokenwiseEngine, stage.engine)
        bound = _bound(engine, stage.weights, manifest)
        shapes = {port.name: port.shape for port in engine.weights}
        first = {port: replace(entry, shape=shapes[port]) for port, entry in bound.weights.items()}
        yield _file(engine), replace(bound, weights=first)


def _file(engine: TokenwiseEngine) -> str:
    return f"{ENGINES}/{engine.name}.onnx"


def _bound(
    engine: TokenwiseEngine, names: Iterable[str], manifest: Manifest, factors: frozenset[float] = frozenset()
) -> DeclaredEngine:
    """``engine`` with the weights ``names``."""
    bound = ((port.name, manifest.declared(name)) for port, name in zip(engine.weights, names, strict=True))
    weights = {port: entry for port, entry in bound if entry is not None}
    return DeclaredEngine(engine.inputs, engine.outputs, weights, factors, False)


def _attention(engine: Engine, folder: str) -> Iterator[tuple[str, DeclaredEngine]]:
    if isinstance(engine, ScanEngine | ExpertsEngine) and folder == ENGINES:
        for variant in engine.VARIANTS:
            yield f"{folder}/{engine.name}.{variant}.onnx", _unbound(engine, variant)
    elif isinstance(engine, AnyAttention):
        yield from _variants(engine, engine.variants, folder)


def _unbound(engine: ScanEngine | ExpertsEngine, variant: str) -> DeclaredEngine:
    """An engine whose weights are inputs."""
    return DeclaredEngine(*engine.ports(variant), {}, frozenset(), False)


def _variants(engine: AnyAttention, variants: Iterable[str], folder: str) -> Iterator[tuple[str, DeclaredEngine]]:
    for variant in variants:
        declared = DeclaredEngine(*engine.ports(variant), {}, _factors(engine), engine.kind != "oracle")
        yield f"{folder}/{engine.name}.{variant}.onnx", declared


def _factors(engine: AnyAttention) -> frozenset[float]:
    """The single numbers that the files of an attention engine multiply with."""
    if isinstance(engine, OracleEngine):  # whose queries are scaled before
        return frozenset()
    if isinstance(engine, StockEngine):
        return frozenset({engine.scale})
    factor = engine.scale / (engine.softcap or 1.0)
    return frozenset(number for number in (factor, engine.softcap or 1.0) if number != 1.0)


def _factors_of(inside: Iterable[Stage], program: Program) -> frozenset[float]:
    """Those of the attentions among the stages ``inside`` of one engine of ``program``."""
    names = {inner.engine for inner in inside if isinstance(inner, AttentionStage)}
    engines = (engine for engine in program.engines if engine.name in names and isinstance(engine, AttentionEngine))
    return frozenset(factor for engine in engines for factor in _factors(engine))
