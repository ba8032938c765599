"""The page of the approximations is what its figures say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tools.quality import _LogLikelihood
from tools.quality_report import render

DOCS = Path(__file__).parent.parent.parent / "docs" / "results"


def test_the_page_is_rendered_from_the_figures() -> None:
    figures = json.loads((DOCS / "approximations.json").read_text(encoding="utf-8"))
    assert render(figures) == (DOCS / "approximations.md").read_text(encoding="utf-8")


def test_the_likelihood_is_that_of_the_next_tokens() -> None:
    rng = np.random.default_rng(0)
    tokens, logits = rng.integers(0, 7, 10), rng.standard_normal((10, 7)).astype(np.float32)
    sink = _LogLikelihood(tokens)
    for start in range(0, 10, 4):
        sink.write(start, logits[start : start + 4])
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(-1, keepdims=True)
    np.testing.assert_allclose(sink.total, -np.log(probabilities[np.arange(9), tokens[1:]]).sum())
