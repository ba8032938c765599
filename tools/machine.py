"""What measured figures depend on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import ascii_uppercase
from typing import Any

__all__ = ["machine", "machine_letters", "machine_line"]


def machine(packages: Iterable[str]) -> dict[str, Any]:
    """Processor, cores, memory, system, date and the versions of those ``packages`` that are installed."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in packages if (found := _version(name)) is not None},
        "date": date.today().isoformat(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine_line(found: dict[str, Any]) -> str:
    """A sentence that says all of it."""
    return f"Measured on {found['date']}: {_facts(found)}."


def machine_letters(found: Sequence[dict[str, Any]]) -> tuple[list[str], str]:
    """A letter for the machine of every row of a page, and a sentence that says what the letters stand for.

    The same machine on another day has the same letter.

    Args:
        found: Of each row what :func:`machine` gave.
    """
    days: dict[str, list[str]] = {}
    for row in found:
        days.setdefault(_facts(row), []).append(row["date"])
    letters = dict(zip(days, ascii_uppercase, strict=False))
    told = "; ".join(f"{letters[facts]}, {_span(dates)}: {facts}" for facts, dates in days.items())
    return [letters[_facts(row)] for row in found], f"Letters tell the machine. {told}."


def _facts(found: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    return (
        f"{found['cores']} cores of {found['processor']}, {found['memory_bytes'] / 2**30:.0f} GiB, "
        f"{found['system']}, Python {found['python']}, {packages}"
    )


def _span(dates: Sequence[str]) -> str:
    first, last = min(dates), max(dates)
    return first if first == last else f"{first} to {last}"
