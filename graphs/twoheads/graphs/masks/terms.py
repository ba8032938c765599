"""The canonical form of a mask: a short disjunction of bands, sinks and chunks, the same for all its spellings."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from twoheads.graphs.masks.expressions import And, Causal, Chunk, Full, Mask, Or, Sinks, Window

__all__ = ["INFINITE", "Term", "mask_terms"]

INFINITE = 1 << 62
"""What a term does not bound: a side of its band, its sinks or its chunk."""

_MOST_TERMS = 64
"""Beyond this many terms a mask counts as unstructured: it is counted, not solved."""


def mask_terms(mask: Mask) -> tuple[Term, ...] | None:
    """``mask`` as the shortest disjunction of terms that the formulas know, or ``None``; one for all its spellings."""
    return _simplify(_terms(mask))


@dataclass(frozen=True, slots=True)
class Term:
    """Keys ``i - left <= j <= i + right`` that are below ``sinks`` and in the query's chunk of ``chunk`` positions."""

    left: int = INFINITE
    right: int = INFINITE
    sinks: int = INFINITE
    chunk: int = INFINITE

    def within(self, other: Term) -> bool:
        """Whether every pair of this term is surely one of ``other``."""
        same_chunk = other.chunk == INFINITE or other.chunk % self.chunk == 0
        return self.left <= other.left and self.right <= other.right and self.sinks <= other.sinks and same_chunk


def _terms(mask: Mask) -> tuple[Term, ...] | None:
    """The mask as a disjunction of terms, or ``None`` where it has no short one."""
    match mask:
        case Full():
            return (Term(),)
        case Causal():
            return (Term(right=0),)
        case Window(left, right):
            return (Term(left=left if left >= 0 else INFINITE, right=right if right >= 0 else INFINITE),)
        case Sinks(size):
            return (Term(sinks=size),)
        case Chunk(size):
            return (Term(chunk=size),)
        case Or(parts):
            alternatives = [_terms(part) for part in parts]
            known = [terms for terms in alternatives if terms is not None]
            united = tuple(term for terms in known for term in terms)
            return united if len(known) == len(parts) and len(united) <= _MOST_TERMS else None
        case And(parts):
            return _product(parts)
        case _:
            return None


def _product(parts: tuple[Mask, ...]) -> tuple[Term, ...] | None:
    result: tuple[Term, ...] = (Term(),)
    for part in parts:
        factor = _terms(part)
        if factor is None or len(result) * len(factor) > _MOST_TERMS:
            return None
        pairs = [_intersection(a, b) for a, b in product(result, factor)]
        result = tuple(pair for pair in pairs if pair is not None)
        if len(result) < len(pairs):
            return None
    return result


def _intersection(a: Term, b: Term) -> Term | None:
    """Both terms at once; ``None`` where their chunks do not nest."""
    coarse, fine = max(a.chunk, b.chunk), min(a.chunk, b.chunk)
    if coarse != INFINITE and coarse % fine:
        return None
    return Term(min(a.left, b.left), min(a.right, b.right), min(a.sinks, b.sinks), fine)


def _simplify(terms: tuple[Term, ...] | None) -> tuple[Term, ...] | None:
    """Unites bands (each holds the query itself, so two of them leave no gap), then drops what is contained."""
    if terms is None:
        return None
    bands: dict[tuple[int, int], Term] = {}
    for term in terms:
        same = bands.get((term.sinks, term.chunk), term)
        united = Term(max(same.left, term.left), max(same.right, term.right), term.sinks, term.chunk)
        bands[term.sinks, term.chunk] = united
    kept = tuple(bands.values())
    return tuple(a for a in kept if not any(a is not b and a.within(b) for b in kept))
