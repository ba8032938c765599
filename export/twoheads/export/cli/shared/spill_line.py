"""One line that says what of a run does not stay in memory."""

from __future__ import annotations

from twoheads.export.cli.shared.console import size_text
from twoheads.graphs.schedule.head_columns import columns_at_once
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.graphs.schedule.spill import SpillPlan

__all__ = ["spill_line"]


def spill_line(plan: SpillPlan, schedule: Schedule) -> str:
    """What stays in memory, within which limit, and what goes to disk; ``plan`` is of a run of ``schedule``."""
    memory = "" if plan.memory is None else f"{size_text(plan.memory.total)} of memory"
    limit = "" if plan.limit is None else f" of the {size_text(plan.limit)} allowed"
    limit += "; weights are read stage by stage" if plan.streamed else ""
    if (columns := columns_at_once(schedule.program)) is not None:
        limit += f"; the head is computed {columns} columns at a time"
    if not plan.values:
        return f"{memory}{limit}; nothing is spilled"
    return (
        f"{memory}{limit}; {len(plan.values)} values are spilled, at most {size_text(plan.disk_bytes)} on disk at once"
    )
