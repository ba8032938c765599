"""Tables for the pages below docs/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["table"]


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 0) -> list[str]:
    """The lines of a table and an empty one after it; the first ``left`` columns are words, the others numbers."""
    rule = "|" + "---|" * left + "---:|" * (len(headings) - left)
    return [_line(headings), rule, *map(_line, rows), ""]


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
