"""The pass behind ``compile --dtype fp16``: token values and the weights of products are float16, products too.

What stays float32: the partial results of attention, whatever follows from whole numbers alone (in float16 the sine of
a position beyond 1,024 is noise), values that the host moves or adds up, inputs, logits, row values, norms, biases and
tables by position.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import onnx

from twoheads.compiler.compiled_model import CompiledModel
from twoheads.compiler.ir.weights import in_memory
from twoheads.export.emit.tokenwise import EmittedRegion, emit_tokenwise
from twoheads.export.precision.half_constants import LARGEST
from twoheads.export.precision.narrow_engine import narrow_engine
from twoheads.export.precision.number_formats import check_dtype
from twoheads.export.precision.quantised_engine import weight_uses
from twoheads.export.precision.weight_bindings import (
    attention_weights,
    bindings,
    disagreeing,
    token_ports,
    weight_readers,
)
from twoheads.export.precision.whole_numbers import from_whole_numbers
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.program import (
    AttentionEngine,
    Engine,
    Program,
    Stage,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
)

__all__ = ["narrow_values"]

HALF = "float16"

Models = Mapping[str, onnx.ModelProto]
Places = dict[tuple[str, str], set[str]]
"""For each port, as (engine, port), the values that stages bind to it."""


@dataclass(frozen=True, slots=True)
class _Narrow:
    """What becomes float16: values by name, weights by name, and ports, as (engine, port)."""

    values: frozenset[str]
    weights: frozenset[str]
    ports: frozenset[tuple[str, str]]

    def of(self, engine: str) -> set[str]:
        """The names of the engine's ports among them, of values and of weights."""
        return {port for name, port in self.ports if name == engine}


def narrow_values(compiled: CompiledModel) -> CompiledModel:
    """The same model with token values, products and their weights in float16.

    Args:
        compiled: Of float32 throughout, lowered to tiles.

    Raises:
        CompileError: It is not, or a weight is beyond float16's range.
    """
    check_dtype(HALF, lowering=compiled.lowering, weight_dtype=compiled.weight_dtype if compiled.quantised else HALF)
    if compiled.dtype != "float32":
        raise CompileError(compiled.program.name, f"is compiled as {compiled.dtype} already", "leave it as it is")
    program = compiled.program
    engines = program.tokenwise_engines
    models = {engine.name: emit_tokenwise(compiled.regions[engine.name], engine) for engine in engines}
    narrow = _narrow(program, models)
    for name in sorted(narrow.weights):
        _check_range(name, in_memory(compiled.weights[name]))
    changes = {
        engine.name: partial(
            narrow_engine, ports=narrow.of(engine.name), weights=[port.name for port in engine.weights]
        )
        for engine in engines
    }
    declared = {engine.name: engine for engine in engines}
    return replace(
        compiled,
        program=replace(
            program,
            engines=tuple(_engine(engine, narrow) for engine in program.engines),
            body=tuple(_stage(stage, narrow) for stage in program.body),
            head=tuple(_stage(stage, narrow) for stage in program.head),
        ),
        regions={
            name: EmittedRegion(region, changes[name](models[name]), declared[name], changes[name])
            for name, region in compiled.regions.items()
        },
        dtype=HALF,
        weight_dtype=HALF,
    )


def _narrow(program: Program, models: Models) -> _Narrow:
    counted = _counted(program, models)
    weights = _weights(program, models, counted)
    places = _places(program)
    values = _agreeing(_candidates(program, counted), places)
    ports = {place for place, bound in places.items() if bound <= values}
    readers = weight_readers(program)
    return _Narrow(frozenset(values), weights, frozenset(ports | {p for name in weights for p in readers[name]}))


def _counted(program: Program, models: Models) -> set[str]:
    """The values that follow from whole numbers alone."""
    found = {entry.value.name for entry in program.inputs if not entry.value.dtype.startswith("float")}
    for stage, engine, _ in bindings(program):
        given = [port.name for port, name in zip(engine.inputs, stage.inputs, strict=True) if name in found]
        inside = from_whole_numbers(models[engine.name], [port.name for port in engine.weights], given)
        found |= {value.name for port, value in zip(engine.outputs, stage.outputs, strict=True) if port.name in inside}
    return found


def _weights(program: Program, models: Models, counted: Collection[str]) -> frozenset[str]:
    """The weights of products and of token tables that nothing else reads, if no product is one of whole numbers."""
    uses: dict[str, set[str]] = {}
    for stage, engine, _ in bindings(program):
        model, weights = models[engine.name], [port.name for port in engine.weights]
        found = set(weight_uses(model, engine.weights, token_ports(program, engine), in_blocks=False))
        given = [port.name for port, name in zip(engine.inputs, stage.inputs, strict=True) if name in counted]
        whole = from_whole_numbers(model, weights, given)
        products = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul") and node.input[0] in whole]
        found -= {name for node in products for name in node.input}
        uses[engine.name] = found & uses.get(engine.name, found)
    readers, other = weight_readers(program), attention_weights(program)
    plans = dict.fromkeys(
        (n for n, ports in readers.items() if n not in other and all(port in uses[engine] for engine, port in ports)),
        HALF,
    )
    while dropped := disagreeing(readers, plans):
        for name in dropped:
            del plans[name]
    return frozenset(plans)


def _candidates(program: Program, counted: Collection[str]) -> set[str]:
    """The values that may be float16: on a token axis, of an engine, not moved by the host, of no scan or mixture."""
    moved = {name for s in program.body if s.on_host for name in (*s.inputs, *(value.name for value in s.outputs))}
    made = [value for stage in program.body if not stage.on_host and not stage.tiled for value in stage.outputs]
    scanned = {name for scan in program.scans for name in (*scan.inputs, scan.output.name)}
    scanned |= {name for mixture in program.mixtures for name in (*mixture.inputs, mixture.output.name)}
    kept = {*moved, *counted, *scanned, program.logits}
    return {v.name for v in made if v.dtype == "float32" and v.axis is not None and v.name not in kept}


def _places(program: Program) -> Places:
    """The ports of all engines; one of an attention stands for its queries, keys and values, which agree."""
    places: Places = {}
    for stage, engine, _ in bindings(program):
        names = (*stage.inputs, *(value.name for value in stage.outputs))
        for port, name in zip((*engine.inputs, *engine.outputs), names, strict=True):
            places.setdefault((engine.name, port.name), set()).add(name)
    for attention in program.attentions:
        places.setdefault((attention.engine, ""), set()).update(attention.inputs)
    return places


def _agreeing(values: set[str], places: Places) -> set[str]:
    """The largest part of ``values`` in which a port's are all, or none."""
    while dropped := {name for bound in places.values() if not bound <= values for name in bound & values}:
        values = values - dropped
    return values


def _check_range(name: str, weight: Any) -> None:
    """Raises if ``weight``, an array or a tensor, holds a number that float16 has not."""
    largest = max(abs(float(weight.max())), abs(float(weight.min())))
    if not largest <= LARGEST:
        raise CompileError(f"weight {name}", f"holds {largest:g}, and float16 ends at {LARGEST:g}", "compile as fp32")


def _engine(engine: Engine, narrow: _Narrow) -> Engine:
    if isinstance(engine, AttentionEngine):
        return replace(engine, dtype=HALF) if (engine.name, "") in narrow.ports else engine
    if not isinstance(engine, TokenwiseEngine):
        return engine
    inside = narrow.of(engine.name)

    def ports(given: tuple[Port, ...]) -> tuple[Port, ...]:
        return tuple(replace(port, dtype=HALF) if port.name in inside else port for port in given)

    return replace(engine, inputs=ports(engine.inputs), outputs=ports(engine.outputs), weights=ports(engine.weights))


def _stage(stage: Stage, narrow: _Narrow) -> Any:
    if not isinstance(stage, TokenwiseStage):
        return stage
    return replace(stage, outputs=tuple(_value(value, narrow) for value in stage.outputs))


def _value(value: Value, narrow: _Narrow) -> Value:
    return replace(value, dtype=HALF) if value.name in narrow.values else value
