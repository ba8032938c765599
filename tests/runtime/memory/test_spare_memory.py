"""Blocks that go back to the system when they are freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

FREED = """
import re, sys
import numpy as np
from twoheads.runtime.memory.spare_memory import return_large_blocks
if sys.argv[1] == "1":
    assert return_large_blocks()
del_first = np.ones(30 << 20, np.uint8)
del del_first  # from which glibc learns
blocks = [np.ones(4 << 20, np.uint8) for _ in range(30)]
last = blocks.pop()
blocks.clear()
print(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_freed_blocks_do_not_stay_under_one_that_is_used() -> None:
    words = [[sys.executable, "-c", FREED, flag] for flag in "01"]
    kept, returned = (
        int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for command in words
    )
    assert kept - returned > 100_000, "of 120 MB that are free"
