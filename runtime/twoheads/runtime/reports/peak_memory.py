"""The memory of this process: its high-water mark, and what it held when it first loaded a bundle."""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from pathlib import Path

from twoheads.graphs.schedule.schedule import PROCESS_BYTES

__all__ = ["peak_memory", "process_memory"]


def peak_memory() -> int:
    """The most resident memory that this process ever had, in bytes; 0 where the system does not tell.

    The mark belongs to the process, not to a run: whatever was loaded before (another bundle, torch) counts.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows has neither
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


@lru_cache(maxsize=1)
def process_memory() -> int:
    """Resident bytes of this process, measured once: the interpreter, libraries, and whatever else it holds by then.

    Called when a bundle is loaded, libraries being there and engines not open; :data:`PROCESS_BYTES` where the system
    does not tell.
    """
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    return PROCESS_BYTES if found is None else int(found[1]) * 1024
