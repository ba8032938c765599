"""Convolutions whose channels are summed in two parts."""

from __future__ import annotations

import torch

from twoheads.compiler.original.cut_products import CutProducts


def test_a_convolution_is_the_same_and_rounds_otherwise() -> None:
    torch.manual_seed(0)
    rows = torch.randn(1, 48, 33)
    plain, grouped = torch.nn.Conv1d(48, 8, 5, stride=2, padding=2), torch.nn.Conv1d(48, 8, 5, groups=4)
    with torch.no_grad():
        want, kept = plain(rows), grouped(rows)
        with CutProducts(3):
            got, same = plain(rows), grouped(rows)
    assert torch.allclose(got, want, atol=1e-5)
    assert not torch.equal(got, want)
    assert torch.equal(same, kept)
