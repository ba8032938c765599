"""The verdict of ``verify``: a list of checks, and the calls of every run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twoheads.export.verification.built_run import BuiltFor
from twoheads.export.verification.check import Check
from twoheads.export.verification.collect import RunCount
from twoheads.export.verification.perplexity import Perplexity
from twoheads.graphs.serialization.json_codec import to_json

__all__ = [
    "APPROXIMATION",
    "AS_BUILT",
    "AS_IT_RUNS",
    "BUNDLE",
    "COMPILATION",
    "PIECES",
    "ROUNDED_PRODUCTS",
    "WIDENED",
    "VerifyReport",
]

BUNDLE = "the bundle"
WIDENED = "the bundle in float32"
"""With products in float32, where it has others."""

COMPILATION = "compilation"
"""Is the bundle the original under the same mask and with the same weights? Where it is of a lower precision, its
engines multiply in float32."""

APPROXIMATION = "approximation"
"""How far is the original under the bundle's mask from the original as it is?"""

AS_IT_RUNS = "as it runs"
"""How far is a bundle of a lower precision from the original in float32?"""

ROUNDED_PRODUCTS = "rounded products"
"""How much of that is due to the operands of products?"""

AS_BUILT = "as built"
"""How far is what was built for an accelerator from the original in float32?"""

PIECES = "head in pieces"
"""Does the head give the same some columns at a time, as it runs where a memory limit has no room for it?"""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The verdict.

    Attributes:
        length: Tokens of the input. block_size: ``M``.
        checks: Every comparison. Those of :data:`COMPILATION` are always there.
        runs: The calls of every run, in order.
        seconds: Wall time of ``original`` (fused attention), ``original_plain``, and ``ours``, of the last output; of a
            bundle of a lower precision also ``ours_float32``.
        approximations: That the bundle was compiled with.
        precision: Of the bundle, e.g. ``float32`` or ``float32, weights int8``.
        perplexities: Of a language model on the text, of every candidate; empty for other models.
        built: What was built for a target and ran; ``None`` unless asked for.
        warnings: Of the run.
    """

    length: int
    block_size: int
    checks: tuple[Check, ...]
    runs: tuple[RunCount, ...]
    seconds: dict[str, float]
    approximations: tuple[str, ...]
    precision: str
    perplexities: tuple[Perplexity, ...]
    built: BuiltFor | None
    warnings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed, and in every run the counted calls were the formula's."""
        return all(check.passed for check in self.checks) and all(run.as_foretold for run in self.runs)

    @property
    def proof(self) -> tuple[Check, ...]:
        """The checks of the compilation, by output: hidden states, then logits and embedding where there are such."""
        return tuple(check for check in self.checks if check.name == COMPILATION)

    @property
    def worst(self) -> Check:
        """The check of the compilation with the largest ratio of error to noise floor."""
        return max(self.proof, key=lambda check: (not check.passed, check.ratio))

    @property
    def calls(self) -> RunCount:
        """The calls of the compilation's last run."""
        return [run for run in self.runs if run.candidate == self.worst.candidate][-1]

    def check(self, output: str = "hidden", name: str = COMPILATION) -> Check:
        """The check of one output.

        Raises:
            KeyError: There is none.
        """
        return {(check.name, check.output): check for check in self.checks}[name, output]

    @property
    def finding(self) -> str | None:
        """That evaluations of the original itself differ by more than rounding; ``None`` where they agree."""
        for check in self.proof:
            if not check.rounding:
                share = check.noise_floor / check.max_magnitude if check.max_magnitude else float("inf")
                return (
                    f"two evaluations of the original differ by {share:.2%} of the largest magnitude ({check.output}): "
                    "that is no rounding. Its fused and its eager code are different models, or it decides by a hair "
                    "(which expert a token goes to, or which whole number a quantised activation becomes)"
                )
        return None

    @property
    def top1_agreement(self) -> float | None:
        """Share of the checked positions where bundle and original prefer the same token; ``None`` without logits."""
        return next((check.top1_agreement for check in self.proof if check.output == "logits"), None)

    def to_json(self) -> dict[str, Any]:
        """All of it, with the worst check and the calls of its last run in front."""
        worst, calls, (hidden, *others) = self.worst, self.calls, self.proof
        return {
            "passed": self.passed,
            "finding": self.finding,
            "output": worst.output,
            "max_abs_error": worst.max_abs_error,
            "max_magnitude": worst.max_magnitude,
            "noise_floor": worst.noise_floor,
            "ratio": worst.ratio,
            "top1_agreement": self.top1_agreement,
            "positions_checked": next((check for check in others if check.output == "logits"), hidden).positions,
            "engine_calls": calls.engine_calls,
            "formula_calls": calls.formula_calls,
            "repeated_calls": calls.repeated_calls,
            **to_json(self),
        }
