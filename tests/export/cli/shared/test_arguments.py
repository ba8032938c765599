"""What users type: lengths and sizes, however long and however wrong."""

from __future__ import annotations

import pytest

from twoheads.export.cli.shared.arguments import parse_lengths, parse_size
from twoheads.graphs.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("1.5 GiB", 3 << 29), ("900m", 900 * 10**6), ("7", 7), (" 2 TB ", 2 * 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["9" * 400, "1." + "9" * 400 + "GB", "1e9", "-4GB", "GB", "", "0", "0.1", "4 EB", "٣GB", "nan"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="memory"):
        parse_size(text)


def test_lengths() -> None:
    assert parse_lengths("1000") == 1000
    assert parse_lengths("-3") == -3  # refused as a length, by what it is a length of
    assert parse_lengths("n=1000, m = 300") == {"n": 1000, "m": 300}
    assert parse_lengths("n=1000") == {"n": 1000}


@pytest.mark.parametrize(
    "text", ["", "1e12", "n=", "=5", "1,2", "n=1,2", "n=1,,m=2", "n=m=2", "9" * 400, "n=" + "9" * 5000, "1 000"]
)
def test_what_is_no_length(text: str) -> None:
    with pytest.raises(InputError, match="neither a whole number"):
        parse_lengths(text)


@pytest.mark.parametrize("text", ["n=1,n=2", "n=1,m=2,n=1"])
def test_a_length_that_is_told_twice(text: str) -> None:
    with pytest.raises(InputError, match="twice"):
        parse_lengths(text)
