"""What measured figures depend on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["machine", "machine_line"]


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
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    return (
        f"Measured on {found['date']}: {found['cores']} cores of {found['processor']}, "
        f"{found['memory_bytes'] / 2**30:.0f} GiB, {found['system']}, Python {found['python']}, {packages}."
    )
