"""``verify`` on models of several inputs, of images, and with logits of the whole input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from tests.end_to_end.agreement import bundle_of
from tests.end_to_end.families import SIZES, make, with_large_weights
from tests.end_to_end.test_more_families import FAMILIES
from twoheads.export import verify
from twoheads.graphs.errors import InputError


def test_an_encoder_decoder(tmp_path: Path) -> None:
    model = with_large_weights(FAMILIES["BART"])
    bundle = bundle_of(model, tmp_path, block_size=16)
    report = verify(bundle.path, model, length={"n": 21, "m": 50})
    assert report.passed
    assert (report.length, report.hidden.positions) == (21, 21)
    assert verify(bundle.path, model, length=20).hidden.positions == 20  # both have 20 tokens
    given = {"input_ids": np.arange(30)[None] % 67, "decoder_input_ids": np.arange(7)[None]}
    assert verify(bundle.path, model, length={"n": 7, "m": 30}, tokens=given).passed
    with pytest.raises(InputError, match="the arrays have"):
        verify(bundle.path, model, length={"n": 8, "m": 30}, tokens=given)
    with pytest.raises(InputError, match="length"):
        verify(bundle.path, model, length={"n": 8})


def test_an_image_model(tmp_path: Path) -> None:
    model = with_large_weights(FAMILIES["ViT, classes of images"])
    bundle = bundle_of(model, tmp_path, block_size=16)
    report = verify(bundle.path, model, length=17)
    assert report.passed
    assert report.logits is not None
    assert (report.hidden.positions, report.logits.positions) == (17, 1)
    with pytest.raises(InputError, match="17 only"):
        verify(bundle.path, model, length=16)


def test_a_wrong_pooled_head_is_found(tmp_path: Path) -> None:
    build = make(hf.BertForSequenceClassification, hf.BertConfig, **SIZES, max_position_embeddings=64, num_labels=3)
    model = with_large_weights(build)
    bundle = bundle_of(model, tmp_path, block_size=16)
    assert verify(bundle.path, model, length=40).passed
    with torch.no_grad():
        model.get_parameter("classifier.weight").mul_(1.001)
    report = verify(bundle.path, model, length=40)
    assert not report.passed
    assert report.output == "logits"
