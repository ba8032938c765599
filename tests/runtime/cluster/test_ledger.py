"""Who holds which block, and what is left when a worker is lost."""

from __future__ import annotations

import pytest

from twoheads.graphs.schedule.placement import DRIVER
from twoheads.runtime.cluster.ledger import Ledger
from twoheads.runtime.cluster.transport import Piece


@pytest.fixture
def ledger() -> Ledger:
    """Block 0 is with workers 1 and 2, block 1 with worker 1 alone, block 2 with worker 1 and the driver."""
    made = Ledger()
    for block, holder in ((0, 1), (0, 2), (1, 1), (2, 1), (2, DRIVER)):
        made.add("x", block, holder, Piece("copy", holder))
    return made


def test_a_lost_worker_holds_nothing(ledger: Ledger) -> None:
    assert ledger.only_holders(["x"]) == {("x", 1): 1}
    ledger.forget_worker(1)
    assert ledger.lost("x", range(3)) == [1]
    assert ledger.nearest("x", 0, 1) == (2, Piece("copy", 2))
    assert ledger.nearest("x", 2, 1) == (DRIVER, Piece("copy", DRIVER))
    assert ledger.only_holders(["x"]) == {("x", 0): 2}


def test_a_lost_copy_is_that_of_one_worker(ledger: Ledger) -> None:
    ledger.forget_copy("x", 0, 1)
    assert ledger.nearest("x", 0, 1) == (2, Piece("copy", 2))
    assert ledger.holds("x", 1)
    ledger.release(["x"])
    assert ledger.values == set()
