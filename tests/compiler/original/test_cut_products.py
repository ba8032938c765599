"""Evaluations of an original with its matrix products cut: the same numbers but for rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.end_to_end.agreement import zoo_model
from tools.zoo.exported_files import ZooFile
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.original.cut_products import CutProducts
from twoheads.compiler.original.onnx_original import load_onnx_original
from twoheads.compiler.original.torch_original import TorchOriginal

PRODUCTS = {
    "linear": lambda rows, weight: functional.linear(rows, weight.T),
    "linear with a bias": lambda rows, weight: functional.linear(rows, weight.T, weight[0]),
    "addmm": lambda rows, weight: torch.addmm(weight[0], rows[0], weight),
    "matmul": torch.matmul,
    "operator": lambda rows, weight: rows @ weight,
    "of a vector": lambda rows, weight: rows[0, 0] @ weight,
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("width", [1, 2, 63])
def test_a_cut_product_is_the_product(name: str, width: int) -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(2, 40, width), torch.randn(width, 33)
    whole = PRODUCTS[name](rows, weight)
    found = []
    for share in (2, 3, 7, 100):
        with CutProducts(share):
            found.append(PRODUCTS[name](rows, weight))
        torch.testing.assert_close(found[-1], whole, rtol=1e-5, atol=1e-5)
    if width == 63 and name != "of a vector":
        assert not all(torch.equal(result, whole) for result in found)


def test_an_original_with_cut_products_differs_by_rounding(tmp_path: Path) -> None:
    source = load_source(zoo_model("BERT, sequence classification", tmp_path))
    tokens = torch.arange(40)[None] % 67
    results = [TorchOriginal(source).hidden_and_logits(tokens, None, "plain", cut=cut)[0] for cut in (None, 3, 5)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        torch.testing.assert_close(results[one], results[other], rtol=1e-4, atol=1e-5)
        assert not torch.equal(results[one], results[other])


def test_an_onnx_file_with_other_cuts_differs_by_rounding(tmp_path: Path) -> None:
    original = load_onnx_original(ZooFile("bert", "legacy", 17, "eager").make(tmp_path / "model.onnx"))
    given = {entry.value.name: np.ones((1, 40), np.int64) for entry in original.inputs}
    halves, thirds = (original.hidden_and_logits(given, None, "plain", cut)[0] for cut in (None, 3))
    np.testing.assert_allclose(halves, thirds, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(halves, thirds)
