"""The page about many documents."""

from __future__ import annotations

from tools.documents import ALONE, OURS, THEIRS, make_texts, render
from tools.machine import machine


def test_the_page_says_what_was_measured():
    page = render(
        {
            "machine": machine(()),
            "documents": 1000,
            "tokens": 200_000,
            "percentiles": [4, 30, 100, 200, 512],
            "block_size": 256,
            "blocks": {OURS: 800, ALONE: 1500},
            "turns": 2,
            "seconds": {OURS: [20.0, 21.0], ALONE: [50.0, 51.0], THEIRS: [40.0, 48.0]},
            "reference": "sentence-transformers",
            "difference": {"one by one": 1e-7, "sentence-transformers": 2e-7},
            "equal_bits": True,
            "smallest_cosine": 0.9999999,
        }
    )
    assert "| twoheads, one command | 20.0 | 10,000 | 50 | 21.0 |" in page
    assert "0.50 of the time" in page
    assert "800 blocks, 98% of their rows" in page
    assert "the same bits" in page


def test_texts_are_short_and_long_and_always_the_same():
    lengths = [len(text.split()) for text in make_texts(200)]
    assert min(lengths) < 10
    assert max(lengths) > 250
    assert make_texts(3) == make_texts(3)
