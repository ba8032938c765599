"""The pass behind ``compile --weights``: products read whole numbers and scales instead of float32 weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import onnx

from twoheads.compiler.compiled_model import CompiledModel
from twoheads.export.emit.tokenwise import EmittedRegion, emit_tokenwise
from twoheads.export.precision.deferred_quantised import deferred_quantised, has_4_bits
from twoheads.export.precision.number_formats import check_products
from twoheads.export.precision.quantise_experts import Fits, QuantisedAs, expert_plans, quantised_experts
from twoheads.export.precision.quantised_engine import FLOAT32_LEVEL, PRODUCT_LEVELS, Use, quantised_engine, weight_uses
from twoheads.export.precision.weight_bindings import (
    attention_weights,
    bindings,
    by_form,
    token_ports,
    weight_readers,
)
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.engines.quantised import quantised_names, quantised_ports
from twoheads.graphs.program.program import (
    Engine,
    ExpertsEngine,
    ExpertsStage,
    Program,
    TokenwiseEngine,
    TokenwiseStage,
)
from twoheads.graphs.serialization.bundle_format import FULL_PRECISION, LOSSLESS, QuantisedWeight

__all__ = ["WEIGHT_BITS", "quantise_weights"]

WEIGHT_BITS = {"int8": 8, "int4": 4, LOSSLESS: 4}
"""What ``--weights`` may say beside the format of the values."""

TABLE_BITS = 8
"""Of tables that tokens look up, and of the head: a class with a wrong score is wrong at once, nothing averages it."""


_Changed: TypeAlias = tuple[TokenwiseEngine, Callable[[onnx.ModelProto], onnx.ModelProto]]
"""A declaration, and what makes its model of the one with float32 weights."""


def quantise_weights(compiled: CompiledModel, weight_dtype: str, products: str = "float32") -> CompiledModel:
    """The same model with the weights of its products, and of tables that tokens look up, as ``weight_dtype``.

    Each weight is read and quantised when the result is written, one at a time; of gathered experts, one expert's. It
    stays as it is where anything else reads it too, or where its inner dimension is no multiple of 32. With ``int4``,
    tables and the head have 8 bits. With ``int8`` and such products, tables, the head and gathered experts have scales
    by 32 as without.

    With ``lossless``, a weight has 4 bits where each of its numbers stays what it is: those that a GGUF file has as
    Q4_0, Q4_1 or Q4_K. All others, tables and heads among them, stay float32. So the result is the float32 model, and
    says so; its weights are read once more to find that out.

    Args:
        compiled: Of the dtype float32.
        weight_dtype: ``int8``, ``int4`` or ``lossless``.
        products: In what they are computed: ``float32``, or ``int8``, which rounds the other operand, too. Those of
            8-bit weights always round it; ``int8`` makes them products of whole numbers, with a scale a row.

    Raises:
        CompileError: No weight can be quantised, or has 4 bits; or ``products`` goes with other weights. One that is
            not finite is refused when it is read.
    """
    check_products(products, weight_dtype=weight_dtype)
    program, lossless = compiled.program, weight_dtype == LOSSLESS
    engines = program.tokenwise_engines
    models = {engine.name: emit_tokenwise(compiled.regions[engine.name], engine) for engine in engines}
    uses = {e.name: weight_uses(models[e.name], e.weights, token_ports(program, e)) for e in engines}
    level = PRODUCT_LEVELS[products]
    plans = _plans(compiled, uses, weight_dtype, products)
    if not plans:
        raise CompileError(f"--weights {weight_dtype}", f"{program.name} {_NOTHING[lossless]}", "leave it out")
    weights, quantised = _quantised(compiled.weights, plans)
    program, copied = by_form(program, plans)
    changed = {engine.name: _changed(program, engine, plans, level) for engine in program.tokenwise_engines}
    return replace(
        compiled,
        program=replace(
            program,
            engines=tuple(_declared(program, e, changed, plans) for e in program.engines),
            body=tuple(_rebound(stage, plans, quantised) for stage in program.body),
            head=tuple(_rebound(stage, plans, quantised) for stage in program.head),
        ),
        regions={
            engine.name: EmittedRegion(
                compiled.regions[copied[engine.name]], change(models[copied[engine.name]]), engine, change
            )
            for engine, (_, change) in zip(program.tokenwise_engines, changed.values(), strict=True)
        },
        weights=weights,
        quantised=quantised,
        weight_dtype=weight_dtype,
        products=products,
    )


_NOTHING = {
    False: "has no weight that can be quantised",
    True: "has no matrix of 4 bits: those that a GGUF file has as Q4_0, Q4_1 or Q4_K",
}
"""Why a model is refused, by whether no number may change."""


def _declared(
    program: Program, engine: Engine, changed: Mapping[str, _Changed], plans: Mapping[str, QuantisedAs]
) -> Engine:
    if isinstance(engine, ExpertsEngine):
        return quantised_experts(program, engine, plans)
    return changed[engine.name][0] if engine.name in changed else engine


def _plans(
    compiled: CompiledModel, uses: Mapping[str, Mapping[str, tuple[Use, ...]]], weight_dtype: str, products: str
) -> dict[str, QuantisedAs]:
    """The weights to quantise, and how."""
    bits, lossless = WEIGHT_BITS[weight_dtype], weight_dtype == LOSSLESS

    def fits(name: str, plan: QuantisedAs) -> bool:
        return not plan.exact or has_4_bits(compiled.weights[name], transposed=plan.transposed)

    as_layers = QuantisedAs(
        bits,
        transposed=False,
        cut=PRODUCT_LEVELS[products] == FLOAT32_LEVEL,
        whole=bits == TABLE_BITS and products != FULL_PRECISION,
        exact=lossless,
    )
    as_tables = None if lossless else replace(as_layers, bits=TABLE_BITS, whole=False)
    plans = _tokenwise_plans(compiled.program, uses, as_layers, as_tables, fits)
    return plans | expert_plans(compiled.program, bits, fits, exact=lossless)


def _tokenwise_plans(
    program: Program,
    uses: Mapping[str, Mapping[str, tuple[Use, ...]]],
    as_layers: QuantisedAs,
    as_tables: QuantisedAs | None,
    fits: Fits,
) -> dict[str, QuantisedAs]:
    """Everything that reads one agrees; ``as_tables`` is of heads, too."""
    readers, other = weight_readers(program), attention_weights(program)
    found: dict[str, set[Use]] = {}
    heads: set[str] = set()
    for stage, engine, head in bindings(program):
        for port, name in zip(engine.weights, stage.weights, strict=True):
            found.setdefault(name, set()).update(uses[engine.name].get(port.name, ()))
            heads |= {name} if head else set()
    plans: dict[str, QuantisedAs] = {}
    for name, ports in readers.items():
        ways = {use.transposed for use in found[name]}
        if name in other or len(ways) != 1 or any(port not in uses[engine] for engine, port in ports):
            continue
        how = as_tables if name in heads or any(use.table for use in found[name]) else as_layers
        if how is not None:
            plans[name] = replace(how, transposed=ways.pop())
    return {name: plan for name, plan in plans.items() if fits(name, plan)}


def _quantised(
    weights: Mapping[str, Any], plans: Mapping[str, QuantisedAs]
) -> tuple[dict[str, Any], dict[str, QuantisedWeight]]:
    kept: dict[str, Any] = {}
    entries: dict[str, QuantisedWeight] = {}
    for name, weight in weights.items():
        if name not in plans:
            kept[name] = weight
            continue
        plan = plans[name]
        how = {"transposed": plan.transposed, "cut": plan.cut, "whole": plan.whole, "exact": plan.exact}
        parts = deferred_quantised(name, weight, plan.bits, **how)
        pieces = len(parts) // 2
        names = quantised_names(name, plan.bits, pieces)
        entry = QuantisedWeight(
            bits=plan.bits,
            transposed=plan.transposed,
            values=names[:pieces],
            scales=names[pieces : 2 * pieces],
            offsets=names[-1] if plan.bits == 4 else None,
        )
        kept.update(zip(entry.stored, parts, strict=True))
        entries[name] = entry
    return kept, entries


def _changed(program: Program, engine: TokenwiseEngine, plans: Mapping[str, QuantisedAs], level: int) -> _Changed:
    """The engine's declaration with quantised weights, and what makes its model of that with float32 weights."""
    stage = next(stage for stage, used, _ in bindings(program) if used.name == engine.name)
    bound = {port.name: plans[n] for port, n in zip(engine.weights, stage.weights, strict=True) if n in plans}
    ports = {
        port.name: quantised_ports(port, plan.bits, transposed=plan.transposed, cut=plan.cut, whole=plan.whole)
        for port in engine.weights
        if (plan := bound.get(port.name)) is not None
    }
    declared = tuple(new for port in engine.weights for new in ports.get(port.name, (port,)))
    bits = {name: plan.bits for name, plan in bound.items()}
    return replace(engine, weights=declared), partial(quantised_engine, weights=ports, bits=bits, level=level)


def _rebound(stage: Any, plans: Mapping[str, QuantisedAs], quantised: Mapping[str, QuantisedWeight]) -> Any:
    """The stage with the names of the new weights in place of those that they replace."""
    if not isinstance(stage, TokenwiseStage | ExpertsStage) or plans.keys().isdisjoint(stage.weights):
        return stage
    entries = [quantised[n].stored if n in plans else (n,) for n in stage.weights]
    return replace(stage, weights=tuple(name for names in entries for name in names))
