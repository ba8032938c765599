"""What the commands print: tables for people, JSON for machines, and numbers in units a person reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from twoheads.graphs.serialization.bundle_format import FULL_PRECISIONS
from twoheads.graphs.serialization.json_codec import finite_numbers

__all__ = [
    "approximations_text",
    "calls_text",
    "count_text",
    "facts_table",
    "of_text",
    "print_error",
    "print_facts",
    "print_json",
    "print_note",
    "print_table",
    "print_text",
    "print_warning",
    "seconds_text",
    "size_text",
    "stderr_console",
]


def approximations_text(names: Iterable[str], precision: str) -> str:
    """The policies of a bundle, or that there are none; exact it is at full precision alone."""
    return ", ".join(names) or ("none: exact to rounding" if precision in FULL_PRECISIONS else "none but the precision")


def stderr_console() -> Console:
    """A console on stderr, for progress, warnings and errors: stdout belongs to results."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def _stdout_console() -> Console:
    """A console on stdout; where it is no terminal, wide enough that no cell is cut or wrapped."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def print_error(message: str) -> None:
    """Prints one ``error: ...`` message on stderr."""
    stderr_console().print(f"[bold red]error:[/] {escape(message)}")


def print_warning(message: str) -> None:
    """Prints one ``warning: ...`` message on stderr."""
    stderr_console().print(f"[bold yellow]warning:[/] {escape(message)}")


def print_note(message: str) -> None:
    """Prints one line on stderr that is neither a warning nor an error."""
    stderr_console().print(escape(message))


def print_json(data: Any) -> None:
    """Prints ``data`` as JSON on stdout; numbers that JSON can't express (infinity, not-a-number) become null."""
    sys.stdout.write(json.dumps(finite_numbers(data), indent=2, allow_nan=False) + "\n")


def print_text(text: str) -> None:
    """Prints plain text on stdout, without wrapping or markup."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def facts_table(rows: Iterable[tuple[str, str]]) -> Table:
    """A two-column table of names and values."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    return table


def print_facts(rows: Iterable[tuple[str, str]]) -> None:
    """Prints names and values, one a line, on stdout."""
    _stdout_console().print(facts_table(rows))


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints a table on stdout.

    Args:
        title: A line above it; empty for none.
        columns: Headings; one that starts with ``>`` is of numbers and aligned to the right.
        rows: The cells as text.
    """
    table = Table(
        title=escape(title) or None, title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    for heading in columns:
        right = heading.startswith(">")
        table.add_column(escape(heading.removeprefix(">")), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    _stdout_console().print(table)


def size_text(size: int) -> str:
    """``size`` bytes in the largest fitting decimal unit, e.g. ``8.6 GB``."""
    return _scaled(size, ("B", "kB", "MB", "GB", "TB", "PB"))


def count_text(count: int) -> str:
    """A large count in the largest fitting unit, e.g. ``2.30 T`` of floating-point operations."""
    return _scaled(count, ("", "k", "M", "G", "T", "P", "E")).strip()


def _scaled(number: int, units: tuple[str, ...]) -> str:
    value = float(number)
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == units[0] else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} {units[-1]}"


def of_text(number: int, what: str) -> str:
    """How many of ``what``, whose plural ends with an s: ``1 block``, ``2 blocks``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def calls_text(counted: int, formula: int, repeated: int) -> str:
    """Engine calls beside what the closed formula says: ``57 (by the formula: 55; 2 repeated)``."""
    return f"{counted} (by the formula: {formula}{f'; {repeated} repeated' if repeated else ''})"


def seconds_text(seconds: float) -> str:
    """A duration a person reads: milliseconds below a second, minutes above one minute and a half, hours above that."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds >= 5400:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
