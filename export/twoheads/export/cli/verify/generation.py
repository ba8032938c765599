"""``twoheads verify --generate``: every step of a continuation against the original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from twoheads.export.cli.shared.console import print_facts, print_json, print_warning, seconds_text
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.export.cli.verify.options import Given, VerifyOptions
from twoheads.graphs.errors import InputError

if TYPE_CHECKING:
    from twoheads.export.verification.generation.proof import GenerationReport

__all__ = ["check_pages", "verify_steps"]

SHARED = {True: "equal to the bit", False: "DIFFER from what a sequence gets alone", None: "not asked here"}
"""In words."""


def check_pages(asked: VerifyOptions) -> None:
    """Refuses pages of a kind where nothing is continued.

    Raises:
        InputError: They are named without ``--generate``.
    """
    if asked.pages is not None and (asked.generate is None or asked.against is None or asked.streamed):
        raise InputError("--pages", "are those of a continuation", "give --against SOURCE --generate N alone")


def verify_steps(bundle: Path, asked: VerifyOptions, given: Given) -> None:
    """Runs it, prints the verdict, and leaves with 1 unless the bundle passes.

    Raises:
        InputError: Options are given that have no meaning here.
    """
    if asked.target is not None or asked.results or asked.masks:
        fix = "leave out --target, --result and --mask"
        raise InputError("--generate", "continues one sequence by the bundle's own engines", fix)
    if asked.against is None or asked.generate is None or not isinstance(given.length, int | None):
        raise InputError("--generate", "continues one sequence", "give --against SOURCE and one --length")

    from twoheads.export.verification.generation.proof import verify_generation

    with PhaseProgress() as progress:
        report = verify_generation(
            bundle,
            asked.against,
            new_tokens=asked.generate,
            length=given.length,
            text=given.text,
            tokens=given.tokens,
            backend=asked.backend,
            precision=asked.precision.value,
            pages=asked.pages,
            trust_remote_code=asked.trust_remote_code,
            progress=progress,
        )
    for warning in report.warnings:
        print_warning(warning)
    if asked.as_json:
        print_json(report.to_json())
    else:
        _print(report)
    if not report.passed:
        raise typer.Exit(1)


def _print(report: GenerationReport) -> None:
    steps = f"{report.new_tokens} behind {report.prompt_tokens} tokens, over {report.block_borders} block borders"
    print_facts(
        (
            ("steps", steps),
            ("max error", f"{report.max_abs_error:.3g} of logits up to {report.max_magnitude:.3g}"),
            ("noise floor", f"{report.noise_floor:.3g}: a ratio of {report.ratio:.3g}"),
            ("relative error", f"{report.relative_error:.3g}"),
            ("same tokens", f"{report.same_tokens} of {report.new_tokens}"),
            ("rollbacks", "equal to the bit" if report.rollback_equal else "DIFFER from fresh contexts"),
            ("kept beginnings", SHARED[report.beginning_equal]),
            ("in a batch", SHARED[report.batch_equal]),
            ("precision", report.precision + (f", pages of {report.pages}" if report.pages else "")),
            ("time", ", ".join(f"{name} {seconds_text(spent)}" for name, spent in report.seconds.items())),
            ("verdict", "passed" if report.passed else "NOT PASSED"),
        )
    )
