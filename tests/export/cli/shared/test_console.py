"""Numbers as a person reads them."""

from __future__ import annotations

import pytest

from twoheads.export.cli.shared.console import of_text


@pytest.mark.parametrize(("number", "text"), [(0, "0 blocks"), (1, "1 block"), (2, "2 blocks")])
def test_one_has_no_plural(number: int, text: str) -> None:
    assert of_text(number, "block") == text
