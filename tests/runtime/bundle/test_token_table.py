"""A table of which the rows that tokens name are in memory: the file's numbers in every row, and few pages."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from twoheads.runtime.bundle.token_table import TokenTable

ROWS, WIDTH, BEFORE = 20_000, 800, 100
"""64 MB, which begin in the midst of a page."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "weights.bin"
    numbers = np.arange(ROWS * WIDTH, dtype=np.float32)
    path.write_bytes(bytes(BEFORE) + numbers.tobytes() + b"behind it")
    return path


def opened(file):
    return TokenTable(file, BEFORE, np.dtype(np.float32), (ROWS, WIDTH))


def resident():
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


def test_every_row_is_the_file_s_whether_it_was_fetched_or_not(file):
    table = opened(file)
    expected = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
    table.fetch(np.array([[0, 5, 5], [ROWS - 1, 7, 0]]))
    np.testing.assert_array_equal(table.array, expected)
    table.let_go()
    table.fetch(np.array([5]))
    np.testing.assert_array_equal(table.array, expected)
    assert file.read_bytes()[BEFORE:-9] == expected.tobytes()


def test_nobody_writes_into_a_table(file):
    with pytest.raises(ValueError, match="read-only"):
        opened(file).array[0] = 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's account of memory")
def test_fetched_rows_take_their_own_pages(file):
    table, rows = opened(file), np.arange(100) * (ROWS // 100)
    file.read_bytes()  # it is in the system's cache, whole
    table.fetch(rows[:1])
    before = resident()
    table.fetch(rows)
    assert table.array[rows].sum() > 0
    assert resident() - before < 4 << 20
    table.let_go()
    assert resident() - before < 1 << 20
