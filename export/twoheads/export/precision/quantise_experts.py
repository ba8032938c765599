"""Which weights of experts that are gathered by expert can be quantised, and their engine that reads them so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from twoheads.export.precision.weight_bindings import weight_readers
from twoheads.graphs.program.engines.quantised import QUANTISATION_BLOCK
from twoheads.graphs.program.program import ExpertsEngine, ExpertsStage, Program

__all__ = ["Fits", "QuantisedAs", "expert_plans", "quantised_experts"]

PRODUCTS = ("up", "down")


@dataclass(frozen=True, slots=True)
class QuantisedAs:
    """How a weight of the source is stored.

    Attributes:
        bits: 8 or 4.
        transposed: The product sums over its first dimension; of a stack's entries.
        cut: Long rows of 4 bits lie in pieces, as engines multiply them.
        whole: Products with it are of whole numbers.
        exact: No number of it changes.
    """

    bits: int
    transposed: bool
    cut: bool = False
    whole: bool = False
    exact: bool = False


Fits: TypeAlias = Callable[[str, QuantisedAs], bool]
"""Whether the weight of that name may be stored so."""


def expert_plans(program: Program, bits: int, fits: Fits, *, exact: bool) -> dict[str, QuantisedAs]:
    """The stacks of experts' weights to quantise, each expert's alone, as the weights of other products are.

    Args:
        program: The model's.
        bits: 8 or 4.
        fits: Which stacks may be.
        exact: Their numbers stay what they are.

    A stack stays as it is where something else than an expert reads it, or its rows are no whole blocks.
    """
    products: dict[str, set[str]] = {}
    plans: dict[str, QuantisedAs] = {}
    for stage in program.mixtures:
        engine = program.engine_of(ExpertsEngine, stage.engine)
        for product, name, inner in _products(stage, engine):
            products.setdefault(name, set()).add(product)
            if inner % QUANTISATION_BLOCK == 0 and engine.dtype == "float32":
                plans[name] = QuantisedAs(bits, bool(engine.transposed), exact=exact)
    for name in _read_elsewhere(program) & plans.keys():
        del plans[name]
    return {name: plan for name, plan in plans.items() if len(products[name]) == 1 and fits(name, plan)}


def quantised_experts(program: Program, engine: ExpertsEngine, plans: Mapping[str, QuantisedAs]) -> ExpertsEngine:
    """The engine's declaration with the weights of ``plans``; all stages that use it agree."""
    stage = next(stage for stage in program.mixtures if stage.engine == engine.name)
    bits = {product: plans[name].bits for product, name, _ in _products(stage, engine) if name in plans}
    return replace(engine, up_bits=bits.get("up", 0), down_bits=bits.get("down", 0))


def _products(stage: ExpertsStage, engine: ExpertsEngine) -> Iterator[tuple[str, str, int]]:
    """Both products: which it is, its weights' name, and over how many numbers of a row it sums."""
    names = stage.weights[::2] if engine.biased else stage.weights
    yield from zip(PRODUCTS, names, (engine.width, engine.inner), strict=True)


def _read_elsewhere(program: Program) -> set[str]:
    found = {name for attention in program.attentions for name in attention.weights}
    found |= {name for scan in program.scans for name in scan.weights}
    return found | weight_readers(program).keys()
