"""What ``verify`` prints: a row for every check, then the facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twoheads.export.cli.shared.console import calls_text, print_facts, print_table, seconds_text

if TYPE_CHECKING:
    from twoheads.export import VerifyReport
    from twoheads.export.verification.check import Check

__all__ = ["print_report"]

COLUMNS = (
    *("check", "output", ">rows", ">max error", ">noise floor", ">ratio", ">relative", ">magnitude"),
    *(">same best", "allowed", "passed"),
)


def print_report(report: VerifyReport) -> None:
    """Prints the verdict for people."""
    print_table("", COLUMNS, map(_cells, report.checks))
    sides = dict.fromkeys((check.name, f"{check.candidate}, beside {check.reference}") for check in report.checks)
    calls = report.calls
    print_facts(
        (
            ("", ""),
            *sides,
            ("length", f"{report.length} tokens in blocks of {report.block_size}"),
            ("engine calls", calls_text(calls.engine_calls, calls.formula_calls, calls.repeated_calls)),
            *_miscounted(report),
            ("time", ", ".join(f"{name} {seconds_text(spent)}" for name, spent in report.seconds.items())),
            ("precision", report.precision),
            *_built_facts(report),
            *_perplexity_facts(report),
            ("approximations", ", ".join(report.approximations) or "none"),
            ("verdict", _verdict(report)),
        )
    )


def _cells(check: Check) -> tuple[str, ...]:
    return (
        check.name,
        check.output,
        str(check.positions),
        f"{check.max_abs_error:.3g}",
        f"{check.noise_floor:.3g}",
        f"{check.ratio:.3g}",
        f"{check.relative:.3g}" + ("" if check.cosine is None else f" (cosine {check.cosine:.5f})"),
        f"{check.max_magnitude:.3g}",
        "" if check.top1_agreement is None else f"{check.top1_agreement:.2%}",
        "told only" if check.bound is None else str(check.bound),
        "yes" if check.passed else "NO",
    )


def _miscounted(report: VerifyReport) -> list[tuple[str, str]]:
    """Runs whose calls are not the formula's."""
    return [
        ("MISCOUNTED", f"{run.candidate}, {run.output}: {run.engine_calls} calls, foretold {run.formula_calls}")
        for run in report.runs
        if not run.as_foretold
    ]


def _built_facts(report: VerifyReport) -> list[tuple[str, str]]:
    if (built := report.built) is None:
        return []
    said = f"{built.precision}, as {built.compiler} got it, on {built.runs_on}: no device"
    return [(f"built for {built.target}", said)]


def _perplexity_facts(report: VerifyReport) -> list[tuple[str, str]]:
    return [
        (
            "perplexity",
            f"{found.bundle:.4f} of {found.candidate} over {found.tokens} tokens, of the original {found.original:.4f}",
        )
        for found in report.perplexities
    ]


def _verdict(report: VerifyReport) -> str:
    passed = "passed" if report.passed else "NOT PASSED"
    told = {check.output: check for check in report.checks if check.name == "approximation"}
    if not told:
        return passed
    hidden, logits = told["hidden"], told.get("logits")
    same = "" if logits is None else f", the same best token at {logits.top1_agreement:.2%}"
    distance = f"hidden states {hidden.relative:.3g} (relative), {hidden.max_abs_error:.3g} at most{same}"
    return f"approximate: {distance}, against the original as it is; against the original under the same mask: {passed}"
