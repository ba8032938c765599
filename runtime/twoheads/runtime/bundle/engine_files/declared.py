"""What a bundle's program says of every engine file: ports, the weights it refers to, the factors of its scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from twoheads.graphs.program.fused import FusedStage
from twoheads.graphs.program.program import (
    AttentionEngine,
    Engine,
    OracleEngine,
    Port,
    Program,
    StockEngine,
    TokenwiseEngine,
    TokenwiseStage,
)
from twoheads.graphs.serialization.bundle_format import ENGINES, Manifest, WeightEntry, tiles_folder
from twoheads.graphs.variants.choose import fused_steps
from twoheads.graphs.variants.key_tiles import with_key_tile

__all__ = ["DeclaredEngine", "declared_engines"]


@dataclass(frozen=True, slots=True)
class DeclaredEngine:
    """One engine file, as the program has it.

    Attributes:
        inputs, outputs: Its ports, in order, weights not among them.
        weights: For every weight port where the file's own weight lies: that of the first stage that uses it.
        factors: What the program multiplies scores with: scales and softcaps, which the file says again.
        alone: Whether the file multiplies with no other single number.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: Mapping[str, WeightEntry]
    factors: frozenset[float]
    alone: bool


def declared_engines(program: Program, manifest: Manifest) -> dict[str, DeclaredEngine]:
    """Every engine file that a run may open, by its name in the manifest; the bundle need not hold all of them."""
    found = dict(_tokenwise(program, program.tokenwise_engines, program, manifest))
    for steps, fused in fused_steps(program, manifest.lowering, short=True):
        found.update(_tokenwise(steps, [fused], program, manifest))
    for width in manifest.key_tiles:
        folder = ENGINES if width == program.key_tile else tiles_folder(width)
        for engine in with_key_tile(program, width).engines:
            found.update(_attention(engine, folder))
    return found


def _tokenwise(
    steps: Program, engines: Iterable[TokenwiseEngine], program: Program, manifest: Manifest
) -> Iterator[tuple[str, DeclaredEngine]]:
    """Of ``engines`` of ``steps``, which is ``program`` or derived from it."""
    left = {engine.name: engine for engine in engines}
    for stage, used in steps.bindings:
        if (engine := left.pop(used.name, None)) is None:
            continue
        names = zip(engine.weights, stage.weights, strict=True)
        weights = {port.name: manifest.weights[name] for port, name in names}
        factors = _inner_factors(stage, program)
        yield f"{ENGINES}/{engine.name}.onnx", DeclaredEngine(engine.inputs, engine.outputs, weights, factors, False)


def _attention(engine: Engine, folder: str) -> Iterator[tuple[str, DeclaredEngine]]:
    if isinstance(engine, TokenwiseEngine):
        return
    for variant in engine.variants:
        declared = DeclaredEngine(*engine.ports(variant), {}, _factors(engine), engine.kind != "oracle")
        yield f"{folder}/{engine.name}.{variant}.onnx", declared


def _factors(engine: AttentionEngine | StockEngine | OracleEngine) -> frozenset[float]:
    """The single numbers that the files of an attention engine multiply with."""
    if isinstance(engine, OracleEngine):  # whose queries are scaled before
        return frozenset()
    if isinstance(engine, StockEngine):
        return frozenset({engine.scale})
    factor = engine.scale / (engine.softcap or 1.0)
    return frozenset(number for number in (factor, engine.softcap or 1.0) if number != 1.0)


def _inner_factors(stage: TokenwiseStage, program: Program) -> frozenset[float]:
    """Those of the attentions that a fused stage of ``program`` stands for."""
    inside = stage.inside if isinstance(stage, FusedStage) else ()
    names = {inner.engine for inner in inside if inner.tiled}
    engines = (program.engine_of(AttentionEngine, name) for name in sorted(names))
    return frozenset(factor for engine in engines for factor in _factors(engine))
