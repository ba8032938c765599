"""What a mixture of experts costs. Tokens choose, so the calls are bounded, and counted where all experts are even."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from twoheads.graphs.costs.call_formulas import Formula
from twoheads.graphs.program.engines.experts import ExpertsEngine, fewest_calls, most_calls, row_calls

__all__ = ["ExpertCosts", "dense_is_cheaper", "even_calls", "expert_costs"]

OVERHEAD_FLOPS = 4_000_000
"""What a call of an expert costs beside its products, in operations: to gather and scatter rows, and to call."""


@dataclass(frozen=True, slots=True)
class ExpertCosts:
    """One mixture on some tokens.

    Attributes:
        calls: The most that there may be. formula: The same, from the bounds' text.
        flops: Operations of the products where tokens choose evenly, rows that nobody reads among them.
        bytes_moved: Bytes of the ports of those calls.
        read: Experts that are read where tokens choose evenly, of all.
    """

    calls: int
    formula: Formula
    flops: int
    bytes_moved: int
    read: int


def even_calls(engine: ExpertsEngine, tokens: int) -> tuple[int, ...]:
    """Rows of all calls where ``tokens`` tokens choose all experts equally often, as far as they can."""
    pairs = tokens * engine.chosen
    used = min(engine.experts, pairs)
    rows, more = divmod(pairs, used) if used else (0, 0)
    sizes = engine.row_sizes
    return row_calls(sizes, rows) * (used - more) + row_calls(sizes, rows + 1) * more


@lru_cache(maxsize=1 << 8)
def expert_costs(engine: ExpertsEngine, tokens: int) -> ExpertCosts:
    """The costs of a mixture on ``tokens`` tokens."""
    sizes, most = even_calls(engine, tokens), most_calls(engine, tokens)
    text = f"{engine.chosen} of {engine.experts} experts a token: {fewest_calls(engine, tokens)} to {most}"
    rows = 4 * (3 * engine.width + 1)
    return ExpertCosts(
        calls=most,
        formula=Formula(text, most),
        flops=sum(sizes) * engine.row_flops,
        bytes_moved=sum(sizes) * rows + len(sizes) * engine.expert_bytes,
        read=min(engine.experts, tokens * engine.chosen),
    )


def dense_is_cheaper(engine: ExpertsEngine) -> bool:
    """Whether a block costs less with every expert on every token, in one call, than gathered by expert."""
    dense = engine.block_size * engine.experts * engine.row_flops
    sizes = even_calls(engine, engine.block_size)
    return dense <= sum(sizes) * engine.row_flops + len(sizes) * OVERHEAD_FLOPS
