"""Every model of the zoo compiles and agrees with the original, or is refused with the reason that is expected."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiers import with_long
from tools.zoo.entry import Entry
from tools.zoo.measure import measure
from tools.zoo.torch_families import BACKBONES
from tools.zoo.torch_heads import REFUSED, TASKS

ROUNDING = 2e-6
"""Of the largest magnitude; what is wrong is wrong by a thousand times that."""

ZOO = (*BACKBONES, *TASKS, *REFUSED)

LIKE_OTHERS = frozenset(
    {
        "BERT, question answering",
        "DistilBERT, sequence classification",
        "GPT-2, sequence classification",
        "Longformer, masked language model",
        "RoBERTa, sequence classification",
        "XLM-RoBERTa",
        "XLM-RoBERTa, masked language model",
    }
)
"""A body and a head that others of the zoo have: ``make zoo`` measures these, and nothing would fail for them alone."""


ELSEWHERE = (
    "tests/end_to_end/test_padding.py::test_a_padded_batch_is_the_librarys",
    "tests/end_to_end/test_relative_positions.py::test_scores_by_distance_are_the_librarys",
    "tests/end_to_end/test_spelled_attention.py::test_a_model_with_its_own_attention_agrees_with_torch_at_any_length",
    "tests/export/verification/test_evaluations.py::"
    "test_an_architecture_whose_two_evaluations_are_the_same_code_passes",
    "test_a_model_of_the_zoo_does_what_is_expected",
)
"""What compiles BERT, DeBERTa and XLNet, MPT with its slopes, GPT-OSS with its sinks; for all others, the rest here."""

FIRST = frozenset(
    {
        "Gemma 2, softcap",
        "Llama, dynamic RoPE",
        "ModernBERT",
        "Longformer, local attention",
        "Llama, classification by the last real token",
        "CLIP, texts",
        "ViT, image classification",
        "FNet",
        "ProphetNet",
    }
)
"""One for each way of attention, of positions, of heads and of inputs that no other tests compile; what is refused."""


@pytest.mark.parametrize(
    "entry",
    with_long(
        [entry for entry in ZOO if entry.name not in LIKE_OTHERS],
        [entry for entry in ZOO if entry.name in FIRST],
        *ELSEWHERE,
    ),
    ids=lambda entry: entry.name,
)
def test_a_model_of_the_zoo_does_what_is_expected(entry: Entry, tmp_path: Path) -> None:
    torch.manual_seed(0)
    row = measure(entry, tmp_path)
    if entry.refusal is not None:
        assert row["refusal"] is not None, "a bundle was made"
        assert entry.refusal in row["refusal"]
        return
    assert row["refusal"] is None
    assert row["engine_calls"] == row["formula_calls"]
    # So small a model has a handful of sums, and its floor is luck on a processor that the table was not made on.
    rounding = max(4 * row["noise_floor"], ROUNDING * row["magnitude"])
    assert row["error"] <= rounding, f"error {row['error']:.2e}, noise floor {row['noise_floor']:.2e}"


def test_names_are_unique() -> None:
    names = [entry.name for entry in ZOO]
    assert len(set(names)) == len(names)
    assert set(names) >= LIKE_OTHERS | FIRST
