"""What ``run`` prints about sampled attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twoheads.runtime.reports.sampling import AverageReport

__all__ = ["average_lines"]


def average_lines(report: AverageReport | None) -> tuple[tuple[str, str], ...]:
    """Names and values: the estimated error, and whether Theorem 4.1 covers the input; none for exact bundles."""
    if report is None:
        return ()
    if not report.stages:
        return (("estimated error", "none: every key tile was attended to at this length"),)
    if report.relative_error is None:
        error = "unknown: the spread between samples needs average:samples=2 or more"
    else:
        worst = max(report.stages, key=lambda stage: stage.relative_error or 0.0)
        error = (
            f"{report.relative_error:.2g} of the output of {worst.name}, the attention where it is largest "
            f"(of {len(report.stages)} sampled)"
        )
    hungry = max(report.stages, key=lambda stage: stage.required_keys)
    verdict = "holds" if report.assumptions_hold else "does NOT hold, so it promises nothing"
    return (
        ("estimated error", error),
        (
            "Theorem 4.1",
            f"{verdict}: for a relative error of {report.epsilon} it requires {hungry.required_keys:.3g} drawn keys "
            f"({hungry.name}: C = {hungry.c:.3g}, D = {hungry.d:.3g}), there are {hungry.sampled_keys}",
        ),
    )
