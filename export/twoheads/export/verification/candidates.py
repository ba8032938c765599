"""What ``verify`` runs, and what each of it is compared with: the list of checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.export.progress import Progress
from twoheads.export.verification.check import WITHIN_FLOORS, Check, Reference, compare, rounding_bound
from twoheads.export.verification.collect import Question, RunCount, collect
from twoheads.export.verification.noise_floor import Floor
from twoheads.export.verification.original_run import OriginalResults
from twoheads.export.verification.perplexity import Perplexity, perplexity, predicted_tokens
from twoheads.export.verification.report import (
    APPROXIMATION,
    AS_BUILT,
    AS_IT_RUNS,
    BUNDLE,
    COMPILATION,
    PIECES,
    ROUNDED_PRODUCTS,
    WIDENED,
)
from twoheads.runtime import LoadedBundle, Report
from twoheads.runtime.inputs.requests import read_inputs
from twoheads.runtime.runs.head_rows import head_rows
from twoheads.runtime.runs.host_executor import HostExecutor

__all__ = ["Candidate", "Outcome", "approximation_checks", "candidates", "pieces_checks", "try_candidate"]

Array: TypeAlias = npt.NDArray[np.float32]

ORDER = ("hidden", "logits", "embedding")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A bundle to run.

    Attributes:
        title: What it is, in words.
        bundle: Itself.
        references: What it is compared with.
        original: Logits of the original in float32, whose perplexity is told beside the candidate's; or ``None``.
    """

    title: str
    bundle: LoadedBundle
    references: tuple[Reference, ...]
    original: Array | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """What is to be computed."""
        return tuple(output for output in ORDER if any(output in side.rows for side in self.references))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a candidate: its checks, its runs' calls, the report of the last run, the perplexity."""

    checks: tuple[Check, ...]
    runs: tuple[RunCount, ...]
    report: Report
    perplexity: Perplexity | None


def candidates(
    loaded: LoadedBundle,
    exact: LoadedBundle,
    built: LoadedBundle | None,
    found: OriginalResults,
    full: Mapping[str, Array] | None,
) -> Iterator[Candidate]:
    """What there is to run.

    Args:
        loaded: The bundle as it runs.
        exact: The same with products in float32; ``loaded`` itself where it has no others.
        built: What was built for an accelerator.
        found: The original under the bundle's mask, with its weights.
        full: By output: the original with its own weights; ``None`` where the bundle's are the same.
    """
    weights = "" if full is None else " with the bundle's weights"
    same = Reference(COMPILATION, f"{original_title(loaded)}{weights}", found.rows, found.floors, WITHIN_FLOORS)
    logits = found.unmasked[1] if found.unmasked else found.logits
    if full is None:
        yield Candidate(BUNDLE, exact, (same,), logits)
    else:
        hidden = {"hidden": found.hidden}
        lower = (
            Reference(AS_IT_RUNS, f"{original_title(loaded)} in float32", full, found.floors),
            Reference(ROUNDED_PRODUCTS, same.title, hidden, found.floors, rounding_bound(loaded.manifest)),
        )
        if exact is loaded:
            yield Candidate(BUNDLE, exact, (same, *lower), full.get("logits"))
        else:
            yield Candidate(WIDENED, exact, (same,))
            yield Candidate(BUNDLE, loaded, lower, full.get("logits"))
    if built is not None:
        reached = Reference(AS_BUILT, original_title(loaded), full or found.rows, found.floors)
        yield Candidate(f"what was built, on {built.backend}", built, (reached,), reached.rows.get("logits"))


def original_title(bundle: LoadedBundle) -> str:
    """The original as the bundle's policy changes it, in words."""
    return " under ".join(("the original", *bundle.manifest.approximations))


def approximation_checks(bundle: LoadedBundle, found: OriginalResults) -> tuple[Check, ...]:
    """How far the bundle's policy is from the model as it is; none for an exact bundle."""
    if found.unmasked is None:
        return ()
    hidden, logits = found.unmasked
    exact = {"hidden": hidden} | ({} if logits is None else {"logits": logits})
    reference = Reference(APPROXIMATION, "the original as it is", exact, found.floors)
    return tuple(compare(original_title(bundle), output, found.rows[output], reference) for output in exact)


def pieces_checks(bundle: LoadedBundle, hidden: Array, floor: Floor | None, question: Question) -> tuple[Check, ...]:
    """The head in pieces of columns beside the whole one, on the same hidden states; none where it has no pieces.

    Every piece computes as many rows as a block has. Which ones makes no difference to what it reads and where its
    columns go.

    Args:
        bundle: The bundle as it runs.
        hidden: The original's hidden states ``[rows, width]``.
        floor: That of the logits.
        question: What they belong to.
    """
    request = read_inputs(bundle.program, question.given, output="hidden").only
    if bundle.columns is None or floor is None or request is None or not isinstance(bundle.executor, HostExecutor):
        return ()
    rows = np.linspace(0, len(hidden) - 1, min(len(hidden), bundle.program.block_size)).astype(np.int64)
    whole = head_rows(bundle, bundle.program, hidden, rows, request.lengths)
    pieces = head_rows(bundle, bundle.columns, hidden, rows, request.lengths)
    reference = Reference(PIECES, "the whole head", {"logits": whole}, {"logits": floor}, WITHIN_FLOORS)
    return (compare("the head some columns at a time", "logits", pieces, reference),)


def try_candidate(candidate: Candidate, question: Question, progress: Progress) -> Outcome:
    """Runs the candidate and compares what comes."""
    checks: list[Check] = []
    reports: list[Report] = []
    measured = None
    for run in collect(candidate.bundle, candidate.title, candidate.outputs, question, progress):
        reports.append(run.report)
        sides = (side for side in candidate.references if run.output in side.rows)
        checks += [compare(candidate.title, run.output, run.rows, side) for side in sides]
        if run.output == "logits" and candidate.original is not None:
            measured = _perplexity(candidate, run.rows, question)
    counts = tuple(RunCount.of(candidate.title, report) for report in reports)
    return Outcome(tuple(checks), counts, reports[-1], measured)


def _perplexity(candidate: Candidate, logits: Array, question: Question) -> Perplexity | None:
    """``None`` where nothing follows on any position, or the model is no language model."""
    tokens = predicted_tokens(candidate.bundle.program, question.given)
    if tokens is None or candidate.original is None:
        return None
    (original, count), (ours, _) = (
        perplexity(rows, tokens, question.positions) for rows in (candidate.original, logits)
    )
    return Perplexity(candidate.title, original, ours, count) if count else None
