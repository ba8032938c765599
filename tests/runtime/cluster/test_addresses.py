"""What is no cluster's address is told at once, before Ray tries for minutes."""

from __future__ import annotations

import pytest

from twoheads.graphs.errors import TwoheadsError
from twoheads.runtime.cluster import Cluster


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ray://10.0.0.1:10001", "is Ray's client"),
        ("local:0", "is no address"),
        ("somewhere", "is no address"),
        ("127.0.0.1:1", "can't be reached: .*refused"),
    ],
)
def test_addresses_that_are_none(address, problem):
    with pytest.raises(TwoheadsError, match=problem):
        Cluster(address)
