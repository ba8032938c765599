"""What a run with sampled attention says about its own error, and whether Theorem 4.1 covers its input."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["EPSILON", "AverageReport", "BlockStatistics", "StageEstimate", "summarize", "summarize_stage"]

EPSILON = 0.5
"""The relative error for which the theorem's requirement is reported: its constants leave little room for less."""


@dataclass(frozen=True, slots=True)
class BlockStatistics:
    """Sums over the queries and heads of one block.

    Attributes:
        queries: Pairs of a query and a head.
        error: Sum of the squared norms of the outputs' estimated errors; ``None`` with a single sample.
        norm: Sum of the squared norms of the outputs.
        worst: Largest estimated error of an output, relative to its norm; ``None`` with a single sample.
        bound: Largest bound on the absolute value of a score: ``log C``.
        log_d: Smallest ``log D``.
        remaining: Keys that the drawn ones stand for.
    """

    queries: int
    error: float | None
    norm: float
    worst: float | None
    bound: float
    log_d: float
    remaining: int


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """One sampled attention.

    Attributes:
        name: The stage.
        queries: Pairs of a query and a head whose keys were sampled.
        sampled_keys: Keys drawn for each query: the ``M`` there is.
        remaining_keys: Keys that they stand for, at most: the theorem's ``N``.
        relative_error: Estimate of the output's error from the spread between the drawn tiles: root mean square over
            queries and heads, relative to that of the outputs. ``None`` with a single sample, which has no spread.
        worst_error: The same for the query and head where it is largest.
        c: The theorem's ``C``: exponentiated scores lie in ``[1/C, C]``, by the norms of queries and (centred) keys.
        d: The theorem's ``D``: the smallest ``||sum_j b_ij|| / (N max_j ||b_ij||)``, by the same norms.
        required_keys: The ``M`` that the theorem requires for ``C``, ``D`` and an error of :data:`EPSILON`.
        holds: Whether there are that many: only then the theorem promises anything.
    """

    name: str
    queries: int
    sampled_keys: int
    remaining_keys: int
    relative_error: float | None
    worst_error: float | None
    c: float
    d: float
    required_keys: float
    holds: bool


@dataclass(frozen=True, slots=True)
class AverageReport:
    """All sampled attentions of a run.

    Attributes:
        stages: Those where something was drawn; empty where the input was short enough to be exact.
        relative_error: Of the stage with the largest one; ``None`` with a single sample, 0 where nothing was drawn.
        epsilon: What ``required_keys`` are for.
        assumptions_hold: Whether Theorem 4.1 covers every stage.
    """

    stages: tuple[StageEstimate, ...]
    relative_error: float | None
    epsilon: float
    assumptions_hold: bool


def summarize_stage(
    name: str, blocks: Iterable[BlockStatistics], *, sampled_keys: int, width: int
) -> StageEstimate | None:
    """The estimate of a stage from its blocks, in their order; ``None`` where nothing was drawn."""
    found = tuple(blocks)
    if not found:
        return None
    norm = math.fsum(block.norm for block in found)
    errors = [block.error for block in found if block.error is not None]
    worst = [block.worst for block in found if block.worst is not None]
    bound, log_d = max(block.bound for block in found), min(block.log_d for block in found)
    remaining = max(block.remaining for block in found)
    required = required_keys(bound, log_d, remaining, width)
    return StageEstimate(
        name=name,
        queries=sum(block.queries for block in found),
        sampled_keys=sampled_keys,
        remaining_keys=remaining,
        relative_error=math.sqrt(math.fsum(errors) / norm) if errors and norm else None,
        worst_error=max(worst) if worst else None,
        c=_exp(bound),
        d=_exp(log_d),
        required_keys=required,
        holds=required <= sampled_keys,
    )


def required_keys(bound: float, log_d: float, remaining: int, width: int) -> float:
    """Theorem 4.1's ``M >= 8 C^4 log(40 N) / eps^2`` and ``M >= 128 (log d + log 40 + log N) / (eps^2 D^2)``."""
    by_scores = math.log(8 * math.log(40 * remaining) / EPSILON**2) + 4 * bound
    by_values = math.log(128 * math.log(40 * remaining * width) / EPSILON**2) - 2 * log_d
    return _exp(max(by_scores, by_values))


def summarize(stages: Iterable[StageEstimate]) -> AverageReport:
    """The report of a run from its stages."""
    found = tuple(stages)
    errors = [stage.relative_error for stage in found if stage.relative_error is not None]
    return AverageReport(
        stages=found,
        relative_error=max(errors) if errors else (None if found else 0.0),
        epsilon=EPSILON,
        assumptions_hold=all(stage.holds for stage in found),
    )


def _exp(exponent: float) -> float:
    """``exp``, at most the largest float: JSON knows no infinity."""
    return math.exp(exponent) if exponent < np.log(sys.float_info.max) else sys.float_info.max
