"""Which theorem stands behind a stage, what the paper's own construction would call, and what no construction can save.

The paper counts calls of an *oracle*: a transformer of ``M`` positions that returns normalised attention and nothing
else. We give it every benefit of the doubt: its synthetic token does not count among the ``M`` positions, it carries
all heads of a layer in one call as our engines do (Theorem 3.4 with ``H' = H``, ``L' = 1``), and blocks are never
smaller than ``M``. A position carries a query and a key side by side, so one call brings ``M`` queries and ``M`` keys
together. With ``n = ceil(N / M)`` blocks one attention layer then takes

* **full** (Lemma 3.1, Theorem 3.4): for each of ``n^2`` pairs of blocks one call for ``A`` (all values 1) and one for
  ``B / A`` (the true values): ``2*n^2``;
* **causal** (Theorem 3.5, Claim B.6): a causal oracle needs one position of the queries and keys for a diagonal pair;
  an off-diagonal pair is a lower triangle plus, in reversed order, the strict upper one. Two calls each:
  ``2*n + 4*n*(n - 1)/2 = 2*n^2``;
* **window** of ``r`` keys (Theorem 5.1): chunks of ``M - r`` queries with the ``M`` keys around them; a query's window
  is the prefix sum at its last key minus the one before its first key, each a causal call for ``A`` and one for
  ``B / A``: ``4*ceil(N / (M - r))``. ``s`` sinks go in front of the chunk's keys: ``4*ceil(N / (M - r - s))``;
* **window** with ``r >= M``, for which such chunks are empty: Theorem 3.5's construction on the pairs of blocks that
  the window touches, two calls where one triangle may be enough and four where the whole pair is seen, hence *at
  least* that many; sinks (``s < M``) join as chunks of ``M - s`` queries behind the sinks' keys, two calls each;
* **chunks**: independent inputs of a chunk's length;
* **cross attention**: Lemma 3.1 asks nothing of the keys but that they are a set, so its pairs of blocks may be those
  of two inputs: ``2 * ceil(N / M) * ceil(N' / M)`` for ``N`` queries and ``N'`` keys;
* **average** (Theorem 4.1): each block of queries meets one block of permuted keys; both sums carry the factor
  ``N / M``, which cancels, so the plain ``B / A`` of one call is the estimate: ``n``.

Ours takes one call a pair, because ``out`` and ``lse`` come out together, and no difference of prefix sums. The
**floor** is what any construction needs that gives one call no more than ``M`` queries and ``K`` keys: tokens meet
nowhere but in a call, and a query's result depends on every key it sees, so every visible (query, key) pair must share
a call: ``ceil(pairs / (M * K))``, and at least ``n`` calls, for every query must be in one. The floor for a worst case
is higher: under SETH ``((N / M)^2)^(1 - o(1))`` calls are needed, whatever is computed outside.

A *round* is a set of calls of which none needs another's result. Calls of one stage depend on earlier stages only, so
a program has as many rounds as stages that call, ``O(L)``. A *scan* is no attention, and the paper has no count for it:
its state has a fixed size, so one call a block is exact and is the floor, and each of them is a round, ``N / M`` of
them. Sequence stages move rows and call nothing: the paper, too, counts calls and lets the host move numbers. (Our
engines may merge a row's tiles one after the other, which saves memory traffic on few processors;
:func:`twoheads.runtime.stages.attention.merge.merge_state` merges them in any order.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from twoheads.graphs.by_kind import ByKind
from twoheads.graphs.costs.call_formulas import Formula, attention_formula, count_visible_pairs
from twoheads.graphs.costs.stage_costs import StagePlan
from twoheads.graphs.masks.expressions import Mask, Window
from twoheads.graphs.masks.terms import INFINITE, Term, mask_terms
from twoheads.graphs.program.engines.experts import fewest_calls
from twoheads.graphs.program.fused import ColumnsStage, FusedStage
from twoheads.graphs.program.program import (
    AttentionStage,
    ExpertsEngine,
    ExpertsStage,
    OracleEngine,
    ScanStage,
    SequenceStage,
    TokenwiseStage,
)
from twoheads.graphs.schedule.schedule import Schedule

__all__ = [
    "LOWER_BOUND",
    "ONE_CALL",
    "ProgramClaim",
    "StageClaim",
    "floor_formula",
    "paper_formula",
    "program_claim",
    "stage_claims",
    "theorem_of",
]

_Claim: TypeAlias = Callable[[Schedule, Any, StagePlan], tuple[str, Formula | None, Formula]]
"""Theorem, the paper's count and the floor of a stage."""

NO_CALL = "no call"
"""The claim of a stage that only moves rows."""

SCAN = "state of a fixed size"
"""The claim of a scan: what a block leaves for the next ones does not grow."""

EXPERTS = "token-wise, gathered"
"""The claim of a mixture of experts."""

ONE_CALL = "one block: no theorem is needed"
"""The claim of a stage that computes a whole input of at most ``M`` tokens."""

LOWER_BOUND = "under SETH, ((N/M)^2)^(1-o(1)) calls are needed in the worst case of full or causal attention"
"""The paper's lower bound, as text: it bounds the worst case over inputs, not this one."""


@dataclass(frozen=True, slots=True)
class StageClaim:
    """What the theory says of one stage at one length.

    Attributes:
        stage: The stage's name.
        theorem: What makes it exact (or, Theorem 4.1, approximate); ``token-wise`` for stages that mix no tokens,
            ``no call`` for those that only move rows; :data:`ONE_CALL` for a whole short input; :data:`SCAN`.
        formula: Our calls, in closed form with constants.
        paper: The calls of the paper's own construction, ``None`` where the paper has none.
        floor: The fewest calls of any construction with calls of this size.
    """

    stage: str
    theorem: str
    formula: Formula
    paper: Formula | None
    floor: Formula


@dataclass(frozen=True, slots=True)
class ProgramClaim:
    """The sums over a schedule's stages.

    Attributes:
        theorem: The theorems of the attention stages, strongest claim last, joined.
        calls: Ours.
        rounds: Dependent rounds, ``O(L)``.
        paper_calls: Of the paper's own construction; ``None`` if a stage has none.
        floor_calls: The fewest possible.
    """

    theorem: str
    calls: int
    rounds: int
    paper_calls: int | None
    floor_calls: int


def theorem_of(mask: Mask, *, heads: int = 1) -> str:
    """The result that makes an attention under ``mask`` exact, tile by tile, with ``heads`` heads in every call."""
    shape = _Shape.of(mask)
    match shape.kind:
        case "full":
            name = "Lemma 3.1" if heads == 1 else "Theorem 3.4"
        case "causal":
            name = "Theorem 3.5"
        case "window":
            name = "Theorem 5.1"
        case _:
            return "Lemma 3.1 with a mask"
    return f"{name} in each chunk" if shape.chunk != INFINITE else name


def paper_formula(mask: Mask, *, block_size: int, length: int) -> Formula | None:
    """Calls of the paper's own construction for one attention layer; see the module's docstring for the derivation.

    Args:
        mask: Which keys a query sees.
        block_size: ``M``, the oracle's positions beside the synthetic token.
        length: ``N``.

    Returns:
        The formula, or ``None`` where the paper covers no such mask.
    """
    shape = _Shape.of(mask)
    if shape.chunk == INFINITE:
        return _paper(shape, block_size, length)
    whole, rest = divmod(length, shape.chunk)
    parts = [(whole, _paper(shape, block_size, shape.chunk)), (1, _paper(shape, block_size, rest) if rest else None)]
    known = [(times, part) for times, part in parts if times and part is not None]
    if not known:
        return None
    text = " + ".join(f"{times}*({part.text.rsplit(' = ', 1)[0]})" for times, part in known)
    calls = sum(times * part.calls for times, part in known)
    return Formula(f"{text} = {calls}", calls)


def floor_formula(mask: Mask, *, block_size: int, key_tile: int, length: int) -> Formula:
    """The fewest calls of ``block_size`` queries and ``key_tile`` keys in which all visible pairs can meet."""
    pairs = count_visible_pairs(mask, length)
    meet, enter = -(-pairs // (block_size * key_tile)), -(-length // block_size)
    if enter >= meet:
        return Formula(f"ceil(N / M) = {enter}", enter)
    return Formula(f"ceil({pairs} pairs / ({block_size}*{key_tile})) = {meet}", meet)


def stage_claims(schedule: Schedule) -> tuple[StageClaim, ...]:
    """What the theory says of every stage of ``schedule``, in order."""
    stages = {stage.name: stage for stage in (*schedule.program.body, *schedule.program.head)}
    claims: list[StageClaim] = []
    for plan in schedule.stages:
        stage = stages[plan.name]
        theorem, paper, floor = _CLAIMS.of(stage)(schedule, stage, plan)
        claims.append(StageClaim(plan.name, theorem, plan.formula, paper, floor))
    return tuple(claims)


def program_claim(schedule: Schedule) -> ProgramClaim:
    """The theory of the whole schedule."""
    claims = stage_claims(schedule)
    theorems = sorted({claim.theorem for claim in claims if claim.theorem not in ("token-wise", NO_CALL)})
    paper = [claim.paper.calls for claim in claims if claim.paper is not None]
    return ProgramClaim(
        theorem=", ".join(theorems) or "token-wise",
        calls=schedule.formula_calls,
        rounds=schedule.rounds,
        paper_calls=sum(paper) if len(paper) == len(claims) else None,
        floor_calls=sum(claim.floor.calls for claim in claims),
    )


def _plain(theorem: str) -> _Claim:
    """Of stages that mix no tokens: theirs is the least number of calls."""
    return lambda schedule, stage, plan: (theorem, plan.formula, plan.formula)


def _columns(schedule: Schedule, stage: ColumnsStage, plan: StagePlan) -> tuple[str, Formula | None, Formula]:
    """A call of all columns would be the least."""
    blocks = plan.calls // len(stage.starts)
    return "token-wise", plan.formula, Formula(f"h = {blocks}", blocks)


def _experts(schedule: Schedule, stage: ExpertsStage, plan: StagePlan) -> tuple[str, Formula | None, Formula]:
    """Tokens are not mixed, only gathered; the fewest calls are those of tokens that all choose alike."""
    engine = schedule.program.engine_of(ExpertsEngine, stage.engine)
    fewest = fewest_calls(engine, schedule.value_rows(stage.output))
    return EXPERTS, plan.formula, Formula(f"{fewest}", fewest)


def _attention(schedule: Schedule, stage: AttentionStage, plan: StagePlan) -> tuple[str, Formula | None, Formula]:
    """Theorem, the paper's count and the floor of one attention stage."""
    program, length = schedule.program, schedule.value_rows(stage.output)
    block, heads = program.block_size, int(stage.output.shape[1])
    key = program.value(stage.key)
    if key.axis != stage.output.axis:
        return _cross(length, schedule.value_rows(key), block, program.key_tile)
    if stage.average is not None:
        blocks = -(-length // block)
        return "Theorem 4.1", Formula(f"n = {blocks}", blocks), Formula(f"ceil(N / M) = {blocks}", blocks)
    paper = paper_formula(stage.mask, block_size=block, length=length)
    engine = program.engine(stage.engine)
    if isinstance(engine, OracleEngine):
        pairs = engine.q_num_heads * count_visible_pairs(stage.mask, length)
        meet = -(-pairs // (block * block * engine.slots))
        floor = Formula(f"ceil({pairs} pairs of all heads / ({block}*{block}*{engine.slots})) = {meet}", meet)
        return theorem_of(stage.mask, heads=heads), _packed(paper, engine), floor
    return (
        theorem_of(stage.mask, heads=heads),
        paper,
        floor_formula(stage.mask, block_size=block, key_tile=program.key_tile, length=length),
    )


def _fused(schedule: Schedule, stage: FusedStage, plan: StagePlan) -> tuple[str, Formula | None, Formula]:
    """The same of several stages: the paper's construction calls for each attention and for the regions around them."""
    if stage.states:
        theorems = {SCAN, *(theorem_of(window.mask) for window in stage.windows)}
        return ", ".join(sorted(theorems)), None, plan.formula
    if not stage.windows:
        return ONE_CALL, plan.formula, plan.formula
    block, length = schedule.program.block_size, schedule.value_rows(stage.outputs[0])
    known = [(w.layers, p) for w in stage.windows if (p := paper_formula(w.mask, block_size=block, length=length))]
    paper = _with_regions(known, plan.calls, whole=stage.whole) if len(known) == len(stage.windows) else None
    if stage.whole:
        return ", ".join(sorted({theorem_of(window.mask) for window in stage.windows})), paper, plan.formula
    (window,) = stage.windows
    heads = int(schedule.program.value(stage.inputs[0]).shape[1])
    floor = floor_formula(window.mask, block_size=block, key_tile=window.tiles * block, length=length)
    return theorem_of(window.mask, heads=heads), paper, floor


def _with_regions(attentions: list[tuple[int, Formula]], blocks: int, *, whole: bool) -> Formula:
    """The calls for ``attentions``, as (layers, formula), and for the region behind each; of all layers, one more."""
    regions = sum(layers for layers, _ in attentions) + whole
    calls = sum(layers * paper.calls for layers, paper in attentions) + regions * blocks
    texts = [(layers, paper.text.rsplit(" = ", 1)[0]) for layers, paper in attentions]
    if not whole:
        return Formula(f"{texts[0][1]} + n = {calls}", calls)
    text = " + ".join(f"{layers}*({paper})" for layers, paper in texts)
    return Formula(f"{text} + {regions}*n = {calls}", calls)


def _cross(queries: int, keys: int, block: int, tile: int) -> tuple[str, Formula, Formula]:
    """Theorem, the paper's count and the floor of attention over another axis's keys, all of them."""
    calls = 2 * -(-queries // block) * -(-keys // block)
    paper = Formula(f"2*ceil({queries}/M)*ceil({keys}/M) = {calls}", calls)
    meet, enter = -(-queries * keys // (block * tile)), -(-queries // block)
    if enter >= meet:
        return "Lemma 3.1", paper, Formula(f"ceil({queries}/M) = {enter}", enter)
    return "Lemma 3.1", paper, Formula(f"ceil({queries}*{keys} pairs / ({block}*{tile})) = {meet}", meet)


def _packed(paper: Formula | None, engine: OracleEngine) -> Formula | None:
    """The paper's count for an oracle of ``H'`` heads and ``L'`` layers (Lemma 3.3)."""
    if paper is None:
        return None
    calls = -(-engine.q_num_heads * paper.calls // engine.slots)
    text = paper.text.rsplit(" = ", 1)[0]
    return Formula(f"ceil({engine.q_num_heads}*({text}) / ({engine.heads}*{engine.layers})) = {calls}", calls)


@dataclass(frozen=True, slots=True)
class _Shape:
    """A mask as the paper knows it: ``full``, ``causal``, ``window`` (of ``size`` keys, plus ``sinks``), ``other``."""

    kind: str
    left: int = INFINITE
    right: int = INFINITE
    sinks: int = 0
    chunk: int = INFINITE

    @property
    def size(self) -> int:
        """``r``: keys of a window."""
        return self.left + self.right + 1

    @classmethod
    def of(cls, mask: Mask) -> _Shape:
        """The shape of ``mask``; spellings of one mask have one shape."""
        match mask_terms(mask):
            case (Term() as band,) if band.sinks == INFINITE:
                return cls(_kind(band), band.left, band.right, 0, band.chunk)
            case (Term() as first, Term() as second):
                band, sunk = (first, second) if first.sinks == INFINITE else (second, first)
                unbounded = band.sinks == INFINITE and (band.chunk, sunk.chunk, sunk.left) == (INFINITE,) * 3
                if unbounded and sunk.sinks != INFINITE and _kind(band) == "window":
                    return cls("window", band.left, band.right, sunk.sinks)
            case _:
                pass
        return cls("other")


def _kind(band: Term) -> str:
    if band.left == INFINITE:
        return {INFINITE: "full", 0: "causal"}.get(band.right, "other")
    return "window" if band.right != INFINITE else "other"


def _paper(shape: _Shape, block: int, length: int) -> Formula | None:
    """The paper's count without chunks."""
    n = -(-length // block)
    match shape.kind:
        case "full":
            return Formula(f"2*n^2 = {2 * n * n}", 2 * n * n)
        case "causal":
            return Formula(f"2*n + 4*n*(n - 1)/2 = {2 * n * n}", 2 * n * n)
        case "window" if shape.size + shape.sinks < block:
            calls = 4 * -(-length // (block - shape.size - shape.sinks))
            taken = f" - {shape.size}" + (f" - {shape.sinks}" if shape.sinks else "")
            return Formula(f"4*ceil(N / (M{taken})) = {calls}", calls)
        case "window" if shape.sinks < block:
            return _wide_window(shape, block, length)
        case _:
            return None


def _wide_window(shape: _Shape, block: int, length: int) -> Formula:
    """At least two calls for every pair of blocks that the window touches, four where all of the pair is seen."""
    band = Window(shape.left, shape.right)
    touched = attention_formula(band, block_size=block, key_tile=block, length=length).calls
    n = -(-length // block)
    behind, ahead = (max(0, (side + 1) // block - 1) for side in (shape.left, shape.right))
    full = sum(max(0, n - distance) for side in (behind, ahead) for distance in range(1, min(side, n) + 1))
    calls, text = 2 * touched + 2 * full, f"at least 2*{touched} + 2*{full}"
    if shape.sinks:
        chunks = -(-length // (block - shape.sinks))
        calls, text = calls + 2 * chunks, f"{text} + 2*ceil(N / (M - {shape.sinks}))"
    return Formula(f"{text} = {calls}", calls)


_CLAIMS: ByKind[_Claim] = ByKind(
    "theorems",
    {
        TokenwiseStage: _plain("token-wise"),
        SequenceStage: _plain(NO_CALL),
        ExpertsStage: _experts,
        ScanStage: lambda schedule, stage, plan: (SCAN, None, plan.formula),
        AttentionStage: _attention,
        FusedStage: _fused,
        ColumnsStage: _columns,
    },
)
