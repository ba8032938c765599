"""The ONNX files of engines of attention, of scans and of experts: one row a kind.

A new kind of engine is a module in :mod:`twoheads.export.emit` and a row in :data:`EMITTERS`. Token-wise engines are
emitted from their regions (:mod:`twoheads.export.emit.tokenwise`), those that hold several stages from them
(:mod:`twoheads.export.emit.fused.emit`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx

from twoheads.export.emit.experts import experts_model
from twoheads.export.emit.oracle import oracle_model
from twoheads.export.emit.scans.scan import scan_model
from twoheads.export.emit.stock_attention import stock_model
from twoheads.export.emit.tile_attention import attention_model
from twoheads.export.emit.used_variants import used_stock_variants, used_tile_variants
from twoheads.graphs.by_kind import ByKind
from twoheads.graphs.program.program import (
    AttentionEngine,
    Engine,
    ExpertsEngine,
    OracleEngine,
    Program,
    ScanEngine,
    StockEngine,
)

__all__ = ["EMITTERS", "Emitter", "attention_models", "used_variants"]


@dataclass(frozen=True, slots=True)
class Emitter:
    """One kind of engine: which variants a program can call, and the model of each."""

    used: Callable[[Program, Any], tuple[str, ...]]
    model: Callable[[Any, str], onnx.ModelProto]


EMITTERS = ByKind(
    "emit",
    {
        AttentionEngine: Emitter(used_tile_variants, attention_model),
        StockEngine: Emitter(used_stock_variants, stock_model),
        ScanEngine: Emitter(lambda program, engine: engine.VARIANTS, scan_model),
        ExpertsEngine: Emitter(lambda program, engine: engine.variants, experts_model),
        OracleEngine: Emitter(lambda program, engine: (engine.mask,), oracle_model),
    },
)


def used_variants(program: Program, engine: Engine) -> tuple[str, ...]:
    """The variants of such an engine that some stage may call at some length."""
    return EMITTERS.of(engine).used(program, engine)


def attention_models(program: Program, engine: Engine) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The model of each of them, by variant."""
    emitter = EMITTERS.of(engine)
    for variant in emitter.used(program, engine):
        yield variant, emitter.model(engine, variant)
