"""``twoheads verify --streamed``: layer by layer, without either side in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from twoheads.export.cli.shared.arguments import require_path
from twoheads.export.cli.shared.console import print_facts, print_json, print_warning
from twoheads.export.cli.shared.options import DEFAULT_BACKEND
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.export.cli.verify.options import Given, VerifyOptions
from twoheads.export.cli.verify.report import print_report
from twoheads.graphs.errors import InputError

if TYPE_CHECKING:
    from twoheads.export.verification.streamed.verifier import StreamedReport

__all__ = ["verify_layer_by_layer"]


def verify_layer_by_layer(bundle: Path, asked: VerifyOptions, given: Given) -> None:
    """Runs it, prints the verdict, and leaves with 1 unless the bundle passes.

    Raises:
        InputError: Options are given that have no meaning here.
    """
    if asked.against is None or asked.layers.polygraphy or asked.generate is not None:
        fix = "give --against SOURCE, and neither --polygraphy nor --generate"
        raise InputError("--streamed", "compares one run with the original's", fix)
    if asked.target is not None or asked.results or asked.masks or asked.backend != DEFAULT_BACKEND:
        fix = "leave out --target, --result and --backend"
        raise InputError("--streamed", "runs the bundle itself, on ONNX Runtime, stage by stage", fix)
    require_path(asked.against, "the model the bundle was compiled from")

    from twoheads.export.verification.streamed.verifier import verify_streamed

    with PhaseProgress() as progress:
        found = verify_streamed(
            bundle,
            asked.against,
            length=given.length,
            text=given.text,
            tokens=given.tokens,
            progress=progress,
            precision=asked.precision.value,
            trust_remote_code=asked.trust_remote_code,
        )
    for warning in found.report.warnings:
        print_warning(warning)
    if asked.as_json:
        print_json(found.to_json())
    else:
        print_report(found.report)
        print_facts(_facts(found))
    if not found.passed:
        raise typer.Exit(1)


def _facts(found: StreamedReport) -> list[tuple[str, str]]:
    joined = [("inside of an engine", f"{', '.join(found.unseen)}: compared together with what follows")]
    fault = [] if found.first_fault is None else [("first fault", found.first_fault)]
    return [*(joined if found.unseen else []), *fault]
