"""One line that says what of a run does not stay in memory."""

from __future__ import annotations

from twoheads.export.cli.shared.console import size_text
from twoheads.graphs.schedule.spill import SpillPlan

__all__ = ["spill_line"]


def spill_line(plan: SpillPlan) -> str:
    """What stays in memory, within which limit, and what goes to disk."""
    memory = "" if plan.memory is None else f"{size_text(plan.memory.total)} of memory"
    limit = "" if plan.limit is None else f" of the {size_text(plan.limit)} allowed"
    limit += "; weights are read stage by stage" if plan.streamed else ""
    if not plan.values:
        return f"{memory}{limit}; nothing is spilled"
    return (
        f"{memory}{limit}; {len(plan.values)} values are spilled, at most {size_text(plan.disk_bytes)} on disk at once"
    )
